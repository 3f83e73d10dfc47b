//! Which flags were given, for the line that the log begins with: names, and values only where they cannot be secret.

use std::ffi::OsStr;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::file::Entry;

/// The names of values that are no texts of the user's own.
const PLAIN: [&str; 12] =
    ["ADDR", "CODES", "D", "FORMAT", "HOW", "LEVEL", "METHOD", "MODE", "N", "SIG", "SIZE", "WHAT"];

/// Each flag that was given on the command line, by its variable or in the file, and is not as it is by default. `command`:
/// without the file's values.
pub(super) fn given(command: &Command, matches: &ArgMatches, file: &[Entry]) -> Vec<String> {
    command.get_arguments().filter_map(|arg| shown(arg, matches, file)).collect()
}

fn shown(arg: &Arg, matches: &ArgMatches, file: &[Entry]) -> Option<String> {
    let (long, id) = (arg.get_long()?, arg.get_id().as_str());
    match matches.value_source(id)? {
        ValueSource::CommandLine | ValueSource::EnvVariable => {}
        // A file's values take the place of defaults.
        _ if file.iter().any(|entry| entry.key == long) => {}
        _ => return None,
    }
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return matches.get_flag(id).then(|| format!("--{long}"));
    }
    let values: Vec<&OsStr> = matches.get_raw(id)?.collect();
    if arg.get_default_values().iter().map(clap::builder::OsStr::as_os_str).eq(values.iter().copied()) {
        return None;
    }
    let plain = arg.get_value_names().is_some_and(|names| names.iter().all(|name| PLAIN.contains(&name.as_str())));
    let values = values.iter().filter(|_| plain).map(|value| format!(" {}", value.to_string_lossy()));
    Some(format!("--{long}{}", values.collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::command;

    #[test]
    fn values_that_may_be_secret_are_not_shown_and_defaults_are_not_news() {
        let line = [
            "trimtab",
            "--watch-dir=/etc/app",
            "--output=/out",
            "--reload-url=http://x/?token=hunter2",
            "--reload-header=Authorization: hunter2",
            "--debounce=1s",
            "--debounce-max=2s",
            "--allow-empty",
        ];
        let command = command();
        let matches = command.clone().try_get_matches_from(line).unwrap();
        let mut given = given(&command, &matches, &[]);
        given.sort_unstable();
        let expected = ["--allow-empty", "--debounce 1s", "--output", "--reload-header", "--reload-url", "--watch-dir"];
        assert_eq!(given, expected);
    }
}
