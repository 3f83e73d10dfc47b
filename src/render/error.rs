//! Why inputs do not render. A message names file, line and source, and holds no byte of a value: the text of a
//! third-party error is dropped where it arises.

use std::fmt;

use super::gzip::GzipError;
use super::pod::PodInfoError;
use crate::model::spool::SpoolError;
use crate::model::tree::{CollisionError, TreePathError};

/// Why there is no tree. All but the last say that the inputs are at fault: the same ones fail again, and are not retried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// A template does not parse.
    #[error("{place}: {problem}")]
    Syntax { place: Box<Place>, problem: String },
    /// A template failed: an undefined value, a filter's wrong input, a loop without end.
    #[error("{place}: {problem}{}{}", quoted(expression.as_deref()), hinted(hint.as_deref()))]
    Template {
        place: Box<Place>,
        problem: String,
        /// The failing piece of the template, unless that came from a secret source.
        expression: Option<String>,
        /// What may have been meant.
        hint: Option<String>,
    },
    /// A template rendered to nothing, or to white space alone.
    #[error("{place}: it renders to nothing; give --allow-empty if that is meant")]
    EmptyFile { place: Box<Place> },
    /// No source has a key, or no file came of them.
    #[error("{reason}; give --allow-empty if that is meant")]
    Empty { reason: String },
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
        error: TreePathError,
    },
    /// `--path` has `{namespace}`, and a directory has none.
    #[error(
        "{origin} has no namespace for the {{namespace}} of --path; leave it out, or write directories by --template"
    )]
    NoNamespace { origin: String },
    /// `--path` has a label or an annotation without a default, and the object has none.
    #[error(
        "{origin} has no {what} for the {{{what}}} of --path; give it one, or --path a default: {{{what}|DEFAULT}}"
    )]
    NoMark {
        origin: String,
        /// As [`crate::model::object::Marks`] names it.
        what: String,
    },
    /// A file of the downward API volume is not of its form.
    #[error("--podinfo-dir, file {file}: {error}")]
    PodInfo {
        /// `labels` or `annotations`.
        file: &'static str,
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
    /// A file begins as a gzip file does, and is none or is too large.
    #[error("{origin} begins as a gzip file does, and {problem}")]
    Gzip { origin: String, problem: String },
    /// Two templates have one name, so that `include` could mean either.
    #[error("two templates are called {name}: in {first} and in {second}; rename one")]
    SameName { name: String, first: String, second: String },
    /// A value could not be read. The inputs are not at fault, and it is retried.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

impl RenderError {
    /// Whether the inputs are at fault.
    #[must_use]
    pub fn is_rejection(&self) -> bool {
        !matches!(self, Self::Spool(_))
    }

    pub(super) fn gzip(origin: String, error: GzipError, max_size: u64) -> Self {
        let problem = match error {
            GzipError::Malformed => "cannot be unpacked: it is damaged or cut off".to_owned(),
            GzipError::TooLarge => format!("unpacks to more than --max-size ({max_size} bytes)"),
        };
        Self::Gzip { origin, problem }
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

fn hinted(hint: Option<&str>) -> String {
    hint.map_or_else(String::new, |hint| format!("; {hint}"))
}
