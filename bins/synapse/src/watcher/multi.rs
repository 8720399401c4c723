//! `method: multi`: several watchers whose findings are put together as one.
//!
//! Owns running them and which of them counts; each child keeps its own last good answer.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::merge::merge;
use super::{Found, Watch, Watcher, publish};
use crate::model::Discovered;
use crate::settings::Resolver;

/// How often the age of what the children know is taken over although nothing changed.
const AGE: Duration = Duration::from_secs(10);

/// Follows what other watchers find.
#[derive(Debug)]
pub struct Multi {
    names: Vec<String>,
    resolver: Resolver,
    children: Vec<Watch>,
}

impl Multi {
    /// Watchers that were started, by name, in order.
    #[must_use]
    pub fn new(children: Vec<(String, Watch)>, resolver: Resolver) -> Self {
        let (names, children) = children.into_iter().unzip();
        Self {
            names,
            resolver,
            children,
        }
    }

    fn now(&self) -> Found {
        let found: Vec<Arc<Found>> = self
            .children
            .iter()
            .map(|child| Arc::clone(&child.found.borrow()))
            .collect();
        let named: Vec<(&str, &Found)> = self
            .names
            .iter()
            .zip(&found)
            .map(|(name, found)| (name.as_str(), &**found))
            .collect();
        combine(&self.resolver, &named)
    }

    async fn run(self, out: watch::Sender<Arc<Found>>) {
        let mut changes = JoinSet::new();
        for child in &self.children {
            changes.spawn(changed(child.found.clone()));
        }
        let mut age = interval(AGE);
        age.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            publish(&out, self.now());
            tokio::select! {
                Some(ended) = changes.join_next() => {
                    // A child that is gone says nothing more; what it said last still stands.
                    if let Ok(Some(child)) = ended {
                        changes.spawn(changed(child));
                    }
                }
                _ = age.tick() => {}
                () = out.closed() => return,
            }
        }
    }
}

impl Watcher for Multi {
    fn watch(
        self: Box<Self>,
        out: watch::Sender<Arc<Found>>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(self.run(out))
    }
}

/// Waits for news, and returns the receiver unless there will be none.
async fn changed(mut child: watch::Receiver<Arc<Found>>) -> Option<watch::Receiver<Arc<Found>>> {
    child.changed().await.ok()?;
    Some(child)
}

/// What counts of what `children` found, in their order.
fn combine(resolver: &Resolver, children: &[(&str, &Found)]) -> Found {
    match resolver {
        Resolver::Base => children
            .iter()
            .find(|(name, _)| *name == "primary")
            .or_else(|| children.first())
            .map(|(_, found)| (*found).clone())
            .unwrap_or_default(),
        Resolver::Union => union(children.iter().map(|(_, found)| *found)),
        Resolver::Sequential(order) => sequential(order, children),
    }
}

/// Path by path, what any of them found. A child that has not said anything yet holds back all.
fn union<'a>(all: impl Iterator<Item = &'a Found> + Clone) -> Found {
    let mut paths: BTreeMap<&str, Vec<&Arc<Discovered>>> = BTreeMap::new();
    for (path, discovered) in all.clone().flatten() {
        paths.entry(path).or_default().push(discovered);
    }
    let silent = all.clone().any(Found::is_empty);
    // One that cannot be asked might have members at every path.
    let unknown = |found: &Found| found.values().any(|part| part.synced.is_none());
    let partial = all.clone().any(unknown);
    let mut union = Found::new();
    for (path, parts) in paths {
        let mut whole = merge(parts);
        if silent {
            whole.synced = None;
        }
        whole.partial = partial && whole.synced.is_some();
        union.insert(path.to_owned(), Arc::new(whole));
    }
    union
}

/// The first, in `order`, that found anything. One that has not answered yet and is not in trouble is waited for: what
/// comes after it is only its replacement. Where all found nothing, their troubles are told together.
fn sequential(order: &[String], children: &[(&str, &Found)]) -> Found {
    let mut passed = Vec::new();
    for wanted in order {
        let Some((_, found)) = children.iter().find(|(name, _)| name == wanted) else {
            continue;
        };
        let whole = merge(found.values());
        if found.is_empty() || !whole.backends.is_empty() && whole.synced.is_some() {
            return (*found).clone();
        }
        if whole.synced.is_none() && whole.trouble.is_none() {
            return (*found).clone();
        }
        passed.push(*found);
    }
    union(passed.into_iter())
}

#[cfg(test)]
mod tests {
    use super::super::single;
    use super::*;
    use crate::model::Backend;

    fn found(ports: &[u16]) -> Found {
        single(Discovered {
            backends: ports
                .iter()
                .map(|port| Arc::new(Backend::new("10.0.0.1", *port, "test").unwrap()))
                .collect(),
            synced: Some(Duration::from_secs(1)),
            ..Discovered::default()
        })
    }

    fn ports(found: &Found) -> Vec<u16> {
        let all = found.values().flat_map(|discovered| &discovered.backends);
        all.map(|backend| backend.port).collect()
    }

    fn troubled() -> Found {
        single(Discovered {
            trouble: Some("away".into()),
            ..Discovered::default()
        })
    }

    #[test]
    fn base_is_the_one_named_primary_wherever_it_stands() {
        let (a, b) = (found(&[1]), found(&[2]));
        let resolver = Resolver::Base;
        assert_eq!(
            ports(&combine(&resolver, &[("a", &a), ("primary", &b)])),
            [2]
        );
        assert_eq!(ports(&combine(&resolver, &[("a", &a), ("b", &b)])), [1]);
    }

    #[test]
    fn union_waits_for_all_and_then_has_all() {
        let (a, b, silent) = (found(&[1]), found(&[2, 3]), Found::new());
        let resolver = Resolver::Union;
        let whole = combine(&resolver, &[("a", &a), ("b", &b)]);
        assert_eq!(ports(&whole), [1, 2, 3]);
        assert!(whole[""].synced.is_some());
        let half = combine(&resolver, &[("a", &a), ("b", &silent)]);
        assert_eq!(half[""].synced, None);
        let without = combine(&resolver, &[("a", &a), ("b", &troubled())]);
        assert_eq!(ports(&without), [1]);
        assert_eq!(without[""].trouble.as_deref(), Some("away"));
        assert!(without[""].synced.is_some());
    }

    #[test]
    fn a_union_with_a_part_that_was_never_heard_of_is_partial_at_every_path() {
        let answered = found(&[1]);
        let mut paths = Found::new();
        paths.insert("/a".to_owned(), Arc::clone(&answered[""]));
        let away = troubled();
        let whole = combine(&Resolver::Union, &[("one", &paths), ("two", &away)]);
        assert!(whole["/a"].partial && whole["/a"].synced.is_some());
        let whole = combine(&Resolver::Union, &[("one", &paths), ("two", &answered)]);
        assert!(!whole["/a"].partial);
    }

    #[test]
    fn sequential_takes_the_first_that_found_anything() {
        let resolver = Resolver::Sequential(vec!["b".into(), "a".into()]);
        let (a, b, none) = (found(&[1]), found(&[2]), found(&[]));
        assert_eq!(ports(&combine(&resolver, &[("a", &a), ("b", &b)])), [2]);
        assert_eq!(ports(&combine(&resolver, &[("a", &a), ("b", &none)])), [1]);
        assert_eq!(
            ports(&combine(&resolver, &[("a", &a), ("b", &troubled())])),
            [1]
        );
        let nothing = combine(&resolver, &[("a", &none), ("b", &troubled())]);
        assert_eq!(nothing[""].trouble.as_deref(), Some("away"));
        assert!(nothing[""].synced.is_some());
    }

    #[test]
    fn sequential_waits_for_the_first_to_answer() {
        let resolver = Resolver::Sequential(vec!["b".into(), "a".into()]);
        let (a, silent) = (found(&[1]), Found::new());
        assert!(combine(&resolver, &[("a", &a), ("b", &silent)]).is_empty());
    }
}
