//! Google Cloud Storage: objects and lists by its XML API, which names its errors and whose conditions are HTTP's own;
//! uploads by its JSON API, whose emulators take no others.

mod credentials;
#[cfg(test)]
mod tests;

use hyper::Method;
use hyper::header::HeaderMap;
use hyper::http::request::Parts;

use self::credentials::Credentials;
use super::{Access, Environment, Identity, server};
use crate::net::endpoint::Endpoint;
use crate::net::request::put::Upload;
use crate::net::request::{HttpConfig, SignError};

/// Another server than Google's, as its own libraries have it: without a scheme, it is http.
pub(super) const EMULATOR: &str = "STORAGE_EMULATOR_HOST";
const GOOGLE: &str = "https://storage.googleapis.com";

pub(super) use self::credentials::Credentials as Signer;

/// The URL that objects' keys follow, or why there is none.
pub(super) fn base(bucket: &str, environment: &Environment) -> (String, Result<(), SignError>) {
    let Some(given) = environment.get(EMULATOR) else { return (format!("{GOOGLE}/{bucket}"), Ok(())) };
    let given = if given.contains("://") { given.to_owned() } else { format!("http://{given}") };
    // Its paths are Google's own.
    let is_host = |server: &&str| server.parse::<Endpoint>().is_ok_and(|endpoint| endpoint.last_segment().is_none());
    let Some(server) = server(&given).filter(is_host) else {
        let error = "STORAGE_EMULATOR_HOST is no address of a server, such as localhost:4443 or https://gcs.example";
        return (format!("{GOOGLE}/{bucket}"), Err(SignError::lasting(error)));
    };
    (format!("{server}/{bucket}"), Ok(()))
}

pub(super) fn identity(
    bucket: &str,
    environment: &Environment,
    access: Access,
    http: &HttpConfig,
) -> Result<Identity, SignError> {
    base(bucket, environment).1?;
    let credentials = if access.anonymous { None } else { Credentials::of(environment, http) };
    Ok(credentials.map_or(Identity::Nobody, |credentials| Identity::Gs(Box::new(credentials))))
}

pub(super) async fn sign(credentials: &Credentials, request: &mut Parts) -> Result<(), SignError> {
    request.headers.insert(hyper::header::AUTHORIZATION, credentials.token().await?);
    Ok(())
}

/// How an object at a URL is put there: its bucket and key are the path's, already encoded as a query wants them.
pub(super) fn upload(object: &Endpoint, if_absent: bool) -> Upload {
    let (bucket, key) = object.path().trim_start_matches('/').split_once('/').unwrap_or_default();
    // No generation is 0: it stands for an object that is not there.
    let absent = if if_absent { "&ifGenerationMatch=0" } else { "" };
    let target = format!("/upload/storage/v1/b/{bucket}/o?uploadType=media&name={key}{absent}");
    // It is a URL as the object's is, a little longer.
    let endpoint = object.with_target(&target).unwrap_or_else(|| object.clone());
    Upload { method: Method::POST, endpoint, headers: HeaderMap::new() }
}

/// What to do about a refusal.
pub(super) fn hint(name: &str, code: u16) -> &'static str {
    match (name, code) {
        ("NoSuchBucket" | "InvalidBucketName", _) => "; is the bucket's name right?",
        ("UserProjectMissing", _) => {
            "; a bucket whose readers pay is not supported: it needs a project to send the bill to"
        }
        (_, 401) => {
            "; it does not take the token: is this machine's clock right, and the service account not disabled?"
        }
        ("SlowDown", _) | (_, 429 | 503) => "; trying again as it asks",
        (_, 403) => {
            "; this identity needs storage.objects.get and storage.objects.list on the bucket (roles/storage.objectViewer), without \
             which an absent object is refused as well"
        }
        (_, 412) => "; the object was replaced meanwhile",
        (_, 500..) => "; trying again, and its own log says why",
        _ => "; is the URL right, and STORAGE_EMULATOR_HOST, if it is set, a server of Google Cloud Storage?",
    }
}
