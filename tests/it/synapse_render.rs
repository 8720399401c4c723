//! Tests of what synapse writes for HAProxy: golden files, each accepted by the real HAProxy without a warning, and what
//! HAProxy makes of them when it starts. `HOSTKIT_BLESS=1` writes the golden files anew, to be read in the difference.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hostkit_tests::{ChildGuard, find_program, or_skip, wait_until, workspace};
use synapse::render::Rendered;

mod cases;
mod golden;
mod state;

/// What `haproxy -c` says of a file, when it takes it; else what is wrong with it.
fn check(haproxy: &Path, file: &Path) -> Result<String, String> {
    let output = Command::new(haproxy)
        .arg("-c")
        .arg("-f")
        .arg(file)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        Ok(said)
    } else {
        Err(said)
    }
}

/// A HAProxy that runs, and the way to its runtime API.
#[derive(Debug)]
struct Haproxy {
    _running: ChildGuard,
    socket: PathBuf,
}

impl Haproxy {
    /// Starts one with this file, which names `socket`, and waits until it answers there.
    fn start(program: &Path, file: &Path, socket: &Path) -> Self {
        let child = Command::new(program)
            .arg("-db")
            .arg("-f")
            .arg(file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let haproxy = Self {
            _running: ChildGuard(child),
            socket: socket.to_owned(),
        };
        wait_until("haproxy answers", || UnixStream::connect(socket).is_ok());
        haproxy
    }

    /// What it answers to commands.
    fn ask(&self, commands: &str) -> String {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        writeln!(stream, "{commands}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Its servers, sorted: `backend/server id address port operation weight`, in `show servers state`'s words.
    fn servers(&self) -> Vec<String> {
        let dump = self.ask("show servers state");
        let lines = dump.lines().filter_map(|line| {
            let columns: Vec<&str> = line.split(' ').collect();
            let server = format!("{}/{}", columns.get(1)?, columns.get(3)?);
            let number = columns[2].parse::<u32>().ok()?;
            let (address, operation, admin) = (columns[4], columns[5], columns[6]);
            let (weight, port) = (columns[7], columns.get(18)?);
            Some(format!(
                "{server} {number} {address} {port} {operation} {admin} {weight}"
            ))
        });
        lines.collect()
    }
}

fn save(rendered: &Rendered, file: &Path) {
    rendered
        .write_to(&mut fs::File::create(file).unwrap())
        .unwrap();
}
