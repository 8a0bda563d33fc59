//! A file with what the DNS says in the place of names. Pure: the same file and answers make the same backends on every load balancer of a
//! fleet, with the same names.

use std::net::IpAddr;

use crate::{
    config::{BackendSpec, Config, DnsSource, Service},
    dns::Found,
    model::{Admin, BackendName},
};

/// A file with addresses, and what of the answers could not be taken, by service and source.
#[derive(Clone, Debug)]
pub struct Expanded {
    /// The file, its services with the backends that the answers name.
    pub config: Config,
    /// Service, source, what is wrong.
    pub wrong: Vec<(String, String, String)>,
}

/// Puts the latest answers in the place of names. A source without an answer has no backends.
pub fn expand<'a>(file: &Config, answer: impl Fn(&DnsSource) -> &'a [Found]) -> Expanded {
    let mut config = file.clone();
    let mut wrong = Vec::new();
    for service in &mut config.services {
        for source in std::mem::take(&mut service.dns) {
            for found in answer(&source) {
                if let Err(why) = take(service, &source, found) {
                    wrong.push((service.name.clone(), source.name.clone(), why));
                }
            }
            service.dns.push(source);
        }
    }
    Expanded { config, wrong }
}

fn take(service: &mut Service, source: &DnsSource, found: &Found) -> Result<(), String> {
    let port = found.port.or(source.port);
    let name = name_of(
        &source.name,
        found,
        port.filter(|&port| port != service.port),
    );
    let spec = BackendSpec {
        address: found.address,
        port,
        weight: found.weight.unwrap_or(source.weight),
        admin: Admin::Active,
    };
    let backend = service.backend(&name, &spec)?;
    let endpoint = (backend.address, backend.port);
    let mut others = service.backends.iter();
    if let Some(other) = others.find(|one| (one.address, one.port) == endpoint) {
        return Err(format!(
            "{} is backend \"{}/{}\"'s already",
            found.address, service.name, other.name
        ));
    }
    if service.backends.iter().any(|one| one.name == name) {
        return Err(format!(
            "a backend is called \"{}/{name}\" already",
            service.name
        ));
    }
    service.has_slots_for(service.backends.len() + 1)?;
    service.backends.push(backend);
    Ok(())
}

/// Whether a backend has a name as the answers to one of the service's sources give it, be it among them now or not.
pub fn may_be_answered(service: &Service, backend: &str) -> bool {
    let is_address = |text: &str| text.parse::<IpAddr>().is_ok();
    service.dns.iter().any(|source| {
        let rest = backend.strip_prefix(source.name.as_str());
        let Some(rest) = rest.and_then(|rest| rest.strip_prefix('-')) else {
            return false;
        };
        let with_port = rest.rsplit_once('-');
        is_address(rest)
            || with_port
                .is_some_and(|(address, port)| is_address(address) && port.parse::<u16>().is_ok())
    })
}

/// Whether a backend is one from the DNS that the latest answers, which `base` is made with, do not have.
pub fn may_return(base: &Config, name: &BackendName) -> bool {
    let mut services = base.services.iter();
    services
        .find(|service| service.name == name.service)
        .is_some_and(|service| may_be_answered(service, &name.backend))
        && super::find(base, name).is_none()
}

/// The name of a backend: a function of the source's name and the address, so that it is the same everywhere and at all times.
fn name_of(source: &str, found: &Found, port: Option<u16>) -> String {
    match port {
        None => format!("{source}-{}", found.address),
        Some(port) => format!("{source}-{}-{port}", found.address),
    }
}
