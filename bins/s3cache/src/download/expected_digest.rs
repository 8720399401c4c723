//! The digest that a download must have, looked up once, before anything is published.

use hostkit::{Exit, Failure};

use super::ArtifactDownload;
use crate::sidecar::{self, SidecarDigest};
use crate::store::{StoreError, StoreErrorKind};
use crate::verification::ExpectedDigest;

impl ArtifactDownload<'_> {
    /// The required digest: the caller's, else that of the published sidecar.
    ///
    /// # Errors
    /// The store cannot be reached (exit 69); the sidecar is invalid, or missing although required (exit 65).
    pub(crate) async fn expected_digest(&mut self) -> Result<Option<ExpectedDigest>, Failure> {
        if self.expected.is_none() {
            let expected = match self.sha256 {
                Some(sha256) => Some(ExpectedDigest {
                    sha256: sha256.to_owned(),
                    verified_by: "flag",
                }),
                None => self.sidecar().await?,
            };
            self.expected = Some(expected);
        }
        Ok(self.expected.clone().flatten())
    }

    async fn sidecar(&self) -> Result<Option<ExpectedDigest>, Failure> {
        let sidecar = self.source.with_suffix(sidecar::SUFFIX);
        let request = sidecar::fetch_digest(&*self.store, self.source, self.name);
        let late = StoreError::new(StoreErrorKind::Transient, "no response in time");
        let found = tokio::time::timeout(self.settings.stall_timeout * 2, request)
            .await
            .unwrap_or(Err(late));
        match found.map_err(|error| error.into_failure(&sidecar))? {
            SidecarDigest::Sha256(sha256) => Ok(Some(ExpectedDigest {
                sha256,
                verified_by: "sidecar",
            })),
            SidecarDigest::Unreadable(why) => {
                Err(
                    Failure::new(Exit::CORRUPT, format!("{sidecar}: {why}")).remedy(format!(
                        "publish it in the format of `sha256sum {}`, or remove it",
                        self.name
                    )),
                )
            }
            SidecarDigest::Absent
                if self.settings.require_sidecar && !self.name.ends_with(sidecar::SUFFIX) =>
            {
                let text = format!("artifact has no sidecar ({sidecar})");
                Err(Failure::new(Exit::CORRUPT, text)
                    .remedy("publish one (`s3cache put` does), or turn off require-sidecar"))
            }
            SidecarDigest::Absent => Ok(None),
        }
    }
}
