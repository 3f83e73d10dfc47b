//! `trimtab status` and `trimtab retry`: ask the running sidecar at its `--admin` address.

use std::io::{IsTerminal as _, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use hyper::Method;
use serde_json::Value;

use super::escaped;
use crate::cli::exit::Exit;
use crate::cli::{AdminArgs, Format, StatusArgs};
use crate::net::endpoint::Endpoint;
use crate::net::request::{self, HttpConfig};
use crate::observe::verdict::State;

/// How long the sidecar may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How often a status is asked for that is waited for or followed.
const POLL: Duration = Duration::from_millis(250);
const TURN: Duration = Duration::from_secs(1);

/// Prints the status. Exit code 0 only when it is ready, 1 when it is not or nobody answers; with `--wait`, 0 in effect, 65
/// rejected or held, 69 not in time.
pub(super) fn status(args: &StatusArgs) -> ExitCode {
    let result = match args.wait {
        Some(limit) => wait(args, limit),
        None if args.watch => watch(args),
        None => show(args).map(|status| if status["ready"] == true { Exit::Done } else { Exit::StartUp }),
    };
    result.map_or_else(
        |error| {
            eprintln!("trimtab: {error:#}");
            Exit::StartUp.into()
        },
        ExitCode::from,
    )
}

/// Prints the status once; it as JSON.
fn show(args: &StatusArgs) -> anyhow::Result<Value> {
    let status = json(&args.admin)?;
    print(args, &status)?;
    Ok(status)
}

fn print(args: &StatusArgs, status: &Value) -> anyhow::Result<()> {
    let text = match args.format {
        Format::Json => serde_json::to_string_pretty(status).context("JSON")? + "\n",
        Format::Text => String::from_utf8_lossy(&ask(&args.admin, Method::GET, "/status?format=text")?).into_owned(),
    };
    std::io::stdout().write_all(text.as_bytes()).context("standard output")
}

fn json(admin: &AdminArgs) -> anyhow::Result<Value> {
    let body = ask(admin, Method::GET, "/status")?;
    serde_json::from_slice(&body).map_err(|_| anyhow!("the answer is no JSON"))
}

/// Waits for an end of the newest change, and prints the status of then. A sidecar that does not answer yet may be starting.
fn wait(args: &StatusArgs, limit: Duration) -> anyhow::Result<Exit> {
    let until = Instant::now() + limit;
    loop {
        let asked = json(&args.admin);
        let state = asked.as_ref().ok().and_then(|status| State::parse(status["verdict"]["state"].as_str()?));
        let exit = match state {
            Some(State::InEffect) => Some(Exit::Done),
            Some(State::Rejected | State::Held) => Some(Exit::Rejected),
            _ => None,
        };
        let late = Instant::now() >= until;
        match (exit, asked) {
            (None, _) if !late => std::thread::sleep(POLL.min(until.saturating_duration_since(Instant::now()))),
            (exit, Ok(status)) => {
                print(args, &status)?;
                return Ok(exit.unwrap_or(Exit::Unavailable));
            }
            (_, Err(error)) => {
                eprintln!("trimtab: {error:#}");
                return Ok(Exit::Unavailable);
            }
        }
    }
}

/// Prints the status again and again on a terminal; elsewhere, a line or a document for each new verdict.
fn watch(args: &StatusArgs) -> anyhow::Result<Exit> {
    let redraws = std::io::stdout().is_terminal() && matches!(args.format, Format::Text);
    let mut known = Value::Null;
    loop {
        let status = json(&args.admin)?;
        let verdict = &status["verdict"];
        let mut out = std::io::stdout();
        if redraws {
            // To the upper left corner, and all below is cleared.
            out.write_all(b"\x1b[H\x1b[J").context("standard output")?;
            print(args, &status)?;
        } else if *verdict != known {
            let line = match args.format {
                Format::Json => status.to_string(),
                Format::Text => {
                    let field = |name: &str| verdict[name].as_str().unwrap_or_default();
                    escaped(&format!("{} {} {}", field("since"), field("state"), field("summary")), ' ')
                }
            };
            writeln!(out, "{line}").context("standard output")?;
            known = verdict.clone();
        }
        std::thread::sleep(TURN);
    }
}

/// Asks for another try of what was rejected or waits; exit code 1 when nobody answers.
pub(super) fn retry(args: &AdminArgs) -> ExitCode {
    let asked = ask(args, Method::POST, "/retry");
    match asked.and_then(|body| std::io::stdout().write_all(&body).context("standard output")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("trimtab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn ask(args: &AdminArgs, method: Method, path: &str) -> anyhow::Result<Vec<u8>> {
    let Some(mut address) = args.admin.0 else { bail!("--admin is off: the sidecar cannot be asked") };
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    let endpoint: Endpoint = format!("http://{address}{path}").parse()?;
    let config = HttpConfig { method, ..HttpConfig::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let response = runtime
        .block_on(request::send(&endpoint, &config, TIMEOUT))
        .with_context(|| {
            format!(
                "no sidecar answers at {address}; ask in its container (kubectl exec POD -c trimtab -- /trimtab status), or \
                 say by --admin where it listens"
            )
        })?;
    if !(200..300).contains(&response.status) {
        bail!("{address}{path} answered {}", response.status);
    }
    Ok(response.body)
}
