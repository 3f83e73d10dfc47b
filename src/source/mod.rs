//! The sources: what each of them holds, what it lacks, and the snapshot of them all.
//!
//! [`files`] and [`kube`] report what they see; here it is decided what that means: whether a deletion is kept or
//! applied, whether a source that is missing is waited for, what comes before what in the merged view.

mod absent;
pub mod feed;
pub mod files;
pub mod kube;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use self::absent::Absent;
pub use self::absent::{Published, ReadBack};
use crate::model::made_of::MadeOf;
use crate::model::object::{Object, ObjectRef};
use crate::model::snapshot::{HeldBack, Objects, Snapshot, Taken};

/// What a source reports. Each message is about the source as a whole, so that the last one alone describes it.
#[derive(Clone, Debug)]
pub enum Seen {
    /// The complete content, replacing all that was known: what is not in it is gone.
    /// Sent after each list, and by a directory after each read that differs from the last.
    All(BTreeMap<ObjectRef, Arc<Object>>),
    /// One object was added or modified.
    Changed(Arc<Object>),
    /// One object was deleted.
    Gone(ObjectRef),
    /// The source cannot be read at the moment; what was known stays. The message names the cause and the remedy,
    /// and holds no secret. Sent once for each distinct trouble, not for each attempt.
    Trouble {
        /// The cause and the remedy.
        message: String,
        /// Whether it is a permission that is missing.
        forbidden: bool,
        /// What is not taken in, where all else is.
        held_back: Vec<ObjectRef>,
    },
    /// The source can be read, but what is wrong with its set-up will show later. Sent once.
    Warning(String),
    /// The source is readable again (or for the first time); follows or precedes `All`.
    Healthy,
    /// A watch was cut. Where the next one begins nothing is lost; it says for itself when that is not soon.
    Interrupted,
}

/// A message of one source to the app. `source` is the index that the app gave to the source.
#[derive(Clone, Debug)]
pub struct Update {
    pub source: usize,
    pub seen: Seen,
}

/// What a source is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// One object or one directory, by name.
    Named,
    /// Whatever a selector selects.
    Selected,
    /// A file or directory of templates, rendered to DEST.
    Template {
        /// DEST of `--template SRC:DEST`.
        dest: Option<String>,
    },
    /// The downward API volume.
    PodInfo,
}

/// What the flags say of one source.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its name in logs, metrics and `/status`: `configmap/NS/NAME`, `dir/NAME`, `template/PATH`, …
    pub name: String,
    pub role: Role,
    /// Whether its deletion, or that of an object in it, is applied; else its last content stays.
    pub apply_deletes: bool,
    /// Whether it is waited for when it does not exist.
    pub required: bool,
    /// Whether it may be empty; else emptiness is taken for absence.
    pub may_be_empty: bool,
}

/// Why a source cannot be read.
#[derive(Clone, Debug)]
struct Trouble {
    message: String,
    forbidden: bool,
    held_back: Vec<ObjectRef>,
}

/// One source, as it is known.
#[derive(Clone, Debug)]
pub struct View {
    /// What the flags say of it.
    pub spec: Spec,
    objects: BTreeMap<ObjectRef, Arc<Object>>,
    /// Whether it was read once.
    heard: bool,
    /// Whether it ever held a key: from then on it is not waited for, whatever its deletion means.
    had_content: bool,
    /// Why it cannot be read at the moment.
    trouble: Option<Trouble>,
    /// What is wrong with it though it can be read.
    warning: Option<String>,
    /// What it holds though it is gone or has become empty.
    kept: BTreeSet<ObjectRef>,
    /// What the generation that was found at start has of it, and what was not seen since.
    absent: Absent,
    /// When it last reported something.
    pub at: Option<jiff::Timestamp>,
}

impl View {
    fn new(spec: Spec) -> Self {
        Self {
            spec,
            objects: BTreeMap::new(),
            heard: false,
            had_content: false,
            trouble: None,
            warning: None,
            kept: BTreeSet::new(),
            absent: Absent::default(),
            at: None,
        }
    }

    /// The `resourceVersion` of a named object.
    #[must_use]
    pub fn resource_version(&self) -> Option<&str> {
        let object = self.objects.values().next().filter(|_| self.spec.role == Role::Named)?;
        Some(object.resource_version.as_str()).filter(|version| !version.is_empty())
    }

    /// Whether it can be read, as far as is known.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.trouble.is_none()
    }

    /// Whether it cannot be read for lack of a permission.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        self.trouble.as_ref().is_some_and(|trouble| trouble.forbidden)
    }

    /// What of it is not taken in, where all else is.
    pub fn held_back(&self) -> impl Iterator<Item = HeldBack> {
        self.trouble.iter().flat_map(|trouble| {
            let held = |source: &ObjectRef| HeldBack { source: source.clone(), reason: trouble.message.clone() };
            trouble.held_back.iter().map(held)
        })
    }

    /// Why nothing can be rendered yet; `None` when this source is complete.
    #[must_use]
    pub fn waits_for(&self) -> Option<String> {
        let name = &self.spec.name;
        if let (false, Some(trouble)) = (self.heard, &self.trouble) {
            // A message may begin with the name already.
            let message = &trouble.message;
            Some(if message.starts_with(name) { message.clone() } else { format!("{name}: {message}") })
        } else if !self.heard {
            Some(format!("{name}: it has not been read yet"))
        } else if let Some(gone) = self.what_is_gone() {
            Some(format!("{name}: {gone}"))
        } else if self.spec.required && !self.had_content && self.spec.role != Role::Selected && self.lacks_content() {
            let why = if self.objects.is_empty() { "does not exist" } else { "has no keys" };
            Some(format!("{name}: it {why}; create it, or start without it by --optional"))
        } else {
            None
        }
    }

    /// Whether it was read, or could not be: before that there is nothing to say of it.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.heard || self.trouble.is_some()
    }

    /// What `/status` says of it.
    #[must_use]
    pub fn message(&self) -> Option<String> {
        match (&self.trouble, self.is_kept()) {
            (Some(trouble), _) => Some(trouble.message.clone()),
            (None, true) => Some(self.what_is_kept()),
            (None, false) => self.waits_for().or_else(|| self.warning.clone()),
        }
    }

    /// Whether it is mounted so that it never changes, or the like: what is wrong though it can be read.
    #[must_use]
    pub fn has_warning(&self) -> bool {
        self.warning.is_some()
    }

    /// Whether something of it is kept though it is gone or has become empty.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        !self.kept.is_empty()
    }

    /// Whether something of it is gone that what is published was made of, and whose values are not known.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.heard && !self.absent.parts.is_empty()
    }

    fn what_is_kept(&self) -> String {
        let remedy = "its last content is kept (--on-delete keep), but a new Pod will not have it: create it again";
        format!("{} gone or empty; {remedy}", self.which(self.kept.first(), self.kept.len()))
    }

    fn what_is_gone(&self) -> Option<String> {
        let parts = &self.absent.parts;
        let which = self.is_gone().then(|| self.which(parts.keys().next(), parts.len()))?;
        Some(format!(
            "{which} gone or empty since before this start, and what is published was made of it: that stays, and nothing \
             newer is published; create it again, or go on without it by `trimtab retry` or --on-delete apply"
        ))
    }

    fn which(&self, first: Option<&ObjectRef>, count: usize) -> String {
        match (&self.spec.role, first) {
            (Role::Selected, Some(first)) if count > 1 => format!("{first} and {} more are", count - 1),
            (Role::Selected, Some(first)) => format!("{first} is"),
            _ => "it is".to_owned(),
        }
    }

    fn lacks_content(&self) -> bool {
        !self.spec.may_be_empty && self.objects.values().all(|object| object.data.is_empty()) || self.objects.is_empty()
    }

    /// Takes in what the source saw; says whether its content changed.
    fn take(&mut self, seen: Seen) -> bool {
        match seen {
            Seen::Trouble { message, forbidden, held_back } => {
                self.trouble = Some(Trouble { message, forbidden, held_back });
                return false;
            }
            Seen::Healthy => {
                self.trouble = None;
                return false;
            }
            Seen::Warning(message) => {
                self.warning = Some(message);
                return false;
            }
            Seen::Interrupted => return false,
            Seen::All(_) | Seen::Changed(_) | Seen::Gone(_) => {}
        }
        self.trouble = None;
        self.at = Some(jiff::Timestamp::now());
        let first = !std::mem::replace(&mut self.heard, true);
        let alike = |new: &Object, old: &Object| new.content() == old.content() && new.secret == old.secret;
        let same = match seen {
            Seen::Changed(object) if self.spec.apply_deletes => {
                let old = self.objects.insert(object.id.clone(), object.clone());
                old.is_some_and(|old| alike(&object, &old))
            }
            Seen::Gone(id) if self.spec.apply_deletes => self.objects.remove(&id).is_none(),
            seen => {
                let mut next = match seen {
                    Seen::All(objects) => {
                        self.kept.clear();
                        objects
                    }
                    Seen::Changed(object) => {
                        self.kept.remove(&object.id);
                        let mut next = self.objects.clone();
                        next.insert(object.id.clone(), object);
                        next
                    }
                    Seen::Gone(id) => {
                        let mut next = self.objects.clone();
                        next.remove(&id);
                        next
                    }
                    Seen::Trouble { .. } | Seen::Warning(_) | Seen::Healthy | Seen::Interrupted => return false,
                };
                if !self.spec.apply_deletes {
                    let kept = self.keep(&mut next);
                    self.kept.extend(kept);
                }
                let same = next.len() == self.objects.len()
                    && next.iter().zip(&self.objects).all(|((id, new), (old_id, old))| id == old_id && alike(new, old));
                self.objects = next;
                same
            }
        };
        self.had_content |= !self.lacks_content();
        self.absent.seen(&self.objects, self.spec.may_be_empty);
        first || !same
    }

    /// Puts back what is gone or has become empty, and returns which that was.
    fn keep(&self, next: &mut BTreeMap<ObjectRef, Arc<Object>>) -> Vec<ObjectRef> {
        let mut kept = Vec::new();
        for (id, old) in &self.objects {
            let is_empty = |object: &Arc<Object>| object.data.is_empty() && !self.spec.may_be_empty;
            if !is_empty(old) && next.get(id).is_none_or(is_empty) {
                next.insert(id.clone(), old.clone());
                kept.push(id.clone());
            }
        }
        kept
    }
}

/// All sources, in the order of the merged view.
#[derive(Clone, Debug)]
pub struct Sources {
    views: Vec<View>,
    /// What they hold, in the order of the merged view; `None` if that is to be worked out.
    objects: Option<Objects>,
    /// As `objects`.
    made_of: Option<MadeOf>,
    published: Published,
    /// Whether each key is a file as it is.
    plain: bool,
}

impl Sources {
    /// Sources of which nothing is known yet. [`Update::source`] is an index into `specs`.
    #[must_use]
    pub fn new(specs: impl IntoIterator<Item = Spec>) -> Self {
        Self {
            views: specs.into_iter().map(View::new).collect(),
            objects: None,
            made_of: None,
            published: Published::Unknown,
            plain: false,
        }
    }

    /// Says what is published before they are first read; `plain`: whether each key is a file as it is.
    #[must_use]
    pub fn on_top_of(mut self, published: Published, plain: bool) -> Self {
        if let Published::MadeOf(made_of) = &published {
            for view in self.views.iter_mut().filter(|view| !view.spec.apply_deletes) {
                view.absent.parts = made_of.parts(&view.spec.name);
            }
        }
        Self { published, plain, ..self }
    }

    /// Each source as it is known.
    #[must_use]
    pub fn views(&self) -> &[View] {
        &self.views
    }

    /// Takes in what a source saw; says whether the snapshot changed.
    pub fn take(&mut self, update: Update) -> bool {
        let Some(view) = self.views.get_mut(update.source) else { return false };
        let edited = if let Seen::Changed(object) = &update.seen { Some(object.id.clone()) } else { None };
        let may_move = matches!(update.seen, Seen::All(_) | Seen::Changed(_) | Seen::Gone(_));
        let old = edited.as_ref().and_then(|id| view.objects.get(id)).cloned();
        let changed = view.take(update.seen);
        let new = edited.as_ref().and_then(|id| view.objects.get(id));
        match (&mut self.objects, old.zip(new)) {
            // It stays in its place, and so do the thousands beside it.
            (Some(objects), Some((old, new))) if old.created == new.created => {
                if old.secret != new.secret || !old.data.keys().eq(new.data.keys()) {
                    self.made_of = None;
                }
                objects.replace(&old, new);
            }
            _ if may_move => (self.objects, self.made_of) = (None, None),
            _ => {}
        }
        changed
    }

    /// What is waited for before anything can be rendered; empty when the snapshot is complete.
    #[must_use]
    pub fn waits_for(&self) -> Vec<String> {
        let has_content = |view: &View| view.heard && matches!(view.spec.role, Role::Named | Role::Selected);
        let another = self.views.iter().any(has_content);
        let is_left_out = |view: &View| {
            another
                && !view.spec.required
                && !view.heard
                && view.is_forbidden()
                && self.published.is_without(&view.spec.name)
        };
        self.views.iter().filter(|view| !is_left_out(view)).filter_map(View::waits_for).collect()
    }

    /// The snapshot. An object that comes in twice is taken once, by name before by label.
    #[must_use]
    pub fn snapshot(&mut self) -> Snapshot {
        let objects = self.objects.take().unwrap_or_else(|| self.in_order());
        let made_of = self.made_of.take().unwrap_or_else(|| self.made_of());
        let mut snapshot = Snapshot {
            objects: self.objects.insert(objects).clone(),
            made_of: self.made_of.insert(made_of).clone(),
            ..Snapshot::default()
        };
        for view in &self.views {
            match &view.spec.role {
                Role::Named | Role::Selected => {}
                Role::Template { dest } => {
                    snapshot.templates.extend(view.objects.values().map(|object| (object.clone(), dest.clone())));
                }
                Role::PodInfo => snapshot.podinfo = view.objects.values().next().cloned(),
            }
        }
        snapshot
    }

    fn in_order(&self) -> Objects {
        let named: BTreeSet<_> = self
            .views
            .iter()
            .filter(|view| view.spec.role == Role::Named)
            .flat_map(|view| view.objects.keys())
            .collect();
        let mut objects = Vec::new();
        let mut seen: BTreeSet<&ObjectRef> = BTreeSet::new();
        let mut selected_are_in = false;
        for view in &self.views {
            match &view.spec.role {
                Role::Named => {
                    for (id, object) in &view.objects {
                        if seen.insert(id) {
                            objects.push(Taken { object: object.clone(), selected: false });
                        }
                    }
                }
                // All selectors together: the oldest first, so that a younger object wins in the merged view.
                Role::Selected if !std::mem::replace(&mut selected_are_in, true) => {
                    let mut selected: Vec<_> = self
                        .views
                        .iter()
                        .filter(|view| view.spec.role == Role::Selected)
                        .flat_map(|view| view.objects.values())
                        .filter(|object| named.is_empty() || !named.contains(&object.id))
                        .map(|object| (object.created, object))
                        .collect();
                    // A single one is in order.
                    if self.views.iter().filter(|view| view.spec.role == Role::Selected).nth(1).is_some() {
                        selected.sort_by(|(_, one), (_, other)| one.id.cmp(&other.id));
                        selected.dedup_by(|(_, one), (_, other)| one.id == other.id);
                    }
                    selected.sort_by_key(|(created, _)| *created);
                    let taken = |(_, object): (i64, &Arc<Object>)| Taken { object: object.clone(), selected: true };
                    objects.extend(selected.into_iter().map(taken));
                }
                Role::Selected | Role::Template { .. } | Role::PodInfo => {}
            }
        }
        objects.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::model::object::Kind;
    use crate::model::snapshot::Versions;

    fn spec(role: Role) -> Spec {
        Spec { name: "x".into(), apply_deletes: role == Role::Selected, role, required: true, may_be_empty: false }
    }

    fn object(name: &str, created: i64, keys: &[(&str, &str)]) -> Arc<Object> {
        let id = ObjectRef { kind: Kind::ConfigMap, namespace: "ns".into(), name: name.into() };
        let data = keys
            .iter()
            .map(|(key, value)| ((*key).to_owned(), Bytes::copy_from_slice(value.as_bytes()).into()))
            .collect();
        Arc::new(Object::new(id, "1".into(), created, false, data))
    }

    fn all(objects: &[Arc<Object>]) -> Seen {
        Seen::All(objects.iter().map(|object| (object.id.clone(), object.clone())).collect())
    }

    fn names(sources: &Sources) -> Vec<String> {
        sources.clone().snapshot().objects.iter().map(|taken| taken.object.id.name.to_string()).collect()
    }

    #[test]
    fn deleted_named_object_keeps_its_last_content() {
        let mut sources = Sources::new([spec(Role::Named)]);
        let web = object("web", 0, &[("a", "1")]);
        assert!(sources.take(Update { source: 0, seen: all(std::slice::from_ref(&web)) }));
        for seen in [Seen::Gone(web.id.clone()), all(&[]), all(&[object("web", 0, &[])])] {
            assert!(!sources.take(Update { source: 0, seen }), "absence is no change");
            assert_eq!(names(&sources), ["web"]);
            assert!(sources.views()[0].message().unwrap().contains("--on-delete"));
            assert!(sources.waits_for().is_empty());
        }
        assert!(sources.take(Update { source: 0, seen: all(&[object("web", 0, &[("a", "2")])]) }));
        assert_eq!(sources.views()[0].message(), None);
    }

    #[test]
    fn deleted_selected_object_is_gone() {
        let mut sources = Sources::new([spec(Role::Selected)]);
        sources.take(Update { source: 0, seen: all(&[object("a", 0, &[("k", "v")]), object("b", 0, &[("l", "v")])]) });
        let gone = object("a", 0, &[]).id.clone();
        assert!(sources.take(Update { source: 0, seen: Seen::Gone(gone) }));
        assert_eq!(names(&sources), ["b"]);
    }

    #[test]
    fn missing_source_is_waited_for_by_name_unless_optional() {
        let mut sources = Sources::new([spec(Role::Named)]);
        assert!(sources.waits_for()[0].contains("has not been read yet"));
        sources.take(Update {
            source: 0,
            seen: Seen::Trouble { message: "no route".into(), forbidden: false, held_back: Vec::new() },
        });
        assert!(sources.waits_for()[0].contains("no route"));
        sources.take(Update { source: 0, seen: all(&[]) });
        assert!(sources.waits_for()[0].contains("does not exist"));
        let mut optional = Sources::new([Spec { required: false, ..spec(Role::Named) }]);
        assert!(!optional.waits_for().is_empty(), "unreachable is not absent");
        assert!(optional.take(Update { source: 0, seen: all(&[]) }));
        assert!(optional.waits_for().is_empty());
    }

    #[test]
    fn a_warning_is_said_of_a_source_that_can_be_read() {
        let mut sources = Sources::new([spec(Role::Named)]);
        sources.take(Update { source: 0, seen: all(&[object("a", 0, &[("k", "v")])]) });
        for seen in [Seen::Warning("never updated".into()), Seen::Healthy] {
            assert!(!sources.take(Update { source: 0, seen }));
            let view = &sources.views()[0];
            assert!(view.is_up());
            assert_eq!(view.message().as_deref(), Some("never updated"));
        }
    }

    #[test]
    fn versions_of_named_objects_hold_nothing_of_the_snapshot() {
        for role in [Role::Named, Role::Selected] {
            let mut sources = Sources::new([spec(role.clone())]);
            sources.take(Update { source: 0, seen: all(&[object("a", 0, &[("k", "v")])]) });
            let snapshot = sources.snapshot();
            let versions = Versions::of(&snapshot);
            let object = Arc::downgrade(&snapshot.objects.iter().next().unwrap().object);
            drop((snapshot, sources));
            assert_eq!(object.upgrade().is_some(), role == Role::Selected);
            assert_eq!(versions.is_empty(), role == Role::Named);
        }
    }

    #[test]
    fn same_bytes_again_are_no_change() {
        let mut sources = Sources::new([spec(Role::Named)]);
        sources.take(Update { source: 0, seen: all(&[object("a", 0, &[("k", "v")])]) });
        assert!(!sources.take(Update { source: 0, seen: all(&[object("a", 0, &[("k", "v")])]) }));
        assert!(!sources.take(Update { source: 0, seen: Seen::Changed(object("a", 0, &[("k", "v")])) }));
        assert!(sources.take(Update { source: 0, seen: Seen::Changed(object("a", 0, &[("k", "w")])) }));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_snapshot_is_the_same_whatever_came_before_it(
            steps in proptest::collection::vec((0..3usize, 0..4u8, "[a-d]", 0..2i64, 0..3u8), 0..40),
        ) {
            let mut sources = Sources::new([spec(Role::Named), spec(Role::Selected), spec(Role::Selected)]);
            for (source, what, name, created, value) in steps {
                let data = [("k", "v"), ("k", "w"), ("l", "v")];
                let new = object(&name, created, &data[usize::from(value)..][..1]);
                let seen = match what {
                    0 => all(&[new, object("c", 0, &[("k", "v")])]),
                    1 => Seen::Gone(new.id.clone()),
                    _ => Seen::Changed(new),
                };
                sources.take(Update { source, seen });
                let objects = sources.snapshot().objects;
                let afresh = sources.in_order();
                let same = objects.iter().zip(afresh.iter()).all(|(one, other)| {
                    Arc::ptr_eq(&one.object, &other.object) && one.selected == other.selected
                });
                prop_assert!(same && objects.len() == afresh.len());
                let contents = |objects: &Objects| objects.groups().map(|group| group.content).collect::<Vec<_>>();
                prop_assert_eq!(contents(&objects), contents(&afresh));
                prop_assert_eq!(sources.snapshot().made_of, sources.made_of());
            }
        }
    }

    #[test]
    fn selected_objects_come_by_age_and_named_ones_once() {
        let mut sources = Sources::new([spec(Role::Named), spec(Role::Selected), spec(Role::Selected)]);
        sources.take(Update { source: 0, seen: all(&[object("both", 5, &[("k", "v")])]) });
        sources.take(Update { source: 2, seen: all(&[object("old", 1, &[("k", "v")])]) });
        let selected = [object("both", 5, &[("k", "v")]), object("young", 9, &[("k", "v")]), object("old", 1, &[])];
        sources.take(Update { source: 1, seen: all(&selected) });
        assert_eq!(names(&sources), ["both", "old", "young"]);
    }
}
