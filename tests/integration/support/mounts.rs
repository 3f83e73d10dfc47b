//! What a test mounts, as root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::sidecar::{needs_root, run};

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

    /// NTFS in a file, by Debian's ntfs-3g over FUSE. Without a map of users, as here, it keeps no modes, and takes
    /// each chmod for done. It has symlinks, which FAT has not.
    pub fn ntfs(path: PathBuf, image: &Path) -> Self {
        needs_root("mount NTFS");
        let program = std::env::var("TRIMTAB_TEST_NTFS").expect("TRIMTAB_TEST_NTFS is not set: run `make test`");
        fs::File::create(image).unwrap().set_len(16 << 20).unwrap();
        let make = Path::new(&program).with_file_name("mkntfs");
        let (code, said) = run(Command::new(make).args(["-F", "-q", "-Q"]).arg(image));
        assert_eq!(code, Some(0), "{said}");
        let (code, said) = run(Command::new(program).arg(image).arg(&path));
        assert_eq!(code, Some(0), "{said}");
        Self(path)
    }

    /// An overlay whose layers are folders that it makes below another path.
    pub fn overlay(path: PathBuf, layers: &Path) -> Self {
        needs_root("mount an overlay");
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| layers.join(name));
        for layer in [&lower, &upper, &work] {
            fs::create_dir(layer).unwrap();
        }
        let [lower, upper, work] = [lower, upper, work].map(|layer| layer.display().to_string());
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        mount(Some("trimtab-test"), &path, Some("overlay"), MsFlags::empty(), Some(options.as_str())).unwrap();
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
