//! Candidates: from inputs to a directory that may be published.
//!
//! Rendered, parsed, written where no reader sees it, and shown to the `--validate` programs. What does not pass is
//! removed again, and nothing at the output's top level has changed for it.
//!
//! Without templates, a selected object that does not pass holds back itself alone. A malformed one is found by its
//! own keys. Which objects a program refuses is found by [halving](Maker::search): a program speaks of the whole.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::digest::{Digest, DigestKey};
use crate::inputs::Inputs;
use crate::journal::Generation;
use crate::mask::Output as Said;
use crate::metrics::Stage;
use crate::publish::Output;
use crate::render::HeldBack;
use crate::snapshot::{Object, ObjectRef};
use crate::tree::Tree;
use crate::validate::{self, Failure, Syntax};

/// How many candidates are tried in search of the objects that the programs refuse. Enough for seven of a thousand; it
/// bounds how long newer inputs wait.
const MOST_TRIALS: usize = 64;

/// For how many times `--validate-timeout` a search may go on.
const LONGEST_SEARCH: u32 = 4;

/// What a candidate is made of.
#[derive(Clone)]
pub struct Order {
    /// The inputs.
    pub inputs: Inputs,
    /// Their digest.
    pub digest: Digest,
    /// The version of each selected object that was published last.
    pub published: BTreeMap<ObjectRef, Arc<Object>>,
    /// The candidate's sequence number.
    pub sequence: u64,
    /// The digest of the tree that is published: it needs no candidate.
    pub unless: Option<Digest>,
    /// Where it goes.
    pub output: Arc<Output>,
    /// The key of the tree's digests.
    pub key: DigestKey,
    /// What it must pass.
    pub validate: Arc<validate::Config>,
}

/// What came of it, and how long it took.
#[derive(Debug)]
pub struct Made {
    /// What came of it.
    pub result: Result<Candidate, Problem>,
    /// Rendering and writing, in all.
    pub rendering: Duration,
    /// Parsing and programs, in all; `None` where it came to neither.
    pub validating: Option<Duration>,
    /// What `--syntax warn` found.
    pub warnings: Vec<String>,
    /// What programs said of the objects that they refused.
    pub said: Vec<(ObjectRef, Said)>,
}

/// What may be published.
#[derive(Debug)]
pub enum Candidate {
    /// A generation in its directory.
    Staged {
        /// The generation.
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
    },
}

/// Why there is nothing to publish.
#[derive(Debug)]
pub struct Problem {
    /// `Render` or `Validate`.
    pub stage: Stage,
    /// Whether the inputs are at fault, and are not to be tried again; otherwise it is retried.
    pub rejected: bool,
    /// What failed, on what, why, and what to do.
    pub reason: String,
    /// What a program said, for the log.
    pub output: Said,
}

impl Problem {
    fn new(stage: Stage, rejected: bool, reason: &impl ToString) -> Self {
        Self { stage, rejected, reason: reason.to_string(), output: Said::default() }
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let rejected = matches!(failure, Failure::Rejected { .. });
        let (Failure::Rejected { message: reason, output } | Failure::Failed { message: reason, output }) = failure;
        Self { stage: Stage::Validate, rejected, reason, output }
    }
}

/// Selected objects that are held back, and why.
type Refused = BTreeMap<ObjectRef, String>;

/// Makes a candidate. On return it is in its directory and on the disk, or there is nothing of it.
pub async fn make(order: Order) -> Made {
    let made = Made {
        result: Err(Problem::new(Stage::Render, false, &"it was not begun")),
        rendering: Duration::ZERO,
        validating: None,
        warnings: Vec::new(),
        said: Vec::new(),
    };
    let mut maker = Maker { order: Arc::new(order), made };
    let result = maker.make().await;
    Made { result, ..maker.made }
}

struct Maker {
    order: Arc<Order>,
    made: Made,
}

impl Maker {
    async fn make(&mut self) -> Result<Candidate, Problem> {
        let malformed = self.malformed().await?;
        let candidate = self.stage(&malformed, self.order.unless, self.order.validate.syntax).await?;
        let Err(problem) = self.run_programs(&candidate).await else { return Ok(candidate) };
        let suspects: Vec<_> = self.changed().filter(|id| !malformed.contains_key(id)).collect();
        if !problem.rejected || suspects.is_empty() {
            return Err(problem);
        }
        self.search(&malformed, &suspects, problem).await
    }

    /// Finds which of the suspects the programs refuse, beginning with what is published and adding as many as pass:
    /// all of them failed together, so each half is tried, and the halves of a half that fails. For k bad ones of n
    /// these are about 2 k log n trials. What the search had no time for is held back as well.
    async fn search(
        &mut self,
        malformed: &Refused,
        suspects: &[ObjectRef],
        whole: Problem,
    ) -> Result<Candidate, Problem> {
        let untried = format!(
            "it was not tried alone: the search for the objects that --validate refuses ends after {MOST_TRIALS} runs, \
             or {LONGEST_SEARCH} times --validate-timeout; the first run of all together: {}",
            whole.reason
        );
        let mut refused = malformed.clone();
        refused.extend(suspects.iter().map(|id| (id.clone(), untried.clone())));
        let until = Instant::now() + self.order.validate.timeout.saturating_mul(LONGEST_SEARCH);
        if self.trial(&refused).await?.is_some() {
            // None of them is to blame, or not they alone.
            return Err(whole);
        }
        let (left, right) = suspects.split_at(suspects.len() / 2);
        let mut groups = vec![right, left];
        // The first trial was of what is published.
        let mut trials = 1;
        while let Some(group) = groups.pop() {
            if group.is_empty() {
                continue;
            }
            if trials == MOST_TRIALS || Instant::now() >= until {
                break;
            }
            trials += 1;
            let mut fewer = refused.clone();
            fewer.retain(|id, _| !group.contains(id));
            match (self.trial(&fewer).await?, group) {
                (None, _) => refused = fewer,
                (Some(problem), [culprit]) => {
                    refused.insert(culprit.clone(), problem.reason);
                    self.made.said.push((culprit.clone(), problem.output));
                }
                (Some(_), _) => {
                    let (left, right) = group.split_at(group.len() / 2);
                    groups.extend([right, left]);
                }
            }
        }
        match self.stage(&refused, self.order.unless, self.order.validate.syntax).await {
            // Without the refused ones nothing is left.
            Err(problem) if problem.stage == Stage::Render && problem.rejected => Err(whole),
            other => other,
        }
    }

    /// Whether the programs let pass what is left without the refused objects; if not, why.
    async fn trial(&mut self, refused: &Refused) -> Result<Option<Problem>, Problem> {
        // It was parsed before: as part of the whole, or when it was published.
        let staged = match self.stage(refused, None, Syntax::Off).await {
            // Nothing is left: nothing can be wrong with it.
            Err(problem) if problem.stage == Stage::Render && problem.rejected => return Ok(None),
            staged => staged?,
        };
        let passed = self.run_programs(&staged).await;
        if passed.is_ok() {
            self.discard(&staged).await;
        }
        match passed {
            Ok(()) => Ok(None),
            Err(problem) if problem.rejected => Ok(Some(problem)),
            Err(problem) => Err(problem),
        }
    }

    /// Runs the programs on a candidate that was staged, and removes it if one does not let it pass.
    async fn run_programs(&mut self, candidate: &Candidate) -> Result<(), Problem> {
        let Candidate::Staged { generation, .. } = candidate else { return Ok(()) };
        let validate = self.order.validate.clone();
        if validate.commands.is_empty() {
            return Ok(());
        }
        let directory: PathBuf = self.order.output.candidate(generation);
        let began = Instant::now();
        let passed = validate::run(&validate, &directory).await;
        *self.made.validating.get_or_insert_default() += began.elapsed();
        if passed.is_err() {
            self.discard(candidate).await;
        }
        passed.map_err(Problem::from)
    }

    async fn discard(&self, candidate: &Candidate) {
        if let Candidate::Staged { generation, .. } = candidate {
            let (output, generation) = (self.order.output.clone(), generation.clone());
            // What cannot be removed now goes with the next stage or prune.
            let _ = tokio::task::spawn_blocking(move || output.discard(&generation)).await;
        }
    }

    /// The selected objects that are not as they were last published, where each can be held back alone.
    fn changed(&self) -> impl Iterator<Item = ObjectRef> {
        let order = &self.order;
        let snapshot = &order.inputs.snapshot;
        let selected = snapshot.objects.iter().filter(|taken| taken.selected && !order.inputs.settings.templated);
        selected.map(|taken| &taken.object).filter_map(|object| {
            let same =
                |previous: &Arc<Object>| previous.content() == object.content() && previous.secret == object.secret;
            (!order.published.get(&object.id).is_some_and(same)).then(|| object.id.clone())
        })
    }

    /// The selected objects with a malformed key, where that holds them back alone.
    async fn malformed(&mut self) -> Result<Refused, Problem> {
        if self.order.validate.syntax != Syntax::Strict || self.order.inputs.settings.templated {
            return Ok(Refused::new());
        }
        let order = self.order.clone();
        let began = Instant::now();
        let found = in_pool(Stage::Validate, move || malformed(&order.inputs)).await?;
        *self.made.validating.get_or_insert_default() += began.elapsed();
        Ok(found)
    }

    /// Renders, parses, and writes the candidate into its directory.
    async fn stage(&mut self, refused: &Refused, unless: Option<Digest>, syntax: Syntax) -> Result<Candidate, Problem> {
        let (order, refused) = (self.order.clone(), refused.clone());
        let staged = in_pool(Stage::Render, move || stage(&order, &refused, unless, syntax)).await?;
        self.made.rendering += staged.rendering;
        if let Some(parsing) = staged.parsing {
            *self.made.validating.get_or_insert_default() += parsing;
            self.made.warnings = staged.warnings;
        }
        staged.result
    }
}

async fn in_pool<T: Send + 'static>(stage: Stage, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    let ended = tokio::task::spawn_blocking(work).await;
    // A panic, in a build that survives it.
    ended.map_err(|_| Problem::new(stage, false, &"a fault of Trimtab's own ended it; please report it"))
}

struct Staged {
    result: Result<Candidate, Problem>,
    rendering: Duration,
    parsing: Option<Duration>,
    warnings: Vec<String>,
}

fn stage(order: &Order, refused: &Refused, unless: Option<Digest>, syntax: Syntax) -> Staged {
    let began = Instant::now();
    let mut parsing = None;
    let mut warnings = Vec::new();
    let result = render_and_write(order, refused, unless, |tree| {
        let began = Instant::now();
        let checked = check(tree, syntax, &mut warnings);
        parsing = (syntax != Syntax::Off).then(|| began.elapsed());
        checked
    });
    Staged { result, rendering: began.elapsed().saturating_sub(parsing.unwrap_or_default()), parsing, warnings }
}

fn render_and_write(
    order: &Order,
    refused: &Refused,
    unless: Option<Digest>,
    check: impl FnOnce(&Tree) -> Result<(), Problem>,
) -> Result<Candidate, Problem> {
    let rendered = order.inputs.render(order.digest, &order.published, refused);
    let rendered = rendered.map_err(|rejection| Problem::new(Stage::Render, true, &rejection))?;
    check(&rendered.tree)?;
    let tree = rendered.tree.digest(&order.key);
    let held_back = rendered.held_back;
    if unless == Some(tree) {
        return Ok(Candidate::Same { held_back });
    }
    let generation = Generation::new(order.sequence, order.digest, tree, rendered.tree.content(&order.key));
    let staged = order.output.stage(&generation, &rendered.tree);
    staged.map_err(|error| Problem::new(Stage::Render, error.rejected(), &error))?;
    Ok(Candidate::Staged { generation, files: rendered.tree.len(), held_back })
}

/// Parses all files: the first that is malformed is a problem, or each is a warning.
fn check(tree: &Tree, syntax: Syntax, warnings: &mut Vec<String>) -> Result<(), Problem> {
    if syntax == Syntax::Off {
        return Ok(());
    }
    for (path, file) in tree.iter() {
        let Err(error) = validate::syntax(path, &file.bytes) else { continue };
        let message = format!("{error} (from {})", file.origin);
        match syntax {
            Syntax::Strict => return Err(Problem::new(Stage::Validate, true, &message)),
            Syntax::Warn | Syntax::Off => warnings.push(message),
        }
    }
    Ok(())
}

fn malformed(inputs: &Inputs) -> Refused {
    let mut found = Refused::new();
    for taken in inputs.snapshot.objects.iter().filter(|taken| taken.selected) {
        let object = &taken.object;
        let error = object.data.iter().find_map(|(key, bytes)| {
            // What is no path is held back for that.
            let path = inputs.settings.path.place(&object.id, key)?;
            validate::syntax(&path, bytes).err().map(|error| format!("key {key:?}: {error}"))
        });
        if let Some(error) = error {
            found.insert(object.id.clone(), error);
        }
    }
    found
}
