//! What code that also runs in the kernel hides there, for the sake of the program that is made of it. It changes no value.

/// How it is hidden. By default not at all.
pub trait Hide {
    /// A way of a bucket, unchanged, but such that the kernel's verifier no longer knows which: it would follow every way on its own from there on, and
    /// give up.
    #[inline(always)]
    fn blur(way: u32) -> u32 {
        way
    }
    /// A number, unchanged, but such that the compiler no longer knows where it came from: it would see through arithmetic that stands for a branch, and
    /// make one of it.
    #[inline(always)]
    fn opaque(number: u64) -> u64 {
        number
    }
}

/// Hides nothing: outside the kernel there is nobody to hide it from.
#[derive(Clone, Copy, Debug)]
pub struct Plain;

impl Hide for Plain {}
