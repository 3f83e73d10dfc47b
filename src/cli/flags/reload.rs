//! How the main process is notified.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::confirm::ConfirmArgs;
use super::{Checked, Env, Gate, UsageError, check_goes_with, usage};
use crate::cli::values::duration;
use crate::net::credentials::{Header, LiteralOrFile};
use crate::net::endpoint::{Endpoint, StatusCodes};
use crate::net::request::HttpConfig;
use crate::os::exec::Command;
use crate::reload::process::Selector;
use crate::reload::{self, Driver};

/// The flags that say which process is meant.
pub(super) const TARGET: &str = "--process, --process-args or --pid-file";

/// Reload.
#[derive(Debug, Args)]
#[command(next_help_heading = "Reload (none: publish only)")]
pub struct ReloadArgs {
    /// Send this signal to the main process
    ///
    /// As SIGHUP, HUP or 1, to the process of --process, --process-args or --pid-file. The Pod needs shareProcessNamespace: true.
    #[arg(long, value_name = "SIG")]
    pub signal: Option<String>,
    /// Name of the main process's executable
    ///
    /// Without the path. Where the executable cannot be read: its comm (15 bytes), else argv[0].
    #[arg(long, value_name = "NAME")]
    pub process: Option<String>,
    /// The main process's command line matches this
    #[arg(long, value_name = "REGEX")]
    pub process_args: Option<String>,
    /// The main process writes its pid to this file
    #[arg(long, value_name = "PATH")]
    pub pid_file: Option<PathBuf>,
    /// Call this URL. May be repeated
    ///
    /// http, https, or unix:/path.sock:/uri. Several are called in the order given.
    #[arg(long = "reload-url", value_name = "URL")]
    pub reload_urls: Vec<String>,
    /// Method of the call [default: POST]
    #[arg(long, value_name = "METHOD")]
    pub reload_method: Option<String>,
    /// Body of the call; @FILE reads it at each call
    #[arg(long, value_name = "TEXT")]
    pub reload_body: Option<String>,
    /// Status codes that mean success [default: 2xx]
    #[arg(long, value_name = "CODES")]
    pub reload_status: Option<String>,
    /// Header of the call; 'K: @FILE' reads the value at each call. May be repeated
    #[arg(long = "reload-header", value_name = "K: V")]
    pub reload_headers: Vec<String>,
    /// Authenticate with user:password from this file, read at each call
    #[arg(long, value_name = "PATH")]
    pub reload_auth_file: Option<PathBuf>,
    /// Authenticate as this user, with --reload-password; @FILE is read at each call, $NAME is a variable
    #[arg(long, value_name = "@FILE|$NAME")]
    pub reload_user: Option<String>,
    /// Password of --reload-user; @FILE is read at each call, $NAME is a variable
    #[arg(long, value_name = "@FILE|$NAME")]
    pub reload_password: Option<String>,
    /// Authenticate with the bearer token in this file, read at each call
    #[arg(long, value_name = "PATH")]
    pub reload_token_file: Option<PathBuf>,
    /// Trust the certificates in this file, and no others; for --confirm-url as well
    #[arg(long, value_name = "PATH")]
    pub reload_ca_file: Option<PathBuf>,
    /// Present the client certificate in this file; for --confirm-url as well
    #[arg(long, value_name = "PATH")]
    pub reload_cert_file: Option<PathBuf>,
    /// Key of --reload-cert-file [default: in that file]
    #[arg(long, value_name = "PATH")]
    pub reload_key_file: Option<PathBuf>,
    /// Accept any server certificate; for --confirm-url as well
    #[arg(long)]
    pub reload_insecure: bool,
    /// Run this program of the sidecar's own image
    ///
    /// Before --reload-url, if that is given too. Words are split as in a shell, but no shell runs.
    #[arg(long, value_name = "CMD")]
    pub reload_exec: Option<String>,
    /// How long one attempt may take, from connect to the last byte
    #[arg(long, value_name = "D", default_value = "30s", value_parser = duration)]
    pub reload_timeout: Duration,
    /// Reject after this many refusals over at least three seconds; 1: reject at the first refusal
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(1..))]
    pub reload_attempts: u32,
    /// Wait this long before the second attempt, then twice as long each time
    #[arg(long, value_name = "D", default_value = "250ms", value_parser = duration)]
    pub retry_min: Duration,
    /// Never wait longer than this between two attempts
    #[arg(long, value_name = "D", default_value = "30s", value_parser = duration)]
    pub retry_max: Duration,
    /// Publish at most once in this time; changes that come sooner are joined
    #[arg(long, value_name = "D", default_value = "0s", value_parser = duration)]
    pub reload_min_interval: Duration,
    /// Wait a random part of this before a publish, so that a fleet does not reload all at once
    #[arg(long, value_name = "D", default_value = "0s", value_parser = duration)]
    pub reload_splay: Duration,
}

impl ReloadArgs {
    pub(super) fn config(&self, confirm: &ConfirmArgs, env: Env<'_>) -> Checked<reload::Config> {
        self.check_times()?;
        self.check_ways(confirm)?;
        let trust = self.trust()?;
        let selector = self.selector()?;
        let driver = if let Some(signal) = &self.signal {
            let signal = signal.parse().map_err(|error| UsageError(format!("--signal {signal}: {error}")))?;
            let Some(selector) = selector.clone() else {
                return usage(format!("--signal needs a target: give {TARGET}"));
            };
            Driver::Signal { signal, selector }
        } else {
            // The text is not quoted: a command line may hold a credential.
            let program = self.reload_exec.as_deref().map(str::parse).transpose();
            let program: Option<Command> = program.map_err(|error| UsageError(format!("--reload-exec: {error}")))?;
            match program {
                program if !self.reload_urls.is_empty() => self.http(program, trust, env)?,
                Some(program) => Driver::Exec(program),
                None => Driver::None,
            }
        };
        let target = if matches!(driver, Driver::Signal { .. }) { None } else { selector };
        let replaced = matches!(&driver, Driver::Signal { signal, .. } if signal.ends());
        let children = confirm.confirm_workers || replaced;
        let presumed_dead_after = confirm.confirm_url.is_some().then_some(confirm.confirm_timeout);
        Ok(reload::Config { driver, target, children, timeout: self.reload_timeout, presumed_dead_after, ready: None })
    }

    fn check_times(&self) -> Checked<()> {
        if self.retry_min > self.retry_max {
            return usage("--retry-min is longer than --retry-max");
        }
        if self.retry_min < Duration::from_millis(10) {
            return usage("--retry-min must be at least 10ms, or a failing reload would be tried in a busy loop");
        }
        if self.reload_timeout.is_zero() {
            return usage("--reload-timeout must not be 0");
        }
        Ok(())
    }

    fn check_ways(&self, confirm: &ConfirmArgs) -> Checked<()> {
        let ways = [
            ("--signal", self.signal.is_some()),
            ("--reload-url", !self.reload_urls.is_empty()),
            ("--reload-exec", self.reload_exec.is_some()),
        ];
        let given: Vec<_> = ways.iter().filter(|(_, given)| *given).map(|(flag, _)| *flag).collect();
        if let [first @ "--signal", second, ..] = given[..] {
            return usage(format!("{first} and {second} both reload the main process: give one of them"));
        }
        check_goes_with(
            "--reload-url",
            !self.reload_urls.is_empty(),
            &[
                ("--reload-method", self.reload_method.is_some()),
                ("--reload-body", self.reload_body.is_some()),
                ("--reload-status", self.reload_status.is_some()),
                ("--reload-header", !self.reload_headers.is_empty()),
                ("--reload-auth-file", self.reload_auth_file.is_some()),
                ("--reload-user", self.reload_user.is_some()),
                ("--reload-password", self.reload_password.is_some()),
                ("--reload-token-file", self.reload_token_file.is_some()),
            ],
        )?;
        check_goes_with(
            "--reload-url or --confirm-url",
            !self.reload_urls.is_empty() || confirm.confirm_url.is_some(),
            &[
                ("--reload-ca-file", self.reload_ca_file.is_some()),
                ("--reload-cert-file", self.reload_cert_file.is_some()),
                ("--reload-key-file", self.reload_key_file.is_some()),
                ("--reload-insecure", self.reload_insecure),
            ],
        )
    }

    fn selector(&self) -> Checked<Option<Selector>> {
        let regex = self.process_args.as_deref().map(regex_lite::Regex::new).transpose();
        let regex = regex.map_err(|error| UsageError(format!("--process-args: {error}")))?;
        if self.process.as_deref().is_some_and(|name| name.is_empty() || name.contains('/')) {
            return usage("--process is the base name of an executable, without a path");
        }
        let selector = Selector { name: self.process.clone(), args: regex, pid_file: self.pid_file.clone() };
        Ok(Some(selector).filter(Selector::is_given))
    }

    /// Which servers are trusted, and the certificate that Trimtab presents.
    pub(super) fn trust(&self) -> Checked<HttpConfig> {
        if self.reload_cert_file.is_none() && self.reload_key_file.is_some() {
            return usage("--reload-key-file needs --reload-cert-file");
        }
        if self.reload_insecure && self.reload_ca_file.is_some() {
            return usage("--reload-insecure and --reload-ca-file contradict each other: give one of them");
        }
        Ok(HttpConfig {
            ca_file: self.reload_ca_file.clone(),
            cert_file: self.reload_cert_file.clone(),
            key_file: self.reload_key_file.clone(),
            insecure: self.reload_insecure,
            ..HttpConfig::default()
        })
    }

    fn http(&self, program: Option<Command>, trust: HttpConfig, env: Env<'_>) -> Checked<Driver> {
        // Neither a URL nor a header is quoted: each may hold a credential. Its number says which is meant.
        let mut endpoints = Vec::new();
        for (index, url) in self.reload_urls.iter().enumerate() {
            let endpoint: Endpoint =
                url.parse().map_err(|error| UsageError(format!("--reload-url (number {}): {error}", index + 1)))?;
            endpoints.push(endpoint);
        }
        let headers = self.headers()?;
        let method = self.reload_method.as_deref().unwrap_or("POST");
        let status = self.reload_status.as_deref().unwrap_or("2xx");
        let accept: StatusCodes =
            status.parse().map_err(|error| UsageError(format!("--reload-status {status}: {error}")))?;
        let http = HttpConfig {
            method: method
                .parse()
                .map_err(|_| UsageError(format!("--reload-method {method}: expected a method such as POST")))?,
            body: self.reload_body.clone().unwrap_or_default().into(),
            headers,
            auth_file: self.reload_auth_file.clone(),
            user: self.user(env)?,
            token_file: self.reload_token_file.clone(),
            ..trust
        };
        Ok(Driver::Http { program, endpoints, http: Box::new(http), accept })
    }

    /// `--reload-user` and `--reload-password`.
    fn user(&self, env: Env<'_>) -> Checked<Option<(LiteralOrFile, LiteralOrFile)>> {
        let read = |flag: &str, value: &str| match (value.strip_prefix('@'), value.strip_prefix('$')) {
            (Some(path), _) if !path.is_empty() => Ok(LiteralOrFile::File(path.into())),
            (_, Some(name)) if !name.is_empty() => match env(name).map(OsString::into_string) {
                Some(Ok(value)) => Ok(LiteralOrFile::Literal(value.into())),
                Some(Err(_)) => usage(format!("{flag} ${name}: its value is not UTF-8")),
                None => usage(format!("{flag} ${name}: this variable is not set")),
            },
            // Not quoted: it may be the credential.
            _ => usage(format!(
                "{flag} is @FILE or $NAME, a variable: command lines are readable in a shared process namespace"
            )),
        };
        match (self.reload_user.as_deref(), self.reload_password.as_deref()) {
            (Some(user), Some(password)) => {
                Ok(Some((read("--reload-user", user)?, read("--reload-password", password)?)))
            }
            (Some(_), None) => usage("--reload-user needs --reload-password"),
            (None, Some(_)) => usage("--reload-password needs --reload-user"),
            (None, None) => Ok(None),
        }
    }

    fn headers(&self) -> Checked<Vec<Header>> {
        let mut headers = Vec::new();
        for (index, header) in self.reload_headers.iter().enumerate() {
            let header: Header = header
                .parse()
                .map_err(|error| UsageError(format!("--reload-header (number {}): {error}", index + 1)))?;
            headers.push(header);
        }
        let authorizing = [
            ("--reload-auth-file", self.reload_auth_file.is_some()),
            ("--reload-user", self.reload_user.is_some()),
            ("--reload-token-file", self.reload_token_file.is_some()),
            ("--reload-header Authorization", headers.iter().any(|header| header.name() == "authorization")),
        ];
        let given: Vec<_> = authorizing.iter().filter(|(_, given)| *given).map(|(flag, _)| *flag).collect();
        if let [first, second, ..] = given[..] {
            return usage(format!("{first} and {second} both set Authorization: give one of them"));
        }
        Ok(headers)
    }

    pub(super) fn add_to(&self, gate: &mut Gate) {
        let Self {
            signal,
            process,
            process_args,
            pid_file,
            reload_urls,
            reload_method,
            reload_body,
            reload_status,
            reload_headers,
            reload_auth_file,
            reload_user,
            reload_password,
            reload_token_file,
            reload_ca_file,
            reload_cert_file,
            reload_key_file,
            reload_insecure,
            reload_exec,
            reload_timeout,
            reload_attempts,
            retry_min,
            retry_max,
            reload_min_interval,
            reload_splay,
        } = self;
        gate.texts("--signal", signal);
        gate.texts("--process", process);
        gate.texts("--process-args", process_args);
        gate.texts("--pid-file", pid_file);
        gate.texts("--reload-url", reload_urls);
        gate.texts("--reload-method", reload_method);
        gate.texts("--reload-body", reload_body);
        gate.texts("--reload-status", reload_status);
        gate.texts("--reload-header", reload_headers);
        gate.texts("--reload-auth-file", reload_auth_file);
        gate.texts("--reload-user", reload_user);
        gate.texts("--reload-password", reload_password);
        gate.texts("--reload-token-file", reload_token_file);
        gate.texts("--reload-ca-file", reload_ca_file);
        gate.texts("--reload-cert-file", reload_cert_file);
        gate.texts("--reload-key-file", reload_key_file);
        gate.texts("--reload-insecure", reload_insecure.then_some("true"));
        gate.texts("--reload-exec", reload_exec);
        gate.time("--reload-timeout", Some(*reload_timeout));
        gate.texts("--reload-attempts", [reload_attempts.to_string()]);
        gate.time("--retry-min", Some(*retry_min));
        gate.time("--retry-max", Some(*retry_max));
        gate.time("--reload-min-interval", Some(*reload_min_interval));
        gate.time("--reload-splay", Some(*reload_splay));
    }
}
