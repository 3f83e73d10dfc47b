//! The containers of other charts with nothing but their image changed.

use serde_json::{Value, json};

use super::support::app::{PORT, allow, configmap, grant, pod};
use super::support::node::eventually;
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
