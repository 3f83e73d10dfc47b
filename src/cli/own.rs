//! The running sidecar's own flags, for `trimtab check` and `trimtab render` in its container.
//!
//! A process that `kubectl exec` starts has the container's variables, files and working directory, and lacks its
//! arguments alone. They are read from the sidecar's command line, as its own user may: no port has to show what may hold a
//! credential, and a sidecar that hangs is read as well.

use std::ffi::OsString;

use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Command};

use super::flags::Variables;
use super::given::given;
use super::personas;
use crate::os::beside;

/// Subcommands that take the sidecar's flags.
const TAKERS: [&str; 2] = ["check", "render"];

/// Flags that say what is read or written: whoever gives one of them means a configuration of their own.
const OWN: [&str; 10] = [
    "config",
    "configmaps",
    "envsubst",
    "observe_dirs",
    "output",
    "secrets",
    "selector",
    "templates",
    "watch_dirs",
    "watch_urls",
];

/// What is added to a command line, or why nothing is.
pub(super) enum Own {
    /// The command line needs none.
    Given,
    /// The sidecar's flags, without those that the command line has by itself.
    Found {
        flags: Vec<OsString>,
        /// What they name as variables, if the sidecar runs with another one's settings.
        variables: Variables,
        /// What is said of it.
        note: String,
    },
    /// Why there are none, to be said if some are missing.
    None(String),
}

/// Finds the sidecar whose flags are meant.
pub(super) fn flags(command: &Command, words: &[OsString]) -> Own {
    if !words.iter().any(|word| TAKERS.iter().any(|taker| word == taker)) {
        return Own::Given;
    }
    let matches = command.clone().ignore_errors(true).try_get_matches_from(words);
    let Some((name, matches)) = matches.as_ref().ok().and_then(ArgMatches::subcommand) else { return Own::Given };
    if !TAKERS.contains(&name) || OWN.iter().any(|id| is_given(matches, id)) {
        return Own::Given;
    }
    let running = match beside::command_lines() {
        Ok(lines) => lines,
        Err(error) => return Own::None(format!("the running sidecar's flags cannot be read: {error}")),
    };
    let sidecar = |(pid, words): (i32, Vec<OsString>)| {
        let (words, variables) = personas::translated(words)?;
        // A file may have what is required.
        let theirs = command.clone().ignore_errors(true).try_get_matches_from(words).ok()?;
        theirs.subcommand().is_none().then_some((pid, theirs, variables))
    };
    let mut sidecars = running.into_iter().filter_map(sidecar);
    match (sidecars.next(), sidecars.next()) {
        (None, _) => Own::None("no sidecar of this user runs in this container, whose flags could be taken".to_owned()),
        (Some((one, ..)), Some((other, ..))) => Own::None(format!(
            "two sidecars run here (pid {one} and pid {other}), so none of their flags are taken: give --output and the sources"
        )),
        (Some((pid, theirs, variables)), None) => {
            let shown = given(command, &theirs, &[]).join(" ");
            let note = format!("with the flags of the running sidecar (pid {pid}): {shown}");
            Own::Found { flags: missing(command, &theirs, matches), variables, note }
        }
    }
}

fn is_given(matches: &ArgMatches, id: &str) -> bool {
    // An argument that is not there is no flag of the subcommand.
    matches.try_contains_id(id).is_ok() && matches.value_source(id) == Some(ValueSource::CommandLine)
}

/// Their flags as words, but for those that are given.
fn missing(command: &Command, theirs: &ArgMatches, given: &ArgMatches) -> Vec<OsString> {
    let mut words = Vec::new();
    for arg in command.get_arguments() {
        let (Some(long), id) = (arg.get_long(), arg.get_id().as_str()) else { continue };
        if !is_given(theirs, id) || is_given(given, id) {
            continue;
        }
        if matches!(arg.get_action(), ArgAction::SetTrue) {
            words.push(format!("--{long}").into());
        } else {
            let values = theirs.get_raw(id).into_iter().flatten();
            words.extend(values.map(|value| personas::joined(&format!("--{long}"), Some(value))));
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::command;

    #[test]
    fn their_flags_are_added_and_ones_own_win() {
        let command = command();
        let of = |words: &[&str]| command.clone().try_get_matches_from(words).unwrap();
        let theirs = [
            "trimtab",
            "--watch-dir",
            "a=/x",
            "--watch-dir=b=/y",
            "--output",
            "/out",
            "--optional",
            "--validate=x -a\n-b",
            "--debounce=1s",
            "--log-level",
            "debug",
        ];
        let own = of(&["trimtab", "check", "--log-level=warn", "--output=/out"]);
        let words = missing(&command, &of(&theirs), own.subcommand().unwrap().1);
        let expected =
            ["--watch-dir=a=/x", "--watch-dir=b=/y", "--optional", "--validate=x -a", "--validate=-b", "--debounce=1s"];
        let mut words: Vec<_> = words.iter().map(|word| word.to_str().unwrap()).collect();
        words.sort_by_key(|word| expected.iter().position(|expected| expected == word));
        assert_eq!(words, expected);
    }

    #[test]
    fn nothing_is_taken_where_it_is_said_what_is_meant() {
        for words in [
            "trimtab --output=/x",
            "trimtab status",
            "trimtab check --output /x",
            "trimtab render --config=/x",
            "trimtab check --help",
        ] {
            let words: Vec<_> = words.split(' ').map(OsString::from).collect();
            assert!(matches!(flags(&command(), &words), Own::Given), "{words:?}");
        }
    }

    #[test]
    fn the_flags_that_say_what_is_meant_are_flags() {
        let command = command();
        for id in OWN {
            assert!(command.get_arguments().any(|arg| arg.get_id() == id), "{id}");
        }
    }
}
