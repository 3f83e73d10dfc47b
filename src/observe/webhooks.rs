//! The metrics of configmap-reload, by its names. An attempt calls all webhooks in order, and counts for each of them.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::metrics::Ending;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Webhook {
    webhook: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failure {
    webhook: String,
    reason: &'static str,
}

#[derive(Debug, Default)]
pub(super) struct Webhooks {
    names: Vec<String>,
    last_error: Family<Webhook, Gauge>,
    last_duration: Family<Webhook, Gauge<f64, AtomicU64>>,
    success: Family<Webhook, Counter>,
    errors: Family<Failure, Counter>,
}

impl Webhooks {
    pub fn registered(names: &[String], watch_errors: &Counter, registry: &mut Registry) -> Self {
        let webhooks = Self { names: names.to_vec(), ..Self::default() };
        let known = registry.sub_registry_with_prefix("configmap_reload");
        known.register("last_reload_error", "Whether the last attempt failed", webhooks.last_error.clone());
        known.register_with_unit(
            "last_request_duration",
            "How long the last attempt that succeeded took",
            Unit::Seconds,
            webhooks.last_duration.clone(),
        );
        known.register("success_reloads", "Attempts that succeeded", webhooks.success.clone());
        known.register("request_errors", "Attempts that failed, by reason", webhooks.errors.clone());
        known.register("watcher_errors", "How often a directory became unreadable", watch_errors.clone());
        webhooks
    }

    pub fn called(&self, ending: Ending, took: Duration) {
        for name in &self.names {
            let webhook = Webhook { webhook: name.clone() };
            self.last_error.get_or_create(&webhook).set(i64::from(ending != Ending::Success));
            let reason = match ending {
                Ending::Success => {
                    self.last_duration.get_or_create(&webhook).set(took.as_secs_f64());
                    self.success.get_or_create(&webhook).inc();
                    continue;
                }
                Ending::Rejected => "client_response",
                Ending::Failed => "client_request_do",
            };
            self.errors.get_or_create(&Failure { webhook: name.clone(), reason }).inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::metrics::{Ending, Metrics};
    use super::*;
    use crate::model::stage::Stage;

    #[test]
    fn an_alert_on_configmap_reload_goes_on_working() {
        let metrics = Metrics::with_webhooks(&["http://h/-/reload".to_owned()]);
        metrics.stage(Stage::Reload, Ending::Rejected, Duration::ZERO);
        let said = metrics.encode();
        for line in [
            "configmap_reload_last_reload_error{webhook=\"http://h/-/reload\"} 1",
            "configmap_reload_request_errors_total{webhook=\"http://h/-/reload\",reason=\"client_response\"} 1",
            "configmap_reload_watcher_errors_total 0",
        ] {
            assert!(said.contains(line), "{line} is not in {said}");
        }
        metrics.stage(Stage::Reload, Ending::Success, Duration::from_secs(2));
        metrics.stage(Stage::Render, Ending::Failed, Duration::ZERO);
        let said = metrics.encode();
        for line in [
            "configmap_reload_last_reload_error{webhook=\"http://h/-/reload\"} 0",
            "configmap_reload_success_reloads_total{webhook=\"http://h/-/reload\"} 1",
            "configmap_reload_last_request_duration_seconds{webhook=\"http://h/-/reload\"} 2.0",
        ] {
            assert!(said.contains(line), "{line} is not in {said}");
        }
        assert!(!Metrics::new().encode().contains("configmap_reload"));
    }
}
