//! What must hold of a backend wherever it comes from: a file, the admin API, DNS.

use std::net::{IpAddr, SocketAddr};

use lb_common::{backend::Mode, net::IpVersion};
use serde::{Deserialize, Serialize};

use super::{Backend, Service};
use crate::{balance::Part, model::Admin};

/// A backend's share if nobody says another.
pub const WEIGHT: u16 = 100;
/// The largest share.
pub const MAX_WEIGHT: u16 = 1_000;
/// Fewer slots of a table than this for each backend are refused: shares would be coarse.
pub(super) const SLOTS_PER_BACKEND: u64 = 64;
/// The longest name of a service or backend, in bytes.
pub(super) const NAME_BYTES: usize = 63;

/// What is wrong, and what to do about it.
pub(super) type Broken = (String, String);

/// A name of a service or backend: also part of a path in the admin API and of `tether drain SERVICE/BACKEND`.
pub(super) fn name(text: &str) -> Option<Broken> {
    let valid = !text.is_empty()
        && text.len() <= NAME_BYTES
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._:-".contains(&b))
        // As a segment of a path these two would mean another place.
        && text != "." && text != "..";
    (!valid).then(|| {
        (
            format!("{text:?} is no name"),
            format!("use 1 to {NAME_BYTES} letters, digits, dots, colons, hyphens or underscores"),
        )
    })
}

/// Why no packet is to be sent to an address, and what to do about it.
pub(super) fn unusable(address: IpAddr) -> Option<(&'static str, String)> {
    let unicast = || "give a unicast address".to_owned();
    if address.is_loopback() {
        return Some((
            "is a loopback address, which never leaves a host",
            unicast(),
        ));
    }
    if address.is_multicast() {
        return Some(("is a multicast address", unicast()));
    }
    match address {
        IpAddr::V4(address) if address.octets()[0] == 0 => Some(("is of no host", unicast())),
        IpAddr::V4(address) if address.octets()[0] >= 240 => {
            Some(("is reserved or broadcast", unicast()))
        }
        IpAddr::V4(_) => None,
        IpAddr::V6(address) if address.is_unspecified() => Some(("is of no host", unicast())),
        IpAddr::V6(address) if address.is_unicast_link_local() => Some((
            "is a link-local address, which is another host's on every link",
            "give a global or unique local address".to_owned(),
        )),
        IpAddr::V6(address) => address.to_ipv4_mapped().map(|address| {
            (
                "is an IPv4 address in IPv6's notation",
                format!("write {address}"),
            )
        }),
    }
}

/// A backend at the VIP would be sent packets that come back.
pub(super) fn is_vip(address: IpAddr, vip: IpAddr) -> Option<Broken> {
    (address == vip).then(|| {
        (
            "its address is the VIP itself, so packets would come back here".to_owned(),
            "give the address of the backend's own host".to_owned(),
        )
    })
}

/// The operator's word for a mode.
pub(super) const fn word(mode: Mode) -> &'static str {
    match mode {
        Mode::L2 => "l2",
        Mode::Ipip => "ipip",
        Mode::Nat => "nat",
        Mode::Dnat => "dnat",
    }
}

/// Whether a mode cannot carry packets to a VIP to this address.
pub(super) fn not_carried(address: IpAddr, vip: IpAddr, mode: Mode) -> Option<Broken> {
    let (has, needs) = (IpVersion::of(address), IpVersion::of(vip));
    let wrong = match mode {
        Mode::Ipip if vip.is_ipv6() && address.is_ipv4() => format!(
            "address {address} is IPv4, and mode ipip carries no IPv6 packet in an IPv4 one"
        ),
        // A packet keeps its version of IP when its addresses are translated.
        Mode::Nat | Mode::Dnat if has != needs => format!(
            "address {address} is IPv{}, and mode {} translates no IPv{} packet to it",
            has as u32,
            word(mode),
            needs as u32
        ),
        _ => return None,
    };
    Some((
        wrong,
        format!("give the backend's IPv{} address", needs as u32),
    ))
}

/// Whether a mode cannot translate the service's port to this one.
pub(super) fn not_translated(port: u16, expected: u16, mode: Mode) -> Option<Broken> {
    (matches!(mode, Mode::L2 | Mode::Ipip) && port != expected).then(|| {
        (
            format!(
                "port {port} differs from the service's {expected}, and mode {} cannot translate ports",
                word(mode)
            ),
            format!("remove it, set port = {expected}, or use mode \"nat\" or \"dnat\""),
        )
    })
}

/// A backend as somebody other than the file gives it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendSpec {
    /// Its address.
    pub address: IpAddr,
    /// Its port; none is the service's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Its share of new flows, 0 to [`MAX_WEIGHT`].
    #[serde(default = "usual_weight")]
    pub weight: u16,
    /// What the operator wants of it.
    #[serde(default)]
    pub admin: Admin,
}

/// [`WEIGHT`], for serde.
pub const fn usual_weight() -> u16 {
    WEIGHT
}

impl Service {
    /// A backend of this service that is not in its file, checked as the others are.
    ///
    /// # Errors
    /// What is wrong with it in itself, and what to do about it.
    pub fn backend(&self, name: &str, spec: &BackendSpec) -> Result<Backend, String> {
        let &BackendSpec {
            address,
            port,
            weight,
            admin,
        } = spec;
        let port = port.unwrap_or(self.port);
        let broken = self::name(name)
            .or_else(|| {
                unusable(address)
                    .map(|(wrong, remedy)| (format!("address {address} {wrong}"), remedy))
            })
            .or_else(|| is_vip(address, self.vip))
            .or_else(|| not_carried(address, self.vip, self.mode))
            .or_else(|| not_translated(port, self.port, self.mode))
            .or_else(|| weight_broken(weight));
        if let Some((wrong, remedy)) = broken {
            return Err(format!(
                "backend \"{}/{name}\": {wrong}; {remedy}",
                self.name
            ));
        }
        Ok(Backend {
            name: name.to_owned(),
            address,
            port,
            weight,
            admin,
            part: Part::default(),
            zone: None,
            check: self.check.clone(),
            check_address: SocketAddr::from((address, self.check_port.unwrap_or(port))),
        })
    }

    /// Whether its table has slots for so many backends.
    ///
    /// # Errors
    /// How many are too many, and what to do.
    pub fn has_slots_for(&self, backends: usize) -> Result<(), String> {
        let needed = backends as u64 * SLOTS_PER_BACKEND;
        if u64::from(self.table_size) >= needed {
            return Ok(());
        }
        Err(format!(
            "service {:?}: table_size {} is too few for {backends} backends, which need {SLOTS_PER_BACKEND} slots each; set table_size = {} in the \
             file and reload first",
            self.name,
            self.table_size,
            needed * 2
        ))
    }
}

/// Whether a share is out of bounds.
pub(crate) fn weight_broken(weight: u16) -> Option<Broken> {
    (weight > MAX_WEIGHT).then(|| {
        (
            format!("weight is {weight}"),
            format!("give a number from 0 to {MAX_WEIGHT}"),
        )
    })
}
