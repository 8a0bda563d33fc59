//! The smallest XDP program there is: it passes every frame.
//!
//! A veth polls its ring of XDP frames only when it is told to, and `XDP_TX` on one end tells the other only if that has an
//! XDP program too (kernel 5.13 to 6.18 at least; GRO, which suffices for redirects, does not for this). Without it, what the
//! balancer transmits stays in the ring until some other packet happens to pass.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};

use crate::namespace::Namespace;

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
/// Native mode, so that a machine without it says so.
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// `BPF_OBJ_NAME_LEN`: the last of them is 0.
const NAME_BYTES: usize = 16;

/// `r0 = XDP_PASS; exit`.
static PROGRAM: [u64; 2] = [0x0000_0002_0000_00b7, 0x0000_0000_0000_0095];

/// The attributes of `BPF_PROG_LOAD` that matter here; the kernel takes the rest as zero.
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    program: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
    name: [u8; NAME_BYTES],
}

/// The attributes of `BPF_LINK_CREATE` that matter here.
#[repr(C)]
struct Link {
    program: u32,
    interface: u32,
    kind: u32,
    flags: u32,
}

/// Attaches the program to `interface` of `namespace`, for as long as the returned link is open.
///
/// # Errors
/// When the kernel refuses, which it does to anyone but root.
pub fn pass_all(namespace: &Namespace, interface: &str) -> Result<OwnedFd> {
    pass_all_as(c"", namespace, interface)
}

/// The same with a program of this name, of which the kernel takes no more than 15 bytes.
///
/// # Errors
/// As [`pass_all`].
pub fn pass_all_as(program: &CStr, namespace: &Namespace, interface: &str) -> Result<OwnedFd> {
    let mut called = [0; NAME_BYTES];
    for (to, byte) in called.iter_mut().zip(program.to_bytes()) {
        *to = *byte;
    }
    let name = interface.to_owned();
    namespace
        .run(move || {
            let load = Load {
                kind: BPF_PROG_TYPE_XDP,
                instructions: u32::try_from(PROGRAM.len()).map_err(io::Error::other)?,
                program: (&raw const PROGRAM) as u64,
                licence: c"".as_ptr() as u64,
                log_level: 0,
                log_size: 0,
                log: 0,
                kernel: 0,
                flags: 0,
                name: called,
            };
            let program = bpf(BPF_PROG_LOAD, &load)?;
            let link = Link {
                program: u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?,
                interface: nix::net::if_::if_nametoindex(name.as_str())?,
                kind: BPF_XDP,
                flags: XDP_FLAGS_DRV_MODE,
            };
            bpf(BPF_LINK_CREATE, &link)
        })
        .with_context(|| format!("attach XDP to {interface} of {}", namespace.name()))
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the pointer and the length describe `attributes`, whose own pointers are to constants.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both commands return a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
