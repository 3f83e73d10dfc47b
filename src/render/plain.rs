//! Without templates: each key of each object is a file at `--path`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::ops::Bound;
use std::str::FromStr;
use std::sync::Arc;

use super::{HeldBack, Inputs, Origin, Rejection, Rendered, tree_path};
use crate::model::object::{Kind, Object, ObjectRef};
use crate::model::tree::{CollisionError, File, Tree, TreePath, TreePathError};

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
/// fits as a whole or is held back.
pub(super) fn render(inputs: &Inputs<'_>) -> Result<Rendered, Rejection> {
    let mut files = Files { inputs, tree: Tree::default(), places: BTreeMap::new(), size: 0 };
    // An object that is both named and selected is one object.
    let mut seen = BTreeSet::new();
    let (mut selected, certain): (Vec<_>, Vec<_>) =
        inputs.objects.iter().partition(|input| input.origin == Origin::Selected);
    for input in certain {
        if seen.insert(&input.object.id) {
            files.add(&input.object)?;
        }
    }
    selected.sort_by_key(|input| (input.object.created, &input.object.id));
    let mut held_back = Vec::new();
    for input in selected {
        if !seen.insert(&input.object.id) {
            continue;
        }
        let refused = inputs.refused.get(&input.object.id);
        let rejection = match refused {
            Some(_) => None,
            None => match files.add(&input.object) {
                Ok(()) => continue,
                Err(rejection) => Some(rejection),
            },
        };
        let mut reason = rejection.as_ref().map(ToString::to_string).or_else(|| refused.cloned()).unwrap_or_default();
        if let Some(previous) = &input.previous {
            match files.add(previous) {
                Ok(()) => reason.push_str("; its last published version stays"),
                Err(again) if Some(&again) == rejection.as_ref() => {}
                Err(again) => {
                    let _ = write!(reason, "; nor can its last published version stay: {again}");
                }
            }
        }
        held_back.push(HeldBack { source: input.object.id.clone(), reason });
    }
    Ok(Rendered { tree: files.tree, held_back })
}

struct Files<'a> {
    inputs: &'a Inputs<'a>,
    tree: Tree,
    /// What `tree` holds, path text to path and origin: to see all clashes of an object before any of it is added.
    places: BTreeMap<Arc<str>, (TreePath, Arc<str>)>,
    size: u64,
}

impl Files<'_> {
    /// Adds all keys of an object, or none.
    fn add(&mut self, object: &Object) -> Result<(), Rejection> {
        let id = &object.id;
        if id.namespace.is_empty() && self.inputs.path.0.contains(&Part::Namespace) {
            return Err(Rejection::NoNamespace { origin: id.to_string() });
        }
        let mut own = Tree::default();
        let mut size = self.size;
        for (key, bytes) in &object.data {
            let origin = format!("key {key:?} of {id}");
            let path = tree_path(&self.inputs.path.expand(id, key), &origin)?;
            size = size.saturating_add(bytes.len() as u64);
            if size > self.inputs.max_size {
                return Err(Rejection::TooLarge { origin, max_size: self.inputs.max_size });
            }
            if let Some(clash) = self.clash(&path, &origin) {
                return Err(clash.into());
            }
            own.insert(path, File { bytes: bytes.clone(), secret: object.secret, origin: origin.into() })?;
        }
        for (path, file) in own.iter() {
            self.places.insert(path.shared(), (path.clone(), file.origin.clone()));
            self.tree.insert(path.clone(), file.clone())?;
        }
        self.size = size;
        Ok(())
    }

    fn clash(&self, path: &TreePath, origin: &str) -> Option<CollisionError> {
        let text = path.as_str();
        if let Some((_, first)) = self.places.get(text) {
            return Some(CollisionError::Same {
                path: path.clone(),
                first: first.to_string(),
                second: origin.to_owned(),
            });
        }
        let above = text.match_indices('/').find_map(|(end, _)| self.places.get(&text[..end]));
        if let Some((file, file_origin)) = above {
            return Some(CollisionError::Nested {
                file: file.clone(),
                file_origin: file_origin.to_string(),
                below: path.clone(),
                below_origin: origin.to_owned(),
            });
        }
        let prefix = format!("{text}/");
        let (_, (below, below_origin)) = self
            .places
            .range::<str, _>((Bound::Included(&*prefix), Bound::Unbounded))
            .next()
            .filter(|(below, _)| below.starts_with(&prefix))?;
        Some(CollisionError::Nested {
            file: path.clone(),
            file_origin: origin.to_owned(),
            below: below.clone(),
            below_origin: below_origin.to_string(),
        })
    }
}
