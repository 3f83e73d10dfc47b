//! The picture of the imports, which has no circle.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Each room, and those that it may import. It may only name rooms above its own line: then there is no circle.
const ROOMS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("os", &[]),
    ("net", &["os"]),
    ("render", &["model"]),
    ("machine", &["model"]),
    ("rollout", &["model"]),
    ("source", &["model", "net", "os"]),
    ("inject", &["model", "source"]),
    ("publish", &["machine", "model"]),
    ("archive", &["model", "net", "os", "publish"]),
    ("candidate", &["model", "os", "publish", "render"]),
    ("reload", &["model", "net", "os"]),
    ("observe", &["archive", "machine", "model", "net", "reload", "render", "rollout", "source"]),
    (
        "app",
        &[
            "archive",
            "candidate",
            "machine",
            "model",
            "net",
            "observe",
            "os",
            "publish",
            "reload",
            "render",
            "rollout",
            "source",
        ],
    ),
    (
        "cli",
        &[
            "app",
            "archive",
            "candidate",
            "inject",
            "machine",
            "model",
            "net",
            "observe",
            "os",
            "publish",
            "reload",
            "render",
            "rollout",
            "source",
        ],
    ),
];

fn files(below: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(below).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The rooms that a source names after `crate::`, which imports here never follow by a brace.
fn named(source: &str) -> impl Iterator<Item = &str> {
    let code = source.lines().filter(|line| !line.trim_start().starts_with("//"));
    let paths = code.flat_map(|line| line.split("crate::").skip(1));
    paths.map(|path| {
        assert!(!path.starts_with('{'), "imports here name one room each: crate::{path}");
        let end = path.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(path.len());
        &path[..end]
    })
}

#[test]
fn rooms_import_only_rooms_that_come_before_them() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let there: Vec<_> =
        fs::read_dir(&src).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    let order: BTreeMap<_, _> = ROOMS.iter().enumerate().map(|(at, (room, _))| (*room, at)).collect();
    for path in there {
        let room = path.file_name().unwrap().to_str().unwrap();
        let at = *order.get(room).unwrap_or_else(|| panic!("src/{room} has no line in ROOMS, nor in ARCHITECTURE.md?"));
        let (_, may) = ROOMS[at];
        assert!(may.iter().all(|other| order[other] < at), "{room} is above what it may import: a circle");
        for file in files(&path) {
            let source = fs::read_to_string(&file).unwrap();
            for other in named(&source).filter(|other| order.contains_key(other) && *other != room) {
                assert!(may.contains(&other), "{} imports {other}, which {room} may not", file.display());
            }
        }
    }
}

#[test]
fn rooms_are_all_in_the_architecture() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).unwrap();
    assert!(page.len() <= 9500, "ARCHITECTURE.md has {} bytes: it is to be read at one sitting", page.len());
    for (room, _) in ROOMS {
        assert!(page.contains(&format!("\n| `{room}` |")), "{room} has no row in ARCHITECTURE.md");
    }
}
