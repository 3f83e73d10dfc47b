//! A bundle of files whose bytes depend on their paths and contents alone, written to the disk as it grows.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;

use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};
use tar::{Builder, EntryType, Header};

use crate::model::content::Content;
use crate::model::digest::{Digest, Hasher};
use crate::model::spool::{Spool, SpoolError, Writing};

/// More than any bundle is, in bytes: what is reserved in a file that holds nothing else.
const MOST: u64 = 1 << 40;
/// What gzip calls a system that is not known (RFC 1952): the same on each.
const UNKNOWN_SYSTEM: u8 = 255;

/// A bundle on the disk.
#[derive(Clone, Debug)]
pub struct Packed {
    /// Of the tar archive, whatever it is packed by.
    pub digest: Digest,
    pub content: Content,
    /// How many files it has.
    pub files: usize,
}

/// Why a file was not packed.
#[derive(Debug)]
pub enum PackError {
    /// It cannot be read.
    Read(io::Error),
    /// It does not have the size that it had.
    Changing,
    /// The bundle cannot be written.
    Write(SpoolError),
}

/// A bundle that grows.
pub struct Packer {
    tar: Builder<Digested>,
    files: usize,
}

/// What goes to gzip, and into a digest.
struct Digested {
    gzip: GzEncoder<Kept>,
    hasher: Hasher,
}

/// What goes to the disk, and why it did not.
struct Kept {
    writing: Writing,
    error: Option<SpoolError>,
}

impl Write for Digested {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.gzip.write(bytes)?;
        self.hasher.more(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.gzip.flush()
    }
}

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.writing.add(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(error) => {
                self.error = Some(error);
                Err(io::ErrorKind::Other.into())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Exactly so many bytes of a file, and their digest.
struct Exactly<R> {
    file: R,
    left: u64,
    hasher: Hasher,
    error: Option<PackError>,
}

impl<R: Read> Exactly<R> {
    fn fail(&mut self, error: PackError) -> io::Result<usize> {
        self.error = Some(error);
        Err(io::ErrorKind::Other.into())
    }
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match self.file.read(buffer) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => return self.fail(PackError::Read(error)),
        };
        match self.left.checked_sub(read as u64) {
            Some(left) if read > 0 || left == 0 => self.left = left,
            _ => return self.fail(PackError::Changing),
        }
        self.hasher.more(&buffer[..read]);
        Ok(read)
    }
}

impl Packer {
    /// Into a spool that is for this alone; the bundle's digest is taken by `hasher`.
    #[must_use]
    pub fn new(spool: &Spool, hasher: Hasher) -> Self {
        let kept = Kept { writing: spool.begin(MOST), error: None };
        let gzip = GzBuilder::new().mtime(0).operating_system(UNKNOWN_SYSTEM).write(kept, Compression::default());
        Self { tar: Builder::new(Digested { gzip, hasher }), files: 0 }
    }

    /// Adds a file, in the order of paths; says the SHA-256 of its bytes.
    pub fn add(&mut self, path: &[u8], size: u64, file: impl Read) -> Result<Digest, PackError> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        let mut exactly = Exactly { file, left: size, hasher: Hasher::plain(), error: None };
        match self.tar.append_data(&mut header, OsStr::from_bytes(path), &mut exactly) {
            Ok(()) => {
                self.files += 1;
                Ok(exactly.hasher.finish())
            }
            Err(error) => Err(match (exactly.error, self.tar.get_ref().gzip.get_ref().error) {
                (Some(error), _) => error,
                (None, Some(error)) => PackError::Write(error),
                (None, None) => PackError::Read(error),
            }),
        }
    }

    /// The whole bundle.
    pub fn end(self) -> Result<Packed, SpoolError> {
        let Self { tar, files } = self;
        // It fails only where writing does, which leaves its reason.
        let Ok(Digested { mut gzip, hasher }) = tar.into_inner() else {
            return Err(SpoolError::Write(nix::errno::Errno::EIO));
        };
        let ended = gzip.try_finish();
        let kept = gzip.get_ref();
        if let Some(error) = kept.error {
            return Err(error);
        }
        let kept = ended.and_then(|()| gzip.finish()).map_err(|_| SpoolError::Write(nix::errno::Errno::EIO))?;
        Ok(Packed { digest: hasher.finish(), content: kept.writing.end().into(), files })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use flate2::read::GzDecoder;
    use proptest::prelude::*;

    use super::*;

    fn spool() -> Spool {
        Spool::new(tempfile::tempfile().unwrap())
    }

    fn packed(files: &BTreeMap<String, Vec<u8>>) -> Packed {
        let mut packer = Packer::new(&spool(), Hasher::plain());
        for (path, bytes) in files {
            assert_eq!(packer.add(path.as_bytes(), bytes.len() as u64, &bytes[..]).unwrap(), Digest::of(bytes));
        }
        packer.end().unwrap()
    }

    fn tar(packed: &Packed) -> Vec<u8> {
        let mut tar = Vec::new();
        GzDecoder::new(&packed.content.read().unwrap()[..]).read_to_end(&mut tar).unwrap();
        tar
    }

    proptest! {
        #[test]
        fn bundle_has_the_same_bytes_for_the_same_content_and_others_for_another(
            files in proptest::collection::btree_map("[a-z]{1,9}(/[a-z.]{1,60}x){0,4}y", any::<Vec<u8>>(), 0..9),
            path in "[A-Z]{1,5}",
        ) {
            let (one, two) = (packed(&files), packed(&files));
            prop_assert_eq!(one.content.read().unwrap(), two.content.read().unwrap());
            prop_assert_eq!((one.digest, one.files), (Digest::of(&tar(&one)), files.len()));
            let mut found = BTreeMap::new();
            for entry in tar::Archive::new(&tar(&one)[..]).entries().unwrap() {
                let mut entry = entry.unwrap();
                let header = entry.header();
                prop_assert_eq!((header.mtime().unwrap(), header.uid().unwrap(), header.gid().unwrap()), (0, 0, 0));
                prop_assert_eq!(header.mode().unwrap(), 0o644);
                let path = entry.path().unwrap().to_str().unwrap().to_owned();
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).unwrap();
                found.insert(path, bytes);
            }
            prop_assert_eq!(&found, &files);
            let mut more = files.clone();
            more.insert(path, vec![1]);
            prop_assert_ne!(packed(&more).digest, one.digest);
        }
    }

    #[test]
    fn file_of_another_size_is_not_packed() {
        for bytes in ["", "ab", "abcd"] {
            let mut packer = Packer::new(&spool(), Hasher::plain());
            let error = packer.add(b"x", 3, bytes.as_bytes()).unwrap_err();
            assert!(matches!(error, PackError::Changing), "{bytes}: {error:?}");
        }
    }

    #[test]
    fn full_disk_is_the_reason_and_not_the_file() {
        let full = std::fs::File::options().read(true).write(true).open("/dev/full").unwrap();
        let mut packer = Packer::new(&Spool::new(full), Hasher::plain());
        let mut noise = 1_u32;
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            noise.to_be_bytes()[0]
        })
        .take(1 << 20)
        .collect();
        let error = packer.add(b"x", bytes.len() as u64, &bytes[..]).unwrap_err();
        assert!(matches!(error, PackError::Write(SpoolError::Write(nix::errno::Errno::ENOSPC))), "{error:?}");
    }
}
