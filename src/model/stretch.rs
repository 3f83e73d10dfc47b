//! A value that stays on a disk: a stretch of an open file, which is read piece by piece.
//!
//! What is open cannot be taken away, whatever becomes of its name. But others may write to it: so it counts by its
//! digest alone, which is taken again each time that it is read.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::AtomicU8;

use bytes::Bytes;
use nix::errno::Errno;

use crate::model::digest::{Digest, Hasher};
use crate::model::spool::{PIECE, SpoolError, errno, in_pieces};

/// What is longer, in bytes, is not held in memory where it can be left on a disk.
pub const LARGE: u64 = 1 << 20;

/// A value in an open file.
pub struct Stretch {
    file: File,
    len: usize,
    /// SHA-256 of the bytes.
    digest: Digest,
    notes: AtomicU8,
}

impl Stretch {
    /// All that a file holds now. `seen` is asked before each piece is read, with the length so far, and ends it by an
    /// error.
    pub fn of<E>(
        file: File,
        mut seen: impl FnMut(u64) -> Result<(), E>,
        failed: impl FnOnce(Errno) -> E,
    ) -> Result<Self, E> {
        let mut buffer = vec![0; PIECE];
        let mut hasher = Hasher::plain();
        let mut len = 0;
        loop {
            let read = match file.read_at(&mut buffer, len as u64) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed(errno(&error))),
                Ok(0) => break,
                Ok(read) => read,
            };
            len += read;
            seen(len as u64)?;
            hasher.more(buffer.get(..read).unwrap_or_default());
        }
        Ok(Self { file, len, digest: hasher.finish(), notes: AtomicU8::new(0) })
    }

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

    /// The file that they begin.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Gives the bytes to `take`, piece by piece. Only when it returns well were they the right ones.
    pub fn pieces<E: From<SpoolError>>(&self, take: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let read = |piece: &mut [u8], at| {
            self.file.read_exact_at(piece, at).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => SpoolError::Changed,
                _ => SpoolError::Read(errno(&error)),
            })
        };
        let digest = in_pieces(self.len, read, take)?;
        if digest == self.digest { Ok(()) } else { Err(SpoolError::Changed.into()) }
    }

    /// Some of the bytes from a place on, as far as they fit; none at the end. Nothing says whether they are what they were.
    pub fn read_at(&self, buffer: &mut [u8], at: usize) -> io::Result<usize> {
        let length = buffer.len().min(self.len.saturating_sub(at));
        self.file.read_at(&mut buffer[..length], at as u64)
    }

    pub fn read(&self) -> Result<Bytes, SpoolError> {
        let mut bytes = Vec::with_capacity(self.len);
        self.pieces(|piece| {
            bytes.extend_from_slice(piece);
            Ok::<_, SpoolError>(())
        })?;
        Ok(bytes.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretch(bytes: &[u8]) -> (File, Stretch) {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        let other = file.try_clone().unwrap();
        (other, Stretch::of(file, |_| Ok(()), |errno| errno).unwrap())
    }

    #[test]
    fn it_is_read_in_pieces_whatever_its_length() {
        for len in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7] {
            let bytes: Vec<_> = (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect();
            let (_, stretch) = stretch(&bytes);
            assert_eq!((stretch.len(), stretch.is_empty(), stretch.digest()), (len, len == 0, Digest::of(&bytes)));
            assert_eq!(stretch.read().unwrap(), bytes);
        }
    }

    #[test]
    fn what_others_have_changed_or_cut_short_is_not_believed() {
        let (file, stretch) = stretch(&vec![7; 2 * PIECE]);
        // What comes after it is no part of it.
        file.write_all_at(b"more", 2 * PIECE as u64).unwrap();
        assert!(stretch.read().is_ok());
        file.write_all_at(b"!", PIECE as u64 + 5).unwrap();
        assert_eq!(stretch.read().unwrap_err(), SpoolError::Changed);
        file.set_len(PIECE as u64).unwrap();
        assert_eq!(stretch.read().unwrap_err(), SpoolError::Changed);
    }

    #[test]
    fn whoever_has_no_room_for_it_ends_the_read() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 40).unwrap();
        let mut last = 0;
        let ended = Stretch::of(
            file,
            |length| {
                last = length;
                if length > 1 << 20 { Err(Errno::EFBIG) } else { Ok(()) }
            },
            |errno| errno,
        );
        assert_eq!(ended.err(), Some(Errno::EFBIG));
        assert!(last <= (1 << 20) + PIECE as u64, "{last}");
    }
}
