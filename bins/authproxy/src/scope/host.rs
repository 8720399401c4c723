//! Host names and patterns: `example.com`, `*.example.com` for all its subdomains, `*`, and addresses.

use std::net::Ipv6Addr;

/// Whether one of the patterns (as returned by [`normalize_host_pattern`]) matches a `Host` (RFC 9110 section 7.2), whose
/// port, case and final dot are ignored. An invalid host matches no pattern.
pub(super) fn matches(patterns: &[String], text: &str) -> bool {
    match parse_host(text) {
        Some(HostName::Dns(name)) => patterns
            .iter()
            .any(|pattern| matches_pattern(pattern, name)),
        Some(HostName::V6(address)) => patterns
            .iter()
            .any(|pattern| pattern == "*" || pattern.parse() == Ok(address)),
        None => false,
    }
}

/// Validates a pattern, and returns it in lower case, without a final dot, IPv6 without brackets.
pub(crate) fn normalize_host_pattern(text: &str) -> Result<String, String> {
    if text == "*" {
        return Ok(text.to_owned());
    }
    let shown: String = text.chars().take(80).collect();
    let invalid =
        || format!("invalid host {shown:?}: write example.com, *.example.com or an address");
    if let Ok(address) = text.parse::<Ipv6Addr>() {
        return Ok(address.to_string());
    }
    let (wildcard, name) = match text.strip_prefix("*.") {
        Some(name) => ("*.", name),
        None => ("", text),
    };
    match parse_host(name) {
        _ if text.len() > 255 => Err(invalid()),
        Some(HostName::V6(address)) if wildcard.is_empty() && text.ends_with(']') => {
            Ok(address.to_string())
        }
        // Ports are ignored, so that a pattern with one would never match.
        Some(HostName::Dns(name)) if !text.contains(':') => {
            Ok(format!("{wildcard}{}", name.to_ascii_lowercase()))
        }
        _ => Err(invalid()),
    }
}

enum HostName<'a> {
    /// Without port and final dot; also an IPv4 address.
    Dns(&'a str),
    V6(Ipv6Addr),
}

fn parse_host(text: &str) -> Option<HostName<'_>> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let address = address.parse().ok()?;
        return is_port(port).then_some(HostName::V6(address));
    }
    let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
    let name = name.strip_suffix('.').unwrap_or(name);
    let label = |label: &str| {
        let byte = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        !label.is_empty() && label.bytes().all(byte)
    };
    (is_port(port) && name.split('.').all(label)).then_some(HostName::Dns(name))
}

/// Empty, or a colon and digits, of which there may be none (RFC 3986 section 3.2.3).
fn is_port(text: &str) -> bool {
    match text.strip_prefix(':') {
        Some(digits) => digits.len() <= 5 && digits.bytes().all(|byte| byte.is_ascii_digit()),
        None => text.is_empty(),
    }
}

fn matches_pattern(pattern: &str, name: &str) -> bool {
    if pattern == "*" {
        return true;
    }
    // The suffix has a dot, and a name starts with a letter: neither `badexample.com` nor `example.com` matches
    // `*.example.com`.
    match pattern.strip_prefix('*') {
        Some(suffix) => name
            .len()
            .checked_sub(suffix.len())
            .and_then(|at| name.get(at..))
            .is_some_and(|tail| tail.eq_ignore_ascii_case(suffix)),
        None => name.eq_ignore_ascii_case(pattern),
    }
}
