//! The sidecar: checks the flags, starts logging and the runtime, runs the app.

use std::process::ExitCode;

use tracing::{error, info};

use super::prepare;
use crate::app;
use crate::cli::exit::Exit;
use crate::cli::flags::RunArgs;

/// Runs until SIGTERM, or with `--once` until the output is published. `given`: the flags, for the log.
pub(super) fn run(args: RunArgs, given: &[String]) -> ExitCode {
    let (config, runtime) = match prepare(args) {
        Ok(prepared) => prepared,
        Err(code) => return code,
    };
    let sources: Vec<&str> = config.specs.iter().map(|spec| spec.name.as_str()).collect();
    info!(
        version = env!("CARGO_PKG_VERSION"),
        sources = sources.join(", "),
        output = config.output.as_ref().map(|output| output.output.display().to_string()),
        target = config.reload.driver.target(),
        flags = given.join(" "),
        "starting"
    );
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
