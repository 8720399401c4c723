//! The reading side. Lines that are not entries are passed over: a crash tears the last one, and the writer that comes
//! after it goes on below.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::SystemTime;

use hostkit::dir::Dir;

use super::{CURRENT, Entry, OLDER};

/// The longest line that is looked at; the writer's are shorter.
const LINE: u64 = 32 << 10;

/// Which entries are wanted.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Those of this time and later.
    pub since: Option<SystemTime>,
    /// Those of this service; what concerns no service is not among them.
    pub service: Option<String>,
}

impl Filter {
    fn wants(&self, entry: &Entry) -> bool {
        self.since.is_none_or(|since| entry.time >= since)
            && (self.service.is_none() || self.service == entry.service)
    }
}

/// The entries of both files in a directory, oldest first. Without files there are none.
///
/// # Errors
/// The directory or a file cannot be opened. An error in the middle of a file ends the entries of that file.
pub fn read(directory: &Path, filter: &Filter) -> io::Result<impl Iterator<Item = Entry> + use<>> {
    let filter = filter.clone();
    let files = open(&Dir::open(directory)?)?;
    Ok(files
        .into_iter()
        .flat_map(|file| Entries(BufReader::new(file)))
        .filter(move |entry| filter.wants(entry)))
}

/// The last `count` of some entries.
#[must_use]
pub fn last(entries: impl Iterator<Item = Entry>, count: usize) -> VecDeque<Entry> {
    let mut kept = VecDeque::new();
    for entry in entries {
        kept.push_back(entry);
        if kept.len() > count {
            kept.pop_front();
        }
    }
    kept
}

/// Both files, older first, as they were at one moment.
fn open(dir: &Dir) -> io::Result<Vec<File>> {
    loop {
        let current = existing(dir, CURRENT)?;
        let older = existing(dir, OLDER)?;
        // The current file became the older one in between: what is current now would be missed.
        match (&older, &current) {
            (Some(older), Some(current)) if identity(older)? == identity(current)? => {}
            _ => return Ok([older, current].into_iter().flatten().collect()),
        }
    }
}

fn existing(dir: &Dir, name: &str) -> io::Result<Option<File>> {
    match dir.open_file(name) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn identity(file: &File) -> io::Result<(u64, u64)> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

/// The entries of one file.
struct Entries(BufReader<File>);

impl Iterator for Entries {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        loop {
            match line(&mut self.0) {
                Ok(Some((bytes, _))) => {
                    if let Ok(entry) = serde_json::from_slice(&bytes) {
                        return Some(entry);
                    }
                }
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

/// The next line and how many bytes of the file it takes; `None` at the end, also when a last line is not ended. Of a
/// line that is too long only the beginning is given.
fn line(file: &mut impl BufRead) -> io::Result<Option<(Vec<u8>, u64)>> {
    let mut bytes = Vec::new();
    file.by_ref().take(LINE).read_until(b'\n', &mut bytes)?;
    let mut length = bytes.len() as u64;
    if bytes.last() == Some(&b'\n') {
        return Ok(Some((bytes, length)));
    }
    if length < LINE {
        return Ok(None);
    }
    length += file.skip_until(b'\n')? as u64;
    Ok(Some((bytes, length)))
}

/// Follows the journal as it grows, across the change of files.
#[derive(Debug)]
pub struct Follow {
    dir: Dir,
    filter: Filter,
    file: Option<File>,
    position: u64,
}

impl Follow {
    /// Begins with what is written from now on.
    ///
    /// # Errors
    /// The directory or the file cannot be opened.
    pub fn new(directory: &Path, filter: Filter) -> io::Result<Self> {
        let dir = Dir::open(directory)?;
        let file = existing(&dir, CURRENT)?;
        let position = file
            .as_ref()
            .map_or(Ok(0), |file| file.metadata().map(|metadata| metadata.len()))?;
        Ok(Self {
            dir,
            filter,
            file,
            position,
        })
    }

    /// What was written since the last call. To be called a few times a second.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn more(&mut self) -> io::Result<Vec<Entry>> {
        // Looked at before the rest of the old file is read: nothing is written there once the new one exists.
        let current = existing(&self.dir, CURRENT)?;
        let mut entries = Vec::new();
        if let Some(file) = &self.file {
            self.position = rest(file, self.position, &mut entries)?;
        }
        let is_other = match (&self.file, &current) {
            (Some(old), Some(new)) => identity(old)? != identity(new)?,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if let Some(current) = current.filter(|_| is_other) {
            self.position = rest(&current, 0, &mut entries)?;
            self.file = Some(current);
        }
        entries.retain(|entry| self.filter.wants(entry));
        Ok(entries)
    }
}

/// Reads whole lines from a position on, and returns the position behind the last one.
fn rest(mut file: &File, mut position: u64, entries: &mut Vec<Entry>) -> io::Result<u64> {
    file.seek(SeekFrom::Start(position))?;
    let mut reader = BufReader::new(file);
    while let Some((bytes, length)) = line(&mut reader)? {
        position += length;
        entries.extend(serde_json::from_slice::<Entry>(&bytes).ok());
    }
    Ok(position)
}
