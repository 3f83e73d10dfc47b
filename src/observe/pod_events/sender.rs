//! The task that sends Events, within what may be sent.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::info;

use super::{PodEvent, Queued, cut};
use crate::render::Pod;
use crate::source::kube::{Clients, CreateError, Rule};

/// For each reason, no more than this many are sent in [`WINDOW`].
pub(super) const MOST: usize = 10;
pub(super) const WINDOW: Duration = Duration::from_mins(10);
/// How long one request may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// After a request that failed, none is made for this long; where the permission is missing, for [`WINDOW`].
const PAUSE: Duration = Duration::from_mins(1);
/// An older one is news no more: as long as the API server keeps them (kube-apiserver: `--event-ttl`).
const STALE: Duration = Duration::from_hours(1);
/// In bytes (kubernetes pkg/apis/core/validation/events.go: `ReportingInstanceLengthLimit`).
pub(super) const LONGEST_INSTANCE: usize = 128;

/// What waits, and when it may be sent.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// The newest of each reason.
    waiting: BTreeMap<(&'static str, bool), Queued>,
    /// When those of each reason were sent.
    sent: BTreeMap<(&'static str, bool), VecDeque<Instant>>,
    paused_until: Option<Instant>,
}

/// What the outbox says is next.
#[derive(Debug)]
pub(super) enum Next {
    Send(Queued),
    Wait(Instant),
    Nothing,
}

impl Outbox {
    pub(super) fn put(&mut self, queued: Queued) {
        self.waiting.insert(queued.event.key(), queued);
    }

    /// Puts one back that could not be sent, unless a newer one has taken its place.
    pub(super) fn put_back(&mut self, queued: Queued) {
        self.waiting.entry(queued.event.key()).or_insert(queued);
    }

    pub(super) fn pause(&mut self, until: Instant) {
        self.paused_until = Some(until);
    }

    pub(super) fn next(&mut self, now: Instant) -> Next {
        self.waiting.retain(|_, queued| now.saturating_duration_since(queued.since) < STALE);
        let pause = self.paused_until.filter(|until| *until > now);
        let mut earliest: Option<(Instant, Instant, (&'static str, bool))> = None;
        for (reason, queued) in &self.waiting {
            let sent = self.sent.entry(*reason).or_default();
            while sent.front().is_some_and(|at| now.saturating_duration_since(*at) >= WINDOW) {
                sent.pop_front();
            }
            let free = sent.front().filter(|_| sent.len() >= MOST).map(|first| *first + WINDOW);
            let due = [free, pause].into_iter().flatten().max().unwrap_or(now);
            let candidate = (due, queued.since, *reason);
            earliest = Some(earliest.map_or(candidate, |earliest| earliest.min(candidate)));
        }
        match earliest {
            None => Next::Nothing,
            Some((due, ..)) if due > now => Next::Wait(due),
            Some((.., reason)) => {
                self.sent.entry(reason).or_default().push_back(now);
                self.waiting.remove(&reason).map_or(Next::Nothing, Next::Send)
            }
        }
    }
}

/// Sends what is queued, until the queue is closed.
pub(super) async fn send_all(clients: Clients, pod: Pod, mut queue: mpsc::Receiver<Queued>) {
    let mut outbox = Outbox::default();
    let mut complaints = Complaints::default();
    loop {
        while let Ok(queued) = queue.try_recv() {
            outbox.put(queued);
        }
        let queued = match outbox.next(Instant::now()) {
            Next::Send(queued) => queued,
            Next::Nothing => match queue.recv().await {
                Some(queued) => {
                    outbox.put(queued);
                    continue;
                }
                None => return,
            },
            Next::Wait(until) => {
                tokio::select! {
                    queued = queue.recv() => match queued {
                        Some(queued) => outbox.put(queued),
                        None => return,
                    },
                    () = sleep_until(until) => {}
                }
                continue;
            }
        };
        let answer = timeout(DEADLINE, clients.create(&event(&pod, &queued))).await;
        let answer = answer.unwrap_or_else(|_| Err(CreateError::Later(format!("no answer within {DEADLINE:?}"))));
        if let Some(complaint) = complaints.about(&answer, &pod.namespace) {
            info!("{complaint}");
        }
        let (pause, again) = match answer {
            Ok(()) => continue,
            Err(CreateError::Forbidden { .. }) => (WINDOW, true),
            Err(CreateError::Refused(_)) => (PAUSE, false),
            Err(CreateError::Later(_)) => (PAUSE, true),
        };
        outbox.pause(Instant::now() + pause);
        if again {
            outbox.put_back(queued);
        }
    }
}

/// What was complained of already.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    forbidden: bool,
    failure: bool,
}

impl Complaints {
    /// A line for the log: of a missing permission once in a life, of other failures once until one has succeeded.
    pub(super) fn about(&mut self, answer: &Result<(), CreateError>, namespace: &str) -> Option<String> {
        match answer {
            Ok(()) => {
                self.failure = false;
                None
            }
            Err(CreateError::Forbidden { user }) => {
                let known = std::mem::replace(&mut self.forbidden, true);
                (!known).then(|| permission(user.as_deref(), namespace))
            }
            Err(error) => {
                let known = std::mem::replace(&mut self.failure, true);
                (!known).then(|| format!("an Event on the Pod could not be created: {error}"))
            }
        }
    }
}

fn permission(user: Option<&str>, namespace: &str) -> String {
    let (user, rule) = (user.unwrap_or("this user"), Rule::to_create_events(namespace));
    format!("no Events on the Pod: {user} may not create them (403). All else works without; for them, it needs {rule}")
}

/// As the API wants it (kubernetes pkg/apis/core/validation/events.go: `strictEventValidation`).
pub(super) fn event(pod: &Pod, queued: &Queued) -> Event {
    let Queued { event, note, at, .. } = queued;
    let text = |text: &str| Some(text.to_owned());
    let (api_version, kind, name, uid) = match event {
        PodEvent::Rollout { lease: Some((name, uid)), .. } => ("coordination.k8s.io/v1", "Lease", name, uid),
        _ => ("v1", "Pod", &pod.name, &pod.uid),
    };
    Event {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: text(&pod.namespace),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(*at)),
        type_: text(event.kind()),
        reason: text(event.reason()),
        action: text(event.action()),
        note: Some(note.clone()),
        regarding: Some(ObjectReference {
            api_version: text(api_version),
            kind: text(kind),
            namespace: text(&pod.namespace),
            name: text(name),
            uid: text(uid),
            ..ObjectReference::default()
        }),
        reporting_controller: text("trimtab"),
        reporting_instance: Some(cut(&pod.name, LONGEST_INSTANCE)),
        ..Event::default()
    }
}
