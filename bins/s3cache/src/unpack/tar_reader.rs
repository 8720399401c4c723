//! Reads a tar archive member by member, and rejects what readers of tar interpret differently.
//!
//! The layout of headers is the `tar` crate's. Its iterator is not used: it reads names of any length into memory,
//! splits extended headers at newlines inside values, and ignores the records that say how a member is stored.

use std::borrow::Cow;
use std::io::{self, Read};

use hostkit::failure::cause_of;
use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use super::extended_headers::ExtendedHeaders;
use super::sparse::{self, DataSegment};
use crate::archive::fill;
use crate::archive::header::{BLOCK, is_header, number, unsigned};
use crate::deadline::DeadlineExceeded;

/// Linux's limit of a path or link target, with the terminating NUL (bytes).
pub(super) const PATH_LIMIT: usize = 4096;
/// The size limit of the extended headers of one member (bytes): its attributes and its sparse map.
const EXTENSION_LIMIT: u64 = 8 << 20;
/// The reason for rejecting a longer one.
pub(super) const TOO_LONG: &str = "a path of over 4095 bytes";
/// The limit of members.
const MEMBERS: u64 = 1 << 24;

#[derive(Debug, thiserror::Error)]
pub(super) enum UnpackError {
    /// The archive is corrupt, hostile, or of an unsupported kind.
    #[error("{member}: {reason}")]
    Archive {
        /// The member, made printable.
        member: String,
        reason: Cow<'static, str>,
    },
    /// The archive cannot be read from the disk.
    #[error(transparent)]
    Read(io::Error),
    #[error(transparent)]
    Deadline(#[from] DeadlineExceeded),
    /// A member cannot be written.
    #[error("{member}")]
    Write {
        /// Its path within the directory, made printable.
        member: String,
        source: io::Error,
    },
}

impl UnpackError {
    /// An invalid archive, because of the member `path`.
    pub(super) fn archive(path: &[u8], reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Archive {
            member: printable(path),
            reason: reason.into(),
        }
    }

    /// Maps the failure of writing `path`.
    pub(super) fn write(path: &[u8]) -> impl Fn(io::Error) -> Self + use<> {
        let member = printable(path);
        move |source| match cause_of(&source) {
            Some(DeadlineExceeded) => DeadlineExceeded.into(),
            None => Self::Write {
                member: member.clone(),
                source,
            },
        }
    }
}

/// A failure of reading the archive: the system's or the decoder's.
impl From<io::Error> for UnpackError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            _ if let Some(DeadlineExceeded) = cause_of(&error) => DeadlineExceeded.into(),
            Some(_) => Self::Read(error),
            None => Self::archive(b"the archive", error.to_string()),
        }
    }
}

/// Names from an archive are only logged in this form.
fn printable(path: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(path).escape_debug().collect();
    if text.is_empty() {
        "an unnamed member".to_owned()
    } else {
        text
    }
}

/// A member of an archive. The data of a file is read from the archive.
#[derive(Debug)]
pub(super) struct TarMember {
    /// The path as it is written in the archive.
    pub path: Vec<u8>,
    pub kind: MemberKind,
    /// Permissions as with umask 022, without set-id and sticky bits.
    pub mode: u32,
    /// Seconds since 1970, if valid.
    pub mtime: Option<i64>,
}

#[derive(Debug)]
pub(super) enum MemberKind {
    /// The data segments of a file of `size` bytes; the rest are holes.
    File {
        segments: Vec<DataSegment>,
        size: u64,
    },
    Directory,
    Symlink(Vec<u8>),
    /// The path of another member.
    HardLink(Vec<u8>),
}

pub(super) struct TarReader<R> {
    input: R,
    /// Unread bytes of the current member's data.
    left: u64,
    /// Padding after the current member's data.
    padding: u64,
    members: u64,
}

impl<R: Read> TarReader<R> {
    pub(super) fn new(input: R) -> Self {
        Self {
            input,
            left: 0,
            padding: 0,
            members: 0,
        }
    }

    /// The next member, or `None` at the end of the archive. The rest of the input is read too, so that the checksum of
    /// a compressed archive is compared.
    pub(super) fn next(&mut self) -> Result<Option<TarMember>, UnpackError> {
        let mut extension = ExtendedHeaders::default();
        let mut budget = EXTENSION_LIMIT;
        loop {
            self.skip_data()?;
            let mut header = Header::new_old();
            let got = fill(&mut self.input, header.as_mut_bytes())?;
            if got < BLOCK && got > 0 && self.members == 0 {
                return Err(UnpackError::archive(b"the archive", "not a tar"));
            }
            // As in tar(1), less than a block is the end too.
            if got < BLOCK || header.as_bytes().iter().all(|byte| *byte == 0) {
                if !extension.is_empty() {
                    return Err(UnpackError::archive(
                        b"the archive",
                        "an extended header without a member",
                    ));
                }
                io::copy(&mut self.input, &mut io::sink())?;
                return Ok(None);
            }
            self.members += 1;
            let path = header_path(&header);
            let refuse = |reason| Err(UnpackError::archive(&path, reason));
            if self.members > MEMBERS {
                return refuse("the archive has too many members");
            }
            if !is_header(header.as_bytes()) {
                return refuse("wrong header checksum");
            }
            let Some(size) = unsigned(&header.as_old().size) else {
                return refuse("invalid size");
            };
            let kind = header.as_old().linkflag[0];
            match kind {
                b'L' => extension.set_path(self.name(size, &mut budget)?)?,
                b'K' => extension.set_link(self.name(size, &mut budget)?)?,
                b'x' => extension.read(&self.whole(size, &mut budget)?)?,
                b'g' => ExtendedHeaders::check_global(&self.whole(size, &mut budget)?)?,
                // A volume label.
                b'V' if extension.is_empty() => self.begin(size),
                _ => return self.member(&header, path, size, extension).map(Some),
            }
        }
    }

    /// The member with this header and its extended headers.
    fn member(
        &mut self,
        header: &Header,
        path: Vec<u8>,
        size: u64,
        mut extension: ExtendedHeaders,
    ) -> Result<TarMember, UnpackError> {
        let old = header.as_old();
        let size = match old.linkflag[0] {
            // No data, whatever their size: some writers set that of the link target.
            b'1' | b'2' | b'5' => 0,
            _ => extension.size.unwrap_or(size),
        };
        let path = extension.take_path().unwrap_or(path);
        let refuse = |reason| Err(UnpackError::archive(&path, reason));
        let slash = path.ends_with(b"/");
        if extension.real_size.is_some_and(|real| real != size) {
            return refuse(sparse::UNREADABLE);
        }
        let link = extension.link.take();
        let link = link.unwrap_or_else(|| until_nul(&old.linkname).to_vec());
        let kind = match old.linkflag[0] {
            b'0' | 0 | b'7' if !(slash && size == 0) => {
                if slash {
                    return refuse("a file with data whose name ends in a slash");
                }
                self.begin(size);
                let (numbers, real) = match extension.sparse.take() {
                    None => (vec![0, size], size),
                    Some(map) => map.resolve(self, &path)?,
                };
                file(&numbers, real, self.left)
            }
            b'S' => match header.as_gnu() {
                Some(gnu) if extension.sparse.is_none() => {
                    let real = unsigned(&gnu.realsize);
                    // The map precedes the data, and is not part of its size.
                    let numbers = self.old_map(&gnu.sparse, gnu.isextended[0] != 0)?;
                    self.begin(size);
                    real.and_then(|real| file(&numbers, real, size))
                }
                _ => None,
            },
            b'0' | 0 | b'7' | b'5' => Some(MemberKind::Directory),
            b'1' => Some(MemberKind::HardLink(link)),
            b'2' => Some(MemberKind::Symlink(link)),
            _ => return refuse("not a file, directory or link"),
        };
        let Some(kind) = kind else {
            return refuse(sparse::UNREADABLE);
        };
        if extension.sparse.is_some() {
            return refuse("a sparse map on a member that is not a file");
        }
        let Some(mode) = unsigned(&old.mode) else {
            return refuse("invalid mode");
        };
        Ok(TarMember {
            kind,
            mode: (mode & 0o755) as u32,
            mtime: number(&old.mtime),
            path,
        })
    }

    /// The map of a sparse file in GNU's old format: in the header and in the blocks after it.
    fn old_map(
        &mut self,
        first: &[GnuSparseHeader],
        mut extended: bool,
    ) -> Result<Vec<u64>, UnpackError> {
        let refuse = || UnpackError::archive(b"the archive", sparse::UNREADABLE);
        let mut numbers = Vec::new();
        let mut ended = false;
        let mut add = |entries: &[GnuSparseHeader]| -> Option<()> {
            for entry in entries {
                if entry.numbytes[0] == 0 {
                    ended = true;
                } else if ended || numbers.len() >= sparse::NUMBERS {
                    return None;
                } else {
                    numbers.push(unsigned(&entry.offset)?);
                    numbers.push(unsigned(&entry.numbytes)?);
                }
            }
            Some(())
        };
        add(first).ok_or_else(refuse)?;
        while extended {
            let mut block = GnuExtSparseHeader::new();
            if fill(&mut self.input, block.as_mut_bytes())? < BLOCK {
                return Err(truncated());
            }
            add(block.sparse()).ok_or_else(refuse)?;
            extended = block.isextended[0] != 0;
        }
        Ok(numbers)
    }

    /// Starts reading data of `size` bytes.
    fn begin(&mut self, size: u64) {
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    /// Reads some of the current member's data; 0 at its end.
    pub(super) fn read(&mut self, into: &mut [u8]) -> Result<usize, UnpackError> {
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(into.len());
        if most == 0 {
            return Ok(0);
        }
        let read = self.input.read(&mut into[..most])?;
        if read == 0 {
            return Err(truncated());
        }
        self.left -= read as u64;
        Ok(read)
    }

    /// Reads one whole block of the current member's data; `None` when there is less.
    pub(super) fn data_block(&mut self) -> Result<Option<[u8; BLOCK]>, UnpackError> {
        let mut block = [0; BLOCK];
        if self.left < BLOCK as u64 || fill(&mut self.input, &mut block)? < BLOCK {
            return Ok(None);
        }
        self.left -= BLOCK as u64;
        Ok(Some(block))
    }

    fn skip_data(&mut self) -> Result<(), UnpackError> {
        // Saturating: a size that large is never read to its end.
        let rest = self.left.saturating_add(self.padding);
        let skipped = io::copy(&mut (&mut self.input).take(rest), &mut io::sink())?;
        (self.left, self.padding) = (0, 0);
        if skipped == rest {
            Ok(())
        } else {
            Err(truncated())
        }
    }

    /// All data of an extended header, deducted from the budget of its member.
    fn whole(&mut self, size: u64, budget: &mut u64) -> Result<Vec<u8>, UnpackError> {
        let Some(left) = budget.checked_sub(size) else {
            return Err(UnpackError::archive(
                b"the archive",
                format!("extended headers of over {EXTENSION_LIMIT} bytes for one member"),
            ));
        };
        *budget = left;
        self.begin(size);
        let mut bytes = Vec::new();
        (&mut self.input).take(size).read_to_end(&mut bytes)?;
        self.left -= bytes.len() as u64;
        if self.left == 0 {
            Ok(bytes)
        } else {
            Err(truncated())
        }
    }

    /// A name that has a member of its own, terminated by NUL.
    fn name(&mut self, size: u64, budget: &mut u64) -> Result<Vec<u8>, UnpackError> {
        if size > PATH_LIMIT as u64 {
            return Err(UnpackError::archive(b"the archive", TOO_LONG));
        }
        let mut name = self.whole(size, budget)?;
        while name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }
}

fn truncated() -> UnpackError {
    UnpackError::archive(b"the archive", "it ends in the middle of a member")
}

/// A file with data of `stored` bytes at the given pairs of offset and length.
fn file(numbers: &[u64], size: u64, stored: u64) -> Option<MemberKind> {
    let segments = sparse::segments(numbers, size, stored)?;
    Some(MemberKind::File { segments, size })
}

/// The path in a header. POSIX splits a long path over two fields; GNU uses the second field for other data.
fn header_path(header: &Header) -> Vec<u8> {
    let bytes = header.as_bytes();
    let name = until_nul(&header.as_old().name);
    let prefix = match &bytes[257..263] {
        b"ustar\0" => until_nul(&bytes[345..500]),
        _ => &[],
    };
    if prefix.is_empty() {
        name.to_vec()
    } else {
        [prefix, b"/", name].concat()
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}
