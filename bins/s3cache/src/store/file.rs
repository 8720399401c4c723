//! The store behind `file:///`: a directory, such as a mounted share or a checkout on a build machine.

use std::fs::{DirEntry, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use hostkit::dir::Dir;

use super::{Body, Boxed, Get, Head, Kind, Listed, Meta, ObjectStore, Reply, StoreError, Visitor};
use crate::source::Source;

/// Bytes handed on at once.
const PIECE: u64 = 256 << 10;
/// Entries of a directory that are looked at before those found are handed on.
const PAGE: usize = 1000;

/// Files of this host. The entity tag of a file is made of its length, inode and times: a file that is replaced or
/// written gets another one.
#[derive(Debug)]
pub struct FileStore;

/// A range of an open file.
#[derive(Debug)]
pub struct FileBody {
    file: File,
    at: u64,
    end: u64,
}

impl FileBody {
    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// As pread(2); a file that became shorter is `Transient`, because it is being written.
    pub fn next_piece(&mut self) -> Result<Option<Bytes>, StoreError> {
        if self.at == self.end {
            return Ok(None);
        }
        let mut piece = vec![0; (self.end - self.at).min(PIECE) as usize];
        let got = self.file.read_at(&mut piece, self.at)?;
        if got == 0 {
            return Err(StoreError::new(
                Kind::Transient,
                "the file became shorter while it was read",
            ));
        }
        piece.truncate(got);
        self.at += got as u64;
        Ok(Some(piece.into()))
    }
}

fn path(source: &Source) -> Result<&Path, StoreError> {
    match source {
        Source::File(path) => Ok(path),
        _ => Err(StoreError::new(Kind::Fatal, "not a file")),
    }
}

fn open(source: &Source) -> Result<(File, Meta), StoreError> {
    let file = File::open(path(source)?)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(StoreError::new(Kind::Fatal, "not a regular file").remedy("name a file"));
    }
    let tag = format!(
        "\"{:x}-{:x}-{:x}.{:x}\"",
        found.len(),
        found.ino(),
        found.ctime(),
        found.ctime_nsec()
    );
    Ok((
        file,
        Meta {
            size: Some(found.len()),
            etag: Some(tag),
            ..Meta::default()
        },
    ))
}

fn split(prefix: &Source) -> Result<(PathBuf, String), StoreError> {
    let path = path(prefix)?;
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    Ok((path.parent().unwrap_or(Path::new("/")).to_owned(), name))
}

impl ObjectStore for FileStore {
    fn get<'a>(&'a self, source: &'a Source, want: Get) -> Boxed<'a, Result<Reply, StoreError>> {
        Box::pin(async move {
            let (file, meta) = open(source)?;
            if want.if_match.is_some() && want.if_match != meta.etag {
                return Err(StoreError::new(
                    Kind::Changed,
                    "it was replaced in mid-flight",
                ));
            }
            let size = meta.size.unwrap_or(0);
            let (at, end) = match want.range {
                Some((first, last)) => (first.min(size), (last + 1).min(size)),
                None => (0, size),
            };
            let partial = want.range.is_some();
            Ok(Reply {
                meta,
                offset: at,
                partial,
                body: Body::File(FileBody { file, at, end }),
            })
        })
    }

    fn head<'a>(
        &'a self,
        source: &'a Source,
        unless: Option<&'a str>,
    ) -> Boxed<'a, Result<Head, StoreError>> {
        Box::pin(async move {
            let (_, meta) = open(source)?;
            Ok(if unless.is_some() && unless == meta.etag.as_deref() {
                Head::NotModified
            } else {
                Head::Found(meta)
            })
        })
    }

    fn put<'a>(
        &'a self,
        source: &'a Source,
        file: &'a Path,
        _: &'a str,
        replace: bool,
    ) -> Boxed<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let (parent, name) = split(source)?;
            std::fs::create_dir_all(&parent)?;
            let dir = Dir::open(&parent)?;
            let temp = format!(".{name}.{}.tmp", std::process::id());
            let _ = dir.remove_file(&temp);
            let result = (|| {
                let mut copy = dir.create_new(&temp, 0o644)?;
                std::io::copy(&mut File::open(file)?, &mut copy)?;
                copy.flush()?;
                copy.sync_all()?;
                if replace {
                    return dir.rename(&temp, &dir, &name);
                }
                // A link, unlike a rename, never replaces what somebody else published meanwhile.
                dir.link(&temp, &name)
            })();
            let _ = dir.remove_file(&temp);
            match result {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    Err(StoreError::new(Kind::Exists, "it exists already"))
                }
                Err(error) => Err(error.into()),
                Ok(()) => Ok(dir.sync()?),
            }
        })
    }

    fn list<'a>(
        &'a self,
        prefix: &'a Source,
        each: Visitor<'a>,
    ) -> Boxed<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let (parent, start) = split(prefix)?;
            // A directory may be on a server that does not answer, and its end may never come: a thread reads it.
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

type Page = Result<Vec<Listed>, StoreError>;

/// Sends the files of a directory whose name begins with `start`, until nothing receives them any more.
fn read_pages(directory: &Path, start: &str, pages: &tokio::sync::mpsc::Sender<Page>) {
    let mut entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => {
            let _ = pages.blocking_send(Err(error.into()));
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
        if pages.blocking_send(page.map_err(Into::into)).is_err() || last {
            return;
        }
    }
}

/// The file of a directory entry; `None` when it is not one, is called otherwise, or is gone by now.
fn listed(entry: io::Result<DirEntry>, start: &str) -> io::Result<Option<Listed>> {
    let entry = entry?;
    let name = entry.file_name().to_string_lossy().into_owned();
    if !name.starts_with(start) {
        return Ok(None);
    }
    let metadata = match entry.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    if !metadata.is_file() {
        return Ok(None);
    }
    let modified = metadata.modified()?.max(std::time::SystemTime::UNIX_EPOCH);
    Ok(Some(Listed {
        name,
        modified: humantime::format_rfc3339_seconds(modified).to_string(),
        size: metadata.len(),
    }))
}
