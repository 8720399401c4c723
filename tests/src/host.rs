//! Resources that need root or kernel support: other users, small and reflinking filesystems, CPU limits. One that is
//! unavailable is returned as the reason, for [`or_skip`](crate::or_skip).

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::{ChildGuard, find_program, wait_until};

/// The CPU accounting period in microseconds.
const PERIOD: u32 = 100_000;

#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A command that runs `program` as `uid`, with the group of the same number and no supplementary groups.
///
/// # Errors
/// This process is not root.
pub fn run_as(uid: u32, program: impl AsRef<OsStr>) -> Result<Command, String> {
    root()?;
    let mut command = Command::new(program);
    // The standard library empties the supplementary groups when root sets a uid.
    command.uid(uid).gid(uid);
    Ok(command)
}

/// A tmpfs that is unmounted on drop.
#[derive(Debug)]
pub struct TmpfsMount {
    mount: MountPoint,
}

impl TmpfsMount {
    /// Mounts a world-writable tmpfs of `size` bytes.
    ///
    /// # Errors
    /// This process is not root, or may not mount.
    pub fn mount(size: u64) -> Result<Self, String> {
        let options = format!("size={size},mode=1777");
        let mount = MountPoint::new(&["-t", "tmpfs", "-o", &options, "tmpfs"], TempDir::new())?;
        Ok(Self { mount })
    }

    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.mount.point()
    }
}

/// A FUSE file system whose server never answers, not even the kernel's first request. An access blocks until the
/// process is killed.
#[derive(Debug)]
pub struct SilentFs {
    // Dropped in this order: an unmount waits for a server that still runs.
    _server: ChildGuard,
    mount: TempDir,
}

impl SilentFs {
    /// Mounts it.
    ///
    /// # Errors
    /// This process is not root, or the kernel has no FUSE.
    pub fn mount() -> Result<Self, String> {
        root()?;
        if !Path::new("/dev/fuse").exists() {
            return Err("there is no /dev/fuse".to_owned());
        }
        let mount = TempDir::new().unwrap();
        let script = "exec 3<>/dev/fuse && mount -i -t fuse \
            -o fd=3,rootmode=40000,user_id=0,group_id=0 silent \"$0\" && echo mounted && exec sleep 100000";
        let mut server = Command::new("sh");
        server.args(["-c", script]).arg(mount.path());
        let mut server = ChildGuard(server.stdout(Stdio::piped()).spawn().unwrap());
        let mut outcome = String::new();
        let output = server.0.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut outcome).unwrap();
        if outcome.is_empty() {
            return Err("FUSE cannot be mounted".to_owned());
        }
        Ok(Self {
            _server: server,
            mount,
        })
    }

    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.mount.path().join(name)
    }
}

impl Drop for SilentFs {
    fn drop(&mut self) {
        let _ = succeed(Command::new("umount").arg("--lazy").arg(self.mount.path()));
    }
}

/// A filesystem in a sparse file, unmounted on drop.
#[derive(Debug)]
pub struct LoopFs {
    mount: MountPoint,
}

impl LoopFs {
    /// Makes and mounts a world-writable 512 MiB `xfs` or `btrfs`, both with reflinks.
    ///
    /// # Errors
    /// This process is not root, the tools of that filesystem are missing, or the kernel does not support it.
    pub fn mount(kind: &str) -> Result<Self, String> {
        root()?;
        let directory = TempDir::new().unwrap();
        let image = directory.path().join("image");
        fs::File::create(&image)
            .unwrap()
            .set_len(512 << 20)
            .unwrap();
        let mut make = Command::new(find_program(&format!("mkfs.{kind}"))?);
        if kind == "xfs" {
            make.args(["-q", "-m", "reflink=1"]);
        } else {
            make.arg("-q");
        }
        succeed(make.arg(&image))?;
        let image = image
            .to_str()
            .expect("a path of plain characters")
            .to_owned();
        let mount = MountPoint::new(&["-t", kind, "-o", "loop", &image], Ok(directory))?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
        fs::set_permissions(mount.point(), mode).unwrap();
        Ok(Self { mount })
    }

    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.mount.point()
    }
}

#[derive(Debug)]
struct MountPoint {
    directory: TempDir,
}

impl MountPoint {
    fn new(arguments: &[&str], directory: std::io::Result<TempDir>) -> Result<Self, String> {
        root()?;
        let directory = directory.unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(directory.path(), mode).unwrap();
        let point = directory.path().join("mnt");
        fs::create_dir(&point).unwrap();
        succeed(Command::new("mount").args(arguments).arg(&point))?;
        Ok(Self { directory })
    }

    fn point(&self) -> PathBuf {
        self.directory.path().join("mnt")
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        let point = self.point();
        if succeed(Command::new("umount").arg(&point)).is_err() {
            // A file there is still open; a lazy unmount completes when it is closed.
            let _ = succeed(Command::new("umount").arg("--lazy").arg(&point));
        }
    }
}

/// A cgroup that limits its processes to a fraction of one CPU. On drop, the remaining ones move back to the parent.
#[derive(Debug)]
pub struct CpuLimit {
    group: PathBuf,
}

impl CpuLimit {
    /// A limit of a quarter of one CPU.
    ///
    /// # Errors
    /// This process is not root, or cannot create a cgroup (v1 or v2).
    pub fn quarter() -> Result<Self, String> {
        Self::percent(25)
    }

    /// A limit of so many percent of one CPU.
    ///
    /// # Errors
    /// This process is not root, or cannot create a cgroup (v1 or v2).
    pub fn percent(percent: u32) -> Result<Self, String> {
        root()?;
        let quota = PERIOD / 100 * percent;
        let v1 = ["cpu", "cpu,cpuacct"]
            .map(|controller| Path::new("/sys/fs/cgroup").join(controller))
            .into_iter()
            .find(|directory| directory.join("cpu.cfs_quota_us").exists());
        let limit = |parent: &Path, files: &[(&str, String)]| {
            let group = TempDir::with_prefix_in("hostkit-", parent)
                .map_err(|error| format!("no cgroup below {}: {error}", parent.display()))?
                .keep();
            let limit = Self { group };
            for (file, value) in files {
                limit.write(file, value)?;
            }
            Ok(limit)
        };
        match v1 {
            Some(parent) => limit(
                &parent,
                &[
                    ("cpu.cfs_period_us", PERIOD.to_string()),
                    ("cpu.cfs_quota_us", quota.to_string()),
                ],
            ),
            None => {
                let parent = Path::new("/sys/fs/cgroup");
                // Usually enabled by the service manager already; if not, writing the limit fails below.
                let _ = fs::write(parent.join("cgroup.subtree_control"), "+cpu");
                limit(parent, &[("cpu.max", format!("{quota} {PERIOD}"))])
            }
        }
    }

    /// Moves a process into the group; its later children start there.
    ///
    /// # Errors
    /// The error of the kernel.
    pub fn add(&self, pid: u32) -> Result<(), String> {
        self.write("cgroup.procs", &pid.to_string())
    }

    fn write(&self, file: &str, value: &str) -> Result<(), String> {
        let path = self.group.join(file);
        fs::write(&path, value).map_err(|error| format!("{}: {error}", path.display()))
    }
}

impl Drop for CpuLimit {
    fn drop(&mut self) {
        let outside = self
            .group
            .parent()
            .expect("a group has a parent")
            .join("cgroup.procs");
        wait_until("the cgroup is empty", || {
            let inside = fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default();
            for pid in inside.lines() {
                // The process may have ended since.
                let _ = fs::write(&outside, pid);
            }
            fs::remove_dir(&self.group).is_ok() || !self.group.exists()
        });
    }
}

fn root() -> Result<(), String> {
    is_root()
        .then_some(())
        .ok_or_else(|| "needs root".to_owned())
}

/// Runs a command to its end; the error has its stderr.
pub(crate) fn succeed(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "{name} failed ({}): {}",
        output.status,
        message.trim()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::or_skip;

    #[test]
    fn run_as_drops_supplementary_groups() {
        let Some(mut command) = or_skip("other users", run_as(12_345, "id")) else {
            return;
        };
        let message = String::from_utf8(command.output().unwrap().stdout).unwrap();
        assert_eq!(message.trim(), "uid=12345 gid=12345 groups=12345");
    }

    #[test]
    fn tmpfs_has_given_size_and_is_unmounted_on_drop() {
        let Some(tmpfs) = or_skip("tmpfs", TmpfsMount::mount(1 << 20)) else {
            return;
        };
        let path = tmpfs.path();
        let error = fs::write(path.join("big"), vec![0; 2 << 20]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        drop(tmpfs);
        assert!(!path.exists());
    }

    #[test]
    fn loop_filesystems_support_reflinks() {
        for kind in ["xfs", "btrfs"] {
            let Some(mounted) = or_skip(kind, LoopFs::mount(kind)) else {
                continue;
            };
            let (from, to) = (mounted.path().join("a"), mounted.path().join("b"));
            fs::write(&from, vec![1; 1 << 20]).unwrap();
            succeed(
                Command::new("cp")
                    .arg("--reflink=always")
                    .args([&from, &to]),
            )
            .unwrap();
        }
    }

    #[test]
    fn cpu_limit_moves_process_into_its_cgroup_and_back() {
        let Some(limit) = or_skip("CPU limits", CpuLimit::quarter()) else {
            return;
        };
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let child = crate::ChildGuard(child);
        limit.add(child.0.id()).unwrap();
        let group = limit
            .group
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let at = format!("/proc/{}/cgroup", child.0.id());
        assert!(fs::read_to_string(&at).unwrap().contains(&group));
        drop(limit);
        assert!(!fs::read_to_string(&at).unwrap().contains(&group));
    }
}
