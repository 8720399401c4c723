//! Keys in headers and queries, and random queries compared with the parser of the url crate.

use hyper::Request;
use hyper::header::HeaderName;
use proptest::prelude::*;

use super::*;

fn credentials() -> KeySources {
    KeySources {
        header: HeaderName::from_static("x-api-key"),
        parameter: "apikey".to_owned(),
        hide: false,
    }
}

/// The key of a request with this target and these headers.
fn extract(target: &str, headers: &[(&str, &str)]) -> Result<Option<KeyHash>, RequestError> {
    let mut request = Request::get(target);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    extract_key(&request.body(()).unwrap().into_parts().0, &credentials())
}

#[test]
fn key_is_extracted_from_every_place() {
    let is_k = Ok(Some(KeyHash::of(b"k y")));
    for (target, headers) in [
        ("/", &[("X-API-Key", "k y")][..]),
        ("/", &[("Authorization", "Bearer k y")]),
        ("/", &[("Authorization", "bEARER   k y")]),
        ("/", &[("authorization", "ApiKey k y")]),
        ("/?apikey=k%20y", &[]),
        ("/?a=1&api%6Bey=k+y&b", &[]),
        ("/?a=1;apikey=k%20y;b=2", &[]),
        // The same key in several places; empty values.
        (
            "/?apikey=k+y",
            &[("x-api-key", "k y"), ("authorization", "Bearer k y")],
        ),
        (
            "/?apikey=",
            &[("x-api-key", "k y"), ("authorization", "Bearer ")],
        ),
        // Other schemes and parameters.
        (
            "/",
            &[("x-api-key", "k y"), ("authorization", "Basic dTpw")],
        ),
        (
            "/?APIKEY=x&apikey%5B%5D=x&apikey%253D=x&xapikey=x",
            &[("x-api-key", "k y")],
        ),
    ] {
        assert_eq!(extract(target, headers), is_k, "{target} {headers:?}");
    }
    for (target, headers) in [
        ("/", &[][..]),
        ("/?apikey", &[]),
        (
            "/?apikey=",
            &[("x-api-key", ""), ("authorization", "Bearer")],
        ),
        (
            "/",
            &[("authorization", "Basic a"), ("authorization", "Digest b")],
        ),
        ("/", &[("authorization", "Bearerk")]),
        ("/apikey=k", &[]),
    ] {
        assert_eq!(extract(target, headers), Ok(None), "{target} {headers:?}");
    }
}

#[test]
fn key_in_query_is_decoded_once() {
    for (target, key) in [
        ("/?apikey=%2541", &b"%41"[..]),
        ("/?apikey=%", b"%"),
        ("/?apikey=%4", b"%4"),
        ("/?apikey=%zz%41", b"%zzA"),
        ("/?apikey=%+1", b"% 1"),
        ("/?apikey=a=b", b"a=b"),
        ("/?apikey=%ff%00", b"\xff\0"),
        ("/?apikey=%C3%BC", "ü".as_bytes()),
    ] {
        assert_eq!(extract(target, &[]), Ok(Some(KeyHash::of(key))), "{target}");
    }
}

#[test]
fn different_or_repeated_keys_are_ambiguous() {
    for (target, headers) in [
        ("/", &[("x-api-key", "k"), ("x-api-key", "k")][..]),
        ("/", &[("x-api-key", "k"), ("x-api-key", "")]),
        (
            "/",
            &[("authorization", "Bearer k"), ("authorization", "Bearer k")],
        ),
        (
            "/",
            &[("authorization", "Basic a"), ("authorization", "ApiKey k")],
        ),
        ("/", &[("x-api-key", "k"), ("authorization", "Bearer j")]),
        ("/?apikey=j", &[("x-api-key", "k")]),
        ("/?apikey=k&apikey=k", &[]),
        ("/?apikey=k&apikey=", &[]),
        ("/?apikey&apikey=k", &[]),
        ("/?apikey=k;apikey=k", &[]),
        ("/?a=1;apikey=j&apikey=k", &[]),
        ("/?apikey=k&%61pikey=k", &[]),
    ] {
        assert_eq!(
            extract(target, headers),
            Err(RequestError::AmbiguousKey),
            "{target} {headers:?}"
        );
    }
}

#[test]
fn parameter_next_to_semicolon_is_marked() {
    for (query, semicolon) in [
        ("host=a", false),
        ("x;y&host=a&y;x", false),
        ("x;host=a", true),
        ("host=a;x", true),
    ] {
        let found = find_parameter(query, "host").unwrap().unwrap();
        assert_eq!(
            (&*found.value, found.semicolon),
            (&b"a"[..], semicolon),
            "{query}"
        );
    }
    assert_eq!(find_parameter("hosts=a", "host"), Ok(None));
}

#[test]
fn removing_parameter_keeps_the_rest_of_the_query() {
    for (query, rest) in [
        ("apikey=k", ""),
        ("apikey=k&a=%41", "a=%41"),
        ("a=%41&apikey=k", "a=%41"),
        ("a=1&apikey=k&b=;2", "a=1&b=;2"),
        ("a=1;apikey=k&b", "a=1&b"),
        ("a=1&apikey=k;b", "a=1;b"),
        ("&apikey=k&&b&", "&&b&"),
        ("apikey=k;%61pikey&apikey=", ""),
        ("xapikey=k&apikey2=k", "xapikey=k&apikey2=k"),
    ] {
        assert_eq!(remove_parameter(query, "apikey"), rest, "{query}");
    }
}

#[test]
fn keys_are_masked_in_queries_and_paths() {
    for (query, masked) in [
        ("apikey=k", "apikey=***"),
        ("a=k&%61pikey=k%20&b=2", "a=k&%61pikey=***&b=2"),
        (
            "apikey=k;apikey=long-one=&apikey=&apikey",
            "apikey=***;apikey=***&apikey=&apikey",
        ),
        ("a=1", "a=1"),
        (
            "ApiKey=k&APIKEY=k&aPI%6bey=k",
            "ApiKey=***&APIKEY=***&aPI%6bey=***",
        ),
        (
            "api_key=k&Api-Key=k&X-API-Key=k",
            "api_key=***&Api-Key=***&X-API-Key=***",
        ),
        ("apikeys=k&xapi=k", "apikeys=k&xapi=k"),
        ("a=1?apikey=k&b=2", "a=1?apikey=***&b=2"),
        ("a=1%26api_key=k=", "a=1%26api_key=***"),
        (
            "a=h%3A%2F%2Fb%3FX-Api%2DKey%3dk",
            "a=h%3A%2F%2Fb%3FX-Api%2DKey%3d***",
        ),
        ("apikey%3Dk&apikey%3d", "apikey%3D***&apikey%3d"),
        ("apikey[]=k&api+key=k", "apikey[]=***&api+key=***"),
    ] {
        assert_eq!(mask_query(query, &credentials()), masked, "{query}");
    }
    for (path, masked) in [
        ("/a&ApiKey=k/y", "/a&ApiKey=***"),
        ("/a;apikey=k", "/a;apikey=***"),
        ("/a%3Fapikey%3Dk", "/a%3Fapikey%3D***"),
        ("/apikey/apikey=k", "/apikey/apikey=***"),
        ("/apikey/%3d", "/apikey/%3d"),
        ("/a=apikey", "/a=apikey"),
        ("/a&api_key=k", "/a&api_key=***"),
        ("/a%3Fapi%5Fkey=k", "/a%3Fapi%5Fkey=***"),
        ("/a&X-API-Key=k", "/a&X-API-Key=***"),
        ("/apikey=", "/apikey="),
    ] {
        assert_eq!(mask_path(path, &credentials()), masked, "{path}");
    }
}

proptest! {
    #[test]
    fn queries_parse_as_with_the_url_crate(
        query in r"(apikey|api%6bey|a|%|=|&|;|\+|%4|%41|k){0,12}"
    ) {
        let pairs: Vec<(Vec<u8>, Vec<u8>)> = query
            .split(['&', ';'])
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| {
                // The url crate splits only at `&`, which does not occur in a pair.
                let pair = format!("{name}={value}");
                let (name, value) = url::form_urlencoded::parse(pair.as_bytes()).next().unwrap();
                (name.into_owned().into_bytes(), value.into_owned().into_bytes())
            })
            .filter(|(name, _)| name == b"apikey")
            .collect();
        // The url crate decodes bytes that are not UTF-8 as U+FFFD.
        let read = find_parameter(&query, "apikey").map(|found| {
            found.map(|found| String::from_utf8_lossy(&found.value).into_owned().into_bytes())
        });
        match &pairs[..] {
            [] => prop_assert_eq!(read, Ok(None)),
            [(_, value)] => prop_assert_eq!(read, Ok(Some(value.clone()))),
            _ => prop_assert_eq!(read, Err(DuplicateParameter)),
        }
        let rest = remove_parameter(&query, "apikey");
        prop_assert_eq!(find_parameter(&rest, "apikey"), Ok(None));
        let others = |query: &str| -> Vec<String> {
            segments(query).filter(|segment| !segment.is_named("apikey")).map(|segment| segment.text.to_owned()).collect()
        };
        let segments_left: Vec<String> = segments(&rest).map(|segment| segment.text.to_owned()).collect();
        prop_assert!(rest.is_empty() || segments_left == others(&query));
        let values = |query: &str| -> Vec<String> {
            segments(query).filter(|segment| segment.is_named("apikey")).map(|segment| segment.value().to_owned()).collect()
        };
        prop_assert!(values(&mask_query(&query, &credentials())).iter().all(|value| value.is_empty() || value == "***"));
    }
}
