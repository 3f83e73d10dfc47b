//! The kubelet's layout: generations side by side, and one rename of `..data` from the old one to the new one.
//!
//! Top-level names are links to `..data/NAME`, so that the rename changes all of them at once. What is *ours* in the
//! output directory is decided by form alone: `..trimtab/`, names that start with `..trimtab-`, `..data` naming a directory of our
//! pattern, and a link NAME with exactly the target `..data/NAME`. Nothing else is ever replaced or removed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::Mode;

use super::dir::{Dir, MAX_DEPTH, Occupant, digest_of_size, is_directory, look};
use super::layout::Publisher;
use super::read_back::{Among, MayAccess, PublishedFile, Take, describe};
use super::sys::{fstat, fstatat, symlinkat};
use super::{Output, PublishError};
use crate::model::journal::sequence_of;
use crate::model::tree::{File, Tree};

pub(super) const DATA: &str = "..data";
pub(super) const DATA_TEMPORARY: &str = "..trimtab.data.tmp";

/// The kubelet's layout of an output.
pub(super) struct Atomic<'a>(pub(super) &'a Output);

impl<'a> Publisher<'a> for Atomic<'a> {
    fn home(&self) -> Option<&'a Dir> {
        Some(&self.0.dir)
    }

    fn current(&self) -> Result<Option<String>, PublishError> {
        self.data()
    }

    fn finish(&self) -> Result<Vec<String>, PublishError> {
        // A rename is done or not.
        Ok(Vec::new())
    }

    fn refuse_foreign(&self, tree: &Tree) -> Result<(), PublishError> {
        self.missing(tree.top_names().into_iter()).map(drop)
    }

    fn write(&self, top: &str, tree: &Tree, _: bool) -> Result<(), PublishError> {
        self.refuse_foreign(tree)?;
        let files = tree.iter().map(|(path, file)| (path.as_str(), file));
        self.0.write_tree(&self.0.dir, top, top, self.0.access, files)
    }

    fn candidate(&self, name: &str) -> PathBuf {
        self.0.path.join(name)
    }

    fn is_intact(&self, name: &str, tree: &Tree) -> Result<bool, PublishError> {
        let files: BTreeMap<&str, &File> = tree.iter().map(|(path, file)| (path.as_str(), file)).collect();
        let mut missing = files.len();
        let opened = Dir::open(&self.0.dir, name).map_err(|errno| self.0.io("open", name, errno))?;
        let mut open = vec![(String::new(), opened)];
        while let Some((below, dir)) = open.pop() {
            let failed = |errno| self.0.io("read", &format!("{name}/{below}"), errno);
            for entry in dir.names().map_err(failed)? {
                let Ok(entry) = entry.to_str() else { return Ok(false) };
                let path = format!("{below}{entry}");
                if let Some(file) = files.get(path.as_str()) {
                    let Some((fd, _)) = dir.open_file(entry).map_err(failed)? else { return Ok(false) };
                    let found = digest_of_size(file.bytes.len() as u64, &fd).map_err(failed)?;
                    if found != Some(file.bytes.digest()) {
                        return Ok(false);
                    }
                    if Mode::from_bits_truncate(fstat(&fd).map_err(failed)?.st_mode & 0o777) != self.0.mode_of(file) {
                        return Ok(false);
                    }
                    missing -= 1;
                } else {
                    let inside = format!("{path}/");
                    if !files.range(inside.as_str()..).next().is_some_and(|(path, _)| path.starts_with(&inside)) {
                        return Ok(false);
                    }
                    match Dir::open(&dir, entry) {
                        Ok(dir) => open.push((inside, dir)),
                        Err(Errno::ENOTDIR | Errno::ELOOP) => return Ok(false),
                        Err(errno) => return Err(failed(errno)),
                    }
                }
            }
        }
        Ok(missing == 0)
    }

    /// Makes the links that the generation needs and that are missing. Before the swap, so that no name is missing after
    /// it; a new one leads nowhere until then.
    fn link(&self, name: &str) -> Result<(), PublishError> {
        let names = self.names_of(name)?;
        for name in self.missing(names.iter().map(String::as_str))? {
            symlinkat(target(name).as_str(), &self.0.dir, name)
                .map_err(|errno| self.0.io("make the link", name, errno))?;
        }
        Ok(())
    }

    fn swap(&self, name: &str) -> Result<(), PublishError> {
        // Done before a crash or an error.
        if self.data()?.as_deref() == Some(name) {
            return Ok(());
        }
        let swapped = self.0.dir.replace_link(DATA, DATA_TEMPORARY, name);
        self.0.unsynced().renames += 1;
        swapped.map_err(|errno| self.0.io("replace the link", DATA, errno))
    }

    /// Removes those of our links whose name the generation does not have. After the swap they lead nowhere.
    fn unlink(&self, name: &str) -> Result<(), PublishError> {
        let wanted = self.names_of(name)?;
        for name in self.0.names()? {
            // What begins so is no link of ours, and need not be looked at.
            if !name.starts_with("..") && !wanted.contains(&name) && self.0.look(&name)? == ours(&name) {
                self.0.dir.remove(name.as_str()).map_err(|errno| self.0.io("remove the link", &name, errno))?;
            }
        }
        Ok(())
    }

    fn each(&self, name: &str, take: Take<'_>) -> Result<(), PublishError> {
        self.0.each_of_directory(name, take)
    }

    fn unreadable_by(&self, may: MayAccess<'_>, name: &str) -> Result<Option<String>, PublishError> {
        let mut open =
            vec![(name.to_owned(), Dir::open(&self.0.dir, name).map_err(|errno| self.0.io("open", name, errno))?)];
        while let Some((path, dir)) = open.pop() {
            let failed = |errno| self.0.io("read", &path, errno);
            let stat = fstat(&dir).map_err(failed)?;
            if !may(1, stat.st_uid, stat.st_gid, stat.st_mode) {
                return Ok(Some(describe(&path, &stat)));
            }
            for name in dir.names().map_err(failed)? {
                let stat = fstatat(&dir, &*name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed)?;
                let path = format!("{path}/{}", name.to_string_lossy());
                if is_directory(&stat) {
                    open.push((path, Dir::open(&dir, &*name).map_err(failed)?));
                } else if !may(4, stat.st_uid, stat.st_gid, stat.st_mode) {
                    return Ok(Some(describe(&path, &stat)));
                }
            }
        }
        Ok(None)
    }

    fn published(
        &self,
        name: &str,
        among: Among<'_>,
        limit: u64,
    ) -> Result<BTreeMap<String, PublishedFile>, PublishError> {
        let mut files = BTreeMap::new();
        let dir = Dir::open(&self.0.dir, name).map_err(|errno| self.0.io("open", name, errno))?;
        self.0.walk(&dir, "", MAX_DEPTH, among, &mut limit.clone(), &mut files)?;
        Ok(files)
    }
}

impl Atomic<'_> {
    fn data(&self) -> Result<Option<String>, PublishError> {
        data(&self.0.dir, &self.0.path)
    }

    /// The generation's top-level names. It was checked when it was written, but is where others may write: nothing
    /// that would collide with our own names comes out of it.
    fn names_of(&self, name: &str) -> Result<Vec<String>, PublishError> {
        let names = Dir::open(&self.0.dir, name).and_then(|dir| dir.names());
        let names = names.map_err(|errno| self.0.io("list", name, errno))?;
        Ok(names
            .into_iter()
            .filter_map(|name| name.into_string().ok())
            .filter(|name| !name.starts_with(".."))
            .collect())
    }

    /// Those of the names at which there is no link of ours yet; an error if one of them is taken.
    fn missing<'n>(&self, names: impl Iterator<Item = &'n str>) -> Result<Vec<&'n str>, PublishError> {
        let (mut missing, mut foreign) = (Vec::new(), Vec::new());
        for name in names {
            match self.0.look(name)? {
                Occupant::Nothing => missing.push(name),
                found if found == ours(name) => {}
                other => foreign.push((name.to_owned(), other.describe())),
            }
        }
        self.0.refuse(&foreign).map(|()| missing)
    }
}

/// What `..data` names: a directory of our pattern, which may be missing. Anything else is an error.
pub(super) fn data(dir: &Dir, path: &Path) -> Result<Option<String>, PublishError> {
    let path = path.join(DATA);
    let found = match look(dir, DATA) {
        Ok(found) => found,
        Err(errno) => return Err(PublishError::Io { doing: "read", path, errno }),
    };
    if let Occupant::Symlink(target) = &found
        && let Some(name) = target.to_str()
        && sequence_of(name).is_some()
    {
        return Ok(Some(name.to_owned()));
    }
    if found == Occupant::Nothing { Ok(None) } else { Err(PublishError::ForeignData { path, what: found.describe() }) }
}

/// The target of our link NAME.
fn target(name: &str) -> String {
    format!("{DATA}/{name}")
}

/// What is at NAME if it is ours.
fn ours(name: &str) -> Occupant {
    Occupant::Symlink(target(name).into())
}
