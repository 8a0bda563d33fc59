//! How often the program has run, as the kernel counts it.

use std::{fs, os::fd::AsFd as _};

use lb_userspace::dataplane::kernel::{
    bpf, device,
    runs::{SYSCTL, counted},
};

use crate::sandbox::run;

/// The sysctl, which is one for the whole machine, and is put back as it was.
struct Sysctl {
    before: String,
}

impl Sysctl {
    fn take() -> Self {
        let before = fs::read_to_string(SYSCTL).unwrap();
        Self { before }
    }

    fn set(&self, value: &str) {
        fs::write(SYSCTL, value).unwrap();
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        if let Err(error) = fs::write(SYSCTL, &self.before) {
            eprintln!("{SYSCTL} is not {:?} again: {error}", self.before);
        }
    }
}

#[test]
fn runs_are_counted_while_the_kernel_is_asked_to() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        let ifindex = device::index("va").unwrap();
        let program = sandbox.open(&["va"]).program().unwrap();
        let run_once = || {
            let mut output = [0; 256];
            bpf::run_on(program.as_fd(), &[0; 64], &mut output, ifindex).unwrap()
        };
        let sysctl = Sysctl::take();
        sysctl.set("0");
        run_once();
        assert_eq!(counted(program.as_fd()), None);

        sysctl.set("1");
        let before = counted(program.as_fd()).unwrap();
        for _ in 0..100 {
            assert_eq!(run_once().action, bpf::XDP_PASS);
        }
        let after = counted(program.as_fd()).unwrap();
        assert_eq!(after.count - before.count, 100);
        assert!(after.time_ns > before.time_ns, "{before:?} {after:?}");

        sysctl.set("0");
        run_once();
        assert_eq!(counted(program.as_fd()), None);
        sysctl.set("1");
        assert_eq!(counted(program.as_fd()), Some(after));
    });
}
