//! A sorted map of thousands, in pieces that its copies share: a change copies one piece, and what was found out of the
//! others need not be found out again.
//!
//! Where a piece begins is told by a key alone. So equal maps have equal pieces, whatever was changed in them and in
//! which order, and a digest may be taken over the digests of the pieces.

use std::borrow::Borrow;
use std::sync::{Arc, OnceLock};

/// How many entries a piece has on average. A change costs about as much for each of its piece as for each piece.
const LENGTH: u64 = 32;

/// A map from keys that are texts, with what was found out (`N`) of each piece.
#[derive(Debug)]
pub struct Pieces<K, V, N> {
    pieces: Vec<Arc<Piece<K, V, N>>>,
}

/// Neighbouring entries of a map: one at least.
#[derive(Debug)]
pub struct Piece<K, V, N> {
    entries: Vec<(K, V)>,
    found: OnceLock<N>,
}

/// Whether a piece begins with this key. Somebody who chooses the keys can make pieces as long or as short as he likes,
/// which costs time alone.
#[must_use]
pub fn begins(key: &[u8]) -> bool {
    // FNV-1a; its bits differ in quality, and are mixed once more.
    let hash = key
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    ((hash ^ hash >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32).is_multiple_of(LENGTH)
}

impl<K, V, N> Piece<K, V, N> {
    /// The entries, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|(key, value)| (key, value))
    }

    /// What `find` finds out of these entries; it is asked once.
    pub fn found(&self, find: impl FnOnce(&Self) -> N) -> &N {
        self.found.get_or_init(|| find(self))
    }
}

impl<K: Borrow<str>, V, N> Piece<K, V, N> {
    /// Its first key.
    #[must_use]
    pub fn first(&self) -> &str {
        self.entries.first().map_or("", |(key, _)| key.borrow())
    }

    fn search(&self, key: &str) -> Result<usize, usize> {
        self.entries.binary_search_by(|(known, _)| known.borrow().cmp(key))
    }
}

impl<K: Borrow<str>, V, N> Pieces<K, V, N> {
    /// Where the piece is that has the key, if any has.
    fn piece_of(&self, key: &str) -> usize {
        self.pieces.partition_point(|piece| piece.first() <= key).saturating_sub(1)
    }

    /// The entry with this key.
    #[must_use]
    pub fn get_key_value(&self, key: &str) -> Option<(&K, &V)> {
        let piece = self.pieces.get(self.piece_of(key))?;
        piece.search(key).ok().and_then(|at| piece.entries.get(at)).map(|(key, value)| (key, value))
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
        self.pieces.iter().flat_map(|piece| piece.iter())
    }

    /// The entries in order, from this key on.
    pub fn range_from(&self, key: &str) -> impl Iterator<Item = (&K, &V)> {
        let pieces = self.pieces.get(self.piece_of(key)..).unwrap_or_default();
        pieces.iter().flat_map(|piece| piece.iter()).skip_while(move |(known, _)| (*known).borrow() < key)
    }

    /// The pieces in order.
    #[must_use]
    pub fn pieces(&self) -> &[Arc<Piece<K, V, N>>] {
        &self.pieces
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pieces.iter().map(|piece| piece.entries.len()).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The entries of which another map does not have the key.
    pub fn missing_in<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (&'a K, &'a V)> {
        let mut others = other.pieces.iter().peekable();
        let own = self.pieces.iter().filter(move |piece| {
            let is_same = |other: &&Arc<Piece<K, V, N>>| Arc::ptr_eq(other, piece);
            while others.next_if(|other| !is_same(other) && other.first() < piece.first()).is_some() {}
            others.next_if(is_same).is_none()
        });
        own.flat_map(|piece| piece.iter()).filter(|(key, _)| !other.contains_key((*key).borrow()))
    }

    /// Adds a piece of another map, which must come after all that is here, and begin where one begins.
    pub fn push(&mut self, piece: Arc<Piece<K, V, N>>) {
        self.pieces.push(piece);
    }
}

impl<K: Borrow<str> + Clone, V: Clone, N> Pieces<K, V, N> {
    /// The value of this key, to be changed.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut V> {
        let at = self.piece_of(key);
        let piece = self.pieces.get_mut(at)?;
        let within = piece.search(key).ok()?;
        Arc::make_mut(piece).changed().get_mut(within).map(|(_, value)| value)
    }

    /// Gives a key this value.
    pub fn insert(&mut self, key: K, value: V) {
        if let Some(known) = self.get_mut(key.borrow()) {
            *known = value;
            return;
        }
        let at = self.piece_of(key.borrow());
        let within = self.pieces.get(at).and_then(|piece| piece.search(key.borrow()).err()).unwrap_or_default();
        match self.pieces.get_mut(at) {
            // Before all others.
            Some(first) if within == 0 && begins(first.first().as_bytes()) => {
                self.pieces.insert(0, Piece::of(key, value));
            }
            Some(piece) if begins(key.borrow().as_bytes()) => {
                let entries = Arc::make_mut(piece).changed();
                let after = entries.split_off(within);
                let mut fresh = vec![(key, value)];
                fresh.extend(after);
                if within == 0 {
                    *entries = fresh;
                } else {
                    self.pieces.insert(at + 1, Arc::new(Piece { entries: fresh, found: OnceLock::new() }));
                }
            }
            Some(piece) => Arc::make_mut(piece).changed().insert(within, (key, value)),
            None => self.pieces.push(Piece::of(key, value)),
        }
    }
}

impl<K, V, N> Piece<K, V, N> {
    fn of(key: K, value: V) -> Arc<Self> {
        Arc::new(Self { entries: vec![(key, value)], found: OnceLock::new() })
    }

    /// The entries, to be changed: nothing is known of them any more.
    fn changed(&mut self) -> &mut Vec<(K, V)> {
        self.found.take();
        &mut self.entries
    }
}

impl<K: Clone, V: Clone, N> Clone for Piece<K, V, N> {
    /// To be changed.
    fn clone(&self) -> Self {
        Self { entries: self.entries.clone(), found: OnceLock::new() }
    }
}

impl<K, V, N> Clone for Pieces<K, V, N> {
    fn clone(&self) -> Self {
        Self { pieces: self.pieces.clone() }
    }
}

impl<K, V, N> Default for Pieces<K, V, N> {
    fn default() -> Self {
        Self { pieces: Vec::new() }
    }
}

impl<K: PartialEq, V: PartialEq, N> PartialEq for Pieces<K, V, N> {
    fn eq(&self, other: &Self) -> bool {
        let alike = |one: &Arc<Piece<K, V, N>>, other: &Arc<Piece<K, V, N>>| {
            Arc::ptr_eq(one, other) || one.entries == other.entries
        };
        self.pieces.len() == other.pieces.len()
            && self.pieces.iter().zip(&other.pieces).all(|(one, other)| alike(one, other))
    }
}

impl<K: Eq, V: Eq, N> Eq for Pieces<K, V, N> {}

impl<K: Borrow<str> + Clone, V: Clone, N> FromIterator<(K, V)> for Pieces<K, V, N> {
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

    type Map = Pieces<String, u32, u32>;

    /// What is found out of a piece: the sum of its values.
    fn sums(map: &Map) -> Vec<u32> {
        map.pieces().iter().map(|piece| *piece.found(|piece| piece.iter().map(|(_, value)| value).sum())).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_is_a_map_whose_pieces_depend_on_its_keys_alone(
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
                for (index, piece) in map.pieces().iter().enumerate() {
                    let marks: Vec<_> = piece.iter().map(|(key, _)| begins(key.as_bytes())).collect();
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
    fn a_change_copies_one_piece() {
        let map: Map = (0..1000).map(|number| (format!("f/{number:04}"), number)).collect();
        // About one for each 32.
        assert!((20..45).contains(&map.pieces().len()), "{}", map.pieces().len());
        let mut copy = map.clone();
        *copy.get_mut("f/0500").unwrap() = 7;
        let shared = map.pieces().iter().zip(copy.pieces()).filter(|(one, other)| Arc::ptr_eq(one, other)).count();
        assert_eq!(shared + 1, map.pieces().len());
    }
}
