//! The host: kernel, rights, bpffs, compiler, conntrack, and the daemon.

use super::{
    super::{
        Finding,
        State::{self, Failure, Unknown, Warning},
        facts::{Daemon, Facts, Host, Start},
    },
    listed,
};
use crate::{
    capabilities,
    dataplane::kernel::release::{OLDEST, numbers_of},
};

/// More of conntrack's table in use than this deserves a look, in percent.
const CONNTRACK_FULL: u64 = 80;

/// The number of its bit (capability.h).
const CAP_NET_RAW: u32 = 13;

pub(super) fn examine(facts: &Facts, findings: &mut Vec<Finding>) {
    let host = &facts.host;
    findings.push(kernel(&host.release));
    findings.push(capabilities(host));
    findings.push(bpffs(host));
    findings.push(jit(host));
    findings.extend(conntrack(host));
    findings.push(daemon(&facts.daemon));
    findings.extend(facts.start.as_ref().map(start));
}

fn kernel(release: &str) -> Finding {
    let found = format!("Linux {release}");
    match numbers_of(release) {
        Some(numbers) if numbers < OLDEST => Finding::bad(
            Failure,
            "kernel",
            "",
            found,
            "Tether needs Linux 6.1 or later: install a newer kernel (on Debian 12 and later the distribution's own will do)",
        ),
        Some(_) => Finding::ok("kernel", "", found),
        None => Finding::bad(
            Unknown,
            "kernel",
            "",
            format!("the release {release:?} is not understood"),
            "Tether needs Linux 6.1 or later: see `uname -r`",
        ),
    }
}

fn capabilities(host: &Host) -> Finding {
    const CHECK: &str = "capabilities";
    let Some(bits) = host.capabilities else {
        return Finding::bad(
            Unknown,
            CHECK,
            "",
            "could not be read",
            "run `tether doctor` as root, with /proc mounted",
        );
    };
    let missing = capabilities::missing(bits);
    if !missing.is_empty() {
        return Finding::bad(
            Failure,
            CHECK,
            "",
            format!("{} missing", listed(missing)),
            "run it as root, or give the daemon CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_NET_RAW",
        );
    }
    if bits >> CAP_NET_RAW & 1 == 0 {
        let (state, what) = if host.may_ping {
            (
                Warning,
                "backends cannot be told of flows that a deadline has closed, and are not checked through the VIP",
            )
        } else {
            (
                Warning,
                "no ICMP echoes: a routed backend that vanishes is called refusing and never down, and its clients are not reset; no checks through the VIP",
            )
        };
        return Finding::bad(
            state,
            CHECK,
            "",
            format!("CAP_NET_RAW missing: {what}"),
            "give the daemon CAP_NET_RAW",
        );
    }
    Finding::ok(CHECK, "", "all that are needed")
}

fn bpffs(host: &Host) -> Finding {
    let (path, mounted) = &host.bpffs;
    match mounted {
        Some(true) => Finding::ok("bpffs", path, "mounted"),
        Some(false) => Finding::bad(
            Failure,
            "bpffs",
            path,
            "is not on a bpffs, which maps and links are pinned in",
            "mount -t bpf bpf /sys/fs/bpf, and have it done at boot; or point `bpffs` at the one there is",
        ),
        None => Finding::bad(
            Unknown,
            "bpffs",
            path,
            "could not be looked at",
            "run `tether doctor` as root",
        ),
    }
}

fn jit(host: &Host) -> Finding {
    match host.jit {
        Some(true) => Finding::ok("jit", "", "BPF programs are compiled"),
        Some(false) => Finding::bad(
            Warning,
            "jit",
            "",
            "BPF programs are interpreted, which is several times slower",
            "sysctl -w net.core.bpf_jit_enable=1, and write it to /etc/sysctl.d",
        ),
        None => Finding::bad(
            Unknown,
            "jit",
            "",
            "this network namespace does not show whether BPF programs are compiled",
            "look at net.core.bpf_jit_enable in the host's own namespace: it should be 1",
        ),
    }
}

fn conntrack(host: &Host) -> Option<Finding> {
    let (count, most) = host.conntrack?;
    let found = format!("{count} of {most} entries in use; steered packets take none");
    Some(if count * 100 > most * CONNTRACK_FULL {
        Finding::bad(
            Warning,
            "conntrack",
            "",
            found,
            "the host's own connections, health checks among them, fail when it is full: raise net.netfilter.nf_conntrack_max",
        )
    } else {
        Finding::ok("conntrack", "", found)
    })
}

/// What an error says before it quotes somebody at length, as the verifier.
fn first_line(text: &str) -> &str {
    let line = text.lines().next().unwrap_or_default();
    line.trim_end_matches(':')
}

/// Whether this program would start.
fn start(start: &Start) -> Finding {
    const CHECK: &str = "start";
    match start {
        Start::Begins => Finding::ok(
            CHECK,
            "",
            "this kernel takes the program, and what is pinned is not in its way",
        ),
        Start::Refused(why) => Finding::bad(
            Failure,
            CHECK,
            "",
            format!("`tether run` would be refused: {}", first_line(why)),
            "do what it says; `tether upgrade-check --config FILE` says all of it, and whether that was enough",
        ),
        Start::Unseen(why) => Finding::bad(
            Unknown,
            CHECK,
            "",
            format!("whether `tether run` would begin could not be found out: {why}"),
            "run `tether doctor` as root, with a bpffs mounted",
        ),
    }
}

fn daemon(daemon: &Daemon) -> Finding {
    match daemon {
        Daemon::Silent => Finding::bad(
            State::Unknown,
            "daemon",
            "",
            "no daemon answers",
            "this is about the host and the configuration file alone; `tether run` starts one",
        ),
        Daemon::Runs { pid, complaints } if complaints.is_empty() => {
            Finding::ok("daemon", "", format!("runs as process {pid}"))
        }
        Daemon::Runs { complaints, .. } => Finding::bad(
            Failure,
            "daemon",
            "",
            complaints.join("; "),
            "see `tether status`, which names object and remedy",
        ),
    }
}
