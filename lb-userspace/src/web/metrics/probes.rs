//! Health checks.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;

use super::{
    Metrics,
    write::{Family, Histogram, Labels},
};

pub(super) fn encode(metrics: &Metrics, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let services: Vec<_> = metrics
        .probes
        .services()
        .into_iter()
        .map(|(name, times)| (Labels::one("service", &name), times))
        .collect();
    let mut replies = Family::counter(
        encoder,
        "probes",
        "Health checks of a service's backends, by reply: yes, no, silent (nothing came), unasked (this host could not ask)",
    )?;
    for (labels, times) in &services {
        for (reply, number) in times.replies() {
            replies.add_with(labels, ("reply", reply), number)?;
        }
    }
    let mut seconds = Histogram::new(
        encoder,
        "probe_seconds",
        "How long health checks took that were answered, with a yes or a no",
    )?;
    for (labels, times) in &services {
        seconds.add(labels, times.sum_s(), &times.buckets())?;
    }
    Ok(())
}
