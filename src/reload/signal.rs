//! Notifying by a signal.

use super::process::{self, FindError, Selector, Signal, SignalError, Target};
use super::{Before, TargetState, TargetStatus, Verdict};
use crate::model::journal::Moment;
use crate::os::mask::Said;

/// One attempt: an error is any verdict but `Took`; the target, for `/status`; and what was there before, if a signal
/// was sent or the target is newer than the publish.
pub(super) fn send(
    signal: Signal,
    selector: &Selector,
    generation: u64,
    published: Option<&Moment>,
    with_children: bool,
) -> (Result<(), Verdict>, TargetStatus, Option<Before>) {
    let blocked = |state, target: Option<&Target>, message: String| {
        let (pid, name) = target.map(|target| (target.pid, target.name.clone())).unzip();
        let status = TargetStatus { state, pid, name, message: Some(message.clone()) };
        (Err(Verdict::Unreachable { message, output: Said::default(), delivered: false }), status, None)
    };
    let target = match process::find(selector) {
        Ok(target) => target,
        Err(error @ FindError::Ambiguous { .. }) => return blocked(TargetState::Ambiguous, None, error.to_string()),
        Err(error) => return blocked(TargetState::Missing, None, error.to_string()),
    };
    let before = Before::new(generation, target, published, with_children);
    let target = &before.target;
    if !before.started_after
        && let Err(error) = target.signal(signal)
    {
        let state = match error {
            SignalError::NotHandling { .. } => TargetState::NotHandling,
            SignalError::Forbidden { .. } => TargetState::Forbidden,
            SignalError::Gone { .. } | SignalError::Io { .. } => TargetState::Missing,
        };
        return blocked(state, Some(target), error.to_string());
    }
    let (pid, name) = (Some(target.pid), Some(target.name.clone()));
    (Ok(()), TargetStatus { state: TargetState::Found, pid, name, message: None }, Some(before))
}
