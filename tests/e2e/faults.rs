//! What goes wrong on a node, done on purpose: no edit is lost, and the last good configuration is served all the
//! while.
//!
//! The main process is a small program that reads one file when it starts and at each reload, answers with what it
//! read, and writes down every load. A reload that was lost, or done for nothing, is seen in what it wrote.

use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::support::client::Client;
use super::support::node::{PACE, PATIENCE, daemon, eventually, folder, kubectl_with, polled, within};
use super::support::pod::{Pod, get};
use super::support::space::Space;

/// `value` of the ConfigMap `web` from the API server; as flags want, `mounted` of the ConfigMap that is mounted, and
/// `token` of a Secret. FLAGS is replaced.
const MANIFEST: &str = r#"
apiVersion: v1
kind: ServiceAccount
metadata: {name: web}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: web}
rules:
  - {apiGroups: [""], resources: [configmaps, secrets], resourceNames: [web, token], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: web}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: web}
subjects: [{kind: ServiceAccount, name: web}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: web}
data: {value: one}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: mounted}
data: {mounted: uno}
---
apiVersion: v1
kind: Secret
metadata: {name: token}
stringData: {token: t1-canary}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: program}
data:
  value.j2: "{{ data.value }}{% if data.mounted is defined %}/{{ data.mounted }}{% endif %}{% if data.token is defined %}/{{ data.token }}{% endif %}"
  main.py: |
    import http.server, os, signal, sys, threading, time

    served = ""
    lock = threading.Lock()

    def load(how):
        global served
        value = open("/shared/conf/value").read()
        print(how, value[:20], file=sys.stderr, flush=True)
        if value.startswith("crash"):
            os._exit(1)
        if value.startswith("bad"):
            raise ValueError("refused")
        if how == "reload" and value.startswith("slow"):
            time.sleep(4)
        if how == "reload" and value.startswith("hang"):
            time.sleep(600)
        with lock:
            served = value
            with open("/tmp/loads", "a") as loads:
                loads.write(f"{how} {value[:40]}\n")

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, status, text):
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.answer(200, open("/tmp/loads").read() if self.path == "/loads" else served[:40])

        def do_POST(self):
            try:
                load("reload")
                self.answer(200, "")
            except ValueError:
                self.answer(500, "")

        def log_message(self, *args):
            pass

    def reload(*args):
        try:
            load("reload")
        except ValueError:
            pass

    signal.signal(signal.SIGTERM, lambda *args: os._exit(0))
    signal.signal(signal.SIGHUP, reload)
    load("start")
    http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  serviceAccountName: web
  shareProcessNamespace: true
  terminationGracePeriodSeconds: 60
  securityContext: {runAsNonRoot: true, runAsUser: 101, runAsGroup: 101, fsGroup: 101, seccompProfile: {type: RuntimeDefault}}
  initContainers:
    - name: trimtab
      image: trimtab:0.2.0
      restartPolicy: Always
      args: [--configmap=web, --template=/program/value.j2, --output=/shared/conf, "--admin=0.0.0.0:9534", FLAGS]
      startupProbe:
        httpGet: {path: /readyz, port: 9533}
        periodSeconds: 1
        timeoutSeconds: 10
        failureThreshold: 60
      securityContext: &restricted
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
      resources:
        limits: {memory: 16Mi, cpu: 10m}
      volumeMounts:
        - {name: shared, mountPath: /shared}
        - {name: program, mountPath: /program}
        - {name: mounted, mountPath: /mounted}
  containers:
    - name: main
      image: python:3-alpine
      command: [python3, /program/main.py]
      readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
      securityContext: *restricted
      volumeMounts:
        - {name: shared, mountPath: /shared, readOnly: true}
        - {name: program, mountPath: /program}
        - {name: tmp, mountPath: /tmp}
  volumes:
    - {name: shared, emptyDir: {}}
    - {name: tmp, emptyDir: {}}
    - {name: program, configMap: {name: program}}
    - {name: mounted, configMap: {name: mounted}}
"#;

/// Notified by a request: an answer is a refusal or none.
const HOOK: &str = "--reload-url=http://127.0.0.1:8080/reload";
/// Notified by a signal, and dead if it dies.
const SIGNAL: &str = "--signal=HUP,--process=python3.11";
const MOUNTED: &str = "--watch-dir=/mounted";

/// A Pod as described above, which was Ready once.
struct World<'a> {
    space: &'a Space,
    pod: Pod<'a>,
    ip: String,
    uid: String,
}

impl<'a> World<'a> {
    /// `flags`: as in a YAML list.
    fn new(space: &'a Space, flags: &[&str]) -> Self {
        Self::of(space, MANIFEST, flags)
    }

    fn of(space: &'a Space, manifest: &str, flags: &[&str]) -> Self {
        space.apply(&manifest.replace("FLAGS", &flags.join(",")));
        let pod = space.pod("web").until_ready();
        let (ip, uid) = (pod.ip(), pod.object()["metadata"]["uid"].as_str().unwrap().to_owned());
        let world = Self { space, pod, ip, uid };
        // The first generation was published before there was anybody to notify.
        world.until_settled();
        world
    }

    fn edit(&self, value: &str) {
        self.space.edit("web", "value", value);
    }

    fn until_serves(&self, value: &str) {
        let mut last = None;
        let seen = polled(PATIENCE, PACE, || {
            last = get(&self.ip, 8080, "/");
            (last.as_deref() == Some(value)).then_some(())
        });
        assert!(seen.is_some(), "not served: {value}, but {last:?}; {:#?}", self.status());
    }

    /// Asks the main process all the time.
    fn client(&self) -> Client {
        Client::start(format!("{}:8080", self.ip).parse().unwrap(), "/", &[200])
    }

    /// Each load that the main process did: `start one`, `reload two`.
    fn loads(&self) -> Vec<String> {
        let loads = eventually("loads are reported", || get(&self.ip, 8080, "/loads"));
        loads.lines().map(str::to_owned).collect()
    }

    /// Trimtab's status, by the Pod's address: also without an API server or a kubelet.
    fn status(&self) -> Option<Value> {
        serde_json::from_str(&get(&self.ip, 9534, "/status")?).ok()
    }

    /// Waits until Trimtab's status is as described. It has little time, and is not asked too often.
    fn until(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let mut last = None;
        let seen = polled(PATIENCE, Duration::from_millis(300), || {
            let status = self.status()?;
            let found = condition(&status).then(|| status.clone());
            last = Some(status);
            found
        });
        seen.unwrap_or_else(|| panic!("not {what}: {last:#?}"))
    }

    /// Waits until nothing is due and everything confirmed.
    fn until_settled(&self) -> Value {
        self.until("settled", |status| {
            status["debt"].is_null()
                && status["phase"] == "idle"
                && status["confirmed"]["digest"] == status["published"]["digest"]
                && status["observed"]["digest"] == status["published"]["digest"]
        })
    }

    /// The processes of a container, seen from the node.
    fn processes(&self, container: &str) -> Vec<u32> {
        let id = self.container_id(container);
        let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let pid = entry.unwrap().file_name().to_str()?.parse().ok()?;
            fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?.contains(&id).then_some(pid)
        });
        processes.collect()
    }

    fn container_id(&self, container: &str) -> String {
        let status = self.pod.container(container).unwrap();
        status["containerID"].as_str().unwrap().trim_start_matches("containerd://").to_owned()
    }

    /// `kill -9` of a container's processes, from outside.
    fn kill(&self, container: &str) {
        let processes = self.processes(container);
        assert!(!processes.is_empty(), "{container} runs");
        for pid in processes {
            // It may have ended with another.
            let _ended = Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
        }
    }

    /// Waits until a container was restarted so often in all, and runs.
    fn until_restarted(&self, container: &str, times: u64) {
        eventually(&format!("{container} is restarted"), || {
            let status = self.pod.container(container)?;
            (status["restartCount"] == times && status["started"] == true).then_some(())
        });
    }

    fn restarts(&self) -> (u64, u64) {
        (self.pod.restarts("trimtab"), self.pod.restarts("main"))
    }

    /// The same Pod as at first.
    fn is_the_same(&self) -> bool {
        self.pod.object()["metadata"]["uid"] == self.uid.as_str()
    }
}

/// What the main process answered to a client that asked all the time, and how many requests failed.
fn seen_by(client: Client) -> (Vec<String>, usize) {
    let seen = client.stop();
    assert!(seen.requests > 10, "the client asked");
    (seen.bodies.into_keys().collect(), seen.failed.len())
}

/// A daemon that does not run. It is started again in any case: others need it.
struct Away(Option<&'static str>);

impl Away {
    fn stopped(name: &'static str) -> Self {
        daemon("stop", name);
        Self(Some(name))
    }

    /// Without a word: asked to end, the API server once took more than a minute.
    fn killed(name: &'static str) -> Self {
        daemon("kill", name);
        Self(Some(name))
    }

    fn back(mut self) {
        daemon("start", self.0.take().unwrap());
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        if let Some(name) = self.0 {
            let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/node/daemon");
            let _the_test_has_failed = Command::new(program).args(["start", name]).status();
        }
    }
}

#[test]
fn sidecar_killed_loses_no_edit_and_delivers_nothing_twice() {
    let space = Space::new("killed");
    let world = World::new(&space, &[HOOK]);
    let client = world.client();

    let loads_at_start = world.loads().len();
    // While nothing goes on, and edited before it is back.
    world.kill("trimtab");
    world.edit("two");
    world.until_restarted("trimtab", 1);
    world.until_serves("two");
    world.until_settled();
    assert_eq!(world.loads()[loads_at_start..], ["reload two"]);

    // While the main process is being notified.
    world.edit("slow three");
    world.until("reloading", |status| status["phase"] == "reloading");
    world.kill("trimtab");
    world.until_restarted("trimtab", 2);
    world.until_serves("slow three");
    world.until_settled();
    // Once by the request that was under way, and again, as nobody heard its answer.
    assert_eq!(world.loads()[loads_at_start + 1..], ["reload slow three", "reload slow three"]);

    let (served, failed) = seen_by(client);
    assert_eq!((served, failed), (vec!["one".into(), "slow three".into(), "two".into()], 0));
    assert_eq!(world.restarts(), (2, 0));
    assert!(world.is_the_same());
}

#[test]
fn main_process_killed_starts_on_the_newest_and_crash_loop_ends_by_the_rollback() {
    let space = Space::new("main");
    let world = World::new(&space, &[SIGNAL]);

    world.kill("main");
    world.edit("two");
    world.until_restarted("main", 1);
    world.until_serves("two");
    world.until_settled();

    world.edit("crash three");
    let status = world.until("rolled back", |status| !status["quarantine"].is_null() && status["debt"].is_null());
    assert_eq!(status["quarantine"]["stage"], "confirm", "{status:#}");
    let reason = status["quarantine"]["reason"].as_str().unwrap();
    assert!(reason.contains("exited after it was notified"), "{reason}");
    world.until_serves("two");
    assert_eq!(status["lastGood"]["digest"], status["published"]["digest"]);

    world.edit("four");
    world.until_serves("four");
    let status = world.until_settled();
    assert!(status["quarantine"].is_null(), "{status:#}");
    assert_eq!(world.pod.restarts("trimtab"), 0);
    assert!(world.is_the_same());
}

#[test]
fn sidecar_out_of_memory_is_started_again_and_the_same_edit_comes_through() {
    let space = Space::new("memory");
    let world = World::new(&space, &[HOOK]);
    let client = world.client();

    // Less than it has needed so far and will need, until the kubelet makes it a new cgroup.
    squeeze(world.processes("trimtab")[0]);
    let large = format!("large {}", "x".repeat(600_000));
    let patch = json!({"data": {"value": large}}).to_string();
    let args = ["-n", space.name(), "patch", "configmap", "web", "--type=merge", "--patch-file=/dev/stdin"];
    assert!(kubectl_with(&args, &patch).status.success());
    world.until_restarted("trimtab", 1);
    let ended = &world.pod.container("trimtab").unwrap()["lastState"]["terminated"];
    assert_eq!(ended["reason"], "OOMKilled", "{ended:#}");
    world.until_serves(&large[..40]);
    world.until_settled();

    let (served, failed) = seen_by(client);
    assert_eq!((served, failed), (vec![large[..40].into(), "one".into()], 0));
    assert_eq!(world.restarts(), (1, 0));
}

/// Lowers the memory limit of a process's cgroup to little more than what it uses.
fn squeeze(pid: u32) {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let of = |controller: &str| groups.lines().find_map(|line| line.split_once(controller)).map(|(_, path)| path);
    let (folder, used, limit) = match of(":memory:") {
        Some(path) => (format!("/sys/fs/cgroup/memory{path}"), "memory.usage_in_bytes", "memory.limit_in_bytes"),
        None => (format!("/sys/fs/cgroup{}", of("0::").unwrap()), "memory.current", "memory.max"),
    };
    // It may use more by the time that it is written.
    eventually("the limit is lowered", || {
        let used: u64 = fs::read_to_string(format!("{folder}/{used}")).unwrap().trim().parse().unwrap();
        fs::write(format!("{folder}/{limit}"), (used + 128 * 1024).to_string()).ok()
    });
}

#[test]
fn crash_loop_ends_by_rollback_without_a_shared_process_namespace() {
    let space = Space::new("crash");
    let confirm = ["--confirm-url=http://127.0.0.1:8080/", "--confirm-timeout=5s", HOOK];
    let world = World::of(&space, &MANIFEST.replace("shareProcessNamespace: true", ""), &confirm);

    world.edit("crash two");
    let status = world.until("rolled back", |status| !status["quarantine"].is_null() && status["debt"].is_null());
    let reason = status["quarantine"]["reason"].as_str().unwrap();
    assert!(reason.contains("presumed to have died of the reload"), "{reason}");
    world.until_serves("one");

    // Refused, and not died of.
    world.edit("bad three");
    let status = world.until("refused", |status| {
        let reason = status["quarantine"]["reason"].as_str();
        reason.is_some_and(|reason| reason.contains("answered 500")) && status["debt"].is_null()
    });
    assert_eq!(status["published"]["digest"], status["lastGood"]["digest"], "{status:#}");
    world.until_serves("one");

    world.edit("four");
    world.until_serves("four");
    world.until_settled();
    assert_eq!(world.pod.restarts("trimtab"), 0);
    assert!(world.is_the_same());
}

#[test]
fn configmap_deleted_made_again_made_immutable_and_rotated_with_a_secret() {
    let space = Space::new("objects");
    let world = World::new(&space, &[HOOK, "--secret=token"]);
    let client = world.client();
    world.until_serves("one/t1-canary");
    let loads_at_start = world.loads().len();

    space.kubectl(&["delete", "configmap", "web"]);
    world.until("said to be gone", |status| {
        status["sources"][0]["message"].as_str().is_some_and(|message| message.contains("its last content is kept"))
    });
    // A start finds it missing.
    world.kill("trimtab");
    world.until_restarted("trimtab", 1);
    let status = world.until("waited for", |status| {
        status["sources"][0]["message"].as_str().is_some_and(|message| message.contains("gone or empty"))
    });
    assert_eq!(status["ready"], true, "what was published stays: {status:#}");
    space.apply(&configmap("two", false));
    world.until_serves("two/t1-canary");

    space.patch("configmap", "web", &json!({"immutable": true}));
    let refused = space.kubectl_try(&["patch", "configmap", "web", "--patch", r#"{"data":{"value":"x"}}"#]);
    assert!(refused.unwrap_err().contains("immutable"));
    space.kubectl(&["delete", "configmap", "web"]);
    space.apply(&configmap("three", true));
    world.until_serves("three/t1-canary");
    space.kubectl(&["delete", "configmap", "web"]);
    let sequence = world.until_settled()["published"]["sequence"].as_u64().unwrap();

    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: token}\nstringData: {token: t2-canary}";
    space.apply(&format!("{secret}\n---\n{}", configmap("four", false)));
    world.until_serves("four/t2-canary");
    let status = world.until_settled();
    // Two objects are two edits, but come in one breath: the Secret is changed, the ConfigMap made.
    assert!(status["published"]["sequence"].as_u64().unwrap() <= sequence + 2, "{status:#}");
    let loads = world.loads().split_off(loads_at_start);
    assert_eq!(loads[..2], ["reload two/t1-canary", "reload three/t1-canary"]);

    let mode = "import os; print(oct(os.stat('/shared/conf/value').st_mode & 0o777))";
    assert_eq!(world.pod.exec("main", &["python3", "-c", mode]).unwrap(), "0o640\n");
    let (served, failed) = seen_by(client);
    assert!(served.iter().all(|value| value.contains("/t")), "{served:?}");
    assert_eq!(failed, 0);
    assert!(!world.pod.log("trimtab").contains("canary"));
    assert_eq!(world.restarts(), (1, 0));
}

/// The ConfigMap `web`.
fn configmap(value: &str, immutable: bool) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: web}}\nimmutable: {immutable}\ndata: {{value: {value}}}\n"
    )
}

#[test]
fn pod_deleted_in_the_middle_of_a_publish_goes_and_its_successor_is_whole() {
    let space = Space::new("deleted");
    for (flag, edit, phase) in [("--reload-timeout=5m", "hang", "reloading"), ("--reload-splay=10m", "two", "settling")]
    {
        let world = World::new(&space, &[HOOK, flag]);
        world.edit(edit);
        world.until(phase, |status| {
            status["phase"] == phase && status["observed"]["digest"] != status["confirmed"]["digest"]
        });
        let volumes = folder().join("kubelet/pods").join(&world.uid);
        assert!(volumes.exists());
        space.kubectl(&["delete", "pod", "web", "--wait=false"]);
        // Its grace is a minute: the kubelet did not have to end what hangs.
        within(Duration::from_secs(45), "the Pod is gone", || {
            space.kubectl_try(&["get", "pod", "web"]).is_err().then_some(())
        });
        eventually("its volumes are gone", || (!volumes.exists()).then_some(()));
    }
    // Another in its place starts with what was there meanwhile.
    let world = World::new(&space, &[HOOK]);
    world.edit("three");
    world.until_serves("three");
}

#[test]
fn kubelet_and_containerd_stopped_and_started() {
    let space = Space::alone("daemons");
    let world = World::new(&space, &[HOOK, MOUNTED]);
    let client = world.client();

    let kubelet = Away::stopped("kubelet");
    world.edit("two");
    world.until_serves("two/uno");
    // There is nobody to start it again.
    world.kill("trimtab");
    world.edit("three");
    space.edit("mounted", "mounted", "dos");
    kubelet.back();
    world.until_serves("three/dos");
    world.until_restarted("trimtab", 1);
    world.until_settled();

    let containerd = Away::stopped("containerd");
    world.edit("four");
    world.until_serves("four/dos");
    containerd.back();
    space.edit("mounted", "mounted", "tres");
    world.until_serves("four/tres");
    eventually("commands run in the Pod", || world.pod.status().filter(|status| status["ready"] == true));
    world.until_settled();

    let (served, failed) = seen_by(client);
    assert!(served.iter().all(|value| ["one", "two", "three", "four"].iter().any(|ours| value.starts_with(ours))));
    assert_eq!(failed, 0, "of requests; {served:?}");
    assert_eq!(world.restarts(), (1, 0));
    assert!(world.is_the_same());
}

#[test]
fn api_server_away_then_edits_in_a_row() {
    let space = Space::alone("api");
    let world = World::new(&space, &[HOOK, MOUNTED]);
    let client = world.client();
    let loads_at_start = world.loads().len();

    let since = Instant::now();
    let server = Away::killed("kube-apiserver");
    let status = world.until("said to be away", |status| status["sources"][0]["healthy"] == false);
    let message = status["sources"][0]["message"].as_str().unwrap();
    assert!(message.contains("cannot reach the API server at"), "{message}");
    assert_eq!(status["ready"], true);
    for path in ["/livez", "/readyz"] {
        assert!(get(&world.ip, 9533, path).is_some(), "{path}");
    }
    // Shorter for whoever works on it.
    let outage = std::env::var("E2E_OUTAGE").map_or(60, |seconds| seconds.parse().unwrap());
    sleep(Duration::from_secs(outage).saturating_sub(since.elapsed()));
    server.back();
    for value in ["two", "three", "four"] {
        world.edit(value);
    }
    space.edit("mounted", "mounted", "dos");
    world.until_serves("four/dos");
    let status = world.until_settled();
    assert_eq!(status["sources"][0]["healthy"], true, "{status:#}");

    let loads = world.loads().split_off(loads_at_start);
    assert!(loads.len() <= 4 && loads.iter().all(|load| !load.contains("one/uno")), "{loads:?}");
    let (_, failed) = seen_by(client);
    assert_eq!(failed, 0);
    assert_eq!(world.restarts(), (0, 0));
    let log = world.pod.log("trimtab");
    assert!(log.lines().filter(|line| line.contains("cannot reach the API server")).count() <= 3, "{log}");
}

#[test]
fn permission_removed_and_given_back() {
    let space = Space::alone("rbac");
    let world = World::new(&space, &[HOOK]);
    let client = world.client();

    let binding = space.get("rolebinding/web");
    space.kubectl(&["delete", "rolebinding", "web"]);
    // The server asks at the beginning of a watch only.
    world.edit("two");
    world.until_serves("two");
    Away::killed("kube-apiserver").back();
    let status = world.until("forbidden", |status| {
        status["sources"][0]["message"].as_str().is_some_and(|message| message.contains("403"))
    });
    let message = status["sources"][0]["message"].as_str().unwrap();
    assert!(message.contains("a Role in namespace") && message.contains(r#"resourceNames: ["web"]"#), "{message}");
    world.edit("three");
    let metrics = get(&world.ip, 9533, "/metrics").unwrap();
    // The template's directory is a source as well, and the order of lines is chance.
    let up = metrics.lines().find(|line| line.starts_with("trimtab_source_up{source=\"configmap/")).unwrap();
    assert!(up.ends_with(" 0"), "{up}");
    assert_eq!(get(&world.ip, 8080, "/").as_deref(), Some("two"));

    let again = json!({
        "apiVersion": binding["apiVersion"], "kind": binding["kind"], "metadata": {"name": "web"},
        "roleRef": binding["roleRef"], "subjects": binding["subjects"],
    });
    space.create(&again);
    world.until_serves("three");
    let status = world.until_settled();
    assert_eq!(status["sources"][0]["healthy"], true, "{status:#}");
    let (served, failed) = seen_by(client);
    assert_eq!((served, failed), (vec!["one".into(), "three".into(), "two".into()], 0));
    assert_eq!(world.restarts(), (0, 0));
}

#[test]
fn service_account_token_that_is_refused_is_read_again() {
    let space = Space::alone("token");
    let world = World::new(&space, &[HOOK]);
    let client = world.client();

    // Every token that was given out is void.
    let (key, next) = (folder().join("service-account.key"), folder().join("next.key"));
    let made = Command::new("openssl").args(["genrsa", "-out"]).arg(&next).arg("2048").output().unwrap();
    assert!(made.status.success());
    fs::rename(next, key).unwrap();
    Away::killed("kube-apiserver").back();
    daemon("restart", "kube-controller-manager");
    let status = world.until("refused", |status| {
        status["sources"][0]["message"].as_str().is_some_and(|message| message.contains("(401)"))
    });
    assert_eq!(status["ready"], true);
    world.edit("two");
    // It asks for new ones when it starts.
    daemon("restart", "kubelet");
    world.until_serves("two");
    let status = world.until_settled();
    assert_eq!(status["sources"][0]["healthy"], true, "{status:#}");

    let (served, failed) = seen_by(client);
    assert_eq!((served, failed), (vec!["one".into(), "two".into()], 0));
    assert_eq!(world.restarts(), (0, 0));
}
