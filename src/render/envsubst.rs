//! `--envsubst`: files in which `$(NAME)` stands for a variable. All else in them stays as it is.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::{EnvVar, Inputs, Place, RenderError, gzip, tree_path};
use crate::model::object::Object;
use crate::model::tree::{File, TreePath};

/// The files, and a sentence on each variable that has no value.
pub(super) struct Substituted {
    pub(super) files: Vec<(TreePath, File)>,
    pub(super) warnings: Vec<String>,
}

/// A file with its variables filled in.
struct Filled {
    bytes: Vec<u8>,
    /// Whether one of the values is secret.
    secret: bool,
    /// The variables that have no value.
    unset: BTreeSet<String>,
}

/// The files of `--envsubst`, each filled in.
pub(super) fn render(inputs: &Inputs) -> Result<Substituted, RenderError> {
    let settings = &inputs.settings;
    let (mut files, mut warnings) = (Vec::new(), Vec::new());
    for (source, dest) in &inputs.snapshot.envsubst {
        for (key, content) in &source.data {
            let origin = format!("file {key} of {}", source.id);
            let path = tree_path(&place(source, key, dest.as_deref()), &origin)?;
            let bytes = content.read()?;
            let text = gzip::opened(&bytes, settings.max_size)
                .map_err(|error| RenderError::gzip(origin.clone(), error, settings.max_size))?;
            let Filled { bytes, secret, unset } = fill(&text, inputs);
            if bytes.trim_ascii().is_empty() && !settings.allow_empty {
                let place = Place { template: key.clone(), source: source.id.to_string(), included: None, line: None };
                return Err(RenderError::EmptyFile { place: place.into() });
            }
            warnings.extend(unset.iter().map(|name| {
                format!("{origin}: $({name}) stays as it is: no --env or --secret-env names {name}, or it is not set")
            }));
            let secret = secret || source.secret;
            files.push((path, File { bytes: Bytes::from(bytes).into(), secret, origin: origin.into() }));
        }
    }
    Ok(Substituted { files, warnings })
}

/// DEST is a file's path or, with a slash at its end, its directory; of a directory it is always that.
fn place(source: &Object, key: &str, dest: Option<&str>) -> String {
    let is_file = source.data.len() == 1 && source.data.contains_key(&*source.id.name);
    match dest {
        None => key.to_owned(),
        Some(dest) if is_file && !dest.ends_with('/') => dest.to_owned(),
        Some(dest) => format!("{}/{key}", dest.trim_end_matches('/')),
    }
}

/// Puts values in the place of `$(NAME)`. They are not looked at again.
fn fill(text: &[u8], inputs: &Inputs) -> Filled {
    let mut filled = Filled { bytes: Vec::with_capacity(text.len()), secret: false, unset: BTreeSet::new() };
    let mut rest = text;
    while let Some(start) = rest.windows(2).position(|pair| pair == b"$(") {
        let (before, from) = rest.split_at(start);
        filled.bytes.extend_from_slice(before);
        let inside = from.get(2..).unwrap_or_default();
        let length = inside.iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'_').count();
        let name = inside.get(..length).and_then(|name| std::str::from_utf8(name).ok()).unwrap_or_default();
        let closed = !name.is_empty() && inside.get(length) == Some(&b')');
        if let Some(EnvVar { value, secret }) = inputs.settings.env.get(name).filter(|_| closed) {
            filled.bytes.extend_from_slice(value.as_bytes());
            filled.secret |= secret;
            rest = inside.get(length + 1..).unwrap_or_default();
            continue;
        }
        if closed {
            filled.unset.insert(name.to_owned());
        }
        filled.bytes.extend_from_slice(b"$(");
        rest = inside;
    }
    filled.bytes.extend_from_slice(rest);
    filled
}
