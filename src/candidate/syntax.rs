//! Whether a file is well-formed, by the ending of its name.
//!
//! What is wrong is said by place alone: parsers quote what they read, and that may be secret.

use serde::de::IgnoredAny;
use serde_saphyr::budget::{Budget, EnforcingPolicy, check_yaml_budget};

use crate::model::content::Content;
use crate::model::spool::SpoolError;
use crate::model::tree::TreePath;
use crate::render::without_marks;

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
        path: TreePath,
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
        path: TreePath,
        format: &'static str,
        /// From 1.
        line: usize,
        /// Of the first wrong byte, from 1, in characters.
        column: usize,
    },
    #[error(
        "{path} begins with a byte order mark (U+FEFF), which {format} does not allow: save it as UTF-8 without one, or let \
         it pass with --syntax warn"
    )]
    ByteOrderMark { path: TreePath, format: &'static str },
    /// It is nested too deeply.
    #[error("{path}: nested more than {limit} deep; flatten it, or let it pass with --syntax warn")]
    TooDeep { path: TreePath, limit: usize },
    /// It is too large for the memory of a sidecar.
    #[error("{path}: larger than {limit} bytes, which is too much to parse; let it pass with --syntax warn")]
    TooLarge { path: TreePath, limit: usize },
}

/// Parses a file by the ending of its name: `.json`, `.yaml`, `.yml` (any number of documents, any tag), `.toml`.
/// Others pass.
///
/// YAML and JSON are read as a stream, so that neither nesting nor aliases cost memory: an alias is looked up, and
/// never expanded.
pub fn syntax(path: &TreePath, bytes: &[u8]) -> Result<(), SyntaxError> {
    match Format::of(path) {
        Some(format) => well_formed(path, format, bytes),
        None => Ok(()),
    }
}

/// The same, for bytes that are read only if they are to be parsed, and were not found well-formed before.
pub fn check(path: &TreePath, content: &Content) -> Result<Result<(), SyntaxError>, SpoolError> {
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
    fn of(path: &TreePath) -> Option<Self> {
        let (_, ending) = path.as_str().rsplit_once('.')?;
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

fn well_formed(path: &TreePath, format: Format, bytes: &[u8]) -> Result<(), SyntaxError> {
    let Format { name: format, parse, .. } = format;
    let path = || path.clone();
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default();
        let (line, column) = end_of(before);
        SyntaxError::NotUtf8 { path: path(), format, line, column }
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CANARY: &str = "hunter2-canary";

    fn parse(name: &str, text: impl AsRef<[u8]>) -> Result<(), SyntaxError> {
        syntax(&TreePath::parse(name).unwrap(), text.as_ref())
    }

    #[test]
    fn what_is_well_formed_passes() {
        for (name, text) in [
            ("a.json", r#"{"a": [1, 2.5, null, true, "\ud800"], "a": {}}"#),
            ("a.yaml", ""),
            ("a.toml", ""),
            ("a.yml", "\u{feff}a: 1\n"),
            ("a.yaml", "a: 1\n---\n\u{feff}b: 2\n\u{feff}---\nc: 3\n...\n\u{feff}d: 4\n"),
            ("a.toml", "\u{feff}a = 1\n"),
            ("a.YAML", "a: 1\n---\nb: 2\n...\n---\n- 3\n"),
            ("a.yaml", "Key: !Sub\n- !Ref x\n- !GetAtt a.b\n- !<tag:x> {y: z}\n- !!binary aGk=\n"),
            ("a.yaml", "base: &b {x: 1}\nover: {<<: *b, y: 2}\n"),
            ("a.yaml", "%YAML 1.2\n%TAG !e! tag:example.com,2000:\n---\n!e!x y\n"),
            ("a.toml", "[a]\nb = 1979-05-27T07:32:00Z\n[[c]]\nd = 'e'\n"),
            ("dir.json/a", "{"),
            ("json", "{"),
            ("a.conf", "{"),
        ] {
            assert_eq!(parse(name, text), Ok(()), "{name}: {text}");
        }
        assert_eq!(parse("a.bin", b"\xff"), Ok(()));
    }

    #[test]
    fn what_is_malformed_is_reported_with_its_place_and_without_its_text() {
        for (name, text, place) in [
            ("x/a.json", "{\n  \"CANARY\": CANARY\n}", "x/a.json, line 2, column 21: not JSON"),
            ("a.json", "", "line 1, column 0"),
            ("a.json", "\u{feff}{}", "a.json begins with a byte order mark (U+FEFF), which JSON does not allow"),
            ("a.json", "{} {}", "line 1, column 4"),
            ("a.yaml", "a: CANARY\nb: [ CANARY\n", "a.yaml, line 2, column 4: not YAML"),
            ("a.yaml", "a: 1\n---\nb: *CANARY\n", "line 3"),
            ("a.yaml", "a: !CANARY!x y\n", "line 1"),
            ("a.yaml", "key: CANARY\n  key: CANARY\n", "line 2"),
            ("a.toml", "a = 1\na = 'CANARY'\n", "line 2, column 1: not TOML"),
            ("a.toml", "ü = CANARY\n", "line 1"),
        ] {
            let message = parse(name, text.replace("CANARY", CANARY)).unwrap_err().to_string();
            assert!(message.contains(place) && message.contains("--syntax warn"), "{text:?}: {message}");
            assert!(!message.contains("canary"), "{message}");
        }
        for name in ["a.json", "a.yaml", "a.toml"] {
            let message = parse(name, b"x: 1\n\xc3\xa9\xff").unwrap_err().to_string();
            assert!(message.contains("line 2, column 2: not UTF-8"), "{message}");
        }
    }

    #[test]
    fn nesting_size_and_aliases_are_bounded() {
        // Tokio's blocking threads have as much stack.
        let on_a_small_stack = || {
            let deep = 200_000;
            assert_eq!(parse("a.json", "[".repeat(deep) + &"]".repeat(deep)), Ok(()));
            assert!(parse("a.json", "{\"a\":".repeat(deep)).is_err());
            assert!(parse("a.yaml", "[".repeat(deep) + &"]".repeat(deep)).is_err());
            assert!(parse("a.yaml", "- ".repeat(deep)).is_err());
            assert!(parse("a.yaml", "{a: ".repeat(deep)).is_err());
            assert!(parse("a.toml", "a = ".to_owned() + &"[".repeat(deep) + &"]".repeat(deep)).is_err());
            assert!(parse("a.toml", "[a".to_owned() + &".a".repeat(deep) + "]").is_err());
            assert_eq!(parse("a.yaml", "[".repeat(100) + &"]".repeat(100)), Ok(()));
        };
        std::thread::Builder::new().stack_size(2 << 20).spawn(on_a_small_stack).unwrap().join().unwrap();
        let level = |i: u32| format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 9].join(","));
        let bomb = (1..30).map(level).fold("a0: &a0 lol\n".to_owned(), |text, level| text + &level);
        assert_eq!(parse("bomb.yaml", bomb), Ok(()));
        let scalar = "x".repeat(8 << 20);
        assert_eq!(parse("a.json", format!("\"{scalar}\"")), Ok(()));
        assert_eq!(parse("a.yaml", format!("a: {scalar}")), Ok(()));
        let message = parse("a.toml", format!("a = '{scalar}'")).unwrap_err().to_string();
        assert!(message.contains("larger than 4194304 bytes"), "{message}");
    }

    fn fragments() -> impl Strategy<Value = String> {
        let tokens = [
            CANARY,
            "{",
            "}",
            "[",
            "]",
            ": ",
            ",",
            "\"",
            "'",
            "\n",
            "\n  ",
            "- ",
            "&a ",
            "*a",
            "!t ",
            "!!str ",
            "---\n",
            "...\n",
            "=",
            "#",
            "\t",
            "|\n",
            ">\n",
            "\\",
            "\\u12",
            "%TAG ! x\n",
            "<<",
            "? ",
            "1e9",
            "1979-05-27",
            "'''",
            "\"\"\"",
            "\u{feff}",
            "\0",
            "é",
        ];
        proptest::collection::vec(proptest::sample::select(tokens.to_vec()), 0..40).prop_map(|tokens| tokens.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

        #[test]
        fn any_text_is_parsed_or_refused_and_never_told(text in fragments(), bytes: Vec<u8>) {
            for name in ["a.json", "a.yaml", "a.toml"] {
                if let Err(error) = parse(name, &text) {
                    prop_assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
                }
                let _ = parse(name, &bytes);
            }
        }
    }
}
