//! A fleet on the node: a Deployment whose replicas take a change one after the other.

use serde_json::{Value, json};

use super::support::app::{PORT, prepare, spec};
use super::support::node::eventually;
use super::support::pod::Pod;
use super::support::space::Space;

const FLAGS: [&str; 7] = [
    "--configmap=web",
    "--reload-url=http://127.0.0.1:8080/reload",
    "--reload-attempts=1",
    "--debounce=0",
    "--rollout=web",
    "--rollout-bake=2s",
    "--rollout-spread=4s",
];

/// A Deployment of so many replicas, with the Role that Trimtab says it needs.
fn fleet(space: &Space, replicas: u32) {
    prepare(space, "one");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_trimtab"));
    let role = command.args(["rbac", "--service-account=web", "--name=fleet", "--"]).args(FLAGS).arg("--output=/x");
    let role = role.output().unwrap();
    assert!(role.status.success(), "{}", String::from_utf8_lossy(&role.stderr));
    space.apply(&String::from_utf8(role.stdout).unwrap());
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let mut pod = spec(&FLAGS);
    pod["initContainers"][0]["env"] = json!([
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("POD_UID", "metadata.uid"),
    ]);
    // It is its rollout that is tested, and not how it does with a hundredth of a CPU.
    pod["initContainers"][0]["resources"]["limits"] = json!({"memory": "32Mi"});
    space.create(&json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": pod},
        },
    }));
}

fn ready(space: &Space, count: usize) -> Vec<Pod<'_>> {
    space.pods_when_there("app=web", count).into_iter().map(Pod::until_ready).collect()
}

fn serve(pods: &[Pod<'_>], text: &str) {
    for pod in pods {
        pod.until_serves(PORT, "/", text);
    }
}

fn state(space: &Space) -> String {
    let lease = space.kubectl_try(&["get", "lease/trimtab-web", "-o", "json"]).unwrap_or_default();
    let lease: Value = serde_json::from_str(&lease).unwrap_or_default();
    let annotations = lease["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
    annotations
        .into_iter()
        .find(|(name, _)| name.ends_with("/state"))
        .map_or(String::new(), |(_, value)| value.as_str().unwrap_or_default().to_owned())
}

fn until(space: &Space, wanted: &str) {
    eventually(&format!("the rollout is {wanted}"), || (state(space) == wanted).then_some(()));
}

#[test]
fn one_replica_goes_first_and_a_new_pod_starts_from_what_is_good() {
    let space = Space::new("fleet");
    fleet(&space, 3);
    let pods = ready(&space, 3);
    serve(&pods, "one");
    // Before the first change is known to be good, there is nothing to hold on to.
    until(&space, "done");
    space.edit("web", "app.txt", "two");
    serve(&pods, "two");
    until(&space, "done");
    let kept = |text: &str| {
        eventually("what is good is kept", || {
            let kept = space.kubectl_try(&["get", "configmap/trimtab-web", "-o", "yaml"]).ok()?;
            kept.contains(text).then_some(())
        });
    };
    kept("two");

    // One replica asks its main process, which refuses; the others never see it.
    space.edit("web", "app.txt", "bad");
    until(&space, "stopped");
    serve(&pods, "two");
    let rejected = |pod: &&Pod<'_>| pod.status().is_some_and(|status| status["quarantine"]["stage"] == "reload");
    assert_eq!(pods.iter().filter(rejected).count(), 1, "more than one took it");

    // In the middle of the incident: the new one starts with what the others run.
    space.patch("deployment", "web", &json!({"spec": {"replicas": 4}}));
    let pods = ready(&space, 4);
    serve(&pods, "two");

    // Without its Lease the fleet goes on: the next change begins a new one.
    space.kubectl(&["delete", "lease/trimtab-web"]);
    space.edit("web", "app.txt", "three");
    serve(&pods, "three");
    until(&space, "done");
    assert!(pods.iter().all(|pod| pod.restarts("main") + pod.restarts("trimtab") == 0));
}

#[test]
fn a_rolling_update_in_the_middle_of_a_rollout_ends_both() {
    let space = Space::new("update");
    fleet(&space, 3);
    serve(&ready(&space, 3), "one");
    until(&space, "done");
    space.edit("web", "app.txt", "two");
    eventually("it is under way", || ["claimed", "baking", "spreading"].contains(&&*state(&space)).then_some(()));
    let patch = json!({"spec": {"template": {"metadata": {"annotations": {"image": "another"}}}}});
    space.patch("deployment", "web", &patch);
    space.kubectl(&["rollout", "status", "deployment/web", "--timeout=180s"]);
    eventually("the old ones are gone", || (space.pods("app=web").len() == 3).then_some(()));
    let pods = ready(&space, 3);
    serve(&pods, "two");
    until(&space, "done");
    space.edit("web", "app.txt", "three");
    serve(&pods, "three");
}
