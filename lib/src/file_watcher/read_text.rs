//! Reading a file that another process may be writing.

use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::libc::O_NONBLOCK;

/// Reads a file of at most `limit` bytes, a whole number of MiB.
///
/// # Errors
/// One line that names the file: unreadable, not a regular file, too large, not UTF-8, or being written.
pub fn read_text(path: &Path, limit: u64) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    // Opening a FIFO would block.
    let mut options = OpenOptions::new();
    let mut file = options
        .read(true)
        .custom_flags(O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    let before = file.metadata().map_err(failed)?;
    if !before.is_file() {
        return Err(format!("{} is not a regular file", path.display()));
    }
    let mut bytes = Vec::new();
    file.by_ref()
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(format!(
            "{} is larger than {} MiB",
            path.display(),
            limit >> 20
        ));
    }
    let after = file.metadata().map_err(failed)?;
    let stamp =
        |metadata: &std::fs::Metadata| (metadata.len(), metadata.mtime_nsec(), metadata.mtime());
    if stamp(&before) != stamp(&after) {
        return Err(format!("{} is being written", path.display()));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let lines = error.as_bytes()[..valid].split(|byte| *byte == b'\n');
        let (line, last) = lines.fold((0, 0), |(line, _), text| (line + 1, text.len()));
        let column = last + 1;
        format!("{}:{line}:{column}: not UTF-8", path.display())
    })
}
