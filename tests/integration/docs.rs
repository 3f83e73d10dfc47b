//! What the README and docs/ say is what the program is: flags, manifests, links.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Command;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind, TypeMeta};
use regex_lite::Regex;
use serde_json::json;
use trimtab::cli;

use super::support::apiserver::{ADMIN, ApiServer};
use super::support::sidecar::trimtab;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn text(path: impl AsRef<Path>) -> String {
    let path = Path::new(ROOT).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every Markdown file of a folder, and of those below it, by its path from the repository's root.
fn pages_below(folder: &Path) -> Vec<PathBuf> {
    let mut pages = Vec::new();
    for entry in fs::read_dir(Path::new(ROOT).join(folder)).unwrap() {
        let entry = entry.unwrap();
        let path = folder.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            pages.extend(pages_below(&path));
        } else if path.extension().is_some_and(|extension| extension == "md") {
            pages.push(path);
        }
    }
    pages.sort();
    pages
}

/// What people read: the README, the documentation, and what stands beside them.
pub(crate) fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<_> = ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md"].map(PathBuf::from).into();
    pages.extend(pages_below("docs".as_ref()));
    pages.extend(pages_below("examples".as_ref()));
    pages
}

/// The blocks of code in this language.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let opening = format!("```{language}\n");
    page.split(&*opening).skip(1).map(|rest| rest.split_once("```").unwrap().0).collect()
}

/// A page without its blocks of code.
fn prose(page: &str) -> String {
    let mut inside = false;
    let lines = page.split_inclusive('\n').filter(|line| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        !inside && !fence
    });
    lines.collect()
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

/// Run with `UPDATE_DOCS=1` after a change of the flags.
#[test]
fn table_of_flags_is_that_of_the_program() {
    let page = text("docs/flags.md");
    let (before, rest) = page.split_once("<!-- flags -->\n").unwrap();
    let (table, after) = rest.split_once("<!-- /flags -->").unwrap();
    if table != tables() && std::env::var_os("UPDATE_DOCS").is_some() {
        let updated = format!("{before}<!-- flags -->\n{}<!-- /flags -->{after}", tables());
        fs::write(Path::new(ROOT).join("docs/flags.md"), updated).unwrap();
        return;
    }
    assert_eq!(table, tables(), "run: UPDATE_DOCS=1 cargo test --test integration docs::");
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

/// Every object that a page shows, as it stands, on a real API server that enforces the restricted Pod Security Standard.
#[tokio::test]
async fn manifests_are_accepted_by_a_restricted_namespace() {
    let server = ApiServer::shared().await;
    let namespace = server.namespace().await;
    let client = server.client(ADMIN).await;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let restricted = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    namespaces.patch(&namespace, &PatchParams::default(), &Patch::Merge(&restricted)).await.unwrap();
    let mut created = 0;
    for path in pages() {
        let page = text(&path);
        let manifests = blocks(&page, "yaml").into_iter().filter(|block| block.contains("apiVersion: "));
        for document in manifests.flat_map(|block| serde_saphyr::from_multiple::<DynamicObject>(block).unwrap()) {
            let TypeMeta { api_version, kind } = document.types.clone().unwrap();
            let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
            let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
            let objects: Api<DynamicObject> = Api::namespaced_with(client.clone(), &namespace, &resource);
            // A dry run goes through admission and stores nothing, so that pages may use one name twice.
            let dry = PostParams { dry_run: path != Path::new("README.md"), ..PostParams::default() };
            let answer = objects.create(&dry, &document).await;
            assert!(answer.is_ok(), "{}: {kind}: {}", path.display(), answer.unwrap_err());
            created += 1;
        }
    }
    assert!(created >= 6, "{created}");
}

/// The flags in manifests are accepted by the program.
#[test]
fn flags_of_the_manifests_are_flags_of_the_program() {
    let mut sets = 0;
    for path in pages() {
        for block in blocks(&text(&path), "yaml") {
            let flags: Vec<_> = block
                .lines()
                .filter_map(|line| line.trim().strip_prefix("- --"))
                .map(|line| format!("--{}", line.split_whitespace().next().unwrap()))
                .collect();
            if flags.is_empty() {
                continue;
            }
            let parsed = cli::command().try_get_matches_from(std::iter::once("trimtab".to_owned()).chain(flags));
            assert!(parsed.is_ok(), "{}: {}", path.display(), parsed.unwrap_err());
            sets += 1;
        }
    }
    assert!(sets >= 1);
}

/// A newcomer reads it whole.
#[test]
fn readme_is_short() {
    let readme = text("README.md");
    assert!(readme.len() <= 12_000, "{} bytes: move something to docs/", readme.len());
}

#[test]
fn every_page_is_in_the_book() {
    let summary = text("docs/SUMMARY.md");
    for page in pages_below("docs".as_ref()).iter().filter(|page| !page.ends_with("SUMMARY.md")) {
        let name = page.strip_prefix("docs").unwrap().display();
        assert!(summary.contains(&format!("]({name})")), "docs/SUMMARY.md does not list {name}");
    }
}

/// The names that GitHub and mdBook give to a page's headings, for links to them.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = prose(page);
    let headings =
        headings.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    headings
        .map(|heading| {
            let kept = heading.chars().filter(|it| it.is_alphanumeric() || " -_".contains(*it));
            kept.collect::<String>().to_lowercase().replace(' ', "-")
        })
        .collect()
}

/// Links between pages lead somewhere; those of the book do not leave it, as its site has nothing else.
#[test]
fn links_lead_to_pages_and_headings() {
    let link = Regex::new(r"\]\(([^)\s]*)\)").unwrap();
    let code = Regex::new("`[^`\n]*`").unwrap();
    let (mut count, mut wrong) = (0, Vec::new());
    for path in pages() {
        // What looks like a link in code, as a pattern may, is none.
        let page = prose(&text(&path));
        let readable = code.replace_all(&page, "");
        for target in link.captures_iter(&readable).map(|found| found.get(1).unwrap().as_str()) {
            if target.starts_with("https://") || target.is_empty() {
                continue;
            }
            count += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let to = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            if !Path::new(ROOT).join(&to).exists() {
                wrong.push(format!("{} links to {target}, which does not exist", path.display()));
            } else if path.starts_with("docs") && file.starts_with("..") {
                wrong.push(format!("{} links to {target}, which the site does not have", path.display()));
            } else if !anchor.is_empty() && !anchors(&text(&to)).contains(anchor) {
                wrong.push(format!("{} links to {target}, and there is no such heading", path.display()));
            }
        }
    }
    assert!(count > 30, "{count}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Files that pages name exist.
#[test]
fn paths_in_pages_exist() {
    let code = Regex::new("`((?:benches|demo|deploy|docs|examples|fuzz|src|tests|tools)/[a-z0-9_./-]*)`").unwrap();
    let (mut count, mut wrong) = (0, Vec::new());
    for path in pages() {
        for found in code.captures_iter(&text(&path)) {
            let named = found.get(1).unwrap().as_str();
            count += 1;
            if !Path::new(ROOT).join(named).exists() {
                wrong.push(format!("{} names {named}", path.display()));
            }
        }
    }
    assert!(count > 10, "{count}");
    assert!(wrong.is_empty(), "these do not exist: {}", wrong.join("\n"));
}

/// Flags that pages name exist: in code that begins with one, unless it stands here as another program's.
#[test]
fn flags_in_pages_exist() {
    const OTHERS: &[&str] = &[
        "--addn-hosts",
        "--config-file",
        "--dhcp-hostsfile",
        "--dhcp-optsfile",
        "--help",
        "--hostsdir",
        "--icf",
        "--no-caps",
        "--print-flags",
        "--reject-unknown-dynamic-fields",
        "--req-password-file",
        "--req-username-file",
        "--servers-file",
        "--version",
    ];
    let mut known: BTreeSet<String> = OTHERS.iter().map(ToString::to_string).collect();
    let command = cli::command();
    for arg in std::iter::once(&command).chain(command.get_subcommands()).flat_map(Command::get_arguments) {
        known.extend(arg.get_long().map(|long| format!("--{long}")));
    }
    let code = Regex::new("`(--[a-z-]+)[ =`]").unwrap();
    let mut wrong = Vec::new();
    for path in pages().iter().filter(|path| path.starts_with("docs") || path.ends_with("README.md")) {
        for line in prose(&text(path)).lines() {
            // The left column there is other programs'.
            let of_others = ["migrating.md", "configmap-reload.md", "prometheus-config-reloader.md"];
            let of_others = of_others.iter().any(|page| path.ends_with(page));
            let line = if of_others { line.splitn(3, '|').last().unwrap() } else { line };
            let named = code.captures_iter(line).map(|found| found.get(1).unwrap().as_str());
            let unknown = named.filter(|flag| !known.contains(*flag));
            wrong.extend(unknown.map(|flag| format!("{} names {flag}", path.display())));
        }
    }
    assert!(wrong.is_empty(), "the program has no such flag: {}", wrong.join("\n"));
}

/// What a file of `--config` may hold, as editors check it.
fn schema() -> String {
    let command = cli::command();
    let mut properties = serde_json::Map::new();
    for arg in command.get_arguments() {
        let Some(long) = arg.get_long().filter(|long| !matches!(*long, "help" | "version" | "config")) else {
            continue;
        };
        let possible: Vec<_> = arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
        let scalar = match arg.get_value_names().and_then(|names| names.first()).map(clap::builder::Str::as_str) {
            _ if !arg.get_action().takes_values() => json!({"type": "boolean"}),
            _ if !possible.is_empty() => json!({"enum": possible}),
            Some("D") => json!({"type": ["string", "integer"], "pattern": "^(0|([0-9]+(ms|s|m|h))+)$", "maximum": 0}),
            Some("N") => json!({"type": "integer", "minimum": 1}),
            // A number where YAML takes it for one.
            Some("MODE" | "SIZE" | "CODES" | "SIG") => json!({"type": ["string", "integer"]}),
            _ => json!({"type": "string"}),
        };
        let mut property = if matches!(arg.get_action(), clap::ArgAction::Append) {
            json!({"anyOf": [scalar, {"type": "array", "items": scalar}]})
        } else {
            scalar
        };
        property["description"] = arg.get_long_help().or(arg.get_help()).unwrap().to_string().into();
        if let [default] = arg.get_default_values()
            && arg.get_action().takes_values()
        {
            property["default"] = default.to_str().unwrap().into();
        }
        properties.insert(long.to_owned(), property);
    }
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The file of trimtab --config",
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
    });
    format!("{schema:#}\n")
}

/// Run with `UPDATE_DOCS=1` after a change of the flags.
#[test]
fn schema_of_the_file_is_that_of_the_program() {
    let path = "docs/config.schema.json";
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(Path::new(ROOT).join(path), schema()).unwrap();
        return;
    }
    assert_eq!(text(path), schema(), "run: UPDATE_DOCS=1 cargo test --test integration docs::");
}

/// The page's file is one that the program takes.
#[test]
fn file_of_the_page_is_one_of_the_program() {
    let page = text("docs/config-file.md");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("trimtab.yaml");
    fs::write(&path, blocks(&page, "yaml")[0]).unwrap();
    let output = trimtab().args(["--once", "--once-timeout", "10ms", "--config"]).arg(&path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_ne!(output.status.code(), Some(64), "{said}");
}
