//! The way from a root to one path after another, each directory opened once.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::stat::Mode;
use nix::unistd::Gid;

use super::dir::Dir;
use super::sys::fsync;
use super::write::BATCH;

/// The directories from a root down to one path after another. In the order of paths, each directory is opened once.
///
/// There may be several roots: an absolute path is below the root that it names, any other below the one without a path.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    roots: Vec<Top<'a>>,
    /// Which of them is the one at hand.
    at: usize,
    open: Vec<Level>,
    /// Those that were changed and left.
    left: Vec<OwnedFd>,
}

#[derive(Debug)]
struct Top<'a> {
    path: &'a str,
    dir: &'a Dir,
    changed: bool,
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

/// A path below a root's; `None` if it is not below it.
pub(super) fn below<'p>(root: &str, path: &'p str) -> Option<&'p str> {
    match root {
        "" => Some(path).filter(|path| !path.starts_with('/')),
        _ => path.strip_prefix(root)?.strip_prefix('/'),
    }
}

impl<'a> Cursor<'a> {
    /// Over several roots with their paths, none of which is below another.
    pub(super) fn over(roots: impl IntoIterator<Item = (&'a str, &'a Dir)>) -> Self {
        let roots = roots.into_iter().map(|(path, dir)| Top { path, dir, changed: false }).collect();
        Self { roots, at: 0, open: Vec::new(), left: Vec::new() }
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
            None => self.root_changed(),
        }
    }

    /// Notes the same of all directories above it.
    pub(super) fn all_changed(&mut self) {
        self.root_changed();
        self.open.iter_mut().for_each(|level| level.changed = true);
    }

    fn root_changed(&mut self) {
        if let Some(root) = self.roots.get_mut(self.at) {
            root.changed = true;
        }
    }

    /// Waits until all that was changed is on the disk.
    pub(super) fn end(mut self) -> nix::Result<()> {
        self.leave(0)?;
        self.left.drain(..).try_for_each(fsync)?;
        self.roots.iter().filter(|root| root.changed).try_for_each(|root| root.dir.sync())
    }

    /// What was changed and is not on the disk yet, for whoever waits for it.
    pub(super) fn end_later(mut self) -> nix::Result<Vec<OwnedFd>> {
        self.leave(0)?;
        for root in self.roots.iter().filter(|root| root.changed) {
            self.left.push(Dir::open(root.dir, ".")?.into());
        }
        Ok(self.left)
    }

    fn descend<'p>(&mut self, path: &'p str, make: Option<(Option<Gid>, Mode)>) -> Result<(&Dir, &'p str), Blocked> {
        let mut roots = self.roots.iter().enumerate();
        let found = roots.find_map(|(number, root)| Some((number, (root.dir, root.path), below(root.path, path)?)));
        let Some((number, (root, root_path), inside)) = found else {
            return Err(Blocked { at: path.to_owned(), errno: Errno::ENOENT });
        };
        let (above, leaf) = inside.rsplit_once('/').unwrap_or(("", inside));
        let segments: Vec<&str> = above.split('/').filter(|segment| !segment.is_empty()).collect();
        let blocked = |depth: usize, errno| {
            let at = segments.get(..depth).unwrap_or_default().join("/");
            Blocked { at: if root_path.is_empty() { at } else { format!("{root_path}/{at}") }, errno }
        };
        let alike = |(level, segment): &(&Level, &&str)| level.name == **segment;
        let mut common = self.open.iter().zip(&segments).take_while(alike).count();
        if number != self.at {
            common = 0;
        }
        self.leave(common).map_err(|errno| blocked(common, errno))?;
        self.at = number;
        for (depth, segment) in segments.iter().enumerate().skip(common) {
            let failed = |errno| blocked(depth + 1, errno);
            let last = self.open.last().map_or(root, |level| &level.dir);
            let dir = match (Dir::open(last, *segment), make) {
                (Err(Errno::ENOENT), Some((group, mode))) => {
                    let fresh = match last.make(segment, group, mode) {
                        // Somebody was quicker.
                        Err(Errno::EEXIST) => Dir::open(last, *segment),
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
        Ok((self.open.last().map_or(root, |level| &level.dir), leaf))
    }

    fn leave(&mut self, depth: usize) -> nix::Result<()> {
        for level in self.open.drain(depth..).rev() {
            if level.changed {
                self.left.push(level.dir.into());
            }
        }
        // Not all are held open at once.
        if self.left.len() >= BATCH { self.left.drain(..).try_for_each(fsync) } else { Ok(()) }
    }
}
