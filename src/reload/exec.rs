//! Notifying by a program of the sidecar's own image.

use std::time::Duration;

use super::Verdict;
use crate::os::exec::{self, Command, Outcome};
use crate::os::mask::Said;

/// Runs it once. An error is any verdict but `Took`.
pub(super) async fn execute(command: &Command, timeout: Duration) -> Result<(), Verdict> {
    let Outcome { status, output } = match exec::run(command, timeout).await {
        Ok(outcome) => outcome,
        Err(error) => {
            let message = format!("--reload-exec: {error}");
            return Err(Verdict::Unreachable { message, output: Said::default(), delivered: false });
        }
    };
    let failure = match status {
        Some(status) if status.success() => return Ok(()),
        Some(status) => match status.code() {
            Some(code) => Verdict::Refused { message: format!("{command} exited with code {code}"), output },
            // Killed by somebody, for want of memory perhaps: that is not the main process's no. Prints 'signal: 9 …'.
            None => {
                Verdict::Unreachable { message: format!("{command} was ended by a {status}"), output, delivered: true }
            }
        },
        None => {
            let message = format!("{command} was killed after {timeout:?} (--reload-timeout)");
            Verdict::Unreachable { message, output, delivered: true }
        }
    };
    Err(failure)
}
