//! The layout of single files: others' files, what changes and what does not, and what others do to ours.

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
    let staged = listing(&dir.path().join(&generation(2).directory).join("files"));
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
    let spool = output.spool().unwrap();
    assert_eq!(listing(dir.path()), before);
    let value = Bytes::from(vec![b'x'; 1000]);
    let mut two = tree([("a", "2")]);
    let kept = File { bytes: spool.keep(value.clone()).unwrap(), secret: true, origin: "a test".into() };
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
    let manifest = dir.path().join(&generation(1).directory).join("manifest");
    chown(&manifest, Some(NOBODY), None).unwrap();
    let error = output.link(&generation(1)).unwrap_err().to_string();
    assert!(error.contains("manifest is missing or not what Trimtab wrote"), "{error}");
    chown(dir.path().join("..trimtab.current"), Some(NOBODY), None).unwrap();
    assert!(output.disk().unwrap_err().to_string().contains("..trimtab.current is not what Trimtab wrote"));
}
