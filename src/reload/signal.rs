//! Notifying by a signal.

use std::time::Duration;

use super::confirm::Probe;
use super::process::{self, FindError, Selector, Signal, SignalError, Target};
use super::{Before, NotTaken, TargetState, TargetStatus, started_after};
use crate::model::journal::Moment;
use crate::net::request;
use crate::os::mask::Said;

/// How long until a process that is starting is looked at again.
const PAUSE: Duration = Duration::from_millis(100);
/// The longest wait for one answer of `--confirm-url`.
const ANSWER: Duration = Duration::from_secs(1);

/// A runtime's handlers are no sign that the program takes the signal: until it asked for it, Go and the JVM let it end
/// the program. It has started when it is some seconds old or answers `--confirm-url`.
async fn wait_until_started(target: &Target, signal: Signal, ready: Option<&Probe>) {
    while !signal.ends() && target.is_alive() && target.may_be_starting(signal) {
        if let Some(Probe { endpoint, http, accept, .. }) = ready {
            let answer = request::send(endpoint, http, ANSWER).await;
            if answer.is_ok_and(|answer| accept.contains(answer.status)) {
                return;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// One attempt: its result; the target, for `/status`; and what was there before, if a signal
/// was sent or the target is newer than the publish.
pub(super) async fn send(
    signal: Signal,
    selector: &Selector,
    ready: Option<&Probe>,
    generation: u64,
    published: Option<&Moment>,
    with_children: bool,
) -> (Result<(), NotTaken>, TargetStatus, Option<Before>) {
    let blocked = |state, target: Option<&Target>, message: String| {
        let (pid, name) = target.map(|target| (target.pid, target.name.clone())).unzip();
        let status = TargetStatus { state, pid, name, message: Some(message.clone()) };
        (Err(NotTaken::Unreachable { message, output: Said::default(), delivered: false }), status, None)
    };
    let target = match process::find(selector) {
        Ok(target) => target,
        Err(error @ FindError::Ambiguous { .. }) => return blocked(TargetState::Ambiguous, None, error.to_string()),
        Err(error) => return blocked(TargetState::Missing, None, error.to_string()),
    };
    // Before the children are listed: those that it starts until then are old.
    if !started_after(&target, published) {
        wait_until_started(&target, signal, ready).await;
    }
    let before = Before::new(generation, target, published, with_children);
    let target = &before.target;
    if !before.started_after
        && let Err(error) = target.signal(signal).await
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
