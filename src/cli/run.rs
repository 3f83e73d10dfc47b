//! The sidecar: checks the flags, starts logging and the runtime, runs the app.

use std::process::ExitCode;

use tracing::error;

use super::prepare;
use crate::app;
use crate::cli::exit::Exit;
use crate::cli::flags::RunArgs;

/// Runs until SIGTERM, or with `--once` until the output is published.
pub(super) fn run(args: RunArgs) -> ExitCode {
    let (config, runtime) = match prepare(args) {
        Ok(prepared) => prepared,
        Err(code) => return code,
    };
    let end = match runtime.block_on(app::run(config)) {
        Ok(end) => end,
        Err((end, failure)) => {
            error!("{failure:#}");
            end
        }
    };
    // A write that hangs on a dead disk must not hold up the end.
    runtime.shutdown_background();
    Exit::from(end).into()
}
