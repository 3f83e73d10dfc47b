//! Any file is well-formed or refused, on a bounded stack, and its text is never shown.
//!
//! The first byte says what it is: `j`, `y` or `t` for JSON, YAML or TOML.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use trimtab::candidate::syntax::{SyntaxError, syntax};
use trimtab::model::tree::TreePath;

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((kind, bytes)) = data.split_first() else { return Corpus::Reject };
    let (name, format) = match kind {
        b'j' => ("a.json", "JSON"),
        b'y' => ("a.yaml", "YAML"),
        b't' => ("a.toml", "TOML"),
        _ => return Corpus::Reject,
    };
    let Err(error) = syntax(&TreePath::parse(name).unwrap(), bytes) else { return Corpus::Keep };
    if let SyntaxError::Malformed { line, column, .. } | SyntaxError::NotUtf8 { line, column, .. } = error {
        let lines = bytes.split(|&byte| byte == b'\n' || byte == b'\r').count();
        assert!((1..=lines + 1).contains(&line) && column <= bytes.len() + 2, "{error}");
    }
    // But for numbers, each message is one that was known before.
    let mut said = error.to_string();
    said.retain(|c| !c.is_ascii_digit());
    let at = format!("{name}, line , column : not ");
    let pass = "it pass with --syntax warn";
    let known = [
        format!("{at}{format}; fix it, or let {pass}"),
        format!("{at}UTF-, and so not {format}; fix it, or let {pass}"),
        format!(
            "{name} begins with a byte order mark (U+FEFF), which {format} does not allow: save it as UTF- without one, or \
             let {pass}"
        ),
        format!("{name}: nested more than  deep; flatten it, or let {pass}"),
        format!("{name}: larger than  bytes, which is too much to parse; let {pass}"),
    ];
    assert!(known.contains(&said), "{said}");
    Corpus::Keep
});
