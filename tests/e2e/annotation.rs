//! docs/install.md on the node: `helm install`, one annotation on a Deployment, an edit, a bad edit rolled back; the same
//! beside a service mesh's proxy.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::json;

use super::support::node::{eventually, kubectl_with};
use super::support::space::Space;

/// The cluster has one policy of this name.
static RELEASE: Mutex<()> = Mutex::new(());

/// Helm with a release in a namespace. Uninstalled when dropped.
struct Release<'a> {
    space: &'a Space,
    _alone: MutexGuard<'static, ()>,
}

fn helm(args: &[&str], values: &str) {
    let folder = std::env::var_os("TRIMTAB_TEST_HELM").expect("TRIMTAB_TEST_HELM is not set: make e2e");
    let mut command = Command::new(Path::new(&folder).join("helm"));
    let mut child = command.args(args).stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), values.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "helm {}", args.join(" "));
}

impl<'a> Release<'a> {
    /// With a profile `web` for nginx.
    fn install(space: &'a Space) -> Self {
        let release = Self { space, _alone: RELEASE.lock().unwrap_or_else(PoisonError::into_inner) };
        release.begin();
        release
    }

    fn begin(&self) {
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
        let chart = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("deploy/helm/trimtab");
        let args = ["install", "trimtab", chart.to_str().unwrap(), "--namespace", self.space.name(), "--values=-"];
        helm(&args, &values.to_string());
    }

    fn end(&self) {
        helm(&["uninstall", "trimtab", "--namespace", self.space.name()], "");
        eventually("admission has forgotten the policies", || {
            let pod = admitted(self.space, "web");
            (pod.contains("\"name\": \"probe\"") && !pod.contains("\"name\": \"trimtab\"")).then_some(())
        });
    }

    /// Uninstalls it, and installs it once more.
    fn again(&self) {
        self.end();
        self.begin();
    }
}

impl Drop for Release<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end();
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

/// What the API server makes of a Pod with this profile and the label `mesh`, or why it takes none.
fn admitted(space: &Space, profile: &str) -> String {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "probe", "labels": {"mesh": "yes"}, "annotations": {"trimtab.dev/inject": profile}},
        "spec": {
            "securityContext": {"runAsNonRoot": true, "runAsUser": 101, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "nginx", "image": "nginx", "securityContext": {
                "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
            }}],
        },
    });
    let args = ["-n", space.name(), "create", "--dry-run=server", "-o", "json", "-f", "-"];
    let output = kubectl_with(&args, &pod.to_string());
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

#[test]
fn chart_and_one_annotation_are_enough() {
    let space = Space::new("annotation");
    let release = Release::install(&space);
    // Admission learns of a policy a moment after it is stored: both do what they are for.
    eventually("a Pod without its profile is refused", || {
        admitted(&space, "none").contains("no such profile").then_some(())
    });
    eventually("a Pod gets the sidecar", || admitted(&space, "web").contains("\"name\": \"trimtab\"").then_some(()));

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

    // What the API server follows for policies, it follows no more once the last one is gone: one stays.
    space.kubectl(&["delete", "deployment", "web"]);
    release.again();
    eventually("a Pod gets the sidecar of a release that was uninstalled before", || {
        admitted(&space, "web").contains("\"name\": \"trimtab\"").then_some(())
    });
}

/// What a service mesh's injector adds to Pods with the label `mesh`: a native sidecar before all others, through which the
/// world reaches the main container. Deleted when dropped.
struct Mesh {
    name: String,
}

impl Mesh {
    fn install(space: &Space) -> Self {
        let listener = json!({
            "address": {"socket_address": {"address": "0.0.0.0", "port_value": 15006}},
            "filter_chains": [{"filters": [{
                "name": "envoy.filters.network.tcp_proxy",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                    "stat_prefix": "inbound",
                    "cluster": "inbound",
                },
            }]}],
        });
        let address = json!({"socket_address": {"address": "127.0.0.1", "port_value": 8080}});
        let endpoints = json!([{"lb_endpoints": [{"endpoint": {"address": address}}]}]);
        let cluster =
            json!({"name": "inbound", "load_assignment": {"cluster_name": "inbound", "endpoints": endpoints}});
        let envoy = json!({
            "admin": {"address": {"socket_address": {"address": "0.0.0.0", "port_value": 15000}}},
            "static_resources": {"listeners": [listener], "clusters": [cluster]},
        });
        let name = format!("proxy-of-{}", space.name());
        let manifest = MESH.replace("NAMESPACE", space.name()).replace("NAME", &name);
        // In a string of CEL, in a block of YAML.
        let manifest = manifest.replace("ENVOY", &envoy.to_string());
        let output = kubectl_with(&["apply", "-f", "-"], &manifest);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { name }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        let kinds = "mutatingadmissionpolicy,mutatingadmissionpolicybinding";
        let output = kubectl_with(&["delete", kinds, &self.name, "--wait=false"], "");
        if !output.status.success() {
            eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

const MESH: &str = r#"
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {name: NAME}
spec:
  failurePolicy: Fail
  reinvocationPolicy: IfNeeded
  matchConstraints:
    namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: NAMESPACE}}
    resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}]
  matchConditions:
    - name: labelled
      expression: object.metadata.?labels[?'mesh'].orValue('') == 'yes'
    - name: once
      expression: "!object.spec.?initContainers.orValue([]).exists(c, c.name == 'istio-proxy')"
  mutations:
    - patchType: JSONPatch
      jsonPatch:
        expression: |
          (has(object.spec.initContainers) ? [] : [JSONPatch{op: 'add', path: '/spec/initContainers', value: []}]) +
          [JSONPatch{op: 'add', path: '/spec/initContainers/0', value: {
            'name': dyn('istio-proxy'), 'restartPolicy': dyn('Always'),
            'image': dyn('localhost/envoy:1'), 'imagePullPolicy': dyn('Never'),
            'command': dyn(['envoy', '--disable-hot-restart', '--concurrency', '1', '--config-yaml', 'ENVOY']),
            'startupProbe': dyn({'httpGet': dyn({'path': dyn('/ready'), 'port': dyn(15000)}), 'periodSeconds': dyn(1), 'failureThreshold': dyn(120)}),
            'securityContext': dyn({'allowPrivilegeEscalation': dyn(false), 'readOnlyRootFilesystem': dyn(true), 'capabilities': dyn({'drop': dyn(['ALL'])})})
          }}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata: {name: NAME}
spec: {policyName: NAME}
"#;

#[test]
fn proxy_of_a_service_mesh_runs_beside_it() {
    let space = Space::new("mesh");
    let _release = Release::install(&space);
    let _mesh = Mesh::install(&space);
    eventually("a Pod gets both", || {
        let pod = admitted(&space, "web");
        ["trimtab", "istio-proxy"].iter().all(|name| pod.contains(&format!("\"name\": \"{name}\""))).then_some(())
    });
    space.apply(
        &MANIFEST
            .replace("replicas: 2", "replicas: 1")
            .replace("labels: {app: web}", "labels: {app: web, mesh: 'yes'}"),
    );
    let pod = space.pods_when_there("app=web", 1).remove(0).until_ready();
    let object = pod.object();
    let mut names: Vec<_> =
        object["spec"]["initContainers"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["istio-proxy", "trimtab"]);

    pod.until_serves(15006, "/", "hello");
    space.edit("web", "greeting", "good morning");
    pod.until_serves(15006, "/", "good morning");
    // Renders, and is refused by nginx.
    space.edit("web", "workers", "0");
    pod.until("rolled back", |status| status["quarantine"]["stage"] == "confirm" && status["phase"] == "idle");
    pod.until_serves(15006, "/", "good morning");
    for container in ["istio-proxy", "trimtab", "nginx"] {
        assert_eq!(pod.restarts(container), 0, "{container}");
    }
}
