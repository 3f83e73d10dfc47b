//! Where the API server is and who we are: kube's `Config`, from the kubeconfig that is named or, without one, from what
//! the kubelet gives a container. Never guessed, as `Config::infer` does.
//!
//! A kubeconfig is read by kube's types and brought into the form that kube's layers take: files become data, blanks
//! become absent. kube itself sends an unknown user as nobody, lets `token` win over `tokenFile`, does not trim a token,
//! and matches `NO_PROXY` against the proxy. No error quotes a value but names of contexts, clusters and users.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use kube::config::{AuthInfo, Cluster, Config, Context, Kubeconfig, KubeconfigError};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use secrecy::{ExposeSecret, SecretString};

use super::plugin::Plugin;
use crate::net::proxy::{Intercept, Proxies};

/// Where the kubelet mounts a service account's token, CA and namespace
/// (pkg/serviceaccount: `DefaultAPITokenMountPath`).
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

const NO_SERVICE_ACCOUNT: &str = "; the Pod needs its service account's token (automountServiceAccountToken: true), \
                                  or give --kubeconfig";

/// How to reach the API server. Never guessed: in-cluster, unless a kubeconfig is named.
#[derive(Clone, Debug, Default)]
pub struct ClientConfig {
    pub kubeconfig: Option<PathBuf>,
    /// `--context`; the kubeconfig's current one if `None`.
    pub context: Option<String>,
    /// What stands for a kubeconfig inside a cluster.
    pub in_cluster: InCluster,
    pub proxies: Proxies,
    pub deadlines: Deadlines,
}

/// What the kubelet gives a container to reach the API server with. The default is what it gave to this one.
#[derive(Clone, Debug)]
pub struct InCluster {
    /// `KUBERNETES_SERVICE_HOST`.
    pub host: Option<String>,
    /// `KUBERNETES_SERVICE_PORT`.
    pub port: Option<String>,
    /// The folder with `token`, `ca.crt` and `namespace`.
    pub directory: PathBuf,
}

impl Default for InCluster {
    fn default() -> Self {
        Self {
            host: std::env::var("KUBERNETES_SERVICE_HOST").ok(),
            port: std::env::var("KUBERNETES_SERVICE_PORT").ok(),
            directory: SERVICE_ACCOUNT.into(),
        }
    }
}

/// How long the API server may be silent.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// From asking (connect and TLS handshake included) to the first line of the answer, and between two pieces of it.
    pub answer: Duration,
    /// Between two pieces of a watch. The server sends a bookmark about every minute
    /// (apiserver/pkg/storage/cacher: `defaultBookmarkFrequency`), but the second one of a watch two minutes after the
    /// first (seen on Kubernetes 1.36), so that silence for longer is a hang.
    pub quiet: Duration,
    /// A watch that lived for less ended as soon as it began. After a longer life it is resumed at once.
    pub brief: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { answer: Duration::from_secs(30), quiet: Duration::from_secs(150), brief: Duration::from_secs(5) }
    }
}

/// Why there is no client for the API server.
#[derive(Debug, thiserror::Error)]
pub enum KubeError {
    /// No kubeconfig was named, and this is no Pod. Fatal at start: nothing in a process's life changes it.
    #[error(
        "cannot find the API server: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not both set, \
         so this is not a Pod; run it in one, or give --kubeconfig"
    )]
    NotInCluster,
    /// A flag or a variable makes no sense. Fatal at start.
    #[error("{0}")]
    Usage(&'static str),
    /// The kubeconfig says nothing usable. Fatal at start, retried later (it may be in the middle of being written).
    #[error("--kubeconfig {path}: {problem}", path = .path.display())]
    Kubeconfig {
        path: PathBuf,
        /// What is wrong with it and what to do; no word of its content but names of contexts, clusters and users.
        problem: String,
    },
    /// A file cannot be read: the kubeconfig, or a certificate, key or token. Retried.
    #[error("cannot read {path}: {error}{remedy}", path = .path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        error: io::Error,
        /// What to do, or empty.
        remedy: &'static str,
    },
    /// What the files hold is unusable: a certificate, a key, a token, an exec plugin's answer. Retried.
    #[error("cannot use the credentials: {0}")]
    Credentials(String),
}

/// What it takes to reach an API server, and to be recognised by it. Without `Debug`, as it holds credentials.
pub(super) struct Settings {
    pub(super) config: Config,
    /// Sent instead of what `config` says.
    pub(super) token: Option<TokenFile>,
    /// Gives what `config` does not.
    pub(super) plugin: Option<Plugin>,
    pub(super) proxy: Option<Intercept>,
}

/// Read for each request: whoever wrote it will write a new one.
pub(super) struct TokenFile {
    path: PathBuf,
    /// The kubeconfig's own token, which counts as long as there is no file (client-go: `bearerAuthRoundTripper`).
    instead: Option<String>,
}

impl TokenFile {
    pub(super) fn read(&self) -> io::Result<String> {
        match (std::fs::read_to_string(&self.path), &self.instead) {
            (Ok(token), _) => Ok(token.trim().to_owned()),
            (Err(_), Some(token)) => Ok(token.clone()),
            (Err(error), None) => Err(error),
        }
    }
}

/// The namespace of sources that name none: the kubeconfig context's, or the Pod's own.
pub fn default_namespace(config: &ClientConfig) -> Result<String, KubeError> {
    if let Some(path) = &config.kubeconfig {
        let context = context(path, &read_kubeconfig(path)?, config.context.as_deref())?;
        return Ok(context.namespace.filter(|name| !name.is_empty()).unwrap_or_else(|| "default".to_owned()));
    }
    let path = config.in_cluster.directory.join("namespace");
    match std::fs::read_to_string(&path) {
        Ok(namespace) => Ok(namespace.trim().to_owned()),
        Err(error) => Err(KubeError::Unreadable { path, error, remedy: NO_SERVICE_ACCOUNT }),
    }
}

impl ClientConfig {
    /// The file or the folder that says who we are.
    pub(super) fn place(&self) -> PathBuf {
        self.kubeconfig.clone().unwrap_or_else(|| self.in_cluster.directory.clone())
    }

    /// Reads the files. Blocks.
    pub(super) fn settings(&self) -> Result<Settings, KubeError> {
        let mut settings = match &self.kubeconfig {
            Some(path) => from_kubeconfig(path, &read_kubeconfig(path)?, self.context.as_deref())?,
            None if self.context.is_some() => {
                return Err(KubeError::Usage("--context names a context of a kubeconfig: give --kubeconfig as well"));
            }
            None => from_service_account(&self.in_cluster)?,
        };
        if settings.proxy.is_none() {
            settings.proxy = self.proxies.of(&settings.config.cluster_url);
        }
        Ok(settings)
    }
}

fn from_service_account(pod: &InCluster) -> Result<Settings, KubeError> {
    let (Some(host), Some(port)) = (&pod.host, &pod.port) else { return Err(KubeError::NotInCluster) };
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let Ok(server) = format!("https://{host}:{port}").parse() else {
        return Err(KubeError::Usage(
            "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT do not name a host and a port",
        ));
    };
    let read = |path: &Path| {
        let unreadable = |error| KubeError::Unreadable { path: path.to_owned(), error, remedy: NO_SERVICE_ACCOUNT };
        std::fs::read(path).map_err(unreadable)
    };
    let mut config = Config::new(server);
    let authority = read(&pod.directory.join("ca.crt"))?;
    config.root_cert = Some(certificates(&authority).map_err(|problem| credentials(&pod.directory, problem))?);
    let token = pod.directory.join("token");
    read(&token)?;
    Ok(Settings { config, token: Some(TokenFile { path: token, instead: None }), plugin: None, proxy: None })
}

fn read_kubeconfig(path: &Path) -> Result<Kubeconfig, KubeError> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| KubeError::Unreadable { path: path.to_owned(), error, remedy: "" })?;
    Kubeconfig::from_yaml(&text).map_err(|error| {
        let location = if let KubeconfigError::Parse(error) = &error { error.location() } else { None };
        match location {
            Some(at) => unusable(path, format!("not a kubeconfig, at line {}, column {}", at.line(), at.column())),
            None => unusable(path, "not a kubeconfig"),
        }
    })
}

/// The context of that name, or the current one.
fn context(path: &Path, kubeconfig: &Kubeconfig, name: Option<&str>) -> Result<Context, KubeError> {
    let current = kubeconfig.current_context.as_deref().filter(|name| !name.is_empty());
    let Some(name) = name.or(current) else {
        return Err(unusable(path, "it has no current-context; give --context"));
    };
    let found = kubeconfig.contexts.iter().find(|context| context.name == *name);
    found
        .map(|found| found.context.clone().unwrap_or_default())
        .ok_or_else(|| unusable(path, format!("it has no context {name:?}; --context or current-context names one")))
}

/// What a context says. Files beside the kubeconfig are read; relative paths start at its directory.
fn from_kubeconfig(path: &Path, kubeconfig: &Kubeconfig, name: Option<&str>) -> Result<Settings, KubeError> {
    let context = context(path, kubeconfig, name)?;
    let unknown =
        |what: &str, name: &str| unusable(path, format!("it has no {what} {name:?}, which the context names"));
    let found = kubeconfig.clusters.iter().find(|each| each.name == context.cluster);
    let found = found.ok_or_else(|| unknown("cluster", &context.cluster))?;
    let cluster = found.cluster.clone().unwrap_or_default();
    let user = match context.user.as_deref().filter(|name| !name.is_empty()) {
        // Asked for as nobody, an API server that lets nobody read would say nothing of the user that is missing.
        Some(name) => {
            let found = kubeconfig.auth_infos.iter().find(|each| each.name == name);
            found.ok_or_else(|| unknown("user", name))?.auth_info.clone().unwrap_or_default()
        }
        None => AuthInfo::default(),
    };
    let (cluster, root_cert) = complete(path, cluster)?;
    let url = server(cluster.server.as_deref()).ok_or_else(|| unusable(path, "its cluster has no valid server URL"))?;
    let proxy = match filled(cluster.proxy_url.as_deref()) {
        Some(proxy) => Some(
            // A proxy that is named holds whatever NO_PROXY says, as in client-go.
            Matcher::builder().all(proxy.to_owned()).build().intercept(&url).ok_or_else(|| {
                unusable(path, "its proxy-url is none: it starts with http://, https:// or socks5://")
            })?,
        ),
        None => None,
    };
    if user.auth_provider.is_some() {
        return Err(unusable(path, "auth-provider is not supported, as in kubectl since 1.26: use an exec plugin"));
    }
    let mut user = with_identity(path, user)?;
    let plugin = user.exec.take().map(|exec| Plugin::new(path, exec, &cluster)).transpose()?;
    let token = filled(user.token_file.take().as_deref()).map(|file| TokenFile {
        path: beside(path, file),
        instead: user.token.take().map(|token| token.expose_secret().to_owned()),
    });
    // Else kube reads the system's CAs also where no certificate is checked, and fails in an image that has none.
    let unchecked = url.scheme_str() == Some("http") || cluster.insecure_skip_tls_verify == Some(true);
    let mut config = Config::new(url);
    config.root_cert = root_cert.or(unchecked.then(Vec::new));
    config.accept_invalid_certs = cluster.insecure_skip_tls_verify.unwrap_or_default();
    config.tls_server_name = cluster.tls_server_name;
    config.auth_info = user;
    Ok(Settings { config, token, plugin, proxy })
}

/// The URL of a server: scheme and host are there, and credentials in it (which no API server asks for) are not.
fn server(url: Option<&str>) -> Option<Uri> {
    let mut parts = url?.parse::<Uri>().ok()?.into_parts();
    let authority = parts.authority.take()?;
    let (_, host) = authority.as_str().rsplit_once('@').unwrap_or(("", authority.as_str()));
    parts.authority = Some(host.parse().ok()?);
    let known = matches!(parts.scheme.as_ref().map(hyper::http::uri::Scheme::as_str), Some("http" | "https"));
    Uri::from_parts(parts).ok().filter(|url| known && url.host().is_some_and(|host| !host.is_empty()))
}

/// The cluster with its CA as data, and the CA's certificates.
fn complete(path: &Path, cluster: Cluster) -> Result<(Cluster, Option<Certificates>), KubeError> {
    let Cluster { certificate_authority_data: data, certificate_authority: file, .. } = &cluster;
    let authority = pem(path, "certificate-authority", data.as_deref(), file.as_deref())?;
    let root_cert = authority.as_deref().map(certificates).transpose().map_err(|problem| credentials(path, problem))?;
    let cluster = Cluster {
        certificate_authority: None,
        certificate_authority_data: authority.map(|authority| STANDARD.encode(authority)),
        tls_server_name: cluster.tls_server_name.filter(|name| !name.is_empty()),
        ..cluster
    };
    Ok((cluster, root_cert))
}

/// The user with the client's certificate as data, blanks as absence, and one kind of credentials alone.
fn with_identity(path: &Path, user: AuthInfo) -> Result<AuthInfo, KubeError> {
    let AuthInfo { client_certificate_data: data, client_certificate: file, .. } = &user;
    let certificate = pem(path, "client-certificate", data.as_deref(), file.as_deref())?;
    let data = user.client_key_data.as_ref().map(ExposeSecret::expose_secret);
    let key = pem(path, "client-key", data, user.client_key.as_deref())?;
    match (&certificate, &key) {
        (Some(_), None) => return Err(credentials(path, "it has no client-key")),
        (None, Some(_)) => return Err(credentials(path, "it has no client-certificate")),
        _ => {}
    }
    let text = |text: Option<String>| text.filter(|text| !text.is_empty());
    let secret = |secret: Option<SecretString>| secret.filter(|secret| !secret.expose_secret().is_empty());
    let (token, token_file) = (secret(user.token), text(user.token_file));
    let username = text(user.username).filter(|_| token.is_none() && token_file.is_none());
    Ok(AuthInfo {
        client_certificate: None,
        client_certificate_data: certificate.map(|certificate| STANDARD.encode(certificate)),
        client_key: None,
        client_key_data: key.map(|key| STANDARD.encode(key).into()),
        password: username.is_some().then(|| user.password.unwrap_or_default()),
        username,
        token,
        token_file,
        impersonate: text(user.impersonate),
        impersonate_uid: text(user.impersonate_uid),
        ..user
    })
}

/// In DER, as kube takes them.
type Certificates = Vec<Vec<u8>>;

/// The certificates in a text of PEM.
fn certificates(pem: &[u8]) -> Result<Certificates, &'static str> {
    let certificates = CertificateDer::pem_slice_iter(pem).map(|found| found.map(|found| found.to_vec()));
    let certificates: Vec<_> =
        certificates.collect::<Result<_, _>>().map_err(|_| "its certificate-authority is not PEM")?;
    if certificates.is_empty() { Err("its certificate-authority holds no PEM certificates") } else { Ok(certificates) }
}

fn filled(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

/// Where a path in a kubeconfig leads.
pub(super) fn beside(kubeconfig: &Path, path: &str) -> PathBuf {
    kubeconfig.parent().unwrap_or(Path::new("")).join(path)
}

/// A field's PEM: its `-data`, or else the file that it names. The file's path is not shown: some write the key or token
/// itself there.
fn pem(path: &Path, field: &str, data: Option<&str>, file: Option<&str>) -> Result<Option<Vec<u8>>, KubeError> {
    if let Some(data) = filled(data) {
        // Editors and generators wrap it.
        let data: String = data.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        let decoded = STANDARD.decode(data);
        return decoded.map(Some).map_err(|_| credentials(path, format!("its {field}-data is not base64")));
    }
    let read = filled(file).map(|file| std::fs::read(beside(path, file))).transpose();
    read.map_err(|error| credentials(path, format!("the file that its {field} names cannot be read: {error}")))
}

/// It will not do as it stands.
pub(super) fn unusable(path: &Path, problem: impl Into<String>) -> KubeError {
    KubeError::Kubeconfig { path: path.to_owned(), problem: problem.into() }
}

/// Credentials come and go while the kubeconfig stays: they are waited for.
pub(super) fn credentials(path: &Path, problem: impl AsRef<str>) -> KubeError {
    KubeError::Credentials(format!("{}: {}", path.display(), problem.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), CA).unwrap();
        std::fs::write(dir.path().join("token"), "from the file\n").unwrap();
        let path = dir.path().join("config");
        std::fs::write(&path, text).unwrap();
        let config = ClientConfig { kubeconfig: Some(path), ..ClientConfig::default() };
        config.settings().map_err(|error| error.to_string())
    }

    /// PEM of a certificate, as far as that is looked at.
    const CA: &str = "-----BEGIN CERTIFICATE-----\nYWI=\n-----END CERTIFICATE-----\n";

    fn data(text: Option<&str>) -> Vec<u8> {
        STANDARD.decode(text.unwrap()).unwrap()
    }

    fn with(cluster: &str, user: &str) -> String {
        format!(
            "current-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: 'https://host', {cluster}}}}}]\nusers: [{{name: u, user: {{{user}}}}}]"
        )
    }

    #[test]
    fn what_kubectl_takes_is_taken() {
        let settings = read(&with("certificate-authority: ca.pem, tls-server-name: other", "username: a, password: b"));
        let Ok(Settings { config, .. }) = settings else { panic!("not taken") };
        assert_eq!((config.root_cert, config.cluster_url.host()), (Some(vec![b"ab".to_vec()]), Some("host")));
        assert_eq!(config.tls_server_name.as_deref(), Some("other"));
        let user = config.auth_info;
        assert_eq!((user.username.as_deref(), user.password.unwrap().expose_secret()), (Some("a"), "b"));
        // Wrapped, as generators leave it; and of a pair, the data before the file.
        let wrapped = STANDARD.encode(CA);
        let wrapped: Vec<_> = wrapped.as_bytes().chunks(20).map(|line| std::str::from_utf8(line).unwrap()).collect();
        let wrapped = wrapped.join("\\n  ");
        let settings = read(&with(
            &format!(
                "certificate-authority-data: \"{wrapped}\\n\", certificate-authority: none, insecure-skip-tls-verify: true"
            ),
            "token: t, as: x, as-uid: u, as-groups: [g, h], client-certificate-data: 'YQ==', client-key-data: 'Yg=='",
        ));
        let Ok(Settings { config, .. }) = settings else { panic!("not taken: {:?}", settings.err()) };
        assert_eq!(config.root_cert, Some(vec![b"ab".to_vec()]));
        let user = config.auth_info;
        assert!(config.accept_invalid_certs && user.token.unwrap().expose_secret() == "t");
        assert_eq!((user.impersonate.as_deref(), user.impersonate_uid.as_deref()), (Some("x"), Some("u")));
        assert_eq!(user.impersonate_groups.unwrap(), ["g", "h"]);
        assert_eq!(data(user.client_certificate_data.as_deref()), b"a");
        assert_eq!(data(user.client_key_data.as_ref().map(ExposeSecret::expose_secret)), b"b");
        // As editors and generators leave them.
        let text = with("certificate-authority: null", "token:").replace("users:", "preferences: {}\nusers:");
        let Ok(Settings { config, token, .. }) = read(&text) else { panic!("not taken: {:?}", read(&text).err()) };
        assert!(config.root_cert.is_none() && config.auth_info.token.is_none() && token.is_none());
    }

    #[test]
    fn file_of_a_token_wins_over_the_token_beside_it_as_long_as_it_is_there() {
        for (file, expected) in [("token", "from the file"), ("absent", "stale")] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("token"), "from the file\n").unwrap();
            let path = dir.path().join("config");
            std::fs::write(&path, with("", &format!("token: stale, tokenFile: {file}, username: a"))).unwrap();
            let config = ClientConfig { kubeconfig: Some(path), ..ClientConfig::default() };
            let Ok(Settings { config, token, .. }) = config.settings() else { panic!("not taken") };
            assert!(config.auth_info.token.is_none() && config.auth_info.username.is_none());
            assert_eq!(token.unwrap().read().unwrap(), expected);
        }
    }

    #[test]
    fn proxy_is_the_kubeconfigs() {
        let Ok(settings) = read(&with("proxy-url: 'socks5://a:b@proxy'", "")) else { panic!("not taken") };
        let proxy = settings.proxy.unwrap();
        assert_eq!((proxy.uri().to_string().as_str(), proxy.raw_auth()), ("socks5://proxy/", Some(("a", "b"))));
    }

    #[test]
    fn what_is_not_taken_is_named_without_a_value() {
        for (cluster, user, expected) in [
            ("proxy-url: 'ftp://hunter2@p'", "", "its proxy-url is none"),
            ("certificate-authority-data: 'aHVudGVyMg=='", "", "its certificate-authority holds no PEM certificates"),
            ("", "auth-provider: {name: hunter2}", "auth-provider is not supported"),
            ("certificate-authority-data: 'hunter2!'", "", "its certificate-authority-data is not base64"),
            (
                "",
                "client-key: hunter2, client-certificate: ca.pem",
                "the file that its client-key names cannot be read",
            ),
            ("", "client-certificate: ca.pem", "it has no client-key"),
            ("", "exec: {command: hunter2, apiVersion: v1alpha1}", "its exec plugin's apiVersion is none of"),
        ] {
            let error = read(&with(cluster, user)).err().unwrap();
            assert!(error.contains(expected) && !error.contains("hunter2"), "{error}");
        }
        let error = read(&with("", "").replace("name: c, cluster", "name: d, cluster")).err().unwrap();
        assert!(error.contains("it has no cluster \"c\""), "{error}");
        let error = read(&with("", "token: t").replace("name: u, user", "name: v, user")).err().unwrap();
        assert!(error.contains("it has no user \"u\", which the context names"), "{error}");
        let error = read("kind: Config\ncurrent-context: ''").err().unwrap();
        assert!(error.contains("no current-context"), "{error}");
    }
}
