//! The app: builds the parts, runs the machine's effects, owns every task. It decides nothing.
//!
//! One loop takes what happened (a source reported something, a step ended, a timer fired, a signal came, somebody
//! asked), gives it to the [`Machine`], and carries out what that says.

mod archive;
mod config;
mod end;
mod ends;
mod fallback;
mod ledger;
mod lines;
mod report;
mod rolling;
mod rollout;
mod standing;
mod start;
mod steps;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, error, info, warn};

use self::archive::Archivist;
pub use self::config::Config;
pub use self::end::End;
use self::ends::{Answer, Done};
use self::fallback::Fallback;
pub use self::fallback::FallbackConfig;
use self::ledger::Ledger;
use self::report::Reporter;
use self::rollout::Fleet;
pub use self::rollout::RolloutConfig;
pub(crate) use self::rollout::lease_of;
pub use self::start::run;
pub(crate) use self::start::{clients, given_key, own_key};
use self::steps::Steps;
pub(crate) use self::steps::read_back;
use crate::machine::{Effect, Event, Machine, Milestone, Phase, Timer, Verdict, Wait};
use crate::model::digest::Digest;
use crate::model::snapshot::Snapshot;
use crate::model::tree::Tree;
use crate::observe::admin::Ask;
use crate::observe::history;
use crate::os::backoff;
use crate::os::signals::{Signalled, Signals};
use crate::publish::Lock;
use crate::render::{Inputs, Settings};
use crate::source::feed::{Feed, News};

/// The digest of inputs, and since when they are known.
type Observed = (Digest, Timestamp, Instant);

struct App {
    config: Config,
    settings: Arc<Settings>,
    feed: Feed,
    machine: Machine,
    timers: BTreeMap<Timer, Instant>,
    steps: Steps,
    ledger: Ledger,
    report: Reporter,
    /// With `--rollout`.
    fleet: Option<Box<Fleet>>,
    /// With `--archive`.
    archivist: Option<Archivist>,
    /// With `--fallback-url`, where nothing is published and the sources have not answered.
    fallback: Option<Box<Fallback>>,
    /// The newest inputs, while what the fleet had before is published in their place.
    aside: Option<(Inputs, Observed)>,
    /// The newest complete inputs.
    inputs: Option<Inputs>,
    /// Their digest, and since when they are known.
    observed: Option<Observed>,
    /// Inputs that were rejected before this start while nothing was published: they are tried again, and what programs say
    /// of them may be too much for the memory that there is.
    said_before: Option<Digest>,
    end: Option<End>,
    /// `None` where there is nothing to lock.
    _lock: Option<Lock>,
}

impl App {
    async fn run(mut self, mut asked: mpsc::Receiver<Ask>, mut signals: Signals) -> End {
        let once_until = self.config.once.map(|limit| Instant::now() + limit);
        let mut grace_until: Option<Instant> = None;
        loop {
            // Also when nothing is to be written: a liveness probe is a turn of this loop.
            if let Some(Err(error)) = self.steps.output.as_ref().map(|output| output.still_there()) {
                error!("ending: {error}");
                return End::CannotWrite;
            }
            let gives_back = self.fleet.as_ref().and_then(|fleet| fleet.gives_back());
            if let Some(end) = self.end.or_else(|| self.once_is_over(once_until)).filter(|_| gives_back.is_none()) {
                self.say();
                self.report();
                return end;
            }
            let next = self.timers.iter().min_by_key(|(_, at)| **at).map(|(timer, at)| (*timer, *at));
            let looks = self.fleet.as_ref().and_then(|fleet| fleet.wakes());
            let falls_back = self.fallback.as_ref().and_then(|fallback| fallback.wakes());
            let wakes = [next.map(|(_, at)| at), once_until, grace_until, gives_back, looks, falls_back];
            let wake = wakes.into_iter().flatten().min();
            tokio::select! {
                biased;
                signalled = signals.next() => match signalled {
                    Signalled::HangUp => {
                        info!("SIGHUP: reading everything again");
                        self.feed.refresh();
                        self.look_again();
                        self.on(Event::Retry);
                    }
                    Signalled::Terminate if grace_until.is_some() => {
                        warn!("a second signal: ending at once, before the step in flight is done");
                        return End::Interrupted;
                    }
                    Signalled::Terminate => {
                        info!(phase = self.machine.phase().as_str(), "ending: finishing the step in flight");
                        grace_until = Some(Instant::now() + self.config.shutdown_grace);
                        self.on(Event::Shutdown);
                        if let Some(fleet) = &mut self.fleet {
                            fleet.end();
                        }
                    }
                },
                Some(ask) = asked.recv() => self.asked(ask),
                answer = self.steps.next() => self.answered(answer),
                heard = Fleet::next(&mut self.fleet) => self.heard_of_fleet(heard),
                news = Archivist::next(&mut self.archivist) => self.archived(news),
                update = Fallback::next(&mut self.fallback) => self.fell_back(update),
                news = self.feed.next() => self.heard(news),
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                    let now = Instant::now();
                    if grace_until.is_some_and(|until| now >= until) {
                        warn!("--shutdown-grace is over before the step in flight is done");
                        return End::Interrupted;
                    }
                    if let Some((timer, _)) = next.filter(|(_, at)| now >= *at) {
                        self.timers.remove(&timer);
                        self.on(Event::Fired(timer));
                    }
                }
            }
            self.fall_back();
            self.roll_out();
            self.archive();
            self.report();
        }
    }

    /// How `--once` ends, if it has.
    fn once_is_over(&self, until: Option<Instant>) -> Option<End> {
        let until = until?;
        if self.machine.is_settled() {
            return Some(End::Done);
        }
        if self.machine.is_rejected() {
            return Some(End::Rejected);
        }
        if Instant::now() < until {
            return None;
        }
        let waits_for = self.feed.waits_for();
        if waits_for.is_empty() {
            error!("--once-timeout is over, and the output could not be written");
            return Some(End::CannotWrite);
        }
        for waited in waits_for {
            error!("--once-timeout is over, waiting for {waited}");
        }
        Some(if self.feed.is_forbidden() { End::Forbidden } else { End::Unavailable })
    }

    fn asked(&mut self, ask: Ask) {
        // Whoever asks may have gone away.
        match ask {
            Ask::Ping(answer) => {
                let _ = answer.send(());
            }
            Ask::Retry(answer) => {
                let fetches = self.feed.fetch();
                if let Some(archivist) = &self.archivist {
                    archivist.retry();
                }
                let reply = match (self.machine.is_settled() && !self.machine.is_partial(), fetches) {
                    (true, true) => {
                        "each --watch-url is asked again; nothing else to retry: the newest inputs are published, and the \
                         main process has them\n"
                    }
                    (true, false) => {
                        "nothing to retry: the newest inputs are published, and the main process has them\n"
                    }
                    (false, _) => "trying again\n",
                };
                info!("asked to retry");
                if self.said_before.take().is_some() {
                    self.report.say_again();
                }
                let news = self.feed.let_go();
                self.heard(news);
                self.look_again();
                self.on(Event::Retry);
                let _ = answer.send(reply);
            }
        }
    }

    fn heard(&mut self, mut news: News) {
        let (specs, metrics) = (&self.config.specs, &self.report.shared.metrics);
        for source in &news.heard {
            metrics.source_event(&specs[*source].name);
        }
        for (source, up) in &news.up {
            metrics.source_up(&specs[*source].name, *up);
        }
        for _ in 0..news.cut {
            metrics.watch_cut();
        }
        let absent = self.feed.absent(&mut news);
        if !absent.is_empty() {
            self.steps.read_back(absent, self.settings.clone());
        }
        self.report.heard(news.notes);
        if let Some(snapshot) = self.feed.changed() {
            self.observe(snapshot);
        }
    }

    fn observe(&mut self, snapshot: Snapshot) {
        let inputs = Inputs { snapshot, settings: self.settings.clone() };
        let digest = inputs.digest(&self.steps.key);
        self.ledger.observed(&inputs, digest, self.machine.journal());
        if let Some(fleet) = &mut self.fleet {
            fleet.observed(&inputs, digest);
        }
        if let Some(aside) = &mut self.aside {
            *aside = (inputs, (digest, Timestamp::now(), Instant::now()));
            return;
        }
        // The sources have answered: it is not asked any more, and what it had is no edit's beginning.
        let fell_back = self.fallback.take().is_some_and(|fallback| fallback.is_in_use());
        let before = self.inputs.replace(inputs).filter(|_| !fell_back);
        if self.observed.is_none_or(|(known, ..)| known != digest) {
            debug!(digest = digest.short(), "inputs changed");
            let published = self.machine.journal().current.as_ref().map(|current| current.digest);
            // After a restart, what was published before it is no change.
            if let Some(inputs) = self.inputs.as_ref().filter(|_| before.is_some() || published != Some(digest)) {
                let edits = history::edits(before.as_ref().map(|before| &before.snapshot), &inputs.snapshot);
                self.report.observed(digest, edits);
            }
            self.observed = Some((digest, Timestamp::now(), Instant::now()));
            self.on(Event::Observed(digest));
            self.go_on();
        }
    }

    fn answered(&mut self, answer: Answer) {
        self.steps.tidy();
        match answer {
            Answer::Done(done) => self.done(*done),
            Answer::Access(wrong) => self.report.access(wrong),
            Answer::ReadBack(read_back) => {
                let news = self.feed.restore(&read_back);
                self.heard(news);
            }
        }
    }

    fn done(&mut self, mut done: Done) {
        match &done.event {
            Event::Rendered { .. } => self.steps.faults.point("rendered"),
            Event::Reloaded { .. } => self.steps.faults.point("reloaded"),
            Event::Confirmed { .. } => self.steps.faults.point("confirmed"),
            Event::Verified { .. } => self.steps.faults.point("verified"),
            _ => {}
        }
        if let Some(rendered) = &mut done.rendered {
            self.ledger.drawn(rendered.drawn.take());
            if let Some(found) = rendered.found.take() {
                self.ledger.read_back(found);
            }
            self.ledger.held_back(&rendered.held_back);
        }
        let (ledger, inputs) = (&self.ledger, self.inputs.as_ref());
        self.report.ended(&mut done, &|| ledger.secrets(inputs));
        let current = self.machine.journal().current.as_ref();
        match &done.event {
            Event::Reloaded { verdict: Verdict::Took, .. } => self.report.reloaded(current),
            Event::Verified { sound: true, .. } => {
                let [rejected, good] = [current, self.machine.journal().last_good.as_ref()]
                    .map(|generation| generation.map(|found| found.sequence).unwrap_or_default());
                warn!(sequence = rejected, "rolling back to generation {good}");
            }
            _ => {}
        }
        let Done { event, took, notified, .. } = done;
        if notified.is_some() {
            self.steps.notified = notified;
        }
        let written = matches!(event, Event::Written { .. });
        let effects = self.machine.on(event);
        self.carry_out(effects, took);
        if let Some(fleet) = self.fleet.as_mut().filter(|_| written) {
            fleet.journalled();
        }
    }

    fn on(&mut self, event: Event) {
        let effects = self.machine.on(event);
        self.carry_out(effects, Duration::ZERO);
    }

    /// `took`: how long the step lasted that led to these effects.
    fn carry_out(&mut self, effects: Vec<Effect>, took: Duration) {
        for effect in effects {
            match effect {
                Effect::Arm(timer, wait) => {
                    let wait = self.length_of(wait);
                    self.timers.insert(timer, Instant::now() + wait);
                }
                Effect::Disarm(timer) => {
                    self.timers.remove(&timer);
                }
                Effect::Render { step, sequence, unless } => {
                    let (Some(inputs), Some((digest, ..))) = (self.inputs.clone(), self.observed) else { continue };
                    self.report.began(digest);
                    let current = self.machine.journal().current.as_ref();
                    let nothing = Tree::default().content(&self.steps.key);
                    let bare = current.is_none_or(|current| current.content == nothing);
                    self.steps.render(step, sequence, unless, bare, (inputs, digest), &mut self.ledger);
                }
                Effect::Ask(step) => self.ask(step),
                Effect::Write { step, writes } => self.steps.write(step, writes),
                Effect::Reload { step, generation, published } => self.steps.reload(step, generation, published),
                Effect::Confirm { step, digest, baseline } => self.steps.confirm(step, digest, baseline),
                Effect::Verify { step, generation } => self.steps.verify(step, generation),
                Effect::Hurry(step) => self.steps.hurry(step),
                Effect::Announce(milestone) => self.announce(&milestone, took),
                Effect::Exit => self.end = Some(End::by_signal(self.config.once)),
            }
        }
    }

    fn announce(&mut self, milestone: &Milestone, took: Duration) {
        match milestone {
            Milestone::Published(_) => self.ledger.published(),
            Milestone::RolledBack { .. } => self.ledger.rolled_back(),
            Milestone::Confirmed { .. } => self.ledger.confirmed(),
            Milestone::TurnedBack(_) | Milestone::Rejected(_) | Milestone::Held | Milestone::Settled => {}
        }
        let edited = self.observed.map(|(digest, _, since)| (digest, since.elapsed()));
        self.report.announce(milestone, took, edited);
    }

    /// Brings what others see up to date.
    fn report(&mut self) {
        if self.machine.phase() != Phase::Committing {
            self.say();
        }
        let fleet = self.fleet.as_ref().map(|fleet| {
            let rollout = fleet.status();
            let wait = fleet.wait(&rollout);
            (rollout, wait)
        });
        let rejected = self.machine.is_held() || self.machine.is_rejected();
        let newest = self.inputs.as_ref().filter(|_| rejected);
        self.report.edited_in_place(newest.map(|newest| self.ledger.edited_in_place(newest)).unwrap_or_default());
        let answered = self.fallback.as_ref().is_none_or(|fallback| !fallback.is_in_use());
        let observed = self.observed.map(|(digest, at, _)| (digest, at)).filter(|_| answered);
        self.report.state(&self.machine, self.feed.views(), &self.feed.fetches().collect::<Vec<_>>(), observed, fleet);
        // An init container's life is over before anyone asks.
        if self.config.once.is_none()
            && self.steps.may_store()
            && let Some(history) = self.report.unstored()
        {
            self.steps.store(history);
        }
    }

    /// Logs what others said, masked.
    fn say(&mut self) {
        if self.report.has_unmasked() {
            let newest = self.observed.map(|(digest, ..)| digest);
            let before = newest.is_some() && newest == self.said_before;
            if !before {
                self.steps.faults.point("mask");
            }
            self.report.say(before);
        }
    }

    fn length_of(&self, wait: Wait) -> Duration {
        let (min, max) = self.config.retry;
        match wait {
            Wait::Exactly(length) => length,
            Wait::Within(length) => backoff::spread(length, 0.0),
            Wait::Backoff(attempts) => backoff::delay(attempts, min, max, 0.5),
        }
    }
}

/// What a receiver is sent; for ever, where there is none, or nobody sends any more. May be dropped at any time without a
/// loss.
async fn received<T>(receiver: Option<&mut mpsc::Receiver<T>>) -> T {
    let sent = match receiver {
        Some(receiver) => receiver.recv().await,
        None => None,
    };
    match sent {
        Some(sent) => sent,
        None => std::future::pending().await,
    }
}
