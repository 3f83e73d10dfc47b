//! The way from a root to one path after another, each directory opened once.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::stat::Mode;
use nix::unistd::Gid;

use super::dir::Dir;

/// The directories from a root down to one path after another. In the order of paths, each directory is opened once,
/// and is on the disk, if it was changed, when it is left.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    root: &'a Dir,
    root_changed: bool,
    open: Vec<Level>,
}

#[derive(Debug)]
struct Level {
    name: String,
    dir: Dir,
    changed: bool,
}

/// The directory on the way to a path that cannot be opened, and why: `ENOENT`, or `ENOTDIR` for a symlink or a file.
#[derive(Debug)]
pub(super) struct Blocked {
    pub(super) at: String,
    pub(super) errno: Errno,
}

impl<'a> Cursor<'a> {
    pub(super) fn from(root: &'a Dir) -> Self {
        Self { root, root_changed: false, open: Vec::new() }
    }

    /// The directory of the path's last segment, and that segment.
    pub(super) fn to<'p>(&mut self, path: &'p str) -> Result<(&Dir, &'p str), Blocked> {
        self.descend(path, None)
    }

    /// The same, where directories that are missing are made with this group and mode.
    pub(super) fn make<'p>(
        &mut self,
        path: &'p str,
        group: Option<Gid>,
        mode: Mode,
    ) -> Result<(&Dir, &'p str), Blocked> {
        self.descend(path, Some((group, mode)))
    }

    /// Like [`Cursor::to`]; `None` if a directory is missing, or is none.
    pub(super) fn find<'p>(&mut self, path: &'p str) -> nix::Result<Option<(&Dir, &'p str)>> {
        match self.to(path) {
            Ok(found) => Ok(Some(found)),
            Err(Blocked { errno: Errno::ENOENT | Errno::ENOTDIR, .. }) => Ok(None),
            Err(Blocked { errno, .. }) => Err(errno),
        }
    }

    /// The directory at a path, or the root for an empty one; `None` if there is none.
    pub(super) fn directory(&mut self, path: &str) -> nix::Result<Option<&Dir>> {
        let inside = if path.is_empty() { "x".to_owned() } else { format!("{path}/x") };
        Ok(self.find(&inside)?.map(|(dir, _)| dir))
    }

    /// Opens the file at a path, with its size; `None` if there is no such file.
    pub(super) fn open_file(&mut self, path: &str) -> nix::Result<Option<(OwnedFd, u64)>> {
        match self.find(path)?.map(|(dir, leaf)| dir.open_file(leaf)) {
            None | Some(Err(Errno::ENOENT)) => Ok(None),
            Some(opened) => opened,
        }
    }

    /// Notes that names have changed in the directory that was asked for last.
    pub(super) fn changed(&mut self) {
        match self.open.last_mut() {
            Some(level) => level.changed = true,
            None => self.root_changed = true,
        }
    }

    /// Notes the same of all directories above it.
    pub(super) fn all_changed(&mut self) {
        self.root_changed = true;
        self.open.iter_mut().for_each(|level| level.changed = true);
    }

    /// Waits until all that was changed is on the disk.
    pub(super) fn end(mut self) -> nix::Result<()> {
        self.leave(0)?;
        if self.root_changed { self.root.sync() } else { Ok(()) }
    }

    fn descend<'p>(&mut self, path: &'p str, make: Option<(Option<Gid>, Mode)>) -> Result<(&Dir, &'p str), Blocked> {
        let (above, leaf) = path.rsplit_once('/').unwrap_or(("", path));
        let segments: Vec<&str> = above.split('/').filter(|segment| !segment.is_empty()).collect();
        let common = self.open.iter().zip(&segments).take_while(|(level, segment)| level.name == **segment).count();
        let blocked = |depth: usize, errno| Blocked { at: segments.get(..depth).unwrap_or_default().join("/"), errno };
        self.leave(common).map_err(|errno| blocked(common, errno))?;
        for (depth, segment) in segments.iter().enumerate().skip(common) {
            let failed = |errno| blocked(depth + 1, errno);
            let dir = match (Dir::open(self.last(), *segment), make) {
                (Err(Errno::ENOENT), Some((group, mode))) => {
                    let fresh = match self.last().make(segment, group, mode) {
                        // Somebody was quicker.
                        Err(Errno::EEXIST) => Dir::open(self.last(), *segment),
                        other => other,
                    };
                    self.changed();
                    fresh.map_err(failed)?
                }
                (Err(Errno::ELOOP), _) => return Err(failed(Errno::ENOTDIR)),
                (opened, _) => opened.map_err(failed)?,
            };
            self.open.push(Level { name: (*segment).to_owned(), dir, changed: false });
        }
        Ok((self.last(), leaf))
    }

    fn last(&self) -> &Dir {
        self.open.last().map_or(self.root, |level| &level.dir)
    }

    fn leave(&mut self, depth: usize) -> nix::Result<()> {
        for level in self.open.drain(depth..).rev() {
            if level.changed {
                level.dir.sync()?;
            }
        }
        Ok(())
    }
}
