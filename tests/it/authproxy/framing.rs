//! Every request line that an upstream could see carries a valid key, whatever is sent.
//!
//! Invalid requests are in [`table`]; attacks are in [`attacks`], and are assessed by what four kinds of parsers read
//! at the upstream, not by authproxy's response.

mod attacks;
mod bytes;
mod fuzz;
mod sender;
mod suite;
mod table;

use hostkit_tests::authproxy::AuthproxyProcess;
use hostkit_tests::permissions;
use hostkit_tests::upstream::RecordingUpstream;
use hostkit_tests::upstream::parser::{
    FramingPreference, LineEnding, ParsedRequest, ParsedStream, ParserProfile,
};
use tempfile::TempDir;

/// The only valid key.
const KEY: &str = "valid-key";

/// The profile of the upstream that reads most strictly; the views of the other profiles are computed from the record.
const STRICT: ParserProfile = ParserProfile {
    ends: LineEnding::Crlf,
    framing: FramingPreference::Chunked,
};

/// authproxy between attackers and a recording upstream.
struct FramingRig {
    backend: RecordingUpstream,
    proxy: AuthproxyProcess,
    _directory: TempDir,
}

impl FramingRig {
    /// Short timeouts end attacks that never complete.
    fn start(personality: ParserProfile) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("acl.yaml");
        permissions::write_acl_file(&file, &[(KEY, &["all"])]);
        let backend = RecordingUpstream::start(personality);
        let proxy = AuthproxyProcess::start_for_upstream(
            backend.port(),
            &[
                &format!("--acl-file={}", file.display()),
                "--client-timeout=1s",
                "--idle-timeout=1s",
                "--timeout=5s",
                "--access-log=off",
            ],
        );
        Self {
            backend,
            proxy,
            _directory: directory,
        }
    }
}

/// Whether a request has the valid key where authproxy looks for one, or is a CORS preflight.
fn is_authorized(request: &ParsedRequest) -> bool {
    let authorization = request.values("authorization").any(|value| {
        let key = value.split_once(' ').map(|(_, key)| key.trim());
        key == Some(KEY)
    });
    let query = request
        .target()
        .split_once('?')
        .map_or("", |(_, query)| query);
    let query = query.split('#').next().unwrap_or_default();
    let parameter = query.split('&').any(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        decode(name) == "apikey" && decode(value) == KEY
    });
    let preflight = request.line.starts_with("OPTIONS ")
        && request.header("access-control-request-method").is_some();
    request.values("x-api-key").any(|value| value == KEY) || authorization || parameter || preflight
}

/// A percent-decoded name or value of a query.
fn decode(text: &str) -> String {
    let mut decoded = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let escaped = rest.strip_prefix('%').and_then(|rest| rest.get(..2));
        if let Some(byte) = escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            decoded.push(char::from(byte));
            rest = &rest[3..];
        } else {
            decoded.push(if c == '+' { ' ' } else { c });
            rest = &rest[c.len_utf8()..];
        }
    }
    decoded
}

/// The violations in a record: requests without a key, invalid framing, and bytes on which the profiles disagree.
fn find_violations(backend: &RecordingUpstream) -> Vec<String> {
    let mut found = Vec::new();
    for (connection, bytes) in backend.record().iter().enumerate() {
        let readings = ParserProfile::ALL.map(|personality| (personality, personality.read(bytes)));
        for (personality, reading) in &readings {
            let named = |what: &str| format!("{connection} {personality:?}: {what}");
            let keyless = reading.requests.iter().filter(|one| !is_authorized(one));
            found.extend(keyless.map(|one| named(&format!("no key: {:?}", one.line))));
            if reading.broken {
                found.push(named(&format!("broken after {:?}", last_line(reading))));
            }
        }
        let [(_, first), others @ ..] = &readings;
        for (personality, reading) in others {
            if lines(reading) != lines(first) {
                let what = format!("{:?} and not {:?}", lines(reading), lines(first));
                found.push(format!("{connection} {personality:?} sees {what}"));
            }
        }
    }
    found
}

fn lines(reading: &ParsedStream) -> Vec<&str> {
    let requests = reading.requests.iter();
    requests.map(|request| request.line.as_str()).collect()
}

fn last_line(reading: &ParsedStream) -> &str {
    lines(reading).last().copied().unwrap_or_default()
}
