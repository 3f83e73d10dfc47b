//! An example's manifest, as it stands and with the one change that tests make to it.

use std::path::Path;

use super::cgroup::Cgroup;
use super::node::kubectl;
use super::pod::Pod;
use super::space::Space;
use super::table;

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

/// Runs a test twice, on Pods that are ready, each time in a namespace of its own: of the example as it stands (but for
/// its images), and with Trimtab held tight, from its start on. Prints what Trimtab's cgroups counted.
pub fn twice(example: &str, as_it_stands: &str, label: &str, replicas: usize, test: impl Fn(&Space, &[Pod<'_>])) {
    let mut rows = vec![["", "peak", "throttled periods"].map(str::to_owned).to_vec()];
    let tight = tight(&manifest(example));
    for (how, manifest, limited) in [("as it stands", as_it_stands, false), ("at 16Mi and 10m", &tight, true)] {
        let space = Space::new(example);
        space.apply(manifest);
        let pods: Vec<_> = space.pods_when_there(label, replicas).into_iter().map(Pod::until_ready).collect();
        test(&space, &pods);
        for pod in &pods {
            let cgroup = Cgroup::of(pod, "trimtab");
            assert_eq!(cgroup.throttled().0 > 0, limited, "the kernel counts periods where there is a limit of CPU");
            rows.push([vec![how.to_owned()], cgroup.cells().into()].concat());
        }
    }
    table::print(&format!("Trimtab's cgroup beside {example}"), &rows);
}
