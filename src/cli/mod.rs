//! The subcommands. None: the sidecar itself.

pub mod args;
mod ask;
mod check;
pub mod config;
pub mod exit;
pub mod log;
mod render;
mod run;

use std::process::ExitCode;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tracing::error;

pub use ask::{retry, status};
pub use check::check;
pub use render::render;
pub use run::run;

use crate::app::Config;
use crate::cli::args::RunArgs;
use crate::cli::exit::Exit;
use crate::source::kube;

/// Checks the flags and starts logging.
fn configure(args: RunArgs) -> Result<Config, ExitCode> {
    let (format, level) = (args.life.log_format, args.life.log_level);
    let own_namespace =
        |client: &kube::ClientConfig| kube::default_namespace(client).map_err(|error| error.to_string());
    match args.check(&|name| std::env::var_os(name), &own_namespace) {
        Ok(config) => {
            log::init(format, level);
            Ok(config)
        }
        Err(error) => {
            eprintln!("trimtab: {error}\nSee trimtab --help.");
            Err(Exit::Usage.into())
        }
    }
}

/// What each subcommand that takes the sidecar's flags begins with; an exit code where it goes no further.
fn prepare(args: RunArgs) -> Result<(Config, Runtime), ExitCode> {
    Ok((configure(args)?, runtime()?))
}

/// For a terminal, which names must not be able to steer: control characters but `kept` are shown, not sent.
fn escaped(text: &str, kept: char) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != kept {
            escaped.extend(c.escape_debug());
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// One thread is enough for what waits; blocking work has threads that end when they are idle.
fn runtime() -> Result<Runtime, ExitCode> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(Duration::from_secs(1))
        .max_blocking_threads(8)
        .build();
    runtime.map_err(|error| {
        error!("the runtime does not start: {error}");
        Exit::StartUp.into()
    })
}
