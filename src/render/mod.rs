//! Pure rendering: inputs → tree. No I/O, no clock, no randomness: the same inputs give the same bytes.
//!
//! Without templates each key becomes a file ([`plain`]); with them each template does ([`templates`]). Everything here
//! may meet hostile text.

mod delimiters;
mod engine;
mod envsubst;
mod error;
mod explain;
mod filters;
mod guard;
mod gzip;
mod path;
mod plain;
mod pod;
mod redraw;
mod settings;
mod templates;
mod values;
mod yaml;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

pub use self::delimiters::{Delimiters, DelimitersError};
pub use self::error::{Place, RenderError};
pub use self::gzip::is_packed;
pub use self::path::{PathPattern, PathPatternError};
pub use self::pod::{Pod, PodInfoError, parse_podinfo};
pub use self::redraw::Drawn;
pub use self::settings::{EnvVar, OnCollision, Settings};
pub(crate) use self::yaml::without_marks;
use crate::model::content::Content;
use crate::model::digest::{Digest, DigestKey, Hasher};
use crate::model::object::{Object, ObjectRef};
use crate::model::snapshot::{HeldBack, Snapshot, Taken, Versions};
use crate::model::tree::{Tree, TreePath};

/// All that a render depends on, at one moment. Cheap to clone: bytes are shared.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// What the sources hold. Of two objects with one key, the later one wins in `data`.
    pub snapshot: Snapshot,
    /// What the flags and the environment say.
    pub settings: Arc<Settings>,
}

/// What the inputs rendered to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    pub tree: Tree,
    /// Selected objects that are not in it, or only as they were last published, or without a key.
    pub held_back: Vec<HeldBack>,
    /// What is odd, and is published all the same: keys in whose place another object's are, variables without a value.
    pub warnings: Vec<String>,
}

/// Selected objects that validation refuses, and why.
pub type Refused = BTreeMap<ObjectRef, String>;

impl Inputs {
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
            hasher.field(template.content().as_bytes());
            hasher.field(dest.as_deref().unwrap_or_default().as_bytes());
        }
        hasher.field(&self.snapshot.templates.len().to_be_bytes());
        self.add_envsubst(&mut hasher);
        if let Some(podinfo) = &self.snapshot.podinfo {
            hasher.field(podinfo.content().as_bytes());
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
        self.add_observed(&mut hasher);
        hasher.finish()
    }

    /// The keyed digest of what the main process reads by itself, if it does.
    #[must_use]
    pub fn observed(&self, key: &DigestKey) -> Option<Digest> {
        let mut hasher = Hasher::keyed(key);
        self.add_observed(&mut hasher);
        (!self.snapshot.observed.is_empty()).then(|| hasher.finish())
    }

    fn add_observed(&self, hasher: &mut Hasher) {
        if self.snapshot.observed.is_empty() {
            return;
        }
        hasher.field(b"observed");
        for observed in &self.snapshot.observed {
            hasher.field(observed.object.content().as_bytes());
        }
    }

    /// The digest of what people edit: the same in all replicas that see the same objects and have the same templates.
    /// HMAC-SHA256 by `key`, where there is one.
    #[must_use]
    pub fn change(&self, key: Option<&DigestKey>) -> Digest {
        let mut hasher = key.map_or_else(Hasher::plain, Hasher::keyed);
        for taken in self.snapshot.objects.iter() {
            hasher.field(&[u8::from(taken.selected)]);
            hasher.field(taken.object.content().as_bytes());
        }
        hasher.field(&self.snapshot.objects.len().to_be_bytes());
        for (template, dest) in &self.snapshot.templates {
            hasher.field(template.content().as_bytes());
            hasher.field(dest.as_deref().unwrap_or_default().as_bytes());
        }
        self.add_envsubst(&mut hasher);
        self.add_observed(&mut hasher);
        hasher.finish()
    }

    fn add_envsubst(&self, hasher: &mut Hasher) {
        for (file, dest) in &self.snapshot.envsubst {
            hasher.field(b"envsubst");
            hasher.field(file.content().as_bytes());
            hasher.field(dest.as_deref().unwrap_or_default().as_bytes());
        }
    }

    /// Files of templates and of `--envsubst`.
    fn templates(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.snapshot.templates.iter().chain(&self.snapshot.envsubst).map(|(template, _)| template)
    }

    /// Whether a plain digest would let anyone test guesses of a secret.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        self.snapshot.objects.groups().any(|group| group.secret)
            || self.templates().any(|template| template.secret)
            || self.snapshot.observed.iter().any(|observed| observed.object.secret)
            || self.settings.env.values().any(|variable| variable.secret)
    }

    /// Renders them to the tree of a generation. `published` holds the version of each selected object that was
    /// published last: it takes the place of one that fails. `bare`: whether no file is published, so that a selector which
    /// selects nothing takes none away.
    pub fn render(
        &self,
        digest: Digest,
        published: &Versions,
        refused: &Refused,
        bare: bool,
    ) -> Result<Rendered, RenderError> {
        let Settings { templated, allow_empty, selects, .. } = *self.settings;
        let may_be_empty = allow_empty || (bare && selects && !templated);
        let observed = self.snapshot.observed.iter().map(|observed| &observed.object);
        let mut objects = self.snapshot.objects.iter().map(|taken| &taken.object).chain(observed);
        // A file of --envsubst needs no source.
        let fills = !self.snapshot.envsubst.is_empty();
        if !may_be_empty && !fills && objects.all(|object| object.data.is_empty()) {
            return Err(RenderError::Empty { reason: "no source has a key".into() });
        }
        let rendered = if templated {
            templates::render(self, digest)?
        } else {
            let rendered = plain::render(self, &BTreeMap::new(), refused)?;
            // Only then does it matter what was published, and thousands need not be looked up for nothing.
            if rendered.held_back.is_empty() || published.is_empty() {
                rendered
            } else {
                plain::render(self, &published.by_id(), refused)?
            }
        };
        if rendered.tree.is_empty() && !allow_empty && !(may_be_empty && rendered.held_back.is_empty()) {
            let reason = match (templated, &rendered.held_back[..]) {
                (true, _) => "there is no template to render (names that start with '_' are only for include)".into(),
                (false, [first, ..]) => format!("every object is held back; {}: {}", first.source, first.reason),
                (false, []) => "no source has a key".into(),
            };
            return Err(RenderError::Empty { reason });
        }
        Ok(rendered)
    }

    /// The Pod, with the labels and annotations of `--podinfo-dir`.
    fn pod(&self) -> Result<Pod, RenderError> {
        let mut pod = self.settings.pod.clone();
        if let Some(podinfo) = &self.snapshot.podinfo {
            let parse = |file| match podinfo.data.get(file) {
                None => Ok(BTreeMap::new()),
                Some(bytes) => parse_podinfo(&bytes.read()?).map_err(|error| RenderError::PodInfo { file, error }),
            };
            pod.labels = parse("labels")?;
            pod.annotations = parse("annotations")?;
        }
        Ok(pod)
    }

    /// The objects of which each can be held back alone: the selected ones, where there are no templates.
    pub fn independent(&self) -> impl Iterator<Item = &Arc<Object>> {
        let alone = |taken: &&Taken| taken.selected && !self.settings.templated;
        self.snapshot.objects.iter().filter(alone).map(|taken| &taken.object)
    }

    /// The independent objects as a generation's files (`published`, by path) hold them, by the keys that they have now:
    /// what was published of them before this start. A place that two of them name is neither's.
    #[must_use]
    pub fn found(&self, published: impl Fn(&str) -> Option<Content>) -> BTreeMap<ObjectRef, Arc<Object>> {
        let places = |object: &Object| {
            let place = |key: &str| self.settings.path.place(&object.id, object.marks(), key);
            let path = |key: &String| Some((key.clone(), place(key)?.to_string()));
            object.data.keys().filter_map(path).collect::<Vec<_>>()
        };
        let mut claims = BTreeMap::new();
        for (_, place) in self.independent().flat_map(|object| places(object)) {
            *claims.entry(place).or_insert(0) += 1;
        }
        let mut found = BTreeMap::new();
        for object in self.independent() {
            let own = |(key, place): (String, String)| {
                let bytes = published(&place).filter(|_| claims.get(&place) == Some(&1))?;
                Some((key, bytes))
            };
            let data: BTreeMap<_, _> = places(object).into_iter().filter_map(own).collect();
            if !data.is_empty() {
                let Object { id, created, secret, .. } = &**object;
                let marks = object.marks().cloned().unwrap_or_default();
                let object = Object::new(id.clone(), String::new(), *created, *secret, data).marked(marks);
                found.insert(id.clone(), Arc::new(object));
            }
        }
        found
    }

    /// Every secret value, to be masked in others' output.
    pub fn secrets(&self) -> impl Iterator<Item = Content> {
        let objects = self.snapshot.objects.secret().map(|taken| &taken.object);
        let templates = self.templates().filter(|template| template.secret);
        let observed = self.snapshot.observed.iter().map(|observed| &observed.object).filter(|object| object.secret);
        let values = objects.chain(templates).chain(observed).flat_map(|object| object.data.values());
        let variables = self.settings.env.values().filter(|variable| variable.secret);
        values.cloned().chain(variables.map(|variable| Bytes::copy_from_slice(variable.value.as_bytes()).into()))
    }
}

/// The path of `origin`, or an error that names it.
fn tree_path(text: &str, origin: &str) -> Result<TreePath, RenderError> {
    TreePath::parse(text).map_err(|error| RenderError::Path { origin: origin.to_owned(), error })
}

#[cfg(test)]
mod tests;
