//! What of a rollout would not work here: its permissions, its Lease, and changes on which replicas would not agree.

use k8s_openapi::api::coordination::v1::Lease;

use super::sources::to_bind;
use super::{Finding, Severity};
use crate::app::{self, Config, RolloutConfig};
use crate::rollout::lease_name;
use crate::source::kube::{Clients, Rule};
use crate::source::{View, files};

pub(super) async fn of_rollout(config: &Config, views: &[View]) -> Vec<Finding> {
    let Some(rollout) = &config.rollout else { return Vec::new() };
    let mut findings = Vec::from_iter(of_key(config, views));
    // What is wrong with the way itself is reported with the sources.
    let Ok(clients) = app::clients(config).await else { return findings };
    let Some(clients) = clients.or_else(Clients::of_this_pod) else {
        let message = "there is no way to the API server, which has the Lease";
        let remedy = "run it in a Pod with automountServiceAccountToken: true";
        findings.push(Finding::new(Severity::Problem, place(rollout), message, remedy));
        return findings;
    };
    let (name, secret) = (lease_name(&rollout.name), config.digest_key_file.is_some());
    for rule in Rule::of_a_fleet(&rollout.namespace, &name, rollout.history, secret) {
        match clients.lacks(&rule).await {
            Ok(verbs) if verbs.is_empty() => {}
            Ok(verbs) => {
                let message = format!("this user may not {} what the fleet shares", verbs.join(" and "));
                findings.push(Finding::new(Severity::Permission, place(rollout), message, to_bind(&rule)));
            }
            Err(problem) => {
                let remedy = "the API server must be reachable from here, and know this user";
                findings.push(Finding::new(Severity::Problem, place(rollout), problem, remedy));
                return findings;
            }
        }
    }
    findings.extend(of_lease(rollout, &clients).await);
    findings
}

fn place(rollout: &RolloutConfig) -> String {
    format!("--rollout {}", rollout.name)
}

/// A mounted directory may turn out to be secret: then each replica would take a key of its own, and agree with nobody.
fn of_key(config: &Config, views: &[View]) -> Option<Finding> {
    let rollout = config.rollout.as_ref().filter(|_| config.digest_key_file.is_none())?;
    let secret = |root: &&files::Root| views.get(root.source).is_some_and(View::has_secrets);
    let root = config.files.roots.iter().find(secret)?;
    let message = format!(
        "{} is on tmpfs, as Secrets are: without a common key no two replicas agree on what a change is, and none follows",
        root.path.display()
    );
    let remedy = "--digest-key-file PATH, with the same content in all replicas; or --public-dir NAME, if nothing of it is secret";
    Some(Finding::new(Severity::Problem, place(rollout), message, remedy))
}

async fn of_lease(rollout: &RolloutConfig, clients: &Clients) -> Option<Finding> {
    let name = lease_name(&rollout.name);
    // That it may not be read is reported above.
    let stored = clients.read_stored::<Lease>(&rollout.namespace, &name, true).await.ok()??;
    if let Err(error) = app::lease_of(&stored) {
        let message = format!("Lease {name}: {error}; no replica goes");
        let remedy =
            format!("if nobody needs what it says: kubectl delete lease {name} --namespace {}", rollout.namespace);
        return Some(Finding::new(Severity::Problem, place(rollout), message, remedy));
    }
    let theirs = rollout.other_sources(&stored).filter(|theirs| !theirs.is_empty())?;
    let mine = rollout.sources();
    let message = format!("Lease {name} was last written by a replica with other sources: {theirs}; here: {mine}");
    let remedy = "give each fleet a NAME of its own; in an update to other sources this passes";
    Some(Finding::new(Severity::Problem, place(rollout), message, remedy))
}
