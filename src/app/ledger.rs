//! The ledger: what each generation was made of, as far as it is needed later.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::content::Content;
use crate::model::digest::Digest;
use crate::model::journal::Journal;
use crate::model::object::{Object, ObjectRef};
use crate::model::snapshot::{HeldBack, Observed, Versions};
use crate::os::mask::Said;
use crate::render::{Drawn, Inputs};

/// What a generation was made of.
#[derive(Clone, Default)]
struct Ingredients {
    /// The selected objects that were taken.
    objects: Versions,
    /// The secrets that the main process may print while it has the generation. `None`: not known, as it was found at
    /// start and its inputs are gone.
    secrets: Option<Vec<Content>>,
    /// What the main process reads by itself, as it was then. `None`: as with `secrets`.
    observed: Option<Vec<Observed>>,
}

impl Ingredients {
    fn found(exists: bool) -> Arc<Self> {
        let observed = (!exists).then(Vec::new);
        Arc::new(Self { objects: Versions::default(), secrets: (!exists).then(Vec::new), observed })
    }
}

/// What the candidate, the published generation, the one that it replaced, and the last good one were made of.
pub(super) struct Ledger {
    staged: Ingredients,
    published: Arc<Ingredients>,
    before: Arc<Ingredients>,
    good: Arc<Ingredients>,
    /// What was rendered last.
    drawn: Option<Drawn>,
    /// Whether what the published generation has of the selected objects is to be read back, as it was found at start.
    unknown: bool,
}

impl Ledger {
    /// For the generations that a journal names.
    pub(super) fn found(journal: &Journal) -> Self {
        // The one before matters only while the main process has not taken the newer one.
        let before = journal.debt.is_some() && journal.from.is_some();
        Self {
            staged: Ingredients::default(),
            published: Ingredients::found(journal.current.is_some()),
            before: Ingredients::found(before),
            good: Ingredients::found(journal.last_good.is_some()),
            drawn: None,
            unknown: journal.current.is_some(),
        }
    }

    /// Inputs that led to a generation from before this start say what its secrets are.
    pub(super) fn observed(&mut self, inputs: &Inputs, digest: Digest, journal: &Journal) {
        let generations = [(&journal.current, &mut self.published), (&journal.last_good, &mut self.good)];
        for (generation, made_of) in generations {
            if made_of.secrets.is_none() && generation.as_ref().is_some_and(|found| found.digest == digest) {
                let made_of = Arc::make_mut(made_of);
                made_of.secrets = Some(inputs.secrets().collect());
                if generation.as_ref().is_some_and(|found| found.inputs() == digest) {
                    made_of.observed = Some(inputs.snapshot.observed.clone());
                }
            }
        }
    }

    /// A candidate is made of these inputs.
    pub(super) fn begun(&mut self, inputs: &Inputs) {
        self.staged.objects = Versions::of(&inputs.snapshot);
        self.staged.observed = Some(inputs.snapshot.observed.clone());
        // An object that is held back stays as it was last published.
        let earlier = self.published.objects.secret().flat_map(|object| object.data.values());
        self.staged.secrets = Some(inputs.secrets().chain(earlier.cloned()).collect());
    }

    /// The selected objects that are published.
    pub(super) fn objects(&self) -> Versions {
        self.published.objects.clone()
    }

    pub(super) fn is_unknown(&self) -> bool {
        self.unknown
    }

    pub(super) fn take_drawn(&mut self) -> Option<Drawn> {
        self.drawn.take()
    }

    pub(super) fn drawn(&mut self, drawn: Option<Drawn>) {
        self.drawn = drawn;
    }

    /// What the published generation has of the selected objects was read back.
    pub(super) fn read_back(&mut self, found: BTreeMap<ObjectRef, Arc<Object>>) {
        let secret = found.values().filter(|object| object.secret).flat_map(|object| object.data.values());
        self.staged.secrets.get_or_insert_default().extend(secret.cloned());
        Arc::make_mut(&mut self.published).objects = found.into();
        self.unknown = false;
    }

    /// The candidate does not have these objects: their last published version stays in their place.
    pub(super) fn held_back(&mut self, held_back: &[HeldBack]) {
        if held_back.is_empty() {
            return;
        }
        let published = self.published.objects.by_id();
        for HeldBack { source, .. } in held_back.iter().filter(|held| held.key.is_none()) {
            let previous = published.get(source).map(|object| Arc::clone(object));
            self.staged.objects.replace(source.clone(), previous);
        }
    }

    /// The candidate is current.
    pub(super) fn published(&mut self) {
        self.before = std::mem::replace(&mut self.published, Arc::new(std::mem::take(&mut self.staged)));
    }

    /// The last good generation is current again.
    pub(super) fn rolled_back(&mut self) {
        self.before = std::mem::replace(&mut self.published, self.good.clone());
        // It is not taken back.
        if self.published.observed.as_ref().is_none_or(|observed| !observed.is_empty()) {
            Arc::make_mut(&mut self.published).observed.clone_from(&self.before.observed);
        }
        self.unknown = self.good.objects.is_empty();
    }

    /// The current generation is the last good one.
    pub(super) fn confirmed(&mut self) {
        self.good = self.published.clone();
    }

    /// Whether a secret went into the last good generation; `None`: that is not known yet.
    pub(super) fn is_good_secret(&self) -> Option<bool> {
        self.good.secrets.as_ref().map(|secrets| !secrets.is_empty())
    }

    /// What the main process had by itself with the last good generation; `None`: that is not known yet.
    pub(super) fn good_observed(&self) -> Option<&[Observed]> {
        self.good.observed.as_deref()
    }

    /// What of the newest inputs the main process reads by itself and is not as it was last confirmed: a place each.
    pub(super) fn edited_in_place(&self, newest: &Inputs) -> Vec<String> {
        let mut places = Vec::new();
        for observed in &newest.snapshot.observed {
            let same = |known: &&Observed| known.object.id == observed.object.id;
            match self.good.observed.iter().flatten().find(same) {
                Some(known) => places.extend(observed.edited(known).map(|key| observed.place(key))),
                None => places.push(observed.path.display().to_string()),
            }
        }
        places
    }

    /// The secrets that others may have said: those of the newest inputs, and of the generations that the main process may
    /// have; `None` if those are not known.
    pub(super) fn secrets(&self, newest: Option<&Inputs>) -> Option<Vec<Content>> {
        let mut secrets: BTreeMap<_, _> =
            newest.into_iter().flat_map(Inputs::secrets).map(|secret| (secret.digest(), secret)).collect();
        let mut add = |more: &[Content]| secrets.extend(more.iter().map(|secret| (secret.digest(), secret.clone())));
        add(self.staged.secrets.as_deref().unwrap_or_default());
        for made_of in [&self.before, &self.published, &self.good] {
            add(made_of.secrets.as_ref()?);
        }
        Some(secrets.into_values().collect())
    }
}

/// What others said as a line for the log; `None` if a secret cannot be read.
pub(super) fn masked(said: &Said, secrets: &[Content]) -> Option<String> {
    let mut text = said.masking();
    // One at a time: together they may be larger than the memory that there is.
    for secret in secrets {
        text.cover(&secret.read().ok()?);
    }
    Some(text.line())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::model::object::Kind;
    use crate::model::snapshot::{Snapshot, Taken};
    use crate::render::Settings;

    fn object(value: &'static [u8]) -> Arc<Object> {
        let id = ObjectRef { kind: Kind::ConfigMap, namespace: "ns".into(), name: "web".into() };
        let data = [("k".to_owned(), Bytes::from_static(value).into())].into();
        Arc::new(Object::new(id, String::new(), 0, false, data))
    }

    #[test]
    fn object_that_lacks_a_key_is_published_and_one_that_is_held_back_is_as_before() {
        let inputs = |object| {
            let objects = [Taken { object, selected: true }].into_iter().collect();
            let settings = Arc::new(Settings::plain(9, false));
            Inputs { snapshot: Snapshot { objects, ..Snapshot::default() }, settings }
        };
        let (old, new) = (object(b"old"), object(b"new"));
        for (key, published) in [(None, &old), (Some("k".to_owned()), &new)] {
            let mut ledger = Ledger::found(&Journal::default());
            ledger.begun(&inputs(old.clone()));
            ledger.published();
            ledger.begun(&inputs(new.clone()));
            ledger.held_back(&[HeldBack { source: new.id.clone(), key, reason: String::new() }]);
            ledger.published();
            assert_eq!(ledger.objects().by_id()[&new.id], published);
        }
    }
}
