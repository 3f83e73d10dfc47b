//! `trimtab status` and `trimtab retry`: ask the running sidecar at its `--admin` address.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use hyper::Method;

use crate::cli::AdminArgs;
use crate::net::endpoint::Endpoint;
use crate::net::request::{self, HttpConfig};

/// How long the sidecar may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Prints the status; exit code 0 only when it is ready, 1 when it is not or nobody answers.
pub(super) fn status(args: &AdminArgs) -> ExitCode {
    finish(ask(args, Method::GET, "/status").and_then(|body| {
        std::io::stdout().write_all(&body).context("standard output")?;
        let status: serde_json::Value = serde_json::from_slice(&body).map_err(|_| anyhow!("the answer is no JSON"))?;
        Ok(status["ready"] == true)
    }))
}

/// Asks for another try of what was rejected or waits; exit code 1 when nobody answers.
pub(super) fn retry(args: &AdminArgs) -> ExitCode {
    finish(ask(args, Method::POST, "/retry").and_then(|body| {
        std::io::stdout().write_all(&body).context("standard output")?;
        Ok(true)
    }))
}

fn finish(result: anyhow::Result<bool>) -> ExitCode {
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
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
        .with_context(|| format!("no sidecar answers at {address}; say where it listens by --admin"))?;
    if !(200..300).contains(&response.status) {
        bail!("{address}{path} answered {}", response.status);
    }
    Ok(response.body)
}
