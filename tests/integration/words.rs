//! Plain words: none of those that CONTRIBUTING.md replaces is in a page, in the help, in a message or in a comment.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use trimtab::cli;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// What is read by people: all of these folders, and the files beside them.
const READ: &[&str] =
    &[".ci", "benches", "demo", "deploy", "docs", "examples", "fuzz/fuzz_targets", "src", "tests", "tools"];

/// The endings of text; scripts have none.
const TEXT: &[&str] = &["md", "rs", "sh", "toml", "yaml", "yml", ""];

const HEADING: &str = "| not | but |\n|---|---|\n";

/// A word or phrase, word by word, and what to write in its place.
struct Replaced {
    not: Vec<String>,
    but: String,
}

fn contributing() -> String {
    fs::read_to_string(Path::new(ROOT).join("CONTRIBUTING.md")).unwrap()
}

/// The table of CONTRIBUTING.md, where everybody finds it.
fn replaced() -> Vec<Replaced> {
    let page = contributing();
    let (_, table) = page.split_once(HEADING).expect("CONTRIBUTING.md has the table of words");
    let rows = table.lines().take_while(|line| line.starts_with('|'));
    let mut replaced = Vec::new();
    for row in rows {
        let (not, but) = row.trim_matches('|').split_once(" | ").unwrap();
        let phrases = not.split(", ").map(|phrase| phrase.split_whitespace().map(str::to_owned).collect());
        replaced.extend(phrases.map(|not| Replaced { not, but: but.trim().to_owned() }));
    }
    replaced
}

/// Where the text has such a word. What is between two words does not count: a phrase may be wrapped, in a comment too,
/// or be a name.
fn found(replaced: &[Replaced], place: &str, text: &str) -> Vec<String> {
    let lines = text.lines().zip(1..);
    let words: Vec<_> = lines
        .flat_map(|(line, number)| line.split(|it: char| !it.is_alphanumeric()).map(move |word| (word, number)))
        .filter(|(word, _)| !word.is_empty())
        .collect();
    let mut found = Vec::new();
    for (at, (_, line)) in words.iter().enumerate() {
        let begins = |phrase: &&Replaced| {
            let here = words.get(at..at + phrase.not.len());
            here.is_some_and(|here| here.iter().zip(&phrase.not).all(|((word, _), not)| word.eq_ignore_ascii_case(not)))
        };
        let hits = replaced.iter().filter(begins);
        found.extend(hits.map(|it| format!("{place}:{line}: {:?}; write: {}", it.not.join(" "), it.but)));
    }
    found
}

fn files_below(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            files_below(&path, files);
        } else if TEXT.iter().any(|ending| path.extension().unwrap_or_default() == OsStr::new(ending)) {
            files.push(path);
        }
    }
}

#[test]
fn files_are_in_plain_words() {
    let mut files: Vec<_> = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "Cargo.toml", "Dockerfile", "Makefile"]
        .iter()
        .map(|name| Path::new(ROOT).join(name))
        .collect();
    for folder in READ {
        files_below(&Path::new(ROOT).join(folder), &mut files);
    }
    assert!(files.len() > 200, "{}", files.len());
    let replaced = replaced();
    assert!(replaced.len() > 20, "{}", replaced.len());
    let mut wrong = Vec::new();
    for file in files {
        // What is no text has no words.
        let Ok(text) = fs::read_to_string(&file) else { continue };
        wrong.extend(found(&replaced, &file.strip_prefix(ROOT).unwrap().display().to_string(), &text));
    }
    // All but the table itself.
    let page = contributing();
    let (before, table) = page.split_once(HEADING).unwrap();
    let after = table.split_once("\n\n").map_or("", |(_, after)| after);
    wrong.extend(found(&replaced, "CONTRIBUTING.md, above the table", before));
    wrong.extend(found(&replaced, "CONTRIBUTING.md, below the table", after));
    assert!(wrong.is_empty(), "CONTRIBUTING.md, \"Words\":\n{}", wrong.join("\n"));
}

/// As it is printed: some of it is put together while it runs.
#[test]
fn help_is_in_plain_words() {
    let replaced = replaced();
    let mut command = cli::command();
    command.build();
    let mut wrong = found(&replaced, "--help", &command.render_long_help().to_string());
    for subcommand in command.get_subcommands_mut() {
        let name = format!("{} --help", subcommand.get_name());
        wrong.extend(found(&replaced, &name, &subcommand.render_long_help().to_string()));
    }
    assert!(wrong.is_empty(), "CONTRIBUTING.md, \"Words\":\n{}", wrong.join("\n"));
}
