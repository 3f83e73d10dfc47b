//! Everything that a render depends on, at one moment: its digest, and the render itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::model::content::Content;
use crate::model::digest::{Digest, DigestKey, Hasher};
use crate::model::object::{Kind, Object, ObjectRef};
use crate::model::snapshot::{Objects, Snapshot, Taken, Versions};
use crate::model::tree::Tree;
use crate::publish::PublishedFile;
use crate::render::{self, Input, Origin, Rejection, Rendered, Settings, Template};

/// The inputs of one render. Cheap to clone: bytes are shared.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// What the sources hold.
    pub snapshot: Snapshot,
    /// What the flags and the environment say.
    pub settings: Arc<Settings>,
}

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
                && new.data.keys().eq(old.data.keys());
            if !alike {
                return None;
            }
            for (key, bytes) in &new.data {
                if !tree.replace(&self.settings.path.place(&new.id, key)?, bytes.clone()) {
                    return None;
                }
            }
        }
        (tree.size() <= self.settings.max_size).then(|| Rendered { tree, held_back: Vec::new() })
    }

    /// Their identity: SHA-256, or HMAC-SHA256 by `key` as soon as one of them is secret, since a plain hash would let
    /// anyone test guesses.
    #[must_use]
    pub fn digest(&self, key: &DigestKey) -> Digest {
        let mut hasher = if self.is_secret() { Hasher::keyed(key) } else { Hasher::plain() };
        hasher.field(env!("CARGO_PKG_VERSION").as_bytes());
        hasher.field(self.settings.flags.as_bytes());
        hasher.field(&[u8::from(self.settings.templated)]);
        for group in self.snapshot.objects.groups() {
            hasher.field(group.content.as_bytes());
        }
        // Each list ends with its length, so that nothing can move from one to the next.
        hasher.field(&self.snapshot.objects.len().to_be_bytes());
        for (template, dest) in &self.snapshot.templates {
            object(&mut hasher, template);
            hasher.field(dest.as_deref().unwrap_or_default().as_bytes());
        }
        hasher.field(&self.snapshot.templates.len().to_be_bytes());
        if let Some(podinfo) = &self.snapshot.podinfo {
            object(&mut hasher, podinfo);
        }
        let pod = &self.settings.pod;
        for value in [&pod.name, &pod.namespace, &pod.uid, &pod.ip, pod.node.as_ref().unwrap_or(&String::new())] {
            hasher.field(value.as_bytes());
        }
        for (name, variable) in &self.settings.env {
            hasher.field(name.as_bytes());
            hasher.field(variable.value.as_bytes());
            hasher.field(&[u8::from(variable.secret)]);
        }
        hasher.finish()
    }

    fn is_secret(&self) -> bool {
        self.snapshot.objects.groups().any(|group| group.secret)
            || self.snapshot.templates.iter().any(|(template, _)| template.secret)
            || self.settings.env.values().any(|variable| variable.secret)
    }

    /// Renders them. `published` holds the version of each selected object that was published last; `refused`, those
    /// that validation holds back, and why.
    pub fn render(
        &self,
        digest: Digest,
        published: &Versions,
        refused: &BTreeMap<ObjectRef, String>,
    ) -> Result<Rendered, Rejection> {
        let rendered = self.render_beside(digest, &BTreeMap::new(), refused);
        // Only then does it matter what was published, and thousands need not be looked up for nothing.
        if rendered.as_ref().is_ok_and(|rendered| rendered.held_back.is_empty()) || published.is_empty() {
            return rendered;
        }
        self.render_beside(digest, &published.by_id(), refused)
    }

    fn render_beside(
        &self,
        digest: Digest,
        published: &BTreeMap<&ObjectRef, &Arc<Object>>,
        refused: &BTreeMap<ObjectRef, String>,
    ) -> Result<Rendered, Rejection> {
        let objects: Vec<_> = self
            .snapshot
            .objects
            .iter()
            .map(|taken| Input {
                object: taken.object.clone(),
                origin: match taken.object.id.kind {
                    _ if taken.selected => Origin::Selected,
                    Kind::Dir => Origin::Dir,
                    Kind::ConfigMap | Kind::Secret => Origin::Named,
                },
                previous: published.get(&taken.object.id).filter(|_| taken.selected).map(|object| Arc::clone(object)),
            })
            .collect();
        let mut pod = self.settings.pod.clone();
        if let Some(podinfo) = &self.snapshot.podinfo {
            let parse = |file| match podinfo.data.get(file) {
                None => Ok(BTreeMap::new()),
                Some(bytes) => {
                    render::parse_podinfo(&bytes.read()?).map_err(|error| Rejection::PodInfo { file, error })
                }
            };
            pod.labels = parse("labels")?;
            pod.annotations = parse("annotations")?;
        }
        let templates = self.templates()?;
        render::render(&render::Inputs {
            objects: &objects,
            templates: self.settings.templated.then_some(&templates[..]),
            path: &self.settings.path,
            env: &self.settings.env,
            pod: &pod,
            digest,
            max_size: self.settings.max_size,
            allow_empty: self.settings.allow_empty,
            refused,
        })
    }

    /// The objects of which each can be held back alone: the selected ones, where there are no templates.
    pub fn independent(&self) -> impl Iterator<Item = &Arc<Object>> {
        let alone = |taken: &&Taken| taken.selected && !self.settings.templated;
        self.snapshot.objects.iter().filter(alone).map(|taken| &taken.object)
    }

    /// The independent objects as they lie in a generation's files, by the keys that they have now: what was published
    /// of them before this start. A place that two of them name is neither's.
    #[must_use]
    pub fn found(&self, files: &BTreeMap<String, PublishedFile>) -> BTreeMap<ObjectRef, Arc<Object>> {
        let places = |object: &Object| {
            let path = |key: &String| Some((key.clone(), self.settings.path.place(&object.id, key)?.to_string()));
            object.data.keys().filter_map(path).collect::<Vec<_>>()
        };
        let mut claims = BTreeMap::new();
        for (_, place) in self.independent().flat_map(|object| places(object)) {
            *claims.entry(place).or_insert(0) += 1;
        }
        let mut found = BTreeMap::new();
        for object in self.independent() {
            let own = |(key, place): (String, String)| {
                let bytes = files.get(&place).filter(|_| claims.get(&place) == Some(&1))?.bytes.clone()?;
                Some((key, bytes))
            };
            let data: BTreeMap<_, _> = places(object).into_iter().filter_map(own).collect();
            if !data.is_empty() {
                let Object { id, created, secret, .. } = &**object;
                let object = Object::new(id.clone(), String::new(), *created, *secret, data);
                found.insert(id.clone(), Arc::new(object));
            }
        }
        found
    }

    fn templates(&self) -> Result<Vec<Template>, Rejection> {
        let mut templates = Vec::new();
        for (source, dest) in &self.snapshot.templates {
            // A file was read as one key of its own name; a directory is called by its last segment.
            let is_file = source.data.len() == 1 && source.data.contains_key(&*source.id.name);
            if is_file {
                templates.push(render::template_file(source, dest.as_deref())?);
            } else {
                templates.extend(render::template_dir(source, dest.as_deref())?);
            }
        }
        Ok(templates)
    }

    /// Every secret value, to be masked in others' output.
    pub fn secrets(&self) -> impl Iterator<Item = Content> {
        let objects = self.snapshot.objects.secret().map(|taken| &taken.object);
        let templates = self.snapshot.templates.iter().map(|(template, _)| template).filter(|template| template.secret);
        let values = objects.chain(templates).flat_map(|object| object.data.values());
        let variables = self.settings.env.values().filter(|variable| variable.secret);
        values.cloned().chain(variables.map(|variable| Bytes::copy_from_slice(variable.value.as_bytes()).into()))
    }
}

fn object(hasher: &mut Hasher, object: &Object) {
    hasher.field(object.content().as_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::render::Pod;

    /// Objects by name: their age, and the values of their keys.
    type Objects = BTreeMap<String, (i64, BTreeMap<String, u8>)>;

    fn inputs(objects: &Objects) -> Inputs {
        let taken = objects.iter().map(|(name, (created, keys))| {
            let id = ObjectRef { kind: Kind::ConfigMap, namespace: "ns".into(), name: name.as_str().into() };
            let data = keys.iter().map(|(key, value)| (key.clone(), Bytes::from(vec![*value; 9]).into())).collect();
            Taken { object: Arc::new(Object::new(id, String::new(), *created, false, data)), selected: true }
        });
        let settings = Settings {
            templated: false,
            path: "{key}".parse().unwrap(),
            env: BTreeMap::new(),
            pod: Pod::default(),
            max_size: 60,
            allow_empty: true,
            flags: String::new(),
        };
        Inputs { snapshot: Snapshot { objects: taken.collect(), ..Snapshot::default() }, settings: Arc::new(settings) }
    }

    fn objects() -> impl Strategy<Value = Objects> {
        let keys = proptest::collection::btree_map("[a-f]", 0..3u8, 0..3);
        proptest::collection::btree_map("[x-z]", (0..2i64, keys), 0..3)
    }

    fn render(inputs: &Inputs) -> Option<Rendered> {
        let rendered = inputs.render(Digest::UNKNOWN, &Versions::default(), &BTreeMap::new());
        rendered.ok().filter(|rendered| rendered.held_back.is_empty())
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

        #[test]
        fn what_is_drawn_again_is_what_is_rendered(before in objects(), after in objects(), alike: bool) {
            // Half of the time, values alone differ.
            let values = |keys: &BTreeMap<String, u8>| keys.iter().map(|(key, value)| (key.clone(), value / 2)).collect();
            let edited = before.iter().map(|(name, (age, keys))| (name.clone(), (*age, values(keys)))).collect();
            let after = if alike { edited } else { after };
            let (before, after) = (inputs(&before), inputs(&after));
            let Some(rendered) = render(&before) else { return Ok(()) };
            let drawn = before.drawn(&rendered.tree).unwrap();
            let again = after.redraw(drawn);
            prop_assert!(again.is_some() || !alike);
            if let Some(again) = again {
                prop_assert_eq!(Some(again), render(&after));
            }
        }
    }
}
