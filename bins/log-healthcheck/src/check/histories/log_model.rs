//! The model of the logs: operations on real files, and the expected verdicts.

use super::model_file::{ModelFile, newest_line_time};
use super::*;

struct LogWriter {
    /// An index of [`LogModel::files`]; `None` if the file is removed or not created yet.
    file: Option<usize>,
    place: u64,
    /// The rest of the current line.
    rest: Vec<u8>,
}

pub(super) struct LogModel {
    pub(super) home: TempDir,
    style: RotationStyle,
    pub(super) now: i64,
    count: u64,
    run: u64,
    files: Vec<ModelFile>,
    writers: [LogWriter; 2],
    /// The logs that the writers of the previous run had open.
    orphans: [Option<usize>; 2],
    /// The creation time of the run directory.
    pub(super) birth: i64,
    // The state, as in the state file.
    first_check: Option<i64>,
    newest: Option<i64>,
    last_run: u64,
}

impl LogModel {
    pub(super) fn new(style: RotationStyle) -> Self {
        let memory = Path::new("/dev/shm");
        let home = if memory.is_dir() {
            TempDir::new_in(memory)
        } else {
            TempDir::new()
        };
        let writer = || LogWriter {
            file: None,
            place: 0,
            rest: Vec::new(),
        };
        let mut model = Self {
            home: home.unwrap(),
            style,
            now: START,
            count: 0,
            run: 0,
            files: Vec::new(),
            writers: [writer(), writer()],
            orphans: [None, None],
            birth: START,
            first_check: None,
            newest: None,
            last_run: 0,
        };
        model.start();
        model
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

    /// Creates the log of a stream and opens it for the writer.
    pub(super) fn make(&mut self, stream: usize) {
        let path = self.directory().join(["stdout", "stderr"][stream]);
        File::create_new(&path).unwrap();
        let run = self.run;
        self.writers[stream].file = Some(self.files.len());
        self.writers[stream].place = 0;
        let (bytes, modified) = (Vec::new(), self.now);
        self.files.push(ModelFile {
            path,
            run,
            rotated: 0,
            stream,
            bytes,
            modified,
            checked_length: 0,
            checked_modified: 0,
            checked_bytes: Vec::new(),
            is_new_copy: false,
        });
        self.touch(self.files.len() - 1);
    }

    pub(super) fn touch(&mut self, index: usize) {
        let file = &mut self.files[index];
        file.modified = self.now;
        let handle = OpenOptions::new().write(true).open(&file.path).unwrap();
        handle.set_modified(time(self.now)).unwrap();
    }

    pub(super) fn restart(&mut self) {
        self.orphans = [0, 1].map(|stream| self.writers[stream].file);
        self.run += 1;
        self.start();
    }

    pub(super) fn orphan(&mut self, stream: usize, line: &LogLine) {
        if let Some(index) =
            self.orphans[stream].filter(|index| !self.files[*index].ends_in_partial_line())
        {
            let text = self.text(line);
            let file = &mut self.files[index];
            let handle = OpenOptions::new().write(true).open(&file.path).unwrap();
            handle
                .write_all_at(text.as_bytes(), file.bytes.len() as u64)
                .unwrap();
            file.bytes.extend_from_slice(text.as_bytes());
            self.touch(index);
        }
    }

    pub(super) fn text(&mut self, line: &LogLine) -> String {
        self.count += 1;
        match line {
            LogLine::Bare => format!("{{\"n\":{}}}\n", self.count),
            LogLine::Same => "{\"ok\":true}\n".to_owned(),
            LogLine::Timed(away) => {
                let time = humantime::format_rfc3339_millis(time(self.now + away));
                format!("{{\"n\":{},\"@timestamp\":\"{time}\"}}\n", self.count)
            }
            LogLine::Noise => format!("noise {} {{\n", self.count),
            LogLine::Empty => "\n".to_owned(),
        }
    }

    pub(super) fn write(&mut self, stream: usize, line: &LogLine, cut: Option<usize>) {
        let text = self.text(line);
        let writer = &mut self.writers[stream];
        let mut bytes = std::mem::take(&mut writer.rest);
        // The cut is counted from the end of the line, where its time is.
        let cut = text.len() - cut.unwrap_or(0).min(text.len() - 1);
        bytes.extend_from_slice(&text.as_bytes()[..cut]);
        writer.rest = text.as_bytes()[cut..].to_vec();
        match (self.writers[stream].file, self.log(stream)) {
            (Some(_), _) => {}
            // Its file was the oldest and is removed: it opens the new one.
            (None, Some(log)) => {
                self.writers[stream].file = Some(log);
                self.writers[stream].place = self.files[log].bytes.len() as u64;
            }
            (None, None) => self.make(stream),
        }
        let writer = &mut self.writers[stream];
        let index = writer.file.unwrap();
        let file = &mut self.files[index];
        let place = if self.style.appends {
            file.bytes.len() as u64
        } else {
            writer.place
        };
        let end = place as usize + bytes.len();
        file.bytes.resize(file.bytes.len().max(end), 0);
        file.bytes[place as usize..end].copy_from_slice(&bytes);
        writer.place = end as u64;
        let handle = OpenOptions::new().write(true).open(&file.path).unwrap();
        handle.write_all_at(&bytes, place).unwrap();
        self.touch(index);
    }

    /// The log itself, if it exists.
    pub(super) fn log(&self, stream: usize) -> Option<usize> {
        let here =
            |file: &ModelFile| file.run == self.run && file.stream == stream && file.rotated == 0;
        self.files.iter().position(here)
    }

    /// Renames the rotated files of a stream to the next number, and removes the oldest.
    pub(super) fn shift(&mut self, stream: usize) {
        let run = self.run;
        let ours = |file: &ModelFile| file.run == run && file.stream == stream;
        let oldest = |file: &ModelFile| ours(file) && file.rotated == MAX_ROTATED;
        if let Some(index) = self.files.iter().position(oldest) {
            fs::remove_file(&self.files[index].path).unwrap();
            self.remove(index);
        }
        let base = self.directory().join(["stdout", "stderr"][stream]);
        for rotated in (1..MAX_ROTATED).rev() {
            for file in self
                .files
                .iter_mut()
                .filter(|file| ours(file) && file.rotated == rotated)
            {
                file.rotate(&base);
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
        if self.files[log].was_skipped() {
            return;
        }
        if copy {
            self.shift(stream);
            let mut file = self.files[log].clone();
            if !file.may_be_appended() {
                (file.checked_length, file.checked_bytes) = (0, Vec::new());
            }
            let base = file.path.clone();
            file.path = base.with_extension("1");
            file.rotated = 1;
            file.is_new_copy = true;
            fs::copy(&base, &file.path).unwrap();
            // It is a new file that was not written to since.
            file.checked_modified = self.now;
            self.files.push(file);
            self.touch(self.files.len() - 1);
        }
        let file = &mut self.files[log];
        file.bytes.clear();
        OpenOptions::new()
            .write(true)
            .open(&file.path)
            .unwrap()
            .set_len(0)
            .unwrap();
        self.touch(log);
    }

    pub(super) fn rewrite(&mut self, stream: usize, way: RewriteMethod, same: bool) {
        let Some(log) = self.log(stream) else {
            return;
        };
        let file = &self.files[log];
        let length = file.bytes.len();
        let is_seen = matches!(way, RewriteMethod::Rename)
            || matches!(way, RewriteMethod::Overwrite) && length == file.checked_length;
        if file.ends_in_partial_line() || file.was_skipped() && !is_seen {
            return;
        }
        self.count += 1;
        let bytes = match way {
            _ if same => file.bytes.clone(),
            RewriteMethod::Overwrite if length < 12 => file.bytes.clone(),
            RewriteMethod::Overwrite => {
                format!("{{\"n\":{:01$}}}\n", self.count, length - 7).into()
            }
            _ => format!("{{\"n\":{}}}\n", self.count).into_bytes(),
        };
        let path = file.path.clone();
        match way {
            RewriteMethod::Truncate => fs::write(&path, &bytes).unwrap(),
            RewriteMethod::Overwrite => {
                let handle = OpenOptions::new().write(true).open(&path).unwrap();
                handle.write_all_at(&bytes, 0).unwrap();
            }
            RewriteMethod::Rename => {
                let other = path.with_extension("new");
                fs::write(&other, &bytes).unwrap();
                fs::rename(&other, &path).unwrap();
            }
        }
        let index = match way {
            RewriteMethod::Rename => {
                self.remove(log);
                let run = self.run;
                let copies = |file: &&mut ModelFile| {
                    file.run == run && file.stream == stream && file.is_new_copy
                };
                for file in self.files.iter_mut().filter(copies) {
                    (file.checked_length, file.checked_bytes) = (0, Vec::new());
                }
                self.files.push(ModelFile {
                    path,
                    run: self.run,
                    rotated: 0,
                    stream,
                    bytes: Vec::new(),
                    modified: 0,
                    checked_length: 0,
                    checked_modified: 0,
                    checked_bytes: Vec::new(),
                    is_new_copy: false,
                });
                self.files.len() - 1
            }
            _ => log,
        };
        self.writers[stream] = LogWriter {
            file: Some(index),
            place: bytes.len() as u64,
            rest: Vec::new(),
        };
        self.files[index].bytes = bytes;
        self.touch(index);
    }

    /// Marks a file as removed. Its index stays valid for the writers.
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
        for file in &mut self.files {
            (file.checked_length, file.checked_bytes) = (0, Vec::new());
        }
    }

    /// Whether the expected verdict is healthy.
    pub(super) fn is_healthy(&mut self) -> bool {
        let now = self.now;
        let first = self.first_check.is_none();
        let first_check = self.first_check.unwrap_or(now).min(now);
        let since = if first { self.run } else { self.last_run };
        let mut newest = self.newest;
        let mut logs = 0;
        let mut written = false;
        for file in self
            .files
            .iter_mut()
            .filter(|file| (since..u64::MAX).contains(&file.run))
        {
            let fresh = now - file.modified <= FRESHNESS;
            // Lines of an earlier run after the start of the current one do not count.
            let until = if file.run < self.run {
                self.birth
            } else {
                i64::MAX
            };
            if file.rotated == 0 {
                logs += 1;
                written |= now - file.modified.min(until) <= FRESHNESS;
            }
            let length = file.bytes.len();
            if !fresh || first && file.rotated > 0 {
                if length < file.checked_length {
                    file.checked_bytes.clear();
                }
            } else {
                let known_length = file.known_length();
                let found = newest_line_time(&file.bytes, known_length, file.modified, until);
                newest = newest.max(found.map(|found| found.min(now)));
                if (known_length, file.checked_length) != (length, length) {
                    file.checked_bytes = file.bytes.clone();
                }
            }
            (file.checked_length, file.checked_modified) = (length, file.modified);
            file.is_new_copy = false;
        }
        newest = newest.map(|newest| newest.min(now));
        (self.first_check, self.newest, self.last_run) = (Some(first_check), newest, self.run);
        match newest {
            Some(newest) if now - newest <= FRESHNESS => true,
            Some(_) => false,
            None => logs > 0 && written && now - first_check <= FRESHNESS,
        }
    }
}
