//! What Trimtab keeps for itself, in a directory of its own below the output, or below `--state-dir`: the lock, the digest key, the journal, and
//! the spool. Programs that scan the output find nothing there but what a kubelet's volume has, and one directory
//! without files: Loki's ruler lists each directory of its rules' as a tenant, fails if one cannot be read, and parses
//! each file in it.

use std::fs::{File, TryLockError};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use rustix::rand::{GetRandomFlags, getrandom};
use tracing::warn;

use super::dir::{Dir, Occupant, PRIVATE, is_own, look, permissions, settle};
use super::open::{is_earlier, make_shown_dir, own_dir, was_used};
use super::sys::{fstat, openat, renameat};
use super::{Layout, Output, PublishError, files};
use crate::model::digest::DigestKey;
use crate::model::journal::{Journal, JournalError};
use crate::model::made_of;
use crate::model::spool::Spool;

/// In the output, for all users to see: it holds nothing but [`PRIVATE_DIR`].
pub(super) const STATE: &str = "..trimtab";
/// Its directory in there, which only Trimtab's user can enter.
pub(super) const PRIVATE_DIR: &str = "private";
/// [`STATE`] in the making, out of what versions up to 0.2 have at its place.
pub(super) const MOVING: &str = "..trimtab.tmp";

pub(super) const LOCK: &str = "lock";
pub(super) const KEY: &str = "key";
pub(super) const KEY_TEMPORARY: &str = "key.tmp";
pub(super) const JOURNAL: &str = "journal.json";
pub(super) const JOURNAL_TEMPORARY: &str = "journal.json.tmp";
pub(super) const JOURNAL_BAD: &str = "journal.json.bad";
/// The journal as it was synced last, for a start at which the newest is torn.
pub(super) const SYNCED_JOURNAL: &str = "journal.synced.json";
pub(super) const SYNCED_JOURNAL_TEMPORARY: &str = "journal.synced.json.tmp";
/// The ID of the boot in which that was.
pub(super) const BOOT: &str = "boot";
pub(super) const BOOT_TEMPORARY: &str = "boot.tmp";
/// The last changes, for people. Nothing depends on it.
const HISTORY: &str = "history.json";
/// What was archived last.
const ARCHIVED: &str = "archived.json";
/// The spool, for the moment that it has a name.
const SPOOL: &str = "spool";

/// What a crash can leave behind there.
pub(super) const TEMPORARIES: [&str; 5] =
    [files::CURRENT_TEMPORARY, JOURNAL_TEMPORARY, KEY_TEMPORARY, SYNCED_JOURNAL_TEMPORARY, BOOT_TEMPORARY];

/// The lock of versions up to 0.1, which kept all of this beside the published files.
pub(super) const EARLIER_LOCK: &str = "..trimtab.lock";

/// Their other names and today's, if it is to be kept. In this order: what names others follows them.
const EARLIER: [(&str, Option<&str>); 8] = [
    ("..trimtab.key", Some(KEY)),
    (files::EARLIER_CURRENT, Some(files::CURRENT)),
    ("..trimtab.json", Some(JOURNAL)),
    ("..trimtab.json.bad", Some(JOURNAL_BAD)),
    ("..trimtab.current.tmp", None),
    ("..trimtab.json.tmp", None),
    ("..trimtab.key.tmp", None),
    (EARLIER_LOCK, None),
];

/// What is longer is neither a history nor what was archived.
const NOTE_LIMIT: usize = 64 << 10;

/// A journal is about 1 kB, unless a selector's deletions are not applied. What is longer is none.
pub(super) const JOURNAL_LIMIT: usize = 4 * made_of::LIMIT;

/// While it lives, no other Trimtab works on the output. The kernel releases it with the process.
#[derive(Debug)]
#[must_use]
pub struct Lock {
    _files: Vec<File>,
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

/// A journal and its text, or why it is none.
type Parsed = Result<(Journal, Vec<u8>), JournalError>;

impl Output {
    /// Takes the lock, and takes over what an earlier version left; `None` if another process holds the output.
    pub fn try_lock(&self) -> Result<Option<Lock>, PublishError> {
        // Another may keep elsewhere what is its own.
        let directory = lock_directory(&self.dir).map_err(|errno| self.io("lock", "", errno))?;
        let Some(mut files) = directory else { return Ok(None) };
        let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(self.state(LOCK)?, LOCK, flags | OFlag::O_CREAT, PRIVATE);
        let file = file.map_err(|errno| self.own_io("open", LOCK, errno))?;
        match locked(file).map_err(|errno| self.own_io("lock", LOCK, errno))? {
            None => return Ok(None),
            Some(file) => files.push(file),
        }
        for folder in &self.folders {
            let failed = |errno| self.io("lock", &folder.path, errno);
            let Some(own) = &folder.own else { continue };
            let file = openat(own, LOCK, flags | OFlag::O_CREAT, PRIVATE).map_err(failed)?;
            let locked = locked(file).map_err(failed)?.zip(lock_directory(&folder.dir).map_err(failed)?);
            let Some((file, directory)) = locked else { return Ok(None) };
            files.push(file);
            files.extend(directory);
        }
        // Held until all is moved.
        let others = [(Some(&self.dir), EARLIER_LOCK), (self.replaced()?.as_ref(), LOCK)].map(|(dir, name)| {
            let opened = dir.map_or(Err(Errno::ENOENT), |dir| openat(dir, name, flags, PRIVATE));
            (name, opened)
        });
        let mut meanwhile = Vec::new();
        for (name, opened) in others {
            match opened {
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(self.io("open", name, errno)),
                Ok(file) => match locked(file).map_err(|errno| self.io("lock", name, errno))? {
                    None => return Ok(None),
                    Some(file) => meanwhile.push(file),
                },
            }
        }
        self.take_over()?;
        self.take_apart()?;
        Ok(Some(Lock { _files: files }))
    }

    /// What is in `--state-dir` and gives way to what comes from the output.
    fn replaced(&self) -> Result<Option<Dir>, PublishError> {
        let Some((apart, _)) = &self.apart else { return Ok(None) };
        if !self.comes_from_output()? {
            return Ok(None);
        }
        let opened = Dir::open(apart, STATE).and_then(|shown| Dir::open(&shown, PRIVATE_DIR));
        match opened {
            Err(Errno::ENOENT) => Ok(None),
            opened => opened.map(Some).map_err(|errno| self.own_io("open", "", errno)),
        }
    }

    /// Whether what is Trimtab's own is still in the output, and is to be apart.
    fn comes_from_output(&self) -> Result<bool, PublishError> {
        let (Some(_), Some(state)) = (&self.apart, &self.state) else { return Ok(false) };
        let Some(inside) = own_dir(&self.dir, &self.path)? else { return Ok(false) };
        let failed = |errno| self.io("stat", STATE, errno);
        let (state, inside) = (fstat(state).map_err(failed)?, fstat(inside).map_err(failed)?);
        Ok((state.st_dev, state.st_ino) == (inside.st_dev, inside.st_ino))
    }

    /// Moves what is Trimtab's own out of the output into `--state-dir`, in the place of what is there: only a start
    /// without `--state-dir` leaves something in the output. The rename leaves all in it where it is open; until then, what
    /// is in the output counts, and the next start goes on.
    fn take_apart(&self) -> Result<(), PublishError> {
        let home = self.home();
        let failed = |errno| self.own_io("take over", "", errno);
        if self.comes_from_output()? {
            let moved = home.remove(STATE).and_then(|()| {
                home.remove(MOVING)?;
                renameat(&self.dir, STATE, home, STATE)?;
                home.sync()?;
                self.dir.sync()
            });
            moved.map_err(failed)?;
        } else if self.apart.is_some()
            && let Some(inside) = own_dir(&self.dir, &self.path)?
        {
            // Made by a start without --state-dir that has asked for the lock in vain; or that had it since we looked.
            let unused = was_used(&inside).and_then(|used| if used { Err(Errno::ESTALE) } else { Ok(()) });
            unused.and_then(|()| self.dir.remove(STATE)).map_err(|errno| self.io("take over", STATE, errno))?;
        }
        Ok(())
    }

    /// The directory that what is Trimtab's own is in.
    fn home(&self) -> &Dir {
        self.apart.as_ref().map_or(&self.dir, |(apart, _)| apart)
    }

    /// Moves what an earlier version keeps beside the published files to today's place. It is what counts, also where
    /// there is something at today's place: today's versions leave nothing at the earlier one. Cut off at any point, it
    /// goes on at the next start, before anything is read.
    fn take_over(&self) -> Result<(), PublishError> {
        let from = if self.comes_from_output()? { &self.dir } else { self.home() };
        Self::move_inside(from).map_err(|errno| self.own_io("take over", "", errno))?;
        let state = self.state("")?;
        let mut changed = false;
        let mut take = |from: &str, to: Option<&str>| {
            let taken = match (look(&self.dir, from), to) {
                (Ok(Occupant::Nothing), _) => return Ok(()),
                (Ok(_), Some(to)) => state.remove(to).and_then(|()| renameat(&self.dir, from, state, to)),
                (Ok(_), None) => self.dir.remove(from),
                (Err(errno), _) => Err(errno),
            };
            changed = true;
            taken.map_err(|errno| self.io("take over", from, errno))
        };
        if self.layout == Layout::Files {
            for name in self.generations_in(&self.dir)? {
                take(&name, Some(&name))?;
            }
        }
        for (from, to) in EARLIER {
            take(from, to)?;
        }
        if changed {
            state.sync().and_then(|()| self.dir.sync()).map_err(|errno| self.io("sync", "", errno))?;
        }
        Ok(())
    }

    /// Versions up to 0.2 had [`STATE`] for themselves: it becomes [`PRIVATE_DIR`], by a rename that leaves all in it where
    /// it is open.
    fn move_inside(dir: &Dir) -> nix::Result<()> {
        match Dir::open(dir, STATE) {
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
            Ok(shown) if !is_earlier(&shown)? => return Ok(()),
            Ok(shown) => {
                // What a version of today left before the earlier one came back.
                shown.remove(PRIVATE_DIR)?;
                dir.remove(MOVING)?;
                let moving = make_shown_dir(dir, MOVING)?;
                renameat(dir, STATE, &moving, PRIVATE_DIR)?;
                moving.sync()?;
            }
        }
        renameat(dir, MOVING, dir, STATE)?;
        dir.sync()
    }

    /// The directory of its own, for work on `name` in it. Only [`Output::inspect`] can find none.
    pub(super) fn state(&self, name: &str) -> Result<&Dir, PublishError> {
        self.state.as_ref().ok_or_else(|| self.own_io("open", name, Errno::ENOENT))
    }

    /// The path of a name in it.
    pub(super) fn own(&self, name: &str) -> PathBuf {
        own_in(self.apart.as_ref().map_or(&self.path, |(_, path)| path), name)
    }

    pub(super) fn own_io(&self, doing: &'static str, name: &str, errno: Errno) -> PublishError {
        PublishError::Io { doing, path: self.own(name), errno }
    }

    /// The key of published digests, made on first use.
    ///
    /// One that is not 32 bytes in a regular file of this user is replaced: digests change, and a reload too many is
    /// all that follows. One that is merely too readable is kept, and its mode narrowed: the kubelet makes every file
    /// of a persistent volume readable and writable by fsGroup at each mount (`pkg/volume/volume_linux.go`).
    pub fn digest_key(&self) -> Result<DigestKey, PublishError> {
        if let Some((bytes, file)) = self.found_key()? {
            let found = settle(&file, None, PRIVATE).map_err(|errno| self.own_io("set the mode of", KEY, errno))?;
            self.warn_if_exposed(found);
            return Ok(DigestKey::new(bytes));
        }
        let mut bytes = [0; 32];
        // Up to 256 bytes are never cut short (getrandom(2)).
        getrandom(&mut bytes, GetRandomFlags::empty())
            .map_err(|errno| self.own_io("get random bytes for", KEY, Errno::from_raw(errno.raw_os_error())))?;
        let state = self.state(KEY)?;
        state.replace(KEY, KEY_TEMPORARY, &bytes).map_err(|errno| self.own_io("write", KEY, errno))?;
        if let Some(stat) = state.stat(KEY).map_err(|errno| self.own_io("stat", KEY, errno))? {
            self.warn_if_exposed(permissions(&stat));
        }
        Ok(DigestKey::new(bytes))
    }

    fn warn_if_exposed(&self, key: Mode) {
        if !PRIVATE.contains(key) {
            warn!(
                "{} has mode {:04o} instead of 0600: its file system keeps no modes, and with it others could test \
                 guesses of secrets against the digests that Trimtab shows; use an emptyDir",
                self.own(KEY).display(),
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
        let Some(state) = &self.state else { return Ok(None) };
        let found = match state.read(KEY, 32) {
            Err(Errno::ENOENT) => None,
            other => other.map_err(|errno| self.own_io("read", KEY, errno))?,
        };
        let Some((bytes, file)) = found else { return Ok(None) };
        let ours = is_own(&fstat(&file).map_err(|errno| self.own_io("stat", KEY, errno))?);
        Ok(<[u8; 32]>::try_from(bytes).ok().filter(|_| ours).map(|bytes| (bytes, file)))
    }

    /// A spool on the output's volume: 0600, and without a name from the start, where the file system can do that. From
    /// then on it also keeps what [`Output::published`] reads.
    pub fn spool(&self) -> Result<Spool, PublishError> {
        if let Some(spool) = self.spool.get() {
            return Ok(spool.clone());
        }
        let spool = self.scratch()?;
        Ok(self.spool.get_or_init(|| spool).clone())
    }

    /// The same, of which nobody else knows: for a value of which only the end shows how long it is.
    pub fn scratch(&self) -> Result<Spool, PublishError> {
        // With O_EXCL nobody can give it a name later.
        let nameless = OFlag::O_RDWR | OFlag::O_TMPFILE | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let state = self.state(SPOOL)?;
        // One that a kill has left.
        state.remove(SPOOL).map_err(|errno| self.own_io("remove the left-over", SPOOL, errno))?;
        let file = match openat(state, ".", nameless, PRIVATE) {
            // The last two come from kernels and file systems that do not know the flag, and see a directory.
            Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::ENOENT) => {
                let named = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                openat(state, SPOOL, named, PRIVATE).and_then(|file| state.remove(SPOOL).map(|()| file))
            }
            opened => opened,
        };
        let file =
            file.map_err(|errno| self.own_io("make the file that keeps values, without a name, in", SPOOL, errno))?;
        Ok(Spool::new(file.into()))
    }

    /// The journal as it is, left where it is; `None`: there is none.
    pub fn journal(&self) -> Result<Option<Result<Journal, JournalError>>, PublishError> {
        let Some(state) = &self.state else { return Ok(None) };
        Ok(self.parsed(state, JOURNAL)?.map(|parsed| parsed.map(|(journal, _)| journal)))
    }

    /// Reads the journal. One that cannot be believed is renamed, in the place of an older such one, unless the disk
    /// may have forgotten it and has the one before.
    pub fn read_journal(&self, forgot: bool) -> Result<FoundJournal, PublishError> {
        let Some(state) = &self.state else { return Ok(FoundJournal::Nothing) };
        let newest = self.parsed(state, JOURNAL)?;
        if let Some(Ok((journal, bytes))) = newest {
            // It is not known whether an earlier life has synced it.
            self.unsynced().journal = Some(bytes).filter(|_| self.layout == Layout::Atomic);
            return Ok(FoundJournal::Journal(journal));
        }
        if forgot && let Some(Ok((journal, _))) = self.parsed(state, SYNCED_JOURNAL)? {
            self.write_journal(&journal)?;
            return Ok(FoundJournal::Journal(journal));
        }
        match newest {
            None | Some(Ok(_)) => Ok(FoundJournal::Nothing),
            Some(Err(reason)) => {
                let aside = state.remove(JOURNAL_BAD).and_then(|()| {
                    renameat(state, JOURNAL, state, JOURNAL_BAD)?;
                    state.sync()
                });
                aside.map_err(|errno| self.own_io("set aside", JOURNAL, errno))?;
                Ok(FoundJournal::SetAside { reason, name: format!("{STATE}/{PRIVATE_DIR}/{JOURNAL_BAD}") })
            }
        }
    }

    /// The journal at a name, and its text; `None` if nothing is there.
    fn parsed(&self, state: &Dir, name: &str) -> Result<Option<Parsed>, PublishError> {
        Ok(match state.read(name, JOURNAL_LIMIT) {
            Err(Errno::ENOENT) => None,
            Err(errno) => return Err(self.own_io("read", name, errno)),
            Ok(Some((bytes, _))) => Some(Journal::parse(&bytes).map(|journal| (journal, bytes))),
            Ok(None) => Some(Err(JournalError::Malformed { line: 0, column: 0 })),
        })
    }

    /// What [`Output::write_history`] wrote, as far as it is there.
    #[must_use]
    pub fn read_history(&self) -> Vec<u8> {
        self.read_note(HISTORY)
    }

    /// Replaces the history. A crash may lose it: nobody waits for the disk.
    pub fn write_history(&self, bytes: &[u8]) -> Result<(), PublishError> {
        self.write_note(HISTORY, bytes)
    }

    /// What [`Output::write_archived`] wrote, as far as it is there.
    #[must_use]
    pub fn read_archived(&self) -> Vec<u8> {
        self.read_note(ARCHIVED)
    }

    /// Replaces what is known of the archive. A crash may lose it, and then the same is archived once more.
    pub fn write_archived(&self, bytes: &[u8]) -> Result<(), PublishError> {
        self.write_note(ARCHIVED, bytes)
    }

    fn read_note(&self, name: &str) -> Vec<u8> {
        let read = self.state(name).ok().and_then(|state| state.read(name, NOTE_LIMIT).ok().flatten());
        read.map(|(bytes, _)| bytes).unwrap_or_default()
    }

    fn write_note(&self, name: &str, bytes: &[u8]) -> Result<(), PublishError> {
        let state = self.state(name)?;
        let written = state.remove(name).and_then(|()| state.create(name, bytes, None, PRIVATE));
        written.map(drop).map_err(|errno| self.own_io("write", name, errno))
    }

    /// Replaces the journal. In the layout of single files its bytes are on the disk on return, and its name is after
    /// the next [`Output::flush`].
    pub fn write_journal(&self, journal: &Journal) -> Result<(), PublishError> {
        let (state, bytes) = (self.state(JOURNAL)?, journal.to_bytes());
        let written = match self.layout {
            Layout::Atomic => {
                state.put(JOURNAL, JOURNAL_TEMPORARY, &bytes).map(|()| self.unsynced().journal = Some(bytes))
            }
            Layout::Files => state.rename_over(JOURNAL, JOURNAL_TEMPORARY, &bytes),
        };
        written.map_err(|errno| self.own_io("write", JOURNAL, errno))?;
        if self.layout == Layout::Files { self.later_names(state, JOURNAL) } else { Ok(()) }
    }
}

/// The path of a name in Trimtab's own directory, which is in this one.
pub(super) fn own_in(home: &Path, name: &str) -> PathBuf {
    home.join(STATE).join(PRIVATE_DIR).join(name)
}

fn locked(file: OwnedFd) -> nix::Result<Option<File>> {
    let file = File::from(file);
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(Errno::from_raw(error.raw_os_error().unwrap_or_default())),
    }
}

/// Locks the directory itself; `None` if another holds it. A network's file system may lock files alone.
fn lock_directory(dir: &Dir) -> nix::Result<Option<Vec<File>>> {
    match locked(Dir::open(dir, ".")?.into()) {
        Ok(locked) => Ok(locked.map(|file| vec![file])),
        Err(Errno::EBADF | Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(Some(Vec::new())),
        Err(errno) => Err(errno),
    }
}
