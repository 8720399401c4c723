//! Programs that run from a blob without a lease: the blob is in use as long as the process table shows it.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use hostkit_tests::origin::OriginServer;
use hostkit_tests::{ChildGuard, find_program, or_skip};

use super::CacheHost;

/// Maps a file without naming it in its arguments, closes it, prints a line, and ends with its stdin.
const MAPS: &str = "import mmap, os
file = os.open(os.environ.pop('FILE'), os.O_RDONLY)
mapped = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
os.closerange(3, 256)
print('mapped', flush=True)
input()";

/// Programs that run from a blob, each naming it in another way.
fn programs(host: &CacheHost, blob: &Path, python: &Path) -> Vec<(&'static str, Command)> {
    let folder = blob.parent().unwrap();
    let below = blob.strip_prefix(folder.parent().unwrap()).unwrap();
    let with = |program: &Path, args: &[&str]| {
        let mut command = host.program(program);
        command.args(args);
        command
    };
    let waits = ["-c", "echo started; read line", "sh"];
    let mut executable = with(blob, &["-c", "echo started; read line"]);
    executable.arg0("renamed");
    let mut directory = with(Path::new("/bin/sh"), &waits);
    directory.current_dir(folder);
    let mut argument = with(Path::new("/bin/sh"), &waits);
    argument.arg(blob);
    let mut relative = with(Path::new("/bin/sh"), &waits);
    relative.current_dir(folder.parent().unwrap()).arg(below);
    let mut mapping = with(python, &["-c", MAPS]);
    // The environment of a process is not inspected; here it is only a way to pass the name.
    mapping.env("FILE", blob);
    vec![
        ("executable", executable),
        ("working directory", directory),
        ("argument", argument),
        ("relative argument", relative),
        ("mapping", mapping),
    ]
}

#[test]
fn blob_named_by_running_process_is_neither_evicted_nor_removed() {
    let Some(python) = or_skip("python", find_program("python3")) else {
        return;
    };
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    origin.put("/sh-1.1", std::fs::read("/bin/sh").unwrap());
    origin.put("/other-1.1", vec![0; 1 << 20]);
    let url = origin.url("/sh-1.1");
    let cache = || host.s3cache([&url]).exits(0).stdout.trim().to_owned();
    let blob = cache();
    let blob = Path::new(&blob);
    for (how, mut command) in programs(&host, blob, &python) {
        cache();
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut running = ChildGuard(child.spawn().unwrap());
        let mut line = String::new();
        let mut stdout = BufReader::new(running.0.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "{how}: it runs");
        let listed = host.s3cache(["ls", "--json", "sh-1.1"]).exits(0).stdout;
        let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
        let pid = serde_json::json!([running.0.id()]);
        assert_eq!(listed["referenced_by"], pid, "{how}: {listed}");
        host.age_blobs();
        host.s3cache(["gc", "--max-size=0", "--max-age=0"]).exits(0);
        assert!(blob.exists(), "{how}: gc left it");
        host.s3cache(["rm", "sh-1.1"]).exits(75).logs("in use");
        host.s3cache([&origin.url("/other-1.1"), "--max-size=1M"])
            .exits(73)
            .logs("nothing more to evict");
        assert!(blob.exists(), "{how}: a fetch left it");
        drop(running);
        host.s3cache(["gc", "--max-size=0"]).exits(0);
        assert!(
            !blob.exists(),
            "{how}: removed when no program runs from it"
        );
    }
}
