//! What the replica that goes first looks at until the change has held: its main process, and the gate.

use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::{Answered, Fleet, Heard};
use crate::machine::Machine;
use crate::model::digest::{Digest, DigestKey};
use crate::reload::process::{self, Selector, Target};
use crate::reload::{GateUrl, confirm};
use crate::rollout::Event;

/// How often it looks, where the bake is long.
const EVERY: Duration = Duration::from_secs(10);
/// How soon it asks again after a no.
const AGAIN: Duration = Duration::from_secs(2);
/// So many answers in a row must be other than what confirms: one alone may be a moment's.
const MISSES: u32 = 2;

/// What is looked at.
pub(in crate::app) struct Subject {
    pub confirm: confirm::Config,
    pub selector: Option<Selector>,
    pub key: DigestKey,
}

/// The looks of one bake.
#[derive(Default)]
pub(super) struct Looks {
    /// What is looked at: a change, and the generation of it.
    of: Option<(Digest, Digest)>,
    next: Option<Instant>,
    target: Option<Target>,
    misses: u32,
    in_flight: bool,
    /// When the gate is asked next, while this replica leads.
    gate: Option<Instant>,
    asks: bool,
    /// Why the gate did not agree, if it did not.
    pub(super) objection: Option<String>,
}

/// What a look found.
pub(super) struct Looked {
    of: (Digest, Digest),
    target: Option<Target>,
    problem: Option<String>,
}

impl Fleet {
    /// When the next look is due.
    pub(super) fn looks_at(&self) -> Option<Instant> {
        let Looks { next, in_flight, gate, asks, .. } = &self.looks;
        [next.filter(|_| !in_flight), gate.filter(|_| !asks)].into_iter().flatten().min()
    }

    /// Looks, if it is time to.
    pub(in crate::app) fn look(&mut self, machine: &Machine) -> Option<Heard> {
        self.ask_gate();
        let current = machine.journal().current.as_ref().filter(|_| machine.journal().debt.is_none());
        let of = current.and_then(|current| Some((current.change?, current.digest)));
        let of = of.filter(|(change, _)| self.rollout.bakes(&self.config.uid, *change) && self.has_looks());
        if of != self.looks.of {
            let Looks { in_flight, gate, asks, objection, .. } = std::mem::take(&mut self.looks);
            self.looks =
                Looks { of, next: of.map(|_| Instant::now()), in_flight, gate, asks, objection, ..Looks::default() };
        }
        let of = of?;
        if self.looks.in_flight || self.looks.next.is_none_or(|at| at > Instant::now()) {
            return None;
        }
        if let Some(target) = self.looks.target.as_ref().filter(|target| !target.is_alive()) {
            let message = format!(
                "PID {} ({}) has confirmed the change, and exited within --rollout-bake: its own log should say why",
                target.pid, target.name
            );
            self.looks.next = None;
            return Some(Heard::NotHeld(message));
        }
        self.looks.in_flight = true;
        let Subject { confirm, selector, key } = &self.subject;
        let (confirm, key, answer) = (confirm.clone(), key.clone(), self.answers.0.clone());
        let selector = selector.clone().filter(|_| confirm.needs_target() && self.looks.target.is_none());
        self.tasks.spawn(async move {
            // Who is not there now is looked for again.
            let find = move || process::find(&selector?).ok();
            let target = tokio::task::spawn_blocking(find).await.ok().flatten();
            let problem = confirm::objection(&confirm, of.1, &key).await;
            let _ = answer.send(Answered::Look(Looked { of, target, problem })).await;
        });
        None
    }

    fn has_looks(&self) -> bool {
        let Subject { confirm, selector, .. } = &self.subject;
        confirm.url.is_some() || confirm.needs_target() && selector.is_some()
    }

    /// Several in each bake, however short.
    fn pause(&self) -> Duration {
        (self.config.timing.bake / 4).clamp(Duration::from_millis(200), EVERY)
    }

    pub(super) fn looked(&mut self, looked: Looked) -> Option<Heard> {
        let Looked { of, target, problem } = looked;
        self.looks.in_flight = false;
        if self.looks.of != Some(of) {
            return None;
        }
        self.looks.target = target.or(self.looks.target.take());
        self.looks.next = Some(Instant::now() + self.pause());
        let Some(problem) = problem else {
            self.looks.misses = 0;
            return None;
        };
        self.looks.misses += 1;
        if self.looks.misses < MISSES {
            self.looks.next = Some(Instant::now() + self.pause().min(AGAIN));
            return None;
        }
        self.looks.next = None;
        Some(Heard::NotHeld(format!("it was confirmed, and did not hold for --rollout-bake: {problem}")))
    }

    fn ask_gate(&mut self) {
        let Some(gate) = self.config.gate.clone() else { return };
        if !self.rollout.leads(&self.config.uid) {
            (self.looks.gate, self.looks.objection) = (None, None);
            return;
        }
        let now = Instant::now();
        if self.looks.asks || *self.looks.gate.get_or_insert(now) > now {
            return;
        }
        self.looks.asks = true;
        let answer = self.answers.0.clone();
        self.tasks.spawn(async move {
            let _ = answer.send(Answered::Gate(GateUrl::ask(&gate).await)).await;
        });
    }

    pub(super) fn gate_answered(&mut self, answer: Result<(), String>) -> Event {
        let wait = if answer.is_ok() { self.pause() } else { AGAIN.min(self.pause()) };
        (self.looks.asks, self.looks.gate) = (false, Some(Instant::now() + wait));
        let agrees = answer.is_ok();
        if let Err(why) = &answer
            && self.looks.objection.as_ref() != Some(why)
        {
            warn!(stage = "rollout", "--rollout-gate-url does not agree: {why}");
        }
        self.looks.objection = answer.err();
        Event::Gate(agrees)
    }
}
