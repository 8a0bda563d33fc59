//! The calls of bpf(2) that aya leaves out, or makes with a fallback that cannot be pinned: XDP links, maps that a program's placeholders
//! give way to, and the map of maps by which a grace period is waited for.
//!
//! (aya's `Xdp::attach` turns to netlink when the kernel refuses a link with EINVAL; what is attached that way ends with nobody's
//! file descriptor, survives no `kill -9` cleanly, and cannot be replaced atomically.)

mod maps;

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

pub use self::maps::{
    BPF_F_MMAPABLE, DEVICE_BYTES, MapInMap, create_devices, create_programs, create_ring,
    create_shared, remove, set_device, set_program,
};
use super::runs::Runs;

// Commands, types and flags of the kernel's include/uapi/linux/bpf.h.
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;
const BPF_LINK_TYPE_XDP: u32 = 6;
const BPF_LINK_TYPE_TCX: u32 = 11;
const BPF_XDP: u32 = 37;
/// The row of programs of traffic control on what comes in by an interface.
pub const BPF_TCX_INGRESS: u32 = 46;
/// The same on what goes out.
pub const BPF_TCX_EGRESS: u32 = 47;
/// The most programs in such a row (BPF_MPROG_MAX).
const MOST_PROGRAMS: usize = 64;
/// Before all others, where nothing else is said.
const BPF_F_BEFORE: u32 = 1 << 3;
/// The action of a frame that is left to the host.
pub const XDP_PASS: u32 = 2;
/// The action of a frame that leaves by the interface that it came in by.
pub const XDP_TX: u32 = 3;
/// The action of a frame that leaves by another.
pub const XDP_REDIRECT: u32 = 4;
/// Generic mode.
pub const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
/// Native mode.
pub const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// Calls bpf(2) with one of the attribute structures below.
///
/// # Safety
/// `attributes` is what `command` takes, and its pointers are valid for what the command does with them.
unsafe fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<RawFd> {
    // SAFETY: the size is the structure's own; the rest is the caller's promise. The kernel takes what is not given as zero.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as RawFd)
    }
}

/// As [`bpf`], for commands that give a file descriptor.
///
/// # Safety
/// As [`bpf`].
unsafe fn bpf_fd<T>(command: libc::c_long, attributes: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise; the descriptor is new (and close-on-exec, as all of bpf(2)'s), so nobody else owns it.
    unsafe { bpf(command, attributes).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

#[repr(C)]
struct ObjectAttributes {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Pins a map, program or link, so that it outlives its descriptors.
///
/// # Errors
/// When the path is taken or on no bpffs.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attributes = ObjectAttributes {
        path: path.as_ptr() as u64,
        fd: object.as_raw_fd() as u32,
        flags: 0,
    };
    // SAFETY: what BPF_OBJ_PIN takes; the path outlives the call.
    unsafe { bpf(BPF_OBJ_PIN, &mut attributes) }.map(drop)
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// What the kernel says about a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// What hangs on it.
    pub kind: Kind,
    /// Its id, which it keeps for life.
    pub id: u32,
    /// Id of the program that it runs now.
    pub program: u32,
    /// Index of its interface; 0 if that is gone.
    pub ifindex: u32,
}

/// What hangs on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An XDP program.
    Xdp,
    /// A TC program.
    Tcx,
}

/// A link. Closing the last descriptor of one that is not pinned detaches it.
#[derive(Debug)]
pub struct Link(OwnedFd);

impl Link {
    /// Attaches a program to an interface. `mode` is one of the `XDP_FLAGS`.
    ///
    /// # Errors
    /// The kernel's: EOPNOTSUPP without that mode, EBUSY and EEXIST when another program is there, EPERM, ENODEV, what a driver says.
    pub fn create(program: BorrowedFd<'_>, ifindex: u32, mode: u32) -> io::Result<Self> {
        Self::create_at(program, ifindex, BPF_XDP, mode)
    }

    /// Attaches a TC program to what goes out by an interface, before all others that are there.
    ///
    /// # Errors
    /// The kernel's: EINVAL before Linux 6.6, which has no such links.
    pub fn create_egress(program: BorrowedFd<'_>, ifindex: u32) -> io::Result<Self> {
        Self::create_at(program, ifindex, BPF_TCX_EGRESS, BPF_F_BEFORE)
    }

    fn create_at(
        program: BorrowedFd<'_>,
        ifindex: u32,
        attach_type: u32,
        flags: u32,
    ) -> io::Result<Self> {
        #[repr(C)]
        struct Attributes {
            program: u32,
            ifindex: u32,
            attach_type: u32,
            flags: u32,
        }
        let mut attributes = Attributes {
            program: program.as_raw_fd() as u32,
            ifindex,
            attach_type,
            flags,
        };
        // SAFETY: what BPF_LINK_CREATE takes; no pointers.
        unsafe { bpf_fd(BPF_LINK_CREATE, &mut attributes) }.map(Self)
    }

    /// Opens the pinned link of an XDP program.
    ///
    /// # Errors
    /// When there is no such pin, or it is something else than an XDP link (EINVAL).
    pub fn from_pin(path: &Path) -> io::Result<Self> {
        Self::from_pin_of(path, Kind::Xdp)
    }

    /// Opens a pinned link of this kind.
    ///
    /// # Errors
    /// When there is no such pin, or it is something else (EINVAL).
    pub fn from_pin_of(path: &Path, kind: Kind) -> io::Result<Self> {
        let link = Self(open_pinned(path)?);
        if link.info()?.kind == kind {
            Ok(link)
        } else {
            Err(io::Error::from_raw_os_error(libc::EINVAL))
        }
    }

    /// Pins the link, so that it outlives its descriptors.
    ///
    /// # Errors
    /// When the path is taken or on no bpffs.
    pub fn pin(&self, path: &Path) -> io::Result<()> {
        pin(self.0.as_fd(), path)
    }

    /// What the kernel says about it.
    ///
    /// # Errors
    /// EINVAL if it is neither an XDP nor a TCX link.
    pub fn info(&self) -> io::Result<LinkInfo> {
        #[derive(Default)]
        #[repr(C)]
        struct Info {
            link_type: u32,
            id: u32,
            program: u32,
            padding: u32,
            ifindex: u32,
            rest: u32,
        }
        // SAFETY: the beginning of `struct bpf_link_info`, integers only.
        let info: Info = unsafe { info_of(self.0.as_fd())? };
        let kind = match info.link_type {
            BPF_LINK_TYPE_XDP => Kind::Xdp,
            BPF_LINK_TYPE_TCX => Kind::Tcx,
            _ => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
        };
        Ok(LinkInfo {
            kind,
            id: info.id,
            program: info.program,
            ifindex: info.ifindex,
        })
    }

    /// Replaces the program, atomically: each packet meets the one or the other.
    ///
    /// # Errors
    /// ENOLINK when the interface is gone.
    pub fn update(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        #[repr(C)]
        struct Attributes {
            link: u32,
            program: u32,
            flags: u32,
            old_program: u32,
        }
        let mut attributes = Attributes {
            link: self.0.as_raw_fd() as u32,
            program: program.as_raw_fd() as u32,
            flags: 0,
            old_program: 0,
        };
        // SAFETY: what BPF_LINK_UPDATE takes; no pointers.
        unsafe { bpf(BPF_LINK_UPDATE, &mut attributes) }.map(drop)
    }

    /// Detaches, whoever else holds the link.
    ///
    /// # Errors
    /// None that are known; a link whose interface is gone is detached already.
    pub fn detach(&self) -> io::Result<()> {
        let mut link = self.0.as_raw_fd() as u32;
        // SAFETY: what BPF_LINK_DETACH takes; no pointers.
        unsafe { bpf(BPF_LINK_DETACH, &mut link) }.map(drop)
    }
}

/// The ids of the programs in a row of an interface, [`BPF_TCX_INGRESS`] or [`BPF_TCX_EGRESS`]. Unlike opening them, this takes no CAP_SYS_ADMIN.
///
/// # Errors
/// EINVAL before Linux 6.6, which has no such rows.
pub fn programs_of(ifindex: u32, row: u32) -> io::Result<Vec<u32>> {
    #[repr(C)]
    struct Attributes {
        ifindex: u32,
        row: u32,
        query_flags: u32,
        attach_flags: u32,
        ids: u64,
        count: u32,
        padding: u32,
        ids_flags: u64,
        link_ids: u64,
        link_flags: u64,
        revision: u64,
    }
    // Its last field is written whatever length the kernel is told (6.6 and later): less room than that is somebody else's memory.
    const _: () = assert!(size_of::<Attributes>() == 64);
    let mut ids = [0u32; MOST_PROGRAMS];
    let mut attributes = Attributes {
        ifindex,
        row,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: MOST_PROGRAMS as u32,
        padding: 0,
        ids_flags: 0,
        link_ids: 0,
        link_flags: 0,
        revision: 0,
    };
    // SAFETY: all that BPF_PROG_QUERY takes and writes; `ids` has room for as many as are asked for, and outlives the call.
    unsafe { bpf(BPF_PROG_QUERY, &mut attributes)? };
    Ok(ids.into_iter().take(attributes.count as usize).collect())
}

/// The id of a program.
///
/// # Errors
/// When it is no program (EINVAL).
pub fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    id_of(program)
}

/// The id of a map.
///
/// # Errors
/// None that are known.
pub fn map_id(map: BorrowedFd<'_>) -> io::Result<u32> {
    id_of(map)
}

/// The id of a map among maps, or of a program among programs.
fn id_of(object: BorrowedFd<'_>) -> io::Result<u32> {
    #[derive(Default)]
    #[repr(C)]
    struct Info {
        sort: u32,
        id: u32,
    }
    // SAFETY: the beginning of `struct bpf_prog_info` and of `struct bpf_map_info`, integers only.
    let info: Info = unsafe { info_of(object)? };
    Ok(info.id)
}

/// The id of a pinned program.
///
/// # Errors
/// When there is no such pin, or it is no program (EINVAL).
pub fn pinned_program(path: &Path) -> io::Result<u32> {
    program_id(open_pinned(path)?.as_fd())
}

/// The id of a pinned map.
///
/// # Errors
/// When there is no such pin.
pub fn pinned_map(path: &Path) -> io::Result<u32> {
    map_id(open_pinned(path)?.as_fd())
}

fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attributes = ObjectAttributes {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    // SAFETY: what BPF_OBJ_GET takes; the path outlives the call.
    unsafe { bpf_fd(BPF_OBJ_GET, &mut attributes) }
}

/// How often a program has run while the kernel counted that, and for how long.
///
/// # Errors
/// None that are known.
pub fn runs(program: BorrowedFd<'_>) -> io::Result<Runs> {
    #[derive(Default)]
    #[repr(C)]
    struct Info {
        /// All zero, so that the kernel writes none of the arrays that it could.
        before: [u64; 24],
        run_time_ns: u64,
        run_count: u64,
    }
    // SAFETY: the beginning of `struct bpf_prog_info`, integers only: in Linux 5.1 and later its run_time_ns is at byte 192.
    let info: Info = unsafe { info_of(program)? };
    Ok(Runs {
        count: info.run_count,
        time_ns: info.run_time_ns,
    })
}

/// What the kernel says about a map, program or link.
///
/// # Safety
/// `T` is the beginning of the kernel's structure for that kind of object, any bytes are a `T`, and its default has no lengths other than zero of arrays
/// that the kernel would write elsewhere.
unsafe fn info_of<T: Default>(object: BorrowedFd<'_>) -> io::Result<T> {
    #[repr(C)]
    struct Attributes {
        fd: u32,
        length: u32,
        info: u64,
    }
    let mut info = T::default();
    let mut attributes = Attributes {
        fd: object.as_raw_fd() as u32,
        length: size_of::<T>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: what BPF_OBJ_GET_INFO_BY_FD takes; `info` is writable for the length given, and the caller's promise holds what is written there.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)? };
    Ok(info)
}

/// What comes of a run of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The XDP action.
    pub action: u32,
    /// Length of the frame afterwards.
    pub length: usize,
}

/// Runs an XDP program on a frame, as if that had come in by an interface. What it makes of it is in `output`.
///
/// # Errors
/// ENODEV if there is no such interface in this network namespace, ENOSPC if `output` is too short.
pub fn run_on(
    program: BorrowedFd<'_>,
    frame: &[u8],
    output: &mut [u8],
    ifindex: u32,
) -> io::Result<Run> {
    #[derive(Default)]
    #[repr(C)]
    struct Attributes {
        program: u32,
        action: u32,
        frame_length: u32,
        output_length: u32,
        frame: u64,
        output: u64,
        repeat: u32,
        duration: u32,
        context_length: u32,
        context_out_length: u32,
        context: u64,
        context_out: u64,
        flags: u32,
        cpu: u32,
        batch_size: u32,
        padding: u32,
    }
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let context: [u32; 6] = [0, frame.len() as u32, 0, ifindex, 0, 0];
    let mut attributes = Attributes {
        program: program.as_raw_fd() as u32,
        frame_length: frame.len() as u32,
        output_length: output.len() as u32,
        frame: frame.as_ptr() as u64,
        output: output.as_mut_ptr() as u64,
        repeat: 1,
        context_length: size_of_val(&context) as u32,
        context: context.as_ptr() as u64,
        ..Attributes::default()
    };
    loop {
        // SAFETY: what BPF_PROG_TEST_RUN takes; the buffers have these lengths and outlive the call.
        match unsafe { bpf(BPF_PROG_TEST_RUN, &mut attributes) } {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) => {
                return Ok(Run {
                    action: attributes.action,
                    length: attributes.output_length as usize,
                });
            }
        }
    }
}
