use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;

const BACKEND: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 11));
const ROUTER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 1));
const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 2));
const MAC: [u8; 6] = [2, 0, 10, 0, 2, 11];

fn route() -> Route {
    Route {
        local: false,
        unicast: true,
        interface: 7,
        gateway: None,
        foreign_gateway: false,
        source: Some(SOURCE),
        mtu: None,
    }
}

fn link() -> Link {
    Link {
        name: "eth0".into(),
        mac: Some([2, 0, 0, 0, 0, 1]),
        mtu: 1_500,
        up: true,
        vlan: None,
        kind: Kind::Other,
        master: None,
    }
}

/// A VLAN device on the interface with index 3 and MTU 1500.
fn vlan(protocol: u16, id: u16) -> Link {
    Link {
        name: format!("eth0.{id}"),
        mac: Some([2, 0, 0, 0, 0, 2]),
        vlan: Some(Vlan {
            parent: Some(3),
            tag: VlanTag::new(protocol, id),
        }),
        ..link()
    }
}

fn entry(state: EntryState) -> Entry {
    Entry {
        state,
        mac: state.has_mac().then_some(MAC),
        confirmed_ago: Duration::ZERO,
    }
}

fn resolved() -> (Way, NextHop) {
    let mut way = Way::default();
    let hop = way
        .resolve(
            BACKEND,
            &route(),
            &link(),
            &[],
            Some(&entry(EntryState::Valid)),
        )
        .unwrap();
    assert_eq!(way.judge(Instant::now(), Ok(hop)), Some(Some(hop)));
    (way, hop)
}

#[test]
fn a_neighbour_on_the_link_is_its_own_next_hop() {
    let (way, hop) = resolved();
    assert_eq!(way.via(), Some((7, BACKEND)));
    assert_eq!(
        (hop.destination, hop.source, hop.ifindex),
        (MAC, [2, 0, 0, 0, 0, 1], 7)
    );
    assert_eq!(
        (hop.mtu, hop.source_address(IpVersion::V4)),
        (1_500, SOURCE)
    );
}

#[test]
fn a_routed_backend_is_reached_by_its_router_and_the_smaller_mtu_counts() {
    let mut way = Way::default();
    let route = Route {
        gateway: Some(ROUTER),
        mtu: Some(1_400),
        ..route()
    };
    let hop = way
        .resolve(
            BACKEND,
            &route,
            &link(),
            &[],
            Some(&entry(EntryState::Probing)),
        )
        .unwrap();
    assert_eq!((way.via(), hop.mtu), (Some((7, ROUTER)), 1_400));
}

#[test]
fn an_ipv6_backend_is_reached_from_an_ipv6_address() {
    let backend = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 2, 0, 0, 0, 0x11));
    let source = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 2, 0, 0, 0, 2));
    let route = Route {
        source: Some(source),
        ..route()
    };
    let mut way = Way::default();
    let mut resolve = |entry| way.resolve(backend, &route, &link(), &[], entry);
    let asked = resolve(None).unwrap_err().to_string();
    let failed = entry(EntryState::Failed);
    let silent = resolve(Some(&failed)).unwrap_err().to_string();
    assert!(
        asked.contains("has not answered neighbour solicitations yet"),
        "{asked}"
    );
    assert!(
        silent.contains("does not answer neighbour solicitations on interface eth0"),
        "{silent}"
    );
    let valid = entry(EntryState::Valid);
    let hop = resolve(Some(&valid)).unwrap();
    assert_eq!(hop.source_address(IpVersion::V6), source);
    assert_eq!(way.via(), Some((7, backend)));
}

/// RFC 5549: the neighbour is asked for by its own version of IP, and the packet is from an address of the backend's.
#[test]
fn an_ipv4_route_by_an_ipv6_router_is_a_way() {
    let router = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));
    let route = Route {
        gateway: Some(router),
        ..route()
    };
    let mut way = Way::default();
    let hop = way
        .resolve(
            BACKEND,
            &route,
            &link(),
            &[],
            Some(&entry(EntryState::Valid)),
        )
        .unwrap();
    assert_eq!(way.via(), Some((7, router)));
    assert_eq!(hop.source_address(IpVersion::V4), SOURCE);
}

#[test]
fn over_a_vlan_device_the_hop_is_by_its_parent_with_its_tag() {
    let mut way = Way::default();
    let entry = entry(EntryState::Valid);
    let below = [(3, link())];
    let hop = way
        .resolve(BACKEND, &route(), &vlan(0x8100, 100), &below, Some(&entry))
        .unwrap();
    assert_eq!((hop.ifindex, hop.mtu, hop.tag_count()), (3, 1_500, 1));
    assert_eq!(hop.tags, [VlanTag::new(0x8100, 100), VlanTag::NONE]);
    assert_eq!(hop.source, [2, 0, 0, 0, 0, 2], "the VLAN device's own MAC");
    // Who is asked is known to the VLAN device, whoever carries the question.
    assert_eq!(way.via(), Some((7, BACKEND)));
    assert!(way.crosses(7) && way.crosses(3) && !way.crosses(4));
    let untagged = way
        .resolve(BACKEND, &route(), &link(), &[], Some(&entry))
        .unwrap();
    assert_eq!((untagged.ifindex, untagged.tag_count()), (7, 0));
    assert!(!way.crosses(3));
}

#[test]
fn over_two_vlan_devices_the_outer_tag_is_that_of_the_lower_one() {
    let below = [(5, vlan(0x88a8, 100)), (3, link())];
    let entry = entry(EntryState::Valid);
    let resolve = |below: &[(u32, Link)]| {
        Way::default().resolve(BACKEND, &route(), &vlan(0x8100, 200), below, Some(&entry))
    };
    let hop = resolve(&below).unwrap();
    assert_eq!((hop.ifindex, hop.tag_count()), (3, 2));
    assert_eq!(
        hop.tags,
        [VlanTag::new(0x88a8, 100), VlanTag::new(0x8100, 200)]
    );
    assert_eq!(hop.mtu, 1_496, "the second tag takes its bytes of the MTU");
    let roomy = Link {
        mtu: 1_600,
        ..link()
    };
    let below = [below[0].clone(), (3, roomy)];
    assert_eq!(resolve(&below).unwrap().mtu, 1_500);
}

#[test]
fn a_known_mac_outlives_a_failed_entry_but_not_a_change_of_router() {
    let (mut way, hop) = resolved();
    for entry in [
        None,
        Some(&entry(EntryState::Failed)),
        Some(&entry(EntryState::Incomplete)),
    ] {
        assert_eq!(way.resolve(BACKEND, &route(), &link(), &[], entry), Ok(hop));
    }
    let moved = Route {
        gateway: Some(ROUTER),
        ..route()
    };
    assert_eq!(
        way.resolve(BACKEND, &moved, &link(), &[], None),
        Err(Obstacle::Asked(ROUTER))
    );
}

#[test]
fn a_way_is_reported_lost_only_when_it_stays_lost() {
    let (mut way, hop) = resolved();
    let start = Instant::now();
    let lost = || Err(Obstacle::NoRoute("network is unreachable".into()));
    assert_eq!(way.judge(start, lost()), None);
    assert_eq!(way.judge(start + CONFIRMATION / 2, lost()), None);
    assert_eq!(way.judge(start + CONFIRMATION / 2, Ok(hop)), None);
    assert_eq!(way.judge(start + CONFIRMATION, lost()), None);
    assert_eq!(way.judge(start + CONFIRMATION * 2, lost()), Some(None));
    assert_eq!(way.judge(start + CONFIRMATION * 9, lost()), None);
    assert_eq!(
        way.judge(start + CONFIRMATION * 9, Ok(hop)),
        Some(Some(hop))
    );
}

#[test]
fn what_the_kernel_could_not_be_asked_takes_no_known_way_away() {
    let (mut way, hop) = resolved();
    let start = Instant::now();
    assert_eq!(way.judge(start, Ok(hop)), None);
    let unasked = || Err(Obstacle::Unasked("no usable answer".into()));
    for seconds in [0, 1, 2, 3_600] {
        let now = start + CONFIRMATION * seconds;
        assert_eq!(way.judge(now, unasked()), None, "{seconds} s");
    }
    assert!(way.is_open() && way.news().is_some());
    // What it says when it can be asked again counts from then on.
    let later = start + CONFIRMATION * 3_601;
    let lost = || Err(Obstacle::NoRoute("network is unreachable".into()));
    assert_eq!(way.judge(later, lost()), None);
    assert_eq!(way.judge(later + CONFIRMATION, lost()), Some(None));
}

#[test]
fn the_first_report_waits_for_arp_and_for_nothing_else() {
    let now = Instant::now();
    let mut way = Way::default();
    assert_eq!(way.judge(now, Err(Obstacle::Asked(BACKEND))), None);
    assert_eq!(
        way.judge(now, Err(Obstacle::Silent(BACKEND, "eth0".into()))),
        Some(None)
    );
    assert_eq!(way.judge(now, Err(Obstacle::Asked(BACKEND))), None);
    assert_eq!(
        Way::default().judge(now, Err(Obstacle::NotUnicast)),
        Some(None)
    );
}

#[test]
fn an_obstacle_is_told_once_until_it_is_overcome() {
    let (mut way, hop) = resolved();
    let now = Instant::now();
    let silent = || Err(Obstacle::Silent(BACKEND, "eth0".into()));
    way.judge(now, silent());
    assert!(way.news().is_some());
    // The kernel starts over again and again while nobody answers.
    way.judge(now, Err(Obstacle::Asked(BACKEND)));
    assert_eq!(way.news(), None);
    way.judge(now, silent());
    assert_eq!(way.news(), None);
    way.judge(now, Err(Obstacle::NotUnicast));
    assert!(way.news().is_some());
    way.judge(now, Ok(hop));
    way.judge(now, Err(Obstacle::NotUnicast));
    assert!(way.news().is_some());
}

#[test]
fn every_obstacle_of_the_link_is_told_apart() {
    let found = |route: Route, link: Link| {
        Way::default().resolve(BACKEND, &route, &link, &[], Some(&entry(EntryState::Valid)))
    };
    assert_eq!(
        found(
            route(),
            Link {
                up: false,
                ..link()
            }
        ),
        Err(Obstacle::LinkDown("eth0".into()))
    );
    assert_eq!(
        found(
            route(),
            Link {
                mac: None,
                ..link()
            }
        ),
        Err(Obstacle::NotEthernet("eth0".into()))
    );
    assert_eq!(
        found(
            Route {
                source: None,
                ..route()
            },
            link()
        ),
        Err(Obstacle::NoSource("eth0".into()))
    );
}

#[test]
fn the_remedy_names_the_sysctl_of_the_interface() {
    let obstacle = Obstacle::NotForwarded {
        version: IpVersion::V4,
        interface: "eth1.100".into(),
    };
    let text = obstacle.to_string();
    assert!(
        text.contains("`sysctl -w net.ipv4.conf.eth1/100.forwarding=1`"),
        "{text}"
    );
}

#[test]
fn prefixes_cover_what_they_should() {
    let covers = |prefix: &str, length, address: &str| {
        covers(prefix.parse().unwrap(), length, address.parse().unwrap())
    };
    assert!(covers("10.0.2.0", 24, "10.0.2.11") && !covers("10.0.2.0", 24, "10.0.3.11"));
    assert!(covers("0.0.0.0", 0, "10.0.2.11") && !covers("0.0.0.0", 0, "2001:db8::1"));
    assert!(covers("10.0.2.11", 32, "10.0.2.11") && !covers("10.0.2.11", 32, "10.0.2.1"));
    assert!(covers("2001:db8:1::", 48, "2001:db8:1:ffff::1"));
    assert!(!covers("2001:db8:1::", 48, "2001:db8:2::1"));
    assert!(covers("::", 0, "2001:db8::1") && !covers("::", 0, "10.0.2.11"));
    assert!(
        covers("2001:db8::1", 128, "2001:db8::1") && !covers("2001:db8::1", 128, "2001:db8::2")
    );
}
