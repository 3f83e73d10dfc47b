//! A volume as the kubelet writes it (pkg/volume/util/atomic_writer.go).

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::measure::now;

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
        fs::create_dir(&path)?;
        let mut volume = Self { path, version: 0, directories: 0 };
        volume.swap(Swap::default())?;
        for key in KEYS {
            symlink(Path::new("..data").join(key), volume.path.join(key))?;
        }
        Ok(volume)
    }

    /// Replaces the content; the moment before the rename.
    pub fn swap(&mut self, swap: Swap) -> Result<Duration> {
        self.version += u32::from(!swap.same);
        self.directories += 1;
        let name = format!("..2026_11_24_07_00_00.{}", self.directories);
        let directory = self.path.join(&name);
        let old = fs::read_link(self.path.join("..data")).ok();
        fs::create_dir(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
        for key in KEYS {
            fs::write(directory.join(key), format!("{:<KEY_SIZE$}", format!("{} {key}", self.version)))?;
        }
        if let Some(gap) = swap.gap {
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
}
