//! The page holds what the status holds, as text, for any eye.

use super::*;
use crate::model::object::{Kind, ObjectRef};
use crate::model::snapshot::HeldBack;
use crate::model::stage::Stage;
use crate::observe::history::{Edit, History};
use crate::observe::status::{Lack, Observed, Pod, Problem, Quarantine, Source};
use crate::observe::verdict::Verdict;
use crate::reload::{TargetState, TargetStatus};

const HOSTILE: &str = "</td></table><script>alert(1)</script><img src=x onerror='a'>\"&\u{202e}\u{1b}[0m";

fn hostile() -> Status {
    let (digest, at, text) = (Digest::UNKNOWN, Timestamp::UNIX_EPOCH, || HOSTILE.to_owned());
    let published = Some(Published { digest, sequence: 7, at: None, fallback: false });
    let mut history = History::default();
    let edit = Edit { source: text(), keys: vec![text()], more_keys: 0, from: None, to: Some(text()) };
    history.observed(digest, vec![edit]);
    let mut status = Status {
        phase: "held",
        held: true,
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
            key: None,
            reason: text(),
        }],
        target: Some(TargetStatus {
            state: TargetState::Ambiguous,
            pid: Some(1),
            name: Some(text()),
            message: Some(text()),
        }),
        sources: vec![Source {
            name: text(),
            resource_version: Some(text()),
            healthy: false,
            message: Some(text()),
            at: Some(at),
            lack: Some(Lack::Unreadable),
        }],
        errors: [("render", Problem { message: text(), at })].into(),
        pod: Pod { name: text(), namespace: text(), node: Some(text()) },
        history,
        ..Status::default()
    };
    status.verdict = Verdict::of(&status);
    status
}

fn shown_at(status: &Status) -> String {
    page(status, Timestamp::from_second(90).unwrap(), false)
}

#[test]
fn hostile_names_are_text_and_no_markup() {
    let page = shown_at(&hostile());
    let escaped = "&lt;/td&gt;&lt;/table&gt;&lt;script&gt;alert(1)&lt;/script&gt;&lt;img src=x onerror=&#39;a&#39;&gt;\
                   &quot;&amp;\u{fffd} [0m";
    // Three in the title and the header each, one in the verdict, three in the way and the history each, nine in tables.
    assert_eq!(page.matches(escaped).count(), 3 + 3 + 1 + 3 + 3 + 9, "each of them: {page}");
    assert!(!page.contains("<script") && !page.contains("<img") && !page.contains(['\u{202e}', '\u{1b}']), "{page}");
    assert_eq!(page.matches("</table>").count(), 3, "{page}");
}

#[test]
fn page_says_what_the_status_says() {
    let page = shown_at(&hostile());
    let parts = [
        "<h1>held</h1>",
        "<strong>Next:</strong> Look at the main container",
        "<li class=\"failed\"><span class=\"sign\" aria-hidden=\"true\">✗</span> render <small>failed</small></li>",
        "<th>Phase</th><td class=\"bad\">held</td>",
        "generation 7, inputs 000000000000, found at start",
        "<th>Pending</th><td class=\"bad\">rollback</td>",
        "rejected at render (<time datetime=\"1970-01-01T00:00:00Z\">1970-01-01T00:00:00Z</time>, 90 s ago)",
        "pid 1, ambiguous",
        "<h2>Held back</h2>",
        "<th>Error: render</th>",
        "not healthy; ",
        "<form method=\"post\" action=\"/retry\">",
    ];
    for part in parts {
        assert!(page.contains(part), "{part}: {page}");
    }
    assert_eq!(sentence("of 2026-11-30T14:03:10Z (<7>)"), "of <time>2026-11-30T14:03:10Z</time> (&lt;7&gt;)");
    assert_eq!(super::parts("dir/a: keys b, c; dir/d"), "dir/a: keys b, <wbr>c; <wbr>dir/d");
    let calm = shown_at(&Status::default());
    assert!(!calm.contains("Error: ") && !calm.contains("Held back"), "{calm}");
    assert!(calm.contains("href=\"/?refresh\""), "{calm}");
    assert!(policy().contains("'sha256-") && !policy().contains("unsafe"), "{}", policy());
}

/// The relative luminance of WCAG 2.
fn luminance(colour: &str) -> f64 {
    let part = |at: usize| {
        let value = f64::from(u8::from_str_radix(&colour[at..at + 2], 16).unwrap()) / 255.0;
        if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
    };
    0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5)
}

#[test]
fn each_colour_can_be_read_in_both_schemes() {
    let (light, dark) = STYLE.split_once("prefers-color-scheme: dark").expect("two schemes");
    for scheme in [light, &dark[..dark.find("body {").unwrap()]] {
        let colour = |name: &str| {
            let (_, rest) = scheme.split_once(&format!("--{name}: ")).unwrap_or_else(|| panic!("no {name}"));
            rest[..7].to_owned()
        };
        let back = luminance(&colour("back"));
        for name in ["text", "faint", "good", "busy", "bad", "wait"] {
            let front = luminance(&colour(name));
            let contrast = (front.max(back) + 0.05) / (front.min(back) + 0.05);
            assert!(contrast >= 4.5, "--{name}: {contrast:.2}");
        }
    }
}
