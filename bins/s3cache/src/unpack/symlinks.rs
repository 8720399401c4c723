//! Checks that no symlink of an unpacked tree leads out of it, through any chain.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use hostkit::dir::Dir;
use nix::errno::Errno;

use super::tar_reader::UnpackError;
use crate::deadline::Deadline;

/// Linux follows this many symlinks in one path.
pub(super) const HOPS: usize = 40;
/// The most lookups for all symlinks of a tree: chains could be built to take forever.
const LOOKUPS: u64 = 1 << 23;

pub(super) fn check_symlinks(root: &Dir, deadline: &Deadline) -> Result<(), UnpackError> {
    let root = root.child(".").map_err(UnpackError::write(b"."))?;
    let mut walk = SymlinkWalk {
        directories: vec![root],
        path: PathBuf::new(),
        lookups: 0,
        deadline,
    };
    walk.check()
}

/// The position of the check: the open directories from the root down, and the path of the last one.
struct SymlinkWalk<'a> {
    directories: Vec<Dir>,
    path: PathBuf,
    lookups: u64,
    deadline: &'a Deadline,
}

impl SymlinkWalk<'_> {
    fn check(&mut self) -> Result<(), UnpackError> {
        let failed = UnpackError::write(self.path.as_os_str().as_bytes());
        let mut below = Vec::new();
        let here = &self.directories[self.directories.len() - 1];
        for entry in here.entries().map_err(&failed)? {
            let (name, is_dir) = entry.map_err(&failed)?;
            self.deadline.check()?;
            if is_dir {
                below.push(name);
                continue;
            }
            let here = &self.directories[self.directories.len() - 1];
            if let Some(target) = here.read_link(&name).map_err(&failed)? {
                let reason = match self.follow(&name, &target).map_err(&failed)? {
                    LinkDestination::Within => continue,
                    LinkDestination::Outside => "the link leads out of the directory",
                    LinkDestination::Undetermined => {
                        "checking the symlinks of the archive takes too long"
                    }
                    LinkDestination::TooManyHops => "the link leads through over 40 symlinks",
                };
                let path = self.path.join(name);
                return Err(UnpackError::archive(path.as_os_str().as_bytes(), reason));
            }
        }
        for name in below {
            let here = &self.directories[self.directories.len() - 1];
            let child = here.child(&name).map_err(&failed)?;
            self.directories.push(child);
            self.path.push(name);
            self.check()?;
            self.path.pop();
            self.directories.pop();
        }
        Ok(())
    }

    /// Follows the symlink `name` of the last directory. A missing component counts as a directory, because one may be
    /// created later, and so does a symlink that leads to itself.
    fn follow(&mut self, name: &OsStr, target: &OsStr) -> io::Result<LinkDestination> {
        let mut rest = Vec::new();
        // How many of `directories` the target has not left, and the directories it has entered below them.
        let mut kept = self.directories.len();
        let mut entered: Vec<Option<Dir>> = Vec::new();
        let mut hops = 1;
        // The symlinks that are being followed, and how many names remain after each of them.
        let here = &self.directories[kept - 1];
        let mut followed = vec![(place(here, name)?, 0)];
        if !push(&mut rest, target) {
            return Ok(LinkDestination::Outside);
        }
        loop {
            while followed.pop_if(|(_, after)| *after >= rest.len()).is_some() {}
            let Some(name) = rest.pop() else {
                return Ok(LinkDestination::Within);
            };
            self.deadline.check()?;
            self.lookups += 1;
            if self.lookups > LOOKUPS {
                return Ok(LinkDestination::Undetermined);
            }
            if name == ".." {
                if entered.pop().is_none() {
                    kept -= 1;
                }
                if kept == 0 {
                    return Ok(LinkDestination::Outside);
                }
                continue;
            }
            let here = match entered.last() {
                Some(dir) => dir.as_ref(),
                None => Some(&self.directories[kept - 1]),
            };
            let link = match here {
                Some(dir) => absent(dir.read_link(&name))?.flatten(),
                None => None,
            };
            match (link, here) {
                (Some(link), Some(dir)) => {
                    let link_place = place(dir, &name)?;
                    let earlier = followed.iter().position(|(at, _)| *at == link_place);
                    if let Some(earlier) = earlier {
                        rest.truncate(followed[earlier].1);
                        entered.push(None);
                        continue;
                    }
                    hops += 1;
                    if hops > HOPS {
                        return Ok(LinkDestination::TooManyHops);
                    }
                    followed.push((link_place, rest.len()));
                    if !push(&mut rest, &link) {
                        return Ok(LinkDestination::Outside);
                    }
                }
                (None, Some(dir)) => entered.push(absent(dir.child(&name))?),
                (_, None) => entered.push(None),
            }
        }
    }
}

enum LinkDestination {
    Within,
    Outside,
    /// Through more symlinks than Linux follows. Another program may follow them all.
    TooManyHops,
    /// The limit of lookups was reached first.
    Undetermined,
}

/// The identity of a directory entry.
fn place(dir: &Dir, name: &OsStr) -> io::Result<(u64, u64, OsString)> {
    let found = dir.metadata()?;
    Ok((found.st_dev, found.st_ino, name.to_owned()))
}

/// Pushes the components of a path on a stack, the first on top; `false` when it is absolute.
fn push(rest: &mut Vec<OsString>, path: &OsStr) -> bool {
    let names = path.as_bytes().split(|byte| *byte == b'/').rev();
    let names = names.filter(|name| !matches!(name, [] | [b'.']));
    rest.extend(names.map(|name| OsStr::from_bytes(name).to_owned()));
    !path.as_bytes().starts_with(b"/")
}

/// `None` for what is missing or not a directory. Any other failure does not show where a link leads.
fn absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result.map_err(|error| (error.raw_os_error().map(Errno::from_raw), error)) {
        Ok(found) => Ok(Some(found)),
        Err((Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENAMETOOLONG), _)) => {
            Ok(None)
        }
        Err((_, error)) => Err(error),
    }
}
