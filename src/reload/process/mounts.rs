//! Whether a process has mounted a part of the output that no publish can reach.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::table::Process;
use crate::os::mounts::{Mount, parse};
use crate::os::proc;

/// Where a process has mounted a published file or generation by itself, as `subPath` does; `None` if it has mounted no
/// such thing, or if that cannot be known. Such a mount is of what was there when its container started, for ever.
#[must_use]
pub fn frozen_mount(pid: i32, output: &Path) -> Option<PathBuf> {
    let ours = fs::read("/proc/self/mountinfo").ok()?;
    let theirs = fs::read(format!("/proc/{pid}/mountinfo")).ok()?;
    let real = fs::canonicalize(output).ok()?;
    frozen_in(&ours, &theirs, &real, |name| fs::metadata(real.join(name)).is_ok_and(|found| found.is_dir()))
}

/// A look for such mounts of whichever process can be seen. A container mounts its volumes before its process starts: each
/// process is looked at twice, as the first look may come between the two, and then left alone.
#[derive(Debug, Default)]
pub struct Lookout {
    looks: BTreeMap<i32, u8>,
    found: Option<(String, i32, PathBuf)>,
}

impl Lookout {
    /// The first process found to have such a mount, as long as it lives: its name and pid, and the mount.
    pub fn frozen(&mut self, output: &Path) -> Option<(String, i32, PathBuf)> {
        let pids = proc::pids().ok()?;
        self.looks.retain(|pid, _| pids.contains(pid));
        self.found.take_if(|(_, pid, _)| !pids.contains(pid));
        let me = i32::try_from(std::process::id()).ok()?;
        for pid in pids.into_iter().filter(|pid| *pid != me) {
            let looks = self.looks.entry(pid).or_default();
            if self.found.is_some() || *looks == 2 {
                continue;
            }
            *looks += 1;
            self.found = frozen_mount(pid, output).and_then(|point| Some((Process::read(pid)?.name(), pid, point)));
        }
        self.found.clone()
    }
}

/// `is_directory`: whether this path in the output is one.
fn frozen_in(ours: &[u8], theirs: &[u8], output: &Path, is_directory: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let above = parse(ours).filter(|mount| output.starts_with(&mount.point));
    // Of several at one point, the last one covers the others.
    let Mount { device, root, point, .. } = above.max_by_key(|mount| mount.point.components().count())?;
    let place = root.join(output.strip_prefix(point).ok()?);
    let frozen = |mount: &Mount| {
        let Ok(inside) = mount.root.strip_prefix(&place) else { return false };
        let Some(first) = inside.components().next() else { return false };
        // A directory of --layout files stays the same directory, and shows each change.
        let of_a_generation = first.as_os_str().to_str().is_some_and(|name| name.starts_with(".."));
        mount.deleted || of_a_generation || !is_directory(inside)
    };
    parse(theirs).find(|mount| mount.device == device && frozen(mount)).map(|mount| mount.point)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "\
        20 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
        31 20 8:1 /pods/7/volumes/shared /shared rw - ext4 /dev/sda1 rw\n\
        32 20 0:9 / /proc rw - proc proc rw\n";

    /// What is frozen in a process with this mount of a device, where the output is /shared/conf, and `dir` in it the
    /// only directory.
    fn frozen(root: &str) -> Option<String> {
        let theirs =
            format!("40 1 0:50 / / rw - overlay x rw\n41 40 8:1 {root} /etc/app\\040x rw - ext4 /dev/sda1 rw\n");
        let is_directory = |path: &Path| path == "dir";
        let found = frozen_in(OURS.as_bytes(), theirs.as_bytes(), Path::new("/shared/conf"), is_directory);
        found.map(|point| point.display().to_string())
    }

    #[test]
    fn a_part_of_the_output_that_is_mounted_by_itself_is_frozen() {
        let at = Some("/etc/app x".to_owned());
        let conf = "/pods/7/volumes/shared/conf";
        for part in ["app.yml", "app.yml//deleted", "..trimtab-000001-ab/app.yml", "..trimtab-000001-ab//deleted"] {
            assert_eq!(frozen(&format!("{conf}/{part}")), at, "{part}");
        }
        assert_eq!(frozen(&format!("{conf}/dir//deleted")), at);
        for whole in [conf, "/pods/7/volumes/shared", "/pods/7/volumes/shared/conf/dir", "/"] {
            assert_eq!(frozen(whole), None, "{whole}");
        }
        for other in ["/pods/8/volumes/shared/conf/app.yml", "/pods/7/volumes/shared/config/app.yml"] {
            assert_eq!(frozen(other), None, "{other}");
        }
    }

    #[test]
    fn the_same_path_on_another_file_system_is_another_file() {
        let theirs = "41 40 8:2 /pods/7/volumes/shared/conf/app.yml /etc/app rw - ext4 /dev/sdb1 rw\n";
        assert_eq!(frozen_in(OURS.as_bytes(), theirs.as_bytes(), Path::new("/shared/conf"), |_| false), None);
        assert_eq!(frozen_in(b"", b"garbage\n\n1 2\n", Path::new("/shared/conf"), |_| false), None);
    }
}
