//! Several things found as one: what all paths of a pattern, all names of a DNS watcher or all parts of a union say
//! together.

use std::sync::Arc;

use crate::model::Discovered;

/// Everything of `parts`, in their order.
///
/// It is as old as the part that was confirmed longest ago, and unanswered (`synced` is `None`) as long as any part is
/// still asked for the first time: half a list must not pass for the whole. A part that has never answered and is in
/// trouble does not hold back the others; then the whole is `partial`.
#[must_use]
pub fn merge<'a>(parts: impl IntoIterator<Item = &'a Arc<Discovered>>) -> Discovered {
    let mut whole = Discovered::default();
    let mut troubles: Vec<&str> = Vec::new();
    let mut asking = false;
    let mut jobs = Vec::new();
    for part in parts {
        if let Some(trouble) = &part.trouble
            && !troubles.contains(&trouble.as_str())
        {
            troubles.push(trouble);
        }
        whole.rejects.extend(part.rejects.iter().cloned());
        let Some(synced) = part.synced else {
            asking |= part.trouble.is_none();
            whole.partial = true;
            continue;
        };
        whole.partial |= part.partial;
        whole.synced = Some(whole.synced.map_or(synced, |whole| whole.min(synced)));
        whole.backends.extend(part.backends.iter().cloned());
        jobs.push(&part.job);
        if whole.generator_config.is_none() {
            whole.generator_config.clone_from(&part.generator_config);
        }
    }
    if asking {
        whole.synced = None;
    }
    whole.partial &= whole.synced.is_some();
    if let Some((first, rest)) = jobs.split_first()
        && rest.iter().all(|job| job == first)
    {
        whole.job.clone_from(first);
    }
    if !troubles.is_empty() {
        whole.trouble = Some(troubles.join("; "));
    }
    whole
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{Backend, Job};

    fn part(port: u16, synced: Option<u64>, trouble: Option<&str>) -> Arc<Discovered> {
        Arc::new(Discovered {
            backends: vec![Arc::new(Backend::new("10.0.0.1", port, "test").unwrap())],
            synced: synced.map(Duration::from_secs),
            trouble: trouble.map(str::to_owned),
            ..Discovered::default()
        })
    }

    #[test]
    fn the_whole_is_as_old_as_its_oldest_part_and_names_every_trouble_once() {
        let parts = [
            part(1, Some(5), Some("away")),
            part(2, Some(3), None),
            part(3, Some(9), Some("away")),
            part(4, Some(9), Some("denied")),
        ];
        let whole = merge(&parts);
        assert_eq!(whole.synced, Some(Duration::from_secs(3)));
        assert_eq!(whole.trouble.as_deref(), Some("away; denied"));
        assert_eq!(whole.backends.len(), 4);
    }

    #[test]
    fn half_a_list_does_not_pass_for_the_whole() {
        let asking = Arc::new(Discovered::default());
        assert_eq!(merge(&[part(1, Some(5), None), asking]).synced, None);
    }

    #[test]
    fn a_part_that_never_answers_does_not_hold_back_the_others() {
        let whole = merge(&[part(1, Some(5), None), part(2, None, Some("denied"))]);
        assert_eq!(whole.synced, Some(Duration::from_secs(5)));
        assert!(whole.partial);
        let ports: Vec<u16> = whole.backends.iter().map(|backend| backend.port).collect();
        assert_eq!(ports, [1], "what an unanswered part holds means nothing");
    }

    #[test]
    fn one_job_is_the_job_and_two_are_none() {
        let job = |name: &str| {
            let mut part = Discovered::clone(&part(1, Some(1), None));
            part.job = Some(Job {
                cluster: None,
                role: "www".into(),
                environment: "prod".into(),
                name: name.into(),
            });
            Arc::new(part)
        };
        assert_eq!(merge(&[job("a"), job("a")]).job, job("a").job);
        assert_eq!(merge(&[job("a"), job("b")]).job, None);
    }

    #[test]
    fn nothing_is_unanswered() {
        assert_eq!(merge(&[]), Discovered::default());
    }
}
