//! The history on the API server: written when a rollout has ended, read by a new Pod.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::{Answered, Fleet, refusal};
use crate::model::digest::{Digest, DigestKey};
use crate::model::snapshot::Objects;
use crate::render::Inputs;
use crate::rollout::history::{self, Header, KEY, ParseHistoryError, Text, WriteHistoryError};
use crate::rollout::{Event, Reply, lease_name};
use crate::source::kube::{Clients, Stored, StoredError};

/// So often a write is tried again at once that another was faster than.
const TRIES: u32 = 3;

/// What a history holds, once it was found to be this fleet's.
pub(in crate::app) struct Kept {
    pub change: Digest,
    pub objects: Objects,
}

/// Why nothing was read or written.
enum Trouble {
    /// It does no harm, and another try would end like this one.
    Final(String),
    /// Another was faster.
    Raced,
    Server(&'static str, Box<StoredError>),
    /// It is of these sources.
    OtherFleet(Vec<String>),
}

/// What is needed for both.
#[derive(Clone)]
struct Place {
    clients: Clients,
    name: String,
    namespace: String,
    sources: Vec<String>,
    key: Option<DigestKey>,
    /// The Lease, with which it is garbage.
    owner: Option<OwnerReference>,
}

impl Place {
    fn metadata(&self, before: ObjectMeta, text: &Text) -> ObjectMeta {
        let mut annotations = before.annotations.unwrap_or_default();
        annotations.extend(text.annotations.clone());
        let mut labels = before.labels.unwrap_or_default();
        labels.insert("app.kubernetes.io/managed-by".to_owned(), "trimtab".to_owned());
        ObjectMeta {
            name: Some(self.name.clone()),
            namespace: Some(self.namespace.clone()),
            annotations: Some(annotations),
            labels: Some(labels),
            owner_references: self.owner.clone().map(|owner| vec![owner]).or(before.owner_references),
            managed_fields: None,
            ..before
        }
    }

    async fn read<K: Stored>(&self, kind: &'static str) -> Result<Option<K>, Trouble> {
        let read = self.clients.read_stored(&self.namespace, &self.name, true).await;
        read.map_err(|error| Trouble::Server(kind, Box::new(error)))
    }

    async fn write<K: Stored>(&self, kind: &'static str, object: &K) -> Result<(), Trouble> {
        let written =
            self.clients.write_stored(object).await.map_err(|error| Trouble::Server(kind, Box::new(error)))?;
        written.map(drop).ok_or(Trouble::Raced)
    }

    /// What the object that is there says of itself, if it is the program's own.
    fn header(&self, kind: &str, metadata: &ObjectMeta) -> Result<Header, Trouble> {
        let annotations = metadata.annotations.clone().unwrap_or_default();
        Header::parse(&annotations).map_err(|error| self.foreign(kind, &error))
    }

    fn foreign(&self, kind: &str, error: &ParseHistoryError) -> Trouble {
        Trouble::Final(format!(
            "{kind} {}: {error}; nothing is taken from it, and it is not overwritten: if nobody needs it, delete it, or give \
             the fleet another --rollout NAME",
            self.name
        ))
    }

    async fn find(&self, good: &[Digest]) -> Result<Option<Kept>, Trouble> {
        let Some(map) = self.read::<ConfigMap>("ConfigMap").await? else { return Ok(None) };
        let header = self.header("ConfigMap", &map.metadata)?;
        if header.sources != self.sources {
            return Err(Trouble::OtherFleet(header.sources));
        }
        if !good.contains(&header.change) {
            return Ok(None);
        }
        let open = map.data.and_then(|mut data| data.remove(KEY)).unwrap_or_default();
        let secret = if header.has_secret { self.read::<Secret>("Secret").await? } else { None };
        let secret = secret.and_then(|secret| secret.data?.remove(KEY));
        let secret = secret.map(|ByteString(bytes)| String::from_utf8_lossy(&bytes).into_owned());
        let (key, change) = (self.key.clone(), header.change);
        let parse = move || header.objects(&open, secret.as_deref(), key.as_ref());
        // A panic, in a build that survives it.
        let parsed = tokio::task::spawn_blocking(parse).await.unwrap_or(Err(ParseHistoryError::Text));
        match parsed {
            Ok(objects) => Ok(Some(Kept { change, objects })),
            Err(error) => Err(self.foreign("ConfigMap", &error)),
        }
    }

    /// The Secret first: nobody takes a `ConfigMap` with another one's Secret.
    async fn keep(&self, text: &Text) -> Result<Option<Vec<String>>, Trouble> {
        let map = self.read::<ConfigMap>("ConfigMap").await?.unwrap_or_default();
        let before = match map.metadata.resource_version {
            Some(_) => Some(self.header("ConfigMap", &map.metadata)?),
            None => None,
        };
        let others = before.as_ref().map(|header| header.sources.clone()).filter(|sources| *sources != self.sources);
        if text.secret.is_some() || before.is_some_and(|header| header.has_secret) {
            let found = self.read::<Secret>("Secret").await?.unwrap_or_default();
            if found.metadata.resource_version.is_some() {
                self.header("Secret", &found.metadata)?;
            }
            let secret = ByteString(text.secret.clone().unwrap_or_default().into_bytes());
            let metadata = self.metadata(found.metadata, text);
            let data = Some(BTreeMap::from([(KEY.to_owned(), secret)]));
            self.write("Secret", &Secret { metadata, data, ..Secret::default() }).await?;
        }
        let data = Some(BTreeMap::from([(KEY.to_owned(), text.open.clone())]));
        let metadata = self.metadata(map.metadata, text);
        self.write("ConfigMap", &ConfigMap { metadata, data, ..ConfigMap::default() }).await?;
        Ok(others)
    }
}

impl Fleet {
    fn place(&self, secret: bool) -> Place {
        let (given, own) = &self.keys;
        let owner = self.stored.as_ref().and_then(|lease| {
            Some(OwnerReference {
                api_version: "coordination.k8s.io/v1".to_owned(),
                kind: "Lease".to_owned(),
                name: lease.metadata.name.clone()?,
                uid: lease.metadata.uid.clone()?,
                ..OwnerReference::default()
            })
        });
        Place {
            clients: self.clients.clone(),
            name: lease_name(&self.config.name),
            namespace: self.config.namespace.clone(),
            sources: self.config.sources.clone(),
            key: given.clone().or_else(|| secret.then(|| own.clone())),
            owner,
        }
    }

    pub(in crate::app) fn read_history(&mut self) {
        if !self.config.history {
            self.queue.push_back(Event::HistoryRead(Reply::Answered(None)));
            return;
        }
        let (place, answer) = (self.place(false), self.answers.0.clone());
        let good = self.rollout.lease().map(|lease| lease.good.clone()).unwrap_or_default();
        self.tasks.spawn(async move {
            let found = place.find(&good).await;
            let answered = match found {
                Ok(found) => Answered::HistoryRead(Reply::Answered(found), None),
                Err(trouble) => {
                    let (reply, problem) =
                        said(&place, trouble, "this replica has nothing to start from but the newest");
                    Answered::HistoryRead(reply.unwrap_or(Reply::Answered(None)), problem)
                }
            };
            let _ = answer.send(answered).await;
        });
    }

    /// Keeps these inputs' sources, which are of this change.
    pub(in crate::app) fn write_history(&mut self, change: Digest, inputs: Option<&Inputs>) {
        if !self.config.history {
            self.queue.push_back(Event::HistoryWritten(Reply::Answered(())));
            return;
        }
        let Some(inputs) = inputs.filter(|_| self.newest.is_some_and(|(newest, _)| newest == change)) else {
            self.queue.push_back(Event::HistoryWritten(Reply::Failed(Duration::ZERO)));
            return;
        };
        let (place, answer) = (self.place(inputs.is_secret()), self.answers.0.clone());
        let objects = inputs.snapshot.objects.clone();
        self.tasks.spawn(async move {
            let (sources, key) = (place.sources.clone(), place.key.clone());
            let write = move || history::write(change, &sources, &objects, key.as_ref());
            let mut result = match tokio::task::spawn_blocking(write).await {
                Ok(Ok(text)) => {
                    let mut result = Err(Trouble::Raced);
                    for _ in 0..TRIES {
                        result = place.keep(&text).await;
                        if !matches!(result, Err(Trouble::Raced)) {
                            break;
                        }
                    }
                    result
                }
                Ok(Err(error @ WriteHistoryError::TooLarge)) => {
                    Err(Trouble::Final(format!("nothing is kept: {error}")))
                }
                Ok(Err(WriteHistoryError::Spool(error))) => Err(Trouble::Final(error.to_string())),
                // A panic, in a build that survives it.
                Err(_) => Err(Trouble::Raced),
            };
            if let Ok(Some(others)) = &mut result {
                result = Err(Trouble::OtherFleet(std::mem::take(others)));
            }
            let (reply, problem) = match result {
                Ok(_) => (Reply::Answered(()), None),
                Err(trouble) => {
                    let (reply, problem) = said(&place, trouble, "new Pods start from the newest, whatever it is");
                    (reply.unwrap_or(Reply::Answered(())), problem)
                }
            };
            let _ = answer.send(Answered::HistoryWritten(reply, problem)).await;
        });
    }
}

/// What is said of a trouble, and how it is answered; `None`: as if nothing were there.
fn said<T>(place: &Place, trouble: Trouble, consequence: &str) -> (Option<Reply<T>>, Option<String>) {
    let name = &place.name;
    match trouble {
        Trouble::Raced => (Some(Reply::Failed(Duration::ZERO)), None),
        Trouble::Final(problem) => (None, Some(format!("{problem}; {consequence}"))),
        Trouble::Server(kind, error) => {
            let problem = format!("{kind} {name}: {error}; until then {consequence}");
            (Some(refusal(&error)), Some(problem))
        }
        Trouble::OtherFleet(sources) => {
            let problem = format!(
                "ConfigMap {name} is of other sources ({}; here: {}): two fleets with one --rollout NAME disturb each other, so \
                 give each its own. In an update to other sources this passes; until then {consequence}",
                sources.join(", "),
                place.sources.join(", ")
            );
            (None, Some(problem))
        }
    }
}
