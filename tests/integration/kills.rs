//! The kill matrix: on every path that a change can take, in both layouts, the sidecar is killed before and after every
//! effect, started again, and must come to the same end as without the kill.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::support::hook::Hook;
use super::support::scene::{Layout, Scene, names};
use super::support::sidecar::{Sidecar, Volume, eventually};

/// A main process with an HTTP hook: it reads its configuration when it is notified, and says at `/loads` how often it
/// has taken one. What it makes of a configuration is its first word:
///
/// - `good`: it takes it.
/// - `refuse`: it answers 500.
/// - `ignore`: it answers 200, and does not take it.
/// - `busy`: it answers 503 two times before it takes it.
/// - `edit`: the same, and somebody edits the ConfigMap meanwhile.
struct Main {
    hook: Hook,
    state: Arc<State>,
}

struct State {
    volume: Mutex<Volume>,
    loaded: Mutex<Option<String>>,
    loads: Mutex<u32>,
    busy: Mutex<u32>,
}

impl Main {
    fn start(config: PathBuf, volume: Volume) -> Self {
        let state = Arc::new(State {
            volume: Mutex::new(volume),
            loaded: Mutex::default(),
            loads: Mutex::default(),
            busy: Mutex::default(),
        });
        let hook = Hook::responding(Some(config), {
            let state = state.clone();
            move |call| {
                // A sidecar that is killed in the middle of a request has asked for nothing.
                let reloads = call.head.first().is_some_and(|request| request.starts_with("POST"));
                let code = if reloads { state.reload(call.saw.clone()) } else { 200 };
                (code, format!("loads {}\n", state.loads.lock().unwrap()))
            }
        });
        Self { hook, state }
    }

    fn loaded(&self) -> Option<String> {
        self.state.loaded.lock().unwrap().clone()
    }

    fn edit(&self, content: &str) {
        self.state.volume.lock().unwrap().swap(&files(content));
    }
}

impl State {
    fn reload(&self, config: Option<String>) -> u16 {
        let Some(config) = config else { return 500 };
        let word = config.split_whitespace().next().unwrap_or_default();
        let mut busy = self.busy.lock().unwrap();
        match word {
            "refuse" => return 500,
            "ignore" => return 200,
            "busy" | "edit" if *busy < 2 => {
                *busy += 1;
                if word == "edit" && *busy == 1 {
                    self.volume.lock().unwrap().swap(&files("good edited"));
                }
                return 503;
            }
            _ => {}
        }
        *self.loaded.lock().unwrap() = Some(config);
        *self.loads.lock().unwrap() += 1;
        200
    }
}

/// The generation has a name that the one before has not, and the other way round, so that links come and go.
fn files(content: &str) -> Vec<(&str, &str)> {
    vec![("app.conf", content), (content.split_whitespace().last().unwrap(), "")]
}

/// A path: from the configuration that the main process has, by an edit, to an end.
struct Path {
    name: &'static str,
    before: Option<&'static str>,
    edit: &'static str,
    flags: &'static [&'static str],
    end: End,
}

/// Where it ends.
struct End {
    published: &'static str,
    loaded: Option<&'static str>,
    phase: &'static str,
    debt: Option<&'static str>,
    quarantine: Option<&'static str>,
}

/// An end at which the newest inputs are published and taken.
const fn taken(published: &'static str) -> End {
    End { published, loaded: Some(published), phase: "idle", debt: None, quarantine: None }
}

/// An end at which the old ones are still or again there, rejected at this stage.
const fn rejected(published: &'static str, stage: &'static str) -> End {
    End { published, loaded: Some(published), phase: "idle", debt: None, quarantine: Some(stage) }
}

const FLAGS: [&str; 12] = [
    "--debounce",
    "5ms",
    "--retry-min",
    "10ms",
    "--retry-max",
    "40ms",
    // Of several refusals the last is final after three seconds at the earliest: too long at each of the points.
    "--reload-attempts",
    "1",
    "--confirm-changed",
    r"loads (\d+)",
    "--confirm-timeout",
    "300ms",
];

impl Path {
    /// The path's flags, and those of all paths.
    fn start(&self, scene: &Scene, main: &Main, env: &[(&str, &str)]) -> Sidecar {
        let volume = scene.text("volume");
        let (reload, confirm) = (main.hook.url(), format!("http://{}/loads", main.hook.address()));
        let own = ["--watch-dir", &volume, "--reload-url", &reload, "--confirm-url", &confirm];
        let flags = [&own[..], &FLAGS, self.flags].concat();
        Sidecar::start_with(&scene.at("log"), env, scene.flags(&flags))
    }

    /// A scene at the path's beginning: the sidecar has ended in good order, and then the ConfigMap was edited.
    fn prepare(&self, layout: Layout) -> (Scene, Main) {
        let scene = Scene::of(layout);
        let volume = Volume::new(scene.at("volume"), &files(self.before.unwrap_or(self.edit)));
        let main = Main::start(scene.output.join("app.conf"), volume);
        if self.before.is_some() {
            let mut sidecar = self.start(&scene, &main, &[]);
            sidecar.until_idle();
            assert_eq!(sidecar.terminate(), Some(0));
            main.edit(self.edit);
        }
        (scene, main)
    }

    fn is_at_end(&self, scene: &Scene, main: &Main, status: &Value) -> bool {
        let End { published, loaded, phase, debt, quarantine } = self.end;
        let expected = |value: Option<&'static str>| value.map_or(Value::Null, Value::from);
        scene.published("app.conf").as_deref() == Some(published)
            && main.loaded().as_deref() == loaded
            && status["phase"] == phase
            && status["debt"] == expected(debt)
            && status["quarantine"]["stage"] == expected(quarantine)
            && scene.left_behind().is_empty()
    }

    /// Waits for the path's end.
    #[track_caller]
    fn arrive(&self, what: &str, scene: &Scene, main: &Main, sidecar: &Sidecar) {
        let end = format!("{}, {what}: the end of the path", self.name);
        sidecar.until(&end, |status| self.is_at_end(scene, main, status));
        // No name of another generation is left at the top.
        let mut expected: Vec<_> = files(self.end.published).iter().map(|(name, _)| (*name).to_owned()).collect();
        expected.sort_unstable();
        let mut found = names(&scene.output);
        found.retain(|name| !name.starts_with(".."));
        assert_eq!(found, expected, "{}, {what}", self.name);
    }

    /// Walks it without a kill, and then once for each point on it.
    fn walk(&self, layout: Layout) {
        let (scene, main) = self.prepare(layout);
        let log = scene.text("points");
        let sidecar = self.start(&scene, &main, &[("TRIMTAB_TEST_FAULTS", &log)]);
        self.arrive("not killed", &scene, &main, &sidecar);
        let points = fs::read_to_string(scene.at("points")).unwrap();
        let points: Vec<_> = points.lines().collect();
        assert!(points.contains(&"journal"), "{points:?}: fault points need a build with debug assertions");
        let mut killed = 0;
        for (at, point) in points.iter().enumerate() {
            let number = (at + 1).to_string();
            let (scene, main) = self.prepare(layout);
            let mut sidecar = self.start(&scene, &main, &[("TRIMTAB_TEST_KILL", &number)]);
            // Which point comes how often is a matter of time where newer inputs come, and where a slow machine lets an
            // attempt fail; all others come each time.
            eventually("it is killed, or the path has an end before that", || {
                let arrived = self.end.phase == "idle" && self.is_at_end(&scene, &main, &sidecar.status());
                (sidecar.has_ended() || arrived).then_some(())
            });
            killed += usize::from(sidecar.has_ended());
            sidecar.kill();
            drop(sidecar);
            let sidecar = self.start(&scene, &main, &[]);
            self.arrive(&format!("killed at point {number} ({point})"), &scene, &main, &sidecar);
        }
        let all = self.name == "superseded" || killed + 3 >= points.len();
        assert!(all, "{}: killed at {killed} of {} points", self.name, points.len());
        println!("kill matrix, {layout:?}, {}: {} points: {}", self.name, points.len(), points.join(" "));
    }
}

/// Walks each of these paths in both layouts.
macro_rules! walked {
    ($($path:ident),* $(,)?) => {$(
        mod $path {
            use super::Layout;

            #[test]
            fn in_the_atomic_layout() {
                super::$path().walk(Layout::Atomic);
            }

            #[test]
            fn in_the_layout_of_single_files() {
                super::$path().walk(Layout::Files);
            }
        }
    )*};
}

walked! {
    publish,
    first_generation,
    refused_by_the_validator,
    rolled_back_after_a_refusal,
    rolled_back_without_a_confirmation,
    held_by_the_flag,
    held_as_the_first_generation,
    retried,
    superseded,
}

fn publish() -> Path {
    Path { name: "publish", before: Some("good a"), edit: "good b", flags: &[], end: taken("good b") }
}

fn first_generation() -> Path {
    Path { name: "first generation", before: None, edit: "good a", flags: &[], end: taken("good a") }
}

fn refused_by_the_validator() -> Path {
    let flags = &["--validate", "sh -c '! grep -q refuse $0/app.conf' {dir}"];
    let end = rejected("good a", "validate");
    Path { name: "refused by the validator", before: Some("good a"), edit: "refuse b", flags, end }
}

fn rolled_back_after_a_refusal() -> Path {
    let end = rejected("good a", "reload");
    Path { name: "rolled back, refused", before: Some("good a"), edit: "refuse b", flags: &[], end }
}

fn rolled_back_without_a_confirmation() -> Path {
    let end = rejected("good a", "confirm");
    Path { name: "rolled back, not confirmed", before: Some("good a"), edit: "ignore b", flags: &[], end }
}

fn held_by_the_flag() -> Path {
    let end = End {
        published: "refuse b",
        loaded: Some("good a"),
        phase: "held",
        debt: Some("publish"),
        quarantine: Some("reload"),
    };
    let flags = &["--on-reject", "hold"];
    Path { name: "held by the flag", before: Some("good a"), edit: "refuse b", flags, end }
}

fn held_as_the_first_generation() -> Path {
    let end =
        End { published: "refuse a", loaded: None, phase: "held", debt: Some("publish"), quarantine: Some("reload") };
    Path { name: "held as the first generation", before: None, edit: "refuse a", flags: &[], end }
}

fn retried() -> Path {
    Path { name: "retried", before: Some("good a"), edit: "busy b", flags: &[], end: taken("busy b") }
}

fn superseded() -> Path {
    Path { name: "superseded", before: Some("good a"), edit: "edit b", flags: &[], end: taken("good edited") }
}
