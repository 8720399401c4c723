//! What has to be looked at to notice that a path leads somewhere else: every directory in which one of its names, or
//! of the names its symlinks lead through, could be replaced.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

/// Links followed before a path is taken for a loop, as in Linux.
const LINKS: usize = 40;

/// A directory as it is now: another one of the same path is another.
pub(super) type DirectoryId = (u64, u64);

/// What one path leads through.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PathChain {
    /// Directories, free of symlinks, that must be watched.
    pub(super) directories: BTreeMap<PathBuf, DirectoryId>,
    /// The entries of these directories that matter: symlinks, the file, and the first name that does not exist.
    pub(super) entries: Vec<PathBuf>,
}

/// Follows `path` as far as it leads. Touches the file system.
pub(super) fn resolve_chain(path: &Path) -> PathChain {
    let mut chain = PathChain::default();
    let mut current = PathBuf::from("/");
    let mut ahead = names(&std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
    let mut links = 0;
    while let Some(name) = ahead.pop() {
        if name == ".." {
            current.pop();
            continue;
        }
        let entry = current.join(name);
        match std::fs::symlink_metadata(&entry) {
            Ok(metadata) if metadata.is_dir() => current = entry,
            Ok(metadata) if metadata.is_symlink() && links < LINKS => {
                links += 1;
                chain.watch(&current, entry.clone());
                let Ok(target) = std::fs::read_link(&entry) else {
                    return chain;
                };
                if target.is_absolute() {
                    current = PathBuf::from("/");
                }
                ahead.extend(names(&target));
            }
            // The file, or the first thing that is missing or in the way.
            _ => {
                chain.watch(&current, entry);
                return chain;
            }
        }
    }
    chain
}

impl PathChain {
    fn watch(&mut self, directory: &Path, entry: PathBuf) {
        if let Ok(metadata) = std::fs::metadata(directory) {
            let identity = (metadata.dev(), metadata.ino());
            self.directories.insert(directory.to_owned(), identity);
        }
        self.entries.push(entry);
    }
}

/// The names of a path, the first one last.
fn names(path: &Path) -> Vec<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .rev()
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn directories(chain: &PathChain) -> Vec<&Path> {
        chain.directories.keys().map(PathBuf::as_path).collect()
    }

    #[test]
    fn a_plain_file_is_watched_through_its_directory() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        std::fs::write(root.join("list"), "").unwrap();
        let chain = resolve_chain(&root.join("list"));
        assert_eq!(directories(&chain), [root.as_path()]);
        assert_eq!(chain.entries, [root.join("list")]);
    }

    #[test]
    fn every_directory_that_holds_a_link_is_watched() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("releases/1")).unwrap();
        std::fs::write(root.join("releases/1/list"), "").unwrap();
        symlink("releases/1", root.join("current")).unwrap();
        std::fs::create_dir(root.join("etc")).unwrap();
        symlink("../current/list", root.join("etc/list")).unwrap();
        let chain = resolve_chain(&root.join("etc/list"));
        assert_eq!(
            directories(&chain),
            [root.as_path(), &root.join("etc"), &root.join("releases/1")]
        );
    }

    #[test]
    fn what_does_not_exist_is_awaited_where_it_would_appear() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        let chain = resolve_chain(&root.join("not/yet/list"));
        assert_eq!(directories(&chain), [root.as_path()]);
        assert_eq!(chain.entries, [root.join("not")]);
    }

    #[test]
    fn a_loop_of_links_ends() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        symlink("b", root.join("a")).unwrap();
        symlink("a", root.join("b")).unwrap();
        assert_eq!(
            directories(&resolve_chain(&root.join("a"))),
            [root.as_path()]
        );
    }
}
