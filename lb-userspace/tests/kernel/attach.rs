//! Attaching: native, generic, replaced, refused, detached.

use std::path::Path;

use lb_userspace::dataplane::kernel::{
    Error, Kernel, Seen, XdpMode, attach_decap, bpf::Link, cleanup, device::XdpState,
};

use crate::sandbox::{command, ip, names, run, state};

#[test]
fn a_program_is_attached_natively_and_stays_when_the_daemon_goes() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        let mut kernel = sandbox.open(&["va"]);
        let attached = kernel.attach().unwrap();
        assert_eq!(attached.len(), 1);
        assert_eq!(
            (attached[0].interface.as_str(), attached[0].mode),
            ("va", XdpMode::Native)
        );
        assert_eq!(attached[0].warning, None);
        drop(kernel);
        assert!(matches!(state("va"), XdpState::Native(_)));
        assert_eq!(names(&sandbox.pins()), ["link-va", "maps"]);
    });
}

#[test]
fn a_restart_replaces_the_program_of_the_same_link() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        let mut first = sandbox.open(&["va", "vb"]);
        let before = first.attach().unwrap();
        let program = state("va").program();
        drop(first);

        let mut second = sandbox.open(&["va", "vb"]);
        assert_eq!(state("va").program(), program, "opening attaches nothing");
        let after = second.attach().unwrap();
        assert_eq!(before, after, "interfaces, modes and link ids");
        assert_ne!(state("va").program(), program);

        // And once more by the same daemon.
        assert_eq!(second.attach().unwrap(), after);
    });
}

#[test]
fn an_interface_that_is_not_configured_any_more_is_detached() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        sandbox.open(&["va", "vb"]).attach().unwrap();
        sandbox.open(&["vb"]).attach().unwrap();
        assert_eq!(state("va"), XdpState::None);
        assert!(matches!(state("vb"), XdpState::Native(_)));
        assert_eq!(names(&sandbox.pins()), ["link-vb", "maps"]);
    });
}

#[test]
fn an_interface_made_anew_gets_a_new_link() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        let before = sandbox.open(&["va"]).attach().unwrap();
        ip(&["link", "del", "va"]);
        sandbox.veth("va", "vb");
        let after = sandbox.open(&["va"]).attach().unwrap();
        assert_ne!(before[0].link, after[0].link);
        assert!(matches!(state("va"), XdpState::Native(_)));
        assert_eq!(names(&sandbox.pins()), ["link-va", "maps"]);
    });
}

#[test]
fn an_attachment_that_somebody_undid_is_missed_and_made_again() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        let mut kernel = sandbox.open(&["va", "vb"]);
        assert!(!kernel.is_attached().unwrap());
        kernel.attach().unwrap();
        assert!(kernel.is_attached().unwrap());

        // Detached and still pinned, and with its interface gone and made anew.
        let pin = sandbox.pins().join("link-va");
        let undoings: [fn(&Path); 2] = [
            |pin| Link::from_pin(pin).unwrap().detach().unwrap(),
            |_| {
                ip(&["link", "del", "va"]);
                ip(&["link", "add", "va", "type", "veth", "peer", "name", "vb"]);
            },
        ];
        for undo in undoings {
            undo(&pin);
            assert_eq!(state("va"), XdpState::None);
            assert!(!kernel.is_attached().unwrap());
            kernel.attach().unwrap();
            assert!(kernel.is_attached().unwrap());
            for interface in ["va", "vb"] {
                assert!(matches!(state(interface), XdpState::Native(_)));
            }
        }

        // Unpinned: the daemon keeps it open, so that it stays until it is pinned again.
        let before = kernel.attach().unwrap();
        std::fs::remove_file(&pin).unwrap();
        assert!(!kernel.is_attached().unwrap());
        assert_eq!(kernel.attach().unwrap(), before);
        assert!(kernel.is_attached().unwrap());
    });
}

#[test]
fn links_follow_interfaces_that_swap_names() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        let before = sandbox.open(&["va", "vb"]).attach().unwrap();
        for name in ["va", "vb"] {
            ip(&["link", "set", "dev", name, "down"]);
        }
        ip(&["link", "set", "dev", "va", "name", "swap"]);
        ip(&["link", "set", "dev", "vb", "name", "va"]);
        ip(&["link", "set", "dev", "swap", "name", "vb"]);
        let mut kernel = sandbox.open(&["va", "vb"]);
        let after = kernel.attach().unwrap();
        assert_eq!(
            (after[0].link, after[1].link),
            (before[1].link, before[0].link)
        );
        assert_eq!(kernel.attach().unwrap(), after);
        assert_eq!(names(&sandbox.pins()), ["link-va", "link-vb", "maps"]);
    });
}

#[test]
fn a_renamed_interface_keeps_its_link() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        let before = sandbox.open(&["va"]).attach().unwrap();
        ip(&["link", "set", "dev", "va", "down"]);
        ip(&["link", "set", "dev", "va", "name", "uplink.7"]);
        let after = sandbox.open(&["uplink.7"]).attach().unwrap();
        assert_eq!(after[0].link, before[0].link);
        assert_eq!(names(&sandbox.pins()), ["link-uplink%2e7", "maps"]);
    });
}

#[test]
fn a_missing_interface_is_named_and_nothing_is_attached() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        let error = sandbox.open(&["va", "vz"]).attach().unwrap_err();
        assert!(
            matches!(&error, Error::NoInterface { interface } if interface == "vz"),
            "{error}"
        );
        assert_eq!(state("va"), XdpState::None);
    });
}

#[test]
fn an_interface_that_has_gone_keeps_no_other_from_the_next_daemons_program() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        sandbox.veth("vc", "vd");
        sandbox.open(&["va", "vc"]).attach().unwrap();
        let before = state("vc").program();
        ip(&["link", "del", "va"]);
        let mut kernel = sandbox.open(&["va", "vc"]);
        let attached = kernel.attach().unwrap();
        let interfaces: Vec<_> = attached.iter().map(|one| one.interface.as_str()).collect();
        assert_eq!(interfaces, ["vc"]);
        assert!(matches!(state("vc"), XdpState::Native(_)));
        assert_ne!(state("vc").program(), before);
        let seen = |kernel: &mut Kernel| {
            let interfaces = kernel.attach_again().unwrap().interfaces;
            interfaces
                .into_iter()
                .map(|(_, seen)| seen)
                .collect::<Vec<_>>()
        };
        assert!(matches!(
            seen(&mut kernel)[..],
            [Seen::Not(_), Seen::Still(_)]
        ));
        sandbox.veth("va", "vb");
        assert!(matches!(
            seen(&mut kernel)[..],
            [Seen::Again(_), Seen::Still(_)]
        ));
        drop(kernel);

        // One that never had it may be a slip of the pen, and none at all serves nobody.
        ip(&["link", "del", "va"]);
        for (interfaces, missing) in [(&["va", "vc", "vz"][..], "vz"), (&["va"][..], "va")] {
            let error = sandbox.open(interfaces).attach().unwrap_err();
            assert!(
                matches!(&error, Error::NoInterface { interface } if interface == missing),
                "{error}"
            );
        }
    });
}

#[test]
fn what_is_wrong_with_one_interface_keeps_no_other_from_being_attached_again() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        sandbox.veth("vc", "vd");
        let mut kernel = sandbox.open(&["va", "vc"]);
        kernel.attach().unwrap();
        let mut again = || {
            let renewal = kernel.attach_again().unwrap();
            assert!(renewal.replies.is_none(), "{renewal:?}");
            let [va, vc] = <[_; 2]>::try_from(renewal.interfaces).unwrap();
            assert_eq!((va.0.as_str(), vc.0.as_str()), ("va", "vc"));
            (va.1, vc.1)
        };
        let still = |seen: &Seen| matches!(seen, Seen::Still(XdpMode::Native));
        let (va, vc) = again();
        assert!(still(&va) && still(&vc), "{va:?} {vc:?}");

        ip(&["link", "del", "va"]);
        let pin = sandbox.pins().join("link-vc");
        Link::from_pin(&pin).unwrap().detach().unwrap();
        assert_eq!(state("vc"), XdpState::None);
        let (va, vc) = again();
        assert!(matches!(va, Seen::Not(Error::NoInterface { .. })), "{va:?}");
        assert!(matches!(vc, Seen::Again(_)), "{vc:?}");
        assert!(matches!(state("vc"), XdpState::Native(_)));
        let (va, vc) = again();
        assert!(matches!(va, Seen::Not(_)) && still(&vc), "{va:?} {vc:?}");

        sandbox.veth("va", "vb");
        let (va, vc) = again();
        assert!(matches!(va, Seen::Again(_)) && still(&vc), "{va:?} {vc:?}");

        // A link whose pin has the name of an interface that lacks one is not taken for a stale one.
        for name in ["va", "vc"] {
            ip(&["link", "set", "dev", name, "down"]);
        }
        ip(&["link", "del", "va"]);
        ip(&["link", "set", "dev", "vc", "name", "va"]);
        sandbox.veth("vc", "vb");
        let program = state("va").program();
        let (va, vc) = again();
        assert!(still(&va) && matches!(vc, Seen::Again(_)), "{va:?} {vc:?}");
        assert_eq!(state("va").program(), program);
        assert!(matches!(state("vc"), XdpState::Native(_)));
        assert_eq!(names(&sandbox.pins()), ["link-va", "link-vc", "maps"]);
    });
}

#[test]
fn another_program_is_left_alone_and_the_choices_are_told() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        // To this instance, a program that anybody else attached: here another pin directory's.
        attach_decap("vb", Path::new("/sys/fs/bpf/others")).unwrap();
        let foreign = state("vb");
        let error = sandbox.open(&["va", "vb"]).attach().unwrap_err();
        let message = error.to_string();
        assert!(matches!(error, Error::Foreign { .. }), "{message}");
        for part in [
            "interface vb",
            "decap",
            "ip link set dev vb xdp off",
            "`interfaces`",
        ] {
            assert!(message.contains(part), "{part} is not in: {message}");
        }
        assert_eq!(state("vb"), foreign);
        assert_eq!(state("va"), XdpState::None);
    });
}

#[test]
fn what_a_failed_attachment_made_is_undone() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        ip(&["link", "set", "dev", "lo", "up"]);
        // The loopback has no native mode, and in generic mode its GRO is in the way: found only once it is tried.
        command("ethtool", &["-K", "lo", "gro", "on"]);
        let error = sandbox.open(&["va", "lo"]).attach().unwrap_err();
        assert!(matches!(error, Error::Merging { .. }), "{error}");
        assert_eq!(state("va"), XdpState::None);
        assert_eq!(names(&sandbox.pins()), ["maps"]);
    });
}

#[test]
fn generic_mode_is_refused_while_packets_would_be_merged() {
    run(|sandbox| {
        command("ethtool", &["-K", "lo", "gro", "on"]);
        let message = sandbox.open(&["lo"]).attach().unwrap_err().to_string();
        assert!(
            message.contains("ethtool -K lo gro off lro off"),
            "{message}"
        );
        assert_eq!(state("lo"), XdpState::None);
    });
}

#[test]
fn generic_mode_comes_with_a_warning_that_says_why() {
    run(|sandbox| {
        command("ethtool", &["-K", "lo", "gro", "off"]);
        let attached = sandbox.open(&["lo"]).attach().unwrap();
        assert_eq!(attached[0].mode, XdpMode::Generic);
        let warning = attached[0].warning.as_deref().unwrap();
        assert!(warning.contains("no native XDP"), "{warning}");
        assert!(matches!(state("lo"), XdpState::Generic(_)));

        let again = sandbox.open(&["lo"]).attach().unwrap();
        assert_eq!(
            (again[0].mode, again[0].link),
            (XdpMode::Generic, attached[0].link)
        );
        assert!(again[0].warning.is_some());
    });
}

#[test]
fn cleanup_leaves_nothing_and_tells_what_it_removed() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        sandbox.open(&["va"]).attach().unwrap();
        let removed = cleanup(&sandbox.pins()).unwrap();
        assert_eq!(removed.interfaces, ["va"]);
        assert_eq!(removed.maps.len(), lb_common::maps::ALL.len());
        assert!(removed.maps.contains(&sandbox.pins().join("maps/FLOWS4")));
        assert_eq!(removed.directory, Some(sandbox.pins()));
        assert_eq!(state("va"), XdpState::None);
        assert!(!sandbox.pins().exists());

        let again = cleanup(&sandbox.pins()).unwrap();
        assert_eq!(again, Default::default());
        assert_eq!(again.to_string(), "nothing to remove\n");
    });
}

#[test]
fn cleanup_leaves_alone_what_has_come_in_the_place_of_a_link_that_was_detached() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        sandbox.open(&["va", "vb"]).attach().unwrap();
        let link = Link::from_pin(&sandbox.pins().join("link-va")).unwrap();
        link.detach().unwrap();
        attach_decap("va", Path::new("/sys/fs/bpf/others")).unwrap();
        let theirs = state("va");
        let removed = cleanup(&sandbox.pins()).unwrap();
        assert_eq!(removed.interfaces, ["vb"]);
        assert_eq!((state("va"), state("vb")), (theirs, XdpState::None));
        assert!(!sandbox.pins().exists());
    });
}
