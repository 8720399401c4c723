//! Ways to smuggle a request in another one: what one parser reads as a body, another reads as a request.
//!
//! Each case is a technique and a mutation. Techniques place the hidden request; mutations make one of two framings
//! visible to some parsers only.

use super::bytes::head;

/// The bytes of an attack, one per character, and its name.
#[derive(Debug, Clone)]
pub(super) struct AttackCase {
    /// The technique, by which the self-test of the detector counts.
    pub(super) technique: &'static str,
    /// The bytes, without the request that follows every case.
    pub(super) text: String,
}

/// The two headers that frame a body.
const LENGTH: &str = "Content-Length";
const CODING: &str = "Transfer-Encoding";

/// The text around a header's name and value. `N` is the name, `V` the value.
const SHAPES: &[&str] = &[
    "N: V",
    "N:V",
    "N:\tV",
    "N:  V",
    "N: V ",
    "N: V\t",
    "N : V",
    "N\t: V",
    "N  : V",
    " N: V",
    "\tN: V",
    "\u{b}N: V",
    "N\u{b}: V",
    "N\u{c}: V",
    "N\u{85}: V",
    "N\u{a0}: V",
    "\u{a0}N: V",
    "N\0: V",
    "N_: V",
    "N-: V",
    "-N: V",
    "N.: V",
    "N::V",
    "N: :V",
    "N=V",
    "N;: V",
    "N:\u{b}V",
    "N:\u{c}V",
    "N: \u{85}V",
    "N: \u{a0}V",
    "N: V\u{b}",
    "N: V\0",
    "N: \0V",
    "N: \"V\"",
    "N: 'V'",
    "N: V,",
    "N: ,V",
    "N: x, V",
    "N: V, x",
    "N: V;",
    "N: V; x",
    "N: V x",
    "N: xV",
    "N: Vx",
    "N: +V",
    "N: -V",
    "N: 0V",
    "N: 00000000000000000000V",
    "N: 0xV",
    "N: V.0",
    "N: Ve0",
    "N: [V]",
    "N: V\r",
    "N: V\n",
    "N: \rV",
    "N: \nV",
    "N:\r\n V",
    "N:\r\n\tV",
    "N:\n V",
    "N\r\n: V",
    "N\n: V",
    "X: y\rN: V",
    "X: y\nN: V",
    "X: y\r\r\nN: V",
    "X: y\n\rN: V",
    "X: y\r\n N: V",
    "X: y\r\n\tN: V",
    "X: y\r\n\u{b}N: V",
    "X:\r\nN: V",
    "X\r\nN: V",
    "\r\n N: V",
    "X: \u{1}\r\nN: V",
    "N: y\r\nN: V",
    "N: V\r\nN: y",
    "N: V\r\nN: V",
    "N:\r\nN: V",
    "N: V\r\n y",
    "N: identity\r\nN: V",
    "N: V\r\nN: identity",
    "N: identity, V",
    "N: V, identity",
    "N: V, V",
    "N: gzip, V",
    "N: 0\r\nN: V",
    "N: V\r\nN: 0",
    "N: 0, V",
    "N: V, 0",
    "Connection: N\r\nN: V",
    "Connection: close, N\r\nN: V",
    "Connection: Host, N\r\nN: V",
    "Expect: 100-continue\r\nN: V",
    "Expect: x 100-continue\r\nN: V",
    "Upgrade: h2c\r\nConnection: Upgrade\r\nN: V",
    "Upgrade: websocket\r\nConnection: Upgrade\r\nN: V",
    "TE: trailers\r\nN: V",
    "X-HTTP-Method-Override: POST\r\nN: V",
];

/// Bytes that parsers are known to disagree about.
const ODD: &[u8] = b"\0\x01\x08\t\n\x0b\x0c\r\x1b\x1c\x1f !\"#'()*+,-./0:;<=@[\\]_{|}~\x7f\x80\x85\xa0\xad\xb2\xc2\xe2\xff";

/// Possible line endings.
const ENDS: &[&str] = &[
    "\n", "\r", "\r\r\n", "\n\r", "\n\n", "\r\r", "\u{b}\n", "\0\n", " \n", "\u{85}", "\r\0\n",
    "\r \n", "",
];

/// The requests that are sent with a body: a line, and headers that let it pass.
const CARRIERS: &[(&str, &[&str])] = &[
    ("POST /case HTTP/1.1", &["Host: x", "X-API-Key: valid-key"]),
    ("GET /case?apikey=valid-key HTTP/1.1", &["Host: x"]),
    (
        "HEAD /case HTTP/1.1",
        &["Host: x", "Authorization: Bearer valid-key"],
    ),
    (
        "POST /case HTTP/1.0",
        &["Host: x", "Connection: keep-alive", "X-API-Key: valid-key"],
    ),
    (
        "OPTIONS /case HTTP/1.1",
        &[
            "Host: x",
            "Origin: http://x",
            "Access-Control-Request-Method: GET",
        ],
    ),
];

/// All cases. With `every`, each byte is tried, and not only the odd ones.
pub(super) fn all_cases(every: bool) -> Vec<AttackCase> {
    let mut cases = Vec::new();
    for (at, shape) in SHAPES.iter().enumerate() {
        // Every shape with the first carrier, and with the others in turn.
        for carrier in [0, 1 + at % (CARRIERS.len() - 1)] {
            add_contradictory_framings(&mut cases, &CARRIERS[carrier], shape);
        }
    }
    let each: Vec<u8> = if every {
        (0..=255).collect()
    } else {
        ODD.to_vec()
    };
    for byte in each.into_iter().map(char::from) {
        for shape in [
            "BN: V",
            "NB: V",
            "N:BV",
            "N: VB",
            "NBX: V",
            "N: VBx",
            "X: yBN: V",
            "N: V\r\nB",
        ] {
            let shape = shape.replace('B', &byte.to_string());
            add_contradictory_framings(&mut cases, &CARRIERS[0], &shape);
        }
        add_hidden_in_heads(&mut cases, &byte.to_string());
    }
    for end in ENDS {
        add_chunk_lines(&mut cases, end);
        add_hidden_in_heads(&mut cases, end);
    }
    add_chunk_sizes(&mut cases);
    add_hidden_in_lines(&mut cases);
    cases
}

/// The request that must not arrive: complete, or such that later bytes become one of its headers.
fn hidden_request(whole: bool) -> String {
    let rest = if whole { "\r\n\r\n" } else { "\r\nX-Rest: " };
    format!("GET /smuggled HTTP/1.1\r\nHost: x{rest}")
}

fn carry((line, headers): &(&str, &[&str]), framing: &[&str], body: &str) -> String {
    let mut all = headers.to_vec();
    all.extend(framing);
    head(line, &all) + body
}

/// Two headers that contradict each other, one of them in a shape that not every parser understands.
fn add_contradictory_framings(cases: &mut Vec<AttackCase>, carrier: &(&str, &[&str]), shape: &str) {
    let shaped = |name: &str, value: &str| {
        // The shape has no other N and V where the value could have them.
        let shape = shape.replace('V', "\u{fe}").replace('N', name);
        shape.replace('\u{fe}', value)
    };
    let mut add = |technique, framing: &[&str], body: &str| {
        let text = carry(carrier, framing, body);
        cases.push(AttackCase { technique, text });
    };
    for whole in [true, false] {
        let hidden = hidden_request(whole);
        // A parser that uses the length takes all for the body; one that uses chunks ends before the hidden request.
        let body = format!("0\r\n\r\n{hidden}");
        let length = body.len().to_string();
        let plain = format!("{LENGTH}: {length}");
        add("CL.TE", &[&plain, &shaped(CODING, "chunked")], &body);
        add("CL.TE", &[&shaped(CODING, "chunked"), &plain], &body);
        let chunked = format!("{CODING}: chunked");
        add(
            "TE.TE",
            &[&chunked, &shaped(CODING, "identity"), &plain],
            &body,
        );
        // The other way round: the hidden request is a chunk.
        let size = format!("{:x}\r\n", hidden.len());
        let body = format!("{size}{hidden}\r\n0\r\n\r\n");
        add(
            "TE.CL",
            &[&chunked, &shaped(LENGTH, &size.len().to_string())],
            &body,
        );
        add(
            "TE.CL",
            &[&shaped(LENGTH, &size.len().to_string()), &chunked],
            &body,
        );
        add(
            "CL.0",
            &[&shaped(LENGTH, &hidden.len().to_string())],
            &hidden,
        );
        let two = [
            shaped(LENGTH, &hidden.len().to_string()),
            format!("{LENGTH}: 0"),
        ];
        add("CL.CL", &[&two[0], &two[1]], &hidden);
        add("CL.CL", &[&two[1], &two[0]], &hidden);
    }
    // A parser that ignores the length takes what follows for a request, which has a key; one that uses it takes the
    // beginning of that for the body, and the rest for a request.
    let second = "GET /second?apikey=valid-key HTTP/1.1\r\nHost: x\r\nX-Rest: ";
    let length = shaped(LENGTH, &second.len().to_string());
    add(
        "0.CL",
        &[&length],
        &format!("{second}{}", hidden_request(true)),
    );
}

/// A chunk whose size line or end has an ending that not every parser accepts.
fn add_chunk_lines(cases: &mut Vec<AttackCase>, end: &str) {
    let mut add = |technique, body: &str| {
        let text = carry(&CARRIERS[0], &[&format!("{CODING}: chunked")], body);
        cases.push(AttackCase { technique, text });
    };
    for whole in [true, false] {
        let inner = format!("0\r\n\r\n{}", hidden_request(whole));
        let size = format!("{:x}", inner.len());
        for extension in ["", ";", ";x", ";x=\"", " "] {
            // The first line ends here, or goes on to the size of the second.
            add(
                "TERM.EXT",
                &format!("2{extension}{end}xx\r\n{size}\r\n{inner}\r\n0\r\n\r\n"),
            );
        }
        // The end of a chunk's data is longer or shorter than two bytes.
        add(
            "SPILL",
            &format!("5\r\nAAAAA{end}{size}\r\n{inner}\r\n0\r\n\r\n"),
        );
        add(
            "SPILL",
            &format!("5\r\nAAAAA{end}0\r\n\r\n{}", hidden_request(whole)),
        );
        add(
            "SPILL",
            &format!("5{end}AAAAA\r\n0\r\n\r\n{}", hidden_request(whole)),
        );
        add("LAST", &format!("0{end}\r\n{}", hidden_request(whole)));
        add(
            "LAST",
            &format!("0\r\n{end}{}\r\n\r\n", hidden_request(whole)),
        );
        add(
            "TRAILER",
            &format!("0\r\nX: y{end}{end}{}\r\n", hidden_request(whole)),
        );
        add(
            "TRAILER",
            &format!("0\r\nX: y{end}{}\r\n", hidden_request(whole)),
        );
    }
}

/// Sizes that parsers read as different numbers.
fn add_chunk_sizes(cases: &mut Vec<AttackCase>) {
    let hidden = hidden_request(true);
    let inner = format!("0\r\n\r\n{hidden}");
    let size = inner.len();
    let sizes = [
        format!("0x{size:x}"),
        format!("+{size:x}"),
        format!("-{size:x}"),
        format!(" {size:x}"),
        format!("\t{size:x}"),
        format!("0{size:x}"),
        format!("{size:X}"),
        format!("{size:x} "),
        format!("{size:x}\t"),
        format!("{size:x}\u{b}"),
        format!("{size:x}\0"),
        format!("{size:x}x"),
        format!("{size:x},0"),
        format!("{size:x} 0"),
        format!("0 {size:x}"),
        format!("0;{size:x}"),
        format!("1{size:016x}"),
        format!("f{size:016x}"),
        format!("{size:032x}"),
        format!("{size:x};x=\"\r\n0\r\n\r\n\""),
        format!("{size:x};\r"),
        format!("{size:x};\0"),
        format!("\"{size:x}\""),
        format!("{size:x}."),
        format!("{size:x}_0"),
        format!("0_{size:x}"),
        format!("{size}"),
        String::new(),
    ];
    for line in sizes {
        let body = format!("{line}\r\n{inner}\r\n0\r\n\r\n");
        let text = carry(&CARRIERS[0], &[&format!("{CODING}: chunked")], &body);
        cases.push(AttackCase {
            technique: "SIZE",
            text,
        });
    }
    let names = [
        LENGTH,
        CODING,
        "Host",
        "Connection",
        "X-API-Key",
        "Trailer",
        "Upgrade",
        "Content-Type",
    ];
    for name in names {
        let body = format!("0\r\n{name}: {}\r\n\r\n{hidden}", hidden.len());
        let text = carry(
            &CARRIERS[0],
            &[&format!("{CODING}: chunked"), &format!("Trailer: {name}")],
            &body,
        );
        cases.push(AttackCase {
            technique: "TRAILER",
            text,
        });
    }
}

/// A request in a header's value, its name, or between headers.
fn add_hidden_in_heads(cases: &mut Vec<AttackCase>, end: &str) {
    let mut add = |framing: &str| {
        let text = carry(&CARRIERS[0], &[framing, "X-Last: y"], "");
        cases.push(AttackCase {
            technique: "HEAD",
            text,
        });
    };
    let hidden = format!("GET /smuggled HTTP/1.1{end}Host: x{end}{end}");
    add(&format!("X: y{end}{end}{hidden}"));
    add(&format!("X: y{end}\r\n{hidden}"));
    add(&format!("X: y\r\n{end}{hidden}"));
    add(&format!("X{end}{end}{hidden}: y"));
}

/// A request in a request's target, its method or its version, and bytes before and between requests.
fn add_hidden_in_lines(cases: &mut Vec<AttackCase>) {
    let mut add = |text: String| {
        cases.push(AttackCase {
            technique: "LINE",
            text,
        })
    };
    let headers = ["Host: x", "X-API-Key: valid-key"];
    // The last but two is U+010D U+010A in UTF-8, whose low bytes are CR LF.
    let more = ["%0d%0a", "%0a", "\u{c4}\u{8d}\u{c4}\u{8a}", "\t", " "];
    for end in ENDS.iter().chain(&more) {
        let hidden = format!("{end}GET /smuggled HTTP/1.1{end}{end}");
        add(head(&format!("GET /case{hidden} HTTP/1.1"), &headers));
        add(head(&format!("GET /case HTTP/1.1{hidden}"), &headers));
        add(head(
            &format!("GET /case HTTP/1.1{end}Host: x{end}{end}GET /smuggled HTTP/1.1"),
            &headers,
        ));
        add(head(&format!("GET{hidden}/case HTTP/1.1"), &headers));
        add(format!("{hidden}{}", head("GET /case HTTP/1.1", &headers)));
        add(format!("{}{hidden}", head("GET /case HTTP/1.1", &headers)));
        add(format!(
            "GET /case{end}{end}{}",
            head("GET /case HTTP/1.1", &headers)
        ));
        add(format!(
            "GET /case?apikey=valid-key{end}{end}{}",
            head("GET /smuggled HTTP/1.1", &["Host: x"])
        ));
    }
    let absolute = [
        "http://x/smuggled",
        "http://x:80/smuggled",
        "//x/smuggled",
        "x:80",
        "*",
        "http://x@y/smuggled",
    ];
    for target in absolute {
        for method in ["GET", "CONNECT", "OPTIONS", "TRACE"] {
            let line = format!("{method} {target} HTTP/1.1");
            add(head(&line, &["Host: x"]));
            add(head(
                &line,
                &[
                    "Host: x",
                    "Connection: close, X-API-Key",
                    "X-API-Key: other",
                ],
            ));
        }
    }
}
