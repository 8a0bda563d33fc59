//! What can go wrong with an instance in the kernel, said to an operator.

use std::{io, path::PathBuf};

use aya::{EbpfError, programs::ProgramError};
use lb_common::maps as names;
use nix::sys::utsname::uname;

use super::release::{OLDEST, numbers_of};
use crate::chain::chain;

/// Why an instance could not be opened, attached or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The pin directory's parent is on no bpffs.
    #[error(
        "{}: not on a bpffs, and pins live nowhere else; mount one (`mount -t bpf bpf /sys/fs/bpf`) or set `bpffs` to a directory on one",
        path.display()
    )]
    NoBpffs {
        /// The directory that would have to be.
        path: PathBuf,
    },
    /// The process lacks rights. (Without some of them the verifier refuses the program as if it were at fault.)
    #[error(
        "{} missing: tether needs root, or the capabilities CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_NET_RAW; give it those, in its bounding set too",
        missing.join(", ")
    )]
    Capabilities {
        /// Which.
        missing: Vec<&'static str>,
    },
    /// The kernel lacks what the program needs.
    #[error("this is Linux {release}, and tether needs 6.1: {}", chain(&**source))]
    OldKernel {
        /// As `uname -r` tells it.
        release: String,
        /// What failed for lack of it.
        source: Box<Error>,
    },
    /// A file operation in bpffs failed.
    #[error("{}: {doing}: {source}{}", path.display(), remedy(source))]
    File {
        /// What it was about.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another process has this instance.
    #[error(
        "{}: another tether process{} is using this instance; stop it first, or give this one a `bpffs` directory of its own",
        path.display(),
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    Busy {
        /// The pin directory.
        path: PathBuf,
        /// Id of the process, if it can be seen from here.
        pid: Option<u32>,
    },
    /// The decapsulator would have the pin directory of a load balancer, which is not running.
    #[error(
        "{}: the pins of a load balancer are here, which would lose its interfaces to the decapsulator; give this one a directory of its own (`--bpffs`)",
        path.display()
    )]
    Balancer {
        /// The pin directory.
        path: PathBuf,
    },
    /// There is no instance.
    #[error(
        "{}: no tether has pinned its maps here; start the daemon once, or name its `bpffs` directory",
        path.display()
    )]
    NoInstance {
        /// The pin directory.
        path: PathBuf,
    },
    /// Maps of another version.
    #[error(
        "{}: the pinned maps have layout version {found}, this tether has version {expected}, and cannot take them over: {why}; run the tether that made \
         them, or stop it and run `tether cleanup` (which forgets all flows) and start again", path.display()
    )]
    Version {
        /// The pin directory.
        path: PathBuf,
        /// What is pinned.
        found: u32,
        /// What this program can use.
        expected: u32,
        /// Why they cannot be migrated.
        why: String,
    },
    /// A migration that another version has begun, and that is in force already.
    #[error(
        "{}: a tether with layout version {version} was interrupted while it took over these maps, and packets meet its program already; start that tether \
         once, which completes it, and then this one", path.display()
    )]
    Interrupted {
        /// Where the new maps are.
        path: PathBuf,
        /// Their version.
        version: u32,
    },
    /// Pinned maps that are not what any tether makes.
    #[error(
        "{}: {what}; these are not maps that tether made, or they were tampered with: run `tether cleanup` (which forgets all \
         flows) and start again", path.display()
    )]
    Damaged {
        /// The pin.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The kernel refused a map or the program.
    #[error(
        "loading {what} into the kernel: {}{}",
        chain(source),
        remedy_in(source)
    )]
    Load {
        /// What was loaded.
        what: &'static str,
        /// What aya says.
        source: Box<EbpfError>,
    },
    /// The kernel's verifier refused the program.
    #[error(
        "this kernel's verifier refuses {program} ({source}), which is a fault of this tether and not of this machine's setup; report it with the kernel's \
         version (`uname -r`) and the verifier's last words:\n{log}"
    )]
    Verifier {
        /// Its name.
        program: &'static str,
        /// The kernel's answer.
        source: io::Error,
        /// The end of the verifier's log.
        log: String,
    },
    /// The kernel refused a map.
    #[error("creating the map {map} of {bytes} bytes: {source}{}", remedy(source))]
    Create {
        /// Its name.
        map: &'static str,
        /// Its size.
        bytes: u64,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A flow table that is to be smaller than what it holds.
    #[error(
        "the flow table holds {in_use} flows, and one for {room} has no room for them; set `{limit}` in [limits] to at least {in_use}, better to twice as many"
    )]
    TooSmall {
        /// The limit that its size comes from.
        limit: &'static str,
        /// Flows that there are.
        in_use: u64,
        /// Flows that there is to be room for.
        room: u64,
    },
    /// A flow table in which entries found no place.
    #[error("{homeless} flows found no place in the new table; set `{limit}` in [limits] higher")]
    NoPlace {
        /// The limit that its size comes from.
        limit: &'static str,
        /// How many.
        homeless: u64,
    },
    /// A flow table that changed faster than it could be copied.
    #[error(
        "this machine is too busy to copy the flow tables; start the daemon again when it is less so"
    )]
    TooBusy,
    /// Another operation of bpf(2) failed.
    #[error("{doing}: {source}{}", remedy(source))]
    Bpf {
        /// What was tried.
        doing: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No interface of that name.
    #[error(
        "interface {interface}: there is none of that name (in this network namespace); `ip link` lists those there are, and `interfaces` in \
         the configuration names those to use"
    )]
    NoInterface {
        /// Its name.
        interface: String,
    },
    /// Another XDP program is on the interface.
    #[error(
        "interface {interface}: another XDP program is attached (id {program}{}), and an interface runs one only; remove that (`ip link set dev \
         {interface} xdp off`, or stop what attached it: `bpftool link` tells), or take {interface} out of `interfaces`{}",
        name.as_deref().map(|name| format!(", {name}")).unwrap_or_default(),
        of_known(name.as_deref())
    )]
    Foreign {
        /// The interface.
        interface: String,
        /// Id of its program.
        program: u32,
        /// Name of its program.
        name: Option<String>,
    },
    /// A pin of this name belongs to an interface of another network namespace.
    #[error(
        "interface {interface}: {} holds the link of an interface in another network namespace; give each namespace a `bpffs` directory of its own",
        path.display()
    )]
    Elsewhere {
        /// The interface.
        interface: String,
        /// The pin.
        path: PathBuf,
    },
    /// Generic mode would see merged packets.
    #[error(
        "interface {interface}: {reason}, which leaves generic mode, and there {merging} would merge packets before tether sees them; turn that off: \
         `ethtool -K {interface} gro off lro off`"
    )]
    Merging {
        /// The interface.
        interface: String,
        /// Why native mode is not to be had.
        reason: String,
        /// What is on.
        merging: &'static str,
    },
    /// A driver that would take the kernel down.
    #[error(
        "interface {interface}: virtio_net has {combined} queue pairs in use of {maximum}, and with {cpus} CPUs this kernel dereferences a null \
         pointer on XDP_TX; use fewer: `ethtool -L {interface} combined {cpus}`"
    )]
    VirtioQueues {
        /// The interface.
        interface: String,
        /// Queue pairs in use.
        combined: u32,
        /// Queue pairs that the device has.
        maximum: u32,
        /// Possible CPUs.
        cpus: u32,
    },
    /// A bond's port.
    #[error(
        "interface {interface}: it is a port of the bond {bond}, which sends by any of its ports; attach to the bond: put {bond} into `interfaces` in place of its ports"
    )]
    BondPort {
        /// The interface.
        interface: String,
        /// The bond.
        bond: String,
    },
    /// Attaching failed in both modes.
    #[error(
        "interface {interface}: attaching the XDP program: {source}{}",
        remedy(source)
    )]
    Attach {
        /// The interface.
        interface: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// This kernel does not take the programs for backends on this host.
    #[error("backends on this host cannot be served: {reason}")]
    NoLocal {
        /// Why.
        reason: String,
    },
    /// That program could not be attached.
    #[error(
        "interface {interface}: attaching the program that translates what backends on this host send back: {source}{}",
        remedy(source)
    )]
    AttachLocal {
        /// The interface.
        interface: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel could not be asked about an interface.
    #[error("interface {interface}: {doing}: {source}{}", remedy(source))]
    Device {
        /// The interface.
        interface: String,
        /// What was tried.
        doing: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Where the pins are of a program that has the name of tether's own, and no pin.
pub(crate) const HIDDEN_PINS: &str = "its pins are not in this `bpffs` directory: they are in another one, or another bpffs was mounted over theirs (`findmnt \
                                      -t bpf` lists it twice then: unmount the upper one)";

/// What else to do about a program of Cilium's, or of a tether's. Without CAP_SYS_ADMIN, which a daemon has no other need of, nobody says which it is.
fn of_known(name: Option<&str>) -> String {
    match name {
        None => format!("; `tether doctor`, run by root, tells its name: if that is tether, {HIDDEN_PINS}"),
        Some(names::PROGRAM) => format!("; it has the name of tether's own: {HIDDEN_PINS}"),
        Some(name) if name.starts_with("cil_") => {
            "; it is Cilium's, which attaches it again: set its `loadBalancer.acceleration` to `disabled`, or give tether an interface that Cilium does not have \
             (its `devices`)"
                .to_owned()
        }
        Some(_) => String::new(),
    }
}

/// Whether a release, as `uname -r` tells it, is from before 6.1. What cannot be read is taken for new.
fn is_too_old(release: &str) -> bool {
    numbers_of(release).is_some_and(|numbers| numbers < OLDEST)
}

/// Lines of the verifier's log that are shown: the reason is the last of them.
const LOG_LINES: usize = 20;

impl Error {
    /// Says that the kernel is too old, if it is: older ones answer with no more than EINVAL to what they do not know.
    pub(super) fn of_this_kernel(self) -> Self {
        let release = uname().map_or_else(
            |_| String::new(),
            |name| name.release().to_string_lossy().into_owned(),
        );
        self.of_kernel(release)
    }

    fn of_kernel(self, release: String) -> Self {
        if is_too_old(&release) {
            Self::OldKernel {
                release,
                source: Box::new(self),
            }
        } else {
            self
        }
    }

    /// The kernel did not take a program. Without the verifier's words it did not come to verification.
    pub(super) fn program(what: &'static str, error: ProgramError) -> Self {
        match error {
            ProgramError::LoadError {
                io_error,
                verifier_log,
            } if !verifier_log.to_string().trim().is_empty() => {
                let log = verifier_log.to_string();
                let lines: Vec<_> = log.trim_end().lines().collect();
                Self::Verifier {
                    program: what,
                    source: io_error,
                    log: lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"),
                }
            }
            error => Self::Load {
                what,
                source: Box::new(EbpfError::ProgramError(error)),
            },
        }
    }

    pub(super) fn file(
        path: impl Into<PathBuf>,
        doing: &'static str,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            path,
            doing,
            source,
        }
    }
}

/// What to do about an error of the kernel's that has one usual cause.
fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "; tether needs root, or the capabilities CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON; in a container also profiles of seccomp and AppArmor that let it (deploy/README.md)"
        }
        Some(libc::ENOMEM) => {
            "; there is not enough memory: lower `flows` or `table_slots` in [limits]"
        }
        Some(libc::E2BIG) => "; a map would be too large: lower the capacities in [limits]",
        Some(libc::ENOSYS) => "; this kernel is too old: tether needs Linux 6.1",
        _ => "",
    }
}

/// The remedy for the system error at the root of another one.
fn remedy_in(error: &(dyn std::error::Error + 'static)) -> &'static str {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return remedy(error);
        }
        next = error.source();
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_is_too_old_is_named_with_what_it_lacks() {
        let refused = || Error::Create {
            map: "FLOWS4",
            bytes: 64,
            source: io::Error::from_raw_os_error(libc::EINVAL),
        };
        let message = refused().of_kernel("5.10.0-35-amd64".into()).to_string();
        for part in [
            "this is Linux 5.10.0-35-amd64, and tether needs 6.1",
            "creating the map FLOWS4",
        ] {
            assert!(message.contains(part), "no {part:?}: {message}");
        }
        let message = refused().of_kernel("6.1.0-40-amd64".into()).to_string();
        assert!(!message.contains("needs 6.1"), "{message}");
    }

    #[test]
    fn a_driver_that_would_take_the_kernel_down_is_told_with_the_way_out() {
        let error = Error::VirtioQueues {
            interface: "eth0".into(),
            combined: 3,
            maximum: 4,
            cpus: 2,
        };
        let message = error.to_string();
        for part in [
            "interface eth0: virtio_net has 3 queue pairs in use of 4",
            "with 2 CPUs",
            "`ethtool -L eth0 combined 2`",
        ] {
            assert!(message.contains(part), "no {part:?}: {message}");
        }
    }

    #[test]
    fn of_a_program_of_ciliums_or_of_a_tether_more_is_told() {
        let of = |name: Option<&str>| {
            let error = Error::Foreign {
                interface: "eth0".into(),
                program: 7,
                name: name.map(Into::into),
            };
            error.to_string()
        };
        let message = of(Some("cil_xdp_entry"));
        for part in [
            "id 7, cil_xdp_entry",
            "ip link set dev eth0 xdp off",
            "take eth0 out of `interfaces`",
            "`loadBalancer.acceleration` to `disabled`",
        ] {
            assert!(message.contains(part), "no {part:?}: {message}");
        }
        let message = of(Some("other"));
        assert!(message.ends_with("out of `interfaces`"), "{message}");
        // And where its name is not to be had.
        for (name, part) in [(Some("tether"), "tether's own"), (None, "`tether doctor`")] {
            let message = of(name);
            for part in [part, "unmount the upper one"] {
                assert!(message.contains(part), "no {part:?}: {message}");
            }
            assert!(!message.contains("Cilium"), "{message}");
        }
    }

    #[test]
    fn kernels_from_before_6_1_are_too_old() {
        for old in ["5.10.0-35-amd64", "5.18.0", "6.0.19", "4.19.0+"] {
            assert!(is_too_old(old), "{old}");
        }
        for new in [
            "6.1.0-40-amd64",
            "6.1",
            "6.18.0",
            "7.2.13+deb14",
            "",
            "unknown",
        ] {
            assert!(!is_too_old(new), "{new}");
        }
    }
}
