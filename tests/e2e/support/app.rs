//! A Pod with a small main process (`app.py`) and Trimtab beside it, as JSON that a test changes where its case
//! differs.

use serde_json::{Value, json};

use super::space::Space;

/// The port of the main process: `/` what it runs, `/reloads` and `/signals` how often it was notified.
pub const PORT: u16 = 8080;

/// What such a Pod needs beside itself: the ConfigMap `web` with `app.txt`, an account that may list and watch that one
/// object, and the program.
pub fn prepare(space: &Space, text: &str) {
    grant(space);
    space.create(&configmap("program", "app.py", include_str!("app.py")));
    space.create(&configmap("web", "app.txt", text));
}

/// The account `web`, which may list and watch the ConfigMap and the Secret `web`, and nothing else.
pub fn grant(space: &Space) {
    space.create(&json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "web"}}));
    allow(
        space,
        "web",
        &json!({"apiGroups": [""], "resources": ["configmaps", "secrets"], "resourceNames": ["web"],
                "verbs": ["list", "watch"]}),
    );
}

/// A Role of this name with this rule, for the account `web`.
pub fn allow(space: &Space, name: &str, rule: &Value) {
    space.create(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name}, "rules": [rule],
    }));
    space.create(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": "web"}],
    }));
}

/// A ConfigMap with one key.
pub fn configmap(name: &str, key: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {key: value}})
}

/// The Pod `name` with Trimtab as a native sidecar, both containers restricted, one user, a shared process namespace.
/// Trimtab has these flags beside `--output`.
pub fn pod(name: &str, flags: &[&str]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": spec(flags),
    })
}

/// The same as a Pod's spec, for a Job or a Deployment.
pub fn spec(flags: &[&str]) -> Value {
    let args: Vec<_> = ["--output=/shared/conf"].iter().chain(flags).collect();
    let restricted = json!({
        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
    });
    json!({
        "serviceAccountName": "web",
        "shareProcessNamespace": true,
        "terminationGracePeriodSeconds": 5,
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": 101, "runAsGroup": 101, "fsGroup": 101,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "initContainers": [{
            "name": "trimtab", "image": concat!("trimtab:", env!("CARGO_PKG_VERSION")), "args": args,
            "restartPolicy": "Always",
            "startupProbe": {"httpGet": {"path": "/readyz", "port": 9533}, "periodSeconds": 1, "failureThreshold": 120},
            "securityContext": restricted,
            "resources": {"requests": {"cpu": "1m"}, "limits": {"cpu": "10m", "memory": "16Mi"}},
            "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
        }],
        "containers": [{
            "name": "main", "image": "localhost/python:1", "command": ["python3", "-u", "/program/app.py"],
            "imagePullPolicy": "Never",
            "securityContext": restricted,
            "volumeMounts": [
                {"name": "shared", "mountPath": "/shared", "readOnly": true},
                {"name": "program", "mountPath": "/program"},
            ],
        }],
        "volumes": [{"name": "shared", "emptyDir": {}}, {"name": "program", "configMap": {"name": "program"}}],
    })
}

/// Makes an ordinary sidecar of the native one.
pub fn ordinary(spec: &mut Value) {
    let mut sidecar = spec["initContainers"].take()[0].take();
    let object = sidecar.as_object_mut().unwrap();
    object.remove("restartPolicy");
    object.remove("startupProbe");
    spec["containers"].as_array_mut().unwrap().push(sidecar);
}
