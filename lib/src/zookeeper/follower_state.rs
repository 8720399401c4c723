//! The state of a follower, and how events, read results and scans change it. No I/O.
//!
//! A scan and events overlap. A path or member that an event has touched since the scan began is newer than the scan's
//! result, so the event wins there; everywhere else the scan does.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use zookeeper_client::EventType;

use super::member::MemberFormat;
use super::path_pattern::PathPattern;
use super::reader::{ReadError, WatchEvent};
use super::scan::{MAX_MEMBERS, MAX_PATHS, PathProblem, ScanResult, limit_data};
use super::snapshot::{MemberNode, PathNode};
use super::znode_name::ZnodeName;

/// Reads that may be pending; beyond it a scan is cheaper.
const MAX_PENDING_READS: usize = 1 << 16;

/// A matching path, or a member of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct NodeKey {
    pub(super) path: Arc<str>,
    pub(super) member: Option<ZnodeName>,
}

/// The net effect of the queued events of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NodeChange {
    Deleted,
    Created,
    /// It must be read again.
    Changed,
}

/// A read. The ticket separates the results of newer requests from those of older ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReadRequest {
    pub(super) key: NodeKey,
    pub(super) ticket: u64,
}

/// The result of a read: a path's data with the transaction that created it, or a member.
#[derive(Debug)]
pub(super) enum ReadResult<T> {
    Data(Result<Option<(Vec<u8>, i64)>, ReadError>),
    Member(Result<Option<MemberNode<T>>, ReadError>),
}

#[derive(Debug)]
pub(super) struct FollowerState<T> {
    pattern: PathPattern,
    format: MemberFormat,
    paths: BTreeMap<Arc<str>, Arc<PathNode<T>>>,
    problems: BTreeMap<String, PathProblem>,
    queue: HashMap<NodeKey, NodeChange>,
    pending: HashMap<NodeKey, u64>,
    last_ticket: u64,
    /// The keys that events have touched since the current scan began.
    touched: Option<HashSet<NodeKey>>,
    /// Whether anything has changed since the last `take_changed`.
    changed: bool,
    /// Whether a change was not read, so that everything must be scanned.
    incomplete: bool,
}

impl<T: Clone + PartialEq> FollowerState<T> {
    pub(super) fn new(
        pattern: PathPattern,
        format: MemberFormat,
        paths: BTreeMap<Arc<str>, Arc<PathNode<T>>>,
    ) -> Self {
        Self {
            pattern,
            format,
            paths,
            problems: BTreeMap::new(),
            queue: HashMap::new(),
            pending: HashMap::new(),
            last_ticket: 0,
            touched: None,
            changed: false,
            incomplete: false,
        }
    }

    pub(super) fn pattern(&self) -> &PathPattern {
        &self.pattern
    }

    pub(super) fn paths(&self) -> &BTreeMap<Arc<str>, Arc<PathNode<T>>> {
        &self.paths
    }

    /// The problems, as one line.
    pub(super) fn problem(&self) -> Option<String> {
        let (path, problem) = self.problems.first_key_value()?;
        let more = match self.problems.len() - 1 {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        Some(format!("{path}: {}{more}", problem.text()))
    }

    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    pub(super) fn take_incomplete(&mut self) -> bool {
        std::mem::take(&mut self.incomplete)
    }

    /// Drops pending work after a lost connection: no result will arrive, and events were missed.
    pub(super) fn cancel_work(&mut self) {
        self.queue.clear();
        self.pending.clear();
        self.touched = None;
    }

    /// Drops pending reads whose results are lost.
    pub(super) fn abandon_reads(&mut self) {
        self.pending.clear();
        self.incomplete = true;
    }

    pub(super) fn begin_scan(&mut self) {
        self.touched = Some(self.pending.keys().cloned().collect());
    }

    /// The key of `path`, if it matches or is a member of a path that matches.
    pub(super) fn key(&self, path: &str) -> Option<NodeKey> {
        // Paths are shared, not copied.
        let shared = |path: &str| match self.paths.get_key_value(path) {
            Some((known, _)) => Arc::clone(known),
            None => path.into(),
        };
        if self.pattern.matches(path) {
            return Some(NodeKey {
                path: shared(path),
                member: None,
            });
        }
        let (parent, name) = path.rsplit_once('/')?;
        (self.pattern.matches(parent) && self.format.is_member(name)).then(|| NodeKey {
            path: shared(parent),
            member: Some(name.into()),
        })
    }

    /// Queues an event of a persistent watch.
    pub(super) fn record_event(&mut self, event: &WatchEvent) {
        let change = match event.kind {
            EventType::NodeDeleted => NodeChange::Deleted,
            EventType::NodeCreated => NodeChange::Created,
            EventType::NodeDataChanged => NodeChange::Changed,
            EventType::NodeChildrenChanged | EventType::Session => return,
        };
        let Some(key) = self.key(&event.path) else {
            return;
        };
        let before = self.queue.get(&key);
        let change = match (before, change) {
            (None, change) | (_, change @ NodeChange::Deleted) => change,
            (Some(NodeChange::Created), NodeChange::Created) => NodeChange::Created,
            // Deleted and created again: another member under the same name.
            (Some(_), _) => NodeChange::Changed,
        };
        self.queue.insert(key, change);
    }

    /// Applies the queued events, and returns the reads they require.
    pub(super) fn apply_events(&mut self) -> Vec<ReadRequest> {
        let mut requests = Vec::new();
        for (key, change) in std::mem::take(&mut self.queue) {
            if let Some(touched) = &mut self.touched {
                touched.insert(key.clone());
            }
            match change {
                NodeChange::Deleted => self.remove(&key),
                NodeChange::Created if self.is_known(&key) => {}
                NodeChange::Created | NodeChange::Changed => {
                    if key.member.is_none() && !self.is_known(&key) {
                        self.node_mut(&key.path);
                    }
                    requests.extend(self.queue_read(key));
                }
            }
        }
        requests
    }

    fn queue_read(&mut self, key: NodeKey) -> Option<ReadRequest> {
        if self.pending.len() >= MAX_PENDING_READS {
            self.incomplete = true;
            return None;
        }
        self.last_ticket += 1;
        self.pending.insert(key.clone(), self.last_ticket);
        Some(ReadRequest {
            key,
            ticket: self.last_ticket,
        })
    }

    /// Whether a key exists or is being read.
    fn is_known(&self, key: &NodeKey) -> bool {
        if self.pending.contains_key(key) {
            return true;
        }
        let node = self.paths.get(&key.path).filter(|node| node.exists);
        node.is_some_and(|node| match &key.member {
            None => true,
            Some(name) => node.members.contains_key(name),
        })
    }

    fn remove(&mut self, key: &NodeKey) {
        self.pending.remove(key);
        let Some(node) = self.paths.get_mut(&key.path) else {
            return;
        };
        match &key.member {
            Some(name) => {
                if node.members.contains_key(name) {
                    Arc::make_mut(node).members.remove(name);
                    self.changed = true;
                }
            }
            None => {
                self.pending.retain(|pending, _| pending.path != key.path);
                self.problems.remove(&*key.path);
                self.changed |= node.exists;
                if self.pattern.is_literal() {
                    *node = Arc::default();
                } else {
                    self.paths.remove(&key.path);
                }
            }
        }
    }

    /// The node of an existing path, which is added when missing.
    fn node_mut(&mut self, path: &Arc<str>) -> Option<&mut PathNode<T>> {
        if !self.paths.contains_key(path) && self.paths.len() >= MAX_PATHS {
            let text = format!("more than {MAX_PATHS} paths match");
            self.problems
                .insert(self.pattern.to_string(), PathProblem::Partial(text));
            return None;
        }
        let node = self.paths.entry(Arc::clone(path)).or_default();
        let node = Arc::make_mut(node);
        self.changed |= !node.exists;
        node.exists = true;
        Some(node)
    }

    /// Applies the result of a read.
    pub(super) fn apply_read(&mut self, request: &ReadRequest, result: ReadResult<T>) {
        let ReadRequest { key, ticket } = request;
        if self.pending.get(key) != Some(ticket) {
            return;
        }
        self.pending.remove(key);
        match (result, &key.member) {
            (ReadResult::Member(Ok(Some(child))), Some(name)) => {
                self.insert(&key.path, name, child)
            }
            (ReadResult::Data(Ok(Some((data, created)))), None) => {
                self.replace(&key.path, data, created)
            }
            (ReadResult::Member(Ok(None)) | ReadResult::Data(Ok(None)), _) => self.remove(key),
            (ReadResult::Data(Err(ReadError::Path(why))), None) => {
                let path = key.path.to_string();
                self.problems.insert(path, PathProblem::Unreadable(why));
                self.changed = true;
            }
            (ReadResult::Member(_) | ReadResult::Data(_), _) => self.incomplete = true,
        }
    }

    fn insert(&mut self, path: &Arc<str>, name: &ZnodeName, child: MemberNode<T>) {
        let Some(node) = self.node_mut(path) else {
            return;
        };
        if node.members.get(name) == Some(&child) {
            return;
        }
        if node.members.len() >= MAX_MEMBERS && !node.members.contains_key(name) {
            let text = format!("of its more than {MAX_MEMBERS} members {MAX_MEMBERS} are used");
            self.problems
                .insert(path.to_string(), PathProblem::Partial(text));
        } else {
            node.members.insert(name.clone(), child);
        }
        self.changed = true;
    }

    fn replace(&mut self, path: &Arc<str>, data: Vec<u8>, created: i64) {
        self.problems.remove(&**path);
        let data = limit_data(data).unwrap_or_else(|text| {
            self.problems
                .insert(path.to_string(), PathProblem::Partial(text));
            Arc::default()
        });
        if let Some(node) = self.node_mut(path) {
            node.data = data;
            node.created = created;
            self.changed = true;
        }
    }

    /// Applies the result of a scan below `below`. Returns how many paths it changed, and the paths that must be
    /// scanned again because an event arrived meanwhile.
    pub(super) fn merge(&mut self, below: &[String], found: ScanResult<T>) -> (usize, Vec<String>) {
        let mut touched: HashMap<Arc<str>, Vec<Option<ZnodeName>>> = HashMap::new();
        for key in self.touched.take().unwrap_or_default() {
            touched.entry(key.path).or_default().push(key.member);
        }
        let itself = |path: &str| touched.get(path).is_some_and(|all| all.contains(&None));
        let ScanResult { nodes, problems } = found;
        let unreadable = |path: &str| {
            ancestors(path).any(|at| matches!(problems.get(at), Some(PathProblem::Unreadable(_))))
        };
        let below: HashSet<&str> = below.iter().map(String::as_str).collect();
        let covered = |path: &str| ancestors(path).any(|at| below.contains(at));

        let before = self.paths.len();
        let mut again = Vec::new();
        self.paths.retain(|path, _| {
            nodes.contains_key(path) || !covered(path) || unreadable(path) || itself(path)
        });
        let mut different = before - self.paths.len();
        for (path, mut node) in nodes {
            if itself(&path) {
                again.push(path.to_string());
                continue;
            }
            let known = self.paths.get(&path);
            for name in touched.get(&path).into_iter().flatten().flatten() {
                match known.and_then(|known| known.members.get(name)) {
                    Some(child) => node.members.insert(name.clone(), child.clone()),
                    None => node.members.remove(name),
                };
            }
            if known.is_none_or(|known| **known != node) {
                different += 1;
                self.paths.insert(path, Arc::new(node));
            }
        }
        let problems_before = self.problems.clone();
        self.problems.retain(|path, _| !covered(path));
        self.problems.extend(problems);
        self.changed |= different > 0 || self.problems != problems_before;
        (different, again)
    }
}

/// A path and all its ancestors.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    let ends = path
        .match_indices('/')
        .map(|(at, _)| at)
        .filter(|at| *at > 0);
    std::iter::once("/")
        .chain(ends.map(|end| &path[..end]))
        .chain(std::iter::once(path))
}

#[cfg(test)]
mod tests;
