//! An object: its identity, its keys, their bytes. `Debug` shows names and sizes, never a value.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::content::Content;
use crate::model::digest::{Digest, Hasher};

/// What kind of thing an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A `v1/ConfigMap`.
    ConfigMap,
    /// A `v1/Secret`.
    Secret,
    /// A directory: a mounted volume, or any other.
    Dir,
    /// What is behind a URL.
    Url,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::ConfigMap, Self::Secret, Self::Dir, Self::Url];

    /// Whether it is in no namespace.
    #[must_use]
    pub fn is_local(self) -> bool {
        matches!(self, Self::Dir | Self::Url)
    }

    /// The name as it stands in paths (`{kind}`), logs, metrics and `/status`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
            Self::Dir => "dir",
            Self::Url => "url",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One object's identity, shared by its copies. Prints as `configmap/NS/NAME`, `secret/NS/NAME`, `dir/NAME` or `url/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// `ConfigMap`, `Secret`, directory or URL.
    pub kind: Kind,
    /// The namespace; empty for a directory and a URL.
    pub namespace: Arc<str>,
    /// `metadata.name`, or NAME in `--watch-dir NAME=PATH` or `--watch-url NAME=URL`.
    pub name: Arc<str>,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind.is_local() {
            write!(f, "{}/{}", self.kind, self.name)
        } else {
            write!(f, "{}/{}/{}", self.kind, self.namespace, self.name)
        }
    }
}

impl Serialize for ObjectRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Not `KIND/NS/NAME`, `dir/NAME` or `url/NAME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected configmap/NAMESPACE/NAME, secret/NAMESPACE/NAME, dir/NAME or url/NAME")]
pub struct ObjectRefError;

impl FromStr for ObjectRef {
    type Err = ObjectRefError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (kind, rest) = text.split_once('/').ok_or(ObjectRefError)?;
        let kind = Kind::ALL.into_iter().find(|known| known.as_str() == kind);
        let kind = kind.ok_or(ObjectRefError)?;
        let (namespace, name) = match kind {
            Kind::Dir | Kind::Url => ("", rest),
            Kind::ConfigMap | Kind::Secret => rest.split_once('/').ok_or(ObjectRefError)?,
        };
        Ok(Self { kind, namespace: namespace.into(), name: name.into() })
    }
}

impl<'de> Deserialize<'de> for ObjectRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Values of an object's labels and annotations, each by `label:NAME` or `annotation:NAME`: those that `--path` names.
pub type Marks = BTreeMap<String, String>;

/// Keys that are not in an object though it names them, each with the reason. Without a byte of its values.
pub type Held = BTreeMap<String, String>;

/// A `ConfigMap`, a Secret, a directory or what a URL has, as one read of it gave it.
///
/// Keys of a `ConfigMap` or Secret are those of `data`, `binaryData` and Secret `data` (decoded); those of a
/// directory are paths relative to it, with `/` between segments.
#[derive(Clone, PartialEq, Eq)]
pub struct Object {
    /// Who it is.
    pub id: ObjectRef,
    /// `metadata.resourceVersion`; empty for a directory.
    pub resource_version: String,
    /// `metadata.creationTimestamp` in seconds since 1970; 0 for a directory. Orders objects that collide.
    pub created: i64,
    /// Whether its values are secret.
    pub secret: bool,
    /// Key to bytes.
    pub data: BTreeMap<String, Content>,
    /// `None`: `--path` names none, or it has none of them.
    marks: Option<Box<Marks>>,
    /// `None`: nothing of it is held back.
    held: Option<Box<Held>>,
    /// SHA-256 over who it is, whether it is secret, its marks, what is held back, and the keys and the digests of their bytes, so that a comparison never reads them twice. In memory only.
    content: Digest,
}

impl Object {
    /// An object with these keys; takes their digest once.
    #[must_use]
    pub fn new(
        id: ObjectRef,
        resource_version: String,
        created: i64,
        secret: bool,
        data: BTreeMap<String, Content>,
    ) -> Self {
        let mut hasher = Hasher::plain();
        for part in [id.kind.as_str(), &id.namespace, &id.name] {
            hasher.field(part.as_bytes());
        }
        hasher.field(&[u8::from(secret)]);
        for (key, value) in &data {
            hasher.field(key.as_bytes());
            hasher.field(value.digest().as_bytes());
        }
        Self { content: hasher.finish(), id, resource_version, created, secret, data, marks: None, held: None }
    }

    /// The same with these marks.
    #[must_use]
    pub fn marked(self, marks: Marks) -> Self {
        if marks.is_empty() {
            return self;
        }
        Self { content: self.content_with(&marks), marks: Some(Box::new(marks)), ..self }
    }

    /// The same where what these keys stand for is not there as it should be.
    #[must_use]
    pub fn holding(self, held: Held) -> Self {
        if held.is_empty() {
            return self;
        }
        Self { content: self.content_with(&held), held: Some(Box::new(held)), ..self }
    }

    fn content_with(&self, more: &BTreeMap<String, String>) -> Digest {
        let mut hasher = Hasher::plain();
        hasher.field(self.content.as_bytes());
        for (name, value) in more {
            hasher.field(name.as_bytes());
            hasher.field(value.as_bytes());
        }
        hasher.finish()
    }

    /// What is held back of it, where its source knows that.
    pub fn held(&self) -> impl Iterator<Item = (&String, &String)> {
        self.held.iter().flat_map(|held| &**held)
    }

    /// What `--path` names of its labels and annotations.
    #[must_use]
    pub fn marks(&self) -> Option<&Marks> {
        self.marks.as_deref()
    }

    /// The digest over all that a render depends on but its age. Never shown: it is unkeyed, and would let anyone test guesses.
    #[must_use]
    pub fn content(&self) -> Digest {
        self.content
    }

    /// The sum of the keys' and values' lengths, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.data.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum()
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} keys, {} bytes)", self.id, self.data.len(), self.size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_that_says_where_it_goes_is_part_of_its_content() {
        let object = |folder: Option<&str>| {
            let id = "configmap/ns/web".parse().unwrap();
            let marks = folder.map(|folder| ("label:folder".to_owned(), folder.to_owned()));
            Object::new(id, String::new(), 0, false, BTreeMap::new()).marked(marks.into_iter().collect()).content()
        };
        assert_eq!(object(Some("a")), object(Some("a")));
        assert!(object(Some("a")) != object(Some("b")) && object(None) != object(Some("a")));
    }

    #[test]
    fn an_identity_reads_back_as_it_prints() {
        for text in ["configmap/ns/web", "secret/ns/tls", "dir/etc", "dir/a/b", "url/geo"] {
            let id: ObjectRef = text.parse().unwrap();
            assert_eq!(id.to_string(), text);
            assert_eq!(serde_json::from_value::<ObjectRef>(serde_json::to_value(&id).unwrap()).unwrap(), id);
        }
        for bad in ["", "web", "pod/ns/web", "configmap/web", "ConfigMap/ns/web"] {
            assert_eq!(bad.parse::<ObjectRef>(), Err(ObjectRefError), "{bad}");
        }
    }
}
