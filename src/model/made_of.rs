//! What a generation was made of: which sources had content, and the objects whose last content outlives them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::object::{Marks, Object, ObjectRef};
use crate::model::snapshot::{HeldBack, Versions};

/// The most that it adds to a journal, in bytes of text. A journal names three generations.
pub const LIMIT: usize = 1 << 20;

/// By the name of each source that had content. The objects are those whose deletion would not be applied. Cheap to
/// clone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MadeOf(Arc<BTreeMap<String, Parts>>);

/// Objects, without their values.
pub type Parts = BTreeMap<ObjectRef, Part>;

/// An object, without its values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Part {
    /// As [`Object::created`].
    pub created: i64,
    /// Whether its values are secret.
    pub secret: bool,
    /// Where each key is a file as it is: what it can be read back by. Empty where templates make the files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
    /// As [`Object::marks`].
    #[serde(default, skip_serializing_if = "Marks::is_empty")]
    pub marks: Marks,
}

impl Part {
    /// `plain`: whether each key is a file as it is.
    #[must_use]
    pub fn of(object: &Object, plain: bool) -> Self {
        let keys = if plain { object.data.keys().cloned().collect() } else { Vec::new() };
        let marks = object.marks().filter(|_| plain).cloned().unwrap_or_default();
        Self { created: object.created, secret: object.secret, keys, marks }
    }

    /// The most that it can be long in a journal, in bytes.
    fn length(&self, id: &ObjectRef) -> usize {
        let of = |text: &str| {
            24 + text.bytes().map(|c| if matches!(c, 0..=31 | b'"' | b'\\') { 6 } else { 1 }).sum::<usize>()
        };
        let marks: usize = self.marks.iter().map(|(name, value)| of(name) + of(value)).sum();
        160 + of(&id.namespace) + of(&id.name) + marks + self.keys.iter().map(|key| of(key)).sum::<usize>()
    }
}

impl MadeOf {
    /// In the place of a source's name.
    const FALLBACK: &str = "fallback";

    /// Of no source, but of what is behind `--fallback-url`.
    #[must_use]
    pub fn fallback() -> Self {
        Self::new([(Self::FALLBACK.to_owned(), Parts::new())])
    }

    /// Of a source that would make it exceed [`LIMIT`] the name alone is remembered.
    #[must_use]
    pub fn new(sources: impl IntoIterator<Item = (String, Parts)>) -> Self {
        let mut left = LIMIT;
        let fits = |(name, parts): (String, Parts)| {
            let length = parts.iter().map(|(id, part)| part.length(id)).sum();
            match left.checked_sub(length) {
                Some(rest) => {
                    left = rest;
                    (name, parts)
                }
                None => (name, Parts::new()),
            }
        };
        Self(Arc::new(sources.into_iter().map(fits).collect()))
    }

    /// Whether it was made of what is behind `--fallback-url`.
    #[must_use]
    pub fn is_fallback(&self) -> bool {
        self.has(Self::FALLBACK)
    }

    /// Whether a source had content.
    #[must_use]
    pub fn has(&self, source: &str) -> bool {
        self.0.contains_key(source)
    }

    /// What is remembered of a source.
    #[must_use]
    pub fn parts(&self, source: &str) -> Parts {
        self.0.get(source).cloned().unwrap_or_default()
    }

    /// The same sources with other objects in them: of each, what it is known to have that is among these.
    #[must_use]
    pub fn of_others<'a>(&self, objects: impl Iterator<Item = &'a Object>, plain: bool) -> Self {
        let parts: Parts = objects.map(|object| (object.id.clone(), Part::of(object, plain))).collect();
        let of =
            |known: &Parts| known.keys().filter_map(|id| Some((id.clone(), parts.get(id)?.clone()))).collect::<Parts>();
        Self(Arc::new(self.0.iter().map(|(name, known)| (name.clone(), of(known))).collect()))
    }

    /// The same where some objects were held back: they are as they were last `published`, or not there.
    #[must_use]
    pub fn without(mut self, held_back: &[HeldBack], published: &Versions) -> Self {
        if held_back.is_empty() {
            return self;
        }
        let published = published.by_id();
        for parts in Arc::make_mut(&mut self.0).values_mut() {
            for HeldBack { source, .. } in held_back.iter().filter(|held| held.key.is_none()) {
                if let Some(part) = parts.get_mut(source) {
                    match published.get(source) {
                        Some(previous) => *part = Part::of(previous, true),
                        None => _ = parts.remove(source),
                    }
                }
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::model::object::Kind;

    #[test]
    fn object_that_lacks_a_key_is_there_and_one_that_is_held_back_is_as_it_was_published() {
        let id = ObjectRef { kind: Kind::ConfigMap, namespace: "ns".into(), name: "web".into() };
        let object = |key: &str| {
            let data = [(key.to_owned(), Bytes::new().into())].into();
            Object::new(id.clone(), String::new(), 0, false, data).marked([("label:a".into(), key.into())].into())
        };
        let part = Part::of(&object("new"), true);
        assert_eq!((&part.keys[..], part.marks["label:a"].as_str()), (&["new".to_owned()][..], "new"));
        let made_of = MadeOf::new([("app=web".to_owned(), [(id.clone(), part)].into())]);
        let published = Versions::from(BTreeMap::from([(id.clone(), Arc::new(object("old")))]));
        for (key, keys) in [(None, "old"), (Some("k".to_owned()), "new")] {
            let held_back = [HeldBack { source: id.clone(), key, reason: String::new() }];
            let parts = made_of.clone().without(&held_back, &published).parts("app=web");
            assert_eq!(parts[&id].keys, [keys]);
        }
    }
}
