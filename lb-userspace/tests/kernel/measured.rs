//! The program that counts what clients send again: it comes first where that is wanted, and is gone with the next start that does not want it.

use std::os::fd::{AsFd as _, OwnedFd};

use aya::programs::loaded_programs;
use lb_common::{
    flow::v4,
    maps::{MEASURE_PROGRAM, PROGRAM},
    repeats::Repeats,
    tcp::SYN,
};
use lb_userspace::dataplane::{
    kernel::{Kernel, bpf, device},
    maps::Maps,
};

use crate::{
    sandbox::{Sandbox, run, state},
    wire::{Client, ISN, serve},
};

const SERVICE: u16 = <v4::Key as Client>::SERVICE;

fn open(sandbox: &Sandbox, measures: bool) -> Kernel {
    let mut options = sandbox.options(&["va"]);
    options.capacity = options.capacity.measuring(measures);
    Kernel::open(&options).unwrap()
}

/// The name of the program on the interface.
fn attached() -> String {
    let id = state("va").program().unwrap();
    let mut programs = loaded_programs().filter_map(Result::ok);
    let info = programs.find(|info| info.id() == id).unwrap();
    info.name_as_str().unwrap().to_owned()
}

/// A client of the IPv4 service sends its SYN, so many times.
fn knock(program: &OwnedFd, port: u16, times: usize) {
    let ifindex = device::index("va").unwrap();
    let frame = v4::Key::client(7, port).frame(ISN, SYN);
    for _ in 0..times {
        let mut output = [0; 256];
        bpf::run_on(program.as_fd(), &frame, &mut output, ifindex).unwrap();
    }
}

/// Has the service's segments be counted, from nothing on: two flows may want one place.
fn begin(maps: &Maps) {
    let measured = maps.measured.as_ref().unwrap();
    measured.clear();
    measured.measure(SERVICE, true);
}

/// What was counted, for all backends together.
fn counted(maps: &Maps) -> Repeats {
    let measured = maps.measured.as_ref().unwrap();
    (0..maps.backends.len())
        .map(|id| measured.counted(id))
        .fold(Repeats::default(), |sum, one| sum.and(&one))
}

#[test]
fn what_counts_comes_first_just_where_it_is_wanted() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        let mut kernel = open(sandbox, false);
        kernel.attach().unwrap();
        assert_eq!(attached(), PROGRAM);
        assert!(kernel.maps().measured.is_none());
        drop(kernel);

        // On maps that are there already.
        let mut kernel = open(sandbox, true);
        assert!(kernel.adopted());
        kernel.attach().unwrap();
        assert_eq!(attached(), MEASURE_PROGRAM);
        let maps = kernel.maps();
        serve(&maps, "va");
        let program = kernel.program().unwrap();
        knock(&program, 1_000, 2);
        assert_eq!(counted(&maps), Repeats::default(), "nobody has asked");
        begin(&maps);
        knock(&program, 1_001, 2);
        assert_eq!(counted(&maps).syns, 1);

        // It goes on, into the same maps, while somebody listens, and after.
        let tap = kernel.tap();
        let tapped = tap.open().unwrap();
        assert_eq!(attached(), MEASURE_PROGRAM);
        begin(&maps);
        knock(&program, 1_002, 2);
        assert_eq!(counted(&maps).syns, 1);
        drop(tapped);
        tap.close().unwrap();
        assert_eq!(attached(), MEASURE_PROGRAM);
        begin(&maps);
        knock(&program, 1_003, 2);
        assert_eq!(counted(&maps).syns, 1);
        drop((tap, kernel));

        let mut kernel = open(sandbox, false);
        assert_eq!(attached(), MEASURE_PROGRAM, "until it is replaced");
        kernel.attach().unwrap();
        assert_eq!(attached(), PROGRAM);
    });
}
