//! `trimtab rollout`: how far a change is in a fleet, and what people say of it. By a kubeconfig, or the Pod's token.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::coordination::v1::Lease as KubeLease;
use k8s_openapi::api::core::v1::ConfigMap;
use tokio::time::{Instant, sleep};

use super::exit::Exit;
use super::values::duration;
use super::{escaped, runtime};
use crate::app::lease_of;
use crate::model::object::{Object, ObjectRef};
use crate::rollout::{Lease, OF_CANDIDATE, OF_DONE, PREFIX, State, lease_name, versions};
use crate::source::kube::{ClientConfig, Clients, StoredError, default_namespace};

/// How often `--wait` looks.
const LOOK: Duration = Duration::from_secs(2);

/// What is asked.
#[derive(Debug, Args)]
pub struct RolloutCommand {
    /// What to do
    pub action: Action,
    /// The fleet's --rollout NAME
    pub name: String,
    /// The namespace of its Pods; default: that of the kubeconfig, or this Pod's
    #[arg(long, value_name = "NS")]
    pub namespace: Option<String>,
    /// Reach the API server by this kubeconfig; default: as a Pod
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig
    #[arg(long, value_name = "NAME", requires = "kubeconfig")]
    pub context: Option<String>,
    /// status: wait until the rollout of what is in the cluster now has ended
    #[arg(long)]
    pub wait: bool,
    /// status --wait: no longer than this
    #[arg(long, value_name = "D", default_value = "30m", value_parser = duration)]
    pub timeout: Duration,
}

/// What to do with a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Action {
    /// Say how far the change is: exit 0 done, 65 stopped, 69 under way
    Status,
    /// All replicas take the change now, whatever it does
    Promote,
    /// Stop the change that is under way: who has it goes back
    Stop,
    /// Let the change be tried again, where it was stopped or rejected
    Retry,
}

/// Where what is in the cluster stands.
enum Place {
    /// The rollout has ended, and is of that.
    There,
    OnItsWay,
    /// The fleet has it, whatever the rollout was of.
    Had,
    /// The rollout is of something older: why.
    Newer(String),
}

/// Why nothing was done.
struct Failed(Exit, String);

/// Runs it.
#[must_use]
pub fn rollout(command: RolloutCommand) -> ExitCode {
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(code) => return code,
    };
    match runtime.block_on(run(command)) {
        Ok((exit, said)) => {
            println!("{}", escaped(&said, '\n'));
            exit.into()
        }
        Err(Failed(exit, why)) => {
            eprintln!("trimtab: {}", escaped(&why, '\n'));
            exit.into()
        }
    }
}

async fn run(command: RolloutCommand) -> Result<(Exit, String), Failed> {
    let RolloutCommand { action, name, namespace, kubeconfig, context, wait, timeout } = command;
    let config = ClientConfig { kubeconfig, context, ..ClientConfig::default() };
    let namespace = match namespace {
        Some(namespace) => namespace,
        None => {
            default_namespace(&config).map_err(|error| Failed(Exit::Usage, format!("{error}; or give --namespace")))?
        }
    };
    let clients = Clients::new(config);
    let lease = lease_name(&name);
    let until = Instant::now() + timeout;
    loop {
        let found = clients.read_stored::<KubeLease>(&namespace, &lease, true).await;
        let stored = found.map_err(|error| failed(&lease, &error))?;
        let Some(stored) = stored else {
            let why = format!(
                "no rollout {name} in namespace {namespace}: no replica with --rollout {name} has confirmed anything there \
                 yet, or it is another namespace"
            );
            return Err(Failed(Exit::Unavailable, why));
        };
        let known = lease_of(&stored).map_err(|error| {
            let why = format!("Lease {lease}: {error}; nobody goes until it is deleted");
            Failed(Exit::StartUp, why)
        })?;
        if action == Action::Status {
            let place = if wait { placed(&clients, &known, &stored).await? } else { Place::There };
            let is_open = matches!(place, Place::OnItsWay | Place::Newer(_));
            if is_open && Instant::now() < until {
                sleep(LOOK).await;
                continue;
            }
            return Ok(match place {
                Place::Newer(what) => (Exit::Unavailable, format!("rollout {name}: {what}")),
                Place::Had => (
                    Exit::Done,
                    format!(
                        "rollout {name}: done: the fleet has what is in the cluster now; before, {}",
                        describe(&name, &known, &stored).1
                    ),
                ),
                Place::There | Place::OnItsWay => describe(&name, &known, &stored),
            });
        }
        let changed = match action {
            Action::Promote => known.promoted(),
            Action::Stop => known.stopped_by_person(),
            Action::Status | Action::Retry => Some(known.retried()),
        };
        let Some(changed) = changed else {
            let nothing = format!("nothing to do: the rollout {name} is {}", known.state.as_str());
            return Ok((Exit::Done, nothing));
        };
        let mut object = stored;
        let spec = object.spec.get_or_insert_default();
        spec.holder_identity = Some(changed.holder.clone());
        let annotations = object.metadata.annotations.get_or_insert_default();
        annotations.extend(changed.annotations());
        let by = clients.who().await.unwrap_or_else(|| "a person".to_owned());
        let people = [
            ("by", by),
            ("stage", String::new()),
            ("reason", format!("trimtab rollout {}", action.as_str())),
            ("since", Timestamp::now().to_string()),
        ];
        annotations.extend(people.map(|(name, value)| (format!("{PREFIX}{name}"), value)));
        object.metadata.managed_fields = None;
        let written = clients.write_stored(&object).await.map_err(|error| failed(&lease, &error))?;
        // Another wrote meanwhile: what is true now is looked at again.
        if written.is_some() {
            return Ok((Exit::Done, format!("{}: the rollout {name} is {}", action.as_str(), changed.state.as_str())));
        }
    }
}

/// Compares the named ConfigMaps in the cluster with those that the Lease speaks of.
async fn placed(clients: &Clients, lease: &Lease, stored: &KubeLease) -> Result<Place, Failed> {
    if lease.is_under_way() {
        return Ok(Place::OnItsWay);
    }
    let value = |name: &str| stored.metadata.annotations.as_ref()?.get(&format!("{PREFIX}{name}")).cloned();
    // An earlier version of the program wrote none.
    let Some(candidate) = value(OF_CANDIDATE) else { return Ok(Place::There) };
    let mut newer = None;
    let mut now = Vec::new();
    for version in candidate.split_whitespace() {
        let (id, _) = version.split_once('@').unwrap_or_default();
        let Ok(id) = id.parse::<ObjectRef>() else { continue };
        let found = clients.read_stored::<ConfigMap>(&id.namespace, &id.name, true).await;
        let found = found.map_err(|error| {
            let exit = if matches!(error, StoredError::Forbidden { .. }) { Exit::Forbidden } else { Exit::Unavailable };
            Failed(exit, format!("{id}, which --wait compares with the rollout's: {error}"))
        })?;
        now.extend(found.map(|found| object(id.clone(), found)));
        if versions(now.last().filter(|object| object.id == id).into_iter()) != version {
            newer = Some(id);
        }
    }
    let Some(newer) = newer else { return Ok(Place::There) };
    if value(OF_DONE) == Some(versions(now.iter())) {
        return Ok(Place::Had);
    }
    Ok(Place::Newer(format!("{newer} was edited since, and no replica has taken that up; do they run, and read it?")))
}

fn object(id: ObjectRef, found: ConfigMap) -> Object {
    let text = found.data.into_iter().flatten().map(|(key, value)| (key, Bytes::from(value).into()));
    let binary =
        found.binary_data.into_iter().flatten().map(|(key, ByteString(value))| (key, Bytes::from(value).into()));
    Object::new(id, String::new(), 0, false, text.chain(binary).collect())
}

impl Action {
    fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Promote => "promote",
            Self::Stop => "stop",
            Self::Retry => "retry",
        }
    }
}

fn failed(lease: &str, error: &StoredError) -> Failed {
    let exit = if matches!(error, StoredError::Forbidden { .. }) { Exit::Forbidden } else { Exit::Unavailable };
    Failed(exit, format!("Lease {lease}: {error}"))
}

fn describe(name: &str, lease: &Lease, stored: &KubeLease) -> (Exit, String) {
    let annotations = stored.metadata.annotations.as_ref();
    let value =
        |name: &str| annotations.and_then(|all| all.get(&format!("{PREFIX}{name}"))).filter(|text| !text.is_empty());
    let change = lease.candidate.map_or_else(|| "no change".to_owned(), |change| format!("change {}", change.short()));
    let (exit, state) = match lease.state {
        State::Done => (Exit::Done, "done: the fleet takes it"),
        State::Stopped => {
            (Exit::Rejected, "stopped: a replica rejected it, its holders were lost, or a person stopped it")
        }
        State::Claimed => (Exit::Unavailable, "claimed: one replica goes first"),
        State::Baking => (Exit::Unavailable, "baking: the first replica must hold it"),
        State::Spreading => (Exit::Unavailable, "spreading: the others follow"),
        State::None => (Exit::Unavailable, "none: no change is under way"),
    };
    let mut said = format!("rollout {name}: {change} is {state}");
    let people =
        [("first replica", "canary"), ("by", "by"), ("rejected at", "stage"), ("why", "reason"), ("since", "since")];
    for (label, name) in people {
        if let Some(value) = value(name) {
            // Writing to a String does not fail.
            let _ = write!(said, "\n  {label}: {value}");
        }
    }
    (exit, said)
}
