//! The store behind `file:///`: a directory, such as a mounted share or a checkout on a build machine.
//!
//! Every system call that touches a path runs on a thread of its own, because a network or FUSE file system may never
//! return: the runtime's deadlines keep working, and the process can end without that thread.

mod upload;

use std::fs::{DirEntry, File};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use hostkit::file::{length, open_regular};

use super::{
    GetRequest, GetResponse, HeadResponse, ListedObject, ListingVisitor, LocalBoxFuture,
    ObjectMeta, ObjectStore, ResponseBody, StoreError, StoreErrorKind,
};
use crate::copy::is_temporary;
use crate::source::ArtifactSource;
use upload::{FileUpload, UploadCleanup};

/// Bytes per piece.
const PIECE: u64 = 256 << 10;
/// Directory entries per page of a listing.
const PAGE: usize = 1000;

/// Files of this host. A file's entity tag is made of its length, inode and ctime, so that it changes with every write
/// or replacement.
#[derive(Debug)]
pub(crate) struct FileStore;

/// A range of an open file.
#[derive(Debug)]
pub(crate) struct FileBody {
    file: Option<Arc<File>>,
    at: u64,
    end: u64,
}

impl FileBody {
    fn new(file: File, at: u64, end: u64) -> Self {
        let file = Some(Arc::new(file));
        Self { file, at, end }
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// As pread(2); a file that became shorter is `Transient`, because it is being written.
    pub(crate) async fn next_piece(&mut self) -> Result<Option<Bytes>, StoreError> {
        let Some(file) = self.file.clone().filter(|_| self.at < self.end) else {
            return Ok(None);
        };
        let (at, length) = (self.at, (self.end - self.at).min(PIECE) as usize);
        let piece = blocking(move || {
            let mut piece = vec![0; length];
            let got = file.read_at(&mut piece, at).map_err(unreadable);
            got.map(|got| {
                piece.truncate(got);
                piece
            })
        })
        .await?;
        if piece.is_empty() {
            return Err(StoreError::new(
                StoreErrorKind::Transient,
                "the file was truncated while it was read",
            ));
        }
        self.at += piece.len() as u64;
        Ok(Some(piece.into()))
    }
}

impl Drop for FileBody {
    /// close(2) may block too (FUSE's FLUSH).
    fn drop(&mut self) {
        let file = self.file.take();
        let _ = std::thread::Builder::new().spawn(move || drop(file));
    }
}

/// Runs system calls that may never return, off the runtime's thread.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down.
            Err(_) => std::future::pending().await,
        },
    }
}

/// The error of reading a file of the store, which is never the local disk of the cache.
fn unreadable(error: io::Error) -> StoreError {
    use io::ErrorKind;
    match error.kind() {
        ErrorKind::InvalidInput => {
            StoreError::new(StoreErrorKind::Permanent, error.to_string()).remedy("name a file")
        }
        ErrorKind::InvalidData => StoreError::new(StoreErrorKind::Permanent, error.to_string())
            .remedy("copy it to a regular file first"),
        // A name that is too long is that of the sidecar of a file whose name just fits.
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidFilename => {
            StoreError::new(StoreErrorKind::NotFound, "no such file")
        }
        ErrorKind::PermissionDenied => StoreError::new(StoreErrorKind::Denied, "permission denied")
            .remedy("make it readable for this user"),
        _ => StoreError::new(StoreErrorKind::Transient, "cannot read the file").because(error),
    }
}

fn path(source: &ArtifactSource) -> Result<PathBuf, StoreError> {
    match source {
        ArtifactSource::File(path) => Ok(path.clone()),
        _ => Err(StoreError::new(StoreErrorKind::Permanent, "not a file")),
    }
}

async fn open(source: &ArtifactSource) -> Result<(File, ObjectMeta), StoreError> {
    let path = path(source)?;
    blocking(move || {
        let file = open_regular(&path).map_err(unreadable)?;
        let length = length(&file).map_err(unreadable)?;
        let found = file.metadata().map_err(unreadable)?;
        let tag = format!(
            "\"{length:x}-{:x}-{:x}.{:x}\"",
            found.ino(),
            found.ctime(),
            found.ctime_nsec()
        );
        let meta = ObjectMeta {
            size: Some(length),
            etag: Some(tag),
            ..ObjectMeta::default()
        };
        Ok((file, meta))
    })
    .await
}

fn split(prefix: &ArtifactSource) -> Result<(PathBuf, String), StoreError> {
    let path = path(prefix)?;
    if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return Ok((path.to_owned(), String::new()));
    }
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    Ok((path.parent().unwrap_or(Path::new("/")).to_owned(), name))
}

impl ObjectStore for FileStore {
    fn get<'a>(
        &'a self,
        source: &'a ArtifactSource,
        want: GetRequest,
    ) -> LocalBoxFuture<'a, Result<GetResponse, StoreError>> {
        Box::pin(async move {
            let (file, meta) = open(source).await?;
            if want.if_match.is_some() && want.if_match != meta.etag {
                return Err(StoreError::new(
                    StoreErrorKind::Changed,
                    "the object was replaced during the download",
                ));
            }
            let size = meta.size.unwrap_or(0);
            let (at, end) = match want.range {
                Some((first, last)) => (first.min(size), (last + 1).min(size)),
                None => (0, size),
            };
            let partial = want.range.is_some();
            Ok(GetResponse {
                meta,
                offset: at,
                partial,
                body: ResponseBody::File(FileBody::new(file, at, end)),
            })
        })
    }

    fn head<'a>(
        &'a self,
        source: &'a ArtifactSource,
        unless: Option<&'a str>,
    ) -> LocalBoxFuture<'a, Result<HeadResponse, StoreError>> {
        Box::pin(async move {
            let (body, meta) = open(source).await?;
            drop(FileBody::new(body, 0, 0));
            Ok(if unless.is_some() && unless == meta.etag.as_deref() {
                HeadResponse::NotModified
            } else {
                HeadResponse::Found(meta)
            })
        })
    }

    fn put<'a>(
        &'a self,
        source: &'a ArtifactSource,
        file: &'a Path,
        _: &'a str,
        replace: bool,
    ) -> LocalBoxFuture<'a, Result<(), StoreError>> {
        let file = file.to_owned();
        Box::pin(async move {
            let place = split(source)?;
            let upload = Arc::new(blocking(move || FileUpload::begin(place)).await?);
            // Dropped with this future, while a thread may still copy.
            let _removal = UploadCleanup(upload.clone());
            blocking(move || upload.finish(&file, replace)).await
        })
    }

    fn list<'a>(
        &'a self,
        prefix: &'a ArtifactSource,
        each: ListingVisitor<'a>,
    ) -> LocalBoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let (parent, start) = split(prefix)?;
            // The directory may be on a server that does not answer, or have no end: a thread reads it.
            let (pages, mut received) = tokio::sync::mpsc::channel(1);
            tokio::task::spawn_blocking(move || read_pages(&parent, &start, &pages));
            while let Some(page) = received.recv().await {
                for object in page? {
                    if each(object).is_break() {
                        return Ok(());
                    }
                }
            }
            Ok(())
        })
    }
}

type ListingPage = Result<Vec<ListedObject>, StoreError>;

/// Sends the files of a directory whose name starts with `start`, until the receiver is dropped.
fn read_pages(directory: &Path, start: &str, pages: &tokio::sync::mpsc::Sender<ListingPage>) {
    let mut entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => {
            let _ = pages.blocking_send(Err(unreadable(error)));
            return;
        }
    };
    loop {
        let mut looked_at = 0;
        let page: Result<Vec<_>, _> = entries
            .by_ref()
            .take(PAGE)
            .inspect(|_| looked_at += 1)
            .filter_map(|entry| listed(entry, start).transpose())
            .collect();
        let last = looked_at < PAGE || page.is_err();
        if pages.blocking_send(page.map_err(unreadable)).is_err() || last {
            return;
        }
    }
}

/// The listed object of a directory entry; `None` when it does not match, is not published yet, or is gone by now.
fn listed(entry: io::Result<DirEntry>, start: &str) -> io::Result<Option<ListedObject>> {
    let entry = entry?;
    let name = entry.file_name().to_string_lossy().into_owned();
    if !name.starts_with(start) || is_temporary(&name) {
        return Ok(None);
    }
    let metadata = match entry.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let name = match metadata.is_dir() {
        true if start.is_empty() => format!("{name}/"),
        false if metadata.is_file() => name,
        _ => return Ok(None),
    };
    let modified = metadata.modified()?.max(std::time::SystemTime::UNIX_EPOCH);
    Ok(Some(ListedObject {
        name,
        modified: humantime::format_rfc3339_seconds(modified).to_string(),
        size: metadata.len(),
    }))
}
