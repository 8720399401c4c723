//! ZooKeeper ensembles with the credentials to read them. Followers of equal ensembles share a session.

use std::fmt;

use super::path_pattern;
use crate::{Exit, Failure};

const DEFAULT_PORT: u16 = 2181;

/// A ZooKeeper ensemble. Equal ensembles share a session.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ensemble {
    hosts: Vec<String>,
    chroot: Option<String>,
    digest: Option<String>,
}

impl Ensemble {
    /// An ensemble of `host:port` servers in any order (default port 2181, IPv6 addresses in brackets), with the path
    /// that all others are relative to, and the `user:password` to authenticate with (scheme `digest`).
    ///
    /// # Errors
    /// No host, an invalid `host:port` or `chroot`, or a `digest` without colon (exit 78). The message never contains
    /// the digest.
    pub fn new<H: AsRef<str>>(
        hosts: impl IntoIterator<Item = H>,
        chroot: Option<&str>,
        digest: Option<&str>,
    ) -> Result<Self, Failure> {
        let mut parsed = hosts
            .into_iter()
            .map(|host| parse_server(host.as_ref()))
            .collect::<Result<Vec<_>, _>>()?;
        parsed.sort();
        parsed.dedup();
        if parsed.is_empty() {
            return Err(
                config_error("missing hosts of the ZooKeeper ensemble".to_owned())
                    .remedy("list its servers as host:port"),
            );
        }
        let chroot = chroot.filter(|path| !path.is_empty() && *path != "/");
        if let Some(path) = chroot {
            path_pattern::validate_path(path)
                .map_err(|why| config_error(format!("invalid chroot `{path}`: {why}")))?;
        }
        if digest.is_some_and(|digest| !digest.contains(':')) {
            return Err(config_error(format!(
                "invalid digest for {}: expected `user:password`",
                parsed.join(",")
            )));
        }
        Ok(Self {
            hosts: parsed,
            chroot: chroot.map(str::to_owned),
            digest: digest.map(str::to_owned),
        })
    }

    /// The servers as `host:port`, sorted.
    #[must_use]
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// Whether both are the same, whatever the credentials.
    pub(super) fn is_same_ensemble(&self, other: &Self) -> bool {
        self.hosts == other.hosts && self.chroot == other.chroot
    }

    /// The path that all others are relative to; `None` is `/`.
    #[must_use]
    pub fn chroot(&self) -> Option<&str> {
        self.chroot.as_deref()
    }

    /// The `user:password` to authenticate with: a secret.
    #[must_use]
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }
}

/// The connection string, without credentials: `a:2181,b:2181/chroot`.
impl fmt::Display for Ensemble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hosts.join(","))?;
        f.write_str(self.chroot.as_deref().unwrap_or_default())
    }
}

/// As [`fmt::Display`]: the digest is a secret.
impl fmt::Debug for Ensemble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ensemble({self})")
    }
}

fn parse_server(text: &str) -> Result<String, Failure> {
    let invalid = || {
        config_error(format!(
            "invalid ZooKeeper server `{}`",
            text.escape_debug()
        ))
        .remedy("write host:port, or [address]:port for IPv6")
    };
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => {
            (host, port.parse::<u16>().map_err(|_| invalid())?)
        }
        _ => (text, DEFAULT_PORT),
    };
    let address = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let is_valid = match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.len() <= 253
                && host
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        }
    };
    if !is_valid || port == 0 {
        return Err(invalid());
    }
    Ok(format!("{}:{port}", host.to_ascii_lowercase()))
}

fn config_error(message: String) -> Failure {
    Failure::new(Exit::CONFIG, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ensembles_with_hosts_in_another_order_are_equal() {
        let one = Ensemble::new(["zk2:2182", "ZK1"], Some("/"), None).unwrap();
        let two = Ensemble::new(["zk1:2181", "zk2:2182", "zk1"], None, None).unwrap();
        assert_eq!(one, two);
        assert_eq!(one.to_string(), "zk1:2181,zk2:2182");
    }

    #[test]
    fn ensembles_with_another_digest_differ_and_never_show_it() {
        let plain = Ensemble::new(["[::1]:2181"], Some("/hosts"), None).unwrap();
        let secret = Ensemble::new(["[::1]:2181"], Some("/hosts"), Some("me:hunter2")).unwrap();
        assert_ne!(plain, secret);
        assert_eq!(secret.to_string(), "[::1]:2181/hosts");
        assert!(!format!("{secret:?}").contains("hunter2"));
        let failure = Ensemble::new(["zk"], None, Some("hunter2")).unwrap_err();
        assert!(!failure.to_string().contains("hunter2"), "{failure}");
    }

    #[test]
    fn invalid_server_is_named_in_the_error() {
        for host in [
            "",
            "zk:0",
            "zk:port",
            "a,b:1",
            "zk:2181/x",
            "::1:2181",
            "[zk]:1",
            "a b",
        ] {
            let failure = Ensemble::new([host], None, None).unwrap_err();
            assert!(
                failure.to_string().contains("invalid ZooKeeper server"),
                "{host}"
            );
        }
        assert!(Ensemble::new([""; 0], None, None).is_err());
        assert!(Ensemble::new(["zk"], Some("relative"), None).is_err());
    }
}
