//! What the receiver has of a source, by size and version alone, and what the limit of `--max-size` leaves no room for.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::failure::Failure;
use crate::model::object::{Object, ObjectRef};
use crate::source::Seen;

/// How many objects that are held back are named.
const NAMED: usize = 3;

#[derive(Clone, Debug)]
pub(super) struct Holdings {
    /// In bytes.
    max_size: u64,
    held: BTreeMap<ObjectRef, Held>,
    /// The size of all that is held, in bytes.
    total: u64,
    /// What does not fit in as it is now, and its size in bytes. An earlier version of it may be held.
    too_large: BTreeMap<ObjectRef, u64>,
}

/// What the receiver has of an object.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// In bytes.
    size: u64,
    version: Option<u64>,
}

impl Held {
    fn of(object: &Object) -> Self {
        Self { size: object.size(), version: object.resource_version.parse().ok() }
    }
}

/// A list as it comes in: all of it but what adds most, where there is too much.
#[derive(Default)]
pub(super) struct Intake {
    all: BTreeMap<ObjectRef, Arc<Object>>,
    /// What these add to what is held, in bytes; less than nothing where they shrank.
    added: i64,
    too_large: BTreeMap<ObjectRef, u64>,
}

/// Whether a resourceVersion is older than another one. They can be compared where they are numbers.
pub(super) fn is_before(version: &str, other: &str) -> bool {
    matches!((version.parse::<u64>(), other.parse::<u64>()), (Ok(version), Ok(other)) if version < other)
}

impl Intake {
    /// What is held has its room for as long as it is not known to be gone.
    pub(super) fn add(&mut self, object: Object, holdings: &Holdings) {
        self.added += holdings.added(&object);
        self.all.insert(object.id.clone(), Arc::new(object));
        let room = holdings.max_size.saturating_sub(holdings.total);
        while self.added > 0 && self.added.unsigned_abs() > room {
            let Some(largest) = self.all.values().max_by_key(|object| holdings.added(object)).cloned() else { return };
            self.added -= holdings.added(&largest);
            self.all.remove(&largest.id);
            self.too_large.insert(largest.id.clone(), largest.size());
        }
    }

    /// Why it says nothing of an object that is there: it is too large, and was never held.
    pub(super) fn absent(&self, holdings: &Holdings) -> Option<Failure> {
        let known = self.too_large.keys().all(|id| holdings.held.contains_key(id));
        if known { None } else { excess(&self.too_large, holdings.max_size) }
    }
}

impl Holdings {
    pub(super) fn new(max_size: u64) -> Self {
        Self { max_size, held: BTreeMap::new(), total: 0, too_large: BTreeMap::new() }
    }

    fn size_of(&self, id: &ObjectRef) -> u64 {
        self.held.get(id).map_or(0, |held| held.size)
    }

    /// What it adds to what is held, in bytes. Objects have a few MiB at most.
    fn added(&self, object: &Object) -> i64 {
        object.size().cast_signed() - self.size_of(&object.id).cast_signed()
    }

    /// What a list says to the receiver, and what that has afterwards. Where an earlier version is to stay of what is too
    /// large, each difference is said, as a list without it would take it away.
    pub(super) fn after(&self, intake: Intake) -> (Vec<Seen>, Self) {
        let Intake { all, too_large, .. } = intake;
        let mut held: BTreeMap<_, _> = all.iter().map(|(id, object)| (id.clone(), Held::of(object))).collect();
        let kept = too_large.keys().filter_map(|id| Some((id.clone(), *self.held.get(id)?)));
        let kept: BTreeMap<_, _> = kept.collect();
        let news = if kept.is_empty() {
            vec![Seen::All(all)]
        } else {
            let is_gone = |id: &&ObjectRef| !all.contains_key(*id) && !kept.contains_key(*id);
            let mut news: Vec<_> = self.held.keys().filter(is_gone).map(|id| Seen::Gone(id.clone())).collect();
            let is_new = |object: &Arc<Object>| {
                let (old, new) = (self.held.get(&object.id), Held::of(object));
                new.version.is_none() || old.is_none_or(|old| old.version != new.version)
            };
            news.extend(all.into_values().filter(is_new).map(Seen::Changed));
            news
        };
        held.extend(kept);
        let total = held.values().map(|held| held.size).sum();
        (news, Self { max_size: self.max_size, held, total, too_large })
    }

    /// Takes in another version; whether it fits in. If not, the earlier one stays.
    pub(super) fn change(&mut self, object: &Object) -> bool {
        let total = self.total - self.size_of(&object.id) + object.size();
        if total > self.max_size {
            self.too_large.insert(object.id.clone(), object.size());
            return false;
        }
        self.too_large.remove(&object.id);
        self.held.insert(object.id.clone(), Held::of(object));
        self.total = total;
        true
    }

    pub(super) fn remove(&mut self, id: &ObjectRef) {
        self.total -= self.held.remove(id).map_or(0, |held| held.size);
        self.too_large.remove(id);
    }

    /// Whether something that did not fit in would now. A list takes in one of them at least, as all that is held is there.
    pub(super) fn has_room(&self) -> bool {
        self.too_large.iter().any(|(id, size)| self.total - self.size_of(id) + size <= self.max_size)
    }

    /// What is held back.
    pub(super) fn too_large(&self) -> Vec<ObjectRef> {
        self.too_large.keys().cloned().collect()
    }

    /// Why some of it is held back.
    pub(super) fn excess(&self) -> Option<Failure> {
        excess(&self.too_large, self.max_size)
    }
}

fn excess(too_large: &BTreeMap<ObjectRef, u64>, limit: u64) -> Option<Failure> {
    let names: Vec<_> = too_large.keys().take(NAMED).map(ToString::to_string).collect();
    let more = too_large.len() - names.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!names.is_empty()).then(|| Failure::TooLarge { limit, held_back: names.join(", ") + &more })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::model::content::Content;
    use crate::model::object::Kind;

    fn object(name: u8, size: usize, version: u64) -> Object {
        let id = ObjectRef { kind: Kind::ConfigMap, namespace: "n".into(), name: name.to_string().as_str().into() };
        let value = Content::from(Bytes::from(vec![b'x'; size]));
        Object::new(id, version.to_string(), 0, false, BTreeMap::from([(String::new(), value)]))
    }

    proptest! {
        /// What the server has, listed and edited: the receiver never has more than fits in, has each object in its
        /// version or an older one, and has all of it when it fits in.
        #[test]
        fn receiver_never_has_more_than_fits_in(steps in prop::collection::vec((0u8..5, 0usize..60, 0u8..4), 1..30)) {
            let mut holdings = Holdings::new(100);
            let mut server: BTreeMap<u8, Object> = BTreeMap::new();
            let mut receiver: BTreeMap<ObjectRef, u64> = BTreeMap::new();
            let mut version = 0;
            for (name, size, action) in steps {
                version += 1;
                let mut list = action == 0;
                let id = object(name, 0, 0).id;
                if action == 1 {
                    server.remove(&name);
                    holdings.remove(&id);
                    receiver.remove(&id);
                } else {
                    let edited = object(name, size, version);
                    if action > 1 && holdings.change(&edited) {
                        receiver.insert(id, edited.size());
                    }
                    server.insert(name, edited);
                }
                list |= holdings.has_room();
                let mut lists = 0;
                while std::mem::take(&mut list) {
                    let mut intake = Intake::default();
                    for object in server.values() {
                        intake.add(object.clone(), &holdings);
                    }
                    let (news, after) = holdings.after(intake);
                    for seen in news {
                        match seen {
                            Seen::All(all) => receiver = all.values().map(|new| (new.id.clone(), new.size())).collect(),
                            Seen::Changed(new) => drop(receiver.insert(new.id.clone(), new.size())),
                            Seen::Gone(id) => drop(receiver.remove(&id)),
                            other => panic!("{other:?}"),
                        }
                    }
                    holdings = after;
                    list = holdings.has_room();
                    lists += 1;
                    prop_assert!(lists <= 6, "it lists again and again");
                }
                prop_assert_eq!(receiver.values().sum::<u64>(), holdings.total);
                prop_assert!(holdings.total <= 100);
                let all: u64 = server.values().map(Object::size).sum();
                if all <= 100 {
                    prop_assert_eq!(holdings.total, all);
                }
                prop_assert_eq!(holdings.excess().is_some(), all > 100);
            }
        }
    }
}
