//! Notifying by a program of the sidecar's own image.

use std::time::Duration;

use super::NotTaken;
use crate::os::exec::{self, Command, Outcome};
use crate::os::mask::Said;

/// Runs it once.
pub(super) async fn execute(command: &Command, timeout: Duration) -> Result<(), NotTaken> {
    let Outcome { status, output } = match exec::run(command, timeout).await {
        Ok(outcome) => outcome,
        Err(error) => {
            let message = format!("--reload-exec: {error}");
            return Err(NotTaken::Unreachable { message, output: Said::default(), delivered: false });
        }
    };
    let failure = match status {
        Some(status) if status.success() => return Ok(()),
        Some(status) => match status.code() {
            Some(code) => NotTaken::Refused { message: format!("{command} exited with code {code}"), output },
            // Killed by somebody, for lack of memory perhaps: that is not the main process's no. Prints 'signal: 9 …'.
            None => {
                NotTaken::Unreachable { message: format!("{command} was ended by a {status}"), output, delivered: true }
            }
        },
        None => {
            let message = format!("{command} was killed after {timeout:?} (--reload-timeout)");
            NotTaken::Unreachable { message, output, delivered: true }
        }
    };
    Err(failure)
}
