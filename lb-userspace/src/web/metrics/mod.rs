//! Metrics, computed when they are asked for: counters from the maps, everything else from what the daemon's parts last said.
//!
//! How many samples there are is bounded by the configuration: one for each backend and word of a vocabulary at most, and none by client.

mod balance;
mod dns;
mod flows;
mod instance;
mod objects;
mod probes;
mod write;

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, text},
    registry::Registry,
};

use super::RunSource;
use crate::{
    dataplane::maps::Maps, flows::Census, health::ProbeTimes, inventory::Ids, notice::Told,
    status::Status,
};

/// The metrics of one moment.
#[derive(Debug)]
pub(super) struct Metrics {
    pub(super) maps: Arc<Maps>,
    pub(super) status: Arc<Status>,
    pub(super) census: Arc<Census>,
    pub(super) probes: ProbeTimes,
    pub(super) told: Arc<Told>,
    pub(super) runs: RunSource,
}

impl Metrics {
    /// In the OpenMetrics text format.
    pub(super) fn text(self) -> Result<String, fmt::Error> {
        // A backend has fifteen lines of some 140 bytes, and five more with what its clients send again: growing to that by doubling would copy it all some more times.
        let backends: usize = self
            .status
            .services
            .iter()
            .map(|service| service.backends.len())
            .sum();
        let services = self.status.services.len();
        let mut out = String::with_capacity((64 << 10) + 2_560 * backends + 4_096 * services);
        let mut registry = Registry::with_prefix("tether");
        registry.register_collector(Box::new(self));
        text::encode(&mut out, &registry)?;
        Ok(out)
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let ids = Ids::of(&self.maps);
        instance::encode(self, encoder)?;
        flows::encode(self, encoder)?;
        objects::services(self, &ids, encoder)?;
        objects::backends(self, &ids, encoder)?;
        dns::encode(self, encoder)?;
        probes::encode(self, encoder)
    }
}
