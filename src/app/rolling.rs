//! What the app does for the rollout: it carries its effects out, and passes on to it what it hears.

use jiff::Timestamp;
use tokio::time::Instant;
use tracing::{info, warn};

use super::App;
use super::rollout::{Heard, Kept};
use crate::machine::{Event, Leave, Memory, Step};
use crate::model::digest::Digest;
use crate::model::journal::Rejection;
use crate::model::snapshot::Snapshot;
use crate::model::stage::Stage;
use crate::render::Inputs;
use crate::rollout::{self as fleet, Found, Reply, Why};

impl App {
    /// What is no other change needs no rollout, such as the same sources with other flags.
    pub(super) fn go_on(&mut self) {
        let Some((change, inputs)) = self.fleet.as_ref().and_then(|fleet| fleet.newest) else { return };
        self.machine.know_change(change);
        let published = self.machine.journal().current.as_ref();
        if published.is_some_and(|current| current.change == Some(change) && current.digest != inputs) {
            self.on(Event::Go(self.leave(change, inputs)));
        }
    }

    /// Leave for these inputs, of a change that is to hold first.
    fn leave(&self, change: Digest, inputs: Digest) -> Leave {
        let retries = self.fleet.as_ref().map_or(0, |fleet| fleet.rollout.retries());
        Leave { inputs, change, retries, good: false, base: false }
    }

    /// Somebody asks: what waits for its time is looked at now.
    pub(super) fn look_again(&mut self) {
        if let Some(fleet) = &mut self.fleet {
            fleet.queue.push_back(fleet::Event::Refresh);
        }
    }

    /// Carries out what the rollout decides of what has happened.
    pub(super) fn roll_out(&mut self) {
        loop {
            self.end_of_history();
            let Some(fleet) = &mut self.fleet else { return };
            let effects = fleet.turn(&self.machine);
            let idle = effects.is_empty() && fleet.queue.is_empty();
            for effect in effects {
                self.of_rollout(effect);
            }
            if idle {
                break;
            }
        }
        let heard = self.fleet.as_mut().and_then(|fleet| fleet.look(&self.machine));
        self.heard_of_fleet(heard);
    }

    pub(super) fn heard_of_fleet(&mut self, heard: Option<Heard>) {
        let Some(fleet) = &mut self.fleet else { return };
        match heard {
            None => {}
            Some(Heard::Event(event)) => fleet.queue.push_back(event),
            Some(Heard::Kept(kept)) => self.found(kept),
            Some(Heard::NotHeld(reason)) => {
                let retries = fleet.rollout.retries();
                let rejection = Rejection { stage: Stage::Confirm, reason, at: Timestamp::now() };
                self.on(Event::NotHeld { rejection, retries });
            }
        }
    }

    fn of_rollout(&mut self, effect: fleet::Effect) {
        let Some(fleet) = &mut self.fleet else { return };
        match effect {
            fleet::Effect::Wake(at) => fleet.wake(at),
            fleet::Effect::Read { quorum } => fleet.read(quorum),
            fleet::Effect::Write { lease, version, reason } => fleet.write(lease, version, reason, &self.machine),
            fleet::Effect::ReadHistory => fleet.read_history(),
            fleet::Effect::WriteHistory(change) => {
                fleet.write_history(change, self.inputs.as_ref().filter(|_| self.aside.is_none()));
            }
            fleet::Effect::Go(change, why) => {
                if let Some((_, inputs)) = fleet.newest.filter(|(newest, _)| *newest == change) {
                    self.on(Event::Go(Leave { good: why == Why::Good, ..self.leave(change, inputs) }));
                }
            }
            fleet::Effect::Publish(_) => self.allow(true),
            fleet::Effect::Drop(_) => self.allow(false),
            fleet::Effect::Back => self.on(Event::Back),
            fleet::Effect::StartFromHistory(change) => self.start_from_history(change),
            fleet::Effect::Settle => self.on(Event::Remember(Memory::Settle)),
            fleet::Effect::ForgetRejection => self.on(Event::Remember(Memory::ForgetRejection)),
            fleet::Effect::Claimed(claimed) => self.on(Event::Remember(Memory::Claimed(claimed))),
            fleet::Effect::RevertIsKnown => self.on(Event::Remember(Memory::RevertIsKnown)),
        }
    }

    /// What is staged may be published, if the fleet still says so; what is no other change, in any case.
    pub(super) fn ask(&mut self, step: Step) {
        let Some(fleet) = &mut self.fleet else { return };
        fleet.asks = Some(step);
        let newest = fleet.newest.map(|(change, _)| change);
        let published = self.machine.journal().current.as_ref().and_then(|current| current.change);
        match newest {
            Some(change) if published != newest && self.aside.is_none() => {
                fleet.queue.push_back(fleet::Event::Ready(change));
            }
            _ => self.allow(true),
        }
    }

    fn allow(&mut self, allowed: bool) {
        if let Some(step) = self.fleet.as_mut().and_then(|fleet| fleet.asks.take()) {
            self.on(Event::Allowed { step, allowed });
        }
    }

    /// The fleet had this before: what is it, with this replica's templates?
    fn found(&mut self, kept: Kept) {
        let newest = self.aside.as_ref().map(|(inputs, _)| inputs).or(self.inputs.as_ref());
        let (Some(fleet), Some(newest)) = (&mut self.fleet, newest) else { return };
        let Kept { change, objects } = kept;
        let plain = !self.settings.templated;
        let made_of = newest.snapshot.made_of.of_others(objects.iter().map(|taken| &*taken.object), plain);
        let snapshot = Snapshot { objects, made_of, ..newest.snapshot.clone() };
        let inputs = Inputs { snapshot, settings: self.settings.clone() };
        let mine = fleet.change(&inputs);
        let found = Some(Found { change, mine, is_ours: true }).filter(|_| fleet.unfit != Some(mine));
        fleet.kept = found.map(|_| (mine, inputs));
        fleet.queue.push_back(fleet::Event::HistoryRead(Reply::Answered(found)));
    }

    /// Publishes what the fleet had before. The newest inputs wait aside until that is done.
    fn start_from_history(&mut self, change: Digest) {
        let kept = self.fleet.as_ref().and_then(|fleet| fleet.kept.clone()).filter(|(mine, _)| *mine == change);
        let (None, Some((_, inputs))) = (&self.aside, kept) else { return };
        let (Some(newest), Some(observed)) = (self.inputs.take(), self.observed.take()) else { return };
        info!(stage = "rollout", change = change.short(), "starting from what the fleet had before the newest change");
        let digest = inputs.digest(&self.steps.key);
        self.aside = Some((newest, observed));
        self.inputs = Some(inputs);
        self.observed = Some((digest, Timestamp::now(), Instant::now()));
        self.on(Event::Observed(digest));
        self.on(Event::Go(Leave { base: true, ..self.leave(change, digest) }));
    }

    /// Goes back to the newest inputs once what the fleet had before is published, or cannot be.
    fn end_of_history(&mut self) {
        let (Some(_), Some((digest, ..))) = (&self.aside, self.observed) else { return };
        let published = self.machine.journal().current.as_ref().is_some_and(|current| current.digest == digest);
        let rejected = self.machine.is_rejected();
        if !published && !rejected && !self.machine.is_settled() {
            return;
        }
        if let Some(fleet) = self.fleet.as_mut().filter(|_| rejected && !published) {
            warn!(
                stage = "rollout",
                "what the fleet had before is rejected here; nothing is left to start from but the newest"
            );
            fleet.unfit = fleet.kept.take().map(|(mine, _)| mine);
            fleet.queue.push_back(fleet::Event::HistoryRejected);
        }
        let Some((newest, observed)) = self.aside.take() else { return };
        self.inputs = Some(newest);
        self.observed = Some(observed);
        self.on(Event::Observed(observed.0));
        self.go_on();
    }
}
