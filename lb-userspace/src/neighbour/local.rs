//! Which backends are on this host: pure.
//!
//! | the route to the backend | it is |
//! |---|---|
//! | ends at this host: the address is its own | here |
//! | leaves by an interface that `local_interfaces` names, with a router or without | here |
//! | `local_interfaces` is set and names another | elsewhere |
//! | leaves by one of `interfaces` | elsewhere, unless `local_interfaces` names it |
//! | is for this one address alone, without a router, and leaves by a veth whose peer is in another network namespace | here |
//! | has no router, and leaves by a bridge that has ports, all of them such veths, or taps | here |
//! | anything else | elsewhere |
//!
//! The row of a route to one address alone is what Kubernetes' network plugins make of pods behind veth pairs, and the one after it of those behind a bridge. A
//! veth with a prefix behind it may as well lead to a segment of other hosts, as in a container that tether runs in: so that is taken for elsewhere,
//! and told.

use super::way::{Kind, Link, Route};

/// What is configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// The interfaces that clients' packets come in by.
    pub interfaces: Vec<String>,
    /// Those behind which backends are on this host, each with `*` at its end or without; none where that is to be found out.
    pub named: Option<Vec<String>>,
}

/// Where a backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this host.
    Here,
    /// On another.
    Elsewhere,
    /// It cannot be told, and is taken for elsewhere.
    Unclear,
}

/// What the kernel says of the link that a route leaves by, as far as it matters.
#[derive(Clone, Copy, Debug)]
pub struct Leaves<'a> {
    /// The link.
    pub link: &'a Link,
    /// The route's prefix is this one address.
    pub is_host_route: bool,
    /// The ports of the link, if it is a bridge.
    pub ports: &'a [Kind],
}

impl Rule {
    /// Where the backend is that a route leads to, which does not end at this host.
    pub fn place(&self, route: &Route, leaves: &Leaves<'_>) -> Place {
        let name = &leaves.link.name;
        if let Some(named) = &self.named {
            return if named.iter().any(|pattern| matches(pattern, name)) {
                Place::Here
            } else {
                Place::Elsewhere
            };
        }
        if self.interfaces.contains(name) || route.gateway.is_some() || route.foreign_gateway {
            return Place::Elsewhere;
        }
        match leaves.link.kind {
            Kind::VethElsewhere if leaves.is_host_route => Place::Here,
            Kind::VethElsewhere => Place::Unclear,
            Kind::Bridge if leaves.ports.is_empty() => Place::Elsewhere,
            Kind::Bridge if leaves.ports.iter().all(leads_to_a_guest) => Place::Here,
            Kind::Bridge if leaves.ports.iter().any(leads_to_a_guest) => Place::Unclear,
            _ => Place::Elsewhere,
        }
    }

    /// Whether it takes more than the route and the link to tell.
    pub fn needs_more(&self, link: &Link) -> bool {
        self.named.is_none() && matches!(link.kind, Kind::VethElsewhere | Kind::Bridge)
    }
}

fn leads_to_a_guest(port: &Kind) -> bool {
    matches!(port, Kind::VethElsewhere | Kind::Tap)
}

/// Whether a name is what a pattern names.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route() -> Route {
        Route {
            local: false,
            unicast: true,
            interface: 9,
            gateway: None,
            foreign_gateway: false,
            source: None,
            mtu: None,
        }
    }

    fn link(name: &str, kind: Kind) -> Link {
        Link {
            name: name.into(),
            mac: Some([2, 0, 0, 0, 0, 1]),
            mtu: 1_500,
            up: true,
            vlan: None,
            kind,
            master: None,
        }
    }

    fn automatic() -> Rule {
        Rule {
            interfaces: vec!["eth0".into()],
            named: None,
        }
    }

    fn place(rule: &Rule, name: &str, kind: Kind, is_host_route: bool, ports: &[Kind]) -> Place {
        let link = link(name, kind);
        let leaves = Leaves {
            link: &link,
            is_host_route,
            ports,
        };
        rule.place(&route(), &leaves)
    }

    #[test]
    fn a_veth_with_a_route_for_one_address_is_a_pods() {
        let rule = automatic();
        assert_eq!(
            place(&rule, "cali1", Kind::VethElsewhere, true, &[]),
            Place::Here
        );
        assert_eq!(
            place(&rule, "eth1", Kind::VethElsewhere, false, &[]),
            Place::Unclear
        );
        // Both ends here, or any other sort of link.
        for kind in [Kind::Other, Kind::Tap] {
            assert_eq!(place(&rule, "x", kind, true, &[]), Place::Elsewhere);
        }
        // The interface that clients come in by may be a veth too, as in a lab, or a container.
        assert_eq!(
            place(&rule, "eth0", Kind::VethElsewhere, true, &[]),
            Place::Elsewhere
        );
    }

    #[test]
    fn a_bridge_of_veths_and_taps_alone_is_pods() {
        let rule = automatic();
        let bridge = |ports: &[Kind]| place(&rule, "cni0", Kind::Bridge, false, ports);
        assert_eq!(
            bridge(&[Kind::VethElsewhere, Kind::VethElsewhere]),
            Place::Here
        );
        assert_eq!(bridge(&[Kind::VethElsewhere, Kind::Tap]), Place::Here);
        assert_eq!(bridge(&[Kind::VethElsewhere, Kind::Other]), Place::Unclear);
        assert_eq!(bridge(&[Kind::Other]), Place::Elsewhere);
        assert_eq!(bridge(&[]), Place::Elsewhere);
    }

    #[test]
    fn what_is_behind_a_router_is_elsewhere() {
        let link = link("cali1", Kind::VethElsewhere);
        let leaves = Leaves {
            link: &link,
            is_host_route: true,
            ports: &[],
        };
        let routed = Route {
            gateway: Some("10.0.0.1".parse().unwrap()),
            ..route()
        };
        assert_eq!(automatic().place(&routed, &leaves), Place::Elsewhere);
        let foreign = Route {
            foreign_gateway: true,
            ..route()
        };
        assert_eq!(automatic().place(&foreign, &leaves), Place::Elsewhere);
        let named = Rule {
            named: Some(vec!["cali*".into()]),
            ..automatic()
        };
        assert_eq!(named.place(&routed, &leaves), Place::Here);
    }

    #[test]
    fn what_is_named_counts_alone() {
        let rule = Rule {
            named: Some(vec!["br0".into(), "lxc*".into()]),
            ..automatic()
        };
        for (name, kind, expected) in [
            ("br0", Kind::Other, Place::Here),
            ("br01", Kind::Bridge, Place::Elsewhere),
            ("lxc1234", Kind::VethElsewhere, Place::Here),
            ("lxc", Kind::Other, Place::Here),
            ("cali1", Kind::VethElsewhere, Place::Elsewhere),
        ] {
            let ports = [Kind::VethElsewhere];
            assert_eq!(place(&rule, name, kind, true, &ports), expected, "{name}");
        }
        let nothing = Rule {
            named: Some(vec![]),
            ..automatic()
        };
        assert_eq!(
            place(&nothing, "cali1", Kind::VethElsewhere, true, &[]),
            Place::Elsewhere
        );
        assert!(!nothing.needs_more(&link("cali1", Kind::VethElsewhere)));
        assert!(automatic().needs_more(&link("cni0", Kind::Bridge)));
        assert!(!automatic().needs_more(&link("eth0", Kind::Other)));
    }
}
