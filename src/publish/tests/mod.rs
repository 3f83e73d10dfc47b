//! Tests of the output directory: real directories, readers and crashes.

mod disk;
pub(in crate::publish) mod faulty;
mod files;
mod folders;
mod large;
mod power;
mod state_dir;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::fcntl::AT_FDCWD;
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::SFlag;
use proptest::prelude::*;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};
use tempfile::TempDir;

use super::open::is_mount_point;
use super::state::{JOURNAL_LIMIT, MOVING, STATE};
use super::*;
use crate::model::digest::Digest;
use crate::model::journal::{Journal, JournalError};
use crate::model::tree::TreePath;

const NOBODY: u32 = 65534;

// As they are in an output.
const OWN: &str = "..trimtab/private";
const LOCK: &str = "..trimtab/private/lock";
const KEY: &str = "..trimtab/private/key";
const KEY_TEMPORARY: &str = "..trimtab/private/key.tmp";
const JOURNAL: &str = "..trimtab/private/journal.json";
const JOURNAL_TEMPORARY: &str = "..trimtab/private/journal.json.tmp";
const SYNCED_JOURNAL: &str = "..trimtab/private/journal.synced.json";
const BOOT: &str = "..trimtab/private/boot";
const JOURNAL_BAD: &str = "..trimtab/private/journal.json.bad";
const CURRENT: &str = "..trimtab/private/current";
const CURRENT_TEMPORARY: &str = "..trimtab/private/current.tmp";

const LAYOUTS: [Layout; 2] = [Layout::Atomic, Layout::Files];

// What the tests are made of.

/// A directory of the test's own, enterable by other users, on tmpfs where there is one.
fn scratch() -> TempDir {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

fn config(output: &Path) -> Config {
    Config {
        output: output.to_owned(),
        state_dir: None,
        folders: Vec::new(),
        layout: Layout::Atomic,
        file_mode: 0o644,
        secret_mode: 0o640,
    }
}

fn open_as(output: &Path, layout: Layout) -> Output {
    Output::open(&Config { layout, ..config(output) }).unwrap().0
}

fn open(output: &Path) -> Output {
    Output::open(&config(output)).unwrap().0
}

fn refusal(output: &Path) -> String {
    Output::open(&config(output)).unwrap_err().to_string()
}

fn generation(sequence: u64) -> Generation {
    let digest = Digest::from_bytes([u8::try_from(sequence % 251).unwrap(); 32]);
    Generation::new(sequence, digest, digest, digest)
}

fn file(bytes: &str, secret: bool) -> File {
    File { bytes: Bytes::copy_from_slice(bytes.as_bytes()).into(), secret, origin: "a test".into() }
}

fn tree<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Tree {
    let mut tree = Tree::default();
    for (path, bytes) in files {
        tree.insert(TreePath::parse(path).unwrap(), file(bytes, false)).unwrap();
    }
    tree
}

fn publish(output: &Output, generation: &Generation, tree: &Tree) {
    output.stage(generation, tree).unwrap();
    output.link(generation).unwrap();
    output.swap(generation).unwrap();
    output.unlink(generation).unwrap();
}

/// Takes the lock as soon as it is free: a child that another test is starting has our open files until its exec.
fn lock(output: &Output) -> Lock {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(lock) = output.try_lock().unwrap() {
            return lock;
        }
        assert!(Instant::now() < deadline, "the lock is not released");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Everything below a directory, by relative path: content, link target or kind.
fn listing(root: &Path) -> BTreeMap<String, String> {
    listing_of(root, |_| true)
}

/// The same of those names at the top that are asked for.
fn listing_of(root: &Path, asked: impl Fn(&str) -> bool) -> BTreeMap<String, String> {
    fn walk(at: &Path, prefix: &str, asked: &dyn Fn(&str) -> bool, into: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(at).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if !asked(&name) {
                continue;
            }
            let kind = entry.file_type().unwrap();
            let what = if kind.is_symlink() {
                format!("-> {}", fs::read_link(entry.path()).unwrap().display())
            } else if kind.is_dir() {
                walk(&entry.path(), &format!("{name}/"), asked, into);
                "a directory".into()
            } else if kind.is_fifo() {
                "a pipe".into()
            } else {
                String::from_utf8_lossy(&fs::read(entry.path()).unwrap()).into_owned()
            };
            into.insert(name, what);
        }
    }
    let mut into = BTreeMap::new();
    walk(root, "", &asked, &mut into);
    into
}

/// The files of a tree, as `listing` would show them.
fn files(tree: &Tree) -> BTreeMap<String, String> {
    tree.iter()
        .map(|(path, file)| (path.to_string(), String::from_utf8(file.bytes.read().unwrap().to_vec()).unwrap()))
        .collect()
}

/// What a reader finds that resolves `..data` once.
fn current(output: &Path) -> Option<BTreeMap<String, String>> {
    let data = fs::read_link(output.join("..data")).ok()?;
    let mut found = listing(&output.join(data));
    found.retain(|_, what| what != "a directory");
    Some(found)
}

/// What is current, as a reader finds it: in the layout of single files, all that is in place.
fn current_as(layout: Layout, output: &Path) -> Option<BTreeMap<String, String>> {
    match layout {
        Layout::Atomic => current(output),
        Layout::Files => output.join(CURRENT).exists().then(|| disk::in_place(output)),
    }
}

/// The top-level names that are not Trimtab's own.
fn top_names(output: &Path) -> BTreeSet<String> {
    let names = fs::read_dir(output).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.starts_with("..")).collect()
}

/// The names that are Trimtab's own, but for that of the directory that most of them are in.
fn own_names(output: &Path) -> BTreeSet<String> {
    let names = |at: &Path| -> Vec<String> {
        let Ok(entries) = fs::read_dir(at) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let top = names(output).into_iter().filter(|name| name.starts_with("..") && name != STATE);
    top.chain(names(&output.join(OWN)).into_iter().map(|name| format!("{OWN}/{name}"))).collect()
}

fn names_in(at: &Path) -> Vec<String> {
    fs::read_dir(at).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The names at the place of generations' directories.
fn own_directories(output: &Path, layout: Layout) -> Vec<String> {
    let below = if layout == Layout::Files { format!("{OWN}/") } else { String::new() };
    own_names(output).into_iter().filter_map(|name| name.strip_prefix(&below).map(str::to_owned)).collect()
}

/// Where a generation's directory is, below the output.
fn kept_at(layout: Layout, directory: &str) -> String {
    if layout == Layout::Files { format!("{OWN}/{directory}") } else { directory.to_owned() }
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// Where a generation is.
fn path_of(output: &Output, generation: &Generation) -> PathBuf {
    output.path.join(kept_at(output.layout, &generation.directory))
}

/// For tests that play other users and groups, or mount: a test that tested nothing would not have passed.
fn needs_privileges() {
    let needed = CapabilitySet::CHOWN | CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::SYS_ADMIN;
    let effective = capabilities(None).unwrap().effective;
    assert!(effective.contains(needed), "this test plays other users or mounts: run it as root, as in a container");
}

/// Runs `work` as another user, whose own groups are `groups`, in a thread of its own: on Linux, credentials are
/// per thread.
fn as_user<T: Send>(uid: u32, groups: &[u32], work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let groups: Vec<_> = groups.iter().map(|gid| rustix::process::Gid::from_raw(*gid)).collect();
            let (uid, gid) = (rustix::process::Uid::from_raw(uid), groups[0]);
            set_thread_groups(&groups).unwrap();
            set_thread_res_gid(gid, gid, gid).unwrap();
            set_thread_res_uid(uid, uid, uid).unwrap();
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs `work` in a thread with its own umask and mounts.
fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn mount(arguments: &[&str], at: &Path) {
    // A child has the mounts of the thread that starts it.
    let private = Command::new("mount").args(["--make-rprivate", "/"]).status().unwrap();
    let status = Command::new("mount").args(arguments).arg(at).status().unwrap();
    assert!(private.success() && status.success());
}

/// Ends the threads of a scope, also when the test fails: a scope waits for them.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

// Opening.

#[test]
fn open_creates_the_directory_with_setgid_and_the_parents_group() {
    let dir = scratch();
    needs_privileges();
    chown(dir.path(), None, Some(4242)).unwrap();
    let at = dir.path().join("conf");
    let (_output, warnings) = Output::open(&config(&at.join("."))).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(mode(&at), 0o2755);
    assert_eq!(fs::metadata(&at).unwrap().gid(), fs::metadata(dir.path()).unwrap().gid());
}

#[test]
fn open_takes_a_relative_path() {
    needs_privileges();
    let dir = scratch();
    apart(|| {
        std::env::set_current_dir(dir.path()).unwrap();
        for name in ["conf", "./conf/", "."] {
            open(Path::new(name));
        }
    });
    assert_eq!(mode(&dir.path().join("conf")), 0o2755);
    assert_eq!(top_names(dir.path()), ["conf".to_owned()].into());
}

#[test]
fn open_names_the_flag_when_the_parent_is_missing() {
    let dir = scratch();
    let text = refusal(&dir.path().join("missing/conf"));
    assert!(text.contains("--output") && text.contains("missing cannot be opened: No such file"), "{text}");
    assert!(listing(dir.path()).is_empty());
}

#[test]
fn open_refuses_what_is_no_directory_by_name() {
    let dir = scratch();
    fs::create_dir(dir.path().join("real")).unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    symlink("real", dir.path().join("link")).unwrap();
    symlink("nowhere", dir.path().join("dangling")).unwrap();
    for (name, what) in [
        ("link", "a symlink to \"real\""),
        ("link/", "a symlink to \"real\""),
        ("dangling", "a symlink to \"nowhere\""),
        ("file", "a regular file"),
    ] {
        let text = refusal(&dir.path().join(name));
        assert!(text.contains(&format!("{} is {what}", name.trim_end_matches('/'))), "{text}");
    }
    assert!(listing(&dir.path().join("real")).is_empty());
}

#[test]
fn open_refuses_a_sticky_directory_and_accepts_one_below_it() {
    let dir = scratch();
    let shared = dir.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o3777)).unwrap();
    let text = refusal(&shared);
    assert!(text.contains("mode 3777") && text.contains("--output") && text.contains("/shared/conf"), "{text}");
    open(&shared.join("conf"));
    assert_eq!(mode(&shared.join("conf")), 0o2755);
}

#[test]
fn open_refuses_a_foreign_data_link_and_leaves_it() {
    let dir = scratch();
    let data = dir.path().join("..data");
    for target in ["..2026_11_24_07_20_00.123456789", "/etc", "..trimtab-1-x", "../..trimtab-000001-aaaaaaaaaaaa"] {
        symlink(target, &data).unwrap();
        let before = listing(dir.path());
        let text = refusal(dir.path());
        assert!(text.contains("..data is a symlink to") && text.contains(target), "{text}");
        assert_eq!(listing(dir.path()), before);
        assert_eq!(mode(dir.path()), 0o755);
        fs::remove_file(&data).unwrap();
    }
    fs::create_dir(&data).unwrap();
    assert!(refusal(dir.path()).contains("..data is a directory"));
}

#[test]
fn open_adds_a_missing_setgid_bit() {
    let dir = scratch();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o750)).unwrap();
    open(dir.path());
    assert_eq!(mode(dir.path()), 0o2750);
}

#[test]
fn open_warns_of_a_volumes_root() {
    needs_privileges();
    let dir = scratch();
    apart(|| {
        mount(&["-t", "tmpfs", "-o", "mode=0777", "tmpfs"], dir.path());
        let (output, warnings) = Output::open(&config(dir.path())).unwrap();
        assert!(warnings.len() == 1 && warnings[0].contains("root of a volume"), "{warnings:?}");
        publish(&output, &generation(1), &tree([("a", "1")]));
        // The same file system on both sides: only the attribute shows it.
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        fs::create_dir(&one).unwrap();
        fs::create_dir(&two).unwrap();
        mount(&["--bind", one.to_str().unwrap()], &two);
        assert!(!is_mount_point(&Dir::open(AT_FDCWD, &one).unwrap()).unwrap());
        assert!(is_mount_point(&Dir::open(AT_FDCWD, &two).unwrap()).unwrap());
    });
}

#[test]
fn open_warns_of_a_group_that_cannot_be_given_and_publishes_all_the_same() {
    needs_privileges();
    // Root without capabilities is a user like others, and here the owner.
    for user in [NOBODY, 0] {
        let dir = scratch();
        let at = dir.path().join("conf");
        fs::create_dir(&at).unwrap();
        fs::set_permissions(&at, fs::Permissions::from_mode(0o777)).unwrap();
        chown(&at, None, Some(4242)).unwrap();
        as_user(user, &[4343], || {
            let none = CapabilitySet::empty();
            set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none }).unwrap();
            let (output, warnings) = Output::open(&config(&at)).unwrap();
            assert!(
                warnings.len() == 1 && warnings[0].contains("4242") && warnings[0].contains("4343"),
                "{warnings:?}"
            );
            let mut tree = Tree::default();
            tree.insert(TreePath::parse("s").unwrap(), file("s", true)).unwrap();
            publish(&output, &generation(1), &tree);
        });
        let secret = fs::metadata(at.join("s")).unwrap();
        assert_eq!((secret.uid(), secret.gid(), secret.mode() & 0o7777), (user, 4343, 0o640));
    }
}

#[test]
fn a_member_of_the_outputs_group_gives_it_to_what_does_not_inherit_it() {
    needs_privileges();
    let dir = scratch();
    let at = dir.path().join("conf");
    fs::create_dir(&at).unwrap();
    fs::set_permissions(&at, fs::Permissions::from_mode(0o777)).unwrap();
    chown(&at, None, Some(4242)).unwrap();
    as_user(NOBODY, &[4343, 4242], || {
        let (output, warnings) = Output::open(&config(&at)).unwrap();
        assert_eq!(warnings, Vec::<String>::new());
        let mut tree = Tree::default();
        tree.insert(TreePath::parse("d/s").unwrap(), file("s", true)).unwrap();
        publish(&output, &generation(1), &tree);
    });
    for (path, mode) in [("..data/", 0o755), ("d", 0o755), ("d/s", 0o640)] {
        let found = fs::metadata(at.join(path)).unwrap();
        assert_eq!((found.gid(), found.mode() & 0o7777), (4242, mode), "{path}");
    }
}

// Lock, key, journal.

#[test]
fn lock_is_held_by_one_at_a_time() {
    let dir = scratch();
    let (one, two) = (open(dir.path()), open(dir.path()));
    let held = lock(&one);
    assert!(two.try_lock().unwrap().is_none());
    drop(held);
    drop(lock(&two));
    assert_eq!(mode(&dir.path().join(LOCK)), 0o600);
}

#[test]
fn digest_key_is_kept_and_a_bad_one_is_replaced() {
    let dir = scratch();
    let output = open(dir.path());
    let at = dir.path().join(KEY);
    let read = || {
        output.digest_key().unwrap();
        assert_eq!(mode(&at), 0o600);
        let bytes = fs::read(&at).unwrap();
        assert_eq!(bytes.len(), 32);
        bytes
    };
    let first = read();
    assert_eq!(read(), first);
    fs::set_permissions(&at, fs::Permissions::from_mode(0o660)).unwrap();
    assert_eq!(read(), first, "what the kubelet does for fsGroup must not change the key");
    for length in [0, 31, 33, 1 << 20] {
        fs::write(&at, vec![b'x'; length]).unwrap();
        let fresh = read();
        assert!(fresh != first && fresh != [b'x'; 32]);
    }
    let planted = dir.path().join("planted");
    fs::write(&planted, [b'p'; 32]).unwrap();
    fs::remove_file(&at).unwrap();
    symlink("planted", &at).unwrap();
    assert_ne!(read(), [b'p'; 32]);
    assert_eq!(fs::read(&planted).unwrap(), [b'p'; 32]);
    fs::remove_file(&at).unwrap();
    fs::create_dir(&at).unwrap();
    read();
    needs_privileges();
    let known = read();
    chown(&at, Some(NOBODY), None).unwrap();
    assert_ne!(read(), known, "another user knows that key");
}

#[test]
fn journal_is_replaced_whole_and_read_back() {
    let dir = scratch();
    let output = open(dir.path());
    assert_eq!(output.read_journal(false).unwrap(), FoundJournal::Nothing);
    for sequence in 1..4 {
        let journal = Journal { next_sequence: sequence, current: Some(generation(sequence)), ..Journal::default() };
        // A left-over of whatever kind is not in the way.
        let temporary = dir.path().join(JOURNAL_TEMPORARY);
        match sequence {
            1 => fs::write(temporary, "half").unwrap(),
            2 => fs::create_dir_all(temporary.join("x")).unwrap(),
            _ => symlink("/etc/passwd", temporary).unwrap(),
        }
        output.write_journal(&journal).unwrap();
        assert_eq!(output.read_journal(false).unwrap(), FoundJournal::Journal(journal));
        assert_eq!(mode(&dir.path().join(JOURNAL)), 0o600);
        assert_eq!(own_names(dir.path()), [JOURNAL.to_owned()].into());
    }
}

#[test]
fn journal_that_cannot_be_believed_is_set_aside() {
    let dir = scratch();
    let output = open(dir.path());
    let (at, bad) = (dir.path().join(JOURNAL), dir.path().join(JOURNAL_BAD));
    let good = Journal::default().to_bytes();
    let set_aside = || match output.read_journal(false).unwrap() {
        FoundJournal::SetAside { reason, name } => {
            assert_eq!(name, JOURNAL_BAD);
            assert!(!at.exists());
            assert_eq!(output.read_journal(false).unwrap(), FoundJournal::Nothing);
            reason
        }
        other => panic!("{other:?}"),
    };
    for bytes in [&b""[..], &good[..good.len() / 2], &vec![b' '; JOURNAL_LIMIT + 1]] {
        fs::write(&at, bytes).unwrap();
        assert!(matches!(set_aside(), JournalError::Malformed { .. }));
        assert_eq!(fs::read(&bad).unwrap(), bytes, "the older one is replaced");
    }
    fs::write(&at, String::from_utf8(good.clone()).unwrap().replace("\"version\": 1", "\"version\": 9")).unwrap();
    assert_eq!(set_aside(), JournalError::Version(9));
    // A directory, a pipe without a writer, and a link to a journal that would do.
    fs::create_dir_all(at.join("x")).unwrap();
    set_aside();
    nix::sys::stat::mknod(&at, SFlag::S_IFIFO, Mode::from_bits_truncate(0o600), 0).unwrap();
    set_aside();
    fs::write(dir.path().join("elsewhere"), &good).unwrap();
    symlink("elsewhere", &at).unwrap();
    set_aside();
    assert_eq!(fs::read(dir.path().join("elsewhere")).unwrap(), good);
    // The journal written next has its place.
    fs::create_dir(&at).unwrap();
    output.write_journal(&Journal::default()).unwrap();
    assert_eq!(output.read_journal(false).unwrap(), FoundJournal::Journal(Journal::default()));
}

// Staging.

#[test]
fn staged_tree_is_whole_and_invisible_and_has_its_modes() {
    let dir = scratch();
    let at = dir.path().join("conf");
    needs_privileges();
    chown(dir.path(), None, Some(4242)).unwrap();
    let output = Output::open(&Config { file_mode: 0o604, secret_mode: 0o440, ..config(&at) }).unwrap().0;
    // In the order of bytes, "d-x" and "d.x" are between "d" and "d/…".
    let mut tree =
        tree([("a", "1"), ("d-x", "2"), ("d.x", "3"), ("d/a", "4"), ("d/e/f", "5"), ("d/z", ""), ("e/f/g/h", "6")]);
    tree.insert(TreePath::parse("d/secret").unwrap(), file("s", true)).unwrap();
    output.stage(&generation(7), &tree).unwrap();

    assert!(top_names(&at).is_empty());
    assert_eq!(current(&at), None);
    let root = path_of(&output, &generation(7));
    let mut found = listing(&root);
    found.retain(|_, what| what != "a directory");
    assert_eq!(found, files(&tree));
    let group = fs::metadata(&at).unwrap().gid();
    for path in ["", "d", "d/e", "e/f/g"] {
        assert_eq!(mode(&root.join(path)), 0o2755, "{path}");
        assert_eq!(fs::metadata(root.join(path)).unwrap().gid(), group);
    }
    for path in ["a", "d/e/f", "d/z"] {
        assert_eq!(mode(&root.join(path)), 0o604, "{path}");
    }
    assert_eq!(mode(&root.join("d/secret")), 0o440);
    assert_eq!(fs::metadata(root.join("d/secret")).unwrap().gid(), group);
    assert_eq!(output.disk().unwrap(), Disk { link: None, directories: vec![generation(7).directory], torn: None });
}

#[test]
fn a_secret_is_not_written_where_the_file_system_keeps_no_modes() {
    for (layout, secret_mode) in LAYOUTS.into_iter().flat_map(|layout| [(layout, 0o640), (layout, 0o755)]) {
        let dir = scratch();
        let config = Config { layout, secret_mode, ..config(dir.path()) };
        let output = Output::open(&config).unwrap().0;
        faulty::keep_no_modes(Some(0o755));
        let mut tree = tree([("a", "public")]);
        publish(&output, &generation(1), &tree);
        tree.insert(TreePath::parse("d/secret").unwrap(), file("hush", true)).unwrap();
        faulty::record();
        let staged = output.stage(&generation(2), &tree);
        let log = faulty::recorded();
        faulty::keep_no_modes(None);
        let wrote = |text: &str| {
            log.iter().any(|change| matches!(change, faulty::Change::Wrote { bytes, .. } if bytes == text.as_bytes()))
        };
        if secret_mode == 0o755 {
            staged.unwrap();
            assert!(wrote("hush"));
            continue;
        }
        let error = staged.unwrap_err();
        let parts = ["d/secret", "keeps no modes", "0755 instead of --secret-mode 0640", "--secret-mode 0755"];
        let text = error.to_string();
        assert!(parts.iter().all(|part| text.contains(part)) && !error.rejected(), "{text}");
        assert!(!wrote("hush"), "{layout:?}: it was there to be read for a moment");
        assert!(!path_of(&output, &generation(2)).exists());
    }
}

#[test]
fn what_suggests_that_modes_are_not_kept_is_found() {
    let dir = scratch();
    let output = open(dir.path());
    assert_eq!(output.may_ignore_modes(), None);
    drop(lock(&output));
    fs::set_permissions(dir.path().join(LOCK), fs::Permissions::from_mode(0o660)).unwrap();
    assert_eq!(output.may_ignore_modes(), None, "as the kubelet leaves it");
    fs::set_permissions(dir.path().join(LOCK), fs::Permissions::from_mode(0o755)).unwrap();
    let found = output.may_ignore_modes().unwrap();
    assert!(found.contains(LOCK) && found.contains("0600") && found.contains("0755"), "{found}");
}

#[test]
fn an_output_that_was_removed_is_noticed() {
    let dir = scratch();
    let at = dir.path().join("conf");
    let output = open(&at);
    output.still_there().unwrap();
    fs::rename(&at, dir.path().join("elsewhere")).unwrap();
    output.still_there().unwrap();
    fs::remove_dir_all(dir.path().join("elsewhere")).unwrap();
    fs::create_dir(&at).unwrap();
    let error = output.still_there().unwrap_err().to_string();
    assert!(error.contains("conf was removed"), "{error}");
}

#[test]
fn staged_files_do_not_depend_on_the_umask() {
    needs_privileges();
    for (umask, layout) in [0, 0o077, 0o777].into_iter().flat_map(|umask| LAYOUTS.map(|layout| (umask, layout))) {
        let dir = scratch();
        let at = dir.path().join("conf");
        apart(|| {
            nix::sys::stat::umask(Mode::from_bits_truncate(umask));
            let output = open_as(&at, layout);
            let mut tree = tree([("a", "1"), ("d/e", "2")]);
            tree.insert(TreePath::parse("d/secret").unwrap(), file("s", true)).unwrap();
            publish(&output, &generation(1), &tree);
            output.write_journal(&Journal::default()).unwrap();
            output.digest_key().unwrap();
        });
        let root = if layout == Layout::Atomic { at.join(generation(1).directory) } else { at.clone() };
        let modes = ["", "d", "a", "d/e", "d/secret"].map(|path| mode(&root.join(path)));
        assert_eq!(modes, [0o2755, 0o2755, 0o644, 0o644, 0o640], "{umask:o} {layout:?}");
        if layout == Layout::Files {
            let kept_at = kept_at(layout, &generation(1).directory);
            let own = [CURRENT.to_owned(), format!("{kept_at}/manifest"), kept_at];
            assert_eq!(own.map(|path| mode(&at.join(path))), [0o600, 0o600, 0o2700], "{umask:o}");
        }
        assert_eq!([mode(&at), mode(&at.join(JOURNAL)), mode(&at.join(KEY))], [0o2755, 0o600, 0o600]);
        assert_eq!((mode(&at.join(STATE)) & 0o777, mode(&at.join(OWN)) & 0o777), (0o755, 0o700));
    }
}

#[test]
fn a_user_outside_the_group_keeps_the_inherited_group_and_setgid() {
    needs_privileges();
    LAYOUTS.into_iter().for_each(keeps_the_inherited_group);
}

fn keeps_the_inherited_group(layout: Layout) {
    // As a volume with fsGroup 4242 looks to a container whose user is not in it.
    let dir = scratch();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o2777)).unwrap();
    chown(dir.path(), None, Some(4242)).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o2777)).unwrap();
    let at = dir.path().join("conf");
    as_user(NOBODY, &[4343], || {
        let (output, warnings) = Output::open(&Config { layout, ..config(&at) }).unwrap();
        assert_eq!(warnings, Vec::<String>::new());
        let mut tree = tree([("d/a", "1")]);
        tree.insert(TreePath::parse("d/secret").unwrap(), file("s", true)).unwrap();
        publish(&output, &generation(1), &tree);
        if layout == Layout::Files {
            // And back from a copy, which has the group and the mode as well.
            publish(&output, &generation(2), &self::tree([("d/a", "2"), ("d/secret", "public")]));
            for effect in [Output::link, Output::swap, Output::unlink] {
                effect(&output, &generation(1)).unwrap();
            }
        }
    });
    let current = if layout == Layout::Atomic { "..data/" } else { "" };
    for path in ["", current, "d"] {
        let found = fs::metadata(at.join(path)).unwrap();
        assert_eq!((found.gid(), found.mode() & 0o7777, found.uid()), (4242, 0o2755, NOBODY), "{path}");
    }
    let secret = fs::metadata(at.join("d/secret")).unwrap();
    assert_eq!((secret.gid(), secret.mode() & 0o7777), (4242, 0o640));
    // The reader that all of this is for: another user of the group.
    as_user(1234, &[4242], || assert_eq!(fs::read(at.join("d/secret")).unwrap(), b"s"));
    as_user(1234, &[4343], || assert!(fs::read(at.join("d/secret")).is_err()));
}

#[test]
fn secret_file_is_never_wider_than_its_mode() {
    let dir = scratch();
    let output = open(dir.path());
    let content = "s".repeat(1 << 20);
    let secret = {
        let mut tree = Tree::default();
        tree.insert(TreePath::parse("secret").unwrap(), file(&content, true)).unwrap();
        tree
    };
    let path = path_of(&output, &generation(1)).join("secret");
    let (stop, half, wide) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let Ok(found) = fs::symlink_metadata(&path) else { continue };
                if found.len() < content.len() as u64 {
                    half.fetch_add(1, Ordering::Relaxed);
                }
                if found.mode() & 0o7777 & !0o640 != 0
                    || found.len() < content.len() as u64 && found.mode() & 0o077 != 0
                {
                    wide.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let _stop = Stop(&stop);
        let deadline = Instant::now() + Duration::from_secs(10);
        while half.load(Ordering::Relaxed) < 50 && Instant::now() < deadline {
            output.stage(&generation(1), &secret).unwrap();
        }
    });
    assert!(half.into_inner() >= 50, "the watcher saw too little");
    assert_eq!(wide.into_inner(), 0);
}

#[test]
fn stage_rejects_names_that_are_taken_and_touches_nothing() {
    let dir = scratch();
    let output = open(dir.path());
    fs::create_dir(dir.path().join("conf.d")).unwrap();
    fs::write(dir.path().join("conf.d/theirs"), "x").unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    symlink("..data/other", dir.path().join("link")).unwrap();
    symlink("..data/ours", dir.path().join("ours")).unwrap();
    let before = listing(dir.path());
    for (path, what) in [
        ("conf.d/a", "conf.d is a directory"),
        ("file", "file is a regular file"),
        ("link", "link is a symlink to \"..data/other\""),
    ] {
        let error = output.stage(&generation(1), &tree([(path, "1"), ("ours", "2")])).unwrap_err();
        assert!(error.rejected());
        assert!(error.to_string().contains(what), "{error}");
        assert_eq!(listing(dir.path()), before);
    }
    let error = output.stage(&generation(1), &tree([("conf.d", ""), ("file", ""), ("link", "")])).unwrap_err();
    assert!(error.to_string().contains("(nor 2 more such)"), "{error}");
    output.stage(&generation(1), &tree([("ours", "1")])).unwrap();
}

#[test]
fn stage_replaces_what_a_crash_left_and_never_what_is_current() {
    for layout in LAYOUTS {
        let dir = scratch();
        let output = open_as(dir.path(), layout);
        let left = path_of(&output, &generation(1));
        fs::create_dir_all(left.join("files/half/done")).unwrap();
        fs::write(left.join("files/b"), "left").unwrap();
        publish(&output, &generation(1), &tree([("a", "1")]));
        assert_eq!(current_as(layout, dir.path()), Some(files(&tree([("a", "1")]))));

        let error = output.stage(&generation(1), &tree([("a", "2")])).unwrap_err();
        assert!(!error.rejected() && error.to_string().contains("the current one"), "{error}");
        assert_eq!(current_as(layout, dir.path()), Some(files(&tree([("a", "1")]))));
    }
}

#[test]
fn full_volume_leaves_no_candidate_and_says_what_to_do() {
    needs_privileges();
    LAYOUTS.into_iter().for_each(leaves_no_candidate);
}

fn leaves_no_candidate(layout: Layout) {
    let dir = scratch();
    apart(|| {
        mount(&["-t", "tmpfs", "-o", "size=256k,mode=0755", "tmpfs"], dir.path());
        let at = dir.path().join("conf");
        let output = open_as(&at, layout);
        let small = tree([("a", "1")]);
        publish(&output, &generation(1), &small);
        let large = "x".repeat(100_000);
        let error =
            output.stage(&generation(2), &tree([("a", "2"), ("d/b", &large), ("d/c", &large), ("d/d", &large)]));
        let error = error.unwrap_err();
        let text = error.to_string();
        assert!(!error.rejected());
        assert!(text.contains("/d/d: No space left on device") && text.contains("sizeLimit"), "{text}");
        assert_eq!(output.disk().unwrap().directories, [generation(1).directory]);
        assert_eq!(current_as(layout, &at), Some(files(&small)));
        // And the next one finds room, once no child that another test is starting holds the removed files open.
        let next = tree([("a", "3"), ("d/b", &large)]);
        let deadline = Instant::now() + Duration::from_secs(10);
        while let Err(error) = output.stage(&generation(3), &next) {
            assert!(Instant::now() < deadline, "{error}");
            std::thread::sleep(Duration::from_millis(5));
        }
    });
}

#[test]
fn read_only_and_forbidden_outputs_say_what_to_do() {
    needs_privileges();
    let dir = scratch();
    apart(|| {
        mount(&["-t", "tmpfs", "-o", "mode=2755", "tmpfs"], dir.path());
        mount(&["-o", "remount,ro"], dir.path());
        let text = refusal(&dir.path().join("conf"));
        assert!(text.contains("create --output") && text.contains("readOnly"), "{text}");
        let text = refusal(dir.path());
        assert!(text.contains(STATE) && text.contains("Read-only file system") && text.contains("readOnly"), "{text}");
    });
    as_user(NOBODY, &[NOBODY], || {
        let text = refusal(&dir.path().join("conf"));
        assert!(text.contains("Permission denied") && text.contains("fsGroup"), "{text}");
    });
    // The kubelet's volumes are read-only: they must be refused for what they are.
    apart(|| {
        mount(&["-t", "tmpfs", "-o", "mode=1777", "tmpfs"], dir.path());
        symlink("..2026_11_24_07_20_00.1", dir.path().join("..data")).unwrap();
        mount(&["-o", "remount,ro"], dir.path());
        assert!(refusal(dir.path()).contains("neither a ConfigMap"));
    });
}

// Reading back.

const DIGEST_KEY: DigestKey = DigestKey::new([7; 32]);

/// Trees whose names sort otherwise by directory than by path.
fn any_tree() -> impl Strategy<Value = Tree> {
    let files = proptest::collection::btree_map("[-ab./é]{1,6}", "[xy]{0,3}", 0..8);
    files.prop_map(|files| {
        let mut tree = Tree::default();
        for (path, bytes) in files {
            // What is no path, or in the way of another one, is left out.
            let _ = TreePath::parse(&path).map(|path| tree.insert(path, file(&bytes, bytes.len() == 1)));
        }
        tree
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn content_is_read_back_as_it_was_staged(tree in any_tree(), other in any_tree(), at in any::<prop::sample::Index>()) {
        let dir = scratch();
        let output = open(dir.path());
        output.stage(&generation(1), &tree).unwrap();
        let content = || output.content(&generation(1), &DIGEST_KEY).unwrap();
        prop_assert_eq!(content(), tree.content(&DIGEST_KEY));
        output.stage(&generation(2), &other).unwrap();
        let bytes = |tree: &Tree| tree.iter().map(|(path, file)| (path.clone(), file.bytes.clone())).collect::<Vec<_>>();
        prop_assert_eq!(
            output.content(&generation(2), &DIGEST_KEY).unwrap() == content(),
            bytes(&tree) == bytes(&other)
        );
        if tree.is_empty() {
            return Ok(());
        }
        // One file is changed, renamed, missing; and then there is one more.
        let (path, file) = tree.iter().nth(at.index(tree.len())).unwrap();
        let path = path_of(&output, &generation(1)).join(path.as_str());
        let mut flipped = file.bytes.read().unwrap().to_vec();
        match flipped.first_mut() {
            Some(byte) => *byte ^= 1,
            None => flipped.push(0),
        }
        fs::write(&path, flipped).unwrap();
        prop_assert_ne!(content(), tree.content(&DIGEST_KEY));
        fs::write(&path, file.bytes.read().unwrap()).unwrap();
        let elsewhere = path.with_file_name("renamed");
        fs::rename(&path, &elsewhere).unwrap();
        prop_assert_ne!(content(), tree.content(&DIGEST_KEY));
        fs::remove_file(&elsewhere).unwrap();
        prop_assert_ne!(content(), tree.content(&DIGEST_KEY));
        fs::write(&path, file.bytes.read().unwrap()).unwrap();
        prop_assert_eq!(content(), tree.content(&DIGEST_KEY));
        fs::write(elsewhere, "").unwrap();
        prop_assert_ne!(content(), tree.content(&DIGEST_KEY));
    }
}

#[test]
fn content_follows_nothing_and_ends_whatever_was_put_there() {
    let outside = scratch();
    fs::write(outside.path().join("a"), "1").unwrap();
    let dir = scratch();
    let output = open(dir.path());
    let refused = |what: &dyn Fn(&Path)| {
        output.stage(&generation(1), &tree([("a", "1"), ("d/b", "2")])).unwrap();
        what(&path_of(&output, &generation(1)));
        output.content(&generation(1), &DIGEST_KEY).unwrap_err().to_string()
    };
    let link = |at: &Path| {
        fs::remove_file(at.join("a")).unwrap();
        symlink(outside.path().join("a"), at.join("a")).unwrap();
    };
    let text = refused(&link);
    assert!(text.contains("/a is a symlink to") && text.contains("did not publish"), "{text}");
    let linked_directory = |at: &Path| {
        fs::rename(at.join("d"), outside.path().join("d")).unwrap();
        symlink(outside.path().join("d"), at.join("d")).unwrap();
    };
    let text = refused(&linked_directory);
    assert!(text.contains("/d/ is a symlink to") || text.contains("/d is a symlink to"), "{text}");
    let pipe = |at: &Path| {
        nix::sys::stat::mknod(&at.join("c"), SFlag::S_IFIFO, Mode::from_bits_truncate(0o600), 0).unwrap();
    };
    let text = refused(&pipe);
    assert!(text.contains("/c is a device, pipe or socket"), "{text}");
    let endless = |at: &Path| fs::File::create(at.join("c")).unwrap().set_len(1 << 60).unwrap();
    let text = refused(&endless);
    assert!(text.contains("/c is more than a generation can hold"), "{text}");
    let deep = |at: &Path| {
        let mut at = Dir::open(AT_FDCWD, at).unwrap();
        for _ in 0..600 {
            at = at.make("dd", None, Mode::from_bits_truncate(0o755)).unwrap();
        }
    };
    let text = refused(&deep);
    assert!(text.contains("names that are too long"), "{text}");
    let gone = |at: &Path| {
        fs::remove_dir_all(at).unwrap();
        symlink(outside.path(), at).unwrap();
    };
    let text = refused(&gone);
    assert!(text.contains("cannot open") && text.contains(&generation(1).directory), "{text}");
    let theirs = Generation { directory: "../x".into(), ..generation(1) };
    assert!(output.content(&theirs, &DIGEST_KEY).is_err());
}

// Link, swap, unlink, prune.

#[test]
fn swap_is_not_blocked_by_what_a_crash_left() {
    for (layout, temporary) in LAYOUTS.into_iter().zip(["..trimtab.data.tmp", CURRENT_TEMPORARY]) {
        let dir = scratch();
        let output = open_as(dir.path(), layout);
        let temporary = dir.path().join(temporary);
        for sequence in 1..4 {
            match sequence {
                1 => symlink("..trimtab-000009-aaaaaaaaaaaa", &temporary).unwrap(),
                2 => fs::create_dir_all(temporary.join("x")).unwrap(),
                _ => fs::write(&temporary, "").unwrap(),
            }
            publish(&output, &generation(sequence), &tree([("a", "1")]));
            output.swap(&generation(sequence)).unwrap();
            assert_eq!(output.disk().unwrap().link, Some(generation(sequence).directory));
            assert!(fs::symlink_metadata(&temporary).is_err());
        }
    }
}

#[test]
fn swap_refuses_a_missing_generation_and_a_foreign_data_link() {
    let dir = scratch();
    let output = open(dir.path());
    publish(&output, &generation(1), &tree([("a", "1")]));
    let error = output.swap(&generation(2)).unwrap_err().to_string();
    assert!(error.contains("missing"), "{error}");
    output.stage(&generation(2), &tree([("a", "2")])).unwrap();
    fs::remove_file(dir.path().join("..data")).unwrap();
    symlink("..2026_11_24_07_20_00.1", dir.path().join("..data")).unwrap();
    let before = listing(dir.path());
    for result in [output.swap(&generation(2)), output.prune(&[]), output.stage(&generation(3), &tree([("a", "")]))] {
        assert!(matches!(result.unwrap_err(), PublishError::ForeignData { .. }));
    }
    assert_eq!(listing(dir.path()), before);
}

#[test]
fn unlink_removes_only_our_own_links() {
    let dir = scratch();
    let output = open(dir.path());
    publish(&output, &generation(1), &tree([("gone", "1"), ("kept", "1"), ("d/x", "1")]));
    symlink("..data/gone", dir.path().join("theirs")).unwrap();
    fs::write(dir.path().join("theirs.txt"), "x").unwrap();
    publish(&output, &generation(2), &tree([("kept", "2"), ("new", "2")]));
    let expected = ["kept", "new", "theirs", "theirs.txt"].map(str::to_owned);
    assert_eq!(top_names(dir.path()), expected.into());
}

#[test]
fn prune_removes_our_directories_and_nothing_else() {
    LAYOUTS.into_iter().for_each(prunes_ours_alone);
}

fn prunes_ours_alone(layout: Layout) {
    let dir = scratch();
    let output = open_as(dir.path(), layout);
    for sequence in 1..5 {
        publish(&output, &generation(sequence), &tree([("a", "1"), ("d/e/f", "2")]));
    }
    let outside = scratch();
    fs::write(outside.path().join("precious"), "x").unwrap();
    let inside = if layout == Layout::Atomic { "d/out" } else { "files/out" };
    symlink(outside.path(), path_of(&output, &generation(1)).join(inside)).unwrap();
    // Names that are almost ours.
    for name in
        ["..trimtab-1-aaaaaaaaaaaa", "..trimtab-000001-AAAAAAAAAAAA", "..trimtab-000001", "..2026_11", "lost+found"]
    {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    for at in [dir.path().to_owned(), dir.path().join(OWN)] {
        symlink(outside.path(), at.join("..trimtab-000009-aaaaaaaaaaaa")).unwrap();
        fs::write(at.join("..trimtab-000008-aaaaaaaaaaaa"), "").unwrap();
    }
    fs::write(dir.path().join(JOURNAL_TEMPORARY), "").unwrap();
    let mut expected = listing(dir.path());
    expected.retain(|name, _| {
        let stale = [1, 2].map(|sequence| kept_at(layout, &generation(sequence).directory));
        !stale.iter().any(|stale| name.starts_with(stale)) && name != JOURNAL_TEMPORARY
    });
    // The current one stays without being asked for.
    output.prune(&[&generation(3).directory]).unwrap();
    assert_eq!(listing(dir.path()), expected);
    assert_eq!(listing(outside.path()).len(), 1);
}

#[test]
fn planted_symlinks_are_not_followed() {
    let outside = scratch();
    fs::write(outside.path().join("passwd"), "root").unwrap();
    fs::create_dir(outside.path().join("etc")).unwrap();
    fs::write(outside.path().join("etc/shadow"), "x").unwrap();
    let before = listing(outside.path());
    let victim = outside.path().join("passwd");
    let etc = outside.path().join("etc");

    let names = [
        JOURNAL,
        JOURNAL_TEMPORARY,
        JOURNAL_BAD,
        KEY,
        KEY_TEMPORARY,
        LOCK,
        "..trimtab.data.tmp",
        CURRENT,
        CURRENT_TEMPORARY,
        "conf.d",
        "a",
        STATE,
        OWN,
        MOVING,
        &generation(1).directory,
        &generation(2).directory,
        &kept_at(Layout::Files, &generation(1).directory),
        &kept_at(Layout::Files, &generation(2).directory),
        // As versions up to 0.1 have them.
        "..trimtab.lock",
        "..trimtab.key",
        "..trimtab.json",
        "..trimtab.current",
    ];
    let targets = [&victim, &etc].into_iter().flat_map(|target| LAYOUTS.map(|layout| (target, layout)));
    for name in names {
        for (target, layout) in targets.clone() {
            let dir = scratch();
            if ![STATE, OWN, MOVING].contains(&name) {
                fs::create_dir_all(dir.path().join(OWN)).unwrap();
            } else if name == OWN {
                fs::create_dir(dir.path().join(STATE)).unwrap();
            }
            symlink(target, dir.path().join(name)).unwrap();
            let opened = Output::open(&Config { layout, ..config(dir.path()) });
            if [STATE, OWN, MOVING].contains(&name)
                || [CURRENT, "..trimtab.current"].contains(&name) && layout == Layout::Atomic
            {
                assert!(opened.is_err(), "it is another's, or the other layout's");
                assert_eq!(listing(outside.path()), before, "{name} -> {}", target.display());
                continue;
            }
            let output = opened.unwrap().0;
            // Some of these refuse, and may; none may reach what is behind the link.
            let _ = output.try_lock();
            let _ = output.digest_key();
            let _ = output.read_journal(false);
            let _ = output.write_journal(&Journal::default());
            let tree = tree([("a", "1"), ("conf.d/b", "2")]);
            for sequence in 1..3 {
                let generation = generation(sequence);
                let _ = output.link(&generation);
                let _ = output.swap(&generation);
                let _ = output.stage(&generation, &tree);
                let _ = output.link(&generation);
                let _ = output.swap(&generation);
                let _ = output.unlink(&generation);
                let _ = output.prune(&[]);
            }
            assert_eq!(listing(outside.path()), before, "{name} -> {}", target.display());
            // Our own names never stay in the way, but what says which generation is current: all else rests on that.
            let pointers = [CURRENT, "..trimtab.current"];
            let ours = name.starts_with("..") && !pointers.contains(&name);
            let found = current_as(layout, dir.path()).filter(|_| !pointers.contains(&name));
            assert_eq!(found, ours.then(|| files(&tree)), "{name}, {layout:?}");
        }
    }
    // The lock alone is not replaced: two must not hold it.
    let dir = scratch();
    let output = open(dir.path());
    symlink(&victim, dir.path().join(LOCK)).unwrap();
    let error = output.try_lock().unwrap_err().to_string();
    assert!(error.contains(LOCK) && error.contains("remove it"), "{error}");
}

#[test]
fn names_of_our_own_in_a_generation_are_not_linked() {
    let dir = scratch();
    let output = open(dir.path());
    output.stage(&generation(1), &tree([("a", "1")])).unwrap();
    fs::write(path_of(&output, &generation(1)).join(STATE), "").unwrap();
    fs::write(path_of(&output, &generation(1)).join("..data"), "").unwrap();
    output.link(&generation(1)).unwrap();
    assert_eq!(own_names(dir.path()), [generation(1).directory].into());
}

#[test]
fn directory_names_that_are_not_of_our_pattern_are_refused() {
    for layout in LAYOUTS {
        let dir = scratch();
        let output = open_as(dir.path(), layout);
        fs::create_dir(dir.path().join("theirs")).unwrap();
        for name in ["theirs", "..", ".", "../x", "/etc", "..data", CURRENT, ""] {
            let generation = Generation { directory: name.to_owned(), ..generation(1) };
            assert!(output.stage(&generation, &tree([("a", "1")])).is_err(), "{name}");
            assert!(output.link(&generation).is_err(), "{name}");
            assert!(output.swap(&generation).is_err(), "{name}");
            assert!(output.unlink(&generation).is_err(), "{name}");
            assert!(output.content(&generation, &DIGEST_KEY).is_err(), "{name}");
        }
        assert_eq!(listing(dir.path()).len(), 3, "theirs and ours, with what is in it");
    }
}

// What an earlier version left.

/// Moves Trimtab's own files to where versions up to 0.1 kept them.
fn make_0_1(at: &Path, layout: Layout) {
    for (earlier, now) in
        [("..trimtab.lock", LOCK), ("..trimtab.key", KEY), ("..trimtab.json", JOURNAL), ("..trimtab.current", CURRENT)]
    {
        if at.join(now).exists() {
            fs::rename(at.join(now), at.join(earlier)).unwrap();
        }
    }
    for name in own_directories(at, layout).iter().filter(|name| sequence_of(name).is_some()) {
        fs::rename(at.join(kept_at(layout, name)), at.join(name)).unwrap();
    }
    fs::remove_dir(at.join(OWN)).unwrap();
    fs::remove_dir(at.join(STATE)).unwrap();
}

/// The same as versions up to 0.2 have it.
fn make_0_2(at: &Path, _: Layout) {
    fs::rename(at.join(OWN), at.join("own")).unwrap();
    fs::remove_dir(at.join(STATE)).unwrap();
    fs::rename(at.join("own"), at.join(STATE)).unwrap();
}

type MakeEarlier = fn(&Path, Layout);

/// Each version's form, its journal that was being written, and the one that was set aside.
const EARLIER: [(MakeEarlier, &str, &str); 2] = [
    (make_0_1, "..trimtab.json.tmp", "..trimtab.json.bad"),
    (make_0_2, "..trimtab/journal.json.tmp", "..trimtab/journal.json.bad"),
];

#[test]
fn what_an_earlier_version_left_is_taken_over_wherever_that_is_cut_off() {
    for (layout, (make_earlier, temporary, bad)) in
        LAYOUTS.into_iter().flat_map(|l| EARLIER.map(|earlier| (l, earlier)))
    {
        let made = |at: &Path| {
            let output = open_as(at, layout);
            let _lock = lock(&output);
            let key = output.digest_key().unwrap();
            publish(&output, &generation(1), &tree([("a", "1"), ("d/b", "1")]));
            publish(&output, &generation(2), &tree([("a", "2"), ("d/b", "1")]));
            let journal =
                Journal { last_good: Some(generation(1)), current: Some(generation(2)), ..Journal::default() };
            output.write_journal(&journal).unwrap();
            key
        };
        for call in 0.. {
            let dir = scratch();
            let at = dir.path();
            let key = made(at);
            make_earlier(at, layout);
            fs::write(at.join(temporary), "left by a crash").unwrap();
            fs::write(at.join(bad), "set aside").unwrap();
            faulty::arm(Some((call, faulty::Fault::Dies)));
            let taken =
                Output::open(&Config { layout, ..config(at) }).and_then(|(output, _)| output.try_lock().map(drop));
            let died = faulty::is_dead();
            faulty::disarm();
            assert_eq!(taken.is_err(), died, "{layout:?}, call {call}: {taken:?}");
            let output = open_as(at, layout);
            let _lock = lock(&output);
            let (found, some) = (output.existing_digest_key().unwrap(), tree([("a", "1")]));
            assert_eq!(some.content(&found), some.content(&key));
            let FoundJournal::Journal(journal) = output.read_journal(false).unwrap() else {
                panic!("the journal is lost")
            };
            assert_eq!((journal.current, journal.last_good), (Some(generation(2)), Some(generation(1))));
            let directories = vec![generation(1).directory, generation(2).directory];
            assert_eq!(output.disk().unwrap(), Disk { link: Some(generation(2).directory), directories, torn: None });
            assert_eq!(output.finish().unwrap(), Vec::<String>::new());
            assert_eq!(output.content(&generation(1), &key).unwrap(), tree([("a", "1"), ("d/b", "1")]).content(&key));
            let pointer = if layout == Layout::Atomic { "..data" } else { CURRENT };
            let generations = [1, 2].map(|sequence| kept_at(layout, &generation(sequence).directory));
            output.prune(&[&generation(1).directory]).unwrap();
            let own = [pointer, LOCK, KEY, JOURNAL, JOURNAL_BAD].map(str::to_owned).into_iter().chain(generations);
            assert_eq!(own_names(at), own.collect());
            assert_eq!(names_in(&at.join(STATE)), ["private"]);
            assert_eq!((mode(&at.join(STATE)) & 0o777, mode(&at.join(OWN)) & 0o777), (0o755, 0o700));
            if !died {
                break;
            }
        }
    }
}

#[test]
fn while_an_earlier_version_runs_its_output_is_left_alone() {
    for (make_earlier, _, _) in EARLIER {
        let dir = scratch();
        let output = open(dir.path());
        drop(lock(&output));
        publish(&output, &generation(1), &tree([("a", "1")]));
        output.write_journal(&Journal::default()).unwrap();
        make_earlier(dir.path(), Layout::Atomic);
        let before = listing(dir.path());
        let [place] = ["..trimtab.lock", "..trimtab/lock"]
            .map(|name| dir.path().join(name))
            .into_iter()
            .filter(|place| place.exists())
            .collect::<Vec<_>>()
            .try_into()
            .unwrap();
        let earlier = fs::File::open(place).unwrap();
        earlier.lock().unwrap();
        assert!(open(dir.path()).try_lock().unwrap().is_none());
        let mut after = listing(dir.path());
        after.retain(|name, _| before.contains_key(name));
        assert_eq!(after, before);
        drop(earlier);
        let _lock = lock(&open(dir.path()));
        assert!(dir.path().join(JOURNAL).exists());
        assert!(["..trimtab.lock", "..trimtab/lock"].iter().all(|name| !dir.path().join(name).exists()));
    }
}

#[test]
fn a_version_that_came_back_is_believed() {
    let dir = scratch();
    let at = dir.path();
    let output = open(at);
    drop(lock(&output));
    publish(&output, &generation(1), &tree([("a", "1")]));
    output.write_journal(&Journal { current: Some(generation(1)), ..Journal::default() }).unwrap();
    make_0_2(at, Layout::Atomic);
    // It found an empty directory of a later version, and went on without.
    fs::create_dir(at.join(OWN)).unwrap();
    fs::write(at.join(JOURNAL), "older").unwrap();
    let output = open(at);
    let _lock = lock(&output);
    let FoundJournal::Journal(journal) = output.read_journal(false).unwrap() else { panic!("the journal is lost") };
    assert_eq!(journal.current, Some(generation(1)));
    assert_eq!(names_in(&at.join(STATE)), ["private"]);
    assert!(!at.join(OWN).join("private").exists(), "the older one is gone");
}

// Crashes and readers.

#[derive(Clone, Debug)]
struct Step {
    names: BTreeSet<&'static str>,
    /// How many effects are done before the crash; 5 is all of them.
    effects: usize,
}

fn step() -> impl Strategy<Value = Step> {
    let names = proptest::sample::subsequence(vec!["a", "b", "b-c", "c/x", "c/y/z", "d/e", "f"], 1..7);
    (names, 0..=5_usize).prop_map(|(names, effects)| Step { names: names.into_iter().collect(), effects })
}

/// Every name of the tree can be read at the top, as a reader that knows nothing of `..data` does.
fn assert_reads(output: &Path, tree: &Tree) {
    for (path, file) in tree.iter() {
        assert_eq!(fs::read(output.join(path.as_str())).unwrap(), file.bytes.read().unwrap(), "{path}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn readers_see_whole_generations_whatever_crashes(steps in proptest::collection::vec(step(), 1..8)) {
        let dir = scratch();
        let at = dir.path();
        let mut published: Option<(Generation, Tree)> = None;
        for (sequence, step) in (1..).zip(&steps) {
            let output = open(at);
            let generation = generation(sequence);
            let text = sequence.to_string();
            let tree = tree(step.names.iter().map(|name| (*name, text.as_str())));
            let from = published.as_ref().map(|(generation, _)| generation.directory.clone());
            for effect in 0..step.effects {
                match effect {
                    0 => output.stage(&generation, &tree).unwrap(),
                    1 => output.link(&generation).unwrap(),
                    2 => {
                        output.swap(&generation).unwrap();
                        published = Some((generation.clone(), tree.clone()));
                    }
                    3 => output.unlink(&generation).unwrap(),
                    _ => output.prune(from.as_deref().as_slice()).unwrap(),
                }
                prop_assert_eq!(current(at), published.as_ref().map(|(_, tree)| files(tree)));
                if let Some((_, tree)) = &published {
                    assert_reads(at, tree);
                }
            }
            if step.effects < 5 {
                // The crash, and what follows it.
                let output = open(at);
                let link = output.disk().unwrap().link;
                prop_assert_eq!(&link, &published.as_ref().map(|(generation, _)| generation.directory.clone()));
                if let Some(link) = &link {
                    let generation = Generation::found(link).unwrap();
                    output.link(&generation).unwrap();
                    output.unlink(&generation).unwrap();
                }
                output.prune(&[]).unwrap();
            }
            if let Some((generation, tree)) = &published {
                assert_reads(at, tree);
                prop_assert_eq!(top_names(at), tree.top_names().into_iter().map(str::to_owned).collect());
                let mut own: BTreeSet<_> = ["..data".to_owned(), generation.directory.clone()].into();
                own.extend(from.filter(|_| step.effects == 5));
                prop_assert_eq!(own_names(at), own);
            } else {
                prop_assert_eq!(own_names(at), BTreeSet::new());
            }
        }
    }
}

/// Four files of 2 kB that all hold their generation's number.
fn numbered(sequence: u64) -> Tree {
    let text = format!("{sequence:0>15}\n").repeat(128);
    tree([("a", text.as_str()), ("b", &text), ("d/c", &text), ("d/e/f", &text)])
}

/// The generation's number in a file of `numbered`; panics on a torn one.
fn number(path: &Path) -> std::io::Result<u64> {
    let text = fs::read_to_string(path)?;
    let mut lines: Vec<_> = text.lines().collect();
    assert_eq!((text.len(), lines.len()), (2048, 128), "torn: {}", path.display());
    lines.dedup();
    assert_eq!(lines.len(), 1, "torn: {}", path.display());
    Ok(lines[0].parse().unwrap())
}

#[test]
fn readers_never_see_a_torn_or_mixed_generation() {
    let dir = scratch();
    let output = open(dir.path());
    let at = dir.path();
    publish(&output, &generation(1), &numbered(1));
    let (stop, reads) = (AtomicBool::new(false), AtomicUsize::new(0));
    let link = || fs::read_link(at.join("..data")).unwrap().into_os_string().into_string().unwrap();
    std::thread::scope(|scope| {
        // Resolves ..data once.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let data = link();
                let seen: Result<BTreeSet<_>, _> =
                    ["a", "b", "d/c", "d/e/f"].iter().map(|name| number(&at.join(&data).join(name))).collect();
                match seen {
                    Ok(seen) => {
                        assert_eq!(seen.len(), 1, "mixed: {seen:?}");
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                    // The only excuse: two swaps, and then the prune of what is not kept any more.
                    Err(error) => {
                        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
                        assert!(sequence_of(&link()).unwrap() >= sequence_of(&data).unwrap() + 2);
                    }
                }
            }
        });
        // Goes by the top-level names: each file is whole, and never missing or older than the last.
        scope.spawn(|| {
            let mut newest = 0;
            while !stop.load(Ordering::Relaxed) {
                for name in ["a", "d/e/f"] {
                    // open(2) resolves the link and then the name; two swaps and a prune may come between.
                    let deadline = Instant::now() + Duration::from_secs(10);
                    let seen = loop {
                        match number(&at.join(name)) {
                            Ok(seen) => break seen,
                            Err(error) => assert!(Instant::now() < deadline, "{error}"),
                        }
                    };
                    assert!(seen >= newest);
                    newest = seen;
                }
            }
        });
        let _stop = Stop(&stop);
        let deadline = Instant::now() + Duration::from_secs(10);
        for sequence in 2.. {
            publish(&output, &generation(sequence), &numbered(sequence));
            output.prune(&[&generation(sequence - 1).directory]).unwrap();
            if sequence > 500 && (reads.load(Ordering::Relaxed) >= 200 || Instant::now() > deadline) {
                break;
            }
        }
    });
    assert!(reads.into_inner() >= 200, "the reader saw too little");
}

/// The victim of the next test, in a process of its own.
#[test]
#[ignore = "runs until it is killed"]
fn publishes_until_killed() {
    let Some(at) = std::env::var_os("TRIMTAB_TEST_OUTPUT") else { return };
    let layout = if std::env::var_os("TRIMTAB_TEST_FILES").is_some() { Layout::Files } else { Layout::Atomic };
    let output = open_as(&PathBuf::from(at), layout);
    let _lock = lock(&output);
    output.digest_key().unwrap();
    output.finish().unwrap();
    let mut sequence =
        output.disk().unwrap().directories.iter().filter_map(|name| sequence_of(name)).max().unwrap_or(0);
    let mut from = output.disk().unwrap().link.unwrap_or_default();
    println!("ready");
    loop {
        sequence += 1;
        let generation = generation(sequence);
        let mut tree = numbered(sequence);
        let extra = format!("only-{sequence}");
        tree.insert(TreePath::parse(&extra).unwrap(), file("", false)).unwrap();
        output.stage(&generation, &tree).unwrap();
        let journal = Journal { current: Some(generation.clone()), next_sequence: sequence + 1, ..Journal::default() };
        output.write_journal(&journal).unwrap();
        output.link(&generation).unwrap();
        output.swap(&generation).unwrap();
        output.unlink(&generation).unwrap();
        output.prune(&[&from]).unwrap();
        from = generation.directory;
    }
}

#[test]
fn kill_at_any_moment_leaves_a_whole_generation_and_what_recovery_can_fix() {
    killed_at_any_moment(Layout::Atomic);
}

#[test]
fn kill_at_any_moment_leaves_whole_files_and_what_recovery_can_fix() {
    killed_at_any_moment(Layout::Files);
}

fn killed_at_any_moment(layout: Layout) {
    let dir = scratch();
    let at = dir.path();
    let (mut key, mut published) = (None, false);
    for round in 0..30_u32 {
        let mut victim = Command::new(std::env::current_exe().unwrap());
        victim.args(["--exact", "publish::tests::publishes_until_killed", "--ignored", "--nocapture"]);
        victim.env("TRIMTAB_TEST_OUTPUT", at).stdout(Stdio::piped());
        if layout == Layout::Files {
            victim.env("TRIMTAB_TEST_FILES", "1");
        }
        let mut child = victim.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().ends_with("ready")));
        // Any moment will do: a publish takes about 1 ms.
        std::thread::sleep(Duration::from_micros(u64::from(round * 397 % 5000)));
        child.kill().unwrap();
        child.wait().unwrap();

        // Each file is whole, and none that both generations have is missing.
        for path in ["a", "b", "d/c", "d/e/f"].iter().filter(|_| published) {
            number(&at.join(path)).unwrap();
        }
        let output = open_as(at, layout);
        // The kernel has released the dead process's lock.
        let _lock = lock(&output);
        assert_eq!(output.finish().unwrap(), Vec::<String>::new());
        let bytes = fs::read(at.join(KEY)).unwrap();
        assert_eq!(bytes.len(), 32);
        assert_eq!(*key.get_or_insert(bytes.clone()), bytes);
        assert!(!matches!(output.read_journal(false).unwrap(), FoundJournal::SetAside { .. }));
        let disk = output.disk().unwrap();
        published = disk.link.is_some();
        if let Some(link) = disk.link {
            let sequence = sequence_of(&link).unwrap();
            let mut expected = numbered(sequence);
            expected.insert(TreePath::parse(&format!("only-{sequence}")).unwrap(), file("", false)).unwrap();
            if layout == Layout::Atomic {
                assert_eq!(current(at), Some(files(&expected)));
            }
            assert_reads(at, &expected);
            let generation = Generation::found(&link).unwrap();
            output.link(&generation).unwrap();
            output.unlink(&generation).unwrap();
            output.prune(&[]).unwrap();
            assert_eq!(current_as(layout, at), Some(files(&expected)));
            assert_reads(at, &expected);
            assert_eq!(top_names(at), expected.top_names().into_iter().map(str::to_owned).collect());
            let pointer = if layout == Layout::Atomic { "..data" } else { CURRENT };
            let own = [pointer, JOURNAL, LOCK, KEY, &kept_at(layout, &link)].map(str::to_owned);
            assert_eq!(own_names(at), own.into());
        }
    }
    assert!(key.is_some());
}
