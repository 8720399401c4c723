//! `s3cache put`: publishes an artifact with its `.sha256`, for build servers.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use hostkit::file::{length, open_regular};
use hostkit::{Exit, Failure, stdout};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tracing::info;

use crate::digest::{self, Sha256Hex};
use crate::fetch::run_until_deadline;
use crate::settings::Settings;
use crate::sidecar::{self, SidecarDigest};
use crate::source::ArtifactSource;
use crate::store::file::blocking;
use crate::store::{
    self, GetRequest, HeadResponse, ObjectChecksum, ObjectStore, StoreError, StoreErrorKind,
};
use crate::verification;

#[derive(Debug, clap::Args)]
pub(crate) struct PutArgs {
    /// The file to publish
    file: PathBuf,
    /// The destination: s3://bucket/key, bucket/key or file:///path; after a slash at its end the file's name is added
    dest: String,
    /// Replace an existing object: for names that are not immutable
    #[arg(long)]
    replace: bool,
    /// Print what was published as JSON
    #[arg(long)]
    json: bool,
}

/// Uploads the file, unless the same file is already published.
///
/// # Errors
/// Another object has this name (exit 73), the file is a broken archive (exit 65), or the store failed.
pub(crate) fn run(args: &PutArgs, settings: &Settings) -> Result<Exit, Failure> {
    let base = args
        .file
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let dest = if args.dest.ends_with('/') {
        format!("{}{base}", args.dest)
    } else {
        args.dest.clone()
    };
    let dest = ArtifactSource::parse(&dest)?;
    if matches!(dest, ArtifactSource::Http(_)) {
        let text = format!("cannot publish to {dest}: http is not supported");
        return Err(Failure::new(Exit::USAGE, text).remedy("publish to s3:// or file:///"));
    }
    let name = dest.name()?;
    let (size, sha256, published) = run_until_deadline(&settings.deadline(&dest), async {
        let (size, sha256, sidecar) = {
            let (file, dest, name) = (args.file.clone(), dest.clone(), name.clone());
            blocking(move || prepare(&file, &dest, &name)).await?
        };
        let store = store::open(&dest, &settings.access, settings.timeout).await?;
        let put = store.put(&dest, &args.file, &sha256, args.replace).await;
        let published = match put {
            Ok(()) => true,
            Err(error) if error.kind == StoreErrorKind::AlreadyExists => {
                compare(&*store, &dest, &name, size, &sha256).await?;
                false
            }
            Err(error) => return Err(error.into_failure(&dest)),
        };
        let beside = dest.with_suffix(sidecar::SUFFIX);
        store
            .put(&beside, sidecar.file.path(), &sidecar.sha256, true)
            .await
            .map_err(|error| error.into_failure(&beside))?;
        Ok((size, sha256, published))
    })?;
    let message = if published {
        "artifact published"
    } else {
        "artifact was already published"
    };
    info!(%dest, bytes = size, sha256, "{message}");
    if args.json {
        stdout::print_json(
            &json!({"source": dest.to_string(), "size": size, "sha256": sha256, "published": published}),
        )?;
    }
    Ok(Exit::OK)
}

/// The `.sha256` to publish.
struct SidecarFile {
    file: tempfile::NamedTempFile,
    sha256: Sha256Hex,
}

/// Checks and hashes the file: its length, digest and sidecar.
fn prepare(
    path: &Path,
    dest: &ArtifactSource,
    name: &str,
) -> Result<(u64, Sha256Hex, SidecarFile), Failure> {
    let unreadable = |error: io::Error| {
        Failure::new(Exit::NOT_FOUND, format!("cannot read {}", path.display()))
            .remedy("name a readable file")
            .because(error)
    };
    let file = open_regular(path).map_err(unreadable)?;
    let size = length(&file).map_err(unreadable)?;
    // A broken archive is rejected here rather than on a hundred hosts.
    verification::check_archive(dest, name, &file).map_err(|failure| {
        let remedy = format!("check {}; nothing was published", path.display());
        failure.remedy(remedy)
    })?;
    let sha256 = digest::of_file(&file, size).map_err(unreadable)?;
    let sidecar = sidecar(&sha256, name).map_err(|error| {
        Failure::new(Exit::CANNOT_CREATE, "cannot write a temporary file")
            .remedy("make room in $TMPDIR")
            .because(error)
    })?;
    Ok((size, sha256, sidecar))
}

fn sidecar(sha256: &str, name: &str) -> io::Result<SidecarFile> {
    let mut file = tempfile::NamedTempFile::new()?;
    let line = format!("{sha256}  {name}\n");
    file.write_all(line.as_bytes())?;
    file.flush()?;
    let sha256 = digest::of_file(file.as_file(), line.len() as u64)?;
    Ok(SidecarFile { file, sha256 })
}

/// Checks that the existing object has this digest, by the store's checksum, the sidecar or, without one, its content.
///
/// # Errors
/// It differs, or cannot be compared (exit 73).
async fn compare(
    store: &dyn ObjectStore,
    dest: &ArtifactSource,
    name: &str,
    size: u64,
    sha256: &str,
) -> Result<(), Failure> {
    let unknown = |why: Box<dyn std::error::Error + Send + Sync>| {
        let text = format!("{dest} exists, and cannot be compared with this file");
        Failure::new(Exit::CANNOT_CREATE, text)
            .remedy("allow the publisher to read the object and its .sha256, publish under another name, or overwrite it with --replace")
            .because(why)
    };
    let meta = store.head(dest, None).await.map(HeadResponse::into_meta);
    let meta = meta.map_err(|error| unknown(error.into()))?;
    let digest = match meta.checksum {
        _ if meta.size != Some(size) => None,
        Some(ObjectChecksum::Sha256(found)) => Some(hostkit::hex::encode(&found)),
        _ => match sidecar::fetch_digest(store, dest, name).await {
            Ok(SidecarDigest::Sha256(found)) => Some(found),
            // Its publisher was killed before it wrote one, or is about to.
            Ok(SidecarDigest::Absent) => {
                let read = read_digest(store, dest).await;
                Some(read.map_err(|error| unknown(error.into()))?)
            }
            Ok(SidecarDigest::Unreadable(why)) => {
                return Err(unknown(format!("invalid .sha256: {why}").into()));
            }
            Err(error) => return Err(unknown(error.into())),
        },
    };
    if digest.as_deref() == Some(sha256) {
        return Ok(());
    }
    let text = format!("{dest} exists with different content");
    Err(Failure::new(Exit::CANNOT_CREATE, text)
        .remedy("publish under another name, or use --replace if the name is not immutable"))
}

async fn read_digest(
    store: &dyn ObjectStore,
    source: &ArtifactSource,
) -> Result<Sha256Hex, StoreError> {
    let mut body = store.get(source, GetRequest::default()).await?.body;
    let mut hasher = Sha256::new();
    while let Some(piece) = body.next().await? {
        hasher.update(&piece);
    }
    Ok(hostkit::hex::encode(&hasher.finalize()))
}
