//! `--state-dir`: what is Trimtab's own beside the output, moved there, held by one at a time.

use super::*;

fn beside(dir: &Path, output: &str, state: &str, layout: Layout) -> Config {
    Config { layout, state_dir: Some(dir.join(state)), ..config(&dir.join(output)) }
}

fn open_beside(dir: &Path, layout: Layout) -> Output {
    Output::open(&beside(dir, "out", "state", layout)).unwrap().0
}

fn no_change(_: &Path, _: Layout) {}

/// Two generations and a journal.
fn made(output: &Output) -> DigestKey {
    let _lock = lock(output);
    let key = output.digest_key().unwrap();
    publish(output, &generation(1), &tree([("a", "1"), ("d/b", "1")]));
    publish(output, &generation(2), &tree([("a", "2"), ("d/b", "1")]));
    let journal = Journal { last_good: Some(generation(1)), current: Some(generation(2)), ..Journal::default() };
    output.write_journal(&journal).unwrap();
    key
}

/// All that [`made`] made is known, and nothing of Trimtab's own is in the output.
fn assert_apart(dir: &Path, layout: Layout, output: &Output, key: &DigestKey) {
    let some = tree([("a", "1")]);
    assert_eq!(some.content(&output.existing_digest_key().unwrap()), some.content(key));
    let FoundJournal::Journal(journal) = output.read_journal(false).unwrap() else { panic!("the journal is lost") };
    assert_eq!((journal.current, journal.last_good), (Some(generation(2)), Some(generation(1))));
    let directories = vec![generation(1).directory, generation(2).directory];
    assert_eq!(output.disk().unwrap(), Disk { link: Some(generation(2).directory), directories, torn: None });
    assert_eq!(output.finish().unwrap(), Vec::<String>::new());
    assert_eq!(output.content(&generation(1), key).unwrap(), tree([("a", "1"), ("d/b", "1")]).content(key));
    output.prune(&[&generation(1).directory]).unwrap();
    let mut kept = BTreeSet::from(["a".to_owned(), "d".to_owned()]);
    if layout == Layout::Atomic {
        kept.extend(["..data".to_owned(), generation(1).directory, generation(2).directory]);
    }
    assert_eq!(BTreeSet::from_iter(names_in(&dir.join("out"))), kept);
    let state = dir.join("state");
    assert_eq!((names_in(&state), names_in(&state.join(STATE))), (vec![STATE.to_owned()], vec!["private".to_owned()]));
    assert_eq!(mode(&state.join(OWN)) & 0o777, 0o700);
    assert_eq!(mode(&state.join(LOCK)), 0o600);
    assert!(!own_names(&state).iter().any(|name| name.ends_with("000009-090909090909")), "what was there before");
}

#[test]
fn what_is_in_the_output_is_moved_beside_it_wherever_that_is_cut_off() {
    let earlier: [MakeEarlier; 3] = [no_change, make_0_1, make_0_2];
    for (layout, (number, make_earlier)) in
        LAYOUTS.into_iter().flat_map(|layout| earlier.into_iter().enumerate().map(move |one| (layout, one)))
    {
        for call in 0.. {
            let dir = scratch();
            let (dir, at) = (dir.path(), dir.path().join("out"));
            if number == 0 {
                // What another output has left there.
                let other = Output::open(&beside(dir, "other", "state", layout)).unwrap().0;
                let _lock = lock(&other);
                publish(&other, &generation(9), &tree([("a", "9")]));
                other.write_journal(&Journal { current: Some(generation(9)), ..Journal::default() }).unwrap();
            }
            let key = made(&open_as(&at, layout));
            make_earlier(&at, layout);
            faulty::arm(Some((call, faulty::Fault::Dies)));
            let taken =
                Output::open(&beside(dir, "out", "state", layout)).and_then(|(output, _)| output.try_lock().map(drop));
            let died = faulty::is_dead();
            faulty::disarm();
            assert_eq!(taken.is_err(), died, "{layout:?}, call {call}: {taken:?}");
            let output = open_beside(dir, layout);
            let _lock = lock(&output);
            assert_apart(dir, layout, &output, &key);
            if !died {
                break;
            }
        }
    }
}

#[test]
fn a_start_without_it_in_between_is_believed() {
    for layout in LAYOUTS {
        let dir = scratch();
        let dir = dir.path();
        drop(lock(&open_beside(dir, layout)));
        let key = made(&open_as(&dir.join("out"), layout));
        let output = open_beside(dir, layout);
        let _lock = lock(&output);
        assert_apart(dir, layout, &output, &key);
    }
}

#[test]
fn whoever_looks_finds_what_will_be_moved_and_moves_nothing() {
    for layout in LAYOUTS {
        let dir = scratch();
        let dir = dir.path();
        made(&open_as(&dir.join("out"), layout));
        let before = listing(dir);
        let (found, _) = Output::inspect(&beside(dir, "out", "state", layout)).unwrap().unwrap();
        assert_eq!(found.disk().unwrap().link, Some(generation(2).directory));
        assert_eq!(found.journal().unwrap().unwrap().unwrap().current, Some(generation(2)));
        assert_eq!(listing(dir), before);
    }
}

#[test]
fn two_do_not_share_an_output_nor_a_state() {
    for layout in LAYOUTS {
        let dir = scratch();
        let dir = dir.path();
        let of = |output: &str, state| match state {
            Some(state) => Output::open(&beside(dir, output, state, layout)).unwrap().0,
            None => open_as(&dir.join(output), layout),
        };
        let all = [Some("one"), Some("two"), None];
        for (holder, other) in all.iter().flat_map(|one| all.iter().map(move |two| (*one, *two))) {
            let (holder, other) = (of("out", holder), of("out", other));
            let held = lock(&holder);
            assert!(other.try_lock().unwrap().is_none(), "{holder:?}, {other:?}");
            drop(held);
        }
        let (one, two) = (of("out", Some("one")), of("elsewhere", Some("one")));
        let held = lock(&one);
        assert!(two.try_lock().unwrap().is_none());
        drop(held);
        // Nor is one taken away that another works with.
        drop(lock(&of("third", None)));
        let (one, two) = (of("out", Some("one")), of("third", Some("one")));
        let _held = lock(&one);
        assert!(two.try_lock().unwrap().is_none());
    }
}

#[test]
fn what_a_start_without_it_made_in_vain_takes_nothing_away() {
    for layout in LAYOUTS {
        let dir = scratch();
        let dir = dir.path();
        let output = open_beside(dir, layout);
        let key = made(&output);
        let held = lock(&output);
        assert!(open_as(&dir.join("out"), layout).try_lock().unwrap().is_none());
        assert!(dir.join("out").join(OWN).exists());
        drop(held);
        let output = open_beside(dir, layout);
        let _lock = lock(&output);
        assert_apart(dir, layout, &output, &key);
    }
}

#[test]
fn an_output_that_was_made_anew_is_published_anew() {
    let dir = scratch();
    let dir = dir.path();
    made(&open_beside(dir, Layout::Files));
    fs::remove_dir_all(dir.join("out")).unwrap();
    let output = open_beside(dir, Layout::Files);
    let _lock = lock(&output);
    let said = output.finish().unwrap();
    assert!(said.len() == 1 && said[0].contains("none of the 2 files"), "{said:?}");
    assert_eq!(output.disk().unwrap().link, None);
    publish(&output, &generation(3), &tree([("a", "2"), ("d/b", "1")]));
    assert_eq!(fs::read_to_string(dir.join("out/a")).unwrap(), "2");
    assert_eq!(output.finish().unwrap(), Vec::<String>::new());
}

#[test]
fn on_another_mount_single_files_are_refused_and_what_cannot_be_moved_is() {
    needs_privileges();
    let dir = scratch();
    let dir = dir.path();
    apart(|| {
        fs::create_dir(dir.join("state")).unwrap();
        // The same file system, as where a Pod mounts a volume twice.
        mount(&["--bind", dir.join("state").to_str().unwrap()], &dir.join("state"));
        let refused = |layout| Output::open(&beside(dir, "out", "state", layout)).unwrap_err().to_string();
        let error = refused(Layout::Files);
        assert!(error.contains("not on the mount of --output") && error.contains("without subPath"), "{error}");
        drop(lock(&open_beside(dir, Layout::Atomic)));
        assert!(!dir.join("out").join(STATE).exists());
        made(&open(&dir.join("out")));
        let error = refused(Layout::Atomic);
        assert!(error.contains("out/..trimtab holds") && error.contains("another mount"), "{error}");
        let error = Output::inspect(&beside(dir, "out", "state", Layout::Atomic)).unwrap_err().to_string();
        assert!(error.contains("out/..trimtab holds"), "{error}");
    });
}
