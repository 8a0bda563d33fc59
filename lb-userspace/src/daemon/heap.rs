//! What the allocator keeps of what was given back.

/// Threads that allocate share so many arenas.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 2;
/// From so many bytes on, a block is mapped by itself and a heap's free end is given back. glibc's defaults, which then do not move.
#[cfg(target_env = "gnu")]
const LARGE_BYTES: libc::c_int = 128 << 10;

/// Has memory that is given back leave the process: what starting and reloads need for a moment is many times of what the daemon holds.
///
/// glibc keeps an arena for each thread, and from the first large block given back on takes ever larger ones from them, where whatever lies
/// above holds them (mallopt(3)). musl, with which releases are built, does neither.
pub(crate) fn keep_little() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_ARENA_MAX, ARENAS),
        (libc::M_MMAP_THRESHOLD, LARGE_BYTES),
        (libc::M_TRIM_THRESHOLD, LARGE_BYTES),
    ] {
        // SAFETY: it sets a number of the allocator's, and is called before there are threads.
        // What it does not know stays as it was.
        let _ = unsafe { libc::mallopt(parameter, value) };
    }
}
