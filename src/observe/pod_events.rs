//! Kubernetes Events on the Pod, for `kubectl describe pod`: what became of a change, in a line.
//!
//! An Event is a courtesy. It never holds up the loop, is never waited for, and whether it may be sent at all is the
//! cluster's to say: it takes the Pod's name, namespace and UID in the environment, a way to the API server, and the
//! permission to create Events, without which one line is logged. It can be read by many, so it holds the stage, a code
//! and names of files, and no content of any.
//!
//! What can flood is bounded twice: for each reason, no more than [`sender::MOST`] are sent in [`sender::WINDOW`], and of
//! those that wait, only the newest of each reason is kept.

mod sender;

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, info};

use self::sender::send_all;
use crate::machine::Milestone;
use crate::model::journal::Rejection;
use crate::model::snapshot::HeldBack;
use crate::model::stage::Stage;
use crate::observe::rollout::{News, Rollout};
use crate::observe::verdict::{State, Verdict};
use crate::reload::{TargetState, TargetStatus};
use crate::render::Pod;
use crate::rollout::lease_name;
use crate::source::kube::Clients;

/// What waits for the task to take it.
const QUEUE: usize = 32;
/// While a Pod starts, its main process is not there yet: that is reported only if it lasts.
const TARGET_GRACE: Duration = Duration::from_secs(30);
/// In bytes (kubernetes pkg/apis/core/validation/events.go: `NoteLengthLimit`).
const LONGEST_NOTE: usize = 1024;

/// What is reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodEvent {
    /// A generation is published and confirmed.
    Reloaded {
        sequence: u64,
        /// Whether it was gone back to.
        again: bool,
    },
    /// The newest inputs were rejected.
    Rejected {
        stage: Stage,
        /// Why; without content.
        reason: String,
    },
    /// The last good generation is made current again.
    RolledBack {
        /// The one that is taken back, if known.
        from: Option<u64>,
        /// The last good one.
        to: u64,
    },
    /// Objects whose newest version is not published, while all others are.
    HeldBack {
        /// Their names.
        names: String,
    },
    /// The process to be signalled is not there, not the only one, or not to be signalled.
    TargetMissing {
        /// What is wrong, and the remedy.
        message: String,
    },
    /// How far a change is in the fleet.
    Rollout {
        news: News,
        note: String,
        /// Name and UID of the Lease, if it is to be found there: else on the Pod.
        lease: Option<(String, String)>,
    },
}

impl PodEvent {
    fn reason(&self) -> &'static str {
        match self {
            Self::Reloaded { .. } => "ConfigReloaded",
            Self::Rejected { .. } => "ConfigRejected",
            Self::RolledBack { .. } => "ConfigRolledBack",
            Self::HeldBack { .. } => "ConfigHeldBack",
            Self::TargetMissing { .. } => "ReloadTargetMissing",
            Self::Rollout { news: News::Started, .. } => "RolloutStarted",
            Self::Rollout { news: News::Stopped, .. } => "RolloutStopped",
            Self::Rollout { news: News::Done, .. } => "RolloutDone",
        }
    }

    /// What was being done.
    fn action(&self) -> &'static str {
        match self {
            Self::Reloaded { .. } => "Reload",
            Self::Rejected { .. } | Self::HeldBack { .. } => "Check",
            Self::RolledBack { .. } => "RollBack",
            Self::TargetMissing { .. } => "FindTarget",
            Self::Rollout { .. } => "RollOut",
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Reloaded { .. } | Self::Rollout { news: News::Started | News::Done, .. } => "Normal",
            _ => "Warning",
        }
    }

    /// Those of one key are counted together, and the newest of them replaces the others.
    fn key(&self) -> (&'static str, bool) {
        (self.reason(), matches!(self, Self::Rollout { lease: Some(_), .. }))
    }

    /// `verdict`: as it is when this is reported.
    fn note(&self, verdict: &Verdict) -> String {
        let (word, advice) = (verdict.state.as_str(), verdict.advice());
        let end = match verdict.state {
            // It is the fleet's, and says itself what to do.
            _ if matches!(self, Self::Rollout { .. }) => String::new(),
            State::InEffect | State::Working => format!(" ({word})"),
            State::Rejected | State::Held | State::Waiting | State::Stale => format!(" ({word}). {advice}"),
        };
        // Names of files may hold anything. The verdict is short, and must not be what is cut.
        let visible = |text: String| text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
        let what = cut(&visible(self.what()), LONGEST_NOTE.saturating_sub(end.len()));
        cut(&visible(what + &end), LONGEST_NOTE)
    }

    fn what(&self) -> String {
        match self {
            Self::Reloaded { sequence, again: false } => {
                format!("Configuration generation {sequence} is published and confirmed")
            }
            Self::Reloaded { sequence, again: true } => {
                format!("Configuration generation {sequence} is confirmed again; what came after it was rejected")
            }
            Self::Rejected { stage, reason } => format!("Configuration rejected at {stage}: {reason}"),
            Self::RolledBack { from: Some(from), to } => {
                format!(
                    "Configuration generation {from} is taken back: generation {to}, the last good one, replaces it"
                )
            }
            Self::RolledBack { from: None, to } => {
                format!("Configuration generation {to}, the last good one, is made current again")
            }
            Self::HeldBack { names } => {
                format!("Held back, while all else is published: {names} (trimtab status says why)")
            }
            Self::TargetMissing { message } => format!("No process to reload: {message}"),
            Self::Rollout { note, .. } => note.clone(),
        }
    }
}

/// The text, no longer than so many bytes.
fn cut(text: &str, longest: usize) -> String {
    let fits = |end: &usize| text.is_char_boundary(*end);
    let end = (0..=longest.min(text.len())).rev().find(fits).unwrap_or_default();
    text[..end].to_owned()
}

/// Sends what is announced.
#[derive(Debug)]
pub struct PodEvents {
    queue: Option<mpsc::Sender<Queued>>,
    /// What waits for the verdict.
    unsent: Vec<PodEvent>,
    /// The state of a target that cannot be signalled, since when, and whether it was reported.
    trouble: Option<(TargetState, Instant, bool)>,
    overflowed: bool,
}

/// An event, and when it came to pass.
#[derive(Clone, Debug)]
struct Queued {
    event: PodEvent,
    note: String,
    at: Timestamp,
    since: Instant,
}

impl PodEvents {
    /// Starts the task that sends; without clients, or where the Pod is not known by name, namespace and UID (kubectl
    /// asks by all three), there is none, and nothing is reported.
    pub fn start(clients: Option<Clients>, pod: &Pod, tasks: &mut JoinSet<()>) -> Self {
        let known = ![&pod.name, &pod.namespace, &pod.uid].iter().any(|value| value.is_empty());
        let queue = clients.filter(|_| known).map(|clients| {
            let (sender, queue) = mpsc::channel(QUEUE);
            tasks.spawn(send_all(clients, pod.clone(), queue));
            sender
        });
        if queue.is_none() {
            debug!("no Events on the Pod: they need POD_NAME, POD_NAMESPACE, POD_UID, and a way to the API server");
        }
        Self { queue, unsent: Vec::new(), trouble: None, overflowed: false }
    }

    /// Reports a milestone. `brief`: why rendering rejected the newest inputs, without content.
    pub fn announce(&mut self, milestone: &Milestone, brief: Option<&str>) {
        let event = match milestone {
            Milestone::Rejected(quarantine) => {
                let Rejection { stage, reason, .. } = &quarantine.rejection;
                let reason = brief.filter(|_| *stage == Stage::Render).unwrap_or(reason).to_owned();
                PodEvent::Rejected { stage: *stage, reason }
            }
            Milestone::RolledBack { from, to } => PodEvent::RolledBack { from: Some(*from), to: to.sequence },
            Milestone::TurnedBack(to) => PodEvent::RolledBack { from: None, to: to.sequence },
            Milestone::Confirmed { generation, again } => {
                PodEvent::Reloaded { sequence: generation.sequence, again: *again }
            }
            Milestone::Published(_) | Milestone::Held | Milestone::Settled => return,
        };
        self.put(event);
    }

    /// Reports what is held back now and was not before.
    pub fn held_back(&mut self, known: &[HeldBack], now: &[HeldBack]) {
        let is_new = |held: &&HeldBack| !known.iter().any(|known| known.source == held.source);
        let names: Vec<_> = now.iter().filter(is_new).map(|held| held.source.to_string()).collect();
        if !names.is_empty() {
            self.put(PodEvent::HeldBack { names: names.join(", ") });
        }
    }

    /// Reports the target of the last signal, if there is something wrong with it.
    pub fn target(&mut self, target: &TargetStatus) {
        if let Some(event) = self.look_at(target, Instant::now()) {
            self.put(event);
        }
    }

    fn look_at(&mut self, target: &TargetStatus, now: Instant) -> Option<PodEvent> {
        let grace = match target.state {
            TargetState::Found => {
                self.trouble = None;
                return None;
            }
            TargetState::Missing | TargetState::NotHandling => TARGET_GRACE,
            TargetState::Ambiguous | TargetState::Forbidden => Duration::ZERO,
        };
        let known = self.trouble.filter(|(state, ..)| *state == target.state);
        let (state, since, reported) = known.unwrap_or((target.state, now, false));
        let due = !reported && now.saturating_duration_since(since) >= grace;
        self.trouble = Some((state, since, reported || due));
        due.then(|| PodEvent::TargetMissing { message: target.message.clone().unwrap_or_default() })
    }

    /// Reports how far a change is in the fleet: on this Pod, and by the replica that has to say it for all on the Lease.
    pub fn rollout(&mut self, rollout: &Rollout, news: News, pod: &str, for_all: bool) {
        let note = rollout.note(news, pod);
        let lease = rollout.lease.as_ref().filter(|_| for_all || news == News::Started);
        if let Some(lease) = lease {
            let lease = Some((lease_name(&rollout.name), lease.uid.clone()));
            self.put(PodEvent::Rollout { news, note: note.clone(), lease });
        }
        self.put(PodEvent::Rollout { news, note, lease: None });
    }

    /// Reports this as soon as the verdict on it is known.
    pub fn put(&mut self, event: PodEvent) {
        if self.queue.is_some() {
            self.unsent.push(event);
        }
    }

    /// Sends what waits for the verdict, if it can: without waiting.
    pub fn send(&mut self, verdict: &Verdict) {
        let Some(queue) = &self.queue else { return };
        for event in self.unsent.drain(..) {
            let note = event.note(verdict);
            let queued = Queued { event, note, at: Timestamp::now(), since: Instant::now() };
            if queue.try_send(queued).is_err() && !std::mem::replace(&mut self.overflowed, true) {
                info!("Events on the Pod come faster than the API server takes them: some are left out");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::sender::{Complaints, LONGEST_INSTANCE, MOST, Next, Outbox, event};
    use super::*;
    use crate::model::digest::Digest;
    use crate::model::journal::{Generation, Quarantine};
    use crate::source::kube::CreateError;

    fn generation(sequence: u64) -> Generation {
        let digest = Digest::UNKNOWN;
        Generation::new(sequence, digest, digest, digest)
    }

    fn rejected(stage: Stage, reason: &str) -> Milestone {
        let rejection = Rejection { stage, reason: reason.to_owned(), at: Timestamp::UNIX_EPOCH };
        Milestone::Rejected(Quarantine { digest: Digest::UNKNOWN, gate: Digest::UNKNOWN, rejection })
    }

    fn watched() -> (PodEvents, mpsc::Receiver<Queued>) {
        let (sender, queue) = mpsc::channel(QUEUE);
        (PodEvents { queue: Some(sender), unsent: Vec::new(), trouble: None, overflowed: false }, queue)
    }

    fn notes(queue: &mut mpsc::Receiver<Queued>) -> Vec<String> {
        let queued = std::iter::from_fn(|| queue.try_recv().ok());
        queued.map(|queued| format!("{}: {}", queued.event.reason(), queued.note)).collect()
    }

    #[tokio::test]
    async fn each_milestone_is_one_event_in_words_without_content() {
        let (mut events, mut queue) = watched();
        let mut step = |milestone: &Milestone, brief: Option<&str>| {
            let state = match milestone {
                Milestone::Confirmed { again: false, .. } => State::InEffect,
                _ => State::Rejected,
            };
            let consequence = "It is not in effect.".to_owned();
            let next = Some("Fix it.".to_owned());
            events.announce(milestone, brief);
            events.send(&Verdict { state, next, consequence, ..Verdict::default() });
            notes(&mut queue)
        };
        assert!(step(&Milestone::Published(generation(2)), None).is_empty());
        let reloaded = "ConfigReloaded: Configuration generation 2 is published and confirmed (in-effect)";
        assert_eq!(step(&Milestone::Confirmed { generation: generation(2), again: false }, None), [reloaded]);
        assert!(step(&Milestone::Settled, None).is_empty());
        assert_eq!(
            step(&rejected(Stage::Render, "quotes `content`"), Some("template a.j2, line 3")),
            [
                "ConfigRejected: Configuration rejected at render: template a.j2, line 3 (rejected). It is not in effect. Fix it."
            ]
        );
        assert_eq!(
            step(&rejected(Stage::Reload, "it answered 500"), Some("an older one")),
            [
                "ConfigRejected: Configuration rejected at reload: it answered 500 (rejected). It is not in effect. Fix it."
            ]
        );
        assert_eq!(
            step(&Milestone::RolledBack { from: 3, to: generation(2) }, None),
            [
                "ConfigRolledBack: Configuration generation 3 is taken back: generation 2, the last good one, replaces it \
                 (rejected). It is not in effect. Fix it."
            ]
        );
        assert_eq!(
            step(&Milestone::TurnedBack(generation(2)), None),
            [
                "ConfigRolledBack: Configuration generation 2, the last good one, is made current again (rejected). It is \
              not in effect. Fix it."
            ]
        );
        let again = "ConfigReloaded: Configuration generation 2 is confirmed again; what came after it was rejected \
                     (rejected). It is not in effect. Fix it.";
        assert_eq!(step(&Milestone::Confirmed { generation: generation(2), again: true }, None), [again]);
    }

    #[tokio::test]
    async fn a_target_is_missed_once_it_has_been_for_a_while_and_once_for_each_state() {
        let (mut events, _queue) = watched();
        let status = |state| TargetStatus { state, pid: None, name: None, message: Some("where is it".to_owned()) };
        let start = Instant::now();
        let mut look = |state, seconds| {
            let event = events.look_at(&status(state), start + Duration::from_secs(seconds));
            event.is_some_and(|event| event.what() == "No process to reload: where is it")
        };
        assert!(!look(TargetState::Missing, 0));
        assert!(!look(TargetState::Missing, 29));
        assert!(look(TargetState::Missing, 30));
        assert!(!look(TargetState::Missing, 3000));
        assert!(look(TargetState::Ambiguous, 3001));
        assert!(!look(TargetState::Ambiguous, 3002));
        assert!(look(TargetState::Forbidden, 3003));
        assert!(!look(TargetState::Found, 3004));
        assert!(!look(TargetState::Missing, 3005), "it is counted from when it was missed again");
        assert!(look(TargetState::Missing, 3035));
    }

    fn queued(event: PodEvent, since: Instant) -> Queued {
        let note = event.note(&Verdict::default());
        Queued { event, note, at: Timestamp::UNIX_EPOCH, since }
    }

    fn reloaded(sequence: u64, since: Instant) -> Queued {
        queued(PodEvent::Reloaded { sequence, again: false }, since)
    }

    #[test]
    fn an_edit_each_second_for_an_hour_sends_few_and_the_newest() {
        let start = Instant::now();
        let mut outbox = Outbox::default();
        let mut sent = Vec::new();
        for second in 0..3600 {
            let now = start + Duration::from_secs(second);
            outbox.put(reloaded(second, now));
            while let Next::Send(queued) = outbox.next(now) {
                sent.push((second, queued.event));
            }
        }
        assert_eq!(sent.len(), 6 * MOST);
        assert!(sent.iter().all(|(second, event)| *event == reloaded(*second, start).event), "{sent:?}");
        // Another reason has its own bound, and is older: it comes first.
        let now = start + Duration::from_hours(1);
        outbox.put(queued(PodEvent::RolledBack { from: None, to: 1 }, start + Duration::from_secs(3599)));
        outbox.put(reloaded(3600, now));
        assert!(matches!(outbox.next(now), Next::Send(queued) if queued.event.reason() == "ConfigRolledBack"));
    }

    #[test]
    fn after_a_failure_nothing_is_sent_for_a_while_and_then_the_newest() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut outbox = Outbox::default();
        outbox.put(reloaded(1, start));
        let Next::Send(failed) = outbox.next(start) else { panic!("nothing to send") };
        outbox.pause(at(60));
        outbox.put_back(failed.clone());
        assert!(matches!(outbox.next(at(59)), Next::Wait(until) if until == at(60)));
        outbox.put(reloaded(2, at(59)));
        outbox.put_back(failed);
        assert!(matches!(outbox.next(at(60)), Next::Send(queued) if queued.event == reloaded(2, start).event));
        assert!(matches!(outbox.next(at(60)), Next::Nothing));
        outbox.put(reloaded(3, at(60)));
        outbox.pause(at(10_000));
        assert!(matches!(outbox.next(at(61 + 3600)), Next::Nothing), "it is news no more");
    }

    #[tokio::test]
    async fn whoever_reports_never_waits() {
        let (mut events, _queue) = watched();
        for _ in 0..10 * QUEUE {
            events.put(PodEvent::RolledBack { from: None, to: 1 });
            events.send(&Verdict::default());
        }
        assert!(events.overflowed);
    }

    #[test]
    fn a_missing_permission_is_complained_of_once_and_a_failure_once_until_it_is_over() {
        let mut complaints = Complaints::default();
        let forbidden = Err(CreateError::Forbidden { user: Some("app".to_owned()) });
        let failed = Err(CreateError::Later("no answer".to_owned()));
        let mut lines = |answer| complaints.about(&answer, "web").is_some();
        assert!(lines(forbidden.clone()));
        assert!(lines(failed.clone()) && !lines(failed.clone()));
        assert!(!lines(Ok(())) && !lines(forbidden.clone()) && lines(failed));
        assert!(!lines(forbidden));
    }

    #[test]
    fn an_event_is_within_the_limits_of_the_api() {
        let pod = Pod { name: "ä".repeat(200), ..Pod::default() };
        let reason = format!("\u{1b}[31m\n{}", "é".repeat(2000));
        let event = event(&pod, &queued(PodEvent::Rejected { stage: Stage::Render, reason }, Instant::now()));
        let note = event.note.unwrap();
        assert!(note.len() <= LONGEST_NOTE && note.len() > LONGEST_NOTE - 4, "{}", note.len());
        assert!(!note.contains(char::is_control) && note.ends_with(" (working)"), "{note}");
        assert_eq!(event.reporting_instance.unwrap().len(), LONGEST_INSTANCE);
    }
}
