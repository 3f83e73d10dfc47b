//! A value's bytes: held in memory, or kept on the disk until somebody asks for them.
//!
//! Thousands of objects that are copied as they are need not lie in memory: what is compared is their digest, and what
//! is written is read again. A [`Spool`] keeps them, in a file of our own that has no name: nobody else can open it, and
//! it is gone with the process, whatever ends that. Nothing here prints a byte.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use rustix::fs::{FallocateFlags, fallocate, ftruncate};
use rustix::io::Errno;

use crate::model::digest::Digest;

/// What is shorter, in bytes, stays in memory: the handle of a kept value is hardly smaller.
const SHORTEST: usize = 256;

/// What a value takes up in a spool is a multiple of this, in bytes: file systems free whole blocks alone.
const BLOCK: u64 = 4096;

/// A value's bytes, their digest, and their length. Cheap to clone; equal if the bytes are. `Debug` shows the length
/// alone.
#[derive(Clone)]
pub struct Content(Arc<Inner>);

struct Inner {
    /// SHA-256. In memory only: it is unkeyed, and would let anyone test guesses.
    digest: Digest,
    /// What somebody has found out of the bytes, as bits.
    notes: AtomicU8,
    place: Place,
}

enum Place {
    Held(Bytes),
    Kept(Range),
}

/// A piece of a spool, which is free again when this is dropped.
struct Range {
    spool: Spool,
    digest: Digest,
    offset: u64,
    len: usize,
}

/// Why a value can be neither kept nor had. The inputs are not at fault: it is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpoolError {
    /// A write failed: the value was not taken in.
    #[error(
        "a value cannot be kept in --output, where --layout files keeps all that it does not hold in memory: {0}; is its \
         volume full? It needs twice the size of what is published"
    )]
    Write(Errno),
    /// A read failed.
    #[error("a value that was kept in --output cannot be read again: {0}; if that goes on, restart this container")]
    Read(Errno),
    /// What was read is not what was written.
    #[error("a value that was kept in --output is not what it was: is its disk broken? Restart this container")]
    Spoilt,
}

impl Content {
    /// SHA-256 of the bytes. Never shown: it is unkeyed, and would let anyone test guesses.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.0.digest
    }

    /// The length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0.place {
            Place::Held(bytes) => bytes.len(),
            Place::Kept(range) => range.len,
        }
    }

    /// Whether there is no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes. Those that are not held are read, and let go again by whoever asks.
    pub fn read(&self) -> Result<Bytes, SpoolError> {
        match &self.0.place {
            Place::Held(bytes) => Ok(bytes.clone()),
            Place::Kept(range) => range.read(),
        }
    }

    /// Whether all of these bits were [noted](Self::note) of the bytes, so that they need not be read for it again.
    #[must_use]
    pub fn is_noted(&self, bits: u8) -> bool {
        self.0.notes.load(Ordering::Relaxed) & bits == bits
    }

    /// Notes what is known of the bytes.
    pub fn note(&self, bits: u8) {
        self.0.notes.fetch_or(bits, Ordering::Relaxed);
    }
}

impl From<Bytes> for Content {
    /// Holds them.
    fn from(bytes: Bytes) -> Self {
        Self(Arc::new(Inner { digest: Digest::of(&bytes), notes: AtomicU8::new(0), place: Place::Held(bytes) }))
    }
}

impl PartialEq for Content {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.digest == other.0.digest
    }
}

impl Eq for Content {}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Content({} bytes)", self.len())
    }
}

/// A file that keeps values. Clones share it; it lives as long as the last value in it.
#[derive(Clone)]
pub struct Spool(Arc<Shared>);

struct Shared {
    file: File,
    books: Mutex<Books>,
}

/// What is where.
#[derive(Default)]
struct Books {
    /// Of each value that is kept, so that it is kept once: after a fresh list most are.
    known: HashMap<Digest, Weak<Inner>>,
    /// Offset to length of what is free before the end; no two are adjacent.
    free: BTreeMap<u64, u64>,
    end: u64,
}

impl fmt::Debug for Spool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Spool")
    }
}

impl Spool {
    /// A spool in an empty file, which must be open for reading and writing, and nobody else's.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self(Arc::new(Shared { file, books: Mutex::default() }))
    }

    /// Keeps a value, but for a short one, which is held.
    pub fn keep(&self, bytes: Bytes) -> Result<Content, SpoolError> {
        if bytes.len() < SHORTEST {
            return Ok(bytes.into());
        }
        let digest = Digest::of(&bytes);
        let offset = {
            let mut books = self.books();
            if let Some(known) = books.known.get(&digest).and_then(Weak::upgrade) {
                return Ok(Content(known));
            }
            books.take(blocks(bytes.len()))
        };
        // From here on its drop frees it, also after an error.
        let range = Range { spool: self.clone(), digest, offset, len: bytes.len() };
        self.0.file.write_all_at(&bytes, offset).map_err(|error| SpoolError::Write(errno(&error)))?;
        let kept = Arc::new(Inner { digest, notes: AtomicU8::new(0), place: Place::Kept(range) });
        self.books().known.insert(digest, Arc::downgrade(&kept));
        Ok(Content(kept))
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    /// The first free piece that is long enough, or one at the end.
    fn take(&mut self, length: u64) -> u64 {
        let found = self.free.iter().find(|(_, free)| **free >= length).map(|(offset, free)| (*offset, *free));
        let Some((offset, free)) = found else {
            let offset = self.end;
            self.end += length;
            return offset;
        };
        self.free.remove(&offset);
        if free > length {
            self.free.insert(offset + length, free - length);
        }
        offset
    }

    /// Says whether the file became shorter by that.
    fn give_back(&mut self, mut offset: u64, mut length: u64) -> bool {
        if let Some(after) = self.free.remove(&(offset + length)) {
            length += after;
        }
        if let Some((before, free)) = self.free.range(..offset).next_back().map(|(before, free)| (*before, *free))
            && before + free == offset
        {
            self.free.remove(&before);
            (offset, length) = (before, length + free);
        }
        let last = offset + length == self.end;
        if last {
            self.end = offset;
        } else {
            self.free.insert(offset, length);
        }
        last
    }
}

impl Range {
    fn read(&self) -> Result<Bytes, SpoolError> {
        let mut bytes = vec![0; self.len];
        self.spool.0.file.read_exact_at(&mut bytes, self.offset).map_err(|error| SpoolError::Read(errno(&error)))?;
        if Digest::of(&bytes) == self.digest { Ok(bytes.into()) } else { Err(SpoolError::Spoilt) }
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        let length = blocks(self.len);
        let mut books = self.spool.books();
        // The same value may have come again meanwhile.
        if books.known.get(&self.digest).is_some_and(|known| known.strong_count() == 0) {
            books.known.remove(&self.digest);
        }
        let file = &self.spool.0.file;
        // Under the lock, so that it is not somebody else's yet. Where neither can be done, it is used again all the same.
        let _ = if books.give_back(self.offset, length) {
            ftruncate(file, books.end)
        } else {
            fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, self.offset, length)
        };
        if books.known.is_empty() {
            books.known.shrink_to_fit();
        }
    }
}

/// The length of what so many bytes take up.
fn blocks(len: usize) -> u64 {
    (len as u64).next_multiple_of(BLOCK)
}

fn errno(error: &io::Error) -> Errno {
    // The end of the file before the end of the value has none.
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use proptest::prelude::*;

    use super::*;

    fn spool() -> Spool {
        Spool::new(tempfile::tempfile().unwrap())
    }

    fn value(seed: u8, len: usize) -> Bytes {
        (0..len).map(|at| seed ^ u8::try_from(at % 251).unwrap()).collect::<Vec<_>>().into()
    }

    #[test]
    fn what_is_kept_reads_back_and_short_values_are_held() {
        let spool = spool();
        let values: Vec<_> = [0, 1, 255, 256, 4095, 4096, 4097, 100_000].map(|len| value(7, len)).into();
        let kept: Vec<_> = values.iter().map(|value| spool.keep(value.clone()).unwrap()).collect();
        for (content, value) in kept.iter().zip(&values) {
            assert_eq!(content.read().unwrap(), value);
            assert_eq!((content.len(), content.is_empty()), (value.len(), value.is_empty()));
            assert_eq!(*content, Content::from(value.clone()));
            assert_eq!(matches!(content.0.place, Place::Held(_)), value.len() < SHORTEST);
        }
        assert!(kept.windows(2).all(|pair| pair[0] != pair[1]));
        let text = format!("{:?}", kept.last().unwrap());
        assert_eq!(text, "Content(100000 bytes)");
    }

    #[test]
    fn what_is_kept_already_is_not_kept_again() {
        let spool = spool();
        let first = spool.keep(value(1, 10_000)).unwrap();
        let again = spool.keep(value(1, 10_000)).unwrap();
        assert!(Arc::ptr_eq(&first.0, &again.0));
        drop((first, again));
        assert!(spool.books().known.is_empty());
        assert_eq!(spool.keep(value(1, 10_000)).unwrap().read().unwrap(), value(1, 10_000));
    }

    #[test]
    fn space_is_given_back_when_the_last_user_is_gone() {
        let spool = spool();
        let mut kept: Vec<_> = (0..100).map(|seed| spool.keep(value(seed, 20_000)).unwrap()).collect();
        let used = || spool.0.file.metadata().unwrap().blocks() * 512;
        assert!(used() >= 100 * 20_000, "{}", used());
        let clone = kept[0].clone();
        // A hole in the middle, and one at the start that is in use.
        kept.drain(0..50);
        assert!(used() < 60 * 20_480, "{}", used());
        assert_eq!(clone.read().unwrap(), value(0, 20_000));
        // What is free is used before the file grows.
        let end = spool.books().end;
        let more: Vec<_> = (100..140).map(|seed| spool.keep(value(seed, 20_000)).unwrap()).collect();
        assert_eq!(spool.books().end, end);
        drop((kept, clone));
        assert!(more.iter().zip(100..).all(|(content, seed)| content.read().unwrap() == value(seed, 20_000)));
        drop(more);
        assert_eq!((spool.0.file.metadata().unwrap().len(), spool.books().free.len()), (0, 0));
    }

    #[test]
    fn errors_are_told_and_leave_the_space_free() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, "").unwrap();
        let spool = Spool::new(File::open(&path).unwrap());
        let error = spool.keep(value(1, 1000)).unwrap_err();
        assert!(matches!(error, SpoolError::Write(_)) && error.to_string().contains("volume full"), "{error}");
        assert_eq!(spool.books().end, 0);
    }

    #[test]
    fn a_value_that_was_changed_or_cut_short_is_not_believed() {
        let spool = spool();
        let kept = spool.keep(value(1, 1000)).unwrap();
        spool.0.file.write_all_at(b"!", 500).unwrap();
        assert_eq!(kept.read().unwrap_err(), SpoolError::Spoilt);
        ftruncate(&spool.0.file, 10).unwrap();
        assert_eq!(kept.read().unwrap_err(), SpoolError::Read(Errno::IO));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_two_values_share_a_byte(steps in proptest::collection::vec((0..12usize, any::<u8>(), 0..20_000usize), 0..60)) {
            let spool = spool();
            let mut kept: BTreeMap<usize, (Content, Bytes)> = BTreeMap::new();
            for (slot, seed, len) in steps {
                if kept.remove(&slot).is_none() {
                    let value = value(seed, len);
                    kept.insert(slot, (spool.keep(value.clone()).unwrap(), value));
                }
                for (content, value) in kept.values() {
                    prop_assert_eq!(&content.read().unwrap(), value);
                }
            }
            let books = spool.books();
            let used: u64 = books.known.values().filter_map(Weak::upgrade).map(|known| match &known.place {
                Place::Held(_) => 0,
                Place::Kept(range) => blocks(range.len),
            }).sum();
            prop_assert_eq!(used + books.free.values().sum::<u64>(), books.end);
        }
    }
}
