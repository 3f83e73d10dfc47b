//! When requests arrive at the API server, by its own audit log.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The audit log of a server: the sidecars' requests for ConfigMaps and Leases, each as it arrives.
pub struct Audit(TempDir);

/// What it has of a request.
pub struct Arrival {
    /// When it came.
    pub at: Timestamp,
    /// Whether it lists or watches.
    pub watches: bool,
}

impl Audit {
    /// An empty one, for a server that will be given its flags.
    pub fn new() -> Result<Self> {
        let policy = json!({
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["ResponseStarted", "ResponseComplete", "Panic"],
            "rules": [
                {"level": "Metadata", "resources": [
                    {"resources": ["configmaps"]},
                    {"group": "coordination.k8s.io", "resources": ["leases"]},
                ]},
                {"level": "None"},
            ],
        });
        let audit = Self(tempfile::Builder::new().prefix("bench-").tempdir()?);
        fs::write(audit.policy(), policy.to_string())?;
        fs::write(audit.log(), "")?;
        Ok(audit)
    }

    /// What makes a server write it.
    pub fn flags(&self) -> Vec<String> {
        vec![
            format!("--audit-policy-file={}", self.policy().display()),
            format!("--audit-log-path={}", self.log().display()),
        ]
    }

    fn policy(&self) -> PathBuf {
        self.0.path().join("policy")
    }

    fn log(&self) -> PathBuf {
        self.0.path().join("log")
    }

    /// Each request of Trimtab's, in the order of the clock.
    pub fn arrivals(&self) -> Result<Vec<Arrival>> {
        let log = fs::read_to_string(self.log())?;
        let events = log.lines().map(serde_json::from_str::<Value>).collect::<Result<Vec<_>, _>>()?;
        let ours =
            events.iter().filter(|event| event["userAgent"].as_str().is_some_and(|by| by.starts_with("trimtab/")));
        let arrival = |event: &Value| {
            let at = event["requestReceivedTimestamp"].as_str().and_then(|at| at.parse().ok());
            let watches = matches!(event["verb"].as_str(), Some("list" | "watch"));
            Ok(Arrival { at: at.context("an audit event without a time")?, watches })
        };
        let mut arrivals = ours.map(arrival).collect::<Result<Vec<_>>>()?;
        arrivals.sort_unstable_by_key(|arrival| arrival.at);
        Ok(arrivals)
    }
}

/// The most of these, which are in order, within one second, wherever it begins.
pub fn busiest_second(arrivals: &[Arrival]) -> usize {
    let soon = |from: Timestamp| move |other: &Arrival| other.at.duration_since(from) < SignedDuration::from_secs(1);
    let within = |from: usize| arrivals[from..].partition_point(soon(arrivals[from].at));
    (0..arrivals.len()).map(within).max().unwrap_or(0)
}
