//! The filters that configuration needs beside the engine's own.
//!
//! Their failures name a place in the text at most: what the parsers say may quote it.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::engine::{DecodePaddingMode, general_purpose::STANDARD};
use bytes::Bytes;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, State};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::explain::fault;
use super::gzip::{self, GzipError};
use super::values::{Binary, Notes, text_or_binary};
use super::yaml::{self, NotYaml};

/// Adds them.
pub(super) fn add(env: &mut Environment<'_>, notes: &Arc<Notes>, max_size: u64) {
    env.add_filter("b64encode", b64encode);
    let shared = Arc::clone(notes);
    env.add_filter("b64decode", move |state: &State<'_, '_>, value: &Value| b64decode(state, value, &shared));
    let shared = Arc::clone(notes);
    env.add_filter("gunzip", move |state: &State<'_, '_>, value: &Value| gunzip(state, value, max_size, &shared));
    env.add_filter("sha256", sha256);
    env.add_filter("to_json", to_json);
    env.add_filter("tojson", tojson);
    env.add_filter("from_json", from_json);
    env.add_filter("to_yaml", to_yaml);
    let shared = Arc::clone(notes);
    env.add_filter("from_yaml", move |value: &Value| from_yaml(value, &shared));
    env.add_filter("to_toml", to_toml);
    env.add_filter("from_toml", from_toml);
    env.add_filter("quote", quote);
    env.add_filter("required", required);
}

fn text<'a>(filter: &str, value: &'a Value) -> Result<&'a str, Error> {
    if value.is_undefined() {
        return Err(ErrorKind::UndefinedError.into());
    }
    value.as_str().ok_or_else(|| fault(format!("{filter} takes text"), None))
}

/// The bytes of a text or binary value. The engine does not know what a binary one costs.
fn bytes<'a>(filter: &str, state: &State<'_, '_>, value: &'a Value) -> Result<&'a [u8], Error> {
    if let Some(binary) = value.downcast_object_ref::<Binary>() {
        state.consume_fuel(binary.bytes.len() as u64 / 64)?;
        return Ok(&binary.bytes);
    }
    text(filter, value).map(str::as_bytes)
}

fn defined(value: &Value) -> Result<&Value, Error> {
    if value.is_undefined() { Err(ErrorKind::UndefinedError.into()) } else { Ok(value) }
}

/// Standard alphabet, with padding.
fn b64encode(state: &State<'_, '_>, value: &Value) -> Result<String, Error> {
    Ok(STANDARD.encode(bytes("b64encode", state, value)?))
}

/// Standard alphabet, with or without padding; line breaks and blanks are passed over. Gives text, or a binary value.
fn b64decode(state: &State<'_, '_>, value: &Value, notes: &Arc<Notes>) -> Result<Value, Error> {
    let text = text("b64decode", value)?;
    state.consume_fuel(text.len() as u64 / 64)?;
    let decoded = decoded(text).ok_or_else(|| fault("b64decode: the text is not base64", None))?;
    Ok(text_or_binary(decoded, notes))
}

fn decoded(text: &str) -> Option<Bytes> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let text: Cow<'_, str> = match text {
        text if text.contains(|c: char| c.is_ascii_whitespace()) => {
            text.chars().filter(|c| !c.is_ascii_whitespace()).collect()
        }
        text => text.into(),
    };
    LENIENT.decode(&*text).ok().map(Bytes::from)
}

/// What a gzip file holds, of one member or many: no more than all files together may be. Gives text, or a binary value.
fn gunzip(state: &State<'_, '_>, value: &Value, max_size: u64, notes: &Arc<Notes>) -> Result<Value, Error> {
    let packed = bytes("gunzip", state, value)?;
    let unpacked = gzip::unpack(packed, max_size).map_err(|error| match error {
        GzipError::Malformed => {
            fault("gunzip: the value is not gzip data, or is cut off; b64decode it first, if it is base64", None)
        }
        GzipError::TooLarge => fault(format!("gunzip: it unpacks to more than --max-size ({max_size} bytes)"), None),
    })?;
    state.consume_fuel(unpacked.len() as u64 / 64)?;
    Ok(text_or_binary(Bytes::from(unpacked), notes))
}

/// Lower-case hex.
fn sha256(state: &State<'_, '_>, value: &Value) -> Result<String, Error> {
    let digest = Sha256::digest(bytes("sha256", state, value)?);
    Ok(digest.iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    }))
}

/// The widest indent of JSON.
const INDENT: usize = 16;

/// On one line, or with `indent=N` on many.
#[expect(clippy::needless_pass_by_value, reason = "the engine passes it so")]
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let value = defined(value)?;
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    let mut json = Vec::new();
    let done = match indent {
        None => serde_json::to_writer(&mut json, value),
        Some(indent) => {
            let indent = " ".repeat(indent.min(INDENT));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, formatter))
        }
    };
    let unfit = || fault("to_json: the value has something that JSON has not, such as a key that is no text", None);
    done.map_err(|_| unfit())?;
    String::from_utf8(json).map_err(|_| unfit())
}

/// The engine's own, which would indent by gigabytes.
fn tojson(state: &State<'_, '_>, value: &Value, indent: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let indent = if indent.is_some() { indent } else { options.get("indent")? };
    let number = indent.as_ref().filter(|indent| indent.is_number());
    let bounded =
        number.and_then(|indent| usize::try_from(indent.clone()).ok()).map(|indent| indent.min(INDENT).into());
    let json = minijinja::filters::tojson(value, bounded.or(indent), options)?;
    state.consume_fuel(json.as_str().map_or(0, str::len) as u64 / 64)?;
    Ok(json)
}

fn from_json(value: &Value) -> Result<Value, Error> {
    let text = text("from_json", value)?;
    if text.starts_with('\u{feff}') {
        return Err(fault(
            "from_json: the text begins with a byte order mark, which JSON does not allow; save it without",
            None,
        ));
    }
    serde_json::from_str(text)
        .map_err(|error| fault(format!("from_json: not JSON at {}:{} of the text", error.line(), error.column()), None))
}

/// A document without the line break at its end, which `indent` would follow by blanks. Texts of many lines are quoted:
/// the line break may belong to a block text.
fn to_yaml(value: &Value) -> Result<String, Error> {
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    let mut yaml = serde_saphyr::to_string_with_options(defined(value)?, options)
        .map_err(|_| fault("to_yaml: the value has something that YAML has not", None))?;
    yaml.truncate(yaml.trim_end_matches('\n').len());
    Ok(yaml)
}

fn from_yaml(value: &Value, notes: &Arc<Notes>) -> Result<Value, Error> {
    let binary = |text: &str| Some(text_or_binary(decoded(text)?, notes));
    yaml::parse(text("from_yaml", value)?, &binary).map_err(|NotYaml(line, column)| {
        fault(format!("from_yaml: not one YAML document at {line}:{column} of the text"), None)
    })
}

/// A document without the line break at its end.
fn to_toml(value: &Value) -> Result<String, Error> {
    let mut toml = toml::to_string(defined(value)?)
        .map_err(|_| fault("to_toml: TOML needs a map at the top, and has no none", None))?;
    toml.truncate(toml.trim_end_matches('\n').len());
    Ok(toml)
}

/// Dates and times become text.
fn from_toml(value: &Value) -> Result<Value, Error> {
    let text = text("from_toml", value)?;
    let table: toml::Table = toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let place = before.map(|before| {
            let line = before.rsplit('\n').next().unwrap_or_default();
            format!(" at {}:{} of the text", before.split('\n').count(), line.chars().count() + 1)
        });
        fault(format!("from_toml: not TOML{}", place.unwrap_or_default()), None)
    })?;
    Ok(toml_value(toml::Value::Table(table)))
}

fn toml_value(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => number.into(),
        toml::Value::Boolean(yes) => yes.into(),
        toml::Value::Datetime(time) => time.to_string().into(),
        toml::Value::Array(values) => values.into_iter().map(toml_value).collect(),
        toml::Value::Table(table) => Value::from_pairs(table.into_iter().map(|(key, value)| (key, toml_value(value)))),
    }
}

/// In double quotes, escaped so that JSON, YAML and TOML read the same text back; so do nginx and most others as long
/// as it has no control character. It keeps no `$` from a program that expands variables in quotes.
fn quote(value: &Value) -> Result<String, Error> {
    let value = defined(value)?;
    let text: Cow<'_, str> = match value.as_str() {
        Some(text) => text.into(),
        None if value.is_number() => value.to_string().into(),
        None => return Err(fault("quote takes text or a number", None)),
    };
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            // YAML takes these for line breaks, or for no characters at all.
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}') => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    Ok(quoted)
}

/// Refuses what is undefined, none or an empty text, with the template's own words.
fn required(value: &Value, message: Option<&str>) -> Result<Value, Error> {
    if value.is_undefined() || value.is_none() || value.as_str() == Some("") {
        return Err(fault("a required value is missing", message));
    }
    Ok(value.clone())
}
