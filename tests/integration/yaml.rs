//! `from_yaml` beside the reader of kubectl and Helm (sigs.k8s.io/yaml), which is another program's.

use std::fs;

use serde_json::Value;

use super::chart::helm;
use super::inject::said;
use super::support::scene::Scene;
use super::support::sidecar::{output_of, trimtab};

/// Words that some schema knows.
const WORDS: [&str; 22] = [
    "true",
    "True",
    "TRUE",
    "false",
    "False",
    "FALSE",
    "null",
    "Null",
    "NULL",
    "~",
    "yes",
    "No",
    "on",
    "OFF",
    "y",
    "tRUE",
    "nULL",
    "0b11",
    "190:20:30",
    "2001-12-14",
    "1_000",
    "0o14",
];

/// What numbers, and what looks like them, are made of.
const LETTERS: [char; 20] =
    ['0', '0', '1', '2', '7', '8', '9', '0', '1', '2', '+', '-', '.', '.', 'e', 'E', 'x', 'o', 'a', '_'];

/// Scalars of one to six letters, the same in each run (Marsaglia's xorshift64).
fn scalars() -> Vec<String> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |end: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap() % end
    };
    let mut all: Vec<_> = WORDS.map(str::to_owned).into();
    while all.len() < 4000 {
        let text: String = (0..=below(6)).map(|_| LETTERS[below(LETTERS.len())]).collect();
        // An indicator, or the mark of a document's beginning.
        if !["-", "---"].contains(&text.as_str()) {
            all.push(text);
        }
    }
    all
}

/// How kubectl reads them: by Helm, which prints what it read.
fn as_kubectl_does(scene: &Scene, document: &str) -> Vec<Value> {
    fs::create_dir_all(scene.at("chart/templates")).unwrap();
    fs::write(scene.at("chart/Chart.yaml"), "apiVersion: v2\nname: scalars\nversion: 0.1.0\n").unwrap();
    fs::write(scene.at("chart/templates/read.yaml"), "read: {{ .Values.scalars | toJson | squote }}\n").unwrap();
    fs::write(scene.at("values.yaml"), document).unwrap();
    let mut command = helm();
    command.args(["template", "scalars", &scene.text("chart"), "--values", &scene.text("values.yaml")]);
    let manifest = said(output_of(&mut command));
    let read = manifest.lines().find_map(|line| line.strip_prefix("read: '")?.strip_suffix('\'')).unwrap();
    serde_json::from_str(read).unwrap()
}

/// How a template reads them.
fn as_templates_do(scene: &Scene, document: &str) -> Vec<Value> {
    fs::create_dir(scene.at("in")).unwrap();
    fs::write(scene.at("in/document"), document).unwrap();
    fs::write(scene.at("read.j2"), "{{ (data.document | from_yaml).scalars | tojson }}").unwrap();
    let flags = ["--once", "--watch-dir", &scene.text("in"), "--template", &scene.text("read.j2")];
    said(output_of(trimtab().args(scene.flags(&flags))));
    serde_json::from_str(&scene.published("read").unwrap()).unwrap()
}

#[test]
fn what_from_yaml_takes_for_more_than_text_kubectl_takes_for_the_same() {
    let scene = Scene::new();
    let scalars = scalars();
    let document = format!("scalars:\n- {}\n", scalars.join("\n- "));
    let (theirs, ours) = (as_kubectl_does(&scene, &document), as_templates_do(&scene, &document));
    assert_eq!((theirs.len(), ours.len()), (scalars.len(), scalars.len()));
    let mut numbers = 0;
    for ((text, theirs), ours) in scalars.iter().zip(&theirs).zip(&ours) {
        match ours {
            // As it was written: nothing is lost, whatever others take it for.
            Value::String(ours) => assert_eq!(ours, text),
            Value::Number(ours) => {
                numbers += 1;
                // YAML 1.2's octals, which a reader of 1.1 takes for text.
                if !(text.starts_with("0o") && theirs.is_string()) {
                    assert_eq!(ours.as_f64(), theirs.as_f64(), "{text}: {theirs}");
                }
            }
            ours => assert_eq!(ours, theirs, "{text}"),
        }
    }
    assert!(numbers > 300, "{numbers} of them are numbers: too few to show anything");
}
