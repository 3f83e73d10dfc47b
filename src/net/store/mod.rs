//! Object stores that speak S3: where an object is asked for, and how a request says who asks.
//!
//! Signing, and the ways to an identity, are reqsign's; connections, bounds and texts are ours. A store that lacks something
//! of its environment says so when it is asked: the variables may come from a webhook that this process does not see.

pub mod address;
mod credentials;
pub mod listing;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use hyper::http::request::Parts;
use reqsign_aws_v4::{Credential, RequestSigner};
use reqsign_core::Signer;

use self::address::{Address, encoded};
use crate::net::endpoint::Endpoint;
use crate::net::request::{HttpConfig, Sign, SignError};

/// Where another store than AWS' is, of which each address is of the form `ENDPOINT/BUCKET/KEY`.
const ENDPOINTS: [&str; 2] = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"];
const REGIONS: [&str; 2] = ["AWS_REGION", "AWS_DEFAULT_REGION"];
/// What stores other than AWS' sign with, where nobody says otherwise.
const REGION: &str = "us-east-1";

/// What the environment says of stores and identities. Never printed.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    #[must_use]
    pub fn of_process() -> Self {
        let own = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
            // A Secret's value often ends in a line end.
            (name.starts_with("AWS_") && !value.trim().is_empty()).then(|| (name, value.trim().to_owned()))
        };
        Self(std::env::vars_os().filter_map(own).collect())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn first(&self, names: [&str; 2]) -> Option<&str> {
        names.iter().find_map(|name| self.get(name))
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Environment(…)")
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Environment {
    fn from(variables: [(&str, &str); N]) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }
}

/// As whom a store is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// `--url-anonymous`: as nobody.
    pub anonymous: bool,
    /// `--url-instance-identity`: the node's own identity counts too.
    pub instance_identity: bool,
}

/// A bucket.
#[derive(Clone)]
pub struct Store {
    /// Without a `/` at the end.
    base: String,
    http: Arc<HttpConfig>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.base)
    }
}

impl Store {
    /// The one of an address. `http`: who is trusted, and the proxies.
    #[must_use]
    pub fn new(address: &Address, environment: &Environment, access: Access, http: HttpConfig) -> Self {
        let (base, region) = base(&address.bucket, environment);
        let identity = match (&region, access.anonymous) {
            (Err(error), _) => Identity::Unknown(error.clone()),
            (Ok(_), true) => Identity::Nobody,
            (Ok(region), false) => match credentials::provider(environment, region, access, &http) {
                Ok((context, provider)) => {
                    Identity::Known(Signer::new(context, provider, RequestSigner::new("s3", region)))
                }
                Err(error) => Identity::Unknown(error),
            },
        };
        let http = HttpConfig { signer: Some(Arc::new(identity)), ..http };
        Self { base, http: Arc::new(http) }
    }

    /// Where an object is; `None`: its key is too long.
    #[must_use]
    pub fn object(&self, key: &str) -> Option<Endpoint> {
        object(&self.base, key)
    }

    /// Where a page of the list of what is below a prefix is; `next`: where another one ended.
    #[must_use]
    pub fn list(&self, prefix: &str, next: Option<&str>) -> Option<Endpoint> {
        let next = next.map(|next| format!("&continuation-token={}", encoded(next, false))).unwrap_or_default();
        format!("{}/?list-type=2&prefix={}{next}", self.base, encoded(prefix, false)).parse().ok()
    }

    /// By what a request to the store is sent and signed.
    #[must_use]
    pub fn http(&self) -> &Arc<HttpConfig> {
        &self.http
    }
}

fn object(base: &str, key: &str) -> Option<Endpoint> {
    format!("{base}/{}", encoded(key, true)).parse().ok()
}

/// Where the object of an address is; `None`: its key is too long.
#[must_use]
pub fn endpoint(address: &Address, environment: &Environment) -> Option<Endpoint> {
    object(&base(&address.bucket, environment).0, &address.key)
}

/// The URL that objects' keys follow, and the region to sign for, or why there is none.
fn base(bucket: &str, environment: &Environment) -> (String, Result<String, SignError>) {
    let region = environment.first(REGIONS);
    let valid = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if region.is_some_and(|region| !region.bytes().all(valid)) {
        let error = "AWS_REGION is no region's name, such as eu-central-1";
        return (format!("https://{bucket}.s3.amazonaws.com"), Err(SignError::lasting(error)));
    }
    if let Some(given) = environment.first(ENDPOINTS) {
        let given = given.trim_end_matches('/');
        let usable = given.parse::<Endpoint>().is_ok_and(|endpoint| !endpoint.is_unix()) && !given.contains(['?', '#']);
        if !usable {
            let error = "AWS_ENDPOINT_URL is no URL of an object store, such as https://minio.example:9000";
            return (format!("https://{bucket}.s3.amazonaws.com"), Err(SignError::lasting(error)));
        }
        return (format!("{given}/{bucket}"), Ok(region.unwrap_or(REGION).to_owned()));
    }
    let domain =
        if region.is_some_and(|region| region.starts_with("cn-")) { "amazonaws.com.cn" } else { "amazonaws.com" };
    let host = region.map_or_else(|| format!("s3.{domain}"), |region| format!("s3.{region}.{domain}"));
    // Of a name with dots a certificate for *.s3.amazonaws.com says nothing.
    let base =
        if bucket.contains('.') { format!("https://{host}/{bucket}") } else { format!("https://{bucket}.{host}") };
    let missing = "AWS_REGION is not set, and no AWS_ENDPOINT_URL: set AWS_REGION to the bucket's region";
    (base, region.map(str::to_owned).ok_or_else(|| SignError::lasting(missing)))
}

/// Who asks.
enum Identity {
    Nobody,
    Known(Signer<Credential>),
    Unknown(SignError),
}

impl Sign for Identity {
    fn sign<'a>(&'a self, request: &'a mut Parts) -> Pin<Box<dyn Future<Output = Result<(), SignError>> + Send + 'a>> {
        Box::pin(async move {
            match self {
                Self::Nobody => Ok(()),
                Self::Unknown(error) => Err(error.clone()),
                Self::Known(signer) => signer.sign(request, None).await.map_err(|error| credentials::explain(&error)),
            }
        })
    }
}
