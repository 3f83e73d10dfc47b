//! What a journal and a directory mean after a start.

use super::work::{Pause, Work};
use super::{Disk, Effect, Intake, Machine, Milestone, Options};
use crate::model::journal::{Debt, DebtKind, Generation, Journal, sequence_of};

/// Makes a machine of the journal (`None`: there is none, or it could not be read) and of what is on the disk.
///
/// The link decides which generation is current; the journal, whether its reload is pending. What the
/// journal cannot explain is presumed pending: one reload too many is harmless, one too few is not.
#[must_use]
pub fn recover(options: Options, journal: Option<Journal>, disk: &Disk) -> (Machine, Vec<Effect>) {
    let mut journal = journal.unwrap_or_default();
    let is_torn = |name: &String| disk.torn.as_ref().is_some_and(|torn| torn.contains(name));
    let link = disk.link.as_ref().filter(|link| !is_torn(link));
    let is_linked = |generation: &Option<Generation>| {
        link.is_some() && generation.as_ref().map(|generation| &generation.directory) == link
    };
    let is_there =
        |generation: &Generation| disk.directories.contains(&generation.directory) && !is_torn(&generation.directory);
    let (mut astray, mut announced) = (false, None);
    if !is_linked(&journal.current) {
        let rolled_back = journal.is_due(DebtKind::Rollback);
        if rolled_back && journal.current.as_ref().is_some_and(is_there) {
            astray = true;
        } else {
            announced = journal.current.take();
            let from = if is_linked(&journal.from) { journal.from.take() } else { None };
            journal.debt = match &from {
                Some(_) if !rolled_back => journal.prev_debt.take(),
                _ => link.map(|_| Debt::default()),
            };
            journal.current = from.or_else(|| link.and_then(|link| Generation::found(link)));
            if announced.is_some() && journal.last_good == announced && !rolled_back {
                journal.last_good.clone_from(&journal.current);
            }
        }
    }
    if disk.torn.is_some() && journal.current.is_none() {
        // What was current is torn. The newest that is whole takes its place, and the main process is notified of it.
        let whole = [&announced, &journal.last_good, &journal.from].into_iter().flatten().find(|it| is_there(it));
        if let Some(whole) = whole.cloned() {
            let good = journal.last_good.as_ref() == Some(&whole);
            let kind = if good { DebtKind::Rollback } else { DebtKind::Publish };
            journal.debt = Some(Debt { kind, ..Debt::default() });
            journal.current = Some(whole);
            journal.from = None;
            astray = true;
        }
    }
    journal.prev_debt = None;
    journal.from = journal.from.filter(is_there);
    journal.last_good = journal.last_good.filter(is_there);
    // Where nothing is published, what was rejected is worth another try: see `Machine::rendered`.
    let is_kept = |gate| gate == options.gate && journal.current.is_some();
    journal.quarantine = journal.quarantine.filter(|quarantine| is_kept(quarantine.gate));
    let highest = disk.directories.iter().filter_map(|name| sequence_of(name)).max();
    journal.next_sequence = journal.next_sequence.max(highest.map_or(1, |sequence| sequence.saturating_add(1)));

    journal.fleet = options.rollout.then(|| journal.fleet.take().unwrap_or_default());
    if let Some(fleet) = &mut journal.fleet {
        fleet.base = fleet.base.take().filter(is_there);
    }

    let mut machine = Machine {
        have: journal.current.as_ref().map(Generation::inputs),
        published: journal.debt.as_ref().and_then(|debt| debt.published.clone()),
        held: journal.is_due(DebtKind::Publish)
            && journal.quarantine.as_ref().map(|quarantine| quarantine.digest)
                == journal.current.as_ref().map(|current| current.digest),
        // What was held back then is not known any more: it is found again, and reported. So is what it was made of, if
        // an earlier version of Trimtab published it.
        redo: journal.current.as_ref().is_some_and(|current| current.partial || current.made_of.is_none()),
        options,
        journal,
        want: None,
        leave: None,
        intake: Intake::Calm,
        work: Work::Waiting,
        attempts: 0,
        refusals: 0,
        refused_long: false,
        pause: Pause::None,
        settled: false,
        failures: 0,
        interval_open: true,
        dirty: false,
        astray,
        stopping: false,
        last_step: 0,
    };
    let mut effects = Vec::new();
    if machine.held {
        effects.push(Effect::Announce(Milestone::Held));
    }
    machine.tidy(&mut effects);
    (machine, effects)
}
