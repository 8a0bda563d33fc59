//! Next hops: for every backend's address the egress interface, the MACs, this host's address and the MTU, kept true while routes,
//! links and neighbours change.
//!
//! The kernel decides: its route, its neighbour entry. This module asks, listens for changes and reports, and keeps the entries
//! alive, since a load balancer whose backends answer clients directly sends through its own stack too little to do so. An entry
//! is asked for by using it (`NTF_USE`), which leaves nothing behind that the kernel does not age out by itself.
//!
//! A route over a VLAN device leads to the interface below, with the tags that the VLAN devices in between would put on. Before a hop is
//! reported, its interface is let into the data path's map of those that packets may leave by.
//!
//! | what happens | what is reported |
//! |---|---|
//! | the neighbour's MAC, the route, the interface's MAC or an MTU changes | the new next hop, at once |
//! | the neighbour stops answering ARP or NDP | nothing: the known MAC stays, since a hiccup must not cut flows. Health says whether a host is dead |
//! | route or link are gone for less than [`way::CONFIRMATION`] | nothing |
//! | they stay gone, or the neighbour never answered | no next hop: the backend is unresolved |
//! | events were lost | what a full look at everything finds |
//!
//! A backend on this host ([`local`] tells which are) has the host's own stack for a next hop. Before that is reported, what it will send back is seen
//! to.
//!
//! `find` asks the kernel for the way to one address, [`own`] tells which VIPs the host itself has, and [`replies`] sees to what packets from backends
//! need on their way to clients.

mod find;
pub mod local;
pub mod netlink;
pub mod outer;
pub mod own;
pub mod replies;
pub mod way;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::{
    backend::NextHop,
    net::{IpVersion, Mac},
};
use tokio::sync::{mpsc, watch};

pub use self::find::place;
use self::{
    local::Rule,
    netlink::{Event, Events, Netlink},
    outer::OuterSources,
    way::{Obstacle, Way, covers},
};
use crate::{model::NextHopReport, status::ClosedEgress};

/// Changes come in bursts: after the first one, this long is waited for the rest.
const SETTLE: Duration = Duration::from_millis(20);
/// How often ways that are not resolved are looked at.
const OPEN_INTERVAL: Duration = Duration::from_millis(500);
/// How often neighbours are used, so that the kernel keeps their entries fresh.
const USE_INTERVAL: Duration = Duration::from_secs(10);
/// How often everything is looked at, for what comes without an event: a path MTU, a change of next-hop objects.
const FULL_INTERVAL: Duration = Duration::from_secs(30);
/// Pause before the netlink socket is opened again after it failed.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

/// Lets packets leave by the interface with this index, or says why those that came in by another cannot.
pub type Admit = Arc<dyn Fn(u32) -> Result<(), String> + Send + Sync>;

/// The interfaces that packets leave by.
pub struct Egress {
    /// Lets them.
    pub admit: Admit,
    /// Told of those that are closed.
    pub closed: watch::Sender<Vec<ClosedEgress>>,
}

/// Backends on this host.
pub struct Local {
    /// Which those are.
    pub rule: Rule,
    /// Sees to it that what they send back is translated, or says why it cannot be.
    pub open: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
}

/// Resolves and watches the next hops of `addresses` until `shutdown` turns true or the receiver of `reports` is gone.
///
/// A report is sent for every address once it is known whether it has a next hop, and from then on whenever that changes.
///
/// # Errors
/// When no netlink socket is to be had at the start; later failures are logged, and the socket is opened again.
pub async fn run(
    mut addresses: watch::Receiver<BTreeSet<IpAddr>>,
    reports: mpsc::Sender<NextHopReport>,
    egress: Egress,
    local: Local,
    outer_sources: OuterSources,
    mut shutdown: watch::Receiver<bool>,
) -> io::Result<()> {
    let (netlink, mut events) = Netlink::subscribe()?;
    let mut watched = Watched::new(netlink, reports, egress, local, outer_sources);
    watched.set_addresses(&addresses.borrow_and_update());
    let mut open = tokio::time::interval(OPEN_INTERVAL);
    let mut uses = tokio::time::interval(USE_INTERVAL);
    let mut full = tokio::time::interval(FULL_INTERVAL);
    for interval in [&mut open, &mut uses, &mut full] {
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    }
    loop {
        let settled = watched.settled_at();
        tokio::select! {
            () = crate::shutdown::requested(&mut shutdown) => return Ok(()),
            changed = addresses.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                watched.set_addresses(&addresses.borrow_and_update());
            }
            event = events.next() => match event {
                Some(event) => {
                    watched.absorb(&event);
                    while let Some(event) = events.ready() {
                        watched.absorb(&event);
                    }
                }
                None => {
                    (watched.netlink, events) = reopen().await;
                    watched.absorb(&Event::Anything);
                }
            },
            () = tokio::time::sleep_until(settled.unwrap_or_else(Instant::now).into()), if settled.is_some() => {
                if watched.look().await.is_err() {
                    return Ok(());
                }
            }
            _ = open.tick() => {
                watched.mark_open();
                watched.admit_closed();
            }
            _ = uses.tick() => watched.use_all().await,
            _ = full.tick() => watched.absorb(&Event::Anything),
        }
    }
}

async fn reopen() -> (Netlink, Events) {
    tracing::warn!("the netlink socket for next hops failed; opening another");
    loop {
        tokio::time::sleep(REOPEN_PAUSE).await;
        match Netlink::subscribe() {
            Ok(opened) => return opened,
            Err(error) => {
                tracing::error!(%error, "no netlink socket for next hops; they are not followed meanwhile, trying again");
            }
        }
    }
}

/// All ways that are watched, and which of them must be looked at.
struct Watched {
    netlink: Netlink,
    reports: mpsc::Sender<NextHopReport>,
    egress: Egress,
    local: Local,
    outer_sources: OuterSources,
    /// Interfaces of which it was told that it is unclear where backends behind them are.
    unclear: BTreeSet<String>,
    /// Egress interfaces that are closed, by index.
    closed: BTreeMap<u32, ClosedEgress>,
    ways: BTreeMap<IpAddr, Way>,
    marked: BTreeSet<IpAddr>,
    marked_at: Option<Instant>,
}

/// The receiver of reports is gone.
struct Ended;

impl Watched {
    fn new(
        netlink: Netlink,
        reports: mpsc::Sender<NextHopReport>,
        egress: Egress,
        local: Local,
        outer_sources: OuterSources,
    ) -> Self {
        Self {
            netlink,
            reports,
            egress,
            local,
            outer_sources,
            unclear: BTreeSet::new(),
            closed: BTreeMap::new(),
            ways: BTreeMap::new(),
            marked: BTreeSet::new(),
            marked_at: None,
        }
    }

    fn set_addresses(&mut self, addresses: &BTreeSet<IpAddr>) {
        self.ways.retain(|address, _| addresses.contains(address));
        self.forget_closed();
        for address in addresses {
            if !self.ways.contains_key(address) {
                self.ways.insert(*address, Way::default());
                self.mark(*address);
            }
        }
    }

    fn mark(&mut self, address: IpAddr) {
        self.marked.insert(address);
        self.marked_at.get_or_insert_with(Instant::now);
    }

    fn mark_where(&mut self, concerned: impl Fn(IpAddr, &Way) -> bool) {
        let marked: Vec<_> = self
            .ways
            .iter()
            .filter(|(address, way)| concerned(**address, way))
            .map(|(address, _)| *address)
            .collect();
        for address in marked {
            self.mark(address);
        }
    }

    fn mark_open(&mut self) {
        self.mark_where(|_, way| way.is_open());
    }

    /// Marks what an event concerns.
    fn absorb(&mut self, event: &Event) {
        match *event {
            Event::Anything => self.mark_where(|_, _| true),
            // A route to the gateway matters only to what is routed over it, and that shows in the kernel's own choice; a
            // gateway is always on a link, whose routes cover it.
            Event::Route(prefix, length) => self.mark_where(|address, way| {
                covers(prefix, length, address)
                    || way.via().is_some_and(|via| covers(prefix, length, via.1))
            }),
            Event::Link(interface) => {
                self.mark_where(|_, way| way.is_open() || way.crosses(interface));
            }
            Event::Neighbour(interface, neighbour, mac) => self.mark_where(|_, way| {
                way.via() == Some((interface, neighbour))
                    && (way.is_open() || mac.is_none() || mac != way.mac())
            }),
        }
    }

    /// When what is marked should be looked at.
    fn settled_at(&self) -> Option<Instant> {
        self.marked_at.map(|at| at + SETTLE)
    }

    /// Looks at what is marked, and reports what changed.
    async fn look(&mut self) -> Result<(), Ended> {
        self.marked_at = None;
        let mut links = HashMap::new();
        let mut admitted = BTreeSet::new();
        for address in std::mem::take(&mut self.marked) {
            let Some(mut way) = self.ways.remove(&address) else {
                continue;
            };
            let found = self.find(address, &mut way, &mut links).await;
            if let Ok(hop) = found
                && !hop.is_local()
                && admitted.insert(hop.ifindex)
            {
                let name = match links.get(&hop.ifindex) {
                    Some(Ok(link)) => link.name.clone(),
                    _ => String::new(),
                };
                self.admit(hop.ifindex, name);
            }
            let report = way.judge(Instant::now(), found);
            if let Some(obstacle) = way.news() {
                log_obstacle(address, obstacle);
            }
            let on_link = way.via().is_some_and(|via| via.1 == address);
            self.ways.insert(address, way);
            if let Some(next_hop) = report {
                if let Some(hop) = next_hop {
                    log_hop(address, &hop);
                }
                self.report(address, next_hop, on_link).await?;
            }
        }
        self.forget_closed();
        Ok(())
    }

    /// Has packets let out by an interface, and tells if that is news.
    fn admit(&mut self, ifindex: u32, interface: String) {
        match (self.egress.admit)(ifindex) {
            Ok(()) => {
                if self.closed.remove(&ifindex).is_none() {
                    return;
                }
                tracing::info!(interface, "packets may leave by this interface now");
            }
            Err(reason) => {
                let closed = ClosedEgress { interface, reason };
                if self.closed.get(&ifindex) == Some(&closed) {
                    return;
                }
                tracing::warn!(
                    interface = closed.interface,
                    reason = closed.reason,
                    "packets to backends cannot leave by this interface"
                );
                self.closed.insert(ifindex, closed);
            }
        }
        self.tell_closed();
    }

    /// Tries those that are closed once more: what is attached to them may have changed.
    fn admit_closed(&mut self) {
        for (ifindex, closed) in self.closed.clone() {
            self.admit(ifindex, closed.interface);
        }
    }

    /// Forgets those that no way leads to any more.
    fn forget_closed(&mut self) {
        let before = self.closed.len();
        let ways = &self.ways;
        self.closed.retain(|ifindex, _| {
            ways.values()
                .any(|way| way.hop().is_some_and(|hop| hop.ifindex == *ifindex))
        });
        if self.closed.len() != before {
            self.tell_closed();
        }
    }

    fn tell_closed(&self) {
        self.egress
            .closed
            .send_replace(self.closed.values().cloned().collect());
    }

    async fn report(
        &self,
        address: IpAddr,
        next_hop: Option<NextHop>,
        on_link: bool,
    ) -> Result<(), Ended> {
        self.reports
            .send(NextHopReport {
                address,
                next_hop,
                on_link,
            })
            .await
            .map_err(|_| Ended)
    }

    /// Uses every neighbour, so that the kernel confirms what is stale and asks for what failed.
    async fn use_all(&self) {
        let neighbours: BTreeSet<_> = self.ways.values().filter_map(Way::via).collect();
        for (interface, neighbour) in neighbours {
            if let Err(error) = self.netlink.use_neighbour(interface, neighbour).await {
                tracing::debug!(%error, %neighbour, interface, "a neighbour could not be kept fresh");
            }
        }
    }
}

fn log_obstacle(address: IpAddr, obstacle: &Obstacle) {
    tracing::warn!(%address, reason = %obstacle, "something is in the way to a backend");
}

fn log_hop(address: IpAddr, hop: &NextHop) {
    if hop.is_local() {
        tracing::info!(%address, mtu = hop.mtu, "the backend is on this host");
        return;
    }
    let vlans: Vec<_> = hop.tags[..usize::from(hop.tag_count())]
        .iter()
        .map(ToString::to_string)
        .collect();
    tracing::info!(
        %address,
        mac = %Mac(hop.destination),
        interface = hop.ifindex,
        vlans = (!vlans.is_empty()).then(|| vlans.join(", ")),
        source = %hop.source_address(IpVersion::of(address)),
        mtu = hop.mtu,
        "next hop resolved"
    );
}

#[cfg(test)]
mod tests;
