//! Events on the Pod, at a real API server: what they say, and the quiet where they may not be created.

use std::fs;
use std::process::{Child, Command, Stdio};

use k8s_openapi::api::core::v1::{ConfigMap, Event as CoreEvent};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::Client;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::support::apiserver::{ADMIN, APP, ApiServer, token};
use super::support::sidecar::{PATIENCE, Sidecar, eventually, in_container};

const CANARY: &str = "canary-of-content";

/// A Pod's worth of things: a namespace with one ConfigMap, and a folder.
struct Place {
    client: Client,
    namespace: String,
    dir: TempDir,
}

impl Place {
    async fn on(server: &ApiServer) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = Self { client: server.client(ADMIN).await, namespace: server.namespace().await, dir };
        let object = json!({"metadata": {"name": "web"}, "data": {"app.conf": "good 1"}});
        let object: ConfigMap = serde_json::from_value(object).unwrap();
        place.configmaps().create(&PostParams::default(), &object).await.unwrap();
        place
    }

    fn configmaps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn edit(&self, content: &str) {
        let patch = json!({"data": {"app.conf": content}});
        self.configmaps().patch("web", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    }

    fn text(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn start(&self, kubeconfig: &std::path::Path, flags: &[&str]) -> Sidecar {
        let source = format!("{}/web", self.namespace);
        let (kubeconfig, output) = (kubeconfig.to_str().unwrap(), self.text("conf"));
        let own = ["--configmap", &source, "--kubeconfig", kubeconfig, "--output", &output, "--debounce", "20ms"];
        let env = [("POD_NAME", "web-0"), ("POD_NAMESPACE", &self.namespace), ("POD_UID", "0000-1111")];
        Sidecar::start_with(&self.dir.path().join("log"), &env, own.iter().chain(flags))
    }

    /// The Events, as the API server has them.
    async fn events(&self) -> Vec<Event> {
        Api::<Event>::namespaced(self.client.clone(), &self.namespace).list(&ListParams::default()).await.unwrap().items
    }

    /// Waits until there is one with this reason and this in its note.
    async fn reported(&self, reason: &str, part: &str) -> Event {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let events = self.events().await;
            let found = events.iter().find(|event| {
                event.reason.as_deref() == Some(reason) && event.note.as_deref().is_some_and(|note| note.contains(part))
            });
            if let Some(event) = found {
                return event.clone();
            }
            assert!(Instant::now() < deadline, "never reported: {reason} with {part:?} in {events:?}");
            sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// Lets a user do this in the namespace.
    async fn grant(&self, user: &str, name: &str, allowed: &Value) {
        let metadata = json!({"name": name, "namespace": self.namespace});
        let role: Role = serde_json::from_value(json!({"metadata": metadata, "rules": [allowed]})).unwrap();
        let binding: RoleBinding = serde_json::from_value(json!({
            "metadata": metadata,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
        }))
        .unwrap();
        Api::namespaced(self.client.clone(), &self.namespace).create(&PostParams::default(), &role).await.unwrap();
        Api::namespaced(self.client.clone(), &self.namespace).create(&PostParams::default(), &binding).await.unwrap();
    }

    async fn grant_reading(&self) {
        let rule = json!({"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list", "watch"]});
        self.grant(APP, "reader", &rule).await;
    }
}

/// How many requests the server has refused for lack of a permission.
async fn denied(server: &ApiServer) -> Option<usize> {
    let request = hyper::Request::get("/metrics").body(Vec::new()).unwrap();
    let text = server.client(ADMIN).await.request_text(request).await.unwrap();
    let name = "authorization_attempts_total{result=\"no-opinion\"} ";
    text.lines().find_map(|line| line.strip_prefix(name)?.parse().ok())
}

#[tokio::test]
async fn reload_rejection_and_rollback_are_reported_on_the_pod_by_the_rule_that_the_readme_gives() {
    let server = ApiServer::shared().await;
    let place = Place::on(&server).await;
    place.grant_reading().await;
    let rule = json!({"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]});
    place.grant(APP, "teller", &rule).await;
    fs::write(
        place.text("app.conf.j2"),
        format!(
            "{{% if 'template' in data['app.conf'] %}}{{{{ {{}}.{} }}}}{{% endif %}}{{{{ data['app.conf'] }}}}",
            "canary"
        ),
    )
    .unwrap();
    let (template, file) = (place.text("app.conf.j2"), place.text("conf/app.conf"));
    let reload = format!("sh -c 'cat {file}; ! grep -q refuse {file}'");
    let flags = [
        ["--template", &template],
        ["--validate", "sh -c 'cat $0/app.conf; ! grep -q invalid $0/app.conf' {dir}"],
        ["--reload-exec", &reload],
        ["--reload-attempts", "1"],
    ];
    let sidecar = place.start(&server.kubeconfig(APP), flags.as_flattened());
    let event = place.reported("ConfigReloaded", "generation 1 is published and confirmed").await;
    let regarding = event.regarding.unwrap();
    assert_eq!(regarding.kind.as_deref(), Some("Pod"));
    assert_eq!(regarding.name.as_deref(), Some("web-0"));
    assert_eq!(event.type_.as_deref(), Some("Normal"));
    assert!(event.note.unwrap().ends_with(" (in-effect)"));

    let edit = format!("(rejected). The newest edit of configmap/{}/web is not in effect. ", place.namespace);
    place.edit(&format!("invalid {CANARY}")).await;
    let event = place.reported("ConfigRejected", "rejected at validate: ").await;
    assert_eq!(event.type_.as_deref(), Some("Warning"));
    let note = event.note.unwrap();
    assert!(note.contains(&edit) && note.ends_with(" Fix the ConfigMap; a newer edit is tried at once."), "{note}");
    place.edit(&format!("template {CANARY}")).await;
    place.reported("ConfigRejected", "rejected at render: template app.conf.j2 ").await;
    place.edit(&format!("refuse {CANARY}")).await;
    place.reported("ConfigRejected", "rejected at reload: ").await;
    let event = place.reported("ConfigRolledBack", "generation 2 is taken back: generation 1,").await;
    assert!(event.note.unwrap().contains(&edit));
    let event = place.reported("ConfigReloaded", "generation 1 is confirmed again").await;
    assert!(event.note.unwrap().contains(&edit));

    // As kubectl describe asks for them.
    let events = Api::<CoreEvent>::namespaced(place.client.clone(), &place.namespace);
    let of_pod = "involvedObject.name=web-0,involvedObject.kind=Pod,involvedObject.uid=0000-1111";
    let of_pod = events.list(&ListParams::default().fields(of_pod)).await.unwrap().items;
    assert_eq!(of_pod.len(), 6, "{of_pod:?}");
    let all = serde_json::to_string(&place.events().await).unwrap();
    assert!(!all.contains("canary"), "{all}");
    let log = sidecar.log();
    assert!(!log.contains("Events on the Pod") && !log.contains("an Event on the Pod"), "{log}");
}

#[tokio::test]
async fn what_is_held_back_is_reported_by_its_name_alone() {
    let server = ApiServer::shared().await;
    let place = Place::on(&server).await;
    let labelled = |name: &str, content: &str| -> ConfigMap {
        let metadata = json!({"name": name, "labels": {"app": "web"}});
        serde_json::from_value(json!({"metadata": metadata, "data": {format!("{name}.json"): content}})).unwrap()
    };
    for name in ["one", "two"] {
        place.configmaps().create(&PostParams::default(), &labelled(name, "[1]")).await.unwrap();
    }
    let flags = ["--selector", "app=web", "--namespace", &place.namespace, "--syntax", "strict"];
    let sidecar = place.start(&server.kubeconfig(ADMIN), &flags);
    place.reported("ConfigReloaded", "generation 1 is published").await;
    let bad = format!("[{CANARY}");
    place.configmaps().replace("two", &PostParams::default(), &labelled("two", &bad)).await.unwrap();
    let name = format!("configmap/{}/two", place.namespace);
    let event = place.reported("ConfigHeldBack", &format!("Held back, while all else is published: {name} ")).await;
    assert_eq!(event.type_.as_deref(), Some("Warning"));
    let note = event.note.unwrap();
    let end = format!(
        "(rejected). The newest version of {name} is not in effect. All other objects are in effect. Fix {name}; "
    );
    assert!(note.contains(&end), "{note}");
    // What follows it is no second one.
    let one = labelled("one", "[2]");
    place.configmaps().replace("one", &PostParams::default(), &one).await.unwrap();
    place.reported("ConfigReloaded", "generation 2 is published").await;
    let events = place.events().await;
    assert_eq!(
        events.iter().filter(|event| event.reason.as_deref() == Some("ConfigHeldBack")).count(),
        1,
        "{events:?}"
    );
    assert!(!serde_json::to_string(&events).unwrap().contains("canary"), "{}", sidecar.log());
}

/// Two processes of which either could be meant. Killed when dropped.
struct Twins([Child; 2]);

impl Drop for Twins {
    fn drop(&mut self) {
        for twin in &mut self.0 {
            let _ = twin.kill();
            let _ = twin.wait();
        }
    }
}

#[tokio::test]
async fn target_that_is_ambiguous_is_reported_once() {
    let server = ApiServer::shared().await;
    let place = Place::on(&server).await;
    let sleeping = || Command::new("sleep").arg("31.4190").stdin(Stdio::null()).spawn().unwrap();
    let _twins = Twins([sleeping(), sleeping()]);
    let flags = [
        "--signal",
        "HUP",
        "--process",
        "sleep",
        "--process-args",
        "31\\.4190",
        "--retry-min",
        "20ms",
        "--retry-max",
        "50ms",
    ];
    let sidecar = place.start(&server.kubeconfig(ADMIN), &flags);
    let event = place.reported("ReloadTargetMissing", "No process to reload: ").await;
    assert_eq!(event.type_.as_deref(), Some("Warning"));
    let note = event.note.unwrap();
    assert!(note.contains("(waiting). Generation 1 is published, and the main process has not taken it. "), "{note}");
    let failed = "trimtab_stage_total{stage=\"reload\",result=\"failed\"}";
    eventually("it was looked for again", || (super::support::stage::metric(&sidecar, failed)? >= 20.0).then_some(()));
    assert_eq!(place.events().await.len(), 1);
}

#[tokio::test]
async fn without_the_permission_one_line_is_logged_and_one_request_made() {
    let server = ApiServer::start().await;
    let place = Place::on(&server).await;
    place.grant_reading().await;
    let sidecar = place.start(&server.kubeconfig(APP), &[]);
    for edit in 2..=8 {
        sidecar.until(&format!("edit {edit}"), |status| status["confirmed"]["sequence"] == edit - 1);
        place.edit(&format!("good {edit}")).await;
    }
    sidecar.until("the last edit", |status| status["confirmed"]["sequence"] == 8);
    eventually("it is reported", || sidecar.log().contains("no Events on the Pod: ").then_some(()));
    let log = sidecar.log();
    assert_eq!(log.matches("Event").count(), 1, "one line: {log}");
    let rule = "app may not create them (403)";
    let remedy = "{apiGroups: [\"events.k8s.io\"], resources: [\"events\"], verbs: [\"create\"]}";
    assert!(log.contains(rule) && log.contains(remedy), "{log}");
    assert_eq!(denied(&server).await, Some(1), "a permission that is missing is not asked for again and again");
    assert!(place.events().await.is_empty());
}

#[tokio::test]
async fn server_that_hangs_holds_nothing_up() {
    let server = ApiServer::start().await;
    let place = Place::on(&server).await;
    let volume = place.text("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(format!("{volume}/more.conf"), "1").unwrap();
    let flags = ["--watch-dir", volume.as_str()];
    let sidecar = place.start(&server.kubeconfig(ADMIN), &flags);
    place.reported("ConfigReloaded", "generation 1").await;
    server.suspend();
    for edit in 2..=60 {
        fs::write(format!("{volume}/more.tmp"), edit.to_string()).unwrap();
        fs::rename(format!("{volume}/more.tmp"), format!("{volume}/more.conf")).unwrap();
        eventually(&format!("edit {edit}"), || {
            let text = fs::read_to_string(place.text("conf/more.conf")).ok()?;
            (text == edit.to_string()).then_some(())
        });
    }
    assert_eq!(sidecar.request("--listen", "GET", "/livez").unwrap().0, 200);
    server.resume();
}

#[tokio::test]
async fn pod_that_reads_files_alone_reports_by_its_service_account() {
    let server = ApiServer::shared().await;
    let place = Place::on(&server).await;
    let (account, volume, output) = (place.text("account"), place.text("volume"), place.text("conf"));
    for dir in [&account, &volume] {
        fs::create_dir(dir).unwrap();
    }
    fs::write(format!("{volume}/app.conf"), "1").unwrap();
    fs::write(format!("{account}/token"), token(ADMIN)).unwrap();
    fs::copy(server.ca(), format!("{account}/ca.crt")).unwrap();
    let port = format!("KUBERNETES_SERVICE_PORT={}", server.port());
    let namespace = format!("POD_NAMESPACE={}", place.namespace);
    let pod = ["env", "KUBERNETES_SERVICE_HOST=127.0.0.1", &port, "POD_NAME=web-0", &namespace, "POD_UID=0000-1111"];
    let mount = in_container(&account);
    let flags = ["--watch-dir", &volume, "--output", &output];
    let _sidecar = Sidecar::start_by(&[&pod[..], &mount].concat(), &place.dir.path().join("log"), flags);
    place.reported("ConfigReloaded", "generation 1 is published and confirmed").await;
}
