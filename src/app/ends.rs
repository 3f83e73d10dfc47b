//! How steps end: the machine's own event, and what is reported beside it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::candidate::{Candidate, CandidateError, Made};
use crate::machine::{Event, Outcome, Step, Verdict};
use crate::model::journal::{Baseline, Rejection};
use crate::model::object::{Object, ObjectRef};
use crate::model::snapshot::HeldBack;
use crate::model::stage::Stage;
use crate::os::mask::Said;
use crate::reload::{NotTaken, Notified, TargetStatus};
use crate::render::Drawn;
use crate::source::ReadBack;

/// What a task answers.
pub(super) enum Answer {
    /// A step has ended.
    Done(Box<Done>),
    /// It was checked whether the main process can read what it was notified of: what is wrong, if anything.
    Access(Option<String>),
    /// What was published of objects that are gone was read back.
    ReadBack(ReadBack),
}

/// The end of a step.
pub(super) struct Done {
    pub(super) event: Event,
    pub(super) took: Duration,
    /// What went wrong.
    pub(super) trouble: Option<Trouble>,
    /// Of a render.
    pub(super) rendered: Option<Box<Rendered>>,
    /// Of a reload by signal: whom it was for.
    pub(super) target: Option<TargetStatus>,
    /// Of a reload that was taken: what it leaves to the confirmation.
    pub(super) notified: Option<Box<Notified>>,
}

impl Done {
    pub(super) fn new(event: Event, took: Duration) -> Self {
        Self { event, took, trouble: None, rendered: None, target: None, notified: None }
    }
}

/// What went wrong in a step.
#[derive(Default)]
pub(super) struct Trouble {
    /// Fit for logs, `/status` and Events.
    pub(super) message: String,
    /// What others said of it: only through a mask, for the log.
    pub(super) said: Said,
}

/// What a render found out beyond its outcome.
pub(super) struct Rendered {
    pub(super) rendering: Duration,
    /// `None` where it came to no validation.
    pub(super) validating: Option<Duration>,
    /// Where it ended, if nothing can be published.
    pub(super) failed_at: Option<Stage>,
    /// What `--syntax warn` found, and what a render found odd.
    pub(super) warnings: Vec<String>,
    pub(super) held_back: Vec<HeldBack>,
    /// What programs said of the objects that they refused.
    pub(super) said: Vec<(ObjectRef, Said)>,
    /// What was published of the selected objects, where it was read back.
    pub(super) found: Option<BTreeMap<ObjectRef, Arc<Object>>>,
    pub(super) drawn: Option<Drawn>,
    /// The reason of a rejection without any content, where it has some.
    pub(super) brief: Option<String>,
}

pub(super) fn rendered(step: Step, made: Made, baseline: Option<Baseline>, took: Duration) -> Done {
    let Made { result, rendering, validating, warnings, said, found, drawn } = made;
    let mut rendered = Rendered {
        rendering,
        validating,
        failed_at: None,
        warnings,
        held_back: Vec::new(),
        said,
        found,
        drawn,
        brief: None,
    };
    let mut trouble = None;
    let outcome = match result {
        Ok(Candidate::Staged { generation, files: _, held_back }) => {
            rendered.held_back = held_back;
            Outcome::Staged { candidate: generation, baseline }
        }
        Ok(Candidate::Same { held_back, made_of }) => {
            let partial = !held_back.is_empty();
            rendered.held_back = held_back;
            Outcome::Same { partial, made_of }
        }
        Err(CandidateError { stage, rejected, reason, brief, output: said, .. }) => {
            rendered.failed_at = Some(stage);
            rendered.brief = brief;
            let message = if rejected { format!("rejected: {reason}") } else { reason.clone() };
            trouble = Some(Trouble { message, said });
            if rejected { Outcome::Rejected(rejection(stage, reason)) } else { Outcome::Failed }
        }
    };
    Done { trouble, rendered: Some(Box::new(rendered)), ..Done::new(Event::Rendered { step, outcome }, took) }
}

/// The machine's verdict on what an attempt or a confirmation found, and what is to be reported of it.
pub(super) fn verdict(stage: Stage, failed: Option<NotTaken>) -> (Verdict, Option<Trouble>) {
    let (verdict, message, said) = match failed {
        None => return (Verdict::Took, None),
        Some(NotTaken::Refused { message, output }) => {
            // One refusal of a reload rejects nothing yet.
            let what = if stage == Stage::Reload { "refused" } else { "rejected" };
            let reported = format!("{what}: {message}");
            (Verdict::Refused(rejection(stage, message)), reported, output)
        }
        Some(NotTaken::Died { message }) => {
            let reported = format!("rejected: {message}");
            (Verdict::Died(rejection(stage, message)), reported, Said::default())
        }
        Some(NotTaken::Unreachable { message, output, .. }) => (Verdict::Unreachable, message, output),
    };
    (verdict, Some(Trouble { message, said }))
}

fn rejection(stage: Stage, reason: String) -> Rejection {
    Rejection { stage, reason, at: Timestamp::now() }
}
