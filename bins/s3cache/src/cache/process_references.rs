//! Blobs and unpacked pexes that running processes refer to. A lease is a `flock` on an inherited descriptor, which
//! programs close when they become daemons; their executable, working directory and arguments still show what they run
//! from.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

/// The directories of a `PEX_ROOT` that hold directories named by a hash.
const UNPACKED: [&str; 5] = [
    "unzipped_pexes",
    "venvs",
    "bootstraps",
    "user_code",
    "installed_wheels",
];
/// The longest command line that is read (bytes).
const CMDLINE_LIMIT: u64 = 1 << 20;
/// The most of a process's mappings that is read (bytes).
const MAPS_LIMIT: u64 = 16 << 20;

/// /proc cannot be read: nothing may be evicted, because anything may be in use.
#[derive(Debug, thiserror::Error)]
#[error("cannot determine what is in use, so nothing is evicted: {why}")]
pub(crate) struct ProcessScanError {
    why: String,
}

impl ProcessScanError {
    #[must_use]
    pub(crate) fn is_cause(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|cause| cause.is::<Self>())
    }
}

/// The hashes that running processes refer to, read from /proc on first use. Each eviction creates its own.
#[derive(Debug)]
pub(crate) struct ProcessReferences {
    proc: PathBuf,
    named: OnceCell<Result<HashMap<String, Vec<u32>>, String>>,
}

impl Default for ProcessReferences {
    fn default() -> Self {
        Self {
            proc: PathBuf::from("/proc"),
            named: OnceCell::new(),
        }
    }
}

impl ProcessReferences {
    /// The processes that refer to the blob of this digest.
    ///
    /// # Errors
    /// [`ProcessScanError`].
    pub(crate) fn pids_of_blob(&self, sha256: &str) -> io::Result<&[u32]> {
        Ok(self.pids_by_name()?.get(sha256).map_or(&[], Vec::as_slice))
    }

    /// Process ids by the name they refer to: the digest of a blob, the hash of a pex or of a part of one, or the short
    /// name of a venv.
    ///
    /// # Errors
    /// [`ProcessScanError`].
    pub(crate) fn pids_by_name(&self) -> io::Result<&HashMap<String, Vec<u32>>> {
        let scan = || {
            scan(&self.proc)
                .map_err(|error| format!("cannot read {}: {error}", self.proc.display()))
        };
        let named = self.named.get_or_init(scan).as_ref();
        named.map_err(|why| io::Error::other(ProcessScanError { why: why.clone() }))
    }
}

/// Reads `exe`, `cwd` and `cmdline` of every process but this one, and `maps`, which are long, of the caller's only.
fn scan(proc: &Path) -> io::Result<HashMap<String, Vec<u32>>> {
    // It may not be a procfs, or one of another PID namespace.
    let me = std::fs::read_link(proc.join("self"))?;
    let (mut lists_me, caller) = (false, nix::unistd::geteuid().as_raw());
    let mut named: HashMap<String, Vec<u32>> = HashMap::new();
    for entry in std::fs::read_dir(proc)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if name == me {
            lists_me = true;
            continue;
        }
        let process = entry.path();
        let own = entry.metadata().is_ok_and(|found| found.uid() == caller);
        for name in names(&process, own)? {
            named.entry(name).or_default().push(pid);
        }
    }
    if !lists_me {
        return Err(io::Error::other("it does not list this process"));
    }
    Ok(named)
}

/// The names that a process refers to.
fn names(process: &Path, own: bool) -> io::Result<HashSet<String>> {
    let mut found = HashSet::new();
    let cwd = tolerate_unreadable(std::fs::read_link(process.join("cwd")))?;
    let exe = tolerate_unreadable(std::fs::read_link(process.join("exe")))?;
    let mut cmdline = Vec::new();
    if let Some(file) = tolerate_unreadable(File::open(process.join("cmdline")).map(Some))? {
        tolerate_unreadable(file.take(CMDLINE_LIMIT).read_to_end(&mut cmdline))?;
    }
    let cwd = cwd.as_os_str().as_bytes();
    for text in [cwd, exe.as_os_str().as_bytes(), &cmdline] {
        collect(text, &mut found);
    }
    collect_relative(cwd, &cmdline, &mut found);
    if own && let Some(file) = tolerate_unreadable(File::open(process.join("maps")).map(Some))? {
        let mut lines = BufReader::new(file.take(MAPS_LIMIT)).split(b'\n');
        while let Some(line) = tolerate_unreadable(lines.next().transpose())? {
            collect(&line, &mut found);
        }
    }
    Ok(found)
}

/// The result of looking at another process. One that ended, or that may not be looked at, is taken to use nothing; for
/// want of file descriptors or memory nothing can be concluded.
fn tolerate_unreadable<T: Default>(look: io::Result<T>) -> io::Result<T> {
    let code = |error: &io::Error| error.raw_os_error().map(Errno::from_raw);
    match look {
        Err(error)
            if matches!(
                code(&error),
                Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM)
            ) =>
        {
            Err(error)
        }
        look => Ok(look.unwrap_or_default()),
    }
}

/// Adds the blobs (`<ab>/<sha256>`) and unpacked pexes (`<folder>/<version>/<hash>`, short names of venvs) that a text
/// contains, below any directory: a process in a container may see the cache at another path.
fn collect(text: &[u8], found: &mut HashSet<String>) {
    let (mut above, mut before): (&[u8], &[u8]) = (b"", b"");
    for word in words(text) {
        let is_version = before.iter().all(u8::is_ascii_digit);
        if is_reference(word, before) || is_version && is_reference(word, above) {
            found.insert(String::from_utf8_lossy(word).into_owned());
        }
        (above, before) = (before, word);
    }
}

/// Adds the names in arguments that are relative to a working directory in the cache, however the path is written
/// (`./`, `../`, in a list, as the value of an option).
fn collect_relative(cwd: &[u8], arguments: &[u8], found: &mut HashSet<String>) {
    let folders: Vec<&[u8]> = words(cwd).collect();
    for word in words(arguments) {
        if folders.iter().any(|folder| is_reference(word, folder)) {
            found.insert(String::from_utf8_lossy(word).into_owned());
        }
    }
}

/// The components in a text of paths, without the empty ones of `//` and `/./`.
fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_')
        .filter(|word| !word.is_empty())
}

/// Whether a word is the name of a blob or an unpacked pex in a directory called `folder`.
fn is_reference(word: &[u8], folder: &[u8]) -> bool {
    let blob =
        word.len() == 64 && (folder == b"blobs" || folder.len() == 2 && word.starts_with(folder));
    let unpacked = word.len() >= 40 && UNPACKED.iter().any(|name| folder == name.as_bytes());
    let short = word.len() >= 8 && folder == b"s";
    (blob || unpacked || short) && hostkit::hex::is_hex(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pex_hash_is_found_after_folder_and_version() {
        let hash = "cd".repeat(20);
        for (text, expected) in [
            (
                format!("python\0/c/0/pex-root/unzipped_pexes/4/{hash}\0--port=1\0"),
                true,
            ),
            (format!("/c/0/pex-root/venvs/4/{hash}/00/bin/python"), true),
            (
                format!("7f00-7f01 r-xp /c/0/pex-root/installed_wheels/{hash}/a.whl/a.so"),
                true,
            ),
            (format!("git\0checkout\0{hash}"), false),
            (format!("/c/0/pex-root/interpreters/2/{hash}"), false),
        ] {
            let mut found = HashSet::new();
            collect(text.as_bytes(), &mut found);
            assert_eq!(found.contains(&hash), expected, "{text}");
        }
        let mut found = HashSet::new();
        collect(
            b"/c/0/pex-root/venvs/4/s/988e3f0a/venv/bin/python3",
            &mut found,
        );
        assert!(found.contains("988e3f0a"));
    }

    #[test]
    fn digest_is_found_only_after_its_folder() {
        let sha256 = "ab".repeat(32);
        for (text, expected) in [
            (format!("/c/0/blobs/ab/{sha256}/job.pex"), true),
            (
                format!("java\0-jar\0/c/0/blobs/ab/{sha256}/job.jar\0"),
                true,
            ),
            (format!("-cp\0/lib/a.jar:/c/0/blobs/ab/{sha256}"), true),
            (
                format!("7f00-7f01 r-xp 00000000 fd:01 7 /c/blobs/ab/{sha256}/a (deleted)"),
                true,
            ),
            (format!("/c/0/blobs/ab//{sha256}/job.pex"), true),
            (format!("/c/0/blobs/ab/./{sha256}/job.pex"), true),
            (format!("--class-path=/c/0/blobs/ab/{sha256}/../x"), true),
            (format!("s3cache\0rm\0{sha256}"), false),
            (format!("/c/0/blobs/cd/{sha256}/job.pex"), false),
            (format!("/c/0/blobs/ab/{sha256}0/job.pex"), false),
        ] {
            let mut found = HashSet::new();
            collect(text.as_bytes(), &mut found);
            assert_eq!(found.contains(&sha256), expected, "{text}");
        }
    }

    #[test]
    fn relative_name_in_cache_directory_is_found_in_any_form() {
        let (sha256, other) = ("ab".repeat(32), format!("ab{}", "0".repeat(62)));
        let hash = "cd".repeat(20);
        for (cwd, argument, name, expected) in [
            ("/c/0/blobs/ab", format!("{sha256}/x.jar"), &sha256, true),
            ("/c/0/blobs/ab", format!("./{sha256}/x.jar"), &sha256, true),
            (
                "/c/0/blobs/ab",
                format!("a.jar:{sha256}/x.jar"),
                &sha256,
                true,
            ),
            (
                "/c/0/blobs/ab",
                format!("--class-path={sha256}/x"),
                &sha256,
                true,
            ),
            (
                &format!("/c/ab/{other}")[..],
                format!("../{sha256}/x"),
                &sha256,
                true,
            ),
            ("/c/0/blobs", format!("./ab/.//{sha256}/x"), &sha256, true),
            (
                "/c/0/blobs/cd",
                format!("../ab/../ab/{sha256}/x"),
                &sha256,
                true,
            ),
            (
                "/c/0/pex-root/venvs/4/s/12345678",
                "../988e3f0a/pex".to_owned(),
                &"988e3f0a".to_owned(),
                true,
            ),
            (
                "/c/0/pex-root/unzipped_pexes",
                format!("4/./{hash}"),
                &hash,
                true,
            ),
            ("/repository", format!("commit={sha256}"), &sha256, false),
        ] {
            let mut found = HashSet::new();
            collect_relative(cwd.as_bytes(), argument.as_bytes(), &mut found);
            assert_eq!(found.contains(name), expected, "{cwd} {argument}");
        }
    }

    #[test]
    fn scan_without_process_list_fails() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path();
        let known = || {
            let in_use = ProcessReferences {
                proc: root.join("proc"),
                named: OnceCell::new(),
            };
            let known = in_use.pids_of_blob("ab").map(<[u32]>::len);
            known.map_err(|error| assert!(ProcessScanError::is_cause(&error), "{error}"))
        };
        assert!(known().is_err(), "not there");
        std::fs::create_dir(root.join("proc")).unwrap();
        assert!(known().is_err(), "empty");
        std::os::unix::fs::symlink("7", root.join("proc/self")).unwrap();
        std::fs::create_dir(root.join("proc/1")).unwrap();
        assert!(known().is_err(), "this process is not in it");
        std::fs::create_dir(root.join("proc/7")).unwrap();
        assert_eq!(known(), Ok(0), "a process that shows nothing uses nothing");
        for (code, fatal) in [
            (Errno::EMFILE, true),
            (Errno::ENFILE, true),
            (Errno::ENOMEM, true),
            (Errno::ENOENT, false),
            (Errno::ESRCH, false),
            (Errno::EACCES, false),
        ] {
            assert_eq!(
                tolerate_unreadable::<()>(Err(code.into())).is_err(),
                fatal,
                "{code}"
            );
        }
    }
}
