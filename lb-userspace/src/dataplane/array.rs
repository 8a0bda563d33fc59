//! An array of map entries in memory that is shared with the data path, or stands in for it.

use std::{
    marker::PhantomData,
    num::NonZeroUsize,
    os::fd::BorrowedFd,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering, fence},
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// Marks types that any bytes are a value of, without padding, whose size is a multiple of eight bytes: what a map entry must be
/// to be read and written word by word.
///
/// # Safety
/// The type is `repr(C)` or `repr(transparent)`, made of integers only, has no padding, and its size is a multiple of 8.
pub unsafe trait Entry: Copy {}

// SAFETY: all are integers only, `repr(C)` or `repr(transparent)`, with compile-time assertions of their sizes beside them.
unsafe impl Entry for u64 {}
// SAFETY: as above.
unsafe impl Entry for lb_common::maglev::Slot {}
// SAFETY: as above.
unsafe impl Entry for lb_common::service::Service {}
// SAFETY: as above.
unsafe impl Entry for lb_common::backend::Backend {}
// SAFETY: as above.
unsafe impl Entry for lb_common::vip::VipBucket {}
// SAFETY: as above.
unsafe impl Entry for lb_common::flow::v4::Bucket {}
// SAFETY: as above.
unsafe impl Entry for lb_common::flow::v6::Bucket {}
// SAFETY: as above.
unsafe impl Entry for lb_common::flow::bucket::Facts {}
// SAFETY: as above.
unsafe impl Entry for lb_common::counters::Counter {}
// SAFETY: as above.
unsafe impl Entry for lb_common::counters::CpuState {}
// SAFETY: as above.
unsafe impl Entry for lb_common::maps::Instance {}
// SAFETY: as above.
unsafe impl Entry for lb_common::maps::Hold {}
// SAFETY: as above.
unsafe impl Entry for lb_common::flow::copy::Order {}
// SAFETY: as above.
unsafe impl Entry for lb_common::nat::Bucket {}
// SAFETY: as above.
unsafe impl Entry for lb_common::nat::Endpoint {}
// SAFETY: as above.
unsafe impl Entry for lb_common::nat::Pair {}
// SAFETY: as above.
unsafe impl Entry for lb_common::nat::Link {}
// SAFETY: as above.
unsafe impl Entry for lb_common::guard::Guard {}
// SAFETY: as above.
unsafe impl Entry for lb_common::guard::Range {}
// SAFETY: as above.
unsafe impl Entry for lb_common::guard::SourceBucket {}
// SAFETY: as above.
unsafe impl Entry for lb_common::watch::Filter {}
// SAFETY: as above.
unsafe impl Entry for lb_common::watch::Record {}
// SAFETY: as above.
unsafe impl Entry for lb_common::repeats::Repeats {}
// SAFETY: as above.
unsafe impl Entry for lb_common::repeats::Sample {}

/// A mapped array of `T`. Every access is by whole, aligned 64-bit words, so a reader in the kernel sees each word whole.
#[derive(Debug)]
pub struct Array<T> {
    memory: NonNull<AtomicU64>,
    bytes: NonZeroUsize,
    len: u32,
    entries: PhantomData<T>,
}

// SAFETY: the memory is only accessed through atomics.
unsafe impl<T> Send for Array<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Array<T> {}

impl<T: Entry> Array<T> {
    const WORDS: usize = size_of::<T>() / 8;

    /// Memory of our own, zeroed: a stand-in for a map.
    ///
    /// # Errors
    /// When the memory is not to be had.
    pub fn in_memory(len: u32) -> nix::Result<Self> {
        let bytes = Self::bytes(len);
        // SAFETY: a new anonymous mapping touches nothing that exists.
        let memory = unsafe {
            mmap_anonymous(
                None,
                bytes,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_PRIVATE,
            )?
        };
        Ok(Self {
            memory: memory.cast(),
            bytes,
            len,
            entries: PhantomData,
        })
    }

    /// The memory of a BPF array map that was created with `BPF_F_MMAPABLE`, `len` entries of `T`.
    ///
    /// # Errors
    /// When the kernel refuses the mapping: not mmap-able, or smaller than that.
    pub fn of_map(map: BorrowedFd<'_>, len: u32) -> nix::Result<Self> {
        let bytes = Self::bytes(len);
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let memory = unsafe {
            mmap(
                None,
                bytes,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                map,
                0,
            )?
        };
        Ok(Self {
            memory: memory.cast(),
            bytes,
            len,
            entries: PhantomData,
        })
    }

    fn bytes(len: u32) -> NonZeroUsize {
        const { assert!(size_of::<T>().is_multiple_of(8) && size_of::<T>() > 0) };
        NonZeroUsize::new(size_of::<T>() * len as usize).unwrap_or(NonZeroUsize::MIN)
    }

    /// Number of entries.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether it has no entries.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// One word of an entry, `word` counted in units of eight bytes.
    ///
    /// # Panics
    /// If entry or word are out of bounds.
    pub fn word(&self, index: u32, word: usize) -> &AtomicU64 {
        assert!(
            index < self.len && word < Self::WORDS,
            "entry {index}, word {word} of {} entries",
            self.len
        );
        // SAFETY: in bounds of the mapping, by the assertion; mappings are page-aligned, so the word is aligned.
        unsafe {
            self.memory
                .add(index as usize * Self::WORDS + word)
                .as_ref()
        }
    }

    /// All words of an entry, for loops that look at many: one check of bounds for all of them.
    ///
    /// # Panics
    /// If out of bounds.
    #[inline]
    pub fn words(&self, index: u32) -> &[AtomicU64] {
        assert!(index < self.len, "entry {index} of {} entries", self.len);
        // SAFETY: the entry is in bounds of the mapping, by the assertion, and aligned, as mappings are page-aligned; the memory is only
        // accessed through atomics.
        unsafe {
            std::slice::from_raw_parts(
                self.memory.add(index as usize * Self::WORDS).as_ptr(),
                Self::WORDS,
            )
        }
    }

    /// All words there are.
    pub fn all(&self) -> &[AtomicU64] {
        // SAFETY: the whole mapping, aligned, as mappings are page-aligned; the memory is only accessed through atomics.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.len as usize * Self::WORDS) }
    }

    /// Zeroes all words there are, in no order that anybody else may rely on.
    pub fn clear(&self) {
        for word in self.all() {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// An entry, word by word: each word is whole, the entry as such is not read at one moment.
    ///
    /// # Panics
    /// If out of bounds.
    pub fn get(&self, index: u32) -> T {
        let mut value = std::mem::MaybeUninit::<T>::uninit();
        let words = value.as_mut_ptr().cast::<u64>();
        for word in 0..Self::WORDS {
            let loaded = self.word(index, word).load(Ordering::Acquire);
            // SAFETY: `value` has room for WORDS words; `write_unaligned` asks no alignment.
            unsafe { words.add(word).write_unaligned(loaded) };
        }
        // SAFETY: all words are written, and any bytes are a `T`.
        unsafe { value.assume_init() }
    }

    /// Writes an entry, word by word, from the last to the first, so that a state word at its beginning is stored after what it vouches for.
    ///
    /// # Panics
    /// If out of bounds.
    pub fn set(&self, index: u32, value: &T) {
        let words = std::ptr::from_ref(value).cast::<u64>();
        for word in (0..Self::WORDS).rev() {
            // SAFETY: `value` has WORDS words; `read_unaligned` asks no alignment.
            let stored = unsafe { words.add(word).read_unaligned() };
            self.word(index, word).store(stored, Ordering::Release);
        }
        fence(Ordering::SeqCst);
    }
}

impl<T> Drop for Array<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, of this size, and no reference into it outlives `self`.
        if let Err(error) = unsafe { munmap(self.memory.cast(), self.bytes.get()) } {
            tracing::error!(%error, "a map's memory could not be unmapped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::maglev::Slot;

    #[test]
    fn entries_keep_what_they_are_given() {
        let array = Array::<lb_common::vip::VipBucket>::in_memory(3).unwrap();
        let bucket = lb_common::vip::VipBucket {
            entries: [1, 2, 3, 4],
        };
        array.set(2, &bucket);
        assert_eq!(array.get(2), bucket);
        assert_eq!(array.get(1), lb_common::vip::VipBucket::default());
        assert_eq!(array.word(2, 3).load(Ordering::Relaxed), 4);
    }

    #[test]
    #[should_panic(expected = "of 3 entries")]
    fn out_of_bounds_is_refused() {
        Array::<Slot>::in_memory(3).unwrap().get(3);
    }
}
