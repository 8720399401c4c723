//! Reading all below some paths: the first time, after a connection was lost, as an audit, and, where watches fire once,
//! after one has fired. A scan either reads everything it can or fails; nobody sees a part of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::path_pattern::{PathPattern, depth, join};
use super::reader::{ReadError, ZnodeReader};
use super::session::IN_FLIGHT;
use super::snapshot::{MemberDecoder, PathNode};
use super::znode_name::ZnodeName;

/// The most paths one pattern may match.
pub(super) const PATHS: usize = 100_000;

/// The most registrations below one path.
pub(super) const MEMBERS: usize = 10_000;

/// The largest data of a path, in bytes.
const DATA: usize = 64 << 10;

/// What a scan need not read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemberReuse {
    /// Everything is read: the ensemble may be another one behind the same address.
    Nothing,
    /// Members whose bytes cannot change are not: events were lost, but the ensemble is the same.
    Immutable,
    /// No known member is: events tell of changes.
    All,
}

/// What to scan.
#[derive(Debug)]
pub(super) struct ScanRequest<T> {
    pub(super) pattern: PathPattern,
    /// Paths at or above those that match.
    pub(super) below: Vec<String>,
    pub(super) reuse: MemberReuse,
    /// Whether the persistent watch is set before anything is listed.
    pub(super) watch: bool,
    /// What is known.
    pub(super) known: BTreeMap<Arc<str>, Arc<PathNode<T>>>,
}

/// What a scan has found.
#[derive(Debug)]
pub(super) struct ScanResult<T> {
    pub(super) nodes: BTreeMap<Arc<str>, PathNode<T>>,
    pub(super) problems: BTreeMap<String, PathProblem>,
}

/// What is wrong with a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PathProblem {
    /// It and what is below it cannot be read: what is known of it stands.
    Unreadable(String),
    /// Some of it is not used.
    Partial(String),
}

impl PathProblem {
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Unreadable(text) | Self::Partial(text) => text,
        }
    }
}

/// How a scan ended.
#[derive(Debug)]
pub(super) struct ScanOutcome<T> {
    /// The persistent watch that was set; it holds for as long as this does.
    pub(super) watch: Option<JoinSet<()>>,
    pub(super) found: Result<ScanResult<T>, ReadError>,
}

/// Scans.
pub(super) async fn scan<D: MemberDecoder>(
    reader: Arc<ZnodeReader<D>>,
    order: ScanRequest<D::Output>,
) -> ScanOutcome<D::Output> {
    let _turn = reader.turn().await;
    let mut watch = None;
    if order.watch && !reader.fires_once() {
        match reader.watch(order.pattern.root()).await {
            Ok(set) => watch = Some(set),
            Err(fault) => {
                return ScanOutcome {
                    watch,
                    found: Err(fault),
                };
            }
        }
    }
    let found = read(&reader, &order).await;
    ScanOutcome { watch, found }
}

async fn read<D: MemberDecoder>(
    reader: &Arc<ZnodeReader<D>>,
    order: &ScanRequest<D::Output>,
) -> Result<ScanResult<D::Output>, ReadError> {
    let mut found = ScanResult {
        nodes: BTreeMap::new(),
        problems: BTreeMap::new(),
    };
    let mut paths = Vec::new();
    for start in &order.below {
        paths.extend(expand(reader, &order.pattern, start, &mut found).await?);
    }
    let mut listed = Vec::with_capacity(paths.len());
    let (asking, known, reuse) = (Arc::clone(reader), order.known.clone(), order.reuse);
    let ask = move |path: String| {
        let reader = Arc::clone(&asking);
        let known = known.get(path.as_str()).cloned();
        async move {
            let listed = list(&reader, &path, known, reuse).await;
            (path, listed)
        }
    };
    each(paths, ask, |answer| listed.push(answer)).await?;
    let mut missing = Vec::new();
    for (path, listed) in listed {
        let path: Arc<str> = path.into();
        match listed {
            Ok(Some(PathListing {
                node,
                problem,
                unread,
            })) => {
                let batches = reader.batches(&path, unread).into_iter();
                missing.extend(batches.map(|names| (Arc::clone(&path), names)));
                found
                    .problems
                    .extend(problem.map(|text| (path.to_string(), PathProblem::Partial(text))));
                found.nodes.insert(path, node);
            }
            Ok(None) if order.pattern.is_literal() => {
                found.nodes.insert(path, PathNode::default());
            }
            Ok(None) => {}
            Err(ReadError::Path(why)) => {
                found
                    .problems
                    .insert(path.to_string(), PathProblem::Unreadable(why));
            }
            Err(fault) => return Err(fault),
        }
    }
    let mut lost = None;
    let asking = Arc::clone(reader);
    let ask = move |(path, names): (Arc<str>, Vec<ZnodeName>)| {
        let reader = Arc::clone(&asking);
        async move {
            let members = reader.members(&path, names).await;
            (path, members)
        }
    };
    each(missing, ask, |(path, members)| match members {
        Ok(members) => {
            if let Some(node) = found.nodes.get_mut(&path) {
                node.members.extend(members);
            }
        }
        Err(fault) => lost = Some(fault),
    })
    .await?;
    for node in found.nodes.values_mut() {
        // A map that is made in one go takes half the memory of one that grew.
        node.members = std::mem::take(&mut node.members).into_iter().collect();
    }
    lost.map_or(Ok(found), Err)
}

/// The paths below `start` that are as deep as the pattern. Whether those whose last components are literal exist is
/// not known yet.
async fn expand<D: MemberDecoder>(
    reader: &Arc<ZnodeReader<D>>,
    pattern: &PathPattern,
    start: &str,
    found: &mut ScanResult<D::Output>,
) -> Result<Vec<String>, ReadError> {
    let mut level = vec![start.to_owned()];
    for index in depth(start)..pattern.depth() {
        let name = pattern.component(index).unwrap_or_default();
        if name != "*" {
            level = level.iter().map(|path| join(path, name)).collect();
            continue;
        }
        let mut listed = Vec::new();
        let asking = Arc::clone(reader);
        let ask = move |path: String| {
            let reader = Arc::clone(&asking);
            async move {
                let listed = reader.children(&path).await;
                (path, listed)
            }
        };
        each(level, ask, |answer| listed.push(answer)).await?;
        level = Vec::new();
        for (path, listed) in listed {
            match listed {
                Ok(listed) => {
                    let names = listed.map(|(names, _)| names).unwrap_or_default();
                    level.extend(names.iter().map(|name| join(&path, name)));
                }
                Err(ReadError::Path(why)) => {
                    found.problems.insert(path, PathProblem::Unreadable(why));
                }
                Err(fault) => return Err(fault),
            }
        }
        if level.len() > PATHS {
            let text = format!("more than {PATHS} paths match {pattern}");
            found
                .problems
                .insert(start.to_owned(), PathProblem::Partial(text));
            level.sort();
            level.truncate(PATHS);
        }
    }
    Ok(level)
}

struct PathListing<T> {
    node: PathNode<T>,
    problem: Option<String>,
    /// Members that must be read.
    unread: Vec<ZnodeName>,
}

/// A path, its data and those of its members that are known.
async fn list<D: MemberDecoder>(
    reader: &ZnodeReader<D>,
    path: &str,
    known: Option<Arc<PathNode<D::Output>>>,
    reuse: MemberReuse,
) -> Result<Option<PathListing<D::Output>>, ReadError> {
    let Some((mut names, created)) = reader.children(path).await? else {
        return Ok(None);
    };
    // Of another incarnation of the path nothing holds, not even that a sequence number is given out once.
    let known = known.filter(|node| node.created == created && reuse != MemberReuse::Nothing);
    let mut problem = None;
    let data = match &known {
        Some(node) if reuse == MemberReuse::All && reader.data_is_watched(path) => {
            Arc::clone(&node.data)
        }
        _ => {
            let (data, _) = reader.data(path).await?.unwrap_or_default();
            bounded(data).unwrap_or_else(|text| {
                problem = Some(text);
                Arc::default()
            })
        }
    };
    names.retain(|name| reader.format().is_member(name));
    if names.len() > MEMBERS {
        problem = Some(format!("of its {} members {MEMBERS} are used", names.len()));
        names.sort();
        names.truncate(MEMBERS);
    }
    let mut node = PathNode {
        exists: true,
        data,
        created,
        ..PathNode::default()
    };
    let mut unread = Vec::new();
    for name in names {
        let name = ZnodeName::from(name.as_str());
        match known.as_ref().and_then(|node| node.members.get(&name)) {
            Some(child) if reuse == MemberReuse::All || child.immutable => {
                node.members.insert(name, child.clone());
            }
            _ => unread.push(name),
        }
    }
    Ok(Some(PathListing {
        node,
        problem,
        unread,
    }))
}

/// The data of a path if it is of a size that is used.
pub(super) fn bounded(data: Vec<u8>) -> Result<Arc<[u8]>, String> {
    if data.len() > DATA {
        return Err(format!("its {} bytes of data are not used", data.len()));
    }
    Ok(data.into())
}

/// Asks for each item, a bounded number of them at a time, and passes on each answer as it comes. Every request has
/// ended when this does. A fixed set of tasks does it: a task per item would leave the heap in pieces.
async fn each<T, U, F>(
    items: Vec<T>,
    ask: impl Fn(T) -> F + Send + Sync + 'static,
    mut take: impl FnMut(U),
) -> Result<(), ReadError>
where
    T: Send + 'static,
    U: Send + 'static,
    F: Future<Output = U> + Send + 'static,
{
    let tasks = items.len().min(IN_FLIGHT);
    let shared = Arc::new((Mutex::new(items.into_iter()), ask));
    let (give, mut answers) = mpsc::channel(IN_FLIGHT);
    let mut running = JoinSet::new();
    for _ in 0..tasks {
        let (shared, give) = (Arc::clone(&shared), give.clone());
        running.spawn(async move {
            let (items, ask) = &*shared;
            let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
            while let Some(item) = next() {
                // The other end waits for all tasks.
                let _ = give.send(ask(item).await).await;
            }
        });
    }
    drop(give);
    while let Some(answer) = answers.recv().await {
        take(answer);
    }
    let mut ended = Ok(());
    while let Some(task) = running.join_next().await {
        ended = ended.and(task.map_err(|defect| ReadError::Lost(defect.to_string())));
    }
    ended
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn only_so_many_requests_are_under_way() {
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let highest = Arc::clone(&most);
        let ask = move |item| {
            let (running, most) = (Arc::clone(&running), Arc::clone(&highest));
            async move {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                for _ in 0..item % 7 {
                    tokio::task::yield_now().await;
                }
                running.fetch_sub(1, Ordering::SeqCst);
                item
            }
        };
        let items: Vec<usize> = (0..IN_FLIGHT * 4).collect();
        let mut answers = Vec::new();
        each(items.clone(), ask, |item| answers.push(item))
            .await
            .unwrap();
        answers.sort_unstable();
        assert_eq!(answers, items);
        assert!(most.load(Ordering::SeqCst) <= IN_FLIGHT);
        let defect = each(vec![1, 0, 2], |item| async move { 6 / item }, drop).await;
        assert!(matches!(defect, Err(ReadError::Lost(_))), "{defect:?}");
    }
}
