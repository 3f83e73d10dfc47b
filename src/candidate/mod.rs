//! Candidates: from inputs to a directory that may be published.
//!
//! Rendered, parsed, written where no reader sees it, and shown to the `--validate` programs. What does not pass is
//! removed again, and nothing at the output's top level has changed for it.
//!
//! Without templates, a selected object that does not pass holds back itself alone. A malformed one is found by its
//! own keys. Which objects a program refuses is found by [halving](Maker::search): a program speaks of the whole.

pub mod validate;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use self::validate::{Failure, Syntax};
use crate::model::digest::{Digest, DigestKey};
use crate::model::journal::Generation;
use crate::model::object::{Object, ObjectRef};
use crate::model::snapshot::{HeldBack, Versions};
use crate::model::stage::Stage;
use crate::model::tree::Tree;
use crate::os::mask::Said;
use crate::publish::{Output, PublishError};
use crate::render::{Drawn, Inputs, Refused, Rendered};

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
    pub published: Versions,
    /// What was rendered last, to begin with.
    pub drawn: Option<Drawn>,
    /// Whether that is not known, as the published generation was found at start: it is read back from the disk.
    pub unknown: bool,
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
    /// What was published of the selected objects, where it was read back.
    pub found: Option<BTreeMap<ObjectRef, Arc<Object>>>,
    /// What was rendered, for the next order.
    pub drawn: Option<Drawn>,
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
    /// The reason without any content, where it has some.
    pub brief: Option<String>,
    /// What a program said, for the log.
    pub output: Said,
}

impl Problem {
    fn new(stage: Stage, rejected: bool, reason: &impl ToString) -> Self {
        Self { stage, rejected, reason: reason.to_string(), brief: None, output: Said::default() }
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let rejected = matches!(failure, Failure::Rejected { .. });
        let (Failure::Rejected { message: reason, output } | Failure::Failed { message: reason, output }) = failure;
        Self { stage: Stage::Validate, rejected, reason, brief: None, output }
    }
}

/// Makes a candidate. On return it is in its directory and on the disk, or there is nothing of it.
pub async fn make(mut order: Order) -> Made {
    let mut made = Made {
        result: Err(Problem::new(Stage::Render, false, &"it was not begun")),
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

/// Renders and parses as [`make`] does; writes nothing and runs no program. The strings are what `--syntax warn` found.
pub fn rehearse(
    inputs: &Inputs,
    digest: Digest,
    published: &Versions,
    syntax: Syntax,
) -> Result<(Rendered, Vec<String>), Problem> {
    let refused = if syntax == Syntax::Strict { malformed(inputs)? } else { Refused::new() };
    let rendered = render(inputs, digest, published, &refused)?;
    let mut warnings = Vec::new();
    check(&rendered.tree, syntax, &mut warnings)?;
    Ok((rendered, warnings))
}

async fn read_back(order: &Order) -> Result<BTreeMap<ObjectRef, Arc<Object>>, Problem> {
    let (inputs, output) = (order.inputs.clone(), order.output.clone());
    let read = in_pool(Stage::Render, move || {
        let published = output.published(inputs.settings.max_size)?;
        Ok(inputs.found(|path| published.get(path)?.bytes.clone()))
    });
    read.await?.map_err(|error: PublishError| Problem::new(Stage::Render, false, &error))
}

fn render(inputs: &Inputs, digest: Digest, published: &Versions, refused: &Refused) -> Result<Rendered, Problem> {
    inputs.render(digest, published, refused).map_err(|rejection| {
        let brief = Some(rejection.brief());
        Problem { brief, ..Problem::new(Stage::Render, rejection.is_rejection(), &rejection) }
    })
}

struct Maker {
    order: Arc<Order>,
    made: Made,
    /// For the first render.
    drawn: Option<Drawn>,
}

impl Maker {
    async fn make(&mut self) -> Result<Candidate, Problem> {
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
            "it was not tried alone: the search for the objects that --validate refuses ends after {MOST_TRIALS} trials, \
             or {LONGEST_SEARCH} times --validate-timeout; the first, of all together: {}",
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
        match self.stage(&refused, self.order.unless, self.order.validate.syntax, false).await {
            // Without the refused ones nothing is left.
            Err(problem) if problem.stage == Stage::Render && problem.rejected => Err(whole),
            staged => Ok(staged?.0),
        }
    }

    /// Whether the programs let pass what is left without the refused objects; if not, why.
    async fn trial(&mut self, refused: &Refused) -> Result<Option<Problem>, Problem> {
        // It was parsed before: as part of the whole, or when it was published.
        let (staged, _) = match self.stage(refused, None, Syntax::Off, self.looks()).await {
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

    /// What passed is what is published: if a program has written into the candidate, or the layout wants less than the
    /// whole, it is staged afresh.
    async fn put_right(&self, candidate: &Candidate, tree: Tree) -> Result<(), Problem> {
        let Candidate::Staged { generation, .. } = candidate else { return Ok(()) };
        if self.order.validate.commands.is_empty() {
            return Ok(());
        }
        let (output, generation) = (self.order.output.clone(), generation.clone());
        let put_right = in_pool(Stage::Validate, move || {
            if output.is_intact(&generation, &tree)? { Ok(()) } else { output.stage(&generation, &tree) }
        });
        put_right.await?.map_err(|error: PublishError| Problem::new(Stage::Validate, error.rejected(), &error))
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
        let published = self.order.published.by_id();
        self.order.inputs.independent().filter_map(move |object| {
            let same =
                |previous: &&Arc<Object>| previous.content() == object.content() && previous.secret == object.secret;
            (!published.get(&object.id).is_some_and(same)).then(|| object.id.clone())
        })
    }

    /// The selected objects with a malformed key, where that holds them back alone.
    async fn malformed(&mut self) -> Result<Refused, Problem> {
        if self.order.validate.syntax != Syntax::Strict || self.order.inputs.independent().next().is_none() {
            return Ok(Refused::new());
        }
        let order = self.order.clone();
        let began = Instant::now();
        let found = in_pool(Stage::Validate, move || malformed(&order.inputs)).await?;
        *self.made.validating.get_or_insert_default() += began.elapsed();
        found
    }

    /// Whether programs look at candidates.
    fn looks(&self) -> bool {
        !self.order.validate.commands.is_empty()
    }

    /// Renders, parses, and writes the candidate into its directory; `whole`, if programs are to look at it.
    async fn stage(
        &mut self,
        refused: &Refused,
        unless: Option<Digest>,
        syntax: Syntax,
        whole: bool,
    ) -> Result<(Candidate, Tree), Problem> {
        let (order, refused, drawn) = (self.order.clone(), refused.clone(), self.drawn.take());
        let staged = in_pool(Stage::Render, move || stage(&order, &refused, drawn, unless, syntax, whole)).await?;
        self.made.rendering += staged.rendering;
        if let Some(parsing) = staged.parsing {
            *self.made.validating.get_or_insert_default() += parsing;
            self.made.warnings = staged.warnings;
        }
        self.made.drawn = staged.drawn;
        staged.result
    }
}

async fn in_pool<T: Send + 'static>(stage: Stage, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    let ended = tokio::task::spawn_blocking(work).await;
    // A panic, in a build that survives it.
    ended.map_err(|_| Problem::new(stage, false, &"a fault of Trimtab's own ended it; please report it"))
}

struct Staged {
    result: Result<(Candidate, Tree), Problem>,
    rendering: Duration,
    parsing: Option<Duration>,
    warnings: Vec<String>,
    drawn: Option<Drawn>,
}

fn stage(
    order: &Order,
    refused: &Refused,
    drawn: Option<Drawn>,
    unless: Option<Digest>,
    syntax: Syntax,
    whole: bool,
) -> Staged {
    let began = Instant::now();
    let mut parsing = None;
    let mut warnings = Vec::new();
    let redrawn = drawn.filter(|_| refused.is_empty()).and_then(|drawn| order.inputs.redraw(drawn));
    let rendered = match redrawn {
        Some(rendered) => Ok(rendered),
        None => render(&order.inputs, order.digest, &order.published, refused),
    };
    let whole_tree = rendered.as_ref().ok().filter(|rendered| rendered.held_back.is_empty());
    let drawn = whole_tree.and_then(|rendered| order.inputs.drawn(&rendered.tree));
    let result = write(order, rendered, unless, whole, |tree| {
        let began = Instant::now();
        let checked = check(tree, syntax, &mut warnings);
        parsing = (syntax != Syntax::Off).then(|| began.elapsed());
        checked
    });
    Staged { result, rendering: began.elapsed().saturating_sub(parsing.unwrap_or_default()), parsing, warnings, drawn }
}

fn write(
    order: &Order,
    rendered: Result<Rendered, Problem>,
    unless: Option<Digest>,
    whole: bool,
    check: impl FnOnce(&Tree) -> Result<(), Problem>,
) -> Result<(Candidate, Tree), Problem> {
    let rendered = rendered?;
    check(&rendered.tree)?;
    let content = rendered.tree.content(&order.key);
    let tree = rendered.tree.digest(content, &order.key);
    let held_back = rendered.held_back;
    if unless == Some(tree) {
        return Ok((Candidate::Same { held_back }, rendered.tree));
    }
    let generation = Generation::new(order.sequence, order.digest, tree, content);
    let output = &order.output;
    let staged =
        if whole { output.stage_whole(&generation, &rendered.tree) } else { output.stage(&generation, &rendered.tree) };
    // A tree that has no place is the inputs' fault; what cannot be written is the volume's.
    let stage = |error: &PublishError| if error.rejected() { Stage::Render } else { Stage::Publish };
    staged.map_err(|error| Problem::new(stage(&error), error.rejected(), &error))?;
    Ok((Candidate::Staged { generation, files: rendered.tree.len(), held_back }, rendered.tree))
}

/// Parses all files: the first that is malformed is a problem, or each is a warning.
fn check(tree: &Tree, syntax: Syntax, warnings: &mut Vec<String>) -> Result<(), Problem> {
    if syntax == Syntax::Off {
        return Ok(());
    }
    for chunk in tree.chunks().iter().filter(|chunk| !chunk.is_well_formed()) {
        let mut well_formed = true;
        for (path, file) in chunk.iter() {
            let checked =
                validate::check(path, &file.bytes).map_err(|error| Problem::new(Stage::Validate, false, &error))?;
            let Err(error) = checked else { continue };
            let message = format!("{error} (from {})", file.origin);
            match syntax {
                Syntax::Strict => return Err(Problem::new(Stage::Validate, true, &message)),
                Syntax::Warn | Syntax::Off => warnings.push(message),
            }
            well_formed = false;
        }
        if well_formed {
            chunk.note_well_formed();
        }
    }
    Ok(())
}

/// The independent objects with a malformed key, and where.
fn malformed(inputs: &Inputs) -> Result<Refused, Problem> {
    let mut found = Refused::new();
    for object in inputs.independent() {
        for (key, bytes) in &object.data {
            // What is no path is held back for that.
            let Some(path) = inputs.settings.path.place(&object.id, key) else { continue };
            let checked =
                validate::check(&path, bytes).map_err(|error| Problem::new(Stage::Validate, false, &error))?;
            if let Err(error) = checked {
                found.insert(object.id.clone(), format!("key {key:?}: {error}"));
                break;
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::model::content::Content;
    use crate::model::object::Kind;
    use crate::model::snapshot::{Snapshot, Taken};
    use crate::model::tree::{File, TreePath};
    use crate::publish;
    use crate::render::{Delimiters, Pod, Settings};

    fn object(name: &str, key: &str, value: &str) -> Arc<Object> {
        let id = ObjectRef { kind: Kind::ConfigMap, namespace: "ns".into(), name: name.into() };
        let data = [(key.to_owned(), Bytes::copy_from_slice(value.as_bytes()).into())].into();
        Arc::new(Object::new(id, String::new(), 0, false, data))
    }

    /// An output, and what goes there.
    struct Case {
        dir: tempfile::TempDir,
        objects: Vec<(Arc<Object>, bool)>,
        published: BTreeMap<ObjectRef, Arc<Object>>,
        validate: validate::Config,
    }

    impl Case {
        /// Selected objects, a key of its own each.
        fn selected(values: impl IntoIterator<Item = (String, String)>) -> Self {
            let objects =
                values.into_iter().map(|(name, value)| (object(&name, &format!("{name}.json"), &value), true));
            let validate =
                validate::Config { syntax: Syntax::Off, commands: Vec::new(), timeout: Duration::from_secs(20) };
            Self { dir: tempfile::tempdir().unwrap(), objects: objects.collect(), published: BTreeMap::new(), validate }
        }

        fn few(values: &[(&str, &str)]) -> Self {
            Self::selected(values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
        }

        /// A program that refuses what holds one of these words, says so, and notes each run.
        fn refusing(mut self, pattern: &str) -> Self {
            let log = self.dir.path().join("runs");
            let script = format!("echo >>{}; if grep -rE \"{pattern}\" $0; then exit 3; fi", log.display());
            self.validate.commands = vec![format!("sh -c '{script}' {{dir}}").parse().unwrap()];
            self
        }

        fn published(mut self, name: &str, value: &str) -> Self {
            let object = object(name, &format!("{name}.json"), value);
            self.published.insert(object.id.clone(), object);
            self
        }

        fn runs(&self) -> usize {
            fs::read_to_string(self.dir.path().join("runs")).unwrap_or_default().lines().count()
        }

        async fn make(&self) -> (Made, Arc<Output>) {
            let config = publish::Config {
                output: self.dir.path().join("conf"),
                layout: publish::Layout::Atomic,
                file_mode: 0o644,
                secret_mode: 0o640,
            };
            let (output, _) = Output::open(&config).unwrap();
            let output = Arc::new(output);
            let objects = self.objects.iter();
            let objects = objects.map(|(object, selected)| Taken { object: object.clone(), selected: *selected });
            let settings = Settings {
                templated: false,
                path: "{key}".parse().unwrap(),
                suffix: None,
                delimiters: Delimiters::default(),
                env: BTreeMap::new(),
                pod: Pod::default(),
                max_size: 1 << 20,
                allow_empty: false,
                flags: String::new(),
            };
            let snapshot = Snapshot { objects: objects.collect(), ..Snapshot::default() };
            let order = Order {
                inputs: Inputs { snapshot, settings: Arc::new(settings) },
                digest: Digest::from_bytes([7; 32]),
                published: self.published.clone().into(),
                drawn: None,
                unknown: false,
                sequence: 1,
                unless: None,
                output: output.clone(),
                key: DigestKey::new([1; 32]),
                validate: Arc::new(self.validate.clone()),
            };
            (make(order).await, output)
        }

        /// File to content of the candidate, and who is held back and why.
        async fn staged(&self) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
            let (made, output) = self.make().await;
            let Ok(Candidate::Staged { generation, held_back, .. }) = made.result else { panic!("{:?}", made.result) };
            let dir = output.candidate(&generation);
            let read = |path: &Path| fs::read_to_string(path).unwrap();
            let files = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap());
            let files = files.map(|entry| (entry.file_name().into_string().unwrap(), read(&entry.path()))).collect();
            (files, held_back.into_iter().map(|held| (held.source.name.to_string(), held.reason)).collect())
        }

        async fn problem(&self) -> Problem {
            let (made, _) = self.make().await;
            let left = fs::read_dir(self.dir.path().join("conf")).unwrap();
            assert_eq!(left.count(), 0, "it leaves something in the output");
            made.result.unwrap_err()
        }
    }

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_is_malformed_is_found_each_time() {
        let mut tree = Tree::default();
        let (a, b) = (TreePath::parse("a.json").unwrap(), TreePath::parse("b.json").unwrap());
        let content = |text: &'static str| Content::from(Bytes::from_static(text.as_bytes()));
        for path in [&a, &b] {
            let file = File { bytes: content("{}"), secret: false, origin: "a test".into() };
            tree.insert(path.clone(), file).unwrap();
        }
        let warned = |tree: &Tree| {
            let mut warnings = Vec::new();
            check(tree, Syntax::Warn, &mut warnings).unwrap();
            warnings.len()
        };
        for (path, text, malformed) in [(&a, "{}", 0), (&a, "{", 1), (&b, "[", 2), (&a, "[]", 1), (&b, "[]", 0)] {
            tree.replace(path, content(text));
            assert_eq!((warned(&tree), warned(&tree)), (malformed, malformed));
            assert_eq!(check(&tree, Syntax::Strict, &mut Vec::new()).is_err(), malformed > 0);
        }
    }

    #[tokio::test]
    async fn a_malformed_selected_object_holds_back_itself_alone() {
        let mut case = Case::few(&[("a", "{}"), ("b", "{"), ("c", "["), ("d", "[]")]).published("b", "[1]");
        case.validate.syntax = Syntax::Strict;
        let (files, held) = case.staged().await;
        assert_eq!(files, map(&[("a.json", "{}"), ("b.json", "[1]"), ("d.json", "[]")]));
        assert_eq!(held.keys().collect::<Vec<_>>(), ["b", "c"]);
        assert!(held["b"].contains("\"b.json\"") && held["b"].contains("line 1, column 1"), "{}", held["b"]);
        assert!(held["b"].ends_with("its last published version stays"), "{}", held["b"]);
        case.validate.syntax = Syntax::Warn;
        let (made, _) = case.make().await;
        assert!(made.result.is_ok());
        assert_eq!(made.warnings.len(), 2);
        assert!(made.warnings[0].contains("key \"b.json\" of configmap/ns/b"), "{:?}", made.warnings);
    }

    #[tokio::test]
    async fn a_malformed_object_that_is_not_selected_rejects_the_whole() {
        let mut case = Case::few(&[("a", "{}"), ("b", "{")]);
        case.objects[1].1 = false;
        case.validate.syntax = Syntax::Strict;
        let problem = case.problem().await;
        assert!(problem.rejected && problem.stage == Stage::Validate, "{problem:?}");
        assert!(problem.reason.contains("b.json, line 1"), "{problem:?}");
    }

    #[tokio::test]
    async fn an_object_that_a_program_refuses_holds_back_itself_alone() {
        let case = Case::few(&[("a", "new"), ("b", "bad"), ("c", "new"), ("d", "bad"), ("e", "old")]);
        let case = case.published("b", "old").published("e", "old").refusing("bad");
        let (files, held) = case.staged().await;
        assert_eq!(files, map(&[("a.json", "new"), ("b.json", "old"), ("c.json", "new"), ("e.json", "old")]));
        assert_eq!(held.keys().collect::<Vec<_>>(), ["b", "d"]);
        assert!(held["d"].contains("--validate sh") && held["d"].contains("exit code 3"), "{}", held["d"]);
        assert!(held["b"].ends_with("its last published version stays"), "{}", held["b"]);
        let (made, _) = case.make().await;
        assert_eq!(made.said.len(), 2);
        assert!(made.validating.is_some());
    }

    #[tokio::test]
    async fn objects_that_fail_together_alone_are_held_back_until_the_rest_passes() {
        // Each is fine alone: two of them are refused.
        let mut case = Case::few(&[("a", "x"), ("b", "x"), ("c", "y"), ("d", "x")]);
        case.validate.commands = vec!["sh -c 'test $(grep -rl x $0 | wc -l) -lt 2' {dir}".parse().unwrap()];
        let (files, held) = case.staged().await;
        assert_eq!(files, map(&[("a.json", "x"), ("c.json", "y")]));
        assert_eq!(held.keys().collect::<Vec<_>>(), ["b", "d"]);
    }

    #[tokio::test]
    async fn what_fails_without_any_change_rejects_the_whole() {
        let case = Case::few(&[("a", "new"), ("b", "bad")]).published("b", "bad").refusing("bad");
        let problem = case.problem().await;
        assert!(problem.rejected && problem.stage == Stage::Validate && !problem.output.is_empty(), "{problem:?}");
        assert_eq!(case.runs(), 2);
        let case = Case::few(&[("a", "bad"), ("b", "bad")]).refusing("bad");
        assert_eq!(case.problem().await.stage, Stage::Validate);
    }

    #[tokio::test]
    async fn a_program_that_cannot_run_is_nobodys_fault() {
        for command in ["/no/such/program {dir}", "sh -c 'kill -KILL $$' {dir}"] {
            let mut case = Case::few(&[("a", "new"), ("b", "new")]);
            case.validate.commands = vec![command.parse().unwrap()];
            let problem = case.problem().await;
            assert!(!problem.rejected && problem.stage == Stage::Validate, "{problem:?}");
        }
    }

    #[tokio::test]
    async fn what_a_program_writes_into_the_candidate_is_not_published() {
        for script in ["mkdir -p $0/tmp/x", "echo >>$0/a.json", "rm $0/a.json", "chmod 777 $0/a.json", "ln -s x $0/l"] {
            let mut case = Case::few(&[("a", "new")]);
            case.validate.commands = vec![format!("sh -c '{script}' {{dir}}").parse().unwrap()];
            let (made, output) = case.make().await;
            let Ok(Candidate::Staged { generation, .. }) = made.result else { panic!("{:?}", made.result) };
            let dir = output.candidate(&generation);
            assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "{script}");
            assert_eq!(fs::read_to_string(dir.join("a.json")).unwrap(), "new", "{script}");
            assert_eq!(fs::metadata(dir.join("a.json")).unwrap().permissions().mode() & 0o777, 0o644, "{script}");
        }
    }

    #[tokio::test]
    async fn a_search_is_bounded_and_says_so() {
        let values = (0..200).map(|i| (format!("o{i:03}"), if i % 4 == 0 { "bad" } else { "good" }.to_owned()));
        let case = Case::selected(values).published("o001", "good").refusing("bad");
        let (files, held) = case.staged().await;
        // The whole once, and then the search.
        assert_eq!(case.runs(), 1 + MOST_TRIALS);
        assert_eq!(files.len() + held.len(), 200);
        assert!(!files.is_empty() && files.values().all(|value| value == "good"));
        assert!(held.values().any(|reason| reason.contains("not tried alone") && reason.contains("64 trials")));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(12) })]

        #[test]
        fn exactly_the_bad_ones_are_found(bad in proptest::collection::btree_set(0..40usize, 1..4)) {
            let values = (0..40).map(|i| (format!("o{i:02}"), if bad.contains(&i) { "bad" } else { "good" }.to_owned()));
            let case = Case::selected(values).refusing("bad");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let (files, held) = runtime.block_on(case.staged());
            let names: Vec<_> = bad.iter().map(|i| format!("o{i:02}")).collect();
            prop_assert_eq!(held.into_keys().collect::<Vec<_>>(), names);
            prop_assert_eq!(files.len(), 40 - bad.len());
            // The whole, what is published, and two for each of the six levels above a bad one.
            prop_assert!(case.runs() <= 2 + 12 * bad.len(), "{} runs", case.runs());
        }
    }
}
