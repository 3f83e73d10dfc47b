//! What is on the disk for sure, and what a power loss leaves.
//!
//! A kill loses nothing that was written: the page cache outlives the process. Only a power loss or a kernel's crash
//! does, and everything in the Pod starts anew after one. So in the kubelet's layout a publish waits for nothing:
//! [`Output::sync`] comes after the main process was notified, and before a generation is called good. A start in
//! another boot than the last sync's believes only what has the digest that the journal knows, and a journal that is
//! torn is replaced by the last one that was synced.
//!
//! In the layout of single files nothing that is in place is ever torn: what a swap needs is noted by [`Output::later`],
//! and waited for at once, by the last step before it ([`Output::flush`]); what the swap itself changes is waited for
//! like a generation of the other layout.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::{MutexGuard, PoisonError};

use nix::errno::Errno;

use super::dir::{Dir, MAX_DEPTH};
use super::state::{BOOT, BOOT_TEMPORARY, JOURNAL, SYNCED_JOURNAL, SYNCED_JOURNAL_TEMPORARY};
use super::sys::{fstat, fsync};
use super::write::BATCH;
use super::{FoundJournal, Layout, Output, PublishError};
use crate::machine::Disk;
use crate::model::digest::{Digest, DigestKey};
use crate::model::journal::Journal;

/// The longest boot ID, in bytes; the kernel's has 36.
const BOOT_LIMIT: usize = 64;

/// What is not known to be on the disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Unsynced {
    /// How often `..data` was renamed.
    pub renames: u64,
    /// How often it had been when what it names was last synced.
    synced: Option<u64>,
    /// The newest journal, if it is not.
    pub journal: Option<Vec<u8>>,
    /// This boot, until something of it is.
    boot: Option<String>,
}

impl Output {
    fn pending(&self) -> MutexGuard<'_, Vec<(OwnedFd, String)>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes files and directories that are to be on the disk at the end of the next [`Output::flush`].
    pub(super) fn later(&self, written: impl IntoIterator<Item = (OwnedFd, String)>) -> Result<(), PublishError> {
        for one in written {
            let mut pending = self.pending();
            pending.push(one);
            let full = pending.len() >= BATCH;
            drop(pending);
            if full {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// The same of a directory that is open for longer.
    pub(super) fn later_names(&self, dir: &Dir, path: &str) -> Result<(), PublishError> {
        let dir = Dir::open(dir, ".").map_err(|errno| self.io("open", path, errno))?;
        self.later([(dir.into(), path.to_owned())])
    }

    /// Waits until all that was noted is on the disk. What failed stays noted.
    pub(super) fn flush(&self) -> Result<(), PublishError> {
        if self.layout == Layout::Atomic {
            return Ok(());
        }
        let _one = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pending = std::mem::take(&mut *self.pending());
        let waited = self.wait_for(&mut pending);
        self.pending().append(&mut pending);
        waited
    }

    /// Lets go of what was removed since it was noted: its room is not free before.
    pub(super) fn forget_removed(&self) {
        self.pending().retain(|(fd, _)| !fstat(fd).is_ok_and(|stat| stat.st_nlink == 0));
    }

    pub(super) fn unsynced(&self) -> MutexGuard<'_, Unsynced> {
        // It is only poisoned by a panic, in a build that survives it; its parts are independent.
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is there at start. `boot`: the ID of this boot, if it is known.
    pub fn find(&self, boot: Option<&str>, key: &DigestKey) -> Result<(FoundJournal, Disk), PublishError> {
        let forgot = self.layout == Layout::Atomic && !self.is_boot(boot)?;
        let journal = self.read_journal(forgot)?;
        let mut disk = self.disk()?;
        if forgot {
            self.unsynced().boot = boot.map(str::to_owned);
            if let Some(lost) = self.layout().current()?.filter(|link| !disk.directories.contains(link)) {
                // Its sequence number was visible, and the name is still.
                disk.directories.push(lost.clone());
                disk.link = Some(lost);
            }
            let known = if let FoundJournal::Journal(journal) = &journal { Some(journal) } else { None };
            disk.torn = Some(self.torn(known, &disk, key));
        }
        Ok((journal, disk))
    }

    /// Whether this is the boot of the last sync.
    fn is_boot(&self, boot: Option<&str>) -> Result<bool, PublishError> {
        let read = match self.state(BOOT)?.read(BOOT, BOOT_LIMIT) {
            Err(Errno::ENOENT) => None,
            read => read.map_err(|errno| self.own_io("read", BOOT, errno))?,
        };
        Ok(read.is_some_and(|(bytes, _)| Some(bytes.as_slice()) == boot.map(str::as_bytes)))
    }

    /// The directories that are not known to be as they were published.
    fn torn(&self, journal: Option<&Journal>, disk: &Disk, key: &DigestKey) -> BTreeSet<String> {
        let named: Vec<_> = journal.iter().flat_map(|journal| journal.generations()).collect();
        let is_whole = |name: &String| {
            let known = named.iter().find(|generation| generation.directory == *name);
            known.is_some_and(|known| {
                known.content != Digest::UNKNOWN && self.content(known, key).is_ok_and(|found| found == known.content)
            })
        };
        disk.directories.iter().filter(|name| !is_whole(name)).cloned().collect()
    }

    /// Waits until the current generation is on the disk, and then the journal. Blocks for as long as the disk needs,
    /// without holding up other work on the output; what is synced already costs nothing.
    pub fn sync(&self) -> Result<(), PublishError> {
        if self.layout == Layout::Files {
            return self.flush();
        }
        let _one = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        // Before it is looked at what is current.
        let Unsynced { renames, synced, journal, boot } = self.unsynced().clone();
        let current = self.current()?;
        if let Some(name) = current.filter(|_| synced != Some(renames)) {
            self.sync_directory(&self.dir, &name, &name)?;
            self.dir.sync().map_err(|errno| self.io("sync", "", errno))?;
            self.unsynced().synced = Some(renames);
        }
        if let Some(bytes) = journal {
            self.sync_journal(&bytes).map_err(|errno| self.own_io("sync", JOURNAL, errno))?;
            self.unsynced().journal.take_if(|newest| *newest == bytes);
        }
        if let Some(boot) = boot {
            let written = self.state(BOOT)?.put(BOOT, BOOT_TEMPORARY, boot.as_bytes());
            written.map_err(|errno| self.own_io("write", BOOT, errno))?;
            self.unsynced().boot = None;
        }
        Ok(())
    }

    /// Waits until a directory is on the disk, if there is one, with all that is below it.
    pub(super) fn sync_directory(&self, at: &Dir, name: &str, path: &str) -> Result<(), PublishError> {
        let mut written = Vec::new();
        let opened = match Dir::open(at, name) {
            Err(Errno::ENOENT) if self.layout == Layout::Files => return Ok(()),
            opened => opened.map_err(|errno| self.io("open", path, errno))?,
        };
        self.sync_below(opened, path, MAX_DEPTH, &mut written)?;
        self.wait_for(&mut written)
    }

    /// All files of a directory, and then the directory.
    fn sync_below(
        &self,
        dir: Dir,
        path: &str,
        depth: usize,
        written: &mut Vec<(OwnedFd, String)>,
    ) -> Result<(), PublishError> {
        let failed = |errno| self.io("open", path, errno);
        for name in dir.names().map_err(failed)? {
            let below = format!("{path}/{}", name.to_string_lossy());
            match dir.open_file(&*name).map_err(failed)? {
                Some((file, _)) => written.push((file, below)),
                None => match Dir::open(&dir, &*name) {
                    Ok(dir) if depth > 0 => self.sync_below(dir, &below, depth - 1, written)?,
                    // Somebody else's.
                    Ok(_) | Err(Errno::ENOTDIR | Errno::ELOOP) => {}
                    Err(errno) => return Err(failed(errno)),
                },
            }
            if written.len() >= BATCH {
                self.wait_for(written)?;
            }
        }
        written.push((dir.into(), path.to_owned()));
        Ok(())
    }

    /// First the journal itself: the copy, which is read where that is torn, is never newer.
    fn sync_journal(&self, bytes: &[u8]) -> nix::Result<()> {
        let Some(state) = &self.state else { return Ok(()) };
        if let Some((file, _)) = state.open_file(JOURNAL)? {
            fsync(file)?;
        }
        state.sync()?;
        state.replace(SYNCED_JOURNAL, SYNCED_JOURNAL_TEMPORARY, bytes)
    }
}
