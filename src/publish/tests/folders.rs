//! `--folders`: further directories, each on a mount of its own.

use super::*;

fn with(dir: &Path, folders: &[&str]) -> Config {
    let folders = folders.iter().map(|folder| dir.join(folder)).collect();
    Config { layout: Layout::Files, folders, ..config(&dir.join("out")) }
}

fn open_with(dir: &Path, folders: &[&str]) -> Output {
    Output::open(&with(dir, folders)).unwrap().0
}

fn tree_of(dir: &Path, number: u64) -> Tree {
    let mut tree = tree([("a", number.to_string().as_str()), ("same", "same")]);
    for folder in ["one", "two"] {
        for (name, text) in [("f".to_owned(), number.to_string()), (format!("only-{number}/g"), "g".to_owned())] {
            let path = TreePath::in_folder(dir.join(folder).to_str().unwrap(), &name).unwrap();
            tree.insert(path, file(&text, folder == "two")).unwrap();
        }
    }
    tree
}

/// The published files below the directory.
fn published(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for top in ["out", "one", "two"] {
        let name =
            |path: String| if top == "out" { path } else { dir.join(top).join(path).to_str().unwrap().to_owned() };
        found.extend(disk::in_place(&dir.join(top)).into_iter().map(|(path, text)| (name(path), text)));
    }
    found
}

#[test]
fn files_go_there_and_back_and_are_removed_and_read_back() {
    let dir = scratch();
    let dir = dir.path();
    let output = open_with(dir, &["one", "two"]);
    let _lock = lock(&output);
    let key = output.digest_key().unwrap();
    publish(&output, &generation(1), &tree_of(dir, 1));
    assert_eq!(published(dir), files(&tree_of(dir, 1)));
    publish(&output, &generation(2), &tree_of(dir, 2));
    assert_eq!(published(dir), files(&tree_of(dir, 2)));
    assert!(!dir.join("one/only-1").exists(), "a directory of ours that is empty goes");
    assert_eq!(mode(&dir.join("two/f")), 0o640);
    for number in [1, 2] {
        let found = output.content(&generation(number), &key).unwrap();
        assert_eq!(found, tree_of(dir, number).content(&key), "{number}");
    }
    let read: BTreeSet<_> = output.published(u64::MAX).unwrap().into_keys().collect();
    assert_eq!(read, files(&tree_of(dir, 2)).into_keys().collect());
    output.link(&generation(1)).unwrap();
    output.swap(&generation(1)).unwrap();
    output.unlink(&generation(1)).unwrap();
    assert_eq!(published(dir), files(&tree_of(dir, 1)));
    output.prune(&[]).unwrap();
    for folder in ["one", "two"] {
        assert_eq!(names_in(&dir.join(folder).join(STATE)), ["private"]);
        let kept = BTreeSet::from([LOCK.to_owned(), format!("{OWN}/{}", generation(1).directory)]);
        assert!(own_names(&dir.join(folder)).is_subset(&kept), "{:?}", own_names(&dir.join(folder)));
    }
    // A changed byte there is found like any other.
    fs::write(dir.join("one/f"), "!").unwrap();
    assert!(output.content(&generation(1), &key).is_ok_and(|found| found != tree_of(dir, 1).content(&key)));
    let said = output.finish().unwrap();
    assert!(said.len() == 1 && said[0].contains("one/f was changed"), "{said:?}");
}

#[test]
fn programs_see_what_goes_to_folders_beside_the_outputs_files() {
    let dir = scratch();
    let dir = dir.path();
    let output = open_with(dir, &["one", "two"]);
    let tree = tree_of(dir, 1);
    output.stage_whole(&generation(1), &tree).unwrap();
    let candidate = output.candidate(&generation(1));
    for (path, text) in files(&tree) {
        let at = path.strip_prefix('/').map_or(candidate.join(&path), |below| candidate.join("..folders").join(below));
        assert_eq!(fs::read_to_string(&at).unwrap(), text, "{at:?}");
    }
    publish(&output, &generation(1), &tree);
    assert_eq!(published(dir), files(&tree));
}

#[test]
fn what_is_not_ours_in_a_folder_is_refused_and_stays() {
    let dir = scratch();
    let dir = dir.path();
    let output = open_with(dir, &["one", "two"]);
    fs::write(dir.join("two/f"), "theirs").unwrap();
    let error = output.stage(&generation(1), &tree_of(dir, 1)).unwrap_err();
    assert!(error.rejected() && error.to_string().contains("two/f is a regular file"), "{error}");
    fs::remove_file(dir.join("two/f")).unwrap();
    let elsewhere = scratch();
    symlink(elsewhere.path(), dir.join("one/only-1")).unwrap();
    let error = output.stage(&generation(1), &tree_of(dir, 1)).unwrap_err();
    assert!(error.to_string().contains("one/only-1 is a symlink"), "{error}");
    assert_eq!(names_in(elsewhere.path()), Vec::<String>::new());
}

#[test]
fn a_folder_that_is_not_given_any_more_keeps_its_files_and_is_reported() {
    let dir = scratch();
    let dir = dir.path();
    publish(&open_with(dir, &["one", "two"]), &generation(1), &tree_of(dir, 1));
    let output = open_with(dir, &["one"]);
    let said = output.finish().unwrap();
    assert!(said.len() == 1 && said[0].contains("/two stays there") && said[0].contains("--folders"), "{said:?}");
    let mut without = Tree::default();
    let two = dir.join("two");
    for (path, file) in tree_of(dir, 2).iter().filter(|(path, _)| !path.as_str().starts_with(two.to_str().unwrap())) {
        without.insert(path.clone(), file.clone()).unwrap();
    }
    publish(&output, &generation(2), &without);
    output.prune(&[]).unwrap();
    assert_eq!(disk::in_place(&two), BTreeMap::from([("f".into(), "1".into()), ("only-1/g".into(), "g".into())]));
    assert_eq!(output.finish().unwrap(), Vec::<String>::new());
    // Given again: bytes that are not Trimtab's any more are not replaced.
    let output = open_with(dir, &["one", "two"]);
    assert!(
        output.stage(&generation(3), &tree_of(dir, 3)).unwrap_err().to_string().contains("two/f is a regular file")
    );
}

#[test]
fn a_folder_is_no_output_and_is_held_by_one_at_a_time() {
    let dir = scratch();
    let dir = dir.path();
    let mut held = Vec::new();
    for (output, folder) in [("out", "one"), ("other", "two")] {
        let output = Output::open(&Config { output: dir.join(output), ..with(dir, &[folder]) }).unwrap().0;
        held.push(lock(&output));
    }
    for folder in ["one", "two"] {
        let third = Output::open(&Config { output: dir.join("third"), ..with(dir, &[folder]) }).unwrap().0;
        assert!(third.try_lock().unwrap().is_none(), "{folder}");
        assert!(open_as(&dir.join(folder), Layout::Files).try_lock().unwrap().is_none(), "{folder}");
    }
    for layout in LAYOUTS {
        let at = dir.join(format!("{layout:?}"));
        publish(&open_as(&at, layout), &generation(1), &tree([("a", "1")]));
        let error = Output::open(&with(dir, &[at.to_str().unwrap()])).unwrap_err().to_string();
        assert!(error.contains("is or was the --output"), "{error}");
    }
}
