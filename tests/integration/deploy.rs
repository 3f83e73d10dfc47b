//! What `deploy/` has for operators: rules that promtool passes and that fire when they should, and a dashboard, both of
//! which ask only for what `/metrics` has; a priority level that an API server takes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::flowcontrol::v1::{FlowSchema, PriorityLevelConfiguration};
use kube::api::{Api, DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind, TypeMeta};
use regex_lite::Regex;
use serde_json::Value;

use super::support::apiserver::{ADMIN, ApiServer};
use super::support::hook::Hook;
use super::support::sidecar::{Sidecar, output_of};
use super::support::stage::Stage;

/// What Prometheus adds to each sample of a Pod's, and what a histogram's buckets have.
const OF_THE_TARGET: [&str; 6] = ["namespace", "pod", "container", "endpoint", "instance", "job"];

fn deploy(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)).unwrap()
}

fn promtool() -> PathBuf {
    let prometheus = std::env::var_os("TRIMTAB_TEST_PROMETHEUS")
        .unwrap_or_else(|| panic!("TRIMTAB_TEST_PROMETHEUS is not set: run `make test`, or see its lines there"));
    Path::new(&prometheus).with_file_name("promtool")
}

/// `spec` of the PrometheusRule: a rule file. JSON is YAML.
fn rules() -> Value {
    let object: Value = serde_saphyr::from_str(&deploy("prometheusrule.yaml")).unwrap();
    assert_eq!(
        (&object["apiVersion"], &object["kind"]),
        (&"monitoring.coreos.com/v1".into(), &"PrometheusRule".into())
    );
    object["spec"].clone()
}

fn alerts() -> Vec<Value> {
    let rules = rules();
    let groups = rules["groups"].as_array().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

#[track_caller]
fn passes(command: &mut Command) {
    let output = output_of(command);
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{said}");
}

#[test]
fn rules_pass_promtool_and_fire_when_they_should() {
    let dir = tempfile::tempdir().unwrap();
    let (rule_file, test_file) = (dir.path().join("alerts.yaml"), dir.path().join("alerts_test.yaml"));
    fs::write(&rule_file, rules().to_string()).unwrap();
    fs::write(&test_file, deploy("alerts_test.yaml")).unwrap();
    passes(Command::new(promtool()).args(["check", "rules"]).arg(&rule_file));
    passes(Command::new(promtool()).args(["test", "rules"]).arg(&test_file));
}

/// A new alert needs a moment at which it fires, one at which it does not, and a chapter for whoever is woken by it.
#[test]
fn each_alert_is_tested_both_ways_and_says_what_to_do() {
    let tests: Value = serde_saphyr::from_str(&deploy("alerts_test.yaml")).unwrap();
    let moments: Vec<_> = tests["tests"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|test| {
            test["alert_rule_test"]
                .as_array()
                .unwrap()
                .iter()
                .map(|at| (text(&at["alertname"]), at["exp_alerts"].as_array().unwrap().is_empty()))
        })
        .collect();
    let runbook = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/alerts.md")).unwrap();
    let alerts = alerts();
    assert_eq!(alerts.len(), 9);
    for alert in &alerts {
        let name = text(&alert["alert"]);
        assert!(moments.contains(&(name, false)), "alerts_test.yaml has no moment at which {name} fires");
        assert!(moments.contains(&(name, true)), "alerts_test.yaml has no moment at which {name} does not fire");
        assert!(runbook.contains(&format!("\n## {name}\n")), "docs/alerts.md has no chapter {name}");
        let row = runbook.lines().find(|line| line.starts_with(&format!("| [{name}](#{})", name.to_lowercase())));
        let row = row.unwrap_or_else(|| panic!("docs/alerts.md has no row {name}"));
        let wait = alert["for"].as_str().unwrap_or("–");
        let end = format!("| {wait} | {} |", text(&alert["labels"]["severity"]));
        assert!(row.ends_with(&end), "{row} says otherwise than {end}");
        for part in ["summary", "description"] {
            let of = if name.starts_with("TrimtabRollout") { "$labels.rollout" } else { "$labels.pod" };
            assert!(text(&alert["annotations"][part]).contains(of), "{name}: which Pod, or which fleet?");
        }
    }
}

/// A sample of `/metrics`: for each name, the values of each label.
type Metrics = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

fn metrics(text: &str) -> Metrics {
    let label = Regex::new(r#"([a-z_]+)="([^"]*)""#).unwrap();
    let mut metrics = Metrics::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let end = line.find(['{', ' ']).unwrap();
        let labels = metrics.entry(line[..end].to_owned()).or_default();
        for found in label.captures_iter(&line[end..]) {
            labels.entry(found[1].to_owned()).or_default().insert(found[2].to_owned());
        }
    }
    metrics
}

/// What an expression asks for, and `/metrics` does not have.
fn strangers(expression: &str, metrics: &Metrics) -> Vec<String> {
    let selector = Regex::new(r"\b((?:trimtab|reloader)_[a-z_]+)\b(?:\{([^}]*)\})?").unwrap();
    let matcher = Regex::new(r#"([a-z_]+)(=~|!~|!=|=)"([^"]*)""#).unwrap();
    let grouping = Regex::new(r"\b(?:by|on|without|ignoring|group_left|group_right) *\(([^)]*)\)").unwrap();
    let any_selector = Regex::new(r"\b([a-zA-Z_:]+)[\{\[]").unwrap();
    let mut strange = Vec::new();
    let mut labels: BTreeSet<_> = OF_THE_TARGET.iter().map(|label| (*label).to_owned()).collect();
    for found in selector.captures_iter(expression) {
        let Some(known) = metrics.get(&found[1]) else {
            strange.push(found[1].to_owned());
            continue;
        };
        labels.extend(known.keys().cloned());
        for found in matcher.captures_iter(found.get(2).map_or("", |labels| labels.as_str())) {
            let (label, exact) = (&found[1], matches!(&found[2], "=" | "!="));
            if OF_THE_TARGET.contains(&label) {
                continue;
            }
            match known.get(label) {
                Some(values) if !exact || values.contains(&found[3]) => (),
                _ => strange.push(found[0].to_owned()),
            }
        }
    }
    for found in grouping.captures_iter(expression) {
        let named = found[1].split(',').map(str::trim).filter(|label| !labels.contains(*label));
        strange.extend(named.map(str::to_owned));
    }
    for found in any_selector.captures_iter(expression) {
        if !metrics.contains_key(&found[1]) {
            strange.push(found[1].to_owned());
        }
    }
    strange
}

/// Every text below this key, wherever it stands.
fn all<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| all(item, key, found)),
        Value::Object(fields) => {
            found.extend(fields.get(key).and_then(Value::as_str));
            fields.values().for_each(|field| all(field, key, found));
        }
        _ => (),
    }
}

fn found<'a>(value: &'a Value, key: &str) -> Vec<&'a str> {
    let mut texts = Vec::new();
    all(value, key, &mut texts);
    texts
}

fn dashboard() -> Value {
    serde_json::from_str(&deploy("dashboard.json")).unwrap()
}

/// What Grafana puts in the place of its variables.
fn plain(expression: &str) -> String {
    let mut plain = expression.to_owned();
    for (variable, value) in [("$__rate_interval", "2m"), ("$__range", "6h"), ("$namespace", ".*"), ("$pod", ".*")] {
        plain = plain.replace(variable, value);
    }
    assert!(!plain.contains('$'), "{plain} has an unknown variable");
    plain
}

/// The metrics of a sidecar that takes part in a rollout, and is a fleet of one.
async fn of_a_rollout() -> String {
    let server = ApiServer::shared().await;
    let (client, namespace) = (server.client(ADMIN).await, server.namespace().await);
    let object = serde_json::json!({"metadata": {"name": "web"}, "data": {"a": "1"}});
    let objects: Api<ConfigMap> = Api::namespaced(client, &namespace);
    objects.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    let (dir, hook) = (tempfile::tempdir().unwrap(), Hook::start(None));
    let text = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (source, output, config) = (format!("{namespace}/web"), text("conf"), server.kubeconfig(ADMIN));
    let env = [("POD_NAME", "web-0"), ("POD_NAMESPACE", &*namespace), ("POD_UID", "0000")];
    let flags = ["--configmap", &source, "--kubeconfig", config.to_str().unwrap(), "--output", &output];
    let url = hook.url();
    let rollout = ["--rollout", "web", "--reload-url", &url];
    let sidecar = Sidecar::start_with(&dir.path().join("log"), &env, flags.iter().chain(&rollout));
    sidecar.until("the first change is the fleet's", |status| status["rollout"]["state"] == "done");
    sidecar.request("--listen", "GET", "/metrics").unwrap().1
}

#[tokio::test]
async fn rules_and_dashboard_ask_only_for_what_the_sidecar_has() {
    let mut stage = Stage::new("1");
    let hook = Hook::start(None);
    let sidecar = stage.start(&["--reload-url", &hook.url()]);
    sidecar.until_idle();
    stage.edit("2");
    sidecar.until("the second generation", |status| status["confirmed"]["sequence"] == 2);
    let (code, served) = sidecar.request("--listen", "GET", "/metrics").unwrap();
    assert_eq!(code, 200);
    let metrics = metrics(&(served + &of_a_rollout().await));

    let alerts = alerts();
    let dashboard = dashboard();
    let expressions: Vec<_> =
        alerts.iter().map(|alert| text(&alert["expr"])).chain(found(&dashboard, "expr")).collect();
    assert!(expressions.len() > 20, "{expressions:?}");
    for expression in expressions {
        assert_eq!(strangers(&plain(expression), &metrics), [""; 0], "in {expression}");
    }
    // What stands in a series' name or a text must be a label of one that it can be filled from.
    let labels: BTreeSet<_> =
        metrics.values().flat_map(BTreeMap::keys).map(String::as_str).chain(OF_THE_TARGET).collect();
    let legend = Regex::new(r"\{\{ *(?:\$labels\.)?([a-z_]+) *\}\}").unwrap();
    let annotations: Vec<_> =
        alerts.iter().flat_map(|alert| alert["annotations"].as_object().unwrap().values()).collect();
    let texts = annotations.into_iter().map(text).chain(found(&dashboard, "legendFormat"));
    for text in texts.chain(found(&dashboard, "titleFormat")) {
        for found in legend.captures_iter(text) {
            assert!(labels.contains(&found[1]), "{} in {text}", &found[1]);
        }
    }
    let queries = found(&dashboard["templating"], "definition");
    assert_eq!(queries.len(), 2);
    for query in queries {
        assert_eq!(strangers(&plain(query), &metrics), [""; 0], "in {query}");
    }
}

/// Prometheus reads each expression of the dashboard: promtool takes them for recording rules.
#[test]
fn expressions_of_the_dashboard_are_promql() {
    let dashboard = dashboard();
    let expressions = found(&dashboard, "expr");
    let rules: Vec<_> = expressions
        .iter()
        .enumerate()
        .map(|(index, expression)| serde_json::json!({"record": format!("panel:{index}"), "expr": plain(expression)}))
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dashboard.yaml");
    fs::write(&file, serde_json::json!({"groups": [{"name": "dashboard", "rules": rules}]}).to_string()).unwrap();
    passes(Command::new(promtool()).args(["check", "rules"]).arg(&file));
}

/// The PodMonitor finds the README's sidecar: by its container's and its port's name.
#[test]
fn pod_monitor_finds_the_sidecar_of_the_readme() {
    let monitor: Value = serde_saphyr::from_str(&deploy("podmonitor.yaml")).unwrap();
    assert_eq!((&monitor["apiVersion"], &monitor["kind"]), (&"monitoring.coreos.com/v1".into(), &"PodMonitor".into()));
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let port = format!("ports: [{{name: {}, containerPort: 9533}}]", text(&endpoint["port"]));
    assert!(readme.contains(&port), "the README's manifest has no {port}");
    let keep = &endpoint["relabelings"][0];
    assert_eq!(
        (text(&keep["sourceLabels"][0]), text(&keep["action"])),
        ("__meta_kubernetes_pod_container_name", "keep")
    );
    assert!(readme.contains(&format!("- name: {}\n", text(&keep["regex"]))));
}

/// The server takes both, and finds the level that the schema names: else it would say so in the schema's status.
#[tokio::test]
async fn priority_level_is_one_that_an_api_server_takes() {
    let server = ApiServer::shared().await;
    let client = server.client(ADMIN).await;
    let documents: Vec<DynamicObject> = serde_saphyr::from_multiple(&deploy("flowschema.yaml")).unwrap();
    assert_eq!(documents.len(), 2);
    for document in documents {
        let TypeMeta { api_version, kind } = document.types.clone().unwrap();
        let (group, version) = api_version.split_once('/').unwrap();
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
        let objects: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let created = objects.create(&PostParams::default(), &document).await;
        assert!(created.is_ok(), "{kind}: {}", created.unwrap_err());
    }
    let (schemas, levels) = (Api::<FlowSchema>::all(client.clone()), Api::<PriorityLevelConfiguration>::all(client));
    let spec = schemas.get("trimtab").await.unwrap().spec.unwrap();
    assert!(levels.get(&spec.priority_level_configuration.name).await.is_ok(), "the schema names no level");
}

/// A tag of an action can be moved to other code; a digest cannot.
#[test]
fn workflows_pin_their_actions_and_grant_nothing_by_default() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(".github/workflows");
    let pinned = Regex::new(r"^[a-z0-9/-]+@[0-9a-f]{40} # v[0-9.]+$").unwrap();
    let mut actions = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        assert!(text.contains("\npermissions: {}\n"), "{text}");
        for (_, action) in text.lines().filter_map(|line| line.split_once("uses: ")) {
            assert!(pinned.is_match(action), "{action}");
            actions += 1;
        }
    }
    assert!(actions >= 4, "{actions}");
}

/// What is no release says so before anything is built.
#[test]
fn release_is_refused_without_its_tag_version_and_notes() {
    let release = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/release");
    let output = output_of(Command::new(release).arg("999.0.0"));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for problem in [
        "no tag v999.0.0",
        "Cargo.toml has another version",
        "Chart.yaml has another version",
        "CHANGELOG.md has nothing",
    ] {
        assert!(said.contains(problem), "{problem}: {said}");
    }
}
