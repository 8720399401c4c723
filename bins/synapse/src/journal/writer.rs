//! The writing side: a bounded queue, and a thread that a slow disk may stop without stopping anything else.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use hostkit::dir::Dir;
use hostkit::{Exit, Failure};

use super::{CURRENT, Entry, FULL, Kind, OLDER};
use crate::metrics::Counter;

/// Entries that wait for the disk.
const QUEUE: usize = 8192;
/// Entries written by one call.
const BATCH: usize = 64;
/// How long the end waits for the last entries to be written.
const LAST: Duration = Duration::from_secs(2);
/// Who may read the journal: anyone, as the state file.
const MODE: u32 = 0o644;

/// Where entries go in. Dropping it writes what is queued.
#[derive(Debug)]
pub struct Journal {
    queue: Option<SyncSender<Box<Entry>>>,
    ended: Receiver<()>,
    dropped: Counter,
}

impl Journal {
    /// Opens the journal in the state file's directory and starts its thread. `dropped` counts entries that are lost.
    ///
    /// # Errors
    /// The file cannot be opened or the thread not be started (exit 73).
    pub fn open(directory: &Path, dropped: Counter) -> Result<Self, Failure> {
        let start = || {
            let lines = Lines::open(Dir::open(directory)?)?;
            let (queue, entries) = sync_channel(QUEUE);
            let (end, ended) = sync_channel(1);
            let lost = dropped.clone();
            let told = dropped.get();
            std::thread::Builder::new()
                .name("journal".to_owned())
                .spawn(move || {
                    run(lines, &entries, &lost, told);
                    drop(end);
                })?;
            Ok(Self {
                queue: Some(queue),
                ended,
                dropped: dropped.clone(),
            })
        };
        start().map_err(|error: io::Error| {
            let path = directory.join(CURRENT);
            Failure::new(
                Exit::CANNOT_CREATE,
                format!("cannot write {}", path.display()),
            )
            .remedy("its directory must exist and belong to the user that synapse runs as")
            .because(error)
        })
    }

    /// Queues an entry. It is in the file a moment later, where it survives the death of this process; when the disk
    /// does not keep up it is lost, and the journal says so.
    pub fn append(&self, mut entry: Entry) {
        entry.cut();
        let Some(queue) = &self.queue else { return };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            queue.try_send(Box::new(entry))
        {
            self.dropped.inc();
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        drop(self.queue.take());
        // Disconnected: the thread has written everything. A disk that hangs must not keep the process.
        let _ = self.ended.recv_timeout(LAST);
    }
}

/// Writes what comes, until nobody can append any more. Of the dropped entries `told` are known to the reader.
fn run(mut lines: Lines, entries: &Receiver<Box<Entry>>, dropped: &Counter, mut told: u64) {
    let mut broken = false;
    let mut text = Vec::new();
    while let Ok(first) = entries.recv() {
        let mut batch = vec![first];
        batch.extend(entries.try_iter().take(BATCH - 1));
        let lost = dropped.get();
        if lost > told {
            let mut entry = Entry::now(Kind::Dropped);
            entry.detail = Some((lost - told).to_string());
            batch.insert(0, Box::new(entry));
        }
        text.clear();
        for entry in &batch {
            // An entry of texts and numbers has no reason not to be JSON.
            if serde_json::to_writer(&mut text, entry).is_ok() {
                text.push(b'\n');
            }
        }
        match lines.append(&text) {
            Ok(()) => {
                told = lost;
                broken = false;
            }
            Err(error) => {
                dropped.inc_by(
                    batch
                        .iter()
                        .filter(|entry| entry.kind != Kind::Dropped)
                        .count() as u64,
                );
                if !broken {
                    tracing::warn!(%error, "cannot write the journal: entries are lost until it can be written again");
                }
                broken = true;
            }
        }
    }
}

/// The files.
struct Lines {
    dir: Dir,
    file: File,
    size: u64,
}

impl Lines {
    fn open(dir: Dir) -> io::Result<Self> {
        let mut file = dir.open_or_create(CURRENT, MODE)?;
        let size = file.seek(SeekFrom::End(0))?;
        let mut lines = Self { dir, file, size };
        lines.end_line()?;
        Ok(lines)
    }

    /// Ends a line that a crash has torn, so that the next entry is whole.
    fn end_line(&mut self) -> io::Result<()> {
        if self.size == 0 {
            return Ok(());
        }
        let mut last = [0];
        self.file.seek(SeekFrom::Start(self.size - 1))?;
        self.file.read_exact(&mut last)?;
        if last != *b"\n" {
            self.file.write_all(b"\n")?;
            self.size += 1;
        }
        Ok(())
    }

    /// Writes whole lines, into a new file when the old one is full.
    fn append(&mut self, text: &[u8]) -> io::Result<()> {
        if !self.dir.is_at(&self.file, CURRENT)? {
            // Somebody has tidied up.
            *self = Self::open(Dir::open(self.dir.path())?)?;
        }
        if self.size > 0 && self.size + text.len() as u64 > FULL {
            self.dir.rename(CURRENT, &self.dir, OLDER)?;
            self.file = self.dir.open_or_create(CURRENT, MODE)?;
            self.size = 0;
        }
        let written = self.file.write_all(text);
        if written.is_err() {
            // A full disk takes part of it: what was begun goes, or the next entry would go on there.
            self.file.set_len(self.size)?;
            self.file.seek(SeekFrom::Start(self.size))?;
        } else {
            self.size += text.len() as u64;
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_that_the_disk_refuses_are_counted_and_told_when_it_takes_them_again() {
        let temp = tempfile::tempdir().unwrap();
        let (queue, entries) = sync_channel(QUEUE);
        let dropped = Counter::default();
        let mut lines = Lines::open(Dir::open(temp.path()).unwrap()).unwrap();
        // A handle that cannot be written to stands for the disk that is full.
        lines.file = File::open(temp.path().join(CURRENT)).unwrap();
        for _ in 0..BATCH {
            queue.send(Box::new(Entry::now(Kind::Config))).unwrap();
        }
        let mut last = Entry::now(Kind::Stop);
        last.detail = Some("after".to_owned());
        std::thread::scope(|scope| {
            let writer = scope.spawn({
                let dropped = dropped.clone();
                move || run(lines, &entries, &dropped, 0)
            });
            while dropped.get() < BATCH as u64 {
                std::thread::yield_now();
            }
            // The file is made anew where it is gone.
            std::fs::remove_file(temp.path().join(CURRENT)).unwrap();
            queue.send(Box::new(last)).unwrap();
            drop(queue);
            writer.join().unwrap();
        });
        let text = std::fs::read_to_string(temp.path().join(CURRENT)).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(
            lines[0].contains("\"dropped\"") && lines[0].contains("\"64\""),
            "{text}"
        );
        assert!(lines[1].contains("after"));
    }
}
