//! A kubeconfig, as far as Trimtab follows it, and what one says about the way to an API server. The shapes are
//! `k8s.io/client-go/tools/clientcmd/api/v1`; what is not here is skipped. None of these types has a `Debug`, as they
//! hold credentials, and no error quotes a value but names of contexts and clusters.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use serde_json::json;

use super::client::KubeError;

/// What `kind: ExecCredential` has been in since Kubernetes 1.22; older ones are gone since 1.24.
const EXEC_VERSIONS: [&str; 2] = ["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"];

/// The whole file.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Kubeconfig {
    #[serde(default)]
    current_context: Option<String>,
    #[serde(default)]
    contexts: Option<Vec<NamedContext>>,
    #[serde(default)]
    clusters: Option<Vec<NamedCluster>>,
    #[serde(default)]
    users: Option<Vec<NamedUser>>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    #[serde(default)]
    context: Option<Context>,
}

#[derive(Default, Deserialize)]
pub(super) struct Context {
    #[serde(default, deserialize_with = "text")]
    cluster: String,
    #[serde(default, deserialize_with = "text")]
    user: String,
    #[serde(default, deserialize_with = "text")]
    pub(super) namespace: String,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    #[serde(default)]
    cluster: Option<Cluster>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    #[serde(default, deserialize_with = "text")]
    server: String,
    #[serde(default, deserialize_with = "text")]
    tls_server_name: String,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
    #[serde(default, deserialize_with = "text")]
    certificate_authority: String,
    #[serde(default, deserialize_with = "text")]
    certificate_authority_data: String,
    #[serde(default, deserialize_with = "text")]
    proxy_url: String,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    #[serde(default)]
    user: Option<User>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    #[serde(default, deserialize_with = "text")]
    client_certificate: String,
    #[serde(default, deserialize_with = "text")]
    client_certificate_data: String,
    #[serde(default, deserialize_with = "text")]
    client_key: String,
    #[serde(default, deserialize_with = "text")]
    client_key_data: String,
    #[serde(default, deserialize_with = "text")]
    token: String,
    #[serde(default, deserialize_with = "text", rename = "tokenFile")]
    token_file: String,
    #[serde(default, deserialize_with = "text")]
    username: String,
    #[serde(default, deserialize_with = "text")]
    password: String,
    #[serde(default, deserialize_with = "text", rename = "as")]
    impersonate: String,
    #[serde(default)]
    as_groups: Vec<String>,
    #[serde(default)]
    exec: Option<Exec>,
    #[serde(default)]
    auth_provider: Option<IgnoredAny>,
}

/// A program that prints credentials.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Exec {
    #[serde(default)]
    api_version: String,
    pub(super) command: String,
    #[serde(default)]
    pub(super) args: Option<Vec<String>>,
    #[serde(default)]
    pub(super) env: Option<Vec<ExecVariable>>,
    #[serde(default)]
    provide_cluster_info: bool,
    /// What it finds in `KUBERNETES_EXEC_INFO`.
    #[serde(skip)]
    pub(super) info: String,
}

#[derive(Deserialize)]
pub(super) struct ExecVariable {
    pub(super) name: String,
    pub(super) value: String,
}

/// What such a program prints.
#[derive(Deserialize)]
pub(super) struct ExecCredential {
    pub(super) status: Option<ExecStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ExecStatus {
    /// RFC 3339; without one, they are good until they are refused.
    #[serde(default)]
    pub(super) expiration_timestamp: Option<String>,
    #[serde(default)]
    pub(super) token: Option<String>,
    /// PEM.
    #[serde(default)]
    pub(super) client_certificate_data: Option<String>,
    /// PEM.
    #[serde(default)]
    pub(super) client_key_data: Option<String>,
}

/// What it takes to reach an API server, and to be recognised by it.
#[derive(Default)]
pub(super) struct Settings {
    /// `https://HOST[:PORT][/PATH]`.
    pub(super) server: String,
    /// The name in the server's certificate, if not its host.
    pub(super) server_name: Option<String>,
    /// What the server's certificate is checked by, in PEM; the system's CAs without one.
    pub(super) authority: Option<Vec<u8>>,
    /// The server's certificate is not checked.
    pub(super) insecure: bool,
    pub(super) credentials: Credentials,
    /// The client's certificate and its key, in PEM.
    pub(super) identity: Option<(Vec<u8>, Vec<u8>)>,
    /// `Impersonate-User`, `Impersonate-Group`.
    pub(super) impersonate: Vec<(&'static str, String)>,
    /// Gives what `credentials` and `identity` do not.
    pub(super) exec: Option<Exec>,
}

/// What goes into the header `Authorization`.
#[derive(Default)]
pub(super) enum Credentials {
    #[default]
    None,
    Token(String),
    /// Read for each request: whoever wrote it will write a new one.
    TokenFile(PathBuf),
    Basic(String),
}

impl Kubeconfig {
    pub(super) fn read(path: &Path) -> Result<Self, KubeError> {
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|error| KubeError::Unreadable { path: path.to_owned(), error, remedy: "" })?;
        serde_saphyr::from_str(&text).map_err(|error| match error.location() {
            Some(at) => unusable(path, format!("not a kubeconfig, at line {}, column {}", at.line(), at.column())),
            None => unusable(path, "not a kubeconfig"),
        })
    }

    /// The context of that name, or the current one. `path`: of the file, for messages.
    pub(super) fn context(&mut self, path: &Path, name: Option<&str>) -> Result<Context, KubeError> {
        let current = self.current_context.as_deref().filter(|name| !name.is_empty());
        let Some(name) = name.or(current) else {
            return Err(unusable(path, "it has no current-context; give --context"));
        };
        let found = self.contexts.iter_mut().flatten().find(|context| context.name == *name);
        let found = found.map(|found| found.context.take().unwrap_or_default());
        found.ok_or_else(|| {
            unusable(path, format!("it has no context {name:?}; --context or current-context names one"))
        })
    }

    /// What a context says. Files beside the kubeconfig are read; relative paths start where it lies.
    pub(super) fn settings(mut self, path: &Path, context: Option<&str>) -> Result<Settings, KubeError> {
        let Context { cluster: name, user, .. } = self.context(path, context)?;
        let cluster = self.clusters.into_iter().flatten().find(|cluster| cluster.name == name);
        let cluster = cluster
            .ok_or_else(|| unusable(path, format!("it has no cluster {name:?}, which the context names")))?
            .cluster
            .unwrap_or_default();
        let user = self.users.into_iter().flatten().find(|each| each.name == user).and_then(|found| found.user);
        let user = user.unwrap_or_default();
        if !cluster.proxy_url.is_empty() {
            return Err(unusable(path, "proxies (proxy-url) are not supported"));
        }
        if user.auth_provider.is_some() {
            return Err(unusable(path, "auth-provider is not supported, as in kubectl since 1.26: use an exec plugin"));
        }
        let authority = pem(path, "certificate-authority", &cluster.certificate_authority_data, || {
            beside(path, &cluster.certificate_authority)
        })?;
        let certificate =
            pem(path, "client-certificate", &user.client_certificate_data, || beside(path, &user.client_certificate))?;
        let key = pem(path, "client-key", &user.client_key_data, || beside(path, &user.client_key))?;
        let identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => return Err(credentials(path, "it has no client-key")),
            (None, Some(_)) => return Err(credentials(path, "it has no client-certificate")),
        };
        let credentials = if !user.token.is_empty() {
            Credentials::Token(user.token)
        } else if let Some(path) = beside(path, &user.token_file) {
            Credentials::TokenFile(path)
        } else if !user.username.is_empty() {
            Credentials::Basic(STANDARD.encode(format!("{}:{}", user.username, user.password)))
        } else {
            Credentials::None
        };
        let exec = match user.exec {
            Some(exec) => Some(exec.informed(path, &cluster)?),
            None => None,
        };
        let groups = user.as_groups.into_iter().map(|group| ("impersonate-group", group));
        let as_user = Some(user.impersonate).filter(|user| !user.is_empty()).map(|user| ("impersonate-user", user));
        Ok(Settings {
            server: cluster.server,
            server_name: Some(cluster.tls_server_name).filter(|name| !name.is_empty()),
            authority,
            insecure: cluster.insecure_skip_tls_verify,
            credentials,
            identity,
            impersonate: as_user.into_iter().chain(groups).collect(),
            exec,
        })
    }
}

impl Exec {
    /// Made ready to be run: told of the cluster if it wants to be, and found beside the kubeconfig if it lies there.
    fn informed(mut self, path: &Path, cluster: &Cluster) -> Result<Self, KubeError> {
        if !EXEC_VERSIONS.contains(&self.api_version.as_str()) {
            return Err(unusable(
                path,
                format!("its exec plugin's apiVersion is none of {}", EXEC_VERSIONS.join(", ")),
            ));
        }
        let mut spec = json!({"interactive": false});
        if self.provide_cluster_info {
            spec["cluster"] = json!({
                "server": cluster.server,
                "tls-server-name": cluster.tls_server_name,
                "insecure-skip-tls-verify": cluster.insecure_skip_tls_verify,
                "certificate-authority-data": cluster.certificate_authority_data,
            });
        }
        let info = json!({"apiVersion": self.api_version, "kind": "ExecCredential", "spec": spec});
        self.info = info.to_string();
        if self.command.contains('/')
            && let Some(command) = beside(path, &self.command)
        {
            self.command = command.to_string_lossy().into_owned();
        }
        Ok(self)
    }
}

/// Text; none where nothing stands after the colon.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Where a path in a kubeconfig leads; `None` for the empty one.
fn beside(kubeconfig: &Path, path: &str) -> Option<PathBuf> {
    (!path.is_empty()).then(|| kubeconfig.parent().unwrap_or(Path::new("")).join(path))
}

/// A field's PEM: its `-data`, or else the file that it names. The file's path is not told: some write the key or
/// token itself there.
fn pem(
    kubeconfig: &Path,
    field: &str,
    data: &str,
    file: impl FnOnce() -> Option<PathBuf>,
) -> Result<Option<Vec<u8>>, KubeError> {
    if !data.is_empty() {
        let decoded = STANDARD.decode(data.trim());
        return decoded.map(Some).map_err(|_| credentials(kubeconfig, format!("its {field}-data is not base64")));
    }
    let read = file().map(std::fs::read).transpose();
    read.map_err(|error| credentials(kubeconfig, format!("the file that its {field} names cannot be read: {error}")))
}

/// It will not do as it stands.
pub(super) fn unusable(path: &Path, problem: impl Into<String>) -> KubeError {
    KubeError::Kubeconfig { path: path.to_owned(), problem: problem.into() }
}

/// Credentials come and go while the kubeconfig stays: they are waited for.
fn credentials(path: &Path, problem: impl AsRef<str>) -> KubeError {
    KubeError::Credentials(format!("{}: {}", path.display(), problem.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), "an authority").unwrap();
        let path = dir.path().join("config");
        std::fs::write(&path, text).unwrap();
        let settings = Kubeconfig::read(&path).and_then(|kubeconfig| kubeconfig.settings(&path, None));
        settings.map_err(|error| error.to_string())
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
        let Ok(settings) = settings else { panic!("not taken") };
        assert_eq!(
            (settings.authority.as_deref(), settings.server.as_str()),
            (Some(&b"an authority"[..]), "https://host")
        );
        assert_eq!(settings.server_name.as_deref(), Some("other"));
        assert!(matches!(settings.credentials, Credentials::Basic(pair) if pair == "YTpi"));
        let settings = read(&with(
            "certificate-authority-data: 'YWI=', certificate-authority: none, insecure-skip-tls-verify: true",
            "token: t, tokenFile: f, as: x, as-groups: [g, h], client-certificate-data: 'YQ==', client-key-data: 'Yg=='",
        ));
        let Ok(settings) = settings else { panic!("not taken") };
        assert_eq!(settings.authority.as_deref(), Some(&b"ab"[..]));
        assert!(settings.insecure && matches!(settings.credentials, Credentials::Token(token) if token == "t"));
        let [user, first, second] = &settings.impersonate[..] else { panic!("{:?}", settings.impersonate) };
        assert_eq!((user.1.as_str(), first.1.as_str(), second.1.as_str()), ("x", "g", "h"));
        assert!(settings.identity == Some((b"a".to_vec(), b"b".to_vec())));
        // As editors and generators leave them.
        let text = with("certificate-authority: null", "token:").replace("users:", "preferences: {}\nusers:");
        let Ok(settings) = read(&text) else { panic!("not taken: {:?}", read(&text).err()) };
        assert!(settings.authority.is_none() && matches!(settings.credentials, Credentials::None));
    }

    #[test]
    fn what_is_not_taken_is_named_without_a_value() {
        for (cluster, user, expected) in [
            ("proxy-url: 'http://hunter2@p'", "", "proxies (proxy-url) are not supported"),
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
        let error = read("kind: Config\ncurrent-context: ''").err().unwrap();
        assert!(error.contains("no current-context"), "{error}");
    }
}
