//! The instance as a whole.

use std::fmt;

use lb_common::verdict::Reason;
use prometheus_client::encoding::DescriptorEncoder;

use super::{
    Metrics,
    write::{Family, Labels, Value},
};
use crate::{logging, words::word};

pub(super) fn encode(metrics: &Metrics, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let status = &metrics.status;
    let mut build = Family::gauge(encoder, "build", "The daemon's version; always 1")?;
    build.add(&Labels::one("version", &status.version), 1)?;
    Family::gauge(encoder, "uptime_seconds", "Time since the daemon started")?
        .of(status.uptime_s)?;
    Family::gauge(
        encoder,
        "status_timestamp_seconds",
        "When the reconciler last said how things are, since 1970: every few seconds while it lives",
    )?
    .of(status.at)?;
    let mut generation =
        Family::gauge(encoder, "generation", "How far the latest change has come")?;
    for (stage, number) in [
        ("accepted", status.generation.accepted),
        ("resolved", status.generation.resolved),
        ("applied", status.generation.applied),
    ] {
        generation.add(&Labels::one("stage", stage), number)?;
    }
    Family::counter(
        encoder,
        "log_lines_lost",
        "Lines of the log that are lost, since nobody read it or it could not be written",
    )?
    .of(logging::lines_lost())?;
    reloads(metrics, encoder)?;
    interfaces(metrics, encoder)?;
    runs(metrics, encoder)?;
    reasons(metrics, encoder)
}

fn reloads(metrics: &Metrics, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let config = &metrics.status.config;
    Family::gauge(
        encoder,
        "config_refused",
        "Whether the latest reload was refused, so that an older configuration is in force",
    )?
    .of(config.error.is_some())?;
    Family::gauge(
        encoder,
        "evacuated",
        "Whether all backends are drained together, by `tether drain --all`",
    )?
    .of(metrics.status.evacuated)?;
    Family::gauge(
        encoder,
        "config_differences",
        "Backends that were changed or drained at runtime and are otherwise in the file",
    )?
    .of(config.differences.len() as u64)?;
    let mut reloads = Family::counter(
        encoder,
        "reloads",
        "Times that the configuration was read again, by what came of it",
    )?;
    reloads.add(&Labels::one("outcome", "accepted"), config.reloads.accepted)?;
    reloads.add(&Labels::one("outcome", "refused"), config.reloads.refused)
}

fn interfaces(metrics: &Metrics, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let mut attached = Family::gauge(
        encoder,
        "attached",
        "The XDP program's interfaces, and whether it runs in the driver (native) or behind it (generic); always 1",
    )?;
    for attachment in &metrics.status.attachments {
        let mode = word(&attachment.mode);
        let labels = Labels::new(&[("interface", &attachment.interface)], ("mode", &mode));
        attached.add(&labels, 1)?;
    }
    let mut detached = Family::gauge(
        encoder,
        "detached",
        "Interfaces that the XDP program should be attached to, and is not; always 1",
    )?;
    for one in &metrics.status.detached {
        detached.add(&Labels::one("interface", &one.interface), 1)?;
    }
    let mut closed = Family::gauge(
        encoder,
        "egress_closed",
        "Interfaces on the way to backends that take no frames from XDP programs on others; always 1",
    )?;
    for egress in &metrics.status.closed_egress {
        closed.add(&Labels::one("interface", &egress.interface), 1)?;
    }
    Ok(())
}

fn runs(metrics: &Metrics, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let Some(runs) = (metrics.runs.0)() else {
        return Ok(());
    };
    Family::counter(
        encoder,
        "program_runs",
        "Runs of the XDP program that the kernel has counted; only while kernel.bpf_stats_enabled is 1",
    )?
    .of(runs.count)?;
    Family::counter(
        encoder,
        "program_run_seconds",
        "Time that they took; only while kernel.bpf_stats_enabled is 1",
    )?
    .of(Value::Ratio(runs.time_ns as f64 / 1e9))
}

fn reasons(metrics: &Metrics, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let layout = metrics.maps.capacity.counters();
    let counted: Vec<_> = Reason::ALL
        .iter()
        .map(|reason| {
            let verdict = reason.verdict().name();
            let labels = Labels::new(&[("reason", reason.name())], ("verdict", verdict));
            (labels, metrics.maps.counter(layout.reason(*reason)))
        })
        .collect();
    let mut packets = Family::counter(
        encoder,
        "reason_packets",
        "Packets by what was done with them, and why",
    )?;
    for (labels, counter) in &counted {
        packets.add(labels, counter.packets)?;
    }
    let mut bytes = Family::counter(
        encoder,
        "reason_bytes",
        "Bytes by what was done with them, and why",
    )?;
    for (labels, counter) in &counted {
        bytes.add(labels, Value::Integer(counter.bytes))?;
    }
    Ok(())
}
