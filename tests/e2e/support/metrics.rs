//! What a Trimtab counts, asked from the node: cheap for it, where `kubectl exec` starts a program within its limits.

use super::pod::get;

/// The values at one moment; none while it does not answer.
pub fn metrics(ip: &str) -> Option<Metrics> {
    get(ip, 9533, "/metrics").map(Metrics)
}

pub struct Metrics(String);

impl Metrics {
    /// A counter or gauge by name and labels, as it stands in the text; 0 for one that is not there yet.
    pub fn get(&self, name: &str) -> usize {
        let mut lines = self.0.lines().filter_map(|line| line.rsplit_once(' '));
        lines.find(|(key, _)| *key == name).and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
    }
}
