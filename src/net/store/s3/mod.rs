//! Stores that speak S3. Signing, and the ways to an identity, are reqsign's.

mod credentials;
#[cfg(test)]
mod tests;

use hyper::http::request::Parts;
use reqsign_aws_v4::{Credential, RequestSigner};
use serde::Deserialize;

use super::address::encoded;
use super::listing::{Listed, ListedObject};
use super::{Access, Environment, Identity, server};
use crate::net::request::{HttpConfig, SignError};

/// Where another store than AWS' is, of which each address is of the form `ENDPOINT/BUCKET/KEY`.
const ENDPOINTS: [&str; 2] = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"];
const REGIONS: [&str; 2] = ["AWS_REGION", "AWS_DEFAULT_REGION"];
/// What stores other than AWS' sign with, where nobody says otherwise.
const REGION: &str = "us-east-1";

pub(super) type Signer = reqsign_core::Signer<Credential>;

/// The URL that objects' keys follow, and the region to sign for, or why there is none.
pub(super) fn base(bucket: &str, environment: &Environment) -> (String, Result<String, SignError>) {
    let region = environment.first(REGIONS);
    let valid = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if region.is_some_and(|region| !region.bytes().all(valid)) {
        let error = "AWS_REGION is no region's name, such as eu-central-1";
        return (format!("https://{bucket}.s3.amazonaws.com"), Err(SignError::lasting(error)));
    }
    if let Some(given) = environment.first(ENDPOINTS) {
        let Some(server) = server(given) else {
            let error = "AWS_ENDPOINT_URL is no URL of an object store, such as https://minio.example:9000";
            return (format!("https://{bucket}.s3.amazonaws.com"), Err(SignError::lasting(error)));
        };
        return (format!("{server}/{bucket}"), Ok(region.unwrap_or(REGION).to_owned()));
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

pub(super) fn identity(
    bucket: &str,
    environment: &Environment,
    access: Access,
    http: &HttpConfig,
) -> Result<Identity, SignError> {
    let region = base(bucket, environment).1?;
    if access.anonymous {
        return Ok(Identity::Nobody);
    }
    let (context, provider) = credentials::provider(environment, &region, access, http)?;
    Ok(Identity::S3(Signer::new(context, provider, RequestSigner::new("s3", &region))))
}

pub(super) async fn sign(signer: &Signer, request: &mut Parts) -> Result<(), SignError> {
    signer.sign(request, None).await.map_err(|error| credentials::explain(&error))
}

/// The query of a page of a list.
pub(super) fn list(prefix: &str, next: Option<&str>) -> String {
    let next = next.map(|next| format!("&continuation-token={}", encoded(next, false))).unwrap_or_default();
    format!("list-type=2&prefix={}{next}", encoded(prefix, false))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListBucketResult {
    #[serde(default)]
    is_truncated: bool,
    next_continuation_token: Option<String>,
    #[serde(default)]
    contents: Vec<Contents>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Contents {
    key: String,
    #[serde(default, rename = "ETag")]
    etag: String,
    size: u64,
    #[serde(default)]
    last_modified: String,
}

/// Of a page.
pub(super) fn listed(text: &str) -> Option<Listed> {
    let list: ListBucketResult = quick_xml::de::from_str(text).ok()?;
    let next = match (list.is_truncated, list.next_continuation_token) {
        (true, None) => return None,
        (true, next) => next,
        (false, _) => None,
    };
    let object =
        |Contents { key, etag, size, last_modified }| ListedObject { key, etag, size, modified: last_modified };
    Some(Listed { objects: list.contents.into_iter().map(object).collect(), next })
}

/// What to do about a refusal.
pub(super) fn hint(name: &str, code: u16) -> &'static str {
    match (name, code) {
        ("NoSuchBucket", _) => {
            "; is the bucket's name right, and AWS_REGION, or AWS_ENDPOINT_URL for a store that is not AWS'?"
        }
        // The second is versitygw's.
        ("InvalidAccessKeyId" | "XAdminUserNotFound", _) => {
            "; it does not know the access key: is AWS_ACCESS_KEY_ID of this store, and not deleted?"
        }
        ("SignatureDoesNotMatch", _) => "; AWS_SECRET_ACCESS_KEY is not the one of AWS_ACCESS_KEY_ID",
        ("ExpiredToken" | "InvalidToken" | "TokenRefreshRequired", _) => {
            "; the session token is past its time, or not of this key: temporary keys in the environment are not renewed, those of a \
             role are"
        }
        ("PermanentRedirect" | "TemporaryRedirect" | "AuthorizationHeaderMalformed" | "Redirect", _)
        | (_, 301 | 307) => "; the bucket is in another region: set AWS_REGION to its own",
        ("SlowDown", _) | (_, 429 | 503) => "; trying again as it asks",
        (_, 401 | 403) => {
            "; this identity needs s3:GetObject on the object, and s3:ListBucket on the bucket, without which an absent object is \
             refused as well"
        }
        (_, 412) => "; the object was replaced meanwhile",
        (_, 500..) => "; trying again, and its own log says why",
        _ => "; is the URL right, and AWS_ENDPOINT_URL a store that speaks S3?",
    }
}
