//! Without templates: each key of each object is a file at `--path`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use super::{Inputs, OnCollision, Refused, RenderError, Rendered};
use crate::model::object::{Object, ObjectRef};
use crate::model::snapshot::{HeldBack, Taken};
use crate::model::tree::{CollisionError, File, Tree};

/// Named objects and directories first, each of which must fit; then the selected ones, oldest first, each of which
/// fits or is held back: as a whole, or by a key whose place is taken. With `--on-collision last` it is the other way
/// round, and nothing is held back for its place. `published`: what takes the place of an object that is held back.
pub(super) fn render(
    inputs: &Inputs,
    published: &BTreeMap<&ObjectRef, &Arc<Object>>,
    refused: &Refused,
) -> Result<Rendered, RenderError> {
    let last_wins = inputs.settings.on_collision == OnCollision::Last;
    let mut files = Files { inputs, tree: Tree::default(), size: 0 };
    // An object that is both named and selected is one object.
    let mut seen = BTreeSet::new();
    let (mut held_back, mut warnings) = (Vec::new(), Vec::new());
    for Taken { object, selected } in in_order(inputs) {
        if !seen.insert(&object.id) {
            continue;
        }
        let held = |key: Option<&String>, reason| HeldBack { source: object.id.clone(), key: key.cloned(), reason };
        let error = match refused.get(&object.id).filter(|_| *selected) {
            Some(reason) => reason.clone(),
            None => match files.add(object) {
                Ok(left_out) => {
                    let others = if left_out.len() < object.data.len() { "; its other keys are published" } else { "" };
                    held_back.extend(object.held().map(|(key, reason)| held(Some(key), reason.clone())));
                    for (key, why) in left_out {
                        match why {
                            LeftOut::Collision(collision) if last_wins => {
                                warnings.push(format!("{collision}; it has what comes later (--on-collision last)"));
                            }
                            LeftOut::Collision(collision) if !selected => return Err(collision.into()),
                            why => held_back.push(held(Some(key), format!("{why}{others}"))),
                        }
                    }
                    continue;
                }
                Err(error) if *selected => error.to_string(),
                Err(error) => return Err(error),
            },
        };
        let mut reason = error.clone();
        if let Some(previous) = published.get(&object.id) {
            match files.add(previous) {
                Ok(left_out) => match &left_out[..] {
                    [(_, first), ..] if left_out.len() == previous.data.len() => {
                        let _ = write!(reason, "; nor can its last published version stay: {first}");
                    }
                    _ => reason.push_str("; its last published version stays"),
                },
                Err(again) if again.to_string() == error => {}
                Err(again) => {
                    let _ = write!(reason, "; nor can its last published version stay: {again}");
                }
            }
        }
        held_back.push(held(None, reason));
    }
    Ok(Rendered { tree: files.tree, held_back, warnings })
}

/// The objects in the order in which they take their places.
fn in_order(inputs: &Inputs) -> Vec<&Taken> {
    let all = inputs.snapshot.objects.iter();
    match inputs.settings.on_collision {
        OnCollision::Hold => {
            let (mut selected, mut named): (Vec<_>, Vec<_>) = all.partition(|taken| taken.selected);
            selected.sort_by_key(|taken| (taken.object.created, &taken.object.id));
            named.append(&mut selected);
            named
        }
        OnCollision::Last => {
            let mut all: Vec<_> = all.collect();
            all.reverse();
            all
        }
    }
}

/// Why a key is not in the tree, where its object is.
#[derive(Debug, thiserror::Error)]
enum LeftOut {
    #[error(transparent)]
    Collision(CollisionError),
    #[error(
        "key {key:?} ends with {suffix:?}, and such keys are not published (--refuse-keys); put the content itself into the \
         object{}",
        way_out(suffix)
    )]
    Refused { key: String, suffix: String },
}

fn way_out(suffix: &str) -> &'static str {
    if suffix == ".url" { ", or let what its URL has be fetched by --url-hosts HOST (TRIMTAB_URL_HOSTS)" } else { "" }
}

struct Files<'a> {
    inputs: &'a Inputs,
    tree: Tree,
    size: u64,
}

impl Files<'_> {
    /// Adds the keys of an object whose places are free, and returns the others; or adds none.
    fn add<'a>(&mut self, object: &'a Object) -> Result<Vec<(&'a String, LeftOut)>, RenderError> {
        let id = &object.id;
        let settings = &self.inputs.settings;
        if id.namespace.is_empty() && settings.path.has_namespace() {
            return Err(RenderError::NoNamespace { origin: id.to_string() });
        }
        let mut files = Vec::with_capacity(object.data.len());
        let mut left_out = Vec::new();
        let mut size = self.size;
        for (key, bytes) in &object.data {
            if let Some(suffix) = settings.refuse_keys.as_ref().filter(|suffix| key.ends_with(suffix.as_str())) {
                left_out.push((key, LeftOut::Refused { key: key.clone(), suffix: suffix.clone() }));
                continue;
            }
            let origin = format!("key {key:?} of {id}");
            let expanded = settings.path.expand(id, object.marks(), key);
            let expanded =
                expanded.map_err(|what| RenderError::NoMark { origin: id.to_string(), what: what.to_owned() })?;
            let checked = settings.path.checked(&expanded);
            let path = checked.map_err(|error| RenderError::Path { origin: origin.clone(), error })?;
            size = size.saturating_add(bytes.len() as u64);
            if size > settings.max_size {
                return Err(RenderError::TooLarge { origin, max_size: settings.max_size });
            }
            files.push((key, path, File { bytes: bytes.clone(), secret: object.secret, origin: origin.into() }));
        }
        for (key, path, file) in files {
            let length = file.bytes.len() as u64;
            match self.tree.insert(path, file) {
                Ok(()) => self.size += length,
                Err(collision) => left_out.push((key, LeftOut::Collision(collision))),
            }
        }
        Ok(left_out)
    }
}
