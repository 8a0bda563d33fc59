//! What is different between two statuses, in words. Pure.

use std::{
    cmp::Reverse,
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use lb_common::backend::Serving;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    flows::Fill,
    model::{Admin, Health},
    status::{AttachMode, BackendStatus, Neighbour, ServiceStatus, Status},
    words::counted,
};

/// How a change is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Something is better than it was.
    Good,
    /// For the record.
    Info,
    /// Worth a look.
    Warning,
    /// Something is wrong.
    Bad,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Change {
    /// How it is to be taken.
    pub level: Level,
    /// What it is about: a backend, a service, an interface, or a part of the instance.
    pub subject: String,
    /// What happened.
    pub text: String,
}

impl Change {
    fn new(level: Level, subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            level,
            subject: subject.into(),
            text: text.into(),
        }
    }
}

/// The daemon has begun.
pub fn started(status: &Status) -> Change {
    let text = format!(
        "version {} runs as process {} and serves {}",
        status.version,
        status.pid,
        counted(status.services.len(), "service")
    );
    Change::new(Level::Info, "daemon", text)
}

/// How many changes of services are told one by one, if they come with one status. What a reload of a thousand services does to each would push all else out of
/// what is remembered, and first of all that there was a reload.
const AT_ONCE: usize = 100;

/// What is different in `after`; of many changes of services the gravest, and how many more there are.
pub fn changes(before: &Status, after: &Status) -> Vec<Change> {
    let mut all = Vec::new();
    configuration(before, after, &mut all);
    interfaces(before, after, &mut all);
    tables(before, after, &mut all);
    names(before, after, &mut all);
    let mut of_services = Vec::new();
    services(before, after, &mut of_services);
    if of_services.len() > AT_ONCE {
        // Stable: those that are alike stay in their order.
        of_services.sort_by_key(|change| Reverse(change.level));
        let rest = of_services.split_off(AT_ONCE - 1);
        let level = rest.iter().map(|change| change.level).max();
        let text = format!("{} more changes", rest.len());
        of_services.push(Change::new(level.unwrap_or(Level::Info), "services", text));
    }
    all.append(&mut of_services);
    all
}

fn configuration(before: &Status, after: &Status, all: &mut Vec<Change>) {
    let (old, new) = (&before.config, &after.config);
    match &new.error {
        Some(error) if old.reloads.refused != new.reloads.refused || old.error != new.error => {
            let first = error.lines().next().unwrap_or_default();
            let text = format!("refused, the one in force stays: {first}");
            all.push(Change::new(Level::Bad, "configuration", text));
        }
        _ if old.reloads.accepted != new.reloads.accepted => {
            let text = format!("reloaded: generation {}", after.generation.accepted);
            all.push(Change::new(Level::Good, "configuration", text));
        }
        // Neither is told twice.
        _ if old.error == new.error
            && old.reloads == new.reloads
            && before.generation.accepted != after.generation.accepted =>
        {
            let text = format!(
                "changed at runtime: generation {}",
                after.generation.accepted
            );
            all.push(Change::new(Level::Info, "configuration", text));
        }
        _ => {}
    }
    if before.evacuated != after.evacuated {
        let (level, text) = if after.evacuated {
            (
                Level::Warning,
                "evacuated: all backends are drained together",
            )
        } else {
            (Level::Good, "no longer evacuated")
        };
        all.push(Change::new(level, "host", text));
    }
}

fn interfaces(before: &Status, after: &Status, all: &mut Vec<Change>) {
    for attachment in &after.attachments {
        if !before.attachments.contains(attachment) {
            let (level, text) = match attachment.mode {
                AttachMode::Native => (Level::Info, "the program is attached, natively"),
                AttachMode::Generic => (
                    Level::Warning,
                    "the program is attached in generic mode, which is slower",
                ),
            };
            all.push(Change::new(level, &attachment.interface, text));
        }
    }
    for attachment in &before.attachments {
        let is_there = |other: &&crate::status::Attachment| other.interface == attachment.interface;
        if !after.attachments.iter().any(|other| is_there(&other)) {
            let text = "the program is no longer attached";
            all.push(Change::new(Level::Bad, &attachment.interface, text));
        }
    }
    for egress in &after.closed_egress {
        if !before.closed_egress.contains(egress) {
            let text = format!("takes no frames from other interfaces: {}", egress.reason);
            all.push(Change::new(Level::Bad, &egress.interface, text));
        }
    }
}

fn tables(before: &Status, after: &Status, all: &mut Vec<Change>) {
    for (version, table) in after.flows.tables.each() {
        let was = before.flows.tables[version].fill;
        if table.fill == was {
            continue;
        }
        let (level, text) = match table.fill {
            Fill::Low => (Level::Good, "has room again"),
            Fill::Half if was == Fill::High => (Level::Good, "is less full again"),
            Fill::Half => (Level::Warning, "is half full"),
            Fill::High => (Level::Bad, "is 70% full: raise its limit"),
        };
        let subject = format!("IPv{} flow table", version as u32);
        all.push(Change::new(level, subject, text));
    }
}

/// Names that backends come from.
fn names(before: &Status, after: &Status, all: &mut Vec<Change>) {
    for name in &after.dns {
        let was = before.dns.iter().find(|one| {
            (&one.service, &one.source, &one.query) == (&name.service, &name.source, &name.query)
        });
        let failed = was.is_some_and(|one| one.error.is_some());
        let (level, text) = match &name.error {
            Some(error) if !failed => (
                Level::Warning,
                format!(
                    "{} does not resolve ({error}): what it gave last stays in force",
                    name.query
                ),
            ),
            None if failed => (Level::Good, format!("{} resolves again", name.query)),
            _ => continue,
        };
        let subject = format!("{}/{}", name.service, name.source);
        all.push(Change::new(level, subject, text));
    }
}

/// What makes a service the same one.
type ServiceKey<'s> = (&'s str, IpAddr, u16);

fn key(service: &ServiceStatus) -> ServiceKey<'_> {
    (&service.name, service.vip, service.port)
}

fn services(before: &Status, after: &Status, all: &mut Vec<Change>) {
    let old: HashMap<_, _> = before.services.iter().map(|one| (key(one), one)).collect();
    for service in &after.services {
        match old.get(&key(service)) {
            Some(was) => {
                the_service(was, service, all);
                backends(was, service, all);
            }
            None => {
                let endpoint = SocketAddr::new(service.vip, service.port);
                let text = format!(
                    "added at {endpoint} with {} backends",
                    service.backends.len()
                );
                all.push(Change::new(Level::Info, &service.name, text));
            }
        }
    }
    let new: HashMap<_, _> = after.services.iter().map(|one| (key(one), ())).collect();
    for service in &before.services {
        if !new.contains_key(&key(service)) {
            all.push(Change::new(
                Level::Info,
                &service.name,
                "gone: its last flow has ended",
            ));
        }
    }
}

fn the_service(was: &ServiceStatus, now: &ServiceStatus, all: &mut Vec<Change>) {
    let mut say = |level, text: &str| all.push(Change::new(level, &now.name, text));
    if was.removed != now.removed {
        if now.removed {
            say(Level::Info, "removed; its flows go on");
        } else {
            say(Level::Info, "configured again");
        }
    }
    if was.fail_open != now.fail_open {
        if now.fail_open {
            say(
                Level::Bad,
                "fails open: too few backends are usable, all active ones take new flows",
            );
        } else {
            say(Level::Good, "no longer fails open");
        }
    }
    if was.full != now.full {
        if now.full {
            say(
                Level::Bad,
                "full: every usable backend is at its max_connections, new connections are dropped",
            );
        } else {
            say(Level::Good, "takes new connections again");
        }
    }
    if was.resets_suspended != now.resets_suspended {
        match now.resets_suspended {
            Some(why) => say(
                Level::Warning,
                &format!("clients of dead backends are not told: {why}"),
            ),
            None => say(Level::Good, "clients of dead backends are told again"),
        }
    }
    if was.error != now.error {
        match &now.error {
            Some(error) => say(Level::Bad, error),
            None => say(Level::Good, "served as configured again"),
        }
    }
}

fn backends(was: &ServiceStatus, now: &ServiceStatus, all: &mut Vec<Change>) {
    // Before and after a change of its service's mode it is two, and of all else but that they have the same.
    fn key(backend: &BackendStatus) -> (&str, IpAddr, u16, Option<u64>) {
        let BackendStatus {
            name,
            address,
            port,
            identity,
            ..
        } = backend;
        (name, *address, *port, *identity)
    }
    let named = |backend: &BackendStatus| format!("{}/{}", now.name, backend.name);
    let old: HashMap<_, _> = was.backends.iter().map(|one| (key(one), one)).collect();
    for backend in &now.backends {
        match old.get(&key(backend)) {
            Some(was) => all.extend(the_backend(was, backend, &named(backend))),
            None => {
                let text = format!(
                    "added at {}",
                    SocketAddr::new(backend.address, backend.port)
                );
                all.push(Change::new(Level::Info, named(backend), text));
            }
        }
    }
    let new: HashMap<_, _> = now.backends.iter().map(|one| (key(one), ())).collect();
    for backend in &was.backends {
        if !new.contains_key(&key(backend)) {
            let text = "gone: its last flow has ended";
            all.push(Change::new(Level::Info, named(backend), text));
        }
    }
}

/// All that changed of one backend, in one sentence: one thing mostly follows from the other.
fn the_backend(was: &BackendStatus, now: &BackendStatus, name: &str) -> Option<Change> {
    let mut said: Vec<String> = Vec::new();
    let mut level = Level::Good;
    let mut say = |how: Level, text: String| {
        level = level.max(how);
        said.push(text);
    };
    if was.removed != now.removed {
        say(
            Level::Info,
            if now.removed {
                "removed".into()
            } else {
                "configured again".into()
            },
        );
    } else if was.admin != now.admin {
        let text = match now.admin {
            Admin::Active => "active again",
            Admin::Draining => "drains",
            Admin::Disabled => "disabled",
        };
        say(Level::Info, text.into());
    }
    if was.health != now.health {
        let why = match (&now.last_error, now.last_error_ended) {
            (Some(error), None) => format!(" ({error})"),
            _ => String::new(),
        };
        match now.health {
            Health::Up => say(Level::Good, "up".into()),
            Health::Refusing => say(Level::Warning, format!("refusing{why}")),
            Health::Down => say(Level::Bad, format!("down{why}")),
            Health::Unknown => say(Level::Info, "not checked yet".into()),
        }
    }
    if was.neighbour != now.neighbour {
        match now.neighbour {
            Neighbour::Resolved => say(Level::Good, "its next hop is known".into()),
            Neighbour::Local => say(Level::Good, "is on this host".into()),
            Neighbour::Unresolved => say(
                Level::Bad,
                "its next hop is not known: no packet gets there".into(),
            ),
        }
    }
    match (&was.balance.ejected, &now.balance.ejected) {
        (None, Some(ejected)) => say(Level::Warning, format!("ejected: {}", ejected.reason)),
        (Some(before), Some(ejected)) if before.times != ejected.times => {
            say(Level::Warning, format!("stays ejected: {}", ejected.reason))
        }
        (Some(_), None) => say(Level::Good, "no longer ejected".into()),
        _ => {}
    }
    if was.serving != now.serving {
        match now.serving {
            Serving::New => say(Level::Good, "takes new flows".into()),
            Serving::ExistingOnly => say(Level::Info, "keeps the flows it has".into()),
            Serving::None => say(Level::Bad, "is given nothing".into()),
        }
    }
    if was.weight != now.weight {
        say(
            Level::Info,
            format!("weight {} instead of {}", now.weight, was.weight),
        );
    }
    (!said.is_empty()).then(|| Change::new(level, name, said.join(", ")))
}
