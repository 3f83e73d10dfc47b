//! The spool: a file without a name that keeps values which need not be in memory.
//!
//! Nobody else can open it, and it is gone with the process, whatever ends that.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::AtomicU8;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::ftruncate;

use crate::model::digest::{Digest, Hasher};

/// What a value takes up in a spool is a multiple of this, in bytes: file systems free whole blocks alone.
const BLOCK: u64 = 4096;

/// How much of a longer value is read at once, in bytes: it stays in the processor's cache until it is written.
pub(super) const PIECE: usize = 128 << 10;

/// Why a value can be neither stored nor read. The inputs are not at fault: it is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpoolError {
    /// The value was not taken in.
    #[error(
        "a value cannot be kept in --output, where what is not held in memory is kept: {0}; is its volume full? It needs twice \
         the size of what is published"
    )]
    Write(Errno),
    #[error("a value that was kept in --output cannot be read again: {0}; if that goes on, restart this container")]
    Read(Errno),
    /// What was read is not what was written.
    #[error("a value that was kept in --output is not what it was: is its disk broken? Restart this container")]
    Spoilt,
    /// A file of somebody else's is not what it was when its digest was taken.
    #[error("it was changed while it was copied, and is read again; let its writer rename a whole file into place")]
    Changed,
}

/// A file that keeps values. Clones share it; it lives as long as the last value in it.
#[derive(Clone)]
pub struct Spool(Arc<Shared>);

struct Shared {
    file: File,
    space: Mutex<Space>,
}

/// What is where.
#[derive(Default)]
struct Space {
    /// Each value that is stored, so that it is stored once: after a fresh list most are.
    stored: HashMap<Digest, Weak<Slot>>,
    /// Offset to length of what is free before the end; no two are adjacent.
    free: BTreeMap<u64, u64>,
    end: u64,
}

/// A value that is being written to a spool. Dropped, it leaves its place free.
pub struct Writing {
    /// Of all that is reserved, until it is known how long the value is.
    slot: Slot,
    hasher: Hasher,
    written: usize,
}

/// A value in the spool. Its place is free again when this is dropped.
pub struct Slot {
    spool: Spool,
    /// SHA-256 of the bytes.
    digest: Digest,
    offset: u64,
    len: usize,
    notes: AtomicU8,
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
        Self(Arc::new(Shared { file, space: Mutex::default() }))
    }

    /// Stores a value, once however often it comes.
    pub fn store(&self, bytes: &[u8]) -> Result<Arc<Slot>, SpoolError> {
        let digest = Digest::of(bytes);
        let offset = {
            let mut space = self.space();
            if let Some(stored) = space.stored.get(&digest).and_then(Weak::upgrade) {
                return Ok(stored);
            }
            space.take(blocks(bytes.len()))
        };
        // From here on its drop frees the place, also after an error.
        let slot = Slot { spool: self.clone(), digest, offset, len: bytes.len(), notes: AtomicU8::new(0) };
        self.0.file.write_all_at(bytes, offset).map_err(|error| SpoolError::Write(errno(&error)))?;
        let slot = Arc::new(slot);
        self.space().stored.insert(digest, Arc::downgrade(&slot));
        Ok(slot)
    }

    /// Begins to store a value of at most so many bytes, which come in pieces.
    #[must_use]
    pub fn begin(&self, most: u64) -> Writing {
        let most = usize::try_from(most).unwrap_or(usize::MAX >> 1);
        let offset = self.space().take(blocks(most));
        let slot = Slot { spool: self.clone(), digest: Digest::UNKNOWN, offset, len: most, notes: AtomicU8::new(0) };
        Writing { slot, hasher: Hasher::plain(), written: 0 }
    }

    fn space(&self) -> MutexGuard<'_, Space> {
        self.0.space.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writing {
    /// Adds the next piece.
    pub fn add(&mut self, piece: &[u8]) -> Result<(), SpoolError> {
        let Slot { spool, offset, len, .. } = &self.slot;
        let after = self.written.checked_add(piece.len()).filter(|after| after <= len);
        let after = after.ok_or(SpoolError::Write(Errno::EFBIG))?;
        let written = spool.0.file.write_all_at(piece, offset + self.written as u64);
        written.map_err(|error| SpoolError::Write(errno(&error)))?;
        self.hasher.more(piece);
        self.written = after;
        Ok(())
    }

    /// The value, which is stored once however often it comes.
    #[must_use]
    pub fn end(self) -> Arc<Slot> {
        let Self { mut slot, hasher, written } = self;
        slot.digest = hasher.finish();
        let spool = slot.spool.clone();
        let mut space = spool.space();
        let reserved = blocks(std::mem::replace(&mut slot.len, written));
        let used = blocks(written);
        if used < reserved {
            space.free_up(&spool.0.file, slot.offset + used, reserved - used);
        }
        if let Some(stored) = space.stored.get(&slot.digest).and_then(Weak::upgrade) {
            // The drop of the other one takes the lock.
            drop(space);
            return stored;
        }
        let slot = Arc::new(slot);
        space.stored.insert(slot.digest, Arc::downgrade(&slot));
        slot
    }
}

impl Space {
    /// Gives a place back, and its blocks to the file system.
    fn free_up(&mut self, file: &File, from: u64, length: u64) {
        // Under the lock, so that it is not somebody else's yet. Where neither can be done, it is used again all the same.
        let _ = if self.give_back(from, length) {
            ftruncate(file, offset(self.end))
        } else {
            let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(file, mode, offset(from), offset(length))
        };
    }

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

impl Slot {
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// In bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What somebody has found out of the bytes, as bits.
    #[must_use]
    pub fn notes(&self) -> &AtomicU8 {
        &self.notes
    }

    /// Some of the bytes from a place on, as far as they fit; none at the end. Nothing says whether they are what they were.
    pub fn read_at(&self, buffer: &mut [u8], at: usize) -> io::Result<usize> {
        let length = buffer.len().min(self.len.saturating_sub(at));
        self.spool.0.file.read_at(&mut buffer[..length], self.offset + at as u64)
    }

    /// The file that they are in, and where in it they begin.
    pub(super) fn place(&self) -> (&File, u64) {
        (&self.spool.0.file, self.offset)
    }

    /// Gives the bytes to `take`, piece by piece. Only when it returns well were they the right ones.
    pub fn pieces<E: From<SpoolError>>(&self, mut take: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        if self.len <= PIECE {
            return take(&self.read()?);
        }
        let read = |piece: &mut [u8], at| {
            let read = self.spool.0.file.read_exact_at(piece, self.offset + at);
            read.map_err(|error| SpoolError::Read(errno(&error)))
        };
        let digest = in_pieces(self.len, read, take)?;
        if digest == self.digest { Ok(()) } else { Err(SpoolError::Spoilt.into()) }
    }

    pub fn read(&self) -> Result<Bytes, SpoolError> {
        let mut bytes = vec![0; self.len];
        self.spool.0.file.read_exact_at(&mut bytes, self.offset).map_err(|error| SpoolError::Read(errno(&error)))?;
        if Digest::of(&bytes) == self.digest { Ok(bytes.into()) } else { Err(SpoolError::Spoilt) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let length = blocks(self.len);
        let mut space = self.spool.space();
        // The same value may have come again meanwhile.
        if space.stored.get(&self.digest).is_some_and(|stored| stored.strong_count() == 0) {
            space.stored.remove(&self.digest);
        }
        space.free_up(&self.spool.0.file, self.offset, length);
        if space.stored.is_empty() {
            space.stored.shrink_to_fit();
        }
    }
}

/// Gives so many bytes to `take`, piece by piece, as `read` fills each from a place on; the digest of them all.
pub(super) fn in_pieces<E: From<SpoolError>>(
    len: usize,
    read: impl Fn(&mut [u8], u64) -> Result<(), SpoolError>,
    mut take: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<Digest, E> {
    let mut buffer = vec![0; PIECE.min(len)];
    let mut hasher = Hasher::plain();
    let mut at = 0;
    while at < len {
        let length = buffer.len().min(len - at);
        let piece = &mut buffer[..length];
        read(piece, at as u64)?;
        hasher.more(piece);
        take(piece)?;
        at += length;
    }
    Ok(hasher.finish())
}

/// The length of what so many bytes take up.
fn blocks(len: usize) -> u64 {
    (len as u64).next_multiple_of(BLOCK)
}

/// No file is longer than the kernel's signed offset.
fn offset(at: u64) -> i64 {
    i64::try_from(at).unwrap_or(i64::MAX)
}

pub(super) fn errno(error: &io::Error) -> Errno {
    // The end of the file before the end of the value has none.
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
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
    fn what_is_kept_already_is_not_kept_again() {
        let spool = spool();
        let first = spool.store(&value(1, 10_000)).unwrap();
        let again = spool.store(&value(1, 10_000)).unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        drop((first, again));
        assert!(spool.space().stored.is_empty());
        assert_eq!(spool.store(&value(1, 10_000)).unwrap().read().unwrap(), value(1, 10_000));
    }

    #[test]
    fn space_is_given_back_when_the_last_user_is_gone() {
        let spool = spool();
        let mut kept: Vec<_> = (0..100).map(|seed| spool.store(&value(seed, 20_000)).unwrap()).collect();
        let used = || spool.0.file.metadata().unwrap().blocks() * 512;
        assert!(used() >= 100 * 20_000, "{}", used());
        let clone = kept[0].clone();
        // A hole in the middle, and one at the start that is in use.
        kept.drain(0..50);
        assert!(used() < 60 * 20_480, "{}", used());
        assert_eq!(clone.read().unwrap(), value(0, 20_000));
        // What is free is used before the file grows.
        let end = spool.space().end;
        let more: Vec<_> = (100..140).map(|seed| spool.store(&value(seed, 20_000)).unwrap()).collect();
        assert_eq!(spool.space().end, end);
        drop((kept, clone));
        assert!(more.iter().zip(100..).all(|(content, seed)| content.read().unwrap() == value(seed, 20_000)));
        drop(more);
        assert_eq!((spool.0.file.metadata().unwrap().len(), spool.space().free.len()), (0, 0));
    }

    #[test]
    fn what_comes_in_pieces_is_one_value_and_what_breaks_off_leaves_its_place() {
        let spool = spool();
        let whole = value(3, 700_000);
        let before = spool.store(&value(1, 5000)).unwrap();
        let mut writing = spool.begin(64 << 20);
        let after = spool.store(&value(2, 5000)).unwrap();
        whole.chunks(99_999).for_each(|piece| writing.add(piece).unwrap());
        let slot = writing.end();
        assert_eq!((slot.len(), slot.digest()), (whole.len(), Digest::of(&whole)));
        let mut pieces = Vec::new();
        slot.pieces(|piece| {
            pieces.extend_from_slice(piece);
            Ok::<_, SpoolError>(())
        })
        .unwrap();
        assert!(pieces == whole && slot.read().unwrap() == whole);
        assert!(Arc::ptr_eq(&slot, &spool.store(&whole).unwrap()), "it is known by its digest");
        let mut again = spool.begin(whole.len() as u64);
        again.add(&whole).unwrap();
        assert!(Arc::ptr_eq(&slot, &again.end()));
        let used = || spool.0.file.metadata().unwrap().blocks() * 512;
        assert!(used() < 800_000, "{}", used());

        let mut cut = spool.begin(1 << 20);
        cut.add(&value(4, 300_000)).unwrap();
        assert_eq!(cut.add(&vec![0; 1 << 20]).unwrap_err(), SpoolError::Write(Errno::EFBIG));
        drop(cut);
        assert!(used() < 800_000, "{}", used());
        assert!(before.read().unwrap() == value(1, 5000) && after.read().unwrap() == value(2, 5000));
        spool.0.file.write_all_at(b"!", slot.offset + 699_999).unwrap();
        assert_eq!(slot.pieces(|_| Ok::<_, SpoolError>(())).unwrap_err(), SpoolError::Spoilt);
        drop((before, after, slot));
        assert_eq!((spool.0.file.metadata().unwrap().len(), spool.space().free.len()), (0, 0));
    }

    #[test]
    fn errors_are_reported_and_leave_the_space_free() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, "").unwrap();
        let spool = Spool::new(File::open(&path).unwrap());
        let error = spool.store(&value(1, 1000)).err().unwrap();
        assert!(matches!(error, SpoolError::Write(_)) && error.to_string().contains("volume full"), "{error}");
        assert_eq!(spool.space().end, 0);
    }

    #[test]
    fn a_value_that_was_changed_or_cut_short_is_not_believed() {
        let spool = spool();
        let kept = spool.store(&value(1, 1000)).unwrap();
        spool.0.file.write_all_at(b"!", 500).unwrap();
        assert_eq!(kept.read().unwrap_err(), SpoolError::Spoilt);
        ftruncate(&spool.0.file, 10).unwrap();
        assert_eq!(kept.read().unwrap_err(), SpoolError::Read(Errno::EIO));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_two_values_share_a_byte(steps in proptest::collection::vec((0..12usize, any::<u8>(), 0..20_000usize), 0..60)) {
            let spool = spool();
            let mut kept: BTreeMap<usize, (Arc<Slot>, Bytes)> = BTreeMap::new();
            for (slot, seed, len) in steps {
                if kept.remove(&slot).is_none() {
                    let value = value(seed, len);
                    kept.insert(slot, (spool.store(&value).unwrap(), value));
                }
                for (content, value) in kept.values() {
                    prop_assert_eq!(&content.read().unwrap(), value);
                }
            }
            let space = spool.space();
            let used: u64 = space.stored.values().filter_map(Weak::upgrade).map(|slot| blocks(slot.len)).sum();
            prop_assert_eq!(used + space.free.values().sum::<u64>(), space.end);
        }
    }
}
