//! Which kind of store it is, and what all that speak to it ask of its kind.

use super::listing::Listed;
use super::s3;
use crate::net::endpoint::Endpoint;
use crate::net::request::put::Upload;

/// A kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `s3://`: whatever speaks S3.
    S3,
}

impl Kind {
    const ALL: [Self; 1] = [Self::S3];

    #[must_use]
    pub fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
        }
    }

    pub(super) fn of_scheme(scheme: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| scheme.eq_ignore_ascii_case(kind.scheme()))
    }

    /// How its URLs look.
    pub(super) fn form(self) -> &'static str {
        match self {
            Self::S3 => "s3://BUCKET/KEY",
        }
    }

    /// Where that comes from which does not stand in a URL.
    pub(super) fn elsewhere(self) -> &'static str {
        match self {
            Self::S3 => "keys come from the environment, and another server than AWS' from AWS_ENDPOINT_URL",
        }
    }

    /// What to ask where an answer is not one of such a store.
    pub(super) fn other(self) -> &'static str {
        match self {
            Self::S3 => "is AWS_ENDPOINT_URL a store that speaks S3?",
        }
    }

    pub(super) fn listed(self, text: &str) -> Option<Listed> {
        match self {
            Self::S3 => s3::listed(text),
        }
    }

    /// Whether a header that is there goes into the signature. A proxy may change others than those of its own, and what is
    /// signed must arrive as it is.
    pub(in crate::net) fn signs(self, header: &str) -> bool {
        match self {
            Self::S3 => header.starts_with("x-amz-"),
        }
    }

    /// How an object that is asked for at a URL is put there.
    pub(in crate::net) fn upload(self, object: &Endpoint, if_absent: bool) -> Upload {
        match self {
            Self::S3 => Upload::put(object, if_absent),
        }
    }

    /// The header by which the store's owner finds a request.
    pub(in crate::net) fn request(self) -> &'static str {
        match self {
            Self::S3 => "x-amz-request-id",
        }
    }

    /// Whether a refusal says that there is no such object, in a bucket that is there. `name`: what the store calls it.
    pub(in crate::net) fn is_absence(self, name: &str, code: u16) -> bool {
        match self {
            Self::S3 => code == 404 && name == "NoSuchKey",
        }
    }

    /// What to do about a refusal.
    pub(in crate::net) fn hint(self, name: &str, code: u16) -> &'static str {
        match self {
            Self::S3 => s3::hint(name, code),
        }
    }
}
