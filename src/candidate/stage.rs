//! A candidate's way into its directory: rendered, parsed, written.

use std::time::Duration;

use tokio::time::Instant;

use super::syntax::{self, Syntax, SyntaxError};
use super::{Candidate, CandidateError, Maker, Order, in_pool, render};
use crate::model::digest::{Digest, DigestKey, Hasher};
use crate::model::journal::Generation;
use crate::model::snapshot::Observed;
use crate::model::stage::Stage;
use crate::model::tree::Tree;
use crate::publish::PublishError;
use crate::render::{Drawn, Inputs, Refused, Rendered};

impl Maker {
    /// Renders, parses, and writes the candidate into its directory; `whole`, if programs are to look at it.
    pub(super) async fn stage(
        &mut self,
        refused: &Refused,
        unless: Option<Digest>,
        syntax: Syntax,
        whole: bool,
    ) -> Result<(Candidate, Tree), CandidateError> {
        let (order, refused, drawn) = (self.order.clone(), refused.clone(), self.drawn.take());
        let staged = in_pool(Stage::Render, move || stage(&order, &refused, drawn, unless, syntax, whole)).await?;
        self.made.rendering += staged.rendering;
        if let Some(parsing) = staged.parsing {
            *self.made.validating.get_or_insert_default() += parsing;
            self.made.warnings = staged.warnings;
        }
        self.made.drawn = staged.drawn;
        staged.result
    }

    /// What passed is what is published: if a program has written into the candidate, or the layout wants less than the
    /// whole, it is staged afresh.
    pub(super) async fn put_right(&self, candidate: &Candidate, tree: Tree) -> Result<(), CandidateError> {
        let Candidate::Staged { generation, .. } = candidate else { return Ok(()) };
        if self.order.validate.commands.is_empty() {
            return Ok(());
        }
        let (Some(output), generation) = (self.order.output.clone(), generation.clone()) else { return Ok(()) };
        let put_right = in_pool(Stage::Validate, move || {
            if output.is_intact(&generation, &tree)? { Ok(()) } else { output.stage(&generation, &tree) }
        });
        put_right.await?.map_err(|error: PublishError| CandidateError::new(Stage::Validate, error.rejected(), &error))
    }

    pub(super) async fn discard(&self, candidate: &Candidate) {
        if let Candidate::Staged { generation, .. } = candidate {
            let (Some(output), generation) = (self.order.output.clone(), generation.clone()) else { return };
            // What cannot be removed now goes with the next stage or prune.
            let _ = tokio::task::spawn_blocking(move || output.discard(&generation)).await;
        }
    }

    /// The selected objects with a malformed key, where that holds them back alone.
    pub(super) async fn malformed(&mut self) -> Result<Refused, CandidateError> {
        if self.order.validate.syntax != Syntax::Strict || self.order.inputs.independent().next().is_none() {
            return Ok(Refused::new());
        }
        let order = self.order.clone();
        let began = Instant::now();
        let found = in_pool(Stage::Validate, move || malformed(&order.inputs)).await?;
        *self.made.validating.get_or_insert_default() += began.elapsed();
        found
    }
}

struct Staged {
    result: Result<(Candidate, Tree), CandidateError>,
    rendering: Duration,
    parsing: Option<Duration>,
    warnings: Vec<String>,
    drawn: Option<Drawn>,
}

fn stage(
    order: &Order,
    refused: &Refused,
    drawn: Option<Drawn>,
    unless: Option<Digest>,
    syntax: Syntax,
    whole: bool,
) -> Staged {
    let began = Instant::now();
    let mut parsing = None;
    let mut warnings = Vec::new();
    let redrawn = drawn.filter(|_| refused.is_empty()).and_then(|drawn| order.inputs.redraw(drawn));
    let mut rendered =
        redrawn.map_or_else(|| render(&order.inputs, order.digest, &order.published, refused, order.bare), Ok);
    let whole_tree =
        rendered.as_ref().ok().filter(|rendered| rendered.held_back.is_empty() && rendered.warnings.is_empty());
    let drawn = whole_tree.and_then(|rendered| order.inputs.drawn(&rendered.tree));
    if let Ok(rendered) = &mut rendered {
        warnings.append(&mut rendered.warnings);
    }
    let result = write(order, rendered, unless, whole, |tree| {
        let began = Instant::now();
        let observed = &order.inputs.snapshot.observed;
        let checked = check(tree, syntax, &mut warnings).and_then(|()| check_observed(observed, syntax, &mut warnings));
        parsing = (syntax != Syntax::Off).then(|| began.elapsed());
        checked
    });
    Staged { result, rendering: began.elapsed().saturating_sub(parsing.unwrap_or_default()), parsing, warnings, drawn }
}

fn write(
    order: &Order,
    rendered: Result<Rendered, CandidateError>,
    unless: Option<Digest>,
    whole: bool,
    check: impl FnOnce(&Tree) -> Result<(), CandidateError>,
) -> Result<(Candidate, Tree), CandidateError> {
    let rendered = rendered?;
    check(&rendered.tree)?;
    let content = rendered.tree.content(&order.key);
    let observed = order.inputs.observed(&order.key);
    let tree = beside(rendered.tree.digest(content, &order.key), observed, &order.key);
    let held_back = rendered.held_back;
    let made_of = order.inputs.snapshot.made_of.clone().without(&held_back, &order.published);
    if unless == Some(tree) {
        return Ok((Candidate::Same { held_back, made_of }, rendered.tree));
    }
    let generation = Generation::new(order.sequence, order.digest, tree, content);
    let generation = Generation { partial: !held_back.is_empty(), made_of: Some(made_of), observed, ..generation };
    let staged = match &order.output {
        None => Ok(()),
        Some(output) if whole => output.stage_whole(&generation, &rendered.tree),
        Some(output) => output.stage(&generation, &rendered.tree),
    };
    // What cannot be written is the volume's fault.
    let stage = |error: &PublishError| if error.is_of_the_inputs() { Stage::Render } else { Stage::Publish };
    staged.map_err(|error| CandidateError::new(stage(&error), error.rejected(), &error))?;
    Ok((Candidate::Staged { generation, files: rendered.tree.len(), held_back }, rendered.tree))
}

/// The identity of a tree beside what the main process reads by itself: an edit of that alone is a new generation.
fn beside(tree: Digest, observed: Option<Digest>, key: &DigestKey) -> Digest {
    let Some(observed) = observed else { return tree };
    let mut hasher = Hasher::keyed(key);
    hasher.field(tree.as_bytes());
    hasher.field(observed.as_bytes());
    hasher.finish()
}

/// Parses all files: the first that is malformed is a problem, or each is a warning.
pub(super) fn check(tree: &Tree, syntax: Syntax, warnings: &mut Vec<String>) -> Result<(), CandidateError> {
    if syntax == Syntax::Off {
        return Ok(());
    }
    for chunk in tree.chunks().iter().filter(|chunk| !chunk.is_well_formed()) {
        let mut well_formed = true;
        for (path, file) in chunk.iter() {
            let checked = syntax::check(path.as_str(), &file.bytes)
                .map_err(|error| CandidateError::new(Stage::Validate, false, &error))?;
            let Err(error) = checked else { continue };
            let message = format!("{error} (from {})", file.origin);
            match syntax {
                Syntax::Strict => return Err(CandidateError::new(Stage::Validate, true, &message)),
                Syntax::Warn | Syntax::Off => warnings.push(message),
            }
            well_formed = false;
        }
        if well_formed {
            chunk.note_well_formed();
        }
    }
    Ok(())
}

/// The same of files that the main process reads by itself.
fn check_observed(observed: &[Observed], syntax: Syntax, warnings: &mut Vec<String>) -> Result<(), CandidateError> {
    if syntax == Syntax::Off {
        return Ok(());
    }
    for observed in observed {
        for (key, bytes) in &observed.object.data {
            let checked = syntax::check(&observed.place(key), bytes)
                .map_err(|error| CandidateError::new(Stage::Validate, false, &error))?;
            match checked {
                // Prometheus's sidecars unpack what begins so, whatever it is called.
                Ok(()) | Err(SyntaxError::NotUtf8 { packed: true, .. }) => {}
                Err(error) if syntax == Syntax::Strict => {
                    return Err(CandidateError::new(Stage::Validate, true, &error));
                }
                Err(error) => warnings.push(error.to_string()),
            }
        }
    }
    Ok(())
}

/// The independent objects with a malformed key, and where.
pub(super) fn malformed(inputs: &Inputs) -> Result<Refused, CandidateError> {
    let mut found = Refused::new();
    for object in inputs.independent() {
        for (key, bytes) in &object.data {
            // What is no path is held back for that.
            let Some(path) = inputs.settings.path.place(&object.id, object.marks(), key) else { continue };
            let checked = syntax::check(path.as_str(), bytes)
                .map_err(|error| CandidateError::new(Stage::Validate, false, &error))?;
            if let Err(error) = checked {
                found.insert(object.id.clone(), format!("key {key:?}: {error}"));
                break;
            }
        }
    }
    Ok(found)
}
