//! The transaction of a reload, beside the loop, and the search for the services to blame when HAProxy refuses the file.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hostkit::clock;

use crate::haproxy::bind::Conflict;
use crate::haproxy::check::CheckError;
use crate::haproxy::quarantine::{Candidate, Checker};
use crate::haproxy::reload::Way;
use crate::haproxy::{Applied, ApplyError, Cause, Change, Deadlines, Step, apply};
use crate::membership::Roster;
use crate::render::{Input, Rendered, Renderer};
use crate::settings::{Haproxy, Service};

/// Checks of a search for the services that HAProxy refuses.
const CHECKS: usize = 64;

/// One reload, and where HAProxy refuses the file, the search for who is to blame.
pub(super) struct Reload {
    pub(super) haproxy: Haproxy,
    pub(super) way: Way,
    pub(super) rendered: Arc<Rendered>,
    pub(super) written: Vec<(Arc<Service>, Arc<Roster>)>,
    pub(super) ours: BTreeSet<String>,
    pub(super) causes: BTreeSet<&'static str>,
}

/// What a reload came to.
pub(crate) struct Outcome {
    pub(super) rendered: Arc<Rendered>,
    pub(super) services: Vec<Arc<Service>>,
    pub(super) causes: BTreeSet<&'static str>,
    pub(super) took: Duration,
    pub(super) result: Result<Applied, ApplyError>,
    /// Whether HAProxy took the candidate; `None` when it was not asked.
    pub(super) checked: Option<bool>,
    /// The services that must be left out, and why, when the file was refused for them.
    pub(super) blamed: BTreeMap<String, String>,
    /// Whether that may pass by itself.
    pub(super) passing: bool,
}

impl Reload {
    pub(super) async fn run(self) -> Outcome {
        let start = clock::since_boot();
        let text = self.rendered.text();
        let change = Change {
            haproxy: &self.haproxy,
            way: &self.way,
            text: &text,
            structure: self
                .haproxy
                .inject
                .then_some(self.rendered.structure.as_str()),
            ours: &self.ours,
            deadlines: Deadlines::default(),
        };
        let mut passed = false;
        let result = apply(change, &mut |step| {
            tracing::debug!(step = step.word(), "reload");
            // The first step after the check.
            passed |= step == Step::Binds;
        })
        .await;
        let took = clock::since_boot().saturating_sub(start);
        let cause = result.as_ref().err().map(|error| &*error.cause);
        let refused = matches!(cause, Some(Cause::Check(CheckError::Refused { .. })));
        let blamed = match cause {
            Some(Cause::Check(CheckError::Refused { .. })) => self.blame().await,
            Some(Cause::Binds { conflicts }) => self.binders(conflicts),
            _ => BTreeMap::new(),
        };
        let passing = matches!(cause, Some(Cause::Binds { .. }));
        Outcome {
            services: self
                .written
                .into_iter()
                .map(|(service, _)| service)
                .collect(),
            rendered: self.rendered,
            causes: self.causes,
            took,
            result,
            checked: (passed || refused).then_some(passed),
            blamed,
            passing,
        }
    }

    /// The services whose binds cannot be had; none when one of the binds is of no service.
    fn binders(&self, conflicts: &[Conflict]) -> BTreeMap<String, String> {
        let blamed = conflicts.iter().map(|conflict| {
            let service = self.rendered.origin(conflict.bind.line)?.service?;
            Some((service.to_string(), conflict.to_string()))
        });
        blamed.collect::<Option<_>>().unwrap_or_default()
    }

    async fn blame(&self) -> BTreeMap<String, String> {
        let mut renderer = Renderer::new(&self.haproxy);
        let names = self
            .written
            .iter()
            .map(|(service, _)| service.name.clone())
            .collect();
        let render = |without: &BTreeSet<String>| {
            let inputs: Vec<Input<'_>> = self
                .written
                .iter()
                .filter(|(service, _)| !without.contains(&service.name))
                .map(|(service, roster)| Input {
                    service,
                    roster,
                    revision: 0,
                })
                .collect();
            let rendered = renderer.render(&inputs);
            let text = rendered.text();
            let lines = (1..=text.lines().count())
                .filter_map(|line| Some((line, rendered.origin(line)?.service?.to_string())))
                .collect();
            Candidate { text, lines }
        };
        let file = self.haproxy.config_file.clone().unwrap_or_default();
        let checker = Checker {
            binary: self.haproxy.binary.clone(),
            file: file.with_extension("search"),
            deadline: crate::haproxy::check::DEADLINE,
            limit: CHECKS,
        };
        match checker.quarantine(&names, render).await {
            Ok(found) => found.without,
            Err(error) => {
                tracing::error!("no service can be blamed: {error}");
                BTreeMap::new()
            }
        }
    }
}
