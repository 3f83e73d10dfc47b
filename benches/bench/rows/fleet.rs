//! Rows on what sidecars cost the API server, alone and as a fleet.

use std::collections::BTreeMap;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use tempfile::TempDir;

use super::api::Watcher;
use super::{Bench, setting};
use crate::audit::{Audit, busiest_second};
use crate::cluster::{Cluster, ServerMetrics};
use crate::guard::Running;
use crate::hook::{Call, Hook};
use crate::measure::{Proc, Samples, milliseconds, now};
use crate::programs::Who;
use crate::report::{Cell, Figure};

/// Requests for an object's kind so far, watches that have not ended among them; of lists alone; bytes of both.
struct Cost {
    watches: f64,
    lists: f64,
    bytes: f64,
}

/// Watches of ConfigMaps that are open.
async fn open(client: &Client) -> Result<f64> {
    Ok(watches(&ServerMetrics::read(client).await?, "configmaps"))
}

fn watches(metrics: &ServerMetrics, kind: &str) -> f64 {
    metrics.sum("apiserver_longrunning_requests", &[("resource", kind), ("verb", "WATCH")])
}

impl Cost {
    async fn read(client: &Client, kind: &str) -> Result<Self> {
        let metrics = ServerMetrics::read(client).await?;
        let requests = |verb| metrics.sum("apiserver_request_total", &[("resource", kind), ("verb", verb)]);
        Ok(Self {
            watches: requests("WATCH") + watches(&metrics, kind),
            lists: requests("LIST"),
            bytes: metrics.sum("apiserver_response_sizes_sum", &[("resource", kind)])
                + metrics.sum("apiserver_watch_events_sizes_sum", &[("resource", kind)]),
        })
    }
}

/// What one sidecar costs the API server, from the server's metrics.
pub fn server(bench: &Bench) -> Result<Vec<Figure>> {
    let seconds: u64 = setting("SERVER", 120)?;
    let cluster = Cluster::start()?;
    cluster.create(&["web".to_owned()], 8000, "")?;
    let client = cluster.client();
    // The server itself watches a ConfigMap or two: they are taken off.
    let before = cluster.wait(Cost::read(&client, "configmaps"))?;
    let name = format!("{}/web", cluster.namespace);
    let trimtab = Watcher::trimtab(bench, &cluster, &["--configmap", &name], "a")?;
    trimtab.first_call()?;
    let synced = cluster.wait(Cost::read(&client, "configmaps"))?;
    thread::sleep(Duration::from_secs(seconds));
    let after = cluster.wait(Cost::read(&client, "configmaps"))?;
    let minutes = seconds.div_ceil(60);
    // At the start one watch; each five minutes another in its place.
    let allowed = 1.0 + f64::from(u32::try_from(seconds / 300)?);
    let number = |value: f64| Cell::number(value, format!("{value:.0}"));
    Ok(vec![
        Figure::new("server", format!("one sidecar in {minutes} min: watches opened"))
            .cell(Who::Trimtab, number(after.watches - before.watches))
            .at_most(Some(allowed), "one, re-opened at most once in 5 min"),
        Figure::new("server", format!("one sidecar in {minutes} min: lists after the first sync"))
            .cell(Who::Trimtab, number(after.lists - synced.lists))
            .at_most(Some(0.0), "none"),
        Figure::new("server", format!("one sidecar in {minutes} min: bytes, with one object of 8 kB"))
            .cell(Who::Trimtab, number(after.bytes - before.bytes)),
    ])
}

/// Many sidecars on one ConfigMap.
struct Fleet {
    hook: Hook,
    members: Vec<Running>,
    _dir: TempDir,
}

impl Fleet {
    fn start(bench: &Bench, cluster: &Cluster, size: usize, more: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(&bench.memory)?;
        let hook = Hook::start(dir.path().join("none"))?;
        let members = (0..size).map(|member| {
            let own = dir.path().join(member.to_string());
            std::fs::create_dir(&own)?;
            let mut command = Command::new(&bench.trimtab);
            command.args(["--configmap", &format!("{}/web", cluster.namespace)]);
            command.arg("--kubeconfig").arg(cluster.kubeconfig()).arg("--output").arg(own.join("conf"));
            command.args(["--reload-url", &format!("http://{}/{member}", hook.address), "--debounce", "0"]);
            command.args(["--listen", "off", "--admin", "off"]).args(more);
            command.env("POD_NAME", format!("web-{member}")).env("POD_UID", format!("0000-{member}"));
            command.env("POD_NAMESPACE", &cluster.namespace);
            Running::start(command, &own)
        });
        let members = members.collect::<Result<Vec<_>>>()?;
        Ok(Self { hook, members, _dir: dir })
    }

    /// Waits until each member has called; when each did so first.
    fn all_called(&self, patience: Duration) -> Result<Vec<Call>> {
        let deadline = now() + patience;
        let mut first = BTreeMap::new();
        while first.len() < self.members.len() {
            let Ok(call) = self.hook.calls.recv_timeout(deadline.saturating_sub(now())) else { break };
            first.entry(call.path.clone()).or_insert(call);
        }
        ensure!(first.len() == self.members.len(), "of {} sidecars {} have called", self.members.len(), first.len());
        Ok(first.into_values().collect())
    }

    /// What all of them take, shared pages counted once: bytes.
    fn memory(&self) -> Result<u64> {
        let one = |member: &Running| Proc(member.process.id()).number("smaps_rollup", "Pss:");
        Ok(self.members.iter().map(one).sum::<Result<u64>>()? * 1024)
    }
}

/// 200 sidecars as processes on one API server: one edit; then the server is killed and started again.
pub fn fleet(bench: &Bench) -> Result<Vec<Figure>> {
    const SIZE: usize = 8000;
    let members = setting("FLEET", 200)?;
    let patience = Duration::from_mins(2);
    let audit = Audit::new()?;
    let mut cluster = Cluster::start_with(audit.flags())?;
    cluster.create(&["web".to_owned()], SIZE, "")?;
    let fleet = Fleet::start(bench, &cluster, members, &[])?;
    fleet.all_called(patience)?;
    thread::sleep(Duration::from_secs(5));
    let memory = fleet.memory()?;
    let edit = |cluster: &Cluster, version| -> Result<Samples> {
        let edited = cluster.edit("web", version, SIZE, "")?;
        let calls = fleet.all_called(patience)?;
        let delays: Vec<_> = calls.iter().map(|call| milliseconds(edited.answered, call.at)).collect();
        Ok(Samples::new(&delays))
    };
    let one_edit = edit(&cluster, 2)?;
    let plain = Return::after_restart(&mut cluster, &audit)?;
    // Each of them watches again.
    let later = edit(&cluster, 3)?;
    // A server that starts knows nothing older than the newest write of all.
    cluster.create(&["other".to_owned()], SIZE, "")?;
    let lost = Return::after_restart(&mut cluster, &audit)?;
    #[expect(clippy::cast_precision_loss, reason = "the members are few")]
    let quarter = members as f64 / 4.0;
    let number = |value: f64| Cell::number(value, format!("{value:.0}"));
    Ok(vec![
        Figure::new("fleet", format!("{members} sidecars, one edit → hook: p50 (p99)"))
            .main()
            .cell(Who::Trimtab, Cell::times(&one_edit)),
        Figure::new("fleet", "the same after a restart of the API server").cell(Who::Trimtab, Cell::times(&later)),
        Figure::new("fleet", "most requests in a second after the restart")
            .main()
            .cell(Who::Trimtab, number(plain.busiest))
            .at_most(Some(quarter), "a quarter of the fleet"),
        Figure::new("fleet", "from the kill to the last of these requests")
            .cell(Who::Trimtab, Cell::number(plain.last, format!("{:.0} s", plain.last))),
        Figure::new("fleet", "most in a second where others had written: watch, list, watch")
            .cell(Who::Trimtab, number(lost.busiest)),
        Figure::new("fleet", format!("memory of the {members}, shared pages once"))
            .main()
            .cell(Who::Trimtab, Cell::bytes(memory)),
    ])
}

/// The same 200 with `--rollout`, at its default durations: one edit, until it is everywhere.
pub fn rollout(bench: &Bench) -> Result<Vec<Figure>> {
    const SIZE: usize = 8000;
    const BAKE: f64 = 60.0;
    const SPREAD: f64 = 300.0;
    let members = setting("FLEET", 200)?;
    // Bake and spread, and what the replicas take to notice: they look a few times a minute.
    let patience = Duration::from_mins(15);
    let audit = Audit::new()?;
    let cluster = Cluster::start_with(audit.flags())?;
    cluster.create(&["web".to_owned()], SIZE, "")?;
    let fleet = Fleet::start(bench, &cluster, members, &["--rollout", "web"])?;
    fleet.all_called(patience)?;
    let first = cluster.wait(finished(&cluster, "", patience))?;
    // The first change is done before each has seen that it is.
    thread::sleep(Duration::from_mins(1));
    let known = audit.arrivals()?.len();
    let edited = cluster.edit("web", 2, SIZE, "")?;
    cluster.wait(finished(&cluster, &first, patience))?;
    let done = now().saturating_sub(edited.answered).as_secs_f64();
    let calls = fleet.all_called(patience)?;
    // Those that follow last ask once more whether it has ended.
    thread::sleep(Duration::from_mins(1));
    let mut asked = audit.arrivals()?.split_off(known);
    // A watch is opened again each five minutes, with a rollout or without.
    asked.retain(|arrival| !arrival.watches);
    let delays: Vec<_> = calls.iter().map(|call| milliseconds(edited.answered, call.at)).collect();
    let first_call = delays.iter().copied().fold(f64::INFINITY, f64::min) / 1000.0;
    #[expect(clippy::cast_precision_loss, reason = "the requests are few")]
    let (each, busiest) = (asked.len() as f64 / members as f64, busiest_second(&asked) as f64);
    let seconds = |value: f64| Cell::number(value, format!("{value:.1} s"));
    Ok(vec![
        Figure::new("rollout", format!("--rollout, {members} sidecars, one edit → done everywhere"))
            .main()
            .cell(Who::Trimtab, seconds(done))
            .at_most(Some((BAKE + SPREAD) * 1.25), "bake and spread, and a quarter"),
        Figure::new("rollout", "one edit → the first replica's hook").cell(Who::Trimtab, seconds(first_call)),
        Figure::new("rollout", "requests for this change, for each sidecar")
            .cell(Who::Trimtab, Cell::number(each, format!("{each:.1}"))),
        Figure::new("rollout", "most of these requests in a second")
            .cell(Who::Trimtab, Cell::number(busiest, format!("{busiest:.0}"))),
    ])
}

/// Waits until another change than this one is everywhere; which.
async fn finished(cluster: &Cluster, before: &str, patience: Duration) -> Result<String> {
    let leases: Api<Lease> = Api::namespaced(cluster.client(), &cluster.namespace);
    let deadline = now() + patience;
    loop {
        let lease = leases.get_opt("trimtab-web").await?;
        let annotations = lease.and_then(|lease| lease.metadata.annotations).unwrap_or_default();
        let of = |name: &str| annotations.get(&format!("trimtab.dev/{name}")).cloned().unwrap_or_default();
        if of("state") == "done" && of("candidate") != before {
            return Ok(of("candidate"));
        }
        ensure!(now() < deadline, "the rollout has not ended: {}: {}", of("state"), of("reason"));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// How a fleet came back to a server that was killed and started again.
struct Return {
    /// The most requests in any second.
    busiest: f64,
    /// Seconds from the kill to the last request.
    last: f64,
}

impl Return {
    /// Restarts the server, and waits until there are as many watches as before.
    fn after_restart(cluster: &mut Cluster, audit: &Audit) -> Result<Self> {
        let patience = Duration::from_mins(2);
        let client = cluster.client();
        let watches = cluster.wait(open(&client))?;
        let known = audit.arrivals()?.len();
        let killed = Timestamp::now();
        cluster.restart_during(async move {
            let deadline = now() + patience;
            // It cannot be asked while it is away.
            while !open(&client).await.is_ok_and(|open| open >= watches) {
                ensure!(now() < deadline, "the fleet has not come back within {patience:?}");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            Ok(())
        })?;
        let arrivals = &audit.arrivals()?[known..];
        let last = arrivals.last().context("nobody has come back")?.at.duration_since(killed).as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "the members are few")]
        let busiest = busiest_second(arrivals) as f64;
        Ok(Self { busiest, last })
    }
}
