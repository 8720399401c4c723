//! The HAProxy planner: from what HAProxy holds to what it should hold, in runtime commands. Pure.
//!
//! Audit and everyday changes are the same comparison; the only difference is how old the picture of HAProxy is.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::membership::{Admin, Roster};
use crate::settings::Servers;

/// Where a free slot points: nothing listens there, and nothing is sent there either.
pub const NOWHERE: (IpAddr, u16) = (IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

/// What HAProxy holds of one server, as it was last read or told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Its address; `None` when HAProxy has none.
    pub address: Option<IpAddr>,
    /// Its port.
    pub port: u16,
    /// The weight the user would see, 0 to 256.
    pub weight: u16,
    /// The administrative state.
    pub admin: Admin,
}

impl Held {
    /// Whether that is where it points.
    #[must_use]
    pub fn is_at(&self, address: IpAddr, port: u16) -> bool {
        (self.address, self.port) == (Some(address), port)
    }
}

/// What HAProxy should hold of one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Its weight, 0 to 256.
    pub weight: u16,
    /// The administrative state.
    pub admin: Admin,
}

/// One change of one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// `set server .. addr .. port ..`
    Address(IpAddr, u16),
    /// `set server .. weight ..`
    Weight(u16),
    /// `set server .. state ..`
    State(Admin),
    /// `add server ..`, which begins in maintenance.
    Add(IpAddr, u16),
    /// `del server ..`
    Delete,
}

/// The changes of one server, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The server.
    pub server: String,
    /// What to do, in this order.
    pub ops: Vec<Op>,
}

/// What a roster wants of HAProxy, by server name. `weight` is what the service's `server_options` say (1).
#[must_use]
pub fn wanted(
    roster: &Roster,
    servers: &Servers,
    weight: u16,
    name: impl Fn(usize, &crate::model::Backend) -> String,
) -> BTreeMap<String, Option<Wanted>> {
    let free = |index: usize| (*servers == Servers::Slots).then(|| (slot(index), None));
    let taken = roster.servers.len();
    let behind = (taken..taken + roster.free).filter_map(free);
    roster
        .servers
        .iter()
        .enumerate()
        .filter_map(|(index, occupant)| match occupant {
            None => free(index),
            Some(occupant) => Some((
                match servers {
                    Servers::Slots => slot(index),
                    Servers::Named(_) => name(index, &occupant.backend),
                },
                Some(Wanted {
                    address: occupant.address,
                    port: occupant.backend.port,
                    weight: occupant.weight.unwrap_or(weight),
                    admin: occupant.admin,
                }),
            )),
        })
        .chain(behind)
        .collect()
}

/// The name of a slot, which are counted from 1.
#[must_use]
pub fn slot(index: usize) -> String {
    format!("slot{}", index + 1)
}

/// What leads from `held` to `wanted`. Servers that HAProxy has and nobody wants are deleted where `named`, and left
/// alone otherwise; those that it does not have are added where `named`, and skipped otherwise: they need a reload.
#[must_use]
pub fn changes(
    wanted: &BTreeMap<String, Option<Wanted>>,
    held: &BTreeMap<Arc<str>, Held>,
    named: bool,
) -> Vec<Change> {
    let mut changes: Vec<Change> = wanted
        .iter()
        .filter_map(|(server, wanted)| {
            let ops = match (held.get(server.as_str()), wanted) {
                (Some(held), Some(wanted)) => fill(held, wanted),
                (Some(held), None) => empty(held),
                (None, Some(wanted)) if named => add(wanted),
                (None, _) => Vec::new(),
            };
            (!ops.is_empty()).then(|| Change {
                server: server.clone(),
                ops,
            })
        })
        .collect();
    if named {
        let gone = held
            .iter()
            .filter(|(server, _)| !wanted.contains_key(&***server));
        changes.extend(gone.map(|(server, held)| Change {
            server: server.to_string(),
            // A server can only be deleted in maintenance.
            ops: match held.admin {
                Admin::Maint => vec![Op::Delete],
                _ => vec![Op::State(Admin::Maint), Op::Delete],
            },
        }));
    }
    changes
}

fn fill(held: &Held, wanted: &Wanted) -> Vec<Op> {
    let mut ops = Vec::new();
    let moves = (held.address, held.port) != (Some(wanted.address), wanted.port);
    let mut admin = held.admin;
    if moves {
        // Nobody may be sent to the new address before it is known to be ready; and a server that is down comes up at
        // once when it leaves maintenance, but not when only its address changes.
        if admin != Admin::Maint {
            admin = Admin::Maint;
            ops.push(Op::State(admin));
        }
        ops.push(Op::Address(wanted.address, wanted.port));
    }
    if held.weight != wanted.weight {
        ops.push(Op::Weight(wanted.weight));
    }
    if admin != wanted.admin {
        ops.push(Op::State(wanted.admin));
    }
    ops
}

fn empty(held: &Held) -> Vec<Op> {
    let mut ops = Vec::new();
    if held.admin != Admin::Maint {
        ops.push(Op::State(Admin::Maint));
    }
    if (held.address, held.port) != (Some(NOWHERE.0), NOWHERE.1) {
        ops.push(Op::Address(NOWHERE.0, NOWHERE.1));
    }
    ops
}

fn add(wanted: &Wanted) -> Vec<Op> {
    let mut ops = vec![
        Op::Add(wanted.address, wanted.port),
        Op::Weight(wanted.weight),
    ];
    if wanted.admin != Admin::Maint {
        ops.push(Op::State(wanted.admin));
    }
    ops
}

/// What HAProxy holds after a change it accepted.
pub fn apply(held: &mut BTreeMap<Arc<str>, Held>, change: &Change) {
    let name = change.server.as_str();
    for op in &change.ops {
        match *op {
            Op::Add(address, port) => {
                let server = Held {
                    address: Some(address),
                    port,
                    weight: 1,
                    admin: Admin::Maint,
                };
                held.insert(name.into(), server);
            }
            Op::Delete => {
                held.remove(name);
            }
            Op::Address(address, port) => {
                if let Some(server) = held.get_mut(name) {
                    (server.address, server.port) = (Some(address), port);
                }
            }
            Op::Weight(weight) => {
                if let Some(server) = held.get_mut(name) {
                    server.weight = weight;
                }
            }
            Op::State(admin) => {
                if let Some(server) = held.get_mut(name) {
                    server.admin = admin;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::Occupant;
    use crate::model::Backend;
    use proptest::prelude::*;

    fn free() -> Held {
        Held {
            address: Some(NOWHERE.0),
            port: NOWHERE.1,
            weight: 1,
            admin: Admin::Maint,
        }
    }

    fn held(port: u16, admin: Admin) -> Held {
        Held {
            port,
            admin,
            ..free()
        }
    }

    fn want(port: u16, admin: Admin) -> Wanted {
        Wanted {
            address: NOWHERE.0,
            port,
            weight: 1,
            admin,
        }
    }

    #[test]
    fn a_member_takes_a_slot_address_first() {
        assert_eq!(
            fill(
                &free(),
                &Wanted {
                    weight: 7,
                    ..want(80, Admin::Ready)
                }
            ),
            [
                Op::Address(NOWHERE.0, 80),
                Op::Weight(7),
                Op::State(Admin::Ready)
            ]
        );
        assert_eq!(
            fill(&free(), &want(80, Admin::Maint)),
            [Op::Address(NOWHERE.0, 80)]
        );
    }

    #[test]
    fn a_slot_is_not_ready_while_it_changes_hands() {
        assert_eq!(
            fill(&held(80, Admin::Ready), &want(81, Admin::Maint)),
            [Op::State(Admin::Maint), Op::Address(NOWHERE.0, 81)]
        );
    }

    #[test]
    fn nothing_is_said_twice() {
        assert!(fill(&held(80, Admin::Ready), &want(80, Admin::Ready)).is_empty());
        assert!(empty(&free()).is_empty());
    }

    #[test]
    fn named_servers_come_and_go() {
        let held = BTreeMap::from([("a".into(), held(80, Admin::Drain))]);
        let wanted = BTreeMap::from([("b".to_owned(), Some(want(81, Admin::Ready)))]);
        let found = changes(&wanted, &held, true);
        assert_eq!(found[0].server, "b");
        assert_eq!(
            found[0].ops,
            [
                Op::Add(NOWHERE.0, 81),
                Op::Weight(1),
                Op::State(Admin::Ready)
            ]
        );
        assert_eq!(found[1].ops, [Op::State(Admin::Maint), Op::Delete]);
        assert!(changes(&wanted, &held, false).is_empty());
    }

    #[test]
    fn a_roster_names_slots_by_their_place() {
        let occupant = Occupant {
            backend: Arc::new(Backend::new("10.0.0.1", 80, "x").unwrap()),
            address: IpAddr::from([10, 0, 0, 1]),
            weight: None,
            admin: Admin::Ready,
        };
        let roster = Roster {
            servers: vec![None, Some(occupant)],
            free: 1,
        };
        let wanted = wanted(&roster, &Servers::Slots, 3, |_, _| String::new());
        assert_eq!(wanted["slot1"], None);
        assert_eq!(wanted["slot2"].unwrap().weight, 3);
    }

    fn admin() -> impl Strategy<Value = Admin> {
        prop_oneof![Just(Admin::Ready), Just(Admin::Drain), Just(Admin::Maint)]
    }

    fn servers() -> impl Strategy<Value = BTreeMap<String, (u16, u16, Admin)>> {
        proptest::collection::btree_map("slot[1-9]", (1u16..9, 0u16..257, admin()), 0..9)
    }

    proptest! {
        #[test]
        fn the_changes_lead_to_what_is_wanted(from in servers(), to in servers(), named: bool) {
            let mut held: BTreeMap<Arc<str>, Held> = from
                .into_iter()
                .map(|(server, (port, weight, admin))| {
                    (server.into(), Held { address: Some(NOWHERE.0), port, weight, admin })
                })
                .collect();
            let wanted: BTreeMap<String, Option<Wanted>> = to
                .into_iter()
                .map(|(server, (port, weight, admin))| {
                    (server, Some(Wanted { address: NOWHERE.0, port, weight, admin }))
                })
                .collect();
            for change in changes(&wanted, &held.clone(), named) {
                apply(&mut held, &change);
            }
            prop_assert!(changes(&wanted, &held, named).is_empty());
            if named {
                prop_assert_eq!(held.len(), wanted.len());
            }
        }
    }
}
