//! What a container's cgroup counted, read from outside: its limits hold for whatever runs in it, probes by `exec`
//! included.

use std::fs;
use std::path::{Path, PathBuf};

use super::pod::Pod;

/// The container's folders: one, or with cgroup v1 one in each hierarchy.
pub struct Cgroup(Vec<PathBuf>);

impl Cgroup {
    /// Of the container as it runs at present; one that is started again has another.
    ///
    /// # Panics
    /// When there is none.
    pub fn of(pod: &Pod, container: &str) -> Self {
        let status = pod.container(container).unwrap_or_else(|| panic!("{} has no {container}", pod.name()));
        let id = status["containerID"].as_str().and_then(|id| id.split_once("://")).map(|(_, id)| id.to_owned());
        let id = id.unwrap_or_else(|| panic!("{container} does not run: {status}"));
        let mut found = Vec::new();
        // HIERARCHY/NODE/kubepods/QUALITY/POD/CONTAINER, where v2 has no HIERARCHY and a Guaranteed Pod no QUALITY.
        below(Path::new("/sys/fs/cgroup"), &id, 6, &mut found);
        assert!(!found.is_empty(), "no cgroup of container {id} below /sys/fs/cgroup");
        Self(found)
    }

    /// The most memory that it ever had, in bytes, page cache included.
    pub fn peak(&self) -> u64 {
        let peak = self.read("memory.peak").or_else(|| self.read("memory.max_usage_in_bytes"));
        peak.and_then(|text| text.trim().parse().ok()).expect("the kernel counts a cgroup's peak")
    }

    /// In how many periods (of 100 ms each) it ran, and in how many of them it was stopped at its CPU limit.
    pub fn throttled(&self) -> (u64, u64) {
        let count = |stat: &str, name: &str| {
            let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
            lines.find(|(key, _)| *key == name).and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
        };
        // Beside v1's hierarchies there may be v2's, without the limit.
        let stats = self.0.iter().filter_map(|folder| fs::read_to_string(folder.join("cpu.stat")).ok());
        let counts = stats.map(|stat| (count(&stat, "nr_periods"), count(&stat, "nr_throttled")));
        counts.max().expect("the kernel counts a cgroup's periods")
    }

    /// Both, for a table: "peak" and "throttled periods".
    pub fn cells(&self) -> [String; 2] {
        let (periods, throttled) = self.throttled();
        [format!("{} KiB", self.peak() / 1024), format!("{throttled} of {periods}")]
    }

    fn read(&self, file: &str) -> Option<String> {
        self.0.iter().find_map(|folder| fs::read_to_string(folder.join(file)).ok())
    }
}

fn below(folder: &Path, name: &str, depth: usize, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name() == name {
            found.push(entry.path());
        } else if depth > 1 {
            below(&entry.path(), name, depth - 1, found);
        }
    }
}
