//! `trimtab render`: what the sidecar would write, as a diff against what is published. It touches nothing: no
//! directory, lock, journal or key is made, and neither validators nor reloads are run.
//!
//! Of a file into which a secret goes, or may have gone in its published version, sizes alone are shown.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use serde::Serialize;
use similar::algorithms::{Capture, Compact, Replace, myers};
use similar::udiff::UnifiedHunkHeader;
use similar::{ChangeTag, DiffOp};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tracing::{error, warn};

use super::{escaped, prepare};
use crate::app::{self, Config};
use crate::candidate;
use crate::cli::exit::Exit;
use crate::cli::{DryRunArgs, Format};
use crate::model::content::Content;
use crate::model::object::ObjectRef;
use crate::model::snapshot::{HeldBack, Snapshot};
use crate::model::spool::SpoolError;
use crate::model::tree::File;
use crate::publish::{Output, PublishedFile};
use crate::render::{Inputs, Rendered};
use crate::source::Published;
use crate::source::feed::{Feed, Keep};

/// How long the shortest diff of one file is looked for; then a longer one has to do.
const DIFF_TIMEOUT: Duration = Duration::from_secs(2);

/// How a run ended early: the exit code, and what is said.
type Failure = (Exit, anyhow::Error);

/// Renders once and prints the difference. Exit code 0 when it renders, whether anything differs or not.
pub(super) fn render(mut args: DryRunArgs) -> ExitCode {
    // Of the sidecar's own life nothing matters but how long sources are waited for.
    args.run.life.once = true;
    let (config, runtime) = match prepare(args.run) {
        Ok(prepared) => prepared,
        Err(code) => return code,
    };
    let limit = config.once.unwrap_or_default();
    let result = runtime.block_on(report(&config, limit));
    // A read that hangs on a dead disk must not hold up the end.
    runtime.shutdown_background();
    let written = result.and_then(|report| {
        let text = match args.format {
            Format::Text => report.text(std::io::stdout().is_terminal()),
            Format::Json => format!("{:#}\n", serde_json::to_value(&report).context("JSON").map_err(start_up)?),
        };
        std::io::stdout().write_all(text.as_bytes()).context("standard output").map_err(start_up)
    });
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err((exit, failure)) => {
            error!("{failure:#}");
            exit.into()
        }
    }
}

fn start_up(error: anyhow::Error) -> Failure {
    (Exit::StartUp, error)
}

async fn report(config: &Config, limit: Duration) -> Result<Report, Failure> {
    let Rehearsed { rendered, warnings, published, kept, fetched: _ } = rehearse(config, limit).await?;
    for warning in warnings {
        warn!("{warning}");
    }
    Report::new(&rendered, &published, kept).map_err(|error| start_up(error.into()))
}

/// What the sidecar would write, and what is there.
pub(super) struct Rehearsed {
    pub rendered: Rendered,
    /// What `--syntax warn` found.
    pub warnings: Vec<String>,
    /// What `.url` keys stand for: the object, from where it was fetched, and how much it is.
    pub fetched: Vec<(ObjectRef, String)>,
    published: BTreeMap<String, PublishedFile>,
    kept: Vec<Kept>,
}

/// Reads and renders as the sidecar does. `limit`: how long sources are waited for.
pub(super) async fn rehearse(config: &Config, limit: Duration) -> Result<Rehearsed, Failure> {
    let cannot_write = |error: anyhow::Error| (Exit::CannotWrite, error);
    let rejected = |reason: String| (Exit::Rejected, anyhow!("rejected: {reason}"));
    let inspected = config.output.as_ref().map(Output::inspect).transpose();
    let output = inspected.map_err(|error| cannot_write(error.into()))?.flatten().map(|(output, _)| output);
    let given = app::given_key(config).map_err(start_up)?;
    let existing = || output.as_ref().and_then(Output::existing_digest_key);
    let key = match given.or_else(existing) {
        Some(key) => key,
        // For what is only compared with itself.
        None => app::own_key(None).map_err(start_up)?,
    };
    let (snapshot, kept, fetched) = read(config, output.as_ref(), limit).await?;
    let inputs = Inputs { snapshot, settings: Arc::new(config.render.clone()) };
    let published = match &output {
        Some(output) => output.published(config.render.max_size).map_err(|error| cannot_write(error.into()))?,
        None => BTreeMap::new(),
    };
    // Programs of `--validate` need the candidate on a disk, and a dry run writes nothing.
    let found = inputs.found(|path| published.get(path)?.bytes.clone()).into();
    let rehearsed =
        candidate::rehearse(&inputs, inputs.digest(&key), &found, published.is_empty(), config.validate.syntax);
    let (rendered, warnings) = rehearsed.map_err(|problem| rejected(problem.reason))?;
    if let Some(output) = &output {
        output
            .has_room_for(&rendered.tree)
            .map_err(|error| if error.rejected() { rejected(error.to_string()) } else { cannot_write(error.into()) })?;
    }
    Ok(Rehearsed { rendered, warnings, fetched, published, kept })
}

/// Reads all sources once, and waits for those that are missing. What is gone and was published
/// is kept, as the sidecar keeps it.
async fn read(
    config: &Config,
    output: Option<&Output>,
    limit: Duration,
) -> Result<(Snapshot, Vec<Kept>, Vec<(ObjectRef, String)>), Failure> {
    // One that cannot be believed is set aside by the sidecar, which then knows no more.
    let journal = output.map(Output::journal).transpose().map_err(|error| (Exit::CannotWrite, error.into()))?;
    let current = journal.flatten().and_then(Result::ok).and_then(|journal| journal.current);
    let plain = !config.render.templated;
    let clients = app::clients(config).await.map_err(|(end, error)| (Exit::from(end), error))?;
    let api = clients.map(|clients| (clients, &config.watches[..]));
    let mut tasks = JoinSet::new();
    let feed = Feed::start(
        &mut tasks,
        &config.specs,
        &config.files,
        &config.urls,
        api,
        config.render.max_size,
        &Keep::default(),
    );
    let mut feed = feed.on_top_of(Published::of(current.as_ref()), plain);
    let until = Instant::now() + limit;
    loop {
        if let Some(snapshot) = feed.changed() {
            let kept = feed.views().iter().filter(|view| view.is_kept());
            let kept =
                kept.map(|view| Kept { source: view.spec.name.clone(), message: view.message().unwrap_or_default() });
            return Ok((snapshot, kept.collect(), feed.fetched()));
        }
        let Ok(mut news) = timeout_at(until, feed.next()).await else {
            let exit = if feed.is_forbidden() { Exit::Forbidden } else { Exit::Unavailable };
            let waits_for = feed.waits_for().join("; and for ");
            return Err((exit, anyhow!("--once-timeout is over, waiting for {waits_for}")));
        };
        let absent = feed.absent(&mut news);
        if let Some(output) = output.filter(|_| !absent.is_empty()) {
            // What it notes is in the report.
            feed.restore(&app::read_back(output, absent, &config.render));
        }
        for note in news.notes {
            note.log();
        }
    }
}

/// What would change. Without `Debug`, as it holds what files hold.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    files: Vec<Difference>,
    held_back: Vec<HeldBack>,
    kept: Vec<Kept>,
}

/// A source of which something is gone, and kept as it was.
#[derive(Serialize)]
struct Kept {
    source: String,
    message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Change {
    Added,
    Removed,
    Changed,
    Same,
}

/// One file.
#[derive(Serialize)]
struct Difference {
    path: String,
    change: Change,
    /// A secret goes into it, or went or may have gone into what it replaces.
    secret: bool,
    /// A unified diff; `None` where there is none, or none that may be shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    diff: Option<String>,
    /// What is said instead of a diff.
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<String>,
}

impl Report {
    fn new(
        rendered: &Rendered,
        published: &BTreeMap<String, PublishedFile>,
        kept: Vec<Kept>,
    ) -> Result<Self, SpoolError> {
        let mut files: BTreeMap<&str, (Option<&PublishedFile>, Option<&File>)> = BTreeMap::new();
        for (path, old) in published {
            files.entry(path).or_default().0 = Some(old);
        }
        for (path, new) in rendered.tree.iter() {
            files.entry(path.as_str()).or_default().1 = Some(new);
        }
        let files = files.into_iter().map(|(path, (old, new))| Difference::new(path, old, new));
        Ok(Self { files: files.collect::<Result<_, _>>()?, held_back: rendered.held_back.clone(), kept })
    }

    /// For people. `terminal`: what is read is shown on one, so that control characters are escaped, and colours are
    /// used unless `NO_COLOR` is set (<https://no-color.org>).
    fn text(&self, terminal: bool) -> String {
        let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let mut text = String::new();
        for file in &self.files {
            if let Some(diff) = &file.diff {
                print_diff(&mut text, diff, terminal, colours);
            }
            if let Some(summary) = &file.summary {
                push(&mut text, &format!("{}: {summary}", file.path), terminal, colours.then_some(BOLD));
            }
        }
        for HeldBack { source, key, reason } in &self.held_back {
            let stays = if key.is_none() { "; what a running sidecar last published of it stays" } else { "" };
            let line = format!("held back: {source}: {reason}{stays}");
            push(&mut text, &line, terminal, colours.then_some(BOLD));
        }
        for Kept { source, message } in &self.kept {
            push(&mut text, &format!("kept: {source}: {message}"), terminal, colours.then_some(BOLD));
        }
        let count = |change| self.files.iter().filter(|file| file.change == change).count();
        let (added, removed, changed) = (count(Change::Added), count(Change::Removed), count(Change::Changed));
        let same = count(Change::Same);
        let line = if added + removed + changed == 0 {
            format!("nothing differs from what is published ({same} files)")
        } else {
            format!("{changed} changed, {added} added, {removed} removed, {same} the same; nothing was written")
        };
        push(&mut text, &line, false, None);
        text
    }
}

impl Difference {
    fn new(path: &str, old: Option<&PublishedFile>, new: Option<&File>) -> Result<Self, SpoolError> {
        let was_secret = old.map(|old| old.secret != Some(false));
        let secret = was_secret == Some(true) || new.is_some_and(|new| new.secret);
        let change = match (old, new) {
            (None, _) => Change::Added,
            (_, None) => Change::Removed,
            (Some(old), Some(new)) => {
                let same_secrecy = old.secret.is_none_or(|secret| secret == new.secret);
                let same = same_secrecy && old.bytes.as_ref() == Some(&new.bytes);
                if same { Change::Same } else { Change::Changed }
            }
        };
        let mut difference = Self { path: path.to_owned(), change, secret, diff: None, summary: None };
        if change == Change::Same {
            return Ok(difference);
        }
        let old_bytes = match old {
            Some(old) => old.bytes.as_ref().map(Content::read).transpose()?,
            None => Some(Bytes::new()),
        };
        let new_bytes = new.map(|new| new.bytes.read()).transpose()?.unwrap_or_default();
        let texts =
            old_bytes.as_deref().and_then(|bytes| str::from_utf8(bytes).ok()).zip(str::from_utf8(&new_bytes).ok());
        match texts {
            Some((before, after)) if !secret => difference.diff = Some(unified(path, change, before, after)),
            _ => {
                let why = match &old_bytes {
                    _ if secret => "secret",
                    None => "it cannot be read here",
                    Some(_) => "binary",
                };
                let size = |size: u64, bytes: Option<&[u8]>| match bytes {
                    Some(bytes) if why != "binary" => format!("{size} bytes in {} lines", lines(bytes)),
                    _ => format!("{size} bytes"),
                };
                let before = old.map(|old| size(old.size, old_bytes.as_deref()));
                let after = new.map(|new| size(new.bytes.len() as u64, Some(&*new_bytes)));
                difference.summary = Some(match (before, after) {
                    (Some(before), Some(after)) => format!("differs ({why}, {before} → {after})"),
                    (None, after) => format!("added ({why}, {})", after.unwrap_or_default()),
                    (Some(before), None) => format!("removed ({why}, {before})"),
                });
            }
        }
        Ok(difference)
    }
}

fn lines(bytes: &[u8]) -> usize {
    bytes.split_inclusive(|byte| *byte == b'\n').count()
}

/// A diff as `diff -u` writes it.
fn unified(path: &str, change: Change, before: &str, after: &str) -> String {
    let name = |side: &str, absent: bool| if absent { "/dev/null".to_owned() } else { format!("{side}/{path}") };
    let (old, new) = (name("a", change == Change::Added), name("b", change == Change::Removed));
    let mut text = format!("--- {old}\n+++ {new}\n");
    let [before, after] = [before, after].map(|text| text.split_inclusive('\n').collect::<Vec<_>>());
    for hunk in hunks(&before, &after) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}", UnifiedHunkHeader::new(&hunk));
        for change in hunk.iter().flat_map(|operation| operation.iter_changes(&before, &after)) {
            text.push(match change.tag() {
                ChangeTag::Delete => '-',
                ChangeTag::Insert => '+',
                ChangeTag::Equal => ' ',
            });
            text.push_str(change.value());
            if !change.value().ends_with('\n') {
                text.push_str("\n\\ No newline at end of file\n");
            }
        }
    }
    text
}

/// What differs between two lists of lines, with three lines around each change.
fn hunks(before: &[&str], after: &[&str]) -> Vec<Vec<DiffOp>> {
    let mut script = Compact::new(Replace::new(Capture::new()), before, after);
    let deadline = std::time::Instant::now() + DIFF_TIMEOUT;
    // The algorithm by its own name: one that is chosen at run time brings all of them along, 130 kB.
    let Ok(()) = myers::diff_deadline(&mut script, before, 0..before.len(), after, 0..after.len(), Some(deadline));
    script.into_inner().into_inner().into_grouped_ops(3)
}

const BOLD: &str = "1";
const RED: &str = "31";
const GREEN: &str = "32";
const CYAN: &str = "36";

fn print_diff(text: &mut String, diff: &str, terminal: bool, colours: bool) {
    for (index, line) in diff.split_terminator('\n').enumerate() {
        let colour = match line.as_bytes().first() {
            _ if index < 2 => Some(BOLD),
            Some(b'+') => Some(GREEN),
            Some(b'-') => Some(RED),
            Some(b'@') => Some(CYAN),
            _ => None,
        };
        push(text, line, terminal, colour.filter(|_| colours));
    }
}

/// Adds a line. What is shown on a terminal must not be able to steer it: `escape`.
fn push(text: &mut String, line: &str, escape: bool, colour: Option<&str>) {
    let line = if escape { Cow::from(escaped(line, '\t')) } else { Cow::from(line) };
    let _ = match colour {
        Some(colour) => writeln!(text, "\x1b[{colour}m{line}\x1b[0m"),
        None => writeln!(text, "{line}"),
    };
}
