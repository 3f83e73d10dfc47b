//! The Lease as it is stored: what goes there, and what is read from there.

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease as KubeLease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};

use super::{Fleet, RolloutConfig};
use crate::machine::Machine;
use crate::model::digest::Digest;
use crate::model::stage::Stage;
use crate::rollout::{Lease, OF_CANDIDATE, OF_DONE, PREFIX, ParseLeaseError, Reason, State, Version, lease_name};

/// Others take the holder for lost after so many seconds, as client-go's leader election writes it.
const LEASE_SECONDS: i32 = 30;

/// The longest text in an annotation for people, in bytes.
const SAID: usize = 1024;

/// Why the Lease is written, for people.
pub(super) struct People {
    pub(super) reason: Reason,
    pub(super) why: String,
    /// Of a rejection.
    stage: &'static str,
}

impl RolloutConfig {
    /// The sources' names, as they fit into an annotation.
    pub(crate) fn sources(&self) -> String {
        let all = self.sources.join(", ");
        let short = clipped(&all);
        if short == all { all } else { format!("{short} {}", Digest::of(all.as_bytes()).short()) }
    }

    /// The sources of the replica that last wrote the Lease, if they are others than this one's.
    pub(crate) fn other_sources<'a>(&self, lease: &'a KubeLease) -> Option<&'a str> {
        let sources = lease.metadata.annotations.as_ref()?.get(&format!("{PREFIX}sources"))?;
        (*sources != self.sources()).then_some(sources)
    }
}

impl Fleet {
    pub(super) fn people(&self, reason: Reason, machine: &Machine) -> People {
        let rejection = machine.journal().quarantine.as_ref().map(|quarantine| &quarantine.rejection);
        let (why, stage) = match (reason, rejection, &self.looks.objection) {
            // What rendering says may quote content.
            (Reason::Rejected, Some(found), _) if found.stage == Stage::Render => {
                (reason.as_str().to_owned(), found.stage.as_str())
            }
            (Reason::Rejected, Some(found), _) => {
                (format!("{}: {}", reason.as_str(), found.reason), found.stage.as_str())
            }
            (Reason::Gate, _, Some(objection)) => (format!("{}: {objection}", reason.as_str()), ""),
            _ => (reason.as_str().to_owned(), ""),
        };
        People { reason, why: clipped(&why).to_owned(), stage }
    }

    /// The Lease as it goes to the API server; what others wrote there stays.
    pub(super) fn object(&self, lease: &Lease, version: Option<Version>, people: &People) -> KubeLease {
        let mut object = self.stored.clone().filter(|_| version.is_some()).unwrap_or_default();
        let now = MicroTime(Timestamp::now());
        let spec = object.spec.take().unwrap_or_default();
        let changed = spec.holder_identity.as_deref().unwrap_or_default() != lease.holder;
        object.spec = Some(LeaseSpec {
            holder_identity: Some(lease.holder.clone()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            acquire_time: if changed { Some(now.clone()) } else { spec.acquire_time.clone().or(Some(now.clone())) },
            renew_time: Some(now),
            lease_transitions: Some(spec.lease_transitions.unwrap_or(0).saturating_add(i32::from(changed))),
            ..spec
        });
        let ObjectMeta { annotations, .. } = object.metadata;
        let mut annotations = annotations.unwrap_or_default();
        annotations.extend(lease.annotations());
        if people.reason != Reason::Renew {
            let is_mine = |(change, _): (Digest, _)| lease.candidate == Some(change);
            let versions = self.newest.is_some_and(is_mine).then(|| self.versions.clone());
            let said = [
                ("canary", (lease.holder == self.config.uid).then(|| self.config.pod.clone())),
                ("by", Some(self.config.pod.clone())),
                ("reason", Some(people.why.clone())),
                ("stage", Some(people.stage.to_owned())),
                ("since", Some(Timestamp::now().to_string())),
                ("sources", Some(self.config.sources())),
                (OF_CANDIDATE, versions.clone()),
                (OF_DONE, versions.filter(|_| lease.state == State::Done)),
            ];
            let said = said.into_iter().filter_map(|(name, value)| Some((format!("{PREFIX}{name}"), value?)));
            annotations.extend(said);
        }
        object.metadata = ObjectMeta {
            name: Some(lease_name(&self.config.name)),
            namespace: Some(self.config.namespace.clone()),
            resource_version: version,
            annotations: Some(annotations),
            managed_fields: None,
            ..object.metadata
        };
        object
    }
}

/// What fits into an annotation.
pub(super) fn clipped(text: &str) -> &str {
    &text[..text.floor_char_boundary(SAID)]
}

/// What a Lease says, as it is stored.
pub(crate) fn lease_of(stored: &KubeLease) -> Result<Lease, ParseLeaseError> {
    let holder = stored.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
    Lease::parse(holder, &stored.metadata.annotations.clone().unwrap_or_default())
}
