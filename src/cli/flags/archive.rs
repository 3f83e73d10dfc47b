//! What is kept elsewhere.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::{Checked, usage};
use crate::app::FallbackConfig;
use crate::archive::Config;
use crate::cli::values::duration;
use crate::net::endpoint::Endpoint;
use crate::net::request::HttpConfig;
use crate::source::url::Source;

/// The flag, and its name for those of --url-… that go with one URL.
pub(super) const ARCHIVE: (&str, &str) = ("--archive", "archive");

pub(super) const FALLBACK: (&str, &str) = ("--fallback-url", "fallback");

/// The archive.
#[derive(Debug, Args)]
#[command(next_help_heading = "Archive")]
pub struct ArchiveArgs {
    /// Keep each confirmed generation as a bundle below this http, https, s3, gs or az URL, by PUT: DIGEST.tar.gz, and latest.tar.gz
    ///
    /// Of --observe-dir alone: what the main process writes; needs --state-dir. Flags that go with it have its name, as --url-header
    /// 'archive=Authorization: @FILE'; --url-ca-file, --url-cert-file and --url-timeout hold for it as well.
    #[arg(long, value_name = "URL")]
    pub archive: Option<String>,
    /// Archive also what a secret went into
    #[arg(long)]
    pub archive_secrets: bool,
    /// Start from what is behind this URL, where nothing is published and the sources have not answered for --fallback-after
    ///
    /// A bundle as --archive keeps it, such as https://HOST/PATH/latest.tar.gz: its files are published as they are, through the whole
    /// transaction, until the sources answer. Flags that go with it have its name, as --url-key fallback=FILE.
    #[arg(long, value_name = "URL")]
    pub fallback_url: Option<String>,
    /// How long the sources are waited for before --fallback-url is asked
    #[arg(long, value_name = "D", default_value = "30s", value_parser = duration)]
    pub fallback_after: Duration,
}

/// What it must fit to.
#[expect(clippy::struct_excessive_bools, reason = "each is whether a flag is given")]
pub(super) struct Others {
    pub once: bool,
    /// Whether something is written into --output.
    pub writes: bool,
    /// How many --observe-dir there are.
    pub observed: usize,
    pub state_dir: bool,
    pub folders: bool,
    pub rollout: bool,
    pub timeout: Duration,
    pub retry: (Duration, Duration),
}

impl ArchiveArgs {
    pub(super) fn is_given(&self) -> bool {
        self.archive.is_some() || self.fallback_url.is_some()
    }

    /// What is behind a URL: its flag, its name, and the URL.
    pub(super) fn urls(&self) -> impl Iterator<Item = (&'static str, &'static str, &str)> {
        let archive = self.archive.iter().map(|url| (ARCHIVE.0, ARCHIVE.1, url.as_str()));
        archive.chain(self.fallback_url.iter().map(|url| (FALLBACK.0, FALLBACK.1, url.as_str())))
    }

    pub(super) fn fallback(&self, source: Option<Source>, others: &Others) -> Checked<Option<FallbackConfig>> {
        let Some(source) = source else { return Ok(None) };
        if !others.writes {
            return usage("--fallback-url is for files that are published, and nothing is: give --output and a source");
        }
        if others.rollout {
            return usage(
                "--fallback-url does not go with --rollout, which asks the API server before anything is published: give one of \
                 them",
            );
        }
        Ok(Some(FallbackConfig { source, after: self.fallback_after }))
    }

    /// `at`: what is said of the URL.
    pub(super) fn config(&self, at: Option<(Endpoint, Arc<HttpConfig>)>, others: &Others) -> Checked<Option<Config>> {
        let Some((at, http)) = at else {
            if self.archive_secrets {
                return usage("--archive-secrets goes with --archive, and there is no --archive");
            }
            return Ok(None);
        };
        if others.once {
            return usage(
                "--archive is for a sidecar, which goes on until the upload is done; --once ends before: give one of them",
            );
        }
        if others.folders {
            return usage(
                "--archive does not go with --folders: a bundle has no place for files outside of --output; give one of them, \
                 or each a sidecar of its own",
            );
        }
        if !others.writes && others.observed != 1 {
            return usage(
                "--archive of what the main process writes is for one --observe-dir: give each a sidecar of its own",
            );
        }
        if !others.writes && !others.state_dir {
            return usage(
                "--archive of --observe-dir needs --state-dir, to pack the files in and to know after a restart what was \
                 archived: a directory such as /state in an emptyDir, outside of --observe-dir",
            );
        }
        let config = Config {
            at,
            http,
            secrets: self.archive_secrets,
            timeout: others.timeout,
            retry: others.retry,
            observed: !others.writes,
        };
        if config.place(&"0".repeat(64)).is_none() {
            return usage("--archive: the URL is too long");
        }
        Ok(Some(config))
    }
}
