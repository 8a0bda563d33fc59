//! Interfaces.

use std::{fs, path::Path};

use aya::programs::loaded_programs;

use super::super::facts::{Interface, Program};
use crate::{
    by_version::ByVersion,
    dataplane::kernel::{
        bpf::{self, Link},
        device, features, local, pins, possible_cpus, tc,
    },
    neighbour::netlink::Netlink,
    sysctl,
};

pub(super) async fn gather(
    netlink: &Netlink,
    name: &str,
    configured: bool,
    bpffs: &Path,
) -> Interface {
    let Some(index) = device::index(name) else {
        return Interface {
            configured,
            ..Interface::default()
        };
    };
    let link = netlink.link(index).await.ok();
    let nature = device::nature(index).unwrap_or_default();
    let offloads = device::offloads(name).ok();
    let traffic_control = TrafficControl::of(netlink, index, name, bpffs).await;
    Interface {
        configured,
        exists: true,
        up: link.as_ref().is_some_and(|link| link.up),
        mtu: link.map_or(0, |link| link.mtu),
        promiscuous: promiscuous(name),
        driver: device::driver(name).ok().flatten(),
        program: program(index, bpffs),
        features: features::of(index).ok().flatten(),
        gro: offloads.map(|offloads| offloads.gro),
        lro: offloads.map(|offloads| offloads.lro),
        splits_headers: features::splits_headers(index).ok().flatten(),
        queues: device::queues(name).ok().flatten(),
        cpus: possible_cpus().unwrap_or(0),
        is_bond: nature.is_bond,
        bond: nature.port_of_bond.map(device::name),
        vlan_on: nature.vlan_on.map(device::name),
        translates_local: traffic_control.as_ref().is_some_and(|found| found.ours),
        tc: traffic_control.map(|found| found.others),
        rp_filter: rp_filter(name),
        unforwarded: ByVersion::of(|version| sysctl::unforwarded(version, name)),
    }
}

/// Index and MAC of an Ethernet interface.
pub(super) fn link_of(name: &str) -> Option<(u32, [u8; 6])> {
    let text = fs::read_to_string(format!("/sys/class/net/{name}/address")).ok();
    let mut mac = [0; 6];
    let text = text?;
    let bytes = text.trim().split(':');
    for (to, hex) in mac.iter_mut().zip(bytes) {
        *to = u8::from_str_radix(hex, 16).ok()?;
    }
    Some((device::index(name)?, mac))
}

/// By the flag that the kernel itself goes by. (Netlink tells only of that which an operator has set.)
fn promiscuous(name: &str) -> Option<bool> {
    // include/uapi/linux/if.h
    const IFF_PROMISC: u32 = 0x100;
    let text = fs::read_to_string(format!("/sys/class/net/{name}/flags")).ok()?;
    let flags = u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()?;
    Some(flags & IFF_PROMISC != 0)
}

fn program(index: u32, bpffs: &Path) -> Program {
    let Ok(Some(state)) = device::xdp(index) else {
        return Program::None;
    };
    let Some(id) = state.program() else {
        return Program::None;
    };
    // Whoever has the directory: it is only read.
    let links = pins::links(bpffs).unwrap_or_default();
    let is_ours = links.iter().any(|(_, path)| {
        let info = Link::from_pin(path).and_then(|link| link.info());
        info.is_ok_and(|info| info.program == id)
    });
    if is_ours {
        return Program::Ours {
            native: matches!(state, device::XdpState::Native(_)),
        };
    }
    Program::Foreign {
        id,
        name: program_name(id),
    }
}

/// The name of a program, if it has one that may be asked for.
fn program_name(id: u32) -> String {
    let name = loaded_programs()
        .filter_map(Result::ok)
        .find(|info| info.id() == id)
        .and_then(|info| info.name_as_str().map(str::to_owned));
    name.filter(|name| !name.is_empty())
        .unwrap_or_else(|| format!("id {id}"))
}

/// What traffic control runs on an interface.
struct TrafficControl {
    /// The program for what backends on this host send back.
    ours: bool,
    /// Programs and filters of others.
    others: Vec<String>,
}

impl TrafficControl {
    async fn of(netlink: &Netlink, index: u32, interface: &str, bpffs: &Path) -> Option<Self> {
        let mut others = netlink.filters(index).await.ok()?;
        let filters = others.len();
        others.retain(|name| name != tc::NAME);
        let mut ours = others.len() < filters;
        let linked = local::linked(bpffs, interface);
        for row in [bpf::BPF_TCX_INGRESS, bpf::BPF_TCX_EGRESS] {
            // A kernel before 6.6 has none of these.
            for id in bpf::programs_of(index, row).unwrap_or_default() {
                if linked == Some(id) {
                    ours = true;
                } else {
                    others.push(program_name(id));
                }
            }
        }
        // Some kinds keep several parts of one filter.
        others.sort();
        others.dedup();
        Some(Self { ours, others })
    }
}

fn rp_filter(name: &str) -> Option<u8> {
    let of = |which: &str| -> Option<u8> {
        let file = format!("/proc/sys/net/ipv4/conf/{which}/rp_filter");
        fs::read_to_string(file).ok()?.trim().parse().ok()
    };
    // The kernel takes the larger of both.
    Some(of("all")?.max(of(name)?))
}
