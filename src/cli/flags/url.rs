//! What is fetched over HTTP as a source.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::archive::{ARCHIVE, ArchiveArgs, FALLBACK};
use super::{Checked, UsageError, check_goes_with, usage};
use crate::cli::values::duration;
use crate::net::credentials::Header;
use crate::net::endpoint::{Endpoint, ParseEndpointError};
use crate::net::proxy::Proxies;
use crate::net::request::{HttpConfig, Owner};
use crate::net::store::address::Address;
use crate::net::store::kind::Kind;
use crate::net::store::{self, Access, Environment, Store};
use crate::source::url::{Config, Hosts, Prefix, Signed, Source, keys};

/// The shortest `--url-poll`.
const LEAST: Duration = Duration::from_millis(100);

/// Sources behind URLs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sources behind URLs")]
pub struct UrlArgs {
    /// Watch what is behind this http, https, s3, gs or az URL: one key, the last segment of its path
    ///
    /// s3://BUCKET/KEY is an object of a store that speaks S3, gs://BUCKET/KEY one of Google Cloud Storage, az://CONTAINER/KEY one of Azure Blob Storage, and with a / at the end all that are below it, each a key by the rest of its path: who asks, and another
    /// server, come from the environment, as the clouds' own tools have them. Of a .tar, .tar.gz or .tgz, each file in it is a key. May be repeated. NAME is what templates call it [default: that segment].
    /// It is fetched whole or not at all.
    #[arg(long = "watch-url", value_name = "[NAME=]URL")]
    pub watch_urls: Vec<String>,
    /// Without templates: fetch what the keys x.url of objects and directories name, as files x, from these hosts alone
    ///
    /// Several have commas between. Without a port, each is meant. User and password come from the URL, and from nowhere else. Fetched by
    /// --url-poll and --url-timeout; a failed fetch keeps what was there.
    #[arg(long = "url-hosts", value_name = "HOST[:PORT]")]
    pub url_hosts: Vec<String>,
    /// Ask each URL this often, a tenth more or less, whether it has something new
    #[arg(long, value_name = "D", default_value = "1m", value_parser = duration)]
    pub url_poll: Duration,
    /// Give up a fetch that has not ended in this time
    #[arg(long, value_name = "D", default_value = "5m", value_parser = duration)]
    pub url_timeout: Duration,
    /// What the --watch-url of this name has is secret. May be repeated
    #[arg(long = "secret-url", value_name = "NAME")]
    pub secret_urls: Vec<String>,
    /// Use what the --watch-url of this name has, or the only one, if a minisign public key in this file has signed it. May be repeated
    ///
    /// The signature is what is behind the URL with .minisig at the end of its path. The file is read at each fetch; several keys may stand in
    /// it, one below the other, and any of them will do.
    #[arg(long = "url-key", value_name = "[NAME=]FILE")]
    pub url_keys: Vec<String>,
    /// Send this header to the --watch-url of this name, or to the only one; K: @FILE is read at each fetch. May be repeated
    #[arg(long = "url-header", value_name = "[NAME=]K: V")]
    pub url_headers: Vec<String>,
    /// Ask object stores as nobody: for public buckets
    #[arg(long)]
    pub url_anonymous: bool,
    /// Ask s3:// and az:// URLs by the identity of this node, where the environment has no other identity
    ///
    /// Its metadata service must answer in Pods. One of the Pod's own (IRSA, EKS Pod Identity, AKS workload identity) is better: it can do less.
    #[arg(long)]
    pub url_instance_identity: bool,
    /// Trust the certificates in this file for --watch-url and --url-hosts, and no others
    #[arg(long, value_name = "PATH")]
    pub url_ca_file: Option<PathBuf>,
    /// Authenticate to --watch-url with this TLS certificate
    #[arg(long, value_name = "PATH")]
    pub url_cert_file: Option<PathBuf>,
    /// Key of --url-cert-file [default: in that file]
    #[arg(long, value_name = "PATH")]
    pub url_key_file: Option<PathBuf>,
}

/// What is behind a URL and is no source.
#[derive(Default)]
pub(super) struct BehindUrls {
    pub archive: Option<(Endpoint, Arc<HttpConfig>)>,
    pub fallback: Option<Source>,
}

/// What stands before a `=`, where that comes before all else that a URL or a header may hold.
fn named(text: &str) -> (Option<&str>, &str) {
    match text.split_once('=') {
        Some((name, rest)) if !name.contains(['/', ':']) => (Some(name), rest),
        _ => (None, text),
    }
}

const SCHEMES: &str = "a URL starts with http://, https://, s3://, gs:// or az://";

fn server(url: &str) -> Result<Endpoint, String> {
    let endpoint: Endpoint = url.parse().map_err(|error| match error {
        ParseEndpointError::Credentials => {
            "a URL must not hold credentials, as command lines are readable: use --url-header".to_owned()
        }
        ParseEndpointError::Scheme => SCHEMES.to_owned(),
        error => error.to_string(),
    })?;
    if endpoint.is_unix() { Err(SCHEMES.to_owned()) } else { Ok(endpoint) }
}

/// Where a file is, and what it is called.
fn of_server(url: &str) -> Result<(Endpoint, String), String> {
    let endpoint = server(url)?;
    let last = endpoint.last_segment().filter(|last| !last.starts_with("..")).map(str::to_owned);
    let last = last.ok_or("its path has no last segment to call the key by, as app.conf in https://host/app.conf")?;
    Ok((endpoint, last))
}

/// The same of an object.
fn of_object(address: &Address, environment: &Environment) -> Result<(Endpoint, String), String> {
    let endpoint = store::endpoint(address, environment).ok_or("the object's key is too long for a URL")?;
    Ok((endpoint, address.last_segment().to_owned()))
}

impl UrlArgs {
    pub(super) fn is_given(&self) -> bool {
        !self.watch_urls.is_empty()
    }

    /// One for each URL, whose index is not set; and what else is behind one.
    pub(super) fn sources(&self, may_be_empty: bool, archive: &ArchiveArgs) -> Checked<(Vec<Source>, BehindUrls)> {
        self.check(archive.is_given())?;
        let environment = Environment::of_process();
        let mut addresses = Vec::new();
        let mut sources: Vec<Source> = Vec::new();
        let watched = self.watch_urls.iter().enumerate().map(|(index, url)| {
            let (name, url) = named(url);
            (format!("--watch-url (number {})", index + 1), name, url)
        });
        let others = archive.urls().map(|(flag, name, url)| (flag.to_owned(), Some(name), url));
        for (flag, name, url) in watched.chain(others) {
            // It is not quoted: it may hold a credential.
            let refused = |why: &str| UsageError(format!("{flag}: {why}"));
            let address = Address::parse(url).transpose().map_err(|error| refused(&error.to_string()))?;
            let (endpoint, key) = match &address {
                Some(address) => of_object(address, &environment),
                None if flag == ARCHIVE.0 => server(url).map(|endpoint| (endpoint, String::new())),
                None => of_server(url),
            }
            .map_err(|why| refused(&why))?;
            addresses.push(address);
            let name = name.unwrap_or(&key).to_owned();
            if name.is_empty() {
                return Err(refused("the name before the '=' is empty"));
            }
            if sources.iter().any(|other| other.name == name) {
                return if flag.starts_with("--watch-url") {
                    usage(format!(
                        "two --watch-url have the name {name:?}: give one another name, as --watch-url NAME=URL"
                    ))
                } else {
                    usage(format!(
                        "a --watch-url has the name {name:?}, which is that of {flag}: give it another one, as --watch-url \
                         NAME=URL"
                    ))
                };
            }
            let secret = self.secret_urls.contains(&name);
            sources.push(Source {
                source: 0,
                name,
                endpoint,
                key,
                prefix: None,
                http: Arc::default(),
                signed: None,
                secret,
                may_be_empty,
                linked: false,
            });
        }
        self.add_http(&mut sources)?;
        self.add_stores(&mut sources, &addresses, &environment)?;
        self.add_keys(&mut sources)?;
        let mut take = |(flag, name): (&str, &str)| {
            let is_given = archive.urls().any(|(given, ..)| given == flag);
            let at = sources.iter().position(|source| is_given && source.name == name)?;
            Some(sources.remove(at))
        };
        let kept = take(ARCHIVE);
        if kept.as_ref().is_some_and(|kept| kept.signed.is_some() || kept.secret) {
            return usage(
                "--url-key archive and --secret-url archive: nothing is read from --archive; see --archive-secrets",
            );
        }
        let (fallback, archive) = (take(FALLBACK), kept.map(|kept| (kept.endpoint, kept.http)));
        Ok((sources, BehindUrls { archive, fallback }))
    }

    fn check(&self, others: bool) -> Checked<()> {
        check_goes_with(
            "--watch-url",
            self.is_given() || others,
            &[
                ("--secret-url", !self.secret_urls.is_empty()),
                ("--url-key", !self.url_keys.is_empty()),
                ("--url-header", !self.url_headers.is_empty()),
                ("--url-anonymous", self.url_anonymous),
                ("--url-instance-identity", self.url_instance_identity),
                ("--url-ca-file", self.url_ca_file.is_some() && self.url_hosts.is_empty()),
                ("--url-cert-file", self.url_cert_file.is_some()),
                ("--url-key-file", self.url_key_file.is_some()),
            ],
        )?;
        if self.url_cert_file.is_none() && self.url_key_file.is_some() {
            return usage("--url-key-file needs --url-cert-file");
        }
        if self.url_poll < LEAST {
            return usage(format!("--url-poll must be at least {LEAST:?}, or servers would be asked in a busy loop"));
        }
        if self.url_timeout.is_zero() {
            return usage("--url-timeout must not be 0");
        }
        Ok(())
    }

    fn add_http(&self, sources: &mut [Source]) -> Checked<()> {
        let names: BTreeSet<_> = sources.iter().map(|source| source.name.clone()).collect();
        let unknown = |flag: &str, name: &str| usage(format!("{flag} {name}: no --watch-url has this name"));
        if let Some(name) = self.secret_urls.iter().find(|name| !names.contains(*name)) {
            return unknown("--secret-url", name);
        }
        let mut headers: Vec<(String, Header)> = Vec::new();
        for (index, header) in self.url_headers.iter().enumerate() {
            let (name, header) = named(header);
            let name = match (name, sources.first()) {
                (Some(name), _) if names.contains(name) => name.to_owned(),
                (Some(name), _) => return unknown("--url-header", name),
                (None, Some(only)) if sources.len() == 1 => only.name.clone(),
                (None, _) => {
                    return usage(
                        "--url-header without a name is for one --watch-url: with several, say which one is to get it, as \
                         --url-header 'NAME=Authorization: @FILE'",
                    );
                }
            };
            let header =
                header.parse().map_err(|error| UsageError(format!("--url-header (number {}): {error}", index + 1)))?;
            headers.push((name, header));
        }
        let proxies = Proxies::default();
        for source in sources {
            let own = headers.iter().filter(|(name, _)| *name == source.name).map(|(_, header)| header.clone());
            source.http = Arc::new(HttpConfig {
                owner: Owner::Url,
                headers: own.collect(),
                ca_file: self.url_ca_file.clone(),
                cert_file: self.url_cert_file.clone(),
                key_file: self.url_key_file.clone(),
                proxies: Some(proxies.clone()),
                ..HttpConfig::default()
            });
        }
        Ok(())
    }

    fn add_stores(
        &self,
        sources: &mut [Source],
        addresses: &[Option<Address>],
        environment: &Environment,
    ) -> Checked<()> {
        let mut kinds = addresses.iter().flatten().map(|address| address.kind);
        if self.url_anonymous && kinds.clone().next().is_none() {
            return usage("--url-anonymous is for s3://, gs:// and az:// URLs, and no URL here is one");
        }
        if self.url_instance_identity && !kinds.any(|kind| kind != Kind::Gs) {
            return usage("--url-instance-identity is for s3:// and az:// URLs, and no URL here is one");
        }
        if self.url_anonymous && self.url_instance_identity {
            return usage("--url-anonymous and --url-instance-identity contradict each other: give one of them");
        }
        let access = Access { anonymous: self.url_anonymous, instance_identity: self.url_instance_identity };
        for (source, address) in sources.iter_mut().zip(addresses) {
            let Some(address) = address else { continue };
            let store = Store::new(address, environment, access, (*source.http).clone());
            source.http = Arc::clone(store.http());
            source.prefix = address.is_prefix().then(|| Prefix { store, key: address.key.clone() });
        }
        Ok(())
    }

    /// Of each --url-key.
    pub(crate) fn key_files(&self) -> impl Iterator<Item = &Path> {
        self.url_keys.iter().map(|key| Path::new(named(key).1))
    }

    fn add_keys(&self, sources: &mut [Source]) -> Checked<()> {
        for (index, key) in self.url_keys.iter().enumerate() {
            let (name, file) = named(key);
            let flag = format!("--url-key (number {})", index + 1);
            if file.is_empty() {
                return usage(format!("{flag}: the file's path is missing, as --url-key NAME=FILE"));
            }
            let only = sources.len() == 1;
            let source = match name {
                Some(name) => sources.iter_mut().find(|source| source.name == name),
                None => sources.first_mut().filter(|_| only),
            };
            let Some(source) = source else {
                return match name {
                    Some(name) => usage(format!("--url-key {name}: no --watch-url has this name")),
                    None => usage(
                        "--url-key without a name is for one --watch-url: with several, say whose content it verifies, as \
                         --url-key NAME=FILE",
                    ),
                };
            };
            if source.prefix.is_some() {
                return usage(format!(
                    "{flag}: {} is a prefix, whose objects have no signature as a whole: sign a bundle, as web.tar.gz",
                    source.name
                ));
            }
            if source.signed.is_some() {
                return usage(format!("{flag}: {} has one already; put all its keys into one file", source.name));
            }
            source.signed = Signed::by(file.into(), &source.endpoint);
            if source.signed.is_none() {
                return usage(format!("{flag}: the URL is too long for the name of a signature beside it"));
            }
        }
        Ok(())
    }

    /// What becomes of `.url` keys. `copied`: whether objects or directories are; `templated`: whether by templates.
    pub(super) fn keys(&self, copied: bool, templated: bool, may_be_empty: bool) -> Checked<Option<keys::Config>> {
        let mut hosts = Hosts::default();
        for given in &self.url_hosts {
            hosts.extend(given.parse().map_err(|error| UsageError(format!("--url-hosts: {error}")))?);
        }
        if hosts.is_empty() {
            return Ok(None);
        }
        if templated {
            return usage(
                "--url-hosts is for plain copies, and --template or --envsubst renders instead: give one of them",
            );
        }
        if !copied {
            return usage(
                "--url-hosts is for keys of --configmap, --secret, --selector and --watch-dir, and none is given",
            );
        }
        Ok(Some(keys::Config { hosts, ca_file: self.url_ca_file.clone(), proxies: Proxies::default(), may_be_empty }))
    }

    pub(super) fn config(&self, sources: Vec<Source>, max_size: u64, keys: Option<keys::Config>) -> Config {
        Config { sources, poll: self.url_poll, timeout: self.url_timeout, max_size, keys }
    }
}
