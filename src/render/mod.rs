//! Pure rendering: inputs → tree. No I/O, no clock, no randomness: the same inputs give the same bytes.
//!
//! Without templates each key becomes a file (`plain`); with them each template does (`templates`, `filters`).
//! Everything here may meet hostile text. What goes wrong is a [`Rejection`] that names file, line and source and
//! holds no byte of a value: third-party error text is dropped at the place where it arises.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::model::digest::Digest;
use crate::model::object::{Object, ObjectRef};
use crate::model::spool::SpoolError;
use crate::model::tree::{CollisionError, Tree, TreePath, TreePathError};

mod filters;
pub mod inputs;
mod plain;
mod pod;
mod settings;
mod templates;

pub use plain::{PathPattern, PathPatternError};
pub use pod::{Pod, PodInfoError, parse_podinfo};
pub use settings::Settings;
pub use templates::{Template, template_dir, template_file};

/// A variable that `--env` or `--secret-env` lets templates read.
#[derive(Clone, PartialEq, Eq)]
pub struct EnvVar {
    /// Its value.
    pub value: String,
    /// Whether it came by `--secret-env`.
    pub secret: bool,
}

impl fmt::Debug for EnvVar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EnvVar({} bytes, secret: {})", self.value.len(), self.secret)
    }
}

/// How an object came to be an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `--configmap` or `--secret`.
    Named,
    /// `--selector`: if it fails without templates, it holds back itself alone.
    Selected,
    /// `--watch-dir`.
    Dir,
}

/// An object that goes into the render.
#[derive(Clone, Debug)]
pub struct Input {
    /// The object.
    pub object: Arc<Object>,
    /// How it came in.
    pub origin: Origin,
    /// Its last version that was published: takes its place when a selected object fails.
    pub previous: Option<Arc<Object>>,
}

/// All that rendering depends on.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// In merge order: later ones win in `data`.
    pub objects: &'a [Input],
    /// `None` without `--template`: each key is written as a file. Partials are among them.
    pub templates: Option<&'a [Template]>,
    /// Where a key goes without templates.
    pub path: &'a PathPattern,
    /// What `env("NAME")` may read.
    pub env: &'a BTreeMap<String, EnvVar>,
    /// What `pod` holds.
    pub pod: &'a Pod,
    /// `generation.digest`.
    pub digest: Digest,
    /// `--max-size`: the most bytes that all files may have together.
    pub max_size: u64,
    /// `--allow-empty`.
    pub allow_empty: bool,
    /// Selected objects that validation holds back, and why; without templates alone.
    pub refused: &'a BTreeMap<ObjectRef, String>,
}

/// What the inputs rendered to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The files.
    pub tree: Tree,
    /// Selected objects that are not in it, or only as they were last published.
    pub held_back: Vec<HeldBack>,
}

/// A selected object whose present version is not published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldBack {
    /// The object.
    pub source: ObjectRef,
    /// Why, and what to do. Without a byte of its values.
    pub reason: String,
}

/// Why the inputs are not published. Every variant but the last is a rejection: the same inputs fail again, so it is not
/// retried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// A template does not parse.
    #[error("{place}: {problem}")]
    Syntax {
        /// The template and its line.
        place: Box<Place>,
        /// What is wrong.
        problem: String,
    },
    /// A template failed: an undefined value, a filter's wrong input, a loop without end.
    #[error("{place}: {problem}{}", quoted(expression.as_deref()))]
    Template {
        /// The template and its line.
        place: Box<Place>,
        /// What is wrong.
        problem: String,
        /// The failing piece of the template, unless that came from a secret source.
        expression: Option<String>,
    },
    /// A template rendered to nothing, or to white space alone.
    #[error("{place}: it renders to nothing; give --allow-empty if that is meant")]
    EmptyFile {
        /// The template.
        place: Box<Place>,
    },
    /// No source has a key, or no file came of them.
    #[error("{reason}; give --allow-empty if that is meant")]
    Empty {
        /// What there is none of.
        reason: String,
    },
    /// The files together are larger than `--max-size`.
    #[error("{origin} does not fit: all files together would be larger than --max-size ({max_size} bytes)")]
    TooLarge {
        /// The template, or object and key, at which the limit was passed.
        origin: String,
        /// The limit in bytes.
        max_size: u64,
    },
    /// Two files want one place.
    #[error(transparent)]
    Collision(#[from] CollisionError),
    /// A key, or a template's DEST, is no path below the output.
    #[error("{origin}: {error}")]
    Path {
        /// The template, or object and key.
        origin: String,
        /// Why.
        error: TreePathError,
    },
    /// `--path` has `{namespace}`, and a directory has none.
    #[error(
        "{origin} has no namespace for the {{namespace}} of --path; leave it out, or write directories by --template"
    )]
    NoNamespace {
        /// The directory.
        origin: String,
    },
    /// A file of the downward API volume is not of its form.
    #[error("--podinfo-dir, file {file}: {error}")]
    PodInfo {
        /// `labels` or `annotations`.
        file: &'static str,
        /// Where.
        error: PodInfoError,
    },
    /// A template is not UTF-8.
    #[error(
        "{place}: a template must be UTF-8, and this is not; a binary file goes by --watch-dir, without --template"
    )]
    NotUtf8 {
        /// The template, and the line of the first wrong byte.
        place: Box<Place>,
    },
    /// Two templates have one name, so that `include` could mean either.
    #[error("two templates are called {name}: in {first} and in {second}; rename one")]
    SameName {
        /// The name.
        name: String,
        /// Where the one comes from.
        first: String,
        /// Where the other comes from.
        second: String,
    },
    /// A value could not be had. The inputs are not at fault, and it is retried.
    #[error(transparent)]
    Kept(#[from] SpoolError),
}

impl Rejection {
    /// Whether the inputs are at fault, and are not to be tried again.
    #[must_use]
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Kept(_))
    }

    /// The same without any piece of a template or of what went into it, for readers that may not see these.
    #[must_use]
    pub fn brief(&self) -> String {
        match self {
            Self::Syntax { place, .. } => format!("{place}: it is no valid template"),
            Self::Template { place, .. } => format!("{place}: it cannot be rendered"),
            other => other.to_string(),
        }
    }
}

/// Where in the templates something went wrong. Prints as `template NAME (SOURCE), line N`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The template that was to become a file.
    pub template: String,
    /// The source it came from.
    pub source: String,
    /// The included template in which it happened, if it is another one.
    pub included: Option<String>,
    /// The line there, from 1.
    pub line: Option<usize>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "template {} ({})", self.template, self.source)?;
        if let Some(included) = &self.included {
            write!(f, ", in {included}")?;
        }
        self.line.map_or(Ok(()), |line| write!(f, ", line {line}"))
    }
}

fn quoted(expression: Option<&str>) -> String {
    expression.map_or_else(String::new, |expression| format!(" in `{expression}`"))
}

/// Renders the inputs to the tree of a generation.
pub fn render(inputs: &Inputs<'_>) -> Result<Rendered, Rejection> {
    if !inputs.allow_empty && inputs.objects.iter().all(|input| input.object.data.is_empty()) {
        return Err(Rejection::Empty { reason: "no source has a key".into() });
    }
    let rendered = match inputs.templates {
        None => plain::render(inputs)?,
        Some(templates) => Rendered { tree: templates::render(inputs, templates)?, held_back: Vec::new() },
    };
    if rendered.tree.is_empty() && !inputs.allow_empty {
        let reason = match (&rendered.held_back[..], inputs.templates) {
            (_, Some(_)) => "there is no template to render (names that start with '_' are only for include)".into(),
            ([first, ..], None) => format!("every object is held back; {}: {}", first.source, first.reason),
            ([], None) => "no source has a key".into(),
        };
        return Err(Rejection::Empty { reason });
    }
    Ok(rendered)
}

/// The path of `origin`, or a rejection that names it.
fn tree_path(text: &str, origin: &str) -> Result<TreePath, Rejection> {
    TreePath::parse(text).map_err(|error| Rejection::Path { origin: origin.to_owned(), error })
}

#[cfg(test)]
mod tests;
