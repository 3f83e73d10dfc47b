//! What the app reports: the log, `/status`, metrics and Events. Nothing is decided here.

use std::time::Duration;

use jiff::Timestamp;
use tracing::{debug, info, warn};

use super::ends::{Done, Rendered, Trouble};
use super::ledger::masked;
use super::lines::{From, Lines};
use crate::machine::{Event, Machine, Milestone, Outcome, Verdict};
use crate::model::content::Content;
use crate::model::digest::Digest;
use crate::model::journal::Generation;
use crate::model::object::ObjectRef;
use crate::model::snapshot::HeldBack;
use crate::model::stage::Stage;
use crate::observe::admin::Shared;
use crate::observe::history::{Change, Edit};
use crate::observe::metrics::Ending;
use crate::observe::pod_events::PodEvents;
use crate::observe::status::{self};
use crate::observe::when;
use crate::os::mask::Said;
use crate::reload::TargetState;
use crate::source::feed::Note;

/// In the place of what others said, where it cannot be masked.
const NOT_SHOWN: &str = "what it said is not shown: it may hold secrets of a generation from before this start, which \
                         are not known any more";

/// In the place of what others said of inputs that were rejected before this start, while nothing was published.
const SAID_BEFORE: &str = "what it said is in the log of the start before (kubectl logs --previous); `trimtab retry` \
                           shows it again";

/// Asks for the secrets that others may have said; `None` if they are not known.
type Secrets<'a> = &'a dyn Fn() -> Option<Vec<Content>>;

/// What others said, and what may be in it.
struct Unmasked {
    from: From,
    said: Said,
    secrets: Option<Vec<Content>>,
}

#[expect(clippy::struct_excessive_bools, reason = "independent facts: each has its own cause and its own end")]
pub(super) struct Reporter {
    pub(super) shared: Shared,
    pub(super) events: PodEvents,
    /// Whether there is anything to write.
    pub(super) writes: bool,
    /// What waits for the verdict, to be reported with it.
    pub(super) milestones: Vec<Milestone>,
    pub(super) lines: Lines,
    /// What `--syntax warn` found in the newest candidate.
    warned: Vec<String>,
    /// Whether what was said of the present problem was not shown, since secrets were not known.
    unsaid: bool,
    unmasked: Vec<Unmasked>,
    /// Objects that are not in the newest candidate, or only as they were.
    pub(super) held_back: Vec<HeldBack>,
    /// Whether a source does not take in some of its objects.
    pub(super) too_large: bool,
    /// Whether the newest candidate could not be written: that what failed is tidied up solves nothing.
    unstaged: bool,
    /// Why the newest inputs do not render, without content.
    pub(super) brief: Option<String>,
    /// From the newest edit to its confirmation, until the newest inputs are reported to be in effect.
    propagation: Option<Duration>,
}

impl Reporter {
    /// For the generations that the journal names, which an earlier life has reported.
    pub(super) fn new(shared: Shared, events: PodEvents, machine: &Machine, writes: bool) -> Self {
        let journal = machine.journal();
        let found = |generation: &Option<Generation>| {
            generation.as_ref().map(|generation| status::Published::new(generation, None))
        };
        shared.update(|status| {
            status.ready |= journal.current.is_some() && !machine.is_astray();
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
        let mut lines = Lines::default();
        if let Some(quarantine) = &journal.quarantine {
            let rejection = &quarantine.rejection;
            let (inputs, since, reason) = (quarantine.digest.short(), rejection.at, &rejection.reason);
            lines.of_stage(
                rejection.stage.as_str(),
                format!(
                    "inputs {inputs} are in quarantine since {since:.0}, and not tried until somebody asks: {reason}"
                ),
            );
        }
        Self {
            shared,
            events,
            writes,
            lines,
            milestones: Vec::new(),
            warned: Vec::new(),
            unsaid: false,
            unmasked: Vec::new(),
            held_back: Vec::new(),
            too_large: false,
            unstaged: false,
            brief: None,
            propagation: None,
        }
    }

    /// Reports what came of a step, before the machine decides what follows.
    pub(super) fn ended(&mut self, done: &mut Done, secrets: Secrets<'_>) {
        let trouble = done.trouble.take();
        let (stage, ending) = match &done.event {
            Event::Rendered { outcome, .. } => {
                if let Some(rendered) = &done.rendered {
                    self.rendered(rendered, outcome, trouble.unwrap_or_default(), secrets);
                }
                return;
            }
            // Its success is reported as the milestone that it is.
            Event::Written { .. } => {
                if trouble.is_some() {
                    self.shared.metrics.stage(Stage::Publish, Ending::Failed, done.took);
                }
                if trouble.is_some() || !self.unstaged {
                    self.outcome(Stage::Publish, trouble, secrets);
                }
                return;
            }
            Event::Verified { .. } => {
                if let Some(trouble) = trouble {
                    self.shared.metrics.stage(Stage::Rollback, Ending::Failed, Duration::ZERO);
                    self.problem(Stage::Rollback.as_str(), trouble, false, secrets);
                }
                return;
            }
            Event::Reloaded { verdict, .. } => (Stage::Reload, ending_of(verdict)),
            Event::Confirmed { verdict, .. } => (Stage::Confirm, ending_of(verdict)),
            Event::Observed(_)
            | Event::Fired(_)
            | Event::Go(_)
            | Event::Allowed { .. }
            | Event::Back
            | Event::NotHeld { .. }
            | Event::Remember(_)
            | Event::Retry
            | Event::Shutdown => return,
        };
        self.shared.metrics.stage(stage, ending, done.took);
        self.shared.update(|status| status.history.step(stage, done.took));
        // Which other processes there are is no news.
        let same = done.target.as_ref().filter(|target| target.state != TargetState::Found).is_some_and(|target| {
            let known = self.shared.update(|status| status.target.as_ref().map(|known| known.state));
            known == Some(target.state)
        });
        match trouble {
            Some(trouble) => self.problem(stage.as_str(), trouble, same, secrets),
            None => self.solved(stage.as_str()),
        }
        if let Some(target) = done.target.take() {
            self.events.target(&target);
            self.shared.update(|status| status.target = Some(target));
        }
    }

    fn rendered(&mut self, rendered: &Rendered, outcome: &Outcome, trouble: Trouble, secrets: Secrets<'_>) {
        let ending = if matches!(outcome, Outcome::Rejected(_)) { Ending::Rejected } else { Ending::Failed };
        self.shared.update(|status| {
            status.history.step(Stage::Render, rendered.rendering);
            if let Some(took) = rendered.validating {
                status.history.step(Stage::Validate, took);
            }
            if let Outcome::Rejected(rejection) = outcome {
                status.history.rejected(rejection);
            }
        });
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
            (Outcome::Rejected(_) | Outcome::Failed, Some(stage)) => {
                self.problem(stage.as_str(), trouble, false, secrets);
            }
            (Outcome::Same { .. }, _) => {
                info!("the inputs changed, and render to what is published");
                self.held_back(&rendered.held_back, &rendered.said, secrets);
            }
            (Outcome::Staged { candidate, .. }, _) => {
                debug!(sequence = candidate.sequence, "rendered");
                self.held_back(&rendered.held_back, &rendered.said, secrets);
            }
            _ => {}
        }
    }

    /// Logs what is odd and published all the same; what was so the last time is not logged again.
    fn warn_of(&mut self, warnings: &[String]) {
        for warning in warnings.iter().filter(|warning| !self.warned.contains(warning)) {
            warn!("{warning}");
        }
        self.warned = warnings.to_vec();
    }

    fn held_back(&mut self, held_back: &[HeldBack], said: &[(ObjectRef, Said)], secrets: Secrets<'_>) {
        let known = std::mem::replace(&mut self.held_back, held_back.to_vec());
        for held in held_back.iter().filter(|held| !known.contains(held)) {
            let said = said.iter().find(|(source, said)| *source == held.source && !said.is_empty());
            let message = format!("held back: {}", held.reason);
            let note = Note { source: held.source.to_string(), message, good: false };
            self.lines.of_source(note.clone());
            if let Some((_, said)) = said {
                self.unmasked.push(Unmasked { from: From::Source(note), said: said.clone(), secrets: secrets() });
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
                self.shared.update(|status| status.history.step(Stage::Publish, took));
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
                let sequence = generation.sequence;
                let took = self.propagation.map(took_of);
                let since = took.as_ref().map(|took| format!(", {took} after the edit")).unwrap_or_default();
                info!(sequence, took, "confirmed{since}");
                self.shared.update(|status| {
                    // What is confirmed once more is as old as before.
                    let known = status.confirmed.as_ref().filter(|known| known.is(generation));
                    let at = known.map_or_else(|| Some(Timestamp::now()), |known| known.at);
                    status.confirmed = Some(status::Published::new(generation, at));
                });
            }
            Milestone::Settled => {
                for stage in [Stage::Render, Stage::Validate, Stage::Publish, Stage::Confirm, Stage::Rollback] {
                    self.solved(stage.as_str());
                }
                let whole = self.held_back.is_empty() && !self.too_large;
                self.shared.metrics.settled(whole, self.propagation.take());
            }
            Milestone::Rejected(_) | Milestone::Held => {}
        }
        self.shared.update(|status| status.history.announce(milestone));
        self.milestones.push(milestone.clone());
    }

    /// Newer inputs were seen.
    pub(super) fn observed(&mut self, digest: Digest, edits: Vec<Edit>) {
        self.shared.update(|status| status.history.observed(digest, edits));
    }

    /// These inputs are rendered.
    pub(super) fn began(&mut self, digest: Digest) {
        let what = self.shared.update(|status| status.history.began(digest).and_then(Change::what));
        if let Some(what) = what {
            info!("changed: {what}");
        }
    }

    /// The history, if it is to be stored.
    pub(super) fn unstored(&mut self) -> Option<Vec<u8>> {
        self.shared.update(|status| status.history.unstored())
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
            Some(message) => self.problem("access", Trouble { message, said: Said::default() }, false, &|| None),
            None => self.solved("access"),
        }
    }

    fn outcome(&mut self, stage: Stage, trouble: Option<Trouble>, secrets: Secrets<'_>) {
        match trouble {
            Some(trouble) => self.problem(stage.as_str(), trouble, false, secrets),
            None => self.solved(stage.as_str()),
        }
    }

    /// Reports what is wrong at a stage; what others said of it is for the log alone. The same again is not logged again;
    /// `same`: whatever wrong there was at this stage, this is it.
    fn problem(&mut self, stage: &'static str, trouble: Trouble, same: bool, secrets: Secrets<'_>) {
        let Trouble { message, said } = trouble;
        let known = self.shared.update(|status| match status.errors.get_mut(stage) {
            Some(problem) if same || problem.message == message => {
                problem.message.clone_from(&message);
                true
            }
            _ => {
                let problem = status::Problem { message: message.clone(), at: Timestamp::now() };
                status.errors.insert(stage, problem);
                false
            }
        });
        if known && !self.unsaid {
            return;
        }
        let secrets = if said.is_empty() { None } else { secrets() };
        if known && secrets.is_none() {
            return;
        }
        self.unsaid = false;
        self.lines.of_stage(stage, message);
        if !said.is_empty() {
            self.unmasked.push(Unmasked { from: From::Stage(stage), said, secrets });
        }
    }

    /// Lets what is said of the present problem be logged once more.
    pub(super) fn say_again(&mut self) {
        self.unsaid = true;
    }

    /// Whether something waits to be masked.
    pub(super) fn has_unmasked(&self) -> bool {
        !self.unmasked.is_empty()
    }

    /// Masks what others said, for the log. There may be too little memory for it: not before the journal has what is
    /// known. `before`: whether it was said, or was too much, before this start.
    pub(super) fn say(&mut self, before: bool) {
        for Unmasked { from, said, secrets } in self.unmasked.drain(..) {
            if before {
                self.lines.said(from, SAID_BEFORE.to_owned());
                continue;
            }
            let line = secrets.and_then(|secrets| masked(&said, &secrets));
            self.unsaid |= line.is_none() && matches!(from, From::Stage(_));
            self.lines.said(from, line.map_or_else(|| NOT_SHOWN.to_owned(), |line| format!("it said: {line}")));
        }
    }

    /// What sources reported, for the log.
    pub(super) fn heard(&mut self, notes: Vec<Note>) {
        for note in notes {
            self.lines.of_source(note);
        }
    }

    fn solved(&mut self, stage: &'static str) {
        self.shared.update(|status| status.errors.remove(stage));
    }
}

fn took_of(since: Duration) -> String {
    when::took(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn ending_of(verdict: &Verdict) -> Ending {
    match verdict {
        Verdict::Took => Ending::Success,
        Verdict::Refused(_) | Verdict::Died(_) => Ending::Rejected,
        Verdict::Unreachable => Ending::Failed,
    }
}
