//! The head of a request (RFC 9112).

use super::RouteResponse;

/// The longest head.
pub(super) const MAX_LENGTH: usize = 16 << 10;
const MAX_HEADERS: usize = 64;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct RequestHead {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) body_length: usize,
    /// The `Accept` headers, joined by commas.
    pub(super) accept: String,
    /// Whether the client keeps the connection open.
    pub(super) is_persistent: bool,
    /// Whether the client waits for 100 before it sends the body.
    pub(super) expects_continue: bool,
}

/// The length of the head, with its empty line. The first `searched` bytes contain no start of an empty line.
pub(super) fn find_end(bytes: &[u8], searched: usize) -> Option<usize> {
    (searched..bytes.len()).find_map(|at| match bytes.get(at..)? {
        [b'\n', b'\n', ..] => Some(at + 2),
        [b'\n', b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    })
}

/// Parses a whole head.
///
/// # Errors
/// The response to a head that is not valid, or to a body that is too long or has no length.
pub(super) fn parse(bytes: &[u8], max_body: usize) -> Result<RequestHead, RouteResponse> {
    let invalid = || RouteResponse::error(400, "invalid request");
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        // A head that ends earlier for the parser than for `find_end` is ambiguous.
        Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
        Err(httparse::Error::TooManyHeaders) => {
            return Err(RouteResponse::error(431, "the head has over 64 headers"));
        }
        Ok(_) | Err(_) => return Err(invalid()),
    }
    let (Some(method), Some(target)) = (request.method, request.path) else {
        return Err(invalid());
    };
    let mut length = None;
    let mut accept: Vec<&str> = Vec::new();
    let mut is_persistent = request.version == Some(1);
    let mut expects_continue = false;
    for header in request.headers.iter() {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        let value = std::str::from_utf8(header.value).unwrap_or_default();
        if is("transfer-encoding") {
            return Err(RouteResponse::error(
                411,
                "a body must have a Content-Length",
            ));
        } else if is("content-length") {
            let is_number = value.bytes().all(|byte| byte.is_ascii_digit());
            let parsed = is_number.then(|| value.parse().ok()).flatten();
            if length.is_some() || parsed.is_none() {
                return Err(invalid());
            }
            length = parsed;
        } else if is("accept") {
            accept.push(value);
        } else if is("connection") {
            let mut options = value.split(',').map(str::trim);
            is_persistent &= !options.any(|option| option.eq_ignore_ascii_case("close"));
        } else if is("expect") {
            expects_continue = value.eq_ignore_ascii_case("100-continue");
        }
    }
    let body_length = length.unwrap_or(0);
    if body_length > max_body {
        let message = format!("the body exceeds {max_body} bytes");
        return Err(RouteResponse::error(413, &message));
    }
    // RFC 9112 section 3.2.2: a server must accept the absolute form, too.
    let target = match target.split_once("://") {
        Some((_, rest)) if !target.starts_with('/') => {
            &rest[rest.find(['/', '?']).unwrap_or(rest.len())..]
        }
        _ => target,
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Ok(RequestHead {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        body_length,
        accept: accept.join(","),
        is_persistent,
        // RFC 9110 section 10.1.1: HTTP/1.0 has no interim responses.
        expects_continue: expects_continue && request.version == Some(1),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_BODY: usize = 64 << 10;

    fn status(head: &str) -> u16 {
        parse(format!("{head}\r\n\r\n").as_bytes(), MAX_BODY)
            .map_or_else(|reply| reply.status, |_| 200)
    }

    #[test]
    fn head_ends_after_its_empty_line_wherever_it_is_split() {
        for (text, end_at) in [
            ("GET / HTTP/1.1\r\nA: b\r\n\r\nbody", 24),
            ("GET / HTTP/1.0\n\nbody", 16),
            ("GET / HTTP/1.0\r\nA: b\r\n", 0),
        ] {
            let bytes = text.as_bytes();
            for cut in 0..bytes.len() {
                let found =
                    find_end(&bytes[..cut], 0).or_else(|| find_end(bytes, cut.saturating_sub(2)));
                assert_eq!(found.unwrap_or(0), end_at, "{text:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn method_path_query_and_length_are_parsed() {
        for (line, path, query) in [
            ("GET /health", "/health", ""),
            ("GET /purge?key=a?b", "/purge", "key=a?b"),
            ("GET http://localhost:80/x?y", "/x", "y"),
            ("GET /x?u=http://h/", "/x", "u=http://h/"),
            ("GET http://localhost", "", ""),
            ("GET http://localhost?u=/x", "", "u=/x"),
        ] {
            let head =
                parse(format!("{line} HTTP/1.1\r\nACCEPT: a/b\r\ncontent-LENGTH: 7\r\nAccept: */*;q=0.1\r\n\r\n").as_bytes(), MAX_BODY)
                    .unwrap();
            let expected = RequestHead {
                method: "GET".to_owned(),
                path: path.to_owned(),
                query: query.to_owned(),
                body_length: 7,
                accept: "a/b,*/*;q=0.1".to_owned(),
                is_persistent: true,
                expects_continue: false,
            };
            assert_eq!(head, expected, "{line}");
        }
    }

    #[test]
    fn request_without_valid_framing_is_rejected() {
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
        let many = "A: b\r\n".repeat(MAX_HEADERS + 1);
        assert_eq!(
            status(&format!("GET / HTTP/1.1\r\n{}", many.trim_end())),
            431
        );
    }

    #[test]
    fn connection_persists_in_http_1_1_unless_it_is_closed() {
        for (head, expected) in [
            ("GET / HTTP/1.1", true),
            ("GET / HTTP/1.1\r\nConnection: keep-alive", true),
            ("GET / HTTP/1.1\r\nConnection: x, Close", false),
            ("GET / HTTP/1.0\r\nConnection: keep-alive", false),
        ] {
            let head = parse(format!("{head}\r\n\r\n").as_bytes(), MAX_BODY).unwrap();
            assert_eq!(head.is_persistent, expected, "{head:?}");
        }
    }

    #[test]
    fn only_http_1_1_expects_100_continue() {
        for (version, expected) in [("1.1", true), ("1.0", false)] {
            let head = format!("POST / HTTP/{version}\r\nExpect: 100-Continue\r\n\r\n");
            let head = parse(head.as_bytes(), MAX_BODY).unwrap();
            assert_eq!(head.expects_continue, expected, "{version}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_head_or_an_error(bytes: Vec<u8>, line in "(GET /|POST http://x/ HTTP/1.1\r\n|)") {
            let bytes = [line.into_bytes(), bytes].concat();
            let _ = (find_end(&bytes, 0), parse(&bytes, MAX_BODY));
        }
    }
}
