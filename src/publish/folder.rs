//! Further directories that single files are published into, on other mounts: `--folders`.
//!
//! In a tree, a path in one of them is absolute. A folder has a directory of Trimtab's own as the output has, with what of
//! each generation is not in place there, so that each file moves by one rename within its mount. What says which
//! generation is current is in the output's own alone, and so is the journal.

use std::path::Path;

use nix::sys::stat::Mode;
use nix::unistd::Gid;

use super::Output;
use super::cursor::{Cursor, below};
use super::dir::Dir;
use super::open::SETGID;
use super::state::own_in;

/// One of `--folders`.
#[derive(Debug)]
pub(super) struct Folder {
    /// Absolute, and without a slash at its end.
    pub(super) path: String,
    pub(super) dir: Dir,
    /// What Trimtab keeps for itself there; only whoever looks can find none.
    pub(super) own: Option<Dir>,
    pub(super) access: Access,
}

/// What files and directories in a root are given.
#[derive(Clone, Copy, Debug)]
pub(super) struct Access {
    pub(super) group: Option<Gid>,
    pub(super) dir_mode: Mode,
}

impl Access {
    /// Of directories that nobody else needs to enter; with the setgid bit, since files are made in them.
    pub(super) fn own_mode(self) -> Mode {
        Mode::from_bits_truncate(0o700 | self.dir_mode.bits() & SETGID)
    }
}

/// Where files are published, and what of a generation is not in place.
pub(super) struct Root<'a> {
    /// Empty for the output.
    pub(super) path: &'a str,
    pub(super) own: &'a Dir,
    pub(super) access: Access,
}

impl Root<'_> {
    /// Its own part of a path in a tree.
    pub(super) fn below<'p>(&self, path: &'p str) -> Option<&'p str> {
        below(self.path, path)
    }

    /// A path in its own directory, for messages.
    pub(super) fn place(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { own_in(Path::new(self.path), name).display().to_string() }
    }
}

impl Output {
    /// What a file or directory at a tree's path is given.
    pub(super) fn access_of(&self, path: &str) -> Access {
        let folder = self.folders.iter().find(|folder| below(&folder.path, path).is_some());
        folder.map_or(self.access, |folder| folder.access)
    }

    /// The output and all folders, to look at what is in place.
    pub(super) fn in_place(&self) -> Cursor<'_> {
        let folders = self.folders.iter().map(|folder| (folder.path.as_str(), &folder.dir));
        Cursor::over(std::iter::once(("", &self.dir)).chain(folders))
    }

    /// The output and all folders, as far as each has a directory of Trimtab's own.
    pub(super) fn roots(&self) -> impl Iterator<Item = Root<'_>> {
        let output = self.state.as_ref().map(|own| Root { path: "", own, access: self.access });
        output.into_iter().chain(self.roots_elsewhere())
    }

    /// The folders among them.
    pub(super) fn roots_elsewhere(&self) -> impl Iterator<Item = Root<'_>> {
        self.folders
            .iter()
            .filter_map(|folder| Some(Root { path: &folder.path, own: folder.own.as_ref()?, access: folder.access }))
    }
}
