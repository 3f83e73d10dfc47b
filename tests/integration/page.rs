//! The page in a real browser: each verdict, in light and dark, on a screen and on a phone; no script, no foreign resource,
//! and nothing that keeps anybody from reading it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::support::hook::{Answer, Hook};
use super::support::sidecar::{Sidecar, Volume, output_of};
use super::support::stage::Stage;

fn tool(variable: &str, command: &[&str]) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return path.into();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools").join(command[0]);
    let output = Command::new(script).args(&command[1..]).output().unwrap();
    assert!(output.status.success(), "{variable}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().into()
}

struct Browser {
    chromium: PathBuf,
    axe: String,
    dir: tempfile::TempDir,
}

impl Browser {
    fn new() -> Self {
        let chromium = tool("TRIMTAB_TEST_CHROMIUM", &["debian", "chromium"]);
        let axe = fs::read_to_string(tool("TRIMTAB_TEST_AXE", &["axe"])).unwrap();
        Self { chromium, axe, dir: tempfile::tempdir().unwrap() }
    }

    /// What the browser made of it, and what it complained of.
    fn open(&self, url: &str, flags: &[&str]) -> (String, String) {
        let profile = format!("--user-data-dir={}", self.dir.path().join("profile").display());
        let own = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"];
        let mut command = Command::new(&self.chromium);
        command.args(own).arg(profile).args(flags).arg(url).env("HOME", self.dir.path());
        let output = output_of(&mut command);
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).into()
    }

    /// What axe finds wrong with this page, rule by rule, and what is wider than its place or wrapped.
    fn faults(&self, page: &str, flags: &[&str]) -> Vec<String> {
        let script = "axe.run().then(found => { const all = query => [...document.querySelectorAll(query)]; \
                      const wide = all('html, .name, .verdict, th, td').filter(it => it.scrollWidth > it.clientWidth) \
                      .map(it => 'wider than its place: ' + it.textContent); \
                      const rows = new Set(all('.way li').map(it => it.offsetTop)).size; \
                      if (innerWidth > 800 && rows > 1) wide.push('the way takes ' + rows + ' rows'); \
                      document.body.textContent = ''; const out = document.createElement('pre'); \
                      out.id = 'found'; out.textContent = '<' + JSON.stringify(found.violations.map(it => it.id + ': ' + \
                      it.nodes.map(node => node.html).join(' ')).concat(wide)) + '>'; document.body.append(out) })";
        let page = page.replace("</body>", &format!("<script>{}</script><script>{script}</script></body>", self.axe));
        let file = self.dir.path().join("page.html");
        fs::write(&file, page).unwrap();
        let flags = [&["--dump-dom", "--virtual-time-budget=20000"], flags].concat();
        let (dom, said) = self.open(&format!("file://{}", file.display()), &flags);
        let found = dom.split_once("<pre id=\"found\">&lt;").and_then(|(_, rest)| rest.split_once("&gt;</pre>"));
        let (found, _) = found.unwrap_or_else(|| panic!("axe did not end: {said}"));
        let found = found.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
        serde_json::from_str(&found).unwrap()
    }
}

/// What the page of this verdict holds, and how it looks: kept in `TRIMTAB_TEST_SCREENSHOTS`, for somebody to look at.
fn looks(browser: &Browser, sidecar: &Sidecar, word: &str, parts: &[&str]) {
    sidecar.until(word, |status| status["verdict"]["state"] == word);
    let url = format!("http://{}/", sidecar.address("--admin"));
    let (dom, said) = browser.open(&url, &["--dump-dom"]);
    assert!(!said.contains("Content Security Policy") && !said.contains("Refused to"), "{word}: {said}");
    for part in parts.iter().chain(&["<html lang=\"en\">", "<button>Retry now</button>", "<h2>The last changes</h2>"]) {
        assert!(dom.contains(part), "{word}: {part} is not in {dom}");
    }
    assert!(dom.contains(&format!("<h1>{word}</h1>")) && dom.contains(&format!("<title>{word}: ")), "{word}: {dom}");
    let outside = ["src=", "<link", "<script", "@import", "url(", "style=\""];
    assert!(!outside.iter().any(|part| dom.contains(part)), "{word}: {dom}");
    let headings: Vec<_> =
        dom.match_indices("<h").filter_map(|(at, _)| dom[at + 2..].chars().next()?.to_digit(10)).collect();
    assert!(headings[0] == 1 && headings[1..].iter().all(|level| *level == 2), "{word}: {headings:?}");
    if let Some(folder) = std::env::var_os("TRIMTAB_TEST_SCREENSHOTS") {
        for (name, flags) in [
            ("light", &["--window-size=1000,1100"][..]),
            ("dark", &["--window-size=1000,1100", "--blink-settings=preferredColorScheme=0"]),
            ("phone", &["--window-size=500,1300"]),
        ] {
            let file = Path::new(&folder).join(format!("{word}-{name}.png"));
            browser.open(&url, &[flags, &[&format!("--screenshot={}", file.display())]].concat());
        }
    }
    let page = sidecar.request("--admin", "GET", "/").unwrap().1;
    for flags in
        [&["--window-size=1000,1100"][..], &["--window-size=500,1300", "--blink-settings=preferredColorScheme=0"]]
    {
        let faults = browser.faults(&page, flags);
        assert!(faults.is_empty(), "{word}: {faults:#?}");
    }
}

#[test]
fn each_verdict_can_be_read_by_anyone_and_needs_nothing_from_elsewhere() {
    let browser = Browser::new();
    assert!(!browser.faults("<html><body><img src=x></body></html>", &[]).is_empty(), "axe finds nothing at all");
    let hook = Hook::start(None);
    let url = hook.url();
    let mut stage = Stage::new("good 1");
    // Names that do not fit into one line of a phone.
    let (more, names) = (stage.text("more"), ["servers-behind-the-gateway.yaml", "certificates-of-the-gateway.yaml"]);
    let more_of = |value| names.map(|name| (name, value));
    let mut other = Volume::new(stage.at("more"), &more_of("1"));
    let flags = [
        "--watch-dir",
        &more,
        "--reload-url",
        &url,
        "--on-reject",
        "hold",
        "--reload-attempts",
        "1",
        "--validate",
        "grep -q good {dir}/app.conf",
    ];
    let env = [("POD_NAME", "web-6d5f7c9b8-x2x4v"), ("POD_NAMESPACE", "shop"), ("NODE_NAME", "node-1")];
    let brisk = ["--retry-min", "50ms", "--retry-max", "100ms"];
    let sidecar = Sidecar::start_with(&stage.at("log"), &env, stage.flags(&[&flags[..], &brisk].concat()));
    let here = "shop/web-6d5f7c9b8-x2x4v on node-1, trimtab ";
    looks(&browser, &sidecar, "in-effect", &[here, "✓</span> reload", "–</span> confirm", "took it."]);
    stage.edit("bad");
    let parts =
        ["✗</span> validate", "○</span> publish", "dir/volume: key app.conf", "<strong>Next:</strong> Fix the files"];
    looks(&browser, &sidecar, "rejected", &parts);
    hook.answer(Answer::Code(503));
    stage.edit("good 2");
    looks(&browser, &sidecar, "waiting", &["…</span> reload", "class=\"verdict waiting\"", "validate: "]);
    hook.answer(Answer::Hang);
    looks(&browser, &sidecar, "waiting", &[]);
    hook.answer(Answer::Code(500));
    looks(&browser, &sidecar, "held", &["✗</span> reload", "class=\"failed\">held"]);
    hook.answer(Answer::Code(200));
    sidecar.until_idle();
    hook.answer(Answer::Hang);
    other.swap(&more_of("2"));
    stage.edit("good 3");
    looks(&browser, &sidecar, "working", &["●</span> reload", "✓</span> publish"]);
    hook.answer(Answer::Code(200));
    fs::rename(stage.at("volume"), stage.at("away")).unwrap();
    looks(&browser, &sidecar, "stale", &["!</span> source"]);
}

/// The button is a form: what a browser sends is taken from this page alone.
#[test]
fn the_button_works_from_this_page_alone() {
    let stage = Stage::new("1");
    let sidecar = stage.start(&[]);
    sidecar.until_idle();
    let address = sidecar.address("--admin");
    let post = |origin: &str| {
        let head = format!("POST /retry HTTP/1.1\r\nHost: {address}\r\nOrigin: {origin}\r\nContent-Length: 0\r\n");
        sidecar.say("--admin", &format!("{head}Connection: close\r\n\r\n"))
    };
    for foreign in ["http://evil.example", "null", "http://127.0.0.1:1"] {
        assert!(post(foreign).starts_with("HTTP/1.1 403 "), "{foreign}");
    }
    assert_eq!(sidecar.log().matches("asked to retry").count(), 0);
    let answer = post(&format!("http://{address}")).to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 303 ") && answer.contains("location: /\r\n"), "{answer}");
    assert_eq!(sidecar.log().matches("asked to retry").count(), 1);
    assert!(sidecar.head("--admin", "/?refresh").to_ascii_lowercase().contains("refresh: 5\r\n"));
    assert!(!sidecar.head("--admin", "/").to_ascii_lowercase().contains("refresh: "));
    let status: Value = sidecar.status();
    assert_eq!(status["verdict"]["state"], "in-effect", "{status}");
}
