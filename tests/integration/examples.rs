//! What is in `examples/` is applied as it stands: to a real API server, in a namespace that enforces the restricted
//! Pod Security Standard. Its sidecars' flags are those of the program, the Role beside them suffices and allows no
//! more, and the templates render from the objects that come with them.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind, TypeMeta};
use serde_json::{Value, json};

use super::support::apiserver::{ADMIN, ApiServer, kubeconfig};
use super::support::moto::Moto;
use super::support::port::free_port;
use super::support::sidecar::{output_of, trimtab};

/// Examples that are run on the tests' node: each folder but those below another example, for which Debian has no
/// package.
fn run() -> BTreeSet<String> {
    let entries = fs::read_dir(examples()).unwrap().map(|entry| entry.unwrap());
    let folders = entries.filter(|entry| entry.file_type().unwrap().is_dir());
    folders.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

/// All examples: those, and the folders below them that are applied by themselves.
fn all() -> BTreeSet<String> {
    let mut all = run();
    for example in run() {
        for entry in fs::read_dir(examples().join(&example)).unwrap() {
            let entry = entry.unwrap();
            if entry.path().join("kustomization.yaml").exists() {
                all.insert(format!("{example}/{}", entry.file_name().to_str().unwrap()));
            }
        }
    }
    assert!(all.len() > run().len());
    all
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

fn text(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

pub fn kubectl() -> PathBuf {
    static KUBECTL: OnceLock<PathBuf> = OnceLock::new();
    let find = || {
        let node = std::env::var_os("TRIMTAB_TEST_NODE");
        Path::new(&node.expect("TRIMTAB_TEST_NODE is not set: run `make test`, or see its lines there")).join("kubectl")
    };
    KUBECTL.get_or_init(find).clone()
}

/// The objects that `kubectl apply -k` would send.
pub fn objects(example: &str) -> Vec<Value> {
    let output = output_of(Command::new(kubectl()).arg("kustomize").arg(examples().join(example)));
    assert!(output.status.success(), "{example}: {}", String::from_utf8_lossy(&output.stderr));
    serde_saphyr::from_multiple(std::str::from_utf8(&output.stdout).unwrap()).unwrap()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

/// The Pod of an example: of its kind, or as the template of a workload.
fn pod_of(objects: &[Value]) -> Value {
    let mut pods = objects.iter().filter_map(|object| match word(&object["kind"]) {
        "Pod" => Some(json!({"metadata": object["metadata"], "spec": object["spec"]})),
        "Deployment" | "StatefulSet" => Some(object["spec"]["template"].clone()),
        _ => None,
    });
    let pod = pods.next().expect("there is a Pod");
    assert!(pods.next().is_none(), "there is one Pod");
    pod
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    list(&pod["spec"]["initContainers"]).iter().chain(list(&pod["spec"]["containers"]))
}

fn sidecar(pod: &Value) -> &Value {
    containers(pod).find(|container| container["name"] == "trimtab").expect("there is a container trimtab")
}

/// The values of a flag of the sidecar.
fn flag<'a>(pod: &'a Value, name: &str) -> Vec<&'a str> {
    let args = list(&sidecar(pod)["args"]).iter().map(word);
    args.filter_map(|arg| arg.strip_prefix("--")?.strip_prefix(name)?.strip_prefix('=')).collect()
}

pub async fn create(client: &Client, namespace: &str, dry_run: bool, object: Value) -> Result<(), String> {
    let object: DynamicObject = serde_json::from_value(object).unwrap();
    let TypeMeta { api_version, kind } = object.types.clone().unwrap();
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
    let objects: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    // As `kubectl apply --validate=strict`: an unknown field is an error.
    let request = kube::core::Request::new(objects.resource_url());
    let body = serde_json::to_vec(&object).unwrap();
    let mut request = request.create(&PostParams { dry_run, ..PostParams::default() }, body).unwrap();
    let uri = format!("{}&fieldValidation=Strict", request.uri());
    *request.uri_mut() = uri.parse().unwrap();
    client.request::<DynamicObject>(request).await.map(drop).map_err(|error| format!("{kind}: {error}"))
}

/// A place where the restricted standard is enforced.
pub async fn restricted(server: &ApiServer) -> String {
    let namespace = server.namespace().await;
    let namespaces: Api<Namespace> = Api::all(server.client(ADMIN).await);
    let label = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    namespaces.patch(&namespace, &PatchParams::default(), &Patch::Merge(&label)).await.unwrap();
    namespace
}

#[tokio::test]
async fn examples_are_accepted_by_a_restricted_namespace() {
    let server = ApiServer::shared().await;
    let client = server.client(ADMIN).await;
    for example in all() {
        let namespace = restricted(&server).await;
        let objects = objects(&example);
        let mut pod = pod_of(&objects);
        for object in objects {
            let created = create(&client, &namespace, false, object).await;
            assert_eq!(created, Ok(()), "{example}");
        }
        // Of a workload's template the standard is enforced on its Pods alone, which nobody makes here.
        pod["apiVersion"] = "v1".into();
        pod["kind"] = "Pod".into();
        pod["metadata"]["name"] = "one-of-them".into();
        let created = create(&client, &namespace, true, pod).await;
        assert_eq!(created, Ok(()), "{example}");
    }
}

/// Beyond what the standard asks for.
#[test]
fn examples_are_native_sidecars_with_limits_and_a_read_only_root() {
    let mut deployments = 0;
    for example in all() {
        let objects = objects(&example);
        let pod = pod_of(&objects);
        let sidecar = sidecar(&pod);
        assert_eq!(word(&sidecar["image"]), concat!("trimtab:", env!("CARGO_PKG_VERSION")), "{example}");
        assert_eq!(sidecar["restartPolicy"], "Always", "{example}");
        assert_eq!(sidecar["startupProbe"]["httpGet"], json!({"path": "/readyz", "port": 9533}), "{example}");
        assert_eq!(sidecar["resources"]["limits"], json!({"memory": "32Mi"}), "{example}");
        for container in containers(&pod) {
            let name = word(&container["name"]);
            assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true, "{example}: {name}");
            let shared = list(&container["volumeMounts"]).iter().find(|mount| mount["name"] == "shared");
            let spoils = shared.is_some_and(|mount| mount["readOnly"] != true);
            assert_eq!(spoils, name == "trimtab", "{example}: {name} mounts the shared volume readOnly");
            if name != "trimtab" {
                assert!(!list(&container["command"]).is_empty(), "{example}: {name} says what it runs");
            }
        }
        let users = containers(&pod).map(|container| {
            let own = &container["securityContext"]["runAsUser"];
            own.as_u64().or(pod["spec"]["securityContext"]["runAsUser"].as_u64()).expect("a numeric user")
        });
        let users: BTreeSet<_> = users.collect();
        // Of the Pod, not of its containers alone: containerd makes no sandbox for a group without a user.
        for id in ["runAsUser", "runAsGroup", "fsGroup"] {
            assert!(pod["spec"]["securityContext"][id].is_u64(), "{example}: {id}");
        }
        let signals = !flag(&pod, "signal").is_empty();
        assert!(!signals || users.len() == 1, "{example}: a signal needs one user");
        assert_eq!(pod["spec"]["shareProcessNamespace"] == true, signals, "{example}: shareProcessNamespace");
        deployments += usize::from(objects.iter().any(|object| object["kind"] == "Deployment"));
    }
    assert!(deployments * 2 >= all().len(), "{deployments} Deployments");
}

/// What a Role allows, as `RESOURCE/NAME`; a name of `*` is all of them.
fn allowed(objects: &[Value]) -> BTreeSet<String> {
    let mut allowed = BTreeSet::new();
    for role in objects.iter().filter(|object| object["kind"] == "Role") {
        for rule in list(&role["rules"]) {
            if rule["apiGroups"] == json!(["events.k8s.io"]) {
                assert_eq!((&rule["resources"], &rule["verbs"]), (&json!(["events"]), &json!(["create"])));
                continue;
            }
            assert_eq!((&rule["apiGroups"], &rule["verbs"]), (&json!([""]), &json!(["list", "watch"])));
            for resource in list(&rule["resources"]) {
                let names =
                    rule["resourceNames"].as_array().map_or(vec!["*"], |names| names.iter().map(word).collect());
                allowed.extend(names.iter().map(|name| format!("{}/{name}", word(resource))));
            }
        }
    }
    allowed
}

#[test]
fn roles_of_the_examples_allow_what_the_flags_name_and_no_more() {
    for example in all() {
        let objects = objects(&example);
        let pod = pod_of(&objects);
        let named = |name, resource: &str| -> Vec<String> {
            flag(&pod, name).into_iter().map(|name| format!("{resource}/{name}")).collect()
        };
        let mut needed = BTreeSet::from_iter(named("configmap", "configmaps"));
        needed.extend(named("secret", "secrets"));
        if !flag(&pod, "selector").is_empty() {
            assert_eq!(flag(&pod, "resource"), Vec::<&str>::new(), "{example}");
            needed.insert("configmaps/*".to_owned());
        }
        assert_eq!(allowed(&objects), needed, "{example}");
        let account = word(&pod["spec"]["serviceAccountName"]);
        let object = |kind: &str, name: &str| {
            objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
        };
        let has_token = pod["spec"]["automountServiceAccountToken"] != false;
        assert_eq!(has_token, !needed.is_empty(), "{example}");
        let account = object("ServiceAccount", account).expect("it comes with its ServiceAccount");
        assert_eq!(account["automountServiceAccountToken"] != false, has_token, "{example}");
    }
}

/// The content of an object of the example.
fn content(objects: &[Value], kind: &str, name: &str) -> Vec<(String, String)> {
    let same = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == name;
    let object = objects.iter().find(same).unwrap_or_else(|| panic!("there is a {kind} {name}"));
    // What kustomize makes of files is base64, and not mounted in any example.
    let data = object[if kind == "Secret" { "stringData" } else { "data" }].as_object().unwrap();
    data.iter().map(|(key, value)| (key.clone(), word(value).to_owned())).collect()
}

/// What examples fetch, and the variables to fetch it by, in the place of those that a cloud adds to the Pod.
fn store(folder: &Path) -> (Moto, Vec<(&'static str, String)>) {
    let moto = Moto::start(Ipv4Addr::LOCALHOST, free_port());
    let [list, bundle, token] = ["blocked.map", "edge.tar.gz", "token"].map(|name| folder.join(name));
    fs::write(list, "203.0.113.0/24 sends spam\n").unwrap();
    let tar = Command::new("tar").arg("-czf").arg(&bundle).arg("-C").arg(folder).arg("blocked.map").status().unwrap();
    assert!(tar.success());
    moto.put("edge.tar.gz", &bundle);
    fs::write(&token, "token").unwrap();
    let environment = vec![
        ("AWS_ROLE_ARN", moto.role("edge", "s3:GetObject")),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap().to_owned()),
        ("AWS_ENDPOINT_URL_STS", moto.url().to_owned()),
        ("AWS_ENDPOINT_URL_S3", moto.url().to_owned()),
    ];
    moto.guard();
    (moto, environment)
}

/// `trimtab render` with the flags of the sidecar, as its service account, on what the API server has: they are
/// accepted together, the Role suffices, and the templates render.
#[tokio::test]
async fn sidecars_of_the_examples_render_by_their_own_permission() {
    let server = ApiServer::shared().await;
    let client = server.client(ADMIN).await;
    for example in all() {
        let namespace = restricted(&server).await;
        let objects = objects(&example);
        let pod = pod_of(&objects);
        for object in &objects {
            create(&client, &namespace, false, object.clone()).await.unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let mut args: Vec<String> = list(&sidecar(&pod)["args"]).iter().map(|arg| word(arg).to_owned()).collect();
        for mount in list(&sidecar(&pod)["volumeMounts"]) {
            let path = word(&mount["mountPath"]);
            let here = dir.path().join(&path[1..]);
            fs::create_dir(&here).unwrap();
            let volume = list(&pod["spec"]["volumes"]).iter().find(|volume| volume["name"] == mount["name"]).unwrap();
            let files = match (volume["configMap"]["name"].as_str(), volume["secret"]["secretName"].as_str()) {
                (Some(name), _) => content(&objects, "ConfigMap", name),
                (_, Some(name)) => content(&objects, "Secret", name),
                (None, None) => Vec::new(),
            };
            for (name, text) in files {
                fs::write(here.join(name), text).unwrap();
            }
            for arg in &mut args {
                if let Some((flag, rest)) = arg.split_once('=').filter(|(_, rest)| rest.starts_with(path)) {
                    *arg = format!("{flag}={}{}", here.display(), &rest[path.len()..]);
                }
            }
        }
        if pod["spec"]["automountServiceAccountToken"] != false {
            let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &namespace);
            let request = TokenRequest { spec: Some(TokenRequestSpec::default()), ..TokenRequest::default() };
            let account = word(&pod["spec"]["serviceAccountName"]);
            let token = accounts.create_token_request(account, &PostParams::default(), &request).await.unwrap();
            let user = json!({"token": token.status.unwrap().token});
            fs::write(dir.path().join("kubeconfig"), kubeconfig(server.port(), &server.ca(), &user)).unwrap();
            args.push(format!("--kubeconfig={}", dir.path().join("kubeconfig").display()));
            args.push(format!("--namespace={namespace}"));
        }
        let args: Vec<_> = args.into_iter().chain(["--once-timeout=10s".to_owned()]).collect();
        let store = (!flag(&pod, "watch-url").is_empty()).then(|| store(dir.path()));
        let environment = store.as_ref().map(|(_, environment)| environment.clone()).unwrap_or_default();
        let render = move || output_of(trimtab().arg("render").args(args).envs(environment));
        let output = tokio::task::spawn_blocking(render).await.unwrap();
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert_eq!(output.status.code(), Some(0), "{example}: {}", said.concat());
        assert!(said[0].contains("0 changed"), "{example}: {}", said[0]);
        assert!(!said[0].contains(" 0 added"), "{example}: {}", said[0]);
    }
}

/// The list of the tests' images has each image of an example that is run, and those that the tests on the node name.
#[test]
fn images_of_the_examples_have_somebody_who_stands_for_them() {
    let list = text("tests/node/images/list");
    let lines = list.lines().filter(|line| !line.starts_with('#'));
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let known: Vec<_> = lines.map(words).map(|words| (words[0].clone(), words[1].clone())).collect();
    let mut used = BTreeSet::new();
    for example in run() {
        let pod = pod_of(&objects(&example));
        used.extend(containers(&pod).map(|container| word(&container["image"]).to_owned()));
    }
    assert!(used.remove(concat!("trimtab:", env!("CARGO_PKG_VERSION"))));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e");
    let tests = fs::read_dir(folder).unwrap().filter_map(|entry| fs::read_to_string(entry.unwrap().path()).ok());
    let tests: String = tests.collect();
    for (image, name) in known {
        assert!(used.remove(&image) || tests.contains(&format!("\"{name}\"")), "nothing runs {image}");
    }
    assert_eq!(used, BTreeSet::new());
}

/// Each has its page, a line in the table of all of them, and, where it is run, a test on the node.
#[test]
fn examples_have_a_page_are_in_the_index_and_run_on_the_node() {
    let index = text("examples/README.md");
    let node = text("tests/e2e/examples.rs");
    // The quick start and the list of 50 MB, which have tests of their own.
    assert!(text("tests/e2e/beyond.rs").contains("examples/blocklist"));
    for example in run().iter().filter(|example| !["nginx", "blocklist"].contains(&example.as_str())) {
        assert!(node.contains(&format!("tested(\"{example}\", ")), "{example} is not run by tests/e2e/examples.rs");
    }
    for example in all() {
        assert!(index.contains(&format!("]({example})")), "{example} is not in examples/README.md");
        let page = example.split('/').next().unwrap();
        let page = text(&format!("examples/{page}/README.md"));
        let apply = format!("kubectl apply -k examples/{example}\n");
        assert!(page.contains(&apply), "{example}: its page does not say how it is applied");
    }
    assert!(text("README.md").contains("](examples)"));
}

/// The quick start of the README and the example are the same objects.
#[test]
fn quick_start_is_the_example_of_nginx() {
    let readme = text("README.md");
    let (_, rest) = readme.split_once("<!-- manifest -->\n```yaml\n").unwrap();
    let quick_start: Vec<Value> = serde_saphyr::from_multiple(rest.split_once("```").unwrap().0).unwrap();
    let mut example = objects("nginx");
    for object in &quick_start {
        let same = |other: &Value| (&other["kind"], &other["metadata"]) == (&object["kind"], &object["metadata"]);
        let place = example.iter().position(same);
        let place = place.unwrap_or_else(|| panic!("the example lacks {} {}", object["kind"], object["metadata"]));
        assert_eq!(&example.remove(place), object);
    }
    assert_eq!(example, Vec::<Value>::new(), "the README lacks them");
}
