//! One replica first, at a real API server: each sidecar a process with a main process of its own.

use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::support::apiserver::{ADMIN, APP, ApiServer};
use super::support::hook::Hook;
use super::support::sidecar::Sidecar;

/// Long enough for a claim, a bake, a spread and its end, with polls of 5 s, on a busy machine.
const PATIENCE: Duration = Duration::from_mins(3);

/// What a replica is, beside its files.
struct Member {
    sidecar: Sidecar,
    hook: Hook,
    file: PathBuf,
}

impl Member {
    fn published(&self) -> String {
        std::fs::read_to_string(&self.file).unwrap_or_default()
    }

    /// Whether its main process was ever notified of this.
    fn took(&self, content: &str) -> bool {
        self.hook.calls().iter().any(|call| call.saw.as_deref() == Some(content))
    }
}

struct Fleet {
    client: Client,
    namespace: String,
    dir: TempDir,
    members: Vec<Member>,
}

impl Fleet {
    async fn start(server: &ApiServer, user: &str, count: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (client, namespace) = (server.client(ADMIN).await, server.namespace().await);
        let object = json!({"metadata": {"name": "web"}, "data": {"app.conf": "good 1"}});
        let object: ConfigMap = serde_json::from_value(object).unwrap();
        Api::namespaced(client.clone(), &namespace).create(&PostParams::default(), &object).await.unwrap();
        let mut fleet = Self { client, namespace, dir, members: Vec::new() };
        for i in 0..count {
            fleet.add(server, user, i);
        }
        fleet
    }

    fn add(&mut self, server: &ApiServer, user: &str, i: usize) {
        let output = self.dir.path().join(format!("conf-{i}"));
        let file = output.join("app.conf");
        // What passes validation, and the main process refuses.
        let hook = Hook::responding(Some(file.clone()), |call| {
            let refused = call.saw.as_ref().is_some_and(|saw| saw.starts_with("bad"));
            (if refused { 500 } else { 200 }, String::new())
        });
        let (source, kubeconfig) = (format!("{}/web", self.namespace), server.kubeconfig(user));
        let (name, uid) = (format!("web-{i}"), format!("0000-{i}"));
        let env = [("POD_NAME", &*name), ("POD_NAMESPACE", &*self.namespace), ("POD_UID", &*uid)];
        let url = hook.url();
        let flags = [
            "--configmap",
            &source,
            "--kubeconfig",
            kubeconfig.to_str().unwrap(),
            "--output",
            output.to_str().unwrap(),
            "--debounce",
            "20ms",
            "--reload-url",
            &url,
            "--reload-attempts",
            "1",
            "--confirm-timeout",
            "1s",
            "--rollout",
            "web",
            "--rollout-bake",
            "1s",
            "--rollout-spread",
            "2s",
        ];
        let log = self.dir.path().join(format!("log-{i}"));
        let sidecar = Sidecar::start_with(&log, &env, flags);
        self.members.push(Member { sidecar, hook, file });
    }

    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn edit(&self, content: &str) {
        let patch = json!({"data": {"app.conf": content}});
        let objects: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        objects.patch("web", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    }

    async fn lease(&self) -> Option<Lease> {
        self.leases().get_opt("trimtab-web").await.unwrap()
    }

    /// The Lease's state, and the change that it speaks of.
    async fn state(&self) -> (String, String) {
        let annotations = self.lease().await.and_then(|lease| lease.metadata.annotations).unwrap_or_default();
        let value = |name: &str| annotations.get(&format!("trimtab.dev/{name}")).cloned().unwrap_or_default();
        (value("state"), value("candidate"))
    }

    /// The replica that holds the Lease, if one does.
    async fn holder(&self) -> Option<usize> {
        let holder = self.lease().await?.spec?.holder_identity?;
        holder.strip_prefix("0000-")?.parse().ok()
    }

    async fn until(&self, what: &str, condition: impl AsyncFn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self).await {
            let have: Vec<_> = self.members.iter().map(Member::published).collect();
            assert!(Instant::now() < deadline, "never: {what}; {:?}, they have {have:?}", self.state().await);
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn all_have(&self, content: &str) -> bool {
        self.members.iter().all(|member| member.published() == content)
    }

    /// Until the Lease says done, for another candidate than before.
    async fn until_done(&self, what: &str, before: &str) {
        self.until(what, async |fleet| {
            let (state, candidate) = fleet.state().await;
            state == "done" && candidate != before
        })
        .await;
    }

    fn took(&self, content: &str) -> usize {
        self.members.iter().filter(|member| member.took(content)).count()
    }
}

#[tokio::test]
async fn a_bad_edit_reaches_one_replica_and_a_good_one_all() {
    let server = ApiServer::shared().await;
    let fleet = Fleet::start(&server, ADMIN, 4).await;
    fleet.until_done("the first one", "").await;
    fleet.until("all started", async |fleet| fleet.all_have("good 1")).await;
    let (_, first) = fleet.state().await;

    // A bad one: one replica rejects it, and it is taken back there.
    fleet.edit("bad 2").await;
    fleet.until("stopped", async |fleet| fleet.state().await.0 == "stopped").await;
    fleet.until("it is back", async |fleet| fleet.all_have("good 1")).await;
    for member in &fleet.members {
        member.sidecar.until("the others wait for people, and say so", |status| {
            let state = &status["verdict"]["state"];
            state == "rejected" || status["verdict"].to_string().contains("trimtab rollout retry web")
        });
    }
    assert_eq!(fleet.took("bad 2"), 1, "one replica took it");

    // A good one reaches all, one of them before the others.
    fleet.edit("good 3").await;
    fleet.until("one bakes", async |fleet| fleet.state().await.0 == "baking").await;
    assert_eq!(fleet.took("good 3"), 1, "one replica goes first");
    fleet.until_done("the good one", &first).await;
    fleet.until("all have it", async |fleet| fleet.all_have("good 3")).await;
    assert_eq!(fleet.took("bad 2"), 1, "nobody took the bad one later");

    // A revert is at once: nobody waits for a Lease.
    let (_, third) = fleet.state().await;
    fleet.edit("good 1").await;
    fleet.until("all are back", async |fleet| fleet.all_have("good 1")).await;
    fleet.until_done("the revert is what the fleet has", &third).await;
    assert_eq!(fleet.state().await, ("done".to_owned(), first));
}

#[tokio::test]
async fn another_replica_takes_over_from_a_holder_that_is_killed_or_ends() {
    let server = ApiServer::shared().await;
    let mut fleet = Fleet::start(&server, ADMIN, 3).await;
    fleet.until_done("the first one", "").await;
    let (_, first) = fleet.state().await;

    fleet.edit("good 2").await;
    fleet.until("claimed", async |fleet| matches!(&*fleet.state().await.0, "claimed" | "baking")).await;
    let holder = fleet.holder().await.unwrap();
    let gone = &mut fleet.members[holder].sidecar;
    gone.signal(Signal::SIGTERM);
    assert_eq!(gone.exit_code(), Some(0), "it gives the Lease back, and ends");
    fleet.members.remove(holder);
    fleet.until("it is given back", async |fleet| fleet.holder().await != Some(holder)).await;
    fleet.until_done("another took over", &first).await;
    fleet.until("all have it", async |fleet| fleet.all_have("good 2")).await;

    let (_, second) = fleet.state().await;
    fleet.edit("good 3").await;
    fleet.until("claimed", async |fleet| matches!(&*fleet.state().await.0, "claimed" | "baking")).await;
    let holder = fleet.holder().await.unwrap();
    let gone =
        fleet.members.iter().position(|member| member.file.to_string_lossy().contains(&format!("conf-{holder}/")));
    let mut gone = fleet.members.remove(gone.unwrap());
    gone.sidecar.kill();
    fleet.until_done("another took over from the killed one", &second).await;
    fleet.until("all have it", async |fleet| fleet.all_have("good 3")).await;
}

#[tokio::test]
async fn without_the_permission_or_with_a_lease_that_is_none_nobody_goes_and_it_is_said() {
    let server = ApiServer::shared().await;
    let fleet = Fleet::start(&server, ADMIN, 2).await;
    fleet.until_done("the first one", "").await;
    fleet.until("all started", async |fleet| fleet.all_have("good 1")).await;

    let hostile = json!({"metadata": {"annotations": {"trimtab.dev/points": "many"}}});
    fleet.leases().patch("trimtab-web", &PatchParams::default(), &Patch::Merge(&hostile)).await.unwrap();
    fleet.edit("good 2").await;
    for member in &fleet.members {
        member.sidecar.until("it says what is wrong with the Lease", |status| {
            let problem = &status["rollout"]["problem"];
            problem.to_string().contains("trimtab.dev/points is not a number")
                && status["verdict"]["state"] == "waiting"
        });
    }
    let kept = fleet.lease().await.unwrap().metadata.annotations.unwrap();
    assert_eq!(kept["trimtab.dev/points"], "many", "nobody overwrites it");
    assert_eq!(fleet.took("good 2"), 0);
    fleet.leases().delete("trimtab-web", &DeleteParams::default()).await.unwrap();
    fleet.until("all have it, once it is deleted", async |fleet| fleet.all_have("good 2")).await;
}

#[tokio::test]
async fn where_the_lease_is_forbidden_nobody_goes_and_the_rule_is_said() {
    let server = ApiServer::shared().await;
    let fleet = Fleet::start(&server, APP, 1).await;
    let metadata = json!({"name": "reader", "namespace": fleet.namespace});
    let reads = json!({"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list", "watch"]});
    let role: Role = serde_json::from_value(json!({"metadata": metadata, "rules": [reads]})).unwrap();
    let binding: RoleBinding = serde_json::from_value(json!({
        "metadata": metadata,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": APP}],
    }))
    .unwrap();
    Api::namespaced(fleet.client.clone(), &fleet.namespace).create(&PostParams::default(), &role).await.unwrap();
    Api::namespaced(fleet.client.clone(), &fleet.namespace).create(&PostParams::default(), &binding).await.unwrap();
    let status = fleet.members[0]
        .sidecar
        .until("it has the rule", |status| status["rollout"]["problem"].to_string().contains("coordination.k8s.io"));
    let problem = status["rollout"]["problem"].as_str().unwrap();
    assert!(problem.contains("(403)") && problem.contains("no replica goes"), "{problem}");
    assert_eq!(status["verdict"]["state"], Value::from("waiting"), "{status}");
}
