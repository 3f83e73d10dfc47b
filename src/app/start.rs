//! The start: bind, lock, find what an earlier life left, recover.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{info, warn};

use super::archive::Archivist;
use super::fallback::Fallback;
use super::ledger::Ledger;
use super::report::Reporter;
use super::rollout::{Fleet, Subject};
use super::steps::Steps;
use super::{App, Config, End};
use crate::candidate::syntax::Syntax;
use crate::machine::{self, Machine};
use crate::model::digest::{Digest, DigestKey};
use crate::model::journal::Journal;
use crate::net::server::Guard;
use crate::observe::admin::{self, Ask, Server, Shared};
use crate::observe::history::History;
use crate::observe::metrics::Metrics;
use crate::observe::pod_events::PodEvents;
use crate::observe::status;
use crate::observe::way::Stations;
use crate::os::file;
use crate::os::signals::{Signalled, Signals};
use crate::publish::{self, FoundJournal, Lock, Output, PublishError};
use crate::reload::Driver;
use crate::reload::process::Clock;
use crate::render::Pod;
use crate::source::Published;
use crate::source::feed::{Feed, Keep};
use crate::source::kube::{self, KubeError};

/// The longest `--digest-key-file`, in bytes.
const DIGEST_KEY_LIMIT: u64 = 64 * 1024;

/// Runs the sidecar until a signal ends it. An error is a failure at start; how the run ends comes with it.
pub async fn run(config: Config) -> Result<End, (End, anyhow::Error)> {
    let mut signals = Signals::new().context("signal handlers").map_err(|error| (End::StartUp, error))?;
    let clients = clients(&config).await?;
    let (asks, mut asked) = mpsc::channel(16);
    let shared = Shared { status: Arc::default(), metrics: Arc::new(Metrics::with_webhooks(&config.webhooks)), asks };
    let mut tasks = JoinSet::new();
    if config.once.is_none() {
        let guard = config.guard.as_ref().filter(|_| config.listen.is_some()).map(Guard::load).transpose();
        let guard = guard.map_err(|error| (End::StartUp, error.into()))?.map(Arc::new);
        let servers = bind(&config).map_err(|error| (End::StartUp, error))?;
        for (server, listener) in servers {
            let guard = guard.clone().filter(|_| server == Server::Listen);
            let serving = admin::serve(server, listener, shared.clone(), guard);
            tasks.spawn(async move { match serving.await {} });
        }
    }
    let output = config.output.as_ref().map(open).transpose().map_err(|error| (End::CannotWrite, error))?;
    let lock = match &output {
        None => None,
        Some(output) => match lock(output, &shared, &mut asked, &mut signals, config.once).await? {
            Some(lock) => Some(lock),
            None => return Ok(End::by_signal(config.once)),
        },
    };
    if let Some(output) = output.as_ref().filter(|_| config.once_if_empty)
        && is_used(output).map_err(|error| (End::CannotWrite, error))?
    {
        info!("--output has files in it: they stay, and nothing is fetched (--once-if-empty)");
        return Ok(End::Done);
    }
    let given = given_key(&config).map_err(|error| (End::StartUp, error))?;
    let key =
        given.clone().map_or_else(|| own_key(output.as_deref()), Ok).map_err(|error| (End::CannotWrite, error))?;
    let fleet = match config.rollout.clone() {
        None => None,
        Some(rollout) => {
            let way = clients.clone().or_else(kube::Clients::of_this_pod);
            let way = way.context(
                "--rollout needs a way to the API server, for its Lease: a service account's token in the Pod, or sources from \
                 the API server with --kubeconfig",
            );
            let way = way.map_err(|error| (End::Usage, error))?;
            let (confirm, selector) = (config.confirm.clone(), config.reload.selector().cloned());
            Some(Box::new(Fleet::new(rollout, way, given, Subject { confirm, selector, key: key.clone() })))
        }
    };
    let mut app =
        App::start(config, clients, output, key, lock, shared, tasks).map_err(|error| (End::CannotWrite, error))?;
    app.fleet = fleet;
    Ok(Box::pin(app.run(asked, signals)).await)
}

/// Clients for the API server, if a source needs it; an error where the flags make no sense.
pub(crate) async fn clients(config: &Config) -> Result<Option<kube::Clients>, (End, anyhow::Error)> {
    let clients = config.client.clone().map(kube::Clients::new);
    if let Some(clients) = &clients {
        match clients.check().await {
            // The API server, a file or a credential may come yet: its source says what is missing.
            Ok(()) | Err(KubeError::Unreadable { .. } | KubeError::Credentials(_)) => {}
            Err(error) => return Err((End::Usage, error.into())),
        }
    }
    Ok(clients)
}

/// The key of `--digest-key-file`, if that is given.
pub(crate) fn given_key(config: &Config) -> anyhow::Result<Option<DigestKey>> {
    let Some(path) = &config.digest_key_file else { return Ok(None) };
    let read = file::read_regular(path, DIGEST_KEY_LIMIT);
    let (bytes, _) = read.with_context(|| format!("--digest-key-file {}", path.display()))?;
    anyhow::ensure!(!bytes.is_empty(), "--digest-key-file {}: it is empty", path.display());
    Ok(Some(DigestKey::derive(&bytes)))
}

fn open(config: &publish::Config) -> anyhow::Result<Arc<Output>> {
    let (output, warnings) = Output::open(config)?;
    for warning in warnings {
        warn!("{warning}");
    }
    Ok(Arc::new(output))
}

/// Whether there is something in the output, once a swap that was cut off is ended.
fn is_used(output: &Output) -> anyhow::Result<bool> {
    for warning in output.finish()? {
        warn!("{warning}");
    }
    Ok(output.is_used()?)
}

/// The output's digest key; without an output, one for this run.
pub(crate) fn own_key(output: Option<&Output>) -> anyhow::Result<DigestKey> {
    if let Some(output) = output {
        return Ok(output.digest_key()?);
    }
    let mut bytes = [0; 32];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).context("random bytes for a digest")?;
    Ok(DigestKey::new(bytes))
}

fn bind(config: &Config) -> anyhow::Result<Vec<(Server, TcpListener)>> {
    let mut servers = Vec::new();
    for (server, flag, address) in
        [(Server::Listen, "--listen", config.listen), (Server::Admin, "--admin", config.admin)]
    {
        if let Some(address) = address {
            let listener = match admin::bind(flag, address) {
                Ok(listener) => listener,
                Err(error) if !config.needs_servers => {
                    warn!("{error}; going on without it (--on-bind-error warn)");
                    continue;
                }
                Err(error) => return Err(error),
            };
            info!("{flag} serves on {}", listener.local_addr()?);
            servers.push((server, listener));
        }
    }
    Ok(servers)
}

/// Waits until no other Trimtab has this output; `None` where a signal ends the run meanwhile.
async fn lock(
    output: &Output,
    shared: &Shared,
    asked: &mut mpsc::Receiver<Ask>,
    signals: &mut Signals,
    once: Option<Duration>,
) -> Result<Option<Lock>, (End, anyhow::Error)> {
    let since = Instant::now();
    let message = "another Trimtab holds the output's lock; two on one output would undo each other's work: \
                   waiting until it ends";
    let mut logged = false;
    loop {
        match output.try_lock() {
            Ok(Some(lock)) => {
                shared.update(|status| status.errors.remove("lock"));
                return Ok(Some(lock));
            }
            Ok(None) if once.is_some_and(|limit| since.elapsed() > limit) => {
                return Err((End::CannotWrite, anyhow::anyhow!(message)));
            }
            Ok(None) if !std::mem::replace(&mut logged, true) => {
                let problem = status::Problem { message: message.into(), at: Timestamp::now() };
                shared.update(|status| {
                    status.phase = machine::Phase::Syncing.as_str();
                    status.errors.insert("lock", problem)
                });
                let (verdict, _) = shared.judge();
                warn!(verdict = verdict.state.as_str(), "{}", verdict.line());
            }
            Ok(None) => {}
            Err(error) => return Err((End::CannotWrite, error.into())),
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
            signalled = signals.next() => if matches!(signalled, Signalled::Terminate) { return Ok(None) },
            Some(ask) = asked.recv() => match ask {
                // Whoever asks may have gone away.
                Ask::Ping(answer) => { let _ = answer.send(()); }
                Ask::Retry(answer) => { let _ = answer.send("waiting for the output's lock; nothing to retry\n"); }
            },
        }
    }
}

/// A machine for what the output holds, and its first effects.
struct Recovered {
    machine: Machine,
    effects: Vec<machine::Effect>,
    /// As [`App::said_before`].
    said_before: Option<Digest>,
}

fn recover(config: &Config, output: Option<&Output>, key: &DigestKey) -> anyhow::Result<Recovered> {
    let Some(output) = output else {
        let (machine, effects) = machine::recover(config.machine.clone(), None, &machine::Disk::default());
        return Ok(Recovered { machine, effects, said_before: None });
    };
    for warning in output.finish()? {
        warn!("{warning}");
    }
    let boot = Clock::new().ok().map(|clock| clock.now().boot_id);
    let (journal, disk) = output.find(boot.as_deref(), key)?;
    let journal = match journal {
        FoundJournal::Nothing => None,
        FoundJournal::Journal(journal) => Some(journal),
        FoundJournal::SetAside { reason, name } => {
            warn!(
                "the journal cannot be used: {reason}; it is set aside as {name}, and a reload is taken to be pending"
            );
            None
        }
    };
    // An init container that is started again is to try again.
    let journal = journal.map(|journal| match config.once {
        Some(_) => Journal { quarantine: None, ..journal },
        None => journal,
    });
    let rejected = journal.as_ref().filter(|journal| journal.current.is_none());
    let rejected = rejected.and_then(|journal| journal.quarantine.as_ref());
    let said_before = rejected.filter(|rejected| rejected.gate == config.machine.gate).map(|rejected| rejected.digest);
    let (machine, effects) = machine::recover(config.machine.clone(), journal, &disk);
    if let Some(link) = disk.link.filter(|link| disk.torn.is_some_and(|torn| torn.contains(link))) {
        let instead = match &machine.journal().current {
            Some(whole) => format!("generation {}, which is whole, is made current again", whole.directory),
            None => "nothing else is whole, and Trimtab is not ready before the newest inputs are published".to_owned(),
        };
        warn!("the disk may have lost writes when the node went down, and generation {link} is not whole: {instead}");
    }
    Ok(Recovered { machine, effects, said_before })
}

impl App {
    fn start(
        config: Config,
        clients: Option<kube::Clients>,
        output: Option<Arc<Output>>,
        key: DigestKey,
        lock: Option<Lock>,
        shared: Shared,
        mut tasks: JoinSet<()>,
    ) -> anyhow::Result<Self> {
        let Recovered { machine, effects, said_before } = recover(&config, output.as_deref(), &key)?;
        for spec in &config.specs {
            shared.metrics.source_added(&spec.name);
        }
        let events_go_to = clients.clone().or_else(kube::Clients::of_this_pod);
        let events = PodEvents::start(events_go_to, &config.render.pod, &mut tasks);
        shared.update(|status| {
            status.stations = Stations {
                validate: config.validate.syntax != Syntax::Off || !config.validate.commands.is_empty(),
                reload: !matches!(config.reload.driver, Driver::None),
                confirm: config.confirm.is_needed(),
            };
            let Pod { name, namespace, node, .. } = &config.render.pod;
            status.pod = status::Pod { name: name.clone(), namespace: namespace.clone(), node: node.clone() };
            status.version = env!("CARGO_PKG_VERSION");
            status.history =
                output.as_ref().map(|output| History::restored(&output.read_history())).unwrap_or_default();
        });
        let api = clients.map(|clients| (clients, &config.watches[..]));
        let keep = keep(&config, output.as_deref())?;
        let journal = machine.journal();
        let published = Published::of(journal.current.as_ref());
        let feed =
            Feed::start(&mut tasks, &config.specs, &config.files, &config.urls, api, config.render.max_size, &keep)
                .on_top_of(published, !config.render.templated);
        let report = Reporter::new(shared, events, &machine, config.validate.candidates);
        let archivist = config.archive.clone().zip(output.as_ref());
        let good = journal.last_good.as_ref();
        let archivist =
            archivist.map(|(archive, output)| Archivist::start(archive, output, &key, good, &report, &mut tasks));
        let fallback = config.fallback.clone().and_then(|fallback| {
            let spool = keep.of(&fallback.source).cloned();
            Fallback::start(fallback, &machine, spool).map(Box::new)
        });
        let mut app = Self {
            settings: Arc::new(config.render.clone()),
            feed,
            ledger: Ledger::found(journal),
            report,
            steps: Steps::new(&config, output, key, tasks),
            fleet: None,
            archivist,
            fallback,
            aside: None,
            machine,
            timers: BTreeMap::new(),
            inputs: None,
            observed: None,
            said_before,
            end: None,
            _lock: lock,
            config,
        };
        app.carry_out(effects, Duration::ZERO);
        app.archive();
        app.report();
        Ok(app)
    }
}

/// Where values are kept. What is secret goes to the output's volume only where all of it is published there.
fn keep(config: &Config, output: Option<&Output>) -> Result<Keep, PublishError> {
    let of_api = config.keeps_on_disk();
    let of_urls = !config.urls.sources.is_empty() || config.fallback.is_some();
    let spool = output.filter(|_| of_api || of_urls).map(Output::spool).transpose()?;
    Ok(Keep {
        api: spool.clone().filter(|_| of_api),
        secret_urls: spool.clone().filter(|_| !config.render.templated),
        urls: spool,
    })
}
