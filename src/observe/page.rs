//! The page for people at `/` of `--admin`: the status, as HTML that needs no script and loads nothing.
//!
//! Names of objects, keys and files are whatever their authors chose: every text is escaped, and the policy forbids
//! what escaping might have missed.

use std::fmt::{self, Write as _};

use jiff::Timestamp;

use crate::observe::status::{Published, Status};

/// The `Content-Security-Policy` of the page: its own style, and nothing else.
pub const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HEAD: &str = r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="refresh" content="5">
<meta name="viewport" content="width=device-width">
<title>Trimtab</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em }
table { border-collapse: collapse; margin: 0 0 1.5em; width: 100% }
th, td { border-bottom: 1px solid #ccc; overflow-wrap: anywhere; padding: .2em .8em .2em 0; text-align: left;
  vertical-align: top }
th { width: 12em }
.bad { color: #b00020 }
</style>
</head>
<body>
<h1>Trimtab</h1>
"#;

#[must_use]
pub fn page(status: &Status) -> String {
    let mut page = Page { text: HEAD.to_owned() };
    let verdict = &status.verdict;
    // Writing to a String cannot fail.
    let _ = writeln!(page.text, "<p>{}: {}</p>", verdict.state.as_str(), Escaped(&verdict.line()));
    page.state(status);
    if !status.errors.is_empty() {
        page.table("What is wrong", status.errors.iter(), |(stage, problem)| {
            (stage.to_string(), format!("{} ({})", problem.message, since(problem.at)), true)
        });
    }
    if !status.held_back.is_empty() {
        page.table("Held back", status.held_back.iter(), |held| (held.source.to_string(), held.reason.clone(), true));
    }
    page.table("Sources", status.sources.iter(), |source| {
        let mut state = String::from(if source.healthy { "healthy" } else { "not healthy" });
        for part in [source.message.clone(), source.resource_version.as_ref().map(|it| format!("version {it}"))] {
            state.extend(part.map(|part| format!("; {part}")));
        }
        state.extend(source.at.map(|at| format!(" ({})", since(at))));
        (source.name.clone(), state, !source.healthy)
    });
    page.text.push_str("<p>The same for machines: <a href=\"/status\">/status</a></p>\n</body>\n</html>\n");
    page.text
}

struct Page {
    text: String,
}

impl Page {
    fn state(&mut self, status: &Status) {
        let held = status.phase == crate::machine::Phase::Held.as_str();
        let none = || "none".to_owned();
        let observed = status.observed.as_ref().map(|it| format!("inputs {}, {}", it.digest.short(), since(it.at)));
        let quarantine = status.quarantine.as_ref().map(|it| {
            format!("inputs {}, rejected at {} ({}): {}", it.digest.short(), it.stage, since(it.at), it.reason)
        });
        let target = status.target.as_ref().map(|target| {
            let name = target.name.as_deref().unwrap_or("no process");
            let pid = target.pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();
            let message = target.message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
            format!("{name}{pid}, {}{message}", target.state.as_str())
        });
        let missed = status.target.as_ref().is_some_and(|target| target.message.is_some());
        let rows = [
            ("Phase", status.phase.to_owned(), held),
            ("Ready", if status.ready { "yes" } else { "not yet" }.to_owned(), !status.ready),
            ("Observed", observed.unwrap_or_else(none), false),
            ("Published", generation(status.published.as_ref()), false),
            ("Reloaded", generation(status.reloaded.as_ref()), false),
            ("Confirmed", generation(status.confirmed.as_ref()), false),
            ("Last good", generation(status.last_good.as_ref()), false),
            ("Debt", status.debt.map_or_else(none, str::to_owned), status.debt.is_some()),
            ("Quarantine", quarantine.unwrap_or_else(none), status.quarantine.is_some()),
            ("Target", target.unwrap_or_else(|| "not looked for".to_owned()), missed),
        ];
        self.table("State", rows.into_iter(), |(name, value, bad)| (name.to_owned(), value, bad));
    }

    /// A table of names and texts, and whether each is bad news.
    fn table<T>(&mut self, title: &str, rows: impl Iterator<Item = T>, row: impl Fn(T) -> (String, String, bool)) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "<h2>{}</h2>\n<table>", Escaped(title));
        for (name, value, bad) in rows.map(row) {
            let class = if bad { " class=\"bad\"" } else { "" };
            let _ = writeln!(self.text, "<tr><th>{}</th><td{class}>{}</td></tr>", Escaped(&name), Escaped(&value));
        }
        self.text.push_str("</table>\n");
    }
}

fn generation(published: Option<&Published>) -> String {
    published.map_or_else(
        || "none".to_owned(),
        |it| {
            let at = it.at.map_or_else(|| "found at start".to_owned(), since);
            format!("generation {}, inputs {}, {at}", it.sequence, it.digest.short())
        },
    )
}

fn since(at: Timestamp) -> String {
    format!("{at:.0}")
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
                // What reorders text on the screen.
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => f.write_char(char::REPLACEMENT_CHARACTER)?,
                c if c.is_control() => f.write_char(' ')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::digest::Digest;
    use crate::model::object::{Kind, ObjectRef};
    use crate::model::snapshot::HeldBack;
    use crate::model::stage::Stage;
    use crate::observe::status::{Observed, Problem, Quarantine, Source};
    use crate::reload::{TargetState, TargetStatus};

    const HOSTILE: &str = "</td></table><script>alert(1)</script><img src=x onerror='a'>\"&\u{202e}\u{1b}[0m";

    fn hostile() -> Status {
        let (digest, at, text) = (Digest::UNKNOWN, Timestamp::UNIX_EPOCH, || HOSTILE.to_owned());
        let published = Some(Published { digest, sequence: 7, at: None });
        let state = TargetState::Ambiguous;
        Status {
            phase: "held",
            ready: true,
            observed: Some(Observed { digest, at }),
            published: published.clone(),
            reloaded: published.clone(),
            confirmed: published.clone(),
            last_good: published,
            debt: Some("rollback"),
            quarantine: Some(Quarantine { digest, stage: Stage::Render, reason: text(), at }),
            held_back: vec![HeldBack {
                source: ObjectRef { kind: Kind::Dir, namespace: "".into(), name: text().into() },
                reason: text(),
            }],
            target: Some(TargetStatus { state, pid: Some(1), name: Some(text()), message: Some(text()) }),
            sources: vec![Source {
                name: text(),
                resource_version: Some(text()),
                healthy: false,
                message: Some(text()),
                at: Some(at),
                lack: None,
            }],
            errors: [("render", Problem { message: text(), at })].into(),
            ..Status::default()
        }
    }

    #[test]
    fn hostile_names_are_text_and_no_markup() {
        let page = page(&hostile());
        let escaped = "&lt;/td&gt;&lt;/table&gt;&lt;script&gt;alert(1)&lt;/script&gt;&lt;img src=x onerror=&#39;a&#39;&gt;\
                       &quot;&amp;\u{fffd} [0m";
        assert_eq!(page.matches(escaped).count(), 9, "each of them: {page}");
        assert!(
            !page.contains("<script") && !page.contains("<img") && !page.contains(['\u{202e}', '\u{1b}']),
            "{page}"
        );
        assert_eq!(page.matches("</table>").count(), 4, "{page}");
    }

    #[test]
    fn page_says_what_the_status_says() {
        let page = page(&hostile());
        let parts = [
            "<th>Phase</th><td class=\"bad\">held</td>",
            "generation 7, inputs 000000000000, found at start",
            "<th>Debt</th><td class=\"bad\">rollback</td>",
            "rejected at render (1970-01-01T00:00:00Z)",
            "pid 1, ambiguous",
            "<h2>Held back</h2>",
            "<h2>What is wrong</h2>",
            "not healthy; ",
        ];
        for part in parts {
            assert!(page.contains(part), "{part}: {page}");
        }
        let calm = super::page(&Status::default());
        assert!(!calm.contains("What is wrong") && !calm.contains("Held back"), "{calm}");
    }
}
