//! Figures of programs that cannot be had as Go modules, Debian or PyPI packages, and were therefore not measured in this
//! run but before, on a machine of the same kind (two shared cores, Linux), in the same way.

/// configmap-reload 0.15: from the swap of a mounted volume to the hook, p50 (p99); nothing is read or written.
pub const SWAP: &str = "configmap-reload 0.74 ms (1.3)";
/// The same with 10m of CPU: the worst case.
pub const LIMITED: &str = "configmap-reload, worst 46 ms";
/// The same, from exec to its watch.
pub const START: &str = "configmap-reload 4.7 ms to its watch";
/// k8s-sidecar 2.10: from the start of the request that edits a ConfigMap to the hook, p50 (p99).
pub const EDIT: &str = "k8s-sidecar 7.1 ms (9.5)";
/// Resident at rest.
pub const RESIDENT_FILES: &str = "configmap-reload 9.3 MB";
/// The same, with the API server for a source.
pub const RESIDENT_API: &str = "k8s-sidecar 76 MB";
/// k8s-sidecar with 1,000 ConfigMaps of 20 kB.
pub const LABELLED: &str = "k8s-sidecar, 1,000: 118 MB";
/// configmap-reload, 200 swaps.
pub const FAULTS: &str = "configmap-reload 0 / 0";
