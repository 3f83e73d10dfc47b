//! Reports are true: for each kind of failure `/status`, the metrics and the page say what is the case, and
//! that all is well again once it is.

use std::fs;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::support::hook::{Answer, Hook};
use super::support::sidecar::{Sidecar, eventually};
use super::support::stage::{Stage, metric, problem};

const BRISK: &[&str] = &["--retry-min", "20ms", "--retry-max", "50ms", "--reload-attempts", "1"];

/// What is there beside the sidecar.
struct Scene {
    stage: Stage,
    hook: Hook,
    target: Option<Child>,
}

impl Scene {
    fn new() -> Self {
        let stage = Stage::new("good 1");
        let hook = Hook::start(Some(stage.file()));
        Self { stage, hook, target: None }
    }

    /// A process that ends when it is notified of what is bad.
    fn start_target(&mut self) {
        self.end_target();
        let (file, pid) = (self.stage.text("conf/app.conf"), self.stage.text("pid"));
        let script = format!(
            "trap 'grep -q bad {file} && exit 3' HUP; echo $$ >{pid}.tmp; mv {pid}.tmp {pid}; while :; do sleep 0.02; done"
        );
        let mut command = Command::new("sh");
        self.target = Some(command.args(["-c", &script]).stdin(Stdio::null()).spawn().unwrap());
    }

    fn end_target(&mut self) {
        if let Some(mut target) = self.target.take() {
            let _ = target.kill();
            target.wait().unwrap();
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.end_target();
    }
}

/// A kind of failure.
struct Kind {
    name: &'static str,
    flags: fn(&Scene) -> Vec<String>,
    /// Done before the bad edit.
    spoil: fn(&mut Scene),
    /// What `/status` says once it has happened, beside the phase: debt, the quarantine's stage, the published number.
    says: (&'static str, Option<&'static str>, Option<&'static str>, u64),
    /// The stage of the error, if one stays.
    error: Option<&'static str>,
    /// How many there were then, and in the end.
    rollbacks: [f64; 2],
    /// Done before the good edit.
    fix: fn(&mut Scene),
}

fn own(flags: &[&str]) -> Vec<String> {
    flags.iter().map(|flag| (*flag).to_owned()).collect()
}

fn nothing(_: &mut Scene) {}

const KINDS: &[Kind] = &[
    Kind {
        name: "a template that cannot be rendered",
        flags: |scene| {
            let text = "{% if 'bad' in data['app.conf'] %}{{ data.missing }}{% endif %}{{ data['app.conf'] }}";
            own(&["--template", &scene.stage.write("app.conf.j2", text)])
        },
        spoil: nothing,
        says: ("idle", None, Some("render"), 1),
        error: Some("render"),
        rollbacks: [0.0, 0.0],
        fix: nothing,
    },
    Kind {
        name: "a file that does not parse",
        flags: |scene| {
            let text = r#"{% if 'bad' in data['app.conf'] %}{{ '{' }}{% endif %}["{{ data['app.conf'] }}"]"#.to_owned();
            own(&["--template", &scene.stage.write("app.json.j2", text), "--syntax", "strict"])
        },
        spoil: nothing,
        says: ("idle", None, Some("validate"), 1),
        error: Some("validate"),
        rollbacks: [0.0, 0.0],
        fix: nothing,
    },
    Kind {
        name: "a program that does not let it pass",
        flags: |_| own(&["--validate", "grep -q good {dir}/app.conf"]),
        spoil: nothing,
        says: ("idle", None, Some("validate"), 1),
        error: Some("validate"),
        rollbacks: [0.0, 0.0],
        fix: nothing,
    },
    Kind {
        name: "an output that cannot be written",
        flags: |_| Vec::new(),
        // A directory is in the way of the rename.
        spoil: |scene| {
            let data = scene.stage.at("conf/..data");
            fs::remove_file(&data).unwrap();
            fs::create_dir(&data).unwrap();
            fs::write(data.join("x"), "").unwrap();
        },
        says: ("settling", None, None, 1),
        error: Some("publish"),
        rollbacks: [0.0, 0.0],
        fix: |scene| fs::remove_dir_all(scene.stage.at("conf/..data")).unwrap(),
    },
    Kind {
        name: "a refusal, held",
        flags: |scene| own(&["--reload-url", &scene.hook.url(), "--on-reject", "hold"]),
        spoil: |scene| scene.hook.answer(Answer::Code(500)),
        says: ("held", Some("publish"), Some("reload"), 2),
        error: Some("reload"),
        rollbacks: [0.0, 0.0],
        fix: |scene| scene.hook.answer(Answer::Code(200)),
    },
    Kind {
        name: "nobody there to reload",
        flags: |scene| own(&["--reload-url", &scene.hook.url()]),
        spoil: |scene| scene.hook.answer(Answer::Code(503)),
        says: ("backoff", Some("publish"), None, 2),
        error: Some("reload"),
        rollbacks: [0.0, 0.0],
        fix: |scene| scene.hook.answer(Answer::Code(200)),
    },
    Kind {
        name: "a refusal, rolled back",
        flags: |scene| own(&["--reload-exec", &format!("grep -q good {}", scene.stage.text("conf/app.conf"))]),
        spoil: nothing,
        says: ("idle", None, Some("reload"), 1),
        error: None,
        rollbacks: [1.0, 1.0],
        fix: nothing,
    },
    Kind {
        name: "a refusal, and the old one is not taken either",
        flags: |scene| own(&["--reload-url", &scene.hook.url()]),
        spoil: |scene| scene.hook.answer(Answer::Code(500)),
        says: ("held", Some("rollback"), Some("reload"), 1),
        error: Some("reload"),
        rollbacks: [1.0, 1.0],
        fix: |scene| scene.hook.answer(Answer::Code(200)),
    },
    Kind {
        name: "no confirmation in time",
        flags: |scene| {
            scene.hook.answer(Answer::Echo(200));
            let url = scene.hook.url();
            own(&["--confirm-url", &url, "--confirm-match", "good", "--confirm-timeout", "300ms"])
        },
        spoil: nothing,
        says: ("idle", None, Some("confirm"), 1),
        error: None,
        rollbacks: [1.0, 1.0],
        fix: nothing,
    },
    Kind {
        name: "a process that dies of it",
        flags: |scene| own(&["--signal", "HUP", "--pid-file", &scene.stage.text("pid"), "--confirm-alive", "200ms"]),
        spoil: nothing,
        says: ("backoff", Some("rollback"), Some("confirm"), 1),
        error: Some("reload"),
        rollbacks: [1.0, 1.0],
        fix: Scene::start_target,
    },
];

#[test]
fn each_kind_of_failure_is_reported_and_its_end_as_well() {
    for kind in KINDS {
        println!("{}", kind.name);
        let mut scene = Scene::new();
        let flags = (kind.flags)(&scene);
        if flags.iter().any(|flag| flag == "--signal") {
            scene.start_target();
            eventually("the target runs", || scene.stage.at("pid").exists().then_some(()));
        }
        let flags: Vec<_> = flags.iter().map(String::as_str).chain(BRISK.iter().copied()).collect();
        let sidecar = scene.stage.start(&flags);
        well(&sidecar, kind, 0.0);

        (kind.spoil)(&mut scene);
        scene.stage.edit("bad");
        let (phase, debt, quarantine, sequence) = kind.says;
        let said = |status: &Value| {
            status["debt"] == json!(debt)
                && status["quarantine"]["stage"] == json!(quarantine)
                && status["published"]["sequence"] == sequence
                && kind.error.is_none_or(|stage| !problem(status, stage).is_empty())
                && status["observed"]["digest"] != status["confirmed"]["digest"]
        };
        // It may be trying again at this moment.
        sidecar.until(&format!("{}: reported", kind.name), |status| status["phase"] == phase && said(status));
        let page = sidecar.request("--admin", "GET", "/").unwrap().1;
        assert!(page.contains("class=\"bad\""), "{}: {page}", kind.name);
        assert_eq!(metrics(&sidecar)[..3], expected(0.0, quarantine, debt), "{}", kind.name);
        assert_eq!(metrics(&sidecar)[3..], kind.rollbacks[..1], "{}", kind.name);
        let status = sidecar.status();
        assert_eq!(status["lastGood"]["sequence"], 1, "{}: {status}", kind.name);
        assert_eq!(status["confirmed"]["sequence"], 1, "{}: {status}", kind.name);

        (kind.fix)(&mut scene);
        scene.stage.edit("good 2");
        well(&sidecar, kind, kind.rollbacks[1]);
    }
}

/// All is well, and is said to be.
#[track_caller]
fn well(sidecar: &Sidecar, kind: &Kind, rollbacks: f64) {
    let status = sidecar.until(&format!("{}: all is well", kind.name), |status| {
        status["phase"] == "idle"
            && status["errors"] == json!({})
            && status["quarantine"].is_null()
            && status["debt"].is_null()
            && status["ready"] == true
            && status["observed"]["digest"] == status["confirmed"]["digest"]
    });
    assert_eq!(status["lastGood"]["sequence"], status["published"]["sequence"], "{}: {status}", kind.name);
    assert_eq!(metrics(sidecar)[..3], expected(1.0, None, None), "{}", kind.name);
    assert_eq!(metrics(sidecar)[3..], [rollbacks], "{}", kind.name);
    let page = sidecar.request("--admin", "GET", "/").unwrap().1;
    let calm = page.contains("<th>Phase</th><td>idle</td>") && !page.contains("<td class=\"bad\"");
    assert!(calm || page.contains("<th>Target</th><td class=\"bad\">"), "{}: {page}", kind.name);
}

fn expected(successful: f64, quarantine: Option<&str>, debt: Option<&str>) -> [f64; 3] {
    let number = |it: Option<&str>| if it.is_some() { 1.0 } else { 0.0 };
    [successful, number(quarantine), number(debt)]
}

fn metrics(sidecar: &Sidecar) -> [f64; 4] {
    let names = ["reloader_last_reload_successful", "trimtab_quarantined", "trimtab_debt", "trimtab_rollbacks_total"];
    names.map(|name| metric(sidecar, name).unwrap())
}

#[test]
fn page_is_for_admin_alone_and_a_key_cannot_write_markup_into_it() {
    let mut stage = Stage::new("1");
    let key = "<script>alert(1)<script>.json";
    stage.volume.swap(&[(key, "{")]);
    let sidecar = stage.start(&["--syntax", "strict"]);
    sidecar.until("it is rejected", |status| !problem(status, "validate").is_empty());
    let page = sidecar.request("--admin", "GET", "/").unwrap().1;
    assert!(page.contains("&lt;script&gt;alert(1)") && !page.contains("<script"), "{page}");
    assert_eq!(sidecar.request("--listen", "GET", "/").unwrap().0, 404);
    assert_eq!(sidecar.request("--admin", "POST", "/").unwrap().0, 404);
    let head = sidecar.head("--admin", "/").to_ascii_lowercase();
    assert!(head.contains("content-security-policy: default-src 'none'; style-src 'sha256-"), "{head}");
    assert!(!head.contains("unsafe"), "{head}");
    assert!(head.contains("cache-control: no-store"), "{head}");
    assert!(head.contains("content-type: text/html; charset=utf-8"), "{head}");
}
