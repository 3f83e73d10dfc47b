//! A namespace of a test's own, which enforces the restricted Pod Security Standard.

use std::process::Output;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::panicking;

use serde_json::Value;

use super::images::replaced;
use super::node::{Share, eventually, kubectl, kubectl_try, kubectl_with};
use super::pod::Pod;

static NEXT: AtomicU32 = AtomicU32::new(1);

/// A namespace. Deleted when dropped; when its test fails, it says first what its Pods did and logged.
pub struct Space {
    name: String,
    _share: Share,
}

impl Space {
    /// On the node as it is, beside others.
    pub fn new(test: &str) -> Self {
        Self::on(test, Share::whole())
    }

    /// On a node that this test has alone, and may break.
    pub fn alone(test: &str) -> Self {
        Self::on(test, Share::alone())
    }

    fn on(test: &str, share: Share) -> Self {
        let name = format!("{test}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let namespace = format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}, \
             labels: {{pod-security.kubernetes.io/enforce: restricted}}}}}}"
        );
        give(&["create", "-f", "-"], &namespace);
        // A Pod needs it, and the controller may be a moment behind.
        eventually("the namespace's service account", || {
            kubectl_try(&["-n", &name, "get", "serviceaccount/default", "configmap/kube-root-ca.crt"]).ok()
        });
        Self { name, _share: share }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// kubectl in this namespace.
    pub fn kubectl(&self, args: &[&str]) -> String {
        kubectl(&self.args(args))
    }

    pub fn kubectl_try(&self, args: &[&str]) -> Result<String, String> {
        kubectl_try(&self.args(args))
    }

    /// The same, with what it says and its exit code.
    pub fn output(&self, args: &[&str]) -> Output {
        kubectl_with(&self.args(args), "")
    }

    fn args<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        ["-n", &self.name].into_iter().chain(args.iter().copied()).collect()
    }

    /// `kubectl apply` of a manifest as it stands, but for its images.
    pub fn apply(&self, manifest: &str) {
        give(&self.args(&["apply", "-f", "-"]), &replaced(manifest));
    }

    /// An object that is not there yet.
    pub fn create(&self, object: &Value) {
        give(&self.args(&["create", "-f", "-"]), &object.to_string());
    }

    /// What `kubectl edit` of one key of a ConfigMap comes to.
    pub fn edit(&self, configmap: &str, key: &str, value: &str) {
        self.patch("configmap", configmap, &serde_json::json!({"data": {key: value}}));
    }

    /// A merge patch.
    pub fn patch(&self, kind: &str, name: &str, patch: &Value) {
        self.kubectl(&["patch", kind, name, "--type=merge", "--patch", &patch.to_string()]);
    }

    /// An object, as JSON.
    pub fn get(&self, what: &str) -> Value {
        serde_json::from_str(&self.kubectl(&["get", what, "-o", "json"])).unwrap()
    }

    /// A Pod by its name, whether it is there or not.
    pub fn pod(&self, name: &str) -> Pod<'_> {
        Pod::new(self, name)
    }

    /// The Pods with a label, oldest first.
    pub fn pods(&self, label: &str) -> Vec<Pod<'_>> {
        let args = ["get", "pods", "-l", label, "--sort-by=.metadata.creationTimestamp", "-o", "name"];
        self.kubectl(&args).lines().map(|name| self.pod(name.trim_start_matches("pod/"))).collect()
    }

    /// The same, once there are so many.
    pub fn pods_when_there(&self, label: &str, count: usize) -> Vec<Pod<'_>> {
        eventually(&format!("{count} pods {label}"), || Some(self.pods(label)).filter(|pods| pods.len() == count))
    }
}

/// kubectl with objects on its standard input, which it has to take.
fn give(args: &[&str], objects: &str) {
    let output = kubectl_with(args, objects);
    assert!(output.status.success(), "kubectl {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
}

impl Drop for Space {
    fn drop(&mut self) {
        if panicking() {
            let say = |args: &[&str]| match self.kubectl_try(args) {
                Ok(text) => eprintln!("--- kubectl {}\n{text}", args.join(" ")),
                Err(error) => eprintln!("--- kubectl {}: {error}", args.join(" ")),
            };
            say(&["get", "pods,configmaps", "-o", "wide"]);
            say(&[
                "get",
                "events",
                "--sort-by=.metadata.creationTimestamp",
                "-o",
                "custom-columns=AT:.lastTimestamp,OF:.involvedObject.name,REASON:.reason,SAYS:.message",
            ]);
            for pod in self.kubectl_try(&["get", "pods", "-o", "name"]).unwrap_or_default().lines() {
                say(&["logs", pod, "--all-containers", "--prefix", "--tail=60"]);
                say(&["logs", pod, "-c", "trimtab", "--previous", "--tail=30"]);
            }
        }
        let args = ["delete", "namespace", &self.name, "--wait=false"];
        if let Err(error) = kubectl_try(&args) {
            eprintln!("kubectl {}: {error}", args.join(" "));
        }
    }
}
