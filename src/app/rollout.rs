//! The rollout's requests and moments: what its machine asks for, and what it is answered.

mod history;
mod looks;
mod stored;

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease as KubeLease;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{info, warn};

pub(super) use self::history::Kept;
pub(super) use self::looks::Subject;
use self::looks::{Looked, Looks};
pub(crate) use self::stored::lease_of;
use self::stored::{People, clipped};
use super::received;
use crate::machine::{Machine, Phase, Step};
use crate::model::digest::{Digest, DigestKey};
use crate::model::journal::Generation;
use crate::observe::rollout::{self as seen, Seen};
use crate::observe::status;
use crate::reload::GateUrl;
use crate::render::Inputs;
use crate::rollout::{
    Effect, Event, Lease, PREFIX, Reason, Replica, Reply, Rollout, State, Timing, Version, lease_name, versions,
};
use crate::source::kube::{Clients, StoredError};

/// How long a Lease is waited for that is given back at the end.
const GIVE_BACK: Duration = Duration::from_secs(2);

/// The rollout that this replica takes part in.
#[derive(Clone, Debug)]
pub struct RolloutConfig {
    /// `--rollout`.
    pub name: String,
    pub timing: Timing,
    /// `--rollout-gate-url`.
    pub gate: Option<GateUrl>,
    /// `--rollout-history`.
    pub history: bool,
    /// The names of the sources.
    pub sources: Vec<String>,
    /// The Pod.
    pub pod: String,
    pub namespace: String,
    pub uid: String,
}

/// What a request found, with what is wrong, if anything.
enum Answered {
    Lease(Box<OfLease>),
    HistoryRead(Reply<Option<Kept>>, Option<String>),
    HistoryWritten(Reply<()>, Option<String>),
    Gate(Result<(), String>),
    Look(Looked),
}

/// What a request for the Lease found.
struct OfLease {
    event: Event,
    /// As it is stored.
    stored: Option<KubeLease>,
    problem: Option<String>,
}

/// What the app hears of it.
pub(super) enum Heard {
    /// For the rollout's machine.
    Event(Event),
    /// This is what new Pods start from.
    Kept(Kept),
    /// What is published was confirmed, and has not held: why.
    NotHeld(String),
}

/// This replica's part in a rollout.
pub(super) struct Fleet {
    pub(super) config: RolloutConfig,
    pub(super) rollout: Rollout,
    clients: Clients,
    /// The key of `--digest-key-file`, and what is taken where a secret comes in without one: it agrees with nobody.
    keys: (Option<DigestKey>, DigestKey),
    began: Instant,
    /// The named `ConfigMaps` in the newest inputs, for who waits for a rollout of these.
    versions: String,
    /// The change of the newest inputs, and their digest.
    pub(super) newest: Option<(Digest, Digest)>,
    /// When the rollout wants to look again.
    pub(super) wakes: Option<Instant>,
    pub(super) queue: VecDeque<Event>,
    /// The step of the first machine that waits for leave.
    pub(super) asks: Option<Step>,
    stored: Option<KubeLease>,
    known: Option<Replica>,
    /// A write that waits for the journal.
    after_journal: Option<(Lease, Option<Version>, People)>,
    /// Why the Lease cannot be read or written.
    problem: Option<String>,
    /// Why nothing is kept for new Pods, or nothing can be taken.
    history_problem: Option<String>,
    /// What is wrong with the fleet, though the Lease can be read.
    warning: Option<String>,
    /// Whether a secret came in without a key that others have.
    is_keyless: bool,
    /// What of that was logged last.
    warned: Option<String>,
    /// What new Pods start from: its change and inputs.
    pub(super) kept: Option<(Digest, Inputs)>,
    /// The change of it that was rejected here.
    pub(super) unfit: Option<Digest>,
    subject: Subject,
    looks: Looks,
    ends: Option<Instant>,
    answers: (mpsc::Sender<Answered>, mpsc::Receiver<Answered>),
    tasks: JoinSet<()>,
}

impl Fleet {
    pub(super) fn new(config: RolloutConfig, clients: Clients, given: Option<DigestKey>, subject: Subject) -> Self {
        let own = subject.key.clone();
        let seed = Digest::of(format!("{}{}", config.uid, Timestamp::now()).as_bytes());
        Self {
            rollout: Rollout::new(
                config.timing,
                seed.as_bytes()[..8].iter().fold(0, |seed, byte| seed << 8 | u64::from(*byte)),
            ),
            config,
            clients,
            keys: (given, own),
            began: Instant::now(),
            versions: String::new(),
            newest: None,
            wakes: None,
            queue: VecDeque::from([Event::Started]),
            asks: None,
            stored: None,
            known: None,
            after_journal: None,
            problem: None,
            history_problem: None,
            warning: None,
            is_keyless: false,
            warned: None,
            kept: None,
            unfit: None,
            subject,
            looks: Looks::default(),
            ends: None,
            answers: mpsc::channel(4),
            tasks: JoinSet::new(),
        }
    }

    /// Waits for an answer. May be dropped at any time without a loss.
    pub(super) async fn next(fleet: &mut Option<Box<Self>>) -> Option<Heard> {
        let Some(fleet) = fleet else { return std::future::pending().await };
        let answered = received(Some(&mut fleet.answers.1)).await;
        while fleet.tasks.try_join_next().is_some() {}
        fleet.heard(answered)
    }

    fn heard(&mut self, answered: Answered) -> Option<Heard> {
        let event = match answered {
            Answered::Lease(of_lease) => {
                let OfLease { event, stored, problem } = *of_lease;
                if stored.is_some() || matches!(event, Event::Read(Reply::Answered(None))) {
                    self.stored = stored;
                    self.warn();
                }
                say(&mut self.problem, problem);
                event
            }
            Answered::HistoryRead(reply, problem) => {
                say(&mut self.history_problem, problem);
                if let Reply::Answered(Some(kept)) = reply {
                    return Some(Heard::Kept(kept));
                }
                Event::HistoryRead(reply.map(|_| None))
            }
            Answered::HistoryWritten(reply, problem) => {
                say(&mut self.history_problem, problem);
                Event::HistoryWritten(reply)
            }
            Answered::Gate(answer) => self.gate_answered(answer),
            Answered::Look(looked) => return self.looked(looked),
        };
        Some(Heard::Event(event))
    }

    fn warn(&mut self) {
        let keyless = "a source is secret, and there is no --digest-key-file: no two replicas of a rollout agree on what a \
                       change is. Give all of them the same key; a directory on tmpfs that is not secret has --public-dir";
        self.warning = if self.is_keyless { Some(keyless.to_owned()) } else { self.other_fleet() };
        // Two that write in turn are one piece of news.
        if let Some(warning) = self.warning.clone().filter(|warning| self.warned.as_ref() != Some(warning)) {
            warn!(stage = "rollout", "{warning}");
            self.warned = Some(warning);
        }
    }

    /// Whether the Lease was last written by a replica with other sources.
    fn other_fleet(&self) -> Option<String> {
        let sources = self.config.other_sources(self.stored.as_ref()?)?;
        Some(format!(
            "Lease {}: it was last written by a replica with other sources ({}; here: {}): two fleets with one --rollout \
             NAME, or Pods of one with different sources, disturb each other, so give each its own. In an update to other \
             sources this passes",
            lease_name(&self.config.name),
            clipped(sources),
            self.config.sources()
        ))
    }

    /// When there is something to do without an answer.
    pub(super) fn wakes(&self) -> Option<Instant> {
        [self.wakes, self.looks_at()].into_iter().flatten().min()
    }

    /// The newest inputs are these.
    pub(super) fn observed(&mut self, inputs: &Inputs, digest: Digest) {
        let change = self.change(inputs);
        let named = inputs.snapshot.objects.iter().filter(|taken| !taken.selected);
        self.versions = versions(named.map(|taken| &*taken.object));
        self.is_keyless = self.keys.0.is_none() && inputs.is_secret();
        self.warn();
        let before = self.newest.replace((change, digest));
        if before.is_none_or(|(before, _)| before != change) {
            self.queue.push_back(Event::Saw);
        }
    }

    pub(super) fn change(&self, inputs: &Inputs) -> Digest {
        let (given, own) = &self.keys;
        inputs.change(given.as_ref().or(inputs.is_secret().then_some(own)))
    }

    /// As the first machine and its journal have it.
    fn replica(&self, machine: &Machine) -> Replica {
        let journal = machine.journal();
        // One that is from before the rollout is no change that anybody knows.
        let change = |generation: &Generation| generation.change.unwrap_or(Digest::UNKNOWN);
        let fleet = journal.fleet.clone().unwrap_or_default();
        let published = journal.current.as_ref().map(change);
        let newest = self.newest.map(|(change, _)| change);
        Replica {
            uid: self.config.uid.clone(),
            newest,
            published,
            base: fleet.base.as_ref().map(change),
            confirmed: published.is_some() && journal.debt.is_none(),
            rejected: fleet.rejected.filter(|rejected| newest.is_none_or(|newest| newest == *rejected)),
            rejected_at: fleet.retries,
            busy: machine.is_busy(),
            owes: machine.owes_verdict(),
            claimed: fleet.claimed,
            reverted: fleet.reverted.is_some() && fleet.reverted == published,
        }
    }

    /// The effects of what waits in the queue.
    pub(super) fn turn(&mut self, machine: &Machine) -> Vec<Effect> {
        let now = Instant::now();
        let me = self.replica(machine);
        if self.known.as_ref().is_some_and(|known| *known != me) {
            self.queue.push_back(Event::Verdict);
        }
        self.known = Some(me.clone());
        if self.wakes.is_some_and(|at| at <= now) {
            self.wakes = None;
            self.queue.push_back(Event::Woke);
        }
        let Some(event) = self.queue.pop_front() else { return Vec::new() };
        self.rollout.on(now - self.began, &me, event)
    }

    pub(super) fn wake(&mut self, at: Duration) {
        self.wakes = Some(self.began + at);
    }

    pub(super) fn read(&mut self, quorum: bool) {
        let (clients, answer, config) = (self.clients.clone(), self.answers.0.clone(), self.config.clone());
        self.tasks.spawn(async move {
            let name = lease_name(&config.name);
            let (stored, reply, problem) = match clients.read_stored(&config.namespace, &name, quorum).await {
                Ok(None) => (None, Reply::Answered(None), None),
                Ok(Some(stored)) => match lease_of(&stored) {
                    Ok(lease) => {
                        let version = stored.metadata.resource_version.clone().unwrap_or_default();
                        (Some(stored), Reply::Answered(Some((version, lease))), None)
                    }
                    Err(error) => {
                        let remedy = "if nobody needs what it says, delete it, and the fleet writes a new one";
                        let reply = Reply::Failed(Duration::ZERO);
                        (Some(stored), reply, Some(waits(&name, &format!("{error}; {remedy}"))))
                    }
                },
                Err(error) => (None, refusal(&error), Some(waits(&name, &error.to_string()))),
            };
            let _ =
                answer.send(Answered::Lease(Box::new(OfLease { event: Event::Read(reply), stored, problem }))).await;
        });
    }

    /// Writes the Lease: at once, or when the journal that announces it is written.
    pub(super) fn write(&mut self, lease: Lease, version: Option<Version>, reason: Reason, machine: &Machine) {
        self.after_journal = Some((lease, version, self.people(reason, machine)));
        if machine.phase() != Phase::Committing {
            self.journalled();
        }
    }

    /// What waited for the journal goes on.
    pub(super) fn journalled(&mut self) {
        let Some((lease, version, people)) = self.after_journal.take() else { return };
        let (clients, answer) = (self.clients.clone(), self.answers.0.clone());
        let name = lease_name(&self.config.name);
        let object = self.object(&lease, version, &people);
        if people.reason != Reason::Renew {
            let change = lease.candidate.map(|change| change.short()).unwrap_or_default();
            info!(stage = "rollout", change, state = lease.state.as_str(), "Lease {name}: {}", people.why);
        }
        self.tasks.spawn(async move {
            let written = clients.write_stored(&object).await;
            let (stored, reply, problem) = match written {
                Ok(Some(stored)) => {
                    let version = stored.metadata.resource_version.clone();
                    (Some(stored), Reply::Answered(version), None)
                }
                Ok(None) => (None, Reply::Answered(None), None),
                Err(error) => (None, refusal(&error), Some(waits(&name, &error.to_string()))),
            };
            let _ =
                answer.send(Answered::Lease(Box::new(OfLease { event: Event::Wrote(reply), stored, problem }))).await;
        });
    }

    /// The replica ends: the Lease goes back, if it is this one's.
    pub(super) fn end(&mut self) {
        self.ends = Some(Instant::now() + GIVE_BACK);
        self.queue.push_back(Event::Ending);
    }

    /// Until when the end waits for that.
    pub(super) fn gives_back(&self) -> Option<Instant> {
        let pending = self.rollout.is_asking() || self.rollout.holds(&self.config.uid) || !self.queue.is_empty();
        self.ends.filter(|ends| pending && Instant::now() < *ends)
    }

    /// What people are shown.
    pub(super) fn status(&self) -> seen::Rollout {
        let lease = self.rollout.lease();
        let known = |change: fn(&Replica) -> Option<Digest>| {
            self.known.as_ref().and_then(change).filter(|change| *change != Digest::UNKNOWN)
        };
        let (published, base) = (known(|me| me.published), known(|me| me.base));
        let newest = self.newest.map(|(change, _)| change);
        let stored = self.stored.as_ref().map(|stored| &stored.metadata);
        let value = |name: &str| stored?.annotations.as_ref()?.get(&format!("{PREFIX}{name}")).cloned();
        let uid = stored.and_then(|stored| stored.uid.clone()).unwrap_or_default();
        seen::Rollout {
            name: self.config.name.clone(),
            state: seen::state(newest, published, base, lease, self.problem.is_some()),
            leads: self.rollout.holds(&self.config.uid),
            newest,
            published,
            base,
            lease: lease.map(|lease| Seen::new(lease, uid, value)),
            problem: self.problem.clone(),
            warning: self.warning.clone(),
            history: self.history_problem.clone(),
        }
    }

    /// What the newest inputs wait for.
    pub(super) fn wait(&self, rollout: &seen::Rollout) -> status::Wait {
        let name = &self.config.name;
        let (reason, next) = if let Some(problem) = &self.problem {
            (format!("the rollout {name} ({problem})"), None)
        } else if rollout.state == State::Stopped {
            let next = format!("Publish another change, or let it be tried again: `trimtab rollout retry {name}`.");
            (format!("people: the rollout {name} was stopped{}", rollout.cause()), Some(next))
        } else {
            let state = self.rollout.lease().map_or("not known yet", |lease| match lease.state {
                State::Claimed => "one replica goes first",
                State::Baking => "the first replica must hold it",
                State::Spreading => "its moment in the spread comes",
                State::Done | State::Stopped | State::None => "a replica is about to go first",
            });
            (format!("its turn in the rollout {name}: {state}"), None)
        };
        status::Wait { reason, next }
    }
}

/// How a request that failed is answered.
fn refusal<T>(error: &StoredError) -> Reply<T> {
    match error {
        StoredError::Forbidden { .. } => Reply::Denied,
        StoredError::Refused { after, .. } => Reply::Failed(*after),
        StoredError::Lost { after, .. } => Reply::Lost(*after),
    }
}

/// Keeps what is wrong, and logs it where that is news.
fn say(known: &mut Option<String>, problem: Option<String>) {
    if let Some(problem) = problem.as_ref().filter(|problem| known.as_ref() != Some(problem)) {
        warn!(stage = "rollout", "{problem}");
    }
    *known = problem;
}

fn waits(name: &str, problem: &str) -> String {
    format!("Lease {name}: {problem}; until then no replica goes, and what is published stays")
}
