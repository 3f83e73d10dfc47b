//! The machine on a disk that fails: at each system call, by each error, for once and for long.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use jiff::Timestamp;
use nix::errno::Errno;

use super::faulty::{self, Fault};
use super::*;
use crate::machine::tests::at_once;
use crate::machine::{self, Effect, Event, Machine, Options, Outcome, Phase, Timer, Verdict, Write};
use crate::model::journal::{Debt, Rejection};
use crate::model::made_of::MadeOf;
use crate::model::stage::Stage;

/// How often timers fire before what does not come to rest is left alone.
const ROUNDS: usize = 24;

/// Inputs and the tree they render to, by number.
#[derive(Clone, Debug)]
pub(super) struct Edit {
    pub(super) digest: Digest,
    pub(super) tree: Tree,
    /// The main process will not have it.
    pub(super) refused: bool,
}

/// Names come, stay and go from edit to edit.
pub(super) fn edit(number: u8) -> Edit {
    let text = format!("{number}\n").repeat(40);
    let own = format!("only-{number}/deep/file");
    let tree = tree([("a", text.as_str()), ("d/b", &text), ("d/e/c", &text), (&own, &text)]);
    Edit { digest: Digest::from_bytes([number; 32]), tree, refused: false }
}

pub(super) fn refused(number: u8) -> Edit {
    Edit { refused: true, ..edit(number) }
}

/// What is done, and to whom.
#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) name: &'static str,
    /// Edits before anything fails.
    pub(super) before: Vec<Edit>,
    /// Edits while it may fail; each comes when the one before is done with.
    pub(super) edits: Vec<Edit>,
    /// Whether there is a main process to notify.
    pub(super) reload: bool,
    pub(super) layout: Layout,
    /// A directory on another mount that is published into as well.
    pub(super) folder: Option<PathBuf>,
}

/// The paths that the machine takes.
pub(super) fn scripts() -> BTreeMap<&'static str, Script> {
    let script = |name, before: &[Edit], edits: &[Edit]| {
        (
            name,
            Script {
                name,
                before: before.to_vec(),
                edits: edits.to_vec(),
                reload: true,
                layout: Layout::Atomic,
                folder: None,
            },
        )
    };
    let (name, publish) = script("publish with nobody to notify", &[edit(1)], &[edit(2)]);
    [
        script("first generation", &[], &[edit(1)]),
        script("publish", &[edit(1), edit(2)], &[edit(3)]),
        script("roll back", &[edit(1)], &[refused(2)]),
        script("roll back, then publish", &[edit(1)], &[refused(2), edit(3)]),
        (name, Script { reload: false, ..publish }),
    ]
    .into()
}

impl Script {
    /// The same in the layout of single files, where what was a file becomes a directory, and the other way round.
    pub(super) fn in_files(mut self) -> Self {
        self.layout = Layout::Files;
        for edit in self.before.iter_mut().chain(&mut self.edits) {
            let number = edit.digest.as_bytes()[0];
            let path = if number % 2 == 0 { "kind/changes" } else { "kind" };
            edit.tree.insert(TreePath::parse(path).unwrap(), file(&number.to_string(), false)).unwrap();
            edit.tree.insert(TreePath::parse("same").unwrap(), file("same", false)).unwrap();
        }
        self
    }

    /// The same with files of each kind in a folder.
    fn with_folder(mut self, folder: &Path) -> Self {
        for edit in self.before.iter_mut().chain(&mut self.edits) {
            let number = edit.digest.as_bytes()[0];
            let text = format!("{number}\n").repeat(40);
            let own = format!("only-{number}/deep/file");
            let kind = if number.is_multiple_of(2) { "kind/changes" } else { "kind" };
            for (path, text) in [("x", &text), ("d/y", &text), (&own, &text), (kind, &text), ("same", &"same".into())] {
                let path = TreePath::in_folder(folder.to_str().unwrap(), path).unwrap();
                edit.tree.insert(path, file(text, false)).unwrap();
            }
        }
        self.folder = Some(folder.to_owned());
        self
    }

    pub(super) fn all(&self) -> impl DoubleEndedIterator<Item = &Edit> {
        self.before.iter().chain(&self.edits)
    }

    /// What is to be current when all is done.
    pub(super) fn end(&self) -> &Edit {
        self.all().rfind(|edit| !edit.refused).unwrap()
    }

    fn options(&self) -> Options {
        Options { reload: self.reload, ..at_once() }
    }
}

/// An output, and a main process that reads it.
pub(super) struct Scene {
    pub(super) at: PathBuf,
    pub(super) script: Script,
    /// By the short digest in a generation's name.
    edits: BTreeMap<String, Edit>,
    pub(super) loaded: RefCell<Option<String>>,
    pub(super) newest: Cell<Option<Digest>>,
    /// Which boot this is.
    pub(super) boot: Cell<usize>,
    /// All that was said.
    pub(super) errors: RefCell<Vec<String>>,
}

impl Scene {
    pub(super) fn new(at: &Path, script: &Script) -> Rc<Self> {
        let edits = script.all().map(|edit| (edit.digest.short(), edit.clone())).collect();
        Rc::new(Self {
            at: at.to_owned(),
            script: script.clone(),
            edits,
            loaded: RefCell::default(),
            newest: Cell::default(),
            boot: Cell::default(),
            errors: RefCell::default(),
        })
    }

    pub(super) fn edit_of(&self, directory: &str) -> &Edit {
        &self.edits[directory.rsplit('-').next().unwrap()]
    }

    /// The generation that is current.
    pub(super) fn linked(&self) -> Option<String> {
        if self.script.layout == Layout::Files {
            let text = fs::read_to_string(self.at.join(CURRENT)).ok()?;
            return text.split('"').nth(3).map(str::to_owned);
        }
        fs::read_link(self.at.join("..data")).ok().map(|target| target.into_os_string().into_string().unwrap())
    }

    /// At each moment: what is current is whole, and so is the last good generation.
    pub(super) fn assert_whole(&self) {
        if self.script.layout == Layout::Files {
            self.assert_files_whole();
            return;
        }
        let linked = self.linked();
        assert!(linked.is_some() || self.script.before.is_empty(), "..data is gone");
        if let Some(linked) = &linked {
            assert_eq!(current(&self.at), Some(files(&self.edit_of(linked).tree)), "current: {linked}");
        }
        let journal = fs::read(self.at.join(JOURNAL)).ok().map(|bytes| Journal::parse(&bytes).unwrap());
        // With nobody to notify, what is announced is good, if it comes to be published.
        let good = journal.and_then(|journal| {
            let announced = journal.current.as_ref().filter(|current| Some(&current.directory) != linked.as_ref());
            journal.last_good.filter(|good| Some(good) != announced)
        });
        if let Some(good) = good {
            let mut found = listing(&self.at.join(kept_at(self.script.layout, &good.directory)));
            found.retain(|_, what| what != "a directory");
            let edit = self.edit_of(&good.directory);
            assert_eq!(found, files(&edit.tree), "last good: {}", good.directory);
            assert!(!edit.refused || !self.script.reload, "the last good one is a refused one");
        }
    }

    /// At each moment: each file is one of a generation, and whole; those that all of them have are there; and the last
    /// good generation can be had from its copies and from what is in place.
    fn assert_files_whole(&self) {
        let found = self.in_place();
        let known: Vec<_> = self.edits.values().map(|edit| files(&edit.tree)).collect();
        for (path, bytes) in &found {
            assert!(known.iter().any(|files| files.get(path) == Some(bytes)), "torn, or not ours: {path}");
        }
        assert!(self.linked().is_some() || self.script.before.is_empty(), "what is current is not known");
        if self.script.before.is_empty() {
            return;
        }
        for path in ["a", "d/b", "d/e/c", "same"] {
            assert!(found.contains_key(path), "{path} is missing");
        }
        for (folder, path) in self.script.folder.iter().flat_map(|folder| ["x", "d/y", "same"].map(|it| (folder, it))) {
            assert!(found.contains_key(folder.join(path).to_str().unwrap()), "{path} is missing in the folder");
        }
        let journal = fs::read(self.at.join(JOURNAL)).ok().map(|bytes| Journal::parse(&bytes).unwrap());
        let linked = self.linked();
        let good = journal.and_then(|journal| {
            let announced = journal.current.as_ref().filter(|current| Some(&current.directory) != linked.as_ref());
            journal.last_good.filter(|good| Some(good) != announced)
        });
        if let Some(good) = good {
            let copies = self.at.join(kept_at(self.script.layout, &good.directory)).join("files");
            for (path, bytes) in files(&self.edit_of(&good.directory).tree) {
                let copy = match self.script.folder.as_ref().and_then(|it| Some((it, path.strip_prefix(it.to_str()?)?)))
                {
                    Some((folder, below)) => folder.join(OWN).join(&good.directory).join("files").join(&below[1..]),
                    None => copies.join(&path),
                };
                let copy = fs::read_to_string(copy).ok();
                let had = copy.as_ref().or(found.get(&path));
                assert_eq!(had, Some(&bytes), "{path} of the last good one, {}", good.directory);
            }
        }
    }

    /// The published files, those in the folder by their absolute paths.
    fn in_place(&self) -> BTreeMap<String, String> {
        let mut found = in_place(&self.at);
        if let Some(folder) = self.script.folder.as_ref().filter(|folder| folder.exists()) {
            let name = |path: String| folder.join(path).into_os_string().into_string().unwrap();
            found.extend(in_place(folder).into_iter().map(|(path, text)| (name(path), text)));
        }
        found
    }

    /// The main process is notified: it reads by the names that it knows.
    fn notified(&self) -> Verdict {
        let linked = self.linked().unwrap();
        let edit = self.edit_of(&linked);
        self.assert_reads(&edit.tree);
        if edit.refused {
            let rejection = Rejection { stage: Stage::Reload, reason: "it is bad".into(), at: Timestamp::UNIX_EPOCH };
            return Verdict::Refused(rejection);
        }
        *self.loaded.borrow_mut() = Some(linked);
        Verdict::Took
    }

    /// All that is there for readers is the tree.
    fn assert_reads(&self, tree: &Tree) {
        match self.script.layout {
            Layout::Atomic => assert_reads(&self.at, tree),
            Layout::Files => {
                let mut found = self.in_place();
                // While it is notified, what is stale may still be there.
                found.retain(|path, _| tree.get(path).is_some());
                assert_eq!(found, files(tree));
            }
        }
    }

    /// Everything came out as it must.
    pub(super) fn assert_done(&self, machine: &Machine) {
        let end = self.script.end();
        let linked = self.linked().expect("nothing is published");
        assert_eq!(self.edit_of(&linked).digest, end.digest, "not the newest is current: {machine:?}");
        match self.script.layout {
            Layout::Atomic => assert_eq!(current(&self.at), Some(files(&end.tree))),
            Layout::Files => assert_eq!(self.in_place(), files(&end.tree)),
        }
        self.assert_reads(&end.tree);
        if self.script.reload {
            assert_eq!(self.loaded.borrow().as_ref(), Some(&linked), "the main process was not notified");
        }
        let journal = machine.journal();
        assert_eq!((machine.phase(), &journal.debt), (Phase::Idle, &None));
        assert_eq!(journal.last_good, journal.current);
        let read = Journal::parse(&fs::read(self.at.join(JOURNAL)).unwrap()).unwrap();
        let disk = Disk { link: Some(linked), directories: own_directories(&self.at, self.script.layout), torn: None };
        let (next, _) = machine::recover(self.script.options(), Some(read), &disk);
        assert_eq!(next.journal().debt, None::<Debt>, "the next start will pay again");
        assert_eq!((&next.journal().current, &next.journal().last_good), (&journal.current, &journal.last_good));
        // No junk: our names, the tree's, and no generation but those that the journal keeps.
        let tops = end.tree.iter().filter(|(path, _)| !path.as_str().starts_with('/')).map(|(path, _)| path.top());
        let tops: BTreeSet<_> = tops.map(str::to_owned).collect();
        assert_eq!(top_names(&self.at), tops, "links");
        let kept = [&journal.current, &journal.from, &journal.last_good].into_iter().flatten();
        if let Some(folder) = &self.script.folder {
            let mut own: BTreeSet<_> = kept.clone().map(|it| kept_at(Layout::Files, &it.directory)).collect();
            own.insert(LOCK.to_owned());
            let found = own_names(folder);
            assert!(found.is_subset(&own), "junk: {:?}", found.difference(&own).collect::<Vec<_>>());
            let mut tops: BTreeSet<_> = ["d", "kind", "same", "x"].map(str::to_owned).into();
            tops.insert(format!("only-{}", end.digest.as_bytes()[0]));
            assert_eq!(top_names(folder), tops);
        }
        let mut own: BTreeSet<_> = kept.map(|generation| kept_at(self.script.layout, &generation.directory)).collect();
        own.extend(["..data", CURRENT, JOURNAL, SYNCED_JOURNAL, BOOT, KEY, LOCK].map(str::to_owned));
        if self.boot.get() > 0 {
            // One that was torn before the first was synced.
            own.insert(JOURNAL_BAD.to_owned());
        }
        let found = own_names(&self.at);
        assert!(found.is_subset(&own), "junk: {:?}", found.difference(&own).collect::<Vec<_>>());
    }
}

/// The files that are not of our own names.
pub(super) fn in_place(at: &Path) -> BTreeMap<String, String> {
    let mut found = listing_of(at, |path| !path.starts_with(".."));
    found.retain(|_, what| what != "a directory");
    found
}

/// Trimtab, as the app runs it, without the app.
pub(super) struct Sidecar {
    scene: Rc<Scene>,
    output: Output,
    _lock: Lock,
    key: DigestKey,
    pub(super) machine: Machine,
    timers: BTreeMap<Timer, usize>,
    /// How often something was put in order.
    ordered: usize,
}

impl Sidecar {
    /// `None`: it did not come up, and said why.
    pub(super) fn start(scene: &Rc<Scene>) -> Option<Self> {
        let started = Self::try_start(scene);
        started.map_err(|error| scene.errors.borrow_mut().push(error.to_string())).ok()
    }

    fn try_start(scene: &Rc<Scene>) -> Result<Self, PublishError> {
        let folders = scene.script.folder.iter().cloned().collect();
        let config = Config { layout: scene.script.layout, folders, ..config(&scene.at) };
        let (output, _) = Output::open(&config)?;
        // A child that another test is starting may hold it.
        let deadline = Instant::now() + Duration::from_secs(10);
        let lock = loop {
            if let Some(lock) = output.try_lock()? {
                break lock;
            }
            assert!(Instant::now() < deadline, "the lock is not released");
        };
        let key = output.digest_key()?;
        output.finish()?;
        let (journal, disk) = output.find(Some(&format!("boot {}", scene.boot.get())), &key)?;
        let journal = match journal {
            FoundJournal::Nothing => None,
            FoundJournal::Journal(journal) => Some(journal),
            // None was synced before the power loss.
            FoundJournal::SetAside { .. } if scene.boot.get() > 0 => None,
            FoundJournal::SetAside { reason, .. } => panic!("a journal of our own was set aside: {reason}"),
        };
        let (machine, effects) = machine::recover(scene.script.options(), journal, &disk);
        let (scene, timers) = (scene.clone(), BTreeMap::new());
        let mut sidecar = Self { scene, output, _lock: lock, key, machine, timers, ordered: 0 };
        sidecar.carry_out(effects);
        if let Some(newest) = sidecar.scene.newest.get() {
            sidecar.on(Event::Observed(newest));
        }
        Ok(sidecar)
    }

    pub(super) fn observe(&mut self, edit: &Edit) {
        self.scene.newest.set(Some(edit.digest));
        faulty::note(format!("observed {}", edit.digest.short()));
        self.on(Event::Observed(edit.digest));
    }

    fn on(&mut self, event: Event) {
        let effects = self.machine.on(event);
        self.carry_out(effects);
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        let (mut effects, mut answers) = (VecDeque::from(effects), VecDeque::new());
        while !faulty::is_dead() {
            if let Some(effect) = effects.pop_front() {
                answers.extend(self.effect(effect));
            } else if let Some(answer) = answers.pop_front() {
                effects.extend(self.machine.on(answer));
            } else {
                break;
            }
        }
    }

    fn effect(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Ask(_) => unreachable!("there is no rollout"),
            Effect::Arm(timer, _) => {
                self.timers.entry(timer).or_default();
                None
            }
            Effect::Disarm(timer) => {
                self.timers.remove(&timer);
                None
            }
            Effect::Render { step, sequence, unless } => {
                Some(Event::Rendered { step, outcome: self.render(sequence, unless) })
            }
            Effect::Write { step, writes } => {
                let mut done = 0;
                let (asked, orders) = (writes.len(), writes.iter().any(|write| matches!(write, Write::Unlink(_))));
                for write in writes {
                    if let Err(error) = self.write(&write) {
                        self.scene.errors.borrow_mut().push(error.to_string());
                        break;
                    }
                    done += 1;
                }
                if orders && done == asked {
                    // It runs beside what follows: before it, or after all.
                    self.ordered += 1;
                    if self.ordered.is_multiple_of(2) {
                        // It is done again, and reported then.
                        let _ = self.output.sync();
                    }
                }
                Some(Event::Written { step, done, at: None })
            }
            Effect::Reload { step, .. } => {
                let verdict = self.scene.notified();
                if verdict == Verdict::Took {
                    faulty::note(format!("notified {}", self.scene.linked().unwrap()));
                }
                Some(Event::Reloaded { step, verdict })
            }
            Effect::Verify { step, generation } => {
                let found = self.output.content(&generation, &self.key);
                if let Err(error) = &found {
                    self.scene.errors.borrow_mut().push(error.to_string());
                }
                let sound = found.is_ok_and(|found| found == generation.content);
                Some(Event::Verified { step, sound, baseline: None })
            }
            Effect::Announce(_) => None,
            Effect::Confirm { .. } | Effect::Hurry(_) | Effect::Exit => unreachable!("not asked for: {effect:?}"),
        }
    }

    fn render(&self, sequence: u64, unless: Option<Digest>) -> Outcome {
        let edit = &self.scene.edits[&self.scene.newest.get().unwrap().short()];
        let content = edit.tree.content(&self.key);
        let tree = edit.tree.digest(content, &self.key);
        if unless == Some(tree) {
            return Outcome::Same { partial: false, made_of: MadeOf::default() };
        }
        let candidate = Generation::new(sequence, edit.digest, tree, content);
        match self.output.stage(&candidate, &edit.tree) {
            Ok(()) => Outcome::Staged { candidate, baseline: None },
            Err(error) => {
                assert!(!error.rejected(), "the inputs are not at fault: {error}");
                self.scene.errors.borrow_mut().push(error.to_string());
                Outcome::Failed
            }
        }
    }

    fn write(&self, write: &Write) -> Result<(), PublishError> {
        let written = self.output.apply(write);
        let linked = self.scene.linked();
        match write {
            Write::Journal(journal) if written.is_ok() && journal.debt.is_none() => {
                // With nobody to notify, it becomes so by the rename that follows.
                let good = journal.last_good.as_ref().filter(|good| Some(&good.directory) == linked.as_ref());
                if let Some(good) = good {
                    faulty::note(format!("confirmed {}", good.directory));
                }
            }
            Write::Sync if written.is_ok() && !self.scene.script.reload => {
                faulty::note(format!("confirmed {}", linked.unwrap()));
            }
            _ => {}
        }
        written
    }

    /// Fires timers until there is none; whether it came to that.
    pub(super) fn settle(&mut self, rounds: usize) -> bool {
        for _ in 0..rounds {
            if faulty::is_dead() {
                return false;
            }
            // Each in its turn, or one that is always armed again would keep the others from firing.
            let Some((timer, _)) = self.timers.iter().min_by_key(|(_, fired)| **fired).map(|(t, f)| (*t, *f)) else {
                return true;
            };
            let fired = self.timers.remove(&timer).unwrap_or_default();
            self.on(Event::Fired(timer));
            if let Some(count) = self.timers.get_mut(&timer) {
                *count = fired + 1;
            }
        }
        self.timers.is_empty()
    }
}

/// A scene after the edits that come before.
pub(super) fn prepared(at: &Path, script: &Script) -> (Rc<Scene>, Sidecar) {
    let scene = Scene::new(at, script);
    let mut sidecar = Sidecar::start(&scene).unwrap();
    for edit in &script.before {
        sidecar.observe(edit);
        assert!(sidecar.settle(ROUNDS));
    }
    (scene, sidecar)
}

/// What follows a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// It goes away.
    Ends,
    /// Trimtab is started again before it goes away, and once more afterwards.
    Restart,
}

/// Runs a script with a fault; its calls until the fault ended, and whether each would change something.
fn run(script: &Script, fault: Option<(usize, Fault)>, then: Then) -> Vec<bool> {
    let dir = scratch();
    if let Some(folder) = script.folder.as_ref().filter(|folder| folder.exists()) {
        fs::remove_dir_all(folder).unwrap();
    }
    let (scene, mut sidecar) = prepared(dir.path(), script);
    assert_eq!(*scene.errors.borrow(), Vec::<String>::new());
    let watched = scene.clone();
    faulty::watch(Some(Rc::new(move || watched.assert_whole())));
    faulty::arm(fault);
    for edit in &script.edits {
        sidecar.observe(edit);
        sidecar.settle(ROUNDS);
    }
    scene.assert_whole();
    let died = faulty::is_dead();
    let calls = if died || then == Then::Restart {
        drop(sidecar);
        if !died {
            // Under the fault that lasts; it may refuse to start, and the kubelet tries again.
            drop(Sidecar::start(&scene));
        }
        let calls = faulty::disarm();
        sidecar = Sidecar::start(&scene).expect("nothing is wrong any more");
        if let Some(edit) = script.edits.last() {
            sidecar.observe(edit);
        }
        calls
    } else {
        faulty::disarm()
    };
    for error in scene.errors.borrow().iter() {
        let places = std::iter::once(dir.path()).chain(script.folder.as_deref());
        let mut places = places.map(|place| place.to_str().unwrap());
        assert!(places.any(|place| error.contains(place)), "it names no path: {error}");
    }
    if let Some((_, Fault::Lasts(errno))) = fault {
        let errors = scene.errors.borrow();
        assert!(
            errors.iter().any(|error| error.contains(&std::io::Error::from(errno).to_string())),
            "it does not say why: {errors:?}"
        );
    }
    let quiet = sidecar.settle(4 * ROUNDS);
    faulty::watch(None);
    assert!(quiet, "it does not come to rest: {:?}", sidecar.machine);
    scene.assert_done(&sidecar.machine);
    calls
}

/// The same, and what was tried if it fails.
fn named(script: &Script, fault: (usize, Fault), then: Then) {
    let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(script, Some(fault), then)));
    if let Err(panic) = ran {
        eprintln!("{}: {fault:?}, {then:?}", script.name);
        std::panic::resume_unwind(panic);
    }
}

/// Each call fails; each that changes something does so by each error, for once and for long, with and without a restart
/// (one after the other in the layout of single files, which makes many more calls).
fn fails_everywhere(script: &Script) {
    fails_from(script, 0);
}

/// The same from a call on: those before it are another script's as well.
fn fails_from(script: &Script, first: usize) {
    const ERRORS: [Errno; 5] = [Errno::ENOSPC, Errno::EDQUOT, Errno::EROFS, Errno::EIO, Errno::EACCES];
    let calls = run(script, None, Then::Ends);
    let mut runs = 0;
    for (call, changes) in calls.iter().enumerate().skip(first) {
        let errno = ERRORS[call % ERRORS.len()];
        let then = if call % 2 == 0 { Then::Ends } else { Then::Restart };
        let mut faults = vec![(Fault::Fails(Errno::EIO), then)];
        if script.folder.is_some() {
            faults.clear();
        }
        if *changes && matches!(script.layout, Layout::Files) {
            let lasting =
                [Fault::Fails(errno), Fault::LosesAnswer(Errno::EIO), Fault::Lasts(errno)].map(|fault| (fault, then));
            // What is the same without a folder is not tried by each fault again: it dies everywhere, and fails here and there.
            let some = match script.folder {
                Some(_) if call % 4 == 0 => &lasting[call / 4 % 3..=call / 4 % 3],
                Some(_) => &[],
                None => &lasting[..],
            };
            faults = [some, &[(Fault::Dies, Then::Ends)]].concat();
        } else if *changes {
            faults = ERRORS.iter().copied().map(|errno| (Fault::Fails(errno), Then::Ends)).collect();
            faults.extend([
                (Fault::Fails(errno), Then::Restart),
                (Fault::LosesAnswer(Errno::EIO), Then::Ends),
                (Fault::LosesAnswer(Errno::EIO), Then::Restart),
                (Fault::Lasts(errno), Then::Ends),
                (Fault::Lasts(errno), Then::Restart),
                (Fault::Dies, Then::Ends),
            ]);
        }
        for (fault, then) in faults {
            named(script, (call, fault), then);
            runs += 1;
        }
    }
    let changes = calls.iter().filter(|changes| **changes).count();
    eprintln!("{}: {} calls, {changes} of which change something; {runs} runs with a fault", script.name, calls.len());
}

// A test for each path, so that they run side by side.

#[test]
fn first_generation_comes_out_whatever_fails() {
    fails_everywhere(&scripts()["first generation"]);
}

#[test]
fn publish_comes_out_whatever_fails() {
    fails_everywhere(&scripts()["publish"]);
}

#[test]
fn publish_with_nobody_to_notify_comes_out_whatever_fails() {
    fails_everywhere(&scripts()["publish with nobody to notify"]);
}

#[test]
fn rollback_comes_out_whatever_fails() {
    fails_everywhere(&scripts()["roll back"]);
}

#[test]
fn rollback_and_what_ends_it_come_out_whatever_fails() {
    fails_everywhere(&scripts()["roll back, then publish"]);
}

#[test]
fn first_generation_of_single_files_comes_out_whatever_fails() {
    fails_everywhere(&scripts()["first generation"].clone().in_files());
}

#[test]
fn publish_of_single_files_comes_out_whatever_fails() {
    fails_everywhere(&scripts()["publish"].clone().in_files());
}

#[test]
fn publish_of_single_files_with_nobody_to_notify_comes_out_whatever_fails() {
    fails_everywhere(&scripts()["publish with nobody to notify"].clone().in_files());
}

#[test]
fn rollback_of_single_files_comes_out_whatever_fails() {
    fails_everywhere(&scripts()["roll back"].clone().in_files());
}

#[test]
fn rollback_of_single_files_and_what_ends_it_come_out_whatever_fails() {
    let begins = run(&scripts()["roll back"].clone().in_files(), None, Then::Ends).len();
    fails_from(&scripts()["roll back, then publish"].clone().in_files(), begins);
}

// With a folder on another mount, where no rename leads.

fn comes_out_with_a_folder(name: &str) {
    needs_privileges();
    let dir = scratch();
    apart(|| {
        let at = dir.path().join("mount");
        fs::create_dir(&at).unwrap();
        mount(&["-t", "tmpfs", "tmpfs"], &at);
        fails_everywhere(&scripts()[name].clone().in_files().with_folder(&at.join("folder")));
    });
}

#[test]
fn first_generation_with_a_folder_comes_out_whatever_fails() {
    comes_out_with_a_folder("first generation");
}

#[test]
fn publish_with_a_folder_comes_out_whatever_fails() {
    comes_out_with_a_folder("publish");
}

#[test]
fn rollback_with_a_folder_and_what_ends_it_come_out_whatever_fails() {
    comes_out_with_a_folder("roll back, then publish");
}
