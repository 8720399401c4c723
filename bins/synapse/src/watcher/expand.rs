//! Services of a pattern: one for each path that matches, or one of all of them. Pure.
//!
//! Owns names and text; which paths match is the watcher's. Role, environment and job come from the registry, where
//! whoever may register a job chooses them: only safe names reach the configuration.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Found;
use super::merge::merge;
use crate::model::{Discovered, Job, Reason, Reject, safe_name};
use crate::settings::{Line, Proxy, Service};

const ROLE: &str = "%{role}";
const ENVIRONMENT: &str = "%{environment}";
const JOB: &str = "%{job}";

/// The services that one configured service stands for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Expansion {
    /// Each with what was found for it, in the order of the paths.
    pub services: Vec<(Arc<Service>, Arc<Discovered>)>,
    /// Paths that are no service, and why; `source` is the path.
    pub rejects: Vec<Reject>,
    /// What is wrong with the pattern itself, where there is no service to say it of.
    pub trouble: Option<String>,
}

/// Whether every path that matches is a service of its own.
#[must_use]
pub fn many(service: &Service) -> bool {
    [ROLE, ENVIRONMENT, JOB]
        .iter()
        .any(|placeholder| service.name.contains(placeholder))
}

/// All that was found as one; the same, where it is one.
fn whole(found: &Found) -> Arc<Discovered> {
    let mut parts = found.values();
    match (parts.next(), parts.next()) {
        (Some(only), None) if only.synced.is_some() => Arc::clone(only),
        _ => Arc::new(merge(found.values())),
    }
}

/// What `service` stands for, given what was found.
#[must_use]
pub fn expand(service: &Arc<Service>, found: &Found) -> Expansion {
    if !many(service) {
        return Expansion {
            services: vec![(Arc::clone(service), whole(found))],
            ..Expansion::default()
        };
    }
    let mut expansion = Expansion::default();
    let mut names = BTreeSet::new();
    for (path, discovered) in found {
        if path.is_empty() {
            expansion.trouble.clone_from(&discovered.trouble);
            continue;
        }
        match concrete(service, discovered.job.as_ref()) {
            Ok(service) if names.insert(service.name.clone()) => {
                expansion
                    .services
                    .push((Arc::new(service), Arc::clone(discovered)));
            }
            // The first keeps it: a service must not be taken over by registering another job.
            Ok(service) => expansion.rejects.push(Reject::new(
                path,
                Reason::Duplicate,
                format!(
                    "another path is service {} already: {}",
                    service.name,
                    more(&service)
                ),
            )),
            Err((reason, why)) => expansion.rejects.push(Reject::new(path, reason, why)),
        }
    }
    expansion
}

fn more(service: &Service) -> String {
    format!(
        "use {ROLE}, {ENVIRONMENT} and {JOB} in the name at {}:{}",
        service.place.file.display(),
        service.place.line
    )
}

/// The service that `service`, a pattern's, is for `job`.
///
/// # Errors
/// The job is not known, or parts of its key cannot be part of a name.
pub fn concrete(service: &Service, job: Option<&Job>) -> Result<Service, (Reason, String)> {
    let Some(job) = job else {
        let why = format!(
            "the path does not end in role, environment and job, which {} needs",
            service.name
        );
        return Err((Reason::Malformed, why));
    };
    let parts = [&job.role, &job.environment, &job.name];
    if let Some(part) = parts.iter().find(|part| !safe_name(part)) {
        return Err((Reason::Unsafe, format!("`{part}` cannot be part of a name")));
    }
    let fill = |text: &str| {
        text.replace(ROLE, &job.role)
            .replace(ENVIRONMENT, &job.environment)
            .replace(JOB, &job.name)
    };
    let name = fill(&service.name);
    if !safe_name(&name) {
        return Err((Reason::Unsafe, format!("`{name}` cannot be a name")));
    }
    Ok(Service {
        name,
        haproxy: service.haproxy.as_ref().map(|proxy| filled(proxy, fill)),
        ..service.clone()
    })
}

fn filled(proxy: &Proxy, fill: impl Fn(&str) -> String) -> Proxy {
    let line = |line: &Line| Line {
        text: fill(&line.text),
        place: line.place.clone(),
    };
    let lines = |lines: &[Line]| lines.iter().map(line).collect();
    let text = |text: &Option<String>| text.as_deref().map(&fill);
    Proxy {
        bind_address: text(&proxy.bind_address),
        bind_options: text(&proxy.bind_options),
        server_options: proxy.server_options.as_ref().map(line),
        frontend: lines(&proxy.frontend),
        backend: lines(&proxy.backend),
        shared_frontend: lines(&proxy.shared_frontend),
        backend_name: text(&proxy.backend_name),
        ..proxy.clone()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{answer, backend, service};
    use super::*;

    fn job(role: &str, environment: &str, name: &str) -> Job {
        Job {
            cluster: None,
            role: role.to_owned(),
            environment: environment.to_owned(),
            name: name.to_owned(),
        }
    }

    fn found(jobs: &[Job]) -> Found {
        let paths = jobs.iter().enumerate().map(|(index, job)| {
            let mut discovered = answer(vec![backend(index as u16 + 1, Some(1))]);
            discovered.job = Some(job.clone());
            let path = format!("/aurora/{}/{}/{}", job.role, job.environment, job.name);
            (path, Arc::new(discovered))
        });
        paths.collect()
    }

    fn line(text: &str) -> Line {
        Line {
            text: text.to_owned(),
            place: None,
        }
    }

    fn names(expansion: &Expansion) -> Vec<&str> {
        let services = expansion.services.iter();
        services.map(|(service, _)| service.name.as_str()).collect()
    }

    #[test]
    fn every_path_is_a_service_with_its_own_lines() {
        let mut pattern = service("%{job}-%{environment}");
        pattern.haproxy = Some(Proxy {
            shared_frontend: vec![line("acl is_%{job} hdr_dom(host) -i %{job}.%{role}.lb")],
            backend: vec![line("option httpchk GET /%{environment}")],
            frontend: vec![line("maxconn 10")],
            server_options: Some(line("check observe layer7 # %{port} %{name}")),
            backend_name: Some("%{role}_%{job}".into()),
            ..Proxy::default()
        });
        let expansion = expand(
            &Arc::new(pattern),
            &found(&[job("www", "prod", "web"), job("www", "prod", "api")]),
        );
        assert_eq!(names(&expansion), ["api-prod", "web-prod"]);
        let proxy = expansion.services[1].0.haproxy.as_ref().unwrap();
        assert_eq!(
            proxy.shared_frontend[0].text,
            "acl is_web hdr_dom(host) -i web.www.lb"
        );
        assert_eq!(proxy.backend[0].text, "option httpchk GET /prod");
        assert_eq!(proxy.backend_name.as_deref(), Some("www_web"));
        let options = proxy.server_options.as_ref().unwrap();
        assert!(
            options.text.ends_with("%{port} %{name}"),
            "the renderer's stay"
        );
        assert_eq!(expansion.services[1].1.backends[0].port, 1);
    }

    #[test]
    fn without_placeholders_all_paths_are_one_service() {
        let expansion = expand(
            &service("all").into(),
            &found(&[job("www", "prod", "web"), job("www", "prod", "api")]),
        );
        assert_eq!(names(&expansion), ["all"]);
        assert_eq!(expansion.services[0].1.backends.len(), 2);
    }

    #[test]
    fn a_name_is_given_to_one_path_and_the_other_is_told() {
        let expansion = expand(
            &service("%{job}").into(),
            &found(&[job("a", "prod", "web"), job("b", "prod", "web")]),
        );
        assert_eq!(names(&expansion), ["web"]);
        assert_eq!(expansion.services[0].1.job, Some(job("a", "prod", "web")));
        assert_eq!(expansion.rejects[0].reason, Reason::Duplicate);
        assert_eq!(expansion.rejects[0].source, "/aurora/b/prod/web");
    }

    #[test]
    fn a_path_that_is_no_job_is_told() {
        let found = Found::from([
            (String::new(), Arc::new(answer(Vec::new()))),
            ("/other".to_owned(), Arc::new(answer(Vec::new()))),
        ]);
        let expansion = expand(&service("%{job}").into(), &found);
        assert!(expansion.services.is_empty());
        assert_eq!(expansion.rejects.len(), 1);
        assert_eq!(expansion.rejects[0].source, "/other");
    }

    #[test]
    fn trouble_without_any_path_is_kept() {
        let mut away = answer(Vec::new());
        away.trouble = Some("away".into());
        let found = Found::from([(String::new(), Arc::new(away))]);
        assert_eq!(
            expand(&service("%{job}").into(), &found).trouble.as_deref(),
            Some("away")
        );
        let merged = expand(&service("all").into(), &found);
        assert_eq!(merged.services[0].1.trouble.as_deref(), Some("away"));
    }

    proptest! {
        #[test]
        fn no_job_name_reaches_a_line_unless_it_is_safe(
            parts in prop::array::uniform3("[ -~\\n\\t%{}#\"'\\\\]{0,12}|[a-z0-9_.-]{1,12}")
        ) {
            let [role, environment, name] = &parts;
            let mut pattern = service("%{job}");
            pattern.haproxy = Some(Proxy { backend: vec![line("# %{role}/%{job}")], ..Proxy::default() });
            let expansion = expand(&Arc::new(pattern), &found(&[job(role, environment, name)]));
            let safe = parts.iter().all(|part| safe_name(part));
            prop_assert_eq!(expansion.services.len(), usize::from(safe));
            prop_assert_eq!(expansion.rejects.len(), usize::from(!safe));
            for (service, _) in &expansion.services {
                prop_assert_eq!(&service.name, name);
                let text = &service.haproxy.as_ref().unwrap().backend[0].text;
                prop_assert_eq!(text, &format!("# {role}/{name}"));
            }
        }
    }
}
