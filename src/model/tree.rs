//! A generation's files in memory: checked relative paths to bytes.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::model::chunked_map::{self, ChunkedMap};
use crate::model::content::Content;
use crate::model::digest::{Digest, DigestKey, Hasher};

/// A path below the output directory that cannot lead out of it.
///
/// Relative, but for one made by [`TreePath::in_folder`]; at least one segment; no segment is empty, `.` or starts with `..` (that prefix is the publisher's own,
/// as it is the kubelet's: `pkg/volume/util/atomic_writer.go`), is longer than 255 bytes (`NAME_MAX`), or holds a
/// control character; at most 1,024 bytes in all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreePath(Arc<str>);

/// Why a text is no [`TreePath`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path:?} cannot be a path below the output: {reason}")]
pub struct TreePathError {
    path: String,
    reason: &'static str,
}

impl TreePath {
    /// Checks `text`.
    pub fn parse(text: &str) -> Result<Self, TreePathError> {
        let fail = |reason| Err(TreePathError { path: text.chars().take(256).collect(), reason });
        if text.starts_with('/') {
            return fail("it is absolute");
        }
        if text.len() > 1024 {
            return fail("it is longer than 1024 bytes");
        }
        for segment in text.split('/') {
            if segment.is_empty() {
                return fail("a segment is empty");
            }
            if segment == "." || segment.starts_with("..") {
                return fail("a segment is '.' or starts with '..'");
            }
            if segment.len() > 255 {
                return fail("a segment is longer than 255 bytes");
            }
            if segment.chars().any(char::is_control) {
                return fail("it has a control character");
            }
        }
        Ok(Self(text.into()))
    }

    /// A path in a further directory, which is absolute itself: below that, `text` is what a path below the output is.
    pub fn in_folder(folder: &str, text: &str) -> Result<Self, TreePathError> {
        Self::parse(text)?;
        Ok(Self(format!("{folder}/{text}").into()))
    }

    /// The path's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path's text, shared.
    #[must_use]
    pub fn shared(&self) -> Arc<str> {
        self.0.clone()
    }

    /// The first segment: the name in the output directory itself.
    #[must_use]
    pub fn top(&self) -> &str {
        self.0.split('/').next().unwrap_or_default()
    }

    /// The segments, first to last.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }
}

impl Borrow<str> for TreePath {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One file of a generation.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    pub bytes: Content,
    /// Whether a value of a secret source went into it: it gets `--secret-mode`, and is redacted in diffs.
    pub secret: bool,
    /// Where it came from, for messages: a template's name, or an object and key.
    pub origin: Arc<str>,
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes from {}", self.bytes.len(), self.origin)
    }
}

/// What one inputs digest rendered to. No path is a prefix of another.
///
/// Cheap to clone: what is not changed is shared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    files: ChunkedMap<TreePath, File, Known>,
}

/// Some files of a tree that are next to each other.
pub type Chunk = chunked_map::Chunk<TreePath, File, Known>;

/// What is known of the files in a chunk.
#[derive(Debug)]
pub struct Known {
    /// The sum of their lengths, in bytes.
    size: u64,
    /// Over their paths and the digests of their bytes. In memory only: it is unkeyed.
    content: Digest,
    /// Over the paths of those that are secret, if any is.
    secret: Option<Digest>,
    /// Whether all were parsed, and none was malformed.
    well_formed: AtomicBool,
}

/// Two files want one place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CollisionError {
    /// Both are to be the same file.
    #[error(
        "{first} and {second} both render to {path}; give one of them another place with --template SRC:DEST or --path"
    )]
    Same {
        path: TreePath,
        /// Origin of the one that came first.
        first: String,
        /// Origin of the other.
        second: String,
    },
    /// One would be a directory of the other.
    #[error("{file} ({file_origin}) cannot be a file, as {below} ({below_origin}) needs it to be a directory")]
    Nested {
        /// The path that is a file.
        file: TreePath,
        /// Its origin.
        file_origin: String,
        /// The path below it.
        below: TreePath,
        /// Its origin.
        below_origin: String,
    },
}

impl Tree {
    /// Adds a file, unless its place is taken.
    pub fn insert(&mut self, path: TreePath, file: File) -> Result<(), CollisionError> {
        self.check(&path, &file)?;
        self.files.insert(path, file);
        Ok(())
    }

    /// Adds all of them, or none if one's place is taken, by what is there or by another of them.
    pub fn insert_all(&mut self, files: Vec<(TreePath, File)>) -> Result<(), CollisionError> {
        let mut added = Self::default();
        for (path, file) in &files {
            self.check(path, file)?;
            // A single one has no other.
            if files.len() > 1 {
                added.insert(path.clone(), file.clone())?;
            }
        }
        for (path, file) in files {
            self.files.insert(path, file);
        }
        Ok(())
    }

    /// Whether the place of a file is free.
    fn check(&self, path: &TreePath, file: &File) -> Result<(), CollisionError> {
        if let Some(first) = self.files.get(path.as_str()) {
            return Err(CollisionError::Same {
                path: path.clone(),
                first: first.origin.to_string(),
                second: file.origin.to_string(),
            });
        }
        for (end, _) in path.0.match_indices('/') {
            if let Some((above, found)) = self.files.get_key_value(&path.0[..end]) {
                return Err(CollisionError::Nested {
                    file: above.clone(),
                    file_origin: found.origin.to_string(),
                    below: path.clone(),
                    below_origin: file.origin.to_string(),
                });
            }
        }
        let prefix = format!("{path}/");
        let below = self.files.range_from(&prefix).next();
        if let Some((below, found)) = below.filter(|(below, _)| below.0.starts_with(&prefix)) {
            return Err(CollisionError::Nested {
                below: below.clone(),
                below_origin: found.origin.to_string(),
                file: path.clone(),
                file_origin: file.origin.to_string(),
            });
        }
        Ok(())
    }

    /// Gives a file other bytes; `false` if there is none at that path.
    pub fn replace(&mut self, path: &TreePath, bytes: Content) -> bool {
        match self.files.get_mut(path.as_str()) {
            Some(file) => {
                file.bytes = bytes;
                true
            }
            None => false,
        }
    }

    /// The sum of all files' lengths, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.chunks().iter().map(|chunk| chunk.known().size).sum()
    }

    /// Paths and files, in the order of paths.
    pub fn iter(&self) -> impl Iterator<Item = (&TreePath, &File)> {
        self.files.iter()
    }

    /// The same in chunks.
    #[must_use]
    pub fn chunks(&self) -> &[Arc<Chunk>] {
        self.files.chunks()
    }

    /// The file at a path.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&File> {
        self.files.get(path)
    }

    /// Number of files.
    #[must_use]
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there is no file.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The distinct first segments, in order: one link in the output directory for each.
    #[must_use]
    pub fn top_names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.files.iter().map(|(path, _)| path.top()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The keyed digest over `content` (see [`Tree::content`]) and secrecy: equal for equal trees.
    #[must_use]
    pub fn digest(&self, content: Digest, key: &DigestKey) -> Digest {
        let mut hasher = Hasher::keyed(key);
        hasher.field(content.as_bytes());
        for secret in self.chunks().iter().filter_map(|chunk| chunk.known().secret) {
            hasher.field(secret.as_bytes());
        }
        hasher.finish()
    }

    /// The keyed digest over paths and the digests of bytes alone, as [`crate::publish::Output::content`] reads it back:
    /// modes do not show secrecy, since the kubelet widens those of an fsGroup's files.
    #[must_use]
    pub fn content(&self, key: &DigestKey) -> Digest {
        let mut hasher = ContentHasher::new(key);
        self.chunks().iter().for_each(|chunk| hasher.chunk(chunk.known().content));
        hasher.finish()
    }
}

impl Chunk {
    fn known(&self) -> &Known {
        self.found(|chunk| {
            let (mut content, mut secret, mut size) = (Hasher::plain(), None, 0);
            for (path, file) in chunk.iter() {
                add(&mut content, path.as_str().as_bytes(), file.bytes.digest());
                if file.secret {
                    secret.get_or_insert_with(Hasher::plain).field(path.as_str().as_bytes());
                }
                size += file.bytes.len() as u64;
            }
            let (content, secret) = (content.finish(), secret.map(Hasher::finish));
            Known { size, content, secret, well_formed: AtomicBool::new(false) }
        })
    }

    /// Whether all its files were [found](Self::note_well_formed) to be well-formed.
    #[must_use]
    pub fn is_well_formed(&self) -> bool {
        self.known().well_formed.load(Ordering::Relaxed)
    }

    /// Notes that they are, so that they need not be looked at for it again.
    pub fn note_well_formed(&self) {
        self.known().well_formed.store(true, Ordering::Relaxed);
    }
}

fn add(hasher: &mut Hasher, path: &[u8], bytes: Digest) {
    hasher.field(path);
    hasher.field(bytes.as_bytes());
}

/// Takes the digest that [`Tree::content`] is.
pub struct ContentHasher {
    whole: Hasher,
    chunk: Option<Hasher>,
}

impl ContentHasher {
    /// Of no file yet.
    #[must_use]
    pub fn new(key: &DigestKey) -> Self {
        Self { whole: Hasher::keyed(key), chunk: None }
    }

    /// Adds a file, in the order of paths.
    pub fn file(&mut self, path: &[u8], bytes: Digest) {
        if chunked_map::begins(path) {
            self.end();
        }
        add(self.chunk.get_or_insert_with(Hasher::plain), path, bytes);
    }

    fn end(&mut self) {
        if let Some(chunk) = self.chunk.take() {
            self.chunk(chunk.finish());
        }
    }

    fn chunk(&mut self, content: Digest) {
        self.whole.field(content.as_bytes());
    }

    /// The digest over all files.
    #[must_use]
    pub fn finish(mut self) -> Digest {
        self.end();
        self.whole.finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(origin: &str) -> File {
        File { bytes: Content::from(bytes::Bytes::new()), secret: false, origin: origin.into() }
    }

    fn path(text: &str) -> TreePath {
        TreePath::parse(text).unwrap()
    }

    #[test]
    fn hostile_paths_are_refused() {
        for bad in [
            "",
            "/",
            "/etc/passwd",
            "..",
            "../x",
            "a/../b",
            "a/..",
            ".",
            "a/./b",
            "a//b",
            "a/",
            "..data",
            "a/..data/b",
            "..trimtab.json",
            "a\0b",
            "a\nb",
            &"x".repeat(256),
            &"a/".repeat(600),
        ] {
            assert!(TreePath::parse(bad).is_err(), "{bad:?} was accepted");
        }
        for good in ["a", ".hidden", "a.b/c-d_e", "a b", "ü/ß"] {
            assert!(TreePath::parse(good).is_ok(), "{good:?} was refused");
        }
    }

    #[test]
    fn one_place_is_given_once_and_both_are_named() {
        let mut tree = Tree::default();
        tree.insert(path("a/b"), file("one")).unwrap();
        let text = |result: Result<(), CollisionError>| result.unwrap_err().to_string();
        let same = text(tree.insert(path("a/b"), file("two")));
        assert!(same.contains("one and two both render to a/b"), "{same}");
        let nested = text(tree.insert(path("a/b/c"), file("three")));
        assert!(nested.contains("a/b (one)") && nested.contains("a/b/c (three)"), "{nested}");
        let nested = text(tree.insert(path("a"), file("four")));
        assert!(nested.contains("a (four)") && nested.contains("a/b (one)"), "{nested}");
        let all = |names: &[&str]| names.iter().map(|name| (path(name), file(name))).collect();
        for taken in [&["x", "a/b"][..], &["x", "a"], &["x", "x/y"], &["x/y", "x"]] {
            tree.insert_all(all(taken)).unwrap_err();
            assert_eq!(tree.len(), 1, "{taken:?}: some of them were added");
        }
        tree.insert_all(all(&["a/c", "a-b"])).unwrap();
        assert_eq!(tree.top_names(), ["a", "a-b"]);
    }

    proptest! {
        #[test]
        fn an_accepted_path_stays_below_its_root(text in "[./a-c\\x00\u{e9}]{0,12}") {
            if let Ok(path) = TreePath::parse(&text) {
                let joined = std::path::Path::new("/root").join(path.as_str());
                prop_assert!(joined.starts_with("/root"));
                prop_assert!(joined.components().all(|part| !matches!(
                    part,
                    std::path::Component::ParentDir | std::path::Component::CurDir
                )));
                prop_assert_eq!(joined.components().count(), 2 + path.segments().count());
            }
        }
    }
}
