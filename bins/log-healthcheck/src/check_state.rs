//! The state that one check stores for the next, and its text format. The text is untrusted.

use std::fmt::Write as _;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;

use crate::line_scanner::LineScanner;
use crate::wall_time::WallTime;

/// The limit of stored files.
pub(crate) const MAX_FILES: usize = 256;
/// A larger state file is ignored.
pub(crate) const MAX_STATE_BYTES: u64 = 64 << 10;
/// The first line of a state file.
const FORMAT: &str = "log-healthcheck 2";
/// Bytes at each end of the part of a file that was read, which form its fingerprint.
const FINGERPRINT_BYTES: u64 = 64;

/// The state that one check stores for the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CheckState {
    /// A hash of pattern and files, so that other checks ignore the state.
    pub(crate) criteria_hash: u64,
    pub(crate) first_check: WallTime,
    /// The time of the newest matching line.
    pub(crate) newest: Option<WallTime>,
    pub(crate) run: Option<RunDirectory>,
    /// The files of earlier checks, those of the last one first.
    pub(crate) files: Vec<FileState>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunDirectory {
    pub(crate) number: u64,
    pub(crate) birth: WallTime,
}

/// A file that a check has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileState {
    pub(crate) id: FileId,
    /// The end of the part that was checked.
    pub(crate) end: u64,
    /// The start of the line that the next byte belongs to, if known.
    pub(crate) line: Option<u64>,
    /// The fingerprint, if the file was read.
    pub(crate) fingerprint: Option<FileFingerprint>,
    /// The modification time.
    pub(crate) modified: WallTime,
}

/// The identity of a file, whatever its name. The birth time distinguishes files with a reused inode number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileId {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) birth: Option<WallTime>,
}

impl FileId {
    pub(crate) fn from_metadata(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            birth: WallTime::birth(metadata),
        }
    }
}

/// A hash of bytes that stay the same as long as a file is only appended to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileFingerprint {
    /// The end of the hashed part.
    pub(crate) at: u64,
    /// The hash of the first 64 and the last 64 bytes before `at`.
    pub(crate) hash: u64,
}

impl FileFingerprint {
    /// The fingerprint of a file of at least `at` bytes; `None` if `at` is 0.
    pub(crate) fn compute(
        scanner: &mut LineScanner,
        file: &File,
        at: u64,
    ) -> io::Result<Option<Self>> {
        if at == 0 {
            return Ok(None);
        }
        let length = at.min(FINGERPRINT_BYTES) as usize;
        let mut hash = fnv1a(FNV_OFFSET, scanner.read_chunk(file, 0, length)?);
        if at > FINGERPRINT_BYTES {
            hash = fnv1a(
                hash,
                scanner.read_chunk(file, at - FINGERPRINT_BYTES, length)?,
            );
        }
        Ok(Some(Self { at, hash }))
    }
}

/// The FNV-1a offset basis.
pub(crate) const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a: stable across builds, as the state file requires; a collision in one's own log is harmless.
pub(crate) fn fnv1a(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl CheckState {
    /// The text of the state file.
    pub(crate) fn to_text(&self) -> String {
        let mut text = format!(
            "{FORMAT}\nquestion {:016x}\nfirst {}\n",
            self.criteria_hash, self.first_check.0
        );
        if let Some(newest) = self.newest {
            let _ = writeln!(text, "newest {}", newest.0);
        }
        if let Some(run) = self.run {
            let _ = writeln!(text, "run {} {}", run.number, run.birth.0);
        }
        let optional = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        for file in &self.files {
            let _ = writeln!(
                text,
                "file {} {} {} {} {} {} {}",
                file.id.device,
                file.id.inode,
                optional(file.id.birth.map(|birth| birth.0.to_string())),
                file.end,
                optional(file.line.map(|line| line.to_string())),
                optional(
                    file.fingerprint
                        .map(|fingerprint| format!("{}:{}", fingerprint.at, fingerprint.hash))
                ),
                file.modified.0,
            );
        }
        text.push_str("end\n");
        text
    }

    /// Parses the text of a state file; `None` unless [`Self::to_text`] could have written it.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut lines = text.strip_suffix("\nend\n")?.split('\n').peekable();
        if lines.next()? != FORMAT {
            return None;
        }
        let criteria_hash = lines.next()?.strip_prefix("question ")?;
        let mut state = Self {
            criteria_hash: u64::from_str_radix(criteria_hash, 16).ok()?,
            first_check: WallTime(lines.next()?.strip_prefix("first ")?.parse().ok()?),
            newest: None,
            run: None,
            files: Vec::new(),
        };
        let mut optional = |name: &str| {
            let value = lines.peek()?.strip_prefix(name)?;
            lines.next();
            Some(value)
        };
        if let Some(newest) = optional("newest ") {
            state.newest = Some(WallTime(newest.parse().ok()?));
        }
        if let Some(run) = optional("run ") {
            let (number, birth) = run.split_once(' ')?;
            state.run = Some(RunDirectory {
                number: number.parse().ok()?,
                birth: WallTime(birth.parse().ok()?),
            });
        }
        for line in lines {
            if state.files.len() == MAX_FILES {
                return None;
            }
            state
                .files
                .push(FileState::parse(line.strip_prefix("file ")?)?);
        }
        Some(state)
    }
}

impl FileState {
    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.splitn(8, ' ').collect();
        let [device, inode, birth, end, line, fingerprint, modified] = fields[..] else {
            return None;
        };
        let present = |text: &str| (text != "-").then(|| text.to_owned());
        let file = Self {
            id: FileId {
                device: device.parse().ok()?,
                inode: inode.parse().ok()?,
                birth: match present(birth) {
                    Some(birth) => Some(WallTime(birth.parse().ok()?)),
                    None => None,
                },
            },
            end: end.parse().ok()?,
            line: match present(line) {
                Some(line) => Some(line.parse().ok()?),
                None => None,
            },
            fingerprint: match present(fingerprint) {
                Some(fingerprint) => {
                    let (at, hash) = fingerprint.split_once(':')?;
                    Some(FileFingerprint {
                        at: at.parse().ok()?,
                        hash: hash.parse().ok()?,
                    })
                }
                None => None,
            },
            modified: WallTime(modified.parse().ok()?),
        };
        // Impossible positions would only overflow later.
        let sensible = file.end <= i64::MAX as u64
            && file.line.is_none_or(|line| line <= file.end)
            && file
                .fingerprint
                .is_none_or(|fingerprint| fingerprint.at <= file.end);
        sensible.then_some(file)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_file_state() -> impl Strategy<Value = FileState> {
        let place = 0..=i64::MAX as u64;
        (
            any::<(u64, u64, Option<i64>)>(),
            place,
            any::<Option<(u64, u64)>>(),
            any::<(Option<u64>, i64)>(),
        )
            .prop_map(
                |((device, inode, birth), end, fingerprint, (line, modified))| FileState {
                    id: FileId {
                        device,
                        inode,
                        birth: birth.map(WallTime),
                    },
                    end,
                    line: line.map(|line| line.min(end)),
                    fingerprint: fingerprint.map(|(at, hash)| FileFingerprint {
                        at: at.min(end),
                        hash,
                    }),
                    modified: WallTime(modified),
                },
            )
    }

    fn any_state() -> impl Strategy<Value = CheckState> {
        (
            any::<(u64, i64, Option<i64>, Option<(u64, i64)>)>(),
            prop::collection::vec(any_file_state(), 0..5),
        )
            .prop_map(|((criteria_hash, first, newest, run), files)| CheckState {
                criteria_hash,
                first_check: WallTime(first),
                newest: newest.map(WallTime),
                run: run.map(|(number, birth)| RunDirectory {
                    number,
                    birth: WallTime(birth),
                }),
                files,
            })
    }

    proptest! {
        #[test]
        fn state_round_trips(state in any_state()) {
            prop_assert_eq!(CheckState::parse(state.to_text().as_bytes()), Some(state));
        }

        #[test]
        fn truncated_text_is_rejected_and_changed_text_stays_valid(state in any_state(), cut in any::<prop::sample::Index>(), byte: u8) {
            let mut text = state.to_text().into_bytes();
            let cut = cut.index(text.len());
            prop_assert_eq!(CheckState::parse(&text[..cut]), None);
            text[cut] = byte;
            if let Some(read) = CheckState::parse(&text) {
                prop_assert!(read.files.iter().all(|file| file.line.is_none_or(|line| line <= file.end)));
            }
        }

        #[test]
        fn any_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(CheckState::parse(&bytes), None);
        }
    }

    #[test]
    fn limits_of_the_state_are_enforced() {
        let file = "file 1 1 - 5 - - 0\n";
        let head = "log-healthcheck 2\nquestion 0\nfirst 0\n";
        let text = |files: &str| format!("{head}{files}end\n").into_bytes();
        assert!(CheckState::parse(&text(&file.repeat(MAX_FILES))).is_some());
        for wrong in [
            &file.repeat(MAX_FILES + 1),
            "file 1 1 - 5 6 - 0\n",
            "file 1 1 - 5 - 6:0 0\n",
            "file 1 1 - 5 - 5 0\n",
            "file 1 1 - 9223372036854775808 - - 0\n",
            "file 1 1 - 5 - - -\n",
            "file 1 1 - 5 - -\n",
            "file 1 1 - 5 - - 0 0\n",
            "newest 1\nnewest 1\n",
            "run 1\n",
            "\n",
        ] {
            assert_eq!(CheckState::parse(&text(wrong)), None, "{wrong}");
        }
    }
}
