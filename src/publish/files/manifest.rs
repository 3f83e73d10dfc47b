//! A generation's files and directories, as they are written down beside its content: what is ours in a directory that
//! others write to as well.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::sync::Arc;

use crate::model::chunked_map::{self, ChunkedMap};
use crate::model::digest::Digest;
use crate::model::tree::TreePath;
use crate::publish::cursor::below;

const FIRST_LINE: &str = "trimtab manifest 1";
const LAST_LINE: &str = "end";

/// How much is written in one go, in bytes; a little more if it comes so.
const PIECE: usize = 16 << 10;

/// A file of a generation.
#[derive(Clone, Copy, Debug)]
pub(super) struct FileRecord {
    /// Of its bytes, keyed by the output's own key.
    pub(super) digest: Digest,
    /// The same without a key, where that is known: it is not written down.
    pub(super) plain: Option<Digest>,
    /// In bytes.
    pub(super) size: u64,
    /// Its permissions.
    pub(super) mode: u32,
}

impl PartialEq for FileRecord {
    fn eq(&self, other: &Self) -> bool {
        (self.digest, self.size, self.mode) == (other.digest, other.size, other.mode)
    }
}

impl Eq for FileRecord {}

/// Files by path, with the lines that stand for them.
pub(super) type FileRecords = ChunkedMap<Arc<str>, FileRecord, Box<[u8]>>;

/// The files of a generation by path, and the directories that Trimtab made for them: an empty one that was there
/// before is not ours to remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) files: FileRecords,
    pub(super) directories: BTreeSet<String>,
    /// Those of `--folders` that there were: what is in them has an absolute path.
    pub(super) folders: BTreeSet<String>,
    /// Those of them that had files and are not given any more: their files are nobody's. Not written down.
    pub(super) left_out: BTreeSet<String>,
}

impl Manifest {
    /// Whether the generation has a file below this directory.
    pub(super) fn is_above(&self, directory: &str) -> bool {
        let below = format!("{directory}/");
        let first = self.files.range_from(&below).next();
        first.is_some_and(|(path, _)| path.starts_with(&below))
    }

    /// One line for each, given to `write` in chunks: a manifest of thousands is long.
    pub(super) fn write<E>(&self, mut write: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut text = format!("{FIRST_LINE}\n").into_bytes();
        for folder in &self.folders {
            let _ = writeln!(text, "r {folder}");
        }
        for chunk in self.files.chunks() {
            text.extend_from_slice(chunk.found(lines));
            if text.len() >= PIECE {
                write(&text)?;
                text.clear();
            }
        }
        // Writing to a Vec cannot fail, and a TreePath holds no line feed.
        for path in &self.directories {
            let _ = writeln!(text, "d {path}");
        }
        let _ = writeln!(text, "{LAST_LINE}");
        write(&text)
    }

    /// Reads it back, for these folders; `None` if it is cut short, or names what cannot be ours.
    pub(super) fn parse(bytes: &[u8], folders: &[&str]) -> Option<Self> {
        let mut lines = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?.split('\n');
        if lines.next() != Some(FIRST_LINE) || lines.next_back() != Some(LAST_LINE) {
            return None;
        }
        let mut manifest = Self::default();
        for line in lines {
            if let Some(folder) = line.strip_prefix("r ") {
                manifest.folders.insert(folder.to_owned());
                continue;
            }
            if let Some(path) = line.strip_prefix("d ") {
                if manifest.admits(path, folders)? {
                    manifest.directories.insert(path.to_owned());
                }
                continue;
            }
            let mut fields = line.strip_prefix("f ")?.splitn(4, ' ');
            let mode = u32::from_str_radix(fields.next()?, 8).ok().filter(|mode| *mode <= 0o777)?;
            let size = fields.next()?.parse().ok()?;
            let digest = fields.next()?.parse().ok()?;
            let path = fields.next()?;
            if manifest.admits(path, folders)? {
                manifest.files.insert(path.into(), FileRecord { digest, plain: None, size, mode });
            }
        }
        Some(manifest)
    }

    /// Whether a path is in the output or in a folder that is given; `None` if it cannot be ours.
    fn admits(&mut self, path: &str, given: &[&str]) -> Option<bool> {
        let Some(folder) = self.folders.iter().find(|folder| below(folder, path).is_some()) else {
            return TreePath::parse(path).ok().map(|_| true);
        };
        TreePath::in_folder(folder, below(folder, path)?).ok()?;
        let is_given = given.contains(&folder.as_str());
        if !is_given {
            self.left_out.insert(folder.clone());
        }
        Some(is_given)
    }
}

fn lines(chunk: &chunked_map::Chunk<Arc<str>, FileRecord, Box<[u8]>>) -> Box<[u8]> {
    let mut text = Vec::new();
    // As above.
    for (path, FileRecord { digest, size, mode, .. }) in chunk.iter() {
        let _ = writeln!(text, "f {mode:04o} {size} {digest} {path}");
    }
    text.into()
}

/// The directories above a path, outermost first.
pub(super) fn above(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').filter_map(|(end, _)| path.get(..end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let record = FileRecord { digest: Digest::from_bytes([7; 32]), plain: None, size: 12, mode: 0o640 };
        Manifest {
            files: [("a b".into(), record), ("d/e/f".into(), record)].into_iter().collect(),
            directories: ["d".to_owned(), "d/e".to_owned()].into(),
            ..Manifest::default()
        }
    }

    #[test]
    fn what_is_in_a_folder_is_known_while_that_is_given_and_left_out_when_it_is_not() {
        let record = *manifest().files.get("a b").unwrap();
        let mut all = manifest();
        all.files.insert("/data/x/y".into(), record);
        all.directories.insert("/data/x".into());
        all.folders = ["/data".to_owned(), "/none".to_owned()].into();
        let bytes = to_bytes(&all);
        assert_eq!(Manifest::parse(&bytes, &["/data", "/new"]), Some(all.clone()));
        let without = Manifest::parse(&bytes, &["/dat"]).unwrap();
        assert_eq!((&without.files, &without.directories), (&manifest().files, &manifest().directories));
        assert_eq!(without.left_out, ["/data".to_owned()].into());
        let text = String::from_utf8(bytes).unwrap();
        for path in ["/data/../x", "/data", "/etc/x", "/data//x", "/database/x"] {
            assert_eq!(Manifest::parse(text.replace("/data/x/y", path).as_bytes(), &["/data"]), None, "{path}");
        }
    }

    fn to_bytes(manifest: &Manifest) -> Vec<u8> {
        let mut bytes = Vec::new();
        let Ok(()) = manifest.write(|chunk| {
            bytes.extend_from_slice(chunk);
            Ok::<_, std::convert::Infallible>(())
        });
        bytes
    }

    #[test]
    fn a_long_manifest_comes_in_pieces_and_round_trips() {
        let record = *manifest().files.get("a b").unwrap();
        let files = (0..1000).map(|number| (format!("f/{number:04}").into(), record)).collect();
        let long = Manifest { files, ..manifest() };
        let mut longest = 0;
        let Ok(()) = long.write(|chunk| {
            longest = chunk.len().max(longest);
            Ok::<_, std::convert::Infallible>(())
        });
        assert!(longest < 2 * PIECE, "{longest}");
        assert_eq!(Manifest::parse(&to_bytes(&long), &[]), Some(long));
    }

    #[test]
    fn manifest_round_trips_and_is_refused_when_it_is_cut_short_at_any_byte() {
        let bytes = to_bytes(&manifest());
        assert_eq!(Manifest::parse(&bytes, &[]), Some(manifest()));
        for end in 0..bytes.len() {
            assert_eq!(Manifest::parse(&bytes[..end], &[]), None, "cut at {end}");
        }
    }

    #[test]
    fn a_manifest_that_leads_out_of_the_output_is_refused() {
        let text = String::from_utf8(to_bytes(&manifest())).unwrap();
        for path in ["../f", "/etc/f", "d/../f", "..trimtab.json", "", "d//f"] {
            assert_eq!(Manifest::parse(text.replace("d/e/f", path).as_bytes(), &[]), None, "{path}");
            assert_eq!(
                Manifest::parse(text.replace("d d/e\n", &format!("d {path}\n")).as_bytes(), &[]),
                None,
                "{path}"
            );
        }
        assert_eq!(Manifest::parse(text.replace("0640", "4755").as_bytes(), &[]), None);
    }

    #[test]
    fn directories_are_known_by_the_files_below_them() {
        assert!(manifest().is_above("d") && manifest().is_above("d/e"));
        assert!(!manifest().is_above("d/e/f") && !manifest().is_above("a"));
        assert_eq!(above("d/e/f").collect::<Vec<_>>(), ["d", "d/e"]);
    }
}
