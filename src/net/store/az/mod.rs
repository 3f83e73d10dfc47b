//! Azure Blob Storage. Signing is our own, one HMAC over the request's head: reqsign's for Azure comes with RSA and PEM, for
//! client certificates that no Pod has.

mod entra;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use hyper::Uri;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use sha2::Sha256;

use self::entra::Entra;
use super::address::encoded;
use super::listing::{Listed, ListedObject};
use super::{Access, Environment, Identity, server};
use crate::net::endpoint::Endpoint;
use crate::net::request::put::Upload;
use crate::net::request::{HttpConfig, SignError};

/// The protocol's version, which says what requests and answers mean. A request without one gets that of 2009.
const VERSION: HeaderValue = HeaderValue::from_static("2023-11-03");
/// The second is what Azure's command line calls it.
const ACCOUNTS: [&str; 2] = ["AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"];
const KEYS: [&str; 2] = ["AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY"];
const SAS: &str = "AZURE_STORAGE_SAS_TOKEN";
/// Where another store than Azure's public one is, of which each address is of the form `ENDPOINT/CONTAINER/KEY`.
const ENDPOINT: &str = "AZURE_STORAGE_ENDPOINT";

const NONE: &str = "there are no credentials for the object store: neither AZURE_FEDERATED_TOKEN_FILE, AZURE_CLIENT_ID and \
     AZURE_TENANT_ID (workload identity), nor AZURE_STORAGE_ACCOUNT_KEY, nor AZURE_STORAGE_SAS_TOKEN are set; give one of these, or \
     --url-anonymous for a public container, or --url-instance-identity for the node's own identity";

/// The URL that objects' keys follow, and the account, or why there is none. The account of an endpoint need not be known.
fn place(container: &str, environment: &Environment) -> (String, Result<Option<String>, SignError>) {
    let account = environment.first(ACCOUNTS);
    let valid = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let unknown = |why: &str| (format!("https://blob.core.windows.net/{container}"), Err(SignError::lasting(why)));
    if account.is_some_and(|account| !account.bytes().all(valid)) {
        return unknown(
            "AZURE_STORAGE_ACCOUNT_NAME is no storage account's name, which has small letters and digits alone",
        );
    }
    let Some(given) = environment.get(ENDPOINT) else {
        let Some(account) = account else {
            return unknown(
                "AZURE_STORAGE_ACCOUNT_NAME is not set, and no AZURE_STORAGE_ENDPOINT: set it to the name of the container's storage \
                 account",
            );
        };
        return (format!("https://{account}.blob.core.windows.net/{container}"), Ok(Some(account.to_owned())));
    };
    let Some(server) = server(given) else {
        return unknown(
            "AZURE_STORAGE_ENDPOINT is no URL of a storage account, such as https://NAME.blob.core.windows.net or \
             http://azurite:10000/devstoreaccount1",
        );
    };
    (format!("{server}/{container}"), Ok(account.map(str::to_owned)))
}

/// The URL that objects' keys follow.
pub(super) fn base(container: &str, environment: &Environment) -> String {
    place(container, environment).0
}

/// Who asks.
pub(super) enum Signer {
    Nobody,
    /// The account's key.
    Key {
        account: String,
        key: Vec<u8>,
    },
    /// The query that a shared access signature is.
    Sas(String),
    Token(Box<Entra>),
}

/// The first of what the environment shows; what somebody has put there comes before what a webhook has.
pub(super) fn identity(
    container: &str,
    environment: &Environment,
    access: Access,
    http: &HttpConfig,
) -> Result<Identity, SignError> {
    let account = place(container, environment).1?;
    let signer = if access.anonymous {
        Signer::Nobody
    } else if let Some(key) = environment.first(KEYS) {
        let missing = || {
            SignError::lasting("AZURE_STORAGE_ACCOUNT_KEY is set, and AZURE_STORAGE_ACCOUNT_NAME is not: it takes both")
        };
        let key = STANDARD.decode(key).map_err(|_| {
            SignError::lasting("AZURE_STORAGE_ACCOUNT_KEY is no base64: give the account's key as Azure shows it")
        })?;
        Signer::Key { account: account.ok_or_else(missing)?, key }
    } else if let Some(sas) = environment.get(SAS) {
        let sas = sas.trim_start_matches('?');
        if !sas.split('&').any(|pair| pair.starts_with("sig=")) || format!("/?{sas}").parse::<Uri>().is_err() {
            return Err(SignError::lasting(
                "AZURE_STORAGE_SAS_TOKEN is no shared access signature, which is of the form sv=…&sig=…",
            ));
        }
        Signer::Sas(sas.to_owned())
    } else if let Some(entra) = entra::entra(environment, access, http)? {
        Signer::Token(Box::new(entra))
    } else {
        return Err(SignError::lasting(NONE));
    };
    Ok(Identity::Az(signer))
}

/// Whether a header goes into the signature.
pub(super) fn signs(header: &str) -> bool {
    header.starts_with("x-ms-") || SIGNED.iter().any(|signed| *signed == header)
}

/// What is signed beside `x-ms-…`, in its order. The date is `x-ms-date`.
const SIGNED: [HeaderName; 11] = [
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::CONTENT_LENGTH,
    HeaderName::from_static("content-md5"),
    header::CONTENT_TYPE,
    header::DATE,
    header::IF_MODIFIED_SINCE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_UNMODIFIED_SINCE,
    header::RANGE,
];

pub(super) async fn sign(signer: &Signer, request: &mut Parts) -> Result<(), SignError> {
    request.headers.insert("x-ms-version", VERSION);
    let credential = match signer {
        Signer::Nobody => return Ok(()),
        Signer::Sas(sas) => {
            let own = request.uri.query().map(|query| format!("{query}&")).unwrap_or_default();
            let target = format!("{}?{own}{sas}", request.uri.path());
            let mut parts = std::mem::take(&mut request.uri).into_parts();
            parts.path_and_query = Some(target.parse().map_err(|_| SignError::lasting("the URL is too long"))?);
            request.uri = Uri::from_parts(parts).map_err(|_| SignError::lasting("the URL is too long"))?;
            return Ok(());
        }
        Signer::Key { account, key } => shared_key(account, key, request, Timestamp::now())?,
        Signer::Token(entra) => entra.header().await?,
    };
    request.headers.insert(header::AUTHORIZATION, credential);
    Ok(())
}

fn shared_key(account: &str, key: &[u8], request: &mut Parts, now: Timestamp) -> Result<HeaderValue, SignError> {
    let unusable = || SignError::passing("this machine's clock shows a year that no signature can have");
    let now = DateTimePrinter::new().timestamp_to_rfc9110_string(&now).map_err(|_| unusable())?;
    request.headers.insert("x-ms-date", HeaderValue::from_str(&now).map_err(|_| unusable())?);
    let mut hmac = Hmac::<Sha256>::new_from_slice(key).map_err(|_| unusable())?;
    hmac.update(text(account, request).as_bytes());
    let signature = STANDARD.encode(hmac.finalize().into_bytes());
    let mut value = HeaderValue::from_str(&format!("SharedKey {account}:{signature}")).map_err(|_| unusable())?;
    value.set_sensitive(true);
    Ok(value)
}

/// What is signed (learn.microsoft.com, 'Authorize with Shared Key').
fn text(account: &str, request: &Parts) -> String {
    let value = |headers: &HeaderMap, name: &HeaderName| {
        let values =
            headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_owned());
        values.collect::<Vec<_>>().join(",")
    };
    let mut text = format!("{}\n", request.method);
    for name in &SIGNED {
        let value = value(&request.headers, name);
        // No length counts as none.
        let is_empty = *name == header::CONTENT_LENGTH && value == "0";
        let _ = writeln!(text, "{}", if is_empty { "" } else { &value });
    }
    let mut own: Vec<_> = request.headers.keys().filter(|name| name.as_str().starts_with("x-ms-")).collect();
    own.sort_unstable_by_key(|name| name.as_str());
    for name in own {
        let _ = writeln!(text, "{name}:{}", value(&request.headers, name));
    }
    let _ = write!(text, "/{account}{}", request.uri.path());
    let pairs = request.uri.query().into_iter().flat_map(|query| query.split('&'));
    let mut pairs: Vec<_> = pairs.filter_map(|pair| pair.split_once('=')).collect();
    pairs.sort_unstable();
    for (name, value) in pairs {
        let _ = write!(text, "\n{name}:{}", percent_decode_str(value).decode_utf8_lossy());
    }
    text
}

/// An object as a whole, which is a block blob of one piece.
pub(super) fn upload(object: &Endpoint, if_absent: bool) -> Upload {
    let mut upload = Upload::put(object, if_absent);
    upload.headers.insert("x-ms-blob-type", HeaderValue::from_static("BlockBlob"));
    upload
}

/// The query of a page of a list. Metadata says which objects are folders.
pub(super) fn list(prefix: &str, next: Option<&str>) -> String {
    let next = next.map(|next| format!("&marker={}", encoded(next, false))).unwrap_or_default();
    format!("restype=container&comp=list&include=metadata&prefix={}{next}", encoded(prefix, false))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EnumerationResults {
    blobs: Blobs,
    #[serde(default)]
    next_marker: String,
}

#[derive(Deserialize)]
struct Blobs {
    #[serde(default, rename = "Blob")]
    all: Vec<Blob>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Blob {
    name: String,
    properties: Properties,
    metadata: Option<Metadata>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Properties {
    #[serde(rename = "Content-Length")]
    length: u64,
    #[serde(default)]
    etag: String,
    #[serde(default, rename = "Last-Modified")]
    modified: String,
    #[serde(default)]
    resource_type: String,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default, rename = "hdi_isfolder", alias = "Hdi_isfolder")]
    is_folder: String,
}

impl Blob {
    /// Accounts with a hierarchical namespace list their directories, and tools that are made for them put such a thing for one
    /// into other accounts.
    fn is_folder(&self) -> bool {
        let marked = self.metadata.as_ref().is_some_and(|metadata| metadata.is_folder == "true");
        self.properties.length == 0 && (marked || self.properties.resource_type == "directory")
    }
}

/// Of a page.
pub(super) fn listed(text: &str) -> Option<Listed> {
    let list: EnumerationResults = quick_xml::de::from_str(text.trim_start_matches('\u{feff}')).ok()?;
    let object = |Blob { name, properties: Properties { length, etag, modified, .. }, .. }| {
        // Unlike a header's.
        let etag = if etag.is_empty() || etag.contains('"') { etag } else { format!("\"{etag}\"") };
        ListedObject { key: name, etag, size: length, modified }
    };
    let objects = list.blobs.all.into_iter().filter(|blob| !blob.is_folder()).map(object).collect();
    Some(Listed { objects, next: Some(list.next_marker).filter(|next| !next.is_empty()) })
}

/// What to do about a refusal.
pub(super) fn hint(name: &str, code: u16) -> &'static str {
    match (name, code) {
        ("ContainerNotFound", _) => {
            "; is the container's name right, and AZURE_STORAGE_ACCOUNT_NAME the account that it is in?"
        }
        ("AuthenticationFailed", _) => {
            "; AZURE_STORAGE_ACCOUNT_KEY is not the account's key, or AZURE_STORAGE_SAS_TOKEN is past its time or for another container"
        }
        ("KeyBasedAuthenticationNotPermitted", _) => {
            "; the account takes no keys and no signature by them: use workload identity"
        }
        ("NoAuthenticationInformation" | "PublicAccessNotPermitted" | "ResourceNotFound", _) => {
            "; is the container public, and does its account allow that? Else give credentials in place of --url-anonymous"
        }
        ("InvalidAuthenticationInfo", _) => {
            "; it does not take the identity's token: is the account in the tenant of AZURE_TENANT_ID?"
        }
        // What Azurite calls a wrong key, too.
        ("AuthorizationFailure", _) => {
            "; is AZURE_STORAGE_ACCOUNT_KEY the account's key, or the container public with --url-anonymous, and does the account's firewall let this Pod in?"
        }
        ("AuthorizationPermissionMismatch" | "InsufficientAccountPermissions", _) | (_, 401 | 403) => {
            "; this identity needs the role 'Storage Blob Data Reader' on the container ('Contributor' for --archive), or the signature the \
             rights r and l (c and w)"
        }
        ("BlobArchived" | "BlobBeingRehydrated", _) => {
            "; the blob is in the archive tier, where nobody reads it: move it to another"
        }
        ("ServerBusy", _) | (_, 429 | 503) => "; trying again as it asks",
        (_, 412) => "; the object was replaced meanwhile",
        (_, 500..) => "; trying again, and its own log says why",
        _ => "; is the URL right, and AZURE_STORAGE_ENDPOINT a store that speaks Azure's Blob protocol?",
    }
}
