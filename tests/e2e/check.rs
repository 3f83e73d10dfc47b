//! `trimtab check` in a Pod: it finds what is wrong there, and what it says to change is what helps.

use serde_json::{Value, json};

use super::support::app::{pod, prepare};
use super::support::node::eventually;
use super::support::pod::Pod;
use super::support::space::Space;

const TARGET: [&str; 2] = ["--signal=HUP", "--process-args=/program/app.py"];

/// What `check` finds with these flags: severity, place, message, remedy.
fn check(pod: &Pod, flags: &[&str]) -> Vec<Value> {
    let command: Vec<_> = ["/trimtab", "check", "--format=json"].iter().chain(flags).copied().collect();
    let output = pod.output("trimtab", &command);
    let text = String::from_utf8_lossy(&output.stdout);
    let ended: Value = serde_json::from_str(&text)
        .unwrap_or_else(|_| panic!("{flags:?}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    ended["findings"].as_array().unwrap().clone()
}

/// The one finding that says this.
fn finding(pod: &Pod, flags: &[&str], says: &str) -> Value {
    let findings = check(pod, flags);
    let mut found = findings.iter().filter(|finding| finding["message"].as_str().unwrap().contains(says));
    match (found.next(), found.next()) {
        (Some(finding), None) => finding.clone(),
        _ => panic!("{flags:?}: not once {says:?}: {findings:#?}"),
    }
}

fn remedy(finding: &Value) -> &str {
    finding["remedy"].as_str().unwrap()
}

#[test]
fn check_in_a_healthy_pod_advises_on_the_unconfirmed_signal_alone() {
    let space = Space::new("healthy");
    prepare(&space, "one");
    let flags = [&["--configmap=web"][..], &TARGET].concat();
    space.create(&pod("web", &flags));
    let web = space.pod("web").until_ready();
    let findings = check(&web, &[&flags[..], &["--output=/shared/conf"]].concat());
    // It takes the sidecar's own, where none are given.
    assert_eq!(check(&web, &[]), findings);
    assert_eq!(findings.len(), 1, "{findings:#?}");
    assert_eq!(findings[0]["severity"], "advice");
    assert!(remedy(&findings[0]).contains("--confirm-url"), "{findings:#?}");
}

#[test]
fn check_names_what_the_pod_lacks_and_how_to_fix_it() {
    let space = Space::new("check");
    prepare(&space, "one");
    let flags = [&["--configmap=web"][..], &TARGET].concat();
    let mut object = pod("web", &flags);
    let spec = &mut object["spec"];
    // Another user than the main process, by the same fsGroup.
    spec["initContainers"][0]["securityContext"]["runAsUser"] = json!(65532);
    let mounts = spec["initContainers"][0]["volumeMounts"].as_array_mut().unwrap();
    mounts.push(json!({"name": "web", "mountPath": "/sub/app.txt", "subPath": "app.txt"}));
    mounts.push(json!({"name": "memory", "mountPath": "/memory"}));
    let volumes = spec["volumes"].as_array_mut().unwrap();
    volumes.push(json!({"name": "web", "configMap": {"name": "web"}}));
    volumes.push(json!({"name": "memory", "emptyDir": {"medium": "Memory"}}));
    space.create(&object);
    let web = space.pod("web").until_ready();
    let with = |more: &[&'static str]| [&flags[..], more].concat();

    let users = finding(&web, &with(&["--output=/shared/conf"]), "EPERM");
    assert_eq!(users["severity"], "permission");
    assert!(users["message"].as_str().unwrap().contains("65532"), "{users:#}");
    assert!(remedy(&users).contains("runAsUser: 101"), "{users:#}");
    // The sidecar itself says the same, once it has something to report.
    space.edit("web", "app.txt", "two");
    let status = web.until("refused", |status| status["target"]["state"] == "forbidden");
    assert!(status["target"]["message"].as_str().unwrap().contains("runAsUser"), "{status:#}");

    let unreadable = finding(&web, &with(&["--output=/shared/new", "--file-mode=0600"]), "cannot read");
    assert!(remedy(&unreadable).contains("fsGroup"), "{unreadable:#}");

    let frozen = finding(&web, &["--watch-dir=/sub", "--output=/shared/conf"], "subPath");
    assert!(remedy(&frozen).contains("without subPath"), "{frozen:#}");

    let sticky = finding(&web, &["--configmap=web", "--output=/memory"], "sticky");
    assert_eq!(remedy(&sticky), "--output /memory/conf");
    let below = check(&web, &["--configmap=web", "--output=/memory/conf"]);
    assert!(below.is_empty(), "{below:#?}");

    // The remedy is a rule: it is what was lacking.
    let flags = ["--configmap=other", "--output=/shared/conf"];
    let forbidden = finding(&web, &flags, "may not list and watch");
    assert_eq!(forbidden["severity"], "permission");
    let rule = remedy(&forbidden).split_once(":\n").unwrap().1.replace('\n', "\n  ");
    space.apply(&format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {{name: other}}\nrules:\n  {rule}\n"
    ));
    space.create(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "other"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "other"},
        "subjects": [{"kind": "ServiceAccount", "name": "web"}],
    }));
    // All that is missing now is the object.
    let missing = || {
        let findings = check(&web, &flags);
        (findings.len() == 1 && findings[0]["message"] == "it does not exist").then_some(())
    };
    eventually("the rule suffices", missing);
}

#[test]
fn check_names_the_process_namespace_that_is_not_shared() {
    let space = Space::new("unshared");
    prepare(&space, "one");
    let flags = [&["--configmap=web"][..], &TARGET].concat();
    let mut object = pod("web", &flags);
    object["spec"]["shareProcessNamespace"] = json!(false);
    space.create(&object);
    let web = space.pod("web").until_ready();
    let unshared = finding(&web, &[&flags[..], &["--output=/shared/conf"]].concat(), "no other container");
    assert!(remedy(&unshared).ends_with("shareProcessNamespace: true"), "{unshared:#}");
}
