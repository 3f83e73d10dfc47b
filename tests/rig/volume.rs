//! A volume as the kubelet writes it (pkg/volume/util/atomic_writer.go).

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use super::measure::now;

/// Its keys.
pub const KEYS: [&str; 4] = ["a", "b", "c", "d"];
const KEY_SIZE: usize = 2000;

/// How a swap is made.
#[derive(Clone, Copy, Default)]
pub struct Swap {
    /// A wait between the kubelet's mkdir and its rename.
    pub gap: Option<Duration>,
    /// The bytes stay as they are.
    pub same: bool,
}

/// The volume. Every value starts with the version.
pub struct Volume {
    /// Where it is mounted.
    pub path: PathBuf,
    /// The version that it holds.
    pub version: u32,
    directories: u32,
}

impl Volume {
    /// One with a first content.
    pub fn new(path: PathBuf) -> Result<Self> {
        let mut volume = Self::empty(path)?;
        volume.swap(Swap::default())?;
        volume.link(&KEYS)?;
        Ok(volume)
    }

    /// One without any.
    pub fn empty(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path)?;
        Ok(Self { path, version: 0, directories: 0 })
    }

    /// Replaces the content; the moment before the rename.
    pub fn swap(&mut self, swap: Swap) -> Result<Duration> {
        self.version += u32::from(!swap.same);
        let files = KEYS.map(|key| (key, format!("{:<KEY_SIZE$}", format!("{} {key}", self.version))));
        self.write(&files, swap.gap)
    }

    /// Makes these keys, with their bytes, the content; the moment before the rename. Links to keys are not looked at.
    pub fn write(&mut self, files: &[(&str, String)], gap: Option<Duration>) -> Result<Duration> {
        self.directories += 1;
        let name = format!("..2026_11_24_07_00_00.{}", self.directories);
        let directory = self.path.join(&name);
        let old = fs::read_link(self.path.join("..data")).ok();
        fs::create_dir(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
        for (key, bytes) in files {
            fs::write(directory.join(key), bytes)?;
        }
        if let Some(gap) = gap {
            std::thread::sleep(gap);
        }
        let temporary = self.path.join("..data_tmp");
        symlink(&name, &temporary)?;
        let renamed = now();
        fs::rename(&temporary, self.path.join("..data"))?;
        if let Some(old) = old {
            fs::remove_dir_all(self.path.join(old))?;
        }
        Ok(renamed)
    }

    /// Links these keys, and no others, as is done after the rename.
    pub fn link(&self, keys: &[&str]) -> Result<()> {
        for key in keys {
            let link = self.path.join(key);
            if fs::symlink_metadata(&link).is_err() {
                symlink(Path::new("..data").join(key), link)?;
            }
        }
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            if !name.starts_with("..") && !keys.contains(&name.as_ref()) {
                fs::remove_file(self.path.join(&*name))?;
            }
        }
        Ok(())
    }
}
