//! What the daemon is told of a flow that a deadline has closed, so that it can tell the backend.

use core::mem::size_of;

use crate::net::Address;

/// A flow that was closed: its client was answered with a RST, and its backend knows nothing of it yet. Numbers are in host byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Notice {
    /// The client's address.
    pub client: Address,
    /// The address that it spoke to.
    pub vip: Address,
    /// Id of the backend.
    pub backend: u32,
    /// Sequence number of the segment that was answered instead of being delivered: what the backend waits for.
    pub seq: u32,
    /// Acknowledgement number of that segment.
    pub ack: u32,
    /// The client's port.
    pub client_port: u16,
    /// The port that it spoke to.
    pub port: u16,
    /// Id of the service.
    pub service: u16,
    /// Zero.
    pub reserved: [u16; 3],
}

impl Notice {
    /// From its bytes, as they are in the map; none if there are too few.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..size_of::<Self>())?;
        let u32_at = |at: usize| -> Option<u32> {
            Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
        };
        let u16_at = |at: usize| -> Option<u16> {
            Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
        };
        Some(Self {
            client: Address(bytes.get(..16)?.try_into().ok()?),
            vip: Address(bytes.get(16..32)?.try_into().ok()?),
            backend: u32_at(32)?,
            seq: u32_at(36)?,
            ack: u32_at(40)?,
            client_port: u16_at(44)?,
            port: u16_at(46)?,
            service: u16_at(48)?,
            reserved: [0; 3],
        })
    }
}

const _: () = assert!(size_of::<Notice>() == 56);
const _: () = assert!(
    core::mem::offset_of!(Notice, backend) == 32
        && core::mem::offset_of!(Notice, client_port) == 44
        && core::mem::offset_of!(Notice, service) == 48
);
