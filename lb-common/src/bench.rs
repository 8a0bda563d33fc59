//! What the bench and its harness program share.

use core::mem::size_of;

use crate::nat::FIRST_PORT;

/// Name of the harness program, which makes a packet and tail-calls the program under test.
pub const HARNESS: &str = "harness";
/// Name of the program that returns at once.
pub const FLOOR_RETURN: &str = "floor_return";
/// Name of the program that parses, swaps the MAC addresses and transmits.
pub const FLOOR_SWAP: &str = "floor_swap";
/// Name of the program that adds a constant IPIP header and transmits.
pub const FLOOR_ENCAP: &str = "floor_encap";
/// Name of the program that fills the first [`POISON_LEN`] bytes of a frame with ones, hides them as headroom, and calls the program
/// under test: a test run zeroes headroom, a driver does not.
pub const POISON: &str = "poison";
/// Name of the program that moves a frame to the very start of its buffer, where no header can be added, and calls the program
/// under test.
pub const CROWD: &str = "crowd";
/// Map with the harness's orders: array of one [`Orders`].
pub const ORDERS: &str = "ORDERS";
/// Map with the program under test: program array of one.
pub const UNDER_TEST: &str = "UNDER_TEST";

/// Length of the IPv4 packets that the harness makes, in bytes of frame: the least that Ethernet has.
pub const FRAME_LEN: usize = 60;
/// Length of the IPv6 packets that the harness makes, in bytes of frame: a segment without data.
pub const FRAME6_LEN: usize = 74;

/// How much headroom [`POISON`] fills, in bytes.
pub const POISON_LEN: usize = 64;
/// The least length of a frame for [`CROWD`], in bytes.
pub const CROWD_LEN: usize = 128;
/// How far [`CROWD`] moves it, in bytes: a driver's headroom of 256, less what the kernel keeps of it for itself, which is 40 bytes in some
/// kernels and 48 in others. Nothing remains.
pub const CROWD_SHIFTS: [usize; 2] = [216, 208];

/// Which packets the harness makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Mid-stream segments of [`Orders::flows`] flows in random order.
    Established = 0,
    /// SYNs, each of a flow of its own, numbered upwards.
    Opening = 1,
    /// What the [`endpoint`]s of [`Orders::flows`] flows send in mid-stream, in random order.
    Replies = 2,
    /// Mid-stream segments, each of a flow of its own, numbered upwards.
    Unknown = 3,
}

/// The harness's orders and state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Orders {
    /// A [`Kind`].
    pub kind: u32,
    /// How many flows there are.
    pub flows: u32,
    /// State: of the random generator (never 0), or the number of the next flow.
    pub state: u32,
    /// Destination address, host byte order; of an IPv6 packet what [`address6`] makes of it.
    pub destination: u32,
    /// Destination port, or of replies the source port, host byte order.
    pub port: u32,
    /// Sequence number of all segments.
    pub seq: u32,
    /// An [`crate::net::IpVersion`].
    pub version: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Orders>() == 32);

/// The IPv6 address that stands for an IPv4 one, as [`crate::net::Address::words`] gives it.
#[inline(always)]
pub const fn address6(address: u32) -> [u64; 2] {
    const PREFIX: u64 = u64::from_le_bytes([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 1]);
    [PREFIX, (address as u64).to_be()]
}

/// The client of flow `number`: its address and port, host byte order. 2^14 ports an address.
#[inline(always)]
pub const fn client(number: u32) -> (u32, u16) {
    (
        0x0a80_0000 + (number >> 14),
        1_024 + (number & 0x3fff) as u16,
    )
}

/// Backends of the bench's service.
pub const BACKENDS: u32 = 100;

/// The backend of flow `number` in modes that translate: its id, from 1 to [`BACKENDS`], and the SNAT port that the flow has toward it.
#[inline(always)]
pub const fn endpoint(number: u32) -> (u32, u16) {
    (
        1 + number % BACKENDS,
        FIRST_PORT + (number / BACKENDS) as u16,
    )
}

/// The address of a backend, host byte order.
#[inline(always)]
pub const fn backend(id: u32) -> u32 {
    0x0a01_0000 + id
}

/// The next state of the generator (xorshift32; Marsaglia, "Xorshift RNGs", 2003).
#[inline(always)]
pub const fn next(state: u32) -> u32 {
    let x = state ^ (state << 13);
    let x = x ^ (x >> 17);
    x ^ (x << 5)
}
