//! Blobs and unpacked pexes that running processes name. A lease is a `flock` on an inherited descriptor, and programs
//! that turn themselves into daemons close those; their executable, working directory and arguments still say what they
//! run from.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The folders of a `PEX_ROOT` whose entries count.
const UNPACKED: [&str; 5] = [
    "unzipped_pexes",
    "venvs",
    "bootstraps",
    "user_code",
    "installed_wheels",
];
/// Arguments beyond this many bytes of one process are not read.
const CMDLINE_LIMIT: u64 = 1 << 20;
/// Mappings beyond this many bytes of one process are not read.
const MAPS_LIMIT: u64 = 16 << 20;

/// What running processes name, read from /proc when it is first asked for and then kept: each round of eviction makes
/// one of its own.
#[derive(Debug, Default)]
pub struct InUse(OnceCell<HashMap<String, Vec<u32>>>);

impl InUse {
    /// The processes that name the blob of this digest.
    #[must_use]
    pub fn of_blob(&self, sha256: &str) -> &[u32] {
        self.named().get(sha256).map_or(&[], Vec::as_slice)
    }

    /// Whether a process names this directory of an unpacked pex: its hash, that of a part of it, or the short name of
    /// a venv.
    #[must_use]
    pub fn has_unpacked(&self, name: &str) -> bool {
        self.named().contains_key(name)
    }

    fn named(&self) -> &HashMap<String, Vec<u32>> {
        self.0.get_or_init(|| scan(Path::new("/proc")))
    }
}

/// Reads `exe`, `cwd` and `cmdline` of every process but this one, and `maps`, which are long, of the caller's only. What
/// cannot be read, or ends meanwhile, uses nothing.
fn scan(proc: &Path) -> HashMap<String, Vec<u32>> {
    let (me, caller) = (std::process::id(), nix::unistd::geteuid().as_raw());
    let mut named: HashMap<String, Vec<u32>> = HashMap::new();
    for entry in std::fs::read_dir(proc).into_iter().flatten().flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let Some(pid) = pid.filter(|pid: &u32| *pid != me) else {
            continue;
        };
        let (process, mut found) = (entry.path(), HashSet::new());
        let cwd = std::fs::read_link(process.join("cwd")).unwrap_or_default();
        let exe = std::fs::read_link(process.join("exe")).unwrap_or_default();
        for path in [&cwd, &exe] {
            collect(path.as_os_str().as_bytes(), &mut found);
        }
        let mut cmdline = Vec::new();
        if let Ok(file) = File::open(process.join("cmdline")) {
            let _ = file.take(CMDLINE_LIMIT).read_to_end(&mut cmdline);
        }
        collect(&cmdline, &mut found);
        for argument in cmdline.split(|byte| *byte == 0) {
            if !argument.starts_with(b"/") {
                let path = [cwd.as_os_str().as_bytes(), b"/", argument].concat();
                collect(&path, &mut found);
            }
        }
        if entry.metadata().is_ok_and(|found| found.uid() == caller)
            && let Ok(file) = File::open(process.join("maps"))
        {
            let lines = BufReader::new(file.take(MAPS_LIMIT)).split(b'\n');
            for line in lines.map_while(Result::ok) {
                collect(&line, &mut found);
            }
        }
        for name in found {
            named.entry(name).or_default().push(pid);
        }
    }
    named
}

/// Adds what a text names of blobs (`<ab>/<sha256>`) and of unpacked pexes (`<folder>/<version>/<hash>`, and the short
/// names of venvs), whatever the path before it is: a process in a container may see the cache directory elsewhere.
fn collect(text: &[u8], found: &mut HashSet<String>) {
    let is_hex = |word: &[u8]| word.iter().all(u8::is_ascii_hexdigit);
    let is_folder = |word: &[u8]| UNPACKED.iter().any(|folder| word == folder.as_bytes());
    let (mut above, mut before): (&[u8], &[u8]) = (b"", b"");
    for word in text.split(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_') {
        let blob = word.len() == 64 && before.len() == 2 && word.starts_with(before);
        let unpacked = word.len() >= 40
            && (is_folder(before) || is_folder(above) && before.iter().all(u8::is_ascii_digit));
        let short = word.len() >= 8 && before == b"s";
        if (blob || unpacked || short) && is_hex(word) {
            found.insert(String::from_utf8_lossy(word).into_owned());
        }
        (above, before) = (before, word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpacked_pex_counts_behind_its_folder_and_version() {
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
    fn a_digest_counts_only_behind_its_folder() {
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
            (format!("s3cache\0rm\0{sha256}"), false),
            (format!("/c/0/blobs/cd/{sha256}/job.pex"), false),
            (format!("/c/0/blobs/ab/{sha256}0/job.pex"), false),
        ] {
            let mut found = HashSet::new();
            collect(text.as_bytes(), &mut found);
            assert_eq!(found.contains(&sha256), expected, "{text}");
        }
    }
}
