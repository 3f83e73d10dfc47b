//! The lines that a turn of the loop has for the log. They wait until the verdict on it is known, so that a trouble is
//! one line: with its consequence, its cause and the next step.

use std::collections::VecDeque;

use tracing::{error, info, warn};

use crate::model::digest::Digest;
use crate::observe::verdict::{State, Verdict};
use crate::source::feed::Note;

/// Where a line comes from.
pub(super) enum From {
    Stage(&'static str),
    Source(Note),
}

struct Line {
    from: From,
    message: String,
}

/// What was said last: the word, whether nothing is wrong, the cause, and which inputs were rejected.
type Known = (State, bool, Option<String>, Option<Digest>);

#[derive(Default)]
pub(super) struct Lines {
    waiting: Vec<Line>,
    by_others: Vec<Line>,
    /// Until all is well again.
    known: Option<Known>,
    /// What was said before the verdict was about it, the last few.
    said: VecDeque<String>,
}

/// How many of them.
const SAID: usize = 16;

impl Lines {
    pub(super) fn of_stage(&mut self, stage: &'static str, message: impl Into<String>) {
        self.waiting.push(Line { from: From::Stage(stage), message: message.into() });
    }

    pub(super) fn of_source(&mut self, note: Note) {
        self.waiting.push(Line { message: note.message.clone(), from: From::Source(note) });
    }

    /// What others said of it, for a line of its own.
    pub(super) fn said(&mut self, from: From, said: String) {
        self.by_others.push(Line { from, message: said });
    }

    /// Writes them. `changed`: whether the verdict's word is another one than before; `rejected`: the rejected inputs.
    pub(super) fn write(&mut self, verdict: &Verdict, changed: bool, rejected: Option<Digest>) {
        let is_about = |message: &str| {
            verdict.cause.as_ref().is_some_and(|cause| cause.contains(message) || message.contains(cause.as_str()))
        };
        let about = |line: &Line| is_about(&line.message);
        let is_said = !matches!(verdict.state, State::Working | State::InEffect);
        let known = (verdict.state, verdict.calm, verdict.cause.clone(), rejected);
        let is_unknown = self.known.as_ref() != Some(&known);
        // What it waits for has become a trouble.
        let is_worse = self.known.as_ref().is_some_and(|(_, calm, ..)| *calm && !verdict.calm);
        // A stage fails anew with each attempt; what a source reports may be in a verdict before its line is here.
        let is_new = |line: &Line| about(line) && (is_unknown || matches!(line.from, From::Stage(_)));
        let is_news = self.waiting.iter().any(is_new) || ((changed || is_worse) && is_unknown);
        match verdict.state {
            State::Working => {}
            State::InEffect => {
                self.said.clear();
                if changed && self.known.take().is_some() {
                    info!(verdict = verdict.state.as_str(), "{}", verdict.line());
                }
            }
            State::Rejected | State::Held | State::Waiting | State::Stale => {
                if is_news {
                    let repeats = self.said.iter().any(|said| is_about(said));
                    log(verdict, &if repeats { verdict.advice() } else { verdict.line() });
                    self.known = Some(known);
                }
            }
        }
        for line in self.waiting.drain(..) {
            let in_verdict = about(&line) && is_said;
            match &line.from {
                _ if in_verdict => {}
                From::Stage(stage) => warn!(stage, "{}", line.message),
                From::Source(note) => note.log(),
            }
            if !in_verdict {
                self.said.truncate(SAID - 1);
                self.said.push_front(line.message);
            }
        }
        for Line { from, message } in self.by_others.drain(..) {
            match from {
                From::Stage(stage) => warn!(stage, "{message}"),
                From::Source(note) => warn!(source = note.source, "{message}"),
            }
        }
    }
}

fn log(verdict: &Verdict, line: &str) {
    let (word, stage) = (verdict.state.as_str(), verdict.at.as_str());
    match verdict.state {
        State::Held => error!(verdict = word, stage, "{line}"),
        _ if verdict.calm => info!(verdict = word, stage, "{line}"),
        _ => warn!(verdict = word, stage, "{line}"),
    }
}
