//! The next hop of one address, as the kernel has it now.

use std::{
    collections::{HashMap, hash_map},
    net::IpAddr,
};

use lb_common::{backend::NextHop, net::IpVersion};

use super::{
    Watched,
    local::{Leaves, Place, Rule},
    netlink::{self, Netlink},
    way::{Entry, Kind, Link, MOST_TAGS, Obstacle, Route, Way},
};
use crate::sysctl;

impl Watched {
    pub(super) async fn find(
        &mut self,
        address: IpAddr,
        way: &mut Way,
        links: &mut HashMap<u32, Result<Link, Obstacle>>,
    ) -> Result<NextHop, Obstacle> {
        let route = self
            .netlink
            .route(address)
            .await
            .map_err(|error| match error {
                netlink::Error::Refused(error) => Obstacle::NoRoute(error.to_string()),
                error => Obstacle::Unasked(error.to_string()),
            })?;
        if route.local {
            (self.local.open)().map_err(Obstacle::NoLocalReplies)?;
            return Ok(way.end_here());
        }
        if !route.unicast {
            return Err(Obstacle::NotUnicast);
        }
        let interface = route.interface;
        let link = self.link(interface, links).await?;
        if self.is_here(address, &route, &link).await? {
            let version = IpVersion::of(address);
            let interfaces = &self.local.rule.interfaces;
            let closed = interfaces
                .iter()
                .find(|interface| sysctl::forwards(version, interface) == Some(false));
            if let Some(interface) = closed {
                let interface = interface.clone();
                return Err(Obstacle::NotForwarded { version, interface });
            }
            (self.local.open)().map_err(Obstacle::NoLocalReplies)?;
            return way.resolve_here(address, &route, &link);
        }
        if route.foreign_gateway {
            return Err(Obstacle::ForeignGateway);
        }
        let mut below: Vec<(u32, Link)> = vec![];
        let mut vlan = link.vlan;
        while let Some(device) = vlan {
            if below.len() == MOST_TAGS {
                return Err(Obstacle::TooManyTags(link.name));
            }
            let parent = device
                .parent
                .ok_or_else(|| Obstacle::ForeignParent(link.name.clone()))?;
            let parent_link = self.link(parent, links).await?;
            vlan = parent_link.vlan;
            below.push((parent, parent_link));
        }
        let neighbour = route.gateway.unwrap_or(address);
        let entry = self
            .netlink
            .entry(interface, neighbour)
            .await
            .map_err(|error| Obstacle::Unasked(error.to_string()))?;
        if link.up && entry.is_none_or(|entry: Entry| entry.mac.is_none()) {
            // Resolving it may fail only in ways that the next look at it tells.
            if let Err(error) = self.netlink.use_neighbour(interface, neighbour).await {
                tracing::debug!(%error, %neighbour, interface = %link.name, "a neighbour could not be asked for");
            }
        }
        let hop = way.resolve(address, &route, &link, &below, entry.as_ref())?;
        Ok(self.outer_sources.on(hop, IpVersion::of(address)))
    }

    /// Whether the backend is on this host that a route leads to, which leaves by a link.
    async fn is_here(
        &mut self,
        address: IpAddr,
        route: &Route,
        link: &Link,
    ) -> Result<bool, Obstacle> {
        let found = place(&self.netlink, &self.local.rule, address, route, link).await;
        match found.map_err(|error| Obstacle::Unasked(error.to_string()))? {
            Place::Here => Ok(true),
            Place::Elsewhere => Ok(false),
            Place::Unclear => {
                if self.unclear.insert(link.name.clone()) {
                    tracing::warn!(
                        interface = link.name,
                        %address,
                        "this interface may lead to pods of this host, or to other hosts: backends behind it are taken to be on other hosts; if they are on this \
                         one name it in `local_interfaces`, if not set that to what does lead to pods, or to []"
                    );
                }
                Ok(false)
            }
        }
    }

    /// A link, asked for once in one look.
    async fn link(
        &self,
        interface: u32,
        links: &mut HashMap<u32, Result<Link, Obstacle>>,
    ) -> Result<Link, Obstacle> {
        if let hash_map::Entry::Vacant(vacant) = links.entry(interface) {
            vacant.insert(
                self.netlink
                    .link(interface)
                    .await
                    .map_err(|error| match error {
                        netlink::Error::Refused(_) => Obstacle::LinkGone(interface),
                        error => Obstacle::Unasked(error.to_string()),
                    }),
            );
        }
        links[&interface].clone()
    }
}

/// Where the backend is that a route leads to, which does not end at this host, and leaves by a link.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn place(
    netlink: &Netlink,
    rule: &Rule,
    address: IpAddr,
    route: &Route,
    link: &Link,
) -> Result<Place, netlink::Error> {
    let (mut is_host_route, mut ports) = (false, vec![]);
    if rule.needs_more(link) {
        is_host_route = netlink.is_host_route(address).await?;
        if link.kind == Kind::Bridge {
            let links = netlink.links().await?;
            let master = Some(route.interface);
            let of_bridge = links.values().filter(|link| link.master == master);
            ports = of_bridge.map(|link| link.kind).collect();
        }
    }
    let leaves = Leaves {
        link,
        is_host_route,
        ports: &ports,
    };
    Ok(rule.place(route, &leaves))
}
