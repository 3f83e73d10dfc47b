//! An exec plugin: a program that a kubeconfig names, and that prints credentials.
//!
//! Run here and not by kube, which runs it two or three times for each client, in a thread, and waits for it without a
//! limit of time or bytes (kube-client 5.0, client/auth/mod.rs: `auth_exec`).

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube::config::{AuthInfo, Cluster, ExecAuthCluster, ExecConfig};
use serde::Deserialize;
use serde_json::json;
use tokio::io::AsyncReadExt as _;

use super::config::{KubeError, beside, unusable};
use crate::os::exec::Group;

/// What `kind: ExecCredential` has been in since Kubernetes 1.22; older ones are gone since 1.24.
const VERSIONS: [&str; 2] = ["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"];
/// Far more than a token and a certificate take, in bytes.
const LIMIT: u64 = 1 << 20;

/// A program, ready to be run. Without `Debug`, as its arguments and environment may hold credentials.
pub(super) struct Plugin {
    command: String,
    exec: ExecConfig,
    /// What it finds in `KUBERNETES_EXEC_INFO`.
    info: String,
}

#[derive(Deserialize)]
struct ExecCredential {
    status: Option<ExecStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExecStatus {
    /// RFC 3339; without one, they are good until they are refused.
    #[serde(default)]
    expiration_timestamp: Option<String>,
    #[serde(default)]
    token: Option<String>,
    /// PEM.
    #[serde(default)]
    client_certificate_data: Option<String>,
    /// PEM.
    #[serde(default)]
    client_key_data: Option<String>,
}

impl Plugin {
    /// `cluster`: with its CA as data, as the plugin wants it. A command with a slash is relative to the kubeconfig.
    pub(super) fn new(path: &Path, exec: ExecConfig, cluster: &Cluster) -> Result<Self, KubeError> {
        let Some(version) = exec.api_version.as_deref().filter(|version| VERSIONS.contains(version)) else {
            return Err(unusable(path, format!("its exec plugin's apiVersion is none of {}", VERSIONS.join(", "))));
        };
        let Some(command) = exec.command.as_deref().filter(|command| !command.is_empty()) else {
            return Err(unusable(path, "its exec plugin has no command"));
        };
        let mut spec = json!({"interactive": false});
        if exec.provide_cluster_info {
            let cluster = ExecAuthCluster::try_from(cluster).map_err(|_| unusable(path, "its CA is not base64"))?;
            spec["cluster"] = json!(cluster);
        }
        let info = json!({"apiVersion": version, "kind": "ExecCredential", "spec": spec}).to_string();
        let command = if command.contains('/') {
            beside(path, command).to_string_lossy().into_owned()
        } else {
            command.to_owned()
        };
        Ok(Self { command, exec, info })
    }

    /// Runs it, and puts what it gives in the place of the user's own credentials; until when they are good. What goes
    /// wrong is said without a word of what it prints.
    pub(super) async fn identify(
        &self,
        user: &mut AuthInfo,
        deadline: Duration,
    ) -> Result<Option<jiff::Timestamp>, String> {
        let run = tokio::time::timeout(deadline, self.run()).await;
        let given = run.unwrap_or_else(|_| Err(format!("does not end within {} s", deadline.as_secs_f64())))?;
        let status = given.status.ok_or("gives no credentials")?;
        if let Some(token) = status.token {
            (user.username, user.password) = (None, None);
            user.token = Some(token.into());
        }
        if let (Some(certificate), Some(key)) = (status.client_certificate_data, status.client_key_data) {
            user.client_certificate_data = Some(STANDARD.encode(certificate));
            user.client_key_data = Some(STANDARD.encode(key).into());
        }
        Ok(status.expiration_timestamp.and_then(|time| time.parse().ok()))
    }

    async fn run(&self) -> Result<ExecCredential, String> {
        let mut command = tokio::process::Command::new(&self.command);
        command.args(self.exec.args.iter().flatten()).env("KUBERNETES_EXEC_INFO", &self.info);
        for variable in self.exec.env.iter().flatten() {
            if let (Some(name), Some(value)) = (variable.get("name"), variable.get("value")) {
                command.env(name, value);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        // Dropped, also when the time is up or Trimtab ends, it kills what the plugin has started as well.
        let mut group = Group::new(command.spawn().map_err(|error| format!("cannot be started: {error}"))?);
        let mut printed = Vec::new();
        if let Some(stdout) = group.stdout() {
            let read = stdout.take(LIMIT + 1).read_to_end(&mut printed).await;
            read.map_err(|error| format!("cannot be listened to: {error}"))?;
        }
        if printed.len() as u64 > LIMIT {
            return Err(format!("prints more than {LIMIT} bytes"));
        }
        let status = group.wait().await.map_err(|error| format!("cannot be waited for: {error}"))?;
        if !status.success() {
            return Err(format!("failed: {status}"));
        }
        // JSON, or YAML, of which JSON is a part: client-go takes both.
        serde_saphyr::from_slice(&printed).map_err(|_| "prints no ExecCredential".to_owned())
    }
}
