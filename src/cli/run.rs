//! The sidecar: checks the flags, starts logging and the runtime, runs the app.

use std::process::ExitCode;

use tracing::error;

use super::prepare;
use crate::app;
use crate::cli::args::RunArgs;

/// Runs until SIGTERM, or with `--once` until the output is published.
#[must_use]
pub fn run(args: RunArgs) -> ExitCode {
    let (config, runtime) = match prepare(args) {
        Ok(prepared) => prepared,
        Err(code) => return code,
    };
    let exit = match runtime.block_on(app::run(config)) {
        Ok(exit) => exit,
        Err((exit, failure)) => {
            error!("{failure:#}");
            exit
        }
    };
    // A write that hangs on a dead disk must not hold up the end.
    runtime.shutdown_background();
    exit.code().into()
}
