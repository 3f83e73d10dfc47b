//! One replica first, at a real API server: each sidecar a process with a main process of its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::support::apiserver::{ADMIN, APP, ApiServer};
use super::support::hook::{Answer, Hook};
use super::support::sidecar::{Sidecar, output_of, run, trimtab};
use super::verdicts::shows;

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
    /// While it is set, no main process answers.
    held: Arc<AtomicBool>,
    /// Flags of all that start from now on.
    more: Vec<String>,
    source: &'static str,
    bake: &'static str,
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
        let mut fleet = Self {
            held: Arc::default(),
            more: Vec::new(),
            source: "web",
            bake: "1s",
            client,
            namespace,
            dir,
            members: Vec::new(),
        };
        for i in 0..count {
            fleet.add(server, user, i);
        }
        fleet
    }

    fn add(&mut self, server: &ApiServer, user: &str, i: usize) {
        let output = self.dir.path().join(format!("conf-{i}"));
        let file = output.join("app.conf");
        // What passes validation, and the main process refuses.
        let held = self.held.clone();
        let hook = Hook::responding(Some(file.clone()), move |call| {
            while held.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
            let refused = call.saw.as_ref().is_some_and(|saw| saw.starts_with("bad"));
            (if refused { 500 } else { 200 }, String::new())
        });
        let (source, kubeconfig) = (format!("{}/{}", self.namespace, self.source), server.kubeconfig(user));
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
            self.bake,
            "--rollout-spread",
            "2s",
        ];
        let log = self.dir.path().join(format!("log-{i}"));
        let flags = flags.into_iter().map(str::to_owned).chain(self.more.clone());
        let sidecar = Sidecar::start_with(&log, &env, flags);
        self.members.push(Member { sidecar, hook, file });
    }

    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Until the history is of what the Lease calls done.
    async fn until_kept(&self) -> ConfigMap {
        self.until("the history is of it", async |fleet| {
            let kept = fleet.maps().get_opt("trimtab-web").await.unwrap();
            let annotations = kept.and_then(|kept| kept.metadata.annotations).unwrap_or_default();
            annotations.get("trimtab.dev/change") == Some(&fleet.state().await.1)
        })
        .await;
        self.maps().get("trimtab-web").await.unwrap()
    }

    /// A bad edit, until it is stopped and taken back everywhere.
    async fn stop_by(&self, content: &str, good: &str) {
        self.edit(content).await;
        self.until("stopped", async |fleet| fleet.state().await.0 == "stopped").await;
        self.until("it is back", async |fleet| fleet.all_have(good)).await;
    }

    async fn edit(&self, content: &str) {
        let patch = json!({"data": {"app.conf": content}});
        self.maps().patch("web", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
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

    /// Each Pod's Event names the one that rejected it, at which stage and why; so do the Lease's and `/status`, and one
    /// replica counts it.
    async fn everybody_knows_who_stopped_it(&self, content: &str) {
        let first = self.members.iter().position(|member| member.took(content)).unwrap();
        let cause = format!("was stopped by web-{first} at reload: a replica rejected it: ");
        let events: Api<Event> = Api::namespaced(self.client.clone(), &self.namespace);
        let stopped = async |kind: &str, name: &str| {
            let events = events.list(&ListParams::default()).await.unwrap().items;
            events.into_iter().any(|event| {
                let about = event.regarding.unwrap_or_default();
                (about.kind.as_deref(), about.name.as_deref()) == (Some(kind), Some(name))
                    && event.reason.as_deref() == Some("RolloutStopped")
                    && event
                        .note
                        .is_some_and(|note| note.contains(&cause) && note.contains("trimtab rollout retry web"))
            })
        };
        for (i, member) in self.members.iter().enumerate() {
            let name = format!("web-{i}");
            self.until(&format!("an Event on {name}"), async |_| stopped("Pod", &name).await).await;
            let status = member.sidecar.status();
            let rollout = &status["rollout"];
            assert_eq!(
                (&rollout["state"], &rollout["lease"]["by"]),
                (&"stopped".into(), &format!("web-{first}").into())
            );
            assert_eq!(rollout["base"], rollout["published"], "{rollout}");
            let text = member.sidecar.request("--admin", "GET", "/status?format=text").unwrap().1;
            assert!(text.contains(&format!("rollout: web: stopped by web-{first} at reload: ")), "{text}");
            let page = member.sidecar.request("--admin", "GET", "/").unwrap().1;
            assert!(
                page.contains(&format!("<th>Rollout</th><td class=\"bad\">web: stopped by web-{first} at ")),
                "{page}"
            );
            let metrics = member.sidecar.request("--listen", "GET", "/metrics").unwrap().1;
            let count = format!(
                "trimtab_rollout_changes_total{{rollout=\"web\",result=\"stopped\"}} {}\n",
                u8::from(i == first)
            );
            assert!(metrics.contains(&count), "{metrics}");
            assert!(metrics.contains("trimtab_rollout_state{rollout=\"web\",state=\"stopped\"} 1\n"), "{metrics}");
        }
        self.until("an Event on the Lease", async |_| stopped("Lease", "trimtab-web").await).await;
    }

    /// What a person says by `trimtab rollout`: the exit code, and what it prints.
    fn person(&self, server: &ApiServer, action: &str, more: &[&str]) -> (Option<i32>, String) {
        let mut command = trimtab();
        command.args(["rollout", action, "web", "--namespace", &self.namespace, "--kubeconfig"]);
        let output = output_of(command.arg(server.kubeconfig(ADMIN)).args(more));
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
        (output.status.code(), said)
    }

    /// What `trimtab check` finds with these flags behind those of a rollout.
    fn check(&self, server: &ApiServer, user: &str, flags: &[&str]) -> (Option<i32>, String) {
        let hook = Hook::start(None);
        let (url, output) = (hook.url(), self.dir.path().join("checked"));
        let mut command = trimtab();
        command.args(["check", "--kubeconfig", server.kubeconfig(user).to_str().unwrap(), "--rollout", "web"]);
        command.args(["--reload-url", &url, "--output"]).arg(output).args(flags);
        command.envs([("POD_NAME", "web-9"), ("POD_NAMESPACE", &self.namespace), ("POD_UID", "0000-9")]);
        let output = output_of(&mut command);
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    }

    /// How many rollouts the replicas have counted that ended so.
    fn counted(&self, result: &str) -> usize {
        let count = format!("trimtab_rollout_changes_total{{rollout=\"web\",result=\"{result}\"}} ");
        let of = |member: &Member| -> Option<usize> {
            let metrics = member.sidecar.request("--listen", "GET", "/metrics")?.1;
            metrics.lines().find_map(|line| line.strip_prefix(&count)?.parse().ok())
        };
        self.members.iter().filter_map(of).sum()
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
    for member in &fleet.members {
        if member.took("bad 2") {
            let next = "Fix the ConfigMap; or fix the main process, and run `trimtab rollout retry web`.";
            shows("the replica that rejected it", &member.sidecar, "rejected", &["it was rejected: ", "500"], next);
        } else {
            let parts = ["it waits for people: the rollout web was stopped by web-", "500"];
            shows("a replica that waits", &member.sidecar, "waiting", &parts, "Publish another change");
        }
    }
    fleet.everybody_knows_who_stopped_it("bad 2").await;

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
    fleet.until("another took over, and it holds there", async |fleet| fleet.state().await.0 == "baking").await;
    // Nobody waits for the spread: that is for the next one.
    let (code, said) = fleet.person(&server, "promote", &[]);
    assert_eq!(code, Some(0), "{said}");
    fleet.until_done("it is everywhere", &first).await;
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
        let parts = ["is not in effect yet, it waits for the rollout web (", "trimtab.dev/points is not a number"];
        shows("a Lease that is none", &member.sidecar, "waiting", &parts, "");
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
    let source = format!("{}/web", fleet.namespace);
    let (code, said) = fleet.check(&server, APP, &["--configmap", &source]);
    assert_eq!(code, Some(77), "{said}");
    for part in [
        "permission: --rollout web\n  this user may not create what the fleet shares",
        "this user may not get and update what the fleet shares",
        "- apiGroups: [\"coordination.k8s.io\"]\n      resources: [\"leases\"]\n      resourceNames: [\"trimtab-web\"]\n      verbs: [\"get\", \"update\"]",
        "resources: [\"configmaps\"]\n      resourceNames: [\"trimtab-web\"]",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains("secrets"), "{said}");
}

/// A person sees who goes first, stops it, lets it be tried again and lets it go to all.
#[tokio::test]
async fn people_stop_a_change_let_it_be_tried_again_and_promote_it() {
    let server = ApiServer::shared().await;
    let mut fleet = Fleet::start(&server, ADMIN, 0).await;
    let (code, said) = fleet.person(&server, "status", &[]);
    assert!(code == Some(69) && said.contains("no rollout web in namespace"), "{said}");
    fleet.bake = "10m";
    for i in 0..3 {
        fleet.add(&server, ADMIN, i);
    }
    fleet.until_done("the first one", "").await;
    fleet.until("all started", async |fleet| fleet.all_have("good 1")).await;
    assert_eq!(fleet.person(&server, "status", &["--wait"]).0, Some(0));
    assert!(fleet.person(&server, "stop", &[]).1.contains("nothing to do"));

    fleet.edit("good 2").await;
    fleet.until("one bakes", async |fleet| fleet.state().await.0 == "baking").await;
    let holder = fleet.holder().await.unwrap();
    let (code, said) = fleet.person(&server, "status", &[]);
    assert!(code == Some(69) && said.contains(&format!("first replica: web-{holder}")), "{said}");

    assert_eq!(fleet.person(&server, "stop", &[]).0, Some(0));
    fleet.until("it is back", async |fleet| fleet.all_have("good 1")).await;
    let (code, said) = fleet.person(&server, "status", &["--wait"]);
    assert_eq!(code, Some(65), "{said}");
    assert!(
        said.contains("is stopped") && said.contains("by: admin") && said.contains("trimtab rollout stop"),
        "{said}"
    );
    for member in &fleet.members {
        let status = member.sidecar.until("it says who did", |status| status["rollout"]["state"] == "stopped");
        assert_eq!(status["rollout"]["lease"]["by"], "admin", "{status}");
    }
    fleet.until("one replica counts it", async |fleet| fleet.counted("stopped") == 1).await;
    assert_eq!(fleet.took("good 2"), 1);

    // Each replica asks at its pace in quarantine.
    assert_eq!(fleet.person(&server, "retry", &[]).0, Some(0));
    fleet.until("one tries again", async |fleet| fleet.state().await.0 == "baking").await;
    assert_eq!(fleet.person(&server, "promote", &[]).0, Some(0));
    fleet.until("all have it", async |fleet| fleet.all_have("good 2")).await;
    assert_eq!(fleet.person(&server, "status", &["--wait"]).0, Some(0));
    fleet.until("one replica counts it", async |fleet| fleet.counted("done") == 1).await;
    assert_eq!(fleet.counted("stopped"), 1);
}

/// The API server is killed while one replica goes first, while it bakes and while the others follow. What is published stays,
/// nobody goes meanwhile, and each main process is notified once.
#[tokio::test]
async fn a_rollout_outlives_its_api_server_in_each_state() {
    let mut server = ApiServer::start().await;
    let twin = server.twin().await;
    let mut fleet = Fleet::start(&server, ADMIN, 0).await;
    fleet.client = twin.client(ADMIN).await;
    fleet.bake = "5s";
    for i in 0..3 {
        fleet.add(&server, ADMIN, i);
    }
    fleet.until_done("the first one", "").await;
    fleet.until("all started", async |fleet| fleet.all_have("good 1")).await;
    let (_, first) = fleet.state().await;
    fleet.held.store(true, Ordering::SeqCst);
    fleet.edit("good 2").await;
    for state in ["claimed", "baking", "spreading"] {
        fleet.until(state, async |fleet| fleet.state().await.0 == state && fleet.took("good 2") > 0).await;
        assert!(state == "spreading" || fleet.took("good 2") == 1, "one goes first");
        let holder = fleet.holder().await.unwrap();
        server.kill();
        fleet.held.store(false, Ordering::SeqCst);
        fleet.members[holder].sidecar.until("it says that it cannot go on", |status| {
            status["rollout"]["problem"].to_string().contains("until then no replica goes")
        });
        assert_eq!(fleet.state().await.0, state);
        server.start_again().await;
    }
    fleet.until_done("it goes on where it was", &first).await;
    fleet.until("all have it", async |fleet| fleet.all_have("good 2")).await;
    for member in &fleet.members {
        let calls = member.hook.calls();
        let times = calls.iter().filter(|call| call.saw.as_deref() == Some("good 2")).count();
        assert_eq!(times, 1, "{calls:?}");
    }
    assert_eq!(fleet.counted("stopped"), 0);
}

#[tokio::test]
async fn a_replica_that_starts_while_a_change_is_stopped_starts_from_the_history() {
    let server = ApiServer::shared().await;
    let mut fleet = Fleet::start(&server, ADMIN, 2).await;
    fleet.until_done("the first one", "").await;
    let (_, first) = fleet.state().await;
    fleet.edit("good 2").await;
    fleet.until_done("the second one", &first).await;
    let kept = fleet.until_kept().await;
    let owner = &kept.metadata.owner_references.unwrap()[0];
    assert_eq!((&*owner.kind, &*owner.name), ("Lease", "trimtab-web"));
    fleet.stop_by("bad 3", "good 2").await;

    fleet.add(&server, ADMIN, 2);
    fleet.until("the new one starts from the history", async |fleet| fleet.members[2].published() == "good 2").await;
    fleet.members[2].sidecar.until("it waits for people, and is settled on that", |status| {
        status["verdict"].to_string().contains("trimtab rollout retry web") && status["phase"] != "reloading"
    });
    assert!(fleet.members[2].took("good 2"), "its main process was notified of it");
    assert_eq!(fleet.took("bad 3"), 1, "the new one did not take it");

    // Nor after a restart of its container.
    fleet.members[2].sidecar.kill();
    fleet.members[2].sidecar.start_again();
    fleet.members[2].sidecar.until("it has read its sources", |status| status["verdict"]["state"] == "waiting");
    assert_eq!((&*fleet.members[2].published(), fleet.took("bad 3")), ("good 2", 1));

    // It takes part in what follows.
    let (_, stopped) = fleet.state().await;
    fleet.edit("good 4").await;
    fleet.until_done("the good one", &stopped).await;
    fleet.until("all have it", async |fleet| fleet.all_have("good 4")).await;
}

#[tokio::test]
async fn a_history_that_was_changed_or_is_somebody_elses_is_refused_and_not_overwritten() {
    let server = ApiServer::shared().await;
    let mut fleet = Fleet::start(&server, ADMIN, 1).await;
    fleet.until_done("the first one", "").await;
    fleet.until_kept().await;
    let (_, first) = fleet.state().await;
    fleet.stop_by("bad 2", "good 1").await;

    let kept = fleet.maps().get("trimtab-web").await.unwrap().data.unwrap();
    let hostile = kept["objects.json"].replace("good 1", "evil 1");
    assert!(hostile.contains("evil 1"));
    let patch = json!({"data": {"objects.json": hostile}});
    fleet.maps().patch("trimtab-web", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    fleet.add(&server, ADMIN, 1);
    let new = &fleet.members[1];
    let says = |status: &Value, what: &str| status["rollout"]["history"].to_string().contains(what);
    new.sidecar.until("it says that it was changed", |status| says(status, "it was changed since it was written"));
    assert_eq!((new.published(), new.took("evil 1")), (String::new(), false));

    // Somebody else's: neither is it read nor overwritten.
    let patch = json!({"metadata": {"annotations": {"trimtab.dev/change": null}}, "data": {"objects.json": "mine"}});
    fleet.maps().patch("trimtab-web", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    fleet.edit("good 3").await;
    fleet.until_done("the good one", &first).await;
    fleet.until("all have it", async |fleet| fleet.all_have("good 3")).await;
    let holder = fleet.holder().await.unwrap();
    let writer = &fleet.members[holder];
    writer.sidecar.until("it says whose it is", |status| says(status, "this program did not write it"));
    assert_eq!(fleet.maps().get("trimtab-web").await.unwrap().data.unwrap()["objects.json"], "mine");
}

/// Lets the user read `web`, and these as well.
async fn grant(fleet: &Fleet, more: &[Value]) {
    let metadata = json!({"name": "member", "namespace": fleet.namespace});
    let reads = json!({"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list", "watch"]});
    let leases =
        json!({"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]});
    let rules: Vec<_> = [reads, leases].iter().chain(more).cloned().collect();
    let role: Role = serde_json::from_value(json!({"metadata": metadata, "rules": rules})).unwrap();
    let binding: RoleBinding = serde_json::from_value(json!({
        "metadata": metadata,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "member"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": APP}],
    }))
    .unwrap();
    let api: Api<Role> = Api::namespaced(fleet.client.clone(), &fleet.namespace);
    api.patch("member", &PatchParams::apply("test"), &Patch::Apply(&role)).await.unwrap();
    let api: Api<RoleBinding> = Api::namespaced(fleet.client.clone(), &fleet.namespace);
    api.patch("member", &PatchParams::apply("test"), &Patch::Apply(&binding)).await.unwrap();
}

#[tokio::test]
async fn without_the_permission_nothing_is_kept_and_the_rule_is_said_and_the_rollout_goes_on() {
    let server = ApiServer::shared().await;
    let mut fleet = Fleet::start(&server, APP, 0).await;
    grant(&fleet, &[]).await;
    fleet.add(&server, APP, 0);
    fleet.until_done("the first one", "").await;
    let says = |status: &Value, what: &str| status["rollout"]["history"].to_string().contains(what);
    let status = fleet.members[0].sidecar.until("it has the rule", |status| says(status, "configmaps"));
    let problem = status["rollout"]["history"].as_str().unwrap();
    assert!(problem.contains("(403)") && problem.contains("resourceNames: [\"trimtab-web\"]"), "{problem}");
    let (_, first) = fleet.state().await;
    fleet.edit("good 2").await;
    fleet.until_done("the rollout goes on", &first).await;

    // Granted, and asked to look again: it is kept.
    let keep = json!({"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create", "get", "update"]});
    grant(&fleet, &[keep]).await;
    fleet
        .until("it is kept once somebody asks", async |fleet| {
            fleet.members[0].sidecar.signal(Signal::SIGHUP);
            fleet.maps().get_opt("trimtab-web").await.unwrap().is_some()
        })
        .await;
    fleet.members[0].sidecar.until("nothing is wrong any more", |status| status["rollout"]["history"].is_null());
}

#[tokio::test]
async fn a_closed_gate_stops_a_change_and_an_open_one_lets_it_go() {
    let server = ApiServer::shared().await;
    let gate = Hook::start(None);
    let mut fleet = Fleet::start(&server, ADMIN, 0).await;
    fleet.more = vec!["--rollout-gate-url".to_owned(), gate.url(), "--rollout-history".to_owned(), "no".to_owned()];
    for i in 0..2 {
        fleet.add(&server, ADMIN, i);
    }
    fleet.until_done("the first one", "").await;
    let (_, first) = fleet.state().await;
    fleet.until("all started", async |fleet| fleet.all_have("good 1")).await;
    fleet.edit("good 2").await;
    fleet.until_done("an open gate", &first).await;
    fleet.until("all have it", async |fleet| fleet.all_have("good 2")).await;
    assert!(!gate.calls().is_empty());

    gate.answer(Answer::Code(503));
    fleet.stop_by("good 3", "good 2").await;
    assert!(fleet.took("good 3") <= 1, "the others did not follow");
    let reason = fleet.lease().await.unwrap().metadata.annotations.unwrap()["trimtab.dev/reason"].clone();
    assert!(reason.contains("--rollout-gate-url") && reason.contains("503"), "{reason}");
    assert!(fleet.maps().get_opt("trimtab-web").await.unwrap().is_none(), "--rollout-history no");
}

#[tokio::test]
async fn what_confirms_and_does_not_hold_is_stopped() {
    let server = ApiServer::shared().await;
    let mut fleet = Fleet::start(&server, ADMIN, 0).await;
    fleet.bake = "3s";
    // A main process that answers as its configuration says, and fails a while after it took a bad one.
    let file = fleet.dir.path().join("conf-0/app.conf");
    let asked = AtomicUsize::new(0);
    let main = Hook::responding(Some(file), move |call| {
        let flaky = call.saw.as_ref().is_some_and(|saw| saw.starts_with("flaky"));
        let fails = flaky && asked.fetch_add(1, Ordering::Relaxed) > 0;
        (if fails { 500 } else { 200 }, String::new())
    });
    fleet.more = vec!["--confirm-url".to_owned(), main.url()];
    fleet.add(&server, ADMIN, 0);
    fleet.until_done("the first one", "").await;
    fleet.stop_by("flaky 2", "good 1").await;
    let annotations = fleet.lease().await.unwrap().metadata.annotations.unwrap();
    let reason = &annotations["trimtab.dev/reason"];
    assert!(reason.contains("did not hold for --rollout-bake") && reason.contains("500"), "{reason}");
    assert_eq!(annotations["trimtab.dev/stage"], "confirm");
    fleet.members[0].sidecar.until("it is rejected", |status| status["verdict"]["state"] == "rejected");
}

#[tokio::test]
async fn two_fleets_with_one_name_are_found() {
    let server = ApiServer::shared().await;
    let mut fleet = Fleet::start(&server, ADMIN, 1).await;
    fleet.until_done("the first one", "").await;
    fleet.until_kept().await;
    let other = json!({"metadata": {"name": "other"}, "data": {"app.conf": "good o"}});
    let other: ConfigMap = serde_json::from_value(other).unwrap();
    fleet.maps().create(&PostParams::default(), &other).await.unwrap();
    fleet.source = "other";
    fleet.add(&server, ADMIN, 1);
    fleet.members[1].sidecar.until("it says that there are two", |status| {
        let warning = status["rollout"]["warning"].to_string();
        warning.contains("two fleets with one --rollout NAME")
            && warning.contains("/web;")
            && warning.contains("/other")
    });
    let source = format!("{}/third", fleet.namespace);
    let (code, said) = fleet.check(&server, ADMIN, &["--configmap", &source, "--optional"]);
    assert!(code == Some(1) && said.contains("was last written by a replica with other sources: configmap/"), "{said}");
    // A directory on tmpfs counts as secret.
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    std::fs::write(memory.path().join("password"), "p").unwrap();
    let (_, said) =
        fleet.check(&server, ADMIN, &["--watch-dir", memory.path().to_str().unwrap(), "--configmap", &source]);
    assert!(said.contains("is on tmpfs, as Secrets are") && said.contains("--digest-key-file PATH"), "{said}");
    let hostile = json!({"metadata": {"annotations": {"trimtab.dev/points": "many"}}});
    fleet.leases().patch("trimtab-web", &PatchParams::default(), &Patch::Merge(&hostile)).await.unwrap();
    let (code, said) = fleet.check(&server, ADMIN, &["--configmap", &source]);
    assert!(code == Some(1) && said.contains("trimtab.dev/points is not a number; no replica goes"), "{said}");
    assert!(said.contains("kubectl delete lease trimtab-web"), "{said}");
}

#[tokio::test]
async fn what_is_secret_is_kept_in_a_secret_alone() {
    const PASSWORD: &str = "hunter2-of-the-fleet";
    let server = ApiServer::shared().await;
    let mut fleet = Fleet::start(&server, ADMIN, 0).await;
    let secret = json!({"metadata": {"name": "login"}, "stringData": {"password": PASSWORD}});
    let secret: Secret = serde_json::from_value(secret).unwrap();
    let secrets: Api<Secret> = Api::namespaced(fleet.client.clone(), &fleet.namespace);
    secrets.create(&PostParams::default(), &secret).await.unwrap();
    let key = fleet.dir.path().join("key");
    std::fs::write(&key, "the same in all replicas").unwrap();
    let login = format!("{}/login", fleet.namespace);
    fleet.more = ["--secret", &login, "--digest-key-file", key.to_str().unwrap()].map(str::to_owned).into();
    fleet.add(&server, ADMIN, 0);
    fleet.until_done("the first one", "").await;
    let kept = fleet.until_kept().await;
    let beside = secrets.get("trimtab-web").await.unwrap().data.unwrap();
    let text = String::from_utf8(beside["objects.json"].0.clone()).unwrap();
    assert!(text.contains(PASSWORD) && !text.contains("good 1"), "what is secret, and that alone");

    fleet.stop_by("bad 2", "good 1").await;
    fleet.add(&server, ADMIN, 1);
    fleet.until("the new one starts from both", async |fleet| fleet.members[1].published() == "good 1").await;
    let password = std::fs::read_to_string(fleet.dir.path().join("conf-1/password")).unwrap();
    assert_eq!(password, PASSWORD);

    let mut shown = serde_json::to_string(&kept).unwrap() + &serde_json::to_string(&fleet.lease().await).unwrap();
    for member in &fleet.members {
        shown += &member.sidecar.log();
        shown += &member.sidecar.until("it answers", |_| true).to_string();
    }
    for form in [PASSWORD.to_owned(), base64::engine::general_purpose::STANDARD.encode(PASSWORD)] {
        assert!(!shown.contains(&form), "nowhere else");
    }
}

#[tokio::test]
async fn who_waits_for_a_rollout_waits_for_that_of_what_is_in_the_cluster() {
    let server = ApiServer::shared().await;
    let fleet = Fleet::start(&server, ADMIN, 1).await;
    fleet.until_done("the first one", "").await;
    let kubeconfig = server.kubeconfig(ADMIN);
    let wait = |timeout: &'static str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_trimtab"));
        let flags = ["rollout", "status", "web", "--wait", "--timeout", timeout, "--namespace", &fleet.namespace];
        command.args(flags).arg("--kubeconfig").arg(&kubeconfig);
        async move { tokio::task::spawn_blocking(move || run(&mut command)).await.unwrap() }
    };
    assert_eq!(wait("1s").await.0, Some(0));
    // Right after the edit, before any replica can have claimed it.
    fleet.edit("good 2").await;
    let (code, said) = wait("3m").await;
    assert!(code == Some(0) && fleet.all_have("good 2"), "{said}");
    fleet.edit("bad 3").await;
    let (code, said) = wait("3m").await;
    assert!(code == Some(65) && fleet.took("bad 3") == 1, "{said}");
    // What the fleet has already is done, though the Lease speaks of what was stopped.
    fleet.edit("good 2").await;
    let (code, said) = wait("3m").await;
    assert!(code == Some(0) && said.contains("the fleet has what is in the cluster now"), "{said}");
}

#[tokio::test]
async fn a_change_that_renders_to_what_is_published_ends_its_rollout_too() {
    let server = ApiServer::shared().await;
    let mut fleet = Fleet::start(&server, ADMIN, 0).await;
    let template = fleet.dir.path().join("app.j2");
    std::fs::write(&template, "{{ data['app.conf'] }}").unwrap();
    fleet.more = vec!["--template".to_owned(), format!("{}:app.conf", template.display())];
    for i in 0..2 {
        fleet.add(&server, ADMIN, i);
    }
    fleet.until_done("the first one", "").await;
    fleet.until("all started", async |fleet| fleet.all_have("good 1")).await;
    let (_, first) = fleet.state().await;
    let calls = |fleet: &Fleet| fleet.members.iter().map(|member| member.hook.calls().len()).sum::<usize>();
    let before = calls(&fleet);
    let patch = json!({"data": {"unused": "by the template"}});
    fleet.maps().patch("web", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    fleet.until_done("what changes nothing", &first).await;
    assert_eq!(calls(&fleet), before, "nobody was notified of it");
}

#[tokio::test]
async fn a_secret_directory_without_a_key_that_all_have_is_named() {
    let server = ApiServer::shared().await;
    let mut fleet = Fleet::start(&server, ADMIN, 0).await;
    // What is on tmpfs counts as secret.
    let volume = tempfile::tempdir_in("/dev/shm").unwrap();
    std::fs::write(volume.path().join("password"), "hunter2").unwrap();
    fleet.more = vec!["--watch-dir".to_owned(), format!("login={}", volume.path().display())];
    fleet.add(&server, ADMIN, 0);
    fleet.members[0].sidecar.until("it says what is missing", |status| {
        status["rollout"]["warning"].to_string().contains("--digest-key-file")
    });
}
