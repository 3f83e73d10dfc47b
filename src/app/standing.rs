//! Where things stand: `/status` and the metrics after each turn of the loop, and the verdict on them.

use jiff::Timestamp;

use super::report::Reporter;
use crate::machine::Machine;
use crate::model::digest::Digest;
use crate::observe::rollout::Rollout;
use crate::observe::status::{self, Lack, Wait};
use crate::source::View;

impl Reporter {
    /// What was rejected and cannot be taken back.
    pub(super) fn edited_in_place(&mut self, places: Vec<String>) {
        self.shared.update(|status| status.edited_in_place = places);
    }

    /// Reports what has changed of the rollout.
    fn rollout(&mut self, now: &Rollout) {
        let (before, pod) = self.shared.update(|status| {
            let same = status.rollout.as_ref() == Some(now);
            let before = if same { None } else { status.rollout.replace(now.clone()) };
            ((!same).then_some(before), status.pod.name.clone())
        });
        let Some(before) = before else { return };
        let ended = now.ended(before.as_ref(), &pod);
        self.shared.metrics.rollout(now, ended);
        if let Some(news) = now.news(before.as_ref()) {
            self.events.rollout(now, news, &pod, ended.is_some());
        }
    }

    /// Brings `/status` and the metrics up to date with the machine and the sources, and writes the log.
    pub(super) fn state(
        &mut self,
        machine: &Machine,
        views: &[View],
        fetches: &[(usize, String)],
        observed: Option<(Digest, Timestamp)>,
        fleet: Option<(Rollout, Wait)>,
    ) {
        let journal = machine.journal();
        self.shared.metrics.debt(journal.debt.is_some());
        self.shared.metrics.quarantined(journal.quarantine.is_some());
        let too_large: Vec<_> = views.iter().flat_map(View::held_back).collect();
        self.too_large = !too_large.is_empty();
        let held_back: Vec<_> = self.held_back.iter().cloned().chain(too_large).collect();
        self.shared.metrics.held_back(held_back.len());
        let known = self.shared.update(|status| std::mem::replace(&mut status.held_back, held_back.clone()));
        self.events.held_back(&known, &held_back);
        if let Some((rollout, _)) = &fleet {
            self.rollout(rollout);
        }
        self.shared.update(|status| {
            status.phase = machine.phase().as_str();
            // Where nothing is written, there is nothing to wait for.
            status.ready |= !self.writes && observed.is_some();
            // What the sources turn out to hold as well is theirs from then on.
            if let Some((published, current)) = status.published.as_mut().zip(journal.current.as_ref()) {
                published.fallback = published.is(current) && current.is_fallback();
            }
            status.observed = observed.map(|(digest, at)| status::Observed { digest, at });
            let confirmed = status.confirmed.as_ref();
            status.last_good = journal
                .last_good
                .as_ref()
                .map(|good| status::Published::new(good, confirmed.filter(|it| it.is(good)).and_then(|it| it.at)));
            status.debt = journal.debt.as_ref().map(|debt| debt.kind.as_str());
            status.quarantine = journal.quarantine.as_ref().map(status::Quarantine::from);
            status.sources = views.iter().enumerate().map(|(number, view)| source(number, view, fetches)).collect();
            status.held = machine.is_held();
            status.waits_for = machine
                .paced_by()
                .map(str::to_owned)
                .or_else(|| fetches.first().map(|(_, waited)| waited.clone()))
                .map(|reason| Wait { reason, next: None });
            if let Some((_, wait)) = fleet.filter(|_| machine.waits_for_fleet()) {
                status.waits_for = Some(wait);
            }
        });
        // What the main process refused is reported with what follows from it.
        if machine.is_turning_back() {
            return;
        }
        let (verdict, changed) = self.shared.judge();
        for milestone in self.milestones.drain(..) {
            self.events.announce(&milestone, self.brief.as_deref());
        }
        self.events.send(&verdict);
        self.lines.write(&verdict, changed, journal.quarantine.as_ref().map(|quarantine| quarantine.digest));
    }
}

fn source(number: usize, view: &View, fetches: &[(usize, String)]) -> status::Source {
    let lack = lack(view);
    // While its `.url` keys are fetched it may look as if it had none.
    let fetch = fetches.iter().find(|(source, _)| *source == number).filter(|_| lack == Some(Lack::Missing));
    status::Source {
        name: view.spec.name.clone(),
        resource_version: view.resource_version().map(str::to_owned),
        healthy: view.is_up() && !view.is_kept() && view.waits_for().is_none(),
        message: fetch.map(|(_, waited)| waited.clone()).or_else(|| view.message()),
        at: view.at,
        lack: lack.filter(|_| fetch.is_none()),
    }
}

fn lack(view: &View) -> Option<Lack> {
    match view {
        _ if view.is_forbidden() => Some(Lack::Forbidden),
        _ if !view.is_up() => Some(Lack::Unreadable),
        _ if view.is_kept() => Some(Lack::Deleted),
        // Before it was read once, there is nothing to say of it.
        _ if view.waits_for().is_some() => view.is_known().then_some(Lack::Missing),
        _ => view.has_warning().then_some(Lack::Frozen),
    }
}
