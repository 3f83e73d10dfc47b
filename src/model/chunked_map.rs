//! A sorted map of thousands, in content-defined chunks that its copies share: a change copies one chunk, and what was
//! computed for the others is not computed again.
//!
//! A key alone decides where a chunk begins. So equal maps have equal chunks, whatever was changed in them and in
//! which order, and a digest may be taken over the digests of the chunks.

use std::borrow::Borrow;
use std::sync::{Arc, OnceLock};

/// How many entries a chunk has on average. Half of what an edit costs grows with it, the other half shrinks.
const LENGTH: u64 = 32;

/// A map from keys that are texts, with what was found out (`N`) of each chunk.
#[derive(Debug)]
pub struct ChunkedMap<K, V, N> {
    chunks: Vec<Arc<Chunk<K, V, N>>>,
}

/// Neighbouring entries of a map: one at least.
#[derive(Debug)]
pub struct Chunk<K, V, N> {
    entries: Vec<(K, V)>,
    found: OnceLock<N>,
}

/// Whether a chunk begins with this key. Somebody who chooses the keys can make chunks of any length,
/// which costs time alone.
#[must_use]
pub fn begins(key: &[u8]) -> bool {
    // FNV-1a; its bits differ in quality, and are mixed once more.
    let hash = key
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    ((hash ^ hash >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32).is_multiple_of(LENGTH)
}

impl<K, V, N> Chunk<K, V, N> {
    /// The entries, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|(key, value)| (key, value))
    }

    /// What `find` finds out of these entries; it is asked once.
    pub fn found(&self, find: impl FnOnce(&Self) -> N) -> &N {
        self.found.get_or_init(|| find(self))
    }
}

impl<K: Borrow<str>, V, N> Chunk<K, V, N> {
    /// Its first key.
    #[must_use]
    pub fn first(&self) -> &str {
        self.entries.first().map_or("", |(key, _)| key.borrow())
    }

    fn search(&self, key: &str) -> Result<usize, usize> {
        self.entries.binary_search_by(|(known, _)| known.borrow().cmp(key))
    }
}

impl<K: Borrow<str>, V, N> ChunkedMap<K, V, N> {
    /// Where the chunk is that has the key, if any has.
    fn chunk_of(&self, key: &str) -> usize {
        self.chunks.partition_point(|chunk| chunk.first() <= key).saturating_sub(1)
    }

    /// The entry with this key.
    #[must_use]
    pub fn get_key_value(&self, key: &str) -> Option<(&K, &V)> {
        let chunk = self.chunks.get(self.chunk_of(key))?;
        chunk.search(key).ok().and_then(|at| chunk.entries.get(at)).map(|(key, value)| (key, value))
    }

    /// The value of this key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&V> {
        self.get_key_value(key).map(|(_, value)| value)
    }

    /// Whether there is such a key.
    #[must_use]
    pub fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// The entries in order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// The entries in order, from this key on.
    pub fn range_from(&self, key: &str) -> impl Iterator<Item = (&K, &V)> {
        let chunks = self.chunks.get(self.chunk_of(key)..).unwrap_or_default();
        chunks.iter().flat_map(|chunk| chunk.iter()).skip_while(move |(known, _)| (*known).borrow() < key)
    }

    #[must_use]
    pub fn chunks(&self) -> &[Arc<Chunk<K, V, N>>] {
        &self.chunks
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.entries.len()).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// The entries of which another map does not have the key.
    pub fn missing_in<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (&'a K, &'a V)> {
        let mut others = other.chunks.iter().peekable();
        let own = self.chunks.iter().filter(move |chunk| {
            let is_same = |other: &&Arc<Chunk<K, V, N>>| Arc::ptr_eq(other, chunk);
            while others.next_if(|other| !is_same(other) && other.first() < chunk.first()).is_some() {}
            others.next_if(is_same).is_none()
        });
        own.flat_map(|chunk| chunk.iter()).filter(|(key, _)| !other.contains_key((*key).borrow()))
    }

    /// Adds a chunk of another map, which must come after all that is here, and begin where one begins.
    pub fn push(&mut self, chunk: Arc<Chunk<K, V, N>>) {
        self.chunks.push(chunk);
    }
}

impl<K: Borrow<str> + Clone, V: Clone, N> ChunkedMap<K, V, N> {
    /// The value of this key, to be changed.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut V> {
        let at = self.chunk_of(key);
        let chunk = self.chunks.get_mut(at)?;
        let within = chunk.search(key).ok()?;
        Arc::make_mut(chunk).changed().get_mut(within).map(|(_, value)| value)
    }

    /// Gives a key this value.
    pub fn insert(&mut self, key: K, value: V) {
        if let Some(known) = self.get_mut(key.borrow()) {
            *known = value;
            return;
        }
        let at = self.chunk_of(key.borrow());
        let within = self.chunks.get(at).and_then(|chunk| chunk.search(key.borrow()).err()).unwrap_or_default();
        match self.chunks.get_mut(at) {
            // Before all others.
            Some(first) if within == 0 && begins(first.first().as_bytes()) => {
                self.chunks.insert(0, Chunk::of(key, value));
            }
            Some(chunk) if begins(key.borrow().as_bytes()) => {
                let entries = Arc::make_mut(chunk).changed();
                let after = entries.split_off(within);
                let mut fresh = vec![(key, value)];
                fresh.extend(after);
                if within == 0 {
                    *entries = fresh;
                } else {
                    self.chunks.insert(at + 1, Arc::new(Chunk { entries: fresh, found: OnceLock::new() }));
                }
            }
            Some(chunk) => Arc::make_mut(chunk).changed().insert(within, (key, value)),
            None => self.chunks.push(Chunk::of(key, value)),
        }
    }
}

impl<K, V, N> Chunk<K, V, N> {
    fn of(key: K, value: V) -> Arc<Self> {
        Arc::new(Self { entries: vec![(key, value)], found: OnceLock::new() })
    }

    /// The entries, to be changed: nothing is known of them any more.
    fn changed(&mut self) -> &mut Vec<(K, V)> {
        self.found.take();
        &mut self.entries
    }
}

impl<K: Clone, V: Clone, N> Clone for Chunk<K, V, N> {
    /// To be changed.
    fn clone(&self) -> Self {
        Self { entries: self.entries.clone(), found: OnceLock::new() }
    }
}

impl<K, V, N> Clone for ChunkedMap<K, V, N> {
    fn clone(&self) -> Self {
        Self { chunks: self.chunks.clone() }
    }
}

impl<K, V, N> Default for ChunkedMap<K, V, N> {
    fn default() -> Self {
        Self { chunks: Vec::new() }
    }
}

impl<K: PartialEq, V: PartialEq, N> PartialEq for ChunkedMap<K, V, N> {
    fn eq(&self, other: &Self) -> bool {
        let alike = |one: &Arc<Chunk<K, V, N>>, other: &Arc<Chunk<K, V, N>>| {
            Arc::ptr_eq(one, other) || one.entries == other.entries
        };
        self.chunks.len() == other.chunks.len()
            && self.chunks.iter().zip(&other.chunks).all(|(one, other)| alike(one, other))
    }
}

impl<K: Eq, V: Eq, N> Eq for ChunkedMap<K, V, N> {}

impl<K: Borrow<str> + Clone, V: Clone, N> FromIterator<(K, V)> for ChunkedMap<K, V, N> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::default();
        entries.into_iter().for_each(|(key, value)| map.insert(key, value));
        map
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    type Map = ChunkedMap<String, u32, u32>;

    /// What is found out of a chunk: the sum of its values.
    fn sums(map: &Map) -> Vec<u32> {
        map.chunks().iter().map(|chunk| *chunk.found(|chunk| chunk.iter().map(|(_, value)| value).sum())).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_is_a_map_whose_chunks_depend_on_its_keys_alone(
            steps in proptest::collection::vec(("[a-c/]{0,3}", 0..9u32, 0..4u8), 0..200),
            asked in "[a-c/]{0,3}",
        ) {
            let (mut map, mut model) = (Map::default(), BTreeMap::new());
            let mut before = (map.clone(), model.clone());
            for (key, value, what) in steps {
                match what {
                    0 => before = (map.clone(), model.clone()),
                    1 => drop(sums(&map)),
                    _ => {}
                }
                map.insert(key.clone(), value);
                model.insert(key, value);
            }
            // What was remembered has not changed with the other.
            for (map, model) in [(&map, &model), (&before.0, &before.1)] {
                prop_assert!(map.iter().eq(model));
                prop_assert_eq!((map.len(), map.is_empty()), (model.len(), model.is_empty()));
                prop_assert_eq!(map.get(&asked), model.get(&asked));
                prop_assert!(map.range_from(&asked).eq(model.range(asked.clone()..)));
                // Made in order.
                let fresh: Map = model.clone().into_iter().collect();
                prop_assert_eq!(map, &fresh);
                prop_assert_eq!(sums(map), sums(&fresh));
                for (index, chunk) in map.chunks().iter().enumerate() {
                    let marks: Vec<_> = chunk.iter().map(|(key, _)| begins(key.as_bytes())).collect();
                    prop_assert!(!marks.is_empty() && (index == 0 || marks[0]) && !marks[1..].contains(&true));
                }
            }
            let missing: Vec<_> = map.missing_in(&before.0).collect();
            let expected: Vec<_> = model.iter().filter(|(key, _)| !before.1.contains_key(*key)).collect();
            prop_assert_eq!(missing, expected);
            prop_assert!(before.0.missing_in(&map).next().is_none());
        }
    }

    #[test]
    fn a_change_copies_one_chunk() {
        let map: Map = (0..1000).map(|number| (format!("f/{number:04}"), number)).collect();
        // About one for each 32.
        assert!((20..45).contains(&map.chunks().len()), "{}", map.chunks().len());
        let mut copy = map.clone();
        *copy.get_mut("f/0500").unwrap() = 7;
        let shared = map.chunks().iter().zip(copy.chunks()).filter(|(one, other)| Arc::ptr_eq(one, other)).count();
        assert_eq!(shared + 1, map.chunks().len());
    }
}
