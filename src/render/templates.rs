//! Templates: each that is no partial becomes a file. Files beside them may be copied as they are.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::envsubst::Substituted;
use super::explain::failure;
use super::values::Notes;
use super::{Inputs, Place, RenderError, Rendered, engine, envsubst, guard, gzip, tree_path};
use crate::model::content::Content;
use crate::model::digest::Digest;
use crate::model::object::Object;
use crate::model::tree::{File, Tree, TreePath};

/// What a template's name ends in, and its file's does not, unless `--template-suffix` says otherwise.
const SUFFIX: &str = ".j2";

pub(super) struct Template {
    /// What `include` and messages call it: the file's name, or its path below the directory of `--template`.
    pub(super) name: String,
    /// The source it came from, for messages.
    from: String,
    /// The file it becomes. `None`: a partial, there for others to include.
    pub(super) dest: Option<TreePath>,
    bytes: Bytes,
    /// Whether it came from a secret source: what includes it becomes secret, and no message quotes it.
    pub(super) secret: bool,
}

/// A template as the engine gets it.
pub(super) struct Source<'a> {
    pub(super) template: &'a Template,
    pub(super) text: Cow<'a, str>,
}

/// Templates by their names.
pub(super) type Sources<'a> = BTreeMap<&'a str, Source<'a>>;

/// What `--template` gives.
#[derive(Default)]
pub(super) struct Given {
    pub(super) templates: Vec<Template>,
    /// What goes into the tree as it is.
    pub(super) copies: Vec<(TreePath, File)>,
}

impl Given {
    fn of(inputs: &Inputs) -> Result<Self, RenderError> {
        let suffix = inputs.settings.suffix.as_deref();
        let mut given = Self::default();
        for (source, dest) in &inputs.snapshot.templates {
            // A file was read as one key of its own name; a directory is called by its last segment.
            let is_file = source.data.len() == 1 && source.data.contains_key(&*source.id.name);
            if is_file {
                given.file(source, dest.as_deref(), suffix)?;
            } else {
                given.dir(source, dest.as_deref(), suffix)?;
            }
        }
        Ok(given)
    }

    /// `--template FILE[:DEST]`; `source` has the file's name as its only key.
    ///
    /// `dest` is the file's path, or, with a slash at the end, the directory that it is put into. The default is its
    /// name without the suffix; a name that starts with `_` is a partial then.
    pub(super) fn file(
        &mut self,
        source: &Object,
        dest: Option<&str>,
        suffix: Option<&str>,
    ) -> Result<(), RenderError> {
        for (key, bytes) in &source.data {
            self.templates.push(match dest {
                Some(dest) if !dest.ends_with('/') => {
                    let path = tree_path(dest, &format!("template {key} of {}", source.id))?;
                    Template { dest: Some(path), ..template(source, key, bytes, "", suffix)? }
                }
                prefix => template(source, key, bytes, prefix.unwrap_or_default(), suffix)?,
            });
        }
        Ok(())
    }

    /// `--template DIR[:DEST]`: every key of `source`, below the directory `dest`.
    ///
    /// A file becomes its path without the suffix; one whose base name starts with `_` is a partial. Where a suffix was
    /// chosen, what does not end in it is copied.
    pub(super) fn dir(&mut self, source: &Object, dest: Option<&str>, suffix: Option<&str>) -> Result<(), RenderError> {
        let prefix = match dest {
            Some(dest) if !dest.ends_with('/') => format!("{dest}/"),
            dest => dest.unwrap_or_default().to_owned(),
        };
        for (key, bytes) in &source.data {
            if suffix.is_none_or(|suffix| key.ends_with(suffix)) {
                self.templates.push(template(source, key, bytes, &prefix, suffix)?);
            } else {
                let origin = format!("file {key} of {}", source.id);
                let path = tree_path(&format!("{prefix}{key}"), &origin)?;
                self.copies.push((path, File { bytes: bytes.clone(), secret: source.secret, origin: origin.into() }));
            }
        }
        Ok(())
    }
}

fn template(
    source: &Object,
    key: &str,
    bytes: &Content,
    prefix: &str,
    suffix: Option<&str>,
) -> Result<Template, RenderError> {
    let from = source.id.to_string();
    let base = key.rsplit('/').next().unwrap_or(key);
    let dest = if base.starts_with('_') {
        None
    } else {
        let path = format!("{prefix}{}", key.strip_suffix(suffix.unwrap_or(SUFFIX)).unwrap_or(key));
        Some(tree_path(&path, &format!("template {key} of {from}"))?)
    };
    Ok(Template { name: key.to_owned(), from, dest, bytes: bytes.read()?, secret: source.secret })
}

/// Renders each template that has a destination, beside what is copied and the files of `--envsubst`.
pub(super) fn render(inputs: &Inputs, digest: Digest) -> Result<Rendered, RenderError> {
    let Given { mut templates, mut copies } = Given::of(inputs)?;
    let settings = &inputs.settings;
    for template in &mut templates {
        template.open(settings.max_size)?;
    }
    let Substituted { files, warnings } = envsubst::render(inputs)?;
    copies.extend(files);
    let notes = Arc::new(Notes::default());
    let sources = sources(&templates, inputs)?;
    let env = engine::environment(inputs, &sources, digest, &notes)?;
    let mut tree = Tree::default();
    let mut room = settings.max_size;
    let too_large = |origin: String| RenderError::TooLarge { origin, max_size: settings.max_size };
    for (_, copy) in &copies {
        let left = room.checked_sub(copy.bytes.len() as u64);
        room = left.ok_or_else(|| too_large(copy.origin.to_string()))?;
    }
    tree.insert_all(copies)?;
    for template in &templates {
        let Some(dest) = &template.dest else { continue };
        notes.secret.store(template.secret, Ordering::Relaxed);
        let mut out = Limited { bytes: Vec::new(), room, full: false };
        let done = env
            .get_template(&template.name)
            .and_then(|compiled| compiled.render_captured_to((), &mut out).map(drop))
            .and_then(|()| notes.check_misuse());
        let origin = format!("template {} ({})", template.name, template.from);
        if out.full {
            return Err(too_large(origin));
        }
        if let Some(error) = notes.unread() {
            return Err(error.into());
        }
        done.map_err(|error| failure(&error, template, &sources, &notes, inputs))?;
        if out.bytes.trim_ascii().is_empty() && !settings.allow_empty {
            return Err(RenderError::EmptyFile { place: template.place(None).into() });
        }
        room = out.room;
        tree.insert(
            dest.clone(),
            File { bytes: Bytes::from(out.bytes).into(), secret: notes.secret(), origin: origin.into() },
        )?;
    }
    Ok(Rendered { tree, held_back: Vec::new(), warnings })
}

impl Template {
    pub(super) fn place(&self, line: Option<usize>) -> Place {
        Place { template: self.name.clone(), source: self.from.clone(), included: None, line }
    }

    /// Unpacks it, if it is packed.
    fn open(&mut self, max_size: u64) -> Result<(), RenderError> {
        let opened = gzip::opened(&self.bytes, max_size)
            .map_err(|error| RenderError::gzip(format!("template {} ({})", self.name, self.from), error, max_size))?;
        if let Cow::Owned(unpacked) = opened {
            self.bytes = unpacked.into();
        }
        Ok(())
    }

    fn text(&self) -> Result<&str, RenderError> {
        std::str::from_utf8(&self.bytes).map_err(|error| {
            let before = self.bytes.get(..error.valid_up_to()).unwrap_or_default();
            let line = before.split(|&byte| byte == b'\n').count();
            RenderError::NotUtf8 { place: self.place(Some(line)).into() }
        })
    }
}

fn sources<'a>(templates: &'a [Template], inputs: &Inputs) -> Result<Sources<'a>, RenderError> {
    let mut sources = Sources::new();
    for template in templates {
        let text = guard::checked(template.text()?, &inputs.settings.delimiters)
            .map_err(|(line, problem)| RenderError::Syntax { place: template.place(Some(line)).into(), problem })?;
        if let Some(first) = sources.insert(&template.name, Source { template, text }) {
            return Err(RenderError::SameName {
                name: template.name.clone(),
                first: first.template.from.clone(),
                second: template.from.clone(),
            });
        }
    }
    Ok(sources)
}

/// Takes what a template writes, up to the room that is left.
struct Limited {
    bytes: Vec<u8>,
    room: u64,
    full: bool,
}

impl io::Write for &mut Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(room) = self.room.checked_sub(bytes.len() as u64) else {
            self.full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        };
        self.room = room;
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
