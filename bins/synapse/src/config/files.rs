//! The files of a configuration: which there are, and their text.

use std::borrow::Cow;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use hostkit::{Exit, Failure};

use super::Sources;

/// A file larger than this is no configuration (bytes).
const LIMIT: u64 = 64 << 20;

/// Files that are read from one directory at most.
const FILES: usize = 10_000;

/// A file that was read.
pub(super) struct File {
    pub(super) path: PathBuf,
    pub(super) text: String,
}

impl File {
    /// The name of the service that a file of `service_conf_dir` holds.
    pub(super) fn service(&self) -> Cow<'_, str> {
        self.path.file_stem().unwrap_or_default().to_string_lossy()
    }
}

/// The one file that is named, or `synapse.yaml` and its drop-ins in byte order.
pub(super) fn main(sources: &Sources) -> Result<Vec<File>, Failure> {
    if let Some(file) = &sources.file {
        return Ok(vec![read(file)?]);
    }
    let main = sources.directory.join("synapse.yaml");
    let drop_ins = sources.directory.join("synapse.d");
    let mut files = Vec::new();
    if main.exists() {
        files.push(read(&main)?);
    }
    for path in list(&drop_ins, &["yaml"])?.unwrap_or_default() {
        files.push(read(&path)?);
    }
    if files.is_empty() {
        return Err(Failure::new(
            Exit::CONFIG,
            format!("there is no configuration {}", main.display()),
        )
        .remedy("write it, or name another with --config"));
    }
    Ok(files)
}

/// The files of `service_conf_dir` in byte order; `None` if there is no such directory.
pub(super) fn services(directory: &Path) -> Result<Option<Vec<File>>, Failure> {
    let Some(paths) = list(directory, &["json", "yaml"])? else {
        return Ok(None);
    };
    paths
        .iter()
        .map(|path| read(path))
        .collect::<Result<_, _>>()
        .map(Some)
}

fn list(directory: &Path, extensions: &[&str]) -> Result<Option<Vec<PathBuf>>, Failure> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(unreadable(directory, error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| unreadable(directory, error))?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if extension.is_some_and(|extension| extensions.contains(&extension)) {
            paths.push(path);
        }
    }
    if paths.len() > FILES {
        return Err(Failure::new(
            Exit::CONFIG,
            format!("{} holds {} files", directory.display(), paths.len()),
        )
        .remedy("10,000 are read at most"));
    }
    paths.sort();
    Ok(Some(paths))
}

fn read(path: &Path) -> Result<File, Failure> {
    let mut text = String::new();
    fs::File::open(path)
        .and_then(|file| file.take(LIMIT + 1).read_to_string(&mut text))
        .map_err(|error| unreadable(path, error))?;
    if text.len() as u64 > LIMIT {
        return Err(Failure::new(
            Exit::CONFIG,
            format!("{} is larger than 64 MiB", path.display()),
        )
        .remedy("split it: `service_conf_dir` takes a file per service"));
    }
    Ok(File {
        path: path.to_owned(),
        text,
    })
}

fn unreadable(path: &Path, error: io::Error) -> Failure {
    Failure::new(
        Exit::CONFIG,
        format!("cannot read the configuration {}", path.display()),
    )
    .because(error)
}
