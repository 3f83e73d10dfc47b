//! What new Pods start from: the sources as they were when a rollout ended, as text for a `ConfigMap` and, as far as they
//! are secret, for a Secret. All of it is read as hostile input: only what these very sources can hold is taken.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::lease::PREFIX;
use crate::model::content::Content;
use crate::model::digest::{Digest, DigestKey, Hasher};
use crate::model::object::{Kind, Object, ObjectRef};
use crate::model::snapshot::{Objects, Taken};
use crate::model::spool::SpoolError;

/// The key in both objects that holds the text.
pub const KEY: &str = "objects.json";

/// The most that one of them may hold, in bytes: the API server refuses more (`MaxSecretSize`).
pub const LIMIT: usize = 1 << 20;

/// What is written.
#[derive(Clone, PartialEq, Eq)]
pub struct Text {
    /// Of both objects.
    pub annotations: BTreeMap<String, String>,
    /// For the `ConfigMap`.
    pub open: String,
    /// For the Secret, if anything is secret.
    pub secret: Option<String>,
}

/// What the annotations say, before anything else is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The change that it is of.
    pub change: Digest,
    /// The names of its sources.
    pub sources: Vec<String>,
    /// Whether there is a Secret beside the `ConfigMap`.
    pub has_secret: bool,
    content: Digest,
}

/// Why nothing is kept.
#[derive(Debug, thiserror::Error)]
pub enum WriteHistoryError {
    #[error("the sources hold more than 1 MiB, which is what one object can keep")]
    TooLarge,
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

/// Why nothing is taken from it. Without a byte of what it holds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseHistoryError {
    #[error("its annotation {PREFIX}{0} is missing, so this program did not write it")]
    Missing(&'static str),
    #[error("its annotation {PREFIX}{0} is not as this program writes it")]
    Malformed(&'static str),
    #[error("its key {KEY} is missing, too long, or not as this program writes it")]
    Text,
    #[error("it holds {0}, which is none of these sources'")]
    Foreign(ObjectRef),
    #[error("it holds {0} outside of the Secret")]
    Open(ObjectRef),
    #[error("it was changed since it was written, or --digest-key-file is another one here")]
    Changed,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    /// Where it comes in the merged view.
    at: usize,
    id: ObjectRef,
    created: i64,
    selected: bool,
    text: BTreeMap<String, String>,
    base64: BTreeMap<String, String>,
}

impl Stored {
    fn new(at: usize, taken: &Taken) -> Result<Self, SpoolError> {
        let Taken { object, selected } = taken;
        let (mut text, mut base64) = (BTreeMap::new(), BTreeMap::new());
        for (key, value) in &object.data {
            let value = value.read()?;
            match std::str::from_utf8(&value) {
                Ok(value) => text.insert(key.clone(), value.to_owned()),
                Err(_) => base64.insert(key.clone(), STANDARD.encode(&value)),
            };
        }
        Ok(Self { at, id: object.id.clone(), created: object.created, selected: *selected, text, base64 })
    }

    fn into_taken(self, secret: bool) -> Option<(usize, Taken)> {
        let mut data: BTreeMap<_, Content> =
            self.text.into_iter().map(|(key, value)| (key, Bytes::from(value).into())).collect();
        for (key, value) in self.base64 {
            data.insert(key, Bytes::from(STANDARD.decode(value).ok()?).into());
        }
        let object = Object::new(self.id, String::new(), self.created, secret, data);
        Some((self.at, Taken { object: Arc::new(object), selected: self.selected }))
    }
}

/// Whether an object of this name can come from one of these sources.
fn belongs(id: &ObjectRef, sources: &[String]) -> bool {
    let selected = [format!("{}/{}/[", id.kind, id.namespace), format!("{}/*/[", id.kind)];
    let is_named = id.to_string();
    sources.iter().any(|source| *source == is_named || selected.iter().any(|prefix| source.starts_with(prefix)))
}

/// Over all that is kept, by the fleet's key if it has one: nobody without it can write what is taken.
fn content(objects: &Objects, key: Option<&DigestKey>) -> Digest {
    let mut hasher = key.map_or_else(Hasher::plain, Hasher::keyed);
    hasher.field(b"history");
    for Taken { object, selected } in objects.iter() {
        hasher.field(&[u8::from(*selected)]);
        hasher.field(&object.created.to_be_bytes());
        hasher.field(object.content().as_bytes());
    }
    hasher.finish()
}

/// Writes it. Reads values from the disk, if they are there.
pub fn write(
    change: Digest,
    sources: &[String],
    objects: &Objects,
    key: Option<&DigestKey>,
) -> Result<Text, WriteHistoryError> {
    // Before thousands of values are read for nothing.
    if objects.iter().map(|taken| taken.object.size()).sum::<u64>() > 2 * LIMIT as u64 {
        return Err(WriteHistoryError::TooLarge);
    }
    let (mut open, mut secret) = (Vec::new(), Vec::new());
    for (at, taken) in objects.iter().enumerate() {
        let part = if taken.object.secret { &mut secret } else { &mut open };
        part.push(Stored::new(at, taken)?);
    }
    // Strings, numbers and maps of them: there is nothing that serde_json could refuse.
    let text = |part: &[Stored]| serde_json::to_string(part).unwrap_or_default();
    let (open, secret) = (text(&open), (!secret.is_empty()).then(|| text(&secret)));
    if open.len().max(secret.as_ref().map_or(0, String::len)) > LIMIT {
        return Err(WriteHistoryError::TooLarge);
    }
    let values = [
        ("change", change.to_string()),
        ("sources", sources.join("\n")),
        ("secret", secret.is_some().to_string()),
        ("content", content(objects, key).to_string()),
    ];
    let annotations = values.into_iter().map(|(name, value)| (format!("{PREFIX}{name}"), value)).collect();
    Ok(Text { annotations, open, secret })
}

impl Header {
    pub fn parse(annotations: &BTreeMap<String, String>) -> Result<Self, ParseHistoryError> {
        let value = |name| annotations.get(&format!("{PREFIX}{name}")).ok_or(ParseHistoryError::Missing(name));
        let digest = |name| value(name)?.parse().map_err(|_| ParseHistoryError::Malformed(name));
        let has_secret = value("secret")?.parse().map_err(|_| ParseHistoryError::Malformed("secret"))?;
        let sources = value("sources")?.lines().map(str::to_owned).collect();
        Ok(Self { change: digest("change")?, sources, has_secret, content: digest("content")? })
    }

    /// Takes what the objects hold: the text of the `ConfigMap`, and that of the Secret, if there is to be one.
    pub fn objects(
        &self,
        open: &str,
        secret: Option<&str>,
        key: Option<&DigestKey>,
    ) -> Result<Objects, ParseHistoryError> {
        let mut places = BTreeMap::new();
        let mut ids = BTreeSet::new();
        for (text, is_secret) in [(Some(open), false), (secret, true)] {
            let Some(text) = text else { continue };
            if text.len() > LIMIT {
                return Err(ParseHistoryError::Text);
            }
            let stored: Vec<Stored> = serde_json::from_str(text).map_err(|_| ParseHistoryError::Text)?;
            for stored in stored {
                let id = stored.id.clone();
                if !belongs(&id, &self.sources) {
                    return Err(ParseHistoryError::Foreign(id));
                }
                if id.kind == Kind::Secret && !is_secret {
                    return Err(ParseHistoryError::Open(id));
                }
                let (at, taken) = stored.into_taken(is_secret).ok_or(ParseHistoryError::Text)?;
                if !ids.insert((id, taken.selected)) || places.insert(at, taken).is_some() {
                    return Err(ParseHistoryError::Text);
                }
            }
        }
        let objects: Objects = places.into_values().collect();
        // Also one half of an older one.
        if content(&objects, key) == self.content { Ok(objects) } else { Err(ParseHistoryError::Changed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "hunter2";

    fn taken(id: &str, secret: bool, selected: bool, values: &[(&str, &[u8])]) -> Taken {
        let data = values.iter().map(|(key, value)| ((*key).to_owned(), Bytes::copy_from_slice(value).into()));
        let object = Object::new(id.parse().unwrap(), "9".into(), 7, secret, data.collect());
        Taken { object: Arc::new(object), selected }
    }

    fn sources() -> Vec<String> {
        ["configmap/ns/web", "secret/ns/tls", "configmap/ns/[a=b]"].map(str::to_owned).into()
    }

    /// In an order in which secret and open ones alternate.
    fn objects() -> Objects {
        [
            taken("configmap/ns/web", false, false, &[("a", b"1\n\""), ("bin", &[0xff, 0])]),
            taken("secret/ns/tls", true, false, &[("key", SECRET.as_bytes()), ("raw", &[0x80])]),
            taken("configmap/ns/zz", false, true, &[("a", b"2")]),
        ]
        .into_iter()
        .collect()
    }

    fn change() -> Digest {
        Digest::from_bytes([3; 32])
    }

    fn key() -> DigestKey {
        DigestKey::new([1; 32])
    }

    fn read(text: &Text) -> Result<Objects, ParseHistoryError> {
        Header::parse(&text.annotations)?.objects(&text.open, text.secret.as_deref(), Some(&key()))
    }

    fn written() -> Text {
        write(change(), &sources(), &objects(), Some(&key())).unwrap()
    }

    #[test]
    fn what_is_kept_reads_back_in_its_order_and_no_secret_stands_outside_of_the_secret() {
        let text = written();
        let header = Header::parse(&text.annotations).unwrap();
        assert_eq!((header.change, &header.sources, header.has_secret), (change(), &sources(), true));
        let contents = |objects: &Objects| {
            objects
                .iter()
                .map(|taken| (taken.object.content(), taken.object.secret, taken.selected))
                .collect::<Vec<_>>()
        };
        assert_eq!(contents(&read(&text).unwrap()), contents(&objects()));
        let shown = format!("{:?} {}", text.annotations, text.open);
        assert!(!shown.contains(SECRET) && !shown.contains(&STANDARD.encode(SECRET)), "{shown}");
        let alone: Objects = objects().iter().take(1).cloned().collect();
        assert!(write(change(), &sources(), &alone, None).unwrap().secret.is_none());
    }

    #[test]
    fn what_was_changed_or_is_half_of_another_is_refused() {
        let mut changed = written();
        changed.open = changed.open.replace("\"2\"", "\"3\"");
        assert_eq!(read(&changed).err(), Some(ParseHistoryError::Changed));
        let without = Text { secret: None, ..written() };
        assert_eq!(read(&without).err(), Some(ParseHistoryError::Changed));
        let header = Header::parse(&written().annotations).unwrap();
        let other = header.objects(&written().open, written().secret.as_deref(), Some(&DigestKey::new([2; 32])));
        assert_eq!(other.err(), Some(ParseHistoryError::Changed));
    }

    #[test]
    fn hostile_text_is_refused_and_none_of_it_is_quoted() {
        let hostile = |open: String| {
            let error = read(&Text { open, ..written() }).expect_err("it is refused");
            assert!(!error.to_string().contains(SECRET), "{error}");
            error
        };
        let one = |id: &str, more: &str| {
            format!(
                r#"[{{"at":0,"id":"{id}","created":0,"selected":false,"text":{{"{SECRET}":"x"}},"base64":{{{more}}}}}]"#
            )
        };
        for text in ["", "{}", "[1]", "null", "[[[[", &one("pod/x", ""), &one("configmap/ns/web", r#""k":"%""#)] {
            assert_eq!(hostile(text.to_owned()), ParseHistoryError::Text, "{text}");
        }
        assert_eq!(hostile("[".repeat(LIMIT)), ParseHistoryError::Text);
        assert_eq!(hostile(" ".repeat(LIMIT + 1)), ParseHistoryError::Text);
        let twice = one("configmap/ns/web", "").replace("}]", "},");
        assert_eq!(hostile(twice.clone() + &twice[1..].replace("},", "}]")), ParseHistoryError::Text);
        for id in ["configmap/ns/other", "configmap/ns2/web", "dir/etc"] {
            let kind = id.parse::<ObjectRef>().unwrap();
            // A selector takes any name in its namespace: what is kept of it is checked by its digest.
            let expected =
                if id == "configmap/ns/other" { ParseHistoryError::Changed } else { ParseHistoryError::Foreign(kind) };
            assert_eq!(hostile(one(id, "")), expected, "{id}");
        }
        assert!(matches!(hostile(one("secret/ns/tls", "")), ParseHistoryError::Open(_)));
    }

    #[test]
    fn annotations_that_are_not_ours_are_refused_each() {
        for name in ["change", "sources", "secret", "content"] {
            let mut annotations = written().annotations;
            annotations.remove(&format!("{PREFIX}{name}"));
            assert_eq!(Header::parse(&annotations), Err(ParseHistoryError::Missing(name)));
            annotations.insert(format!("{PREFIX}{name}"), "\u{0}?".to_owned());
            let header = Header::parse(&annotations);
            assert!(name == "sources" || header == Err(ParseHistoryError::Malformed(name)), "{name}: {header:?}");
        }
    }

    #[test]
    fn more_than_an_object_can_keep_is_refused_before_it_is_written() {
        let large =
            |length| [taken("configmap/ns/web", false, false, &[("a", &vec![b'x'; length])])].into_iter().collect();
        for length in [LIMIT, 3 * LIMIT] {
            let written = write(change(), &sources(), &large(length), None);
            assert!(matches!(written, Err(WriteHistoryError::TooLarge)));
        }
        assert!(write(change(), &sources(), &large(LIMIT / 2), None).is_ok());
    }
}
