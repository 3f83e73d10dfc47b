//! Metrics: the project's own names, and the ones that dashboards and alerts of config reloaders know.

use std::sync::atomic::AtomicU64;

use crate::model::stage::Stage;
use crate::observe::rollout::Rollout;
use crate::observe::verdict::State;
use crate::observe::webhooks::Webhooks;
use crate::rollout;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

type FloatGauge = Gauge<f64, AtomicU64>;

/// How a stage ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Success,
    /// The inputs or the main process refused.
    Rejected,
    /// It will be tried again.
    Failed,
}

impl Ending {
    fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageResult {
    stage: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabel {
    stage: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabel {
    source: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DigestLabel {
    digest: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RolloutLabel {
    rollout: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RolloutState {
    rollout: String,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RolloutChange {
    rollout: String,
    change: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RolloutResult {
    rollout: String,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ArchiveResult {
    result: &'static str,
}

/// Those of a rollout, which have samples only with `--rollout`.
#[derive(Debug, Default)]
struct OfRollout {
    state: Family<RolloutState, Gauge>,
    info: Family<RolloutChange, Gauge>,
    leads: Family<RolloutLabel, Gauge>,
    changes: Family<RolloutResult, Counter>,
}

/// Those of the archive.
#[derive(Debug, Default)]
struct OfArchive {
    pending: Gauge,
    uploads: Family<ArchiveResult, Counter>,
}

/// All metrics, and their registry.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    sequence: Gauge,
    generation: Family<DigestLabel, Gauge>,
    stages: Family<StageResult, Counter>,
    durations: Family<StageLabel, Histogram>,
    last_success: Family<StageLabel, FloatGauge>,
    propagation: Histogram,
    source_up: Family<SourceLabel, Gauge>,
    source_events: Family<SourceLabel, Counter>,
    verdict: Family<StateLabel, Gauge>,
    debt: Gauge,
    quarantined: Gauge,
    held_back: Gauge,
    rollbacks: Counter,
    rollout: OfRollout,
    archive: OfArchive,
    successful: Gauge,
    success_timestamp: FloatGauge,
    reloads: Counter,
    reloads_failed: Counter,
    applies: Counter,
    applies_failed: Counter,
    watches: Gauge,
    watch_events: Counter,
    watch_errors: Counter,
    webhooks: Webhooks,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Metrics at their start: nothing has happened.
    #[must_use]
    pub fn new() -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.001, 4.0, 9));
        let mut metrics = Self {
            registry: Registry::default(),
            sequence: Gauge::default(),
            generation: Family::default(),
            stages: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.0005, 4.0, 9))),
            last_success: Family::default(),
            propagation: seconds(),
            source_up: Family::default(),
            source_events: Family::default(),
            verdict: Family::default(),
            debt: Gauge::default(),
            quarantined: Gauge::default(),
            held_back: Gauge::default(),
            rollbacks: Counter::default(),
            rollout: OfRollout::default(),
            archive: OfArchive::default(),
            successful: Gauge::default(),
            success_timestamp: FloatGauge::default(),
            reloads: Counter::default(),
            reloads_failed: Counter::default(),
            applies: Counter::default(),
            applies_failed: Counter::default(),
            watches: Gauge::default(),
            watch_events: Counter::default(),
            watch_errors: Counter::default(),
            webhooks: Webhooks::default(),
        };
        metrics.register();
        metrics.verdict(State::default());
        metrics
    }

    /// The same, with those of configmap-reload for these webhooks; for none, without.
    #[must_use]
    pub fn with_webhooks(webhooks: &[String]) -> Self {
        let mut metrics = Self::new();
        if !webhooks.is_empty() {
            metrics.webhooks = Webhooks::registered(webhooks, &metrics.watch_errors, &mut metrics.registry);
        }
        metrics
    }

    fn register(&mut self) {
        let own = self.registry.sub_registry_with_prefix("trimtab");
        own.register("generation_sequence", "Sequence number of the published generation", self.sequence.clone());
        own.register("generation_info", "Digest of the published generation", self.generation.clone());
        own.register("stage", "How often each stage ended, and how", self.stages.clone());
        own.register_with_unit("stage_duration", "How long each stage took", Unit::Seconds, self.durations.clone());
        own.register_with_unit(
            "last_success_timestamp",
            "When each stage last succeeded, since 1970",
            Unit::Seconds,
            self.last_success.clone(),
        );
        own.register_with_unit(
            "propagation",
            "From the inputs' arrival to the main process having them",
            Unit::Seconds,
            self.propagation.clone(),
        );
        own.register("source_up", "Whether each source can be read", self.source_up.clone());
        own.register("source_events", "Events that each source reported", self.source_events.clone());
        own.register("verdict", "Where the newest change stands: 1 for the present state", self.verdict.clone());
        own.register("debt", "Whether a reload of the published generation is pending", self.debt.clone());
        own.register("quarantined", "Whether the newest inputs were rejected", self.quarantined.clone());
        own.register("held_back", "Objects whose newest version is not published", self.held_back.clone());
        own.register("rollbacks", "How often the last good generation was made current again", self.rollbacks.clone());
        let OfRollout { state, info, leads, changes } = &self.rollout;
        own.register(
            "rollout_state",
            "Where the newest change stands in the fleet: 1 for the present state",
            state.clone(),
        );
        own.register("rollout_info", "The change that is published here", info.clone());
        own.register("rollout_leads", "Whether this replica goes first with a change", leads.clone());
        own.register("rollout_changes", "Changes whose rollout this replica has ended, and how", changes.clone());
        let OfArchive { pending, uploads } = &self.archive;
        own.register("archive_pending", "Whether a confirmed generation is still to be archived", pending.clone());
        own.register("archive_uploads", "Attempts to archive a generation, and how they ended", uploads.clone());
        own.register("build", "This build", Info::new([("version", env!("CARGO_PKG_VERSION"))]));

        let known = self.registry.sub_registry_with_prefix("reloader");
        known.register(
            "last_reload_successful",
            "Whether the newest inputs were rendered, published and taken by the main process",
            self.successful.clone(),
        );
        known.register_with_unit(
            "last_reload_success_timestamp",
            "When the main process last took a generation, since 1970",
            Unit::Seconds,
            self.success_timestamp.clone(),
        );
        known.register("reloads", "Attempts to reload", self.reloads.clone());
        known.register("reloads_failed", "Attempts to reload that failed", self.reloads_failed.clone());
        known.register("config_apply_operations", "Renders and publishes", self.applies.clone());
        known.register(
            "config_apply_operations_failed",
            "Renders and publishes that failed",
            self.applies_failed.clone(),
        );
        known.register("watches", "Sources that are watched", self.watches.clone());
        known.register("watch_events", "Events that all sources reported", self.watch_events.clone());
        known.register(
            "watch_errors",
            "How often a watch was cut or a source became unreadable",
            self.watch_errors.clone(),
        );
    }

    /// Whether a confirmed generation is still to be archived.
    pub fn archive_pending(&self, pending: bool) {
        self.archive.pending.set(pending.into());
    }

    /// An attempt to archive has ended.
    pub fn archived(&self, done: bool) {
        let result = if done { Ending::Success } else { Ending::Failed }.as_str();
        self.archive.uploads.get_or_create(&ArchiveResult { result }).inc();
    }

    /// The text for a scrape, in the OpenMetrics format.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// A stage ended.
    pub fn stage(&self, stage: Stage, ending: Ending, took: std::time::Duration) {
        let label = StageLabel { stage: stage.as_str() };
        if stage == Stage::Reload {
            self.webhooks.called(ending, took);
        }
        self.stages.get_or_create(&StageResult { stage: stage.as_str(), result: ending.as_str() }).inc();
        self.durations.get_or_create(&label).observe(took.as_secs_f64());
        if ending == Ending::Success {
            self.last_success.get_or_create(&label).set(now());
        }
        let (all, failed) = match stage {
            Stage::Reload => (Some(&self.reloads), &self.reloads_failed),
            Stage::Render => (Some(&self.applies), &self.applies_failed),
            // They were counted with their render.
            Stage::Validate | Stage::Publish => (None, &self.applies_failed),
            // They were counted with their reload.
            Stage::Confirm | Stage::Rollback => (None, &self.reloads_failed),
        };
        if let Some(all) = all {
            all.inc();
        }
        if ending != Ending::Success {
            failed.inc();
            self.successful.set(0);
        }
    }

    /// A generation is published.
    pub fn published(&self, sequence: u64, digest: &str) {
        self.sequence.set(i64::try_from(sequence).unwrap_or(i64::MAX));
        self.generation.clear();
        self.generation.get_or_create(&DigestLabel { digest: digest.to_owned() }).set(1);
    }

    /// The newest inputs are published and taken, as a `whole` or but for what is held back; `propagation` since they
    /// were observed, if that was seen.
    pub fn settled(&self, whole: bool, propagation: Option<std::time::Duration>) {
        self.successful.set(i64::from(whole));
        if let Some(propagation) = propagation {
            self.success_timestamp.set(now());
            self.propagation.observe(propagation.as_secs_f64());
        }
    }

    /// Where the newest change stands.
    pub fn verdict(&self, present: State) {
        for state in State::ALL {
            let label = StateLabel { state: state.as_str() };
            self.verdict.get_or_create(&label).set(i64::from(state == present));
        }
    }

    /// Whether a reload is pending.
    pub fn debt(&self, pending: bool) {
        self.debt.set(i64::from(pending));
    }

    /// Whether inputs are quarantined.
    pub fn quarantined(&self, quarantined: bool) {
        self.quarantined.set(i64::from(quarantined));
    }

    /// How many objects are held back.
    pub fn held_back(&self, objects: usize) {
        self.held_back.set(i64::try_from(objects).unwrap_or(i64::MAX));
    }

    /// The last good generation is current again.
    pub fn rolled_back(&self) {
        self.rollbacks.inc();
    }

    /// How far the newest change is in the fleet, and how a rollout has ended that this replica counts.
    pub fn rollout(&self, now: &Rollout, ended: Option<rollout::State>) {
        let OfRollout { state, info, leads, changes } = &self.rollout;
        let rollout = || now.name.clone();
        for each in rollout::State::ALL {
            let label = RolloutState { rollout: rollout(), state: each.as_str() };
            state.get_or_create(&label).set(i64::from(each == now.state));
        }
        info.clear();
        if let Some(change) = now.published {
            info.get_or_create(&RolloutChange { rollout: rollout(), change: change.short() }).set(1);
        }
        leads.get_or_create(&RolloutLabel { rollout: rollout() }).set(i64::from(now.leads));
        for each in [rollout::State::Done, rollout::State::Stopped] {
            let label = RolloutResult { rollout: rollout(), result: each.as_str() };
            changes.get_or_create(&label).inc_by(u64::from(ended == Some(each)));
        }
    }

    /// A source is watched, and cannot be read yet.
    pub fn source_added(&self, source: &str) {
        self.watches.inc();
        self.source_up.get_or_create(&SourceLabel { source: source.to_owned() }).set(0);
    }

    /// A source reported something.
    pub fn source_event(&self, source: &str) {
        self.watch_events.inc();
        self.source_events.get_or_create(&SourceLabel { source: source.to_owned() }).inc();
    }

    /// A watch was cut, whether or not it could be resumed at once.
    pub fn watch_cut(&self) {
        self.watch_errors.inc();
    }

    /// A source became readable or unreadable.
    pub fn source_up(&self, source: &str, up: bool) {
        self.source_up.get_or_create(&SourceLabel { source: source.to_owned() }).set(i64::from(up));
        if !up {
            self.watch_errors.inc();
        }
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
