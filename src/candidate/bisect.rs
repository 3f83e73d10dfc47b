//! Which selected objects the programs refuse: a program speaks of the whole, so the culprits are found by halving.

use std::sync::Arc;

use tokio::time::Instant;

use super::syntax::Syntax;
use super::{Candidate, CandidateError, Maker};
use crate::model::object::{Object, ObjectRef};
use crate::model::stage::Stage;
use crate::render::Refused;

/// How many candidates are tried in search of the objects that the programs refuse. Enough for seven of a thousand; it
/// bounds how long newer inputs wait.
pub(super) const MOST_TRIALS: usize = 64;

/// For how many times `--validate-timeout` a search may go on.
const LONGEST_SEARCH: u32 = 4;

impl Maker {
    /// Finds which of the suspects the programs refuse, beginning with what is published and adding as many as pass:
    /// all of them failed together, so each half is tried, and the halves of a half that fails. For k bad ones of n
    /// these are about 2 k log n trials. What the search had no time for is held back as well.
    pub(super) async fn search(
        &mut self,
        malformed: &Refused,
        suspects: &[ObjectRef],
        whole: CandidateError,
    ) -> Result<Candidate, CandidateError> {
        let untried = format!(
            "it was not tried alone: the search for the objects that --validate refuses ends after {MOST_TRIALS} trials, \
             or {LONGEST_SEARCH} times --validate-timeout; the first, of all together: {}",
            whole.reason
        );
        let mut refused = malformed.clone();
        refused.extend(suspects.iter().map(|id| (id.clone(), untried.clone())));
        let until = Instant::now() + self.order.validate.timeout.saturating_mul(LONGEST_SEARCH);
        if self.trial(&refused).await?.is_some() {
            // None of them is to blame, or not they alone.
            return Err(whole);
        }
        let (left, right) = suspects.split_at(suspects.len() / 2);
        let mut groups = vec![right, left];
        // The first trial was of what is published.
        let mut trials = 1;
        while let Some(group) = groups.pop() {
            if group.is_empty() {
                continue;
            }
            if trials == MOST_TRIALS || Instant::now() >= until {
                break;
            }
            trials += 1;
            let mut fewer = refused.clone();
            fewer.retain(|id, _| !group.contains(id));
            match (self.trial(&fewer).await?, group) {
                (None, _) => refused = fewer,
                (Some(problem), [culprit]) => {
                    refused.insert(culprit.clone(), problem.reason);
                    self.made.said.push((culprit.clone(), problem.output));
                }
                (Some(_), _) => {
                    let (left, right) = group.split_at(group.len() / 2);
                    groups.extend([right, left]);
                }
            }
        }
        match self.stage(&refused, self.order.unless, self.order.validate.syntax, false).await {
            // Without the refused ones nothing is left.
            Err(problem) if problem.stage == Stage::Render && problem.rejected => Err(whole),
            staged => Ok(staged?.0),
        }
    }

    /// Whether the programs let pass what is left without the refused objects; if not, why.
    pub(super) async fn trial(&mut self, refused: &Refused) -> Result<Option<CandidateError>, CandidateError> {
        // It was parsed before: as part of the whole, or when it was published.
        let (staged, _) = match self.stage(refused, None, Syntax::Off, self.looks()).await {
            // Nothing is left: nothing can be wrong with it.
            Err(problem) if problem.stage == Stage::Render && problem.rejected => return Ok(None),
            staged => staged?,
        };
        let passed = self.run_programs(&staged).await;
        if passed.is_ok() {
            self.discard(&staged).await;
        }
        match passed {
            Ok(()) => Ok(None),
            Err(problem) if problem.rejected => Ok(Some(problem)),
            Err(problem) => Err(problem),
        }
    }

    /// The selected objects that are not as they were last published, where each can be held back alone.
    pub(super) fn changed(&self) -> impl Iterator<Item = ObjectRef> {
        let published = self.order.published.by_id();
        self.order.inputs.independent().filter_map(move |object| {
            let same =
                |previous: &&Arc<Object>| previous.content() == object.content() && previous.secret == object.secret;
            (!published.get(&object.id).is_some_and(same)).then(|| object.id.clone())
        })
    }
}
