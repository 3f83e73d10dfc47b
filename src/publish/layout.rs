//! What any layout does, as the machine's effects; each layout says how.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::ValueEnum;
use rustix::fd::OwnedFd;
use rustix::fs::{Advice, FileType, Stat, fadvise};

use super::atomic::Atomic;
use super::dirfd::{Entry, look};
use super::files::Files;
use super::inspect::Published;
use super::sys::fsync;
use super::{Output, PublishError, TEMPORARIES};
use crate::machine::{Disk, Write};
use crate::model::digest::{Digest, DigestKey};
use crate::model::journal::{Generation, sequence_of};
use crate::model::tree::Tree;
use crate::reload::process::Reader;

/// How many files are held open until they are on the disk.
pub(super) const BATCH: usize = 128;

/// `--layout`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Layout {
    /// The kubelet's: all files change by one rename.
    #[default]
    Atomic,
    /// Each file is renamed into place, in a directory that others may write to as well.
    Files,
}

/// How a layout publishes. A generation goes by the name of its directory, which was checked to be of our pattern.
pub(super) trait Publisher {
    /// The directory that is current, whether it exists or not.
    fn current(&self) -> Result<Option<String>, PublishError>;

    /// Ends a swap that was cut off, so that what is current is whole. What is not as it was published, to be told.
    fn finish(&self) -> Result<Vec<String>, PublishError>;

    /// An error if something that is not ours lies where the tree needs to be.
    fn refuse_foreign(&self, tree: &Tree) -> Result<(), PublishError>;

    /// Writes a candidate, and waits until it is on the disk; with all its files, if programs are to look at it. Refuses
    /// what [`Publisher::refuse_foreign`] does.
    ///
    /// The name of its directory is not waited for: the journal that announces the generation lies beside it, and waits
    /// for both before anything can name it.
    fn write(&self, name: &str, tree: &Tree, whole: bool) -> Result<(), PublishError>;

    /// Where in the output a program finds the candidate's files.
    fn candidate(&self, name: &str) -> PathBuf;

    /// Whether the candidate is what would be published, after programs have looked at it.
    fn is_intact(&self, name: &str, tree: &Tree) -> Result<bool, PublishError>;

    /// See [`Output::link`].
    fn link(&self, name: &str) -> Result<(), PublishError>;

    /// See [`Output::swap`].
    fn swap(&self, name: &str) -> Result<(), PublishError>;

    /// See [`Output::unlink`].
    fn unlink(&self, name: &str) -> Result<(), PublishError>;

    /// See [`Output::content`].
    fn content(&self, name: &str, key: &DigestKey) -> Result<Digest, PublishError>;

    /// See [`Output::unreadable_by`].
    fn unreadable_by(&self, reader: &Reader, name: &str) -> Result<Option<String>, PublishError>;

    /// See [`Output::published`]; of the current generation.
    fn published(&self, name: &str, limit: u64) -> Result<BTreeMap<String, Published>, PublishError>;
}

impl Output {
    pub(super) fn layout(&self) -> Box<dyn Publisher + '_> {
        match self.layout {
            Layout::Atomic => Box::new(Atomic(self)),
            Layout::Files => Box::new(Files(self)),
        }
    }

    /// Ends a swap that a crash cut off, before anything else is done with the output. What is current is whole then.
    /// The strings are what was found changed by others, to be logged.
    pub fn finish(&self) -> Result<Vec<String>, PublishError> {
        self.layout().finish()
    }

    /// What lies in the output directory.
    pub fn disk(&self) -> Result<Disk, PublishError> {
        let directories = self.generations()?;
        let link = self.layout().current()?.filter(|link| directories.contains(link));
        Ok(Disk { link, directories })
    }

    /// The current generation's directory, if there is one.
    pub fn current(&self) -> Result<Option<String>, PublishError> {
        Ok(self.disk()?.link)
    }

    /// What a process could not read of the generation: the first such file or directory, with its mode and owners.
    pub fn unreadable_by(&self, reader: &Reader, generation: &Generation) -> Result<Option<String>, PublishError> {
        self.layout().unreadable_by(reader, directory(generation, "read")?)
    }

    /// The digest of the generation as it lies on the disk: [`Tree::content`] of the tree that was published, if nobody
    /// has changed it. Modes and owners are not looked at, and neither are directories without files.
    pub fn content(&self, generation: &Generation, key: &DigestKey) -> Result<Digest, PublishError> {
        self.layout().content(directory(generation, "read")?, key)
    }

    /// Writes a candidate to its directory, where no reader sees it, and to the disk.
    ///
    /// Refuses a tree that needs a place where something lies that is not ours. What a crash left under the directory's
    /// name is removed first; on an error, so is what was written.
    pub fn stage(&self, generation: &Generation, tree: &Tree) -> Result<(), PublishError> {
        self.stage_as(generation, tree, false)
    }

    /// The same for programs that are to look at [`Output::candidate`]: all files are there, also those that are
    /// published already. Whether it can be published as it is, [`Output::is_intact`] tells.
    pub fn stage_whole(&self, generation: &Generation, tree: &Tree) -> Result<(), PublishError> {
        self.stage_as(generation, tree, true)
    }

    fn stage_as(&self, generation: &Generation, tree: &Tree, whole: bool) -> Result<(), PublishError> {
        let name = self.not_current(generation, "staged")?;
        self.dir.remove(name).map_err(|errno| self.io("remove the left-over", name, errno))?;
        let written = self.layout().write(name, tree, whole);
        if written.is_err() {
            // The first error is the one to tell. What cannot be removed now goes with the next stage or prune.
            let _ = self.dir.remove(name);
        }
        written
    }

    /// Where the candidate lies, as an absolute path: for programs that look at it.
    #[must_use]
    pub fn candidate(&self, generation: &Generation) -> PathBuf {
        let path = self.path.join(self.layout().candidate(&generation.directory));
        std::path::absolute(&path).unwrap_or(path)
    }

    /// Whether the candidate can be published as it lies there; if not, it is to be staged again. Programs that look at
    /// one write into it: nginx makes its temporary directories below its prefix, also when it only tests.
    pub fn is_intact(&self, generation: &Generation, tree: &Tree) -> Result<bool, PublishError> {
        self.layout().is_intact(directory(generation, "read")?, tree)
    }

    /// Removes a candidate that is not to be published.
    pub fn discard(&self, generation: &Generation) -> Result<(), PublishError> {
        let name = self.not_current(generation, "discarded")?;
        self.dir.remove(name).map_err(|errno| self.io("remove", name, errno))
    }

    /// Carries out one of the machine's writes.
    pub fn apply(&self, write: &Write) -> Result<(), PublishError> {
        match write {
            Write::Journal(journal) => self.write_journal(journal),
            Write::Link(generation) => self.link(generation),
            Write::Swap(generation) => self.swap(generation),
            Write::Unlink(generation) => self.unlink(generation),
            Write::Prune(keep) => self.prune(&keep.iter().map(String::as_str).collect::<Vec<_>>()),
        }
    }

    /// Prepares what the swap to this generation needs. Before [`Output::swap`], and to be undone by
    /// [`Output::unlink`] of the generation that stays current.
    pub fn link(&self, generation: &Generation) -> Result<(), PublishError> {
        self.layout().link(directory(generation, "read")?)
    }

    /// Makes the generation the current one; on return, it is so on the disk.
    pub fn swap(&self, generation: &Generation) -> Result<(), PublishError> {
        let name = directory(generation, "made current")?;
        if self.look(name)? != Entry::Other(FileType::Directory) {
            let reason = "its directory is missing";
            return Err(PublishError::Generation { name: name.to_owned(), doing: "made current", reason });
        }
        self.layout().swap(name)
    }

    /// Removes what is ours at the top and what the generation, which is current, does not have.
    pub fn unlink(&self, generation: &Generation) -> Result<(), PublishError> {
        self.layout().unlink(directory(generation, "read")?)
    }

    /// Removes the generations that are neither in `keep` nor current, and what a crash left of temporary names;
    /// nothing else. One that resists does not save the others, and the first error is returned.
    pub fn prune(&self, keep: &[&str]) -> Result<(), PublishError> {
        let current = self.layout().current()?;
        let mut result = Ok(());
        let generations = self.generations()?;
        let stale = generations
            .iter()
            .map(String::as_str)
            .filter(|name| !keep.contains(name) && current.as_deref() != Some(name));
        for name in stale.chain(TEMPORARIES) {
            let removed = self.dir.remove(name).map_err(|errno| self.io("remove", name, errno));
            result = result.and(removed);
        }
        result
    }

    /// The directory of a generation that must not be the current one.
    fn not_current<'a>(&self, generation: &'a Generation, doing: &'static str) -> Result<&'a str, PublishError> {
        let name = directory(generation, doing)?;
        if self.layout().current()?.as_deref() == Some(name) {
            let reason = "its directory is the current one";
            return Err(PublishError::Generation { name: name.to_owned(), doing, reason });
        }
        Ok(name)
    }

    /// The directories of our pattern, by sequence number.
    pub(super) fn generations(&self) -> Result<Vec<String>, PublishError> {
        let mut generations = Vec::new();
        for name in self.names()? {
            if sequence_of(&name).is_some() && self.look(&name)? == Entry::Other(FileType::Directory) {
                generations.push(name);
            }
        }
        generations.sort_unstable_by_key(|name| (sequence_of(name), name.clone()));
        Ok(generations)
    }

    /// The names in the output directory; those that are not UTF-8 cannot be ours.
    pub(super) fn names(&self) -> Result<Vec<String>, PublishError> {
        let names = self.dir.names().map_err(|errno| self.io("list", "", errno))?;
        Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
    }

    pub(super) fn look(&self, name: &str) -> Result<Entry, PublishError> {
        look(&self.dir, name).map_err(|errno| self.io("read", name, errno))
    }

    /// The error for places that the tree needs and that are taken; none if there are none.
    pub(super) fn refuse(&self, foreign: &[(String, String)]) -> Result<(), PublishError> {
        match foreign {
            [] => Ok(()),
            [(name, what), more @ ..] => {
                Err(PublishError::ForeignName { path: self.path.join(name), what: what.clone(), more: more.len() })
            }
        }
    }

    /// Waits until these files are on the disk.
    ///
    /// All files are written before the first is waited for. Each fsync of a new file makes ext4 commit its journal,
    /// unless an earlier commit took the file along; that is so once the file has its blocks, which it gets when its
    /// writeback begins and not when it is written (delayed allocation). Hence the advice on all of them first: seen
    /// to save a fifth of the time for 4 files of 2 kB, and two thirds for 64, where without it the second pass is no
    /// faster than an fsync after each write. It is a hint: the order rests on the fsyncs alone, of the content, then
    /// of its names, then (in `swap`) of the link to it.
    pub(super) fn flush(&self, written: &mut Vec<(OwnedFd, String)>) -> Result<(), PublishError> {
        for (fd, _) in &*written {
            // A hint, as said above: where it fails, the fsync is slower.
            let _ = fadvise(fd, 0, None, Advice::DontNeed);
        }
        for (fd, path) in written.drain(..) {
            fsync(&fd).map_err(|errno| self.io("sync", &path, errno))?;
        }
        Ok(())
    }
}

pub(super) fn describe(path: &str, stat: &Stat) -> String {
    format!("{path} (mode {:04o}, user {}, group {})", stat.st_mode & 0o7777, stat.st_uid, stat.st_gid)
}

/// The generation's directory, if it is one that we would make: the journal is checked when it is read, but what is
/// removed and written here must not depend on that.
fn directory<'a>(generation: &'a Generation, doing: &'static str) -> Result<&'a str, PublishError> {
    let name = generation.directory.as_str();
    if sequence_of(name).is_some() {
        return Ok(name);
    }
    Err(PublishError::Generation { name: name.to_owned(), doing, reason: "its directory is not of our pattern" })
}
