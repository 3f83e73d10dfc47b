//! Whether a file is well-formed, by the ending of its name.
//!
//! What is wrong is said by place alone: parsers quote what they read, and that may be secret.

use serde::de::IgnoredAny;
use serde_saphyr::budget::{Budget, EnforcingPolicy, check_yaml_budget};

use crate::model::content::Content;
use crate::model::spool::SpoolError;
use crate::model::tree::TreePath;
use crate::render::{is_packed, without_marks};

/// How deeply YAML may be nested. Those who read it have limits of their own, and none that is known is wider.
const YAML_DEPTH: usize = 255;

/// The largest TOML file that is parsed, in bytes: its parser keeps all of it in memory, many times its size.
const TOML_LIMIT: usize = 4 << 20;

/// `--syntax`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syntax {
    /// A malformed file is rejected.
    Strict,
    /// It is published, and reported in the log.
    Warn,
    /// Files are not parsed.
    Off,
}

/// Why a file is not what its name says. Rejected by `--syntax strict`, else reported. Without a byte of the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SyntaxError {
    /// It does not parse.
    #[error("{path}, line {line}, column {column}: not {format}; fix it, or let it pass with --syntax warn")]
    Malformed {
        path: String,
        format: &'static str,
        /// From 1.
        line: usize,
        /// From 1, or 0 where the line has ended; in bytes for JSON, else in characters.
        column: usize,
    },
    /// It is no text.
    #[error(
        "{path}, line {line}, column {column}: not UTF-8, and so not {format}; fix it, or let it pass with --syntax warn"
    )]
    NotUtf8 {
        path: String,
        format: &'static str,
        /// From 1.
        line: usize,
        /// Of the first wrong byte, from 1, in characters.
        column: usize,
        /// Whether it begins as gzip files do.
        packed: bool,
    },
    #[error(
        "{path} begins with a byte order mark (U+FEFF), which {format} does not allow: save it as UTF-8 without one, or let \
         it pass with --syntax warn"
    )]
    ByteOrderMark { path: String, format: &'static str },
    /// It is nested too deeply.
    #[error("{path}: nested more than {limit} deep; flatten it, or let it pass with --syntax warn")]
    TooDeep { path: String, limit: usize },
    /// It is too large for the memory of a sidecar.
    #[error("{path}: larger than {limit} bytes, which is too much to parse; let it pass with --syntax warn")]
    TooLarge { path: String, limit: usize },
}

/// Parses a file by the ending of its name: `.json`, `.yaml`, `.yml` (any number of documents, any tag), `.toml`.
/// Others pass.
///
/// YAML and JSON are read as a stream, so that neither nesting nor aliases cost memory: an alias is looked up, and
/// never expanded.
pub fn syntax(path: &TreePath, bytes: &[u8]) -> Result<(), SyntaxError> {
    match Format::of(path.as_str()) {
        Some(format) => well_formed(path.as_str(), format, bytes),
        None => Ok(()),
    }
}

/// The same, for bytes that are read only if they are to be parsed, and were not found well-formed before.
pub fn check(path: &str, content: &Content) -> Result<Result<(), SyntaxError>, SpoolError> {
    let Some(format) = Format::of(path).filter(|format| !content.is_noted(format.note)) else { return Ok(Ok(())) };
    let checked = well_formed(path, format, &content.read()?);
    if checked.is_ok() {
        content.note(format.note);
    }
    Ok(checked)
}

/// How a file is parsed.
#[derive(Clone, Copy)]
struct Format {
    name: &'static str,
    parse: Parser,
    /// What stands for it in a [`Content`]'s notes.
    note: u8,
}

impl Format {
    fn of(path: &str) -> Option<Self> {
        let (_, ending) = path.rsplit_once('.')?;
        let is = |one: &str| ending.eq_ignore_ascii_case(one);
        if is("json") {
            Some(Self { name: "JSON", parse: json, note: 1 })
        } else if is("yaml") || is("yml") {
            Some(Self { name: "YAML", parse: yaml, note: 2 })
        } else if is("toml") {
            Some(Self { name: "TOML", parse: toml, note: 4 })
        } else {
            None
        }
    }
}

fn well_formed(path: &str, format: Format, bytes: &[u8]) -> Result<(), SyntaxError> {
    let Format { name: format, parse, .. } = format;
    let path = || path.to_owned();
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default();
        let (line, column) = end_of(before);
        SyntaxError::NotUtf8 { path: path(), format, line, column, packed: is_packed(bytes) }
    })?;
    parse(text).map_err(|error| match error {
        ParseError::At(line, column) => SyntaxError::Malformed { path: path(), format, line, column },
        ParseError::ByteOrderMark => SyntaxError::ByteOrderMark { path: path(), format },
        ParseError::Depth(limit) => SyntaxError::TooDeep { path: path(), limit },
        ParseError::Size(limit) => SyntaxError::TooLarge { path: path(), limit },
    })
}

type Parser = fn(&str) -> Result<(), ParseError>;

/// Line and column of what follows this text, from 1.
fn end_of(text: &str) -> (usize, usize) {
    let last = text.rsplit('\n').next().unwrap_or_default();
    (text.split('\n').count(), last.chars().count() + 1)
}

/// What a parser found: a place, or a limit.
enum ParseError {
    At(usize, usize),
    Depth(usize),
    ByteOrderMark,
    Size(usize),
}

fn json(text: &str) -> Result<(), ParseError> {
    // RFC 8259, section 8.1.
    if text.starts_with('\u{feff}') {
        return Err(ParseError::ByteOrderMark);
    }
    serde_json::from_str::<IgnoredAny>(text).map(|_| ()).map_err(|error| ParseError::At(error.line(), error.column()))
}

fn yaml(text: &str) -> Result<(), ParseError> {
    // Only the depth costs anything here: the rest passes by.
    let mut budget = Budget::default();
    budget.max_events = usize::MAX;
    budget.max_aliases = usize::MAX;
    budget.max_anchors = usize::MAX;
    budget.max_depth = YAML_DEPTH;
    budget.max_documents = usize::MAX;
    budget.max_nodes = usize::MAX;
    budget.max_total_scalar_bytes = usize::MAX;
    budget.max_merge_keys = usize::MAX;
    budget.enforce_alias_anchor_ratio = false;
    let report = check_yaml_budget(&without_marks(text), budget, EnforcingPolicy::AllContent)
        .map_err(|error| ParseError::At(error.marker().line(), error.marker().col() + 1))?;
    if report.breached.is_some() { Err(ParseError::Depth(YAML_DEPTH)) } else { Ok(()) }
}

fn toml(text: &str) -> Result<(), ParseError> {
    if text.len() > TOML_LIMIT {
        return Err(ParseError::Size(TOML_LIMIT));
    }
    let Err(error) = toml::de::DeTable::parse(text) else { return Ok(()) };
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let (line, column) = end_of(before);
    Err(ParseError::At(line, column))
}

#[cfg(test)]
mod tests;
