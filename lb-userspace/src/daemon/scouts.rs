//! The parts that find out for the reconciler what it wants to know.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use anyhow::{Context as _, Result};
use tokio::sync::{mpsc, watch};

use super::parts::Parts;
use crate::{
    chain::chain,
    config::Config,
    dataplane::kernel::Kernel,
    dns, guard, health,
    model::{HealthReport, NextHopReport, Target},
    neighbour,
    status::{ClosedEgress, Status},
};

/// Their ends of its channels.
pub(super) struct Scouts {
    /// What it wants to know.
    pub(super) targets: watch::Receiver<Vec<Target>>,
    pub(super) addresses: watch::Receiver<BTreeSet<IpAddr>>,
    pub(super) questions: watch::Receiver<BTreeMap<dns::Question, dns::Wanted>>,
    pub(super) vips: watch::Receiver<BTreeSet<IpAddr>>,
    pub(super) status: watch::Receiver<Arc<Status>>,
    /// What it is told.
    pub(super) health: mpsc::Sender<HealthReport>,
    pub(super) next_hops: mpsc::Sender<NextHopReport>,
    pub(super) closed_egress: watch::Sender<Vec<ClosedEgress>>,
    pub(super) answers: mpsc::Sender<dns::Report>,
    pub(super) own_vips: watch::Sender<Option<BTreeSet<IpAddr>>>,
    pub(super) hindrances: watch::Sender<neighbour::replies::Hindrances>,
    pub(super) unguarded: watch::Sender<Option<String>>,
}

impl Scouts {
    /// Starts them. How checks went is noted in `probes`.
    ///
    /// # Errors
    /// When there are no file descriptors left.
    pub(super) fn start(
        self,
        parts: &mut Parts,
        config: &Config,
        kernel: &Kernel,
        probes: health::ProbeTimes,
        stopping: &watch::Receiver<bool>,
    ) -> Result<()> {
        parts.start("the health checks", {
            let running = health::run(
                self.targets,
                self.vips.clone(),
                self.health,
                config.checks_at_once,
                probes,
                stopping.clone(),
            );
            async { running.await.context("no netlink socket") }
        });
        parts.start("the watch over next hops", {
            let egress = neighbour::Egress {
                admit: admit(kernel)?,
                closed: self.closed_egress,
            };
            let replies = kernel.local_replies();
            let local = neighbour::Local {
                rule: neighbour::local::Rule {
                    interfaces: config.interfaces.clone(),
                    named: config.local_interfaces.clone(),
                },
                open: Arc::new(move || {
                    tokio::task::block_in_place(|| replies.open())
                        .map_err(|error| error.to_string())
                }),
            };
            let running = neighbour::run(
                self.addresses,
                self.next_hops,
                egress,
                local,
                config.outer_sources,
                stopping.clone(),
            );
            async { running.await.context("no netlink socket") }
        });
        parts.start_infallible(
            "the questions to the DNS",
            dns::run(
                self.questions,
                self.answers,
                config.dns_servers.clone(),
                stopping.clone(),
            ),
        );
        parts.start("the watch over the way of replies", {
            let (maps, told) = (kernel.maps(), kernel.maps());
            let gate = neighbour::replies::Gate {
                interfaces: config.interfaces.clone(),
                admit: admit(kernel)?,
                write_devices: Box::new(move |devices| maps.write_links(devices)),
                take_unresolved: Box::new(move || told.take_unresolved()),
            };
            let running = neighbour::replies::run(
                self.status.clone(),
                gate,
                self.hindrances,
                stopping.clone(),
            );
            async { running.await.context("no netlink socket") }
        });
        parts.start_infallible("the watch over guards", {
            let tap = kernel.tap();
            let load: guard::programs::Load =
                Arc::new(move || tap.guard().map_err(|error| chain(&error)));
            guard::programs::run(
                self.status,
                kernel.maps().capacity.guards,
                load,
                self.unguarded,
                stopping.clone(),
            )
        });
        parts.start("the watch over the host's own VIPs", {
            let running = neighbour::own::run(self.vips, self.own_vips, stopping.clone());
            async { running.await.context("no netlink socket") }
        });
        Ok(())
    }
}

/// What lets packets leave by an interface.
///
/// # Errors
/// When there are no file descriptors left.
fn admit(kernel: &Kernel) -> Result<neighbour::Admit> {
    let egress = kernel.egress()?;
    Ok(Arc::new(move |ifindex| {
        egress.admit(ifindex).map_err(|error| error.to_string())
    }))
}
