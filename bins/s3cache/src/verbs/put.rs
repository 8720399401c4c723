//! `s3cache put`: publishes an artifact once, with its `.sha256` beside it. What a build server calls.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

use hostkit::{Exit, Failure, out};
use serde_json::json;
use tracing::info;

use crate::digest;
use crate::fetch::run as online;
use crate::settings::Settings;
use crate::source::Source;
use crate::store::{self, Checksum, Head, Kind, ObjectStore, StoreError};
use crate::verify;

/// Flags of `s3cache put`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file to publish
    file: PathBuf,
    /// Where to: s3://bucket/key, bucket/key or file:///path; with a slash at its end the file's name is added
    dest: String,
    /// Replace an object that exists: for names that are not immutable
    #[arg(long)]
    replace: bool,
    /// Print what was published as JSON
    #[arg(long)]
    json: bool,
}

/// Uploads the file unless the very same one is there already.
///
/// # Errors
/// Another object of this name exists (exit 73), the file is a broken archive (exit 65), or the store failed.
pub fn run(args: &Args, settings: &Settings) -> Result<Exit, Failure> {
    let shown = args.file.display();
    let unreadable = |error: std::io::Error| {
        Failure::new(Exit::NOT_FOUND, format!("cannot read {shown}"))
            .remedy("name a readable file")
            .because(error)
    };
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
    let dest = Source::parse(&dest)?;
    let name = dest.name()?;
    let file = File::open(&args.file).map_err(unreadable)?;
    let size = file.metadata().map_err(unreadable)?.len();
    // A broken archive is refused here, not on a hundred hosts.
    verify::archive(&dest, &name, &file)?;
    let sha256 = digest::of_file(&file, size).map_err(unreadable)?;
    let sidecar = sidecar(&sha256, &name).map_err(unreadable)?;
    let published = online(settings.timeout, &dest, async {
        let store = store::open(&dest, &settings.access, settings.timeout).await?;
        let put = store.put(&dest, &args.file, &sha256, args.replace).await;
        let published = match put {
            Ok(()) => true,
            Err(error)
                if error.kind == Kind::Exists
                    && same(&*store, &dest, &name, size, &sha256).await =>
            {
                false
            }
            Err(error) if error.kind == Kind::Exists => {
                return Err(Failure::new(
                    Exit::CANNOT_CREATE,
                    format!("{dest} exists and is another one"),
                )
                .remedy(
                    "publish under another name; --replace is for names that are not immutable",
                ));
            }
            Err(error) => return Err(error.into_failure(&dest)),
        };
        let beside = dest.with_suffix(".sha256");
        let text_sha256 = digest::of_file(
            sidecar.as_file(),
            sidecar.as_file().metadata().map_err(unreadable)?.len(),
        );
        store
            .put(
                &beside,
                sidecar.path(),
                &text_sha256.map_err(unreadable)?,
                true,
            )
            .await
            .map_err(|error| error.into_failure(&beside))?;
        Ok(published)
    })?;
    info!(%dest, bytes = size, sha256, "{}", if published { "published" } else { "was published before" });
    if args.json {
        out::json(
            &json!({"source": dest.to_string(), "size": size, "sha256": sha256, "published": published}),
        )?;
    }
    Ok(Exit::OK)
}

fn sidecar(sha256: &str, name: &str) -> std::io::Result<tempfile::NamedTempFile> {
    let mut file = tempfile::NamedTempFile::new()?;
    writeln!(file, "{sha256}  {name}")?;
    file.flush()?;
    Ok(file)
}

/// Whether the object that exists has this digest, by what the store or the sidecar says.
async fn same(store: &dyn ObjectStore, dest: &Source, name: &str, size: u64, sha256: &str) -> bool {
    let meta = match store.head(dest, None).await {
        Ok(Head::Found(meta)) => meta,
        _ => return false,
    };
    if meta.size != Some(size) {
        return false;
    }
    if let Some(Checksum::Sha256(found)) = meta.checksum {
        return digest::hex(&found) == sha256;
    }
    let beside: Result<_, StoreError> = verify::sidecar(store, dest, name).await;
    matches!(beside, Ok(Some(vouched)) if vouched.sha256 == sha256)
}
