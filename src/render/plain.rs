//! Without templates: each key of each object is a file at `--path`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use super::{Inputs, Refused, RenderError, Rendered, tree_path};
use crate::model::object::{Object, ObjectRef};
use crate::model::snapshot::{HeldBack, Taken};
use crate::model::tree::{File, Tree};

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
        if id.namespace.is_empty() && settings.path.has_namespace() {
            return Err(RenderError::NoNamespace { origin: id.to_string() });
        }
        let mut files = Vec::with_capacity(object.data.len());
        let mut size = self.size;
        for (key, bytes) in &object.data {
            let origin = format!("key {key:?} of {id}");
            let expanded = settings.path.expand(id, object.marks(), key);
            let expanded =
                expanded.map_err(|what| RenderError::NoMark { origin: id.to_string(), what: what.to_owned() })?;
            let path = tree_path(&expanded, &origin)?;
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
