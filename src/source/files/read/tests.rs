use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::TempDir;

use super::super::volume::{Volume, as_nobody};
use super::*;

fn read(root: &Root, budget: &Budget) -> Result<Option<Object>, FilesError> {
    reading(root, budget, &Known::default(), SystemTime::now()).object
}

fn root(path: impl Into<PathBuf>) -> Root {
    Root { source: 0, name: "conf".into(), path: path.into(), secret: Some(false) }
}

fn get(path: impl Into<PathBuf>) -> Result<Option<Object>, FilesError> {
    read(&root(path), &Budget::new(1 << 20))
}

/// Keys and values of what must be there.
fn content(path: impl Into<PathBuf>) -> Vec<(String, String)> {
    let object = get(path).unwrap().expect("it exists");
    object
        .data
        .into_iter()
        .map(|(key, value)| (key, String::from_utf8(value.read().unwrap().to_vec()).unwrap()))
        .collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
}

fn write(path: PathBuf, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

#[test]
fn kubelet_volume_gives_its_keys_alone() {
    let dir = TempDir::new().unwrap();
    let volume = Volume::new(dir.path().join("v"), &[("a", "1"), ("sub/deep/b", "2"), (".hidden", "3")]);
    let object = get(&volume.path).unwrap().unwrap();
    assert_eq!(object.id, ObjectRef { kind: Kind::Dir, namespace: Arc::default(), name: "conf".into() });
    assert_eq!(content(&volume.path), pairs(&[(".hidden", "3"), ("a", "1"), ("sub/deep/b", "2")]));
}

/// Reads without a pause until `done`; each read must give one whole generation of `keys` keys.
fn reads_are_whole(path: &Path, keys: usize, done: &AtomicBool) {
    let mut reads = 0;
    let deadline = std::time::Instant::now() + std::time::Duration::from_mins(1);
    while !done.load(Relaxed) && std::time::Instant::now() < deadline {
        match get(path) {
            Ok(Some(object)) => {
                assert_eq!(object.data.len(), keys);
                let first = object.data.values().next().unwrap();
                assert!(!first.is_empty() && object.data.values().all(|value| value == first), "mixed");
                reads += 1;
            }
            // As often as it was replaced under a reader who never pauses.
            Err(FilesError::Unsettled { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(reads > 20, "only {reads} reads");
}

#[test]
fn a_read_during_the_kubelets_swap_is_whole() {
    fn files<'a>(keys: &'a [String], value: &'a str) -> Vec<(&'a str, &'a str)> {
        keys.iter().map(|key| (key.as_str(), value)).collect()
    }
    let dir = TempDir::new().unwrap();
    let keys: Vec<_> = (0..20).map(|n| if n % 2 == 0 { format!("k{n}") } else { format!("sub/k{n}") }).collect();
    let mut volume = Volume::new(dir.path().join("v"), &files(&keys, "0"));
    let path = volume.path.clone();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| reads_are_whole(&path, keys.len(), &done));
        scope.spawn(|| reads_are_whole(&path.join("k0"), 1, &done));
        for n in 1..200 {
            volume.swap(&files(&keys, &n.to_string()));
        }
        done.store(true, Relaxed);
    });
}

#[test]
fn a_read_while_a_link_to_the_root_is_pointed_elsewhere_is_whole() {
    let dir = TempDir::new().unwrap();
    let conf = dir.path().join("conf");
    let point = |n: u32| {
        for key in 0..20 {
            write(dir.path().join(format!("tree{n}/{key}")), &n.to_string());
        }
        symlink(format!("tree{n}"), dir.path().join("new")).unwrap();
        std::fs::rename(dir.path().join("new"), &conf).unwrap();
        // git-sync removes the old tree at once.
        n.checked_sub(1).map_or(Ok(()), |n| std::fs::remove_dir_all(dir.path().join(format!("tree{n}")))).unwrap();
    };
    point(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| reads_are_whole(&conf, 20, &done));
        (1..200).for_each(point);
        done.store(true, Relaxed);
    });
}

#[test]
fn kubelet_volumes_below_an_ordinary_directory_are_read_whole_too() {
    let dir = TempDir::new().unwrap();
    Volume::new(dir.path().join("one"), &[("a", "1")]);
    Volume::new(dir.path().join("two/deep"), &[("b", "2")]);
    write(dir.path().join("plain"), "3");
    assert_eq!(content(dir.path()), pairs(&[("one/a", "1"), ("plain", "3"), ("two/deep/b", "2")]));
}

#[test]
fn a_file_is_one_key_and_links_and_slashes_do_not_matter() {
    let dir = TempDir::new().unwrap();
    let volume = Volume::new(dir.path().join("v"), &[("app.conf", "1")]);
    symlink("v", dir.path().join("link")).unwrap();
    assert_eq!(content(volume.path.join("app.conf")), pairs(&[("app.conf", "1")]));
    assert_eq!(content(format!("{}/", volume.path.join("app.conf").display())), pairs(&[("app.conf", "1")]));
    assert_eq!(content(format!("{}/link/", dir.path().display())), pairs(&[("app.conf", "1")]));
}

#[test]
fn what_is_missing_is_none_and_what_is_empty_is_empty() {
    let dir = TempDir::new().unwrap();
    assert_eq!(get(dir.path().join("no/such")), Ok(None));
    symlink("nowhere", dir.path().join("dangling")).unwrap();
    assert_eq!(get(dir.path().join("dangling")), Ok(None));
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    assert_eq!(content(dir.path().join("empty")), pairs(&[]));
}

#[test]
fn links_inside_are_followed_and_those_out_of_it_named() {
    let dir = TempDir::new().unwrap();
    write(dir.path().join("outside/secret"), "do not read");
    let inside = dir.path().join("inside");
    write(inside.join("real/x"), "1");
    symlink("real/x", inside.join("y")).unwrap();
    symlink("../real", inside.join("real/again")).unwrap();
    symlink("../inside2/../real", inside.join("real/z")).unwrap();
    std::fs::create_dir(inside.join("inside2")).unwrap();
    assert_eq!(content(&inside), pairs(&[("real/x", "1"), ("y", "1")]));

    let absolute = dir.path().join("outside/secret").into_os_string().into_string().unwrap();
    let cases = [
        (absolute.as_str(), "bad"),
        ("../outside/secret", "bad"),
        ("../outside", "bad"),
        ("..", "bad"),
        ("/", "bad"),
        ("/proc/self/cwd", "bad"),
        ("../../outside/secret", "real/bad"),
    ];
    for (target, link) in cases {
        let link = inside.join(link);
        symlink(target, &link).unwrap();
        let error = get(&inside).unwrap_err();
        assert_eq!(error, FilesError::Escapes { root: inside.clone(), link: link.clone() }, "{target}");
        assert!(error.to_string().contains(link.to_str().unwrap()));
        std::fs::remove_file(link).unwrap();
    }
    // By way of a link that stays inside.
    symlink("evil", inside.join("bad")).unwrap();
    symlink("../outside", inside.join("evil")).unwrap();
    assert!(matches!(get(&inside), Err(FilesError::Escapes { .. })));
}

#[test]
fn a_data_link_out_of_the_directory_is_not_followed() {
    let dir = TempDir::new().unwrap();
    write(dir.path().join("outside/secret"), "do not read");
    for target in ["../outside", dir.path().join("outside").to_str().unwrap()] {
        let inside = TempDir::new_in(dir.path()).unwrap();
        symlink(target, inside.path().join("..data")).unwrap();
        let link = inside.path().join("..data");
        assert_eq!(get(inside.path()), Err(FilesError::Escapes { root: inside.path().into(), link }));
    }
}

#[test]
fn loops_of_directories_end() {
    let dir = TempDir::new().unwrap();
    write(dir.path().join("a/x"), "1");
    symlink(".", dir.path().join("self")).unwrap();
    symlink("..", dir.path().join("a/up")).unwrap();
    symlink("../b", dir.path().join("a/b")).unwrap();
    std::fs::create_dir(dir.path().join("b")).unwrap();
    symlink("../a", dir.path().join("b/a")).unwrap();
    assert_eq!(content(dir.path()), pairs(&[("a/x", "1"), ("b/a/x", "1")]));
}

#[test]
fn a_link_to_itself_is_trouble_and_a_link_to_nothing_is_none() {
    let dir = TempDir::new().unwrap();
    write(dir.path().join("x"), "1");
    symlink("user@host.1234", dir.path().join(".#x")).unwrap();
    assert_eq!(content(dir.path()), pairs(&[("x", "1")]));
    symlink("me", dir.path().join("me")).unwrap();
    assert_eq!(get(dir.path()), Err(FilesError::Io { path: dir.path().join("me"), errno: Errno::ELOOP }));
}

#[test]
fn pipes_sockets_and_devices_neither_hang_nor_count() {
    let dir = TempDir::new().unwrap();
    write(dir.path().join("x"), "1");
    let pipe = dir.path().join("pipe");
    mkfifo(&pipe, Mode::S_IRUSR).unwrap();
    symlink("pipe", dir.path().join("to-pipe")).unwrap();
    let _socket = UnixListener::bind(dir.path().join("socket")).unwrap();
    symlink("socket", dir.path().join("to-socket")).unwrap();
    assert_eq!(content(dir.path()), pairs(&[("x", "1")]));
    for path in [pipe, dir.path().join("socket"), "/dev/null".into()] {
        assert_eq!(get(&path), Err(FilesError::NoFile { path }));
    }
}

#[test]
fn lost_and_found_and_names_with_two_dots_are_no_keys() {
    let dir = TempDir::new().unwrap();
    write(dir.path().join("lost+found/x"), "1");
    write(dir.path().join("..old/x"), "2");
    write(dir.path().join("sub/..x"), "3");
    write(dir.path().join("sub/x"), "4");
    assert_eq!(content(dir.path()), pairs(&[("sub/x", "4")]));
}

#[test]
fn size_is_limited_to_the_byte() {
    let dir = TempDir::new().unwrap();
    write(dir.path().join("abc"), "1234567");
    write(dir.path().join("d"), &"x".repeat(9_000));
    let at = |limit| read(&root(dir.path()), &Budget::new(limit));
    assert_eq!(at(9_011).unwrap().unwrap().size(), 9_011);
    for limit in [0, 2, 3, 9, 10, 9_010] {
        let error = at(limit).unwrap_err();
        assert_eq!(error, FilesError::TooLarge { path: dir.path().into(), limit });
        assert!(error.to_string().contains("--max-size"), "{error}");
    }
    // No size to go by, and no end.
    assert!(matches!(read(&root("/proc/kallsyms"), &Budget::new(100_000)), Err(FilesError::TooLarge { .. })));
}

/// Where a value's bytes are: elsewhere once they were read again.
fn place(object: &Object, key: &str) -> *const u8 {
    object.data[key].read().unwrap().as_ptr()
}

#[test]
fn files_that_have_not_changed_are_not_read_again() {
    let dir = TempDir::new().unwrap();
    let later = SystemTime::now() + std::time::Duration::from_hours(1);
    let budget = Budget::new(1 << 20);
    for name in ["same", "edited", "replaced", "kept-size", "sub/same", "link-target"] {
        write(dir.path().join(name), "1");
    }
    symlink("link-target", dir.path().join("link")).unwrap();
    let read = |known: &Known| {
        let reading = reading(&root(dir.path()), &budget, known, later);
        Known { object: reading.object.unwrap().map(Arc::new), stamps: Arc::new(reading.stamps) }
    };
    let before = read(&Known::default());
    std::thread::sleep(std::time::Duration::from_millis(20));
    write(dir.path().join("edited"), "12");
    write(dir.path().join("kept-size"), "2");
    write(dir.path().join("new"), "1");
    write(dir.path().join("sub/x"), "1");
    std::fs::rename(dir.path().join("sub/x"), dir.path().join("replaced")).unwrap();
    let after = read(&before);
    let (before, after) = (before.object.unwrap(), after.object.unwrap());
    for (key, reused) in [
        ("same", true),
        ("sub/same", true),
        ("link", true),
        ("edited", false),
        ("replaced", false),
        ("kept-size", false),
    ] {
        assert_eq!(place(&before, key) == place(&after, key), reused, "{key}");
    }
    let expected = [("edited", "12"), ("kept-size", "2"), ("link", "1"), ("link-target", "1"), ("new", "1")];
    let expected = [&expected[..], &[("replaced", "1"), ("same", "1"), ("sub/same", "1")]].concat();
    assert_eq!(content(dir.path()), pairs(&expected));
    assert_eq!(after.content(), get(dir.path()).unwrap().unwrap().content());
}

#[test]
fn what_has_just_changed_is_read_again_whatever_its_times() {
    let dir = TempDir::new().unwrap();
    let budget = Budget::new(1 << 20);
    let mut known = Known::default();
    for n in 0..200 {
        write(dir.path().join("x"), &(n % 10).to_string());
        let reading = reading(&root(dir.path()), &budget, &known, SystemTime::now());
        let object = reading.object.unwrap().unwrap();
        assert_eq!(object.data["x"].read().unwrap(), (n % 10).to_string());
        assert!(reading.stamps.is_empty(), "it could be written once more in this tick");
        known = Known { object: Some(Arc::new(object)), stamps: Arc::new(reading.stamps) };
    }
}

#[test]
fn what_another_machine_may_have_written_is_always_read() {
    let root = root("/proc/sys/kernel/ostype");
    let later = SystemTime::now() + std::time::Duration::from_hours(1);
    assert!(reading(&root, &Budget::new(1 << 20), &Known::default(), later).stamps.is_empty());
}

#[test]
fn size_is_limited_over_all_roots_together_and_they_are_named() {
    let dir = TempDir::new().unwrap();
    let budget = Budget::new(1_000);
    let roots = ["a", "b", "c"].map(|name| {
        write(dir.path().join(name).join("k"), &"x".repeat(599));
        Root { source: usize::from(name.as_bytes()[0]), ..root(dir.path().join(name)) }
    });
    assert_eq!(read(&roots[0], &budget).unwrap().unwrap().size(), 600);
    let error = read(&roots[1], &budget).unwrap_err();
    let paths = roots[..2].iter().map(|root| root.path.clone()).collect();
    assert_eq!(error, FilesError::TooLargeTogether { paths, limit: 1_000 });
    let text = error.to_string();
    assert!(text.contains("--max-size") && text.contains("/a\", ") && text.contains("/b\" together"), "{text}");
    // What failed holds nothing, and what has shrunk no more than it has.
    write(roots[2].path.join("k"), &"x".repeat(399));
    assert!(read(&roots[2], &budget).is_ok());
    write(roots[0].path.join("k"), &"x".repeat(399));
    assert!(read(&roots[0], &budget).is_ok());
    assert!(matches!(read(&roots[1], &budget), Err(FilesError::TooLargeTogether { paths, .. }) if paths.len() == 3));
    write(roots[1].path.join("k"), &"x".repeat(199));
    assert!(read(&roots[1], &budget).is_ok());
    std::fs::remove_dir_all(&roots[1].path).unwrap();
    assert_eq!(read(&roots[1], &budget), Ok(None));
    std::fs::remove_dir_all(&roots[0].path).unwrap();
    assert_eq!(read(&roots[0], &budget), Ok(None));
    write(roots[2].path.join("k"), &"x".repeat(999));
    assert!(read(&roots[2], &budget).is_ok());
    write(roots[2].path.join("k"), &"x".repeat(1_000));
    assert!(matches!(read(&roots[2], &budget), Err(FilesError::TooLarge { .. })));
}

#[test]
fn a_sparse_file_beyond_the_limit_is_refused_without_its_memory() {
    let dir = TempDir::new().unwrap();
    File::create(dir.path().join("huge")).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(get(dir.path()), Err(FilesError::TooLarge { path: dir.path().into(), limit: 1 << 20 }));
}

#[test]
fn depth_and_entries_are_limited() {
    let dir = TempDir::new().unwrap();
    let deep: PathBuf = std::iter::repeat_n("d", MAX_DEPTH).collect();
    write(dir.path().join(&deep).join("x"), "1");
    assert_eq!(content(dir.path()).len(), 1);
    write(dir.path().join(&deep).join("d/x"), "1");
    assert!(matches!(get(dir.path()), Err(FilesError::TooDeep { .. })));

    let many = TempDir::new().unwrap();
    for n in 0..1_000 {
        write(many.path().join(format!("d/{n}")), "");
    }
    for n in 0..64 {
        symlink("d", many.path().join(n.to_string())).unwrap();
    }
    assert_eq!(content(many.path()).len(), 65_000);
    symlink("d", many.path().join("more")).unwrap();
    assert!(matches!(get(many.path()), Err(FilesError::TooMany { .. })));
}

#[test]
fn a_name_that_is_not_utf8_is_named() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(OsStr::from_bytes(b"b\xffd"));
    write(path.clone(), "1");
    let error = get(dir.path()).unwrap_err();
    assert_eq!(error, FilesError::Name { path });
    assert!(error.to_string().contains(r"b\xFFd"), "{error}");
}

#[test]
fn no_error_quotes_a_value() {
    let dir = TempDir::new().unwrap();
    write(dir.path().join("x"), "hunter2");
    let object = get(dir.path()).unwrap();
    assert!(!format!("{object:?} {:?}", read(&root(dir.path()), &Budget::new(3))).contains("hunter2"));
}

#[test]
fn unreadable_is_reported_with_a_remedy() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x");
    write(path.clone(), "1");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o0)).unwrap();
    let result = as_nobody(|| get(dir.path()));
    assert_eq!(result, Err(FilesError::Io { path, errno: Errno::EACCES }));
    let text = result.unwrap_err().to_string();
    assert!(text.contains("Permission denied") && text.contains("fsGroup"), "{text}");
}

#[test]
fn a_data_link_to_nothing_is_no_empty_volume() {
    let dir = TempDir::new().unwrap();
    symlink("..gone", dir.path().join("..data")).unwrap();
    let link = dir.path().join("..data");
    assert_eq!(get(dir.path()), Err(FilesError::NoData { link, target: "..gone".into() }));
}

#[test]
fn tmpfs_makes_a_secret_unless_declared_otherwise() {
    let is_secret = |path: &Path, secret| {
        read(&Root { secret, ..root(path) }, &Budget::new(1 << 20)).unwrap().expect("it exists").secret
    };
    let memory = TempDir::new_in("/dev/shm").unwrap();
    let disk = TempDir::new().unwrap();
    write(memory.path().join("x"), "1");
    assert!(is_secret(memory.path(), None) && is_secret(&memory.path().join("x"), None));
    assert!(!is_secret(memory.path(), Some(false)) && is_secret(disk.path(), Some(true)));
    let on_disk = nix::sys::statfs::statfs(disk.path()).unwrap().filesystem_type() != nix::sys::statfs::TMPFS_MAGIC;
    assert_eq!(is_secret(disk.path(), None), !on_disk);
}

#[test]
fn a_large_file_is_left_where_it_is_and_its_content_outlives_its_name() {
    const LENGTH: usize = (1 << 20) + 1;
    let dir = TempDir::new().unwrap();
    let (large, small) = (dir.path().join("large"), dir.path().join("small"));
    let bytes = vec![b'a'; LENGTH];
    std::fs::write(&large, &bytes).unwrap();
    std::fs::write(&small, vec![b'a'; LENGTH - 1]).unwrap();
    let get = |room: usize| read(&root(dir.path()), &Budget::new(room as u64));
    let room = 2 * LENGTH - 1 + "largesmall".len();
    let object = get(room).unwrap().unwrap();
    assert!(object.data["large"].is_in_a_file() && !object.data["small"].is_in_a_file());
    assert_eq!(object.data["large"], Bytes::from(bytes.clone()).into());
    assert!(matches!(get(room - 1), Err(FilesError::TooLarge { .. })));

    std::fs::write(dir.path().join("..new"), vec![b'b'; LENGTH]).unwrap();
    std::fs::rename(dir.path().join("..new"), &large).unwrap();
    let newer = get(room).unwrap().unwrap();
    assert_ne!(newer.content(), object.content());
    assert_eq!(object.data["large"].read().unwrap(), bytes);
    // Whoever writes in place is found out.
    std::fs::OpenOptions::new().append(false).write(true).open(&large).unwrap().set_len(7).unwrap();
    assert!(newer.data["large"].read().is_err());
}
