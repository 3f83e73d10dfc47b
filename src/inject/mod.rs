//! Adds the sidecar to a manifest, and takes it out again.
//!
//! Text goes in and text comes out: what is not added is not touched, so that `uninject` gives the same bytes back. What
//! was added stands in an annotation, for manifests that have been through an API server since.

mod container;
mod document;
mod emit;
mod pod;
mod policy;
pub mod role;
mod sidecar;
#[cfg(test)]
mod tests;

use std::fmt;

pub use self::container::{OF_THE_POD, Probes};
use self::document::{Edits, Node, parse};
use self::emit::{Yaml, map};
use self::pod::{Place, named, places};
pub use self::policy::{policy, profile};
pub use self::sidecar::{Mount, MountSource, Needed, Settings};

/// The sidecar's name.
pub const CONTAINER: &str = "trimtab";
/// What was added.
pub const RECORD: &str = "trimtab.dev/injected";

/// Why a manifest stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    #[error("line {line}, column {column}: this is no YAML that Kubernetes reads")]
    NotYaml { line: usize, column: usize },
    #[error(
        "nothing here has Pods: expected a Pod, an object with a Pod template such as a Deployment, or a List of them"
    )]
    NoPods,
    #[error("--workload {wanted}: it is not in the input, which has {has}")]
    NoWorkload { wanted: String, has: String },
    #[error("{workload}: {problem}")]
    Problem { workload: String, problem: Box<Problem> },
}

/// What in a Pod contradicts the flags.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error(
        "there is no container {wanted}: --container takes one of {has}; --workload NAME leaves other objects alone"
    )]
    NoContainer { wanted: String, has: String },
    #[error("which container is the main one? --container takes one of {has}")]
    WhichContainer { has: String },
    #[error("it has a container {CONTAINER} that inject did not add: remove it first, or leave it as it is")]
    HasSidecar,
    #[error("--after {wanted}: there is no such init container; {has}")]
    NoInitContainer { wanted: String, has: String },
    #[error("{0} is an alias, or repeated by one: an edit would change both places; write it out")]
    Repeated(String),
    #[error("{0} is empty: remove it, or write what it holds")]
    Empty(String),
    #[error(
        "hostPID: true, and {flag} needs shareProcessNamespace, which Kubernetes does not allow beside it: use \
         --reload-url, or remove hostPID"
    )]
    HostPid { flag: &'static str },
    #[error(
        "shareProcessNamespace: false, and {flag} looks for the main process among those of the Pod: remove the line, \
         or use --reload-url"
    )]
    NotShared { flag: &'static str },
    #[error(
        "automountServiceAccountToken: false, and the API server is asked with that token: remove the line, or mount the \
         ConfigMap and use --watch-dir"
    )]
    NoToken,
    #[error("it has a volume {name} already: choose another name for the shared volume by --volume NAME")]
    VolumeTaken { name: String },
    #[error("{source_flag}: there is no volume {name} in the Pod; {has}")]
    NoVolume { source_flag: String, name: String, has: String },
    #[error(
        "--output {output}: container {container} has volume {volume} there, and nobody can write to a {kind} volume: \
         choose a directory below another one, such as /shared/conf"
    )]
    ReadOnly { output: String, container: String, volume: String, kind: String },
    #[error("--output {0} has no directory above it that could be the shared volume: choose one such as /shared/conf")]
    NoParent(String),
    #[error("{flag} {path} must begin with a slash: it is a path in the sidecar's container")]
    Relative { flag: String, path: String },
    #[error(
        "{flag} {path}: no volume is mounted there, neither for the sidecar nor in container {container}: add --mount \
         configmap/NAME:{path}, secret/NAME:{path} or volume/NAME:{path}"
    )]
    NotMounted { flag: String, path: String, container: String },
    #[error(
        "{flag} {path}: container {container} mounts it by subPath, which the kubelet never updates: mount the whole \
         volume, by --mount or in the container"
    )]
    SubPath { flag: String, path: String, container: String },
    #[error("container {container} uses port {port}, which is the sidecar's --listen: give --listen another one")]
    PortTaken { container: String, port: u16 },
    #[error(
        "a profile is for a native sidecar with probes: --once and a --listen that the kubelet does not reach are for \
         inject"
    )]
    NotForProfiles,
    #[error("--env {0}: a profile does not know the Pod's variables: --field gives it one of the Pod's fields")]
    VariableOfProfile(String),
    #[error("the flag {0:?} has more than one line, or none: a profile has a line for each")]
    LinesOfProfile(String),
    #[error("the annotation {RECORD} is not what inject wrote: {0:?}")]
    Record(String),
}

/// A manifest with the sidecar, and what its reader ought to know.
#[derive(Debug, PartialEq, Eq)]
pub struct Injected {
    pub text: String,
    /// Each names its workload first.
    pub advice: Vec<String>,
    /// The namespaces that the manifest names for its workloads; none where it leaves that to `kubectl apply`.
    pub service_accounts: Vec<(Option<String>, Option<String>)>,
}

/// Adds the sidecar to the Pods of these workloads, or of all. What an earlier call added is replaced.
pub fn inject(text: &str, settings: &Settings, workloads: &[String]) -> Result<Injected, InjectError> {
    let text = uninject_from(text, workloads)?;
    let documents = parse(&text)?;
    let places = chosen(&documents, workloads)?;
    if places.is_empty() {
        return Err(InjectError::NoPods);
    }
    let mut edits = Edits::new(&text);
    let mut advice = Vec::new();
    let mut service_accounts = Vec::new();
    for place in &places {
        let in_place = |problem| InjectError::Problem { workload: place.name.clone(), problem: Box::new(problem) };
        let made = settings.plan(place).and_then(|plan| {
            plan.write(place, &mut edits)?;
            Ok(plan.advice)
        });
        advice.extend(made.map_err(in_place)?.into_iter().map(|line| format!("{}: {line}", place.name)));
        let account = place.spec.text_at(&["serviceAccountName"]).map(str::to_owned);
        let of_place = (place.namespace.map(str::to_owned), account);
        if !service_accounts.contains(&of_place) {
            service_accounts.push(of_place);
        }
    }
    Ok(Injected { text: edits.apply(), advice, service_accounts })
}

/// Takes out what `inject` added, wherever it did.
pub fn uninject(text: &str) -> Result<String, InjectError> {
    uninject_from(text, &[])
}

fn uninject_from(text: &str, workloads: &[String]) -> Result<String, InjectError> {
    let documents = parse(text)?;
    let mut edits = Edits::new(text);
    for place in chosen(&documents, workloads)? {
        let in_place = |problem| InjectError::Problem { workload: place.name.clone(), problem: Box::new(problem) };
        let Some(record) = place.holder.text_at(&["metadata", "annotations", RECORD]) else { continue };
        remove(&place, &Record::parse(record).map_err(in_place)?, &mut edits);
    }
    Ok(edits.apply())
}

fn chosen<'a>(documents: &'a [Node], workloads: &[String]) -> Result<Vec<Place<'a>>, InjectError> {
    let mut found: Vec<_> = documents.iter().flat_map(places).collect();
    for wanted in workloads {
        if !found.iter().any(|place| place.is_called(wanted)) {
            let has: Vec<_> = found.iter().map(|place| place.name.as_str()).collect();
            return Err(InjectError::NoWorkload { wanted: wanted.clone(), has: list_or(&has, "no workload") });
        }
    }
    found.retain(|place| workloads.is_empty() || workloads.iter().any(|wanted| place.is_called(wanted)));
    Ok(found)
}

fn list_or(names: &[&str], nothing: &str) -> String {
    if names.is_empty() { nothing.to_owned() } else { names.join(", ") }
}

// --- what was added --------------------------------------------------------------------------------------------------

/// What one injection added, as the annotation has it: `container=nginx volumes=trimtab made=volumes,initContainers`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Record {
    /// The container that has new mounts.
    container: String,
    volumes: Vec<String>,
    /// Keys that were not there before.
    made: Vec<String>,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { container, volumes, made } = self;
        write!(f, "container={container} volumes={} made={}", volumes.join(","), made.join(","))
    }
}

impl Record {
    fn parse(text: &str) -> Result<Self, Problem> {
        let mut record = Self::default();
        let list = |value: &str| value.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        for word in text.split_whitespace() {
            match word.split_once('=') {
                Some(("container", name)) => name.clone_into(&mut record.container),
                Some(("volumes", names)) => record.volumes = list(names),
                Some(("made", keys)) => record.made = list(keys),
                _ => return Err(Problem::Record(text.to_owned())),
            }
        }
        Ok(record)
    }

    fn made(&self, key: &str) -> bool {
        self.made.iter().any(|made| made == key)
    }
}

fn remove(place: &Place<'_>, record: &Record, edits: &mut Edits<'_>) {
    let is_ours =
        |item: &Node| item.text_at(&["name"]).is_some_and(|name| record.volumes.iter().any(|volume| volume == name));
    let is_sidecar = |item: &Node| item.text_at(&["name"]) == Some(CONTAINER);
    let mut keys = vec!["shareProcessNamespace"];
    keys.retain(|key| record.made(key));
    keys.extend(remove_items(place.spec, "initContainers", record, edits, is_sidecar));
    keys.extend(remove_items(place.spec, "volumes", record, edits, is_ours));
    edits.remove_entries(place.spec, &keys);
    if let Some(container) = named(place.list("containers"), &record.container) {
        let key = remove_items(container, "volumeMounts", record, edits, is_ours);
        edits.remove_entries(container, &Vec::from_iter(key));
    }
    let Some(metadata) = place.holder.at(&["metadata"]) else { return };
    let Some(annotations) = metadata.at(&["annotations"]) else { return };
    match (annotations.entries().len(), metadata.entries().len()) {
        (1, 1) if record.made("metadata") => edits.remove_entries(place.holder, &["metadata"]),
        (1, _) if record.made("annotations") => edits.remove_entries(metadata, &["annotations"]),
        _ => edits.remove_entries(annotations, &[RECORD]),
    }
}

/// Takes our items out of a list; the key, if all of it is to go.
fn remove_items(
    owner: &Node,
    key: &'static str,
    record: &Record,
    edits: &mut Edits<'_>,
    is_ours: impl Fn(&Node) -> bool,
) -> Option<&'static str> {
    let list = owner.at(&[key])?;
    if record.made(key) && list.items().iter().all(&is_ours) {
        return Some(key);
    }
    edits.remove_items(list, is_ours);
    None
}

// --- adding ----------------------------------------------------------------------------------------------------------

/// What is added to one Pod.
struct Plan<'a> {
    main: &'a Node,
    sidecar: Yaml,
    /// How many init containers come before it.
    after: usize,
    volumes: Vec<(String, Yaml)>,
    /// Of the main container.
    mounts: Vec<Yaml>,
    shares_processes: bool,
    advice: Vec<String>,
}

impl Plan<'_> {
    fn write(&self, place: &Place<'_>, edits: &mut Edits<'_>) -> Result<(), Problem> {
        let spec = place.spec;
        let containers = spec.entry("containers");
        let indent = containers.map_or(2, |entry| edits.indent(entry.start, &entry.value));
        let mut record = Record {
            container: self.main.text_at(&["name"]).unwrap_or_default().to_owned(),
            volumes: self.volumes.iter().map(|(name, _)| name.clone()).collect(),
            made: Vec::new(),
        };
        if self.shares_processes {
            edits.add_entry(spec, Some("containers"), "shareProcessNamespace", &true.into(), indent);
            record.made.push("shareProcessNamespace".to_owned());
        }
        let volumes: Vec<_> = self.volumes.iter().map(|(_, volume)| volume.clone()).collect();
        let sidecar = std::slice::from_ref(&self.sidecar);
        for (owner, before, key, after, values) in [
            (spec, "containers", "volumes", 0, &volumes[..]),
            (spec, "containers", "initContainers", self.after, sidecar),
            (self.main, "", "volumeMounts", 0, &self.mounts[..]),
        ] {
            if values.is_empty() {
                continue;
            }
            if let Some(list) = owner.at(&[key]) {
                edits.add_items(editable(list, key)?, after, values, indent);
                continue;
            }
            // Behind the container's name, where that comes first.
            let second = owner.entries().get(1).map(|entry| entry.key.as_str());
            let before = if before.is_empty() { second } else { Some(before) };
            edits.add_entry(owner, before, key, &Yaml::List(values.to_vec()), indent);
            record.made.push(key.to_owned());
        }
        annotate(place, record, edits, indent)
    }
}

fn annotate(place: &Place<'_>, mut record: Record, edits: &mut Edits<'_>, indent: usize) -> Result<(), Problem> {
    let annotation = |record: &Record| Yaml::Text(record.to_string());
    let annotations = |record: &Record| map([(RECORD, annotation(record))]);
    match place.holder.at(&["metadata"]) {
        None => {
            record.made.extend(["metadata", "annotations"].map(str::to_owned));
            let metadata = map([("annotations", annotations(&record))]);
            edits.add_entry(place.holder, Some("spec"), "metadata", &metadata, indent);
        }
        Some(metadata) => match metadata.at(&["annotations"]) {
            None => {
                record.made.push("annotations".to_owned());
                let metadata = editable(metadata, "metadata")?;
                edits.add_entry(metadata, None, "annotations", &annotations(&record), indent);
            }
            Some(node) => {
                edits.add_entry(editable(node, "annotations")?, None, RECORD, &annotation(&record), indent);
            }
        },
    }
    Ok(())
}

/// A list or map that something can be added to.
fn editable<'a>(node: &'a Node, key: &str) -> Result<&'a Node, Problem> {
    if node.repeated {
        return Err(Problem::Repeated(key.to_owned()));
    }
    let holds = node.is_flow() || !node.items().is_empty() || !node.entries().is_empty();
    if holds { Ok(node) } else { Err(Problem::Empty(key.to_owned())) }
}
