//! Which kind of store it is, and what all that speak to it ask of its kind.

use super::listing::Listed;
use super::{gs, s3};
use crate::net::endpoint::Endpoint;
use crate::net::request::put::Upload;

/// A kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `s3://`: whatever speaks S3.
    S3,
    /// `gs://`: Google Cloud Storage.
    Gs,
}

impl Kind {
    const ALL: [Self; 2] = [Self::S3, Self::Gs];

    #[must_use]
    pub fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gs => "gs",
        }
    }

    pub(super) fn of_scheme(scheme: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| scheme.eq_ignore_ascii_case(kind.scheme()))
    }

    /// How its URLs look.
    pub(super) fn form(self) -> &'static str {
        match self {
            Self::S3 => "s3://BUCKET/KEY",
            Self::Gs => "gs://BUCKET/KEY",
        }
    }

    /// Where that comes from which does not stand in a URL.
    pub(super) fn elsewhere(self) -> &'static str {
        match self {
            Self::S3 => "keys come from the environment, and another server than AWS' from AWS_ENDPOINT_URL",
            Self::Gs => {
                "who asks comes from the environment, and another server than Google's from STORAGE_EMULATOR_HOST"
            }
        }
    }

    /// What to ask where an answer is not one of such a store.
    pub(super) fn other(self) -> &'static str {
        match self {
            Self::S3 => "is AWS_ENDPOINT_URL a store that speaks S3?",
            Self::Gs => "is STORAGE_EMULATOR_HOST a server of Google Cloud Storage?",
        }
    }

    pub(super) fn listed(self, text: &str) -> Option<Listed> {
        match self {
            // Its XML API is S3's in this.
            Self::S3 | Self::Gs => s3::listed(text),
        }
    }

    /// Whether a header that is there goes into the signature. A proxy may change others than those of its own, and what is
    /// signed must arrive as it is.
    pub(in crate::net) fn signs(self, header: &str) -> bool {
        match self {
            Self::S3 => header.starts_with("x-amz-"),
            // A token is no signature.
            Self::Gs => false,
        }
    }

    /// How an object that is asked for at a URL is put there.
    pub(in crate::net) fn upload(self, object: &Endpoint, if_absent: bool) -> Upload {
        match self {
            Self::S3 => Upload::put(object, if_absent),
            Self::Gs => gs::upload(object, if_absent),
        }
    }

    /// The header by which the store's owner finds a request.
    pub(in crate::net) fn request(self) -> &'static str {
        match self {
            Self::S3 => "x-amz-request-id",
            Self::Gs => "x-guploader-uploadid",
        }
    }

    /// Whether a refusal says that there is no such object, in a bucket that is there. `name`: what the store calls it.
    pub(in crate::net) fn is_absence(self, name: &str, code: u16) -> bool {
        match self {
            Self::S3 => code == 404 && name == "NoSuchKey",
            // An emulator has no names.
            Self::Gs => code == 404 && matches!(name, "NoSuchKey" | ""),
        }
    }

    /// What to do about a refusal.
    pub(in crate::net) fn hint(self, name: &str, code: u16) -> &'static str {
        match self {
            Self::S3 => s3::hint(name, code),
            Self::Gs => gs::hint(name, code),
        }
    }

    /// What an identity that may not put an object lacks.
    #[must_use]
    pub fn needed_to_put(self) -> &'static str {
        match self {
            Self::S3 => "; this identity needs s3:PutObject below the prefix",
            Self::Gs => {
                "; this identity needs storage.objects.create and, for latest.tar.gz, storage.objects.delete (roles/storage.objectUser)"
            }
        }
    }

    /// What gives an identity to whoever has none that is enough.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            Self::S3 => {
                "an identity that may read it: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY by secretKeyRef, or a role of the Pod's \
                 service account"
            }
            Self::Gs => {
                "an identity that may read it: on GKE the Pod's service account, elsewhere the file that GOOGLE_APPLICATION_CREDENTIALS \
                 names, from a mounted Secret"
            }
        }
    }
}
