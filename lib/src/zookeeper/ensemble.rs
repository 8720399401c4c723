//! Which ZooKeeper, and as whom: what makes two followers share a session.

use std::fmt;

use super::path_pattern;
use crate::{Exit, Failure};

/// ZooKeeper's client port where none is given.
const PORT: u16 = 2181;

/// An ensemble as clients see it. Equal ensembles share a session.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ensemble {
    hosts: Vec<String>,
    chroot: Option<String>,
    digest: Option<String>,
}

impl Ensemble {
    /// An ensemble by its `host:port`s in any order (a bare host has port 2181, an IPv6 address stands in brackets), the
    /// path that all others are relative to, and the `user:password` to authenticate with (scheme `digest`).
    ///
    /// # Errors
    /// There is no host, one is not `host:port`, `chroot` is not an absolute path, or `digest` has no colon (exit 78).
    /// The message never holds the digest.
    pub fn new<H: AsRef<str>>(
        hosts: impl IntoIterator<Item = H>,
        chroot: Option<&str>,
        digest: Option<&str>,
    ) -> Result<Self, Failure> {
        let mut parsed = hosts
            .into_iter()
            .map(|host| host_port(host.as_ref()))
            .collect::<Result<Vec<_>, _>>()?;
        parsed.sort();
        parsed.dedup();
        if parsed.is_empty() {
            return Err(wrong("a ZooKeeper ensemble without hosts".to_owned())
                .remedy("name its servers as host:port"));
        }
        let chroot = chroot.filter(|path| !path.is_empty() && *path != "/");
        if let Some(path) = chroot {
            path_pattern::validate_path(path)
                .map_err(|why| wrong(format!("chroot `{path}`: {why}")))?;
        }
        if digest.is_some_and(|digest| !digest.contains(':')) {
            return Err(wrong(format!(
                "the digest for {} is not `user:password`",
                parsed.join(",")
            )));
        }
        Ok(Self {
            hosts: parsed,
            chroot: chroot.map(str::to_owned),
            digest: digest.map(str::to_owned),
        })
    }

    /// Its `host:port`s, sorted.
    #[must_use]
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// Whether both name the same place, whoever asks.
    #[must_use]
    pub fn is_same_ensemble(&self, other: &Self) -> bool {
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

fn host_port(text: &str) -> Result<String, Failure> {
    let bad = || {
        wrong(format!(
            "`{}` is not a ZooKeeper server",
            text.escape_debug()
        ))
        .remedy("write host:port, or [address]:port for IPv6")
    };
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => {
            (host, port.parse::<u16>().map_err(|_| bad())?)
        }
        _ => (text, PORT),
    };
    let address = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let fits = match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.len() <= 253
                && host
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        }
    };
    if !fits || port == 0 {
        return Err(bad());
    }
    Ok(format!("{}:{port}", host.to_ascii_lowercase()))
}

fn wrong(message: String) -> Failure {
    Failure::new(Exit::CONFIG, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_hosts_does_not_matter_and_ports_have_a_default() {
        let one = Ensemble::new(["zk2:2182", "ZK1"], Some("/"), None).unwrap();
        let two = Ensemble::new(["zk1:2181", "zk2:2182", "zk1"], None, None).unwrap();
        assert_eq!(one, two);
        assert_eq!(one.to_string(), "zk1:2181,zk2:2182");
    }

    #[test]
    fn chroot_and_digest_make_another_ensemble_and_the_digest_is_never_shown() {
        let plain = Ensemble::new(["[::1]:2181"], Some("/hosts"), None).unwrap();
        let secret = Ensemble::new(["[::1]:2181"], Some("/hosts"), Some("me:hunter2")).unwrap();
        assert_ne!(plain, secret);
        assert_eq!(secret.to_string(), "[::1]:2181/hosts");
        assert!(!format!("{secret:?}").contains("hunter2"));
        let failure = Ensemble::new(["zk"], None, Some("hunter2")).unwrap_err();
        assert!(!failure.to_string().contains("hunter2"), "{failure}");
    }

    #[test]
    fn what_is_no_server_is_refused_by_name() {
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
                failure.to_string().contains("is not a ZooKeeper server"),
                "{host}"
            );
        }
        assert!(Ensemble::new([""; 0], None, None).is_err());
        assert!(Ensemble::new(["zk"], Some("relative"), None).is_err());
    }
}
