//! What is said of a template that fails: place, cause, the piece of the template, and what may have been meant.

use std::ops::Range;

use minijinja::{Error, ErrorKind};

use super::engine::DEPTH;
use super::templates::{Sources, Template};
use super::values::{Missing, Notes};
use super::{Delimiters, Inputs, RenderError};

/// A failure of one of our own functions or filters, as the source of the engine's error.
#[derive(Debug, thiserror::Error)]
#[error("{said}")]
struct FunctionError {
    /// Holds no value's byte.
    said: String,
    /// An argument, which a template may have made of a secret: shown only if none was read.
    argument: Option<String>,
}

/// An error of our own. `said` may hold names and places, never a byte of a value.
pub(super) fn fault(said: impl Into<String>, argument: Option<&str>) -> Error {
    Error::from(ErrorKind::InvalidOperation)
        .with_source(FunctionError { said: said.into(), argument: argument.map(|argument| one_line(argument, 200)) })
}

/// What may be shown of the engine's error: its kind, our own words, and the piece of the template. Never its detail,
/// which may quote a value.
pub(super) fn failure(
    error: &Error,
    template: &Template,
    sources: &Sources<'_>,
    notes: &Notes,
    inputs: &Inputs,
) -> RenderError {
    let chain = || std::iter::successors(Some(error), |error| std::error::Error::source(*error)?.downcast_ref());
    let cause = chain().last().unwrap_or(error);
    // A failure in an include is reported where it happened, the innermost place that is known.
    let at = chain().filter(|error| error.line().is_some()).last().unwrap_or(error);
    let (found, source) = match at.name().and_then(|name| sources.get(name)) {
        Some(source) => (source.template, Some(&*source.text)),
        None => (template, None),
    };
    let mut place = template.place(at.line());
    place.included = Some(found.name.clone()).filter(|name| *name != template.name);
    let fault = std::error::Error::source(cause).and_then(|source| source.downcast_ref::<FunctionError>());
    let problem = match (fault, cause.kind()) {
        (Some(FunctionError { said, argument: Some(argument) }), _) if !notes.secret() => format!("{said}: {argument}"),
        (Some(FunctionError { said, .. }), _) => said.clone(),
        (None, ErrorKind::OutOfFuel) => "it takes too many steps; a loop may not end".into(),
        (None, kind) if cause.detail() == Some("recursion limit exceeded") => {
            format!("{kind}: calls, includes or loops are nested deeper than {DEPTH}")
        }
        (None, kind) => kind.to_string(),
    };
    let (mut expression, mut hint) = (None, None);
    if let (Some(source), Some(range), false) = (source, at.range(), found.secret) {
        let tag = tag_around(source, range.clone(), &inputs.settings.delimiters);
        let shown = tag.filter(|tag| tag.len() <= 80).or_else(|| source.get(range));
        expression = shown.map(|text| one_line(text, 80));
        hint = tag.and_then(|tag| hint_for(tag, cause, notes, inputs));
    }
    RenderError::Template { place: place.into(), problem, expression, hint }
}

/// The inside of the tag around a range, as the engine's range may be a filter's name alone.
fn tag_around<'a>(source: &'a str, range: Range<usize>, delimiters: &Delimiters) -> Option<&'a str> {
    let (before, after) = (source.get(..range.start)?, source.get(range.end..)?);
    let pairs = [&delimiters.variable, &delimiters.block];
    let start = pairs.iter().filter_map(|(start, _)| Some(before.rfind(&**start)? + start.len())).max();
    let end = pairs.iter().filter_map(|(_, end)| after.find(&**end)).min().map(|at| range.end + at);
    let tag = source.get(start?..end?)?;
    Some(tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+'))
}

/// What is most likely meant instead. Holds pieces of the template and names of keys, which are no secrets.
fn hint_for(tag: &str, cause: &Error, notes: &Notes, inputs: &Inputs) -> Option<String> {
    let detail = cause.detail().unwrap_or_default();
    if !matches!(cause.kind(), ErrorKind::UndefinedError | ErrorKind::InvalidOperation) {
        return None;
    }
    if let Some((base, key)) = odd_key(tag, inputs) {
        return Some(format!("a key with such characters goes in brackets: {base}[{key:?}]"));
    }
    // The rest of such a detail is the names of the operands' types.
    if detail.starts_with("tried to use") && detail.contains("string") {
        return Some("values are text: make a number of one by `| int` or `| float`, or join texts by `~`".into());
    }
    let Missing { asked, keys } = notes.missing()?;
    let is_asked_for =
        [format!(".{asked}"), format!("'{asked}'"), format!("\"{asked}\"")].iter().any(|text| tag.contains(text));
    (cause.kind() == ErrorKind::UndefinedError && is_asked_for)
        .then(|| format!("there is no key {asked:?}, but {}", listed(keys.iter().map(String::as_str))))
}

/// A key behind a dot that can only be had by brackets, such as that of `data.mysql-root-password`, and what stands
/// before the dot.
fn odd_key<'a>(tag: &'a str, inputs: &'a Inputs) -> Option<(&'a str, &'a str)> {
    let is_odd = |key: &&str| !key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let observed = || inputs.snapshot.observed.iter().map(|observed| &observed.object);
    let objects = || inputs.snapshot.objects.iter().map(|taken| &taken.object).chain(observed());
    let keys = || objects().flat_map(|object| object.data.keys()).map(String::as_str);
    tag.match_indices('.').find_map(|(dot, _)| {
        let (base, rest) = (&tag[..dot], &tag[dot + 1..]);
        let key = keys().filter(is_odd).filter(|key| rest.starts_with(key)).max_by_key(|key| key.len())?;
        let base = &base[base.rfind(|c: char| c.is_whitespace() || "|~+,".contains(c)).map_or(0, |at| at + 1)..];
        (!base.is_empty()).then_some((base, key))
    })
}

/// How many names are listed, the sign that there are more among them.
pub(super) const MOST_LISTED: usize = 21;

/// Names, of many the first.
pub(super) fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<_> = names.take(MOST_LISTED).collect();
    if names.len() == MOST_LISTED {
        names[MOST_LISTED - 1] = "…";
    }
    if names.is_empty() { "none at all".into() } else { names.join(", ") }
}

/// The text on one line, without control characters, cut at `limit` characters.
pub(super) fn one_line(text: &str, limit: usize) -> String {
    let text = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let text = text.collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
