use std::net::IpAddr;

use lb_common::{backend::Mode, net::IpVersion};

use super::*;
use crate::{
    dataplane::kernel::device::Queues,
    doctor::{
        Finding,
        State::{self, Failure, Ok, Unknown, Warning},
        facts::{Backend, Daemon, Echoes, Host, Interface, Probe, Program, Service, Snat, Start},
    },
    neighbour::way::EntryState,
};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 11];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A host with one service where all is well.
fn well(mode: Mode) -> Facts {
    let mut interface = Interface {
        configured: true,
        exists: true,
        up: true,
        mtu: 1600,
        driver: Some("ice".into()),
        program: Program::Ours { native: true },
        features: Some(0x7f),
        gro: Some(true),
        lro: Some(false),
        queues: Some(Queues {
            combined: 2,
            maximum: 4,
        }),
        cpus: 2,
        tc: Some(vec![]),
        rp_filter: Some(0),
        ..Interface::default()
    };
    interface.unforwarded[IpVersion::V4] = Some(vec![]);
    Facts {
        host: Host {
            release: "6.18.0-amd64".into(),
            capabilities: Some(u64::MAX),
            may_ping: true,
            bpffs: ("/sys/fs/bpf/tether".into(), Some(true)),
            jit: Some(true),
            conntrack: Some((10, 100)),
            local_ports: Some((32_768, 60_999)),
            reserved_ports: vec![],
        },
        daemon: Daemon::Runs {
            pid: 7,
            complaints: vec![],
        },
        start: None,
        interfaces: [("eth0".to_owned(), interface)].into(),
        services: vec![Service {
            name: "chat".into(),
            vip: ip("10.0.0.1"),
            mode,
            own_vip: Some(false),
            answers: Some(vec![]),
            snat: if mode == Mode::Nat {
                vec![Snat {
                    address: ip("10.0.2.100"),
                    own: Some(true),
                    used_toward: vec![],
                }]
            } else {
                vec![]
            },
            backends: vec![Backend {
                name: "b1".into(),
                address: ip("10.0.2.11"),
                here: false,
                no_route: None,
                interface: "eth0".into(),
                gateway: None,
                neighbour: Some(EntryState::Valid),
                mac: Some(MAC),
                mtu: 1600,
                echoes: Some(Echoes {
                    small: true,
                    large: true,
                }),
                probe: Probe::Accepted { direct: true },
            }],
        }],
    }
}

/// What differs from a host where all is well: the findings of one change.
fn found(mode: Mode, change: impl FnOnce(&mut Facts)) -> Vec<Finding> {
    let before = examine(&well(mode)).findings;
    let mut facts = well(mode);
    change(&mut facts);
    let mut after = examine(&facts).findings;
    after.retain(|finding| !before.contains(finding));
    after
}

/// That one change makes one finding, with a remedy.
fn makes(mode: Mode, state: State, check: &str, remedy: &str, change: impl FnOnce(&mut Facts)) {
    let found = found(mode, change);
    let [finding] = &found[..] else {
        panic!("{check}: {found:#?}");
    };
    assert_eq!(
        (finding.state, finding.check),
        (state, check),
        "{finding:?}"
    );
    let said = finding.remedy.as_deref().unwrap_or_default();
    assert!(said.contains(remedy), "{finding:?}");
}

fn eth0(facts: &mut Facts) -> &mut Interface {
    facts.interfaces.get_mut("eth0").unwrap()
}

fn b1(facts: &mut Facts) -> &mut Backend {
    &mut facts.services[0].backends[0]
}

#[test]
fn where_all_is_well_there_is_nothing_to_do() {
    for mode in Mode::ALL {
        let report = examine(&well(mode));
        assert_eq!(report.worst(), Ok, "{report:#?}");
        assert!(
            report
                .findings
                .iter()
                .all(|finding| finding.remedy.is_none())
        );
        assert!(report.findings.len() > 12);
    }
}

#[test]
fn the_host() {
    let release =
        |release: &'static str| move |facts: &mut Facts| facts.host.release = release.into();
    makes(
        Mode::L2,
        Failure,
        "kernel",
        "newer kernel",
        release("5.10.0-35-amd64"),
    );
    for mode in [Mode::L2, Mode::Nat, Mode::Dnat] {
        assert_eq!(found(mode, release("6.1.0-40-amd64"))[0].state, Ok);
    }
    makes(Mode::L2, Unknown, "kernel", "uname", release("?"));
    let rights = |bits: u64| move |facts: &mut Facts| facts.host.capabilities = Some(bits);
    makes(Mode::L2, Failure, "capabilities", "CAP_BPF", rights(0));
    makes(
        Mode::L2,
        Warning,
        "capabilities",
        "CAP_NET_RAW",
        rights(1 << 12 | 1 << 38 | 1 << 39),
    );
    assert_eq!(
        found(Mode::L2, rights(1 << 12 | 1 << 13 | 1 << 38 | 1 << 39)),
        []
    );
    makes(Mode::L2, Unknown, "capabilities", "root", |facts| {
        facts.host.capabilities = None
    });
    makes(Mode::L2, Failure, "bpffs", "mount -t bpf", |facts| {
        facts.host.bpffs.1 = Some(false)
    });
    makes(Mode::L2, Warning, "jit", "bpf_jit_enable=1", |facts| {
        facts.host.jit = Some(false)
    });
    makes(Mode::L2, Unknown, "jit", "bpf_jit_enable", |facts| {
        facts.host.jit = None
    });
    makes(
        Mode::L2,
        Warning,
        "conntrack",
        "nf_conntrack_max",
        |facts| facts.host.conntrack = Some((81, 100)),
    );
    makes(Mode::L2, Unknown, "daemon", "tether run", |facts| {
        facts.daemon = Daemon::Silent
    });
    makes(Mode::Nat, Ok, "start", "", |facts| {
        facts.start = Some(Start::Begins)
    });
    makes(Mode::Nat, Failure, "start", "upgrade-check", |facts| {
        facts.start = Some(Start::Refused("the verifier refuses steer4".into()))
    });
    let refused = found(Mode::Nat, |facts| {
        facts.start = Some(Start::Refused(
            "steer4 is refused, and this is why:\n0: R1=ctx\n".into(),
        ));
    });
    assert_eq!(
        refused[0].found,
        "`tether run` would be refused: steer4 is refused, and this is why"
    );
    makes(Mode::Nat, Unknown, "start", "as root", |facts| {
        facts.start = Some(Start::Unseen("CAP_BPF missing".into()))
    });
    makes(Mode::L2, Failure, "daemon", "tether status", |facts| {
        facts.daemon = Daemon::Runs {
            pid: 7,
            complaints: vec!["it is ill".into()],
        };
    });
}

#[test]
fn interfaces_and_drivers() {
    let gone = |facts: &mut Facts| eth0(facts).exists = false;
    makes(Mode::L2, Failure, "interface", "ip link", gone);
    makes(Mode::L2, Failure, "interface", "set eth0 up", |facts| {
        eth0(facts).up = false
    });
    makes(Mode::L2, Failure, "xdp", "xdp off", |facts| {
        eth0(facts).program = Program::Foreign {
            id: 3,
            name: "other".into(),
        };
    });
    makes(Mode::L2, Failure, "xdp", "unmount the upper", |facts| {
        eth0(facts).program = Program::Foreign {
            id: 3,
            name: "tether".into(),
        };
    });
    makes(Mode::L2, Failure, "xdp", "put bond0", |facts| {
        eth0(facts).bond = Some("bond0".into())
    });
    // Generic, and merging is off.
    makes(Mode::L2, Warning, "xdp", "hardware", |facts| {
        eth0(facts).program = Program::Ours { native: false };
        eth0(facts).gro = Some(false);
    });
    makes(Mode::L2, Warning, "xdp", "put eth9", |facts| {
        let eth0 = eth0(facts);
        (eth0.program, eth0.gro) = (Program::Ours { native: false }, Some(false));
        eth0.vlan_on = Some("eth9".into());
    });
    let merging = found(Mode::L2, |facts| {
        eth0(facts).program = Program::Ours { native: false }
    });
    assert!(
        merging
            .iter()
            .any(|one| one.check == "offloads" && one.state == Failure)
    );
    // Not attached yet: what the driver says decides.
    let unattached = |features| {
        move |facts: &mut Facts| {
            eth0(facts).program = Program::None;
            eth0(facts).features = features;
        }
    };
    assert_eq!(found(Mode::L2, unattached(Some(0x7f)))[0].state, Ok);
    makes(Mode::L2, Unknown, "xdp", "log", unattached(None));
    assert_eq!(found(Mode::L2, unattached(Some(0)))[0].state, Warning);
    makes(Mode::L2, Warning, "offloads", "lro off", |facts| {
        eth0(facts).lro = Some(true)
    });
    let virtio = |combined| {
        move |facts: &mut Facts| {
            let eth0 = eth0(facts);
            eth0.driver = Some("virtio_net".into());
            eth0.queues = Some(Queues {
                combined,
                maximum: 4,
            });
        }
    };
    let crash = found(Mode::L2, virtio(4));
    let crash = crash.iter().find(|one| one.check == "queues").unwrap();
    assert_eq!(crash.state, Failure);
    assert!(
        crash
            .remedy
            .as_ref()
            .unwrap()
            .contains("ethtool -L eth0 combined 2")
    );
    assert!(found(Mode::L2, virtio(2)).iter().all(|one| one.state == Ok));
    let ena = found(Mode::L2, |facts| {
        let eth0 = eth0(facts);
        (eth0.driver, eth0.program) = (Some("ena".into()), Program::None);
        eth0.queues = Some(Queues {
            combined: 4,
            maximum: 4,
        });
    });
    assert!(
        ena.iter()
            .any(|one| one.check == "queues" && one.state == Warning)
    );
    // A driver may have queues and no pairs of them, and one without native XDP has none to refuse.
    let unpaired = found(Mode::L2, |facts| {
        eth0(facts).queues = Some(Queues {
            combined: 0,
            maximum: 0,
        });
    });
    assert_eq!(unpaired, []);
    let generic = found(Mode::L2, |facts| {
        let eth0 = eth0(facts);
        (eth0.features, eth0.mtu, eth0.splits_headers) = (Some(0), 9000, Some(true));
    });
    assert!(
        generic
            .iter()
            .all(|one| !["driver-mtu", "header-split"].contains(&one.check)),
        "{generic:?}"
    );
    let jumbo = found(Mode::L2, |facts| {
        eth0(facts).features = Some(0x5f);
        eth0(facts).mtu = 9000;
    });
    let jumbo = jumbo.iter().find(|one| one.check == "driver-mtu").unwrap();
    assert_eq!(jumbo.state, Warning);
    assert!(
        jumbo.remedy.as_ref().unwrap().contains("mtu 3502"),
        "{jumbo:?}"
    );
}

#[test]
fn headers_apart_from_data_take_frames_of_several_buffers() {
    const NO_SG: u64 = 0x5f;
    let remedy = "ethtool -G eth0 tcp-data-split off";
    let split = |features: u64, mtu: u32, splits: Option<bool>| {
        move |facts: &mut Facts| {
            eth0(facts).features = Some(features);
            eth0(facts).splits_headers = splits;
            eth0(facts).mtu = mtu;
        }
    };
    makes(
        Mode::L2,
        Warning,
        "header-split",
        remedy,
        split(NO_SG, 1600, Some(true)),
    );
    for (features, splits) in [(0x7f, Some(true)), (NO_SG, Some(false)), (NO_SG, None)] {
        assert_eq!(found(Mode::L2, split(features, 1600, splits)), []);
    }
    // Beyond a page both are in the way, and both are told.
    let beyond = found(Mode::L2, split(NO_SG, 9000, Some(true)));
    for check in ["driver-mtu", "header-split"] {
        let line = beyond.iter().find(|one| one.check == check);
        assert_eq!(line.map(|line| line.state), Some(Warning), "{beyond:#?}");
    }
    assert!(
        beyond
            .iter()
            .any(|one| one.found.contains("MTU 9000 is more than a page holds")),
        "{beyond:#?}"
    );
}

/// What is said of frames of several buffers where clients come by one interface, the backend is behind another, and both carry such frames.
fn of_several_buffers(mode: Mode, change: impl FnOnce(&mut Facts)) -> Vec<Finding> {
    let mut facts = well(mode);
    eth0(&mut facts).mtu = 9000;
    let mut second = eth0(&mut facts).clone();
    // All but what they take to leave.
    second.features = Some(0x3f);
    facts.interfaces.insert("eth1".into(), second);
    b1(&mut facts).interface = "eth1".into();
    change(&mut facts);
    let mut findings = examine(&facts).findings;
    findings.retain(|finding| finding.check == "egress-buffers");
    findings
}

#[test]
fn frames_of_several_buffers_that_are_redirected() {
    const LOWER: &str = "ip link set eth1 mtu 3502, and the same for all on its link";
    type Change = fn(&mut Facts);
    fn eth1(facts: &mut Facts) -> &mut Interface {
        facts.interfaces.get_mut("eth1").unwrap()
    }
    for mode in Mode::ALL {
        let found = of_several_buffers(mode, |_| {});
        let [finding] = &found[..] else {
            panic!("{mode:?}: {found:#?}");
        };
        assert_eq!((finding.state, &finding.subject[..]), (Warning, "eth1"));
        assert!(finding.found.contains("by eth0 and leave"), "{finding:?}");
        assert_eq!(finding.remedy.as_deref(), Some(LOWER));
    }
    let silent: [(&str, Change); 5] = [
        ("a driver that takes them", |facts| {
            eth1(facts).features = Some(0x7f);
        }),
        ("a driver that takes none at all", |facts| {
            eth1(facts).features = Some(0x3b);
        }),
        ("a link that they do not fit", |facts| {
            eth1(facts).mtu = 1600;
        }),
        ("a program behind the driver", |facts| {
            eth0(facts).program = Program::Ours { native: false };
        }),
        ("a backend where clients are", |facts| {
            b1(facts).interface = "eth0".into();
        }),
    ];
    for (what, change) in silent {
        assert_eq!(of_several_buffers(Mode::L2, change), [], "{what}");
    }
    let split = of_several_buffers(Mode::L2, |facts| {
        eth0(facts).splits_headers = Some(true);
        eth1(facts).mtu = 1600;
    });
    let remedy = "ethtool -G eth0 tcp-data-split off";
    assert_eq!(split[0].remedy.as_deref(), Some(remedy));
    let both = of_several_buffers(Mode::L2, |facts| {
        eth0(facts).splits_headers = Some(true);
    });
    let remedies = format!("{remedy}; {LOWER}");
    assert_eq!(both[0].remedy.as_deref(), Some(&remedies[..]));

    // A kernel that redirects none, nor tells what drivers can do.
    let old = |program: Program| {
        move |facts: &mut Facts| {
            facts.host.release = "6.1.0-40-amd64".into();
            for interface in facts.interfaces.values_mut() {
                (interface.features, interface.program) = (None, program.clone());
            }
        }
    };
    let native = Program::Ours { native: true };
    for (mode, subjects) in [
        (Mode::Ipip, &["eth1"][..]),
        (Mode::Nat, &["eth0", "eth1"][..]),
    ] {
        let found = of_several_buffers(mode, old(native.clone()));
        let told: Vec<&str> = found.iter().map(|one| &one.subject[..]).collect();
        assert_eq!(told, subjects);
        let newer = |one: &Finding| {
            one.remedy
                .as_ref()
                .unwrap()
                .ends_with("or run Linux 6.3 or later")
        };
        assert!(found.iter().all(newer), "{found:#?}");
    }
    assert_eq!(of_several_buffers(Mode::Ipip, old(Program::None)), []);

    // What comes in by a port of a bond leaves by the bond.
    let alone = |is_bond| {
        move |facts: &mut Facts| {
            facts.interfaces.remove("eth1");
            b1(facts).interface = "eth0".into();
            let eth0 = eth0(facts);
            (eth0.is_bond, eth0.features) = (is_bond, Some(0x3f));
        }
    };
    assert_eq!(of_several_buffers(Mode::Ipip, alone(false)), []);
    let bond = of_several_buffers(Mode::Ipip, alone(true));
    assert_eq!(bond.len(), 1, "{bond:#?}");
    assert_eq!(bond[0].subject, "eth0");
}

#[test]
fn frames_for_other_hosts() {
    makes(Mode::L2, Warning, "promiscuous", "tcpdump -p", |facts| {
        eth0(facts).promiscuous = Some(true)
    });
    for promiscuous in [Some(false), None] {
        let change = |facts: &mut Facts| eth0(facts).promiscuous = promiscuous;
        assert_eq!(found(Mode::L2, change), []);
    }
}

#[test]
fn other_programs_and_sysctls() {
    makes(Mode::L2, Warning, "tc", "VIP", |facts| {
        eth0(facts).tc = Some(vec!["shaper".into()])
    });
    makes(Mode::L2, Unknown, "tc", "bpftool net", |facts| {
        eth0(facts).tc = None
    });
    makes(
        Mode::Nat,
        Failure,
        "forwarding",
        "net.ipv4.conf.eth0.forwarding=1",
        |facts| {
            eth0(facts).unforwarded[IpVersion::V4] = Some(vec!["eth0".into()]);
        },
    );
    makes(
        Mode::Nat,
        Failure,
        "forwarding",
        "net.ipv4.conf.link1.forwarding=1 net.ipv4.conf.link2/5.forwarding=1",
        |facts| {
            eth0(facts).unforwarded[IpVersion::V4] = Some(vec!["link1".into(), "link2.5".into()]);
        },
    );
    makes(
        Mode::Nat,
        Unknown,
        "forwarding",
        "net.ipv4.conf.eth0.forwarding",
        |facts| {
            eth0(facts).unforwarded[IpVersion::V4] = None;
        },
    );
    assert_eq!(
        found(Mode::L2, |facts| eth0(facts).unforwarded[IpVersion::V4] =
            Some(vec!["eth0".into()])),
        [],
        "l2 needs none"
    );
    assert_eq!(
        found(Mode::L2, |facts| eth0(facts).rp_filter = Some(1))[0].state,
        Ok
    );
    let second = |program| {
        move |facts: &mut Facts| {
            let mut second = eth0(facts).clone();
            second.configured = false;
            second.features = Some(program);
            second.rp_filter = Some(0);
            facts.interfaces.insert("eth1".into(), second);
            eth0(facts).rp_filter = Some(1);
        }
    };
    let strict = found(Mode::L2, second(0x7f));
    assert!(
        strict
            .iter()
            .any(|one| one.check == "rp_filter" && one.state == Warning && one.subject == "eth0")
    );
    assert!(
        strict
            .iter()
            .any(|one| one.check == "egress" && one.state == Ok)
    );
    let closed = found(Mode::L2, second(0x3));
    let closed = closed.iter().find(|one| one.check == "egress").unwrap();
    assert_eq!(closed.state, Failure);
    assert!(
        closed
            .remedy
            .as_ref()
            .unwrap()
            .contains("add eth1 to `interfaces`")
    );
}

#[test]
fn who_answers_for_a_vip() {
    let answers =
        |mac: [u8; 6]| move |facts: &mut Facts| facts.services[0].answers = Some(vec![mac]);
    makes(Mode::L2, Failure, "arp", "arp_ignore=1", answers(MAC));
    makes(
        Mode::L2,
        Warning,
        "arp",
        "router",
        answers([2, 0, 0, 0, 0, 99]),
    );
    makes(Mode::L2, Unknown, "arp", "root", |facts| {
        facts.services[0].answers = None
    });
}

#[test]
fn snat_addresses() {
    makes(
        Mode::Nat,
        Warning,
        "snat",
        "ip address add 10.0.2.100/32",
        |facts| {
            facts.services[0].snat[0].own = Some(false);
        },
    );
    makes(Mode::Nat, Unknown, "snat", "ip route get", |facts| {
        facts.services[0].snat[0].own = None
    });
    let shared = |facts: &mut Facts| facts.services[0].snat[0].used_toward = vec![ip("10.0.2.11")];
    makes(Mode::Nat, Warning, "snat", "nothing else", shared);
    let reserved = found(Mode::Nat, |facts| {
        shared(facts);
        facts.host.reserved_ports = vec![(40_000, 65_535), (1_024, 39_999)];
    });
    assert_eq!(reserved[0].state, Ok, "{reserved:?}");
    let partly = |facts: &mut Facts| {
        shared(facts);
        facts.host.reserved_ports = vec![(40_001, 65_535), (1_024, 39_999)];
    };
    makes(Mode::Nat, Warning, "snat", "nothing else", partly);
}

#[test]
fn ways_to_backends() {
    let lost = |facts: &mut Facts| {
        b1(facts).mac = None;
        b1(facts).neighbour = Some(EntryState::Failed);
    };
    makes(Mode::L2, Failure, "neighbour", "on that link", lost);
    makes(Mode::L2, Unknown, "neighbour", "again", |facts| {
        b1(facts).mac = None;
        b1(facts).neighbour = Some(EntryState::Incomplete);
    });
    makes(Mode::L2, Failure, "neighbour", "ip route get", |facts| {
        b1(facts).no_route = Some("none".into())
    });
    makes(Mode::Ipip, Warning, "mtu", "advmss 1440", |facts| {
        b1(facts).mtu = 1500
    });
    assert_eq!(
        found(Mode::L2, |facts| b1(facts).mtu = 1500),
        [],
        "l2 adds nothing"
    );
    let echoes =
        |small, large| move |facts: &mut Facts| b1(facts).echoes = Some(Echoes { small, large });
    makes(Mode::Ipip, Warning, "mtu", "1520", echoes(true, false));
    makes(Mode::Ipip, Unknown, "mtu", "echo", echoes(false, false));
    let six = found(Mode::Ipip, |facts| {
        b1(facts).address = ip("2001:db8::11");
        b1(facts).mtu = 1520;
    });
    let six = six.iter().find(|one| one.check == "mtu").unwrap();
    assert!(
        six.remedy.as_ref().unwrap().contains("advmss 1420"),
        "{six:?}"
    );
    // No client of IPv6 makes packets small enough because it is told; one of IPv4 does.
    let narrow = |vip: &'static str, mtu: u32| {
        let found = found(Mode::Ipip, move |facts| {
            facts.services[0].vip = ip(vip);
            b1(facts).address = ip("2001:db8::11");
            b1(facts).mtu = mtu;
        });
        let line = found.into_iter().find(|one| one.check == "mtu").unwrap();
        (line.state, line.remedy.unwrap())
    };
    let (state, remedy) = narrow("2001:db8::1", 1319);
    assert_eq!(state, Failure);
    assert!(remedy.contains("advmss 1219"), "{remedy}");
    assert_eq!(narrow("2001:db8::1", 1320).0, Warning);
    assert_eq!(narrow("10.0.0.1", 1319).0, Warning);
}

#[test]
fn what_far_ends_say() {
    let says = |probe| move |facts: &mut Facts| b1(facts).probe = probe;
    makes(Mode::L2, Failure, "vip", "dev lo", says(Probe::Silence));
    makes(Mode::L2, Failure, "vip", "listen", says(Probe::Refused));
    makes(
        Mode::L2,
        Unknown,
        "vip",
        "CAP_NET_RAW",
        says(Probe::NotSent),
    );
    makes(
        Mode::Ipip,
        Failure,
        "decapsulation",
        "tether decap",
        says(Probe::Silence),
    );
    makes(
        Mode::Ipip,
        Failure,
        "decapsulation",
        "tether decap",
        says(Probe::NoTunnel),
    );
    makes(
        Mode::Ipip,
        Failure,
        "decapsulation",
        "listen",
        says(Probe::Refused),
    );
    makes(
        Mode::Dnat,
        Failure,
        "replies",
        "default gateway",
        says(Probe::Silence),
    );
    makes(
        Mode::Dnat,
        Warning,
        "replies",
        "default gateway",
        says(Probe::Accepted { direct: false }),
    );
    makes(Mode::Nat, Failure, "replies", "SNAT", says(Probe::Silence));
    assert_eq!(
        found(Mode::Nat, says(Probe::Accepted { direct: false })),
        []
    );
}

#[test]
fn the_other_end_of_a_veth_cannot_be_seen() {
    let veth = |facts: &mut Facts| eth0(facts).driver = Some("veth".into());
    let found = found(Mode::L2, veth);
    let peer = found.iter().find(|finding| finding.check == "peer");
    let remedy = peer.and_then(|finding| finding.remedy.as_deref());
    assert!(remedy.unwrap().contains("tether decap"), "{found:#?}");
    assert_eq!(peer.unwrap().state, Unknown);
}

/// A pod is asked nothing as another host is, and needs what no other backend does.
#[test]
fn backends_on_this_host() {
    fn pod(facts: &mut Facts) {
        let backend = b1(facts);
        backend.here = true;
        backend.interface = "cali1".into();
        (backend.mac, backend.neighbour) = (None, None);
        backend.probe = Probe::NotSent;
        eth0(facts).translates_local = true;
    }
    for mode in Mode::ALL {
        let mut facts = well(mode);
        pod(&mut facts);
        let report = examine(&facts);
        assert_eq!(report.worst(), Ok, "{report:#?}");
        let checks: Vec<&str> = report.findings.iter().map(|one| one.check).collect();
        assert!(checks.contains(&"local") && checks.contains(&"forwarding"));
        let told = |report: &Report| -> Vec<(String, String)> {
            let lines = report.findings.iter();
            lines
                .filter(|line| line.check == "local-clients")
                .map(|line| (line.subject.clone(), line.found.clone()))
                .collect()
        };
        let lines = told(&report);
        let [(subject, found)] = &lines[..] else {
            panic!("{lines:?}");
        };
        assert_eq!(subject, "chat");
        for word in ["by 10.0.0.1,", "leave by eth0:", "own addresses"] {
            assert!(found.contains(word), "{found}");
        }
        assert!(told(&examine(&well(mode))).is_empty());
    }
    let amid = |change: fn(&mut Facts)| {
        let mut before = well(Mode::Ipip);
        pod(&mut before);
        let mut after = before.clone();
        change(&mut after);
        let before = examine(&before).findings;
        let mut found = examine(&after).findings;
        found.retain(|finding| !before.contains(finding));
        assert_eq!(found.len(), 1, "{found:#?}");
        (found[0].state, found[0].check)
    };
    let unattached = amid(|facts| eth0(facts).translates_local = false);
    assert_eq!(unattached, (Failure, "local"));
    let unforwarded =
        amid(|facts| eth0(facts).unforwarded[IpVersion::V4] = Some(vec!["eth0".into()]));
    assert_eq!(unforwarded, (Failure, "forwarding"));
    let itself = amid(|facts| b1(facts).interface = String::new());
    assert_eq!(itself, (Ok, "neighbour"));
}
