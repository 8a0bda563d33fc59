//! The decapsulator: attached, replaced, detached.

use lb_userspace::dataplane::kernel::{
    Error, XdpMode, attach_decap, detach_decap, device::XdpState,
};

use crate::sandbox::{names, run, state};

#[test]
fn it_attaches_replaces_and_detaches() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        let first = attach_decap("va", &sandbox.pins()).unwrap();
        assert_eq!(first.mode, XdpMode::Native);
        let program = state("va").program();
        let second = attach_decap("va", &sandbox.pins()).unwrap();
        assert_eq!(second.link, first.link);
        assert_ne!(state("va").program(), program);

        attach_decap("vb", &sandbox.pins()).unwrap();
        assert_eq!(names(&sandbox.pins()), ["link-va", "link-vb"]);
        assert!(detach_decap("va", &sandbox.pins()).unwrap());
        assert_eq!(state("va"), XdpState::None);
        assert!(matches!(state("vb"), XdpState::Native(_)));
        assert!(!detach_decap("va", &sandbox.pins()).unwrap());
        assert!(detach_decap("vb", &sandbox.pins()).unwrap());
        assert!(!sandbox.pins().exists());
        assert!(!detach_decap("vb", &sandbox.pins()).unwrap());
    });
}

#[test]
fn it_keeps_out_of_a_load_balancers_directory() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        sandbox.open(&["va"]).attach().unwrap();
        let steering = state("va");
        for error in [
            attach_decap("va", &sandbox.pins()).unwrap_err(),
            detach_decap("va", &sandbox.pins()).unwrap_err(),
        ] {
            assert!(matches!(error, Error::Balancer { .. }), "{error}");
        }
        assert_eq!(state("va"), steering);
        assert_eq!(names(&sandbox.pins()), ["link-va", "maps"]);
    });
}

#[test]
fn a_missing_interface_leaves_no_directory_behind() {
    run(|sandbox| {
        let error = attach_decap("vz", &sandbox.pins()).unwrap_err();
        assert!(error.to_string().contains("interface vz"), "{error}");
        assert!(!sandbox.pins().exists());
    });
}
