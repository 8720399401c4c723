//! Logins of `~/.netrc`, compared with those that curl sends.

use base64::Engine as _;
use hostkit_tests::origin::OriginServer;
use hostkit_tests::{find_program, or_skip};

use super::CacheHost;

/// The credentials of the last request, as `login:password`.
fn sent_login(origin: &OriginServer) -> Option<String> {
    let header = origin.requests().last()?.authorization.clone()?;
    let pair = base64::engine::general_purpose::STANDARD.decode(header.strip_prefix("Basic ")?);
    String::from_utf8(pair.unwrap()).ok()
}

#[test]
fn netrc_is_read_as_curl_reads_it() {
    let curl = or_skip("comparing netrc with curl", find_program("curl"));
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    origin.put("/static.bin", "bytes");
    let url = origin.url("/static.bin");
    for (text, login) in [
        ("machine 127.0.0.1 login u password p", Some("u:p")),
        (
            "# machine\nmachine 127.0.0.1 login u password p # more\n",
            Some("u:p"),
        ),
        (
            "machine 127.0.0.1 login u password \"p w\\\"\\\\x\\ty\"\n",
            Some("u:p w\"\\x\ty"),
        ),
        (
            "machine other login a password b\nmacdef init\nmachine 127.0.0.1 login m password m\n\n\
             machine 127.0.0.1\n\tlogin u\n\tpassword p\n",
            Some("u:p"),
        ),
        (
            "machine 127.0.0.1 login u password p macdef init\nget x\n\n",
            Some("u:p"),
        ),
        ("machine 127.0.0.1 password p\n", Some(":p")),
        ("machine 127.0.0.1 login u\n", Some("u:")),
        (
            "machine 127.0.0.1 login u\nmachine 127.0.0.1 login v password w",
            Some("v:w"),
        ),
        (
            "machine 127.0.0.1\ndefault login x password y\n",
            Some("x:y"),
        ),
        (
            "default login d password e\nmachine 127.0.0.1 login u password p\n",
            Some("d:e"),
        ),
        (
            "nonsense line\nmachine 127.0.0.1 login u account x password p\n",
            Some("u:p"),
        ),
        ("machine 127.0.0.1 password p login u\r\n", Some("u:p")),
        ("machine 127.0.0.1 login u password p#q\n", Some("u:p#q")),
        ("machine 127.0.0.1 login u password #q\n", Some("u:")),
        ("machine\n127.0.0.1\nlogin\nu\npassword\np\n", Some("u:p")),
        ("MACHINE 127.0.0.1 LOGIN u PASSWORD p\n", Some("u:p")),
        ("machine 127.0.0.1 login \"\" password \"\"\n", Some(":")),
        ("machine other login u password p\n", None),
        ("", None),
    ] {
        std::fs::write(host.path(".netrc"), text).unwrap();
        host.s3cache([&url]).exits(0);
        assert_eq!(sent_login(&origin).as_deref(), login, "{text:?}");
        if let Some(curl) = &curl {
            let mut command = host.program(curl);
            command.args(["-sSf", "-o", "/dev/null", "--netrc-file", ".netrc", &url]);
            assert!(command.status().unwrap().success(), "{text:?}");
            assert_eq!(sent_login(&origin).as_deref(), login, "curl: {text:?}");
        }
    }
}

#[test]
fn unreadable_netrc_fails_only_its_own_host() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    origin.put("/static.bin", "bytes");
    let url = origin.url("/static.bin");
    let fetch = |text: &[u8]| {
        std::fs::write(host.path("logins"), text).unwrap();
        host.s3cache_env([&url], &[("NETRC".into(), "logins".into())])
    };
    // curl fails here.
    fetch(b"machine other login o password \"secret\nmachine 127.0.0.1 login u password p\n")
        .exits(0);
    assert_eq!(sent_login(&origin).as_deref(), Some("u:p"));
    let outcome = fetch(b"\nmachine 127.0.0.1 login u password \"secret\n").exits(77);
    let outcome = outcome.logs("logins:2: unterminated quote: correct this line");
    assert!(!outcome.stderr.contains("secret"), "{}", outcome.stderr);
    fetch(&vec![b'\n'; 2 << 20]).exits(77).logs("longer than");
    // A FIFO without a writer.
    let fifo = host.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let mut command = host.program("timeout");
    command
        .arg("60")
        .arg(hostkit_tests::bin("s3cache"))
        .args([&url, "--timeout=1s"]);
    let outcome = command
        .args(host.own_flags())
        .env("NETRC", &fifo)
        .output()
        .unwrap();
    super::CommandOutcome::from(outcome)
        .exits(77)
        .logs("not a regular file");
}
