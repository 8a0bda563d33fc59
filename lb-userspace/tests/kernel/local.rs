//! The program on egress for what backends on this host send back: attached when it is wanted, by either means, replaced in place, removed.

use std::{
    os::unix::process::ExitStatusExt as _,
    process::{Command, Stdio},
};

use aya::programs::{SchedClassifier, TcAttachType};
use lb_common::{
    flow::bucket::buckets_for,
    hash::Seed,
    maps::{ABI_VERSION, Instance},
};
use lb_userspace::dataplane::kernel::{
    Error, Kernel, Loaded, Seen,
    bpf::{self, Kind, Link},
    cleanup,
    device::{self, XdpState},
    local::Means,
    resize::Step,
    tc::{self, Filter},
};
use nix::{
    mount::umount,
    sched::{CloneFlags, setns, unshare},
    sys::signal::{Signal, kill},
    unistd::getpid,
};

use crate::sandbox::{Sandbox, command, ip, names, run, state};

/// Whether this kernel has TCX links: Linux 6.6 brought them.
fn has_links() -> bool {
    let name = nix::sys::utsname::uname().unwrap();
    let mut numbers = name.release().to_str().unwrap().split('.');
    let mut next = || numbers.next().unwrap().parse::<u32>().unwrap();
    (next(), next()) >= (6, 6)
}

/// Programs on TCX links, by id.
fn links(interface: &str) -> Vec<u32> {
    if !has_links() {
        return vec![];
    }
    let (_, programs) = SchedClassifier::query_tcx(interface, TcAttachType::Egress).unwrap();
    programs.iter().map(|program| program.id()).collect()
}

fn index(interface: &str) -> u32 {
    device::index(interface).unwrap()
}

fn filters(interface: &str) -> Vec<Filter> {
    tc::filters(index(interface), tc::EGRESS).unwrap()
}

fn has_qdisc(interface: &str) -> bool {
    tc::has_qdisc(index(interface)).unwrap()
}

/// The id of a daemon's program for replies.
fn program_of(kernel: &Kernel) -> u32 {
    bpf::program_id(kernel.loaded().local_reply_fd().unwrap()).unwrap()
}

/// The daemon's beginning, with a backend on this host or without.
fn start(sandbox: &Sandbox, interfaces: &[&str], means: Means, is_wanted: bool) {
    begin(sandbox, interfaces, means, is_wanted);
}

/// The same daemon, that goes on.
fn begin(sandbox: &Sandbox, interfaces: &[&str], means: Means, is_wanted: bool) -> Kernel {
    let mut kernel = sandbox.open(interfaces);
    let replies = kernel.local_replies();
    replies.set_means(means);
    if is_wanted {
        replies.open().unwrap();
        replies.open().unwrap();
    }
    kernel.attach().unwrap();
    assert!(kernel.is_attached().unwrap());
    kernel
}

/// A filter of somebody else's, which lets all pass.
fn foreign(interface: &str) {
    command(
        "tc",
        &[
            "filter",
            "add",
            "dev",
            interface,
            "egress",
            "pref",
            "1",
            "handle",
            "0x7",
            "bpf",
            "direct-action",
            "bytecode",
            "1,6 0 0 0,",
        ],
    );
}

#[test]
fn nothing_is_on_egress_without_a_backend_on_this_host() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        start(sandbox, &["va"], Means::Best, false);
        assert_eq!(links("va"), [0; 0]);
        assert!(!has_qdisc("va"));
        assert_eq!(names(&sandbox.pins()), ["link-va", "maps"]);
    });
}

#[test]
fn a_kernel_without_links_has_a_filter() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        start(sandbox, &["va"], Means::Best, true);
        let expected = if has_links() { (1, 0) } else { (0, 1) };
        assert_eq!((links("va").len(), filters("va").len()), expected);
        assert_eq!(has_qdisc("va"), !has_links());
        cleanup(&sandbox.pins()).unwrap();
        assert_eq!((links("va").len(), filters("va").len()), (0, 0));
        assert!(!has_qdisc("va"));
    });
}

#[test]
fn a_link_is_replaced_in_place_and_leaves_no_trace() {
    if !has_links() {
        return;
    }
    run(|sandbox| {
        sandbox.veth("va", "vb");
        start(sandbox, &["va", "vb"], Means::Best, true);
        let [before] = links("va")[..] else {
            panic!("{:?}", links("va"));
        };
        assert_eq!(links("vb").len(), 1);
        let pinned = ["link-va", "link-vb", "local-va", "local-vb", "maps"];
        assert_eq!(names(&sandbox.pins()), pinned);
        assert!(!has_qdisc("va"));

        // A restart, before it knows of any backend.
        start(sandbox, &["va"], Means::Best, false);
        let [after] = links("va")[..] else {
            panic!("{:?}", links("va"));
        };
        assert_ne!(before, after);
        assert_eq!(links("vb"), [0; 0], "it is configured no more");
        assert_eq!(names(&sandbox.pins()), ["link-va", "local-va", "maps"]);

        let removed = cleanup(&sandbox.pins()).unwrap();
        assert_eq!(removed.interfaces, ["va"]);
        assert_eq!(links("va"), [0; 0]);
        assert!(!sandbox.pins().exists());
    });
}

#[test]
fn a_link_that_somebody_undid_is_missed_and_made_again() {
    if !has_links() {
        return;
    }
    run(|sandbox| {
        sandbox.veth("va", "vb");
        let mut kernel = sandbox.open(&["va"]);
        kernel.local_replies().open().unwrap();
        kernel.attach().unwrap();
        let pin = sandbox.pins().join("local-va");
        let undoings: [fn(&std::path::Path); 2] = [
            |pin| Link::from_pin_of(pin, Kind::Tcx).unwrap().detach().unwrap(),
            |_| {
                ip(&["link", "del", "va"]);
                ip(&["link", "add", "va", "type", "veth", "peer", "name", "vb"]);
            },
        ];
        for undo in undoings {
            undo(&pin);
            assert!(!kernel.is_attached().unwrap());
            kernel.attach().unwrap();
            assert!(kernel.is_attached().unwrap());
            assert_eq!(links("va").len(), 1);
        }

        // Unpinned: the daemon keeps it open, so that it stays until it is pinned again.
        let link = || {
            let link = Link::from_pin_of(&pin, Kind::Tcx).unwrap();
            link.info().unwrap().id
        };
        let before = link();
        std::fs::remove_file(&pin).unwrap();
        assert!(!kernel.is_attached().unwrap());
        kernel.attach().unwrap();
        assert!(kernel.is_attached().unwrap());
        assert_eq!((links("va").len(), link()), (1, before));
    });
}

/// By an interface that is gone no reply leaves: backends on this host are served by the others.
#[test]
fn an_interface_that_is_gone_keeps_no_other_from_being_translated_on() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        sandbox.veth("vc", "vd");
        let mut kernel = sandbox.open(&["va", "vc"]);
        let replies = kernel.local_replies();
        replies.open().unwrap();
        kernel.attach().unwrap();
        ip(&["link", "del", "vc"]);
        replies.open().unwrap();
        let renewal = kernel.attach_again().unwrap();
        assert!(renewal.replies.is_none(), "{renewal:?}");
        assert!(
            matches!(
                renewal.interfaces[..],
                [
                    (_, Seen::Still(_)),
                    (_, Seen::Not(Error::NoInterface { .. }))
                ]
            ),
            "{renewal:?}"
        );

        // It is wanted there as soon as there is one of that name.
        sandbox.veth("vc", "vd");
        replies.open().unwrap();
        for interface in ["va", "vc"] {
            assert_eq!(links(interface).len() + filters(interface).len(), 1);
        }
    });
}

/// A daemon that finds the pins of another network namespace leaves what they hold there alone.
#[test]
fn a_link_in_another_network_namespace_is_left_alone() {
    if !has_links() {
        return;
    }
    run(|sandbox| {
        sandbox.veth("va", "vb");
        sandbox.veth("vc", "vd");
        start(sandbox, &["va", "vc"], Means::Best, true);
        let home = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        // Of the same name, and of another index.
        for (name, peer) in [("ve", "vf"), ("vg", "vh"), ("va", "vb")] {
            sandbox.veth(name, peer);
        }
        let mut kernel = sandbox.open(&["va"]);
        let error = kernel.local_replies().open().unwrap_err();
        assert!(matches!(error, Error::Elsewhere { .. }), "{error}");
        let error = kernel.attach().unwrap_err();
        assert!(matches!(error, Error::Elsewhere { .. }), "{error}");
        assert_eq!(links("va"), [0; 0]);
        drop(kernel);
        // Nor does one that is not about this interface take it off there.
        sandbox.open(&[]).attach().unwrap();

        setns(home, CloneFlags::CLONE_NEWNET).unwrap();
        assert_eq!((links("va").len(), links("vc").len()), (1, 1));
        for interface in ["va", "vc"] {
            assert!(matches!(state(interface), XdpState::Native(_)));
        }
    });
}

#[test]
fn a_filter_is_replaced_in_place_and_goes_with_its_qdisc() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        start(sandbox, &["va"], Means::Filter, true);
        assert_eq!(links("va"), [0; 0]);
        let [before] = filters("va")[..] else {
            panic!("{:?}", filters("va"));
        };
        assert!(before.is_in_place());
        let pinned = ["filter-va", "link-va", "maps", "qdisc-va"];
        assert_eq!(names(&sandbox.pins()), pinned);

        // A restart, on whatever kernel, leaves it the means that it has.
        start(sandbox, &["va"], Means::Best, false);
        let [after] = filters("va")[..] else {
            panic!("{:?}", filters("va"));
        };
        assert!(after.is_in_place());
        assert_ne!(before.program, after.program);
        assert_eq!(names(&sandbox.pins()), pinned);

        let removed = cleanup(&sandbox.pins()).unwrap();
        assert_eq!(removed.interfaces, ["va"]);
        assert!(!has_qdisc("va"));
        assert!(!sandbox.pins().exists());
    });
}

#[test]
fn a_qdisc_that_was_there_stays_with_others_filters() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        command("tc", &["qdisc", "add", "dev", "va", "clsact"]);
        foreign("va");
        let theirs = filters("va");
        assert_eq!(theirs.len(), 1);
        start(sandbox, &["va"], Means::Filter, true);
        assert_eq!(filters("va").len(), 2);
        assert_eq!(names(&sandbox.pins()), ["filter-va", "link-va", "maps"]);
        cleanup(&sandbox.pins()).unwrap();
        assert_eq!(filters("va"), theirs);
        assert!(has_qdisc("va"));
    });
}

#[test]
fn a_qdisc_of_ours_stays_for_filters_that_others_have_put_there_since() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        start(sandbox, &["va"], Means::Filter, true);
        foreign("va");
        cleanup(&sandbox.pins()).unwrap();
        assert_eq!(filters("va").len(), 1);
        assert!(!filters("va")[0].is_in_place());
        assert!(!sandbox.pins().exists());
    });
}

/// Its place is taken by somebody's filter of another sort, or it was removed.
#[test]
fn a_filter_that_somebody_removed_is_missed_and_made_again() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        let mut kernel = begin(sandbox, &["va"], Means::Filter, true);
        command("tc", &["qdisc", "del", "dev", "va", "clsact"]);
        assert!(!kernel.is_attached().unwrap());
        kernel.attach().unwrap();
        assert!(kernel.is_attached().unwrap());
        assert_eq!(filters("va").len(), 1);
        drop(kernel);
        cleanup(&sandbox.pins()).unwrap();
        assert!(!has_qdisc("va"));
    });
}

/// Else it would be taken for somebody else's from then on, and stay for ever.
#[test]
fn a_qdisc_whose_mark_somebody_removed_is_tethers_still() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        let mut kernel = begin(sandbox, &["va"], Means::Filter, true);
        let pinned = names(&sandbox.pins());
        assert_eq!(pinned, ["filter-va", "link-va", "maps", "qdisc-va"]);
        std::fs::remove_dir_all(sandbox.pins()).unwrap();
        let renewal = kernel.attach_again().unwrap();
        assert!(renewal.replies.is_none(), "{renewal:?}");
        assert_eq!(names(&sandbox.pins()), pinned);
        assert_eq!(filters("va").len(), 1);
        drop(kernel);
        cleanup(&sandbox.pins()).unwrap();
        assert!(!has_qdisc("va"));
    });
}

/// This test's own executable, run again, is the daemon that is killed when replies are translated by the new maps, and packets are steered by the old ones.
/// The next one moves no flows: what replies are translated by is put right before anything else.
#[test]
fn replies_are_translated_by_the_maps_in_force_after_a_resize_that_was_killed() {
    const TEST: &str =
        "local::replies_are_translated_by_the_maps_in_force_after_a_resize_that_was_killed";
    const VICTIM: &str = "TETHER_TEST_REPLIES";
    if !has_links() {
        return;
    }
    run(|sandbox| {
        if std::env::var_os(VICTIM).is_some() {
            // In the sandbox of the process that started this one, whose bpffs lies under the one just mounted.
            umount("/sys/fs/bpf").unwrap();
            let mut options = sandbox.options(&["va"]);
            options.capacity.flow4_buckets = buckets_for(6_000);
            let end = Kernel::open_observed(&options, &mut |step| {
                if step == Step::RepliesSwitched {
                    kill(getpid(), Signal::SIGKILL).unwrap();
                }
            });
            unreachable!("it went on: {end:?}");
        }
        sandbox.veth("va", "vb");
        start(sandbox, &["va"], Means::Best, true);
        let (replies, steering) = (links("va"), state("va"));
        let mut victim = Command::new("/proc/self/exe")
            .args(["--exact", TEST])
            .env(VICTIM, "1")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let end = victim.wait().unwrap();
        assert_eq!(end.signal(), Some(libc::SIGKILL), "{end}");
        assert_ne!(links("va"), replies, "it is of the new maps");
        assert_eq!(state("va"), steering, "it is of the old ones");

        let mut kernel = sandbox.open(&["va"]);
        assert!(kernel.not_resized().is_none());
        assert_eq!(links("va"), [program_of(&kernel)]);
        assert_eq!(state("va"), steering, "opening attaches nothing");
        assert_eq!(names(&sandbox.pins()), ["link-va", "local-va", "maps"]);
        kernel.attach().unwrap();
        assert_eq!(links("va"), [program_of(&kernel)]);
    });
}

/// Leaves what a daemon leaves that is killed when it has replaced the programs of two filters, and marked the first.
fn replace_filters_and_die(sandbox: &Sandbox) {
    let instance = Instance {
        abi_version: ABI_VERSION,
        reserved: 0,
        flow_seed: Seed::new([1, 2, 3]),
        fleet_seed: [0; 4],
    };
    let other = Loaded::private(sandbox.options(&[]).capacity, instance).unwrap();
    let program = other.local_reply_fd().unwrap();
    for (interface, pin) in [("va", "filter-va"), ("vb", "program-new")] {
        let pin = sandbox.pins().join(pin);
        if pin.exists() {
            std::fs::remove_file(&pin).unwrap();
        }
        bpf::pin(program, &pin).unwrap();
        tc::set_filter(index(interface), program).unwrap();
    }
}

#[test]
fn a_filter_whose_mark_is_behind_is_replaced_by_the_next_start_and_removed_by_cleanup() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        start(sandbox, &["va", "vb"], Means::Filter, true);
        let pinned = names(&sandbox.pins());
        replace_filters_and_die(sandbox);
        let kernel = sandbox.open(&["va", "vb"]);
        for interface in ["va", "vb"] {
            let [filter] = filters(interface)[..] else {
                panic!("{interface}: {:?}", filters(interface));
            };
            assert_eq!(filter.program, Some(program_of(&kernel)), "{interface}");
        }
        assert_eq!(names(&sandbox.pins()), pinned);
        drop(kernel);

        replace_filters_and_die(sandbox);
        let removed = cleanup(&sandbox.pins()).unwrap();
        assert_eq!(removed.interfaces, ["va", "vb"]);
        for interface in ["va", "vb"] {
            assert_eq!(filters(interface), []);
            assert!(!has_qdisc(interface));
        }
        assert!(!sandbox.pins().exists());
    });
}

/// Gives an interface another name.
fn rename(interface: &str, name: &str) {
    ip(&["link", "set", "dev", interface, "down"]);
    ip(&["link", "set", "dev", interface, "name", name]);
}

/// Else a second one would be made beside it, which the kernel refuses: the program is there already.
#[test]
fn a_link_is_known_by_the_new_name_of_its_interface() {
    if !has_links() {
        return;
    }
    run(|sandbox| {
        sandbox.veth("va", "vb");
        start(sandbox, &["va", "vb"], Means::Best, true);
        let link = |pin: &str| {
            let link = Link::from_pin_of(&sandbox.pins().join(pin), Kind::Tcx).unwrap();
            link.info().unwrap().id
        };
        let (first, second) = (link("local-va"), link("local-vb"));
        rename("va", "uplink.7");
        start(sandbox, &["uplink.7", "vb"], Means::Best, false);
        let pinned = [
            "link-uplink%2e7",
            "link-vb",
            "local-uplink%2e7",
            "local-vb",
            "maps",
        ];
        assert_eq!(names(&sandbox.pins()), pinned);
        assert_eq!(
            (link("local-uplink%2e7"), link("local-vb")),
            (first, second)
        );

        // While the daemon runs, each gets the other's name.
        let mut kernel = sandbox.open(&["uplink.7", "vb"]);
        kernel.attach().unwrap();
        rename("uplink.7", "spare");
        rename("vb", "uplink.7");
        rename("spare", "vb");
        let renewal = kernel.attach_again().unwrap();
        assert!(renewal.replies.is_none(), "{renewal:?}");
        assert!(kernel.is_attached().unwrap());
        assert_eq!(names(&sandbox.pins()), pinned);
        assert_eq!(
            (link("local-uplink%2e7"), link("local-vb")),
            (second, first)
        );
        for interface in ["uplink.7", "vb"] {
            assert_eq!(links(interface), [program_of(&kernel)]);
        }
        drop(kernel);

        rename("vb", "vc");
        cleanup(&sandbox.pins()).unwrap();
        for interface in ["uplink.7", "vc"] {
            assert_eq!(links(interface), [0; 0]);
        }
        assert!(!sandbox.pins().exists());
    });
}

#[test]
fn a_filter_and_its_qdisc_are_known_by_the_new_name_of_their_interface() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        start(sandbox, &["va", "vb"], Means::Filter, true);
        rename("va", "uplink.7");
        start(sandbox, &["uplink.7", "vb"], Means::Best, false);
        let pinned = [
            "filter-uplink%2e7",
            "filter-vb",
            "link-uplink%2e7",
            "link-vb",
            "maps",
            "qdisc-uplink%2e7",
            "qdisc-vb",
        ];
        assert_eq!(names(&sandbox.pins()), pinned);
        for interface in ["uplink.7", "vb"] {
            assert_eq!((filters(interface).len(), links(interface).len()), (1, 0));
        }

        // And one that is configured no more takes none of the other's with it.
        start(sandbox, &["vb"], Means::Best, false);
        assert_eq!(filters("uplink.7"), []);
        assert!(!has_qdisc("uplink.7"));
        assert_eq!(filters("vb").len(), 1);

        rename("vb", "vc");
        cleanup(&sandbox.pins()).unwrap();
        assert_eq!(filters("vc"), []);
        assert!(!has_qdisc("vc"));
        assert!(!sandbox.pins().exists());
    });
}
