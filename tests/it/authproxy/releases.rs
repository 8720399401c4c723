//! An earlier release and this one side by side: each uses the memcached entries of the other.

use std::os::unix::fs::PermissionsExt as _;

use hostkit_tests::authproxy::AuthproxyProcess;
use hostkit_tests::memcached::MemcachedServer;
use hostkit_tests::permissions::PermissionsServer;
use hostkit_tests::upstream::RecordingUpstream;
use hostkit_tests::upstream::parser::{FramingPreference, LineEnding, ParserProfile};
use hostkit_tests::{old_bin, or_skip, wait_until};

const KEY: &str = "alice-key";

#[test]
fn memcached_entry_of_one_release_is_used_by_other() {
    let Some(old) = or_skip("an earlier release", old_bin("authproxy")) else {
        return;
    };
    // In place of the program that the kit starts.
    let old = [
        "sh",
        "-c",
        "shift; exec \"$0\" \"$@\"",
        old.to_str().unwrap(),
    ];
    for [writer, reader] in [[&old[..], &["env"]], [&["env"], &old[..]]] {
        let Some(memcached) = or_skip("memcached", MemcachedServer::start()) else {
            return;
        };
        let (acl, directory) = (PermissionsServer::start(), tempfile::tempdir().unwrap());
        acl.add_keys([KEY]);
        let backend = RecordingUpstream::start(ParserProfile {
            ends: LineEnding::Crlf,
            framing: FramingPreference::Chunked,
        });
        let secret = directory.path().join("secret");
        std::fs::write(&secret, "a secret that all hosts share").unwrap();
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
        let args = [
            format!("--server=http://localhost:{}", backend.port()),
            format!("--acl-server={}", acl.url()),
            format!("--memcache_servers={}", memcached.address()),
            format!("--cache-secret-file={}", secret.display()),
        ];
        let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
        args.extend(["--right=all", "--cache=1", "--cache_prefix=eightball"]);
        args.extend(["--ttl-error=50ms", "--access-log=off"]);
        let host = AuthproxyProcess::start_with_launcher(writer, &args);
        wait_until("the entry is stored", || {
            assert_eq!(host.get_with_key("/", KEY).status, 200);
            !memcached.keys().is_empty()
        });
        // From here on only memcached has the key.
        acl.kill();
        let other = AuthproxyProcess::start_with_launcher(reader, &args);
        assert_ne!(host.status()["version"], other.status()["version"]);
        wait_until("the entry is used", || {
            other.get_with_key("/", KEY).status == 200
        });
        assert_eq!(other.get_with_key("/", "another-key").status, 503);
    }
}
