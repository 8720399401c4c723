//! How four kinds of HTTP/1.1 servers read the same bytes.
//!
//! They differ in the line ending and in the header that frames a body. Apart from that each is as lenient as real
//! servers have been, because leniency is what enables request smuggling: header names are compared without blanks and
//! control characters and with `_` for `-`, `Transfer-Encoding` means chunked wherever it contains the word, a length
//! is its leading digits.

use std::ops::Range;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineEnding {
    /// CR LF only.
    Crlf,
    /// LF, with an optional CR before it.
    Lf,
}

/// The header that frames a body when both are present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FramingPreference {
    Chunked,
    Length,
}

/// A kind of server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParserProfile {
    pub ends: LineEnding,
    pub framing: FramingPreference,
}

/// A request as one kind of server reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedRequest {
    /// The bytes at the place of a request line.
    pub line: String,
    /// Names in lower case with `-` for `_`, values trimmed; folded lines are joined.
    pub headers: Vec<(String, String)>,
    /// The body so far, without chunk framing.
    pub body: Vec<u8>,
}

/// A connection as one kind of server reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedStream {
    /// The requests whose request line is complete.
    pub requests: Vec<ParsedRequest>,
    /// How many bytes the complete requests take.
    pub taken: usize,
    /// How many requests are complete: all, or all but the last.
    whole: usize,
    /// The framing of the last request is invalid, and its end is unknown.
    pub broken: bool,
}

impl ParsedStream {
    /// The complete requests.
    #[must_use]
    pub fn whole(&self) -> &[ParsedRequest] {
        &self.requests[..self.whole]
    }

    /// The request whose head is complete but whose body is not.
    #[must_use]
    pub fn partial(&self) -> Option<&ParsedRequest> {
        self.requests.get(self.whole)
    }
}

impl ParsedRequest {
    /// The value of the first header with this name, which is in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let found = headers.find(|(own, _)| own == name)?;
        Some(&found.1)
    }

    /// The values of all headers with this name, which is in lower case.
    pub fn values<'r>(&'r self, name: &'r str) -> impl Iterator<Item = &'r str> {
        let found = self.headers.iter().filter(move |(own, _)| own == name);
        found.map(|(_, value)| value.as_str())
    }

    #[must_use]
    pub fn target(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or_default()
    }

    /// Whether another request may follow.
    #[must_use]
    pub fn keeps_alive(&self) -> bool {
        let connection = self.header("connection").unwrap_or_default();
        let connection = connection.to_ascii_lowercase();
        if self.line.ends_with("HTTP/1.0") {
            connection.contains("keep-alive")
        } else {
            !connection.contains("close")
        }
    }

    fn length(&self) -> Option<usize> {
        let value = self.header("content-length")?;
        let value = value.trim_start_matches('+');
        let end = value
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(value.len());
        value[..end].parse().ok()
    }

    fn chunked(&self) -> bool {
        self.values("transfer-encoding")
            .any(|value| value.to_ascii_lowercase().contains("chunked"))
    }
}

/// The result of reading one element.
enum ParseStep {
    /// Complete; it ends at this offset.
    Done(usize),
    /// Incomplete.
    Partial,
    /// Invalid.
    Broken,
}

impl ParserProfile {
    pub const ALL: [Self; 4] = [
        Self::new(LineEnding::Crlf, FramingPreference::Chunked),
        Self::new(LineEnding::Crlf, FramingPreference::Length),
        Self::new(LineEnding::Lf, FramingPreference::Chunked),
        Self::new(LineEnding::Lf, FramingPreference::Length),
    ];

    const fn new(ends: LineEnding, framing: FramingPreference) -> Self {
        Self { ends, framing }
    }

    /// Reads the bytes of a connection.
    #[must_use]
    pub fn read(self, bytes: &[u8]) -> ParsedStream {
        let mut reading = ParsedStream {
            requests: Vec::new(),
            taken: 0,
            whole: 0,
            broken: false,
        };
        while reading.taken < bytes.len() {
            let mut at = reading.taken;
            // Servers skip empty lines before a request.
            while let Some((line, next)) = self.line(bytes, at)
                && line.is_empty()
            {
                at = next;
            }
            reading.taken = at;
            let Some((mut request, body)) = self.head(bytes, at) else {
                return reading;
            };
            let Some(body) = body else {
                reading.requests.push(request);
                return reading;
            };
            let end = self.body(bytes, body, &mut request);
            reading.requests.push(request);
            match end {
                ParseStep::Done(end) => {
                    reading.taken = end;
                    reading.whole += 1;
                }
                ParseStep::Partial => return reading,
                ParseStep::Broken => {
                    reading.broken = true;
                    return reading;
                }
            }
        }
        reading
    }

    /// The line at this offset without its ending, and the offset of the next one.
    fn line(self, bytes: &[u8], from: usize) -> Option<(&[u8], usize)> {
        let rest = &bytes[from..];
        match self.ends {
            LineEnding::Crlf => {
                let end = rest.windows(2).position(|two| two == b"\r\n")?;
                Some((&rest[..end], from + end + 2))
            }
            LineEnding::Lf => {
                let end = rest.iter().position(|byte| *byte == b'\n')?;
                let line = &rest[..end];
                Some((line.strip_suffix(b"\r").unwrap_or(line), from + end + 1))
            }
        }
    }

    /// The request at this offset if its line is complete, and the offset of its body if its head is.
    fn head(self, bytes: &[u8], from: usize) -> Option<(ParsedRequest, Option<usize>)> {
        let (line, mut at) = self.line(bytes, from)?;
        let mut request = ParsedRequest {
            line: text(line),
            headers: Vec::new(),
            body: Vec::new(),
        };
        while let Some((line, next)) = self.line(bytes, at) {
            at = next;
            if line.is_empty() {
                return Some((request, Some(at)));
            }
            if let (Some(b' ' | b'\t'), Some((_, value))) =
                (line.first(), request.headers.last_mut())
            {
                value.push(' ');
                value.push_str(text(line).trim());
                continue;
            }
            let line = text(line);
            let (name, value) = line.split_once(':').unwrap_or((&line, ""));
            let name = name
                .chars()
                .filter(|c| !c.is_whitespace() && !c.is_control());
            let name = name.map(|c| {
                if c == '_' {
                    '-'
                } else {
                    c.to_ascii_lowercase()
                }
            });
            let value = value.trim_matches(|c: char| c.is_whitespace() || c.is_control());
            request.headers.push((name.collect(), value.to_owned()));
        }
        Some((request, None))
    }

    fn body(self, bytes: &[u8], from: usize, request: &mut ParsedRequest) -> ParseStep {
        let (chunked, length) = (request.chunked(), request.length());
        match (self.framing, length) {
            (FramingPreference::Length, Some(length)) => fixed(bytes, from, length, request),
            (FramingPreference::Chunked, _) | (_, None) if chunked => {
                self.chunks(bytes, from, request)
            }
            (_, Some(length)) => fixed(bytes, from, length, request),
            (_, None) => ParseStep::Done(from),
        }
    }

    fn chunks(self, bytes: &[u8], from: usize, request: &mut ParsedRequest) -> ParseStep {
        let mut at = from;
        loop {
            let Some((line, next)) = self.line(bytes, at) else {
                return ParseStep::Partial;
            };
            let size = text(line);
            let size = size.trim();
            let size = &size[..size
                .find(|c: char| !c.is_ascii_hexdigit())
                .unwrap_or(size.len())];
            let Ok(size) = usize::from_str_radix(size, 16) else {
                return ParseStep::Broken;
            };
            at = next;
            if size == 0 {
                return self.trailers(bytes, at);
            }
            let Some(end) = at.checked_add(size).filter(|end| *end <= bytes.len()) else {
                request.body.extend(&bytes[at..]);
                return ParseStep::Partial;
            };
            request.body.extend(&bytes[at..end]);
            at = match self.line(bytes, end) {
                Some((b"", next)) => next,
                Some(_) => return ParseStep::Broken,
                None if self.may_end(&bytes[end..]) => return ParseStep::Partial,
                None => return ParseStep::Broken,
            };
        }
    }

    fn trailers(self, bytes: &[u8], from: usize) -> ParseStep {
        let mut at = from;
        while let Some((line, next)) = self.line(bytes, at) {
            at = next;
            if line.is_empty() {
                return ParseStep::Done(at);
            }
        }
        ParseStep::Partial
    }

    /// Whether these bytes begin a line ending.
    fn may_end(self, bytes: &[u8]) -> bool {
        bytes.is_empty() || bytes == b"\r"
    }
}

fn fixed(bytes: &[u8], from: usize, length: usize, request: &mut ParsedRequest) -> ParseStep {
    let end: Range<usize> = from..from.saturating_add(length);
    let Some(body) = bytes.get(end.clone()) else {
        request.body.extend(&bytes[from..]);
        return ParseStep::Partial;
    };
    request.body.extend(body);
    ParseStep::Done(end.end)
}

/// Bytes as characters, one to one, so that nothing is lost in what a test prints or compares.
fn text(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(personality: ParserProfile, bytes: &str) -> Vec<String> {
        let requests = personality.read(bytes.as_bytes()).requests;
        requests.into_iter().map(|request| request.line).collect()
    }

    #[test]
    fn all_profiles_agree_on_unambiguous_requests() {
        let bytes = "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc\
                     PUT /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nde\r\n0\r\nT: 1\r\n\r\n\
                     GET /c HTTP/1.1\r\n\r\nGET /d HTT";
        for personality in ParserProfile::ALL {
            let reading = personality.read(bytes.as_bytes());
            assert_eq!(reading.whole().len(), 3, "{personality:?}");
            assert_eq!(reading.requests.len(), 3);
            assert_eq!(&bytes[reading.taken..], "GET /d HTT");
            assert_eq!(reading.requests[0].body, b"abc");
            assert_eq!(reading.requests[1].body, b"de");
            assert_eq!(reading.requests[2].target(), "/c");
            assert!(!reading.broken);
        }
    }

    #[test]
    fn profiles_differ_on_ambiguous_requests() {
        let both = "POST /a HTTP/1.1\r\nContent-Length: 9\r\nTransfer_Encoding:\x0bx, Chunked\r\n\r\n0\r\n\r\n";
        for personality in ParserProfile::ALL {
            let reading = personality.read(format!("{both}GET").as_bytes());
            let all = reading.taken == both.len();
            assert_eq!(
                all,
                personality.framing == FramingPreference::Chunked,
                "{personality:?}"
            );
        }
        let bare = "GET /a HTTP/1.1\r\nX: y\nContent-Length: 19\r\n\r\nGET /b HTTP/1.1\r\n\r\n";
        for personality in ParserProfile::ALL {
            let two = lines(personality, bare).len() == 2;
            assert_eq!(two, personality.ends == LineEnding::Crlf, "{personality:?}");
        }
    }

    #[test]
    fn malformed_framing_is_broken_and_truncated_request_is_partial() {
        let head = "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        for personality in ParserProfile::ALL {
            let broken = |rest: &str| personality.read(format!("{head}{rest}").as_bytes()).broken;
            assert!(broken("x\r\n") && broken("1\r\nabc\r\n") && broken("1\r\nabc"));
            assert!(!broken("") && !broken("1") && !broken("3\r\nab") && !broken("1\r\na\r"));
        }
        let lf = ParserProfile::ALL[2];
        let folded = "POST / HTTP/1.1\nTransfer-Encoding:\n chunked\n\n0\n\nGET /b HTTP/1.1\n\n";
        assert_eq!(lines(lf, folded), ["POST / HTTP/1.1", "GET /b HTTP/1.1"]);
    }
}
