//! One replica first: a change's way through a fleet.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::reload::ReloadArgs;
use super::{Checked, UsageError, check_goes_with, usage};
use crate::app;
use crate::cli::values::duration;
use crate::reload::GateUrl;
use crate::render::Pod;
use crate::rollout::Timing;
use crate::source::{Role, Spec};

/// One replica first.
#[derive(Debug, Args)]
#[command(next_help_heading = "Rollout across replicas")]
pub struct RolloutArgs {
    /// One replica takes a change first, the others follow when it has held
    ///
    /// All replicas with the same sources share NAME. Their state is the Lease trimtab-NAME. The first rejection anywhere
    /// stops the change and takes it back.
    #[arg(long, value_name = "NAME")]
    pub rollout: Option<String>,
    /// How long the first replica must hold its confirmation (default: 1m)
    #[arg(long, value_name = "D", value_parser = duration)]
    pub rollout_bake: Option<Duration>,
    /// The others follow, each at its moment of this (default: 5m)
    #[arg(long, value_name = "D", value_parser = duration)]
    pub rollout_spread: Option<Duration>,
    /// The first replica asks this URL while a rollout is under way; an answer outside 2xx, or none, twice in a row stops it
    ///
    /// http, https, or unix:/path.sock:/uri. Its server is checked as that of --confirm-url, by the --reload-… TLS flags.
    #[arg(long, value_name = "URL")]
    pub rollout_gate_url: Option<String>,
    /// Keep the sources as they were when a rollout ended, for Pods that start while a newer change is stopped (default: yes)
    ///
    /// In a ConfigMap trimtab-NAME; what is secret of them in a Secret of that name.
    #[arg(long, value_name = "yes|no")]
    pub rollout_history: Option<Answer>,
}

/// `--rollout-history`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Answer {
    /// Keep them
    Yes,
    /// Do not
    No,
}

/// What of the other tables a rollout depends on.
#[expect(clippy::struct_excessive_bools, reason = "each is of another table")]
pub(super) struct Others<'a> {
    pub pod: &'a Pod,
    pub specs: &'a [Spec],
    pub reload: &'a ReloadArgs,
    /// Whether something confirms.
    pub confirms: bool,
    pub confirm_timeout: Duration,
    pub once: bool,
    pub splay: Duration,
    pub digest_key: bool,
    /// Whether a source is a Secret.
    pub secret: bool,
}

impl RolloutArgs {
    pub(super) fn config(&self, others: &Others<'_>) -> Checked<Option<app::RolloutConfig>> {
        let given = [("--rollout-bake", self.rollout_bake), ("--rollout-spread", self.rollout_spread)];
        let mut given: Vec<_> = given.into_iter().map(|(flag, value)| (flag, value.is_some())).collect();
        given.push(("--rollout-gate-url", self.rollout_gate_url.is_some()));
        given.push(("--rollout-history", self.rollout_history.is_some()));
        check_goes_with("--rollout", self.rollout.is_some(), &given)?;
        let Some(name) = &self.rollout else { return Ok(None) };
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        if name.is_empty()
            || name.len() > 200
            || !name.bytes().all(plain)
            || name.starts_with('-')
            || name.ends_with('-')
        {
            return usage("--rollout: NAME is of lower-case letters, digits and '-', as it names a Lease");
        }
        if others.once {
            return usage("--rollout and --once contradict each other: with --once nobody confirms");
        }
        if !others.splay.is_zero() {
            return usage("--rollout and --reload-splay contradict each other: --rollout-spread spreads the replicas");
        }
        if !others.confirms {
            return usage(
                "--rollout needs to find out whether the main process took a change: give a --reload-… or a --confirm-… flag",
            );
        }
        if others.secret && !others.digest_key {
            return usage(
                "--rollout with a Secret needs --digest-key-file, the same for all replicas: a plain digest of a secret must \
                 not stand in a Lease",
            );
        }
        let Pod { name: pod, namespace, uid, .. } = others.pod;
        for (variable, value) in [("POD_NAME", pod), ("POD_NAMESPACE", namespace), ("POD_UID", uid)] {
            if value.is_empty() {
                return usage(format!(
                    "--rollout needs {variable}, by the downward API (fieldRef) in the container's env"
                ));
            }
        }
        let timing = Timing {
            bake: self.rollout_bake.unwrap_or(Duration::from_mins(1)),
            spread: self.rollout_spread.unwrap_or(Duration::from_mins(5)),
            confirm: others.confirm_timeout,
            gated: self.rollout_gate_url.is_some(),
        };
        // It is not quoted: it may hold what is secret.
        let gate = self.rollout_gate_url.as_deref().map(|url| {
            let endpoint = url.parse().map_err(|error| UsageError(format!("--rollout-gate-url: {error}")))?;
            Ok(GateUrl { endpoint, http: others.reload.trust()? })
        });
        let gate = gate.transpose()?;
        let history = self.rollout_history != Some(Answer::No);
        let sources = others.specs.iter().filter(|spec| matches!(spec.role, Role::Named | Role::Selected));
        let sources = sources.map(|spec| spec.name.clone()).collect();
        let (pod, namespace, uid) = (pod.clone(), namespace.clone(), uid.clone());
        Ok(Some(app::RolloutConfig { name: name.clone(), timing, pod, namespace, uid, gate, history, sources }))
    }
}
