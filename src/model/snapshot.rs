//! Everything that the sources hold at one moment. Bytes are shared, never copied: a snapshot is cheap to take and to keep.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::content::Content;
use crate::model::digest::{Digest, Hasher};
use crate::model::made_of::MadeOf;
use crate::model::object::{Object, ObjectRef};

/// An object, and how it came in.
#[derive(Clone, Debug)]
pub struct Taken {
    pub object: Arc<Object>,
    /// Whether a selector selected it.
    pub selected: bool,
}

/// Objects in their order, in groups. What has not changed from one snapshot to the next is shared.
#[derive(Clone, Debug, Default)]
pub struct Objects(Vec<Arc<Group>>);

/// How many objects a group has; the last one has fewer.
const GROUP: usize = 64;

/// Some objects that are next to each other.
#[derive(Debug)]
pub struct Group {
    pub taken: Vec<Taken>,
    /// Over what they hold and how they came in. Never shown: it is unkeyed, and would let anyone test guesses.
    pub content: Digest,
    /// Whether one of them is secret.
    pub secret: bool,
}

impl Objects {
    /// Puts another version in the place of one, if that is among them.
    pub fn replace(&mut self, old: &Arc<Object>, new: &Arc<Object>) {
        let is_old = |taken: &Taken| Arc::ptr_eq(&taken.object, old);
        if let Some(group) = self.0.iter_mut().find(|group| group.taken.iter().any(is_old)) {
            let version = |taken: &Taken| {
                let object = if is_old(taken) { new } else { &taken.object };
                Taken { object: object.clone(), selected: taken.selected }
            };
            *group = Arc::new(Group::of(group.taken.iter().map(version).collect()));
        }
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Taken> {
        self.0.iter().flat_map(|group| &group.taken)
    }

    /// Number of objects.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().map(|group| group.taken.len()).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same in groups.
    pub fn groups(&self) -> impl Iterator<Item = &Arc<Group>> {
        self.0.iter()
    }

    /// Those that are secret.
    pub fn secret(&self) -> impl Iterator<Item = &Taken> {
        let groups = self.0.iter().filter(|group| group.secret);
        groups.flat_map(|group| &group.taken).filter(|taken| taken.object.secret)
    }
}

impl FromIterator<Taken> for Objects {
    fn from_iter<I: IntoIterator<Item = Taken>>(taken: I) -> Self {
        let mut taken = taken.into_iter().peekable();
        let mut groups = Vec::new();
        while taken.peek().is_some() {
            groups.push(Arc::new(Group::of(taken.by_ref().take(GROUP).collect())));
        }
        Self(groups)
    }
}

impl Group {
    fn of(taken: Vec<Taken>) -> Self {
        let mut hasher = Hasher::plain();
        for Taken { object, selected } in &taken {
            hasher.field(&[u8::from(*selected)]);
            hasher.field(object.content().as_bytes());
        }
        let secret = taken.iter().any(|taken| taken.object.secret);
        Self { taken, content: hasher.finish(), secret }
    }
}

/// The selected objects in the versions that a generation was made of: those of a snapshot, but for those that were
/// held back. Cheap to keep: they are shared with the snapshot.
#[derive(Clone, Debug, Default)]
pub struct Versions {
    taken: Objects,
    instead: BTreeMap<ObjectRef, Option<Arc<Object>>>,
}

impl Versions {
    /// All that a snapshot has. What it has of named objects alone is not held.
    #[must_use]
    pub fn of(snapshot: &Snapshot) -> Self {
        let groups = snapshot.objects.groups().filter(|group| group.taken.iter().any(|taken| taken.selected));
        Self { taken: Objects(groups.cloned().collect()), instead: BTreeMap::new() }
    }

    /// Another version, or none, in the place of the snapshot's.
    pub fn replace(&mut self, id: ObjectRef, version: Option<Arc<Object>>) {
        self.instead.insert(id, version);
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Object>> {
        let taken = self.taken.iter().filter(|taken| taken.selected).map(|taken| &taken.object);
        let taken = taken.filter(|object| self.instead.is_empty() || !self.instead.contains_key(&object.id));
        taken.chain(self.instead.values().flatten())
    }

    /// Those that are secret.
    pub fn secret(&self) -> impl Iterator<Item = &Arc<Object>> {
        let taken = self.taken.secret().filter(|taken| taken.selected).map(|taken| &taken.object);
        let taken = taken.filter(|object| !self.instead.contains_key(&object.id));
        taken.chain(self.instead.values().flatten().filter(|object| object.secret))
    }

    /// The same, to be looked up.
    #[must_use]
    pub fn by_id(&self) -> BTreeMap<&ObjectRef, &Arc<Object>> {
        self.iter().map(|object| (&object.id, object)).collect()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }
}

impl From<BTreeMap<ObjectRef, Arc<Object>>> for Versions {
    fn from(objects: BTreeMap<ObjectRef, Arc<Object>>) -> Self {
        Self {
            taken: Objects::default(),
            instead: objects.into_iter().map(|(id, object)| (id, Some(object))).collect(),
        }
    }
}

/// A directory or file that the main process reads by itself. Nothing of it is written, and nothing can be taken back.
#[derive(Clone, Debug)]
pub struct Observed {
    pub object: Arc<Object>,
    /// Where it is.
    pub path: Arc<Path>,
}

impl Observed {
    /// Where the value of a key is.
    #[must_use]
    pub fn place(&self, key: &str) -> String {
        // A single file was read as one key of its own name.
        let is_file = self.object.data.len() == 1 && self.path.file_name().is_some_and(|name| name == key);
        let path = if is_file { self.path.to_path_buf() } else { self.path.join(key) };
        path.display().to_string()
    }

    /// The keys that are not as they were.
    pub fn edited<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = &'a String> {
        let digest = |object: &Object, key: &str| object.data.get(key).map(Content::digest);
        let keys =
            self.object.data.keys().chain(before.object.data.keys().filter(|key| !self.object.data.contains_key(*key)));
        keys.filter(move |key| digest(&self.object, key) != digest(&before.object, key))
    }
}

/// Everything that the sources hold at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// ConfigMaps, Secrets and directories; of two values for a key in the merged view, the later one wins.
    pub objects: Objects,
    /// What the main process reads by itself; after the objects in the merged view.
    pub observed: Vec<Observed>,
    /// Files and directories of templates, each with its DEST.
    pub templates: Vec<(Arc<Object>, Option<String>)>,
    /// The same of `--envsubst`.
    pub envsubst: Vec<(Arc<Object>, Option<String>)>,
    /// The downward API volume.
    pub podinfo: Option<Arc<Object>>,
    /// Which sources have content, and which objects outlive their deletion.
    pub made_of: MadeOf,
}

/// A selected object whose present version is not published, or is without one of its keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldBack {
    pub source: ObjectRef,
    /// The key, where it is that alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Why, and what to do. Without a byte of its values.
    pub reason: String,
}
