//! HAProxy's file on disk: read, kept, replaced. At every moment a whole file is in place.

use std::fs;
use std::io::{self, BufRead as _, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use hostkit::dir::{Dir, Durability};

/// The longest file that is read: 100,000 servers are 11 MB.
const LIMIT: u64 = 256 << 20;

/// The mode of a file that was not there; the mode of one that was is kept.
const MODE: u32 = 0o644;

/// A file by the directory it really is in: `/etc/haproxy/haproxy.cfg` may be a symlink.
#[derive(Debug)]
pub(super) struct File {
    dir: Dir,
    name: String,
}

/// What stood in a file.
#[derive(Debug, Clone)]
pub(super) struct Old {
    pub(super) text: String,
    mode: u32,
}

impl File {
    /// The file at `path`, which need not exist.
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        let real = match fs::canonicalize(path) {
            Ok(real) => real,
            Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
            Err(error) => return Err(error),
        };
        let name = real.file_name().and_then(|name| name.to_str());
        let name = name
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?;
        let parent = real.parent().filter(|parent| *parent != Path::new(""));
        Ok(Self {
            dir: Dir::open(parent.unwrap_or(Path::new(".")))?,
            name: name.to_owned(),
        })
    }

    /// What stands there; `None` when there is no file.
    pub(super) fn read(&self) -> io::Result<Option<Old>> {
        let bytes = match self.dir.read(&self.name, LIMIT) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let mode = self.dir.stat(&self.name)?.st_mode & 0o777;
        let text = String::from_utf8(bytes)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8"))?;
        Ok(Some(Old { text, mode }))
    }

    /// Replaces it, durably, keeping the mode of `like`.
    pub(super) fn write(&self, text: &str, like: Option<&Old>) -> io::Result<()> {
        let mode = like.map_or(MODE, |old| old.mode);
        self.dir
            .write_atomic(&self.name, text.as_bytes(), mode, Durability::Crash)
    }

    /// Replaces it where nobody needs it after a crash.
    pub(super) fn write_candidate(&self, text: &str) -> io::Result<()> {
        self.dir
            .write_atomic(&self.name, text.as_bytes(), MODE, Durability::Process)
    }
}

/// Replaces the file at `path` by what `write` writes, unless it holds that already. Neither is ever in memory as a
/// whole.
pub(crate) fn renew(
    path: &Path,
    write: impl Fn(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let file = File::at(path)?;
    let mode = match file.dir.open_file(&file.name) {
        Ok(old) => {
            let mut same = Same(BufReader::new(old));
            if write(&mut same).is_ok() && same.0.fill_buf()?.is_empty() {
                return Ok(());
            }
            file.dir.stat(&file.name)?.st_mode & 0o777
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => MODE,
        Err(error) => return Err(error),
    };
    let write = |out: &mut BufWriter<&fs::File>| write(out);
    file.dir
        .write_atomic_with(&file.name, mode, Durability::Crash, write)
}

/// Takes what its file holds, and nothing else.
struct Same(BufReader<fs::File>);

impl Write for Same {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let old = self.0.fill_buf()?;
        let length = old.len().min(bytes.len());
        if length == 0 || old[..length] != bytes[..length] {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        self.0.consume(length);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Removes what is left of writes to `path` that were cut off.
pub(crate) fn sweep(path: &Path) -> io::Result<()> {
    let file = File::at(path)?;
    file.dir.sweep(&file.name)
}

/// `path` with `.ending` appended to its name.
pub(super) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_symlink_stays_one_and_the_mode_stays() {
        let temp = tempfile::tempdir().unwrap();
        let (real, link) = (temp.path().join("real.cfg"), temp.path().join("link.cfg"));
        fs::write(&real, "old\n").unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("real.cfg", &link).unwrap();
        let file = File::at(&link).unwrap();
        let old = file.read().unwrap().unwrap();
        file.write("new\n", Some(&old)).unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read_to_string(&real).unwrap(), "new\n");
        assert_eq!(
            fs::metadata(&real).unwrap().permissions().mode() & 0o777,
            0o640
        );
        file.write(&old.text, Some(&old)).unwrap();
        assert_eq!(fs::read_to_string(&link).unwrap(), "old\n");
    }

    #[test]
    fn a_file_is_only_replaced_by_another_text() {
        use std::os::unix::fs::MetadataExt as _;
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("file");
        let renew = |words: &[&str]| {
            renew(&path, |out| {
                words
                    .iter()
                    .try_for_each(|word| out.write_all(word.as_bytes()))
            })
            .unwrap();
            (
                fs::read_to_string(&path).unwrap(),
                fs::metadata(&path).unwrap().ino(),
            )
        };
        let long = "x".repeat(100_000);
        let (_, mut before) = renew(&[&long, "y"]);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(renew(&[&long, "", "y"]).1, before);
        for words in [&[&long, "z"][..], &[&long], &[&long, "y"], &[]] {
            let (text, now) = renew(words);
            assert_eq!(text, words.concat());
            assert_ne!(now, before);
            before = now;
        }
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o640
        );
    }

    #[test]
    fn a_file_need_not_exist() {
        let temp = tempfile::tempdir().unwrap();
        let file = File::at(&temp.path().join("new.cfg")).unwrap();
        assert!(file.read().unwrap().is_none());
        file.write("x\n", None).unwrap();
        assert_eq!(file.read().unwrap().unwrap().text, "x\n");
    }
}
