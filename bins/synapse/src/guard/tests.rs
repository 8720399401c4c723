//! What is normal in a cluster is followed at once, and what is not is held.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const ENSEMBLE: &str = "zk1:2181,zk2:2181";

/// A guard with the default settings, its clock, and what HAProxy calls down.
struct World {
    guard: Guard,
    now: Duration,
    down: Vec<String>,
}

fn member(job: &str, shard: u32, port: u16) -> Arc<Backend> {
    let znode = format!("/aurora/www-data/prod/{job}/member_{port:010}");
    let mut backend = Backend::new(&format!("{job}.example.com"), port, znode).unwrap();
    backend.shard = Some(shard);
    Arc::new(backend)
}

/// Shards `0..count`, on ports from `base`.
fn members(job: &str, count: u16, base: u16) -> Vec<Arc<Backend>> {
    (0..count)
        .map(|shard| member(job, shard.into(), base + shard))
        .collect()
}

fn job(number: usize) -> String {
    format!("job{number}")
}

impl World {
    fn new() -> Self {
        Self {
            guard: Guard::new(settings::Guard::default()),
            now: Duration::from_secs(1000),
            down: Vec::new(),
        }
    }

    /// `count` jobs of 12 that have been there for long.
    fn with_jobs(count: usize) -> Self {
        let mut world = Self::new();
        world.batch((0..count).map(|n| (job(n), members(&job(n), 12, 1000))));
        world.pass(60.0);
        world
    }

    fn change(service: &str, source: &str, found: Vec<Arc<Backend>>) -> Change {
        Change {
            service: service.to_owned(),
            source: source.to_owned(),
            found: Arc::new(Discovered {
                backends: found,
                ..Discovered::default()
            }),
        }
    }

    fn pass(&mut self, seconds: f64) {
        self.now += Duration::from_secs_f64(seconds);
    }

    fn review(&mut self, changes: Vec<Change>) -> BTreeMap<String, Verdict> {
        let changed: Vec<String> = changes
            .iter()
            .map(|change| change.service.clone())
            .collect();
        let down = &self.down;
        let verdicts = self.guard.review(self.now, changes, |_, backend| {
            down.contains(&backend.endpoint())
        });
        for service in changed {
            assert!(verdicts.contains_key(&service), "every change is answered");
        }
        verdicts
    }

    /// All at once; the number of services that are held then.
    fn batch(&mut self, changes: impl IntoIterator<Item = (String, Vec<Arc<Backend>>)>) -> usize {
        let changes = changes
            .into_iter()
            .map(|(service, found)| Self::change(&service, ENSEMBLE, found))
            .collect();
        held(&self.review(changes))
    }

    fn one(&mut self, service: &str, found: Vec<Arc<Backend>>) -> usize {
        self.batch([(service.to_owned(), found)])
    }
}

fn held(verdicts: &BTreeMap<String, Verdict>) -> usize {
    verdicts
        .values()
        .filter(|verdict| matches!(verdict, Verdict::Hold(_)))
        .count()
}

fn hold(verdict: &Verdict) -> &Hold {
    match verdict {
        Verdict::Hold(hold) => hold,
        Verdict::Follow => panic!("not held"),
    }
}

#[test]
fn a_rolling_deploy_in_halves_is_followed() {
    for jobs in [1, 2, 10, 100] {
        let mut world = World::with_jobs(jobs);
        let mut now = members("job0", 12, 1000);
        for half in [0..6, 6..12] {
            let kept: Vec<Arc<Backend>> = now
                .iter()
                .filter(|member| !half.contains(&member.shard.unwrap()))
                .cloned()
                .collect();
            assert_eq!(world.one("job0", kept.clone()), 0);
            world.pass(0.2);
            let moved = half
                .clone()
                .map(|shard| member("job0", shard, 2000 + shard as u16));
            now = kept.into_iter().chain(moved).collect();
            assert_eq!(world.one("job0", now.clone()), 0);
            world.pass(0.2);
        }
    }
}

#[test]
fn one_job_that_restarts_all_instances_or_ends_is_followed() {
    let mut world = World::with_jobs(10);
    assert_eq!(world.one("job3", Vec::new()), 0);
    world.pass(3.0);
    assert_eq!(world.one("job3", members("job3", 12, 3000)), 0);
    world.pass(60.0);
    assert_eq!(world.one("job3", Vec::new()), 0);
    assert_eq!(world.guard.next(), None);
}

#[test]
fn twenty_jobs_deployed_at_once_with_replacement_are_followed() {
    let mut world = World::with_jobs(30);
    for shard in 0..12 {
        // One by one in every job: gone, and a moment later there again elsewhere.
        for gap in [true, false] {
            let changes: Vec<_> = (0..20)
                .map(|n| {
                    let mut found = members(&job(n), 12, 1000);
                    for member in &mut found[..=shard] {
                        Arc::make_mut(member).port += 1000;
                    }
                    if gap {
                        found.remove(shard);
                    }
                    (job(n), found)
                })
                .collect();
            assert_eq!(world.batch(changes), 0, "shard {shard}");
            world.pass(0.1);
        }
    }
    // And all shards in one moment.
    let changes: Vec<_> = (0..20)
        .map(|n| (job(n), members(&job(n), 12, 4000)))
        .collect();
    assert_eq!(world.batch(changes), 0);
}

#[test]
fn a_wiped_ensemble_is_held_whole_and_then_believed() {
    let mut world = World::with_jobs(10);
    assert_eq!(world.batch((0..10).map(|n| (job(n), Vec::new()))), 10);
    assert_eq!(world.guard.held(), 120);
    let until = world.guard.next().unwrap();
    assert_eq!(until, world.now + Duration::from_secs(300));
    world.pass(299.0);
    assert!(world.review(Vec::new()).is_empty(), "nothing has changed");
    world.pass(1.0);
    let verdicts = world.review(Vec::new());
    assert_eq!(verdicts.len(), 10);
    assert!(verdicts.values().all(|verdict| *verdict == Verdict::Follow));
    assert_eq!((world.guard.held(), world.guard.next()), (0, None));
}

#[test]
fn what_was_let_go_before_the_doubt_began_is_put_back() {
    let mut world = World::with_jobs(10);
    for n in 0..3 {
        assert_eq!(
            world.one(&job(n), Vec::new()),
            0,
            "30 % is not more than 30 %"
        );
        world.pass(0.5);
    }
    let verdicts = world.review(vec![World::change("job3", ENSEMBLE, Vec::new())]);
    assert_eq!(held(&verdicts), 4, "the three before it too");
    let first = hold(&verdicts["job0"]);
    assert_eq!(first.members, members("job0", 12, 1000));
    assert_eq!(
        first.why.to_string(),
        "4 of 10 services lost most of their members at once"
    );
    // Stragglers are held as they come, however late.
    world.pass(100.0);
    assert_eq!(world.one("job4", Vec::new()), 1);
}

#[test]
fn losses_that_are_spread_over_more_than_the_window_are_followed() {
    let mut world = World::with_jobs(10);
    for n in 0..10 {
        assert_eq!(world.one(&job(n), Vec::new()), 0);
        world.pass(6.0);
    }
}

#[test]
fn a_new_empty_ensemble_after_a_start_is_held() {
    let mut world = World::new();
    for n in 0..10 {
        let change = World::change(&job(n), ENSEMBLE, members(&job(n), 12, 1000));
        world.guard.remember(world.now, change);
    }
    // The answers come one by one, the first long after the start.
    world.pass(1000.0);
    for n in 0..10 {
        world.one(&job(n), Vec::new());
    }
    assert_eq!(world.guard.held(), 120);
}

#[test]
fn one_wiped_ensemble_of_several_is_held_although_it_is_a_small_share_of_all() {
    let mut world = World::with_jobs(40);
    let other = |n: usize, found| World::change(&job(n), "zk-other:2181", found);
    world.review(
        (40..44)
            .map(|n| other(n, members(&job(n), 3, 1000)))
            .collect(),
    );
    world.pass(60.0);
    let verdicts = world.review((40..44).map(|n| other(n, Vec::new())).collect());
    assert_eq!(held(&verdicts), 4);
    assert_eq!(
        hold(&verdicts["job41"]).why.to_string(),
        "4 of 4 services lost most of their members at once in zk-other:2181"
    );
    assert_eq!(
        world.one("job0", Vec::new()),
        0,
        "the other ensemble is not doubted"
    );
}

#[test]
fn half_the_hosts_without_power_are_followed_when_checks_agree() {
    let mut world = World::with_jobs(10);
    let gone = |n: usize| members(&job(n), 12, 1000)[..7].to_vec();
    let left = |n: usize| members(&job(n), 12, 1000)[7..].to_vec();
    world.down = (0..10)
        .flat_map(|n| {
            gone(n)
                .iter()
                .map(|backend| backend.endpoint())
                .collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(world.batch((0..10).map(|n| (job(n), left(n)))), 0);
}

#[test]
fn checks_that_agree_later_end_a_hold_member_by_member() {
    let mut world = World::with_jobs(10);
    world.batch((0..10).map(|n| (job(n), Vec::new())));
    world.down = vec![member("job0", 0, 1000).endpoint()];
    let verdicts = world.review(Vec::new());
    assert_eq!(verdicts.len(), 1);
    assert_eq!(hold(&verdicts["job0"]).members.len(), 11);
    assert!(world.review(Vec::new()).is_empty());
}

#[test]
fn members_that_come_back_are_found_and_those_that_moved_are_given_up() {
    let mut world = World::with_jobs(10);
    world.batch((0..10).map(|n| (job(n), Vec::new())));
    let found = vec![member("job0", 0, 1000), member("job0", 1, 7001)];
    let verdicts = world.review(vec![World::change("job0", ENSEMBLE, found.clone())]);
    let kept = &hold(&verdicts["job0"]).members;
    assert_eq!(kept.len(), 10);
    assert!(kept.iter().all(|member| member.shard.unwrap() > 1));
    assert_eq!(world.one("job0", members("job0", 12, 1000)), 0);
    assert_eq!(world.guard.held(), 9 * 12);
}

#[test]
fn shards_of_two_jobs_in_one_service_are_not_the_same() {
    let mut world = World::new();
    let both = |n: usize| [members(&job(n), 9, 1000), members("other", 3, 2000)].concat();
    world.batch((0..5).map(|n| (job(n), both(n))));
    world.pass(60.0);
    assert_eq!(
        world.batch((0..5).map(|n| (job(n), members("other", 3, 2000)))),
        5
    );
    assert_eq!(world.guard.held(), 5 * 9);
}

#[test]
fn what_is_put_back_is_what_was_there_last() {
    let nerve = |from: u16, to: u16| -> Vec<Arc<Backend>> {
        (from..to)
            .map(|port| Arc::new(Backend::new("n.example.com", port, "/nerve/s/i").unwrap()))
            .collect()
    };
    let mut world = World::new();
    let all =
        |found: &Vec<Arc<Backend>>| (0..5).map(|n| (job(n), found.clone())).collect::<Vec<_>>();
    world.batch(all(&nerve(1, 13)));
    world.pass(60.0);
    // Six are replaced, and then seven others vanish.
    assert_eq!(world.batch(all(&nerve(7, 19))), 0);
    world.pass(1.0);
    assert_eq!(world.batch(all(&nerve(14, 19))), 5);
    let verdicts = world.review(vec![World::change("job0", ENSEMBLE, nerve(14, 19))]);
    assert_eq!(hold(&verdicts["job0"]).members, nerve(7, 14));
}

#[test]
fn fewer_services_than_the_threshold_are_never_held() {
    for jobs in [1, 2] {
        let mut world = World::with_jobs(jobs);
        assert_eq!(world.batch((0..jobs).map(|n| (job(n), Vec::new()))), 0);
    }
    let mut world = World::with_jobs(3);
    assert_eq!(world.batch((0..3).map(|n| (job(n), Vec::new()))), 3);
}

#[test]
fn a_forgotten_service_was_lost_by_nobody() {
    let mut world = World::with_jobs(10);
    world.batch((0..10).map(|n| (job(n), Vec::new())));
    for n in 0..10 {
        world.guard.forget(&job(n));
    }
    assert_eq!((world.guard.held(), world.guard.next()), (0, None));
}

#[test]
fn an_ensemble_that_flaps_never_costs_a_member_for_good() {
    let mut world = World::with_jobs(10);
    for _ in 0..200 {
        assert_eq!(world.batch((0..10).map(|n| (job(n), Vec::new()))), 10);
        assert_eq!(world.guard.held(), 120);
        world.pass(0.05);
        let back = (0..10).map(|n| (job(n), members(&job(n), 12, 1000)));
        assert_eq!(world.batch(back), 0);
        assert_eq!(world.guard.held(), 0);
        world.pass(0.05);
    }
}

#[test]
fn one_service_that_flaps_is_followed_each_time_and_fills_no_memory() {
    let mut world = World::with_jobs(10);
    for round in 0..2000 {
        assert_eq!(world.one("job0", Vec::new()), 0);
        world.pass(0.001);
        assert_eq!(
            world.one("job0", members("job0", 12, 1000 + (round % 500) * 12)),
            0
        );
        world.pass(0.001);
    }
    // In doubt, what it had last is kept, and not all it ever had.
    world.batch((0..10).map(|n| (job(n), Vec::new())));
    let verdicts = world.review(vec![World::change("job0", ENSEMBLE, Vec::new())]);
    assert_eq!(
        hold(&verdicts["job0"]).members,
        members("job0", 12, 1000 + (1999 % 500) * 12)
    );
}

proptest! {
    /// Whatever happens: nothing found is ever held, no member is held twice, all holds end, and two services are
    /// never held.
    #[test]
    fn holds_are_sound(
        steps in proptest::collection::vec((0..8usize, 0..6u16, 0..3u16, 0..4000u64, any::<bool>()), 1..120),
        services in 1..8usize,
    ) {
        let mut world = World::new();
        let mut found: BTreeMap<String, Vec<Arc<Backend>>> = BTreeMap::new();
        for (n, count, base, pause, is_down) in steps {
            world.now += Duration::from_millis(pause);
            let name = job(n % services);
            let now = members(&name, count, 1000 + base * 3);
            world.down = if is_down { vec![member(&name, 0, 1000).endpoint()] } else { Vec::new() };
            found.insert(name.clone(), now.clone());
            for (service, verdict) in world.review(vec![World::change(&name, ENSEMBLE, now)]) {
                let Verdict::Hold(hold) = verdict else { continue };
                prop_assert!(services > 2);
                prop_assert!(!hold.members.is_empty() && hold.until > world.now);
                let mut endpoints: Vec<String> = hold.members.iter().map(|backend| backend.endpoint()).collect();
                endpoints.sort();
                endpoints.dedup();
                prop_assert_eq!(endpoints.len(), hold.members.len());
                prop_assert!(hold.members.iter().all(|member| !found[&service].contains(member)));
            }
        }
        world.now += Duration::from_secs(300);
        world.review(Vec::new());
        prop_assert_eq!(world.guard.held(), 0);
    }
}
