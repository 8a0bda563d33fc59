//! The interfaces that packets may leave by: who is let into the device map.

use std::path::Path;

use aya::maps::{DevMapHash, Map, MapData};
use lb_userspace::dataplane::kernel::{Refusal, cleanup, device, features};

use crate::sandbox::{command, ip, run};

/// The interface that packets redirected to this one leave by, as the pinned map has it.
fn admitted(pins: &Path, ifindex: u32) -> Option<u32> {
    let data = MapData::from_pin(pins.join("maps/EGRESS")).unwrap();
    let map = DevMapHash::try_from(Map::DevMapHash(data)).unwrap();
    map.get(ifindex, 0).ok().map(|value| value.if_index)
}

/// Whether this kernel says what an interface can do.
fn tells() -> bool {
    features::takes_redirected(1).unwrap().is_some()
}

#[test]
fn an_interface_is_let_in_while_its_driver_takes_frames() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        let index = device::index("vb").unwrap();
        let mut kernel = sandbox.open(&["va"]);
        let egress = kernel.egress().unwrap();
        if tells() {
            // A veth sends what is redirected to it only while its peer has a program, or GRO.
            assert_eq!(egress.admit(index), Err(Refusal::Driver));
            assert_eq!(admitted(&sandbox.pins(), index), None);
        }
        kernel.attach().unwrap();
        assert_eq!(egress.admit(index), Ok(()));
        assert_eq!(admitted(&sandbox.pins(), index), Some(index));
        assert_eq!(egress.admit(index), Ok(()), "once more");

        // It stays when the daemon goes, for the program does too.
        drop((kernel, egress));
        assert_eq!(admitted(&sandbox.pins(), index), Some(index));
        let kernel = sandbox.open(&["va"]);
        assert_eq!(admitted(&sandbox.pins(), index), Some(index));
        if tells() {
            let egress = kernel.egress().unwrap();
            drop(kernel);
            cleanup(&sandbox.pins()).unwrap();
            assert_eq!(egress.admit(index), Err(Refusal::Driver));
        }
    });
}

#[test]
fn the_only_interface_needs_not_to_be_let_in() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        let index = device::index("va").unwrap();
        let egress = sandbox.open(&["va"]).egress().unwrap();
        // Its peer has no program, but nothing is ever redirected to it either.
        assert_eq!(egress.admit(index), Ok(()));
        assert_eq!(admitted(&sandbox.pins(), index).is_none(), tells());
    });
}

#[test]
fn in_generic_mode_any_interface_is_let_in() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        let index = device::index("vb").unwrap();
        command("ethtool", &["-K", "lo", "gro", "off"]);
        let mut kernel = sandbox.open(&["lo"]);
        kernel.attach().unwrap();
        assert_eq!(kernel.egress().unwrap().admit(index), Ok(()));
        assert_eq!(admitted(&sandbox.pins(), index), Some(index));
    });
}

#[test]
fn an_interface_that_is_gone_is_out() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        let index = device::index("vb").unwrap();
        let mut kernel = sandbox.open(&["va"]);
        let egress = kernel.egress().unwrap();
        kernel.attach().unwrap();
        assert_eq!(egress.admit(index), Ok(()));
        ip(&["link", "del", "va"]);
        assert_eq!(admitted(&sandbox.pins(), index), None);
        assert!(matches!(egress.admit(index), Err(Refusal::Kernel(_))));
    });
}
