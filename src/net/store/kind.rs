//! Which kind of store it is, and what all that speak to it ask of its kind.

use super::listing::Listed;
use super::{az, gs, s3};
use crate::net::endpoint::Endpoint;
use crate::net::request::put::Upload;

/// A kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `s3://`: whatever speaks S3.
    S3,
    /// `gs://`: Google Cloud Storage.
    Gs,
    /// `az://`: Azure Blob Storage.
    Az,
}

impl Kind {
    const ALL: [Self; 3] = [Self::S3, Self::Gs, Self::Az];

    #[must_use]
    pub fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gs => "gs",
            Self::Az => "az",
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
            Self::Az => "az://CONTAINER/KEY",
        }
    }

    /// Where that comes from which does not stand in a URL.
    pub(super) fn elsewhere(self) -> &'static str {
        match self {
            Self::S3 => "keys come from the environment, and another server than AWS' from AWS_ENDPOINT_URL",
            Self::Gs => {
                "who asks comes from the environment, and another server than Google's from STORAGE_EMULATOR_HOST"
            }
            Self::Az => {
                "account and keys come from the environment, and another server than Azure's from AZURE_STORAGE_ENDPOINT"
            }
        }
    }

    /// What to ask where an answer is not one of such a store.
    pub(super) fn other(self) -> &'static str {
        match self {
            Self::S3 => "is AWS_ENDPOINT_URL a store that speaks S3?",
            Self::Gs => "is STORAGE_EMULATOR_HOST a server of Google Cloud Storage?",
            Self::Az => "is AZURE_STORAGE_ENDPOINT a store that speaks Azure's Blob protocol?",
        }
    }

    pub(super) fn listed(self, text: &str) -> Option<Listed> {
        match self {
            // Its XML API is S3's in this.
            Self::S3 | Self::Gs => s3::listed(text),
            Self::Az => az::listed(text),
        }
    }

    /// Whether a header that is there goes into the signature. A proxy may change others than those of its own, and what is
    /// signed must arrive as it is.
    pub(in crate::net) fn signs(self, header: &str) -> bool {
        match self {
            Self::S3 => header.starts_with("x-amz-"),
            // A token is no signature.
            Self::Gs => false,
            Self::Az => az::signs(header),
        }
    }

    /// How an object that is asked for at a URL is put there.
    pub(in crate::net) fn upload(self, object: &Endpoint, if_absent: bool) -> Upload {
        match self {
            Self::S3 => Upload::put(object, if_absent),
            Self::Gs => gs::upload(object, if_absent),
            Self::Az => az::upload(object, if_absent),
        }
    }

    /// The header by which the store's owner finds a request.
    pub(in crate::net) fn request(self) -> &'static str {
        match self {
            Self::S3 => "x-amz-request-id",
            Self::Gs => "x-guploader-uploadid",
            Self::Az => "x-ms-request-id",
        }
    }

    /// Whether a refusal says that there is no such object, in a bucket that is there. `name`: what the store calls it.
    pub(in crate::net) fn is_absence(self, name: &str, code: u16) -> bool {
        match self {
            Self::S3 => code == 404 && name == "NoSuchKey",
            // An emulator has no names.
            Self::Gs => code == 404 && matches!(name, "NoSuchKey" | ""),
            Self::Az => code == 404 && name == "BlobNotFound",
        }
    }

    /// What to do about a refusal.
    pub(in crate::net) fn hint(self, name: &str, code: u16) -> &'static str {
        match self {
            Self::S3 => s3::hint(name, code),
            Self::Gs => gs::hint(name, code),
            Self::Az => az::hint(name, code),
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
            Self::Az => {
                "; this identity needs the role 'Storage Blob Data Contributor' on the container, or the signature the rights c and w"
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
            Self::Az => {
                "an identity that may read it: AKS' workload identity of the Pod's service account, or AZURE_STORAGE_ACCOUNT_KEY or \
                 AZURE_STORAGE_SAS_TOKEN by secretKeyRef"
            }
        }
    }
}
