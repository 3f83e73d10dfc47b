//! What a mount cannot show: a `subPath` never follows its volume, and a mounted file never follows a rename.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use crate::os::mounts::{Mount, parse};

/// A mount that does not show what becomes of its source, by its mount point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frozen {
    /// One version of a volume of the kubelet's, which is never updated.
    SubPath(PathBuf),
    /// A single file: what replaces it by a rename is not shown, what is written into it is.
    File(PathBuf),
}

/// What a mount of this path, or of a file or directory below it, cannot follow; `None` if it shows every change, or if
/// that is not known.
#[must_use]
pub fn frozen(path: &Path) -> Option<Frozen> {
    let subpath = |mount: &Mount| mount.deleted || mount.root.iter().any(|name| is_of_kubelet(name.as_bytes()));
    let file = |mount: &Mount| mount.point.is_file();
    mounted(path, subpath).map(Frozen::SubPath).or_else(|| mounted(path, file).map(Frozen::File))
}

/// Whether the kubelet has replaced the directory behind a `subPath` mount of this path, or of a file below it.
///
/// Such a mount holds the directory that the volume had when the container started; once that is removed,
/// `/proc/self/mountinfo` (proc(5)) shows its root as deleted. Not knowing (no `/proc`) is `None`.
pub(super) fn replaced(path: &Path) -> Option<PathBuf> {
    mounted(path, |mount| mount.deleted)
}

/// Whether a segment is the name of a directory that holds one version of a volume, as `..2026_11_24_07_00_00.123`
/// (`pkg/volume/util/atomic_writer.go`: `newTimestampDir`).
fn is_of_kubelet(segment: &[u8]) -> bool {
    let Some(rest) = segment.strip_prefix(b"..") else { return false };
    rest.len() > 5 && rest[..4].iter().all(u8::is_ascii_digit) && rest[4] == b'_'
}

/// The first such mount's point that is this path's mount or is below it.
fn mounted(path: &Path, wanted: impl Fn(&Mount) -> bool) -> Option<PathBuf> {
    let stat = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).ok()?;
    let mount = (stat.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(stat.stx_mnt_id);
    let real = std::fs::canonicalize(path).ok()?;
    mount_with(&std::fs::read("/proc/self/mountinfo").ok()?, mount, &real, wanted)
}

fn mount_with(mountinfo: &[u8], mount: Option<u64>, real: &Path, wanted: impl Fn(&Mount) -> bool) -> Option<PathBuf> {
    let is_here = |found: &Mount| mount == Some(found.id) || (found.point != real && found.point.starts_with(real));
    parse(mountinfo).find(|found| is_here(found) && wanted(found)).map(|found| found.point)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_of_a_volume_is_distinguished_from_other_directories() {
        for (name, is) in [
            ("..2026_11_24_07_00_00.1234", true),
            ("..data", false),
            ("..2026", false),
            ("..2026-11", false),
            ("2026_11_24_07_00_00.1234", false),
            ("..", false),
            ("", false),
        ] {
            assert_eq!(is_of_kubelet(name.as_bytes()), is, "{name}");
        }
    }

    #[test]
    fn a_deleted_mount_is_found_here_and_below() {
        let mountinfo = b"\
24 1 254:0 / / rw - ext4 /dev/root rw
31 24 254:0 /pods/1/..2026_1/app.conf//deleted /etc/app\\040conf rw - ext4 /dev/root rw
32 24 254:0 /pods/1/..2026_1/other//deleted /etc/sub/other rw - ext4 /dev/root rw
short
";
        let found = |mount, real: &str| mount_with(mountinfo, mount, Path::new(real), |mount| mount.deleted);
        assert_eq!(found(Some(31), "/etc/app conf"), Some("/etc/app conf".into()));
        assert_eq!(found(Some(24), "/etc/sub"), Some("/etc/sub/other".into()));
        assert_eq!(found(Some(24), "/etc/su"), None);
        assert_eq!(found(None, "/etc/app conf"), None);
    }
}
