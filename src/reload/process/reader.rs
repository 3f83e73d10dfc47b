//! Whether a process may read a file: its users, groups and capabilities against an owner and a mode.

use std::fs;

/// Who a process is, as far as reading files goes (credentials(7), path_resolution(7)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reader {
    uid: u32,
    groups: Vec<u32>,
    /// CAP_DAC_OVERRIDE or CAP_DAC_READ_SEARCH. Being user 0 is not enough: `drop: [ALL]` takes them away.
    reads_all: bool,
}

impl Reader {
    /// That of a process, from `/proc/PID/status`; `None` if it has gone.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
    }

    pub(super) fn parse(status: &str) -> Option<Self> {
        const DAC_OVERRIDE_OR_READ_SEARCH: u64 = 0b110;
        let values = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            Some(line.split_ascii_whitespace())
        };
        // Real, effective, saved, and last the file system's, which is the one that counts.
        let last = |key| values(key)?.next_back()?.parse().ok();
        let mut groups: Vec<u32> = values("Groups:")?.filter_map(|group| group.parse().ok()).collect();
        groups.push(last("Gid:")?);
        let capabilities = u64::from_str_radix(values("CapEff:")?.next()?, 16).ok()?;
        Some(Self { uid: last("Uid:")?, groups, reads_all: capabilities & DAC_OVERRIDE_OR_READ_SEARCH != 0 })
    }

    /// Whether it may do what `bit` says (4: read a file, 1: pass through a directory). The first class that fits
    /// decides, as in the kernel; access control lists are not looked at.
    #[must_use]
    pub fn may(&self, bit: u32, owner: u32, group: u32, mode: u32) -> bool {
        let class = if self.uid == owner {
            6
        } else if self.groups.contains(&group) {
            3
        } else {
            0
        };
        self.reads_all || mode >> class & bit != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_read_a_file_is_decided_as_the_kernel_does() {
        let status = "Uid:\t9\t9\t9\t101\nGid:\t9\t9\t9\t102\nGroups:\t7 8 \nCapEff:\t0000000000000000\n";
        let reader = Reader::parse(status).unwrap();
        assert_eq!(reader, Reader { uid: 101, groups: vec![7, 8, 102], reads_all: false });
        assert!(reader.may(4, 0, 0, 0o644), "others");
        assert!(!reader.may(4, 0, 0, 0o640));
        assert!(reader.may(4, 0, 8, 0o640), "a supplementary group");
        assert!(!reader.may(4, 0, 8, 0o604), "the group's class decides, though others might");
        assert!(!reader.may(4, 101, 8, 0o044), "the owner's class decides");
        assert!(reader.may(1, 0, 102, 0o710));
        let root = Reader::parse(&status.replace("CapEff:\t0000000000000000", "CapEff:\t00000000a80425fb")).unwrap();
        assert!(root.may(4, 0, 0, 0o600));
        assert_eq!(Reader::parse("Uid:\t0\n"), None);
    }
}
