//! What Trimtab itself keeps in the output directory: the lock, the digest key, the journal, and the spool.

use std::fs::{File, TryLockError};
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use rustix::rand::{GetRandomFlags, getrandom};
use tracing::warn;

use super::dir::{PRIVATE, is_own, permissions, settle};
use super::sys::{fstat, openat, renameat};
use super::{Output, PublishError, atomic, files};
use crate::model::digest::DigestKey;
use crate::model::journal::{Journal, JournalError};
use crate::model::made_of;
use crate::model::spool::Spool;

pub(super) const LOCK: &str = "..trimtab.lock";
pub(super) const KEY: &str = "..trimtab.key";
pub(super) const KEY_TEMPORARY: &str = "..trimtab.key.tmp";
pub(super) const JOURNAL: &str = "..trimtab.json";
pub(super) const JOURNAL_TEMPORARY: &str = "..trimtab.json.tmp";
pub(super) const JOURNAL_BAD: &str = "..trimtab.json.bad";
/// The spool, for the moment that it has a name.
const SPOOL: &str = "..trimtab.spool";

/// What a crash can leave behind, besides generations.
pub(super) const TEMPORARIES: [&str; 4] =
    [atomic::DATA_TEMPORARY, files::CURRENT_TEMPORARY, JOURNAL_TEMPORARY, KEY_TEMPORARY];

/// A journal is about 1 kB, unless a selector's deletions are not applied. What is longer is none.
pub(super) const JOURNAL_LIMIT: usize = 4 * made_of::LIMIT;

/// While it lives, no other Trimtab works on the output. The kernel releases it with the process.
#[derive(Debug)]
#[must_use]
pub struct Lock {
    _file: File,
}

/// What was found at the journal's place.
#[derive(Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "there is one, at start")]
pub enum FoundJournal {
    Nothing,
    /// To be believed.
    Journal(Journal),
    /// Something unreadable, renamed and not followed.
    SetAside {
        reason: JournalError,
        /// Its new name in the output directory.
        name: String,
    },
}

impl Output {
    /// Takes the lock; `None` if another process holds it.
    pub fn try_lock(&self) -> Result<Option<Lock>, PublishError> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(&self.dir, LOCK, flags, PRIVATE).map_err(|errno| self.io("open", LOCK, errno))?;
        let file = File::from(file);
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => {
                let errno = Errno::from_raw(error.raw_os_error().unwrap_or_default());
                Err(self.io("lock", LOCK, errno))
            }
        }
    }

    /// The key of published digests, made on first use.
    ///
    /// One that is not 32 bytes in a regular file of this user is replaced: digests change, and a reload too many is
    /// all that follows. One that is merely too readable is kept, and its mode narrowed: the kubelet makes every file
    /// of a persistent volume readable and writable by fsGroup at each mount (`pkg/volume/volume_linux.go`).
    pub fn digest_key(&self) -> Result<DigestKey, PublishError> {
        if let Some((bytes, file)) = self.found_key()? {
            let found = settle(&file, None, PRIVATE).map_err(|errno| self.io("set the mode of", KEY, errno))?;
            self.warn_if_exposed(found);
            return Ok(DigestKey::new(bytes));
        }
        let mut bytes = [0; 32];
        // Up to 256 bytes are never cut short (getrandom(2)).
        getrandom(&mut bytes, GetRandomFlags::empty())
            .map_err(|errno| self.io("get random bytes for", KEY, Errno::from_raw(errno.raw_os_error())))?;
        self.dir.replace(KEY, KEY_TEMPORARY, &bytes).map_err(|errno| self.io("write", KEY, errno))?;
        if let Some(stat) = self.dir.stat(KEY).map_err(|errno| self.io("stat", KEY, errno))? {
            self.warn_if_exposed(permissions(&stat));
        }
        Ok(DigestKey::new(bytes))
    }

    fn warn_if_exposed(&self, key: Mode) {
        if !PRIVATE.contains(key) {
            warn!(
                "{} has mode {:04o} instead of 0600: its file system keeps no modes, and with it others could test \
                 guesses of secrets against the digests that Trimtab shows; use an emptyDir",
                self.path.join(KEY).display(),
                key.bits()
            );
        }
    }

    /// The digest key, if one is there that [`Output::digest_key`] would take.
    #[must_use]
    pub fn existing_digest_key(&self) -> Option<DigestKey> {
        self.found_key().ok()?.map(|(bytes, _)| DigestKey::new(bytes))
    }

    /// The key that is there, if it is one of this user's.
    pub(super) fn found_key(&self) -> Result<Option<([u8; 32], OwnedFd)>, PublishError> {
        let found = match self.dir.read(KEY, 32) {
            Err(Errno::ENOENT) => None,
            other => other.map_err(|errno| self.io("read", KEY, errno))?,
        };
        let Some((bytes, file)) = found else { return Ok(None) };
        let ours = is_own(&fstat(&file).map_err(|errno| self.io("stat", KEY, errno))?);
        Ok(<[u8; 32]>::try_from(bytes).ok().filter(|_| ours).map(|bytes| (bytes, file)))
    }

    /// A spool on the output's volume: 0600, and without a name from the start, where the file system can do that. From
    /// then on it also keeps what [`Output::published`] reads.
    pub fn spool(&self) -> Result<Spool, PublishError> {
        if let Some(spool) = self.spool.get() {
            return Ok(spool.clone());
        }
        // With O_EXCL nobody can give it a name later.
        let nameless = OFlag::O_RDWR | OFlag::O_TMPFILE | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let file = match openat(&self.dir, ".", nameless, PRIVATE) {
            // The last two come from kernels and file systems that do not know the flag, and see a directory.
            Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::ENOENT) => {
                let named = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                // One that a kill has left.
                let removed = self.dir.remove(SPOOL);
                let opened = removed.and_then(|()| openat(&self.dir, SPOOL, named, PRIVATE));
                opened.and_then(|file| self.dir.remove(SPOOL).map(|()| file))
            }
            opened => opened,
        };
        let file = file.map_err(|errno| self.io("make the file that keeps values, without a name, in", "", errno))?;
        Ok(self.spool.get_or_init(|| Spool::new(file.into())).clone())
    }

    /// Reads the journal. One that cannot be believed is renamed, in the place of an older such one.
    pub fn read_journal(&self) -> Result<FoundJournal, PublishError> {
        let read = match self.dir.read(JOURNAL, JOURNAL_LIMIT) {
            Err(Errno::ENOENT) => return Ok(FoundJournal::Nothing),
            other => other.map_err(|errno| self.io("read", JOURNAL, errno))?,
        };
        let parsed = match read {
            Some((bytes, _)) => Journal::parse(&bytes),
            None => Err(JournalError::Malformed { line: 0, column: 0 }),
        };
        match parsed {
            Ok(journal) => Ok(FoundJournal::Journal(journal)),
            Err(reason) => {
                let aside = self.dir.remove(JOURNAL_BAD).and_then(|()| {
                    renameat(&self.dir, JOURNAL, &self.dir, JOURNAL_BAD)?;
                    self.dir.sync()
                });
                aside.map_err(|errno| self.io("set aside", JOURNAL, errno))?;
                Ok(FoundJournal::SetAside { reason, name: JOURNAL_BAD.to_owned() })
            }
        }
    }

    /// Replaces the journal; on return it is on the disk.
    pub fn write_journal(&self, journal: &Journal) -> Result<(), PublishError> {
        self.dir
            .replace(JOURNAL, JOURNAL_TEMPORARY, &journal.to_bytes())
            .map_err(|errno| self.io("write", JOURNAL, errno))
    }
}
