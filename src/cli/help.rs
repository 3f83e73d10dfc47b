//! What the program says of itself: help that fits a screen, the version, completions for shells.

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Args, Command};
use clap_complete::Shell;

use super::exit::Exit;

/// The flags that most people need, which `-h` shows. `--help` has all of them.
const MOST_NEEDED: [&str; 15] = [
    "config",
    "configmap",
    "confirm-url",
    "confirm-workers",
    "once",
    "output",
    "process",
    "reload-exec",
    "reload-url",
    "secret",
    "selector",
    "signal",
    "template",
    "validate",
    "watch-dir",
];

/// `--version`.
pub(super) const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\ncommit: ",
    env!("BUILD_COMMIT"),
    "\ntarget: ",
    env!("BUILD_TARGET"),
    "\nlibraries: ",
    env!("BUILD_LIBRARIES")
);

/// The same command with a `-h` that fits a screen: of the sidecar's flags those that most people need, each in a line or
/// two, without headings and variables.
pub(super) fn on_one_screen(command: Command) -> Command {
    let all: Vec<String> = command.get_arguments().filter_map(|arg| arg.get_long().map(str::to_owned)).collect();
    shorten(command, &all)
}

fn shorten(command: Command, of_the_sidecar: &[String]) -> Command {
    let takes_all = command.get_arguments().any(|arg| arg.get_long() == Some("output"));
    let command = command.mut_args(|arg| {
        let long = arg.get_long().unwrap_or_default();
        let hidden = takes_all && of_the_sidecar.iter().any(|flag| flag == long) && !MOST_NEEDED.contains(&long);
        arg.hide_short_help(hidden).hide_env(true).help_heading(None::<&str>)
    });
    command.mut_subcommands(|subcommand| shorten(subcommand, of_the_sidecar))
}

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: Shell,
}

/// Prints a script that completes flags and values.
pub(super) fn completions(args: &CompletionsArgs) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "trimtab", &mut script);
    match std::io::stdout().write_all(&script) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("trimtab: standard output: {error}");
            Exit::StartUp.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::command;

    #[test]
    fn the_flags_that_most_people_need_exist() {
        let command = command();
        for flag in MOST_NEEDED {
            assert!(command.get_arguments().any(|arg| arg.get_long() == Some(flag)), "--{flag}");
        }
    }
}
