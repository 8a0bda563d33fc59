//! A network namespace and a bpffs for one test.

use std::{
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use lb_userspace::dataplane::{
    kernel::{
        Kernel, Options, device, device::XdpState, instance, load, pins::Pins, possible_cpus,
    },
    maps::Capacity,
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use crate::mounts;

/// Where a test's own bpffs is.
#[derive(Clone)]
pub(crate) struct Sandbox {
    bpffs: PathBuf,
}

/// An instance without its program.
pub(crate) struct Opened {
    pub(crate) maps: load::Prepared,
    pub(crate) adopted: bool,
    _pins: Pins,
}

/// Runs a test in a thread that has left the host's network and mounts behind. Both end with the thread.
pub(crate) fn run(test: impl FnOnce(&Sandbox) + Send + 'static) {
    let body = move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .expect("namespaces: these tests need root");
        mounts::make_private().expect("making mounts private");
        let bpffs = PathBuf::from("/sys/fs/bpf");
        mount(
            Some("bpf"),
            &bpffs,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .expect("mounting a bpffs");
        test(&Sandbox { bpffs });
    };
    // Named as the test's own thread is, so that a panic's message names the test.
    let name = thread::current().name().unwrap_or("sandbox").to_owned();
    let thread = thread::Builder::new()
        .name(name)
        .spawn(body)
        .expect("a thread");
    if let Err(panic) = thread.join() {
        resume_unwind(panic);
    }
}

impl Sandbox {
    /// The pin directory.
    pub(crate) fn pins(&self) -> PathBuf {
        self.bpffs.join("tether")
    }

    /// Small maps, the given interfaces.
    pub(crate) fn options(&self, interfaces: &[&str]) -> Options {
        Options {
            interfaces: interfaces.iter().map(|&name| name.to_owned()).collect(),
            bpffs: self.pins(),
            capacity: Capacity::for_flows(1_000, 500, 8, 16, 1_024, possible_cpus().unwrap()),
            fleet_seed: None,
        }
    }

    /// Opens the instance.
    pub(crate) fn open(&self, interfaces: &[&str]) -> Kernel {
        Kernel::open(&self.options(interfaces)).unwrap()
    }

    /// Opens the instance's maps, without the program: what it does to pins is all there, and it takes milliseconds.
    pub(crate) fn prepare(&self) -> Opened {
        self.prepare_with(self.options(&[]).capacity)
    }

    /// The same with maps of another capacity, if there are none yet.
    pub(crate) fn prepare_with(&self, capacity: Capacity) -> Opened {
        let pins = Pins::open(&self.pins()).unwrap();
        let adopted = pins.has_maps();
        let maps = if adopted {
            instance::adopt(&pins, &capacity)
        } else {
            instance::create(&pins, capacity)
        };
        Opened {
            maps: maps.unwrap(),
            adopted,
            _pins: pins,
        }
    }

    /// Creates a pair of connected interfaces.
    pub(crate) fn veth(&self, name: &str, peer: &str) {
        ip(&["link", "add", name, "type", "veth", "peer", "name", peer]);
        for interface in [name, peer] {
            ip(&["link", "set", "dev", interface, "up"]);
        }
    }
}

/// Runs ip(8) in this thread's namespaces.
pub(crate) fn ip(arguments: &[&str]) {
    command("ip", arguments);
}

/// Runs a command in this thread's namespaces and gives its output.
pub(crate) fn command(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The XDP program of an interface.
pub(crate) fn state(interface: &str) -> XdpState {
    device::xdp(device::index(interface).unwrap())
        .unwrap()
        .unwrap()
}

/// Names in a directory, sorted.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
