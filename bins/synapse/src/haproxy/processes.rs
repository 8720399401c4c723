//! HAProxy's processes as the system shows them: which run on a file, which a pid file names, which are left over.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// How many bytes of a file below `/proc`, or of a pid file, are read.
const LIMIT: u64 = 64 << 10;

/// The pids in a pid file (one per line); none when there is no file.
///
/// # Errors
/// As read(2); `InvalidData` when it holds something else.
pub fn pids(file: &Path) -> io::Result<BTreeSet<i32>> {
    let text = match read(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        other => other?,
    };
    let text = String::from_utf8_lossy(&text);
    let words = text.split_ascii_whitespace();
    // 0 and below are groups, and 1 is init: a signal to them would be a catastrophe.
    words
        .map(|word| word.parse().ok().filter(|pid| *pid > 1))
        .collect::<Option<BTreeSet<i32>>>()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a list of pids"))
}

/// Whether this process runs HAProxy. A pid file outlives its process, and pids are used again.
#[must_use]
pub fn is_haproxy(pid: i32) -> bool {
    read(Path::new(&format!("/proc/{pid}/comm"))).is_ok_and(|name| name.starts_with(b"haproxy"))
        && !is_zombie(pid)
}

fn is_zombie(pid: i32) -> bool {
    // A zombie's command line is empty; HAProxy's never is.
    read(Path::new(&format!("/proc/{pid}/cmdline"))).is_ok_and(|line| line.is_empty())
}

/// The HAProxy processes that were started on `config`, whoever started them: `-f CONFIG` on their command line.
#[must_use]
pub fn on_file(config: &Path) -> BTreeSet<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return BTreeSet::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| is_haproxy(*pid) && names_file(*pid, config))
        .collect()
}

fn names_file(pid: i32, config: &Path) -> bool {
    let line = read(Path::new(&format!("/proc/{pid}/cmdline"))).unwrap_or_default();
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    words
        .windows(2)
        .any(|pair| pair[0] == b"-f" && pair[1] == config.as_os_str().as_bytes())
}

/// The workers that serve nobody new and have not ended, of an HAProxy without a master: all processes on `config` but
/// the `current` one.
#[must_use]
pub fn leftover(config: &Path, current: i32) -> BTreeSet<i32> {
    let mut found = on_file(config);
    found.remove(&current);
    found
}

/// The name of a process's program, printable; `None` when there is no such process or it is not ours to see.
#[must_use]
pub fn program(pid: i32) -> Option<String> {
    let name = read(Path::new(&format!("/proc/{pid}/comm"))).ok()?;
    Some(crate::model::shown(String::from_utf8_lossy(&name).trim()))
}

/// At most [`LIMIT`] bytes of a file.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(LIMIT).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pid_files_are_read_and_never_name_a_group() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("pid");
        assert!(pids(&file).unwrap().is_empty());
        for (text, expected) in [
            ("12\n13\n", Some(vec![12, 13])),
            ("", Some(vec![])),
            ("1\n", None),
            ("0", None),
            ("-5", None),
            ("x", None),
        ] {
            fs::write(&file, text).unwrap();
            let found = pids(&file).ok().map(|pids| pids.into_iter().collect());
            assert_eq!(found, expected, "{text:?}");
        }
    }

    #[test]
    fn this_process_is_not_haproxy() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(!is_haproxy(pid));
        assert!(program(pid).is_some());
        assert!(on_file(Path::new("/nowhere/haproxy.cfg")).is_empty());
    }
}
