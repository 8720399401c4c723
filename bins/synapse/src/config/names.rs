//! Names that must be one of a kind: services, and the proxies that stand in HAProxy's file.

use std::collections::HashMap;

use super::context::{Context, Kind};
use crate::settings::{Place, Settings};

/// What the shared frontend is called in HAProxy's file, as in Synapse's.
pub(super) const SHARED_FRONTEND: &str = "shared-frontend";

/// Reports names that are given twice.
pub(super) fn check(context: &mut Context, settings: &Settings) {
    let mut services = HashMap::new();
    for service in &settings.services {
        once(
            context,
            &mut services,
            "service",
            &service.name,
            &service.place,
        );
    }
    // HAProxy refuses two frontends or two backends of one name; a `listen` is both.
    let (mut frontends, mut backends) = (HashMap::new(), HashMap::new());
    for (head, _) in &settings.haproxy.extra_sections {
        let mut words = head.text.split_ascii_whitespace();
        let (Some(kind), Some(name)) = (words.next(), words.next()) else {
            continue;
        };
        let place = head.place.clone().unwrap_or_default();
        if matches!(kind, "frontend" | "listen") {
            once(context, &mut frontends, "frontend", name, &place);
        }
        if matches!(kind, "backend" | "listen") {
            once(context, &mut backends, "backend", name, &place);
        }
    }
    if let Some(shared) = &settings.haproxy.shared_frontend {
        let place = shared.iter().find_map(|line| line.place.clone());
        let place = place.unwrap_or_default();
        once(context, &mut frontends, "frontend", SHARED_FRONTEND, &place);
    }
    for service in &settings.services {
        let Some(proxy) = &service.haproxy else {
            continue;
        };
        // Two services of one name have been told already.
        if services.get(service.name.as_str()) != Some(&service.place) {
            continue;
        }
        if proxy.port.is_some() {
            once(
                context,
                &mut frontends,
                "frontend",
                &service.name,
                &service.place,
            );
        }
        let name = proxy.backend_name.as_ref().unwrap_or(&service.name);
        once(context, &mut backends, "backend", name, &service.place);
    }
}

fn once<'s>(
    context: &mut Context,
    known: &mut HashMap<&'s str, Place>,
    kind: &str,
    name: &'s str,
    place: &Place,
) {
    match known.get(name) {
        Some(first) => {
            let message = format!("a second {kind} `{name}` (the first: {first})");
            context.push_at(Kind::Error, place.clone(), message, "rename one of them");
        }
        None => {
            known.insert(name, place.clone());
        }
    }
}
