//! Without templates: each key of each object is a file at `--path`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::str::FromStr;
use std::sync::Arc;

use super::{Inputs, Refused, RenderError, Rendered, tree_path};
use crate::model::object::{Kind, Object, ObjectRef};
use crate::model::snapshot::{HeldBack, Taken};
use crate::model::tree::{File, Tree, TreePath, TreePathError};

/// `--path`: literal text and placeholders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Namespace,
    Name,
    Kind,
    Key,
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
    #[error("--path {pattern:?} has {{{name}}}; there are {{namespace}}, {{name}}, {{kind}} and {{key}}")]
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
                _ => return Err(PathPatternError::Unknown { pattern: pattern.to_owned(), name: name.to_owned() }),
            });
            rest = after;
        }
        if !parts.contains(&Part::Key) {
            return Err(PathPatternError::NoKey { pattern: pattern.to_owned() });
        }
        let pattern = Self(parts);
        let sample = ObjectRef { kind: Kind::ConfigMap, namespace: "namespace".into(), name: "name".into() };
        TreePath::parse(&pattern.expand(&sample, "key")).map_err(PathPatternError::Path)?;
        Ok(pattern)
    }
}

impl PathPattern {
    /// Where a key goes, if that can be a path.
    pub(crate) fn place(&self, id: &ObjectRef, key: &str) -> Option<TreePath> {
        TreePath::parse(&self.expand(id, key)).ok()
    }

    fn expand(&self, id: &ObjectRef, key: &str) -> String {
        self.0.iter().fold(String::new(), |mut path, part| {
            path.push_str(match part {
                Part::Text(text) => text,
                Part::Namespace => &id.namespace,
                Part::Name => &id.name,
                Part::Kind => id.kind.as_str(),
                Part::Key => key,
            });
            path
        })
    }
}

/// Named objects and directories first, each of which must fit; then the selected ones, oldest first, each of which
/// fits as a whole or is held back. `published`: what takes the place of one that is.
pub(super) fn render(
    inputs: &Inputs,
    published: &BTreeMap<&ObjectRef, &Arc<Object>>,
    refused: &Refused,
) -> Result<Rendered, RenderError> {
    let mut files = Files { inputs, tree: Tree::default(), size: 0 };
    // An object that is both named and selected is one object.
    let mut seen = BTreeSet::new();
    let (mut selected, certain): (Vec<_>, Vec<_>) = inputs.snapshot.objects.iter().partition(|taken| taken.selected);
    for Taken { object, .. } in certain {
        if seen.insert(&object.id) {
            files.add(object)?;
        }
    }
    selected.sort_by_key(|taken| (taken.object.created, &taken.object.id));
    let mut held_back = Vec::new();
    for Taken { object, .. } in selected {
        if !seen.insert(&object.id) {
            continue;
        }
        let refused = refused.get(&object.id);
        let error = match refused {
            Some(_) => None,
            None => match files.add(object) {
                Ok(()) => continue,
                Err(error) => Some(error),
            },
        };
        let mut reason = error.as_ref().map(ToString::to_string).or_else(|| refused.cloned()).unwrap_or_default();
        if let Some(previous) = published.get(&object.id) {
            match files.add(previous) {
                Ok(()) => reason.push_str("; its last published version stays"),
                Err(again) if Some(&again) == error.as_ref() => {}
                Err(again) => {
                    let _ = write!(reason, "; nor can its last published version stay: {again}");
                }
            }
        }
        held_back.push(HeldBack { source: object.id.clone(), reason });
    }
    Ok(Rendered { tree: files.tree, held_back })
}

struct Files<'a> {
    inputs: &'a Inputs,
    tree: Tree,
    size: u64,
}

impl Files<'_> {
    /// Adds all keys of an object, or none.
    fn add(&mut self, object: &Object) -> Result<(), RenderError> {
        let id = &object.id;
        let settings = &self.inputs.settings;
        if id.namespace.is_empty() && settings.path.0.contains(&Part::Namespace) {
            return Err(RenderError::NoNamespace { origin: id.to_string() });
        }
        let mut files = Vec::with_capacity(object.data.len());
        let mut size = self.size;
        for (key, bytes) in &object.data {
            let origin = format!("key {key:?} of {id}");
            let path = tree_path(&settings.path.expand(id, key), &origin)?;
            size = size.saturating_add(bytes.len() as u64);
            if size > settings.max_size {
                return Err(RenderError::TooLarge { origin, max_size: settings.max_size });
            }
            files.push((path, File { bytes: bytes.clone(), secret: object.secret, origin: origin.into() }));
        }
        self.tree.insert_all(files)?;
        self.size = size;
        Ok(())
    }
}
