//! How new flows are spread.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;

use super::{Family, Metrics, Value, backend_labels, service_labels};

impl Metrics {
    pub(super) fn balance(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut full = Family::gauge(
            "service_full",
            "Whether all usable backends have as many connections as max_connections allows, so that new ones are dropped",
        );
        let mut backups = Family::gauge(
            "service_backups_in_use",
            "Whether backups take new flows, since fewer primary backends than backup_below can",
        );
        let mut spills = Family::gauge(
            "service_zone_spills",
            "Whether other zones take new flows, since less of the local one than zone_enough can",
        );
        let mut moves = Family::counter(
            "service_weight_moves",
            "How often a service's weights have moved to even out connections",
        );
        let mut share = Family::gauge(
            "backend_share_ratio",
            "A backend's share of its service's new flows",
        );
        let mut backend_full = Family::gauge(
            "backend_full",
            "Whether a backend takes no new flows for its max_connections",
        );
        let mut max = Family::gauge(
            "backend_max_connections",
            "A backend's max_connections, if it has one",
        );
        for service in &self.status.services {
            full.add(service_labels(service), service.full);
            backups.add(service_labels(service), service.balance.backups);
            spills.add(service_labels(service), service.balance.spills);
            moves.add(service_labels(service), service.balance.moves);
            for backend in &service.backends {
                let labels = || backend_labels(service, backend);
                let balance = &backend.balance;
                let of_thousand = f64::from(balance.per_mille);
                share.add(labels(), Value::Ratio(of_thousand / 1_000.0));
                if let Some(connections) = balance.max_connections {
                    max.add(labels(), u64::from(connections));
                    backend_full.add(labels(), balance.full);
                }
            }
        }
        for family in [full, backups, spills, moves, share, backend_full, max] {
            family.encode(encoder)?;
        }
        Ok(())
    }
}
