//! What a restart must not take away: objects that the published generation was made of, and that are gone.
//!
//! While the program runs, a view has their last content. After a start it is read back from the output, where each key
//! is a file; where templates made the files, the published generation stays until the object is back, or somebody asks.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Role, Sources, View};
use crate::model::journal::Generation;
use crate::model::made_of::{MadeOf, Part, Parts};
use crate::model::object::{Object, ObjectRef};

/// What is published before the sources are first read.
#[derive(Clone, Debug)]
pub enum Published {
    Nothing,
    /// A generation of which it is not known what it was made of.
    Unknown,
    MadeOf(MadeOf),
}

impl Published {
    /// What this generation was made of; `None`: there is none.
    #[must_use]
    pub fn of(current: Option<&Generation>) -> Self {
        match current {
            None => Self::Nothing,
            // Nothing of it is the sources'.
            Some(current) if current.is_fallback() => Self::Nothing,
            Some(current) => current.made_of.clone().map_or(Self::Unknown, Self::MadeOf),
        }
    }

    /// Whether it is known to have nothing of a source, so that its absence takes nothing away.
    pub(super) fn is_without(&self, source: &str) -> bool {
        match self {
            Self::Nothing => true,
            Self::Unknown => false,
            Self::MadeOf(made_of) => !made_of.has(source),
        }
    }
}

/// Objects with what was published of them; `None` where nothing could be read back.
pub type ReadBack = BTreeMap<ObjectRef, Option<Arc<Object>>>;

/// What the published generation has of a source, and what was not seen since the start.
#[derive(Clone, Debug, Default)]
pub(super) struct Absent {
    pub parts: Parts,
    /// Whether it is being read back, or was.
    asked: bool,
    /// Whether some of it cannot be read back.
    lost: bool,
}

impl Absent {
    /// What has content is there.
    pub fn seen(&mut self, objects: &BTreeMap<ObjectRef, Arc<Object>>, may_be_empty: bool) {
        let is_there = |id: &ObjectRef| objects.get(id).is_some_and(|object| may_be_empty || !object.data.is_empty());
        self.parts.retain(|id, _| !is_there(id));
    }
}

impl View {
    /// Whether it holds up what is newer until somebody does something about it.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.is_gone() && self.absent.lost
    }

    fn restore(&mut self, read_back: &ReadBack) -> bool {
        let mut restored = false;
        for (id, object) in read_back {
            let Some(part) = self.absent.parts.get(id) else { continue };
            let is_whole = |object: &&Arc<Object>| part.keys.iter().all(|key| object.data.contains_key(key));
            if let Some(object) = object.as_ref().filter(is_whole) {
                self.absent.parts.remove(id);
                self.objects.insert(id.clone(), object.clone());
                self.kept.insert(id.clone());
                self.had_content = true;
                restored = true;
            } else {
                self.absent.lost = true;
            }
        }
        restored
    }
}

impl Sources {
    /// What is gone and is to be read back; each is asked for once.
    pub fn absent(&mut self) -> Parts {
        let mut absent = Parts::new();
        for view in self.views.iter_mut().filter(|view| view.is_gone() && !view.absent.asked) {
            view.absent.asked = true;
            let has_files = |part: &Part| self.plain && !part.keys.is_empty();
            view.absent.lost = !view.absent.parts.values().all(has_files);
            let parts = view.absent.parts.iter().filter(|(_, part)| has_files(part));
            absent.extend(parts.map(|(id, part)| (id.clone(), part.clone())));
        }
        absent
    }

    /// Keeps what was read back, unless it has come back meanwhile; says of which sources.
    pub fn restore(&mut self, read_back: &ReadBack) -> Vec<usize> {
        let views = self.views.iter_mut().enumerate();
        let restored: Vec<_> = views.filter_map(|(index, view)| view.restore(read_back).then_some(index)).collect();
        if !restored.is_empty() {
            (self.objects, self.made_of) = (None, None);
        }
        restored
    }

    /// Goes on without what is gone; says of which sources.
    pub fn let_go(&mut self) -> Vec<usize> {
        let lost = self.views.iter_mut().enumerate().filter(|(_, view)| view.is_lost());
        let let_go = lost.map(|(index, view)| {
            view.absent.parts.clear();
            index
        });
        let_go.collect()
    }

    /// What the snapshot is made of.
    pub(super) fn made_of(&self) -> MadeOf {
        MadeOf::new(self.views.iter().filter_map(|view| {
            // What is not copied cannot be read back.
            let plain = self.plain && !matches!(view.spec.role, Role::Observed { .. });
            let part = |object: &Object| (object.id.clone(), Part::of(object, plain));
            let is_source = matches!(view.spec.role, Role::Named | Role::Selected | Role::Observed { .. });
            let mut full = view.objects.values().filter(|object| is_source && !object.data.is_empty()).peekable();
            full.peek()?;
            let parts = if view.spec.apply_deletes { Parts::new() } else { full.map(|object| part(object)).collect() };
            Some((view.spec.name.clone(), parts))
        }))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::model::object::Kind;
    use crate::source::{Seen, Spec, Update};

    fn spec(name: &str, role: Role) -> Spec {
        Spec { name: name.into(), role, apply_deletes: false, required: false, may_be_empty: false }
    }

    fn object(name: &str, value: &str) -> Arc<Object> {
        let id = ObjectRef { kind: Kind::ConfigMap, namespace: "ns".into(), name: name.into() };
        let value = Bytes::copy_from_slice(value.as_bytes());
        Arc::new(Object::new(id, "1".into(), 7, false, BTreeMap::from([("k".to_owned(), value.into())])))
    }

    fn list(sources: &mut Sources, source: usize, objects: &[Arc<Object>]) {
        let objects = objects.iter().map(|object| (object.id.clone(), object.clone())).collect();
        sources.take(Update { source, seen: Seen::All(objects) });
    }

    fn specs() -> [Spec; 2] {
        [spec("configmap/ns/web", Role::Named), spec("app=web", Role::Selected)]
    }

    /// What is published is made of `web`, and of `one` and `two` by their label.
    fn made_of(plain: bool) -> MadeOf {
        let mut sources = Sources::new(specs()).on_top_of(Published::Nothing, plain);
        list(&mut sources, 0, &[object("web", "1")]);
        list(&mut sources, 1, &[object("one", "1"), object("two", "1")]);
        sources.snapshot().made_of
    }

    fn started_again(plain: bool) -> Sources {
        Sources::new(specs()).on_top_of(Published::MadeOf(made_of(plain)), plain)
    }

    fn names(sources: &mut Sources) -> Vec<String> {
        let name = |taken: &crate::model::snapshot::Taken| taken.object.id.name.to_string();
        sources.snapshot().objects.iter().map(name).collect()
    }

    #[test]
    fn what_is_gone_after_a_start_is_read_back_and_kept() {
        let mut sources = started_again(true);
        list(&mut sources, 0, &[]);
        list(&mut sources, 1, &[object("two", "2")]);
        assert_eq!(sources.waits_for().len(), 2, "it is not published away");
        let absent = sources.absent();
        assert_eq!(absent.keys().map(|id| &*id.name).collect::<Vec<_>>(), ["one", "web"]);
        assert!(absent.values().all(|part| (part.created, &part.keys[..]) == (7, &["k".to_owned()])));
        assert!(sources.absent().is_empty(), "asked for twice");

        // One of them has come back meanwhile.
        list(&mut sources, 0, &[object("web", "2")]);
        let read = absent.into_keys().map(|id| (id.clone(), Some(object(&id.name, "1")))).collect();
        assert_eq!(sources.restore(&read), [1]);
        assert!(sources.waits_for().is_empty());
        assert_eq!(names(&mut sources), ["web", "one", "two"]);
        assert!(sources.views()[1].is_kept() && !sources.views()[0].is_kept());
        assert!(sources.views()[1].message().unwrap().contains("configmap/ns/one is gone or empty"));
        assert_eq!(sources.snapshot().made_of, made_of(true), "the next start knows it, too");
    }

    #[test]
    fn what_cannot_be_read_back_is_waited_for_until_it_is_back_or_somebody_asks() {
        for plain in [false, true] {
            let gone = || {
                let mut sources = started_again(plain);
                list(&mut sources, 0, &[]);
                list(&mut sources, 1, &[object("one", "1"), object("two", "1")]);
                let read = sources.absent().into_keys().map(|id| (id, None)).collect::<ReadBack>();
                assert_eq!(read.len(), usize::from(plain), "templates made the files");
                assert!(sources.restore(&read).is_empty());
                let waits_for = sources.waits_for();
                assert!(waits_for[0].contains("configmap/ns/web") && waits_for[0].contains("trimtab retry"));
                assert!(sources.views()[0].is_gone() && sources.views()[0].is_lost());
                sources
            };
            let mut back = gone();
            list(&mut back, 0, &[object("web", "2")]);
            assert!(back.waits_for().is_empty() && !back.views()[0].is_gone());
            let mut asked = gone();
            assert_eq!(asked.let_go(), [0]);
            assert!(asked.waits_for().is_empty() && asked.views()[0].message().is_none());
            assert_eq!(names(&mut asked), ["one", "two"]);
        }
    }

    #[test]
    fn what_flags_do_not_name_any_more_and_what_they_apply_is_not_waited_for() {
        for change in [|spec: &mut Spec| spec.name.push('x'), |spec: &mut Spec| spec.apply_deletes = true] {
            let mut specs = specs();
            specs.iter_mut().for_each(change);
            let mut sources = Sources::new(specs).on_top_of(Published::MadeOf(made_of(true)), true);
            list(&mut sources, 0, &[]);
            list(&mut sources, 1, &[object("two", "1")]);
            assert!(sources.waits_for().is_empty() && sources.absent().is_empty());
        }
    }

    #[test]
    fn forbidden_optional_source_is_left_out_where_what_is_published_has_nothing_of_it() {
        let forbidden = || Seen::Trouble { message: "forbidden (403)".into(), forbidden: true, held_back: Vec::new() };
        let specs = || [spec("configmap/ns/web", Role::Named), spec("configmap/ns/extra", Role::Named)];
        let published =
            [(Published::Nothing, true), (Published::Unknown, false), (Published::MadeOf(made_of(true)), true)];
        for (published, left_out) in published {
            let mut sources = Sources::new(specs()).on_top_of(published, true);
            list(&mut sources, 0, &[object("web", "1")]);
            sources.take(Update { source: 1, seen: forbidden() });
            assert_eq!(sources.waits_for().is_empty(), left_out);
        }
        let mut sources = Sources::new(specs()).on_top_of(Published::MadeOf(made_of(true)), true);
        list(&mut sources, 1, &[object("extra", "1")]);
        sources.take(Update { source: 0, seen: forbidden() });
        assert_eq!(sources.waits_for().len(), 1, "what is published has it");
    }
}
