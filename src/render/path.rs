//! `--path`: where each key goes.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::model::object::{Kind, Marks, ObjectRef};
use crate::model::tree::{TreePath, TreePathError};

/// `--path`: literal text and placeholders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern {
    parts: Vec<Part>,
    /// The output's absolute path, with a slash at its end.
    output: Option<String>,
    /// The absolute paths of further directories, without one.
    folders: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Namespace,
    Name,
    Kind,
    Key,
    /// A label or an annotation, and what stands for it where an object has none.
    Mark {
        /// As [`Marks`] name it.
        name: String,
        default: Option<String>,
    },
}

/// Why a text is no [`PathPattern`]. Fatal: found when flags are read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathPatternError {
    /// A brace without its partner.
    #[error("--path {pattern:?} has a brace without a partner")]
    Brace {
        /// The whole pattern.
        pattern: String,
    },
    /// A placeholder that does not exist.
    #[error(
        "--path {pattern:?} has {{{name}}}; there are {{namespace}}, {{name}}, {{kind}}, {{key}}, {{label:NAME}} and \
         {{annotation:NAME}}, the last two also with a default: {{label:NAME|DEFAULT}}"
    )]
    Unknown {
        /// The whole pattern.
        pattern: String,
        /// What stands between the braces.
        name: String,
    },
    /// Without `{key}` all keys of an object would be one file.
    #[error("--path {pattern:?} needs {{key}}: all keys of an object would be one file")]
    NoKey {
        /// The whole pattern.
        pattern: String,
    },
    /// Whatever is filled in, it leads nowhere below the output.
    #[error("--path: {0}")]
    Path(TreePathError),
}

impl FromStr for PathPattern {
    type Err = PathPatternError;

    fn from_str(pattern: &str) -> Result<Self, Self::Err> {
        let brace = || PathPatternError::Brace { pattern: pattern.to_owned() };
        let mut parts = Vec::new();
        let mut rest = pattern;
        while !rest.is_empty() {
            let end = rest.find(['{', '}']).unwrap_or(rest.len());
            let (text, from) = rest.split_at(end);
            if !text.is_empty() {
                parts.push(Part::Text(text.to_owned()));
            }
            if from.is_empty() {
                break;
            }
            let (name, after) = from.strip_prefix('{').and_then(|inside| inside.split_once('}')).ok_or_else(brace)?;
            parts.push(match name {
                "namespace" => Part::Namespace,
                "name" => Part::Name,
                "kind" => Part::Kind,
                "key" => Part::Key,
                _ if name.contains('{') => return Err(brace()),
                _ => mark(name)
                    .ok_or_else(|| PathPatternError::Unknown { pattern: pattern.to_owned(), name: name.to_owned() })?,
            });
            rest = after;
        }
        if !parts.contains(&Part::Key) {
            return Err(PathPatternError::NoKey { pattern: pattern.to_owned() });
        }
        let pattern = Self { parts, output: None, folders: Vec::new() };
        let sample = ObjectRef { kind: Kind::ConfigMap, namespace: "namespace".into(), name: "name".into() };
        let marks = pattern.parts.iter().filter_map(|part| match part {
            Part::Mark { name, default: None } => Some((name.clone(), "value".to_owned())),
            _ => None,
        });
        let expanded = pattern.expand(&sample, Some(&marks.collect()), "key").unwrap_or_default();
        TreePath::parse(&expanded).map_err(PathPatternError::Path)?;
        Ok(pattern)
    }
}

/// `label:NAME`, `annotation:NAME`, or one of them and `|DEFAULT`.
fn mark(text: &str) -> Option<Part> {
    let (name, default) = text.split_once('|').map_or((text, None), |(name, default)| (name, Some(default.to_owned())));
    let of = name.strip_prefix("label:").or_else(|| name.strip_prefix("annotation:"))?;
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let known = !of.is_empty() && of.chars().all(fits);
    known.then(|| Part::Mark { name: name.to_owned(), default })
}

impl Default for PathPattern {
    /// Each key is a path.
    fn default() -> Self {
        Self { parts: vec![Part::Key], output: None, folders: Vec::new() }
    }
}

impl PathPattern {
    /// The same for this output: a value that is an absolute path below it is taken as what it is below it.
    #[must_use]
    pub fn below(self, output: &Path) -> Self {
        let output = output.to_str().filter(|output| output.starts_with('/'));
        Self { output: output.map(|output| format!("{}/", output.trim_end_matches('/'))), ..self }
    }

    /// The same with further directories, absolute and none in another: a value that is one of them, or below one, leads
    /// there.
    #[must_use]
    pub fn with_folders(self, folders: &[PathBuf]) -> Self {
        let folders = folders.iter().filter_map(|folder| folder.to_str());
        Self { folders: folders.map(|folder| folder.trim_end_matches('/').to_owned()).collect(), ..self }
    }

    /// A path that was filled in.
    pub(super) fn checked(&self, text: &str) -> Result<TreePath, TreePathError> {
        let inside = |folder: &String| Some((folder.clone(), text.strip_prefix(folder.as_str())?.strip_prefix('/')?));
        match self.folders.iter().find_map(inside) {
            Some((folder, below)) => TreePath::in_folder(&folder, below),
            None => TreePath::parse(text),
        }
    }

    /// The labels and annotations that it names.
    #[must_use]
    pub fn marks(&self) -> Vec<String> {
        let names = self.parts.iter().filter_map(|part| match part {
            Part::Mark { name, .. } => Some(name.clone()),
            _ => None,
        });
        names.collect()
    }

    pub(super) fn has_namespace(&self) -> bool {
        self.parts.contains(&Part::Namespace)
    }

    /// Where a key goes, if that can be a path.
    pub(crate) fn place(&self, id: &ObjectRef, marks: Option<&Marks>, key: &str) -> Option<TreePath> {
        self.checked(&self.expand(id, marks, key).ok()?).ok()
    }

    /// The text of a key's path; the name of the label or annotation that is missing.
    pub(super) fn expand(&self, id: &ObjectRef, marks: Option<&Marks>, key: &str) -> Result<String, &str> {
        let mut path = String::new();
        // An empty folder leaves no slash behind.
        let mut folder_is_empty = false;
        for part in &self.parts {
            let text: &str = match part {
                Part::Text(text) if std::mem::take(&mut folder_is_empty) => text.strip_prefix('/').unwrap_or(text),
                Part::Text(text) => text,
                Part::Namespace => &id.namespace,
                Part::Name => &id.name,
                Part::Kind => id.kind.as_str(),
                Part::Key => key,
                Part::Mark { name, default } => {
                    let value = marks.and_then(|marks| marks.get(name)).or(default.as_ref());
                    let value = self.folder(value.ok_or(name.as_str())?, path.is_empty());
                    folder_is_empty = value.is_empty() && (path.is_empty() || path.ends_with('/'));
                    value
                }
            };
            path.push_str(text);
        }
        Ok(path)
    }

    /// A label's or annotation's value as a piece of a path.
    fn folder<'a>(&self, value: &'a str, first: bool) -> &'a str {
        let below = self.output.as_deref().filter(|_| first).and_then(|output| {
            if value == output.trim_end_matches('/') { Some("") } else { value.strip_prefix(output) }
        });
        match below {
            Some(below) => below.trim_end_matches('/'),
            // What is nothing but slashes stays absolute, and is refused.
            None if value.bytes().all(|byte| byte == b'/') => value,
            None => value.trim_end_matches('/'),
        }
    }
}
