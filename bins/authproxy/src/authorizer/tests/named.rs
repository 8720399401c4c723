//! Hosts and methods that headers name beside Host and the request line.

use super::*;

#[tokio::test]
async fn every_host_that_a_trusted_peer_names_has_to_be_one_of_the_key() {
    let site = site();
    let decided = async |trusted: bool, lines: &[(&str, &str)], hosts: &[&str]| {
        let mut request = Request::get("/").header("x-api-key", "k");
        for (name, value) in [("host", "a.com")].iter().chain(lines) {
            request = request.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let grant = grant(hosts);
        let answer = Ok(KeyLookup::Grant {
            grant,
            stale: false,
        });
        let decided = decide_for_peer(trusted, &site, &parts(request), Some(answer)).await;
        decided.map(|_| ()).map_err(|refused| refused.refusal)
    };
    let ours = &["a.com", "b.com"][..];
    for allowed in [
        &[("x-forwarded-host", "b.com:80, A.com")][..],
        &[("x-forwarded-host", "")],
        &[("x-host", "a.com"), ("x-original-host", "b.com")],
        &[(
            "forwarded",
            "for=1.1.1.1;Host=\"b.com:8080\", for=x;host=a.com",
        )],
        &[("forwarded", "for=\"[::1]\";proto=https")],
        &[("x-forwarded-server", "front7"), ("x-hosts", "c.com")],
    ] {
        assert_eq!(decided(true, allowed, ours).await, Ok(()), "{allowed:?}");
    }
    for other in [
        &[("x-forwarded-host", "c.com")][..],
        &[("x-forwarded-host", "a.com, c.com")],
        &[("x-forwarded-host", "c.com, a.com")],
        &[("x-forwarded-host", ", a.com")],
        &[("x-forwarded-host", ""), ("x-forwarded-host", "a.com")],
        &[("x-forwarded-host", ""), ("x-forwarded-host", "")],
        &[("x-forwarded-host", "a.com"), ("x-forwarded-host", "c.com")],
        &[("x-forwarded-host", "a.com\u{e9}")],
        &[("x-host", "c.com")],
        &[("x-original-host", "c.com")],
        &[("x-http-host-override", "c.com")],
        &[("forwarded", "host=c.com")],
        &[("forwarded", "host=a.com, host=c.com")],
        &[("forwarded", "for=\"a;host=b.com\"; HOST = c.com")],
        &[("forwarded", "host=\"a.com,c.com\"")],
        &[("forwarded", "host=")],
        &[("forwarded", "host=a.com;x=\u{e9}")],
    ] {
        let refused = Err(RequestError::HostNotAllowed);
        assert_eq!(decided(true, other, ours).await, refused, "{other:?}");
        assert_eq!(
            decided(false, other, ours).await,
            Ok(()),
            "it does not reach the server"
        );
        assert_eq!(
            decided(true, other, &[]).await,
            Ok(()),
            "a key for all hosts"
        );
    }
}

#[tokio::test]
async fn a_method_that_a_header_names_is_judged_too() {
    let site = site();
    let decided = async |name: &str, value: &str, methods: &[&str]| {
        let mut grant = (*grant(&[])).clone();
        grant.methods = methods.iter().map(|&one| one.to_owned()).collect();
        let answer = Ok(KeyLookup::Grant {
            grant: Arc::new(grant),
            stale: false,
        });
        let request = Request::get("/").header("x-api-key", "k");
        let request = parts(request.header(name, value));
        let decided = decide_trusted(&site, &request, Some(answer)).await;
        decided.map(|_| ()).map_err(|refused| refused.refusal)
    };
    for name in [
        "x-http-method-override",
        "X_HTTP_Method",
        "x-method-override",
    ] {
        for value in ["POST", "post"] {
            let judged = decided(name, value, &[]).await;
            assert_eq!(judged, Err(RequestError::MissingRight), "{name} {value}");
        }
        assert_eq!(decided(name, "PUT", &[]).await, Ok(()), "{name}");
        assert_eq!(
            decided(name, "put", &["GET", "PUT"]).await,
            Ok(()),
            "{name}"
        );
        let judged = decided(name, "DELETE", &["GET"]).await;
        assert_eq!(judged, Err(RequestError::MethodNotAllowed), "{name}");
        for list in ["PUT, POST", "", "P\tT"] {
            let judged = decided(name, list, &[]).await;
            assert!(
                matches!(judged, Err(RequestError::InvalidRequest(_))),
                "{list}: {judged:?}"
            );
        }
    }
    assert_eq!(decided("x-http-methods", "POST", &["GET"]).await, Ok(()));
}
