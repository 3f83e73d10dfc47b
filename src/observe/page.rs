//! The page for people at `/` of `--admin`: the status, as HTML that needs no script and loads nothing.
//!
//! Names of objects, keys and files are whatever their authors chose: every text is escaped, and the policy forbids
//! what escaping might have missed.

use std::fmt::{self, Write as _};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;

use super::history::{Change, Fate};
use super::status::{Published, Status};
use super::text;
use super::way::{Mark, way};
use super::when::{ago, shown, took};
use crate::model::digest::Digest;

/// The page's style: two schemes, one column, names in one line.
const STYLE: &str = include_str!("page.css");

/// The `Content-Security-Policy` of the page: its own style, its own form, and nothing else.
#[must_use]
pub fn policy() -> String {
    let style = BASE64_STANDARD.encode(Digest::of(STYLE.as_bytes()).as_bytes());
    format!(
        "default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
}

/// The page as of `now`. `fresh`: whether the browser asks again by itself.
#[must_use]
pub fn page(status: &Status, now: Timestamp, fresh: bool) -> String {
    let mut page = Page { text: String::new(), now };
    // Writing to a String cannot fail.
    let _ = page.write(status, fresh);
    page.text
}

struct Page {
    text: String,
    now: Timestamp,
}

impl Page {
    fn write(&mut self, status: &Status, fresh: bool) -> fmt::Result {
        let verdict = &status.verdict;
        let (word, place) = (verdict.state.as_str(), text::place(status));
        writeln!(
            self.text,
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
             content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n\
             <title>{word}: {} (Trimtab)</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<header>{}</header>\n<main>",
            Escaped(&place),
            Escaped(&place)
        )?;
        let since = self.time(verdict.since);
        writeln!(
            self.text,
            "<section class=\"verdict {word}\">\n<h1>{word}</h1>\n<p class=\"summary\">{}</p>",
            sentence(&verdict.summary)
        )?;
        if let Some(next) = &verdict.next {
            writeln!(self.text, "<p class=\"next\"><strong>Next:</strong> {}</p>", Escaped(next))?;
        }
        writeln!(
            self.text,
            "<p class=\"since\">since {since}</p>\n<form method=\"post\" action=\"/retry\"><button>Retry now</button></form>\n\
             </section>"
        )?;
        self.way(status)?;
        if let Some(rollout) = &status.rollout {
            let rows = rollout.rows(&status.pod.name);
            self.table("Rollout", rows.into_iter(), |_, (name, value, bad)| {
                (name.to_owned(), Escaped(&value).to_string(), bad)
            })?;
        }
        self.sources(status)?;
        self.history(status)?;
        self.details(status)?;
        let (href, link) = if fresh { ("/", "stop reloading") } else { ("/?refresh", "reload every 5 seconds") };
        writeln!(
            self.text,
            "</main>\n<footer><a href=\"{href}\">{link}</a> <a href=\"/status\">the same as JSON</a></footer>\n</body>\n\
             </html>"
        )
    }

    fn way(&mut self, status: &Status) -> fmt::Result {
        writeln!(self.text, "<h2>The way of the newest change</h2>")?;
        if let Some(what) = status.history.newest().and_then(Change::what) {
            writeln!(self.text, "<p class=\"name\">{}</p>", parts(&what))?;
        }
        writeln!(self.text, "<ol class=\"way\">")?;
        for (station, mark, millis) in way(status) {
            let class = match mark {
                Mark::Done => "done",
                Mark::Here => "here",
                Mark::Failed => "failed",
                Mark::Waits | Mark::Doubtful => "waits",
                Mark::Later | Mark::Absent => "later",
            };
            let millis = millis.map(|millis| format!(", {}", took(millis))).unwrap_or_default();
            writeln!(
                self.text,
                "<li class=\"{class}\"><span class=\"sign\" aria-hidden=\"true\">{}</span> {} <small>{}{millis}</small></li>",
                mark.sign(),
                station.as_str(),
                mark.word()
            )?;
        }
        writeln!(self.text, "</ol>")
    }

    fn sources(&mut self, status: &Status) -> fmt::Result {
        self.table("Sources", status.sources.iter(), |page, source| {
            let mut state = String::from(if source.healthy { "healthy" } else { "not healthy" });
            for part in [source.message.clone(), source.resource_version.as_ref().map(|it| format!("version {it}"))] {
                state.extend(part.map(|part| format!("; {part}")));
            }
            let at = source.at.map(|at| format!(" ({})", page.time(at))).unwrap_or_default();
            (source.name.clone(), format!("{}{at}", Escaped(&state)), source.lack.is_some())
        })?;
        if !status.held_back.is_empty() {
            self.table("Held back", status.held_back.iter(), |_, held| {
                (held.source.to_string(), Escaped(&held.reason).to_string(), true)
            })?;
        }
        Ok(())
    }

    fn history(&mut self, status: &Status) -> fmt::Result {
        writeln!(self.text, "<h2>The last changes</h2>")?;
        if status.history.newest().is_none() {
            return writeln!(self.text, "<p>none since the start</p>");
        }
        writeln!(self.text, "<ol class=\"history\">")?;
        for change in status.history.changes() {
            let class = match change.result {
                Fate::InEffect => "done",
                Fate::Working => "here",
                Fate::Rejected | Fate::RolledBack | Fate::Held => "failed",
                Fate::Superseded => "later",
            };
            let at = self.time(change.at);
            let what = change.what().unwrap_or_else(|| "not known".to_owned());
            writeln!(
                self.text,
                "<li><span class=\"{class}\">{}</span> {at} <span class=\"name\">{}</span>",
                Escaped(&text::outcome(change)),
                parts(&what)
            )?;
            if let (Some(stage), Some(reason)) = (change.stage, &change.reason) {
                writeln!(self.text, "<p>{stage}: {}</p>", Escaped(reason))?;
            }
            if !change.steps_ms.is_empty() {
                let steps = change.steps_ms.iter().map(|(stage, millis)| format!("{stage} {}", took(*millis)));
                writeln!(self.text, "<small>{}</small>", steps.collect::<Vec<_>>().join(", "))?;
            }
            writeln!(self.text, "</li>")?;
        }
        writeln!(self.text, "</ol>")
    }

    fn details(&mut self, status: &Status) -> fmt::Result {
        let none = || "none".to_owned();
        let text = |text: String| Escaped(&text).to_string();
        let observed = status.observed.as_ref().map(|it| format!("inputs {}, {}", it.digest.short(), self.time(it.at)));
        let quarantine = status.quarantine.as_ref().map(|it| {
            let (short, at, reason) = (it.digest.short(), self.time(it.at), Escaped(&it.reason));
            format!("inputs {short}, rejected at {} ({at}): {reason}", it.stage)
        });
        let target = status.target.as_ref().map(|target| {
            let name = target.name.as_deref().unwrap_or("no process");
            let pid = target.pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();
            let message = target.message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
            text(format!("{name}{pid}, {}{message}", target.state.as_str()))
        });
        let missed = status.target.as_ref().is_some_and(|target| target.message.is_some());
        let rows = [
            ("Phase", status.phase.to_owned(), status.held),
            ("Ready", if status.ready { "yes" } else { "not yet" }.to_owned(), !status.ready),
            ("Observed", observed.unwrap_or_else(none), false),
            ("Published", self.generation(status.published.as_ref()), false),
            ("Reloaded", self.generation(status.reloaded.as_ref()), false),
            ("Confirmed", self.generation(status.confirmed.as_ref()), false),
            ("Last good", self.generation(status.last_good.as_ref()), false),
            ("Pending", status.debt.map_or_else(none, str::to_owned), status.debt.is_some()),
            ("Quarantine", quarantine.unwrap_or_else(none), status.quarantine.is_some()),
            ("Target", target.unwrap_or_else(|| "not looked for".to_owned()), missed),
        ];
        let errors = status.errors.iter().map(|(stage, problem)| {
            (format!("Error: {stage}"), format!("{} ({})", Escaped(&problem.message), self.time(problem.at)), true)
        });
        let archive = status.archive.as_ref().map(|it| ("Archive".to_owned(), text(it.line()), it.is_bad()));
        let rows = rows.into_iter().map(|(name, value, bad)| (name.to_owned(), value, bad));
        let rows: Vec<_> = rows.chain(archive).chain(errors).collect();
        self.table("Details", rows.into_iter(), |_, row| row)
    }

    /// A table of names and values, and whether each is bad news. The values are HTML.
    fn table<T>(
        &mut self,
        title: &str,
        rows: impl Iterator<Item = T>,
        row: impl Fn(&Self, T) -> (String, String, bool),
    ) -> fmt::Result {
        writeln!(self.text, "<h2>{title}</h2>\n<table>")?;
        for item in rows {
            let (name, value, bad) = row(self, item);
            let class = if bad { " class=\"bad\"" } else { "" };
            writeln!(self.text, "<tr><th>{}</th><td{class}>{value}</td></tr>", Escaped(&name))?;
        }
        writeln!(self.text, "</table>")
    }

    fn generation(&self, published: Option<&Published>) -> String {
        published.map_or_else(
            || "none".to_owned(),
            |it| {
                let at = it.at.map_or_else(|| "found at start".to_owned(), |at| self.time(at));
                format!("generation {}, inputs {}, {at}", it.sequence, it.digest.short())
            },
        )
    }

    fn time(&self, at: Timestamp) -> String {
        format!("<time datetime=\"{at:.0}\">{at:.0}</time>, {}", ago(at, self.now))
    }
}

/// A list of names, which may go on in the next line behind a name and not within one.
fn parts(list: &str) -> String {
    Escaped(list).to_string().replace(", ", ", <wbr>").replace("; ", "; <wbr>")
}

/// A text whose times stay in one line.
fn sentence(text: &str) -> String {
    let word = |word: &str| match word.parse::<Timestamp>() {
        Ok(_) => format!("<time>{}</time>", Escaped(word)),
        Err(_) => Escaped(word).to_string(),
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// A text between tags, where nothing of it is markup.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c => f.write_char(shown(c))?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
