//! `BPF_PROG_TEST_RUN`, many times in one call.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// Has the frames that a program sends really go out, on the calling thread's network (Linux 5.18).
pub const LIVE_FRAMES: u32 = 1 << 1;

/// Runs an XDP program on a frame `repeat` times, each round on what the round before has left. Gives how long a round took, as the kernel says: in whole
/// nanoseconds.
///
/// # Errors
/// What the kernel says.
pub fn repeated(program: BorrowedFd<'_>, frame: &[u8], repeat: u32, flags: u32) -> io::Result<u32> {
    const BPF_PROG_TEST_RUN: libc::c_long = 10;
    /// The part of `union bpf_attr` that this command takes (include/uapi/linux/bpf.h).
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        program: u32,
        retval: u32,
        data_size_in: u32,
        data_size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
        ctx_size_in: u32,
        ctx_size_out: u32,
        ctx_in: u64,
        ctx_out: u64,
        flags: u32,
        cpu: u32,
        batch_size: u32,
        padding: u32,
    }
    let mut attributes = Attributes {
        program: program.as_raw_fd() as u32,
        data_size_in: frame.len() as u32,
        data_in: frame.as_ptr() as u64,
        repeat,
        flags,
        ..Attributes::default()
    };
    // SAFETY: the attributes are of the size given, and their one pointer is to a frame that lives until the call returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_TEST_RUN,
            std::ptr::from_mut(&mut attributes),
            size_of::<Attributes>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(attributes.duration)
    }
}
