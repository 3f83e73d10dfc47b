//! Power loss: a file system that forgets what was not synced, made of what was written down.
//!
//! In the kubelet's layout what is current may be torn until Trimtab is there again, which is before a native sidecar's
//! main process starts; what was called good is not lost. In the layout of single files nothing is ever torn.
//!
//! A file's content is sure once it was synced, and otherwise whole, cut short, empty or zeros. A name in a directory is
//! sure once that directory was synced, and otherwise each change of it has come to the disk or has not: all up to one,
//! as on a file system with a journal, or any. A rename is one change.

use super::disk::{Edit, Scene, Script, Sidecar, scripts};
use super::faulty::{self, Change, Node};
use super::*;

/// How many states of the disk are tried for each moment of a power loss.
const STATES: u64 = 7;

/// Marsaglia's xorshift64: the same states in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % end.max(1)
    }
}

/// A change of the names in a directory.
#[derive(Clone, Debug)]
enum NameChange {
    Set(String, usize),
    Unset(String),
    Moved(String, String, usize),
    /// From this directory to another one.
    MovedOut(String, usize),
}

fn apply(entries: &mut BTreeMap<String, usize>, change: &NameChange) {
    match change {
        NameChange::Set(name, node) => {
            entries.insert(name.clone(), *node);
        }
        NameChange::Unset(name) => {
            entries.remove(name);
        }
        NameChange::Moved(from, to, node) => {
            if entries.get(from) == Some(node) {
                entries.remove(from);
            }
            entries.insert(to.clone(), *node);
        }
        NameChange::MovedOut(from, node) => {
            if entries.get(from) == Some(node) {
                entries.remove(from);
            }
        }
    }
}

/// A file, directory or link.
#[derive(Clone, Debug)]
struct Inode {
    node: Node,
    /// As programs see it.
    bytes: Vec<u8>,
    names: BTreeMap<String, usize>,
    /// As the disk has it for sure.
    synced: Option<Vec<u8>>,
    synced_names: BTreeMap<String, usize>,
    /// What came since then, and when.
    pending: Vec<(usize, NameChange)>,
}

/// The output directory in memory, as programs see it and as the disk has it.
#[derive(Clone, Debug)]
struct Model {
    inodes: Vec<Inode>,
    /// By the number that they have at present.
    numbers: BTreeMap<u64, usize>,
    /// The directories of renames from one to another, by their moment.
    renames: BTreeMap<usize, [usize; 2]>,
    clock: usize,
}

impl Model {
    /// All that is in the directory, on the disk.
    fn of(root: &Path) -> Self {
        let mut model = Self { inodes: Vec::new(), numbers: BTreeMap::new(), renames: BTreeMap::new(), clock: 0 };
        model.scan(root);
        model
    }

    fn scan(&mut self, path: &Path) -> usize {
        let found = fs::symlink_metadata(path).unwrap();
        let node = if found.is_dir() {
            Node::Directory
        } else if found.is_symlink() {
            Node::Link(fs::read_link(path).unwrap().to_string_lossy().into_owned())
        } else {
            Node::File
        };
        let is_directory = node == Node::Directory;
        let bytes = if node == Node::File { fs::read(path).unwrap() } else { Vec::new() };
        let id = self.add(found.ino(), node);
        self.inodes[id].synced = Some(bytes.clone());
        self.inodes[id].bytes = bytes;
        for entry in is_directory.then(|| fs::read_dir(path).unwrap()).into_iter().flatten() {
            let entry = entry.unwrap();
            let below = self.scan(&entry.path());
            self.inodes[id].names.insert(entry.file_name().into_string().unwrap(), below);
        }
        self.inodes[id].synced_names = self.inodes[id].names.clone();
        id
    }

    fn add(&mut self, number: u64, node: Node) -> usize {
        let id = self.inodes.len();
        let names = BTreeMap::new();
        let (synced, synced_names) = (None, names.clone());
        self.inodes.push(Inode { node, bytes: Vec::new(), names, synced, synced_names, pending: Vec::new() });
        self.numbers.insert(number, id);
        id
    }

    fn enter(&mut self, at: u64, entry: NameChange) {
        let clock = self.clock;
        let directory = &mut self.inodes[self.numbers[&at]];
        apply(&mut directory.names, &entry);
        directory.pending.push((clock, entry));
    }

    fn take(&mut self, change: &Change) {
        self.clock += 1;
        match change {
            Change::Made { at, name, inode, node } => {
                let id = self.add(*inode, node.clone());
                self.enter(*at, NameChange::Set(name.clone(), id));
            }
            Change::Wrote { inode, bytes } => self.inodes[self.numbers[inode]].bytes.extend(bytes),
            Change::Renamed { at, from, into, to } => {
                let id = self.inodes[self.numbers[at]].names[from];
                if at == into {
                    self.enter(*at, NameChange::Moved(from.clone(), to.clone(), id));
                } else {
                    self.enter(*into, NameChange::Set(to.clone(), id));
                    self.enter(*at, NameChange::MovedOut(from.clone(), id));
                    self.renames.insert(self.clock, [self.numbers[at], self.numbers[into]]);
                }
            }
            Change::Removed { at, name } => self.enter(*at, NameChange::Unset(name.clone())),
            Change::Synced { inode } => {
                let id = self.numbers[inode];
                let inode = &mut self.inodes[id];
                inode.synced = Some(inode.bytes.clone());
                self.sync_names(id, usize::MAX);
            }
            Change::Noted(_) => {}
        }
    }

    /// Makes the names in a directory sure as they were at a moment. A rename is one change, and takes the other
    /// directory along up to there, as a journal does.
    fn sync_names(&mut self, id: usize, until: usize) {
        let inode = &mut self.inodes[id];
        let (sure, pending): (Vec<_>, Vec<_>) = inode.pending.drain(..).partition(|(clock, _)| *clock <= until);
        inode.pending = pending;
        for (_, entry) in &sure {
            apply(&mut inode.synced_names, entry);
        }
        for (clock, _) in sure {
            for other in self.renames.get(&clock).into_iter().flatten().copied().collect::<Vec<_>>() {
                if self.inodes[other].pending.iter().any(|(at, _)| *at <= clock) {
                    self.sync_names(other, clock);
                }
            }
        }
    }

    /// Makes what the disk may hold after a power loss.
    fn survive(&self, into: &Path, state: u64, random: &mut Random) {
        let until = random.below(self.clock + 1);
        // By the moment of the change: what a rename does to two directories has come to the disk, or has not.
        let any: Vec<_> = (0..=self.clock).map(|_| random.below(2) == 0).collect();
        self.write_out(0, into, state, until, &any, random);
    }

    fn write_out(&self, id: usize, path: &Path, state: u64, until: usize, any: &[bool], random: &mut Random) {
        let inode = &self.inodes[id];
        match &inode.node {
            Node::Link(target) => symlink(target, path).unwrap(),
            Node::File => {
                let whole = &inode.bytes;
                let bytes = match &inode.synced {
                    Some(synced) if synced == whole => whole.clone(),
                    _ if state == 0 => whole.clone(),
                    _ if state <= 2 => Vec::new(),
                    _ => match random.below(4) {
                        0 => whole.clone(),
                        1 => Vec::new(),
                        2 => vec![0; whole.len()],
                        _ => whole[..random.below(whole.len())].to_vec(),
                    },
                };
                fs::write(path, bytes).unwrap();
            }
            Node::Directory => {
                if !path.exists() {
                    fs::create_dir(path).unwrap();
                }
                let mut names = inode.synced_names.clone();
                for (clock, entry) in &inode.pending {
                    let kept = match state {
                        // Everything; nothing; names without content; a journal's prefix; any.
                        0 | 2 => true,
                        1 => false,
                        3 => *clock <= until,
                        _ => any[*clock],
                    };
                    if kept {
                        apply(&mut names, entry);
                    }
                }
                for (name, id) in names {
                    self.write_out(id, &path.join(name), state, until, any, random);
                }
            }
        }
    }
}

/// What was known at a moment.
#[derive(Clone, Debug, Default)]
struct Known {
    observed: Vec<Edit>,
    confirmed: Option<String>,
}

impl Known {
    fn take(&mut self, script: &Script, change: &Change) {
        let Change::Noted(note) = change else { return };
        match note.split_once(' ').unwrap() {
            ("observed", digest) => {
                self.observed.extend(script.all().find(|edit| edit.digest.short() == digest).cloned());
            }
            ("notified", _) => {}
            ("confirmed", directory) => self.confirmed = Some(directory.to_owned()),
            other => unreachable!("{other:?}"),
        }
    }
}

/// Starts Trimtab on what a power loss left, and checks that all comes out right. What it did meanwhile.
fn comes_back(script: &Script, known: &Known, at: &Path, boot: usize, random: &mut Random) -> (Model, Vec<Change>) {
    let before = known.confirmed.iter().map(|directory| {
        let short = directory.rsplit('-').next().unwrap();
        script.all().find(|edit| edit.digest.short() == short).unwrap().clone()
    });
    let now = Script { before: before.collect(), edits: known.observed.clone(), ..script.clone() };
    let scene = Scene::new(at, &now);
    scene.boot.set(boot);
    if script.layout == Layout::Files {
        // A swap that was cut off is ended first.
        open_as(at, Layout::Files).finish().unwrap();
        scene.assert_whole();
    }
    let reads = |linked: Option<String>| linked.filter(|linked| !scene.edit_of(linked).refused);
    // The main process has died as well. It starts before Trimtab, and reads what it finds, or after it.
    let first = random.below(2) == 0;
    *scene.loaded.borrow_mut() = if first { reads(scene.linked()) } else { None };
    let model = Model::of(at);
    faulty::record();
    let sidecar = Sidecar::start(&scene).expect("it starts");
    let linked = sidecar.machine.journal().current.as_ref().map(|current| current.directory.clone());
    if linked.is_some() {
        assert_eq!(linked, scene.linked());
        scene.assert_whole();
    }
    let sequence = |directory: &Option<String>| directory.as_deref().and_then(sequence_of);
    assert!(sequence(&linked) >= sequence(&known.confirmed), "an older one than {:?}: {linked:?}", known.confirmed);
    assert!(linked.is_none() || fs::read(at.join(KEY)).unwrap().len() == 32, "the key is gone");
    if random.below(4) == 0 || known.observed.is_empty() {
        // Nothing is seen before the next power loss.
        return (model, faulty::recorded());
    }
    drop(sidecar);
    let loaded = if first { scene.loaded.take() } else { reads(linked.clone()) };
    // An edit may have been taken back meanwhile, so that what is linked is the newest again.
    let found = linked.as_ref().map(|linked| scene.edit_of(linked).clone()).filter(|edit| !edit.refused);
    let taken_back = found.filter(|_| random.below(3) == 0);
    let now = Script { edits: known.observed.iter().cloned().chain(taken_back).collect(), ..now };
    let scene = Scene::new(at, &now);
    scene.boot.set(boot);
    scene.newest.set(now.edits.last().map(|edit| edit.digest));
    *scene.loaded.borrow_mut() = loaded;
    let mut sidecar = Sidecar::start(&scene).expect("it starts");
    if linked.is_some() || script.layout == Layout::Files {
        let watched = scene.clone();
        faulty::watch(Some(std::rc::Rc::new(move || watched.assert_whole())));
    }
    assert!(sidecar.settle(100), "it does not come to rest: {:?}", sidecar.machine);
    faulty::watch(None);
    scene.assert_done(&sidecar.machine);
    (model, faulty::recorded())
}

/// Cuts the power after each change, and once more while it comes back.
fn survives(script: &Script) {
    let dir = scratch();
    let scene = Scene::new(dir.path(), script);
    let mut model = Model::of(dir.path());
    faulty::record();
    let mut sidecar = Sidecar::start(&scene).unwrap();
    for edit in script.all() {
        sidecar.observe(edit);
        assert!(sidecar.settle(100));
    }
    let log = faulty::recorded();
    let (mut known, mut states) = (Known::default(), 0);
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    for (moment, change) in log.iter().enumerate() {
        model.take(change);
        known.take(script, change);
        for state in 0..STATES {
            let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let left = scratch();
                model.survive(left.path(), state, &mut random);
                let (mut model, log) = comes_back(script, &known, left.path(), 1, &mut random);
                states += 1;
                if state % 2 != 0 || log.is_empty() {
                    return;
                }
                let mut known = known.clone();
                for change in log.iter().take(random.below(log.len()) + 1) {
                    model.take(change);
                    known.take(script, change);
                }
                let left = scratch();
                model.survive(left.path(), 3 + state % 4, &mut random);
                comes_back(script, &known, left.path(), 2, &mut random);
                states += 1;
            }));
            if let Err(panic) = tried {
                eprintln!("{}: moment {moment}, state {state}, after {:#?}", script.name, &log[..=moment]);
                std::panic::resume_unwind(panic);
            }
        }
    }
    eprintln!("{}: {} moments, {states} states of the disk", script.name, log.len());
}

#[test]
fn publish_survives_a_power_loss_at_any_moment() {
    survives(&scripts()["publish"]);
}

#[test]
fn publish_with_nobody_to_notify_survives_a_power_loss_at_any_moment() {
    survives(&scripts()["publish with nobody to notify"]);
}

#[test]
fn rollback_and_what_ends_it_survive_a_power_loss_at_any_moment() {
    survives(&scripts()["roll back, then publish"]);
}

#[test]
fn publish_of_single_files_survives_a_power_loss_at_any_moment() {
    survives(&scripts()["publish"].clone().in_files());
}

#[test]
fn publish_of_single_files_with_nobody_to_notify_survives_a_power_loss_at_any_moment() {
    survives(&scripts()["publish with nobody to notify"].clone().in_files());
}

#[test]
fn rollback_of_single_files_and_what_ends_it_survive_a_power_loss_at_any_moment() {
    survives(&scripts()["roll back, then publish"].clone().in_files());
}
