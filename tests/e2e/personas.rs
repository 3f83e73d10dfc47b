//! The containers of other charts with nothing but their image changed.

use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::support::app::{PORT, allow, configmap, grant, pod};
use super::support::node::eventually;
use super::support::pod::Pod;
use super::support::space::Space;

/// The image that stands for a peer's, as `make image PEER=…` tags it.
fn image(peer: &str) -> String {
    format!("trimtab:{}-{peer}", env!("CARGO_PKG_VERSION"))
}

/// The Pod of `app.py` with another sidecar in the place of Trimtab's own.
fn with(sidecar: &Value) -> Value {
    let mut pod = pod("web", &[]);
    let native = &mut pod["spec"]["initContainers"][0];
    for part in ["args", "startupProbe"] {
        native.as_object_mut().unwrap().remove(part);
    }
    native["resources"] = json!({"limits": {"memory": "32Mi"}});
    native.as_object_mut().unwrap().extend(sidecar.as_object().unwrap().clone());
    pod
}

#[test]
fn k8s_sidecar_of_the_grafana_chart() {
    let space = Space::new("grafana");
    grant(&space);
    let rule = json!({"apiGroups": [""], "resources": ["configmaps", "secrets"], "verbs": ["get", "watch", "list"]});
    allow(&space, "grafana", &rule);
    space.create(&configmap("program", "app.py", include_str!("support/app.py")));
    let mut dashboard = configmap("first", "app.txt", "one");
    dashboard["metadata"]["labels"] = json!({"grafana_dashboard": "1"});
    space.create(&dashboard);
    let env = [
        ("METHOD", "WATCH"),
        ("LABEL", "grafana_dashboard"),
        ("LABEL_VALUE", "1"),
        ("FOLDER", "/shared/conf"),
        ("RESOURCE", "both"),
        ("REQ_URL", "http://localhost:8080/reload"),
        ("REQ_METHOD", "POST"),
        ("HEALTH_PORT", "8081"),
    ];
    let env: Vec<_> = env.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    space.create(&with(&json!({
        "image": image("k8s-sidecar"), "env": env,
        "startupProbe": {"httpGet": {"path": "/healthz", "port": 8081}, "periodSeconds": 1, "failureThreshold": 120},
    })));
    let pod = space.pod("web").until_ready();
    pod.until_serves(PORT, "/", "one");
    space.edit("first", "app.txt", "two");
    pod.until_serves(PORT, "/", "two");
    let reloads = || pod.get(PORT, "/reloads").and_then(|count| count.parse::<u32>().ok()).unwrap_or_default();
    let before = reloads();
    let mut dashboard = configmap("second", "second.json", "{}");
    dashboard["metadata"]["labels"] = json!({"grafana_dashboard": "1"});
    dashboard["metadata"]["annotations"] = json!({"k8s-sidecar-target-directory": "team"});
    space.create(&dashboard);
    let finds = |expected: &str| {
        // Grafana walks what is there, and passes over names that begin with a dot.
        let walk = "import os; print(sorted(os.path.join(at, name) for at, below, names in os.walk('/shared/conf') \
                    for name in names if '/..' not in at))";
        eventually(expected, || {
            let found = pod.exec("main", &["python3", "-c", walk]).ok()?;
            (found.trim() == expected).then_some(())
        });
    };
    finds("['/shared/conf/app.txt', '/shared/conf/team/second.json']");
    eventually("it is called for the new one", || (reloads() == before + 1).then_some(()));
    space.kubectl(&["delete", "configmap", "second"]);
    finds("['/shared/conf/app.txt']");
    eventually("it is called for the deletion", || (reloads() == before + 2).then_some(()));
}

#[test]
fn configmap_reload_of_the_prometheus_chart() {
    let space = Space::new("reload");
    grant(&space);
    space.create(&configmap("program", "app.py", include_str!("support/app.py")));
    space.create(&configmap("web", "app.txt", "one"));
    let mut pod = with(&json!({
        "image": image("configmap-reload"),
        "args": ["--volume-dir=/shared/conf", "--webhook-url=http://127.0.0.1:8080/reload"],
    }));
    let spec = &mut pod["spec"];
    spec["volumes"][0] = json!({"name": "shared", "configMap": {"name": "web"}});
    for container in ["initContainers", "containers"] {
        let mount = &mut spec[container][0]["volumeMounts"][0];
        *mount = json!({"name": "shared", "mountPath": "/shared/conf", "readOnly": true});
    }
    space.create(&pod);
    let pod = space.pod("web").until_ready();
    pod.until_serves(PORT, "/", "one");
    space.edit("web", "app.txt", "two");
    // After the kubelet has written it.
    pod.until_serves(PORT, "/", "two");
    let metrics = pod.get(9533, "/metrics").unwrap_or_default();
    assert!(metrics.contains("configmap_reload_last_reload_error"), "{metrics}");
    assert_eq!(pod.restarts("main") + pod.restarts("trimtab"), 0);
}

/// What every container has here.
fn restricted() -> Value {
    json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}})
}

/// A program that stands in one of `tests/node/images`.
fn program(name: &str, command: &str, args: &[&str]) -> Value {
    json!({
        "name": name, "image": format!("localhost/{name}:1"), "imagePullPolicy": "Never", "command": [command],
        "args": args, "securityContext": restricted(),
    })
}

/// Waits until an answer has this in it.
fn until_has(pod: &Pod<'_>, port: u16, path: &str, text: &str) {
    let mut last = None;
    eventually(&format!("{}:{port}{path} has {text}", pod.name()), || {
        last = pod.get(port, path);
        last.as_ref()?.contains(text).then_some(())
    });
}

/// A Pod of the Prometheus Operator (0.93) as it renders it, for a resource with `web`: its containers by their path, with
/// its limits.
fn of_the_operator() -> Value {
    let rules = "prometheus-k8s-rulefiles-0";
    let rules_at = format!("/etc/prometheus/rules/{rules}");
    let web = json!({
        "name": "web-config", "mountPath": "/etc/prometheus/web_config/web-config.yaml", "subPath": "web-config.yaml",
        "readOnly": true,
    });
    let reloader = |name: &str, port: (&str, u16), own: &[&str]| {
        let args: Vec<_> = own
            .iter()
            .copied()
            .chain([
                "--config-file=/etc/prometheus/config/prometheus.yaml.gz",
                "--config-envsubst-file=/etc/prometheus/config_out/prometheus.env.yaml",
                &format!("--watched-dir={rules_at}"),
                "--watched-dir=/etc/prometheus/config",
            ])
            .map(str::to_owned)
            .collect();
        json!({
            "name": name, "image": image("prometheus-config-reloader"), "imagePullPolicy": "IfNotPresent",
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "command": ["/bin/prometheus-config-reloader"], "args": args,
            "env": [
                {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "SHARD", "value": "0"},
            ],
            "ports": [{"name": port.0, "containerPort": port.1, "protocol": "TCP"}],
            "resources": {"limits": {"cpu": "10m", "memory": "50Mi"}, "requests": {"cpu": "10m", "memory": "50Mi"}},
            "volumeMounts": [
                {"name": "config", "mountPath": "/etc/prometheus/config"},
                {"name": "config-out", "mountPath": "/etc/prometheus/config_out"},
                web, {"name": rules, "mountPath": rules_at},
            ],
            "securityContext": restricted(),
        })
    };
    let mut prometheus = program(
        "prometheus",
        "prometheus",
        &[
            "--config.file=/etc/prometheus/config_out/prometheus.env.yaml",
            "--storage.tsdb.path=/prometheus",
            "--web.enable-lifecycle",
            "--web.config.file=/etc/prometheus/web_config/web-config.yaml",
        ],
    );
    prometheus["volumeMounts"] = json!([
        {"name": "config-out", "mountPath": "/etc/prometheus/config_out", "readOnly": true},
        {"name": "prometheus-k8s-db", "mountPath": "/prometheus"},
        web, {"name": rules, "mountPath": rules_at, "readOnly": true},
    ]);
    prometheus["readinessProbe"] = json!({"httpGet": {"path": "/-/ready", "port": 9090}, "periodSeconds": 5});
    let init =
        reloader("init-config-reloader", ("reloader-init", 8081), &["--watch-interval=0", "--listen-address=:8081"]);
    let beside = reloader(
        "config-reloader",
        ("reloader-web", 8080),
        &[
            "--listen-address=:8080",
            "--web-config-file=/etc/prometheus/web_config/web-config.yaml",
            "--reload-url=http://localhost:9090/-/reload",
        ],
    );
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "prometheus-k8s-0"},
        "spec": {
            "securityContext": {
                "fsGroup": 2000, "runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"},
            },
            "terminationGracePeriodSeconds": 5,
            "initContainers": [init],
            "containers": [prometheus, beside],
            "volumes": [
                {"name": "config", "secret": {"secretName": "prometheus-k8s"}},
                {"name": "web-config", "secret": {"secretName": "prometheus-k8s-web-config"}},
                {"name": "config-out", "emptyDir": {"medium": "Memory"}},
                {"name": rules, "configMap": {"name": rules, "optional": true}},
                {"name": "prometheus-k8s-db", "emptyDir": {}},
            ],
        },
    })
}

#[test]
fn prometheus_config_reloader_of_the_prometheus_operator() {
    let space = Space::new("operator");
    let packed = |edit: &str, more: &str| {
        let text = format!(
            "global: {{scrape_interval: 1h, external_labels: {{pod: $(POD_NAME), shard: s$(SHARD), edit: {edit}}}}}\n\
             rule_files: [/etc/prometheus/rules/prometheus-k8s-rulefiles-0/*.yaml]\n{more}\n"
        );
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(text.as_bytes()).unwrap();
        json!({"prometheus.yaml.gz": STANDARD.encode(packed.finish().unwrap())})
    };
    let rules = |group: &str| format!("groups: [{{name: {group}, rules: [{{record: one, expr: vector(1)}}]}}]\n");
    for (name, data) in
        [("prometheus-k8s", packed("one", "")), ("prometheus-k8s-web-config", json!({"web-config.yaml": ""}))]
    {
        space.create(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data}));
    }
    space.create(&configmap("prometheus-k8s-rulefiles-0", "first.yaml", &rules("first")));
    space.create(&of_the_operator());
    let pod = space.pod("prometheus-k8s-0").until_ready();
    let runs = |part: &str| until_has(&pod, 9090, "/api/v1/status/config", part);
    let successful =
        |value: &str| until_has(&pod, 8080, "/metrics", &format!("reloader_last_reload_successful {value}\n"));
    // Before Prometheus started, as the init container wrote it.
    runs("edit: one");
    runs("pod: prometheus-k8s-0");
    runs("shard: s0");
    successful("1");
    assert!(pod.get(8080, "/healthz").is_some());

    let edit = |edit: &str, more: &str| space.patch("secret", "prometheus-k8s", &json!({"data": packed(edit, more)}));
    edit("two", "");
    runs("edit: two");
    space.edit("prometheus-k8s-rulefiles-0", "first.yaml", &rules("second"));
    until_has(&pod, 9090, "/api/v1/rules", "second");
    successful("1");

    // Prometheus refuses it, and finds what it had when it starts again; there it would not come up any more.
    edit("three", "frobnicate: on");
    successful("0");
    eventually("the log names it", || pod.log("config-reloader").contains("frobnicate").then_some(()));
    until_has(&pod, 8080, "/metrics", "trimtab_rollbacks_total 1\n");
    runs("edit: two");
    pod.post(9090, "/-/quit");
    eventually("Prometheus is started again", || (pod.restarts("prometheus") == 1).then_some(()));
    runs("edit: two");
    edit("four", "");
    runs("edit: four");
    successful("1");
    assert_eq!((pod.restarts("prometheus"), pod.restarts("config-reloader")), (1, 0));
}

/// A chart's program and its sidecar, which mount one ConfigMap.
struct Chart {
    program: Value,
    sidecar: Value,
    mounted_at: &'static str,
    key: &'static str,
    config: fn(edit: usize, good: bool) -> String,
    /// Where the program shows what it runs.
    shows: (u16, &'static str),
    /// Where the sidecar's metrics are, and how they say that all is well, and that it is not.
    metrics: (u16, &'static str, &'static str),
}

impl Chart {
    fn runs_unchanged(mut self, name: &str) {
        let space = Space::new(name);
        space.create(&configmap(name, self.key, &(self.config)(1, true)));
        for container in [&mut self.program, &mut self.sidecar] {
            container["volumeMounts"] = json!([
                {"name": "config", "mountPath": self.mounted_at}, {"name": "storage", "mountPath": "/alertmanager"},
            ]);
        }
        self.sidecar["securityContext"] = restricted();
        space.create(&json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {
                "securityContext": {
                    "fsGroup": 65534, "runAsNonRoot": true, "runAsUser": 65534, "runAsGroup": 65534,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "terminationGracePeriodSeconds": 5,
                "containers": [self.sidecar, self.program],
                "volumes": [{"name": "config", "configMap": {"name": name}}, {"name": "storage", "emptyDir": {}}],
            },
        }));
        let pod = space.pod(name).until_ready();
        let runs = |edit: usize| until_has(&pod, self.shows.0, self.shows.1, &format!("edit-{edit}"));
        let (port, well, ill) = self.metrics;
        for edit in 1..4 {
            space.edit(name, self.key, &(self.config)(edit, true));
            runs(edit);
        }
        until_has(&pod, port, "/metrics", well);
        space.edit(name, self.key, &(self.config)(4, false));
        until_has(&pod, port, "/metrics", ill);
        runs(3);
        space.edit(name, self.key, &(self.config)(5, true));
        runs(5);
        until_has(&pod, port, "/metrics", well);
        let containers = pod.object()["status"]["containerStatuses"].clone();
        assert!(containers.as_array().unwrap().iter().all(|it| it["restartCount"] == 0), "{containers}");
    }
}

#[test]
fn configmap_reload_of_the_alertmanager_chart() {
    Chart {
        program: program(
            "alertmanager",
            "alertmanager",
            &["--storage.path=/alertmanager", "--config.file=/etc/alertmanager/alertmanager.yml"],
        ),
        sidecar: json!({
            "name": "alertmanager-configmap-reload", "image": image("configmap-reload"),
            "args": ["--volume-dir=/etc/alertmanager", "--webhook-url=http://127.0.0.1:9093/-/reload"],
        }),
        mounted_at: "/etc/alertmanager",
        key: "alertmanager.yml",
        config: |edit, good| {
            let receiver = if good { format!("edit-{edit}") } else { "nowhere".to_owned() };
            format!("route: {{receiver: {receiver}}}\nreceivers: [{{name: edit-{edit}}}]\n")
        },
        shows: (9093, "/api/v2/status"),
        metrics: (
            9533,
            "configmap_reload_last_reload_error{webhook=\"http://127.0.0.1:9093/-/reload\"} 0\n",
            "configmap_reload_last_reload_error{webhook=\"http://127.0.0.1:9093/-/reload\"} 1\n",
        ),
    }
    .runs_unchanged("alertmanager");
}

#[test]
fn prometheus_config_reloader_of_the_blackbox_exporter_chart() {
    let healthy = json!({"httpGet": {"path": "/healthz", "port": "reloader-web"}});
    Chart {
        program: program("blackbox-exporter", "prometheus-blackbox-exporter", &["--config.file=/config/blackbox.yaml"]),
        sidecar: json!({
            "name": "config-reloader", "image": image("prometheus-config-reloader"),
            "args": [
                // The chart has 1m: what is seen here is not the poll.
                "--config-file=/config/blackbox.yaml", "--watch-interval=1h",
                "--reload-url=http://127.0.0.1:9115/-/reload", "--listen-address=:8080", "--log-format=logfmt",
                "--log-level=info",
            ],
            "ports": [{"name": "reloader-web", "containerPort": 8080, "protocol": "TCP"}],
            "livenessProbe": healthy, "readinessProbe": healthy,
        }),
        mounted_at: "/config",
        key: "blackbox.yaml",
        config: |edit, good| format!("modules: {{edit-{edit}: {{{}: tcp}}}}\n", if good { "prober" } else { "pigeon" }),
        shows: (9115, "/config"),
        metrics: (8080, "reloader_last_reload_successful 1\n", "reloader_last_reload_successful 0\n"),
    }
    .runs_unchanged("blackbox-exporter");
}
