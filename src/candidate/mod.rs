//! Candidates: from inputs to a directory that may be published.
//!
//! Rendered, parsed, written where no reader sees it, and shown to the `--validate` programs. What does not pass is
//! removed again, and nothing at the output's top level has changed for it.
//!
//! Without templates, a selected object that does not pass holds back itself alone. A malformed one is found by its
//! own keys; which ones a program refuses is searched for ([`bisect`]).

mod bisect;
mod programs;
mod stage;
pub mod syntax;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use self::programs::ProgramError;
use self::stage::{check, malformed};
use self::syntax::Syntax;
use crate::model::digest::{Digest, DigestKey};
use crate::model::journal::Generation;
use crate::model::made_of::MadeOf;
use crate::model::object::{Object, ObjectRef};
use crate::model::snapshot::{HeldBack, Versions};
use crate::model::stage::Stage;
use crate::os::exec::Command;
use crate::os::mask::Said;
use crate::publish::{Output, PublishError};
use crate::render::{Drawn, Inputs, Refused, Rendered};

/// `{dir}` in a program's arguments: the candidate's directory, or the only one that the main process reads by itself.
pub const PLACEHOLDER: &str = "{dir}";

/// `{dir:NAME}` there: the directory of `--observe-dir` with this name.
#[must_use]
pub fn placeholder_of(name: &str) -> String {
    format!("{{dir:{name}}}")
}

/// What a candidate must pass.
#[derive(Clone, Debug)]
pub struct Config {
    pub syntax: Syntax,
    /// Whether there is anything to write.
    pub candidates: bool,
    /// `--validate`, in the order given.
    pub commands: Vec<Command>,
    /// `--validate-timeout`: the most that one program may take.
    pub timeout: Duration,
}

/// What a candidate is made of.
#[derive(Clone)]
pub struct Order {
    pub inputs: Inputs,
    pub digest: Digest,
    /// The version of each selected object that was published last.
    pub published: Versions,
    /// What was rendered last, to begin with.
    pub drawn: Option<Drawn>,
    /// Whether that is not known, as the published generation was found at start: it is read back from the disk.
    pub unknown: bool,
    /// The candidate's sequence number.
    pub sequence: u64,
    /// The digest of the tree that is published: it needs no candidate.
    pub unless: Option<Digest>,
    /// Whether no file is published.
    pub bare: bool,
    /// Where it goes; `None` where there is nothing to write.
    pub output: Option<Arc<Output>>,
    /// The key of the tree's digests.
    pub key: DigestKey,
    /// What it must pass.
    pub validate: Arc<Config>,
}

/// What came of it, and how long it took.
#[derive(Debug)]
pub struct Made {
    /// What came of it.
    pub result: Result<Candidate, CandidateError>,
    /// Rendering and writing, in all.
    pub rendering: Duration,
    /// Parsing and programs, in all; `None` where it came to neither.
    pub validating: Option<Duration>,
    /// What `--syntax warn` found, and what a render found odd.
    pub warnings: Vec<String>,
    /// What programs said of the objects that they refused.
    pub said: Vec<(ObjectRef, Said)>,
    /// What was published of the selected objects, where it was read back.
    pub found: Option<BTreeMap<ObjectRef, Arc<Object>>>,
    /// What was rendered, for the next order.
    pub drawn: Option<Drawn>,
}

/// What may be published.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub enum Candidate {
    /// A generation in its directory.
    Staged {
        generation: Generation,
        /// How many files it has.
        files: usize,
        /// Objects that are not in it, or only as they were last published.
        held_back: Vec<HeldBack>,
    },
    /// The tree is what is published.
    Same {
        /// Objects that are not in it, or only as they were last published.
        held_back: Vec<HeldBack>,
        made_of: MadeOf,
    },
}

/// Why there is nothing to publish.
#[derive(Debug)]
pub struct CandidateError {
    pub stage: Stage,
    /// Whether the inputs are at fault, and are not to be tried again; otherwise it is retried.
    pub rejected: bool,
    /// Whether it is a program that refused: the same inputs may pass later, when what the program depends on is there.
    pub may_pass: bool,
    /// What failed, on what, why, and what to do.
    pub reason: String,
    /// The reason without any content, where it has some.
    pub brief: Option<String>,
    /// What a program said, for the log.
    pub output: Said,
}

impl CandidateError {
    fn new(stage: Stage, rejected: bool, reason: &impl ToString) -> Self {
        Self { stage, rejected, may_pass: false, reason: reason.to_string(), brief: None, output: Said::default() }
    }
}

impl From<ProgramError> for CandidateError {
    fn from(error: ProgramError) -> Self {
        let refused = matches!(error, ProgramError::Refused { .. });
        let (ProgramError::Refused { message: reason, output } | ProgramError::NotRun { message: reason, output }) =
            error;
        Self { stage: Stage::Validate, rejected: refused, may_pass: refused, reason, brief: None, output }
    }
}

/// Makes a candidate. On return it is in its directory and on the disk, or there is nothing of it.
pub async fn make(mut order: Order) -> Made {
    let mut made = Made {
        result: Err(CandidateError::new(Stage::Render, false, &"it was not begun")),
        rendering: Duration::ZERO,
        validating: None,
        warnings: Vec::new(),
        said: Vec::new(),
        found: None,
        drawn: None,
    };
    if order.unknown && order.inputs.independent().next().is_some() {
        match read_back(&order).await {
            Ok(found) => order.published = made.found.insert(found).clone().into(),
            Err(problem) => return Made { result: Err(problem), ..made },
        }
    }
    let drawn = order.drawn.take();
    let mut maker = Maker { order: Arc::new(order), made, drawn };
    let result = maker.make().await;
    Made { result, ..maker.made }
}

/// Renders and parses as [`make`] does; writes nothing and runs no program. `bare`: whether no file is published. The strings are what `--syntax warn` found.
pub fn rehearse(
    inputs: &Inputs,
    digest: Digest,
    published: &Versions,
    bare: bool,
    syntax: Syntax,
) -> Result<(Rendered, Vec<String>), CandidateError> {
    let refused = if syntax == Syntax::Strict { malformed(inputs)? } else { Refused::new() };
    let mut rendered = render(inputs, digest, published, &refused, bare)?;
    let mut warnings = std::mem::take(&mut rendered.warnings);
    check(&rendered.tree, syntax, &mut warnings)?;
    Ok((rendered, warnings))
}

async fn read_back(order: &Order) -> Result<BTreeMap<ObjectRef, Arc<Object>>, CandidateError> {
    let (inputs, Some(output)) = (order.inputs.clone(), order.output.clone()) else { return Ok(BTreeMap::new()) };
    let read = in_pool(Stage::Render, move || {
        let published = output.published(inputs.settings.max_size)?;
        Ok(inputs.found(|path| published.get(path)?.bytes.clone()))
    });
    read.await?.map_err(|error: PublishError| CandidateError::new(Stage::Render, false, &error))
}

fn render(
    inputs: &Inputs,
    digest: Digest,
    published: &Versions,
    refused: &Refused,
    bare: bool,
) -> Result<Rendered, CandidateError> {
    inputs.render(digest, published, refused, bare).map_err(|rejection| {
        let brief = Some(rejection.brief());
        CandidateError { brief, ..CandidateError::new(Stage::Render, rejection.is_rejection(), &rejection) }
    })
}

struct Maker {
    order: Arc<Order>,
    made: Made,
    /// For the first render.
    drawn: Option<Drawn>,
}

impl Maker {
    async fn make(&mut self) -> Result<Candidate, CandidateError> {
        let malformed = self.malformed().await?;
        let (unless, syntax) = (self.order.unless, self.order.validate.syntax);
        let (candidate, tree) = self.stage(&malformed, unless, syntax, self.looks()).await?;
        let Err(problem) = self.run_programs(&candidate).await else {
            self.put_right(&candidate, tree).await?;
            return Ok(candidate);
        };
        let suspects: Vec<_> = self.changed().filter(|id| !malformed.contains_key(id)).collect();
        if !problem.rejected || suspects.is_empty() {
            return Err(problem);
        }
        self.search(&malformed, &suspects, problem).await
    }

    /// Runs the programs on a candidate that was staged, and removes it if one does not let it pass.
    async fn run_programs(&mut self, candidate: &Candidate) -> Result<(), CandidateError> {
        let Candidate::Staged { generation, .. } = candidate else { return Ok(()) };
        let validate = self.order.validate.clone();
        if validate.commands.is_empty() {
            return Ok(());
        }
        // With nothing to write, `--output` may be where Trimtab keeps its journal.
        let writes = self.order.validate.candidates;
        let output = self.order.output.as_ref().filter(|_| writes);
        let places = self.places(output.map(|output| output.candidate(generation)));
        let began = Instant::now();
        let passed = programs::run(&validate, &places).await;
        *self.made.validating.get_or_insert_default() += began.elapsed();
        if passed.is_err() {
            self.discard(candidate).await;
        }
        passed.map_err(CandidateError::from)
    }

    /// What stands for the placeholders in programs' arguments.
    fn places(&self, candidate: Option<PathBuf>) -> Vec<(String, PathBuf)> {
        let observed = &self.order.inputs.snapshot.observed;
        let only = || if let [only] = &observed[..] { Some(only.path.to_path_buf()) } else { None };
        let dir = candidate.or_else(only).map(|path| (PLACEHOLDER.to_owned(), path));
        let named = observed.iter().map(|it| (placeholder_of(&it.object.id.name), it.path.to_path_buf()));
        named.chain(dir).collect()
    }

    /// Whether programs look at candidates.
    fn looks(&self) -> bool {
        !self.order.validate.commands.is_empty()
    }
}

async fn in_pool<T: Send + 'static>(
    stage: Stage,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, CandidateError> {
    let ended = tokio::task::spawn_blocking(work).await;
    // A panic, in a build that survives it.
    ended.map_err(|_| CandidateError::new(stage, false, &"a fault of Trimtab's own ended it; please report it"))
}

#[cfg(test)]
mod tests;
