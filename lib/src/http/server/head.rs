//! The head of a request (RFC 9112), as far as one exchange per connection needs it.

use super::RouteResponse;

/// The longest head.
pub(super) const LONGEST: usize = 16 << 10;
/// The longest body.
const BODY: usize = 64 << 10;
/// The most headers.
const HEADERS: usize = 64;

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RequestHead {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) query: String,
    /// The length of the body.
    pub(super) length: usize,
    /// The `Accept` headers, with commas.
    pub(super) accept: String,
}

/// Where the head ends: behind its empty line. The first `searched` bytes are known to hold no beginning of one.
pub(super) fn end(bytes: &[u8], searched: usize) -> Option<usize> {
    (searched..bytes.len()).find_map(|at| match bytes.get(at..)? {
        [b'\n', b'\n', ..] => Some(at + 2),
        [b'\n', b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    })
}

/// Parses a whole head.
///
/// # Errors
/// The answer to a request that is broken, or that has a body which cannot be taken.
pub(super) fn parse(bytes: &[u8]) -> Result<RequestHead, RouteResponse> {
    let broken = || RouteResponse::error(400, "the request is broken");
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => {
            return Err(RouteResponse::error(431, "a head has at most 64 headers"));
        }
        Ok(httparse::Status::Partial) | Err(_) => return Err(broken()),
    }
    let (Some(method), Some(target)) = (request.method, request.path) else {
        return Err(broken());
    };
    let mut length = None;
    let mut accept: Vec<&str> = Vec::new();
    for header in request.headers.iter() {
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(RouteResponse::error(411, "a body needs a Content-Length"));
        }
        if header.name.eq_ignore_ascii_case("content-length") {
            let value = header
                .value
                .iter()
                .all(u8::is_ascii_digit)
                .then_some(header.value);
            let value = value.and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
            if length.is_some() || value.is_none() {
                return Err(broken());
            }
            length = value;
        }
        if header.name.eq_ignore_ascii_case("accept") {
            accept.extend(std::str::from_utf8(header.value).ok());
        }
    }
    let length = length.unwrap_or(0);
    if length > BODY {
        return Err(RouteResponse::error(413, "a body is at most 64 KiB"));
    }
    // Section 3.2.2: a proxy's form is to be understood, too.
    let target = match target.split_once("://") {
        Some((_, rest)) if !target.starts_with('/') => {
            &rest[rest.find('/').unwrap_or(rest.len())..]
        }
        _ => target,
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Ok(RequestHead {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        length,
        accept: accept.join(","),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(head: &str) -> u16 {
        parse(format!("{head}\r\n\r\n").as_bytes()).map_or_else(|reply| reply.status, |_| 200)
    }

    #[test]
    fn a_head_ends_behind_its_empty_line_wherever_it_was_cut() {
        for (text, end_at) in [
            ("GET / HTTP/1.1\r\nA: b\r\n\r\nbody", 24),
            ("GET / HTTP/1.0\n\nbody", 16),
            ("GET / HTTP/1.0\r\nA: b\r\n", 0),
        ] {
            let bytes = text.as_bytes();
            for cut in 0..bytes.len() {
                let found = end(&bytes[..cut], 0).or_else(|| end(bytes, cut.saturating_sub(2)));
                assert_eq!(found.unwrap_or(0), end_at, "{text:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn method_path_query_and_length_are_taken_apart() {
        for (line, path, query) in [
            ("GET /health", "/health", ""),
            ("GET /purge?key=a?b", "/purge", "key=a?b"),
            ("GET http://localhost:80/x?y", "/x", "y"),
            ("GET /x?u=http://h/", "/x", "u=http://h/"),
            ("GET http://localhost", "", ""),
        ] {
            let head =
                parse(format!("{line} HTTP/1.1\r\nACCEPT: a/b\r\ncontent-LENGTH: 7\r\nAccept: */*;q=0.1\r\n\r\n").as_bytes())
                    .unwrap();
            let expected = RequestHead {
                method: "GET".to_owned(),
                path: path.to_owned(),
                query: query.to_owned(),
                length: 7,
                accept: "a/b,*/*;q=0.1".to_owned(),
            };
            assert_eq!(head, expected, "{line}");
        }
    }

    #[test]
    fn what_cannot_be_framed_is_refused() {
        for (head, expected) in [
            ("GET / HTTP/1.1", 200),
            ("GET /", 400),
            ("GET / HTTP/1.1\r\nno colon", 400),
            ("POST / HTTP/1.1\r\nContent-Length: +4", 400),
            (
                "POST / HTTP/1.1\r\nContent-Length: 4\r\nContent-Length: 4",
                400,
            ),
            (
                "POST / HTTP/1.1\r\nContent-Length: 99999999999999999999",
                400,
            ),
            ("POST / HTTP/1.1\r\nContent-Length:", 400),
            ("POST / HTTP/1.1\r\nContent-Length: 65536", 200),
            ("POST / HTTP/1.1\r\nContent-Length: 65537", 413),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked", 411),
        ] {
            assert_eq!(status(head), expected, "{head}");
        }
        let many = "A: b\r\n".repeat(HEADERS + 1);
        assert_eq!(
            status(&format!("GET / HTTP/1.1\r\n{}", many.trim_end())),
            431
        );
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_head_or_an_answer(bytes: Vec<u8>, line in "(GET /|POST http://x/ HTTP/1.1\r\n|)") {
            let bytes = [line.into_bytes(), bytes].concat();
            let _ = (end(&bytes, 0), parse(&bytes));
        }
    }
}
