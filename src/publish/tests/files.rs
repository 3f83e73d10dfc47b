//! The layout of single files: others' files, what changes and what does not, and what others do to ours.

use std::sync::atomic::AtomicU64;

use super::faulty::Fault;
use super::*;

fn open_files(output: &Path) -> Output {
    open_as(output, Layout::Files)
}

fn inode(path: &Path) -> (u64, i64, i64) {
    let found = fs::symlink_metadata(path).unwrap();
    (found.ino(), found.mtime(), found.mtime_nsec())
}

fn read(at: &Path) -> BTreeMap<String, String> {
    disk::in_place(at)
}

#[test]
fn only_what_changes_is_written_and_what_is_not_needed_goes() {
    let dir = scratch();
    let output = open_files(dir.path());
    let (one, two) = (tree([("a", "1"), ("d/b", "1"), ("x/y/z", "1")]), tree([("a", "1"), ("d/b", "2"), ("n/m", "2")]));
    publish(&output, &generation(1), &one);
    assert_eq!(read(dir.path()), files(&one));
    let same = inode(&dir.path().join("a"));
    output.stage(&generation(2), &two).unwrap();
    let staged = listing(&path_of(&output, &generation(2)).join("files"));
    assert_eq!(staged.into_iter().filter(|(_, what)| what != "a directory").count(), 2);
    for effect in [Output::link, Output::swap, Output::unlink] {
        effect(&output, &generation(2)).unwrap();
    }
    assert_eq!(read(dir.path()), files(&two));
    assert_eq!(inode(&dir.path().join("a")), same);
    assert!(!dir.path().join("x").exists(), "its directories are gone");
    assert_eq!(mode(&dir.path().join("d/b")), 0o644);
    // And back, from the copies.
    for effect in [Output::link, Output::swap, Output::unlink] {
        effect(&output, &generation(1)).unwrap();
    }
    assert_eq!(read(dir.path()), files(&one));
    assert_eq!(inode(&dir.path().join("a")), same);
    assert!(!dir.path().join("n").exists());
}

#[test]
fn others_files_are_refused_by_name_and_never_touched() {
    let dir = scratch();
    let output = open_files(dir.path());
    fs::create_dir_all(dir.path().join("theirs/empty")).unwrap();
    fs::write(dir.path().join("theirs/file"), "theirs").unwrap();
    symlink("/etc", dir.path().join("link")).unwrap();
    publish(&output, &generation(1), &tree([("ours", "1"), ("theirs/ours", "1"), ("theirs/empty/ours", "1")]));
    for (path, named) in [("theirs/file", "theirs/file"), ("link/x", "link"), ("theirs/file/x", "theirs/file")] {
        let error = output.stage(&generation(2), &tree([("ours", "1"), (path, "2")])).unwrap_err();
        assert!(error.rejected(), "{error}");
        let text = error.to_string();
        assert!(text.contains(&format!("{} is", dir.path().join(named).display())), "{text}");
    }
    publish(&output, &generation(2), &tree([("ours", "2")]));
    let mut expected = files(&tree([("ours", "2"), ("theirs/file", "theirs")]));
    expected.insert("link".into(), "-> /etc".into());
    assert_eq!(read(dir.path()), expected);
    assert!(dir.path().join("theirs/empty").exists(), "an empty directory that was there before");
}

#[test]
fn what_somebody_puts_in_the_way_later_is_not_replaced_and_not_removed() {
    let dir = scratch();
    let output = open_files(dir.path());
    publish(&output, &generation(1), &tree([("a", "1"), ("gone", "1")]));
    publish(&output, &generation(2), &tree([("a", "2")]));
    fs::write(dir.path().join("gone"), "theirs").unwrap();
    // Not by tidying, not by the way back, and not between a check and the swap.
    output.unlink(&generation(2)).unwrap();
    let key = output.digest_key().unwrap();
    assert!(output.content(&generation(1), &key).unwrap_err().to_string().contains("gone is a regular file"));
    assert!(output.link(&generation(1)).is_err() && output.swap(&generation(1)).is_err());
    assert_eq!(read(dir.path())["gone"], "theirs");
    output.swap(&generation(2)).unwrap();
    output.stage(&generation(3), &tree([("a", "2"), ("new", "3")])).unwrap();
    output.link(&generation(3)).unwrap();
    fs::write(dir.path().join("new"), "theirs").unwrap();
    let error = output.swap(&generation(3)).unwrap_err().to_string();
    assert!(error.contains("new is a regular file"), "{error}");
    assert_eq!(read(dir.path())["new"], "theirs");
}

#[test]
fn a_file_of_ours_that_somebody_changed_is_found_at_start_and_before_a_rollback() {
    let dir = scratch();
    let output = open_files(dir.path());
    let one = tree([("a", "1"), ("b", "1")]);
    publish(&output, &generation(1), &one);
    let key = output.digest_key().unwrap();
    assert_eq!(output.content(&generation(1), &key).unwrap(), one.content(&key));
    fs::write(dir.path().join("b"), "!").unwrap();
    publish(&output, &generation(2), &tree([("a", "2"), ("b", "1")]));
    assert_ne!(output.content(&generation(1), &key).unwrap(), one.content(&key));
    let said = output.finish().unwrap();
    assert!(said.len() == 1 && said[0].contains("/b was changed"), "{said:?}");
    // What is not needed any more is left to whoever changed it.
    publish(&output, &generation(3), &tree([("a", "2")]));
    assert_eq!(read(dir.path())["b"], "!");
}

#[test]
fn a_removed_file_comes_back_with_the_next_publish_and_a_planted_link_is_not_followed() {
    let dir = scratch();
    let elsewhere = scratch();
    let output = open_files(dir.path());
    publish(&output, &generation(1), &tree([("a", "1"), ("b", "1"), ("d/c", "1")]));
    fs::remove_file(dir.path().join("a")).unwrap();
    fs::remove_dir_all(dir.path().join("d")).unwrap();
    fs::write(elsewhere.path().join("c"), "1").unwrap();
    symlink(elsewhere.path(), dir.path().join("d")).unwrap();
    // A directory of ours that leads elsewhere now: nothing is removed there, and nothing written.
    publish(&output, &generation(2), &tree([("a", "1"), ("b", "2")]));
    assert_eq!(read(elsewhere.path()), files(&tree([("c", "1")])));
    assert_eq!(read(dir.path())["a"], "1");
    let error = output.stage(&generation(3), &tree([("d/c", "3")])).unwrap_err().to_string();
    assert!(error.contains("/d is a symlink"), "{error}");
    // A link in the place of a file of ours is replaced, and not written through.
    let target = elsewhere.path().join("c");
    fs::remove_file(dir.path().join("b")).unwrap();
    symlink(&target, dir.path().join("b")).unwrap();
    publish(&output, &generation(3), &tree([("a", "1"), ("b", "3")]));
    assert_eq!((read(dir.path())["b"].as_str(), fs::read_to_string(target).unwrap().as_str()), ("3", "1"));
}

#[test]
fn a_spool_has_no_name_and_is_ours_alone_and_what_it_cannot_give_is_not_published() {
    let dir = scratch();
    let output = open_files(dir.path());
    publish(&output, &generation(1), &tree([("a", "1")]));
    let before = listing(dir.path());
    // One that a kill has left in the moment that it had a name, where files cannot be without.
    fs::write(dir.path().join("..trimtab/private/spool"), "left over").unwrap();
    let spool = output.spool().unwrap();
    assert_eq!(listing(dir.path()), before);
    let value = Bytes::from(vec![b'x'; 1000]);
    let mut two = tree([("a", "2")]);
    let kept = File {
        bytes: crate::model::content::Content::keep(value.clone(), &spool).unwrap(),
        secret: true,
        origin: "a test".into(),
    };
    two.insert(TreePath::parse("kept").unwrap(), kept).unwrap();
    let mut links = fs::read_dir("/proc/self/fd").unwrap().map(|link| link.unwrap().path());
    let link = links.find(|link| {
        // O_TMPFILE's name is `#INODE`, and it was never there.
        fs::read_link(link).is_ok_and(|to| to.starts_with(dir.path()) && to.to_string_lossy().ends_with("(deleted)"))
    });
    let link = link.unwrap();
    let found = fs::metadata(&link).unwrap();
    assert_eq!((found.mode() & 0o7777, found.nlink(), found.len()), (0o600, 0, 1000));
    // Whoever spoils it gets nothing published, and no rejection either.
    let open = fs::OpenOptions::new().write(true).open(&link).unwrap();
    open.set_len(0).unwrap();
    let error = output.stage(&generation(2), &two).unwrap_err();
    assert!(!error.rejected() && error.to_string().contains("cannot be read again"), "{error}");
    assert_eq!(listing(dir.path()), before);
    fs::write(&link, &value).unwrap();
    publish(&output, &generation(2), &two);
    assert_eq!(fs::read(dir.path().join("kept")).unwrap(), value);
    assert_eq!(mode(&dir.path().join("kept")), 0o640);
}

#[test]
fn a_file_that_is_removed_at_any_moment_comes_back_with_the_next_publish_but_one() {
    let dir = scratch();
    let output = open_files(dir.path());
    let versions: Vec<_> = ["1", "2", "3"].map(|version| tree([("a", "1"), ("d/b", "1"), ("d/c", version)])).into();
    publish(&output, &generation(1), &versions[0]);
    for (number, path) in (2..).zip(["a", "d/b", "a", "d/b", "a", "d/b"]) {
        let (this, next) = (generation(2 * number), generation(2 * number + 1));
        let steps: [fn(&Output, &Generation) -> _; 3] = [Output::link, Output::swap, Output::unlink];
        let remove_at = usize::try_from(number).unwrap() / 2;
        output.stage(&this, &versions[1]).unwrap();
        for (at, step) in steps.iter().enumerate() {
            if at == remove_at % 3 {
                fs::remove_file(dir.path().join(path)).unwrap();
            }
            step(&output, &this).unwrap();
        }
        publish(&output, &next, &versions[2]);
        assert_eq!(read(dir.path()), files(&versions[2]), "{path}, {remove_at}");
        output.prune(&[&next.directory]).unwrap();
    }
}

#[test]
fn copies_that_a_power_loss_tore_before_the_swap_do_not_take_the_place_of_what_is_whole() {
    let dir = scratch();
    let (one, two) = (tree([("a", "1"), ("same", "12")]), tree([("a", "2"), ("same", "12")]));
    let output = open_files(dir.path());
    publish(&output, &generation(1), &one);
    publish(&output, &generation(2), &two);
    output.stage(&generation(3), &tree([("a", "3"), ("same", "3")])).unwrap();
    output.link(&generation(3)).unwrap();
    for number in [1, 2] {
        fs::write(path_of(&output, &generation(number)).join("files/same"), "1").unwrap();
    }
    // One of a file that somebody has changed in place.
    fs::write(path_of(&output, &generation(2)).join("files/a"), "").unwrap();
    fs::write(dir.path().join("a"), "theirs").unwrap();
    drop(output);
    let output = open_files(dir.path());
    let found = output.finish().unwrap();
    assert!(found.len() == 1 && found[0].contains("/a was changed"), "{found:?}");
    assert_eq!(read(dir.path()), files(&tree([("a", "theirs"), ("same", "12")])));
    let key = output.digest_key().unwrap();
    assert_eq!(output.content(&generation(1), &key).unwrap(), one.content(&key));
}

#[test]
fn one_layout_is_not_taken_for_the_other() {
    for (first, then, named) in
        [(Layout::Atomic, Layout::Files, "--layout atomic"), (Layout::Files, Layout::Atomic, "--layout files")]
    {
        let dir = scratch();
        publish(&open_as(dir.path(), first), &generation(1), &tree([("a", "1")]));
        let before = listing(dir.path());
        let error = Output::open(&Config { layout: then, ..config(dir.path()) }).unwrap_err().to_string();
        assert!(error.contains(named) && error.contains("another directory"), "{error}");
        assert_eq!(listing(dir.path()), before);
    }
}

#[test]
fn programs_see_the_whole_tree_and_only_changes_are_published() {
    let dir = scratch();
    let output = open_files(dir.path());
    publish(&output, &generation(1), &tree([("a", "1"), ("b", "1")]));
    let two = tree([("a", "1"), ("b", "2")]);
    output.stage_whole(&generation(2), &two).unwrap();
    assert_eq!(listing(&output.candidate(&generation(2))), files(&two));
    assert!(!output.is_intact(&generation(2), &two).unwrap());
    let same = inode(&dir.path().join("a"));
    publish(&output, &generation(2), &two);
    assert_eq!((read(dir.path()), inode(&dir.path().join("a"))), (files(&two), same));
}

#[test]
fn a_manifest_that_another_user_wrote_is_not_believed() {
    needs_privileges();
    let dir = scratch();
    let output = open_files(dir.path());
    publish(&output, &generation(1), &tree([("a", "1")]));
    let manifest = path_of(&output, &generation(1)).join("manifest");
    chown(&manifest, Some(NOBODY), None).unwrap();
    let error = output.link(&generation(1)).unwrap_err().to_string();
    assert!(error.contains("manifest is missing or not what Trimtab wrote"), "{error}");
    chown(dir.path().join(CURRENT), Some(NOBODY), None).unwrap();
    assert!(output.disk().unwrap_err().to_string().contains("..trimtab/private/current is not what Trimtab wrote"));
}

fn back(output: &Output, generation: &Generation) {
    for effect in [Output::link, Output::swap, Output::unlink] {
        effect(output, generation).unwrap();
    }
}

#[test]
fn readers_find_each_file_whole_and_never_missing() {
    let dir = scratch();
    let output = open_files(dir.path());
    let at = dir.path();
    publish(&output, &generation(1), &numbered(1));
    // The newest that can be there, and the oldest: the way back is gone as well.
    let (newest, stop, reads) = (AtomicU64::new(1), AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for names in [["a", "d/e/f"], ["b", "d/c"]] {
            let (newest, stop, reads) = (&newest, &stop, &reads);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    for name in names {
                        let oldest = newest.load(Ordering::SeqCst).saturating_sub(2);
                        // Panics on a torn one.
                        let seen = number(&at.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
                        let newest = newest.load(Ordering::SeqCst);
                        assert!((oldest..=newest).contains(&seen), "{name}: {seen} is none of {oldest} to {newest}");
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let _stop = Stop(&stop);
        let deadline = Instant::now() + Duration::from_secs(10);
        for sequence in 2.. {
            newest.store(sequence, Ordering::SeqCst);
            publish(&output, &generation(sequence), &numbered(sequence));
            if sequence % 5 == 0 {
                back(&output, &generation(sequence - 1));
                back(&output, &generation(sequence));
            }
            output.prune(&[&generation(sequence - 1).directory]).unwrap();
            if sequence > 250 && (reads.load(Ordering::Relaxed) >= 1000 || Instant::now() > deadline) {
                break;
            }
        }
    });
    assert!(reads.into_inner() >= 1000, "the readers saw too little");
}

/// Waits for the clock of the file system, which on older kernels ticks slowly.
fn until_a_change_shows(dir: &Path) {
    let changed = |path: &Path| fs::metadata(path).map(|found| (found.ctime(), found.ctime_nsec())).unwrap();
    let outside = scratch();
    let at = outside.path().join("x");
    let last = ["a", "b", "c/d"].map(|name| changed(&dir.join(name))).into_iter().max().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while fs::write(&at, "").map(|()| changed(&at)).unwrap() <= last {
        assert!(Instant::now() < deadline, "the clock stands");
    }
}

/// A generation, and where its way is cut off.
#[derive(Clone, Debug)]
struct Step {
    files: BTreeMap<&'static str, u8>,
    /// The system call before which the process dies.
    dies: Option<usize>,
    /// Whether it is gone back from.
    back: bool,
}

fn step() -> impl Strategy<Value = Step> {
    // A file of one generation is a directory of another one; contents stay the same now and then.
    let names = proptest::sample::subsequence(vec!["a", "b", "b-c", "c", "c/x", "c/y/z", "theirs/d", "f"], 1..8);
    let contents = proptest::collection::vec(0..3_u8, 8);
    (names, contents, proptest::option::of(0..150_usize), any::<bool>()).prop_map(|(names, contents, dies, back)| {
        let mut files: BTreeMap<_, _> = names.into_iter().zip(contents).collect();
        if files.contains_key("c") && files.len() % 2 == 0 {
            files.retain(|name, _| !name.starts_with("c/"));
        } else if files.keys().any(|name| name.starts_with("c/")) {
            files.remove("c");
        }
        Step { files, dies, back }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn readers_see_whole_files_whatever_crashes(steps in proptest::collection::vec(step(), 1..7)) {
        let dir = scratch();
        let at = dir.path();
        fs::create_dir_all(at.join("theirs/empty")).unwrap();
        fs::write(at.join("theirs/file"), "theirs").unwrap();
        let theirs = [("theirs/file".to_owned(), "theirs".to_owned())];
        let mut current: Option<(Generation, BTreeMap<String, String>)> = None;
        for (sequence, step) in (1..).zip(&steps) {
            let output = open_files(at);
            output.digest_key().unwrap();
            let generation = generation(sequence);
            let texts: Vec<_> = step.files.iter().map(|(name, text)| (*name, text.to_string().repeat(50))).collect();
            let tree = tree(texts.iter().map(|(name, text)| (*name, text.as_str())));
            let next = files(&tree);
            // What is read, while it is between the two: of each file the one or the other, and none missing.
            let before = current.as_ref().map(|(_, files)| files.clone()).unwrap_or_default();
            let (place, old, new, others) = (at.to_owned(), before.clone(), next.clone(), theirs.clone());
            faulty::watch(Some(std::rc::Rc::new(move || {
                let found = read(&place);
                for (path, text) in &found {
                    let known = [old.get(path), new.get(path), others.iter().find(|(p, _)| p == path).map(|(_, t)| t)];
                    assert!(known.contains(&Some(text)), "{path} holds {text}");
                }
                for path in old.keys().filter(|path| new.contains_key(*path)) {
                    assert!(found.contains_key(path), "{path} is missing");
                }
            })));
            faulty::arm(step.dies.map(|call| (call, Fault::Dies)));
            let effects = [Output::link, Output::swap, Output::unlink];
            let mut done = output.stage(&generation, &tree);
            for effect in effects {
                done = done.and_then(|()| effect(&output, &generation));
            }
            if let (true, Some((previous, _))) = (step.back, &current) {
                for effect in effects {
                    done = done.and_then(|()| effect(&output, previous));
                }
            }
            faulty::watch(None);
            let died = faulty::is_dead();
            prop_assert!(died || done.is_ok(), "{:?}", done);
            faulty::disarm();
            // The next start.
            let output = open_files(at);
            let said = output.finish().unwrap();
            prop_assert_eq!(said, Vec::<String>::new());
            let link = output.disk().unwrap().link;
            let is_back = !died && step.back && current.is_some();
            if link.as_ref() == Some(&generation.directory) {
                prop_assert!(!is_back);
                // What was current before can be gone back to.
                if let Some((previous, files)) = &current {
                    let key = output.digest_key().unwrap();
                    let was = self::tree(files.iter().map(|(path, text)| (path.as_str(), text.as_str())));
                    prop_assert_eq!(output.content(previous, &key).unwrap(), was.content(&key));
                }
                current = Some((generation.clone(), next));
            } else {
                prop_assert!(died || is_back);
                prop_assert_eq!(&link, &current.as_ref().map(|(generation, _)| generation.directory.clone()));
            }
            let mut expected: BTreeMap<_, _> = theirs.clone().into();
            if let Some((generation, files)) = &current {
                output.link(generation).unwrap();
                output.unlink(generation).unwrap();
                expected.extend(files.clone());
            }
            output.prune(&[]).unwrap();
            prop_assert_eq!(read(at), expected);
            prop_assert!(at.join("theirs/empty").is_dir());
            let mut own: BTreeSet<_> = [KEY.to_owned()].into();
            if let Some((generation, _)) = &current {
                own.extend([CURRENT.to_owned(), kept_at(Layout::Files, &generation.directory)]);
            }
            prop_assert_eq!(own_names(at), own);
            // No directory of ours is left without a file.
            let made = ["b-c", "c", "c/y"].into_iter().filter(|path| at.join(path).is_dir());
            for path in made {
                prop_assert!(current.as_ref().is_some_and(|(_, files)| files.keys().any(|f| f.starts_with(&format!("{path}/")))), "{} is left", path);
            }
        }
    }

    #[test]
    fn what_somebody_removes_comes_back_where_trees_share_most_of_what_they_have(
        steps in proptest::collection::vec((0..4u8, any::<prop::sample::Index>()), 1..10),
    ) {
        let dir = scratch();
        let output = open_files(dir.path());
        let names: Vec<_> = (0..100).map(|number| format!("{}/{number}", ["a", "b", "c/d"][number % 3])).collect();
        let mut now = tree(names.iter().map(|name| (&**name, "1")));
        publish(&output, &generation(1), &now);
        let mut newest = "a/0".to_owned();
        for (sequence, (what, at)) in (2..).zip(steps) {
            until_a_change_shows(dir.path());
            let any = now.iter().nth(at.index(now.len())).unwrap().0.to_string();
            let removed = match what {
                0 => None,
                1 => Some(&any),
                2 => Some(&newest),
                _ => {
                    newest = format!("new-{sequence}/x");
                    now.insert(TreePath::parse(&newest).unwrap(), file("1", false)).unwrap();
                    None
                }
            };
            if let Some(path) = removed {
                fs::remove_file(dir.path().join(path)).unwrap();
            }
            now.replace(&TreePath::parse("a/0").unwrap(), file(&sequence.to_string(), false).bytes);
            publish(&output, &generation(sequence), &now);
            prop_assert_eq!(read(dir.path()), files(&now));
            // What is remembered of the manifest is what was written down.
            let content = open_files(dir.path()).content(&generation(sequence), &DIGEST_KEY).unwrap();
            prop_assert_eq!(content, now.content(&DIGEST_KEY));
            output.prune(&[]).unwrap();
        }
    }

    #[test]
    fn content_is_read_back_from_copies_and_places(one in any_tree(), two in any_tree(), at in any::<prop::sample::Index>()) {
        let dir = scratch();
        let output = open_files(dir.path());
        publish(&output, &generation(1), &one);
        let content = |sequence| output.content(&generation(sequence), &DIGEST_KEY);
        prop_assert_eq!(content(1).unwrap(), one.content(&DIGEST_KEY));
        output.stage(&generation(2), &two).unwrap();
        output.link(&generation(2)).unwrap();
        output.swap(&generation(2)).unwrap();
        output.unlink(&generation(2)).unwrap();
        prop_assert_eq!(content(1).unwrap(), one.content(&DIGEST_KEY));
        prop_assert_eq!(content(2).unwrap(), two.content(&DIGEST_KEY));
        if one.is_empty() {
            return Ok(());
        }
        // One file is changed, longer, missing, wherever it is.
        let (path, file) = one.iter().nth(at.index(one.len())).unwrap();
        let copy = path_of(&output, &generation(1)).join("files").join(path.as_str());
        let place = if copy.exists() { copy } else { dir.path().join(path.as_str()) };
        let mut flipped = file.bytes.read().unwrap().to_vec();
        if let Some(byte) = flipped.first_mut() {
            *byte ^= 1;
            fs::write(&place, &flipped).unwrap();
            prop_assert_ne!(content(1).unwrap(), one.content(&DIGEST_KEY));
        }
        fs::write(&place, "longer than any").unwrap();
        prop_assert!(content(1).unwrap_err().to_string().contains("of another size"));
        fs::remove_file(&place).unwrap();
        // In its place may be another generation's, of the same length.
        prop_assert_ne!(content(1).ok(), Some(one.content(&DIGEST_KEY)));
        fs::write(&place, file.bytes.read().unwrap()).unwrap();
        prop_assert_eq!(content(1).unwrap(), one.content(&DIGEST_KEY));
    }
}

#[test]
fn content_of_copies_follows_nothing_and_ends_whatever_was_put_there() {
    let outside = scratch();
    fs::write(outside.path().join("a"), "1").unwrap();
    fs::create_dir(outside.path().join("d")).unwrap();
    fs::write(outside.path().join("d/b"), "2").unwrap();
    let spoilt = |what: &dyn Fn(&Path)| {
        let dir = scratch();
        let output = open_files(dir.path());
        let one = tree([("a", "1"), ("d/b", "2")]);
        publish(&output, &generation(1), &one);
        publish(&output, &generation(2), &tree([("a", "!"), ("d/b", "!")]));
        assert_eq!(output.content(&generation(1), &DIGEST_KEY).unwrap(), one.content(&DIGEST_KEY));
        what(&path_of(&output, &generation(1)));
        // What is outside has the right bytes.
        let found = output.content(&generation(1), &DIGEST_KEY);
        assert!(found.is_err() || found.unwrap() != one.content(&DIGEST_KEY));
    };
    let before = listing(outside.path());
    let link = |at: &Path| {
        fs::remove_file(at.join("files/a")).unwrap();
        symlink(outside.path().join("a"), at.join("files/a")).unwrap();
    };
    let linked_directory = |at: &Path| {
        fs::remove_dir_all(at.join("files/d")).unwrap();
        symlink(outside.path().join("d"), at.join("files/d")).unwrap();
    };
    let all_files = |at: &Path| {
        fs::remove_dir_all(at.join("files")).unwrap();
        symlink(outside.path(), at.join("files")).unwrap();
    };
    let gone = |at: &Path| {
        fs::remove_dir_all(at).unwrap();
        symlink(outside.path(), at).unwrap();
    };
    let endless = |at: &Path| fs::File::create(at.join("files/a")).unwrap().set_len(1 << 60).unwrap();
    for what in [&link as &dyn Fn(&Path), &linked_directory, &all_files, &gone, &endless] {
        spoilt(what);
        assert_eq!(listing(outside.path()), before);
    }
}

#[test]
fn secret_file_and_its_copies_are_never_wider_than_its_mode() {
    let dir = scratch();
    let output = open_files(dir.path());
    let content = |sequence: u64| format!("{sequence:8}").repeat(1 << 17);
    let secret = |sequence: u64| {
        let mut tree = Tree::default();
        tree.insert(TreePath::parse("secret").unwrap(), file(&content(sequence), true)).unwrap();
        tree
    };
    let (stop, now) = (AtomicBool::new(false), AtomicU64::new(0));
    let halves = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let size = content(0).len() as u64;
    std::thread::scope(|scope| {
        for (at, half) in ["files/secret", "part/0"].into_iter().zip(&halves) {
            let (stop, now, output, dir) = (&stop, &now, &output, &dir);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let sequence = now.load(Ordering::Relaxed);
                    // What is staged is the newest, what is copied the one before.
                    let before = path_of(output, &generation(sequence.saturating_sub(1)));
                    let of = if at == "part/0" { before.clone() } else { path_of(output, &generation(sequence)) };
                    for path in [of.join(at), before.join("files/secret"), dir.path().join("secret")] {
                        let Ok(found) = fs::symlink_metadata(&path) else { continue };
                        assert_eq!(found.mode() & 0o7777 & !0o640, 0, "{}", path.display());
                        if found.len() < size {
                            half.fetch_add(1, Ordering::Relaxed);
                            assert_eq!(found.mode() & 0o077, 0, "{} is not whole yet", path.display());
                        }
                    }
                }
            });
        }
        let _stop = Stop(&stop);
        let deadline = Instant::now() + Duration::from_secs(10);
        for sequence in 1.. {
            now.store(sequence, Ordering::Relaxed);
            publish(&output, &generation(sequence), &secret(sequence));
            output.prune(&[]).unwrap();
            if halves.iter().all(|half| half.load(Ordering::Relaxed) >= 50) || Instant::now() > deadline {
                break;
            }
        }
    });
    assert!(halves.iter().all(|half| half.load(Ordering::Relaxed) >= 50), "the watchers saw too little: {halves:?}");
}

#[test]
fn what_is_not_in_the_manifest_is_not_moved_out_of_a_generation() {
    let dir = scratch();
    let output = open_files(dir.path());
    output.stage(&generation(1), &tree([("a", "1")])).unwrap();
    for name in ["..trimtab", "b"] {
        fs::write(path_of(&output, &generation(1)).join("files").join(name), "").unwrap();
    }
    back(&output, &generation(1));
    assert_eq!(read(dir.path()), files(&tree([("a", "1")])));
    assert!(!dir.path().join(JOURNAL).exists());
}

#[test]
fn swap_refuses_a_missing_generation_and_a_foreign_pointer() {
    let dir = scratch();
    let output = open_files(dir.path());
    publish(&output, &generation(1), &tree([("a", "1")]));
    let error = output.swap(&generation(2)).unwrap_err().to_string();
    assert!(error.contains("missing"), "{error}");
    output.stage(&generation(2), &tree([("a", "2")])).unwrap();
    let name = generation(1).directory;
    let pointers = [
        String::new(),
        "{".into(),
        format!(r#"{{"current":"{name}","from":"../x"}}"#),
        r#"{"current":"..","from":null}"#.into(),
        format!(r#"{{"current":"{name}","from":null,"more":1}}"#),
    ];
    for pointer in pointers {
        fs::write(dir.path().join(CURRENT), &pointer).unwrap();
        let before = listing(dir.path());
        let tree = tree([("a", "")]);
        let results = [
            output.finish().map(drop),
            output.link(&generation(2)),
            output.swap(&generation(2)),
            output.prune(&[]),
            output.stage(&generation(3), &tree),
        ];
        for result in results {
            let error = result.unwrap_err().to_string();
            assert!(error.contains("..trimtab/private/current is not what Trimtab wrote"), "{error}");
        }
        assert_eq!(listing(dir.path()), before, "{pointer}");
    }
}

#[test]
fn all_that_others_changed_is_counted_at_start() {
    let dir = scratch();
    let output = open_files(dir.path());
    publish(&output, &generation(1), &tree([("a", "1"), ("b", "1"), ("c/d", "1"), ("e", "1")]));
    fs::write(dir.path().join("b"), "!").unwrap();
    fs::remove_dir_all(dir.path().join("c")).unwrap();
    fs::remove_file(dir.path().join("e")).unwrap();
    symlink("a", dir.path().join("e")).unwrap();
    let said = output.finish().unwrap();
    assert!(said.len() == 1 && said[0].contains("/b was changed") && said[0].contains("(3 such in all)"), "{said:?}");
}

#[test]
fn a_swap_that_finds_no_room_for_its_copies_leaves_room_for_the_journal() {
    needs_privileges();
    let dir = scratch();
    apart(|| {
        mount(&["-t", "tmpfs", "-o", "size=256k,mode=0755", "tmpfs"], dir.path());
        let at = dir.path().join("conf");
        let output = open_files(&at);
        let (large, other) = ("1".repeat(60_000), "2".repeat(60_000));
        let one = tree([("a", "1"), ("b", large.as_str()), ("c", &large)]);
        publish(&output, &generation(1), &one);
        output.stage(&generation(2), &tree([("a", "2"), ("b", other.as_str()), ("c", "2")])).unwrap();
        // As the machine does before it links.
        let journal = Journal { current: Some(generation(2)), next_sequence: 3, ..Journal::default() };
        output.write_journal(&journal).unwrap();
        let error = output.link(&generation(2)).unwrap_err().to_string();
        assert!(error.contains("cannot keep a copy of") && error.contains("the volume is full"), "{error}");
        output.write_journal(&Journal::default()).unwrap();
        assert_eq!(read(&at), files(&one));
        output.unlink(&generation(1)).unwrap();
        output.prune(&[]).unwrap();
        publish(&output, &generation(3), &tree([("a", "3"), ("b", large.as_str()), ("c", &large)]));
    });
}
