use clap::FromArgMatches as _;

use super::*;
use crate::cli::{Cli, command};

fn parsed(flags: &[String]) -> Result<RunArgs, clap::Error> {
    let words = ["trimtab", "--output", "/x", "--watch-dir", "/y"].map(str::to_owned);
    Ok(Cli::from_arg_matches(&command().try_get_matches_from(words.iter().chain(flags))?)?.run)
}

/// Each flag, as a value of its own changes it.
fn changed() -> Vec<(String, String, RunArgs)> {
    let command = command();
    let flags = command.get_arguments().filter_map(|arg| Some((arg.get_long()?, arg)));
    let changed = flags.filter(|(long, _)| !matches!(*long, "help" | "version" | "output")).map(|(long, arg)| {
        let heading = arg.get_help_heading().unwrap().to_owned();
        let default = arg.get_default_values().first().and_then(|value| value.to_str());
        let possible = arg.get_possible_values();
        let mut values: Vec<_> =
            possible.iter().map(clap::builder::PossibleValue::get_name).filter(|name| Some(*name) != default).collect();
        values.extend(["7m", "7", "0600", "/a", "[::1]:7"]);
        let mut tried = values.iter().map(|value| vec![format!("--{long}"), (*value).to_owned()]);
        let run = if arg.get_action().takes_values() {
            tried.find_map(|words| parsed(&words).ok())
        } else {
            parsed(&[format!("--{long}")]).ok()
        };
        (long.to_owned(), heading, run.unwrap_or_else(|| panic!("--{long} takes none of {values:?}")))
    });
    changed.collect()
}

#[test]
fn the_gate_is_of_every_flag_that_can_reject_and_of_no_other() {
    let gate = parsed(&[]).unwrap().gate();
    assert_eq!(parsed(&[]).unwrap().gate(), gate);
    let mut seen = std::collections::BTreeSet::new();
    for (flag, heading, args) in changed() {
        let counts = ["Validate", "Reload", "Confirm"].iter().any(|table| heading.starts_with(table));
        assert_eq!(args.gate() != gate, counts, "--{flag} of {heading:?}");
        assert!(!counts || seen.insert(args.gate()), "--{flag} is the same to the gate as another flag");
    }
    assert!(seen.len() > 30, "{}", seen.len());
}
