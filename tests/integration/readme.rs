//! What the README shows is what the program is: its table of flags, and its manifest.

use std::fmt::Write as _;
use std::path::Path;

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind, TypeMeta};
use serde_json::json;
use trimtab::cli;

use super::support::apiserver::{ADMIN, ApiServer};
use super::support::sidecar::trimtab;

fn readme() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap()
}

/// The flags as clap has them, a table for each heading.
fn tables() -> String {
    let command = cli::command();
    let mut text = String::new();
    let mut heading = None;
    for arg in command.get_arguments() {
        let Some(long) = arg.get_long().filter(|long| !matches!(*long, "help" | "version")) else { continue };
        if arg.get_help_heading() != heading {
            heading = arg.get_help_heading();
            write!(text, "\n**{}**\n\n| flag | default | meaning |\n|---|---|---|\n", heading.unwrap()).unwrap();
        }
        let value = if arg.get_action().takes_values() {
            format!(" {}", arg.get_value_names().unwrap_or_default().join(" "))
        } else {
            String::new()
        };
        let help = arg.get_long_help().or(arg.get_help()).unwrap().to_string();
        let values = arg.get_possible_values();
        let values = values.iter().filter(|_| arg.get_action().takes_values());
        let values: Vec<_> = values.filter_map(|it| Some(format!("`{}`: {}", it.get_name(), it.get_help()?))).collect();
        let help = if values.is_empty() { help } else { format!("{help}. {}", values.join("; ")) };
        let help = help.replace("\n\n", ". ").replace('\n', " ").replace('|', "\\|");
        let (help, default) = if let Some((before, rest)) = help.split_once(" [default: ") {
            let (default, after) = rest.split_once(']').unwrap();
            (format!("{before}{after}"), default.to_owned())
        } else {
            let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
            (help, defaults.join(" "))
        };
        let default = if !default.is_empty() && !default.contains(' ') { format!("`{default}`") } else { default };
        writeln!(text, "| `--{long}{value}` | {default} | {help} |").unwrap();
    }
    text
}

/// Run with `UPDATE_README=1` after a change of the flags.
#[test]
fn table_of_flags_is_that_of_the_program() {
    let readme = readme();
    let (before, rest) = readme.split_once("<!-- flags -->\n").unwrap();
    let (table, after) = rest.split_once("<!-- /flags -->").unwrap();
    if table != tables() && std::env::var_os("UPDATE_README").is_some() {
        let updated = format!("{before}<!-- flags -->\n{}<!-- /flags -->{after}", tables());
        std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"), updated).unwrap();
        return;
    }
    assert_eq!(table, tables(), "run: UPDATE_README=1 cargo test --test integration readme");
}

#[test]
fn help_of_the_binary_has_every_flag_and_variable_of_the_table() {
    let output = trimtab().arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    for arg in cli::command().get_arguments() {
        let Some(long) = arg.get_long() else { continue };
        assert!(help.contains(&format!("--{long}")), "--{long}");
        if let Some(variable) = arg.get_env() {
            assert!(help.contains(&format!("[env: {}]", variable.to_str().unwrap())), "{variable:?}");
        }
    }
}

/// The manifest, as it stands, on a real API server that enforces the restricted Pod Security Standard.
#[tokio::test]
async fn manifest_is_accepted_by_a_restricted_namespace() {
    let readme = readme();
    let (_, rest) = readme.split_once("<!-- manifest -->\n```yaml\n").unwrap();
    let (manifest, _) = rest.split_once("```").unwrap();
    let server = ApiServer::shared().await;
    let namespace = server.namespace().await;
    let client = server.client(ADMIN).await;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let restricted = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    namespaces.patch(&namespace, &PatchParams::default(), &Patch::Merge(&restricted)).await.unwrap();
    let documents: Vec<DynamicObject> = serde_saphyr::from_multiple(manifest).unwrap();
    assert_eq!(documents.len(), 6);
    for document in documents {
        let TypeMeta { api_version, kind } = document.types.clone().unwrap();
        let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
        let objects: Api<DynamicObject> = Api::namespaced_with(client.clone(), &namespace, &resource);
        let created = objects.create(&PostParams::default(), &document).await;
        assert!(created.is_ok(), "{kind}: {}", created.unwrap_err());
    }
}

/// The flags of the manifest's sidecar are accepted by the program.
#[test]
fn flags_of_the_manifest_are_flags_of_the_program() {
    let readme = readme();
    let flags: Vec<_> = readme
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- --"))
        .map(|line| format!("--{}", line.split_whitespace().next().unwrap()))
        .collect();
    assert!(flags.len() >= 5, "{flags:?}");
    let parsed = cli::command().try_get_matches_from(std::iter::once("trimtab".to_owned()).chain(flags));
    assert!(parsed.is_ok(), "{}", parsed.unwrap_err());
}
