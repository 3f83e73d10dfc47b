//! What is mounted where, from the text of a `/proc/PID/mountinfo` (`proc_pid_mountinfo(5)`).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// As statx(2) gives it for a path (`STATX_MNT_ID`).
    pub(crate) id: u64,
    /// `major:minor` of the file system.
    pub(crate) device: String,
    /// What of the file system is mounted: a path in it.
    pub(crate) root: PathBuf,
    /// Whether that has been removed.
    pub(crate) deleted: bool,
    pub(crate) point: PathBuf,
}

/// `proc_pid_mountinfo(5)` does not say so, but fs/d_path.c appends it to the root.
const DELETED: &[u8] = b"//deleted";

/// All mounts of a text; lines of another form are left out.
pub(crate) fn parse(mountinfo: &[u8]) -> impl Iterator<Item = Mount> {
    mountinfo.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let id = str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let device = str::from_utf8(fields.nth(1)?).ok()?.to_owned();
        let root = fields.next()?;
        let point = path(fields.next()?);
        let kept = root.strip_suffix(DELETED);
        Some(Mount { id, device, root: path(kept.unwrap_or(root)), deleted: kept.is_some(), point })
    })
}

/// Space, tab, newline and backslash stand there as three octal digits.
fn path(field: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = if *first == b'\\' { after.get(..3) } else { None };
        let byte = octal.and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        plain.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    PathBuf::from(OsString::from_vec(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_digits_are_characters_and_other_backslashes_stay() {
        assert_eq!(path(br"a\040b\134c\9"), PathBuf::from(r"a b\c\9"));
    }
}
