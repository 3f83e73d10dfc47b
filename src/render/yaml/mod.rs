//! `from_yaml`: one document by the core schema of YAML 1.2 (<https://yaml.org/spec/1.2.2/#103-core-schema>), for people
//! who write what kubectl reads.
//!
//! kubectl reads YAML 1.1 (`sigs.k8s.io/yaml`). What the two take for different things stays the text that was written,
//! and so does a number that would print otherwise. So these are text, and `| int`, `| float` and `== 'yes'` make of them
//! what is wanted:
//!
//! | written | YAML 1.2 | kubectl |
//! |---|---|---|
//! | `0755`, `012345678901` | 755, 12345678901 | 493, 12345678901.0 |
//! | `yes`, `no`, `on`, `off` | text | true, false |
//! | `1_000`, `0b11` | text | 1000, 3 |
//! | `1.10`, `1e3`, `.5` | 1.1, 1000.0, 0.5 | the same |
//! | `.inf`, `.nan` | numbers that JSON has not | the same |
//! | `2001-12-14`, `1:30` | text | text |
//!
//! A merge key (`<<`) is of YAML 1.1, and is read as kubectl reads it.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use granit_parser::{Event, Options, Parser, ScalarStyle, Span, Tag};
use minijinja::value::{Value, ValueKind};

/// How deeply a document may be nested, also by way of aliases: what prints or frees a value calls itself for each level.
const DEPTH: usize = 64;

/// How much aliases may add to a document, in bytes and nodes. They cost nothing until somebody prints them.
const REPEATED: usize = 8 << 20;

/// Where a text is not one document: line and column, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotYaml(pub(super) usize, pub(super) usize);

/// A value, how deeply it is nested, and how large it is with all that aliases repeat in it.
#[derive(Clone)]
struct Node {
    value: Value,
    depth: usize,
    size: usize,
}

/// A list or map that has not ended.
struct Open {
    anchor: usize,
    depth: usize,
    size: usize,
    items: Items,
}

enum Items {
    List(Vec<Value>),
    Map {
        entries: BTreeMap<Value, Value>,
        /// The key that waits for its value; whether it is a merge key.
        key: Option<(Value, bool)>,
        /// What merge keys gave, for keys that are not there.
        merged: Vec<Value>,
    },
}

/// Reads one document; an empty text is none. `binary`: what `!!binary` is.
pub(super) fn parse(text: &str, binary: &dyn Fn(&str) -> Option<Value>) -> Result<Value, NotYaml> {
    let text = without_marks(text);
    let mut options = Options::default();
    options.flow_nesting_limit = DEPTH;
    options.block_nesting_limit = DEPTH;
    options.emit_comments = false;
    let mut loader = Loader { open: Vec::new(), anchors: HashMap::new(), repeated: 0, document: None, binary };
    for event in Parser::new_from_str_with_options(&text, options) {
        let (event, span) = event.map_err(|error| NotYaml(error.marker().line(), error.marker().col() + 1))?;
        loader.take(event).ok_or_else(|| at(&span))?;
    }
    Ok(loader.document.unwrap_or_default())
}

fn at(span: &Span) -> NotYaml {
    NotYaml(span.start.line(), span.start.col() + 1)
}

/// The text without the byte order marks with which its documents begin: one at its start, before a `---`, or after a
/// line with `---` or `...`. Files that were joined have them there.
pub(crate) fn without_marks(text: &str) -> Cow<'_, str> {
    const MARK: char = '\u{feff}';
    if !text.contains(MARK) {
        return text.into();
    }
    let mut after_marker = true;
    let lines = text.split_inclusive('\n').map(|line| {
        let bare = line.strip_prefix(MARK).filter(|bare| after_marker || bare.starts_with("---")).unwrap_or(line);
        after_marker = matches!(bare.trim_end(), "---" | "...");
        bare
    });
    lines.collect::<String>().into()
}

struct Loader<'a> {
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    repeated: usize,
    document: Option<Value>,
    binary: &'a dyn Fn(&str) -> Option<Value>,
}

impl Loader<'_> {
    /// Takes an event; `None` if it is not of one document that can be read.
    fn take(&mut self, event: Event<'_>) -> Option<()> {
        match event {
            Event::DocumentStart(..) if self.document.is_some() => None,
            Event::Scalar(text, style, anchor, tag) => {
                let is_merge = style == ScalarStyle::Plain && tag.is_none() && text == "<<";
                let value = self.scalar(&text, style, tag.as_deref())?;
                let node = Node { size: 1 + text.len(), value, depth: 0 };
                self.add(node, anchor, is_merge)
            }
            Event::Alias(id) => {
                // One that names what it is in does not end.
                let node = self.anchors.get(&id)?.clone();
                self.repeated = self.repeated.saturating_add(node.size);
                (self.repeated <= REPEATED).then_some(())?;
                self.add(node, 0, false)
            }
            Event::SequenceStart(_, anchor, _) => self.begin(anchor, Items::List(Vec::new())),
            Event::MappingStart(_, anchor, _) => {
                self.begin(anchor, Items::Map { entries: BTreeMap::new(), key: None, merged: Vec::new() })
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Open { anchor, depth, size, items } = self.open.pop()?;
                let value = match items {
                    Items::List(values) => Value::from(values),
                    Items::Map { mut entries, merged, .. } => {
                        for map in merged {
                            for key in map.try_iter().ok()? {
                                let value = map.get_item(&key).ok()?;
                                entries.entry(key).or_insert(value);
                            }
                        }
                        Value::from(entries)
                    }
                };
                self.add(Node { value, depth: depth + 1, size }, anchor, false)
            }
            _ => Some(()),
        }
    }

    fn begin(&mut self, anchor: usize, items: Items) -> Option<()> {
        self.open.push(Open { anchor, depth: 0, size: 1, items });
        (self.open.len() <= DEPTH).then_some(())
    }

    fn add(&mut self, node: Node, anchor: usize, is_merge: bool) -> Option<()> {
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(parent) = self.open.last_mut() else {
            self.document = Some(node.value);
            return Some(());
        };
        parent.depth = parent.depth.max(node.depth);
        parent.size = parent.size.saturating_add(node.size);
        match &mut parent.items {
            Items::List(values) => values.push(node.value),
            Items::Map { key: key @ None, .. } => *key = Some((node.value, is_merge)),
            Items::Map { key: key @ Some(_), entries, merged } => match key.take()? {
                (_, true) => match node.value.kind() {
                    ValueKind::Map => merged.push(node.value),
                    ValueKind::Seq => {
                        for map in node.value.try_iter().ok()? {
                            (map.kind() == ValueKind::Map).then_some(())?;
                            merged.push(map);
                        }
                    }
                    _ => return None,
                },
                // Twice the same key is no map.
                (key, false) => entries.insert(key, node.value).is_none().then_some(())?,
            },
        }
        (self.open.len() + node.depth <= DEPTH).then_some(())
    }

    fn scalar(&self, text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Option<Value> {
        let Some(tag) = tag else {
            return Some(if style == ScalarStyle::Plain { plain(text) } else { text.into() });
        };
        let name = tag.core_suffix().map(str::to_owned).or_else(|| {
            let other = tag.suffix_in_namespace("tag:yaml.org,2002:")?;
            Some(other.into_owned())
        });
        match name.as_deref() {
            Some("null") => plain(text).is_none().then(|| ().into()),
            Some("bool") => Some(plain(text)).filter(|value| value.kind() == ValueKind::Bool),
            Some("int") => Some(plain(text)).filter(Value::is_integer),
            Some("float") => {
                let value = plain(text);
                if value.is_number() { Some(value) } else { is_float(text).then(|| text.into()) }
            }
            Some("binary") => (self.binary)(text),
            _ => Some(text.into()),
        }
    }
}

/// A scalar without quotes and tag.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => ().into(),
        "true" | "True" | "TRUE" => true.into(),
        "false" | "False" | "FALSE" => false.into(),
        _ => number(text).unwrap_or_else(|| text.into()),
    }
}

/// The number, if YAML 1.2 and kubectl read the same, and it prints as it is written.
fn number(text: &str) -> Option<Value> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let all = |digits: &str, radix| !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
    for (prefix, radix) in [("0x", 16), ("0o", 8)] {
        if let Some(digits) = text.strip_prefix(prefix) {
            return all(digits, radix).then(|| u64::from_str_radix(digits, radix).ok().map(Value::from)).flatten();
        }
    }
    if all(digits, 10) {
        // A leading zero is decimal here, and octal there.
        if digits.len() > 1 && digits.starts_with('0') {
            return None;
        }
        let small = text.parse::<i64>().map(Value::from);
        return small.ok().or_else(|| text.parse::<i128>().ok().map(Value::from));
    }
    let value = text.parse::<f64>().ok().filter(|value| value.is_finite() && is_float(text)).map(Value::from)?;
    (value.to_string() == text).then_some(value)
}

/// `[-+]? ( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )?`, or `.inf` or `.nan`.
fn is_float(text: &str) -> bool {
    let rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if matches!(rest, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return true;
    }
    let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (rest, None),
    };
    let all = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    let digits = !whole.is_empty() || (mantissa.contains('.') && !fraction.is_empty());
    let exponent = exponent.map(|exponent| exponent.strip_prefix(['-', '+']).unwrap_or(exponent));
    digits && all(whole) && all(fraction) && exponent.is_none_or(|exponent| !exponent.is_empty() && all(exponent))
}

#[cfg(test)]
mod tests;
