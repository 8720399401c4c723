//! Generator configuration: what a registry says about how a service is written, which stands in the place of what the
//! file says (Synapse's `generator_config_path`).
//!
//! Whoever may write that znode writes HAProxy's configuration; so it goes through the same checks as the file, and what
//! is wrong with it leaves the service as it was.

use std::path::Path;
use std::sync::Arc;

use hostkit::Failure;

use super::context::{Context, Finding, Map};
use super::pattern::Pattern;
use super::proxy;
use super::service::Around;
use super::tree::{self, At, Value};
use super::{binds, keys, names};
use crate::settings::{Discovery, Line, Proxy, Servers, Service, Settings};

/// `local` as the registry has it, given its `text`: `{"haproxy": {..}, "file_output": {..}}`, of which each replaces
/// the whole section of the file. `others` are the services it must not collide with.
///
/// # Errors
/// It is not what the file could have said in its place (exit 78): the message names the znode and the line.
pub fn generated<'s>(
    settings: &Settings,
    local: &Service,
    others: impl Iterator<Item = &'s Arc<Service>>,
    text: &str,
    lenient: bool,
) -> Result<(Service, Vec<Finding>), Failure> {
    let mut context = Context::new(lenient);
    let znode = znode(&local.discovery).unwrap_or(&local.name);
    let file = context.file(Path::new(znode));
    let mut service = local.clone();
    if let Some(root) = tree::parse(file, text, &mut context)
        && let Value::Map(sections) = &root.value
    {
        let around = around(settings);
        let pattern = Pattern::of(&mut context, &local.name, At::default(), &local.discovery);
        for section in sections {
            match section.key.as_ref() {
                "haproxy" if around.haproxy => {
                    let path = "haproxy".to_owned();
                    let written = proxy::read(&mut context, &around, &pattern, &section.node, path);
                    if let Some(written) = written {
                        service.backend_port_override =
                            local.backend_port_override.or(written.port_override);
                        service.haproxy = written.proxy;
                        service.servers = servers(local, &service);
                    }
                }
                "file_output" => {
                    let path = "file_output".to_owned();
                    let map = Map::open(&mut context, &keys::SERVICE_FILE, &section.node, path);
                    let disabled = map.is_some_and(|map| map.flag(&mut context, "disabled", false));
                    service.file_output = around.file_output && !disabled;
                }
                // Other generators may be configured there too.
                _ => {}
            }
        }
    }
    if service.haproxy != local.haproxy {
        collisions(&mut context, settings, &service, others);
    }
    Ok((service, context.finish()?))
}

/// Where the registry holds it.
fn znode(discovery: &Discovery) -> Option<&str> {
    match discovery {
        Discovery::Zookeeper(zookeeper) => zookeeper.generator_config_path.as_deref(),
        Discovery::Multi(children, _) => children.iter().find_map(|(_, child)| znode(child)),
        _ => None,
    }
}

fn around(settings: &Settings) -> Around<'_> {
    let haproxy = &settings.haproxy;
    Around {
        clusters: &settings.clusters,
        haproxy: haproxy.config_file.is_some() || !haproxy.sockets.is_empty(),
        shared_frontend: haproxy.shared_frontend.is_some(),
        use_nerve_weights: haproxy.use_nerve_weights,
        file_output: settings.file_output.is_some(),
    }
}

/// How members are represented: as `servers` in the file says, or else as the lines ask for that hold now.
fn servers(local: &Service, now: &Service) -> Servers {
    let asked = |service: &Service| service.haproxy.as_ref().and_then(proxy::named);
    match (&local.servers, asked(local), asked(now)) {
        (Servers::Slots, Some(_), _) => Servers::Slots,
        (Servers::Named(why), by_lines, now) if by_lines.as_ref() == Some(why) => {
            now.map_or(Servers::Slots, Servers::Named)
        }
        (Servers::Named(why), ..) => Servers::Named(why.clone()),
        (Servers::Slots, None, now) => now.map_or(Servers::Slots, Servers::Named),
    }
}

/// Names and binds that another service has already.
fn collisions<'s>(
    context: &mut Context,
    settings: &Settings,
    service: &Service,
    others: impl Iterator<Item = &'s Arc<Service>>,
) {
    let Some(proxy) = &service.haproxy else {
        return;
    };
    let backend =
        |proxy: &Proxy, name: &str| proxy.backend_name.as_deref().unwrap_or(name).to_owned();
    let own_backend = backend(proxy, &service.name);
    // There may be thousands of others, and each may be asked about all: only those that may collide are looked at.
    let suspect = |other: &&Arc<Service>| {
        other.name != service.name
            && other.haproxy.as_ref().is_some_and(|their| {
                let binds = |proxy: &Proxy| {
                    let bind = |line: &Line| line.text.starts_with("bind");
                    proxy.port == Some(None) || proxy.frontend.iter().any(bind)
                };
                backend(their, &other.name) == own_backend
                    || their.port.is_some() && their.port == proxy.port
                    || binds(their)
                    || binds(proxy)
            })
    };
    let mut services: Vec<Arc<Service>> = others.filter(suspect).cloned().collect();
    services.push(Arc::new(service.clone()));
    let all = Settings {
        haproxy: settings.haproxy.clone(),
        services,
        ..Settings::default()
    };
    names::check(context, &all);
    binds::check(context, &all);
}
