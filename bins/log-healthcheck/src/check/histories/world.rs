//! Files on a real filesystem, what is done to them, and what the model remembers and decides.

use super::kept::{Kept, newest_of};
use super::*;

struct Writer {
    /// Into [`World::files`]; `None` when its file is gone, or not made yet.
    file: Option<usize>,
    place: u64,
    /// The rest of the line it is in.
    rest: Vec<u8>,
}

pub(super) struct World {
    pub(super) home: TempDir,
    style: Style,
    pub(super) now: i64,
    count: u64,
    run: u64,
    files: Vec<Kept>,
    writers: [Writer; 2],
    /// The logs of the run before, which its writers had when it ended.
    orphaned: [Option<usize>; 2],
    /// When the directory of the run was made.
    pub(super) birth: i64,
    // What the model remembers, as the state file does.
    first_check: Option<i64>,
    newest: Option<i64>,
    seen_run: u64,
}

impl World {
    pub(super) fn new(style: Style) -> Self {
        let memory = Path::new("/dev/shm");
        let home = if memory.is_dir() {
            TempDir::new_in(memory)
        } else {
            TempDir::new()
        };
        let writer = || Writer {
            file: None,
            place: 0,
            rest: Vec::new(),
        };
        let mut world = Self {
            home: home.unwrap(),
            style,
            now: START,
            count: 0,
            run: 0,
            files: Vec::new(),
            writers: [writer(), writer()],
            orphaned: [None, None],
            birth: START,
            first_check: None,
            newest: None,
            seen_run: 0,
        };
        world.start();
        world
    }

    pub(super) fn directory(&self) -> PathBuf {
        self.home.path().join(format!(".logs/app/{}", self.run))
    }

    pub(super) fn start(&mut self) {
        fs::create_dir_all(self.directory()).unwrap();
        self.birth = self.now;
        for stream in 0..2 {
            self.writers[stream].rest.clear();
            self.make(stream);
        }
    }

    /// Makes the log of a stream, and lets the writer use it.
    pub(super) fn make(&mut self, stream: usize) {
        let path = self.directory().join(["stdout", "stderr"][stream]);
        File::create_new(&path).unwrap();
        let run = self.run;
        self.writers[stream].file = Some(self.files.len());
        self.writers[stream].place = 0;
        let (bytes, modified) = (Vec::new(), self.now);
        self.files.push(Kept {
            path,
            run,
            rotated: 0,
            stream,
            bytes,
            modified,
            seen: 0,
            seen_modified: 0,
            read: Vec::new(),
            is_new_copy: false,
        });
        self.touch(self.files.len() - 1);
    }

    pub(super) fn touch(&mut self, index: usize) {
        let kept = &mut self.files[index];
        kept.modified = self.now;
        let file = OpenOptions::new().write(true).open(&kept.path).unwrap();
        file.set_modified(time(self.now)).unwrap();
    }

    pub(super) fn restart(&mut self) {
        self.orphaned = [0, 1].map(|stream| self.writers[stream].file);
        self.run += 1;
        self.start();
    }

    pub(super) fn orphan(&mut self, stream: usize, line: &Line) {
        if let Some(index) = self.orphaned[stream].filter(|index| !self.files[*index].is_in_line())
        {
            let text = self.text(line);
            let kept = &mut self.files[index];
            let file = OpenOptions::new().write(true).open(&kept.path).unwrap();
            file.write_all_at(text.as_bytes(), kept.bytes.len() as u64)
                .unwrap();
            kept.bytes.extend_from_slice(text.as_bytes());
            self.touch(index);
        }
    }

    pub(super) fn text(&mut self, line: &Line) -> String {
        self.count += 1;
        match line {
            Line::Bare => format!("{{\"n\":{}}}\n", self.count),
            Line::Same => "{\"ok\":true}\n".to_owned(),
            Line::Timed(away) => {
                let time = humantime::format_rfc3339_millis(time(self.now + away));
                format!("{{\"n\":{},\"@timestamp\":\"{time}\"}}\n", self.count)
            }
            Line::Noise => format!("noise {} {{\n", self.count),
            Line::Empty => "\n".to_owned(),
        }
    }

    pub(super) fn write(&mut self, stream: usize, line: &Line, cut: Option<usize>) {
        let text = self.text(line);
        let writer = &mut self.writers[stream];
        let mut bytes = std::mem::take(&mut writer.rest);
        // The cut is in the new line, counted from its end where its time is.
        let cut = text.len() - cut.unwrap_or(0).min(text.len() - 1);
        bytes.extend_from_slice(&text.as_bytes()[..cut]);
        writer.rest = text.as_bytes()[cut..].to_vec();
        match (self.writers[stream].file, self.log(stream)) {
            (Some(_), _) => {}
            // Its file was the oldest, and is gone: it begins with the new one at last.
            (None, Some(log)) => {
                self.writers[stream].file = Some(log);
                self.writers[stream].place = self.files[log].bytes.len() as u64;
            }
            (None, None) => self.make(stream),
        }
        let writer = &mut self.writers[stream];
        let index = writer.file.unwrap();
        let kept = &mut self.files[index];
        let place = if self.style.appends {
            kept.bytes.len() as u64
        } else {
            writer.place
        };
        let end = place as usize + bytes.len();
        kept.bytes.resize(kept.bytes.len().max(end), 0);
        kept.bytes[place as usize..end].copy_from_slice(&bytes);
        writer.place = end as u64;
        let file = OpenOptions::new().write(true).open(&kept.path).unwrap();
        file.write_all_at(&bytes, place).unwrap();
        self.touch(index);
    }

    /// The log itself, if it is there.
    pub(super) fn log(&self, stream: usize) -> Option<usize> {
        let here = |kept: &Kept| kept.run == self.run && kept.stream == stream && kept.rotated == 0;
        self.files.iter().position(here)
    }

    /// Counts the rotated files of a stream up, for which the oldest is removed.
    pub(super) fn shift(&mut self, stream: usize) {
        let run = self.run;
        let ours = |kept: &Kept| kept.run == run && kept.stream == stream;
        let oldest = |kept: &Kept| ours(kept) && kept.rotated == KEPT;
        if let Some(index) = self.files.iter().position(oldest) {
            fs::remove_file(&self.files[index].path).unwrap();
            self.remove(index);
        }
        let base = self.directory().join(["stdout", "stderr"][stream]);
        for rotated in (1..KEPT).rev() {
            for kept in self
                .files
                .iter_mut()
                .filter(|kept| ours(kept) && kept.rotated == rotated)
            {
                kept.rotate(&base);
            }
        }
    }

    pub(super) fn rotate(&mut self, stream: usize, make: bool, reopen: bool) {
        let Some(log) = self.log(stream) else {
            return;
        };
        if self.style.copies {
            return self.truncate(stream, true);
        }
        self.shift(stream);
        let base = self.files[log].path.clone();
        self.files[log].rotate(&base);
        if make {
            let (file, place) = (self.writers[stream].file, self.writers[stream].place);
            self.make(stream);
            if !reopen {
                (self.writers[stream].file, self.writers[stream].place) = (file, place);
            }
        } else if reopen {
            self.writers[stream].file = None;
        }
    }

    pub(super) fn truncate(&mut self, stream: usize, copy: bool) {
        let Some(log) = self.log(stream) else {
            return;
        };
        if self.files[log].is_passed_over() {
            return;
        }
        if copy {
            self.shift(stream);
            let mut kept = self.files[log].clone();
            if !kept.is_recognised() {
                (kept.seen, kept.read) = (0, Vec::new());
            }
            let base = kept.path.clone();
            kept.path = base.with_extension("1");
            kept.rotated = 1;
            kept.is_new_copy = true;
            fs::copy(&base, &kept.path).unwrap();
            // It is another file, which nothing was written to since.
            kept.seen_modified = self.now;
            self.files.push(kept);
            self.touch(self.files.len() - 1);
        }
        let kept = &mut self.files[log];
        kept.bytes.clear();
        OpenOptions::new()
            .write(true)
            .open(&kept.path)
            .unwrap()
            .set_len(0)
            .unwrap();
        self.touch(log);
    }

    pub(super) fn rewrite(&mut self, stream: usize, way: Rewrite, same: bool) {
        let Some(log) = self.log(stream) else {
            return;
        };
        let kept = &self.files[log];
        let length = kept.bytes.len();
        let is_seen = matches!(way, Rewrite::Rename)
            || matches!(way, Rewrite::Overwrite) && length == kept.seen;
        if kept.is_in_line() || kept.is_passed_over() && !is_seen {
            return;
        }
        self.count += 1;
        let bytes = match way {
            _ if same => kept.bytes.clone(),
            Rewrite::Overwrite if length < 12 => kept.bytes.clone(),
            Rewrite::Overwrite => format!("{{\"n\":{:01$}}}\n", self.count, length - 7).into(),
            _ => format!("{{\"n\":{}}}\n", self.count).into_bytes(),
        };
        let path = kept.path.clone();
        match way {
            Rewrite::Truncate => fs::write(&path, &bytes).unwrap(),
            Rewrite::Overwrite => {
                let file = OpenOptions::new().write(true).open(&path).unwrap();
                file.write_all_at(&bytes, 0).unwrap();
            }
            Rewrite::Rename => {
                let other = path.with_extension("new");
                fs::write(&other, &bytes).unwrap();
                fs::rename(&other, &path).unwrap();
            }
        }
        let index = match way {
            Rewrite::Rename => {
                self.remove(log);
                let run = self.run;
                let copies =
                    |kept: &&mut Kept| kept.run == run && kept.stream == stream && kept.is_new_copy;
                for kept in self.files.iter_mut().filter(copies) {
                    (kept.seen, kept.read) = (0, Vec::new());
                }
                self.files.push(Kept {
                    path,
                    run: self.run,
                    rotated: 0,
                    stream,
                    bytes: Vec::new(),
                    modified: 0,
                    seen: 0,
                    seen_modified: 0,
                    read: Vec::new(),
                    is_new_copy: false,
                });
                self.files.len() - 1
            }
            _ => log,
        };
        self.writers[stream] = Writer {
            file: Some(index),
            place: bytes.len() as u64,
            rest: Vec::new(),
        };
        self.files[index].bytes = bytes;
        self.touch(index);
    }

    /// Takes a file that is gone out of the world. Its place in the list stays: writers count on it.
    pub(super) fn remove(&mut self, index: usize) {
        self.files[index].run = u64::MAX;
        self.files[index].path = PathBuf::new();
        for writer in &mut self.writers {
            writer.file = writer.file.filter(|file| *file != index);
        }
    }

    pub(super) fn forget(&mut self, state: &Path) {
        let _ = fs::remove_file(state);
        (self.first_check, self.newest) = (None, None);
        for kept in &mut self.files {
            (kept.seen, kept.read) = (0, Vec::new());
        }
    }

    /// Whether the rule calls this healthy.
    pub(super) fn healthy(&mut self) -> bool {
        let now = self.now;
        let first = self.first_check.is_none();
        let first_check = self.first_check.unwrap_or(now).min(now);
        let since = if first { self.run } else { self.seen_run };
        let mut newest = self.newest;
        let mut logs = 0;
        let mut written = false;
        for kept in self
            .files
            .iter_mut()
            .filter(|kept| (since..u64::MAX).contains(&kept.run))
        {
            let fresh = now - kept.modified <= FRESHNESS;
            // What an earlier run writes after its end does not count.
            let until = if kept.run < self.run {
                self.birth
            } else {
                i64::MAX
            };
            if kept.rotated == 0 {
                logs += 1;
                written |= now - kept.modified.min(until) <= FRESHNESS;
            }
            let length = kept.bytes.len();
            if !fresh || first && kept.rotated > 0 {
                if length < kept.seen {
                    kept.read.clear();
                }
            } else {
                let known = kept.known();
                let found = newest_of(&kept.bytes, known, kept.modified, until);
                newest = newest.max(found.map(|found| found.min(now)));
                if (known, kept.seen) != (length, length) {
                    kept.read = kept.bytes.clone();
                }
            }
            (kept.seen, kept.seen_modified) = (length, kept.modified);
            kept.is_new_copy = false;
        }
        newest = newest.map(|newest| newest.min(now));
        (self.first_check, self.newest, self.seen_run) = (Some(first_check), newest, self.run);
        match newest {
            Some(newest) if now - newest <= FRESHNESS => true,
            Some(_) => false,
            None => logs > 0 && written && now - first_check <= FRESHNESS,
        }
    }
}
