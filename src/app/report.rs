//! What the app tells others: the log, `/status`, metrics and Events. Nothing is decided here.

use std::sync::Arc;

use jiff::Timestamp;
use tracing::{error, warn};

use super::{App, with};
use crate::model::content::Content;
use crate::model::journal::{Generation, Journal};
use crate::model::object::ObjectRef;
use crate::model::snapshot::HeldBack;
use crate::model::stage::Stage;
use crate::observe::status;
use crate::os::mask::{Mask, Said};
use crate::render::Inputs;

/// In the place of what others said, where it cannot be masked.
const NOT_SHOWN: &str = "what it said is not shown: it may hold secrets of a generation from before this start, which \
                         are not known any more";

impl App {
    /// Says what `--syntax warn` found; what it found the last time is not said again.
    pub(super) fn warn_of(&mut self, warnings: Vec<String>) {
        for warning in warnings.iter().filter(|warning| !self.warned.contains(warning)) {
            warn!(stage = Stage::Validate.as_str(), "{warning}");
        }
        self.warned = warnings;
    }

    pub(super) fn hold_back(&mut self, held_back: &[HeldBack], said: &[(ObjectRef, Said)]) {
        // What is held back was not taken: its last published version stays in its place.
        if !held_back.is_empty() {
            let published = self.published.objects.by_id();
            for HeldBack { source, .. } in held_back {
                let previous = published.get(source).map(|object| Arc::clone(object));
                self.staged.objects.replace(source.clone(), previous);
            }
        }
        let known = with(&self.shared, |status| std::mem::replace(&mut status.held_back, held_back.to_vec()));
        for held in held_back.iter().filter(|held| !known.contains(held)) {
            warn!(source = %held.source, "held back: {}", held.reason);
            let said = said.iter().find(|(source, said)| *source == held.source && !said.is_empty());
            let Some((_, said)) = said else { continue };
            if let Some(mask) = self.mask() {
                warn!(source = %held.source, "it said: {}", mask.apply(said));
            } else {
                warn!(source = %held.source, "{NOT_SHOWN}");
            }
        }
    }

    /// The newest inputs are published, and the main process has them.
    fn settled(&mut self, newly_confirmed: bool) {
        for stage in [Stage::Render, Stage::Validate, Stage::Publish, Stage::Confirm, Stage::Rollback] {
            self.solved(stage.as_str());
        }
        let since = self.observed.map(|(.., since)| since.elapsed());
        let whole = with(&self.shared, |status| status.held_back.is_empty());
        self.shared.metrics.settled(whole, since.filter(|_| newly_confirmed));
    }

    /// Notes that the current generation is the last good one; whether that became so in this life.
    fn note_confirmed(&mut self) -> bool {
        let Journal { current: Some(current), debt: None, .. } = self.machine.journal() else { return false };
        let newly = with(&self.shared, |status| {
            if status.confirmed.as_ref().is_some_and(|confirmed| confirmed.sequence == current.sequence) {
                return None;
            }
            // What was found at start was confirmed by an earlier life, nobody knows when.
            let at = status.published.as_ref().and_then(|published| published.at).map(|_| Timestamp::now());
            status.confirmed = Some(status::Published::new(current, at));
            Some(at.is_some())
        });
        if newly.is_some() {
            self.good = self.published.clone();
        }
        newly == Some(true)
    }

    /// Says what is wrong at a stage, and what others said of it, in the log alone; the same again is not said again.
    pub(super) fn problem(&mut self, stage: &'static str, message: &str, said: &Said) {
        let known = with(&self.shared, |status| {
            let known = status.errors.get(stage).is_some_and(|problem| problem.message == message);
            if !known {
                let problem = status::Problem { message: message.to_owned(), at: Timestamp::now() };
                status.errors.insert(stage, problem);
            }
            known
        });
        // Not for nothing: secrets that are kept on the disk are read for it.
        let mask = if said.is_empty() { None } else { self.mask() };
        if known && !(self.unsaid && mask.is_some()) {
            return;
        }
        warn!(stage, "{message}");
        self.unsaid = !said.is_empty() && mask.is_none();
        if let Some(mask) = mask {
            warn!(stage, "it said: {}", mask.apply(said));
        } else if self.unsaid {
            warn!(stage, "{NOT_SHOWN}");
        }
    }

    /// Masks the secrets of the newest inputs, and of the generations that the main process may have; `None` if those
    /// are not known, or cannot be read.
    pub(super) fn mask(&self) -> Option<Mask> {
        let mut secrets: Vec<_> = self.inputs.iter().flat_map(Inputs::secrets).collect();
        secrets.extend(self.staged.secrets.iter().flatten().cloned());
        for made_of in [&self.before, &self.published, &self.good] {
            secrets.extend(made_of.secrets.as_ref()?.iter().cloned());
        }
        // What cannot be had cannot be masked.
        let secrets = secrets.iter().map(Content::read).collect::<Result<Vec<_>, _>>().ok()?;
        Some(Mask::new(secrets))
    }

    pub(super) fn solved(&mut self, stage: &'static str) {
        with(&self.shared, |status| status.errors.remove(stage));
    }

    /// Brings the status and the metrics up to date with the machine and the sources.
    pub(super) fn report(&mut self) {
        let newly_confirmed = self.note_confirmed();
        let settled = self.machine.is_settled();
        if settled && !self.was_settled {
            self.settled(newly_confirmed);
        }
        self.was_settled = settled;
        let held = self.machine.is_held();
        if held && !self.was_held {
            let sequence = self.machine.journal().current.as_ref().map(|current| current.sequence);
            error!(
                sequence,
                "held: the main process does not take what is published, and there is nothing to go back to; it is told \
                 again every {:?} (--retry-max); publish good inputs, or mend the main process",
                self.config.retry.1
            );
        }
        self.was_held = held;
        self.shared.metrics.debt(self.machine.journal().debt.is_some());
        self.shared.metrics.quarantined(self.machine.journal().quarantine.is_some());
        let journal = self.machine.journal();
        let target = self.reloader.try_lock().ok().and_then(|reloader| reloader.target().cloned());
        self.events.report(journal, target.as_ref(), self.brief.as_deref());
        let found = |generation: &Option<Generation>| {
            generation.as_ref().map(|generation| status::Published::new(generation, None))
        };
        with(&self.shared, |status| {
            status.phase = self.machine.phase().as_str();
            status.ready |= journal.current.is_some();
            status.observed = self.observed.map(|(digest, at, _)| status::Observed { digest, at });
            if status.published.is_none() {
                status.published = found(&journal.current);
            }
            status.last_good = found(&journal.last_good);
            status.debt = journal.debt.as_ref().map(|debt| debt.kind.as_str());
            status.quarantine = journal.quarantine.as_ref().map(status::Quarantine::from);
            if target.is_some() {
                status.target = target;
            }
            status.sources = self
                .sources
                .views()
                .iter()
                .map(|view| status::Source {
                    name: view.spec.name.clone(),
                    resource_version: view.resource_version().map(str::to_owned),
                    healthy: view.is_up() && view.waits_for().is_none(),
                    message: view.message(),
                    at: view.at,
                })
                .collect();
        });
    }
}
