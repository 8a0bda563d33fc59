//! Ways to backends: route, links, neighbour.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::neighbour::{
    local::{Place, Rule},
    netlink::{Error, Netlink},
    place,
    way::{Entry, EntryState, Link, Obstacle},
};

/// How long neighbours that have to be asked for are waited for: the kernel asks three times, a second apart.
const PATIENCE: Duration = Duration::from_millis(3_500);
/// How often is looked whether they have answered.
const EVERY: Duration = Duration::from_millis(50);

/// The way to one address.
#[derive(Clone, Debug, Default)]
pub(super) struct Way {
    /// It is on this host.
    pub(super) here: bool,
    /// Why there is none.
    pub(super) obstacle: Option<String>,
    /// The interface of the route.
    pub(super) interface: u32,
    /// The name of the interface that packets leave by: the one below, if the route's is a VLAN device. None to this host itself.
    pub(super) physical: String,
    pub(super) gateway: Option<IpAddr>,
    /// This host's address on it.
    pub(super) source: Option<IpAddr>,
    /// Addresses of this host's on the route's interface.
    pub(super) others: Vec<IpAddr>,
    pub(super) mtu: u32,
    pub(super) entry: Option<Entry>,
}

/// The ways to all addresses.
pub(super) async fn gather(
    netlink: &Netlink,
    rule: &Rule,
    addresses: BTreeSet<IpAddr>,
) -> BTreeMap<IpAddr, Way> {
    let links = netlink.links().await.unwrap_or_default();
    let mut ways = BTreeMap::new();
    for address in addresses {
        let way = match route(netlink, rule, address, &links).await {
            Ok(way) => way,
            Err(obstacle) => Way {
                obstacle: Some(obstacle.to_string()),
                ..Way::default()
            },
        };
        ways.insert(address, way);
    }
    resolve(netlink, &mut ways).await;
    ways
}

async fn route(
    netlink: &Netlink,
    rule: &Rule,
    address: IpAddr,
    links: &HashMap<u32, Link>,
) -> Result<Way, Obstacle> {
    let route = netlink.route(address).await.map_err(|error| match error {
        Error::Refused(error) => Obstacle::NoRoute(error.to_string()),
        error => Obstacle::Unasked(error.to_string()),
    })?;
    if route.local {
        return Ok(Way {
            here: true,
            ..Way::default()
        });
    }
    if !route.unicast {
        return Err(Obstacle::NotUnicast);
    }
    let link = links
        .get(&route.interface)
        .ok_or(Obstacle::LinkGone(route.interface))?;
    if !link.up {
        return Err(Obstacle::LinkDown(link.name.clone()));
    }
    let place = place(netlink, rule, address, &route, link)
        .await
        .map_err(|error| Obstacle::Unasked(error.to_string()))?;
    if place == Place::Here {
        return Ok(Way {
            here: true,
            interface: route.interface,
            physical: link.name.clone(),
            ..Way::default()
        });
    }
    if route.foreign_gateway {
        return Err(Obstacle::ForeignGateway);
    }
    if link.mac.is_none() {
        return Err(Obstacle::NotEthernet(link.name.clone()));
    }
    let mut physical = link;
    while let Some(vlan) = physical.vlan {
        let parent = vlan.parent.and_then(|parent| links.get(&parent));
        physical = parent.ok_or_else(|| Obstacle::ForeignParent(link.name.clone()))?;
    }
    Ok(Way {
        here: false,
        obstacle: None,
        interface: route.interface,
        physical: physical.name.clone(),
        gateway: route.gateway,
        source: route.source,
        others: addresses_of(&link.name),
        mtu: route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)),
        entry: None,
    })
}

/// The addresses of an interface that others reach: not those of its link alone.
fn addresses_of(interface: &str) -> Vec<IpAddr> {
    let Ok(all) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    let here = all.filter(|one| one.interface_name == interface);
    let addresses = here.filter_map(|one| {
        let address = one.address?;
        let four = address.as_sockaddr_in().map(|at| IpAddr::V4(at.ip()));
        four.or_else(|| address.as_sockaddr_in6().map(|at| IpAddr::V6(at.ip())))
    });
    let is_of_link =
        |address: &IpAddr| matches!(address, IpAddr::V6(six) if six.is_unicast_link_local());
    addresses.filter(|address| !is_of_link(address)).collect()
}

/// Looks up the neighbours, and has those asked for that are not known: who has not answered by the end of [`PATIENCE`] has failed.
async fn resolve(netlink: &Netlink, ways: &mut BTreeMap<IpAddr, Way>) {
    let started = Instant::now();
    let mut asked = BTreeSet::new();
    loop {
        let mut open = false;
        for (&address, way) in &mut *ways {
            if way.here
                || way.obstacle.is_some()
                || way.entry.is_some_and(|entry| entry.mac.is_some())
            {
                continue;
            }
            let next = way.gateway.unwrap_or(address);
            let found = netlink.entry(way.interface, next).await.ok().flatten();
            let first = asked.insert((way.interface, next));
            if first && found.is_none_or(|entry| entry.mac.is_none()) {
                // A refusal shows as an entry that stays away.
                let _ = netlink.use_neighbour(way.interface, next).await;
                open = true;
                continue;
            }
            way.entry = found;
            open |= found.is_none_or(|entry| entry.state == EntryState::Incomplete);
        }
        if !open || started.elapsed() >= PATIENCE {
            break;
        }
        tokio::time::sleep(EVERY).await;
    }
    // Whoever else wants the same neighbour, as the daemon does, has the kernel start over before anyone could see that it gave up.
    for entry in ways.values_mut().filter_map(|way| way.entry.as_mut()) {
        if entry.state == EntryState::Incomplete {
            entry.state = EntryState::Failed;
        }
    }
}
