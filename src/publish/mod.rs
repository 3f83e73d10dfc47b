//! Publishing: everything that touches the output directory.
//!
//! [`Output`] gives the machine its effects, and the machine gives them their order: stage, journal, link, swap,
//! unlink, sync, journal, prune. Each effect may be cut off by a crash after any system call and be done again from its
//! beginning. All of it is blocking, and made for `spawn_blocking`.
//!
//! `open` is the way in, `state` what Trimtab keeps for itself; `atomic` is the kubelet's layout, `files` the one of
//! single files; `durable` has what a power loss leaves; `write` and `read_back` serve both.

mod atomic;
mod cursor;
mod dir;
mod durable;
mod error;
mod files;
mod folder;
mod layout;
mod open;
mod read_back;
mod state;
mod sys;
#[cfg(test)]
mod tests;
mod write;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};

use nix::errno::Errno;
use nix::sys::stat::Mode;
use nix::unistd::{getegid, geteuid};

use self::atomic::Atomic;
use self::dir::{Dir, Occupant, look};
use self::durable::Unsynced;
pub use self::error::PublishError;
use self::files::Files;
use self::folder::{Access, Folder};
pub use self::layout::Layout;
use self::layout::Publisher;
pub use self::read_back::{MayAccess, PublishedFile, Unread};
pub use self::state::{FoundJournal, Lock};
use self::state::{STATE, TEMPORARIES};
use crate::machine::{Disk, Write};
use crate::model::digest::DigestKey;
use crate::model::journal::{Generation, sequence_of};
use crate::model::spool::Spool;
use crate::model::tree::{File, Tree};

/// Where to write, and how readable.
#[derive(Clone, Debug)]
pub struct Config {
    /// `--output`. Its parents may be symlinks; it itself may not.
    pub output: PathBuf,
    /// `--state-dir`: where Trimtab keeps what is its own, if not in the output.
    pub state_dir: Option<PathBuf>,
    /// `--folders`: absolute, none in another, and with single files alone.
    pub folders: Vec<PathBuf>,
    pub layout: Layout,
    /// `--file-mode`: permissions of files that no secret went into. Bits beyond 0777 are ignored.
    pub file_mode: u32,
    /// `--secret-mode`: permissions of files that a secret went into. Bits beyond 0777 are ignored.
    pub secret_mode: u32,
}

/// The output directory. All work goes by its descriptor, so that renaming or replacing a parent leads nowhere else.
#[derive(Debug)]
pub struct Output {
    dir: Dir,
    /// `--state-dir`, and its path.
    apart: Option<(Dir, PathBuf)>,
    /// What Trimtab keeps for itself.
    state: Option<Dir>,
    /// Where single files are published as well.
    folders: Vec<Folder>,
    /// For messages, and for programs that get the candidate's path.
    path: PathBuf,
    layout: Layout,
    file_mode: Mode,
    secret_mode: Mode,
    access: Access,
    /// The output's own digest key, once it was needed.
    own_key: OnceLock<DigestKey>,
    cache: files::Cache,
    /// Where values are kept, once that was asked for.
    spool: OnceLock<Spool>,
    unsynced: Mutex<Unsynced>,
    /// What single files wait for: see `durable`.
    pending: Mutex<Vec<(OwnedFd, String)>>,
    /// Held by whoever syncs.
    syncing: Mutex<()>,
    /// Set once it was logged that the file system keeps no modes.
    keeps_no_modes: OnceLock<()>,
}

impl Output {
    fn layout(&self) -> Box<dyn Publisher<'_> + '_> {
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

    /// Whether the output directory has something in it, whoever it is from. With [`Layout::Files`].
    pub fn is_used(&self) -> Result<bool, PublishError> {
        let names = self.dir.names().map_err(|errno| self.io("list", "", errno))?;
        // mkfs makes the latter.
        Ok(names.iter().any(|name| ![STATE.as_bytes(), b"lost+found"].contains(&name.to_bytes())))
    }

    /// What is in the output directory.
    pub fn disk(&self) -> Result<Disk, PublishError> {
        let directories = self.generations()?;
        let link = self.layout().current()?.filter(|link| directories.contains(link));
        Ok(Disk { link, directories, torn: None })
    }

    /// The current generation's directory, if there is one.
    pub fn current(&self) -> Result<Option<String>, PublishError> {
        Ok(self.disk()?.link)
    }

    /// Carries out one of the machine's writes.
    pub fn apply(&self, write: &Write) -> Result<(), PublishError> {
        match write {
            Write::Journal(journal) => self.write_journal(journal),
            Write::Link(generation) => self.link(generation),
            Write::Swap(generation) => self.swap(generation),
            Write::Unlink(generation) => self.unlink(generation),
            Write::Sync => self.sync(),
            Write::Prune(keep) => self.prune(&keep.iter().map(String::as_str).collect::<Vec<_>>()),
        }
    }

    /// An error if something that is not ours is where the tree needs to be, as [`Output::stage`] has it.
    pub fn has_room_for(&self, tree: &Tree) -> Result<(), PublishError> {
        self.layout().refuse_foreign(tree)
    }

    /// Writes a candidate to its directory, where no reader sees it.
    ///
    /// Refuses a tree that needs a place that is taken by something that is not ours. What a crash left under the
    /// directory's name is removed first; on an error, so is what was written.
    pub fn stage(&self, generation: &Generation, tree: &Tree) -> Result<(), PublishError> {
        self.stage_as(generation, tree, false)
    }

    /// The same for programs that are to look at [`Output::candidate`]: all files are there, also those that are
    /// published already. [`Output::is_intact`] says whether it can be published as it is.
    pub fn stage_whole(&self, generation: &Generation, tree: &Tree) -> Result<(), PublishError> {
        self.stage_as(generation, tree, true)
    }

    fn stage_as(&self, generation: &Generation, tree: &Tree, whole: bool) -> Result<(), PublishError> {
        let name = self.not_current(generation, "staged")?;
        self.remove("remove the left-over", name)?;
        let written = self.layout().write(name, tree, whole);
        if written.is_err() {
            // The first error is the one to report. What cannot be removed now goes with the next stage or prune.
            let _ = self.remove("remove", name);
        }
        written
    }

    /// Where the candidate is, as an absolute path: for programs that look at it.
    #[must_use]
    pub fn candidate(&self, generation: &Generation) -> PathBuf {
        let path = self.layout().candidate(&generation.directory);
        std::path::absolute(&path).unwrap_or(path)
    }

    /// Whether the candidate can be published as it is; if not, it is to be staged again. Programs that look at
    /// one write into it: nginx makes its temporary directories below its prefix, also when it only tests.
    pub fn is_intact(&self, generation: &Generation, tree: &Tree) -> Result<bool, PublishError> {
        self.layout().is_intact(directory(generation, "read")?, tree)
    }

    /// Removes a candidate that is not to be published.
    pub fn discard(&self, generation: &Generation) -> Result<(), PublishError> {
        let name = self.not_current(generation, "discarded")?;
        self.remove("remove", name)
    }

    /// Prepares what the swap to this generation needs. Before [`Output::swap`], and to be undone by
    /// [`Output::unlink`] of the generation that stays current.
    pub fn link(&self, generation: &Generation) -> Result<(), PublishError> {
        self.layout().link(directory(generation, "read")?)
    }

    /// Makes the generation the current one.
    pub fn swap(&self, generation: &Generation) -> Result<(), PublishError> {
        let name = directory(generation, "made current")?;
        if self.look(name)? != Occupant::Directory {
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
        // A manifest is all that says whose the files are that were removed, if a power loss brings them back.
        self.flush()?;
        let current = self.layout().current()?;
        let mut result = Ok(());
        let mut generations = self.generations()?;
        for root in self.roots_elsewhere() {
            // Also what is left of those that went while the folder was not given.
            generations.extend(self.generations_in(root.own)?);
        }
        generations.sort_unstable();
        generations.dedup();
        let stale = generations
            .iter()
            .map(String::as_str)
            .filter(|name| !keep.contains(name) && current.as_deref() != Some(name));
        for name in stale {
            result = result.and(self.remove("remove", name));
        }
        let temporaries = TEMPORARIES.map(|name| (self.state(name), name));
        for (dir, name) in temporaries.into_iter().chain([(Ok(&self.dir), atomic::DATA_TEMPORARY)]) {
            let removed = dir.and_then(|dir| dir.remove(name).map_err(|errno| self.io("remove", name, errno)));
            result = result.and(removed);
        }
        result
    }

    /// Who new files would belong to: user and group.
    #[must_use]
    pub fn owners(&self) -> (u32, u32) {
        (geteuid().as_raw(), self.access.group.unwrap_or_else(getegid).as_raw())
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
    fn generations(&self) -> Result<Vec<String>, PublishError> {
        self.layout().home().map_or(Ok(Vec::new()), |home| self.generations_in(home))
    }

    fn generations_in(&self, dir: &Dir) -> Result<Vec<String>, PublishError> {
        let mut generations = Vec::new();
        for name in dir.names().map_err(|errno| self.io("list", "", errno))? {
            let Ok(name) = name.into_string() else { continue };
            let found = sequence_of(&name).map(|_| look(dir, name.as_str()));
            if found.transpose().map_err(|errno| self.io("read", &name, errno))? == Some(Occupant::Directory) {
                generations.push(name);
            }
        }
        generations.sort_unstable_by_key(|name| (sequence_of(name), name.clone()));
        Ok(generations)
    }

    /// The names in the output directory; those that are not UTF-8 cannot be ours.
    fn names(&self) -> Result<Vec<String>, PublishError> {
        let names = self.dir.names().map_err(|errno| self.io("list", "", errno))?;
        Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
    }

    /// What is at a generation's name.
    fn look(&self, name: &str) -> Result<Occupant, PublishError> {
        let found = self.layout().home().map_or(Ok(Occupant::Nothing), |home| look(home, name));
        found.map_err(|errno| self.io("read", name, errno))
    }

    /// Removes what is at a generation's name.
    fn remove(&self, doing: &'static str, name: &str) -> Result<(), PublishError> {
        // The output's, by which all is found again, is the last to go.
        for root in self.roots_elsewhere() {
            root.own.remove(name).map_err(|errno| self.io(doing, &root.place(name), errno))?;
        }
        let removed = self.layout().home().map_or(Ok(()), |home| home.remove(name));
        self.forget_removed();
        removed.map_err(|errno| self.io(doing, name, errno))
    }

    fn mode_of(&self, file: &File) -> Mode {
        if file.secret { self.secret_mode } else { self.file_mode }
    }

    /// The error for places that the tree needs and that are taken, each with what is there; none if there are none.
    fn refuse(&self, foreign: &[(String, String)]) -> Result<(), PublishError> {
        match foreign {
            [] => Ok(()),
            [(name, what), more @ ..] => Err(PublishError::ForeignName {
                path: self.path.join(name),
                what: what.clone(),
                more: more.len(),
                first: self.layout == Layout::Files && self.apart.is_none() && self.layout().current()?.is_none(),
            }),
        }
    }

    fn io(&self, doing: &'static str, name: &str, errno: Errno) -> PublishError {
        PublishError::Io { doing, path: self.place(name), errno }
    }

    /// The path of a name in the output; in the layout of single files, generations are in Trimtab's own directory.
    fn place(&self, name: &str) -> PathBuf {
        let is_generation = name.split('/').next().is_some_and(|first| sequence_of(first).is_some());
        if is_generation && self.layout == Layout::Files { self.own(name) } else { self.path.join(name) }
    }
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
