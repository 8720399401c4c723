//! Whatever members and registries say, the file gains nothing but the server lines it should have.

use proptest::prelude::*;

use super::*;

/// Text as somebody would send it who wants more than a server.
fn hostile() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[ -~\\n\\r\\t]{0,40}",
        "(a|1|\\.|_|:|-| |weight|backup|check){0,12}",
        Just("x\n\tserver evil 6.6.6.6:66\nbackend evil".to_owned()),
        Just("check weight 5 backup".to_owned()),
        Just(" \"back\"end evil".to_owned()),
        Just("\\x66rontend evil".to_owned()),
        Just(".if 0".to_owned()),
        Just("#".to_owned()),
        Just("a \\".to_owned()),
        Just("\"".to_owned()),
    ]
}

prop_compose! {
    fn occupant()(
        host in hostile(),
        name in proptest::option::of(hostile()),
        options in proptest::option::of(hostile()),
        label in hostile(),
        source in hostile(),
        port in any::<u16>(),
        weight in proptest::option::of(any::<u16>()),
        server_id in proptest::option::of(0_u32..4),
        address in any::<std::net::IpAddr>(),
    ) -> Occupant {
        let mut backend = Backend::new("h", 1, source).unwrap();
        backend.rare.edit(|rare| {
            rare.labels = [(label.clone(), label)].into();
            rare.name = name.map(String::into_boxed_str);
            rare.options = options.map(String::into_boxed_str);
            rare.server_id = server_id;
        });
        Occupant {
            backend: Arc::new(Backend {
                host: host.into(),
                port,
                ..backend
            }),
            address,
            weight,
            admin: Admin::Ready,
        }
    }
}

proptest! {
    #[test]
    fn members_never_gain_a_line_or_a_directive(
        occupants in proptest::collection::vec(proptest::option::weighted(0.9, occupant()), 0..6),
        is_named in any::<bool>(),
    ) {
        let team = roster(occupants);
        let service = if is_named { named("a") } else { slotted("a") };
        let empty = roster(vec![None; team.servers.len()]);
        let rendered = one(&haproxy(), &service, &team);
        let base = one(&haproxy(), &service, &empty);
        let others = |rendered: &Rendered| -> Vec<String> {
            let text = rendered.text().replace(&rendered.structure, "");
            text.split('\n').filter(|l| !l.starts_with("\tserver")).map(str::to_owned).collect()
        };
        prop_assert_eq!(others(&rendered), others(&base));
        let refused = rendered.findings.len();
        prop_assert!(rendered.findings.iter().all(|finding| words::one_line(&finding.text)));
        let present = team.servers.iter().flatten().count();
        let mut explicit = 0;
        let mut ids = std::collections::BTreeSet::new();
        let mut slots = 0;
        for text in server_lines(&rendered) {
            let words = words::words(&text);
            prop_assert!(text.is_ascii() && words.len() <= words::MAX_WORDS);
            prop_assert_eq!(words.join(" "), text.clone(), "no quote, escape or comment");
            let skip = match words[0].as_str() {
                "server-template" => {
                    let (from, to) = words[2].split_once('-').unwrap();
                    slots += to.parse::<usize>().unwrap() + 1 - from.parse::<usize>().unwrap();
                    prop_assert_eq!(words.last().map(String::as_str), Some("disabled"));
                    continue;
                }
                _ if is_named => {
                    prop_assert_eq!(&words[3], "id");
                    prop_assert!(ids.insert(words[4].clone()));
                    5
                }
                _ => {
                    slots += 1;
                    3
                }
            };
            explicit += 1;
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
            prop_assert!(words[1].chars().all(allowed), "{}", text);
            prop_assert!(words[2].parse::<std::net::SocketAddr>().is_ok());
            prop_assert_eq!(words[skip..skip + 3].join(" "), "check inter 2s");
        }
        prop_assert_eq!(explicit + refused, present);
        prop_assert_eq!(slots, if is_named { 0 } else { team.servers.len() });
    }

    #[test]
    fn lines_of_a_registry_never_leave_their_section(text in hostile()) {
        let mut service = slotted("a");
        let line = Line { text, place: None };
        proxy(&mut service).backend = vec![line.clone()];
        proxy(&mut service).frontend = vec![line.clone()];
        proxy(&mut service).server_options = Some(line.clone());
        proxy(&mut service).bind_options = Some(line.text);
        let rendered = one(&haproxy(), &service, &roster(vec![None; 8]));
        let begins = |line: &str| !line.starts_with('\t') || words::refusal(line).is_some();
        let sections = |text: &str| text.lines().filter(|line| begins(line)).count();
        // Blank, frontend, blank, backend.
        prop_assert_eq!(sections(rendered.stanza("a").unwrap()), 4);
        prop_assert!(rendered.stanza("a").unwrap().lines().count() <= 12);
    }

    #[test]
    fn names_of_different_endpoints_differ(
        a in ("[a_.]{0,3}", "[a-c][a_.-]{0,3}", 1_u16..3), b in ("[a_.]{0,3}", "[a-c][a_.-]{0,3}", 1_u16..3),
    ) {
        let name = |(name, host, port): &(String, String, u16)| {
            let mut backend = Backend::new(host, *port, "").ok()?;
            backend.rare.edit(|rare| rare.name = Some(name.as_str().into()));
            Some(server_name(&backend))
        };
        if let (Some(first), Some(second)) = (name(&a), name(&b)) {
            prop_assert!((a.1 == b.1 && a.2 == b.2) || first != second);
        }
    }
}
