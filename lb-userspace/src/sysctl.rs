//! Names of the kernel's settings.

use lb_common::net::IpVersion;

/// What `sysctl` calls a setting of an interface: a slash stands there for a dot that is no separator.
pub(crate) fn of_interface(version: IpVersion, interface: &str, setting: &str) -> String {
    let interface = interface.replace('.', "/");
    format!("net.ipv{}.conf.{interface}.{setting}", version as u32)
}
