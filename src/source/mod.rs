//! The sources: what each of them holds, what it lacks, and the snapshot of them all.
//!
//! [`files`], [`kube`] and [`url`] report what they see; here it is decided what that means: whether a deletion is kept or
//! applied, whether a source that is missing is waited for, what comes before what in the merged view.

mod absent;
pub mod feed;
pub mod files;
pub mod kube;
#[cfg(test)]
mod tests;
pub mod url;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

pub use self::absent::{Published, ReadBack};
pub use self::view::View;
use crate::model::made_of::MadeOf;
use crate::model::object::{Object, ObjectRef};
use crate::model::snapshot::{Objects, Observed, Snapshot, Taken};

/// What a source reports. Each message is about the source as a whole, so that the last one alone describes it.
#[derive(Clone, Debug)]
pub enum Seen {
    /// The complete content, replacing all that was known: what is not in it is gone.
    /// Sent after each list, and by a directory after each read that differs from the last.
    All(BTreeMap<ObjectRef, Arc<Object>>),
    /// One object was added or modified.
    Changed(Arc<Object>),
    /// One object, of which the source has nothing new, has another content by what its `.url` keys name.
    Fetched(Arc<Object>),
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

/// Waits until everything is to be read again; for ever, if that can come no more.
async fn changed(refresh: &mut tokio::sync::watch::Receiver<u64>) {
    if refresh.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
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
    /// A directory or file that the main process reads by itself.
    Observed { path: Arc<Path> },
    /// A file or directory of templates, rendered to DEST.
    Template {
        /// DEST of `--template SRC:DEST`.
        dest: Option<String>,
    },
    /// A file or directory in which variables are filled in, to DEST.
    Envsubst {
        /// DEST of `--envsubst SRC:DEST`.
        dest: Option<String>,
    },
    /// The downward API volume.
    PodInfo,
}

/// What the flags say of one source.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its name in logs, metrics and `/status`: `configmap/NS/NAME`, `dir/NAME`, `url/NAME`, `template/PATH`, …
    pub name: String,
    pub role: Role,
    /// Whether its deletion, or that of an object in it, is applied; else its last content stays.
    pub apply_deletes: bool,
    /// Whether it is waited for when it does not exist.
    pub required: bool,
    /// Whether it may be empty; else emptiness is taken for absence.
    pub may_be_empty: bool,
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
        let edited = match &update.seen {
            Seen::Changed(object) | Seen::Fetched(object) => Some(object.id.clone()),
            _ => None,
        };
        let may_move = matches!(update.seen, Seen::All(_) | Seen::Changed(_) | Seen::Gone(_));
        let old = edited.as_ref().and_then(|id| view.objects.get(id)).cloned();
        let changed = view.take(update.seen);
        let new = edited.as_ref().and_then(|id| view.objects.get(id));
        match (&mut self.objects, old.zip(new)) {
            // It stays in its place, and so do the thousands beside it.
            (Some(objects), Some((old, new))) if old.created == new.created => {
                if old.secret != new.secret || old.marks() != new.marks() || !old.data.keys().eq(new.data.keys()) {
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
                Role::Observed { path } => {
                    let observed = |object: &Arc<Object>| Observed { object: object.clone(), path: path.clone() };
                    snapshot.observed.extend(view.objects.values().map(observed));
                }
                Role::Template { dest } => {
                    snapshot.templates.extend(view.objects.values().map(|object| (object.clone(), dest.clone())));
                }
                Role::Envsubst { dest } => {
                    snapshot.envsubst.extend(view.objects.values().map(|object| (object.clone(), dest.clone())));
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
                Role::Selected
                | Role::Observed { .. }
                | Role::Template { .. }
                | Role::Envsubst { .. }
                | Role::PodInfo => {}
            }
        }
        objects.into_iter().collect()
    }
}
