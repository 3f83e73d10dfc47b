//! `--config FILE`: flags in a file of YAML, with a key for each. A flag and a variable win over it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Args, Command, CommandFactory as _};
use granit_parser::{Event, Options, Parser, ScalarStyle};

use super::{Cli, escaped, nearest};
use crate::os::file::read_regular;
use crate::render::without_marks;

/// The longest file that is read, in bytes.
const LIMIT: u64 = 1 << 20;

/// Where flags are read from.
#[derive(Debug, Args)]
#[command(next_help_heading = "Configuration file")]
pub struct FileArgs {
    /// Read flags from this YAML file
    ///
    /// A key for each flag, by its long name: text, a list, or true. Flags and variables win over it. It is read once,
    /// at the start.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// What a file says of one flag.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub key: String,
    line: usize,
    values: Vec<String>,
    is_list: bool,
}

/// The file that a command line names, or its variable. `None` also where the command line has a mistake before that.
pub(super) fn named(command: &Command, words: &[OsString]) -> Option<PathBuf> {
    named_in(&command.clone().ignore_errors(true).try_get_matches_from(words).ok()?)
}

/// The same of a command line without a mistake.
pub(super) fn named_in(matches: &ArgMatches) -> Option<PathBuf> {
    let matches = matches.subcommand().map_or(matches, |(_, matches)| matches);
    matches.try_get_one::<PathBuf>("config").ok()?.cloned()
}

/// Reads a file, and checks each of its values as on the command line. A message names the file and the line.
pub(super) fn read(path: &Path) -> Result<Vec<Entry>, String> {
    let place = format!("--config {}", path.display());
    let (bytes, _) = read_regular(path, LIMIT).map_err(|error| format!("{place}: {error}"))?;
    let text = String::from_utf8(bytes).map_err(|_| format!("{place}: it is not UTF-8"))?;
    let located = |(line, message): (usize, String)| format!("{place}, line {line}: {message}");
    let entries = parse(&without_marks(&text)).map_err(located)?;
    let command = Cli::command().mut_args(|arg| arg.required(false));
    for (index, entry) in entries.iter().enumerate() {
        let earlier = entries[..index].iter().find(|earlier| earlier.key == entry.key);
        if let Some(earlier) = earlier {
            let message = format!("{} is there twice, first in line {}", entry.key, earlier.line);
            return Err(located((entry.line, message)));
        }
        check(&command, entry).map_err(|message| located((entry.line, message)))?;
    }
    Ok(entries)
}

/// Lets the entries be what their flags are by default.
pub(super) fn apply(command: Command, entries: &[Entry]) -> Command {
    let command = command.mut_args(|arg| {
        let Some(entry) = entries.iter().find(|entry| arg.get_long() == Some(&*entry.key)) else { return arg };
        let by_variable = arg.get_env().is_some_and(|variable| std::env::var_os(variable).is_some());
        // The file has lists of its own.
        let arg = if by_variable { arg } else { arg.value_delimiter(None) };
        // A value may hold a credential.
        let hidden = arg.get_action().takes_values();
        arg.default_values(entry.values.clone()).hide_default_value(hidden).required(false)
    });
    command.mut_subcommands(|subcommand| apply(subcommand, entries))
}

/// Whether a flag can stand in a file.
pub(super) fn is_key(arg: &Arg) -> bool {
    arg.get_long().is_some_and(|long| !matches!(long, "config" | "help" | "version"))
}

/// Whether there is such a flag, and takes what the file has for it.
fn check(command: &Command, entry: &Entry) -> Result<(), String> {
    let Entry { key, values, is_list, .. } = entry;
    let Some(arg) = command.get_arguments().find(|arg| is_key(arg) && arg.get_long() == Some(key)) else {
        // Not all of it: what is mistaken for a key may be long, and is a value then.
        let shown: String = escaped(key, '\0').chars().take(64).collect();
        let keys = command.get_arguments().filter(|arg| is_key(arg)).filter_map(Arg::get_long);
        return Err(match nearest(key.trim_start_matches('-'), keys) {
            Some(near) => format!("the key {shown:?} is not known: did you mean {near}?"),
            None => format!("the key {shown:?} is not known: keys are the long names of flags, without --"),
        });
    };
    match arg.get_action() {
        ArgAction::SetTrue => match values.first().map(String::as_str) {
            Some("true" | "false" | "yes" | "no" | "1" | "0") if !is_list => return Ok(()),
            _ => return Err(format!("{key} is true or false")),
        },
        ArgAction::Append => {}
        _ if *is_list => return Err(format!("{key} takes one value, and this is a list")),
        _ => {}
    }
    let words = values.iter().map(|value| format!("--{key}={value}"));
    let tried = command.clone().try_get_matches_from(std::iter::once("trimtab".to_owned()).chain(words));
    tried.map(drop).map_err(|error| {
        let text = error.to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        text.split("\n\n").next().unwrap_or(text).trim_end().to_owned()
    })
}

/// Where a file is wrong, and how.
type Mistake = (usize, String);

/// The entries of a file, in its order. No value is quoted: it may hold a credential.
fn parse(text: &str) -> Result<Vec<Entry>, Mistake> {
    let mut options = Options::default();
    options.emit_comments = false;
    let mut entries: Vec<Entry> = Vec::new();
    // Whether the document, its map and a list in it have begun; the key that waits for its value.
    let (mut documents, mut in_map, mut in_list) = (0, false, false);
    let mut key: Option<(String, usize)> = None;
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|error| (error.marker().line(), "this is not YAML".to_owned()))?;
        let line = span.start.line();
        let fail = |message: &str| Err((line, message.to_owned()));
        match event {
            Event::DocumentStart(..) if documents > 0 => return fail("a second document begins, and one is read"),
            Event::DocumentStart(..) => documents += 1,
            Event::MappingStart(..) if !in_map => in_map = true,
            Event::MappingEnd => in_map = false,
            Event::SequenceEnd => {
                in_list = false;
                key = None;
            }
            Event::Scalar(text, style, ..) => match &key {
                // As a document of comments alone is read.
                None if !in_map && is_null(&text, style) => {}
                None if !in_map => return fail("a key and its value are expected, as in  output: /shared/conf"),
                None => key = Some((text.into_owned(), line)),
                Some((name, at)) => {
                    if is_null(&text, style) {
                        return Err((*at, format!("{} has no value", escaped(name, '\0'))));
                    }
                    if let Some(list) = entries.last_mut().filter(|_| in_list) {
                        list.values.push(text.into_owned());
                    } else {
                        let values = vec![text.into_owned()];
                        entries.push(Entry { key: name.clone(), line: *at, values, is_list: false });
                        key = None;
                    }
                }
            },
            Event::SequenceStart(..) => match &key {
                Some((key, at)) if !in_list => {
                    in_list = true;
                    entries.push(Entry { key: key.clone(), line: *at, values: Vec::new(), is_list: true });
                }
                _ => return fail("a list can only be a key's value"),
            },
            Event::MappingStart(..) => return fail("a value is text, a list of texts, or true or false"),
            Event::Alias(_) => return fail("an alias (*) is not read"),
            _ => {}
        }
    }
    Ok(entries)
}

fn is_null(text: &str, style: ScalarStyle) -> bool {
    style == ScalarStyle::Plain && matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Vec<(String, usize, Vec<String>)> {
        parse(text).unwrap().into_iter().map(|entry| (entry.key, entry.line, entry.values)).collect()
    }

    #[test]
    fn values_are_the_text_that_was_written() {
        let text = "# flags\noutput: /shared/conf\nfile-mode: 0644\n\nvalidate:\n- nginx -t\n- |-\n  a\n  b\nonce: yes\n\
                    reload-body: \"\"\nwatch-dir: [a=/x, b=/y]\n";
        let entry = |key: &str, line, values: &[&str]| {
            (key.to_owned(), line, values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(
            parsed(text),
            [
                entry("output", 2, &["/shared/conf"]),
                entry("file-mode", 3, &["0644"]),
                entry("validate", 5, &["nginx -t", "a\nb"]),
                entry("once", 10, &["yes"]),
                entry("reload-body", 11, &[""]),
                entry("watch-dir", 12, &["a=/x", "b=/y"]),
            ]
        );
        for empty in ["", "# nothing\n", "---\n", "{}\n"] {
            assert_eq!(parsed(empty), [], "{empty:?}");
        }
    }

    #[test]
    fn every_flag_is_a_key_that_takes_what_its_flag_takes() {
        let command = Cli::command().mut_args(|arg| arg.required(false));
        for arg in command.get_arguments().filter(|arg| is_key(arg)) {
            let key = arg.get_long().unwrap();
            let possible = arg.get_possible_values();
            let values =
                possible.iter().map(clap::builder::PossibleValue::get_name).chain(["7m", "7", "0600", "/a", "[::1]:7"]);
            let mut tried = values.map(|value| {
                let is_list = matches!(arg.get_action(), ArgAction::Append);
                Entry { key: key.to_owned(), line: 1, values: vec![value.to_owned()], is_list }
            });
            assert!(tried.any(|entry| check(&command, &entry).is_ok()), "{key}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,24}|[a-z:\\[\\]{}&*!|>'\" \n#-]{0,40}") {
            let _ = parse(&text);
        }
    }
}
