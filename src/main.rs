//! The `trimtab` binary: parses, and hands over to a subcommand.

use std::process::ExitCode;

use clap::Parser;
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, setrlimit};
use trimtab::cli;
use trimtab::cli::args::{Cli, Command};
use trimtab::cli::exit::Exit;

fn main() -> ExitCode {
    forbid_core_dumps();
    // Before any thread: a tighter one would need a chmod of each directory, which loses its setgid bit.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing can be done about a closed standard output.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { ExitCode::SUCCESS };
        }
    };
    match cli.command {
        None => cli::run(cli.run),
        Some(Command::Render(args)) => cli::render(*args),
        Some(Command::Check(args)) => cli::check(*args),
        Some(Command::Status(args)) => cli::status(&args),
        Some(Command::Retry(args)) => cli::retry(&args),
    }
}

/// A core dump would hold every secret. One byte, not zero: that alone also keeps the kernel from piping it to a
/// program, as `core_pattern` may say (core(5), fs/coredump.c).
fn forbid_core_dumps() {
    // Lowering a limit needs no privilege; where it fails all the same, there is nothing to fall back to.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(1), maximum: Some(1) });
}
