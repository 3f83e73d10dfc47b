//! From an edit to the reloaded process, by the API server's watch and by a mounted volume, beside the kubelet's own
//! way to that volume, in one run.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use serde_json::json;

use super::support::app::{PORT, pod, prepare};
use super::support::cgroup::Cgroup;
use super::support::node::within;
use super::support::pod::{Pod, get};
use super::support::space::Space;
use super::support::table;

const EDITS: usize = 24;
/// Edits at every phase of the kubelet's sync of 10 s, and none while the one before is being confirmed (2 s).
const PACE: Duration = Duration::from_millis(2900);
/// The kubelet's sync, on a machine that is busy.
const PATIENCE: Duration = Duration::from_mins(1);

/// What is seen somewhere, and since when: ever newer edits.
type Arrivals = Vec<(usize, Instant)>;

/// Looks again and again for an edit's number.
fn watch(stop: &AtomicBool, look: impl Fn() -> Option<String>) -> Arrivals {
    let mut seen = Arrivals::new();
    loop {
        // Once more after the end was reported: what came before it is seen.
        let ends = stop.load(Ordering::SeqCst);
        let edit = look().and_then(|text| text.strip_prefix("edit ")?.parse().ok());
        if let Some(edit) = edit.filter(|edit| seen.last().is_none_or(|(last, _)| last < edit)) {
            seen.push((edit, Instant::now()));
        }
        if ends {
            return seen;
        }
        sleep(Duration::from_millis(5));
    }
}

/// The Pod with the ConfigMap mounted into Trimtab's container besides.
fn mounted<'a>(space: &'a Space, name: &str, flags: &[&str]) -> Pod<'a> {
    let mut object = pod(name, flags);
    let spec = &mut object["spec"];
    spec["volumes"].as_array_mut().unwrap().push(json!({"name": "mounted", "configMap": {"name": "web"}}));
    let mounts = spec["initContainers"][0]["volumeMounts"].as_array_mut().unwrap();
    mounts.push(json!({"name": "mounted", "mountPath": "/mounted", "readOnly": true}));
    space.create(&object);
    space.pod(name)
}

fn row(what: &str, edits: &[(Instant, Instant)], arrivals: &Arrivals) -> Vec<String> {
    let mut row = vec![what.to_owned(), edits.len().to_string()];
    let arrived = |edit: usize| arrivals.iter().find(|(seen, _)| *seen >= edit).expect("all have arrived").1;
    for from in [|edit: &(Instant, Instant)| edit.0, |edit: &(Instant, Instant)| edit.1] {
        let mut delays: Vec<_> = edits
            .iter()
            .enumerate()
            .map(|(index, edit)| arrived(index + 1).saturating_duration_since(from(edit)))
            .collect();
        delays.sort_unstable();
        let cell = |delay: &Duration| format!("{:.2} s", delay.as_secs_f64());
        row.extend([cell(&delays[delays.len() / 2]), cell(delays.last().unwrap())]);
    }
    row
}

#[test]
fn edit_arrives_by_the_watch_and_by_the_mounted_volume() {
    let space = Space::new("latency");
    prepare(&space, "edit 0");
    let to_app = ["--signal=HUP", "--process-args=/program/app.py"];
    let watching = mounted(&space, "watching", &[&["--configmap=web"], &to_app[..]].concat());
    let reading = mounted(&space, "reading", &[&["--watch-dir=/mounted"], &to_app[..]].concat());
    let (watching, reading) = (watching.until_ready(), reading.until_ready());
    let ips = [watching.ip(), reading.ip()];
    let volumes = [&watching, &reading].map(|pod| {
        let uid = pod.object()["metadata"]["uid"].as_str().unwrap().to_owned();
        Path::new("/var/lib/kubelet/pods").join(uid).join("volumes/kubernetes.io~configmap/mounted/app.txt")
    });

    let stop = AtomicBool::new(false);
    let mut edits = Vec::new();
    let mut seen = scope(|scope| {
        let watch = |look: Box<dyn Fn() -> Option<String> + Send>| {
            let stop = &stop;
            scope.spawn(move || watch(stop, look))
        };
        let served = |ip: &String| -> Box<dyn Fn() -> Option<String> + Send> {
            let ip = ip.clone();
            Box::new(move || get(&ip, PORT, "/"))
        };
        let stored = |path: &Path| -> Box<dyn Fn() -> Option<String> + Send> {
            let path = path.to_owned();
            Box::new(move || fs::read_to_string(&path).ok())
        };
        let watches =
            [watch(served(&ips[0])), watch(stored(&volumes[0])), watch(stored(&volumes[1])), watch(served(&ips[1]))];
        let last = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for edit in 1..=EDITS {
                let started = Instant::now();
                space.edit("web", "app.txt", &format!("edit {edit}"));
                edits.push((started, Instant::now()));
                sleep(PACE.saturating_sub(started.elapsed()));
            }
            let text = format!("edit {EDITS}");
            for ip in &ips {
                within(PATIENCE, "the last edit is served", || (get(ip, PORT, "/")? == text).then_some(()));
            }
            for volume in &volumes {
                within(PATIENCE, "the last edit is mounted", || {
                    (fs::read_to_string(volume).ok()? == text).then_some(())
                });
            }
        }));
        stop.store(true, Ordering::SeqCst);
        let seen = watches.map(|thread| thread.join().unwrap());
        if let Err(panic) = last {
            std::panic::resume_unwind(panic);
        }
        seen.into_iter()
    });

    let head = ["", "n", "from its start: p50", "max", "from the answer: p50", "max"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for what in [
        "--configmap: served by the reloaded process",
        "the kubelet's volume in that Pod: written",
        "the kubelet's volume in the other Pod: written",
        "--watch-dir on it: served by the reloaded process",
    ] {
        rows.push(row(what, &edits, &seen.next().unwrap()));
    }
    table::print("From kubectl patch to …, with Trimtab at memory 16Mi and cpu 10m", &rows);
    let mut rows = vec![["", "peak", "throttled periods"].map(str::to_owned).to_vec()];
    for pod in [&watching, &reading] {
        rows.push([vec![pod.name().to_owned()], Cgroup::of(pod, "trimtab").cells().into()].concat());
        assert_eq!(pod.restarts("trimtab") + pod.restarts("main"), 0);
    }
    table::print("Trimtab's cgroup", &rows);
}
