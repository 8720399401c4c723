//! Reading everything below some paths: the first time, after a lost connection, as an audit, and after a one-shot
//! watch has fired. A scan reads all that is readable or fails; a partial result is never published.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::path_pattern::{PathPattern, depth, join_path};
use super::reader::{ReadError, ZnodeReader};
use super::session::MAX_REQUESTS;
use super::snapshot::{MemberDecoder, PathNode};
use super::znode_name::ZnodeName;

/// Matching paths per pattern.
pub(super) const MAX_PATHS: usize = 100_000;

/// Members per path.
pub(super) const MAX_MEMBERS: usize = 10_000;

/// The largest data of a path, in bytes.
const MAX_DATA_BYTES: usize = 64 << 10;

/// Which members a scan takes from the previous snapshot instead of reading them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemberReuse {
    /// None: the ensemble may be another one at the same address.
    None,
    /// Those whose data cannot change: events were lost, but the ensemble is the same.
    Immutable,
    /// All: events report changes.
    All,
}

#[derive(Debug)]
pub(super) struct ScanRequest<T> {
    pub(super) pattern: PathPattern,
    /// Paths at or above the matching ones.
    pub(super) below: Vec<String>,
    pub(super) reuse: MemberReuse,
    /// Whether to set the persistent watch before the first listing.
    pub(super) watch: bool,
    /// The previous snapshot.
    pub(super) known: BTreeMap<Arc<str>, Arc<PathNode<T>>>,
}

#[derive(Debug)]
pub(super) struct ScanResult<T> {
    pub(super) nodes: BTreeMap<Arc<str>, PathNode<T>>,
    pub(super) problems: BTreeMap<String, PathProblem>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PathProblem {
    /// It and everything below it cannot be read; the previous members stay.
    Unreadable(String),
    /// A part of it is left out.
    Partial(String),
}

impl PathProblem {
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Unreadable(text) | Self::Partial(text) => text,
        }
    }
}

#[derive(Debug)]
pub(super) struct ScanOutcome<T> {
    /// The task of the persistent watch that was set.
    pub(super) watch: Option<JoinSet<()>>,
    pub(super) result: Result<ScanResult<T>, ReadError>,
}

pub(super) async fn scan<D: MemberDecoder>(
    reader: Arc<ZnodeReader<D>>,
    request: ScanRequest<D::Output>,
) -> ScanOutcome<D::Output> {
    let _turn = reader.acquire_scan_permit().await;
    let mut watch = None;
    if request.watch && !reader.uses_oneshot_watches() {
        match reader.watch(request.pattern.root()).await {
            Ok(set) => watch = Some(set),
            Err(error) => {
                return ScanOutcome {
                    watch,
                    result: Err(error),
                };
            }
        }
    }
    let result = scan_paths(&reader, &request).await;
    ScanOutcome { watch, result }
}

async fn scan_paths<D: MemberDecoder>(
    reader: &Arc<ZnodeReader<D>>,
    request: &ScanRequest<D::Output>,
) -> Result<ScanResult<D::Output>, ReadError> {
    let mut found = ScanResult {
        nodes: BTreeMap::new(),
        problems: BTreeMap::new(),
    };
    let mut paths = Vec::new();
    for start in &request.below {
        paths.extend(expand_pattern(reader, &request.pattern, start, &mut found).await?);
    }
    let mut listed = Vec::with_capacity(paths.len());
    let (sending, known, reuse) = (Arc::clone(reader), request.known.clone(), request.reuse);
    let send = move |path: String| {
        let reader = Arc::clone(&sending);
        let known = known.get(path.as_str()).cloned();
        async move {
            let listed = list_path(&reader, &path, known, reuse).await;
            (path, listed)
        }
    };
    run_bounded(paths, send, |result| listed.push(result)).await?;
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
            Ok(None) if request.pattern.is_literal() => {
                found.nodes.insert(path, PathNode::default());
            }
            Ok(None) => {}
            Err(ReadError::Path(why)) => {
                found
                    .problems
                    .insert(path.to_string(), PathProblem::Unreadable(why));
            }
            Err(error) => return Err(error),
        }
    }
    let mut lost = None;
    let sending = Arc::clone(reader);
    let send = move |(path, names): (Arc<str>, Vec<ZnodeName>)| {
        let reader = Arc::clone(&sending);
        async move {
            let members = reader.read_members(&path, names).await;
            (path, members)
        }
    };
    run_bounded(missing, send, |(path, members)| match members {
        Ok(members) => {
            if let Some(node) = found.nodes.get_mut(&path) {
                node.members.extend(members);
            }
        }
        Err(error) => lost = Some(error),
    })
    .await?;
    for node in found.nodes.values_mut() {
        // A map built in one go takes half the memory of one that grew.
        node.members = std::mem::take(&mut node.members).into_iter().collect();
    }
    lost.map_or(Ok(found), Err)
}

/// The paths below `start` that are as deep as the pattern. Those whose last components are literal may not exist.
async fn expand_pattern<D: MemberDecoder>(
    reader: &Arc<ZnodeReader<D>>,
    pattern: &PathPattern,
    start: &str,
    found: &mut ScanResult<D::Output>,
) -> Result<Vec<String>, ReadError> {
    let mut level = vec![start.to_owned()];
    for index in depth(start)..pattern.depth() {
        let name = pattern.component(index).unwrap_or_default();
        if name != "*" {
            level = level.iter().map(|path| join_path(path, name)).collect();
            continue;
        }
        let mut listed = Vec::new();
        let sending = Arc::clone(reader);
        let send = move |path: String| {
            let reader = Arc::clone(&sending);
            async move {
                let listed = reader.list_children(&path).await;
                (path, listed)
            }
        };
        run_bounded(level, send, |result| listed.push(result)).await?;
        level = Vec::new();
        for (path, listed) in listed {
            match listed {
                Ok(listed) => {
                    let names = listed.map(|(names, _)| names).unwrap_or_default();
                    level.extend(names.iter().map(|name| join_path(&path, name)));
                }
                Err(ReadError::Path(why)) => {
                    found.problems.insert(path, PathProblem::Unreadable(why));
                }
                Err(error) => return Err(error),
            }
        }
        if level.len() > MAX_PATHS {
            let text = format!("more than {MAX_PATHS} paths match {pattern}");
            found
                .problems
                .insert(start.to_owned(), PathProblem::Partial(text));
            level.sort();
            level.truncate(MAX_PATHS);
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

/// Lists a path, with its data and those of its members that are reused.
async fn list_path<D: MemberDecoder>(
    reader: &ZnodeReader<D>,
    path: &str,
    known: Option<Arc<PathNode<D::Output>>>,
    reuse: MemberReuse,
) -> Result<Option<PathListing<D::Output>>, ReadError> {
    let Some((mut names, created)) = reader.list_children(path).await? else {
        return Ok(None);
    };
    // Sequence numbers are unique only within one incarnation of a path.
    let known = known.filter(|node| node.created == created && reuse != MemberReuse::None);
    let mut problem = None;
    let data = match &known {
        Some(node) if reuse == MemberReuse::All && reader.data_is_watched(path) => {
            Arc::clone(&node.data)
        }
        _ => {
            let (data, _) = reader.read_path_data(path).await?.unwrap_or_default();
            limit_data(data).unwrap_or_else(|text| {
                problem = Some(text);
                Arc::default()
            })
        }
    };
    names.retain(|name| reader.format().is_member(name));
    if names.len() > MAX_MEMBERS {
        problem = Some(format!(
            "of its {} members {MAX_MEMBERS} are used",
            names.len()
        ));
        names.sort();
        names.truncate(MAX_MEMBERS);
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

/// The data of a path, or an error when it is too large to be used.
pub(super) fn limit_data(data: Vec<u8>) -> Result<Arc<[u8]>, String> {
    if data.len() > MAX_DATA_BYTES {
        return Err(format!("its data is too large: {} bytes", data.len()));
    }
    Ok(data.into())
}

/// Runs `send` for each item, a bounded number at a time, and passes on each result as it arrives. Every request has
/// ended when this returns. A fixed set of tasks is used: a task per item would fragment the heap.
async fn run_bounded<T, U, F>(
    items: Vec<T>,
    send: impl Fn(T) -> F + Send + Sync + 'static,
    mut take: impl FnMut(U),
) -> Result<(), ReadError>
where
    T: Send + 'static,
    U: Send + 'static,
    F: Future<Output = U> + Send + 'static,
{
    let tasks = items.len().min(MAX_REQUESTS);
    let queue = Arc::new((Mutex::new(items.into_iter()), send));
    let (sender, mut results) = mpsc::channel(MAX_REQUESTS);
    let mut running = JoinSet::new();
    for _ in 0..tasks {
        let (queue, sender) = (Arc::clone(&queue), sender.clone());
        running.spawn(async move {
            let (items, send) = &*queue;
            let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
            while let Some(item) = next() {
                // The receiver outlives the tasks.
                let _ = sender.send(send(item).await).await;
            }
        });
    }
    drop(sender);
    while let Some(result) = results.recv().await {
        take(result);
    }
    let mut ended = Ok(());
    while let Some(task) = running.join_next().await {
        ended = ended.and(task.map_err(|defect| ReadError::Unavailable(defect.to_string())));
    }
    ended
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn concurrent_requests_are_bounded() {
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let highest = Arc::clone(&most);
        let send = move |item| {
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
        let items: Vec<usize> = (0..MAX_REQUESTS * 4).collect();
        let mut results = Vec::new();
        run_bounded(items.clone(), send, |item| results.push(item))
            .await
            .unwrap();
        results.sort_unstable();
        assert_eq!(results, items);
        assert!(most.load(Ordering::SeqCst) <= MAX_REQUESTS);
        let defect = run_bounded(vec![1, 0, 2], |item| async move { 6 / item }, drop).await;
        assert!(
            matches!(defect, Err(ReadError::Unavailable(_))),
            "{defect:?}"
        );
    }
}
