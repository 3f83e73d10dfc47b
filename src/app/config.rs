//! What the app needs to know of its parts.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::fallback::FallbackConfig;
use crate::archive;
use crate::candidate;
use crate::machine;
use crate::net::server::GuardConfig;
use crate::publish;
use crate::reload::{self, confirm};
use crate::render::Settings;
use crate::source::kube::{ClientConfig, Watch};
use crate::source::{Spec, files, url};

/// Each part's configuration; its values go together.
#[derive(Debug)]
pub struct Config {
    /// Each source; [`crate::source::Update::source`] is an index into it.
    pub specs: Vec<Spec>,
    /// How the API server is reached; `None` when no source needs it.
    pub client: Option<ClientConfig>,
    /// What is watched there.
    pub watches: Vec<Watch>,
    /// What is watched in the file system.
    pub files: files::Config,
    /// What is fetched.
    pub urls: Arc<url::Config>,
    /// `--archive`.
    pub archive: Option<archive::Config>,
    pub fallback: Option<FallbackConfig>,
    /// Where generations go. `None` where there is nothing to write: what is to be remembered is in memory then.
    pub output: Option<publish::Config>,
    pub digest_key_file: Option<PathBuf>,
    /// What rendering depends on beside the sources.
    pub render: Settings,
    /// What a candidate must pass.
    pub validate: candidate::Config,
    /// How the main process is notified.
    pub reload: reload::Config,
    /// How it is seen that the main process took it. With `--once`, nothing is to be seen.
    pub confirm: confirm::Config,
    /// What the machine needs to know.
    pub machine: machine::Options,
    /// `--retry-min` and `--retry-max`.
    pub retry: (Duration, Duration),
    /// `--once`, with its timeout.
    pub once: Option<Duration>,
    /// `--once-if-empty`.
    pub once_if_empty: bool,
    pub listen: Option<SocketAddr>,
    pub admin: Option<SocketAddr>,
    /// Who may ask at `listen`. `None`: whoever can connect.
    pub guard: Option<GuardConfig>,
    /// Whether a server that cannot be bound is the end.
    pub needs_servers: bool,
    pub shutdown_grace: Duration,
    /// With `--metrics-as`: the URLs that are called, without what may be a credential.
    pub webhooks: Vec<String>,
    /// `--rollout`.
    pub rollout: Option<super::RolloutConfig>,
}

impl Config {
    /// Whether what the API server sends is kept on the disk, and not in memory: where each value becomes a file as it
    /// is, and of many that do only those that change are written.
    #[must_use]
    pub fn keeps_on_disk(&self) -> bool {
        let layout = self.output.as_ref().map(|output| output.layout);
        layout == Some(publish::Layout::Files) && !self.render.templated
    }
}
