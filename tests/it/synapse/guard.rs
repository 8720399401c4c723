//! Most members of many services vanish at once: they are kept until HAProxy's own checks agree, and everyday changes
//! are followed at once all the while.

use hostkit_tests::haproxy::HaproxyMode;
use hostkit_tests::wait_until;
use serde_json::json;

use super::fleet::Fleet;
use super::rig::Rig;

const SERVICES: [&str; 4] = ["a", "b", "c", "d"];
const TASKS: usize = 4;

/// Four services with four tasks each, and whoever has nothing keeps nothing.
fn stage() -> Option<(Rig, Fleet)> {
    let mut rig = Rig::new(HaproxyMode::Master)?;
    for service in SERVICES {
        rig.service(service);
        rig.config["services"][service]["use_previous_backends"] = json!(false);
    }
    let mut fleet = Fleet::new(&rig, 0);
    for service in SERVICES {
        fleet.launch(service, TASKS);
    }
    rig.start();
    fleet.served(&rig);
    Some((rig, fleet))
}

/// Takes the announcements of these services back while their tasks go on.
fn vanish(fleet: &Fleet, services: &[&str]) {
    for service in services {
        for serial in &fleet.alive[*service] {
            fleet.remove_key(*serial);
        }
    }
}

#[test]
fn a_mass_removal_is_held_until_the_checks_of_haproxy_agree() {
    let Some((rig, mut fleet)) = stage() else {
        return;
    };
    vanish(&fleet, &SERVICES);
    wait_until("all are held", || {
        rig.metric("synapse_held_removals") == (SERVICES.len() * TASKS) as f64
    });
    fleet.served(&rig);
    let kept = &rig.status()["services"]["a"]["kept"];
    assert!(
        kept["why"]
            .as_str()
            .unwrap()
            .contains("4 services lost most"),
        "{kept}"
    );

    // Additions are immediate.
    let mut others = Fleet::new(&rig, 100);
    others.launch("a", 1);
    let newcomer = &others.endpoints("a")[0];
    wait_until("the newcomer is served", || {
        rig.serving("a").contains(newcomer)
    });

    // Two of b really ended: HAProxy says so.
    for _ in 0..2 {
        fleet.kill("b");
    }
    wait_until("those who are down are given up", || {
        rig.of("b", "held") + rig.of("b", "ready") == 2 && rig.serving("b") == fleet.endpoints("b")
    });
    assert_eq!(rig.serving("c"), fleet.endpoints("c"));

    // The registry comes to its senses.
    for service in ["c", "d"] {
        for serial in &fleet.alive[service] {
            fleet.announce(*serial);
        }
    }
    wait_until("what is found again is no longer held", || {
        rig.status()["services"]["c"]["kept"].is_null()
    });
    assert_eq!(rig.serving("c"), fleet.endpoints("c"));
    assert_eq!(rig.serving("d"), fleet.endpoints("d"));
}

#[test]
fn what_is_held_ends_when_its_time_has_passed() {
    let Some(mut rig) = Rig::new(HaproxyMode::Master) else {
        return;
    };
    for service in SERVICES {
        rig.service(service);
        rig.config["services"][service]["use_previous_backends"] = json!(false);
    }
    rig.config["guard"] = json!({"hold": "2s"});
    let mut fleet = Fleet::new(&rig, 0);
    for service in SERVICES {
        fleet.launch(service, 1);
    }
    rig.start();
    fleet.served(&rig);
    vanish(&fleet, &SERVICES);
    wait_until("they are held", || {
        rig.metric("synapse_held_removals") == 4.0
    });
    wait_until("they are let go", || {
        SERVICES
            .iter()
            .all(|service| rig.serving(service).is_empty())
    });
    wait_until("nothing is held", || {
        rig.metric("synapse_held_removals") < 0.5
    });
}

#[test]
fn one_job_that_restarts_everything_is_followed() {
    let Some((rig, mut fleet)) = stage() else {
        return;
    };
    for _ in 0..TASKS {
        fleet.stop("a");
    }
    fleet.launch("a", TASKS);
    fleet.served(&rig);
    // Several, one batch after the other.
    for service in ["b", "c", "d"] {
        for _ in 0..TASKS / 2 {
            fleet.stop(service);
            fleet.stop(service);
            fleet.launch(service, 2);
            fleet.served(&rig);
        }
    }
    assert!(rig.metric("synapse_held_removals") < 0.5);
    // Ending a whole job is one service, too.
    for _ in 0..TASKS {
        fleet.stop("a");
    }
    fleet.served(&rig);
}
