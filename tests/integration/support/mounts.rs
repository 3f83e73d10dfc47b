//! What a test mounts, as root.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::sidecar::needs_root;

const NONE: Option<&str> = None;

/// Unmounted when dropped.
pub struct Mounted(PathBuf);

impl Mounted {
    /// A file system in memory.
    pub fn tmpfs(path: PathBuf, options: &str) -> Self {
        needs_root("mount a tmpfs");
        mount(Some("trimtab-test"), &path, Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
        Self(path)
    }

    /// What is at one path, at another, too.
    pub fn bind(from: &Path, to: PathBuf) -> Self {
        needs_root("mount a directory");
        mount(Some(from), &to, NONE, MsFlags::MS_BIND, NONE).unwrap();
        Self(to)
    }

    pub fn remount(&self, flags: MsFlags, options: &str) {
        mount(NONE, &self.0, NONE, flags | MsFlags::MS_REMOUNT, Some(options)).unwrap();
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
