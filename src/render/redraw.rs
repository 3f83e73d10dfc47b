//! Where values alone have changed, a render begins with the tree of the last one.

use std::sync::Arc;

use super::{Inputs, Rendered};
use crate::model::snapshot::Objects;
use crate::model::tree::Tree;

/// What was rendered last, and of what: where values alone have changed since, the next render begins with it.
#[derive(Clone, Debug)]
pub struct Drawn {
    objects: Objects,
    tree: Tree,
}

impl Inputs {
    /// What is to be remembered of a render of these inputs, if nothing was held back by it.
    #[must_use]
    pub fn drawn(&self, tree: &Tree) -> Option<Drawn> {
        (!self.settings.templated).then(|| Drawn { objects: self.snapshot.objects.clone(), tree: tree.clone() })
    }

    /// What [`Inputs::render`] gives where nothing is refused, if that differs from what was rendered last in some
    /// objects' values alone; `None` if it may differ in more.
    #[must_use]
    pub fn redraw(&self, last: Drawn) -> Option<Rendered> {
        let Drawn { objects, mut tree } = last;
        if self.settings.templated || self.snapshot.objects.len() != objects.len() {
            return None;
        }
        let groups = self.snapshot.objects.groups().zip(objects.groups()).filter(|(new, old)| !Arc::ptr_eq(new, old));
        for (taken, before) in groups.flat_map(|(new, old)| new.taken.iter().zip(&old.taken)) {
            let (new, old) = (&taken.object, &before.object);
            if Arc::ptr_eq(new, old) && taken.selected == before.selected {
                continue;
            }
            let alike = taken.selected == before.selected
                && (&new.id, new.created, new.secret) == (&old.id, old.created, old.secret)
                && new.marks() == old.marks()
                && new.held().next().is_none()
                && new.data.keys().eq(old.data.keys());
            if !alike {
                return None;
            }
            for (key, bytes) in &new.data {
                if !tree.replace(&self.settings.path.place(&new.id, new.marks(), key)?, bytes.clone()) {
                    return None;
                }
            }
        }
        (tree.size() <= self.settings.max_size).then(|| Rendered { tree, held_back: Vec::new(), warnings: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use std::collections::BTreeMap;

    use crate::model::digest::Digest;
    use crate::model::object::{Kind, Object, ObjectRef};
    use crate::model::snapshot::{Snapshot, Taken, Versions};
    use crate::render::Settings;
    use bytes::Bytes;

    /// By name: their age, the label that says where they go, and the values of their keys.
    type Named = BTreeMap<String, (i64, u8, BTreeMap<String, u8>)>;

    fn inputs(objects: &Named) -> Inputs {
        let taken = objects.iter().map(|(name, (created, folder, keys))| {
            let id = ObjectRef { kind: Kind::ConfigMap, namespace: "ns".into(), name: name.as_str().into() };
            let data = keys.iter().map(|(key, value)| (key.clone(), Bytes::from(vec![*value; 9]).into())).collect();
            let object = Object::new(id, String::new(), *created, false, data);
            let marks = [("label:folder".to_owned(), folder.to_string())].into();
            Taken { object: Arc::new(object.marked(marks)), selected: true }
        });
        let settings = Settings { path: "{label:folder}/{key}".parse().unwrap(), ..Settings::plain(60, true) };
        Inputs { snapshot: Snapshot { objects: taken.collect(), ..Snapshot::default() }, settings: Arc::new(settings) }
    }

    fn objects() -> impl Strategy<Value = Named> {
        let keys = proptest::collection::btree_map("[a-c]", 0..3u8, 0..3);
        proptest::collection::btree_map("[x-z]", (0..2i64, 0..2u8, keys), 0..3)
    }

    fn render(inputs: &Inputs) -> Option<Rendered> {
        let rendered = inputs.render(Digest::UNKNOWN, &Versions::default(), &BTreeMap::new(), false);
        rendered.ok().filter(|rendered| rendered.held_back.is_empty())
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

        #[test]
        fn what_is_drawn_again_is_what_is_rendered(before in objects(), other in objects(), how in 0..3) {
            // Anything differs, or values alone, or labels as well.
            let values = |keys: &BTreeMap<String, u8>| keys.iter().map(|(key, value)| (key.clone(), value / 2)).collect();
            let folder = |folder: &u8| if how == 2 { 1 - folder } else { *folder };
            let edited = before.iter().map(|(name, (age, label, keys))| (name.clone(), (*age, folder(label), values(keys))));
            let after = if how == 0 { other } else { edited.collect() };
            let (before, after) = (inputs(&before), inputs(&after));
            let Some(rendered) = render(&before) else { return Ok(()) };
            let drawn = before.drawn(&rendered.tree).unwrap();
            let again = after.redraw(drawn);
            prop_assert!(again.is_some() || how != 1);
            if let Some(again) = again {
                prop_assert_eq!(Some(again), render(&after));
            }
        }
    }
}
