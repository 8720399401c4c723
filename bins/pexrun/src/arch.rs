//! The architecture in the names of builds: `<distribution codename>_<machine>`, such as `trusty_x86_64`.

use hostkit::{Exit, Failure};

/// The architecture of this host, from os-release(5) and uname(2).
///
/// # Errors
/// The distribution has no codename there (exit 78).
pub fn host_arch() -> Result<String, Failure> {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let lsb = std::fs::read_to_string("/etc/lsb-release").unwrap_or_default();
    let codename = codename(&text, &lsb).ok_or_else(|| {
        Failure::new(
            Exit::CONFIG,
            "/etc/os-release has no codename of this distribution",
        )
        .remedy("write `arch: codename_machine` into /etc/hostkit/pexrun.yaml, or give --arch")
    })?;
    let machine =
        nix::sys::utsname::uname().map(|name| name.machine().to_string_lossy().into_owned());
    Ok(format!(
        "{codename}_{}",
        machine.unwrap_or_else(|_| std::env::consts::ARCH.to_owned())
    ))
}

fn codename(os_release: &str, lsb_release: &str) -> Option<String> {
    let value = |text: &str, key: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        Some(line.trim().trim_matches(['"', '\'']).to_owned()).filter(|value| !value.is_empty())
    };
    value(os_release, "VERSION_CODENAME")
        .or_else(|| value(lsb_release, "DISTRIB_CODENAME"))
        // In trusty and older it is only part of the version: VERSION="14.04.5 LTS, Trusty Tahr".
        .or_else(|| {
            let version = value(os_release, "VERSION")?;
            let (_, name) = version
                .split_once(", ")
                .or_else(|| version.split_once('('))?;
            let word: String = name
                .chars()
                .take_while(char::is_ascii_alphanumeric)
                .collect();
            Some(word.to_ascii_lowercase()).filter(|word| !word.is_empty())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codename_is_read_from_release_files() {
        for (os, lsb, expected) in [
            (
                "NAME=\"Debian\"\nVERSION_CODENAME=bookworm\n",
                "",
                Some("bookworm"),
            ),
            (
                "VERSION=\"14.04.5 LTS, Trusty Tahr\"\nID=ubuntu\n",
                "",
                Some("trusty"),
            ),
            ("VERSION=\"7 (wheezy)\"\n", "", Some("wheezy")),
            ("ID=ubuntu\n", "DISTRIB_CODENAME=precise\n", Some("precise")),
            ("ID=arch\n", "", None),
        ] {
            assert_eq!(codename(os, lsb).as_deref(), expected, "{os}");
        }
    }
}
