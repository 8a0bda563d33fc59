//! The kernel's settings of interfaces.

use std::fs;

use lb_common::net::IpVersion;

use crate::dataplane::kernel::device;

/// What `sysctl` calls a setting of an interface: a slash stands there for a dot that is no separator.
pub(crate) fn of_interface(version: IpVersion, interface: &str, setting: &str) -> String {
    let interface = interface.replace('.', "/");
    format!("net.ipv{}.conf.{interface}.{setting}", version as u32)
}

/// By which interfaces what comes in by this one is not forwarded: itself, and if it is a bond its ports, by which packets come in as the program on it sees
/// them. None if the kernel does not say of itself.
pub(crate) fn unforwarded(version: IpVersion, interface: &str) -> Option<Vec<String>> {
    let own = (!forwards(version, interface)?).then(|| interface.to_owned());
    let ports = device::ports_of_bond(interface).into_iter();
    let closed = ports.filter(|port| forwards(version, port) == Some(false));
    Some(own.into_iter().chain(closed).collect())
}

/// Whether the kernel forwards what comes in by an interface; none if it does not say, since there is no such interface.
pub(crate) fn forwards(version: IpVersion, interface: &str) -> Option<bool> {
    let file = format!(
        "/proc/sys/net/ipv{}/conf/{interface}/forwarding",
        version as u32
    );
    let text = fs::read_to_string(file).ok()?;
    Some(text.trim() != "0")
}
