//! The stages of a packet's way in words. Pure.

use std::net::SocketAddr;

use lb_common::verdict::{Reason, Verdict};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{EntryFacts, Explanation, Question, Sent, SlotFacts, guard, is_given};
use crate::{
    dataplane::kernel::Rehearsed,
    model::Admin,
    status::{BackendStatus, Neighbour, Status},
    words::{duration, word},
};

/// A stage's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Stage {
    /// Its name: `packet`, `service`, `guard`, `flow`, `table`, `backend`, `forward` or `record`.
    pub stage: String,
    /// Its answer.
    pub answer: String,
    /// Why; empty if there is no more to say.
    pub why: String,
}

/// All stages that the packet comes to, in order.
pub(super) fn stages(
    question: &Question,
    explanation: &Explanation,
    status: &Status,
    rehearsed: &Rehearsed,
) -> Vec<Stage> {
    let reason = rehearsed.reason;
    let mut all = vec![packet(question, explanation), service(explanation, status)];
    if explanation.service.is_some() && reason != Reason::NotService {
        if let Some(facts) = &explanation.guard {
            let (answer, why) = guard::words(facts, !explanation.entries.is_empty(), reason);
            all.push(stage("guard", answer, why));
        }
        all.push(flow(explanation));
        all.push(table(explanation, reason));
        all.push(backend(explanation, reason));
    }
    all.push(forward(explanation, rehearsed));
    if explanation.entries != explanation.entries_after {
        all.push(record(explanation));
    }
    all
}

fn stage(stage: &str, answer: impl Into<String>, why: impl Into<String>) -> Stage {
    Stage {
        stage: stage.into(),
        answer: answer.into(),
        why: why.into(),
    }
}

fn packet(question: &Question, explanation: &Explanation) -> Stage {
    let packet = &explanation.packet;
    let flags = match &packet.flags[..] {
        [] => "no flags".to_owned(),
        flags => flags.join(" "),
    };
    let answer = format!(
        "TCP, {flags}, sequence number {}, {} bytes, in by {}",
        packet.seq, packet.bytes, packet.interface
    );
    let why = match question.flags {
        Some(_) => "",
        None if explanation.entries.is_empty() => {
            "the first segment of a connection, since the flow has no entry"
        }
        None => "a segment in mid-stream, since the flow has an entry",
    };
    stage("packet", answer, why)
}

fn service(explanation: &Explanation, status: &Status) -> Stage {
    let Some(service) = &explanation.service else {
        let vip = explanation.packet.vip;
        let others: Vec<String> = status
            .services
            .iter()
            .filter(|service| service.vip == vip.ip())
            .map(|service| format!("{} at port {}", service.name, service.port))
            .collect();
        let why = if others.is_empty() {
            format!("no service has the address {}", vip.ip())
        } else {
            format!(
                "no service has the port {}; this address has {}",
                vip.port(),
                others.join(", ")
            )
        };
        return stage("service", "none", why);
    };
    let mode = word(&service.mode);
    let answer = format!("{}, {}, {mode}", service.name, service.endpoint);
    let mut said = Vec::new();
    if service.removed {
        said.push("removed, and there for the flows it has".to_owned());
    }
    if service.fail_open {
        said.push("fails open: all active backends take new flows".to_owned());
    }
    if service.full {
        said.push("all usable backends have as many connections as they may".to_owned());
    }
    if let Some(why) = service.resets_suspended {
        said.push(format!("clients of dead backends are not told: {why}"));
    }
    if let Some(error) = &service.error {
        said.push(format!("not served as configured: {error}"));
    }
    stage("service", answer, said.join("; "))
}

fn flow(explanation: &Explanation) -> Stage {
    let entries = &explanation.entries;
    let answer = match &entries[..] {
        [] => "no entry".to_owned(),
        entries => entries.iter().map(entry).collect::<Vec<_>>().join("; "),
    };
    stage("flow", answer, explanation.verdict.meaning.clone())
}

fn entry(entry: &EntryFacts) -> String {
    let backend = entry
        .backend
        .as_deref()
        .unwrap_or("a backend that is no more");
    let mut text = format!("{} on {backend}", entry.state.word());
    if let Some(age) = entry.age_s {
        text += &format!(", for {}", duration(age));
    }
    text += &format!(", last packet {} ago", duration(entry.idle_s));
    if let Some(snat) = entry.snat {
        text += &format!(", to the backend as {snat}");
    }
    if entry.adopted {
        text += ", adopted";
    }
    if entry.contested {
        text += ", contested";
    }
    text
}

fn table(explanation: &Explanation, reason: Reason) -> Stage {
    let Some(first) = explanation.slots.first() else {
        return stage("table", "none", "no backend has ever been usable");
    };
    let nobody = "nobody";
    let answer = explanation
        .slots
        .iter()
        .map(|slot| {
            format!(
                "slot {} of {}: {}",
                slot.slot,
                slot.of,
                slot.current.as_deref().unwrap_or(nobody)
            )
        })
        .collect::<Vec<_>>()
        .join(", then ");
    let mut why = vec![history(first)];
    if explanation.slots.len() > 1 {
        why.push("what takes no new flows is passed over".to_owned());
    }
    if reason == Reason::Established && explanation.entries.iter().any(|entry| entry.exception) {
        why.push("the entry decides, and differs from it".to_owned());
    } else if reason == Reason::Established {
        why.push("the entry decides".to_owned());
    }
    if let Some(kept) = &explanation.kept {
        why.push(format!(
            "the client keeps {kept}, while that takes new flows"
        ));
    }
    why.retain(|text| !text.is_empty());
    stage("table", answer, why.join("; "))
}

fn history(slot: &SlotFacts) -> String {
    match &slot.previous {
        None => String::new(),
        Some(previous) => {
            let handing = if slot.hands_over {
                ", which still gets flows in mid-stream that have no entry"
            } else {
                ""
            };
            format!("{previous} until {} ago{handing}", duration(slot.changed_s))
        }
    }
}

fn backend(explanation: &Explanation, reason: Reason) -> Stage {
    let Some(backend) = &explanation.backend else {
        return stage("backend", "none", "");
    };
    let name = format!(
        "{}/{}",
        explanation.backend_of.as_deref().unwrap_or_default(),
        backend.name
    );
    let answer = format!(
        "{name}, {}: {}",
        SocketAddr::new(backend.address, backend.port),
        state_of(backend)
    );
    let mut why = Vec::new();
    match reason {
        Reason::Established => why.push("the flow's entry names it".to_owned()),
        Reason::Opened | Reason::Adopted | Reason::Unadopted | Reason::Stray | Reason::Unpinned => {
            why.push("the table gives it".to_owned());
        }
        _ => {}
    }
    if let (Some(error), None) = (&backend.last_error, backend.last_error_ended) {
        why.push(format!("its check: {error}"));
    }
    if let Some(ejected) = &backend.balance.ejected {
        why.push(format!(
            "ejected for another {}: {}",
            duration(ejected.left_s),
            ejected.reason
        ));
    }
    if let Some(drain) = &backend.drain {
        why.push(format!(
            "its drain's deadline: in {}, {:.0}% of its flows are closed",
            duration(drain.deadline_s),
            drain.closed * 100.0
        ));
    }
    stage("backend", answer, why.join("; "))
}

fn state_of(backend: &BackendStatus) -> String {
    let admin = match (backend.removed, backend.admin) {
        (true, _) => "removed",
        (_, Admin::Active) => "active",
        (_, Admin::Draining) => "draining",
        (_, Admin::Disabled) => "disabled",
    };
    let neighbour = match backend.neighbour {
        Neighbour::Resolved => "next hop resolved",
        Neighbour::Unresolved => "next hop unresolved",
        Neighbour::Local => "on this host",
    };
    format!(
        "{admin}, {}, serving {}, {neighbour}",
        backend.health, backend.serving
    )
}

fn forward(explanation: &Explanation, rehearsed: &Rehearsed) -> Stage {
    let reason = rehearsed.reason;
    let answer = match (reason.verdict(), &explanation.sent) {
        (Verdict::Forward, Some(sent)) if is_given(rehearsed) => {
            format!("given to this host's stack: {}", content(sent))
        }
        (Verdict::Pass, _) => "to this host, unchanged".to_owned(),
        (Verdict::Drop, _) => "dropped".to_owned(),
        (Verdict::Forward, Some(sent)) => format!("sent: {}", way(sent)),
        (Verdict::Reset, Some(sent)) => format!("the client is sent a RST: {}", way(sent)),
        (Verdict::Answer, Some(sent)) => format!("the client is answered by ICMP: {}", way(sent)),
        (_, None) => "nothing leaves".to_owned(),
    };
    stage(
        "forward",
        answer,
        format!("{}: {}", reason.name(), reason.meaning()),
    )
}

fn way(sent: &Sent) -> String {
    let mut text = format!("by {} to {}", sent.interface, sent.destination_mac);
    for vlan in &sent.vlans {
        text += &format!(", VLAN {vlan}");
    }
    if let Some(outer) = &sent.outer {
        text += &format!(", outer {} to {}", outer.source, outer.destination);
    }
    format!("{text}, {}", content(sent))
}

/// Between whom it is, if that can be told, and its length.
fn content(sent: &Sent) -> String {
    let bytes = sent.bytes;
    match (sent.source, sent.destination) {
        (Some(source), Some(destination)) => format!("{source} to {destination}, {bytes} bytes"),
        _ => format!("{bytes} bytes"),
    }
}

fn record(explanation: &Explanation) -> Stage {
    let after: Vec<String> = explanation
        .entries_after
        .iter()
        .map(|after| {
            let backend = after.backend.as_deref().unwrap_or("nobody");
            let mut text = format!("{} on {backend}", after.state.word());
            if let Some(snat) = after.snat {
                text += &format!(" as {snat}");
            }
            text
        })
        .collect();
    let answer = if after.is_empty() {
        "nothing is left".to_owned()
    } else {
        after.join("; ")
    };
    stage(
        "record",
        answer,
        "as it would be after a real packet; nothing was changed now",
    )
}
