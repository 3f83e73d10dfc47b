use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use bytes::Bytes;
use proptest::prelude::*;

use super::stage::check;
use super::syntax::Syntax;
use super::*;
use crate::model::content::Content;
use crate::model::object::Kind;
use crate::model::snapshot::{Snapshot, Taken};
use crate::model::tree::{File, Tree, TreePath};
use crate::publish;
use crate::render::Settings;

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
    validate: Config,
}

impl Case {
    /// Selected objects, a key of its own each.
    fn selected(values: impl IntoIterator<Item = (String, String)>) -> Self {
        let objects = values.into_iter().map(|(name, value)| (object(&name, &format!("{name}.json"), &value), true));
        let validate =
            Config { syntax: Syntax::Off, candidates: true, commands: Vec::new(), timeout: Duration::from_secs(20) };
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
            state_dir: None,
            folders: Vec::new(),
            output: self.dir.path().join("conf"),
            layout: publish::Layout::Atomic,
            file_mode: 0o644,
            secret_mode: 0o640,
        };
        let (output, _) = Output::open(&config).unwrap();
        let output = Arc::new(output);
        let objects = self.objects.iter();
        let objects = objects.map(|(object, selected)| Taken { object: object.clone(), selected: *selected });
        let settings = Settings::plain(1 << 20, false);
        let snapshot = Snapshot { objects: objects.collect(), ..Snapshot::default() };
        let order = Order {
            inputs: Inputs { snapshot, settings: Arc::new(settings) },
            digest: Digest::from_bytes([7; 32]),
            published: self.published.clone().into(),
            drawn: None,
            unknown: false,
            sequence: 1,
            unless: None,
            bare: true,
            output: Some(output.clone()),
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

    async fn problem(&self) -> CandidateError {
        let (made, _) = self.make().await;
        let left = fs::read_dir(self.dir.path().join("conf")).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["..trimtab"], "it leaves something in the output");
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
    assert!(!problem.may_pass, "what is malformed stays so");
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
    assert!(problem.may_pass, "a program may let the same pass later");
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
    assert_eq!(case.runs(), 1 + bisect::MOST_TRIALS);
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
