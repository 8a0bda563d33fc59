//! The host.

use std::{fs, path::Path};

use nix::sys::utsname::uname;
use socket2::{Domain, Protocol, Socket, Type};

use super::{super::facts::Host, Asked};
use crate::{
    capabilities,
    dataplane::kernel::{bpf::Link, pins},
};

pub(super) fn gather(asked: &Asked<'_>) -> Host {
    let pid = asked.status.map(|status| status.pid);
    let conntrack = |what| number(&format!("/proc/sys/net/netfilter/nf_conntrack_{what}"));
    Host {
        release: uname().map_or_else(
            |_| String::new(),
            |name| name.release().to_string_lossy().into_owned(),
        ),
        capabilities: capabilities(pid),
        may_ping: Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4)).is_ok(),
        bpffs: (
            asked.bpffs.display().to_string(),
            pins::is_on_bpffs(asked.bpffs).ok(),
        ),
        jit: number("/proc/sys/net/core/bpf_jit_enable")
            .map(|enabled| enabled > 0)
            .or_else(|| is_compiled(asked.bpffs)),
        conntrack: conntrack("count").zip(conntrack("max")),
        local_ports: fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
            .ok()
            .and_then(|text| {
                let mut numbers = text.split_whitespace().map_while(|word| word.parse().ok());
                Some((numbers.next()?, numbers.next()?))
            }),
        reserved_ports: fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports")
            .map_or_else(|_| Vec::new(), |text| ranges(&text)),
    }
}

/// Effective capabilities of a process of this machine, else of this one.
fn capabilities(pid: Option<u32>) -> Option<u64> {
    // The daemon's number is of its own namespace, which need not be this process's: then it is another's, or nobody's.
    let is_tether = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("tether"))
    };
    pid.filter(is_tether)
        .and_then(|pid| capabilities::effective(&Path::new("/proc").join(pid.to_string())))
        .or_else(|| capabilities::effective(Path::new("/proc/self")))
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Whether the program that is attached is compiled; none if there is none.
fn is_compiled(bpffs: &Path) -> Option<bool> {
    let (_, path) = pins::links(bpffs).ok()?.into_iter().next()?;
    let program = Link::from_pin(&path)
        .and_then(|link| link.info())
        .ok()?
        .program;
    let info = aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .find(|info| info.id() == program)?;
    Some(info.size_jitted() > 0)
}

/// `80,1000-2000` as inclusive ranges.
fn ranges(text: &str) -> Vec<(u16, u16)> {
    let range = |word: &str| {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    text.trim().split(',').filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_ports_are_read_as_the_kernel_writes_them() {
        assert_eq!(
            ranges("80,1000-2000,65535\n"),
            [(80, 80), (1000, 2000), (65535, 65535)]
        );
        assert_eq!(ranges("\n"), []);
    }

    #[test]
    fn this_process_has_capabilities_that_can_be_read() {
        assert!(capabilities(None).is_some());
    }
}
