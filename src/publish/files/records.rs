//! What is on record about single files: which generation is current, and what each of them consists of.

use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::manifest::Manifest;
use super::{CURRENT, Files};
use crate::model::digest::DigestKey;
use crate::model::journal::sequence_of;
use crate::publish::PublishError;
use crate::publish::dir::{Dir, is_own};
use crate::publish::sys::fstat;

const CURRENT_LIMIT: usize = 4096;

pub(super) const MANIFEST: &str = "manifest";
/// Far more than `--max-size` lets there be, and an end to what somebody else has put there.
const MANIFEST_LIMIT: usize = 1 << 28;

/// What [`CURRENT`] holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pointer {
    /// The current generation's directory.
    pub(super) current: String,
    /// The one that was current before: what it has in place is ours as well, until the swap is at its end.
    pub(super) from: Option<String>,
}

impl Files<'_> {
    pub(super) fn pointer(&self) -> Result<Option<Pointer>, PublishError> {
        let Some(state) = &self.0.state else { return Ok(None) };
        let read = match state.read(CURRENT, CURRENT_LIMIT) {
            Err(Errno::ENOENT) => return Ok(None),
            other => other.map_err(|errno| self.0.own_io("read", CURRENT, errno))?,
        };
        let ours = match &read {
            Some((_, file)) => is_own(&fstat(file).map_err(|errno| self.0.own_io("stat", CURRENT, errno))?),
            None => false,
        };
        let pointer = read.filter(|_| ours).and_then(|(bytes, _)| serde_json::from_slice::<Pointer>(&bytes).ok());
        let is_ours = |name: &str| sequence_of(name).is_some();
        let pointer = pointer.filter(|p| is_ours(&p.current) && p.from.as_deref().is_none_or(is_ours));
        match pointer {
            Some(pointer) => Ok(Some(pointer)),
            None => Err(Self::record(self.0.own(CURRENT), "is not what Trimtab wrote")),
        }
    }

    pub(super) fn record(path: PathBuf, what: &'static str) -> PublishError {
        PublishError::Record { path, what }
    }

    /// The output's own key, which is made if there is none: `--digest-key-file` may change between two starts, and the
    /// manifests would say nothing any more.
    pub(super) fn key(&self) -> Result<DigestKey, PublishError> {
        if let Some(key) = self.0.own_key.get() {
            return Ok(key.clone());
        }
        let key = self.0.digest_key()?;
        Ok(self.0.own_key.get_or_init(|| key).clone())
    }

    /// The manifest of a generation; `None` if it has none, or one that a power loss has torn before it was published.
    pub(super) fn manifest(&self, name: &str) -> Result<Option<Arc<Manifest>>, PublishError> {
        let failed = |errno| self.0.io("read", &format!("{name}/{MANIFEST}"), errno);
        let Some(state) = &self.0.state else { return Ok(None) };
        let dir = match Dir::open(state, name) {
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(None),
            opened => opened.map_err(failed)?,
        };
        let Some(stat) = dir.stat(MANIFEST).map_err(failed)? else { return Ok(None) };
        if let Some(manifest) = self.0.cache.manifest(name, &stat) {
            return Ok(Some(manifest));
        }
        let read = match dir.read(MANIFEST, MANIFEST_LIMIT) {
            Err(Errno::ENOENT) => None,
            read => read.map_err(failed)?,
        };
        let Some((bytes, file)) = read else { return Ok(None) };
        let stat = fstat(&file).map_err(failed)?;
        let folders: Vec<_> = self.0.folders.iter().map(|folder| folder.path.as_str()).collect();
        let manifest = if is_own(&stat) { Manifest::parse(&bytes, &folders).map(Arc::new) } else { None };
        if let Some(manifest) = &manifest {
            self.0.cache.remember(name, &stat, manifest.clone());
        }
        Ok(manifest)
    }

    pub(super) fn required(&self, name: &str) -> Result<Arc<Manifest>, PublishError> {
        let manifest = self.manifest(name)?;
        manifest.ok_or_else(|| Self::record(self.0.own(name).join(MANIFEST), "is missing or not what Trimtab wrote"))
    }
}
