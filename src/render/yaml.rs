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
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Value, NotYaml> {
        parse(text, &|text| Some(format!("binary {text}").into()))
    }

    fn json(text: &str) -> String {
        serde_json::to_string(&read(text).unwrap_or_else(|error| panic!("{text:?}: {error:?}"))).unwrap()
    }

    /// What is written, what it is, and where that is said: the sections and examples of <https://yaml.org/spec/1.2.2/>,
    /// or the regular expressions of section 10.3.2, row by row.
    #[test]
    fn scalars_are_those_of_the_core_schema() {
        for (source, written, expected) in [
            ("10.3.2, null", "null", "null"),
            ("10.3.2, null", "Null", "null"),
            ("10.3.2, null", "NULL", "null"),
            ("10.3.2, null", "~", "null"),
            ("10.3.2, empty", "", "null"),
            ("10.3.2, bool", "true", "true"),
            ("10.3.2, bool", "True", "true"),
            ("10.3.2, bool", "TRUE", "true"),
            ("10.3.2, bool", "false", "false"),
            ("10.3.2, bool", "False", "false"),
            ("10.3.2, bool", "FALSE", "false"),
            ("10.3.2, int (base 10)", "0", "0"),
            ("10.3.2, int (base 10)", "-19", "-19"),
            ("10.3.2, int (base 10)", "+12", "12"),
            ("10.3.2, int (base 8)", "0o14", "12"),
            ("10.3.2, int (base 16)", "0xFF", "255"),
            ("example 2.19", "12345", "12345"),
            ("example 2.19", "+12345", "12345"),
            ("example 2.19", "0xC", "12"),
            ("10.3.2, float", "0.3", "0.3"),
            ("10.3.2, float", "-2.5", "-2.5"),
            ("64 bits and more", "18446744073709551616", "18446744073709551616"),
            // The rest: strings by the schema ...
            ("10.3.2, others", "nULL", "\"nULL\""),
            ("10.3.2, others", "tRUE", "\"tRUE\""),
            ("1.1 bool", "yes", "\"yes\""),
            ("1.1 bool", "No", "\"No\""),
            ("1.1 bool", "on", "\"on\""),
            ("1.1 bool", "OFF", "\"OFF\""),
            ("1.1 bool", "y", "\"y\""),
            ("1.1 int", "1_000", "\"1_000\""),
            ("1.1 int (base 2)", "0b11", "\"0b11\""),
            ("1.1 int (base 60)", "190:20:30", "\"190:20:30\""),
            ("1.1 timestamp", "2001-12-14", "\"2001-12-14\""),
            ("no sign", "-0x10", "\"-0x10\""),
            ("no digit", "0x", "\"0x\""),
            ("no digit", "0o8", "\"0o8\""),
            ("no number", "1.2.3", "\"1.2.3\""),
            ("no number", ".", "\".\""),
            ("no number", "-", "[null]"),
            ("no number", "e3", "\"e3\""),
            ("Rust's, not YAML's", "inf", "\"inf\""),
            ("Rust's, not YAML's", "NaN", "\"NaN\""),
            // ... numbers by the schema that other readers take for others, or that would print otherwise.
            ("octal by 1.1", "0755", "\"0755\""),
            ("float by kubectl", "012345678901", "\"012345678901\""),
            ("octal by 1.1", "-010", "\"-010\""),
            ("1.1", "1.10", "\"1.10\""),
            ("1000.0", "1e3", "\"1e3\""),
            ("1230.15", "1.23015e+3", "\"1.23015e+3\""),
            ("0.5", ".5", "\".5\""),
            ("2.0", "2.", "\"2.\""),
            ("infinite", ".inf", "\".inf\""),
            ("infinite", "-.Inf", "\"-.Inf\""),
            ("no number", ".NaN", "\".NaN\""),
            ("beyond 64 bits", "0xFFFFFFFFFFFFFFFFFF", "\"0xFFFFFFFFFFFFFFFFFF\""),
            ("too many digits", "3.14159265358979323846", "\"3.14159265358979323846\""),
        ] {
            assert_eq!(json(written), expected, "{written} ({source})");
            if expected.starts_with('"') {
                assert_eq!(read(written).unwrap().to_string(), written);
            }
        }
        for text in ["'1'", "\"true\"", "!!str 1", "! 1", "!local 1", "|-\n 1", ">-\n null"] {
            assert!(json(text).starts_with('"'), "{text}: {}", json(text));
        }
    }

    #[test]
    fn tags_merges_and_aliases_are_read() {
        for (text, expected) in [
            ("[!!int 3, !!float 2.5, !!float 1e3, !!bool true, !!null ~]", "[3,2.5,\"1e3\",true,null]"),
            ("!!binary aGk=", "\"binary aGk=\""),
            ("!!map {a: !!seq [1]}", "{\"a\":[1]}"),
            ("[{1: a}, {true: b}]", "[{\"1\":\"a\"},{\"true\":\"b\"}]"),
            ("base: &b {x: 1, y: 2}\nover: {<<: *b, y: 3}", r#"{"base":{"x":1,"y":2},"over":{"x":1,"y":3}}"#),
            (
                "a: &a {x: 1}\nb: &b {x: 2, y: 2}\nc: {<<: [*a, *b], z: 3}",
                r#"{"a":{"x":1},"b":{"x":2,"y":2},"c":{"x":1,"y":2,"z":3}}"#,
            ),
            ("{'<<': 1}", "{\"<<\":1}"),
            ("%YAML 1.2\n---\na: 1\n...\n", "{\"a\":1}"),
            ("# nothing\n", "null"),
        ] {
            assert_eq!(json(text), expected, "{text}");
        }
        for text in [
            "a: 1\na: 2",
            "a: 1\n---\nb: 2",
            "a: &a [*a]",
            "<<: 1",
            "<<: [1]",
            "!!int x",
            "!!bool 1",
            "!!null x",
            "*no",
            "[",
            "a: b: c",
        ] {
            assert!(read(text).is_err(), "{text}: {:?}", read(text));
        }
        assert_eq!(read("a: 1\nb: 2\na: 3"), Err(NotYaml(3, 4)));
    }

    #[test]
    fn a_byte_order_mark_begins_a_document_and_is_not_in_it() {
        for text in [
            "\u{feff}a: 1",
            "\u{feff}---\na: 1",
            "---\n\u{feff}a: 1",
            "# x\n\u{feff}---\na: 1",
            "\u{feff}# x\n---\n\u{feff}a: 1\n...\n\u{feff}",
        ] {
            assert_eq!(json(text), "{\"a\":1}", "{text:?}");
        }
        assert_eq!(json("a: \"\u{feff}b\""), "{\"a\":\"\u{feff}b\"}");
    }

    #[test]
    fn nesting_and_aliases_are_bounded() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(read(&nested(DEPTH)).is_ok());
        assert!(read(&nested(DEPTH + 1)).is_err());
        assert!(read(&"- ".repeat(DEPTH + 1)).is_err());
        // Aliases nest as well.
        let chain = |levels: usize| {
            (1..levels).fold("- &a0 [x]\n".to_owned(), |text, i| text + &format!("- &a{i} [*a{}]\n", i - 1))
        };
        assert!(read(&chain(DEPTH - 1)).is_ok());
        assert!(read(&chain(DEPTH + 1)).is_err());
        let level = |i: u32| format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 9].join(","));
        let bomb = (1..12).map(level).fold("a0: &a0 lol\n".to_owned(), |text, level| text + &level);
        assert!(read(&bomb).is_err());
        let long = format!("a: &a {}\nb: [{}]", "x".repeat(1 << 20), "*a, ".repeat(9));
        assert!(read(&long).is_err());
    }
}
