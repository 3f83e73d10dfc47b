//! The ways to run it: native and ordinary sidecar, init container, one user or two, each kind of volume, a Job, a
//! Deployment. All of it under the restricted Pod Security Standard, on a read-only root, with list and watch alone.

use std::thread::sleep;
use std::time::Duration;

use serde_json::json;

use super::support::app::{PORT, configmap, grant, ordinary, pod, prepare, spec};
use super::support::node::eventually;
use super::support::space::Space;

const SIGNAL: [&str; 3] = ["--configmap=web", "--signal=HUP", "--process-args=/program/app.py"];
const HOOK: [&str; 2] = ["--configmap=web", "--reload-url=http://127.0.0.1:8080/reload"];

#[test]
fn native_sidecar_holds_the_main_container_back_until_its_configuration_is_there() {
    let space = Space::new("native");
    grant(&space);
    space.create(&configmap("program", "app.py", include_str!("support/app.py")));
    space.create(&pod("web", &SIGNAL));
    let pod = space.pod("web");
    // The ConfigMap is not there: Trimtab runs and waits, and says for what.
    let status = pod.until("waiting", |status| status["sources"][0]["message"].is_string());
    assert!(status["sources"][0]["message"].as_str().unwrap().contains("does not exist"), "{status}");
    assert!(pod.container("main").unwrap()["state"]["waiting"].is_object());

    space.create(&configmap("web", "app.txt", "one"));
    let pod = pod.until_ready();
    pod.until_serves(PORT, "/", "one");
    space.edit("web", "app.txt", "two");
    pod.until_serves(PORT, "/", "two");
    assert_eq!(pod.log("main").trim(), "started with one");
    assert_eq!(pod.restarts("main") + pod.restarts("trimtab"), 0);
}

#[test]
fn flags_of_a_file_are_a_pods_and_those_of_a_command_in_it() {
    let space = Space::new("file");
    prepare(&space, "one");
    let file =
        "output: /shared/conf\nconfigmap: [web]\nsignal: HUP\nprocess-args: /program/app.py\nconfirm-alive: 1s\n";
    space.create(&configmap("flags", "trimtab.yaml", file));
    let mut object = pod("web", &[]);
    let sidecar = &mut object["spec"]["initContainers"][0];
    sidecar["args"] = json!(["--config=/flags/trimtab.yaml"]);
    sidecar["volumeMounts"].as_array_mut().unwrap().push(json!({"name": "flags", "mountPath": "/flags"}));
    let volume = json!({"name": "flags", "configMap": {"name": "flags"}});
    object["spec"]["volumes"].as_array_mut().unwrap().push(volume);
    space.create(&object);
    let pod = space.pod("web").until_ready();
    pod.until_serves(PORT, "/", "one");
    space.edit("web", "app.txt", "two");
    pod.until_serves(PORT, "/", "two");
    let log = pod.log("trimtab");
    assert!(["--signal HUP", "--confirm-alive 1s"].iter().all(|flag| log.contains(flag)), "{log}");
    let check = pod.output("trimtab", &["/trimtab", "check"]);
    let said = String::from_utf8_lossy(&check.stderr);
    assert!(
        check.status.success() && said.contains("flags of the running sidecar") && said.contains("--config"),
        "{said}"
    );
}

#[test]
fn ordinary_sidecar_brings_up_a_main_container_that_came_first() {
    let space = Space::new("ordinary");
    prepare(&space, "one");
    let mut object = pod("web", &SIGNAL);
    ordinary(&mut object["spec"]);
    space.create(&object);
    // The main process may have started before its configuration was there, and ended: the kubelet starts it again.
    let pod = space.pod("web").until_ready();
    pod.until_serves(PORT, "/", "one");
    space.edit("web", "app.txt", "two");
    pod.until_serves(PORT, "/", "two");
    assert_eq!(pod.restarts("trimtab"), 0);
}

#[test]
fn init_container_publishes_once_and_the_sidecar_goes_on_from_there() {
    let space = Space::new("init");
    prepare(&space, "one");
    let mut object = pod("web", &SIGNAL);
    let mut init = object["spec"]["initContainers"][0].clone();
    ordinary(&mut object["spec"]);
    init["name"] = json!("trimtab-init");
    init["args"] = json!(["--configmap=web", "--output=/shared/conf", "--once"]);
    init.as_object_mut().unwrap().retain(|field, _| !matches!(field.as_str(), "restartPolicy" | "startupProbe"));
    object["spec"]["initContainers"] = json!([init]);
    space.create(&object);
    let pod = space.pod("web").until_ready();
    pod.until_serves(PORT, "/", "one");
    let status = pod.until("at rest", |status| status["phase"] == "idle");
    assert_eq!(status["published"]["sequence"], 1, "the sidecar published what was there again: {status}");
    space.edit("web", "app.txt", "two");
    pod.until_serves(PORT, "/", "two");
    assert_eq!(pod.restarts("main") + pod.restarts("trimtab"), 0);
}

#[test]
fn hook_needs_neither_a_shared_process_namespace_nor_the_same_user() {
    let space = Space::new("hook");
    prepare(&space, "one");
    let mut object = pod("web", &HOOK);
    object["spec"]["shareProcessNamespace"] = json!(false);
    object["spec"]["initContainers"][0]["securityContext"]["runAsUser"] = json!(65532);
    object["spec"]["initContainers"][0]["securityContext"]["runAsGroup"] = json!(65532);
    space.create(&object);
    let pod = space.pod("web").until_ready();
    space.edit("web", "app.txt", "two");
    pod.until_serves(PORT, "/", "two");
    // What it could go back to is known once the main process has confirmed it.
    pod.until("confirmed", |status| status["confirmed"]["sequence"] == 2);
    // Refused by the main process: it goes on with what it has, and the volume goes back.
    space.edit("web", "app.txt", "bad");
    let status = pod.until("rolled back", |status| !status["quarantine"].is_null() && status["phase"] == "idle");
    assert_eq!(status["published"]["sequence"], 2, "{status}");
    pod.until_serves(PORT, "/", "two");
    space.edit("web", "app.txt", "three");
    pod.until_serves(PORT, "/", "three");
}

#[test]
fn memory_volume_serves_as_well_as_one_on_the_disk() {
    let space = Space::new("memory");
    prepare(&space, "one");
    let mut object = pod("web", &SIGNAL);
    object["spec"]["volumes"][0]["emptyDir"] = json!({"medium": "Memory", "sizeLimit": "1Mi"});
    space.create(&object);
    let pod = space.pod("web").until_ready();
    space.edit("web", "app.txt", "two");
    pod.until_serves(PORT, "/", "two");
}

/// A projected volume is a tmpfs: its files count as secret, and still readable to the main process by fsGroup.
#[test]
fn projected_volume_needs_no_permission_at_all() {
    let space = Space::new("projected");
    prepare(&space, "one");
    space.create(
        &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key"}, "stringData": {"key": "k"}}),
    );
    let mut object = pod("web", &["--watch-dir=all=/all", "--signal=HUP", "--process-args=/program/app.py"]);
    let spec = &mut object["spec"];
    spec["serviceAccountName"] = json!("default");
    spec["automountServiceAccountToken"] = json!(false);
    spec["volumes"].as_array_mut().unwrap().push(json!({"name": "all", "projected": {"sources": [
        {"configMap": {"name": "web"}},
        {"secret": {"name": "key"}},
        {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
    ]}}));
    let mounts = spec["initContainers"][0]["volumeMounts"].as_array_mut().unwrap();
    mounts.push(json!({"name": "all", "mountPath": "/all", "readOnly": true}));
    space.create(&object);
    let pod = space.pod("web").until_ready();
    pod.until_serves(PORT, "/", "one");
    let mode = pod.exec("main", &["python3", "-c", "import os; print(oct(os.stat('/shared/conf/app.txt').st_mode))"]);
    assert_eq!(mode.unwrap().trim(), "0o100640");
    space.edit("web", "app.txt", "two");
    pod.until_serves(PORT, "/", "two");
    // The downward API's file goes the same way.
    space.kubectl(&["label", "pod", "web", "tier=front"]);
    eventually("the label arrives", || {
        pod.exec("main", &["python3", "-c", "print(open('/shared/conf/labels').read())"])
            .ok()?
            .contains("front")
            .then_some(())
    });
}

/// The sidecar must not keep the Pod alive, nor take the main process's end for a rejection.
#[test]
fn job_completes_when_its_main_container_ends() {
    let space = Space::new("job");
    prepare(&space, "one");
    let mut template = spec(&[SIGNAL[0], SIGNAL[1], "--process-args=python3"]);
    template["restartPolicy"] = json!("Never");
    // Says so at any signal; ends when its configuration says that the work is done.
    template["containers"][0]["command"] = json!([
        "python3",
        "-uc",
        "
import os, signal, time
signal.signal(signal.SIGHUP, lambda *_: print('notified', flush=True))
signal.signal(signal.SIGTERM, lambda *_: print('ended by a signal', flush=True))
while open('/shared/conf/app.txt').read() != 'done': time.sleep(0.05)
# While Python ends in its own way, it handles no signal any more, and the next one kills it.
os._exit(0)
"
    ]);
    space.create(&json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "work"},
        "spec": {"backoffLimit": 0, "template": {"metadata": {"labels": {"app": "job"}}, "spec": template}},
    }));
    let pod = space.pods_when_there("app=job", 1).remove(0).until_ready();
    space.edit("web", "app.txt", "more");
    eventually("it is notified", || pod.log("main").contains("notified").then_some(()));
    pod.until("at rest", |status| status["phase"] == "idle" && status["debt"].is_null());
    space.edit("web", "app.txt", "done");
    eventually("the Job is complete", || (space.get("job/work")["status"]["succeeded"] == 1).then_some(()));
    let log = pod.log("main");
    assert!(!log.contains("ended by a signal"), "{log}");
    let ended = pod.container("trimtab").unwrap()["state"]["terminated"].clone();
    assert_eq!(ended["exitCode"], 0, "{ended}\n{}", pod.log("trimtab"));
    let log = pod.log("trimtab");
    assert!(!log.contains("rolled back") && !log.contains("quarantined"), "{log}");
}

/// Edits while Pods come and go: each ends up with the last one.
#[test]
fn deployment_is_rolled_out_while_edits_come() {
    let space = Space::new("rollout");
    prepare(&space, "edit 0");
    space.create(&json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "replicas": 3, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": spec(&SIGNAL)},
        },
    }));
    space.kubectl(&["rollout", "status", "deployment/web", "--timeout=180s"]);
    space.patch("deployment", "web", &json!({"spec": {"template": {"metadata": {"annotations": {"rollout": "2"}}}}}));
    let mut edits = 0;
    let done = || {
        let status = space.get("deployment/web")["status"].clone();
        status["observedGeneration"] == 2
            && ["replicas", "updatedReplicas", "readyReplicas"].iter().all(|field| status[field] == 3)
    };
    while !done() || edits < 20 {
        edits += 1;
        assert!(edits < 600, "the rollout does not end");
        space.edit("web", "app.txt", &format!("edit {edits}"));
        // The pace of the edits, not a wait for something.
        sleep(Duration::from_millis(200));
    }
    let pods = space.pods("app=web");
    assert!(pods.len() >= 3);
    for pod in pods {
        let terminating =
            space.kubectl_try(&["get", "pod", pod.name(), "-o", "jsonpath={.metadata.deletionTimestamp}"]);
        if terminating.is_ok_and(|at| at.is_empty()) {
            pod.until_serves(PORT, "/", &format!("edit {edits}"));
            assert_eq!(pod.restarts("main") + pod.restarts("trimtab"), 0);
        }
    }
}
