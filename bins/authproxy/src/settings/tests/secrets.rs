//! The secrets of what memcached keeps.

use super::*;

#[test]
fn memcached_needs_a_secret_that_only_we_know() {
    let temp = tempfile::tempdir().unwrap();
    let with = |bytes: &[u8], mode: u32| {
        let path = secret(temp.path(), bytes, mode);
        let file =
            format!("cache: 1\nmemcache-servers: 'h1, [::1]:2'\ncache-secret-file: {path}\n");
        least(&file.replace("cache: 1", "cache: true"), "")
    };
    let good = with(b"0123456789abcdef\n", 0o640).unwrap();
    let shared = good.settings.memcached.unwrap();
    assert_eq!(shared.servers, ["h1:11211", "[::1]:2"]);
    assert_eq!(
        (shared.secrets[0].0.len(), shared.prefix.as_str()),
        (16, "authproxy")
    );
    assert!(good.warnings.is_empty(), "{:?}", good.warnings);
    assert!(
        !format!("{:?}", shared.secrets).contains("48"),
        "secrets are never shown"
    );
    let open = with(b"0123456789abcdef", 0o644).unwrap();
    assert!(
        open.settings.memcached.is_some() && open.warnings[0].contains("readable by every user")
    );
    for (bytes, mode, said) in [
        (&b"0123456789abcde\n"[..], 0o600, "shorter than 16 bytes"),
        (&[7; 5_000], 0o600, "longer than"),
        (&[7; 32], 0o620, "can be written by others"),
        (&[7; 32], 0o602, "can be written by others"),
    ] {
        let failure = with(bytes, mode).unwrap_err();
        assert!(failure.to_string().contains(said), "{failure}");
    }
}

#[test]
fn two_visible_lines_are_two_secrets_and_everything_else_is_one() {
    let temp = tempfile::tempdir().unwrap();
    let with = |bytes: &[u8]| {
        let path = secret(temp.path(), bytes, 0o640);
        least(
            &format!("cache: true\nmemcache-servers: h\ncache-secret-file: {path}\n"),
            "",
        )
    };
    for (bytes, lengths, warning) in [
        (&b"0123456789abcdef"[..], &[16][..], ""),
        (
            b"\n0123456789abcdef\r\n0123456789abcdefg \n\n",
            &[16, 17],
            "",
        ),
        // What an earlier version took for one stays one.
        (
            b"0123456789abcdef\n\n0123456789abcdef",
            &[34],
            "the 3 lines of ",
        ),
        (b"0123456789abcdef\n0123456789abcde\xff", &[33], ""),
        (
            b"0123456789\nabcdef\n0123456789abcdef",
            &[34],
            "the 3 lines of ",
        ),
    ] {
        let loaded = with(bytes).unwrap();
        assert!(
            loaded.warnings.concat().starts_with(warning)
                && loaded.warnings.is_empty() == warning.is_empty(),
            "{bytes:?}: {:?}",
            loaded.warnings
        );
        let secrets = loaded.settings.memcached.unwrap().secrets;
        let found: Vec<usize> = secrets.iter().map(|secret| secret.0.len()).collect();
        assert_eq!(found, lengths, "{bytes:?}");
    }
    let failure = with(b"0123456789abcdef\nshort").unwrap_err();
    assert!(failure.to_string().contains("a secret in"), "{failure}");
    let two = with(b"0123456789abcdef\nfedcba9876543210").unwrap();
    let shown = check_text(&two);
    assert!(shown.contains("two secrets, the first signs"), "{shown}");
    assert!(!shown.contains("fedcba"), "{shown}");
}
