//! A hundred edits, a third of them bad, on the examples of nginx, HAProxy and Envoy side by side, with Trimtab at 16Mi
//! and a hundredth of a CPU, while a client asks all the time.

use std::collections::BTreeSet;
use std::panic::resume_unwind;
use std::thread::scope;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::support::cgroup::Cgroup;
use super::support::client::{Client, Seen};
use super::support::example::{manifest, tight};
use super::support::metrics::{Metrics, metrics};
use super::support::node::{eventually, within};
use super::support::space::Space;
use super::support::table;

const EDITS: usize = 100;
const BAD: usize = EDITS / 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edit {
    Good,
    /// Does not render: never visible.
    Unrendered,
    /// Renders, and the main process does not take it: rolled back.
    Refused,
}

/// An example, and what people edit of it.
struct Program {
    example: &'static str,
    /// Of its Pod, and the container that is not Trimtab.
    label: &'static str,
    main: &'static str,
    configmap: &'static str,
    /// What is asked for, the status of a good answer, whose body says by which edit, and what it is before the first.
    path: &'static str,
    statuses: &'static [u16],
    unedited: &'static [&'static str],
    /// How many of the bad ones are rolled back, each after the example's `--confirm-timeout`.
    refused: usize,
    keys: fn(usize, Edit) -> Value,
}

const PROGRAMS: [Program; 3] = [
    Program {
        example: "nginx",
        label: "app=web",
        main: "nginx",
        configmap: "web",
        path: "/",
        statuses: &[200],
        unedited: &["hello"],
        refused: 3, // the default of 30 s
        keys: |edit, kind| {
            let workers = match kind {
                Edit::Good => Some(["1", "2"][edit % 2]),
                Edit::Unrendered => [Some("many"), None][edit % 2],
                Edit::Refused => Some("-1"),
            };
            json!({"greeting": body(edit), "workers": workers})
        },
    },
    Program {
        example: "haproxy",
        label: "app=balancer",
        main: "haproxy",
        configmap: "balancer",
        path: "/",
        // With no server left it answers by itself, with a notice that people edit.
        statuses: &[200, 503],
        // The notice too: at the first reload the old worker, whose own servers end with it, answered so once.
        unedited: &["blue", "green", "nobody is at home"],
        refused: 6,
        keys: |edit, kind| {
            let (balance, servers) = match kind {
                Edit::Good => (["roundrobin", "leastconn"][edit % 2], "[]"),
                Edit::Unrendered => ("roundrobin", ["- {name: blue", "- {weight: 1}"][edit % 2]),
                Edit::Refused => ("sideways", "[]"),
            };
            json!({"notice": body(edit), "balance": balance, "servers": servers})
        },
    },
    Program {
        example: "envoy",
        label: "app=gateway",
        main: "envoy",
        configmap: "gateway",
        path: "/edit",
        statuses: &[200],
        unedited: &["back"],
        refused: 6,
        keys: |edit, kind| {
            let edited = format!("- {{prefix: /edit, text: {}}}\n", body(edit));
            let (timeout, rest) = match kind {
                Edit::Good => (["5s", "6s"][edit % 2], "- {prefix: /, cluster: back}\n"),
                Edit::Unrendered => ("5s", ["- {prefix: /", "- {cluster: back}\n"][edit % 2]),
                Edit::Refused => ("soon", "- {prefix: /, cluster: back}\n"),
            };
            json!({"timeout": timeout, "routes": edited + rest})
        },
    },
];

fn body(edit: usize) -> String {
    format!("edit-{edit}")
}

/// Which edits are bad, spread over all of them, and among those which are refused.
fn kinds(refused: usize) -> Vec<Edit> {
    let nth = |index: usize, part: usize, whole: usize| (index + 1) * part / whole > index * part / whole;
    let mut bad = (0..BAD).map(|index| if nth(index, refused, BAD) { Edit::Refused } else { Edit::Unrendered });
    (0..EDITS).map(|index| if nth(index, BAD, EDITS) { bad.next().unwrap() } else { Edit::Good }).collect()
}

fn rejected(metrics: &Metrics) -> usize {
    metrics.get(r#"trimtab_stage_total{stage="render",result="rejected"}"#)
}

fn rolled_back(metrics: &Metrics) -> usize {
    metrics.get("trimtab_rollbacks_total")
}

/// What became of them: a row of the table, and what is wrong with it.
fn play(program: &Program) -> (Vec<String>, Vec<String>) {
    let space = Space::new(program.example);
    space.apply(&tight(&manifest(program.example)));
    let pod = space.pods_when_there(program.label, 1).remove(0).until_ready();
    let ip = pod.ip();
    let patch = |edit, kind| {
        space.patch("configmap", program.configmap, &json!({"data": (program.keys)(edit, kind)}));
    };
    let count = |what: fn(&Metrics) -> usize| eventually("Trimtab counts", || metrics(&ip).map(|all| what(&all)));

    let client = Client::start(format!("{ip}:8080").parse().unwrap(), program.path, program.statuses);
    let mut good: BTreeSet<_> = program.unedited.iter().map(ToString::to_string).collect();
    let mut newest = 0;
    let kinds = kinds(program.refused);
    let (mut delays, began) = (Vec::new(), Instant::now());
    for (index, kind) in kinds.iter().enumerate() {
        let edit = index + 1;
        let what = format!("{}: edit {edit}, {kind:?}", program.example);
        match kind {
            Edit::Good => {
                patch(edit, Edit::Good);
                let written = Instant::now();
                good.insert(body(edit));
                newest = edit;
                // A bad one that comes any sooner takes its place; a good one comes in the middle of its way.
                if kinds.get(edit) != Some(&Edit::Good) {
                    eventually(&what, || (client.newest() == body(edit)).then_some(()));
                    delays.push(written.elapsed());
                }
            }
            Edit::Unrendered => {
                let before = count(rejected);
                patch(edit, *kind);
                eventually(&what, || (rejected(&metrics(&ip)?) > before).then_some(()));
            }
            Edit::Refused => {
                let before = count(rolled_back);
                patch(edit, *kind);
                eventually(&what, || {
                    let all = metrics(&ip)?;
                    (rolled_back(&all) > before && all.get("trimtab_debt") == 0).then_some(())
                });
            }
        }
    }
    within(Duration::from_mins(1), "nothing is due", || (metrics(&ip)?.get("trimtab_debt") == 0).then_some(()));
    let took = began.elapsed();
    let last = client.newest();
    let seen = client.stop();
    let bad_served: usize = seen.bodies.iter().filter(|(body, _)| !good.contains(*body)).map(|(_, count)| count).sum();
    let all = metrics(&ip).unwrap();
    let [peak, throttled] = Cgroup::of(&pod, "trimtab").cells();
    delays.sort_unstable();
    let row = vec![
        program.example.to_owned(),
        EDITS.to_string(),
        (EDITS - BAD).to_string(),
        BAD.to_string(),
        rejected(&all).to_string(),
        rolled_back(&all).to_string(),
        seen.requests.to_string(),
        seen.failed.len().to_string(),
        bad_served.to_string(),
        all.get(r#"trimtab_stage_total{stage="reload",result="success"}"#).to_string(),
        format!("{:.1?}", delays[delays.len() / 2]),
        format!("{took:.0?}"),
        peak,
        throttled,
    ];

    let mut wrong = Vec::new();
    let mut expect = |holds: bool, what: String| {
        if !holds {
            wrong.push(format!("{}: {what}", program.example));
        }
    };
    let Seen { failed, bodies, .. } = seen;
    expect(failed.is_empty(), format!("requests failed: {failed:#?}"));
    expect(bad_served == 0, format!("bad configurations were served: {bodies:?}"));
    expect(last == body(newest), format!("{last} is served in the end, not {}", body(newest)));
    expect(rolled_back(&all) == program.refused, "not each refused edit, and no other, was rolled back".to_owned());
    expect(rejected(&all) == BAD - program.refused, "not each edit was refused that does not render".to_owned());
    let restarts = pod.restarts("trimtab") + pod.restarts(program.main);
    expect(restarts == 0, format!("{restarts} restarts"));
    if !wrong.is_empty() {
        eprintln!("--- {}\n{}", program.example, pod.log("trimtab"));
    }
    (row, wrong)
}

#[test]
fn hundred_edits_a_third_of_them_bad_fail_no_request_and_serve_nothing_bad() {
    let results: Vec<_> = scope(|scope| {
        let threads: Vec<_> = PROGRAMS.iter().map(|program| scope.spawn(move || play(program))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    });
    let head = [
        "",
        "edits",
        "good",
        "bad",
        "not rendered",
        "rolled back",
        "requests",
        "failed",
        "bad served",
        "reloads",
        "edit to served (p50)",
        "took",
        "peak",
        "throttled periods",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(results.iter().map(|(row, _)| row.clone()));
    table::print("Edits, with Trimtab at memory 16Mi and cpu 10m", &rows);
    let wrong: Vec<_> = results.into_iter().flat_map(|(_, wrong)| wrong).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
