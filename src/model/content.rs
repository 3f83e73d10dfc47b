//! A value's bytes: held in memory, kept in the [spool](crate::model::spool), or left in a [file](crate::model::stretch)
//! until somebody asks for them.
//!
//! Thousands of objects that are copied as they are need not be in memory: what is compared is their digest, and what
//! is written is read again. Nothing here prints a byte.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;

use crate::model::digest::Digest;
use crate::model::spool::{Slot, Spool, SpoolError};
use crate::model::stretch::{LARGE, Stretch};

/// What is shorter, in bytes, stays in memory: the handle of a kept value is hardly smaller.
const SHORTEST: usize = 256;

/// A value's bytes, their digest, and their length. Cheap to clone; equal if the bytes are. `Debug` shows the length
/// alone.
#[derive(Clone)]
pub struct Content(Stored);

#[derive(Clone)]
enum Stored {
    Memory(Arc<Held>),
    Spool(Arc<Slot>),
    File(Arc<Stretch>),
}

/// Where a value is on a disk, for a kernel that copies it without a detour through memory.
pub struct Place<'a> {
    pub file: &'a File,
    /// Where it begins.
    pub at: u64,
    /// Whether nobody but this process can write there: the digest was taken of what a copy of it has.
    pub is_own: bool,
}

/// Reads a [`Content`]. Whether the bytes are what they were, whoever reads them must see by themselves.
pub struct Reader<'a> {
    content: &'a Content,
    at: usize,
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match &self.content.0 {
            Stored::Memory(held) => held.bytes.get(self.at..).unwrap_or_default().read(buffer)?,
            Stored::Spool(slot) => slot.read_at(buffer, self.at)?,
            Stored::File(file) => file.read_at(buffer, self.at)?,
        };
        self.at += read;
        Ok(read)
    }
}

struct Held {
    bytes: Bytes,
    digest: Digest,
    notes: AtomicU8,
}

impl Content {
    /// Keeps a value in the spool; a short one stays in memory.
    pub fn keep(bytes: Bytes, spool: &Spool) -> Result<Self, SpoolError> {
        if bytes.len() < SHORTEST { Ok(bytes.into()) } else { Ok(Self(Stored::Spool(spool.store(&bytes)?))) }
    }

    /// SHA-256 of the bytes. In memory only, and never shown: it is unkeyed, and would let anyone test guesses.
    #[must_use]
    pub fn digest(&self) -> Digest {
        match &self.0 {
            Stored::Memory(held) => held.digest,
            Stored::Spool(slot) => slot.digest(),
            Stored::File(file) => file.digest(),
        }
    }

    /// In bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
            Stored::Memory(held) => held.bytes.len(),
            Stored::Spool(slot) => slot.len(),
            Stored::File(file) => file.len(),
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes. Those that are not held are read, and freed by whoever asked.
    pub fn read(&self) -> Result<Bytes, SpoolError> {
        match &self.0 {
            Stored::Memory(held) => Ok(held.bytes.clone()),
            Stored::Spool(slot) => slot.read(),
            Stored::File(file) => file.read(),
        }
    }

    /// Gives the bytes to `take`: those of a file in pieces, which were the right ones only when it returns well.
    pub fn pieces<E: From<SpoolError>>(&self, mut take: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        match &self.0 {
            Stored::Memory(held) => take(&held.bytes),
            Stored::Spool(slot) => slot.pieces(take),
            Stored::File(file) => file.pieces(take),
        }
    }

    /// Where a large value is on a disk; `None`: it is short, or in memory.
    #[must_use]
    pub fn place(&self) -> Option<Place<'_>> {
        match &self.0 {
            _ if self.len() as u64 <= LARGE => None,
            Stored::Memory(_) => None,
            Stored::Spool(slot) => {
                let (file, at) = slot.place();
                Some(Place { file, at, is_own: true })
            }
            Stored::File(file) => Some(Place { file: file.file(), at: 0, is_own: false }),
        }
    }

    /// The bytes in their order. An end that comes early is an error.
    #[must_use]
    pub fn reader(&self) -> Reader<'_> {
        Reader { content: self, at: 0 }
    }

    /// Whether it is left in a file for its length, so that nobody should read it without a need.
    #[must_use]
    pub fn is_in_a_file(&self) -> bool {
        matches!(self.0, Stored::File(_))
    }

    /// Whether all of these bits were [noted](Self::note) of the bytes, so that they need not be read for it again.
    #[must_use]
    pub fn is_noted(&self, bits: u8) -> bool {
        self.notes().load(Ordering::Relaxed) & bits == bits
    }

    /// Notes what is known of the bytes, for every clone.
    pub fn note(&self, bits: u8) {
        self.notes().fetch_or(bits, Ordering::Relaxed);
    }

    fn notes(&self) -> &AtomicU8 {
        match &self.0 {
            Stored::Memory(held) => &held.notes,
            Stored::Spool(slot) => slot.notes(),
            Stored::File(file) => file.notes(),
        }
    }
}

impl From<Bytes> for Content {
    /// Holds them in memory.
    fn from(bytes: Bytes) -> Self {
        let digest = Digest::of(&bytes);
        Self(Stored::Memory(Arc::new(Held { bytes, digest, notes: AtomicU8::new(0) })))
    }
}

impl From<Arc<Slot>> for Content {
    fn from(slot: Arc<Slot>) -> Self {
        Self(Stored::Spool(slot))
    }
}

impl From<Stretch> for Content {
    /// Leaves them where they are.
    fn from(file: Stretch) -> Self {
        Self(Stored::File(Arc::new(file)))
    }
}

impl PartialEq for Content {
    fn eq(&self, other: &Self) -> bool {
        self.digest() == other.digest()
    }
}

impl Eq for Content {}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Content({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(seed: u8, len: usize) -> Bytes {
        (0..len).map(|at| seed ^ u8::try_from(at % 251).unwrap()).collect::<Vec<_>>().into()
    }

    #[test]
    fn what_is_kept_reads_back_and_short_values_are_held() {
        let spool = Spool::new(tempfile::tempfile().unwrap());
        let values: Vec<_> = [0, 1, 255, 256, 4095, 4096, 4097, 100_000].map(|len| value(7, len)).into();
        let kept: Vec<_> = values.iter().map(|value| Content::keep(value.clone(), &spool).unwrap()).collect();
        for (content, value) in kept.iter().zip(&values) {
            assert_eq!(content.read().unwrap(), value);
            assert_eq!((content.len(), content.is_empty()), (value.len(), value.is_empty()));
            assert_eq!(*content, Content::from(value.clone()));
            assert_eq!(matches!(content.0, Stored::Memory(_)), value.len() < SHORTEST);
        }
        assert!(kept.windows(2).all(|pair| pair[0] != pair[1]));
        let text = format!("{:?}", kept.last().unwrap());
        assert_eq!(text, "Content(100000 bytes)");
    }
}
