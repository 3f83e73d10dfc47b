//! `source::kube` against a real API server; where a fault has to come at an exact instant, against a socket.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use trimtab::model::object::{Kind, Object, ObjectRef};
use trimtab::source::kube::{self as source, ClientConfig, Clients, Deadlines, InCluster, Scope, Watch};
use trimtab::source::{Seen, Update};

use super::support::apiserver::{ADMIN, APP, ApiServer, NOBODY, WIDE, kubeconfig, token};

/// How long a test waits for what must come. A busy machine is slow; a broken program is for ever.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long a test waits to see that nothing comes.
const QUIET: Duration = Duration::from_millis(300);

const ROOMY: u64 = 1 << 30;

/// A source under test, and what it reports.
struct Source {
    refresh: watch::Sender<u64>,
    updates: mpsc::Receiver<Update>,
    task: JoinHandle<()>,
}

impl Source {
    fn start(clients: &Clients, kind: Kind, scope: Scope) -> Self {
        Self::limited(clients, kind, scope, ROOMY)
    }

    fn limited(clients: &Clients, kind: Kind, scope: Scope, max_size: u64) -> Self {
        let (refresh, refreshed) = watch::channel(0);
        let (sender, updates) = mpsc::channel(16);
        let watch = Watch { source: 7, kind, scope, marks: [].into() };
        let task = tokio::spawn(source::watch(clients.clone(), watch, max_size, None, refreshed, sender));
        Self { refresh, updates, task }
    }

    /// What is reported next but watches that were cut.
    async fn next(&mut self) -> Seen {
        loop {
            match self.any().await {
                Seen::Interrupted => {}
                seen => return seen,
            }
        }
    }

    async fn any(&mut self) -> Seen {
        let update = timeout(PATIENCE, self.updates.recv()).await.expect("nothing seen").expect("the watch ended");
        assert_eq!(update.source, 7);
        update.seen
    }

    /// The next content as a whole, and whatever health is reported before it.
    async fn all(&mut self) -> BTreeMap<String, Arc<Object>> {
        loop {
            match self.next().await {
                Seen::All(all) => return all.into_iter().map(|(id, object)| (id.name.to_string(), object)).collect(),
                Seen::Healthy | Seen::Trouble { .. } => {}
                other => panic!("not the whole: {other:?}"),
            }
        }
    }

    async fn names(&mut self) -> Vec<String> {
        self.all().await.into_keys().collect()
    }

    async fn healthy(&mut self) {
        match self.next().await {
            Seen::Healthy => {}
            other => panic!("not Healthy: {other:?}"),
        }
    }

    async fn changed(&mut self) -> Arc<Object> {
        match self.next().await {
            Seen::Changed(object) => object,
            other => panic!("not a change: {other:?}"),
        }
    }

    async fn gone(&mut self) -> ObjectRef {
        match self.next().await {
            Seen::Gone(id) => id,
            other => panic!("not a deletion: {other:?}"),
        }
    }

    async fn trouble(&mut self) -> String {
        match self.next().await {
            Seen::Trouble { message, .. } => message,
            other => panic!("not a trouble: {other:?}"),
        }
    }

    /// The first trouble with this text; others before it are let pass.
    async fn trouble_with(&mut self, text: &str) -> String {
        loop {
            let message = self.trouble().await;
            if message.contains(text) {
                return message;
            }
        }
    }

    async fn quiet(&mut self) {
        self.quiet_for(QUIET).await;
    }

    /// Nothing is reported but watches that were cut.
    async fn quiet_for(&mut self, time: Duration) {
        let reported = async {
            loop {
                match self.updates.recv().await {
                    Some(Update { seen: Seen::Interrupted, .. }) => {}
                    update => return update,
                }
            }
        };
        if let Ok(update) = timeout(time, reported).await {
            panic!("unexpected: {update:?}");
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn clients(kubeconfig: &Path) -> Clients {
    Clients::new(ClientConfig { kubeconfig: Some(kubeconfig.to_owned()), ..ClientConfig::default() })
}

/// Clients that find out within half a second that a server is silent.
fn hasty(kubeconfig: &Path, quiet: Duration) -> Clients {
    let deadlines = Deadlines { answer: Duration::from_millis(500), quiet, ..Deadlines::default() };
    Clients::new(ClientConfig { kubeconfig: Some(kubeconfig.to_owned()), deadlines, ..ClientConfig::default() })
}

fn named(namespace: &str, name: &str) -> Scope {
    Scope::Named { namespace: namespace.to_owned(), name: name.to_owned() }
}

fn selected(selector: &str, namespace: Option<&str>) -> Scope {
    Scope::Selected { selector: selector.to_owned(), namespace: namespace.map(str::to_owned) }
}

fn meta(name: &str, labels: &[(&str, &str)]) -> ObjectMeta {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    ObjectMeta { name: Some(name.to_owned()), labels: Some(labels), ..ObjectMeta::default() }
}

fn config_map(name: &str, labels: &[(&str, &str)], data: &[(&str, &str)]) -> ConfigMap {
    let data = data.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    ConfigMap { metadata: meta(name, labels), data: Some(data), ..ConfigMap::default() }
}

/// The `ConfigMaps` of a namespace, as the admin edits them.
struct Editor {
    api: Api<ConfigMap>,
}

impl Editor {
    async fn new(server: &ApiServer, namespace: &str) -> Self {
        Self { api: Api::namespaced(server.client(ADMIN).await, namespace) }
    }

    async fn create(&self, object: &ConfigMap) {
        self.api.create(&PostParams::default(), object).await.unwrap();
    }

    async fn set(&self, name: &str, key: &str, value: &str) {
        self.patch(name, &json!({"data": {key: value}})).await;
    }

    async fn patch(&self, name: &str, patch: &serde_json::Value) {
        self.api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }

    async fn delete(&self, name: &str) {
        self.api.delete(name, &DeleteParams::default()).await.unwrap();
    }
}

/// Lets a user list and watch one object, by its name alone.
async fn grant(server: &ApiServer, namespace: &str, user: &str, resource: &str, name: &str) {
    let client = server.client(ADMIN).await;
    let role: Role = serde_json::from_value(json!({
        "metadata": {"name": format!("{user}-{name}")},
        "rules": [{"apiGroups": [""], "resources": [resource], "resourceNames": [name], "verbs": ["list", "watch"]}],
    }))
    .unwrap();
    Api::<Role>::namespaced(client.clone(), namespace).create(&PostParams::default(), &role).await.unwrap();
    let binding: RoleBinding = serde_json::from_value(json!({
        "metadata": {"name": format!("{user}-{name}")},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": format!("{user}-{name}")},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    }))
    .unwrap();
    Api::<RoleBinding>::namespaced(client, namespace).create(&PostParams::default(), &binding).await.unwrap();
}

#[tokio::test]
async fn a_named_object_is_absent_created_changed_deleted_and_created_again() {
    let server = ApiServer::shared().await;
    let namespace = server.namespace().await;
    let editor = Editor::new(&server, &namespace).await;
    let mut source = Source::start(&clients(&server.kubeconfig(ADMIN)), Kind::ConfigMap, named(&namespace, "web"));

    assert!(source.all().await.is_empty(), "it does not exist yet, and that is no trouble");
    source.healthy().await;
    let before = jiff::Timestamp::now().as_second();
    editor.create(&config_map("other", &[], &[("a", "not ours")])).await;
    editor.create(&config_map("web", &[], &[("a", "1")])).await;
    let created = source.changed().await;
    assert_eq!(created.id.to_string(), format!("configmap/{namespace}/web"));
    assert_eq!(created.data["a"].read().unwrap(), "1");
    assert!(!created.secret);
    assert!((before - 1..=before + 60).contains(&created.created), "{} is not about {before}", created.created);
    assert!(!created.resource_version.is_empty());

    editor.patch("web", &json!({"data": {"a": "2"}, "binaryData": {"b": "AP8="}})).await;
    let changed = source.changed().await;
    assert_eq!(changed.data["a"].read().unwrap(), "2");
    assert_eq!(changed.data["b"].read().unwrap()[..], [0x00, 0xff]);
    assert_ne!(changed.resource_version, created.resource_version);

    editor.delete("web").await;
    assert_eq!(source.gone().await, created.id);
    editor.create(&config_map("web", &[], &[("a", "3")])).await;
    assert_eq!(source.changed().await.data["a"].read().unwrap(), "3");
    source.quiet().await;
}

#[tokio::test]
async fn selected_objects_come_and_go_with_their_labels() {
    let server = ApiServer::shared().await;
    let namespace = server.namespace().await;
    let editor = Editor::new(&server, &namespace).await;
    editor.create(&config_map("one", &[("app", "web")], &[("k", "1")])).await;
    editor.create(&config_map("unlabelled", &[], &[("k", "no")])).await;
    let scope = selected("app in (web, site),tier!=test", Some(&namespace));
    let mut source = Source::start(&clients(&server.kubeconfig(ADMIN)), Kind::ConfigMap, scope);

    assert_eq!(source.names().await, ["one"]);
    source.healthy().await;
    editor.patch("unlabelled", &json!({"metadata": {"labels": {"app": "site"}}})).await;
    assert_eq!(&*source.changed().await.id.name, "unlabelled");
    editor.patch("one", &json!({"metadata": {"labels": {"app": null}}})).await;
    assert_eq!(&*source.gone().await.name, "one");
}

#[tokio::test]
async fn all_namespaces_are_watched_with_a_cluster_role() {
    let server = ApiServer::shared().await;
    let (one, two) = (server.namespace().await, server.namespace().await);
    let label = [("wide", one.as_str())];
    Editor::new(&server, &one).await.create(&config_map("same", &label, &[("k", "1")])).await;
    Editor::new(&server, &two).await.create(&config_map("same", &label, &[("k", "2")])).await;
    let scope = selected(&format!("wide={one}"), None);
    let mut source = Source::start(&clients(&server.kubeconfig(WIDE)), Kind::ConfigMap, scope);

    let trouble = source.trouble().await;
    assert!(trouble.starts_with(&format!("configmap/*/[wide={one}]: forbidden (403): wide may not list")), "{trouble}");
    assert!(trouble.contains("a ClusterRole with the rule"), "{trouble}");

    let client = server.client(ADMIN).await;
    let role: ClusterRole = serde_json::from_value(json!({
        "metadata": {"name": "wide"},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list", "watch"]}],
    }))
    .unwrap();
    Api::<ClusterRole>::all(client.clone()).create(&PostParams::default(), &role).await.unwrap();
    let binding: ClusterRoleBinding = serde_json::from_value(json!({
        "metadata": {"name": "wide"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "wide"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": WIDE}],
    }))
    .unwrap();
    Api::<ClusterRoleBinding>::all(client).create(&PostParams::default(), &binding).await.unwrap();

    let Seen::All(all) = source.next().await else { panic!("not the whole") };
    let ids: Vec<_> = all.keys().map(ToString::to_string).collect();
    let mut expected = [format!("configmap/{one}/same"), format!("configmap/{two}/same")];
    expected.sort();
    assert_eq!(ids, expected);
    source.healthy().await;
}

#[tokio::test]
async fn a_secret_arrives_decoded_and_is_never_printed() {
    let server = ApiServer::shared().await;
    let namespace = server.namespace().await;
    let api: Api<Secret> = Api::namespaced(server.client(ADMIN).await, &namespace);
    let bytes: Vec<u8> = (0..=255).collect();
    let data = BTreeMap::from([
        ("key.der".to_owned(), ByteString(bytes.clone())),
        ("empty".to_owned(), ByteString(Vec::new())),
        ("password".to_owned(), ByteString(b"hunter2".to_vec())),
    ]);
    let secret = Secret { metadata: meta("tls", &[]), data: Some(data), ..Secret::default() };
    api.create(&PostParams::default(), &secret).await.unwrap();
    let mut source = Source::start(&clients(&server.kubeconfig(ADMIN)), Kind::Secret, named(&namespace, "tls"));

    let all = source.next().await;
    assert!(!format!("{all:?}").contains("hunter2"));
    let Seen::All(all) = all else { panic!("not the whole: {all:?}") };
    let tls = &all.values().next().unwrap();
    assert!(tls.secret);
    assert_eq!(tls.id.to_string(), format!("secret/{namespace}/tls"));
    assert_eq!(tls.data["key.der"].read().unwrap(), bytes);
    assert_eq!(tls.data["empty"].read().unwrap(), "");
    assert_eq!(tls.data["password"].read().unwrap(), "hunter2");
    source.healthy().await;

    api.patch("tls", &PatchParams::default(), &Patch::Merge(json!({"data": {"password": "AAE=", "empty": null}})))
        .await
        .unwrap();
    let changed = source.changed().await;
    assert_eq!(changed.data["password"].read().unwrap()[..], [0, 1]);
    assert!(!changed.data.contains_key("empty"));
}

#[tokio::test]
async fn a_role_with_the_objects_name_suffices_and_its_absence_is_reported_by_rule() {
    let server = ApiServer::shared().await;
    let namespace = server.namespace().await;
    let editor = Editor::new(&server, &namespace).await;
    editor.create(&config_map("mine", &[], &[("k", "1")])).await;
    editor.create(&config_map("theirs", &[], &[("k", "1")])).await;
    grant(&server, &namespace, APP, "configmaps", "mine").await;
    let clients = clients(&server.kubeconfig(APP));

    let mut mine = Source::start(&clients, Kind::ConfigMap, named(&namespace, "mine"));
    assert_eq!(mine.names().await, ["mine"]);
    mine.healthy().await;
    editor.set("mine", "k", "2").await;
    assert_eq!(mine.changed().await.data["k"].read().unwrap(), "2");

    let mut theirs = Source::start(&clients, Kind::ConfigMap, named(&namespace, "theirs"));
    assert_eq!(
        theirs.trouble().await,
        format!(
            "configmap/{namespace}/theirs: forbidden (403): app may not list configmaps. It needs a Role in namespace \
             {namespace} with the rule {{apiGroups: [\"\"], resources: [\"configmaps\"], resourceNames: \
             [\"theirs\"], verbs: [\"list\", \"watch\"]}}, and a RoleBinding to it"
        )
    );

    // Granted: read again without a word from us, and without asking more often than every ten seconds.
    let asked = Instant::now();
    grant(&server, &namespace, APP, "configmaps", "theirs").await;
    assert_eq!(theirs.names().await, ["theirs"]);
    theirs.healthy().await;
    let recovered = asked.elapsed();
    assert!(recovered < Duration::from_secs(12), "recovered after {recovered:?}");
    assert!(recovered > Duration::from_secs(8), "asked again after {recovered:?}");
    println!("403, granted → read after {recovered:?}");
}

#[tokio::test]
async fn sighup_lists_again_at_once_even_while_forbidden() {
    let server = ApiServer::shared().await;
    let namespace = server.namespace().await;
    Editor::new(&server, &namespace).await.create(&config_map("web", &[], &[("k", "1")])).await;
    let mut source = Source::start(&clients(&server.kubeconfig(APP)), Kind::ConfigMap, named(&namespace, "web"));
    source.trouble_with("forbidden (403)").await;
    grant(&server, &namespace, APP, "configmaps", "web").await;
    let asked = Instant::now();
    // The server's authorizer learns of the role from a watch of its own.
    while timeout(Duration::from_millis(200), source.updates.recv()).await.is_err() {
        source.refresh.send_modify(|count| *count += 1);
        assert!(asked.elapsed() < Duration::from_secs(5), "not listed again");
    }
    source.healthy().await;
    source.refresh.send_modify(|count| *count += 1);
    assert_eq!(source.names().await, ["web"]);
    source.quiet().await;
}

#[tokio::test]
async fn a_rejected_token_is_reported_once_and_read_again_until_it_is_good() {
    let server = ApiServer::shared().await;
    let namespace = server.namespace().await;
    let dir = tempfile::tempdir().unwrap();
    let token_file = dir.path().join("token");
    fs::write(&token_file, "expired").unwrap();
    let path = dir.path().join("kubeconfig");
    fs::write(&path, kubeconfig(server.port(), &server.ca(), &json!({"tokenFile": token_file}))).unwrap();
    let mut source = Source::start(&clients(&path), Kind::ConfigMap, named(&namespace, "web"));

    let trouble = source.trouble().await;
    assert!(trouble.contains("does not accept our credentials (401)"), "{trouble}");
    assert!(!trouble.contains("expired\""), "{trouble}");
    timeout(Duration::from_secs(2), source.updates.recv()).await.expect_err("reported again");
    fs::write(&token_file, token(ADMIN)).unwrap();
    assert!(source.all().await.is_empty());
    source.healthy().await;
}

#[tokio::test]
async fn a_wrong_ca_is_reported_and_a_right_one_taken_up() {
    let server = ApiServer::shared().await;
    let namespace = server.namespace().await;
    let stranger = ApiServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    let user = json!({"token": token(ADMIN)});
    fs::write(&path, kubeconfig(server.port(), &stranger.ca(), &user)).unwrap();
    let mut source = Source::start(&clients(&path), Kind::ConfigMap, named(&namespace, "web"));

    let trouble = source.trouble().await;
    assert!(trouble.contains("no trusted connection to the API server at 127.0.0.1:"), "{trouble}");
    assert!(trouble.contains("certificate"), "{trouble}");
    // Half a file, as a careless writer leaves it for a moment.
    let whole = kubeconfig(server.port(), &server.ca(), &user);
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let trouble = source.trouble_with("not a kubeconfig").await;
    assert!(trouble.contains(&format!("--kubeconfig {}", path.display())), "{trouble}");
    fs::remove_file(&path).unwrap();
    source.trouble_with("cannot read").await;
    fs::write(&path, whole).unwrap();
    assert!(source.all().await.is_empty());
    source.healthy().await;
}

#[tokio::test]
async fn what_happened_while_the_server_was_down_is_seen_deletions_included() {
    let mut server = ApiServer::start().await;
    let namespace = server.namespace().await;
    let editor = Editor::new(&server, &namespace).await;
    for name in ["kept", "edited", "deleted"] {
        editor.create(&config_map(name, &[("app", "web")], &[("k", "1")])).await;
    }
    let clients = clients(&server.kubeconfig(ADMIN));
    let mut source = Source::start(&clients, Kind::ConfigMap, selected("app=web", Some(&namespace)));
    let mut single = Source::start(&clients, Kind::ConfigMap, named(&namespace, "deleted"));
    assert_eq!(source.names().await, ["deleted", "edited", "kept"]);
    source.healthy().await;
    assert_eq!(single.names().await, ["deleted"]);
    single.healthy().await;

    server.kill();
    let trouble = source.trouble().await;
    assert!(trouble.contains("cannot reach the API server at 127.0.0.1:"), "{trouble}");
    assert!(trouble.contains("Connection refused"), "{trouble}");
    let twin = server.twin().await;
    let editor = Editor::new(&twin, &namespace).await;
    editor.set("edited", "k", "2").await;
    editor.delete("deleted").await;
    editor.create(&config_map("created", &[("app", "web")], &[("k", "1")])).await;
    drop(twin);
    source.quiet().await;
    server.start_again().await;

    // Either way is right: a fresh list, or each change.
    let mut names = vec!["deleted".to_owned(), "edited".to_owned(), "kept".to_owned()];
    let mut edited = String::new();
    while names != ["created", "edited", "kept"] || edited != "2" {
        match source.next().await {
            Seen::All(all) => {
                names = all.keys().map(|id| id.name.to_string()).collect();
                for object in all.values().filter(|object| &*object.id.name == "edited") {
                    edited = String::from_utf8(object.data["k"].read().unwrap().to_vec()).unwrap();
                }
            }
            Seen::Changed(object) => {
                names.push(object.id.name.to_string());
                names.sort();
                names.dedup();
                if &*object.id.name == "edited" {
                    edited = String::from_utf8(object.data["k"].read().unwrap().to_vec()).unwrap();
                }
            }
            Seen::Gone(id) => names.retain(|name| **name != *id.name),
            Seen::Trouble { .. } | Seen::Warning(_) | Seen::Healthy | Seen::Interrupted | Seen::Fetched(_) => {}
        }
    }
    loop {
        match single.next().await {
            Seen::All(all) => {
                assert!(all.is_empty());
                break;
            }
            Seen::Gone(_) => break,
            _ => {}
        }
    }
    Editor::new(&server, &namespace).await.set("kept", "k", "9").await;
    loop {
        if let Seen::Changed(object) = source.next().await {
            assert_eq!(object.data["k"].read().unwrap(), "9");
            break;
        }
    }
}

#[tokio::test]
async fn a_server_that_hangs_at_the_start_or_during_a_watch_is_noticed() {
    let server = ApiServer::start().await;
    let namespace = server.namespace().await;
    let editor = Editor::new(&server, &namespace).await;
    editor.create(&config_map("web", &[], &[("k", "1")])).await;
    let clients = hasty(&server.kubeconfig(ADMIN), Duration::from_secs(2));

    server.suspend();
    let mut source = Source::start(&clients, Kind::ConfigMap, named(&namespace, "web"));
    let trouble = source.trouble().await;
    assert!(trouble.contains("the API server does not answer"), "{trouble}");
    server.resume();
    assert_eq!(source.names().await, ["web"]);
    source.healthy().await;

    let hung = Instant::now();
    server.suspend();
    source.trouble_with("does not answer").await;
    assert!(hung.elapsed() >= Duration::from_secs(1));
    server.resume();
    let mut healthy = false;
    editor.set("web", "k", "2").await;
    loop {
        match source.next().await {
            Seen::Changed(object) => {
                assert_eq!(object.data["k"].read().unwrap(), "2");
                break;
            }
            Seen::All(_) => break,
            seen => healthy |= matches!(seen, Seen::Healthy),
        }
    }
    if !healthy {
        source.healthy().await;
    }
}

#[tokio::test]
async fn a_port_that_is_open_before_the_server_serves_is_left_and_asked_again() {
    let mut server = ApiServer::start().await;
    let namespace = server.namespace().await;
    let clients = clients(&server.kubeconfig(ADMIN));
    let mut source = Source::start(&clients, Kind::ConfigMap, named(&namespace, "web"));
    assert!(source.names().await.is_empty());
    source.healthy().await;
    server.kill();
    let port = TcpListener::bind(("127.0.0.1", server.port())).await.unwrap();
    let (mut stream, _) = timeout(PATIENCE, port.accept()).await.expect("nobody comes back").unwrap();
    let mut hello = Vec::new();
    let left = timeout(Deadlines::default().answer / 2, stream.read_to_end(&mut hello)).await;
    left.expect("it waits as if for an answer").unwrap();
    assert_eq!(hello[0], 22, "a TLS handshake, and no request");
    source.trouble_with("does not answer").await;
    drop((port, stream));
    server.start_again().await;
    while !matches!(source.next().await, Seen::Healthy) {}
}

#[tokio::test]
async fn a_socket_that_accepts_and_never_answers_is_noticed() {
    // Never accepted from: the kernel completes the connections, and that is all.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = plain_kubeconfig(dir.path(), listener.local_addr().unwrap().port());
    let mut source = Source::start(&hasty(&path, PATIENCE), Kind::ConfigMap, named("web", "web"));
    let started = Instant::now();
    let trouble = source.trouble().await;
    assert!(trouble.starts_with("configmap/web/web: the API server does not answer"), "{trouble}");
    assert!(started.elapsed() < Duration::from_secs(2));
    timeout(Duration::from_secs(2), source.updates.recv()).await.expect_err("reported again for the same trouble");
}

#[tokio::test]
async fn names_that_do_not_resolve_and_ports_that_refuse_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    let text = fs::read_to_string(plain_kubeconfig(dir.path(), 443)).unwrap();
    fs::write(&path, text.replace("127.0.0.1", "user:hunter2@no-such-host.invalid")).unwrap();
    let mut source = Source::start(&clients(&path), Kind::ConfigMap, named("web", "web"));
    let trouble = source.trouble().await;
    assert!(trouble.contains("cannot reach the API server at no-such-host.invalid:443: "), "{trouble}");
    assert!(trouble.contains("failed to lookup address information"), "{trouble}");
    assert!(!trouble.contains("hunter2"), "{trouble}");
}

/// A kubeconfig for HTTP without TLS on a port of this machine.
fn plain_kubeconfig(dir: &Path, port: u16) -> std::path::PathBuf {
    let path = dir.join("plain.kubeconfig");
    let text = kubeconfig(port, Path::new("unused"), &json!({"token": "any"}));
    let mut text: serde_json::Value = serde_json::from_str(&text).unwrap();
    text["clusters"][0]["cluster"] = json!({"server": format!("http://127.0.0.1:{port}")});
    fs::write(&path, text.to_string()).unwrap();
    path
}

/// A server that gives these answers, one for each request, the last one for ever. Reports what it was asked, and when.
async fn scripted(answers: Vec<String>) -> (u16, mpsc::UnboundedReceiver<(Instant, String)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, requests) = mpsc::unbounded_channel();
    let next = Arc::new(AtomicUsize::new(0));
    let answers = Arc::new(answers);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (asked, next, answers) = (asked.clone(), Arc::clone(&next), Arc::clone(&answers));
            tokio::spawn(async move {
                let mut text = Vec::new();
                let mut buffer = [0; 4096];
                while !text.ends_with(b"\r\n\r\n") {
                    match stream.read(&mut buffer).await {
                        Ok(count) if count > 0 => text.extend_from_slice(&buffer[..count]),
                        _ => return,
                    }
                }
                let text = String::from_utf8(text).unwrap();
                let line = text.lines().next().unwrap().to_owned();
                // The receiver goes when the test ends.
                let _ = asked.send((Instant::now(), line));
                let answer = &answers[next.fetch_add(1, Ordering::Relaxed).min(answers.len() - 1)];
                stream.write_all(answer.as_bytes()).await.unwrap();
            });
        }
    });
    (port, requests)
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}Connection: close\r\n\r\n{body}", body.len())
}

fn list(version: u32) -> String {
    let body = json!({"kind": "ConfigMapList", "metadata": {"resourceVersion": version.to_string()}, "items": [
        {"metadata": {"name": "web", "namespace": "web", "resourceVersion": "3"}, "data": {"k": "1"}},
    ]});
    answer("200 OK", "", &body.to_string())
}

/// A watch that gives these events and ends.
fn events(events: &[serde_json::Value]) -> String {
    answer("200 OK", "", &events.iter().flat_map(|event| [event.to_string(), "\n".to_owned()]).collect::<String>())
}

/// Against a scripted server: what a source reports until `done`, in words, and what it asked for.
async fn reported_by(answers: Vec<String>, done: &str) -> (Vec<String>, Vec<(Instant, String)>) {
    let (port, mut requests) = scripted(answers).await;
    let dir = tempfile::tempdir().unwrap();
    let path = plain_kubeconfig(dir.path(), port);
    let mut source = Source::start(&clients(&path), Kind::ConfigMap, named("web", "web"));
    let mut reported = Vec::new();
    while reported.last().map(String::as_str) != Some(done) {
        let seen = source.next().await;
        assert!(!format!("{seen:?}").contains("hunter2"), "{seen:?}");
        reported.push(match seen {
            Seen::All(all) => format!("all {}", all.len()),
            Seen::Changed(object) | Seen::Fetched(object) => format!("changed {:?}", object.data["k"].read().unwrap()),
            Seen::Gone(id) => format!("gone {id}"),
            Seen::Healthy | Seen::Interrupted => "healthy".to_owned(),
            Seen::Warning(message) => message,
            Seen::Trouble { message, .. } => message.strip_prefix("configmap/web/web: ").unwrap().to_owned(),
        });
    }
    let mut asked = Vec::new();
    while let Ok(request) = requests.try_recv() {
        asked.push(request);
    }
    (reported, asked)
}

/// A `Status` as the API server sends it.
fn status(code: u16, reason: &str) -> serde_json::Value {
    json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": "hunter2"})
}

#[tokio::test]
async fn each_refusal_is_reported_once_and_retried_at_its_pace() {
    let internal = answer("500 Internal Server Error", "", &status(500, "InternalError").to_string());
    let (reported, asked) = reported_by(
        vec![
            answer("429 Too Many Requests", "Retry-After: 2\r\n", "Too many requests, hunter2."),
            internal.clone(),
            internal,
            answer("503 Service Unavailable", "", "<html>hunter2</html>"),
            list(10),
            events(&[]),
        ],
        "healthy",
    )
    .await;
    assert_eq!(
        reported,
        [
            "the API server refused to list (HTTP 429); it is overloaded or throttles us; trying again as it asks",
            "the API server refused to list (HTTP 500 InternalError); trying again",
            "the API server refused to list (HTTP 503); trying again",
            "all 1",
            "healthy",
        ]
    );
    let delays: Vec<_> = asked.windows(2).map(|pair| (pair[1].0 - pair[0].0).as_secs_f64()).collect();
    // What the server asked for, and spread; then backing off from there.
    for (delay, (least, most)) in delays.iter().zip([(2.25, 3.5), (0.5, 2.5), (1.0, 4.5), (2.0, 8.5)]) {
        assert!((least..most).contains(delay), "{delays:?}");
    }
}

#[tokio::test]
async fn a_403_of_a_server_that_has_just_started_is_no_trouble_and_one_that_stays_is() {
    let forbidden = answer("403 Forbidden", "", &status(403, "Forbidden").to_string());
    let bookmark = json!({"type": "BOOKMARK", "object": {"kind": "ConfigMap", "apiVersion": "v1", "metadata":
        {"resourceVersion": "30", "creationTimestamp": null}}});
    let rule = "forbidden (403): this user may not watch configmaps";
    for (refusals, troubles) in [(1, 0), (2, 1)] {
        let mut answers = vec![list(10), events(std::slice::from_ref(&bookmark))];
        answers.extend(std::iter::repeat_n(forbidden.clone(), refusals));
        let web = json!({"metadata": {"name": "web", "namespace": "web", "resourceVersion": "31"}, "data": {"k": "2"}});
        answers.push(events(&[json!({"type": "MODIFIED", "object": web})]));
        let (reported, asked) = reported_by(answers, "changed b\"2\"").await;
        let rules = reported.iter().filter(|report| report.starts_with(rule)).count();
        assert_eq!((rules, asked.len()), (troubles, refusals + 3), "{reported:?}");
        assert_eq!(reported.len(), 3 + 2 * troubles, "{reported:?}");
    }
}

#[tokio::test]
async fn a_lost_position_is_listed_afresh_and_is_no_trouble() {
    let web = |version: &str, value: &str| json!({"metadata": {"name": "web", "namespace": "web", "resourceVersion": version}, "data": {"k": value}});
    let (reported, asked) = reported_by(
        vec![
            list(10),
            events(&[json!({"type": "ERROR", "object": status(410, "Expired")})]),
            list(20),
            events(&[json!({"type": "MODIFIED", "object": web("21", "2")})]),
            // The server ended it for no reason; resumed where it stood, it goes on.
            events(&[json!({"type": "BOOKMARK", "object": {"kind": "ConfigMap", "apiVersion": "v1", "metadata":
                {"resourceVersion": "30", "creationTimestamp": null}}})]),
            answer("410 Gone", "", &status(410, "Expired").to_string()),
            list(40),
            // Again and again: now it is one.
            events(&[json!({"type": "ERROR", "object": status(410, "Expired")})]),
            list(50),
            events(&[json!({"type": "DELETED", "object": web("51", "2")})]),
        ],
        "gone configmap/web/web",
    )
    .await;
    assert_eq!(
        reported,
        [
            "all 1",
            "healthy",
            "all 1",
            "changed b\"2\"",
            "all 1",
            "the API server has forgotten where the watch stood (410); listing again",
            "all 1",
            "healthy",
            "gone configmap/web/web",
        ]
    );
    let positions: Vec<_> = asked
        .iter()
        .filter_map(|(_, line)| line.split_once("resourceVersion="))
        .map(|(_, rest)| rest.split([' ', '&']).next().unwrap())
        .collect();
    assert_eq!(positions, ["10", "20", "21", "30", "40", "50"], "each watch goes on from where the last one stood");
}

#[tokio::test]
async fn what_is_no_api_server_is_reported_without_a_word_of_it() {
    let unusable = |what: &str| format!("the API server sent something unusable: {what}; is a proxy in the way?");
    let items = |items: serde_json::Value| {
        answer("200 OK", "", &json!({"metadata": {"resourceVersion": "1"}, "items": items}).to_string())
    };
    for (answer, expected) in [
        (
            answer("404 Not Found", "", "hunter2"),
            "the API server refused to list (HTTP 404); is this the URL of a Kubernetes API server?".to_owned(),
        ),
        (
            answer("302 Found", "Location: https://hunter2/\r\n", "hunter2"),
            "the API server refused to list (HTTP 302); its own log says why".to_owned(),
        ),
        (answer("200 OK", "", "{\"hunter2\": \"hunter2\""), unusable("unexpected JSON at line 1, column 21")),
        (items(json!(["hunter2"])), unusable("unexpected JSON at line 1, column 19")),
        (answer("200 OK", "", "{\"metadata\": {}}"), unusable("a list without a resourceVersion")),
        (
            items(json!([{"metadata": {"name": "web"}, "binaryData": {"k": "hunter2!"}}])),
            unusable("the value of key \"k\" is not base64"),
        ),
        ("hunter2\r\n\r\n".to_owned(), "the connection broke; trying again".to_owned()),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"hunter2".to_owned(),
            "cannot reach the API server: the connection broke; trying again".to_owned(),
        ),
    ] {
        let (port, _requests) = scripted(vec![answer]).await;
        let dir = tempfile::tempdir().unwrap();
        let path = plain_kubeconfig(dir.path(), port);
        let mut source = Source::start(&clients(&path), Kind::ConfigMap, named("web", "web"));
        let trouble = source.trouble().await;
        assert!(trouble.starts_with("configmap/web/web: "), "{trouble}");
        assert!(trouble.ends_with(&expected), "{trouble}");
    }
}

#[tokio::test]
async fn watches_that_end_as_soon_as_they_begin_do_not_become_a_storm() {
    let (port, mut requests) = scripted(vec![list(10), events(&[])]).await;
    let dir = tempfile::tempdir().unwrap();
    let mut source = Source::start(&clients(&plain_kubeconfig(dir.path(), port)), Kind::ConfigMap, named("web", "web"));
    assert_eq!(source.names().await, ["web"]);
    source.healthy().await;
    let trouble = source.trouble().await;
    assert!(trouble.contains("the watch ends as soon as it begins"), "{trouble}");
    // It stays so: no flapping between healthy and not.
    source.quiet_for(Duration::from_secs(4)).await;
    let mut count = 0;
    while requests.try_recv().is_ok() {
        count += 1;
    }
    assert!(count <= 8, "{count} requests in about five seconds");
}

#[tokio::test]
async fn one_connection_serves_a_list_and_the_watch_after_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let port = listener.local_addr().unwrap().port();
    let path = plain_kubeconfig(dir.path(), port);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace(&format!(":{port}"), &format!(":{port}/k8s/clusters/c-1/"))).unwrap();
    let _source = Source::start(&clients(&path), Kind::ConfigMap, selected("a in (b, c)", Some("web")));
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut asked = Vec::new();
    for _ in 0..2 {
        let mut text = Vec::new();
        while !text.ends_with(b"\r\n\r\n") {
            text.push(timeout(PATIENCE, stream.read_u8()).await.expect("a second connection?").unwrap());
        }
        asked.push(String::from_utf8(text).unwrap().to_lowercase());
        stream.write_all(list(1).replace("Connection: close\r\n", "").as_bytes()).await.unwrap();
    }
    let query = |text: &str| {
        let (_, target) = text.split_once("get /k8s/clusters/c-1/api/v1/namespaces/web/configmaps?").unwrap();
        let mut query: Vec<_> = target.split(' ').next().unwrap().split('&').map(str::to_owned).collect();
        query.retain(|pair| !pair.is_empty());
        query.sort();
        query
    };
    let selector = "labelselector=a+in+%28b%2c+c%29";
    assert_eq!(query(&asked[0]), [selector, "limit=50"], "{asked:?}");
    let watch = ["allowwatchbookmarks=true", selector, "resourceversion=1", "timeoutseconds=290", "watch=true"];
    assert_eq!(query(&asked[1]), watch, "{asked:?}");
    assert!(asked[1].contains("authorization: bearer any\r\n"), "{asked:?}");
}

#[tokio::test]
async fn an_exec_plugin_gives_the_token_and_a_new_one_once_it_is_void() {
    let server = ApiServer::shared().await;
    let namespace = server.namespace().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    let plugin = dir.path().join("plugin");
    let print = |body: &str| {
        let text =
            format!("#!/bin/sh\necho run >>$RUNS\n[ \"$KUBERNETES_EXEC_INFO\" ] && [ $1 = on ] || exit 3\n{body}\n");
        // Renamed into place: a file that is open for writing cannot be executed.
        fs::write(dir.path().join("new"), text).unwrap();
        fs::set_permissions(dir.path().join("new"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(dir.path().join("new"), &plugin).unwrap();
    };
    let runs = dir.path().join("runs");
    let exec = json!({"apiVersion": "client.authentication.k8s.io/v1", "command": "./plugin", "args": ["on"],
        "env": [{"name": "RUNS", "value": runs}], "provideClusterInfo": true});
    fs::write(&path, kubeconfig(server.port(), &server.ca(), &json!({"exec": exec}))).unwrap();

    print("echo hunter2; exit 7");
    let mut source = Source::start(&clients(&path), Kind::ConfigMap, named(&namespace, "web"));
    let trouble = source.trouble().await;
    assert!(trouble.contains("its exec plugin failed: exit status: 7") && !trouble.contains("hunter2"), "{trouble}");
    print("while echo hunter2; do :; done");
    source.trouble_with("its exec plugin prints more than 1048576 bytes").await;
    print("echo '{\"status\": {\"token\": \"hunter2\"}}'");
    let trouble = source.trouble_with("(401)").await;
    assert!(!trouble.contains("hunter2"), "{trouble}");
    let credential = |expires: &str| {
        let status = json!({"token": token(ADMIN), "expirationTimestamp": expires});
        format!("echo '{}'", json!({"kind": "ExecCredential", "status": status}))
    };
    print(&credential("2100-01-01T00:00:00Z"));
    assert!(source.all().await.is_empty());
    source.healthy().await;
    let count = || fs::read_to_string(&runs).unwrap().lines().count();
    let before = count();
    source.refresh.send_modify(|count| *count += 1);
    assert!(source.all().await.is_empty());
    assert_eq!(count(), before, "asked again for what is still good");

    print(&credential("2000-01-01T00:00:00Z"));
    let mut source = Source::start(&clients(&path), Kind::ConfigMap, named(&namespace, "web"));
    assert!(source.all().await.is_empty());
    source.healthy().await;
    assert!(count() >= before + 2, "a list and a watch by a token that has expired");
}

#[tokio::test]
async fn a_kubeconfig_may_act_as_somebody_else() {
    let server = ApiServer::shared().await;
    let namespace = server.namespace().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    let user = json!({"token": token(ADMIN), "as": "somebody", "as-groups": ["web"]});
    fs::write(&path, kubeconfig(server.port(), &server.ca(), &user)).unwrap();
    let mut source = Source::start(&clients(&path), Kind::ConfigMap, named(&namespace, "web"));
    let trouble = source.trouble_with("forbidden (403)").await;
    assert!(trouble.contains("somebody"), "{trouble}");
}

#[tokio::test]
async fn a_pod_is_recognised_by_its_environment_and_its_service_account_token() {
    let server = ApiServer::shared().await;
    let namespace = server.namespace().await;
    let admin = server.client(ADMIN).await;
    let accounts: Api<ServiceAccount> = Api::namespaced(admin, &namespace);
    let account = ServiceAccount { metadata: meta("web", &[]), ..ServiceAccount::default() };
    accounts.create(&PostParams::default(), &account).await.unwrap();
    let request = TokenRequest { spec: Some(TokenRequestSpec::default()), ..TokenRequest::default() };
    let token = accounts.create_token_request("web", &PostParams::default(), &request).await.unwrap();
    let user = format!("system:serviceaccount:{namespace}:web");

    let dir = tempfile::tempdir().unwrap();
    let in_cluster = InCluster {
        host: Some("127.0.0.1".to_owned()),
        port: Some(server.port().to_string()),
        directory: dir.path().to_owned(),
    };
    let config = ClientConfig { in_cluster, ..ClientConfig::default() };
    let mut source = Source::start(&Clients::new(config.clone()), Kind::ConfigMap, named(&namespace, "web"));
    let trouble = source.trouble().await;
    assert!(trouble.contains("automountServiceAccountToken"), "{trouble}");

    fs::copy(server.ca(), dir.path().join("ca.crt")).unwrap();
    fs::write(dir.path().join("namespace"), format!("{namespace}\n")).unwrap();
    fs::write(dir.path().join("token"), token.status.unwrap().token.unwrap()).unwrap();
    assert_eq!(source::default_namespace(&config).unwrap(), namespace);
    let trouble = source.trouble_with("forbidden (403)").await;
    assert!(trouble.contains(&user), "{trouble}");
    grant(&server, &namespace, &user, "configmaps", "web").await;
    assert!(source.all().await.is_empty());
    source.healthy().await;

    // Deleted, its tokens are void: as good as expired.
    accounts.delete("web", &DeleteParams::default()).await.unwrap();
    source.refresh.send_modify(|count| *count += 1);
    let deadline = Instant::now() + Duration::from_secs(30);
    // The server remembers a token's validity for ten seconds.
    while !matches!(timeout(Duration::from_secs(1), source.updates.recv()).await,
        Ok(Some(Update { seen: Seen::Trouble { message, .. }, .. })) if message.contains("(401)"))
    {
        assert!(Instant::now() < deadline, "a void token is still accepted");
        source.refresh.send_modify(|count| *count += 1);
    }
}

#[tokio::test]
async fn the_service_account_of_the_environment_is_the_default() {
    let config = ClientConfig::default();
    assert_eq!(config.in_cluster.host, std::env::var("KUBERNETES_SERVICE_HOST").ok());
    let config = ClientConfig { in_cluster: InCluster { host: None, ..InCluster::default() }, ..config };
    let error = Clients::new(config).check().await.unwrap_err().to_string();
    assert!(error.contains("KUBERNETES_SERVICE_HOST") && error.contains("--kubeconfig"), "{error}");
}

#[tokio::test]
async fn a_kubeconfig_is_checked_without_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let path = plain_kubeconfig(dir.path(), 1);
    let mut config = ClientConfig { kubeconfig: Some(path.clone()), ..ClientConfig::default() };
    Clients::new(config.clone()).check().await.unwrap();
    assert_eq!(source::default_namespace(&config).unwrap(), "here");

    config.context = Some("absent".to_owned());
    for error in [source::default_namespace(&config).unwrap_err(), Clients::new(config).check().await.unwrap_err()] {
        let expected = format!("--kubeconfig {}: it has no context \"absent\"", path.display());
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
    fs::write(&path, "users: [{name: x, user: {token: [hunter2]}}]").unwrap();
    let config = ClientConfig { kubeconfig: Some(path), ..ClientConfig::default() };
    let error = Clients::new(config).check().await.unwrap_err().to_string();
    assert!(error.contains("not a kubeconfig, at line 1, column"), "{error}");
    assert!(!error.contains("hunter2"), "{error}");
    for (user, expected) in [
        (json!({"token": "hunter2\nhunter2"}), "its token holds characters that a header cannot carry"),
        (json!({"token": "x", "as": "hunter2\nhunter2"}), "whom it acts as does not fit into a header"),
        (json!({"client-certificate-data": "eA==", "client-key-data": "eA=="}), "are not a valid pair in PEM"),
    ] {
        let path = dir.path().join("odd");
        let text = kubeconfig(1, Path::new("unused"), &user).replace("certificate-authority", "unused");
        fs::write(&path, text.replace("\"server\"", "\"insecure-skip-tls-verify\": true, \"server\"")).unwrap();
        let config = ClientConfig { kubeconfig: Some(path), ..ClientConfig::default() };
        let error = Clients::new(config).check().await.unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains("hunter2"), "{error}");
    }
    let config = ClientConfig { context: Some("x".to_owned()), ..ClientConfig::default() };
    assert!(Clients::new(config).check().await.unwrap_err().to_string().contains("--context"));
}

#[tokio::test]
async fn a_source_above_the_limit_is_reported_and_what_was_known_stays() {
    let server = ApiServer::shared().await;
    let namespace = server.namespace().await;
    let editor = Editor::new(&server, &namespace).await;
    let filler = "x".repeat(1000);
    for name in ["a", "b", "c"] {
        editor.create(&config_map(name, &[("app", "web")], &[("k", &filler)])).await;
    }
    let scope = selected("app=web", Some(&namespace));
    let mut source = Source::limited(&clients(&server.kubeconfig(ADMIN)), Kind::ConfigMap, scope, 3500);
    assert_eq!(source.names().await, ["a", "b", "c"]);
    source.healthy().await;
    // Replaced, not added: still within the limit.
    editor.set("a", "k", &"y".repeat(1400)).await;
    source.changed().await;
    editor.create(&config_map("d", &[("app", "web")], &[("k", &filler)])).await;
    let trouble = source.trouble().await;
    assert!(trouble.starts_with(&format!("configmap/{namespace}/[app=web]: more than 3500 bytes")), "{trouble}");
    assert!(
        trouble.contains("--max-size") && trouble.contains(&format!("configmap/{namespace}/d held back")),
        "{trouble}"
    );
    source.refresh.send_modify(|count| *count += 1);
    assert_eq!(source.names().await, ["a", "b", "c"]);
    source.quiet().await;
    editor.delete("a").await;
    assert_eq!(&*source.gone().await.name, "a");
    assert_eq!(source.names().await, ["b", "c", "d"]);
    source.healthy().await;
}

#[tokio::test]
async fn what_is_too_large_is_held_back_and_the_others_flow() {
    let server = ApiServer::shared().await;
    let namespace = server.namespace().await;
    let editor = Editor::new(&server, &namespace).await;
    let fat = "x".repeat(5000);
    for (name, value) in [("a-fat", fat.as_str()), ("b-fat", &fat), ("c", "1"), ("d", "1")] {
        editor.create(&config_map(name, &[("app", "web")], &[("k", value)])).await;
    }
    let scope = selected("app=web", Some(&namespace));
    let mut source = Source::limited(&clients(&server.kubeconfig(ADMIN)), Kind::ConfigMap, scope, 4000);
    assert_eq!(source.names().await, ["c", "d"]);
    let trouble = source.trouble().await;
    let both = format!("configmap/{namespace}/a-fat, configmap/{namespace}/b-fat held back");
    assert!(trouble.contains(&both), "{trouble}");
    editor.set("d", "k", "2").await;
    assert_eq!(source.changed().await.data["k"].read().unwrap(), "2");
    // What grows beyond the limit stays as it was, also past a fresh list, and is no reason to hold back what shrinks.
    editor.set("c", "k", &fat).await;
    assert!(source.trouble().await.contains(&format!("configmap/{namespace}/c held back")));
    source.refresh.send_modify(|count| *count += 1);
    editor.set("d", "k", "3").await;
    assert_eq!(source.changed().await.data["k"].read().unwrap(), "3");
    editor.set("a-fat", "k", "thin").await;
    let thin = source.changed().await;
    assert_eq!((&*thin.id.name, thin.data["k"].read().unwrap()), ("a-fat", "thin".into()));
    assert!(!source.trouble().await.contains("a-fat"));
    editor.delete("b-fat").await;
    source.gone().await;
    source.trouble().await;
    editor.set("c", "k", "small").await;
    assert_eq!(source.changed().await.data["k"].read().unwrap(), "small");
    source.healthy().await;
}

#[tokio::test]
async fn a_server_whose_history_went_back_is_listed_anew() {
    let mut server = ApiServer::start().await;
    let namespace = server.namespace().await;
    let editor = Editor::new(&server, &namespace).await;
    for name in ["kept", "edited"] {
        editor.create(&config_map(name, &[("app", "web")], &[("k", "old")])).await;
    }
    server.back_up().await;
    let editor = Editor::new(&server, &namespace).await;
    let mut source =
        Source::start(&clients(&server.kubeconfig(ADMIN)), Kind::ConfigMap, selected("app=web", Some(&namespace)));
    assert_eq!(source.names().await, ["edited", "kept"]);
    source.healthy().await;
    // Far more than the server writes by itself until the test is over.
    for number in 0..2000 {
        editor.set("edited", "k", &number.to_string()).await;
        source.changed().await;
    }
    server.restore();
    server.start_again().await;
    let all = source.all().await;
    assert_eq!(all["edited"].data["k"].read().unwrap(), "old");
    Editor::new(&server, &namespace).await.set("kept", "k", "new").await;
    loop {
        if let Seen::Changed(object) = source.next().await {
            assert_eq!(object.data["k"].read().unwrap(), "new");
            break;
        }
    }
}

#[tokio::test]
async fn an_older_version_or_a_future_that_is_none_is_listed_anew() {
    let web = |version: &str| json!({"metadata": {"name": "web", "namespace": "web", "resourceVersion": version}, "data": {"k": "2"}});
    let mut too_large = status(504, "Timeout");
    too_large["details"] = json!({"causes": [{"reason": "ResourceVersionTooLarge", "message": "hunter2"}]});
    let (reported, _) = reported_by(
        vec![
            list(10),
            events(&[json!({"type": "MODIFIED", "object": web("9")})]),
            list(5),
            events(&[json!({"type": "MODIFIED", "object": web("6")})]),
            answer("504 Gateway Timeout", "", &too_large.to_string()),
            list(2),
            events(&[json!({"type": "DELETED", "object": web("3")})]),
        ],
        "gone configmap/web/web",
    )
    .await;
    assert_eq!(reported, ["all 1", "healthy", "all 1", "changed b\"2\"", "all 1", "gone configmap/web/web"]);
}

/// A load balancer before the server: it cuts each connection after a while. Its port.
pub async fn cutting(server: u16, after: Duration) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                let _ = timeout(after, tokio::io::copy_bidirectional(&mut client, &mut server)).await;
            });
        }
    });
    port
}

#[tokio::test]
async fn a_watch_that_is_cut_again_and_again_is_resumed_at_once_and_counted() {
    let server = ApiServer::shared().await;
    let namespace = server.namespace().await;
    let editor = Editor::new(&server, &namespace).await;
    editor.create(&config_map("web", &[], &[("k", "0")])).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    let port = cutting(server.port(), Duration::from_secs(1)).await;
    fs::write(&path, kubeconfig(port, &server.ca(), &json!({"token": token(ADMIN)}))).unwrap();
    let deadlines = Deadlines { brief: Duration::from_millis(50), ..Deadlines::default() };
    let clients = Clients::new(ClientConfig { kubeconfig: Some(path), deadlines, ..ClientConfig::default() });
    let mut source = Source::start(&clients, Kind::ConfigMap, named(&namespace, "web"));
    assert_eq!(source.names().await, ["web"]);
    source.healthy().await;
    // A wait before each, of six seconds on average, would take far longer.
    let cuts = async {
        for number in 1..=20 {
            assert!(matches!(source.any().await, Seen::Interrupted), "cut {number}");
        }
        editor.set("web", "k", "1").await;
        assert_eq!(source.changed().await.data["k"].read().unwrap(), "1");
    };
    timeout(PATIENCE, cuts).await.expect("it waits before it resumes");
}

/// An HTTP proxy by CONNECT, that reaches the server whatever host it is asked for; and what it is asked for.
async fn proxy(server: u16, answer: &'static str) -> (u16, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, requests) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let asked = asked.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await.unwrap());
                }
                let _ = asked.send(String::from_utf8(head).unwrap());
                client.write_all(format!("HTTP/1.1 {answer}\r\n\r\n").as_bytes()).await.unwrap();
                let mut server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (port, requests)
}

#[tokio::test]
async fn a_proxy_of_the_kubeconfig_is_used_and_one_that_refuses_is_named() {
    let server = ApiServer::shared().await;
    let namespace = server.namespace().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    let text = kubeconfig(server.port(), &server.ca(), &json!({"token": token(ADMIN)}));
    let through = |proxy: u16| {
        let mut text: serde_json::Value = serde_json::from_str(&text).unwrap();
        let cluster = &mut text["clusters"][0]["cluster"];
        cluster["server"] = json!("https://no-such-host.invalid:6443");
        cluster["tls-server-name"] = json!("kubernetes.default.svc");
        cluster["proxy-url"] = json!(format!("http://user:hunter2@127.0.0.1:{proxy}"));
        fs::write(&path, text.to_string()).unwrap();
    };
    let (port, _asked) = proxy(server.port(), "403 Forbidden").await;
    through(port);
    let mut source = Source::start(&clients(&path), Kind::ConfigMap, named(&namespace, "web"));
    let trouble = source.trouble().await;
    let expected = "cannot reach the API server at no-such-host.invalid:6443: the proxy at 127.0.0.1:";
    assert!(trouble.contains(expected) && !trouble.contains("hunter2"), "{trouble}");
    let (port, mut asked) = proxy(server.port(), "200 OK").await;
    through(port);
    assert!(source.all().await.is_empty());
    source.healthy().await;
    let asked = asked.recv().await.unwrap();
    assert!(asked.starts_with("CONNECT no-such-host.invalid:6443 HTTP/1.1\r\n"), "{asked}");
    assert!(asked.to_lowercase().contains("proxy-authorization: basic dxnlcjpodw50zxiy\r\n"), "{asked}");
}

#[tokio::test]
async fn the_watch_ends_with_its_receiver() {
    let server = ApiServer::shared().await;
    let namespace = server.namespace().await;
    for (user, first) in [(ADMIN, "All"), (NOBODY, "Trouble")] {
        let mut source = Source::start(&clients(&server.kubeconfig(user)), Kind::ConfigMap, named(&namespace, "web"));
        let seen = format!("{:?}", source.next().await);
        assert!(seen.starts_with(first), "{seen}");
        source.updates.close();
        while source.updates.recv().await.is_some() {}
        timeout(Duration::from_secs(1), &mut source.task).await.expect("it still runs").unwrap();
    }
}

#[tokio::test]
async fn pages_too_large_to_hold_are_taken_in_smaller_ones() {
    let server = ApiServer::shared().await;
    let namespace = server.namespace().await;
    let editor = Editor::new(&server, &namespace).await;
    // 14 MB, above the limit of a page.
    let filler = "x".repeat(700 << 10);
    for number in 0..20 {
        editor.create(&config_map(&format!("big-{number:02}"), &[("big", "1")], &[("k", &filler)])).await;
    }
    let scope = selected("big=1", Some(&namespace));
    let mut source = Source::start(&clients(&server.kubeconfig(ADMIN)), Kind::ConfigMap, scope);
    let all = source.all().await;
    assert_eq!(all.len(), 20);
    assert!(all.values().all(|object| object.data["k"].read().unwrap() == filler));
    source.healthy().await;
}

/// `VmRSS` of this process, in kB.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// 2,000 objects of 20 kB, and how soon an edit of one arrives. Run alone for the figures:
/// `cargo test --test integration thousands -- --nocapture`.
#[tokio::test]
async fn thousands_of_objects_arrive_as_one() {
    const COUNT: usize = 2000;
    const SIZE: usize = 20_000;
    let server = ApiServer::start().await;
    let namespace = server.namespace().await;
    let editor = Arc::new(Editor::new(&server, &namespace).await);
    let filler: Arc<str> = "x".repeat(SIZE).into();
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let (editor, filler) = (Arc::clone(&editor), Arc::clone(&filler));
            tokio::spawn(async move {
                for number in (writer..COUNT).step_by(8) {
                    editor.create(&config_map(&format!("cm-{number:04}"), &[("many", "1")], &[("k", &filler)])).await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }

    let before = resident();
    let started = Instant::now();
    let scope = selected("many=1", Some(&namespace));
    let mut source = Source::start(&clients(&server.kubeconfig(ADMIN)), Kind::ConfigMap, scope);
    let all = source.all().await;
    let took = started.elapsed();
    assert_eq!(all.len(), COUNT);
    assert_eq!(all.values().map(|object| object.data["k"].len()).sum::<usize>(), COUNT * SIZE);
    source.healthy().await;
    let grown = resident() - before;

    let mut latencies = Vec::new();
    for number in 0..200 {
        let value = number.to_string();
        let asked = Instant::now();
        let edit = {
            let (editor, value) = (Arc::clone(&editor), value.clone());
            tokio::spawn(async move { editor.set("cm-0000", "n", &value).await })
        };
        let changed = source.changed().await;
        latencies.push(asked.elapsed());
        assert_eq!(changed.data["n"].read().unwrap(), value);
        edit.await.unwrap();
    }
    latencies.sort();
    println!(
        "{COUNT} objects of {SIZE} bytes: listed in {took:?}, memory grew by {grown} kB for {} kB of content; edit to \
         update: p50 {:?}, p99 {:?}",
        COUNT * SIZE / 1000,
        latencies[100],
        latencies[198]
    );
    // The content, once, and little more.
    assert!(grown < 2 * (COUNT * SIZE / 1000) as u64, "memory grew by {grown} kB");
}
