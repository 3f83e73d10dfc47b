//! Object stores: where an object is asked for, and how a request says who asks.
//!
//! What one kind of store has of its own is in its file; connections, bounds and texts are one for all. A store that lacks
//! something of its environment says so when it is asked: the variables may come from a webhook that this process does not
//! see.

pub mod address;
mod ask;
mod az;
mod gs;
pub mod kind;
pub mod listing;
mod s3;
mod token;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use hyper::http::request::Parts;

use self::address::{Address, encoded};
use self::kind::Kind;
use self::listing::{ListingError, Page};
use crate::net::endpoint::Endpoint;
use crate::net::request::{HttpConfig, Sign, SignError};

/// What the variables are called that stores and identities are configured by.
const VARIABLES: [&str; 5] = ["AWS_", "AZURE_", "GOOGLE_", "GCE_METADATA_", gs::EMULATOR];

/// What the environment says of stores and identities. Never printed.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    #[must_use]
    pub fn of_process() -> Self {
        let own = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
            // A Secret's value often ends in a line end.
            (VARIABLES.iter().any(|own| name.starts_with(own)) && !value.trim().is_empty())
                .then(|| (name, value.trim().to_owned()))
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
    kind: Kind,
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
        let kind = address.kind;
        let base = base(address, environment);
        let identity = match kind {
            Kind::S3 => s3::identity(&address.bucket, environment, access, &http),
            Kind::Gs => gs::identity(&address.bucket, environment, access, &http),
            Kind::Az => az::identity(&address.bucket, environment, access, &http),
        };
        let identity = identity.unwrap_or_else(Identity::Unknown);
        let http = HttpConfig { signer: Some(Arc::new(Signing { kind, identity })), ..http };
        Self { kind, base, http: Arc::new(http) }
    }

    /// Where an object is; `None`: its key is too long.
    #[must_use]
    pub fn object(&self, key: &str) -> Option<Endpoint> {
        object(&self.base, key)
    }

    /// Where a page of the list of what is below a prefix is; `next`: where another one ended.
    #[must_use]
    pub fn list(&self, prefix: &str, next: Option<&str>) -> Option<Endpoint> {
        let query = match self.kind {
            Kind::S3 | Kind::Gs => format!("/?{}", s3::list(prefix, next)),
            Kind::Az => format!("?{}", az::list(prefix, next)),
        };
        format!("{}{query}", self.base).parse().ok()
    }

    /// A page of it.
    pub fn page(&self, body: &[u8], prefix: &str) -> Result<Page, ListingError> {
        Page::read(self.kind, body, prefix)
    }

    /// That an answer makes no sense.
    #[must_use]
    pub fn broken(&self) -> ListingError {
        ListingError::Broken(self.kind)
    }

    /// By what a request to the store is sent and signed.
    #[must_use]
    pub fn http(&self) -> &Arc<HttpConfig> {
        &self.http
    }
}

/// A server that the environment names, by what objects' paths follow; `None`: it is none.
fn server(given: &str) -> Option<&str> {
    let given = given.trim_end_matches('/');
    let usable = given.parse::<Endpoint>().is_ok_and(|endpoint| !endpoint.is_unix()) && !given.contains(['?', '#']);
    usable.then_some(given)
}

fn object(base: &str, key: &str) -> Option<Endpoint> {
    format!("{base}/{}", encoded(key, true)).parse().ok()
}

/// Where the object of an address is; `None`: its key is too long.
#[must_use]
pub fn endpoint(address: &Address, environment: &Environment) -> Option<Endpoint> {
    object(&base(address, environment), &address.key)
}

/// The URL that objects' keys follow.
fn base(address: &Address, environment: &Environment) -> String {
    match address.kind {
        Kind::S3 => s3::base(&address.bucket, environment).0,
        Kind::Gs => gs::base(&address.bucket, environment).0,
        Kind::Az => az::base(&address.bucket, environment),
    }
}

/// Who asks.
enum Identity {
    Nobody,
    Unknown(SignError),
    S3(s3::Signer),
    Gs(Box<gs::Signer>),
    Az(az::Signer),
}

struct Signing {
    kind: Kind,
    identity: Identity,
}

impl Sign for Signing {
    fn kind(&self) -> Kind {
        self.kind
    }

    fn sign<'a>(&'a self, request: &'a mut Parts) -> Pin<Box<dyn Future<Output = Result<(), SignError>> + Send + 'a>> {
        Box::pin(async move {
            match &self.identity {
                Identity::Nobody => Ok(()),
                Identity::Unknown(error) => Err(error.clone()),
                Identity::S3(signer) => s3::sign(signer, request).await,
                Identity::Gs(signer) => gs::sign(signer, request).await,
                Identity::Az(signer) => az::sign(signer, request).await,
            }
        })
    }
}
