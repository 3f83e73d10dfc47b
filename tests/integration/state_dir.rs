//! `--state-dir` beside an output: a restart forgets nothing, and the output holds what was published alone.

use std::fs;
use std::path::Path;

use super::support::hook::{Answer, Hook};
use super::support::scene::Layout;
use super::support::sidecar::{eventually, run, trimtab};
use super::support::stage::{Stage, problem};

fn names(at: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(at).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

/// What is in the output but generations and what names them.
fn shown(stage: &Stage) -> Vec<String> {
    let is_kubelets = |name: &String| name == "..data" || name.starts_with("..trimtab-");
    names(&stage.at("conf")).into_iter().filter(|name| !is_kubelets(name)).collect()
}

#[test]
fn what_is_remembered_moves_beside_the_output_and_a_pending_reload_with_it() {
    for layout in Layout::ALL {
        let mut stage = Stage::of(layout, "1");
        let hook = Hook::start(Some(stage.file()));
        let (url, kept) = (hook.url(), stage.text("state"));
        let flags = ["--reload-url", url.as_str(), "--retry-min", "20ms", "--retry-max", "50ms"];
        let apart = [&flags[..], &["--state-dir", &kept]].concat();
        let saw = |content: &str| eventually(content, || (hook.last_saw()? == content).then_some(()));

        let mut within = stage.start(&flags);
        within.until_idle();
        hook.answer(Answer::Code(503));
        stage.edit("2");
        saw("2");
        within.until("it is pending", |status| status["published"]["sequence"] == 2 && status["debt"] == "publish");
        within.kill();

        let before = hook.calls().len();
        let mut beside = stage.start(&apart);
        eventually("it is tried again", || (hook.calls().len() > before).then_some(()));
        hook.answer(Answer::Code(200));
        let status = beside.until_idle();
        assert_eq!(status["published"]["sequence"], 2, "{status}");
        assert_eq!(shown(&stage), ["app.conf"]);
        assert!(stage.at("state/..trimtab/private/journal.json").exists());
        beside.kill();

        // Nothing is notified of again.
        let before = hook.calls().len();
        let mut beside = stage.start(&apart);
        beside.until_idle();
        assert_eq!(hook.calls().len(), before, "{}", beside.log_of_this_life());
        stage.edit("3");
        saw("3");
        beside.until_idle();
        assert_eq!(shown(&stage), ["app.conf"]);
        beside.kill();

        // Back: with single files, it is not known whose they are.
        let mut within = stage.start(&flags);
        stage.edit("4");
        if layout == Layout::Files {
            let status = within.until("it is refused", |status| problem(status, "render").contains("--state-dir"));
            assert_eq!(stage.published().as_deref(), Some("3"), "{status}");
            within.kill();
            fs::remove_dir_all(stage.at("conf/..trimtab")).unwrap();
            fs::rename(stage.at("state/..trimtab"), stage.at("conf/..trimtab")).unwrap();
            within = stage.start(&flags);
        }
        saw("4");
        within.until_idle();
        assert_eq!(stage.published().as_deref(), Some("4"));
    }
}

#[test]
fn folders_that_could_not_be_published_into_are_refused() {
    let stage = Stage::of(Layout::Files, "1");
    let pattern = "--path={annotation:folder|}/{key}";
    let other = stage.text("other");
    for (more, words) in [
        (vec!["--folders", &other], "--path"),
        (vec!["--layout=atomic", pattern, "--folders", &other], "--layout files"),
        (vec![pattern, "--folders", &format!("{other},{other}/below")], "in one another"),
        (vec![pattern, "--folders", &stage.text("conf/below")], "in one another"),
        (vec![pattern, "--folders", &stage.text("volume")], "in one another"),
        (vec![pattern, "--folders", &other, "--template", &stage.text("volume/app.conf")], "plain copies"),
    ] {
        let flags = stage
            .flags(&[])
            .into_iter()
            .filter(|flag| !more.contains(&"--layout=atomic") || !["--layout", "files"].contains(&flag.as_str()));
        let (code, said) = run(trimtab().args(flags).args(&more));
        assert!(code == Some(64) && said.contains(words), "{more:?}: {code:?}: {said}");
    }
}

#[test]
fn a_state_dir_where_readers_would_find_it_or_on_another_mount_is_refused() {
    let stage = Stage::of(Layout::Files, "1");
    let refused = |state: &str| run(trimtab().args(stage.flags(&["--state-dir", state])));
    let (code, said) = refused(&stage.text("conf/state"));
    assert!(code == Some(64) && said.contains("is in --output") && said.contains("beside it"), "{code:?}: {said}");
    let other = tempfile::tempdir_in("/dev/shm").unwrap();
    let (code, said) = refused(other.path().to_str().unwrap());
    assert!(code == Some(73) && said.contains("without subPath"), "{code:?}: {said}");
}
