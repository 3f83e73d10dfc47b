//! What may be replaced or removed: what the current manifest names, and what has the very bytes that another manifest
//! gives it. Nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use nix::errno::Errno;

use super::manifest::{Manifest, above};
use super::{Files, digest_of};
use crate::model::digest::DigestKey;
use crate::publish::PublishError;
use crate::publish::cursor::Blocked;
use crate::publish::dir::{Dir, MAX_DEPTH, Occupant, look};

/// What the manifests say of a place.
pub(super) struct Ownership {
    /// What is ours whatever is there: the current generation's files,
    pub(super) current: Option<Arc<Manifest>>,
    /// but these, which are not in place yet.
    pub(super) absent: BTreeSet<String>,
    /// By the generation's directory.
    pub(super) manifests: BTreeMap<String, Arc<Manifest>>,
}

impl Ownership {
    pub(super) fn is_current(&self, path: &str) -> bool {
        self.current.as_ref().is_some_and(|current| current.files.contains_key(path)) && !self.absent.contains(path)
    }
}

impl Files<'_> {
    pub(super) fn ownership(&self) -> Result<Ownership, PublishError> {
        let mut manifests = BTreeMap::new();
        for name in self.0.generations()? {
            if let Some(manifest) = self.manifest(&name)? {
                manifests.insert(name, manifest);
            }
        }
        self.0.cache.keep_manifests(|name| manifests.contains_key(name));
        let name = self.pointer()?.map(|pointer| pointer.current);
        let current = name.as_ref().and_then(|name| manifests.get(name)).cloned();
        let absent = match &name {
            Some(name) if current.is_some() => self.staged(name)?,
            _ => BTreeSet::new(),
        };
        Ok(Ownership { current, absent, manifests })
    }

    /// An error if something that is not ours is at one of these paths, or above it.
    pub(super) fn refuse<'p>(
        &self,
        ownership: &Ownership,
        paths: impl Iterator<Item = &'p str>,
    ) -> Result<(), PublishError> {
        let mut foreign = Vec::new();
        let mut place = self.0.in_place();
        for path in paths {
            let at = match place.to(path) {
                Ok(_) => path.to_owned(),
                Err(Blocked { errno: Errno::ENOENT, .. }) => continue,
                Err(Blocked { at, errno: Errno::ENOTDIR }) => at,
                Err(Blocked { at, errno }) => return Err(self.0.io("open", &at, errno)),
            };
            let failed = |errno| self.0.io("read", &at, errno);
            // If it has changed meanwhile, the next look shows it.
            let Some((dir, leaf)) = place.find(&at).map_err(failed)? else { continue };
            let found = look(dir, leaf).map_err(failed)?;
            if !self.is_ours(ownership, &at, &found)? {
                foreign.push((at, found.describe()));
            }
        }
        foreign.dedup();
        self.0.refuse(&foreign)
    }

    /// Whether what was found at a path may be replaced.
    pub(super) fn is_ours(&self, ownership: &Ownership, path: &str, found: &Occupant) -> Result<bool, PublishError> {
        match found {
            Occupant::Nothing => Ok(true),
            Occupant::Directory => self.is_all_ours(ownership, path),
            _ if ownership.is_current(path) => Ok(true),
            Occupant::File => {
                let mut place = self.0.in_place();
                match place.find(path).map_err(|errno| self.0.io("read", path, errno))? {
                    Some((dir, leaf)) => self.is_claimed(ownership, path, dir, leaf),
                    None => Ok(false),
                }
            }
            Occupant::Symlink(_) | Occupant::Special => Ok(false),
        }
    }

    /// Whether nothing in a directory is another's, so that a file may take its place.
    fn is_all_ours(&self, ownership: &Ownership, path: &str) -> Result<bool, PublishError> {
        let mut open = vec![path.to_owned()];
        while let Some(at) = open.pop() {
            let failed = |errno| self.0.io("read", &at, errno);
            let mut place = self.0.in_place();
            let Some(dir) = place.directory(&at).map_err(failed)? else { return Ok(false) };
            for name in dir.names().map_err(failed)? {
                let Ok(name) = name.into_string() else { return Ok(false) };
                let below = format!("{at}/{name}");
                match look(dir, name.as_str()).map_err(failed)? {
                    Occupant::Directory if above(&below).count() < MAX_DEPTH => open.push(below),
                    _ if ownership.is_current(&below) => {}
                    Occupant::File if self.is_claimed(ownership, &below, dir, &name)? => {}
                    _ => return Ok(false),
                }
            }
        }
        Ok(true)
    }

    /// Whether the file has the very bytes that a generation has there. No key, no claim: a dry run makes none.
    pub(super) fn is_claimed(
        &self,
        ownership: &Ownership,
        path: &str,
        dir: &Dir,
        leaf: &str,
    ) -> Result<bool, PublishError> {
        let mut claims = ownership.manifests.values().filter_map(|manifest| manifest.files.get(path)).peekable();
        if claims.peek().is_none() {
            return Ok(false);
        }
        let Some((key, _)) = self.0.found_key()? else { return Ok(false) };
        let found = digest_of(dir, leaf, &DigestKey::new(key)).map_err(|errno| self.0.io("read", path, errno))?;
        Ok(claims.any(|record| found == Some(record.digest)))
    }
}
