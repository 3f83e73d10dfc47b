//! The status for people at a terminal: `trimtab status`.

use jiff::Timestamp;

use super::history::Change;
use super::status::Status;
use super::way::way;
use super::when::{ago, shown, took};
use crate::model::snapshot::HeldBack;

/// How many of the last changes are shown.
const CHANGES: usize = 5;

/// The status as of `now`.
#[must_use]
pub fn text(status: &Status, now: Timestamp) -> String {
    // What is shown of others is within its line.
    let lines = lines(status, now).into_iter().map(|line| line.chars().map(shown).chain(['\n']).collect::<String>());
    lines.collect()
}

fn lines(status: &Status, now: Timestamp) -> Vec<String> {
    let verdict = &status.verdict;
    let word = verdict.state.as_str().to_uppercase();
    let mut lines = vec![format!("{word} since {}", at(verdict.since, now)), verdict.summary.clone()];
    lines.extend(verdict.next.as_ref().map(|next| format!("Next: {next}")));
    let stops = way(status).map(|(station, mark, millis)| {
        let millis = millis.map(|millis| format!(" {}", took(millis))).unwrap_or_default();
        format!("{} {}{millis}", mark.sign(), station.as_str())
    });
    lines.extend([String::new(), stops.join(" → "), String::new(), place(status)]);
    if !status.ready {
        lines.push("not ready: nothing is published yet".to_owned());
    }
    if let Some(target) = &status.target {
        let name = target.name.as_deref().unwrap_or("no process");
        let pid = target.pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
        lines.push(format!("main process: {name}{pid}, {}", target.state.as_str()));
    }
    if let Some(rollout) = &status.rollout {
        let rows = rollout.rows(&status.pod.name);
        lines.push(String::new());
        lines.extend(rows.into_iter().map(|(name, value, _)| format!("{}: {value}", name.to_lowercase())));
    }
    lines.extend(status.archive.as_ref().map(|archive| format!("archive: {}", archive.line())));
    lines.extend([String::new(), "Sources".to_owned()]);
    for source in &status.sources {
        let sign = if source.lack.is_some() { '!' } else { '✓' };
        let version = source.resource_version.as_ref().map(|it| format!("  version {it}")).unwrap_or_default();
        let seen = source.at.map_or_else(|| "not read yet".to_owned(), |seen| format!("read {}", ago(seen, now)));
        lines.push(format!("  {sign} {}{version}  {seen}", source.name));
        lines.extend(source.message.as_ref().map(|message| format!("      {message}")));
    }
    let held = |held: &HeldBack| format!("  ! {} is held back: {}", held.source, held.reason);
    lines.extend(status.held_back.iter().map(held));
    lines.extend([String::new(), "Last changes".to_owned()]);
    for change in status.history.changes().take(CHANGES) {
        lines.push(format!("  {}  {}", at(change.at, now), outcome(change)));
        lines.push(format!("      {}", change.what().unwrap_or_else(|| "not known".to_owned())));
        if let (Some(stage), Some(reason)) = (change.stage, &change.reason) {
            lines.push(format!("      {stage}: {reason}"));
        }
    }
    if status.history.newest().is_none() {
        lines.push("  none since the start".to_owned());
    }
    lines
}

/// `in-effect, generation 4, 1.2 s after the edit`.
pub(super) fn outcome(change: &Change) -> String {
    let generation = change.sequence.map(|sequence| format!(", generation {sequence}")).unwrap_or_default();
    let took = change.took_ms.map(|millis| format!(", {} after the edit", took(millis))).unwrap_or_default();
    format!("{}{generation}{took}", change.result.as_str())
}

/// `shop/web-0 on node-1, trimtab 0.1.0`.
pub(super) fn place(status: &Status) -> String {
    let pod = &status.pod;
    let mut place = [pod.namespace.as_str(), pod.name.as_str()].into_iter().filter(|part| !part.is_empty());
    let name = if pod.name.is_empty() { String::new() } else { place.by_ref().collect::<Vec<_>>().join("/") };
    let node = pod.node.as_ref().map(|node| format!("on {node}")).unwrap_or_default();
    let place = [name, node].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ");
    let gap = if place.is_empty() { "" } else { ", " };
    format!("{place}{gap}trimtab {}", status.version)
}

fn at(at: Timestamp, now: Timestamp) -> String {
    format!("{at:.0} ({})", ago(at, now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::status::{Lack, Pod, Source};
    use crate::observe::verdict::Verdict;

    #[test]
    fn it_says_the_verdict_first_and_steers_no_terminal() {
        let message = Some("no route\u{1b}[31m\nto it".to_owned());
        let mut status = Status {
            sources: vec![Source {
                name: "configmap/shop/web".to_owned(),
                resource_version: Some("829".to_owned()),
                healthy: false,
                message,
                at: Some(Timestamp::UNIX_EPOCH),
                lack: Some(Lack::Unreadable),
            }],
            version: "0.1.0",
            pod: Pod { name: "web-0".to_owned(), namespace: "shop".to_owned(), node: Some("n1".to_owned()) },
            ..Status::default()
        };
        status.verdict = Verdict::of(&status);
        let text = text(&status, Timestamp::from_second(90).unwrap());
        assert!(text.starts_with("WAITING since "), "{text}");
        for part in [
            "\nNothing is published yet: waiting for configmap/shop/web: no route",
            "\nNext: Look at the API server",
            "\n… source → ○ render → – validate → ○ publish → – reload → – confirm\n",
            "\nshop/web-0 on n1, trimtab 0.1.0\n",
            "\n  ! configmap/shop/web  version 829  read 90 s ago\n",
            "\n  none since the start\n",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}
