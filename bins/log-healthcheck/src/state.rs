//! What one check remembers for the next, and its text in the state file. Reading that text is for hostile bytes.

use std::fmt::Write as _;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;

use crate::moment::Moment;
use crate::scan::Scanner;

/// Files that are remembered.
pub(crate) const FILES: usize = 256;
/// A state file of more bytes is not read.
pub(crate) const BYTES: u64 = 64 << 10;
/// The first line of a state file.
const FORMAT: &str = "log-healthcheck 2";
/// Bytes at the beginning of a file, and before the place it was read to, that it is recognised by.
const MARKED: u64 = 64;

/// What one check remembers for the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Which question the answers belong to: a hash of pattern and files.
    pub question: u64,
    /// When the first check was.
    pub first_check: Moment,
    /// The time of the newest line that begins with the pattern.
    pub newest: Option<Moment>,
    /// The highest run directory.
    pub run: Option<Run>,
    /// The files that were seen, those of the last check first.
    pub files: Vec<Known>,
}

/// A run directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Its name.
    pub number: u64,
    /// When it was made.
    pub birth: Moment,
}

/// A file that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Which it is.
    pub id: Id,
    /// What is behind this place is new.
    pub end: u64,
    /// Where the line begins that the next byte belongs to, if that is known.
    pub line: Option<u64>,
    /// What it is recognised by, if it was read.
    pub mark: Option<Mark>,
    /// When it was written to last.
    pub modified: Moment,
}

/// A file, whatever its name. The time of its birth tells two with the same inode number apart, where there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Id {
    /// The device.
    pub device: u64,
    /// The inode number.
    pub inode: u64,
    /// When it was made.
    pub birth: Option<Moment>,
}

impl Id {
    /// The identity of an open file.
    #[must_use]
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            birth: Moment::birth(metadata),
        }
    }
}

/// A hash of bytes that do not change as long as a file is only appended to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// All of them are before this place.
    pub at: u64,
    /// The hash of the first 64 and the last 64 bytes before it.
    pub hash: u64,
}

impl Mark {
    /// The mark of a file that is at least `at` bytes long; `None` when there is nothing to recognise it by.
    pub(crate) fn of(scanner: &mut Scanner, file: &File, at: u64) -> io::Result<Option<Self>> {
        if at == 0 {
            return Ok(None);
        }
        let length = at.min(MARKED) as usize;
        let mut hash = self::hash(HASH, scanner.piece(file, 0, length)?);
        if at > MARKED {
            hash = self::hash(hash, scanner.piece(file, at - MARKED, length)?);
        }
        Ok(Some(Self { at, hash }))
    }
}

/// What [`hash`] begins with.
pub(crate) const HASH: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a: the same in every build, which the state file needs, and nobody gains by a collision in his own log.
pub(crate) fn hash(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl State {
    /// The text of the state file.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!(
            "{FORMAT}\nquestion {:016x}\nfirst {}\n",
            self.question, self.first_check.0
        );
        if let Some(newest) = self.newest {
            let _ = writeln!(text, "newest {}", newest.0);
        }
        if let Some(run) = self.run {
            let _ = writeln!(text, "run {} {}", run.number, run.birth.0);
        }
        let shown = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        for file in &self.files {
            let _ = writeln!(
                text,
                "file {} {} {} {} {} {} {}",
                file.id.device,
                file.id.inode,
                shown(file.id.birth.map(|birth| birth.0.to_string())),
                file.end,
                shown(file.line.map(|line| line.to_string())),
                shown(file.mark.map(|mark| format!("{}:{}", mark.at, mark.hash))),
                file.modified.0,
            );
        }
        text.push_str("end\n");
        text
    }

    /// Reads the text of a state file. `None` for anything that [`Self::text`] would not have written.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut lines = text.strip_suffix("\nend\n")?.split('\n').peekable();
        if lines.next()? != FORMAT {
            return None;
        }
        let question = lines.next()?.strip_prefix("question ")?;
        let mut state = Self {
            question: u64::from_str_radix(question, 16).ok()?,
            first_check: Moment(lines.next()?.strip_prefix("first ")?.parse().ok()?),
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
            state.newest = Some(Moment(newest.parse().ok()?));
        }
        if let Some(run) = optional("run ") {
            let (number, birth) = run.split_once(' ')?;
            state.run = Some(Run {
                number: number.parse().ok()?,
                birth: Moment(birth.parse().ok()?),
            });
        }
        for line in lines {
            if state.files.len() == FILES {
                return None;
            }
            state.files.push(Known::parse(line.strip_prefix("file ")?)?);
        }
        Some(state)
    }
}

impl Known {
    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.splitn(8, ' ').collect();
        let [device, inode, birth, end, line, mark, modified] = fields[..] else {
            return None;
        };
        let present = |text: &str| (text != "-").then(|| text.to_owned());
        let known = Self {
            id: Id {
                device: device.parse().ok()?,
                inode: inode.parse().ok()?,
                birth: match present(birth) {
                    Some(birth) => Some(Moment(birth.parse().ok()?)),
                    None => None,
                },
            },
            end: end.parse().ok()?,
            line: match present(line) {
                Some(line) => Some(line.parse().ok()?),
                None => None,
            },
            mark: match present(mark) {
                Some(mark) => {
                    let (at, hash) = mark.split_once(':')?;
                    Some(Mark {
                        at: at.parse().ok()?,
                        hash: hash.parse().ok()?,
                    })
                }
                None => None,
            },
            modified: Moment(modified.parse().ok()?),
        };
        // Places that no file can have would only overflow something later.
        let sensible = known.end <= i64::MAX as u64
            && known.line.is_none_or(|line| line <= known.end)
            && known.mark.is_none_or(|mark| mark.at <= known.end);
        sensible.then_some(known)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_known() -> impl Strategy<Value = Known> {
        let place = 0..=i64::MAX as u64;
        (
            any::<(u64, u64, Option<i64>)>(),
            place,
            any::<Option<(u64, u64)>>(),
            any::<(Option<u64>, i64)>(),
        )
            .prop_map(
                |((device, inode, birth), end, mark, (line, modified))| Known {
                    id: Id {
                        device,
                        inode,
                        birth: birth.map(Moment),
                    },
                    end,
                    line: line.map(|line| line.min(end)),
                    mark: mark.map(|(at, hash)| Mark {
                        at: at.min(end),
                        hash,
                    }),
                    modified: Moment(modified),
                },
            )
    }

    fn any_state() -> impl Strategy<Value = State> {
        (
            any::<(u64, i64, Option<i64>, Option<(u64, i64)>)>(),
            prop::collection::vec(any_known(), 0..5),
        )
            .prop_map(|((question, first, newest, run), files)| State {
                question,
                first_check: Moment(first),
                newest: newest.map(Moment),
                run: run.map(|(number, birth)| Run {
                    number,
                    birth: Moment(birth),
                }),
                files,
            })
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(state in any_state()) {
            prop_assert_eq!(State::parse(state.text().as_bytes()), Some(state));
        }

        #[test]
        fn a_text_that_is_cut_or_changed_is_no_state_or_another(state in any_state(), cut in any::<prop::sample::Index>(), byte: u8) {
            let mut text = state.text().into_bytes();
            let cut = cut.index(text.len());
            prop_assert_eq!(State::parse(&text[..cut]), None);
            text[cut] = byte;
            if let Some(read) = State::parse(&text) {
                prop_assert!(read.files.iter().all(|file| file.line.is_none_or(|line| line <= file.end)));
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(State::parse(&bytes), None);
        }
    }

    #[test]
    fn bounds_hold() {
        let file = "file 1 1 - 5 - - 0\n";
        let head = "log-healthcheck 2\nquestion 0\nfirst 0\n";
        let text = |files: &str| format!("{head}{files}end\n").into_bytes();
        assert!(State::parse(&text(&file.repeat(FILES))).is_some());
        for wrong in [
            &file.repeat(FILES + 1),
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
            assert_eq!(State::parse(&text(wrong)), None, "{wrong}");
        }
    }
}
