//! The sidecar's flags: for each table its clap struct, its checks, and the configuration of the part it configures.
//!
//! Values that may hold a credential (headers, URLs, bodies, command lines) stay plain strings until they are checked
//! here, because clap quotes a value that it refuses.

mod archive;
mod confirm;
mod gate;
mod life;
mod listener;
mod output;
mod reload;
mod rollout;
mod source;
mod url;
mod validate;

use std::ffi::OsString;
use std::fmt;
use std::sync::Arc;

use clap::Args;

use self::archive::ArchiveArgs;
use self::confirm::{ConfirmArgs, OnReject};
use self::gate::Gate;
use self::life::OnBindError;
pub use self::life::{ADMIN, LifeArgs, LogFormat, LogLevel};
use self::listener::ListenerArgs;
use self::output::OutputArgs;
use self::reload::ReloadArgs;
use self::rollout::RolloutArgs;
pub use self::source::Resource;
use self::source::{OwnNamespace, SourceArgs};
use self::url::UrlArgs;
use self::validate::ValidateArgs;
use crate::app::Config;
use crate::cli::file::FileArgs;
use crate::machine;
use crate::model::digest::Digest;
use crate::model::object::Kind;
use crate::publish::Layout;
use crate::reload::Driver;
use crate::source::files;

/// Wrong usage: exit code 64. The message names the flags.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub(super) String);

type Checked<T> = Result<T, UsageError>;

fn usage<T>(message: impl Into<String>) -> Checked<T> {
    Err(UsageError(message.into()))
}

/// Refuses flags that do nothing without another one.
fn check_goes_with(flag: &str, given: bool, others: &[(&str, bool)]) -> Checked<()> {
    match others.iter().find(|(_, other_given)| *other_given) {
        Some((other, _)) if !given => usage(format!("{other} goes with {flag}, and there is no {flag}")),
        _ => Ok(()),
    }
}

/// Where variables come from: the process's environment, or a map in tests.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// What another sidecar's settings hold and no command line of Trimtab's may: a flag names it as a variable.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Variables(pub Vec<(&'static str, OsString)>);

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Variables(…)")
    }
}

impl Variables {
    /// One of these, or of the environment.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<OsString> {
        let own = self.0.iter().find(|(own, _)| *own == name);
        own.map(|(_, value)| value.clone()).or_else(|| std::env::var_os(name))
    }
}

/// All flags of the sidecar, table by table.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub sources: SourceArgs,
    #[command(flatten)]
    pub urls: UrlArgs,
    #[command(flatten)]
    pub archive: ArchiveArgs,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub validate: ValidateArgs,
    #[command(flatten)]
    pub reload: ReloadArgs,
    #[command(flatten)]
    pub confirm: ConfirmArgs,
    #[command(flatten)]
    pub rollout: RolloutArgs,
    #[command(flatten)]
    pub life: LifeArgs,
    #[command(flatten)]
    pub listener: ListenerArgs,
    #[command(flatten)]
    pub file: FileArgs,
    /// Beside those of the environment.
    #[arg(skip)]
    pub variables: Variables,
}

impl RunArgs {
    /// Checks each table, and what must fit between them.
    pub fn check(self, env: Env<'_>, own_namespace: OwnNamespace<'_>) -> Checked<Config> {
        let Self {
            sources,
            urls,
            archive,
            output,
            validate,
            reload,
            confirm,
            rollout,
            life,
            listener,
            file: _,
            variables: _,
        } = &self;
        let mut parts = sources.parts(own_namespace, urls, archive, !output.envsubst.is_empty())?;
        output.add_sources(&mut parts)?;
        let directory = output.directory(self.writes())?;
        life.check()?;
        let is_by_file = output.output.is_some() && output.layout == Layout::Files;
        check_goes_with("--layout files", is_by_file, &[("--once-if-empty", life.once_if_empty)])?;
        for root in &parts.roots {
            output.check_apart(&root.path)?;
        }
        let mut reload_config = reload.config(confirm, env)?;
        let mut confirm_config = confirm.config(reload, reload_config.selector().is_some())?;
        reload_config.ready.clone_from(&confirm_config.url);
        let once = life.once.then_some(life.once_timeout);
        if once.is_some() {
            confirm_config =
                crate::reload::confirm::Config { alive: None, workers: false, url: None, ..confirm_config };
        }
        let notified = !matches!(reload_config.driver, Driver::None) || confirm_config.is_needed();
        let render = output.settings(env, sources.allow_empty || directory.is_none(), sources.selector.is_some())?;
        let keys = urls.keys(sources.is_copied(), render.templated, sources.allow_empty)?;
        let marks: Arc<[String]> = render.path.marks().into();
        parts.watches.iter_mut().for_each(|watch| watch.marks = marks.clone());
        let rollout = rollout.config(&rollout::Others {
            pod: &render.pod,
            specs: &parts.specs,
            reload,
            confirms: notified,
            confirm_timeout: confirm.confirm_timeout,
            once: once.is_some(),
            splay: reload.reload_splay,
            digest_key: output.digest_key_file.is_some(),
            secret: parts.watches.iter().any(|watch| watch.kind == Kind::Secret)
                || !sources.secret_dirs.is_empty()
                || parts.urls.iter().any(|url| url.secret),
        })?;
        let beside = self.beside_archive(rollout.is_some());
        let fallback = archive.fallback(parts.behind_urls.fallback, &beside)?;
        let archive = archive.config(parts.behind_urls.archive, &beside)?;
        let webhooks = match &reload_config.driver {
            Driver::Http { endpoints, .. } if life.metrics_as.is_some() => {
                endpoints.iter().map(ToString::to_string).collect()
            }
            _ => Vec::new(),
        };
        Ok(Config {
            specs: parts.specs,
            client: parts.client,
            watches: parts.watches,
            files: files::Config {
                roots: parts.roots,
                poll_interval: sources.poll_interval,
                max_size: output.max_size,
                debounce: life.debounce,
            },
            urls: Arc::new(urls.config(parts.urls, output.max_size, keys)),
            archive,
            fallback,
            output: output.config(),
            digest_key_file: output.digest_key_file.clone(),
            render,
            validate: validate.config(directory, &sources.observe_dirs)?,
            machine: machine::Options {
                confirm: confirm_config.is_needed(),
                rollback: confirm.on_reject == OnReject::Rollback,
                rollout: rollout.is_some(),
                gate: self.gate(),
                debounce: life.debounce,
                debounce_max: life.debounce_max,
                min_interval: reload.reload_min_interval,
                splay: reload.reload_splay,
                attempts: reload.reload_attempts,
                reload: once.is_none() && notified,
            },
            reload: reload_config,
            confirm: confirm_config,
            retry: (reload.retry_min, reload.retry_max),
            once,
            once_if_empty: life.once_if_empty,
            listen: life.listen.0,
            admin: life.admin.0,
            guard: listener.config()?,
            needs_servers: life.on_bind_error == OnBindError::End,
            shutdown_grace: life.shutdown_grace,
            webhooks,
            rollout,
        })
    }

    /// What an archive must fit to.
    fn beside_archive(&self, rollout: bool) -> archive::Others {
        archive::Others {
            once: self.life.once,
            writes: self.output.output.is_some(),
            observed: self.sources.observe_dirs.len(),
            state_dir: self.output.state_dir.is_some(),
            folders: !self.output.folders.is_empty(),
            rollout,
            timeout: self.urls.url_timeout,
            retry: (self.reload.retry_min, self.reload.retry_max),
        }
    }

    /// Whether there is something to write.
    #[must_use]
    pub fn writes(&self) -> bool {
        self.sources.is_copied() || self.urls.is_given()
    }

    /// The identity of the flags that inputs can be rejected by.
    fn gate(&self) -> Digest {
        let mut gate = Gate::default();
        self.validate.add_to(&mut gate);
        self.reload.add_to(&mut gate);
        self.confirm.add_to(&mut gate);
        gate.finish()
    }
}

#[cfg(test)]
mod tests;
