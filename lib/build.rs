//! Puts the git hash into `hostkit::VERSION`; a source tree without git (a tarball, a deb build) passes it in
//! `HOSTKIT_GIT_HASH`.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=HOSTKIT_GIT_HASH");
    // Watching a file that is not there, as in a tarball, would rebuild everything every time.
    let log = "../.git/logs/HEAD";
    println!(
        "cargo::rerun-if-changed={}",
        if std::path::Path::new(log).exists() {
            log
        } else {
            "build.rs"
        }
    );
    let hash = std::env::var("HOSTKIT_GIT_HASH").ok().or_else(|| {
        let out = Command::new("git")
            .args(["rev-parse", "--short=12", "HEAD"])
            .output()
            .ok()?;
        out.status
            .success()
            .then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
    });
    println!(
        "cargo::rustc-env=HOSTKIT_GIT_HASH={}",
        hash.as_deref().unwrap_or("unknown")
    );
}
