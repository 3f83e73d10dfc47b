//! Writing files, and waiting until they are on the disk.

use std::os::fd::OwnedFd;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::stat::Mode;
use nix::unistd::Gid;
use tracing::warn;

use super::dir::{Dir, copy_range, digest_of_size, permissions, settle, write_all};
use super::folder::Access;
use super::sys::{fstat, fsync};
use super::{Layout, Output, PublishError};
use crate::model::spool::SpoolError;
use crate::model::tree::File;

/// How many files are held open until they are on the disk.
pub(super) const BATCH: usize = 128;

impl Output {
    /// Writes files to a fresh directory at `name` in `at`, whose path is `top`, by their paths below it. In the layout of single files all but the
    /// name of that directory is noted by [`Output::later`].
    pub(super) fn write_tree<'a>(
        &self,
        at: &Dir,
        name: &str,
        top: &str,
        access: Access,
        files: impl Iterator<Item = (&'a str, &'a File)>,
    ) -> Result<(), PublishError> {
        let mut written: Vec<(OwnedFd, String)> = Vec::new();
        let make = |above: &Dir, name: &str, path: &str| {
            above.make(name, access.group, access.dir_mode).map_err(|errno| self.io("make the directory", path, errno))
        };
        let root = make(at, name, top)?;
        // The directories between the root and the file at hand. Paths come in the order of their bytes, so that all
        // below one directory comes in one piece: each directory is made once, and is complete when it is left.
        let mut open: Vec<(&str, String, Dir)> = Vec::new();
        for (path, file) in files {
            let path_text = format!("{top}/{path}");
            let mut segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
            let Some(name) = segments.pop() else { continue };
            let common = open.iter().zip(&segments).take_while(|((at, ..), segment)| at == *segment).count();
            written.extend(open.drain(common..).rev().map(|(_, path, dir)| (dir.into(), path)));
            for segment in segments.into_iter().skip(common) {
                let (above, path) = match open.last() {
                    Some((_, path, dir)) => (dir, format!("{path}/{segment}")),
                    None => (&root, format!("{top}/{segment}")),
                };
                let dir = make(above, segment, &path)?;
                open.push((segment, path, dir));
            }
            let dir = open.last().map_or(&root, |(.., dir)| dir);
            written.push((self.write_file(dir, name, &path_text, access.group, file)?, path_text));
            if written.len() >= BATCH {
                self.written(&mut written)?;
            }
        }
        written.extend(open.into_iter().rev().map(|(_, path, dir)| (dir.into(), path)));
        written.push((root.into(), top.to_owned()));
        self.written(&mut written)
    }

    /// Writes one file of a tree. A secret is not written where others could read it more than its mode says.
    fn write_file(
        &self,
        dir: &Dir,
        name: &str,
        path: &str,
        group: Option<Gid>,
        file: &File,
    ) -> Result<OwnedFd, PublishError> {
        let failed = |errno| self.io("write", path, errno);
        let mode = self.mode_of(file);
        let fd = dir.create_new(name, mode).map_err(failed)?;
        let exposed = |found: Mode| {
            let wider = file.secret && !mode.contains(found);
            if wider { Err(PublishError::Exposed { path: self.path.join(path), mode, found }) } else { Ok(()) }
        };
        if file.secret {
            // Before its first byte.
            exposed(permissions(&fstat(&fd).map_err(failed)?))?;
        }
        let changed = |error| PublishError::Source { origin: file.origin.to_string(), error };
        match file.bytes.place().filter(|place| copy_range(place.file, place.at, &fd, file.bytes.len())) {
            Some(place) if place.is_own => {}
            // Whoever can write to the file may have, since its digest was taken.
            Some(_) => {
                let found = digest_of_size(file.bytes.len() as u64, &fd).map_err(failed)?;
                if found != Some(file.bytes.digest()) {
                    return Err(changed(SpoolError::Changed));
                }
            }
            None => {
                let written = file.bytes.pieces(|piece| write_all(&fd, piece).map_err(failed));
                written.map_err(|error| if let PublishError::Kept(error) = error { changed(error) } else { error })?;
            }
        }
        let found = settle(&fd, group, mode).map_err(failed)?;
        exposed(found)?;
        if found != mode && self.keeps_no_modes.set(()).is_ok() {
            warn!(
                "{} has mode {:04o}, and was given {:04o}: its file system keeps no modes, as SMB, FAT and some \
                 CSI drivers; the main process may not be able to read it: set the mode in the volume's mountOptions \
                 (file_mode, umask), or use an emptyDir",
                self.path.join(path).display(),
                found.bits(),
                mode.bits()
            );
        }
        Ok(fd)
    }

    fn written(&self, written: &mut Vec<(OwnedFd, String)>) -> Result<(), PublishError> {
        match self.layout {
            Layout::Atomic => written.clear(),
            Layout::Files => self.later(written.drain(..))?,
        }
        Ok(())
    }

    /// Waits until these files are on the disk, and leaves those that are not, where one fails.
    ///
    /// All files are written before the first is waited for. Each fsync of a new file makes ext4 commit its journal,
    /// unless an earlier commit took the file along; that is so once the file has its blocks, which it gets when its
    /// writeback begins and not when it is written (delayed allocation). Hence the advice on all of them first: seen
    /// to save a fifth of the time for 4 files of 2 kB, and two thirds for 64, where without it the second pass is no
    /// faster than an fsync after each write. It is a hint: the order rests on the fsyncs alone.
    pub(super) fn wait_for(&self, written: &mut Vec<(OwnedFd, String)>) -> Result<(), PublishError> {
        for (fd, _) in &*written {
            // Where the hint fails, the fsync is slower.
            let _ = posix_fadvise(fd, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        }
        while let Some((fd, path)) = written.last() {
            fsync(fd).map_err(|errno| self.io("sync", path, errno))?;
            written.pop();
        }
        Ok(())
    }
}
