//! Who knows the keys, and with whom answers are shared.

use std::path::Path;

use super::validate::{Wrong, wrong};
use super::{BackendSettings, MemcachedSettings, UpstreamAddress, secret};
use crate::cli::Flags;
use crate::permissions::server;

/// Where the secret is when nobody says.
const SECRET: &str = "/etc/hostkit/authproxy.secret";
/// Where the live configuration is when nobody says.
const LIVECONF: &str = "/etc/hostkit/liveconf.yaml";
/// The port of memcached.
const MEMCACHED: u16 = 11211;
/// memcached keys have 250 bytes, and most of them are needed for the hash.
const LONGEST_PREFIX: usize = 100;

pub(super) fn engine(flags: &Flags) -> Result<BackendSettings, Wrong> {
    let remedy = "give one of --acl-file, --acl-server and --use-liveconf-aclserver";
    let liveconf = flags.use_liveconf_aclserver.unwrap_or_default();
    match (&flags.acl_file, &flags.acl_server, liveconf) {
        (Some(file), None, false) => Ok(BackendSettings::File(file.clone())),
        (None, Some(urls), false) => {
            for url in urls {
                server::check(url).map_err(|what| wrong("--acl-server", what))?;
            }
            match urls.as_slice() {
                [] => Err(wrong("--acl-server is empty", "name a permissions engine")),
                urls => Ok(BackendSettings::Servers(urls.to_vec())),
            }
        }
        (None, None, true) => Ok(BackendSettings::Liveconf(
            flags.liveconf.clone().unwrap_or_else(|| LIVECONF.into()),
        )),
        (None, None, false) => Err(wrong("nothing says who knows the keys", remedy)),
        _ => Err(wrong("more than one permissions engine is named", remedy)),
    }
}

pub(super) fn shared(
    flags: &Flags,
    warnings: &mut Vec<String>,
) -> Result<Option<MemcachedSettings>, Wrong> {
    let servers = flags.memcache_servers.clone().unwrap_or_default();
    if !flags.cache.unwrap_or_default() {
        if !servers.is_empty() {
            warnings.push("--memcache-servers are not used: give --cache, too".to_owned());
        }
        return Ok(None);
    }
    let servers: Vec<String> = servers
        .iter()
        .map(|server| memcached(server.trim()))
        .collect::<Result<_, _>>()?;
    if servers.is_empty() {
        warnings.push(
            "--cache shares nothing without --memcache-servers: keys are remembered in this process only".to_owned(),
        );
        return Ok(None);
    }
    let prefix = flags.cache_prefix.clone().unwrap_or("authproxy".to_owned());
    if prefix.len() > LONGEST_PREFIX || !prefix.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(wrong(
            format!("--cache-prefix={prefix:?} cannot begin a memcached key"),
            format!("use at most {LONGEST_PREFIX} visible ASCII characters without spaces"),
        ));
    }
    let default = Path::new(SECRET);
    let path = flags.cache_secret_file.as_deref().unwrap_or(default);
    match secret::read(path)? {
        secret::Read::Secrets(secrets, warning) => {
            warnings.extend(warning);
            Ok(Some(MemcachedSettings {
                servers,
                prefix,
                secrets,
            }))
        }
        secret::Read::Missing(error) if path == default => {
            warnings.push(format!(
                "memcached is not used, for want of a secret to sign entries with: {SECRET}: {error}: {}, or name a file \
                 with --cache-secret-file",
                suggest_remedy(&error)
            ));
            Ok(None)
        }
        secret::Read::Missing(error) => Err(wrong(
            format!(
                "cannot read --cache-secret-file={}: {error}",
                path.display()
            ),
            suggest_remedy(&error),
        )),
    }
}

/// What helps where the secret cannot be read.
fn suggest_remedy(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            "let the user of this job read it, by a group or with `setfacl -m u:ROLE:r FILE`"
        }
        _ => "make one with `openssl rand -hex 32`, the same for all hosts",
    }
}

/// `host:port`, with memcached's own port where none is named.
fn memcached(text: &str) -> Result<String, Wrong> {
    let whole = if text
        .rsplit_once(':')
        .is_some_and(|(_, port)| !port.ends_with(']'))
    {
        text.to_owned()
    } else {
        format!("{text}:{MEMCACHED}")
    };
    // What a server of HTTP may be called, a memcached may, too.
    match format!("http://{whole}").parse() {
        Ok(UpstreamAddress::Tcp { .. }) if !whole.contains('/') => Ok(whole),
        _ => Err(wrong(
            format!("--memcache-servers: {text:?} is no server"),
            "write HOST:PORT,HOST:PORT",
        )),
    }
}
