//! Who may ask `--listen`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{Checked, check_goes_with};
use crate::net::server::{GuardConfig, TlsConfig};

/// TLS and users of `--listen`.
#[derive(Debug, Args)]
#[expect(clippy::struct_field_names, reason = "they are the flags' names")]
#[command(next_help_heading = "TLS and users of --listen")]
pub struct ListenerArgs {
    /// Serve --listen by TLS, with the certificate in this file
    ///
    /// PEM. This file and those below are read anew when they change.
    #[arg(long, value_name = "PATH")]
    pub listen_cert_file: Option<PathBuf>,
    /// Key of --listen-cert-file [default: in that file]
    #[arg(long, value_name = "PATH")]
    pub listen_key_file: Option<PathBuf>,
    /// Serve --listen only to clients whose certificate one in this file has signed
    #[arg(long, value_name = "PATH")]
    pub listen_client_ca_file: Option<PathBuf>,
    /// The oldest TLS that --listen speaks [default: 1.2]
    #[arg(long, value_name = "VERSION")]
    pub listen_min_tls: Option<TlsVersion>,
    /// Serve --listen, probes too, only to the users in this file, with their passwords
    ///
    /// YAML, as in a web configuration of Prometheus: basic_auth_users, each NAME with a bcrypt hash.
    #[arg(long, value_name = "PATH")]
    pub listen_users_file: Option<PathBuf>,
}

/// `--listen-min-tls`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TlsVersion {
    /// TLS 1.2 and 1.3
    #[value(name = "1.2")]
    OneTwo,
    /// TLS 1.3 alone
    #[value(name = "1.3")]
    OneThree,
}

impl ListenerArgs {
    pub(super) fn config(&self) -> Checked<Option<GuardConfig>> {
        check_goes_with(
            "--listen-cert-file",
            self.listen_cert_file.is_some(),
            &[
                ("--listen-key-file", self.listen_key_file.is_some()),
                ("--listen-client-ca-file", self.listen_client_ca_file.is_some()),
                ("--listen-min-tls", self.listen_min_tls.is_some()),
            ],
        )?;
        let tls = self.listen_cert_file.clone().map(|cert_file| TlsConfig {
            cert_file,
            key_file: self.listen_key_file.clone(),
            client_ca_file: self.listen_client_ca_file.clone(),
            newest_only: self.listen_min_tls == Some(TlsVersion::OneThree),
        });
        let config = GuardConfig { tls, users_file: self.listen_users_file.clone() };
        Ok(Some(config).filter(|config| *config != GuardConfig::default()))
    }
}
