//! Headers that override the host and the method.

use super::*;

#[tokio::test]
async fn host_override_of_trusted_peer_must_be_allowed() {
    let site = site();
    let decision = async |trusted: bool, lines: &[(&str, &str)], hosts: &[&str]| {
        let mut request = Request::get("/").header("x-api-key", "k");
        for (name, value) in [("host", "a.com")].iter().chain(lines) {
            request = request.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let grant = grant(hosts);
        let answer = Ok(KeyLookup::Grant {
            grant,
            stale: false,
        });
        let decision = decide_for_peer(trusted, &site, &parts(request), Some(answer)).await;
        decision.map(|_| ()).map_err(|denied| denied.error)
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
        assert_eq!(decision(true, allowed, ours).await, Ok(()), "{allowed:?}");
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
        let denied = Err(RequestError::HostNotAllowed);
        assert_eq!(decision(true, other, ours).await, denied, "{other:?}");
        assert_eq!(
            decision(false, other, ours).await,
            Ok(()),
            "it does not reach the upstream"
        );
        assert_eq!(
            decision(true, other, &[]).await,
            Ok(()),
            "a key without a restriction of hosts"
        );
    }
}

#[tokio::test]
async fn method_override_must_be_allowed() {
    let site = site();
    let decision = async |name: &str, value: &str, methods: &[&str]| {
        let mut grant = (*grant(&[])).clone();
        grant.methods = methods.iter().map(|&one| one.to_owned()).collect();
        let answer = Ok(KeyLookup::Grant {
            grant: Arc::new(grant),
            stale: false,
        });
        let request = Request::get("/").header("x-api-key", "k");
        let request = parts(request.header(name, value));
        let decision = decide_trusted(&site, &request, Some(answer)).await;
        decision.map(|_| ()).map_err(|denied| denied.error)
    };
    for name in [
        "x-http-method-override",
        "X_HTTP_Method",
        "x-method-override",
    ] {
        for value in ["POST", "post"] {
            let result = decision(name, value, &[]).await;
            assert_eq!(result, Err(RequestError::MissingRight), "{name} {value}");
        }
        assert_eq!(decision(name, "PUT", &[]).await, Ok(()), "{name}");
        assert_eq!(
            decision(name, "put", &["GET", "PUT"]).await,
            Ok(()),
            "{name}"
        );
        let result = decision(name, "DELETE", &["GET"]).await;
        assert_eq!(result, Err(RequestError::MethodNotAllowed), "{name}");
        for list in ["PUT, POST", "", "P\tT"] {
            let result = decision(name, list, &[]).await;
            assert!(
                matches!(result, Err(RequestError::InvalidRequest(_))),
                "{list}: {result:?}"
            );
        }
    }
    assert_eq!(decision("x-http-methods", "POST", &["GET"]).await, Ok(()));
}
