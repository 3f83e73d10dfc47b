//! `deploy/helm` and `deploy/kustomize`: what Helm and Kustomize make of them is what `trimtab inject`, `profile`, `policy`
//! and `rbac` make, and an API server takes it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};

use super::examples::{kubectl, restricted};
use super::inject::{FLAGS, piped, said};
use super::support::apiserver::{ADMIN, ApiServer};
use super::support::sidecar::{output_of, trimtab};

const IMAGE: &str = concat!("trimtab:", env!("CARGO_PKG_VERSION"));

const VALUES: &str = r#"
profiles:
  web:
    container: nginx
    mountPath: /shared
    target: signal
    args: [--configmap=web, --template=/templates, --output=/shared/conf, --signal=HUP, --process=nginx, --confirm-workers]
    mounts:
      - {path: /templates, configMap: web-templates}
      - {path: /etc/tls, secret: tls}
      - {path: /own, volume: own}
    fields: {NODE_NAME: spec.nodeName}
  other: {namespace: elsewhere, image: "other:1", mountPath: /a, args: ["--configmap=x", "--output=/a/b"], port: 9999, memoryLimit: 64Mi}
roles:
  - {serviceAccount: web, configMaps: [web], secrets: [tls]}
  - {serviceAccount: fleet, configMaps: [web], rollout: web}
  - {serviceAccount: sealed, secrets: [tls], rollout: web}
podMonitor: {enabled: true, labels: {release: prometheus}}
alerts: {enabled: true}
dashboard: {enabled: true}
priority: {enabled: true, serviceAccounts: [{namespace: shop, name: "*"}]}
"#;

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The folder of a tool, from this variable, or built.
fn tool(variable: &str, name: &str) -> PathBuf {
    if let Some(folder) = std::env::var_os(variable) {
        return folder.into();
    }
    let output = Command::new(root("tests/tools/build")).arg(name).stderr(Stdio::inherit()).output().unwrap();
    said(output).trim().into()
}

pub fn helm() -> Command {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| tool("TRIMTAB_TEST_HELM", "helm"));
    let home = folder.join("home-of-nobody");
    let mut command = Command::new(folder.join("helm"));
    // Nothing of this user's.
    command.env_clear().env("HOME", &home).env("KUBECONFIG", home.join("none"));
    command
}

/// `helm template` of a chart with these values, in namespace `shop`.
fn template(chart: &Path, values: &str, more: &[&str]) -> Output {
    let mut command = helm();
    command.args(["template", "release", "--namespace=shop", "--values=-"]).arg(chart).args(more);
    piped(&mut command, values)
}

fn objects(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple::<Value>(text).unwrap().into_iter().filter(|object| !object.is_null()).collect()
}

fn yaml(output: Output) -> Vec<Value> {
    objects(&said(output))
}

fn of<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let same = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == name;
    objects.iter().find(same).unwrap_or_else(|| panic!("no {kind} {name}"))
}

#[test]
fn charts_pass_helms_own_check_and_have_the_programs_version() {
    for chart in ["deploy/helm/trimtab", "deploy/helm/trimtab-library"] {
        said(output_of(helm().args(["lint", "--strict"]).arg(root(chart))));
        let text = fs::read_to_string(root(chart).join("Chart.yaml")).unwrap();
        let chart: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"), "{text}");
        assert!(chart["type"] == "library" || chart["appVersion"] == env!("CARGO_PKG_VERSION"), "{text}");
    }
    let values: Value =
        serde_saphyr::from_str(&fs::read_to_string(root("deploy/helm/trimtab/values.yaml")).unwrap()).unwrap();
    assert_eq!(values["image"], IMAGE);
}

#[test]
fn profile_and_role_of_the_chart_are_those_of_the_program() {
    let objects = yaml(template(&root("deploy/helm/trimtab"), VALUES, &[]));
    let mut profile = trimtab();
    profile.args(["profile", "web", "--container=nginx", "--mount=configmap/web-templates:/templates"]);
    profile.args(["--mount=secret/tls:/etc/tls", "--mount=volume/own:/own", "--field=NODE_NAME=spec.nodeName", "--"]);
    let by_program: Value = serde_saphyr::from_str(&said(output_of(profile.args(FLAGS)))).unwrap();
    let by_chart = of(&objects, "ConfigMap", "web");
    assert_eq!(by_chart["data"], by_program["data"]);
    assert_eq!(by_chart["metadata"]["labels"], by_program["metadata"]["labels"]);
    assert_eq!(by_chart["metadata"]["namespace"], "shop");
    let other = of(&objects, "ConfigMap", "other");
    assert_eq!(other["metadata"]["namespace"], "elsewhere");
    let given = json!({
        "container": "", "image": "other:1", "args": "--configmap=x\n--output=/a/b\n", "mountPath": "/a", "memoryLimit": "64Mi",
        "port": "9999",
    });
    assert_eq!(other["data"], given);

    let rbac = ["rbac", "--name=trimtab-web", "--service-account=web", "--namespace=shop", "--"];
    let sources = ["--configmap=web", "--secret=tls", "--output=/shared/conf"];
    let by_program = yaml(output_of(trimtab().args(rbac).args(sources)));
    assert_eq!(of(&objects, "Role", "trimtab-web"), &by_program[0]);
    let rollout = ["--output=/shared/conf", "--rollout=web", "--reload-url=http://127.0.0.1:1/"];
    for (account, sources) in
        [("fleet", &["--configmap=web"][..]), ("sealed", &["--secret=tls", "--digest-key-file=/etc/key"])]
    {
        let (name, account) = (format!("--name=trimtab-{account}"), format!("--service-account={account}"));
        let mut rbac = trimtab();
        rbac.args(["rbac", &name, &account, "--namespace=shop", "--"]).args(sources).args(rollout);
        let by_program = yaml(output_of(&mut rbac));
        assert_eq!(of(&objects, "Role", name.trim_start_matches("--name=")), &by_program[0]);
    }
    let mut binding = by_program[1].clone();
    binding["subjects"][0]["namespace"] = "shop".into();
    assert_eq!(of(&objects, "RoleBinding", "trimtab-web"), &binding);
}

#[test]
fn chart_brings_what_deploy_has() {
    let objects = yaml(template(&root("deploy/helm/trimtab"), VALUES, &[]));
    let file = |name: &str| -> Vec<Value> {
        serde_saphyr::from_multiple(&fs::read_to_string(root("deploy").join(name)).unwrap()).unwrap()
    };
    for policy in file("policy.yaml") {
        let [kind, name] = [&policy["kind"], &policy["metadata"]["name"]].map(|it| it.as_str().unwrap());
        assert_eq!(of(&objects, kind, name), &policy);
    }
    for (name, kind) in [("podmonitor.yaml", "PodMonitor"), ("prometheusrule.yaml", "PrometheusRule")] {
        assert_eq!(of(&objects, kind, "trimtab")["spec"], file(name)[0]["spec"]);
    }
    assert_eq!(of(&objects, "PodMonitor", "trimtab")["metadata"]["labels"]["release"], "prometheus");
    let dashboard = fs::read_to_string(root("deploy/dashboard.json")).unwrap();
    assert_eq!(of(&objects, "ConfigMap", "trimtab-dashboard")["data"]["trimtab.json"], dashboard);
    let level = file("flowschema.yaml").remove(0);
    assert_eq!(of(&objects, "PriorityLevelConfiguration", "trimtab"), &level);
    let subjects = &of(&objects, "FlowSchema", "trimtab")["spec"]["rules"][0]["subjects"];
    let account = json!([{"kind": "ServiceAccount", "serviceAccount": {"namespace": "shop", "name": "*"}}]);
    assert_eq!(subjects, &account);

    // By default there are the policies, and without them nothing.
    let kinds = |objects: &[Value]| {
        objects.iter().map(|object| object["kind"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let default = kinds(&yaml(template(&root("deploy/helm/trimtab"), "{}", &[])));
    assert_eq!(default.len(), 6, "{default:?}");
    assert_eq!(kinds(&yaml(template(&root("deploy/helm/trimtab"), "policy: {enabled: false}", &[]))), [""; 0]);
}

#[tokio::test]
async fn api_server_takes_what_the_chart_renders() {
    let server = ApiServer::shared().await;
    let namespace = restricted(&server).await;
    let config = server.kubeconfig(ADMIN);
    let text = said(template(&root("deploy/helm/trimtab"), VALUES, &[]));
    let wanted = objects(&text).into_iter().filter(|object| !object["apiVersion"].to_string().contains("coreos"));
    let list: Vec<Value> = wanted
        .map(|mut object| {
            if object["metadata"]["namespace"].is_string() {
                object["metadata"]["namespace"] = namespace.as_str().into();
            }
            object
        })
        .collect();
    assert!(list.len() >= 11, "{}", list.len());
    let list = json!({"apiVersion": "v1", "kind": "List", "items": list}).to_string();
    let mut apply = Command::new(kubectl());
    apply.arg("--kubeconfig").arg(config).args(["apply", "--server-side", "--dry-run=server", "--validate=strict"]);
    apply.args(["--force-conflicts", "--namespace", &namespace, "-f", "-"]);
    said(piped(&mut apply, &list));
}

#[test]
fn values_that_are_wrong_are_refused_by_name() {
    for (values, expected) in [
        ("polciy: {enabled: true}", "polciy"),
        ("profiles: {web: {mountPath: /a}}", "args"),
        ("profiles: {web: {mountPath: a, args: [x]}}", "mountPath"),
        ("profiles: {We_b: {mountPath: /a, args: [x]}}", "We_b"),
        ("profiles: {web: {mountPath: /a, args: [x], target: kill}}", "target"),
        ("profiles: {web: {mountPath: /a, args: [x], mounts: [{path: /t}]}}", "mounts"),
        ("profiles: {web: {mountPath: /a, args: [x], port: '1'}}", "port"),
        ("roles: [{configMaps: [web]}]", "serviceAccount"),
        ("priority: {enabled: true}", "whose requests"),
    ] {
        let output = template(&root("deploy/helm/trimtab"), values, &[]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains(expected), "{values}: {text}");
    }
}

/// The container that `trimtab inject` adds with these flags.
fn injected() -> Value {
    let pod = json!({"kind": "Pod", "spec": {"securityContext": {"runAsUser": 1}, "containers": [{"name": "nginx"}]}});
    let mut inject = trimtab();
    inject.args(["inject", "--mount=configmap/web-templates:/templates", "--"]).args(FLAGS);
    let text = said(piped(&mut inject, &pod.to_string()));
    serde_json::from_str::<Value>(&text).unwrap()["spec"].clone()
}

#[test]
fn library_gives_the_container_the_volumes_and_the_role() {
    let dir = tempfile::tempdir().unwrap();
    let chart = dir.path();
    fs::create_dir_all(chart.join("charts")).unwrap();
    fs::create_dir(chart.join("templates")).unwrap();
    std::os::unix::fs::symlink(root("deploy/helm/trimtab-library"), chart.join("charts/trimtab-library")).unwrap();
    fs::write(chart.join("Chart.yaml"), "{apiVersion: v2, name: own, version: 1.0.0}").unwrap();
    let manifest = r#"kind: Pod
metadata: {name: own}
spec:
  initContainers:
    {{- include "trimtab.container" .Values.trimtab | nindent 4 }}
  volumes:
    {{- include "trimtab.volumes" .Values.trimtab | nindent 4 }}
---
{{ include "trimtab.role" (dict "name" "trimtab" "serviceAccount" "web" "trimtab" .Values.trimtab) }}
"#;
    fs::write(chart.join("templates/all.yaml"), manifest).unwrap();
    let values = json!({"trimtab": {
        "args": FLAGS, "mountPath": "/shared", "configMaps": ["web"], "secrets": ["tls"], "rollout": "web",
        "mounts": [{"name": "trimtab-templates", "mountPath": "/templates", "configMap": "web-templates"}],
    }});
    let text = said(template(chart, &values.to_string(), &[]));
    is_as_it_was("library.yaml", &text);
    let objects = objects(&text);
    let (pod, wanted) = (&of(&objects, "Pod", "own")["spec"], injected());
    assert_eq!(pod["initContainers"], wanted["initContainers"]);
    assert_eq!(pod["volumes"], wanted["volumes"]);
    let rbac = ["rbac", "--service-account=web", "--", "--configmap=web", "--secret=tls", "--output=/shared/conf"];
    let rollout = ["--rollout=web", "--reload-url=http://127.0.0.1:1/", "--digest-key-file=/etc/key"];
    let by_program = yaml(output_of(trimtab().args(rbac).args(rollout)));
    assert_eq!(of(&objects, "Role", "trimtab"), &by_program[0]);
    assert_eq!(of(&objects, "RoleBinding", "trimtab"), &by_program[1]);
}

#[test]
fn kustomize_component_fills_in_the_container() {
    let dir = tempfile::tempdir().unwrap();
    let up = "../".repeat(dir.path().components().count() - 1);
    let component = format!("{up}{}", root("deploy/kustomize").strip_prefix("/").unwrap().display());
    let kustomization = json!({"resources": ["all.yaml"], "components": [component]});
    fs::write(dir.path().join("kustomization.yaml"), kustomization.to_string()).unwrap();
    let workload = |kind: &str, label: &str| {
        json!({
            "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "web", "labels": {"trimtab.dev/sidecar": label}},
            "spec": {"template": {"spec": {
                "initContainers": [{
                    "name": "trimtab", "args": FLAGS, "volumeMounts": [{"name": "trimtab-templates", "mountPath": "/templates", "readOnly": true}],
                }],
                "containers": [{"name": "nginx"}],
                "volumes": [{"name": "trimtab-templates", "configMap": {"name": "web-templates"}}],
            }}},
        })
        .to_string()
    };
    let all = [workload("Deployment", "true"), workload("StatefulSet", "true"), workload("DaemonSet", "false")];
    fs::write(dir.path().join("all.yaml"), all.join("\n---\n")).unwrap();
    let made = said(output_of(Command::new(kubectl()).arg("kustomize").arg(dir.path())));
    is_as_it_was("component.yaml", &made);
    let made = objects(&made);
    // Lists that Kustomize merges by name have another order.
    let sorted = |list: &Value, key: &str| -> BTreeMap<String, Value> {
        list.as_array().unwrap().iter().map(|item| (item[key].as_str().unwrap().to_owned(), item.clone())).collect()
    };
    let wanted = injected();
    for kind in ["Deployment", "StatefulSet"] {
        let spec = &of(&made, kind, "web")["spec"]["template"]["spec"];
        let mut container = spec["initContainers"][0].clone();
        assert_eq!(sorted(&spec["volumes"], "name"), sorted(&wanted["volumes"], "name"));
        let mounts = |container: &mut Value| sorted(&container["volumeMounts"].take(), "name");
        let mut other = wanted["initContainers"][0].clone();
        assert_eq!(mounts(&mut container), mounts(&mut other));
        assert_eq!(container, other, "{kind}");
    }
    assert_eq!(of(&made, "DaemonSet", "web")["spec"]["template"]["spec"]["initContainers"][0]["image"], Value::Null);
}

#[test]
fn kustomize_runs_inject_as_a_function() {
    let dir = tempfile::tempdir().unwrap();
    // Kustomize wants it below.
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_trimtab"), dir.path().join("trimtab")).unwrap();
    let kustomization = json!({"resources": ["web.yaml"], "transformers": ["sidecar.yaml"]});
    fs::write(dir.path().join("kustomization.yaml"), kustomization.to_string()).unwrap();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
        "spec": {"securityContext": {"runAsUser": 1}, "containers": [{"name": "nginx"}]},
    });
    fs::write(dir.path().join("web.yaml"), pod.to_string()).unwrap();
    let function = |container: &str| {
        let container = format!("--container={container}");
        let args = ["inject", &container, "--mount=configmap/web-templates:/templates", "--"];
        let args: Vec<_> = args.into_iter().chain(FLAGS).collect();
        let function = json!({"exec": {"path": "./trimtab", "args": args}}).to_string();
        let annotations = json!({"config.kubernetes.io/function": function});
        let metadata = json!({"name": "sidecar", "annotations": annotations});
        let object = json!({"apiVersion": "trimtab.dev/v1", "kind": "Sidecar", "metadata": metadata});
        fs::write(dir.path().join("sidecar.yaml"), object.to_string()).unwrap();
        let mut kustomize = Command::new(tool("TRIMTAB_TEST_KUSTOMIZE", "kustomize").join("kustomize"));
        output_of(kustomize.args(["build", "--enable-alpha-plugins", "--enable-exec", "."]).current_dir(dir.path()))
    };
    let made = yaml(function("nginx"));
    assert_eq!(of(&made, "Pod", "web")["spec"], injected());
    let refused = function("other");
    assert!(!refused.status.success());
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(text.contains("--container takes one of nginx"), "{text}");
}

/// What is rendered is what is stored there, to be read in a review. The version may change without that.
#[track_caller]
fn is_as_it_was(name: &str, rendered: &str) {
    let path = root("tests/integration/golden").join(name);
    let rendered = rendered.replace(IMAGE, "trimtab:VERSION");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &rendered).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    let hint = "look at the difference (git diff) after UPDATE_DOCS=1 cargo test --test integration -- chart::";
    assert!(golden == rendered, "{} differs from what is rendered now: {hint}\n{rendered}", path.display());
}

#[test]
fn chart_renders_what_it_rendered() {
    // The alerts and the dashboard are compared with those of deploy/.
    let values = VALUES.replace("alerts: {enabled: true}", "").replace("dashboard: {enabled: true}", "");
    is_as_it_was("chart.yaml", &said(template(&root("deploy/helm/trimtab"), &values, &[])));
    is_as_it_was("chart-by-default.yaml", &said(template(&root("deploy/helm/trimtab"), "{}", &[])));
}
