//! Bytes that violate one rule each, and bytes that just comply.

/// Valid heads. `@` at the end stands for the usual end of a head.
pub(super) const VALID_HEADS: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.0\r\nHost: a\r\n\r\n",
    "GET /a%00b/..//c;d?e=f&g=[h]^`\\|{}~ HTTP/1.1\r\n@",
    "GET /\"{^\\|}[] HTTP/1.1\r\n@",
    "M-SEARCH!#$%&'*+.^_`|~9 / HTTP/1.1\r\n@",
    "OPTIONS * HTTP/1.1\r\n@",
    "purge / HTTP/1.1\r\n@",
    "GETs / HTTP/1.1\r\n@",
    "GET http://a HTTP/1.1\r\n@",
    "GET HTTP://A/b?c HTTP/1.1\r\n@",
    "GET https://a?b=http://c HTTP/1.1\r\n@",
    "GET http://[::1]:80/ HTTP/1.1\r\nhost:[::1]:80\r\n\r\n",
    "GET / HTTP/1.1\r\nhOST:\t a.b-c_d~1:65535 \t\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: 127.0.0.1:0\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a:\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: [::1]:\r\n\r\n",
    "GET http://a:/ HTTP/1.1\r\nHost: a:\r\n\r\n",
    "GET / HTTP/1.1\r\nX:\r\nY: \r\nZ: a\tb \u{e9}\r\n@",
    "GET / HTTP/1.1\r\nX: 1\r\nX: 2\r\n@",
    "GET / HTTP/1.1\r\nX_Y: 1\r\nHos_: b\r\nContentLength: 1\r\nContent-Lengthy: 1\r\nXContent-Length: 1\r\n@",
    "GET / HTTP/1.1\r\nConnection: close, hosts, x-host\r\n@",
    "GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n@",
    "POST / HTTP/1.1\r\nContent-Length: 0\r\n@",
];

/// Complete valid requests with a body.
pub(super) const VALID_BODIES: &[&str] = &[
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbo\ny",
    "POST / HTTP/1.0\r\nHost: a\r\nContent-Length:\t4 \r\n\r\n\r\n\0\r",
    "POST / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nContent-Length: 4\r\n\r\nGET ",
    "~0\r\n\r\n",
    "~4\r\nbody\r\n0\r\n\r\n",
    "~000000000000000A\r\n0123456789\r\n0000\r\n\r\n",
    "~1;a;b=c;=\r\n\n\r\n0;d\r\n\r\n",
    "~0\r\nX-Sum: 1\r\nY:\r\n\r\n",
];

/// Invalid heads, and the rule.
pub(super) const INVALID_HEADS: &[(&str, &str)] = &[
    // The request line.
    (" / HTTP/1.1\r\n@", METHOD),
    (" GET / HTTP/1.1\r\n@", METHOD),
    ("GET\t/ HTTP/1.1\r\n@", METHOD),
    ("G(T / HTTP/1.1\r\n@", METHOD),
    ("G\u{e9}T / HTTP/1.1\r\n@", METHOD),
    ("GET\r\n@", METHOD),
    ("GET  / HTTP/1.1\r\n@", TARGET),
    ("GET \t/ HTTP/1.1\r\n@", TARGET),
    ("GET a HTTP/1.1\r\n@", TARGET),
    ("GET ?a HTTP/1.1\r\n@", TARGET),
    ("GET * HTTP/1.1\r\n@", TARGET),
    ("GET a:80 HTTP/1.1\r\n@", TARGET),
    ("GET http:/a HTTP/1.1\r\n@", TARGET),
    ("GET ftp://a/ HTTP/1.1\r\n@", TARGET),
    ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", TARGET),
    ("GET http:// HTTP/1.1\r\n@", TARGET_HOST),
    ("GET http:///a HTTP/1.1\r\n@", TARGET_HOST),
    ("GET http://u@a/ HTTP/1.1\r\n@", TARGET_HOST),
    ("GET http://a%62/ HTTP/1.1\r\n@", TARGET_HOST),
    ("GET /#a HTTP/1.1\r\n@", "the request target has a fragment"),
    (
        "GET http://a#b HTTP/1.1\r\n@",
        "the request target has a fragment",
    ),
    ("GET /<a> HTTP/1.1\r\n@", CHARACTER),
    ("GET /\u{e9} HTTP/1.1\r\n@", CHARACTER),
    ("GET /a\tHTTP/1.1\r\n@", CHARACTER),
    ("GET /?a=\"b\" HTTP/1.1\r\n@", CHARACTER),
    ("OPTIONS */ HTTP/1.1\r\n@", CHARACTER),
    ("GET /\r\n@", "the request line has no version"),
    ("GET / \r\n@", VERSION),
    ("GET /  HTTP/1.1\r\n@", VERSION),
    ("GET / HTTP/1.1 \r\n@", VERSION),
    ("GET /a b HTTP/1.1\r\n@", VERSION),
    ("GET / http/1.1\r\n@", VERSION),
    ("GET / HTTP/1.2\r\n@", VERSION),
    ("GET / HTTP/2.0\r\n@", VERSION),
    ("GET / HTTP/1.01\r\n@", VERSION),
    ("\r\n\r\nGET / HTTP/1.1\r\n@", METHOD),
    ("get / HTTP/1.1\r\n@", CASE),
    ("Post / HTTP/1.1\r\n@", CASE),
    ("options * HTTP/1.1\r\n@", CASE),
    ("connect a:80 HTTP/1.1\r\n@", CASE),
    ("propFind / HTTP/1.1\r\n@", CASE),
    ("version-control / HTTP/1.1\r\n@", CASE),
    // Line ends, and other control characters.
    ("\nGET / HTTP/1.1\r\n@", BARE_LF),
    ("GET / HTTP/1.1\n@", BARE_LF),
    ("GET / HTTP/1.1\r\nHost: a\n\r\n", BARE_LF),
    ("GET / HTTP/1.1\r\nX: a\nHost: a\r\n\r\n", BARE_LF),
    ("GET / HTTP/1.1\r\nHost: a\r\n\n", BARE_LF),
    ("\rGET / HTTP/1.1\r\n@", BARE_CR),
    ("GET /a\rb HTTP/1.1\r\n@", BARE_CR),
    ("GET / HTTP/1.1\r\r\n@", BARE_CR),
    ("GET / HTTP/1.1\r\nX: a\rHost: b\r\n@", BARE_CR),
    ("GET / HTTP/1.1\r\nHost: a\r\n\r\r\n", BARE_CR),
    ("GET /\0 HTTP/1.1\r\n@", "the request has a NUL"),
    ("GET / HTTP/1.1\r\nX: \0\r\n@", "the request has a NUL"),
    ("GET / HTTP/1.1\r\nX: a\x0bb\r\n@", CONTROL),
    ("GET / HTTP/1.1\r\nX: a\x7f\r\n@", CONTROL),
    ("\x16\x03\x01", CONTROL),
    // Header lines.
    ("GET / HTTP/1.1\r\n X: a\r\n@", FOLD),
    ("GET / HTTP/1.1\r\nX: a\r\n\tb\r\n@", FOLD),
    ("GET / HTTP/1.1\r\nX: a\r\n \r\n@", FOLD),
    ("GET / HTTP/1.1\r\n: a\r\n@", "a header has no name"),
    ("GET / HTTP/1.1\r\nX\r\n@", "a header has no colon"),
    ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", SPACE),
    ("GET / HTTP/1.1\r\nContent-Length\t: 1\r\n@", SPACE),
    ("GET / HTTP/1.1\r\nX Y: a\r\n@", SPACE),
    ("GET / HTTP/1.1\r\nX(Y: a\r\n@", NAME),
    ("GET / HTTP/1.1\r\nX\u{e9}: a\r\n@", NAME),
    ("GET / HTTP/1.1\r\nHost/: a\r\n@", NAME),
    // Host.
    ("GET / HTTP/1.1\r\n\r\n", "missing Host"),
    ("GET / HTTP/1.0\r\n\r\n", "missing Host"),
    ("GET http://a/ HTTP/1.1\r\n\r\n", "missing Host"),
    (
        "GET / HTTP/1.1\r\nHost: a\r\nHOST: a\r\n\r\n",
        "Host was sent more than once",
    ),
    (
        "GET / HTTP/1.0\r\nHost: a\r\nX: b\r\nHost: b\r\n\r\n",
        "Host was sent more than once",
    ),
    ("GET / HTTP/1.1\r\nHost:\r\n\r\n", HOST),
    ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", HOST),
    ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", HOST),
    ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", HOST),
    ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", HOST),
    ("GET / HTTP/1.1\r\nHost: :\r\n\r\n", HOST),
    ("GET / HTTP/1.1\r\nHost: :80\r\n\r\n", HOST),
    ("GET / HTTP/1.1\r\nHost: a:+1\r\n\r\n", HOST),
    ("GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n", HOST),
    ("GET / HTTP/1.1\r\nHost: a:1:2\r\n\r\n", HOST),
    ("GET / HTTP/1.1\r\nHost: ::1\r\n\r\n", HOST),
    ("GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", HOST),
    ("GET / HTTP/1.1\r\nHost: [::1]a\r\n\r\n", HOST),
    ("GET / HTTP/1.1\r\nHost: [a]\r\n\r\n", HOST),
    ("GET / HTTP/1.1\r\nHost: \u{e9}\r\n\r\n", HOST),
    ("GET http://b/ HTTP/1.1\r\n@", OTHER_HOST),
    ("GET http://a:80/ HTTP/1.1\r\n@", OTHER_HOST),
    // Framing.
    (
        "POST / HTTP/1.1\r\nContent-Length: 4\r\nContent-Length: 4\r\n@",
        LENGTH_TWICE,
    ),
    (
        "POST / HTTP/1.1\r\nContent-Length: 4\r\ncontent-length: 5\r\n@",
        LENGTH_TWICE,
    ),
    ("POST / HTTP/1.1\r\nContent-Length: 4, 4\r\n@", LENGTH),
    ("POST / HTTP/1.1\r\nContent-Length: +4\r\n@", LENGTH),
    ("POST / HTTP/1.1\r\nContent-Length: -1\r\n@", LENGTH),
    ("POST / HTTP/1.1\r\nContent-Length: 0x4\r\n@", LENGTH),
    ("POST / HTTP/1.1\r\nContent-Length: 4 4\r\n@", LENGTH),
    ("POST / HTTP/1.1\r\nContent-Length: 04\r\n@", LENGTH),
    ("POST / HTTP/1.1\r\nContent-Length: 4_0\r\n@", LENGTH),
    ("POST / HTTP/1.1\r\nContent-Length:\r\n@", LENGTH),
    ("POST / HTTP/1.1\r\nContent-Length: 4.0\r\n@", LENGTH),
    (
        "POST / HTTP/1.1\r\nContent-Length: 9223372036854775808\r\n@",
        LENGTH,
    ),
    (
        "POST / HTTP/1.1\r\nContent-Length: 18446744073709551620\r\n@",
        LENGTH,
    ),
    (
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n@",
        BOTH,
    ),
    (
        "POST / HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n@",
        BOTH,
    ),
    (
        "POST / HTTP/1.1\r\nContent-Length: 0\r\nTransfer-Encoding: identity\r\n@",
        BOTH,
    ),
    (
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n@",
        CODING_TWICE,
    ),
    (
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n@",
        CODING_TWICE,
    ),
    (
        "POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n@",
        CODING,
    ),
    (
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n@",
        CODING,
    ),
    (
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked;q=1\r\n@",
        CODING,
    ),
    (
        "POST / HTTP/1.1\r\nTransfer-Encoding: \"chunked\"\r\n@",
        CODING,
    ),
    (
        "POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n@",
        CODING,
    ),
    (
        "POST / HTTP/1.1\r\nTransfer-Encoding: identity\r\n@",
        CODING,
    ),
    ("POST / HTTP/1.1\r\nTransfer-Encoding:\r\n@", CODING),
    (
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n@",
        "HTTP/1.0 has no Transfer-Encoding",
    ),
    ("POST / HTTP/1.1\r\nContent_Length: 4\r\n@", LOOKALIKE),
    ("POST / HTTP/1.1\r\nContent.Length: 4\r\n@", LOOKALIKE),
    (
        "POST / HTTP/1.1\r\nTRANSFER_ENCODING: chunked\r\n@",
        LOOKALIKE,
    ),
    (
        "POST / HTTP/1.1\r\nTransfer~Encoding: chunked\r\n@",
        LOOKALIKE,
    ),
    (
        "GET / HTTP/1.1\r\nConnection: Content-Length\r\n@",
        CONNECTION,
    ),
    (
        "GET / HTTP/1.1\r\nConnection: close ,\thost , x\r\n@",
        CONNECTION,
    ),
    (
        "GET / HTTP/1.1\r\nConnection: close\r\nConnection: transfer-encoding\r\n@",
        CONNECTION,
    ),
];

/// Invalid chunked bodies, with `|` before the bytes that do not pass, and the rule.
pub(super) const INVALID_BODIES: &[(&str, &str)] = &[
    ("|\r\n", SIZE),
    ("|G\r\n", SIZE),
    ("|+1\r\na\r\n", SIZE),
    ("|-1\r\na\r\n", SIZE),
    ("|0x1\r\na\r\n", EXTENSION),
    ("| 1\r\na\r\n", SIZE),
    ("|1 \r\na\r\n", EXTENSION),
    ("|1\t\r\na\r\n", EXTENSION),
    ("|1_0\r\n", EXTENSION),
    ("|00000000000000001\r\na\r\n", SIZE),
    ("|8000000000000000\r\n", SIZE),
    ("|ffffffffffffffff1\r\n", SIZE),
    ("|1\n", BARE_LF),
    ("|1\ra\r\n", BARE_CR),
    ("|1\0\r\n", "the request has a NUL"),
    ("|1;a\n\r\n", BARE_LF),
    ("|1;\ra\r\n", BARE_CR),
    ("|1;a=\"b\"\r\n", EXTENSION),
    ("|1; a\r\n", EXTENSION),
    ("|1 ;a\r\n", EXTENSION),
    ("|1,a\r\n", EXTENSION),
    ("1\r\na|b\r\n", CHUNK_END),
    ("1\r\na|\n0\r\n\r\n", CHUNK_END),
    ("1\r\na|\r0\r\n\r\n", CHUNK_END),
    ("1\r\na|0\r\n\r\n", CHUNK_END),
    ("1\r\na\r\n|g\r\n", SIZE),
    ("1\r\na\r\n|\r\n", SIZE),
    ("0\r\n|\n", BARE_LF),
    ("0\r\n|\r\r\n", BARE_CR),
    ("0\r\n|X: a\nY: b\r\n", BARE_LF),
    ("0\r\n|GET / HTTP/1.1\r\n", SPACE),
    ("0\r\n| a\r\n", FOLD),
    ("0\r\nX: a\r\n| b\r\n", FOLD),
    ("0\r\n|X : a\r\n", SPACE),
    ("0\r\n|Content-Length: 4\r\n", TRAILER),
    ("0\r\nX: a\r\n|transfer_encoding: chunked\r\n", TRAILER),
    ("0\r\n|Host: b\r\n", TRAILER),
    ("0\r\n|Authorization: x\r\n", TRAILER),
    ("0\r\n|X-Auth-Id: x\r\n", TRAILER),
    ("0\r\n|x_auth_id: x\r\n", TRAILER),
    ("0\r\n|X-Forwarded-For: x\r\n", TRAILER),
];

const METHOD: &str = "the request line does not begin with a method and one space";
const CASE: &str = "a standard method must be in upper case";
const TARGET: &str = "the request target is neither a path nor an http URL";
const TARGET_HOST: &str = "the request target has no valid host";
const CHARACTER: &str = "the request target has a character that must be percent-encoded";
const VERSION: &str = "the request line does not end with one space and HTTP/1.1 or HTTP/1.0";
const BARE_LF: &str = "a line of the request ends without CR";
const BARE_CR: &str = "the request has a CR without LF";
const CONTROL: &str = "the request has a control character";
const FOLD: &str = "a header continues on a second line";
const SPACE: &str = "white space between a header's name and the colon";
const NAME: &str = "invalid character in a header's name";
const HOST: &str = "the Host header is not HOST or HOST:PORT";
const OTHER_HOST: &str = "Host and the request target name different hosts";
const LENGTH: &str = "Content-Length is not a decimal number";
const LENGTH_TWICE: &str = "Content-Length was sent more than once";
const BOTH: &str = "Content-Length and Transfer-Encoding were both sent";
const CODING: &str = "Transfer-Encoding is not chunked";
const CODING_TWICE: &str = "Transfer-Encoding was sent more than once";
const LOOKALIKE: &str = "a header's name resembles Content-Length or Transfer-Encoding";
const CONNECTION: &str = "Connection names a framing header";
const SIZE: &str = "a chunk's size is not a hexadecimal number";
pub(super) const EXTENSION: &str = "a chunk has an extension other than ;name=value, or a long one";
const CHUNK_END: &str = "a chunk does not end where its size says";
const TRAILER: &str = "a trailer has a name that only a header may have";

pub(super) const CHUNKED: &str = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunkeD\r\n\r\n";
