//! Each rule of the selection by example, and what holds whatever was found.

use proptest::prelude::*;

use super::super::testing::{answer, backend, service};
use super::*;
use crate::settings::{Decode, ZookeeperDiscovery};

fn ports(selection: &Selection) -> Vec<u16> {
    let members = selection.members.iter();
    members.map(|member| member.port).collect()
}

fn weights(selection: &Selection) -> Vec<(u16, Option<u16>)> {
    let members = selection.members.iter();
    members.map(|member| (member.port, member.weight)).collect()
}

fn reasons(selection: &Selection) -> Vec<(&str, Reason)> {
    let rejects = selection.rejects.iter();
    rejects
        .map(|reject| (reject.source.as_str(), reject.reason))
        .collect()
}

/// Selects without canary.
fn choose(service: &Service, main: &Discovered, previous: &[Arc<Backend>]) -> Selection {
    select(service, false, main, None, previous)
}

fn zookeeper() -> Discovery {
    Discovery::Zookeeper(ZookeeperDiscovery {
        hosts: vec!["zk:2181".into()],
        path: "/nerve".into(),
        decode: Decode::Nerve,
        generator_config_path: None,
    })
}

fn canary(weight: u8) -> Canary {
    Canary {
        discovery: Discovery::Base,
        weight,
    }
}

#[test]
fn members_are_what_was_found_in_the_order_of_registration() {
    let found = answer(vec![
        backend(3, Some(30)),
        backend(1, Some(31)),
        backend(2, None),
    ]);
    assert_eq!(ports(&choose(&service("s"), &found, &[])), [2, 3, 1]);
}

#[test]
fn the_newest_registration_of_an_endpoint_stands_for_it() {
    let found = answer(vec![
        backend(1, Some(9)),
        backend(1, Some(12)),
        backend(1, None),
        backend(2, Some(3)),
    ]);
    let selection = choose(&service("s"), &found, &[]);
    let ids: Vec<Option<u64>> = selection.members.iter().map(|member| member.id).collect();
    assert_eq!(ids, [Some(12), Some(3)]);
    let duplicate = Reason::Duplicate;
    assert_eq!(
        reasons(&selection),
        [("/members/9", duplicate), ("written", duplicate)]
    );
}

#[test]
fn one_address_written_in_two_ways_is_one_endpoint() {
    let at = |host: &str, id| {
        let mut backend = Backend::new(host, 80, format!("/{id}")).unwrap();
        backend.id = Some(id);
        Arc::new(backend)
    };
    let found = answer(vec![
        at("::1", 1),
        at("0:0:0:0:0:0:0:1", 2),
        at("::ffff:10.0.0.1", 3),
        at("10.0.0.1", 4),
        at("Web.example.com", 5),
        at("web.EXAMPLE.com.", 6),
    ]);
    let selection = choose(&service("s"), &found, &[]);
    let ids: Vec<Option<u64>> = selection.members.iter().map(|member| member.id).collect();
    assert_eq!(ids, [Some(2), Some(4), Some(6)]);
}

#[test]
fn label_filters_must_all_hold() {
    let labelled = |port, labels: &[(&str, &str)]| {
        let mut backend = backend(port, Some(u64::from(port)));
        let labels = labels
            .iter()
            .map(|&(label, value)| (label.into(), value.into()));
        Arc::make_mut(&mut backend)
            .rare
            .edit(|rare| rare.labels = labels.collect());
        backend
    };
    let found = answer(vec![
        labelled(1, &[("az", "a"), ("state", "ok")]),
        labelled(2, &[("az", "b")]),
        labelled(3, &[("az", "a"), ("state", "bad")]),
        labelled(4, &[]),
        labelled(5, &[("az", "a")]),
    ]);
    let filter = |label: &str, value: &str, equals| LabelFilter {
        label: label.into(),
        value: value.into(),
        equals,
    };
    let mut service = service("s");
    service.label_filters = vec![filter("az", "a", true), filter("state", "bad", false)];
    let selection = choose(&service, &found, &[backend(9, Some(9))]);
    assert_eq!(ports(&selection), [1, 5]);
    assert_eq!(selection.rejects.len(), 3);
    assert_eq!(selection.rejects[0].reason, Reason::Label);

    service.label_filters = vec![filter("az", "nowhere", true)];
    let none = choose(&service, &found, &[backend(9, Some(9))]);
    assert!(none.members.is_empty(), "filtered out is not unknown");
}

#[test]
fn nothing_found_means_default_servers_then_previous_members_then_none() {
    let previous = [backend(7, Some(7))];
    let mut service = service("s");
    let empty = answer(Vec::new());
    assert_eq!(ports(&choose(&service, &empty, &previous)), [7]);
    service.use_previous_backends = false;
    assert!(choose(&service, &empty, &previous).members.is_empty());
    service.default_servers = vec![backend(5, None)];
    assert_eq!(ports(&choose(&service, &empty, &previous)), [5]);
    service.use_previous_backends = true;
    assert_eq!(ports(&choose(&service, &empty, &previous)), [5]);
}

#[test]
fn as_long_as_the_source_is_silent_members_stay() {
    let previous = [backend(7, Some(7))];
    let mut service = service("s");
    service.use_previous_backends = false;
    service.default_servers = vec![backend(5, None)];
    let mut silent = answer(vec![backend(1, None)]);
    silent.synced = None;
    assert_eq!(ports(&choose(&service, &silent, &previous)), [7]);
    assert_eq!(ports(&choose(&service, &silent, &[])), [5]);
    service.keep_default_servers = true;
    assert_eq!(ports(&choose(&service, &silent, &previous)), [7, 5]);
}

#[test]
fn base_has_its_default_servers_and_remembers_nothing() {
    let mut service = service("s");
    service.discovery = Discovery::Base;
    assert!(
        choose(&service, &answer(Vec::new()), &[backend(7, None)])
            .members
            .is_empty()
    );
    service.default_servers = vec![backend(6, None), backend(5, None)];
    let selection = choose(&service, &answer(Vec::new()), &[backend(7, None)]);
    assert_eq!(ports(&selection), [6, 5], "as they were written");
}

#[test]
fn default_servers_are_kept_beside_what_was_found() {
    let mut service = service("s");
    service.keep_default_servers = true;
    service.default_servers = vec![backend(5, None), backend(1, None)];
    let selection = choose(&service, &answer(vec![backend(1, Some(1))]), &[]);
    assert_eq!(ports(&selection), [1, 5]);
    assert_eq!(selection.members[0].id, Some(1));
}

#[test]
fn the_port_is_overridden_for_what_was_found_and_kept_default_servers() {
    let mut service = service("s");
    service.backend_port_override = Some(80);
    service.default_servers = vec![Arc::new(Backend::new("10.0.0.9", 5, "written").unwrap())];
    let found = answer(vec![backend(1, Some(1)), backend(2, Some(2))]);
    let selection = choose(&service, &found, &[]);
    assert_eq!(ports(&selection), [80], "two of one host are one");
    assert_eq!(selection.members[0].id, Some(2));
    assert_eq!(ports(&choose(&service, &answer(Vec::new()), &[])), [5]);
    service.keep_default_servers = true;
    assert_eq!(ports(&choose(&service, &found, &[])), [80, 80]);
}

#[test]
fn the_leader_is_the_one_with_the_smallest_id() {
    let mut service = service("s");
    service.leader_election = true;
    let found = answer(vec![
        backend(1, Some(5)),
        backend(2, Some(3)),
        backend(3, Some(4)),
    ]);
    let selection = choose(&service, &found, &[]);
    assert_eq!(ports(&selection), [2]);
    assert_eq!(selection.trouble, None);
    assert_eq!(selection.rejects.len(), 2);
}

#[test]
fn without_ids_nobody_new_is_elected() {
    let mut service = service("s");
    service.leader_election = true;
    let found = answer(vec![backend(1, Some(5)), backend(2, None)]);
    let selection = choose(&service, &found, &[]);
    assert!(selection.members.is_empty());
    assert!(selection.trouble.unwrap().contains("10.0.0.1:2"));
    let selection = choose(&service, &found, &[backend(1, Some(5))]);
    assert_eq!(ports(&selection), [1], "who led still does");
    let gone = choose(&service, &found, &[backend(8, Some(1))]);
    assert!(gone.members.is_empty(), "who is gone does not");
}

#[test]
fn canaries_get_their_share() {
    let mut service = service("s");
    service.canary = Some(canary(10));
    let mut own = backend(2, Some(2));
    Arc::make_mut(&mut own).weight = Some(50);
    let main = answer(vec![backend(1, Some(1)), own, backend(4, Some(4))]);
    let mut heavy = backend(3, Some(1));
    Arc::make_mut(&mut heavy).weight = Some(200);
    Arc::make_mut(&mut heavy)
        .rare
        .edit(|rare| rare.options = Some("weight 200 backup".into()));
    let other = answer(vec![heavy, backend(4, Some(9))]);
    let selection = select(&service, false, &main, Some(&other), &[]);
    assert_eq!(
        weights(&selection),
        [(1, Some(100)), (2, Some(50)), (3, Some(10)), (4, Some(10))]
    );
    assert_eq!(selection.members[2].rare.options.as_deref(), Some("backup"));
    assert_eq!(reasons(&selection), [("/members/4", Reason::Duplicate)]);

    let again = select(&service, false, &main, Some(&other), &selection.members);
    assert_eq!(again, selection, "it settles");
    let gone = select(
        &service,
        false,
        &main,
        Some(&answer(Vec::new())),
        &selection.members,
    );
    assert_eq!(ports(&gone), [1, 2, 4]);
}

#[test]
fn canaries_stay_until_their_source_has_answered() {
    let mut service = service("s");
    service.canary = Some(canary(10));
    let main = answer(vec![backend(1, Some(1))]);
    let other = answer(vec![backend(3, Some(1))]);
    let before = select(&service, false, &main, Some(&other), &[]);
    let silent = Discovered::default();
    let again = select(&service, false, &main, Some(&silent), &before.members);
    assert_eq!(weights(&again), [(1, Some(100)), (3, Some(10))]);
    let gone = answer(vec![backend(2, Some(2))]);
    let others = select(&service, false, &gone, Some(&silent), &before.members);
    assert_eq!(ports(&others), [2, 3], "only canaries are remembered");
}

#[test]
fn registered_weights_count_where_the_configuration_says_so() {
    let mut member = backend(1, Some(1));
    Arc::make_mut(&mut member).weight = Some(7);
    Arc::make_mut(&mut member)
        .rare
        .edit(|rare| rare.options = Some("check weight 3".into()));
    let found = answer(vec![member]);
    let mut service = service("s");
    service.discovery = zookeeper();
    let without = select(&service, false, &found, None, &[]);
    assert_eq!(weights(&without), [(1, None)]);
    assert_eq!(
        without.members[0].rare.options.as_deref(),
        Some("check weight 3")
    );
    let with = select(&service, true, &found, None, &[]);
    assert_eq!(weights(&with), [(1, Some(7))]);
    assert_eq!(with.members[0].rare.options.as_deref(), Some("check"));
    service.discovery = Discovery::File("/list".into());
    let file = select(&service, false, &found, None, &[]);
    assert_eq!(weights(&file), [(1, Some(7))], "it was written to be used");
}

#[test]
fn a_canary_is_not_remembered_as_the_leader() {
    let mut service = service("s");
    service.leader_election = true;
    service.canary = Some(canary(10));
    let canary = answer(vec![backend(2, Some(1))]);
    let led = select(
        &service,
        false,
        &answer(vec![backend(1, Some(5))]),
        Some(&canary),
        &[],
    );
    let empty = answer(Vec::new());
    let after = select(&service, false, &empty, Some(&canary), &led.members);
    assert_eq!(after.members, led.members);
}

/// Few hosts, ports and ids, so that they meet.
fn any_backend() -> impl Strategy<Value = Arc<Backend>> {
    let host = prop::sample::select(vec![
        "10.0.0.1",
        "a.example.com",
        "A.example.com",
        "::1",
        "0::1",
    ]);
    let label = prop::sample::select(vec!["", "a", "b"]);
    let id = prop::option::weighted(0.9, 0..6u64);
    (host, 1..5u16, id, label, prop::option::of(0..257u16)).prop_map(
        |(host, port, id, label, weight)| {
            let mut backend = Backend::new(host, port, format!("/{host}/{id:?}")).unwrap();
            backend.id = id;
            backend.weight = weight;
            if !label.is_empty() {
                backend
                    .rare
                    .edit(|rare| rare.labels = [("az".into(), label.into())].into());
            }
            Arc::new(backend)
        },
    )
}

fn any_backends() -> impl Strategy<Value = Vec<Arc<Backend>>> {
    prop_oneof![
        1 => Just(Vec::new()),
        4 => prop::collection::vec(any_backend(), 0..12),
    ]
}

/// An answer, or the silence before the first.
fn any_answer() -> impl Strategy<Value = Discovered> {
    (any_backends(), prop::bool::weighted(0.8)).prop_map(|(backends, answered)| {
        let mut found = answer(backends);
        found.synced = found.synced.filter(|_| answered);
        found
    })
}

prop_compose! {
    fn any_service()(
        filter in any::<Option<bool>>(),
        default_servers in prop::collection::vec(any_backend(), 0..3),
        flags in prop::array::uniform4(any::<bool>()),
        port in prop::option::weighted(0.2, Just(80)),
        share in prop::option::of(0..=100u8),
    ) -> Service {
        let mut service = service("s");
        service.discovery = if flags[3] { zookeeper() } else { Discovery::File("/list".into()) };
        service.label_filters = filter
            .map(|equals| LabelFilter { label: "az".into(), value: "a".into(), equals })
            .into_iter()
            .collect();
        service.default_servers = default_servers;
        service.keep_default_servers = flags[0];
        service.use_previous_backends = flags[1];
        service.leader_election = flags[2];
        service.backend_port_override = port;
        service.canary = share.map(canary);
        service
    }
}

proptest! {
    #[test]
    fn no_endpoint_is_a_member_twice(
        service in any_service(), nerve in any::<bool>(),
        main in any_answer(), other in any_answer(), previous in any_backends(),
    ) {
        let selection = select(&service, nerve, &main, Some(&other), &previous);
        let endpoints: BTreeSet<_> = selection.members.iter().map(|backend| endpoint(backend)).collect();
        prop_assert_eq!(endpoints.len(), selection.members.len());
    }

    #[test]
    fn the_order_of_findings_does_not_matter(
        service in any_service(), nerve in any::<bool>(),
        (main, shuffled) in any_backends().prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
        (other, mixed) in any_backends().prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
        previous in any_backends(),
    ) {
        let one = select(&service, nerve, &answer(main), Some(&answer(other)), &previous);
        let two = select(&service, nerve, &answer(shuffled), Some(&answer(mixed)), &previous);
        prop_assert_eq!(one, two);
    }

    #[test]
    fn without_change_nothing_changes(
        service in any_service(), nerve in any::<bool>(),
        main in any_answer(), other in any_answer(), previous in any_backends(),
    ) {
        let mut first = select(&service, nerve, &main, Some(&other), &previous);
        if main.synced.is_none() {
            // Members of before that filters exclude now may leave room for default servers.
            first = select(&service, nerve, &main, Some(&other), &first.members);
        }
        let mut second = select(&service, nerve, &main, Some(&other), &first.members);
        if service.canary.as_ref().is_some_and(|canary| u16::from(canary.weight) == NORMAL) {
            // A canary of full weight cannot be told from another member of before: they may change places.
            first.members.sort_by(|a, b| order(a, b));
            second.members.sort_by(|a, b| order(a, b));
        }
        prop_assert_eq!(&second.members, &first.members);
    }

    #[test]
    fn a_new_member_leaves_the_others_as_they_are(main in any_backends(), port in 100..200u16) {
        let before = choose(&service("s"), &answer(main.clone()), &[]);
        let mut more = main;
        more.push(backend(port, Some(1000)));
        let after = choose(&service("s"), &answer(more), &before.members);
        for member in &before.members {
            prop_assert!(after.members.contains(member));
        }
        prop_assert_eq!(after.members.len(), before.members.len() + 1);
    }
}
