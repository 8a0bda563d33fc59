//! Maps: created, and written one entry at a time.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use super::{bpf, bpf_fd};

// Commands, types and flags of the kernel's include/uapi/linux/bpf.h.
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;
const BPF_MAP_TYPE_PROG_ARRAY: u32 = 3;
const BPF_MAP_TYPE_DEVMAP_HASH: u32 = 25;
const BPF_MAP_TYPE_RINGBUF: u32 = 27;
/// A map that can be shared as memory.
pub const BPF_F_MMAPABLE: u32 = 1 << 10;
/// Size of a device map's value: interface index, and a program to run on what leaves there, which is none.
pub const DEVICE_BYTES: u32 = 8;

#[derive(Default)]
#[repr(C)]
struct MapAttributes {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner_map: u32,
    numa_node: u32,
    name: [u8; 16],
}

/// Creates an array map of one value that can be shared as memory.
///
/// # Errors
/// When the kernel refuses: EPERM, ENOMEM, E2BIG.
pub fn create_shared(name: &str, value_size: u32) -> io::Result<OwnedFd> {
    create_named(
        name,
        MapAttributes {
            map_type: BPF_MAP_TYPE_ARRAY,
            key_size: 4,
            value_size,
            max_entries: 1,
            flags: BPF_F_MMAPABLE,
            ..MapAttributes::default()
        },
    )
}

/// Creates an array of programs.
///
/// # Errors
/// When the kernel refuses: EPERM, ENOMEM.
pub fn create_programs(name: &str, entries: u32) -> io::Result<OwnedFd> {
    create_named(
        name,
        MapAttributes {
            map_type: BPF_MAP_TYPE_PROG_ARRAY,
            key_size: 4,
            value_size: 4,
            max_entries: entries,
            ..MapAttributes::default()
        },
    )
}

/// Creates a device map, by any number for a key.
///
/// # Errors
/// When the kernel refuses: EPERM, ENOMEM.
pub fn create_devices(name: &str, entries: u32) -> io::Result<OwnedFd> {
    create_named(
        name,
        MapAttributes {
            map_type: BPF_MAP_TYPE_DEVMAP_HASH,
            key_size: 4,
            value_size: DEVICE_BYTES,
            max_entries: entries,
            ..MapAttributes::default()
        },
    )
}

/// Creates a ring buffer of this many bytes: a power of two, and whole pages.
///
/// # Errors
/// When the kernel refuses: EPERM, ENOMEM.
pub fn create_ring(name: &str, bytes: u32) -> io::Result<OwnedFd> {
    create_named(
        name,
        MapAttributes {
            map_type: BPF_MAP_TYPE_RINGBUF,
            max_entries: bytes,
            ..MapAttributes::default()
        },
    )
}

fn create_named(name: &str, mut attributes: MapAttributes) -> io::Result<OwnedFd> {
    // The last byte stays zero.
    for (to, from) in attributes.name[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: what BPF_MAP_CREATE takes; no pointers.
    unsafe { bpf_fd(BPF_MAP_CREATE, &mut attributes) }
}

fn create_map(map_type: u32, inner: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    let mut attributes = MapAttributes {
        map_type,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        inner_map: inner.map_or(0, |inner| inner.as_raw_fd() as u32),
        ..MapAttributes::default()
    };
    // SAFETY: what BPF_MAP_CREATE takes; no pointers.
    unsafe { bpf_fd(BPF_MAP_CREATE, &mut attributes) }
}

/// An array of one map, and that map.
#[derive(Debug)]
pub struct MapInMap {
    outer: OwnedFd,
    inner: OwnedFd,
}

impl MapInMap {
    /// Creates both.
    ///
    /// # Errors
    /// When the kernel refuses: EPERM, ENOMEM.
    pub fn create() -> io::Result<Self> {
        let inner = create_map(BPF_MAP_TYPE_ARRAY, None)?;
        let outer = create_map(BPF_MAP_TYPE_ARRAY_OF_MAPS, Some(inner.as_fd()))?;
        Ok(Self { outer, inner })
    }

    /// Puts the inner map into the outer one, again.
    ///
    /// # Errors
    /// ENOMEM for the call's own few bytes.
    pub fn update(&self) -> io::Result<()> {
        let (key, value) = (0u32, self.inner.as_raw_fd() as u32);
        let mut attributes = ElementAttributes::new(self.outer.as_fd(), &key, &value);
        // SAFETY: what BPF_MAP_UPDATE_ELEM takes; key and value have the map's sizes and outlive the call.
        unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attributes) }.map(drop)
    }
}

#[repr(C)]
struct ElementAttributes {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl ElementAttributes {
    /// Holds the addresses of key and value, and nothing that keeps them there.
    fn new<T>(map: BorrowedFd<'_>, key: *const u32, value: *const T) -> Self {
        Self {
            map: map.as_raw_fd() as u32,
            padding: 0,
            key: key as u64,
            value: value as u64,
            flags: 0,
        }
    }
}

/// Puts an interface into a device map, or what is there already once more.
///
/// # Errors
/// EINVAL if there is no such interface in this network namespace, E2BIG if the map is full.
pub fn set_device(map: BorrowedFd<'_>, key: u32, ifindex: u32) -> io::Result<()> {
    let value: [u32; DEVICE_BYTES as usize / 4] = [ifindex, 0];
    let mut attributes = ElementAttributes::new(map, &key, &value);
    // SAFETY: what BPF_MAP_UPDATE_ELEM takes; key and value have the map's sizes and outlive the call.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attributes) }.map(drop)
}

/// Puts a program into a program array, in the place of one that is there.
///
/// # Errors
/// EINVAL if the program is not of the kind of those that use the array.
pub fn set_program(map: BorrowedFd<'_>, index: u32, program: BorrowedFd<'_>) -> io::Result<()> {
    let value = program.as_raw_fd() as u32;
    let mut attributes = ElementAttributes::new(map, &index, &value);
    // SAFETY: what BPF_MAP_UPDATE_ELEM takes; key and value have the map's sizes and outlive the call.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attributes) }.map(drop)
}

/// Takes what there is under a key out of a map of devices or programs, if there is anything.
///
/// # Errors
/// None that are known.
pub fn remove(map: BorrowedFd<'_>, key: u32) -> io::Result<()> {
    let mut attributes = ElementAttributes::new(map, &key, std::ptr::null::<u32>());
    // SAFETY: what BPF_MAP_DELETE_ELEM takes; the key has the map's size and outlives the call.
    match unsafe { bpf(BPF_MAP_DELETE_ELEM, &mut attributes) } {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}
