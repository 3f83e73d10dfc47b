//! The sidecar: checks the flags, starts logging and the runtime, runs the app.

use std::process::ExitCode;
use std::time::Duration;

use tracing::error;

use crate::app::{self, Exit};
use crate::args::RunArgs;
use crate::cmd::EX_USAGE;
use crate::config::Config;
use crate::log;
use crate::source::kube;

/// Runs until SIGTERM, or with `--once` until the output is published.
#[must_use]
pub fn run(args: RunArgs) -> ExitCode {
    let (format, level) = (args.life.log_format, args.life.log_level);
    let own_namespace =
        |client: &kube::ClientConfig| kube::default_namespace(client).map_err(|error| error.to_string());
    let config = match Config::new(args, &|name| std::env::var_os(name), &own_namespace) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("trimtab: {error}\nSee trimtab --help.");
            return EX_USAGE.into();
        }
    };
    log::init(format, level);
    // One thread is enough for what waits; blocking work has threads that end when they are idle.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(Duration::from_secs(1))
        .max_blocking_threads(8)
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            error!("the runtime does not start: {error}");
            return Exit::StartUp.code().into();
        }
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
