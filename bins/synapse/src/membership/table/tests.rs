//! The life of members, step by step.

use super::*;

const POLICY: Policy = Policy {
    probe: true,
    panic_threshold: 50,
};

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn member(port: u16) -> (Arc<Backend>, IpAddr) {
    let backend = Backend::new("127.0.0.1", port, format!("/aurora/x/member_{port:010}")).unwrap();
    (Arc::new(backend), IpAddr::from([127, 0, 0, 1]))
}

fn members(ports: impl IntoIterator<Item = u16>) -> Vec<(Arc<Backend>, IpAddr)> {
    ports.into_iter().map(member).collect()
}

/// A table with these members, all of them ready.
fn ready(ports: impl IntoIterator<Item = u16> + Clone) -> Table {
    let mut table = Table::new(32);
    table.follow(&members(ports.clone()), POLICY, at(0));
    for port in ports {
        table.probed(&format!("127.0.0.1:{port}"), true, at(0));
    }
    table.settle(POLICY, at(0));
    table.take_events();
    table
}

fn follow(table: &mut Table, ports: impl IntoIterator<Item = u16>, now: Duration) {
    assert_eq!(table.follow(&members(ports), POLICY, now), []);
    table.settle(POLICY, now);
}

fn probed(table: &mut Table, port: u16, answered: bool, now: Duration) {
    table.probed(&format!("127.0.0.1:{port}"), answered, now);
    table.settle(POLICY, now);
}

fn ports(table: &Table, phase: Phase) -> Vec<u16> {
    let mut ports: Vec<u16> = table
        .residents()
        .filter(|(_, resident)| resident.phase == phase)
        .map(|(_, resident)| resident.backend.port)
        .collect();
    ports.sort_unstable();
    ports
}

#[test]
fn a_new_member_gets_requests_when_it_answers_and_not_before() {
    let mut table = Table::new(8);
    follow(&mut table, [1], at(0));
    assert_eq!(
        table.roster().servers[0].as_ref().unwrap().admin,
        Admin::Maint
    );
    probed(&mut table, 1, false, at(50));
    assert_eq!(ports(&table, Phase::Probing), [1]);
    probed(&mut table, 1, true, at(100));
    assert_eq!(
        table.roster().servers[0].as_ref().unwrap().admin,
        Admin::Ready
    );
}

#[test]
fn without_probes_it_is_ready_at_once() {
    let mut table = Table::new(8);
    let policy = Policy {
        probe: false,
        ..POLICY
    };
    table.follow(&members([1]), policy, at(0));
    assert_eq!(ports(&table, Phase::Ready), [1]);
}

#[test]
fn half_of_a_job_may_restart_at_once() {
    let mut table = ready(1..=12);
    follow(&mut table, 7..=18, at(10));
    assert_eq!(ports(&table, Phase::Draining), [1, 2, 3, 4, 5, 6]);
    assert_eq!(ports(&table, Phase::Ready), [7, 8, 9, 10, 11, 12]);
    assert_eq!(ports(&table, Phase::Probing), [13, 14, 15, 16, 17, 18]);
}

#[test]
fn too_few_would_be_left_so_those_that_answer_stay() {
    let mut table = ready(1..=4);
    follow(&mut table, 11..=14, at(10));
    assert_eq!(
        ports(&table, Phase::Held).len(),
        2,
        "half of what is announced"
    );
    for port in 1..=4 {
        probed(&mut table, port, false, at(20));
    }
    assert_eq!(
        ports(&table, Phase::Held).len(),
        1,
        "the last is not drained by a probe"
    );
    probed(&mut table, 11, true, at(30));
    probed(&mut table, 12, true, at(30));
    assert_eq!(ports(&table, Phase::Held), [] as [u16; 0]);
    assert_eq!(ports(&table, Phase::Ready), [11, 12]);
}

#[test]
fn nobody_answers_this_host_so_members_take_part_unproven() {
    let mut table = ready(1..=4);
    follow(&mut table, 11..=14, at(10));
    let soon = at(10) + PATIENCE;
    assert_eq!(table.next_decision(at(10)), Some(soon));
    table.settle(POLICY, soon);
    assert_eq!(ports(&table, Phase::Ready).len(), 2, "up to the threshold");
    assert_eq!(ports(&table, Phase::Probing).len(), 2);
}

#[test]
fn scaling_down_and_away() {
    let mut table = ready(1..=4);
    follow(&mut table, [1], at(10));
    assert_eq!(ports(&table, Phase::Draining), [2, 3, 4]);
    follow(&mut table, [], at(20));
    assert_eq!(
        ports(&table, Phase::Draining),
        [1, 2, 3, 4],
        "a job that ended needs nobody"
    );
}

#[test]
fn a_drained_slot_is_freed_when_its_sessions_are_gone() {
    let mut table = ready([1, 2]);
    follow(&mut table, [1], at(10));
    table.release(&|_| false);
    assert_eq!(table.taken(), 2);
    table.release(&|slot| slot == 2);
    assert_eq!(table.taken(), 1);
    assert_eq!(ports(&table, Phase::Ready), [1]);
}

#[test]
fn who_registers_again_while_leaving_is_proven_again() {
    let mut table = ready([1, 2]);
    follow(&mut table, [1], at(10));
    follow(&mut table, [1, 2], at(20));
    assert_eq!(ports(&table, Phase::Probing), [2]);
    probed(&mut table, 2, true, at(21));
    assert_eq!(ports(&table, Phase::Ready), [1, 2]);
}

#[test]
fn a_member_keeps_its_slot_and_a_newcomer_takes_the_first_free_one() {
    let mut table = ready(1..=3);
    follow(&mut table, [1, 3], at(10));
    table.release(&|_| true);
    follow(&mut table, [1, 3, 9], at(12));
    let slots: Vec<(usize, u16)> = table
        .residents()
        .map(|(slot, resident)| (slot, resident.backend.port))
        .collect();
    assert_eq!(slots, [(1, 1), (2, 9), (3, 3)]);
}

#[test]
fn a_full_table_says_so_and_gives_nobody_a_slot_that_still_serves() {
    let mut table = Table::new(2);
    let policy = Policy {
        probe: false,
        ..POLICY
    };
    table.follow(&members([1, 2]), policy, at(0));
    let full = table.follow(&members([1, 2, 3]), policy, at(1));
    assert_eq!(full.len(), 1);
    assert_eq!(full[0].reason, Reason::Full);
    table.follow(&members([1]), policy, at(2));
    table.settle(policy, at(2));
    assert_eq!(table.follow(&members([1, 3]), policy, at(3)).len(), 1);
    table.release(&|_| true);
    assert_eq!(table.follow(&members([1, 3]), policy, at(4)), []);
    assert_eq!(ports(&table, Phase::Ready), [1, 3]);
}

#[test]
fn a_roster_gives_the_table_back() {
    let mut table = ready(1..=3);
    follow(&mut table, [1, 2, 4], at(10));
    let restored = Table::restore(&table.roster(), at(20));
    for phase in [Phase::Ready, Phase::Probing, Phase::Draining] {
        assert_eq!(
            ports(&restored, phase),
            ports(&table, phase),
            "{}",
            phase.word()
        );
    }
}

#[test]
fn every_step_is_told_once() {
    let mut table = ready([1, 2, 3]);
    follow(&mut table, [1, 2, 4], at(10));
    probed(&mut table, 4, true, at(20));
    table.release(&|_| true);
    let told: Vec<_> = table
        .take_events()
        .into_iter()
        .map(|event| (event.backend.port, event.before, event.phase))
        .collect();
    assert_eq!(
        told,
        [
            (4, None, Some(Phase::Probing)),
            (3, Some(Phase::Ready), Some(Phase::Draining)),
            (4, Some(Phase::Probing), Some(Phase::Ready)),
            (3, Some(Phase::Draining), None),
        ]
    );
}
