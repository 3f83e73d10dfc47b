//! The steps: one task for each effect that takes time. Each answers with the machine's own event.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::ends::{Answer, Done, Trouble, rendered, verdict};
use super::ledger::Ledger;
use super::{Config, received};
use crate::candidate::{self, Candidate, Order};
use crate::machine::{Event, Step, Write, WriteKind};
use crate::model::digest::{Digest, DigestKey};
use crate::model::journal::{Baseline, Generation, Moment};
use crate::model::made_of::{Part, Parts};
use crate::model::object::{Marks, Object, ObjectRef};
use crate::model::stage::Stage;
use crate::os::fault::Faults;
use crate::os::mask::Said;
use crate::publish::Output;
use crate::reload::confirm;
use crate::reload::process::{self, Clock};
use crate::reload::{self, NotTaken, Notified, Reloader};
use crate::render::{Inputs, Settings};
use crate::source::ReadBack;

/// Starts the steps, and hears of their ends.
pub(super) struct Steps {
    /// `None` where there is nothing to write and nothing is remembered.
    pub(super) output: Option<Arc<Output>>,
    pub(super) key: DigestKey,
    pub(super) faults: Faults,
    validate: Arc<candidate::Config>,
    confirm: confirm::Config,
    /// `--output`, if there is one.
    directory: Option<PathBuf>,
    reload: reload::Config,
    reloader: Arc<Mutex<Reloader>>,
    lookout: Arc<std::sync::Mutex<process::Lookout>>,
    /// `None` where `/proc` does not say which boot this is.
    clock: Option<Clock>,
    /// What the last reload that was taken leaves to the confirmation.
    pub(super) notified: Option<Box<Notified>>,
    /// The confirmation in flight, and how it is asked not to wait for somebody who is not there.
    hurry: Option<(Step, watch::Sender<bool>)>,
    answers: (mpsc::Sender<Answer>, mpsc::Receiver<Answer>),
    tasks: JoinSet<()>,
    /// The history is being written.
    storing: Option<JoinHandle<()>>,
}

impl Steps {
    pub(super) fn new(config: &Config, output: Option<Arc<Output>>, key: DigestKey, tasks: JoinSet<()>) -> Self {
        Self {
            output,
            key,
            faults: Faults::from_env(),
            validate: Arc::new(config.validate.clone()),
            reloader: Arc::new(Mutex::new(Reloader::new(config.reload.clone()))),
            lookout: Arc::default(),
            confirm: config.confirm.clone(),
            directory: config.output.as_ref().map(|output| output.output.clone()),
            reload: config.reload.clone(),
            clock: Clock::new().ok(),
            notified: None,
            hurry: None,
            answers: mpsc::channel(4),
            tasks,
            storing: None,
        }
    }

    /// Waits for a step's end. May be dropped at any time without a loss.
    pub(super) async fn next(&mut self) -> Answer {
        received(Some(&mut self.answers.1)).await
    }

    /// Forgets the tasks that have ended, or the set would grow with each step.
    pub(super) fn tidy(&mut self) {
        while self.tasks.try_join_next().is_some() {}
    }

    /// Starts a task beside the steps.
    pub(super) fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Whether the history can be written: one write at a time.
    pub(super) fn may_store(&self) -> bool {
        self.storing.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Writes the history. Nobody waits for it, and nothing depends on it.
    pub(super) fn store(&mut self, history: Vec<u8>) {
        let Some(output) = self.output.clone() else { return };
        self.storing = Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = output.write_history(&history) {
                debug!("the last changes will not be known after a restart: {error}");
            }
        }));
    }

    pub(super) fn render(
        &mut self,
        step: Step,
        sequence: u64,
        unless: Option<Digest>,
        bare: bool,
        (inputs, digest): (Inputs, Digest),
        ledger: &mut Ledger,
    ) {
        self.faults.point("render");
        ledger.begun(&inputs);
        let order = Order {
            inputs,
            digest,
            published: ledger.objects(),
            drawn: ledger.take_drawn(),
            unknown: ledger.is_unknown(),
            sequence,
            unless,
            bare,
            output: self.output.clone(),
            key: self.key.clone(),
            validate: self.validate.clone(),
        };
        let (answer, key, config) = (self.answers.0.clone(), self.key.clone(), self.confirm.clone());
        self.tasks.spawn(async move {
            let began = Instant::now();
            let made = candidate::make(order).await;
            let baseline = match made.result {
                Ok(Candidate::Staged { .. }) => confirm::baseline(&config, &key).await,
                _ => None,
            };
            let _ = answer.send(Answer::Done(Box::new(rendered(step, made, baseline, began.elapsed())))).await;
        });
    }

    /// Reads back what was published of objects that are gone.
    pub(super) fn read_back(&mut self, absent: Parts, settings: Arc<Settings>) {
        let (Some(output), answer) = (self.output.clone(), self.answers.0.clone()) else { return };
        self.tasks.spawn_blocking(move || {
            let read_back = read_back(&output, absent, &settings);
            // The app may have ended meanwhile.
            let _ = answer.blocking_send(Answer::ReadBack(read_back));
        });
    }

    pub(super) fn write(&mut self, step: Step, writes: Vec<Write>) {
        let (output, faults, clock) = (self.output.clone(), self.faults.clone(), self.clock.clone());
        let answer = self.answers.0.clone();
        // Whatever was put in order is to last.
        let lasts = writes.iter().any(|write| write.kind() == WriteKind::Unlink);
        self.tasks.spawn_blocking(move || {
            let began = Instant::now();
            let mut done = 0;
            let mut trouble = None;
            for write in writes {
                faults.point(write.kind().as_str());
                match output.as_ref().map_or(Ok(()), |output| output.apply(&write)) {
                    Ok(()) => done += 1,
                    Err(failed) => {
                        trouble = Some(Trouble { message: failed.to_string(), said: Said::default() });
                        break;
                    }
                }
            }
            faults.point("written");
            // Without the moment, a signal is sent even to a process that started after the publish.
            let at = clock.as_ref().map(Clock::now);
            let event = Event::Written { step, done, at };
            // The app may have ended meanwhile, and then nobody waits for the answer.
            let lasts = lasts && trouble.is_none();
            let _ = answer.blocking_send(Answer::Done(Box::new(Done { trouble, ..Done::new(event, began.elapsed()) })));
            // Beside the reload and its confirmation. Before anything is called good it is done again, and reported.
            let output = output.filter(|_| lasts);
            if let Some(Err(error)) = output.map(|output| output.sync()) {
                debug!("a power loss may take what was published: {error}");
            }
        });
    }

    pub(super) fn reload(&mut self, step: Step, generation: Generation, published: Option<Moment>) {
        self.faults.point("reload");
        let (answer, reloader, output) = (self.answers.0.clone(), self.reloader.clone(), self.output.clone());
        let (driver, directory, lookout) = (self.reload.driver.clone(), self.directory.clone(), self.lookout.clone());
        self.tasks.spawn(async move {
            let began = Instant::now();
            let (sequence, mut reloader) = (generation.sequence, reloader.lock().await);
            let attempt = reloader.attempt(sequence, published.as_ref()).await;
            let target = reloader.target().cloned();
            drop(reloader);
            let (notified, failed) = match attempt {
                Ok(notified) => (Some(Box::new(notified)), None),
                Err(failed) => (None, Some(failed)),
            };
            let mut process = None;
            match &notified {
                Some(notified) if notified.skipped => {
                    info!(sequence, "no reload is pending: the main process started after the publish");
                }
                Some(notified) => {
                    let signalled = target.clone().and_then(|target| Some((target.name?, target.pid?)));
                    let to = signalled.as_ref().map(|(name, pid)| format!(" to {name} (pid {pid})"));
                    info!(sequence, "reloaded: {driver}{}", to.unwrap_or_default());
                    let held = notified.target.as_ref().map(|target| (target.name.clone(), target.pid));
                    process = Some(signalled.or(held));
                }
                None => {}
            }
            let (verdict, trouble) = verdict(Stage::Reload, failed);
            let done =
                Done { trouble, target, notified, ..Done::new(Event::Reloaded { step, verdict }, began.elapsed()) };
            let _ = answer.send(Answer::Done(Box::new(done))).await;
            if let Some(process) = process {
                let check = move || {
                    let (output, directory) = (output?, directory?);
                    if let Some((name, pid)) = process {
                        return unreadable(&output, &generation, &name, pid).or_else(|| frozen(&directory, &name, pid));
                    }
                    // Nobody was named: whoever can be seen. It is only poisoned by a panic, in a build that survives it.
                    let mut lookout = lookout.lock().unwrap_or_else(PoisonError::into_inner);
                    lookout.frozen(&directory).map(|(name, pid, at)| frozen_at(&name, pid, &at))
                };
                let checked = tokio::task::spawn_blocking(check).await;
                if let Ok(message) = checked {
                    let _ = answer.send(Answer::Access(message)).await;
                }
            }
        });
    }

    pub(super) fn confirm(&mut self, step: Step, digest: Digest, baseline: Option<Baseline>) {
        self.faults.point("confirm");
        let (answer, key, notified) = (self.answers.0.clone(), self.key.clone(), self.notified.take());
        let (config, hurry) = (self.confirm.clone(), watch::Sender::new(false));
        let hurried = hurry.subscribe();
        self.hurry = Some((step, hurry));
        self.tasks.spawn(async move {
            let began = Instant::now();
            let result = match notified {
                Some(notified) => confirm::confirm(&config, *notified, baseline.as_ref(), digest, &key, hurried).await,
                // The machine confirms only after a reload that was taken.
                None => Err(NotTaken::Unreachable {
                    message: "nobody was notified".to_owned(),
                    output: Said::default(),
                    delivered: false,
                }),
            };
            let (verdict, trouble) = verdict(Stage::Confirm, result.err());
            let done = Done { trouble, ..Done::new(Event::Confirmed { step, verdict }, began.elapsed()) };
            let _ = answer.send(Answer::Done(Box::new(done))).await;
        });
    }

    /// Lets the confirmation end if it has nobody to ask.
    pub(super) fn hurry(&mut self, step: Step) {
        if let Some((_, hurry)) = self.hurry.as_ref().filter(|(confirming, _)| *confirming == step) {
            hurry.send_replace(true);
        }
    }

    /// Checks the last good generation before it is made current again.
    pub(super) fn verify(&mut self, step: Step, generation: Generation) {
        self.faults.point("verify");
        let (answer, output, key) = (self.answers.0.clone(), self.output.clone(), self.key.clone());
        let config = self.confirm.clone();
        self.tasks.spawn(async move {
            let began = Instant::now();
            let baseline = confirm::baseline(&config, &key).await;
            let content = generation.content;
            // With nothing written, there is nothing to go back to.
            let read = move || output.map_or(Ok(content), |output| output.content(&generation, &key));
            let read = tokio::task::spawn_blocking(read).await;
            let wrong = match read {
                Ok(Ok(found)) if found == content || content == Digest::UNKNOWN => None,
                Ok(Ok(_)) => Some("the last good generation was changed since it was published".to_owned()),
                Ok(Err(error)) => Some(error.to_string()),
                // A panic, in a build that survives it.
                Err(_) => Some("a fault of Trimtab's own ended its check; please report it".to_owned()),
            };
            let event = Event::Verified { step, sound: wrong.is_none(), baseline };
            let trouble = wrong.map(|wrong| Trouble {
                message: format!(
                    "the rejected generation stays published, as there is no way back: {wrong}; publish good inputs, or \
                     fix the main process"
                ),
                said: Said::default(),
            });
            let _ = answer.send(Answer::Done(Box::new(Done { trouble, ..Done::new(event, began.elapsed()) }))).await;
        });
    }
}

/// What was published of objects that are gone, where each of their keys is a file.
pub(crate) fn read_back(output: &Output, absent: Parts, settings: &Settings) -> ReadBack {
    let place = |id: &ObjectRef, marks: &Marks, key: &str| Some(settings.path.place(id, Some(marks), key)?.to_string());
    let places = absent.iter().flat_map(|(id, part)| part.keys.iter().filter_map(|key| place(id, &part.marks, key)));
    let places: BTreeSet<_> = places.collect();
    let published = output.published_among(&|path| places.contains(path), settings.max_size).unwrap_or_else(|error| {
        warn!("what was published of objects that are gone cannot be read back: {error}");
        BTreeMap::new()
    });
    let object = |(id, part): (ObjectRef, Part)| {
        let marks = part.marks;
        let value = |key: String| Some((published.get(&place(&id, &marks, &key)?)?.bytes.clone()?, key));
        let data: BTreeMap<_, _> =
            part.keys.into_iter().filter_map(|key| value(key).map(|(bytes, key)| (key, bytes))).collect();
        let object =
            (!data.is_empty()).then(|| Object::new(id.clone(), String::new(), part.created, part.secret, data));
        (id, object.map(|object| Arc::new(object.marked(marks))))
    };
    absent.into_iter().map(object).collect()
}

/// What the main process cannot read of the generation that it was just notified of. Reported and not refused: a process
/// need not read every file that is there.
fn unreadable(output: &Output, generation: &Generation, name: &str, pid: i32) -> Option<String> {
    // What cannot be checked any more is checked after the next reload.
    let reader = process::Reader::of(pid)?;
    let may = |bit, owner, group, mode| reader.may(bit, owner, group, mode);
    let what = output.unreadable_by(&may, generation).ok().flatten()?;
    Some(format!(
        "{name} (pid {pid}) cannot read {what}: give both containers one fsGroup or runAsUser, or widen --file-mode or \
         --secret-mode"
    ))
}

/// Whether the main process has mounted one of the published files by itself: it never sees another one.
fn frozen(output: &Path, name: &str, pid: i32) -> Option<String> {
    Some(frozen_at(name, pid, &process::frozen_mount(pid, output)?))
}

fn frozen_at(name: &str, pid: i32, mount: &Path) -> String {
    format!(
        "{name} (pid {pid}) has mounted a published file by itself at {} (subPath), so it keeps what was there when its \
         container started, whatever is published: mount the whole volume instead, and name the file in it",
        mount.display()
    )
}
