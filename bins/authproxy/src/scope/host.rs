//! Names of hosts, and patterns of them: `example.com`, `*.example.com` for all below it, `*`, and addresses.

use std::net::Ipv6Addr;

/// Whether one of the patterns (as [`normalize_host_pattern`] keeps them) fits a `Host` (RFC 9110 section 7.2), whose port, case and
/// last dot do not matter. What is no host fits none.
pub(super) fn matches(patterns: &[String], asked: &str) -> bool {
    match parse_host(asked) {
        Some(HostName::Dns(name)) => patterns
            .iter()
            .any(|pattern| matches_pattern(pattern, name)),
        Some(HostName::V6(address)) => patterns
            .iter()
            .any(|pattern| pattern == "*" || pattern.parse() == Ok(address)),
        None => false,
    }
}

/// The form in which a pattern is kept and compared: lower case, without a last dot, IPv6 without brackets.
///
/// # Errors
/// It is no pattern of a host.
pub fn normalize_host_pattern(text: &str) -> Result<String, String> {
    if text == "*" {
        return Ok(text.to_owned());
    }
    let shown: String = text.chars().take(80).collect();
    let wrong = || format!("{shown:?} is no host: write example.com, *.example.com or an address");
    if let Ok(address) = text.parse::<Ipv6Addr>() {
        return Ok(address.to_string());
    }
    let (below, name) = match text.strip_prefix("*.") {
        Some(name) => ("*.", name),
        None => ("", text),
    };
    match parse_host(name) {
        _ if text.len() > 255 => Err(wrong()),
        Some(HostName::V6(address)) if below.is_empty() && text.ends_with(']') => {
            Ok(address.to_string())
        }
        // A port in a pattern would never fit.
        Some(HostName::Dns(name)) if !text.contains(':') => {
            Ok(format!("{below}{}", name.to_ascii_lowercase()))
        }
        _ => Err(wrong()),
    }
}

enum HostName<'a> {
    /// Without port and last dot; an IPv4 address, too.
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

/// Nothing, or a colon and digits; none of them is a port, too (RFC 3986 section 3.2.3).
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
    // With its dot, before which a name has at least a letter: neither `badexample.com` nor `example.com` itself is below
    // `example.com`.
    match pattern.strip_prefix('*') {
        Some(end) => name
            .len()
            .checked_sub(end.len())
            .and_then(|at| name.get(at..))
            .is_some_and(|tail| tail.eq_ignore_ascii_case(end)),
        None => name.eq_ignore_ascii_case(pattern),
    }
}
