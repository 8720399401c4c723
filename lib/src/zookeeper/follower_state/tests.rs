//! Events, answers and scans in every order that matters.

use super::*;
use crate::zookeeper::member::MemberError;
use crate::zookeeper::{MemberDecoder as _, MemberErrorKind, MemberResult, payload};

const A: &str = "/aurora/www/prod/a";
const B: &str = "/aurora/www/prod/b";

fn live() -> FollowerState<MemberResult> {
    FollowerState::new(
        PathPattern::new("/aurora/*/prod/*").unwrap(),
        MemberFormat::ServerSet,
        BTreeMap::new(),
    )
}

fn name(number: u64) -> String {
    format!("member_{number:010}")
}

fn event(live: &mut FollowerState<MemberResult>, kind: EventType, path: &str) {
    live.note(&WatchEvent {
        kind,
        path: path.to_owned(),
    });
}

/// A member that says `shard`.
fn child(shard: u32) -> MemberNode {
    let text = format!(r#"{{"status": "ALIVE", "shard": {shard}}}"#);
    let (name, names) = ("member_0000000000", payload::StringInterner::default());
    let said = payload::read(MemberFormat::ServerSet, name, text.as_bytes(), &names);
    MemberNode {
        value: MemberFormat::ServerSet.decode(&A.into(), &name.into(), said),
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

fn shards(live: &FollowerState<MemberResult>, path: &str) -> Vec<u32> {
    let members = live.paths.get(path).map(|node| node.members.values());
    let members = members.into_iter().flatten().filter_map(MemberNode::member);
    members.filter_map(|member| member.shard).collect()
}

#[test]
fn a_scan_replaces_what_is_known_and_keeps_what_is_equal() {
    let mut live = live();
    live.begin_scan();
    assert_eq!(
        live.merge(&all(), found(&[(A, node(&[(1, 1)])), (B, node(&[]))])),
        (2, vec![])
    );
    assert!(live.take_changed());
    let before = Arc::clone(&live.paths[A]);
    live.begin_scan();
    assert_eq!(live.merge(&all(), found(&[(A, node(&[(1, 1)]))])).0, 1);
    assert!(Arc::ptr_eq(&before, &live.paths[A]));
    assert!(!live.paths.contains_key(B));
    assert!(live.take_changed());
    live.begin_scan();
    assert_eq!(live.merge(&all(), found(&[(A, node(&[(1, 1)]))])).0, 0);
    assert!(!live.take_changed());
}

#[test]
fn what_events_touch_during_a_scan_is_not_the_scans() {
    let mut live = live();
    live.begin_scan();
    live.merge(&all(), found(&[(A, node(&[(1, 1), (2, 2)]))]));
    live.begin_scan();
    // The scan has listed 1 and 2; then 1 goes and 3 comes.
    event(
        &mut live,
        EventType::NodeDeleted,
        &format!("{A}/{}", name(1)),
    );
    event(
        &mut live,
        EventType::NodeCreated,
        &format!("{A}/{}", name(3)),
    );
    let questions = live.apply();
    assert_eq!(questions.len(), 1);
    assert_eq!(
        live.merge(&all(), found(&[(A, node(&[(1, 1), (2, 2)]))])),
        (0, vec![])
    );
    assert_eq!(shards(&live, A), [2]);
    live.answered(&questions[0], ReadResult::Member(Ok(Some(child(3)))));
    assert_eq!(shards(&live, A), [2, 3]);
}

#[test]
fn a_path_that_comes_or_goes_during_a_scan_is_scanned_again() {
    let mut live = live();
    live.begin_scan();
    event(&mut live, EventType::NodeCreated, A);
    assert_eq!(live.apply().len(), 1);
    let (different, again) = live.merge(&all(), found(&[(A, node(&[(1, 1)])), (B, node(&[]))]));
    assert_eq!((different, again), (1, vec![A.to_owned()]));
    assert!(live.paths[A].exists);
}

#[test]
fn a_burst_is_what_it_amounts_to() {
    let mut live = live();
    live.begin_scan();
    live.merge(&all(), found(&[(A, node(&[(1, 1)]))]));
    let member = |number| format!("{A}/{}", name(number));
    // Gone and there again under the same name: read again, and not missing in between.
    event(&mut live, EventType::NodeDeleted, &member(1));
    event(&mut live, EventType::NodeCreated, &member(1));
    // There and gone again: nothing.
    event(&mut live, EventType::NodeCreated, &member(2));
    event(&mut live, EventType::NodeDeleted, &member(2));
    // Not ours.
    event(
        &mut live,
        EventType::NodeCreated,
        &format!("{A}/lock-0000000001"),
    );
    event(
        &mut live,
        EventType::NodeCreated,
        "/aurora/www/test/a/member_0000000001",
    );
    event(&mut live, EventType::NodeCreated, "/aurora/www/prod");
    let questions = live.apply();
    assert_eq!(questions.len(), 1, "{questions:?}");
    assert_eq!(shards(&live, A), [1]);
    live.answered(&questions[0], ReadResult::Member(Ok(Some(child(7)))));
    assert_eq!(shards(&live, A), [7]);
    // An event that tells what is known costs nothing.
    event(&mut live, EventType::NodeCreated, &member(1));
    assert_eq!(live.apply(), []);
}

#[test]
fn an_answer_to_an_older_question_is_not_one() {
    let mut live = live();
    let path = format!("{A}/{}", name(1));
    event(&mut live, EventType::NodeCreated, &path);
    let first = live.apply().remove(0);
    event(&mut live, EventType::NodeDeleted, &path);
    assert_eq!(live.apply(), []);
    live.answered(&first, ReadResult::Member(Ok(Some(child(1)))));
    assert!(shards(&live, A).is_empty());
    event(&mut live, EventType::NodeCreated, &path);
    let second = live.apply().remove(0);
    live.answered(&first, ReadResult::Member(Ok(Some(child(1)))));
    assert!(shards(&live, A).is_empty());
    live.answered(&second, ReadResult::Member(Ok(Some(child(2)))));
    assert_eq!(shards(&live, A), [2]);
    live.interrupt();
    assert!(!live.take_lost());
    event(&mut live, EventType::NodeDataChanged, &path);
    let third = live.apply().remove(0);
    live.answered(
        &third,
        ReadResult::Member(Err(ReadError::Lost("gone".to_owned()))),
    );
    assert!(live.take_lost(), "it must be found out otherwise");
    assert_eq!(shards(&live, A), [2]);
}

#[test]
fn what_cannot_be_read_stays_as_it_was_known() {
    let mut live = live();
    live.begin_scan();
    live.merge(
        &all(),
        found(&[
            (A, node(&[(1, 1)])),
            ("/aurora/ads/prod/c", node(&[(1, 2)])),
        ]),
    );
    let denied = PathProblem::Unreadable("denied".to_owned());
    let problems = [(A, &denied), ("/aurora/ads", &denied)]
        .map(|(path, problem)| (path.to_owned(), problem.clone()));
    live.begin_scan();
    let found_less = ScanResult {
        nodes: BTreeMap::new(),
        problems: problems.into(),
    };
    assert_eq!(live.merge(&all(), found_less).0, 0);
    assert_eq!(shards(&live, A), [1]);
    assert_eq!(shards(&live, "/aurora/ads/prod/c"), [2]);
    assert_eq!(
        live.problem().as_deref(),
        Some("/aurora/ads: denied (and 1 more)")
    );
    live.begin_scan();
    live.merge(&all(), found(&[(A, node(&[(1, 1)]))]));
    assert_eq!(live.problem(), None);
    assert_eq!(live.paths.len(), 1);
}

#[test]
fn a_scan_below_one_path_leaves_the_others() {
    let mut live = live();
    live.begin_scan();
    live.merge(&all(), found(&[(A, node(&[(1, 1)])), (B, node(&[(1, 2)]))]));
    live.begin_scan();
    assert_eq!(live.merge(&[A.to_owned()], found(&[])).0, 1);
    assert_eq!(
        live.paths.keys().map(|path| &**path).collect::<Vec<_>>(),
        [B]
    );
}

#[test]
fn there_are_only_so_many_members() {
    let mut live = live();
    let refused = MemberNode {
        value: Err(Arc::new(MemberError::new(MemberErrorKind::Malformed, "x"))),
        immutable: true,
    };
    let mut full = node(&[]);
    full.members = (0..MEMBERS as u64)
        .map(|number| (name(number).as_str().into(), refused.clone()))
        .collect();
    live.begin_scan();
    live.merge(&all(), found(&[(A, full)]));
    event(&mut live, EventType::NodeCreated, &format!("{A}/member_x"));
    let question = live.apply().remove(0);
    live.answered(&question, ReadResult::Member(Ok(Some(child(1)))));
    assert_eq!(live.paths[A].members.len(), MEMBERS);
    assert!(live.problem().unwrap().starts_with(A));
}
