//! One source as it is known: what it holds, what it lacks, and what is kept of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::absent::Absent;
use super::{Role, Seen, Spec};
use crate::model::object::{Object, ObjectRef};
use crate::model::snapshot::HeldBack;

/// Of a selector.
const SELECTS_NOTHING: &str = "no object has these labels; what gets them is taken in at once";

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
    pub(super) objects: BTreeMap<ObjectRef, Arc<Object>>,
    /// Whether it was read once.
    pub(super) heard: bool,
    /// Whether it ever held a key: from then on it is not waited for, whatever its deletion means.
    pub(super) had_content: bool,
    /// Why it cannot be read at the moment.
    trouble: Option<Trouble>,
    /// What is wrong with it though it can be read.
    warning: Option<String>,
    /// What it holds though it is gone or has become empty.
    pub(super) kept: BTreeSet<ObjectRef>,
    /// What the generation that was found at start has of it, and what was not seen since.
    pub(super) absent: Absent,
    /// When it last reported something.
    pub at: Option<jiff::Timestamp>,
}

impl View {
    pub(super) fn new(spec: Spec) -> Self {
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
            let held =
                |source: &ObjectRef| HeldBack { source: source.clone(), key: None, reason: trouble.message.clone() };
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
        } else if self.spec.required && !self.had_content && self.is_missing() {
            let why = if self.objects.is_empty() { "does not exist" } else { "has no keys" };
            if let Some((_, reason)) = self.objects.values().find_map(|object| object.held().next()) {
                return Some(format!("{name}: {reason}"));
            }
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
            (None, false) if self.selects_nothing() => Some(SELECTS_NOTHING.to_owned()),
            (None, false) => self.waits_for().or_else(|| self.warning.clone()),
        }
    }

    /// Whether what it has is secret.
    #[must_use]
    pub fn has_secrets(&self) -> bool {
        self.objects.values().any(|object| object.secret)
    }

    /// Whether it is a selector, and no object has these labels.
    #[must_use]
    pub fn selects_nothing(&self) -> bool {
        self.heard && self.spec.role == Role::Selected && self.objects.is_empty() && !self.is_gone()
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

    /// Whether it is to be waited for. A directory that the main process reads may begin empty.
    fn is_missing(&self) -> bool {
        match self.spec.role {
            Role::Selected => false,
            Role::Observed { .. } => self.objects.is_empty(),
            Role::Named | Role::Template { .. } | Role::Envsubst { .. } | Role::PodInfo => self.lacks_content(),
        }
    }

    fn what_is_kept(&self) -> String {
        if let Role::Observed { path } = &self.spec.role {
            return format!(
                "{} is gone or empty, which counts as no change: the main process is not notified (--on-delete keep); \
                 create it again, or give --on-delete apply if that is meant",
                path.display()
            );
        }
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
    pub(super) fn take(&mut self, seen: Seen) -> bool {
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
            Seen::Fetched(object) => return self.replace(object),
            Seen::All(_) | Seen::Changed(_) | Seen::Gone(_) => {}
        }
        self.trouble = None;
        self.at = Some(jiff::Timestamp::now());
        let first = !std::mem::replace(&mut self.heard, true);
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
                    Seen::Trouble { .. } | Seen::Warning(_) | Seen::Healthy | Seen::Interrupted | Seen::Fetched(_) => {
                        return false;
                    }
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

    /// Takes another version of an object that is there; of the source itself it says nothing.
    fn replace(&mut self, object: Arc<Object>) -> bool {
        let Some(old) = self.objects.get_mut(&object.id) else { return false };
        let same = alike(&object, old);
        *old = object;
        self.had_content |= !self.lacks_content();
        !same
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

fn alike(new: &Object, old: &Object) -> bool {
    new.content() == old.content() && new.secret == old.secret
}
