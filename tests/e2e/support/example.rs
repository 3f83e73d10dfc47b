//! An example's manifest, and the one change that some tests make to it.

use std::path::Path;

use super::node::kubectl;

/// What `kubectl apply -k examples/NAME` applies.
pub fn manifest(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
    kubectl(&["kustomize", folder.to_str().unwrap()])
}

/// The manifest with Trimtab held to 16Mi of memory and a hundredth of a CPU.
///
/// # Panics
/// Unless Trimtab's container is the only one with a limit.
pub fn tight(manifest: &str) -> String {
    const LIMIT: &str = "limits:\n";
    assert_eq!(manifest.matches(LIMIT).count(), 1, "whose limits?\n{manifest}");
    let (before, after) = manifest.split_once(LIMIT).unwrap();
    let (memory, after) = after.split_once('\n').unwrap();
    let indent = memory.split_once("memory: ").expect("a memory limit").0;
    format!("{before}{LIMIT}{indent}cpu: 10m\n{indent}memory: 16Mi\n{after}")
}
