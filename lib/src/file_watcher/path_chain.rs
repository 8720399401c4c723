//! The directories that must be watched to notice that a path leads elsewhere: every directory in which one of its
//! names, or of the names its symlinks lead through, could be replaced.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

/// Symlinks followed before a path counts as a loop, as in Linux.
const MAX_SYMLINKS: usize = 40;

/// Device and inode: a directory that was replaced differs.
pub(super) type DirectoryId = (u64, u64);

/// The directories and entries on the way to a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PathChain {
    /// The directories to watch, free of symlinks.
    pub(super) directories: BTreeMap<PathBuf, DirectoryId>,
    /// The relevant entries of these directories: symlinks, the file, and the first name that does not exist.
    pub(super) entries: Vec<PathBuf>,
}

/// Resolves `path` as far as it exists. Accesses the file system.
pub(super) fn resolve_chain(path: &Path) -> PathChain {
    let mut chain = PathChain::default();
    let mut current = PathBuf::from("/");
    let mut remaining = names(&std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
    let mut links = 0;
    while let Some(name) = remaining.pop() {
        if name == ".." {
            current.pop();
            continue;
        }
        let entry = current.join(name);
        match std::fs::symlink_metadata(&entry) {
            Ok(metadata) if metadata.is_dir() => current = entry,
            Ok(metadata) if metadata.is_symlink() && links < MAX_SYMLINKS => {
                links += 1;
                chain.watch(&current, entry.clone());
                let Ok(target) = std::fs::read_link(&entry) else {
                    return chain;
                };
                if target.is_absolute() {
                    current = PathBuf::from("/");
                }
                remaining.extend(names(&target));
            }
            // The file, or the first name that is missing or not a directory.
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

/// The names of a path in reverse order.
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
    fn plain_file_is_watched_through_its_directory() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        std::fs::write(root.join("list"), "").unwrap();
        let chain = resolve_chain(&root.join("list"));
        assert_eq!(directories(&chain), [root.as_path()]);
        assert_eq!(chain.entries, [root.join("list")]);
    }

    #[test]
    fn every_directory_with_a_symlink_on_the_way_is_watched() {
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
    fn missing_file_is_watched_through_its_first_existing_parent() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        let chain = resolve_chain(&root.join("not/yet/list"));
        assert_eq!(directories(&chain), [root.as_path()]);
        assert_eq!(chain.entries, [root.join("not")]);
    }

    #[test]
    fn symlink_loop_ends() {
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
