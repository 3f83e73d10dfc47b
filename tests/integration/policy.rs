//! `trimtab policy` and `trimtab profile`: the sidecar by an annotation, from a real API server, which has no webhook.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind, TypeMeta};
use serde_json::{Value, json};

use super::examples::restricted;
use super::inject::{piped, said};
use super::support::apiserver::{ADMIN, ApiServer};
use super::support::sidecar::{PATIENCE, output_of, trimtab};

const FLAGS: [&str; 8] = [
    "--mount=configmap/web-templates:/templates",
    "--field=NODE_NAME=spec.nodeName",
    "--",
    "--configmap=web",
    "--template=/templates",
    "--output=/shared/conf",
    "--signal=HUP",
    "--process=nginx",
];

/// A profile of this name, for this container.
pub fn profile(name: &str, container: &str) -> Value {
    let container = format!("--container={container}");
    let output = output_of(trimtab().args(["profile", name, &container]).args(FLAGS));
    serde_saphyr::from_str(&said(output)).unwrap()
}

fn api(client: &Client, namespace: Option<&str>, object: &Value) -> (Api<DynamicObject>, DynamicObject) {
    let object: DynamicObject = serde_json::from_value(object.clone()).unwrap();
    let TypeMeta { api_version, kind } = object.types.clone().unwrap();
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
    let api = match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    (api, object)
}

/// What `kubectl apply` comes to, also where another test has applied it.
pub async fn apply(client: &Client, namespace: Option<&str>, object: &Value) {
    let (api, object) = api(client, namespace, object);
    let name = object.metadata.name.clone().unwrap();
    let params = PatchParams::apply("tests").force();
    api.patch(&name, &params, &Patch::Apply(&object)).await.unwrap_or_else(|error| panic!("{name}: {error}"));
}

/// The Pod as the API server would store it, or why it does not.
async fn admitted(client: &Client, namespace: &str, pod: &Value) -> Result<Value, String> {
    let (api, object) = api(client, Some(namespace), pod);
    let params = PostParams { dry_run: true, ..PostParams::default() };
    let created = api.create(&params, &object).await.map_err(|error| error.to_string())?;
    Ok(serde_json::to_value(created).unwrap())
}

/// Admission learns of policies and profiles a moment after they are stored.
async fn until<T>(
    client: &Client,
    namespace: &str,
    pod: &Value,
    seen: impl Fn(Result<Value, String>) -> Option<T>,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = admitted(client, namespace, pod).await;
        let last = format!("{answer:?}");
        if let Some(seen) = seen(answer) {
            return seen;
        }
        assert!(Instant::now() < deadline, "never happened: {last}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn until_injected(client: &Client, namespace: &str, pod: &Value) -> Value {
    until(client, namespace, pod, |answer| answer.ok().filter(|pod| sidecar(pod).is_some())).await
}

fn sidecar(pod: &Value) -> Option<&Value> {
    pod["spec"]["initContainers"].as_array()?.iter().find(|container| container["name"] == "trimtab")
}

fn pod(annotation: &str) -> Value {
    let context = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "annotations": {"trimtab.dev/inject": annotation}},
        "spec": {
            "automountServiceAccountToken": true,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 101, "fsGroup": 101, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "nginx", "image": "nginx", "securityContext": context}],
        },
    })
}

/// Whether everything that is wanted is there; the server's defaults come on top.
fn has(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => {
            wanted.iter().all(|(key, value)| found.get(key).is_some_and(|found| has(found, value)))
        }
        (Value::Array(found), Value::Array(wanted)) => {
            wanted.iter().all(|wanted| found.iter().any(|found| has(found, wanted)))
        }
        _ => found == wanted,
    }
}

fn policies() -> Vec<Value> {
    serde_saphyr::from_multiple(&said(output_of(trimtab().arg("policy")))).unwrap()
}

/// A server with the policies, and a restricted namespace.
pub async fn with_policies() -> (std::sync::Arc<ApiServer>, Client, String) {
    let server = ApiServer::shared().await;
    let client = server.client(ADMIN).await;
    for object in policies() {
        apply(&client, None, &object).await;
    }
    let namespace = restricted(&server).await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    apply(&client, Some(&namespace), &account).await;
    (server, client, namespace)
}

#[tokio::test]
async fn annotation_gives_the_sidecar_that_inject_gives() {
    let (_server, client, namespace) = with_policies().await;
    apply(&client, Some(&namespace), &profile("web", "nginx")).await;
    apply(&client, Some(&namespace), &profile("other", "nginx")).await;
    let stored = until_injected(&client, &namespace, &pod("web")).await;

    let text = said(piped(trimtab().arg("inject").args(FLAGS), &pod("web").to_string()));
    let by_inject: Value = serde_json::from_str(&text).unwrap();
    let (mut wanted, found) = (sidecar(&by_inject).unwrap().clone(), sidecar(&stored).unwrap());
    // What the Pod says for all of its containers is repeated for this one.
    wanted["securityContext"]["runAsUser"] = 101.into();
    assert!(has(found, &wanted), "{found:#}\nlacks something of\n{wanted:#}");
    assert_eq!(found["args"], wanted["args"]);
    for key in ["volumes", "shareProcessNamespace"] {
        assert!(has(&stored["spec"][key], &by_inject["spec"][key]), "{:#}", stored["spec"]);
    }
    let main = &stored["spec"]["containers"][0];
    assert!(has(&main["volumeMounts"], &by_inject["spec"]["containers"][0]["volumeMounts"]), "{main:#}");
    // It asks the API server, as the token is mounted for it, too.
    assert!(found["volumeMounts"].to_string().contains("serviceaccount"), "{found:#}");
}

#[tokio::test]
async fn sidecar_is_the_users_behind_others_and_never_there_twice() {
    let (_server, client, namespace) = with_policies().await;
    apply(&client, Some(&namespace), &profile("web", "")).await;
    let mut rich = pod("web");
    rich["spec"]["containers"][0]["securityContext"]["runAsUser"] = 7.into();
    rich["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "own", "mountPath": "/own"}]);
    rich["spec"]["volumes"] = json!([{"name": "own", "emptyDir": {}}]);
    rich["spec"]["initContainers"] = json!([rich["spec"]["containers"][0]]);
    rich["spec"]["initContainers"][0]["name"] = "first".into();
    let stored = until_injected(&client, &namespace, &rich).await;
    assert_eq!(stored["spec"]["initContainers"][0]["name"], "trimtab");
    assert_eq!(stored["spec"]["initContainers"][1]["name"], "first");
    assert_eq!(sidecar(&stored).unwrap()["securityContext"]["runAsUser"], 7);
    assert!(has(
        &stored["spec"]["volumes"],
        &json!([{"name": "own"}, {"name": "trimtab"}, {"name": "trimtab-templates"}])
    ));

    // What was injected goes through once more, as with a second policy or by hand.
    let mut again = pod("web");
    again["spec"] = stored["spec"].clone();
    let twice = admitted(&client, &namespace, &again).await.unwrap();
    assert_eq!(twice["spec"]["initContainers"].as_array().unwrap().len(), 2);
    assert_eq!(twice["spec"]["volumes"], stored["spec"]["volumes"]);
}

#[tokio::test]
async fn pod_without_its_profile_is_refused_and_one_that_wants_none_is_left_alone() {
    let (server, client, namespace) = with_policies().await;
    let refusal = until(&client, &namespace, &pod("web"), Result::err).await;
    assert!(refusal.contains("trimtab.dev/inject: web: this Pod would start without its configuration"), "{refusal}");
    assert!(refusal.contains(&format!("no such profile in namespace {namespace}")), "{refusal}");

    // Neither another one's profile, nor a ConfigMap that is none, nor one for another container.
    let elsewhere = restricted(&server).await;
    apply(&client, Some(&elsewhere), &profile("web", "")).await;
    let mut no_profile = profile("web", "");
    no_profile["metadata"].as_object_mut().unwrap().remove("labels");
    apply(&client, Some(&namespace), &no_profile).await;
    apply(&client, Some(&namespace), &profile("strange", "strange")).await;
    apply(&client, Some(&namespace), &profile("right", "")).await;
    until_injected(&client, &namespace, &pod("right")).await;
    for wanted in ["web", "strange"] {
        assert!(admitted(&client, &namespace, &pod(wanted)).await.is_err(), "{wanted}");
    }

    let mut silent = pod("right");
    silent["metadata"].as_object_mut().unwrap().remove("annotations");
    for pod in [pod("false"), silent] {
        assert_eq!(sidecar(&admitted(&client, &namespace, &pod).await.unwrap()), None);
    }
}

/// As a service mesh's: another policy, which puts a native sidecar first.
#[tokio::test]
async fn another_policy_adds_its_proxy_beside_it() {
    let (_server, client, namespace) = with_policies().await;
    apply(&client, Some(&namespace), &profile("web", "nginx")).await;
    let mut policy = policies().remove(0);
    policy["metadata"]["name"] = "proxy".into();
    let container = "{'name': dyn('istio-proxy'), 'image': dyn('proxy'), 'restartPolicy': dyn('Always'), 'securityContext': \
                     dyn({'allowPrivilegeEscalation': dyn(false), 'capabilities': dyn({'drop': dyn(['ALL'])})})}";
    let patch = format!(
        "(has(object.spec.initContainers) ? [] : [JSONPatch{{op: 'add', path: '/spec/initContainers', value: []}}]) + \
         [JSONPatch{{op: 'add', path: '/spec/initContainers/0', value: {container}}}]"
    );
    policy["spec"] = json!({
        "failurePolicy": "Fail",
        "reinvocationPolicy": "IfNeeded",
        "matchConstraints": policy["spec"]["matchConstraints"],
        "matchConditions": [
            {"name": "labelled", "expression": "object.metadata.?labels[?'proxy'].orValue('') == 'yes'"},
            {"name": "once", "expression": "!object.spec.?initContainers.orValue([]).exists(c, c.name == 'istio-proxy')"},
        ],
        "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": patch}}],
    });
    let mut binding = policies().remove(1);
    binding["metadata"]["name"] = "proxy".into();
    binding["spec"] = json!({"policyName": "proxy"});
    apply(&client, None, &policy).await;
    apply(&client, None, &binding).await;
    let mut meshed = pod("web");
    meshed["metadata"]["labels"] = json!({"proxy": "yes"});
    let names = until(&client, &namespace, &meshed, |answer| {
        let pod = answer.ok()?;
        let names = pod["spec"]["initContainers"].as_array()?.iter().map(|container| container["name"].clone());
        Some(names.collect::<Vec<_>>()).filter(|names| names.len() == 2)
    })
    .await;
    assert!(names.contains(&"trimtab".into()) && names.contains(&"istio-proxy".into()), "{names:?}");
}

/// What `kubectl apply -f deploy/policy.yaml` and the chart apply. UPDATE_DEPLOY=1 writes it.
#[test]
fn policies_of_deploy_are_those_of_the_program() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/policy.yaml");
    let text = said(output_of(trimtab().arg("policy")));
    if std::env::var_os("UPDATE_DEPLOY").is_some() {
        fs::write(&path, &text).unwrap();
    }
    assert_eq!(
        fs::read_to_string(&path).unwrap_or_default(),
        text,
        "run: UPDATE_DEPLOY=1 cargo test --test integration policy::"
    );
}

#[test]
fn profiles_refuse_what_they_cannot_give() {
    for (args, code, expected) in [
        (&["profile", "web", "--", "--configmap=web", "--output=/a/b", "--sginal=HUP"][..], 64, "--signal"),
        (&["profile", "We_b", "--", "--configmap=web", "--output=/a/b"], 64, "lower-case"),
        (
            &["profile", "web", "--", "--configmap=web", "--output=/a/b", "--template=/t"],
            65,
            "--mount configmap/NAME:/t",
        ),
        (&["profile", "web", "--", "--configmap=web", "--output=/a/b", "--once"], 65, "for inject"),
        (&["profile", "web", "--", "--configmap=web", "--output=/a/b", "--listen=off"], 65, "for inject"),
        (&["profile", "web", "--", "--configmap=web", "--output=/b"], 65, "/shared/conf"),
        (
            &[
                "profile",
                "web",
                "--mount=configmap/t:/t",
                "--",
                "--configmap=web",
                "--output=/a/b",
                "--template=/t",
                "--env=A",
            ],
            65,
            "--env A",
        ),
    ] {
        let output = output_of(trimtab().args(args));
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
        assert!(text.contains(expected), "{args:?}: {text}");
        assert_eq!(output.stdout, b"", "{args:?}");
    }
}
