//! What the program says of itself: help on one screen, the version, completions, man pages.

use std::process::Command;

use trimtab::cli;

use super::support::sidecar::{output_of, run, trimtab};

/// Standard output of a success, on a terminal of 80 columns.
#[track_caller]
fn said(args: &[&str]) -> String {
    let output = output_of(trimtab().args(args).env("COLUMNS", "80"));
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn short_help_is_one_screen() {
    for args in [&["-h"][..], &["render", "-h"], &["check", "-h"], &["status", "-h"], &["completions", "-h"]] {
        let help = said(args);
        let (lines, widest) = (help.lines().count(), help.lines().map(|line| line.chars().count()).max());
        assert!(lines <= 40 && widest <= Some(80), "{args:?}: {lines} lines of at most {widest:?} columns:\n{help}");
        assert!(!help.contains("[env: "), "{help}");
    }
    let help = said(&["-h"]);
    let flags: Vec<_> = help.lines().filter(|line| line.starts_with("      --")).collect();
    assert!((10..=15).contains(&flags.len()), "{flags:#?}");
    // Each with its meaning beside it.
    assert!(flags.iter().all(|flag| flag.trim().split("  ").nth(1).is_some()), "{flags:#?}");
    assert!(help.contains("--reload-url <URL>") && !help.contains("--retry-min"), "{help}");
    assert!(said(&["status", "-h"]).contains("--admin"));
}

#[test]
fn long_help_has_all_flags_by_topic() {
    let long = said(&["--help"]);
    for arg in cli::command().get_arguments() {
        assert!(arg.get_long().is_none_or(|flag| long.contains(&format!("--{flag}"))), "{arg}");
        assert!(arg.get_help_heading().is_none_or(|heading| long.contains(heading)), "{arg}");
    }
    assert!(long.lines().all(|line| line.chars().count() <= 80), "{long}");
    assert!(said(&["help"]).contains("--retry-min"));
    assert_eq!(said(&["help", "render"]), said(&["render", "--help"]));
}

#[test]
fn version_names_commit_target_and_libraries() {
    assert_eq!(said(&["-V"]), format!("trimtab {}\n", env!("CARGO_PKG_VERSION")));
    let version = said(&["--version"]);
    let lines: Vec<_> = version.lines().collect();
    assert_eq!(lines.len(), 4, "{version}");
    assert!(lines[1].starts_with("commit: "), "{version}");
    assert!(lines[2].starts_with("target: ") && lines[2].contains("linux"), "{version}");
    let lock = include_str!("../../Cargo.lock");
    let libraries: Vec<_> = lines[3].strip_prefix("libraries: ").unwrap().split(", ").collect();
    assert!(libraries.len() >= 5, "{version}");
    for library in libraries {
        let (name, number) = library.split_once(' ').unwrap();
        assert!(lock.contains(&format!("name = \"{name}\"\nversion = \"{number}\"\n")), "{library}");
    }
}

#[test]
fn completions_complete() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = said(&["completions", shell]);
        assert!(script.contains("reload-url") && script.contains("trimtab"), "{shell}: {script}");
    }
    let (code, said) = run(trimtab().args(["completions", "cmd"]));
    assert!(code == Some(64) && said.contains("bash, elvish, fish, powershell, zsh"), "{said}");
    // As bash asks for them.
    let complete = |words: &str| {
        let script = format!(
            "source <(\"$0\" completions bash); COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _trimtab trimtab \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD - 1]}}\"; \
             echo \"${{COMPREPLY[@]}}\""
        );
        let output = output_of(Command::new("bash").args(["-c", &script, env!("CARGO_BIN_EXE_trimtab")]));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(complete("trimtab --reload-ur"), "--reload-url\n");
    assert_eq!(complete("trimtab ren"), "render\n");
    assert_eq!(complete("trimtab check --layout ''"), "atomic files\n");
}

#[test]
fn man_pages_have_every_flag_and_subcommand() {
    let directory = tempfile::tempdir().unwrap();
    clap_mangen::generate_to(cli::command(), &directory).unwrap();
    let page = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap().replace("\\-", "-");
    let (all, render) = (page("trimtab.1"), page("trimtab-render.1"));
    for flag in cli::command().get_arguments().filter_map(|arg| arg.get_long().map(|flag| format!("--{flag}"))) {
        assert!(all.contains(&flag), "{flag}");
        assert!(flag == "--version" || render.contains(&flag), "{flag}");
    }
    assert!(all.contains("trimtab-check(1)"), "{all}");
}
