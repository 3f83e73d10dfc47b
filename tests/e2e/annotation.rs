//! docs/install.md on the node: `helm install`, one annotation on a Deployment, an edit, a bad edit rolled back.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use super::support::node::{eventually, kubectl_with};
use super::support::space::Space;

/// Helm with a release in a namespace. Uninstalled when dropped.
struct Release<'a> {
    space: &'a Space,
}

fn helm(args: &[&str], values: &str) {
    let folder = std::env::var_os("TRIMTAB_TEST_HELM").expect("TRIMTAB_TEST_HELM is not set: make e2e");
    let mut command = Command::new(Path::new(&folder).join("helm"));
    let mut child = command.args(args).stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), values.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "helm {}", args.join(" "));
}

impl<'a> Release<'a> {
    fn install(space: &'a Space, values: &str) -> Self {
        let chart = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("deploy/helm/trimtab");
        let args = ["install", "trimtab", chart.to_str().unwrap(), "--namespace", space.name(), "--values=-"];
        helm(&args, values);
        Self { space }
    }
}

impl Drop for Release<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            helm(&["uninstall", "trimtab", "--namespace", self.space.name()], "");
        }
    }
}

/// What a team writes. The annotation is all that it says of Trimtab.
const MANIFEST: &str = r#"
apiVersion: v1
kind: ServiceAccount
metadata: {name: web}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: web}
data: {workers: "2", greeting: hello}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: web-templates}
data:
  nginx.conf.j2: |
    worker_processes {{ data.workers }};
    pid /tmp/nginx.pid;
    events {}
    http {
        access_log /dev/stdout;
        client_body_temp_path /tmp; proxy_temp_path /tmp; fastcgi_temp_path /tmp;
        uwsgi_temp_path /tmp; scgi_temp_path /tmp;
        server {
            listen 8080;
            location / { return 200 {{ data.greeting | quote }}; }
        }
    }
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata:
      labels: {app: web}
      annotations: {trimtab.dev/inject: web}
    spec:
      serviceAccountName: web
      securityContext:
        runAsNonRoot: true
        runAsUser: 101
        runAsGroup: 101
        fsGroup: 101
        seccompProfile: {type: RuntimeDefault}
      containers:
        - name: nginx
          image: nginxinc/nginx-unprivileged:1.29
          command: [nginx, -e, stderr, -g, daemon off;, -c, /shared/conf/nginx.conf]
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {drop: [ALL]}
          volumeMounts:
            - {name: tmp, mountPath: /tmp}
      volumes:
        - {name: tmp, emptyDir: {}}
"#;

#[test]
fn chart_and_one_annotation_are_enough() {
    let space = Space::new("annotation");
    let flags = [
        "--configmap=web",
        "--template=/templates",
        "--output=/shared/conf",
        "--signal=HUP",
        "--process=nginx",
        "--confirm-workers",
    ];
    let values = json!({
        "profiles": {"web": {
            "container": "nginx", "mountPath": "/shared", "target": "signal", "args": flags,
            "mounts": [{"path": "/templates", "configMap": "web-templates"}],
        }},
        "roles": [{"serviceAccount": "web", "configMaps": ["web"]}],
    });
    let _release = Release::install(&space, &values.to_string());
    // Admission learns of a policy a moment after it is stored: both do what they are for.
    let refused = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "probe", "annotations": {"trimtab.dev/inject": "none"}},
        "spec": {
            "securityContext": {"runAsNonRoot": true, "runAsUser": 101, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "nginx", "image": "nginx", "securityContext": {
                "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
            }}],
        },
    });
    let mut wanted = refused.clone();
    wanted["metadata"]["annotations"]["trimtab.dev/inject"] = "web".into();
    let probe = |pod: &serde_json::Value| {
        let args = ["-n", space.name(), "create", "--dry-run=server", "-o", "json", "-f", "-"];
        let output = kubectl_with(&args, &pod.to_string());
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    eventually("a Pod without its profile is refused", || probe(&refused).contains("no such profile").then_some(()));
    eventually("a Pod gets the sidecar", || probe(&wanted).contains("\"name\": \"trimtab\"").then_some(()));

    space.apply(MANIFEST);
    let pods = space.pods_when_there("app=web", 2);
    let pods: Vec<_> = pods.into_iter().map(super::support::pod::Pod::until_ready).collect();
    let serve = |text: &str| pods.iter().for_each(|pod| pod.until_serves(8080, "/", text));
    serve("hello");
    space.edit("web", "greeting", "good morning");
    serve("good morning");
    // Renders, and is refused by nginx.
    space.edit("web", "workers", "0");
    for pod in &pods {
        pod.until("rolled back", |status| status["quarantine"]["stage"] == "confirm" && status["phase"] == "idle");
    }
    serve("good morning");
    space.edit("web", "workers", "3");
    space.edit("web", "greeting", "good evening");
    serve("good evening");
    for pod in &pods {
        assert_eq!(pod.restarts("nginx") + pod.restarts("trimtab"), 0);
    }

    // A Deployment whose profile is not there says so, and what runs goes on.
    let patch = json!({"spec": {"template": {"metadata": {"annotations": {"trimtab.dev/inject": "none"}}}}});
    space.patch("deployment", "web", &patch);
    eventually("the ReplicaSet's Event names the profile", || {
        space.kubectl(&["get", "events", "-o", "yaml"]).contains("trimtab.dev/inject: none").then_some(())
    });
    serve("good evening");
}
