//! The permissions backend, and memcached.

use super::validate::{SettingError, wrong};
use super::{BackendSettings, MemcachedSettings, UpstreamAddress, secret};
use crate::cli::{DEFAULT_SECRET_FILE, ProxyFlags};
use crate::permissions::server;

/// The port of memcached.
const MEMCACHED_PORT: u16 = 11211;
/// memcached keys have 250 bytes, and most of them are needed for the hash.
const MAX_PREFIX: usize = 100;

pub(super) fn backend(flags: &ProxyFlags) -> Result<BackendSettings, SettingError> {
    let remedy = "give one of --acl-file, --acl-server and --use-liveconf-aclserver";
    let urls = flags.acl_server.as_slice();
    match (&flags.acl_file, urls, flags.use_liveconf_aclserver) {
        (Some(file), [], false) => Ok(BackendSettings::File(file.clone())),
        (None, [], true) => Ok(BackendSettings::Liveconf(flags.liveconf.clone())),
        (None, [], false) => Err(wrong("missing permissions backend", remedy)),
        (None, urls, false) => {
            for url in urls {
                server::check(url).map_err(|what| wrong("--acl-server", what))?;
            }
            Ok(BackendSettings::Servers(urls.to_vec()))
        }
        _ => Err(wrong("more than one permissions backend is named", remedy)),
    }
}

pub(super) fn memcached(
    flags: &ProxyFlags,
    warnings: &mut Vec<String>,
) -> Result<Option<MemcachedSettings>, SettingError> {
    let servers = &flags.memcache_servers;
    if !flags.cache {
        if !servers.is_empty() {
            warnings.push("--memcache-servers are not used: give --cache, too".to_owned());
        }
        return Ok(None);
    }
    let servers: Vec<String> = servers
        .iter()
        .map(|server| server_address(server.trim()))
        .collect::<Result<_, _>>()?;
    if servers.is_empty() {
        warnings.push(
            "--cache has no effect without --memcache-servers: keys are cached in this process only".to_owned(),
        );
        return Ok(None);
    }
    let prefix = flags.cache_prefix.clone();
    if prefix.len() > MAX_PREFIX || !prefix.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(wrong(
            format!("--cache-prefix={prefix:?} cannot begin a memcached key"),
            format!("use at most {MAX_PREFIX} visible ASCII characters without spaces"),
        ));
    }
    let path = flags.cache_secret_file.as_path();
    match secret::read(path)? {
        secret::SecretFile::Secrets(secrets, warning) => {
            warnings.extend(warning);
            Ok(Some(MemcachedSettings {
                servers,
                prefix,
                secrets,
            }))
        }
        secret::SecretFile::Missing(error) if path.as_os_str() == DEFAULT_SECRET_FILE => {
            warnings.push(format!(
                "memcached is not used: cannot read the secret that signs entries: {DEFAULT_SECRET_FILE}: {error}: {}, or name a file \
                 with --cache-secret-file",
                suggest_remedy(&error)
            ));
            Ok(None)
        }
        secret::SecretFile::Missing(error) => Err(wrong(
            format!(
                "cannot read --cache-secret-file={}: {error}",
                path.display()
            ),
            suggest_remedy(&error),
        )),
    }
}

/// The remedy for a secret that cannot be read.
fn suggest_remedy(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            "let the user of this job read it, by a group or with `setfacl -m u:ROLE:r FILE`"
        }
        _ => "make one with `openssl rand -hex 32`, the same for all hosts",
    }
}

/// `host:port`, with memcached's own port where none is named.
fn server_address(text: &str) -> Result<String, SettingError> {
    let whole = if text
        .rsplit_once(':')
        .is_some_and(|(_, port)| !port.ends_with(']'))
    {
        text.to_owned()
    } else {
        format!("{text}:{MEMCACHED_PORT}")
    };
    match format!("http://{whole}").parse() {
        Ok(UpstreamAddress::Tcp { .. }) if !whole.contains('/') => Ok(whole),
        _ => Err(wrong(
            format!("--memcache-servers: {text:?} is not a server"),
            "write HOST:PORT,HOST:PORT",
        )),
    }
}
