//! What the app reports: the log, `/status`, metrics and Events. Nothing is decided here.

use std::time::Duration;

use jiff::Timestamp;
use tracing::{debug, error, info, warn};

use super::steps::{Done, Rendered, Trouble};
use crate::machine::{Event, Machine, Milestone, Outcome, Verdict};
use crate::model::digest::Digest;
use crate::model::journal::{Generation, Journal};
use crate::model::object::ObjectRef;
use crate::model::snapshot::HeldBack;
use crate::model::stage::Stage;
use crate::observe::admin::Shared;
use crate::observe::metrics::Ending;
use crate::observe::pod_events::PodEvents;
use crate::observe::status;
use crate::os::mask::Said;
use crate::source::View;

/// In the place of what others said, where it cannot be masked.
const NOT_SHOWN: &str = "what it said is not shown: it may hold secrets of a generation from before this start, which \
                         are not known any more";

pub(super) struct Reporter {
    pub(super) shared: Shared,
    pub(super) events: PodEvents,
    /// `--retry-max`, for the words about a generation that is held.
    slowest: Duration,
    /// What `--syntax warn` found in the newest candidate.
    warned: Vec<String>,
    /// Whether what was said of the present problem was not shown, since secrets were not known.
    unsaid: bool,
    /// Whether the newest candidate could not be written: that what failed is tidied up solves nothing.
    unstaged: bool,
    /// Why the newest inputs do not render, without content.
    brief: Option<String>,
    /// From the newest edit to its confirmation, until the newest inputs are reported to be in effect.
    propagation: Option<Duration>,
}

impl Reporter {
    /// For the generations that a journal names, which an earlier life has reported.
    pub(super) fn new(shared: Shared, events: PodEvents, slowest: Duration, journal: &Journal) -> Self {
        let found = |generation: &Option<Generation>| {
            generation.as_ref().map(|generation| status::Published::new(generation, None))
        };
        shared.update(|status| {
            status.ready |= journal.current.is_some();
            status.published = found(&journal.current);
            status.confirmed = found(&journal.current).filter(|_| journal.debt.is_none());
        });
        if let Some(current) = &journal.current {
            info!(
                sequence = current.sequence,
                pending = journal.debt.is_some(),
                "found generation {} published",
                current.directory
            );
            shared.metrics.published(current.sequence, &current.digest.to_string());
        }
        if let Some(quarantine) = &journal.quarantine {
            let rejection = &quarantine.rejection;
            let (inputs, since, reason) = (quarantine.digest.short(), rejection.at, &rejection.reason);
            warn!(
                stage = %rejection.stage,
                "inputs {inputs} are in quarantine since {since}, and not tried until somebody asks: {reason}"
            );
        }
        Self {
            shared,
            events,
            slowest,
            warned: Vec::new(),
            unsaid: false,
            unstaged: false,
            brief: None,
            propagation: None,
        }
    }

    /// Reports what came of a step, before the machine decides what follows.
    pub(super) fn ended(&mut self, done: &mut Done, masked: &dyn Fn(&Said) -> Option<String>) {
        let trouble = done.trouble.take();
        let (stage, ending) = match &done.event {
            Event::Rendered { outcome, .. } => {
                if let Some(rendered) = &done.rendered {
                    self.rendered(rendered, outcome, trouble.unwrap_or_default(), masked);
                }
                return;
            }
            // Its success is reported as the milestone that it is.
            Event::Written { .. } => {
                if trouble.is_some() {
                    self.shared.metrics.stage(Stage::Publish, Ending::Failed, done.took);
                }
                if trouble.is_some() || !self.unstaged {
                    self.outcome(Stage::Publish, trouble, masked);
                }
                return;
            }
            Event::Verified { .. } => {
                if let Some(trouble) = trouble {
                    self.shared.metrics.stage(Stage::Rollback, Ending::Failed, Duration::ZERO);
                    self.problem(Stage::Rollback.as_str(), trouble, masked);
                }
                return;
            }
            Event::Reloaded { verdict, .. } => (Stage::Reload, ending_of(verdict)),
            Event::Confirmed { verdict, .. } => (Stage::Confirm, ending_of(verdict)),
            Event::Observed(_) | Event::Fired(_) | Event::Retry | Event::Shutdown => return,
        };
        self.shared.metrics.stage(stage, ending, done.took);
        self.outcome(stage, trouble, masked);
        if let Some(target) = done.target.take() {
            self.events.target(&target);
            self.shared.update(|status| status.target = Some(target));
        }
    }

    fn rendered(
        &mut self,
        rendered: &Rendered,
        outcome: &Outcome,
        trouble: Trouble,
        masked: &dyn Fn(&Said) -> Option<String>,
    ) {
        let ending = if matches!(outcome, Outcome::Rejected(_)) { Ending::Rejected } else { Ending::Failed };
        for (stage, took) in [(Stage::Render, Some(rendered.rendering)), (Stage::Validate, rendered.validating)] {
            if rendered.failed_at == Some(stage) {
                self.shared.metrics.stage(stage, ending, took.unwrap_or_default());
                continue;
            }
            if let Some(took) = took {
                self.shared.metrics.stage(stage, Ending::Success, took);
            }
            self.solved(stage.as_str());
        }
        self.unstaged = rendered.failed_at == Some(Stage::Publish);
        if self.unstaged {
            self.shared.metrics.stage(Stage::Publish, ending, Duration::ZERO);
        }
        self.warn_of(&rendered.warnings);
        self.brief.clone_from(&rendered.brief);
        match (outcome, rendered.failed_at) {
            (Outcome::Rejected(_) | Outcome::Failed, Some(stage)) => self.problem(stage.as_str(), trouble, masked),
            (Outcome::Same { .. }, _) => {
                info!("the inputs changed, and render to what is published");
                self.held_back(&rendered.held_back, &rendered.said, masked);
            }
            (Outcome::Staged { candidate, .. }, _) => {
                debug!(sequence = candidate.sequence, "rendered");
                self.held_back(&rendered.held_back, &rendered.said, masked);
            }
            _ => {}
        }
    }

    /// Logs what `--syntax warn` found; what it found the last time is not logged again.
    fn warn_of(&mut self, warnings: &[String]) {
        for warning in warnings.iter().filter(|warning| !self.warned.contains(warning)) {
            warn!(stage = Stage::Validate.as_str(), "{warning}");
        }
        self.warned = warnings.to_vec();
    }

    fn held_back(
        &mut self,
        held_back: &[HeldBack],
        said: &[(ObjectRef, Said)],
        masked: &dyn Fn(&Said) -> Option<String>,
    ) {
        let known = self.shared.update(|status| std::mem::replace(&mut status.held_back, held_back.to_vec()));
        for held in held_back.iter().filter(|held| !known.contains(held)) {
            warn!(source = %held.source, "held back: {}", held.reason);
            let said = said.iter().find(|(source, said)| *source == held.source && !said.is_empty());
            let Some((_, said)) = said else { continue };
            if let Some(said) = masked(said) {
                warn!(source = %held.source, "it said: {said}");
            } else {
                warn!(source = %held.source, "{NOT_SHOWN}");
            }
        }
    }

    /// Reports a milestone; `took` is how long the step lasted that led to it, and `edited` which inputs are the newest
    /// and how long ago they were seen.
    pub(super) fn announce(&mut self, milestone: &Milestone, took: Duration, edited: Option<(Digest, Duration)>) {
        match milestone {
            Milestone::Published(generation) => {
                info!(sequence = generation.sequence, "published generation {}", generation.directory);
                self.shared.metrics.stage(Stage::Publish, Ending::Success, took);
                self.propagation = None;
                self.current(generation);
            }
            Milestone::TurnedBack(generation) => {
                info!(sequence = generation.sequence, "generation {} is current again", generation.directory);
                self.current(generation);
            }
            Milestone::RolledBack { to, .. } => {
                info!(sequence = to.sequence, "generation {} is current again", to.directory);
                self.shared.metrics.rolled_back();
                self.shared.metrics.stage(Stage::Rollback, Ending::Success, took);
                self.current(to);
            }
            Milestone::Confirmed { generation, .. } => {
                self.propagation = edited.filter(|(digest, _)| *digest == generation.digest).map(|(_, since)| since);
                let confirmed = status::Published::new(generation, Some(Timestamp::now()));
                self.shared.update(|status| status.confirmed = Some(confirmed));
            }
            Milestone::Held => error!(
                "held: the main process does not take what is published, and there is nothing to go back to; it is \
                 notified again every {:?} (--retry-max); publish good inputs, or fix the main process",
                self.slowest
            ),
            Milestone::Settled => {
                for stage in [Stage::Render, Stage::Validate, Stage::Publish, Stage::Confirm, Stage::Rollback] {
                    self.solved(stage.as_str());
                }
                let whole = self.shared.update(|status| status.held_back.is_empty());
                self.shared.metrics.settled(whole, self.propagation.take());
            }
            Milestone::Rejected(_) => {}
        }
        self.events.announce(milestone, self.brief.as_deref());
    }

    /// A generation has become the current one.
    fn current(&mut self, generation: &Generation) {
        self.shared.metrics.published(generation.sequence, &generation.digest.to_string());
        let published = status::Published::new(generation, Some(Timestamp::now()));
        self.shared.update(|status| {
            status.ready = true;
            status.published = Some(published);
        });
    }

    /// The main process took a reload.
    pub(super) fn reloaded(&mut self, current: Option<&Generation>) {
        let reloaded = current.map(|current| status::Published::new(current, Some(Timestamp::now())));
        self.shared.update(|status| status.reloaded = reloaded);
    }

    pub(super) fn access(&mut self, wrong: Option<String>) {
        match wrong {
            Some(message) => self.problem("access", Trouble { message, said: Said::default() }, &|_| None),
            None => self.solved("access"),
        }
    }

    fn outcome(&mut self, stage: Stage, trouble: Option<Trouble>, masked: &dyn Fn(&Said) -> Option<String>) {
        match trouble {
            Some(trouble) => self.problem(stage.as_str(), trouble, masked),
            None => self.solved(stage.as_str()),
        }
    }

    /// Reports what is wrong at a stage; what others said of it is for the log alone. The same again is not logged again.
    fn problem(&mut self, stage: &'static str, trouble: Trouble, masked: &dyn Fn(&Said) -> Option<String>) {
        let Trouble { message, said } = trouble;
        let known = self.shared.update(|status| {
            let known = status.errors.get(stage).is_some_and(|problem| problem.message == message);
            if !known {
                let problem = status::Problem { message: message.clone(), at: Timestamp::now() };
                status.errors.insert(stage, problem);
            }
            known
        });
        if known && !self.unsaid {
            return;
        }
        // Not for nothing: secrets that are kept on the disk are read for it.
        let line = if said.is_empty() { None } else { masked(&said) };
        if known && line.is_none() {
            return;
        }
        warn!(stage, "{message}");
        self.unsaid = !said.is_empty() && line.is_none();
        if let Some(line) = line {
            warn!(stage, "it said: {line}");
        } else if self.unsaid {
            warn!(stage, "{NOT_SHOWN}");
        }
    }

    fn solved(&mut self, stage: &'static str) {
        self.shared.update(|status| status.errors.remove(stage));
    }

    /// Brings `/status` and the metrics up to date with the machine and the sources.
    pub(super) fn state(&mut self, machine: &Machine, views: &[View], observed: Option<(Digest, Timestamp)>) {
        let journal = machine.journal();
        self.shared.metrics.debt(journal.debt.is_some());
        self.shared.metrics.quarantined(journal.quarantine.is_some());
        self.shared.update(|status| {
            status.phase = machine.phase().as_str();
            status.observed = observed.map(|(digest, at)| status::Observed { digest, at });
            status.last_good = journal.last_good.as_ref().map(|generation| status::Published::new(generation, None));
            status.debt = journal.debt.as_ref().map(|debt| debt.kind.as_str());
            status.quarantine = journal.quarantine.as_ref().map(status::Quarantine::from);
            status.sources = views.iter().map(source).collect();
        });
    }
}

fn ending_of(verdict: &Verdict) -> Ending {
    match verdict {
        Verdict::Took => Ending::Success,
        Verdict::Refused(_) | Verdict::Died(_) => Ending::Rejected,
        Verdict::Unreachable => Ending::Failed,
    }
}

fn source(view: &View) -> status::Source {
    status::Source {
        name: view.spec.name.clone(),
        resource_version: view.resource_version().map(str::to_owned),
        healthy: view.is_up() && !view.is_kept() && view.waits_for().is_none(),
        message: view.message(),
        at: view.at,
    }
}
