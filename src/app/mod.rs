//! The app: builds the parts, runs the machine's effects, owns every task.
//!
//! One loop takes what happened (a source told something, a step ended, a timer fired, a signal came, somebody asked),
//! gives it to the [`Machine`], and carries out what that says. Rendering and writing run in the blocking pool, one at
//! a time; a reload attempt is a task. Each answers with a [`Done`].

mod config;
mod end;
mod report;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, error, info, warn};

pub use config::Config;
pub use end::End;

use crate::candidate::{self, Candidate, CandidateError, Made, Order};
use crate::machine::{self, Effect, Event, Machine, Outcome, Step, Timer, Wait, Write};
use crate::model::content::Content;
use crate::model::digest::{Digest, DigestKey};
use crate::model::journal::{Baseline, Generation, Journal, Moment, Quarantine, Rejection};
use crate::model::object::{Object, ObjectRef};
use crate::model::snapshot::Versions;
use crate::model::stage::Stage;
use crate::observe::admin::{self, Ask, Server, Shared};
use crate::observe::metrics::{Ending, Metrics};
use crate::observe::pod_events::PodEvents;
use crate::observe::status::{self, Status};
use crate::os::backoff;
use crate::os::fault::Faults;
use crate::os::mask::Said;
use crate::os::signals::{Signalled, Signals};
use crate::publish::{FoundJournal, Lock, Output};
use crate::reload::confirm;
use crate::reload::process::{self, Clock};
use crate::reload::{Notified, Reloader, Verdict};
use crate::render::{Drawn, Inputs, Settings};
use crate::source::kube::KubeError;
use crate::source::{self, Sources, View, kube};
use crate::source::{Seen, Update};

/// The longest `--digest-key-file`, in bytes.
const DIGEST_KEY_LIMIT: u64 = 64 * 1024;

/// The answer to an effect.
enum Done {
    Rendered {
        step: Step,
        made: Box<Made>,
        /// What `--confirm-url` said when the candidate was staged.
        baseline: Option<Baseline>,
    },
    Written {
        step: Step,
        took: Duration,
        done: usize,
        at: Option<Moment>,
        error: Option<String>,
    },
    Reloaded {
        step: Step,
        took: Duration,
        verdict: Verdict,
    },
    Confirmed {
        step: Step,
        took: Duration,
        verdict: confirm::Verdict,
    },
    Verified {
        step: Step,
        /// What is wrong with the generation, if anything.
        wrong: Option<String>,
        baseline: Option<Baseline>,
    },
    Abandoned {
        step: Step,
    },
    /// The target was checked for whether it can read what was published; what is wrong, if anything.
    Checked {
        message: Option<String>,
    },
}

/// Runs the sidecar until it is told to end. An error is a failure at start; how the run ends comes with it.
pub async fn run(config: Config) -> Result<End, (End, anyhow::Error)> {
    let mut signals = Signals::new().context("signal handlers").map_err(|error| (End::StartUp, error))?;
    let clients = clients(&config).await?;
    let (asks, mut asked) = mpsc::channel(16);
    let shared = Shared { status: Arc::default(), metrics: Arc::new(Metrics::new()), asks };
    let mut tasks = JoinSet::new();
    if config.once.is_none() {
        let servers = bind(&config).map_err(|error| (End::StartUp, error))?;
        for (server, listener) in servers {
            let serving = admin::serve(server, listener, shared.clone());
            tasks.spawn(async move { match serving.await {} });
        }
    }
    let (output, warnings) =
        Output::open(&config.output).map_err(|error| (End::CannotWrite, anyhow::Error::from(error)))?;
    for warning in warnings {
        warn!("{warning}");
    }
    let output = Arc::new(output);
    let Some(lock) = lock(&output, &shared, &mut asked, &mut signals, config.once).await? else {
        return Ok(End::by_signal(config.once));
    };
    let given = given_key(&config).map_err(|error| (End::StartUp, error))?;
    let key = given.map_or_else(|| output.digest_key(), Ok).map_err(|error| (End::CannotWrite, error.into()))?;
    let app =
        App::start(config, clients, output, key, lock, shared, tasks).map_err(|error| (End::CannotWrite, error))?;
    Ok(app.run(asked, signals).await)
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
    let read = crate::os::file::read_regular(path, DIGEST_KEY_LIMIT);
    let (bytes, _) = read.with_context(|| format!("--digest-key-file {}", path.display()))?;
    anyhow::ensure!(!bytes.is_empty(), "--digest-key-file {}: it is empty", path.display());
    Ok(Some(DigestKey::derive(&bytes)))
}

fn bind(config: &Config) -> anyhow::Result<Vec<(Server, TcpListener)>> {
    let mut servers = Vec::new();
    for (server, flag, address) in
        [(Server::Listen, "--listen", config.listen), (Server::Admin, "--admin", config.admin)]
    {
        if let Some(address) = address {
            let listener = admin::bind(flag, address)?;
            info!("{flag} serves on {}", listener.local_addr()?);
            servers.push((server, listener));
        }
    }
    Ok(servers)
}

/// Waits until no other Trimtab has this output; `None` when told to end meanwhile.
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
    let mut said = false;
    loop {
        match output.try_lock() {
            Ok(Some(lock)) => {
                with(shared, |status| status.errors.remove("lock"));
                return Ok(Some(lock));
            }
            Ok(None) if once.is_some_and(|limit| since.elapsed() > limit) => {
                return Err((End::CannotWrite, anyhow::anyhow!(message)));
            }
            Ok(None) if !std::mem::replace(&mut said, true) => {
                warn!("{message}");
                let problem = status::Problem { message: message.into(), at: Timestamp::now() };
                with(shared, |status| {
                    status.phase = machine::Phase::Syncing.as_str();
                    status.errors.insert("lock", problem)
                });
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

fn with<T>(shared: &Shared, change: impl FnOnce(&mut Status) -> T) -> T {
    change(&mut shared.status.lock().unwrap_or_else(PoisonError::into_inner))
}

/// What a generation was made of, as far as it is needed later.
#[derive(Clone, Default)]
struct Ingredients {
    /// The selected objects that were taken.
    objects: Versions,
    /// The secrets that the main process may print while it has the generation. `None`: not known, as it was found at
    /// start and its inputs are gone.
    secrets: Option<Vec<Content>>,
}

impl Ingredients {
    fn found(none_such: bool) -> Arc<Self> {
        Arc::new(Self { objects: Versions::default(), secrets: none_such.then(Vec::new) })
    }
}

#[expect(clippy::struct_excessive_bools, reason = "independent facts: each has its own cause and its own end")]
struct App {
    config: Config,
    settings: Arc<Settings>,
    validate: Arc<candidate::Config>,
    output: Arc<Output>,
    key: DigestKey,
    sources: Sources,
    machine: Machine,
    timers: BTreeMap<Timer, Instant>,
    /// `None` where `/proc` does not tell the boot.
    clock: Option<Clock>,
    reloader: Arc<Mutex<Reloader>>,
    /// What the last reload that was taken leaves to the confirmation.
    notified: Option<Box<Notified>>,
    /// The attempt in flight, and whether it may be given up.
    attempt: Option<(Step, AbortHandle)>,
    /// The confirmation in flight, and how it is told not to wait for somebody who is not there.
    confirming: Option<(Step, watch::Sender<bool>)>,
    shared: Shared,
    done: (mpsc::Sender<Done>, mpsc::Receiver<Done>),
    updates: mpsc::Receiver<Update>,
    refresh: watch::Sender<u64>,
    /// The newest complete inputs.
    inputs: Option<Inputs>,
    observed: Option<(Digest, Timestamp, Instant)>,
    /// What the candidate is made of, the published generation, the one that it replaced, and the last good one.
    staged: Ingredients,
    published: Arc<Ingredients>,
    before: Arc<Ingredients>,
    good: Arc<Ingredients>,
    /// What was rendered last.
    drawn: Option<Drawn>,
    /// Whether the published generation was found at start, and what it holds of the selected objects is not known yet.
    unknown: bool,
    /// Whether what was said of the present problem was not shown, since secrets were not known.
    unsaid: bool,
    /// Whether the newest candidate could not be written: that what failed is tidied up solves nothing.
    unstaged: bool,
    /// Why the newest inputs do not render, without content.
    brief: Option<String>,
    events: PodEvents,
    /// What `--syntax warn` found in the newest candidate.
    warned: Vec<String>,
    waited_for: Vec<String>,
    was_up: Vec<Option<bool>>,
    was_settled: bool,
    was_held: bool,
    exit: Option<End>,
    faults: Faults,
    tasks: JoinSet<()>,
    _lock: Lock,
}

impl App {
    fn start(
        config: Config,
        clients: Option<kube::Clients>,
        output: Arc<Output>,
        key: DigestKey,
        lock: Lock,
        shared: Shared,
        mut tasks: JoinSet<()>,
    ) -> anyhow::Result<Self> {
        for warning in output.finish()? {
            warn!("{warning}");
        }
        let journal = match output.read_journal()? {
            FoundJournal::Nothing => None,
            FoundJournal::Journal(journal) => Some(journal),
            FoundJournal::SetAside { reason, name } => {
                warn!(
                    "the journal cannot be used: {reason}; it is set aside as {name}, and a reload is taken to be owed"
                );
                None
            }
        };
        // An init container that is started again is to try again.
        let journal = journal.map(|journal| match config.once {
            Some(_) => Journal { quarantine: None, ..journal },
            None => journal,
        });
        let (machine, effects) = machine::recover(config.machine.clone(), journal, &output.disk()?);
        if let Some(Quarantine { digest, rejection: Rejection { stage, reason, at }, .. }) =
            &machine.journal().quarantine
        {
            warn!(%stage, "inputs {} are in quarantine since {at}, and not tried until somebody asks: {reason}", digest.short());
        }
        let (told, updates) = mpsc::channel(64);
        let refresh = watch::Sender::new(0);
        for spec in &config.specs {
            shared.metrics.source_added(&spec.name);
        }
        let to_tell = clients.clone().or_else(kube::Clients::of_this_pod);
        let events = PodEvents::start(to_tell, &config.render.pod, &mut tasks);
        let api = clients.map(|clients| (clients, &config.watches[..]));
        let spool = config.keeps_on_disk().then(|| output.spool()).transpose()?;
        source::follow(&mut tasks, &config.files, api, config.render.max_size, spool.as_ref(), &refresh, &told);
        let found = machine.journal();
        let unknown = found.current.is_some();
        // The one before matters only while the main process has not taken the newer one.
        let before = Ingredients::found(found.debt.is_none() || found.from.is_none());
        let published = Ingredients::found(found.current.is_none());
        let good = Ingredients::found(found.last_good.is_none());
        let mut app = Self {
            settings: Arc::new(config.render.clone()),
            validate: Arc::new(config.validate.clone()),
            output,
            key,
            sources: Sources::new(config.specs.iter().cloned()).afresh(machine.journal().current.is_none()),
            machine,
            timers: BTreeMap::new(),
            clock: Clock::new().ok(),
            reloader: Arc::new(Mutex::new(Reloader::new(config.reload.clone()))),
            notified: None,
            attempt: None,
            confirming: None,
            shared,
            done: mpsc::channel(4),
            updates,
            refresh,
            inputs: None,
            observed: None,
            staged: Ingredients::default(),
            published,
            before,
            good,
            drawn: None,
            unknown,
            unsaid: false,
            unstaged: false,
            brief: None,
            events,
            warned: Vec::new(),
            waited_for: Vec::new(),
            was_up: vec![None; config.specs.len()],
            was_settled: false,
            was_held: false,
            exit: None,
            faults: Faults::from_env(),
            tasks,
            _lock: lock,
            config,
        };
        if let Some(current) = &app.machine.journal().current {
            info!(
                sequence = current.sequence,
                owed = app.machine.journal().debt.is_some(),
                "found generation {} published",
                current.directory
            );
            app.shared.metrics.published(current.sequence, &current.digest.to_string());
        }
        app.carry_out(effects);
        app.report();
        Ok(app)
    }

    async fn run(mut self, mut asked: mpsc::Receiver<Ask>, mut signals: Signals) -> End {
        let once_until = self.config.once.map(|limit| Instant::now() + limit);
        let mut grace_until: Option<Instant> = None;
        loop {
            // Also when nothing is to be written: a liveness probe is a turn of this loop.
            if let Err(error) = self.output.still_there() {
                error!("ending: {error}");
                return End::CannotWrite;
            }
            if let Some(exit) = self.exit.or_else(|| self.once_is_over(once_until)) {
                return exit;
            }
            let next = self.timers.iter().min_by_key(|(_, at)| **at).map(|(timer, at)| (*timer, *at));
            let wake = [next.map(|(_, at)| at), once_until, grace_until].into_iter().flatten().min();
            tokio::select! {
                biased;
                signalled = signals.next() => match signalled {
                    Signalled::HangUp => {
                        info!("SIGHUP: reading everything again");
                        self.refresh.send_modify(|count| *count += 1);
                        self.on(Event::Retry);
                    }
                    Signalled::Terminate if grace_until.is_some() => {
                        warn!("a second signal: ending at once, before the step in flight is done");
                        return End::Interrupted;
                    }
                    Signalled::Terminate => {
                        info!(phase = self.machine.phase().as_str(), "told to end: finishing the step in flight");
                        grace_until = Some(Instant::now() + self.config.shutdown_grace);
                        self.on(Event::Shutdown);
                    }
                },
                Some(ask) = asked.recv() => self.asked(ask),
                Some(done) = self.done.1.recv() => self.finished(done),
                Some(update) = self.updates.recv() => self.updated(update),
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                    let now = Instant::now();
                    if grace_until.is_some_and(|until| now >= until) {
                        warn!("--shutdown-grace is over before the step in flight is done");
                        return End::Interrupted;
                    }
                    if let Some((timer, _)) = next.filter(|(_, at)| now >= *at) {
                        self.timers.remove(&timer);
                        self.on(Event::Fired(timer));
                    }
                }
            }
            self.report();
        }
    }

    /// How `--once` ends, if it has.
    fn once_is_over(&self, until: Option<Instant>) -> Option<End> {
        let until = until?;
        if self.machine.is_settled() {
            return Some(End::Done);
        }
        if self.machine.is_rejected() {
            return Some(End::Rejected);
        }
        if Instant::now() < until {
            return None;
        }
        if self.sources.waits_for().is_empty() {
            error!("--once-timeout is over, and the output could not be written");
            return Some(End::CannotWrite);
        }
        for waited in self.sources.waits_for() {
            error!("--once-timeout is over, waiting for {waited}");
        }
        let forbidden = self.sources.views().iter().any(View::is_forbidden);
        Some(if forbidden { End::Forbidden } else { End::Unavailable })
    }

    fn asked(&mut self, ask: Ask) {
        // Whoever asks may have gone away.
        match ask {
            Ask::Ping(answer) => {
                let _ = answer.send(());
            }
            Ask::Retry(answer) => {
                let said = if self.machine.is_settled() {
                    "nothing to retry: the newest inputs are published, and the main process has them\n"
                } else {
                    "trying again\n"
                };
                info!("asked to retry");
                self.on(Event::Retry);
                let _ = answer.send(said);
            }
        }
    }

    fn updated(&mut self, update: Update) {
        let mut changed = self.take(update);
        // What is there already is one change.
        while let Ok(update) = self.updates.try_recv() {
            changed |= self.take(update);
        }
        let waits_for = self.sources.waits_for();
        let complete = waits_for.is_empty();
        // Until each has been read once, what is said would be true for a moment alone.
        if waits_for != self.waited_for && self.sources.views().iter().all(View::is_known) {
            for waited in &waits_for {
                // A trouble was told when it came.
                let told =
                    self.sources.views().iter().any(|view| !view.is_up() && view.waits_for().as_ref() == Some(waited));
                if !told && !self.waited_for.contains(waited) {
                    warn!("waiting for {waited}");
                }
            }
            self.waited_for = waits_for;
        }
        if (!changed && self.inputs.is_some()) || !complete {
            return;
        }
        let inputs = Inputs { snapshot: self.sources.snapshot(), settings: self.settings.clone() };
        let digest = inputs.digest(&self.key);
        let Journal { current, last_good, .. } = self.machine.journal();
        for (generation, made_of) in [(current, &mut self.published), (last_good, &mut self.good)] {
            if made_of.secrets.is_none() && generation.as_ref().is_some_and(|found| found.digest == digest) {
                Arc::make_mut(made_of).secrets = Some(inputs.secrets().collect());
            }
        }
        self.inputs = Some(inputs);
        if self.observed.is_none_or(|(known, ..)| known != digest) {
            debug!(%digest, "inputs changed");
            self.observed = Some((digest, Timestamp::now(), Instant::now()));
            self.on(Event::Observed(digest));
        }
    }

    fn take(&mut self, update: Update) -> bool {
        let source = update.source;
        let Some(name) = self.config.specs.get(source).map(|spec| spec.name.clone()) else { return false };
        let told = matches!(update.seen, Seen::All(_) | Seen::Changed(_) | Seen::Gone(_));
        if matches!(update.seen, Seen::Interrupted) {
            debug!(source = name, "its watch was cut");
            self.shared.metrics.watch_cut();
        }
        if let Seen::Trouble { message, .. } | Seen::Warning(message) = &update.seen {
            warn!(source = name, "{message}");
        }
        let changed = self.sources.take(update);
        if told {
            self.shared.metrics.source_event(&name);
        }
        let Some(view) = self.sources.views().get(source) else { return changed };
        let up = view.is_up();
        if self.was_up[source] != Some(up) {
            if up && self.was_up[source] == Some(false) {
                info!(source = name, "it can be read again");
            }
            self.was_up[source] = Some(up);
            self.shared.metrics.source_up(&name, up);
        }
        changed
    }

    fn on(&mut self, event: Event) {
        let effects = self.machine.on(event);
        self.carry_out(effects);
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Arm(timer, wait) => {
                    let wait = self.length_of(wait);
                    self.timers.insert(timer, Instant::now() + wait);
                }
                Effect::Disarm(timer) => {
                    self.timers.remove(&timer);
                }
                Effect::Render { step, sequence, unless } => {
                    self.faults.point("render");
                    self.render(step, sequence, unless);
                }
                Effect::Write { step, writes } => self.write(step, writes),
                Effect::Reload { step, sequence, published } => {
                    self.faults.point("reload");
                    self.reload(step, sequence, published);
                }
                Effect::Confirm { step, digest, baseline } => {
                    self.faults.point("confirm");
                    self.confirm(step, digest, baseline);
                }
                Effect::Verify { step, generation } => {
                    self.faults.point("verify");
                    self.verify(step, generation);
                }
                Effect::Abandon(step) => self.abandon(step),
                Effect::Exit => self.exit = Some(End::by_signal(self.config.once)),
            }
        }
    }

    fn length_of(&self, wait: Wait) -> Duration {
        let (min, max) = self.config.retry;
        match wait {
            Wait::Exactly(length) => length,
            Wait::Within(length) => backoff::spread(length, 0.0),
            Wait::Backoff(attempts) => backoff::delay(attempts, min, max, 0.5),
        }
    }

    fn render(&mut self, step: Step, sequence: u64, unless: Option<Digest>) {
        let (Some(inputs), Some((digest, ..))) = (self.inputs.clone(), self.observed) else { return };
        self.staged.objects = Versions::of(&inputs.snapshot);
        // An object that is held back stays as it was last published.
        let earlier = self.published.objects.secret().flat_map(|object| object.data.values());
        self.staged.secrets = Some(inputs.secrets().chain(earlier.cloned()).collect());
        let order = Order {
            inputs,
            digest,
            published: self.published.objects.clone(),
            drawn: self.drawn.take(),
            unknown: self.unknown,
            sequence,
            unless,
            output: self.output.clone(),
            key: self.key.clone(),
            validate: self.validate.clone(),
        };
        let (answer, key, config) = (self.done.0.clone(), self.key.clone(), self.config.confirm.clone());
        self.tasks.spawn(async move {
            let made = Box::new(candidate::make(order).await);
            let baseline = match made.result {
                Ok(Candidate::Staged { .. }) => confirm::baseline(&config, &key).await,
                _ => None,
            };
            let _ = answer.send(Done::Rendered { step, made, baseline }).await;
        });
    }

    fn write(&mut self, step: Step, writes: Vec<Write>) {
        let (output, faults, clock) = (self.output.clone(), self.faults.clone(), self.clock.clone());
        self.in_background(move || {
            let began = Instant::now();
            let mut done = 0;
            let mut error = None;
            for write in writes {
                faults.point(write.name());
                match output.apply(&write) {
                    Ok(()) => done += 1,
                    Err(failed) => {
                        error = Some(failed.to_string());
                        break;
                    }
                }
            }
            faults.point("written");
            // Without the moment, a signal is owed even to a process that started after the publish.
            let at = clock.as_ref().map(Clock::now);
            Done::Written { step, took: began.elapsed(), done, at, error }
        });
    }

    fn in_background(&mut self, work: impl FnOnce() -> Done + Send + 'static) {
        let answer = self.done.0.clone();
        // The app may have ended meanwhile, and then nobody waits for the answer.
        self.tasks.spawn_blocking(move || {
            let _ = answer.blocking_send(work());
        });
    }

    fn reload(&mut self, step: Step, sequence: u64, published: Option<Moment>) {
        let (answer, reloader) = (self.done.0.clone(), self.reloader.clone());
        let task = self.tasks.spawn(async move {
            let began = Instant::now();
            let verdict = reloader.lock().await.attempt(sequence, published.as_ref()).await;
            let _ = answer.send(Done::Reloaded { step, took: began.elapsed(), verdict }).await;
        });
        self.attempt = Some((step, task));
    }

    /// A program is not interrupted half way: it is waited for, no longer than `--reload-timeout`. A confirmation ends
    /// by itself where there is somebody to ask.
    fn abandon(&mut self, step: Step) {
        if let Some((_, hurry)) = self.confirming.as_ref().filter(|(confirming, _)| *confirming == step) {
            hurry.send_replace(true);
            return;
        }
        if !self.config.reload.driver.can_be_abandoned() {
            return;
        }
        if let Some((_, task)) = self.attempt.take_if(|(attempt, _)| *attempt == step) {
            task.abort();
            let answer = self.done.0.clone();
            self.tasks.spawn(async move {
                let _ = answer.send(Done::Abandoned { step }).await;
            });
        }
    }

    fn finished(&mut self, done: Done) {
        // Ended tasks are forgotten, or the set would grow with each step.
        while self.tasks.try_join_next().is_some() {}
        match &done {
            Done::Rendered { .. } => self.faults.point("rendered"),
            Done::Reloaded { .. } => self.faults.point("reloaded"),
            Done::Confirmed { .. } => self.faults.point("confirmed"),
            Done::Verified { .. } => self.faults.point("verified"),
            Done::Written { .. } | Done::Abandoned { .. } | Done::Checked { .. } => {}
        }
        match done {
            Done::Rendered { step, made, baseline } => self.rendered(step, *made, baseline),
            Done::Written { step, took, done, at, error } => self.written(step, took, done, at, error),
            Done::Reloaded { step, took, verdict } => self.reloaded(step, took, verdict),
            Done::Confirmed { step, took, verdict } => self.confirmed(step, took, verdict),
            Done::Verified { step, wrong, baseline } => self.verified(step, wrong.as_deref(), baseline),
            Done::Abandoned { step } => {
                info!("newer inputs are ready: the reload attempt for older ones is abandoned");
                self.on(Event::Reloaded { step, verdict: machine::Verdict::Unreachable });
            }
            Done::Checked { message: Some(message) } => self.problem("access", &message, &Said::default()),
            Done::Checked { message: None } => self.solved("access"),
        }
    }

    fn rendered(&mut self, step: Step, made: Made, baseline: Option<Baseline>) {
        let Made { result, rendering, validating, warnings, said, found, drawn } = made;
        self.drawn = drawn;
        if let Some(found) = found {
            self.found(found);
        }
        let failed = result.as_ref().err().map(|problem| {
            let ending = if problem.rejected { Ending::Rejected } else { Ending::Failed };
            (problem.stage, ending)
        });
        for (stage, took) in [(Stage::Render, Some(rendering)), (Stage::Validate, validating)] {
            match (failed, took) {
                (Some((at, ending)), took) if at == stage => {
                    self.shared.metrics.stage(stage, ending, took.unwrap_or_default());
                }
                (_, took) => {
                    if let Some(took) = took {
                        self.shared.metrics.stage(stage, Ending::Success, took);
                    }
                    self.solved(stage.as_str());
                }
            }
        }
        self.unstaged = matches!(failed, Some((Stage::Publish, _)));
        if let Some((Stage::Publish, ending)) = failed {
            self.shared.metrics.stage(Stage::Publish, ending, Duration::ZERO);
        }
        self.warn_of(warnings);
        let outcome = match result {
            Ok(Candidate::Staged { generation, files, held_back }) => {
                debug!(sequence = generation.sequence, files, "rendered");
                self.hold_back(&held_back, &said);
                Outcome::Staged { candidate: generation, baseline }
            }
            Ok(Candidate::Same { held_back }) => {
                info!("the inputs changed, and render to what is published");
                self.hold_back(&held_back, &said);
                Outcome::Same
            }
            Err(CandidateError { stage, rejected: true, reason, brief, output, .. }) => {
                self.brief = brief;
                self.problem(stage.as_str(), &format!("rejected: {reason}"), &output);
                Outcome::Rejected(rejection(stage, reason))
            }
            Err(CandidateError { stage, reason, output, .. }) => {
                self.problem(stage.as_str(), &reason, &output);
                Outcome::Failed
            }
        };
        self.on(Event::Rendered { step, outcome });
    }

    /// An object that is held back stays as it was published, also before this start.
    fn found(&mut self, found: BTreeMap<ObjectRef, Arc<Object>>) {
        let secret = found.values().filter(|object| object.secret).flat_map(|object| object.data.values());
        self.staged.secrets.get_or_insert_default().extend(secret.cloned());
        Arc::make_mut(&mut self.published).objects = found.into();
        self.unknown = false;
    }

    fn written(&mut self, step: Step, took: Duration, done: usize, at: Option<Moment>, error: Option<String>) {
        let failed = error.is_some();
        match error {
            Some(error) => self.problem(Stage::Publish.as_str(), &error, &Said::default()),
            None if self.unstaged => {}
            None => self.solved(Stage::Publish.as_str()),
        }
        let committed = self.machine.journal().next_sequence;
        let astray = self.machine.is_astray();
        self.on(Event::Written { step, done, at });
        let turned_back = astray && !self.machine.is_astray();
        let Some(current) = self.machine.journal().current.clone() else { return };
        if turned_back {
            info!(sequence = current.sequence, "generation {} is current again", current.directory);
            // What a rename that failed may have made current was not rejected: nothing is kept of it.
            if self.machine.journal().from.is_some() {
                self.shared.metrics.rolled_back();
                self.shared.metrics.stage(Stage::Rollback, Ending::Success, took);
            }
        } else if self.machine.journal().next_sequence != committed && !self.machine.is_astray() {
            info!(sequence = current.sequence, "published generation {}", current.directory);
            self.before = std::mem::replace(&mut self.published, Arc::new(std::mem::take(&mut self.staged)));
            self.shared.metrics.stage(Stage::Publish, Ending::Success, took);
        } else {
            if failed {
                self.shared.metrics.stage(Stage::Publish, Ending::Failed, took);
            }
            return;
        }
        self.shared.metrics.published(current.sequence, &current.digest.to_string());
        let published = status::Published::new(&current, Some(Timestamp::now()));
        with(&self.shared, |status| status.published = Some(published));
    }

    fn reloaded(&mut self, step: Step, took: Duration, verdict: Verdict) {
        self.attempt = None;
        let sequence = self.machine.journal().current.as_ref().map(|current| current.sequence);
        let (ending, answer) = match verdict {
            Verdict::Took(notified) if notified.skipped => {
                info!(sequence, "no reload is owed: the main process started after the publish");
                self.notified = Some(notified);
                (Ending::Success, machine::Verdict::Took)
            }
            Verdict::Took(notified) => {
                let target = self.reloader.try_lock().ok().and_then(|reloader| reloader.target().cloned());
                let target = target.and_then(|target| Some((target.name?, target.pid?)));
                self.notified = Some(notified);
                let to = target.as_ref().map(|(name, pid)| format!(" to {name} (pid {pid})"));
                info!(sequence, "reloaded: {}{}", self.config.reload.driver, to.unwrap_or_default());
                if let Some((name, pid)) = target {
                    self.check_access(name, pid);
                }
                (Ending::Success, machine::Verdict::Took)
            }
            Verdict::Refused { message, output } => {
                self.problem(Stage::Reload.as_str(), &format!("refused: {message}"), &output);
                (Ending::Rejected, machine::Verdict::Refused(rejection(Stage::Reload, message)))
            }
            Verdict::Died { message } => {
                self.problem(Stage::Reload.as_str(), &format!("rejected: {message}"), &Said::default());
                (Ending::Rejected, machine::Verdict::Died(rejection(Stage::Reload, message)))
            }
            Verdict::Unreachable { message, output, .. } => {
                self.problem(Stage::Reload.as_str(), &message, &output);
                (Ending::Failed, machine::Verdict::Unreachable)
            }
        };
        if ending == Ending::Success {
            self.solved(Stage::Reload.as_str());
        }
        self.shared.metrics.stage(Stage::Reload, ending, took);
        if ending == Ending::Success {
            let at = Timestamp::now();
            let current = self.machine.journal().current.as_ref();
            let reloaded = current.map(|current| status::Published::new(current, Some(at)));
            with(&self.shared, |status| status.reloaded = reloaded);
        }
        self.on(Event::Reloaded { step, verdict: answer });
    }

    fn confirm(&mut self, step: Step, digest: Digest, baseline: Option<Baseline>) {
        let (answer, key) = (self.done.0.clone(), self.key.clone());
        let notified = self.notified.take();
        let (config, hurry) = (self.config.confirm.clone(), watch::Sender::new(false));
        let hurried = hurry.subscribe();
        self.confirming = Some((step, hurry));
        self.tasks.spawn(async move {
            let began = Instant::now();
            let verdict = match notified {
                Some(notified) => confirm::confirm(&config, *notified, baseline.as_ref(), digest, &key, hurried).await,
                // The machine confirms only after a reload that took.
                None => confirm::Verdict::Absent { message: "nobody was notified".to_owned() },
            };
            let _ = answer.send(Done::Confirmed { step, took: began.elapsed(), verdict }).await;
        });
    }

    /// Checks the last good generation before it is made current again.
    fn verify(&mut self, step: Step, generation: Generation) {
        let (answer, output, key) = (self.done.0.clone(), self.output.clone(), self.key.clone());
        let config = self.config.confirm.clone();
        self.tasks.spawn(async move {
            let baseline = confirm::baseline(&config, &key).await;
            let content = generation.content;
            let read = tokio::task::spawn_blocking(move || output.content(&generation, &key)).await;
            let wrong = match read {
                Ok(Ok(found)) if found == content || content == Digest::UNKNOWN => None,
                Ok(Ok(_)) => Some("the last good generation was changed since it was published".to_owned()),
                Ok(Err(error)) => Some(error.to_string()),
                // A panic, in a build that survives it.
                Err(_) => Some("a fault of Trimtab's own ended its check; please report it".to_owned()),
            };
            let _ = answer.send(Done::Verified { step, wrong, baseline }).await;
        });
    }

    fn confirmed(&mut self, step: Step, took: Duration, verdict: confirm::Verdict) {
        self.confirming = None;
        let stage = Stage::Confirm;
        let (ending, answer) = match verdict {
            confirm::Verdict::Took => {
                self.solved(stage.as_str());
                (Ending::Success, machine::Verdict::Took)
            }
            confirm::Verdict::Rejected { message, output } => {
                self.problem(stage.as_str(), &format!("rejected: {message}"), &output);
                (Ending::Rejected, machine::Verdict::Refused(rejection(stage, message)))
            }
            confirm::Verdict::Absent { message } => {
                self.problem(stage.as_str(), &message, &Said::default());
                (Ending::Failed, machine::Verdict::Unreachable)
            }
        };
        self.shared.metrics.stage(stage, ending, took);
        self.on(Event::Confirmed { step, verdict: answer });
    }

    fn verified(&mut self, step: Step, wrong: Option<&str>, baseline: Option<Baseline>) {
        let stage = Stage::Rollback;
        let Journal { current, last_good, .. } = self.machine.journal();
        let [rejected, good] = [current, last_good].map(|generation| generation.as_ref().map(|found| found.sequence));
        if let Some(wrong) = wrong {
            let message = format!(
                "the rejected generation stays published, as there is no way back: {wrong}; publish good inputs, or \
                 mend the main process"
            );
            self.problem(stage.as_str(), &message, &Said::default());
            self.shared.metrics.stage(stage, Ending::Failed, Duration::ZERO);
        } else {
            warn!(sequence = rejected, "rolling back to generation {}", good.unwrap_or_default());
            self.before = std::mem::replace(&mut self.published, self.good.clone());
            self.unknown = self.good.objects.is_empty();
        }
        self.on(Event::Verified { step, sound: wrong.is_none(), baseline });
    }

    /// Checks whether the target can read what it was just told to read. Said and not refused: a process need not read
    /// every file that lies there.
    fn check_access(&mut self, name: String, pid: i32) {
        let (output, Some(current)) = (self.output.clone(), self.machine.journal().current.clone()) else { return };
        let directory = self.config.output.output.clone();
        self.in_background(move || {
            let reader = process::Reader::of(pid);
            // What cannot be checked any more is checked after the next reload.
            let unreadable = reader.and_then(|reader| {
                let may = |bit, owner, group, mode| reader.may(bit, owner, group, mode);
                output.unreadable_by(&may, &current).ok().flatten()
            });
            let message = unreadable.map(|what| {
                format!(
                    "{name} (pid {pid}) cannot read {what}: give both containers one fsGroup or runAsUser, or widen \
                     --file-mode or --secret-mode"
                )
            });
            let frozen = || {
                let mount = process::frozen_mount(pid, &directory)?;
                Some(format!(
                    "{name} (pid {pid}) has mounted a published file by itself at {} (subPath), so it keeps what was there \
                     when its container started, whatever is published: mount the whole volume instead, and name the \
                     file in it",
                    mount.display()
                ))
            };
            Done::Checked { message: message.or_else(frozen) }
        });
    }
}

fn rejection(stage: Stage, reason: String) -> Rejection {
    Rejection { stage, reason, at: Timestamp::now() }
}
