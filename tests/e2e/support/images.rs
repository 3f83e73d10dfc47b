//! Puts the images that the node has in the place of those that a manifest names: nothing else of it is changed. The
//! image that is tested has the name that manifests call it by.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// As `make image` tags it.
const TRIMTAB: &str = concat!("trimtab:", env!("CARGO_PKG_VERSION"));

/// The manifest with each image that `tests/node/images/list` knows replaced by the one that stands for it, and never
/// pulled.
///
/// # Panics
/// On an image that nothing stands for.
pub fn replaced(manifest: &str) -> String {
    let list = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node/images/list")).unwrap();
    let known: Vec<(&str, &str)> = list
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?, words.next()?))
        })
        .collect();
    let mut text = String::new();
    for line in manifest.lines() {
        let (before, image) = match line.split_once("image: ") {
            Some((before, image)) if before.trim_start_matches([' ', '-']).is_empty() => (before, image.trim()),
            _ => {
                text += line;
                text += "\n";
                continue;
            }
        };
        let local = if image == TRIMTAB || image.starts_with("localhost/") {
            image.to_owned()
        } else {
            let found = known.iter().find(|(public, _)| *public == image);
            let (_, name) = found.unwrap_or_else(|| panic!("no line of tests/node/images/list for {image}"));
            format!("localhost/{name}:1")
        };
        let indent = " ".repeat(before.len());
        writeln!(text, "{before}image: {local}\n{indent}imagePullPolicy: Never").unwrap();
    }
    text
}
