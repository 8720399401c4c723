//! What vouches for the bytes of a download: asked for once, before anything is published.

use hostkit::{Exit, Failure};

use super::ArtifactDownload;
use crate::sidecar::{self, SidecarDigest};
use crate::store::{StoreError, StoreErrorKind};
use crate::verification::ExpectedDigest;

impl ArtifactDownload<'_> {
    /// The digest that vouches for the artifact: the caller's, else the published sidecar's.
    ///
    /// # Errors
    /// The store could not say whether there is one (exit 69); it cannot be read, or is missing though it is required
    /// (exit 65).
    pub(crate) async fn vouched(&mut self) -> Result<Option<ExpectedDigest>, Failure> {
        if self.vouched.is_none() {
            let vouched = match self.sha256 {
                Some(sha256) => Some(ExpectedDigest {
                    sha256: sha256.to_owned(),
                    by: "flag",
                }),
                None => self.sidecar().await?,
            };
            self.vouched = Some(vouched);
        }
        Ok(self.vouched.clone().flatten())
    }

    async fn sidecar(&self) -> Result<Option<ExpectedDigest>, Failure> {
        let sidecar = self.source.with_suffix(sidecar::SUFFIX);
        let asked = sidecar::ask(&*self.store, self.source, self.name);
        let late = StoreError::new(StoreErrorKind::Transient, "no answer in time");
        let found = tokio::time::timeout(self.settings.stall_timeout * 2, asked)
            .await
            .unwrap_or(Err(late));
        match found.map_err(|error| error.into_failure(&sidecar))? {
            SidecarDigest::Sha256(sha256) => Ok(Some(ExpectedDigest {
                sha256,
                by: "sidecar",
            })),
            SidecarDigest::Unreadable(why) => {
                Err(
                    Failure::new(Exit::CORRUPT, format!("{sidecar}: {why}")).remedy(format!(
                        "publish it as `sha256sum {}` writes it, or remove it",
                        self.name
                    )),
                )
            }
            SidecarDigest::Absent
                if self.settings.require_sidecar && !self.name.ends_with(sidecar::SUFFIX) =>
            {
                let text = format!("artifact has no sidecar ({sidecar})");
                Err(Failure::new(Exit::CORRUPT, text)
                    .remedy("publish one (`s3cache put` does), or turn require-sidecar off"))
            }
            SidecarDigest::Absent => Ok(None),
        }
    }
}
