//! Bounds-checked access to the frame: the only pointer arithmetic on packets.

use aya_ebpf::programs::XdpContext;
use lb_common::headers::{ETHERTYPE_QINQ, ETHERTYPE_VLAN};

/// The linear part of a frame. Invalid after any change of its head or tail.
#[derive(Clone, Copy)]
pub struct Frame {
    start: usize,
    end: usize,
}

impl Frame {
    /// The frame as it is now.
    ///
    /// The loads are volatile, so that the compiler does not merge two of them: it would then drop a check that follows from an
    /// earlier one, which the verifier (all kernels to 7.2) cannot follow once an offset is variable. Take a new frame for a
    /// check that is weaker than the one before.
    #[inline(always)]
    pub fn of(ctx: &XdpContext) -> Self {
        // SAFETY: the context is valid as long as the program runs.
        let (start, end) = unsafe {
            (
                core::ptr::addr_of!((*ctx.ctx).data).read_volatile(),
                core::ptr::addr_of!((*ctx.ctx).data_end).read_volatile(),
            )
        };
        Self {
            start: start as usize,
            end: end as usize,
        }
    }

    /// `len` bytes from `offset` on, or none if the frame is shorter.
    #[inline(always)]
    pub fn at(&self, offset: usize, len: usize) -> Option<Bytes> {
        let bytes = self.start + offset;
        if bytes + len > self.end {
            None
        } else {
            Some(Bytes(bytes))
        }
    }
}

/// Bytes of a frame, checked to be there by [`Frame::at`]; offsets beyond what was asked for are refused by the verifier.
///
/// Numbers are loaded and stored whole, whatever their alignment: BPF has none on x86-64, and a byte-wise access would cost
/// four times as many instructions.
#[derive(Clone, Copy)]
pub struct Bytes(usize);

impl Bytes {
    /// One byte.
    #[inline(always)]
    pub fn u8(self, offset: usize) -> u8 {
        // SAFETY: in bounds, which the verifier proves.
        unsafe { ((self.0 + offset) as *const u8).read_volatile() }
    }

    /// In network byte order, as it is.
    #[inline(always)]
    pub fn raw16(self, offset: usize) -> u16 {
        // SAFETY: in bounds, which the verifier proves; the target loads unaligned words.
        unsafe { ((self.0 + offset) as *const u16).read_volatile() }
    }

    /// In network byte order, as it is.
    #[inline(always)]
    pub fn raw32(self, offset: usize) -> u32 {
        // SAFETY: as above.
        unsafe { ((self.0 + offset) as *const u32).read_volatile() }
    }

    /// In network byte order, as it is.
    #[inline(always)]
    pub fn raw64(self, offset: usize) -> u64 {
        // SAFETY: as above.
        unsafe { ((self.0 + offset) as *const u64).read_volatile() }
    }

    /// From network to host byte order.
    #[inline(always)]
    pub fn u16(self, offset: usize) -> u16 {
        u16::from_be(self.raw16(offset))
    }

    /// From network to host byte order.
    #[inline(always)]
    pub fn u32(self, offset: usize) -> u32 {
        u32::from_be(self.raw32(offset))
    }

    /// One byte.
    #[inline(always)]
    pub fn set_u8(self, offset: usize, value: u8) {
        // SAFETY: as above.
        unsafe { ((self.0 + offset) as *mut u8).write_volatile(value) }
    }

    /// In network byte order already.
    #[inline(always)]
    pub fn set_raw16(self, offset: usize, value: u16) {
        // SAFETY: as above.
        unsafe { ((self.0 + offset) as *mut u16).write_volatile(value) }
    }

    /// In network byte order already.
    #[inline(always)]
    pub fn set_raw32(self, offset: usize, value: u32) {
        // SAFETY: as above.
        unsafe { ((self.0 + offset) as *mut u32).write_volatile(value) }
    }

    /// In network byte order already.
    #[inline(always)]
    pub fn set_raw64(self, offset: usize, value: u64) {
        // SAFETY: as above.
        unsafe { ((self.0 + offset) as *mut u64).write_volatile(value) }
    }

    /// An Ethernet header's addresses, the source first: as of the answer to this frame.
    #[inline(always)]
    pub fn macs_swapped(self) -> [u32; 3] {
        let (a, b, c) = (self.raw32(0), self.raw32(4), self.raw32(8));
        // Destination is a and the lower half of b, source the upper half of b and c.
        [
            (b >> 16) | (c << 16),
            (c >> 16) | (a << 16),
            (a >> 16) | (b << 16),
        ]
    }

    /// Writes both addresses of an Ethernet header.
    #[inline(always)]
    pub fn set_macs(self, [a, b, c]: [u32; 3]) {
        self.set_raw32(0, a);
        self.set_raw32(4, b);
        self.set_raw32(8, c);
    }

    /// The bytes from `offset` on.
    #[inline(always)]
    pub fn after(self, offset: usize) -> Self {
        Self(self.0 + offset)
    }

    /// From host to network byte order.
    #[inline(always)]
    pub fn set_u16(self, offset: usize, value: u16) {
        self.set_raw16(offset, value.to_be());
    }

    /// From host to network byte order.
    #[inline(always)]
    pub fn set_u32(self, offset: usize, value: u32) {
        self.set_raw32(offset, value.to_be());
    }
}

/// Whether an EtherType, in network byte order as it is, announces a VLAN tag.
#[inline(always)]
pub fn is_vlan(raw_ethertype: u16) -> bool {
    raw_ethertype == ETHERTYPE_VLAN.to_be() || raw_ethertype == ETHERTYPE_QINQ.to_be()
}
