//! Hiding from the compiler what it knows of a value, at the cost of no instruction, or of two where a bound has to be shown.
//!
//! The compiler drops checks that it can prove to be needless, and derives one value from another's parts. The verifier cannot always
//! follow, and then misses the check, or sees another register checked than used.

use core::arch::asm;

use lb_common::{flow::bucket::WAYS, hide::Hide};

use crate::maps;

unsafe extern "C" {
    // LLVM's own means for this, which its BPF backend removes when nothing is left to be optimised.
    #[link_name = "llvm.bpf.passthrough.i64.i64"]
    fn pass_number(sequence: u32, value: u64) -> u64;
    #[link_name = "llvm.bpf.passthrough.p0.p0"]
    fn pass_pointer(sequence: u32, value: *mut u8) -> *mut u8;
}

/// What [`lb_common`] hides.
pub(crate) struct Hidden;

impl Hide for Hidden {
    /// Mixes in a number that the verifier (all kernels to 7.2) takes for anything from 0 to 3, and that is 0 for as long as machines
    /// last.
    #[inline(always)]
    fn blur(way: u32) -> u32 {
        // The verifier of 6.1 knows no bound of what an exclusive or of 32 bits comes to.
        bits::<{ WAYS - 1 }>(u64::from(way ^ maps::always_zero())) as u32
    }

    #[inline(always)]
    fn opaque(value: u64) -> u64 {
        number(value)
    }
}

/// The same number.
#[inline(always)]
pub(crate) fn number(value: u64) -> u64 {
    // SAFETY: no instruction at all.
    unsafe { pass_number(0, value) }
}

/// The same pointer.
#[inline(always)]
pub(crate) fn pointer<T>(value: *mut T) -> *mut T {
    // SAFETY: no instruction at all.
    unsafe { pass_pointer(0, value.cast()).cast() }
}

/// The same number, if it is below `limit`.
///
/// The comparison bounds the very register that holds the result. Were it the compiler's, the number might be loaded from the stack once to be
/// compared and once more to be used, and the verifier of 6.1 does not know that both are the same.
#[inline(always)]
pub(crate) fn below(number: u32, limit: u32) -> Option<u64> {
    const NONE: u64 = u64::MAX;
    let mut result = u64::from(number);
    // SAFETY: two instructions that change one register.
    unsafe {
        asm!(
            "if {result} < {limit} goto +1",
            "{result} = -1",
            result = inout(reg) result,
            limit = in(reg) u64::from(limit),
            options(pure, nomem, nostack),
        );
    }
    if result == NONE { None } else { Some(result) }
}

/// The lowest bits of a number, `MASK` being one less than a power of two. The mask is there even if the compiler knows that it changes nothing: the verifier
/// of 6.1 may not.
#[inline(always)]
pub(crate) fn bits<const MASK: u32>(number: u64) -> u64 {
    let mut result = number;
    // SAFETY: one instruction that changes one register.
    unsafe {
        asm!(
            "{result} &= {mask}",
            result = inout(reg) result,
            mask = const MASK,
            options(pure, nomem, nostack),
        );
    }
    result
}
