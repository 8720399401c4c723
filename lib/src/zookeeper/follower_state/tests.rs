//! Events, read results and scans in every relevant order.

use super::*;
use crate::zookeeper::member::MemberError;
use crate::zookeeper::{MemberDecoder as _, MemberErrorKind, MemberResult, payload};

const A: &str = "/aurora/www/prod/a";
const B: &str = "/aurora/www/prod/b";

fn state() -> FollowerState<MemberResult> {
    FollowerState::new(
        PathPattern::new("/aurora/*/prod/*").unwrap(),
        MemberFormat::ServerSet,
        BTreeMap::new(),
    )
}

fn name(number: u64) -> String {
    format!("member_{number:010}")
}

fn event(state: &mut FollowerState<MemberResult>, kind: EventType, path: &str) {
    state.record_event(&WatchEvent {
        kind,
        path: path.to_owned(),
    });
}

/// A member of shard `shard`.
fn child(shard: u32) -> MemberNode {
    let text = format!(r#"{{"status": "ALIVE", "shard": {shard}}}"#);
    let (name, interner) = ("member_0000000000", payload::StringInterner::default());
    let result = payload::decode_payload(MemberFormat::ServerSet, name, text.as_bytes(), &interner);
    MemberNode {
        value: MemberFormat::ServerSet.decode(&A.into(), &name.into(), result),
        immutable: true,
    }
}

fn node(members: &[(u64, u32)]) -> PathNode {
    PathNode {
        exists: true,
        created: 1,
        members: members
            .iter()
            .map(|(number, shard)| (name(*number).as_str().into(), child(*shard)))
            .collect(),
        ..PathNode::default()
    }
}

fn found(nodes: &[(&str, PathNode)]) -> ScanResult<MemberResult> {
    ScanResult {
        nodes: nodes
            .iter()
            .map(|(path, node)| ((*path).into(), node.clone()))
            .collect(),
        problems: BTreeMap::new(),
    }
}

fn all() -> [String; 1] {
    ["/aurora".to_owned()]
}

fn shards(state: &FollowerState<MemberResult>, path: &str) -> Vec<u32> {
    let members = state.paths.get(path).map(|node| node.members.values());
    let members = members.into_iter().flatten().filter_map(MemberNode::member);
    members.filter_map(|member| member.shard).collect()
}

#[test]
fn scan_replaces_changed_paths_and_keeps_equal_ones() {
    let mut state = state();
    state.begin_scan();
    assert_eq!(
        state.merge(&all(), found(&[(A, node(&[(1, 1)])), (B, node(&[]))])),
        (2, vec![])
    );
    assert!(state.take_changed());
    let before = Arc::clone(&state.paths[A]);
    state.begin_scan();
    assert_eq!(state.merge(&all(), found(&[(A, node(&[(1, 1)]))])).0, 1);
    assert!(Arc::ptr_eq(&before, &state.paths[A]));
    assert!(!state.paths.contains_key(B));
    assert!(state.take_changed());
    state.begin_scan();
    assert_eq!(state.merge(&all(), found(&[(A, node(&[(1, 1)]))])).0, 0);
    assert!(!state.take_changed());
}

#[test]
fn event_during_a_scan_takes_priority_over_its_result() {
    let mut state = state();
    state.begin_scan();
    state.merge(&all(), found(&[(A, node(&[(1, 1), (2, 2)]))]));
    state.begin_scan();
    // The scan has listed 1 and 2; then 1 is deleted and 3 created.
    event(
        &mut state,
        EventType::NodeDeleted,
        &format!("{A}/{}", name(1)),
    );
    event(
        &mut state,
        EventType::NodeCreated,
        &format!("{A}/{}", name(3)),
    );
    let requests = state.apply_events();
    assert_eq!(requests.len(), 1);
    assert_eq!(
        state.merge(&all(), found(&[(A, node(&[(1, 1), (2, 2)]))])),
        (0, vec![])
    );
    assert_eq!(shards(&state, A), [2]);
    state.apply_read(&requests[0], ReadResult::Member(Ok(Some(child(3)))));
    assert_eq!(shards(&state, A), [2, 3]);
}

#[test]
fn path_created_or_deleted_during_a_scan_is_scanned_again() {
    let mut state = state();
    state.begin_scan();
    event(&mut state, EventType::NodeCreated, A);
    assert_eq!(state.apply_events().len(), 1);
    let (different, again) = state.merge(&all(), found(&[(A, node(&[(1, 1)])), (B, node(&[]))]));
    assert_eq!((different, again), (1, vec![A.to_owned()]));
    assert!(state.paths[A].exists);
}

#[test]
fn burst_of_events_has_its_net_effect() {
    let mut state = state();
    state.begin_scan();
    state.merge(&all(), found(&[(A, node(&[(1, 1)]))]));
    let member = |number| format!("{A}/{}", name(number));
    // Deleted and created again: read again, and present in between.
    event(&mut state, EventType::NodeDeleted, &member(1));
    event(&mut state, EventType::NodeCreated, &member(1));
    // Created and deleted again: no read.
    event(&mut state, EventType::NodeCreated, &member(2));
    event(&mut state, EventType::NodeDeleted, &member(2));
    // Not a member.
    event(
        &mut state,
        EventType::NodeCreated,
        &format!("{A}/lock-0000000001"),
    );
    event(
        &mut state,
        EventType::NodeCreated,
        "/aurora/www/test/a/member_0000000001",
    );
    event(&mut state, EventType::NodeCreated, "/aurora/www/prod");
    let requests = state.apply_events();
    assert_eq!(requests.len(), 1, "{requests:?}");
    assert_eq!(shards(&state, A), [1]);
    state.apply_read(&requests[0], ReadResult::Member(Ok(Some(child(7)))));
    assert_eq!(shards(&state, A), [7]);
    // An event of a known change causes no read.
    event(&mut state, EventType::NodeCreated, &member(1));
    assert_eq!(state.apply_events(), []);
}

#[test]
fn result_of_an_older_request_is_ignored() {
    let mut state = state();
    let path = format!("{A}/{}", name(1));
    event(&mut state, EventType::NodeCreated, &path);
    let first = state.apply_events().remove(0);
    event(&mut state, EventType::NodeDeleted, &path);
    assert_eq!(state.apply_events(), []);
    state.apply_read(&first, ReadResult::Member(Ok(Some(child(1)))));
    assert!(shards(&state, A).is_empty());
    event(&mut state, EventType::NodeCreated, &path);
    let second = state.apply_events().remove(0);
    state.apply_read(&first, ReadResult::Member(Ok(Some(child(1)))));
    assert!(shards(&state, A).is_empty());
    state.apply_read(&second, ReadResult::Member(Ok(Some(child(2)))));
    assert_eq!(shards(&state, A), [2]);
    state.cancel_work();
    assert!(!state.take_incomplete());
    event(&mut state, EventType::NodeDataChanged, &path);
    let third = state.apply_events().remove(0);
    state.apply_read(
        &third,
        ReadResult::Member(Err(ReadError::Unavailable("gone".to_owned()))),
    );
    assert!(state.take_incomplete(), "it must be found out otherwise");
    assert_eq!(shards(&state, A), [2]);
}

#[test]
fn unreadable_path_keeps_its_members() {
    let mut state = state();
    state.begin_scan();
    state.merge(
        &all(),
        found(&[
            (A, node(&[(1, 1)])),
            ("/aurora/ads/prod/c", node(&[(1, 2)])),
        ]),
    );
    let denied = PathProblem::Unreadable("denied".to_owned());
    let problems = [(A, &denied), ("/aurora/ads", &denied)]
        .map(|(path, problem)| (path.to_owned(), problem.clone()));
    state.begin_scan();
    let found_less = ScanResult {
        nodes: BTreeMap::new(),
        problems: problems.into(),
    };
    assert_eq!(state.merge(&all(), found_less).0, 0);
    assert_eq!(shards(&state, A), [1]);
    assert_eq!(shards(&state, "/aurora/ads/prod/c"), [2]);
    assert_eq!(
        state.problem().as_deref(),
        Some("/aurora/ads: denied (and 1 more)")
    );
    state.begin_scan();
    state.merge(&all(), found(&[(A, node(&[(1, 1)]))]));
    assert_eq!(state.problem(), None);
    assert_eq!(state.paths.len(), 1);
}

#[test]
fn scan_below_one_path_leaves_the_others() {
    let mut state = state();
    state.begin_scan();
    state.merge(&all(), found(&[(A, node(&[(1, 1)])), (B, node(&[(1, 2)]))]));
    state.begin_scan();
    assert_eq!(state.merge(&[A.to_owned()], found(&[])).0, 1);
    assert_eq!(
        state.paths.keys().map(|path| &**path).collect::<Vec<_>>(),
        [B]
    );
}

#[test]
fn members_beyond_the_limit_are_left_out() {
    let mut state = state();
    let refused = MemberNode {
        value: Err(Arc::new(MemberError::new(MemberErrorKind::Malformed, "x"))),
        immutable: true,
    };
    let mut full = node(&[]);
    full.members = (0..MAX_MEMBERS as u64)
        .map(|number| (name(number).as_str().into(), refused.clone()))
        .collect();
    state.begin_scan();
    state.merge(&all(), found(&[(A, full)]));
    event(&mut state, EventType::NodeCreated, &format!("{A}/member_x"));
    let request = state.apply_events().remove(0);
    state.apply_read(&request, ReadResult::Member(Ok(Some(child(1)))));
    assert_eq!(state.paths[A].members.len(), MAX_MEMBERS);
    assert!(state.problem().unwrap().starts_with(A));
}
