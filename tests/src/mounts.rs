//! Taking a mount namespace out of all propagation, so that what is mounted in it is seen nowhere else.
//!
//! The kernel tests of `lb-userspace`, which this crate depends on and which therefore cannot depend on it, include this file by its
//! path.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot, fchdir};

/// Makes all mounts that the calling thread can reach private. The thread must have its mount namespace to itself.
///
/// # Errors
/// When the kernel refuses, which it does to anyone but root.
pub(crate) fn make_private() -> nix::Result<()> {
    match make_private_from("/") {
        // A chroot, whose root is a directory and no mount.
        Err(Errno::EINVAL) => {}
        other => return other,
    }
    // The mount that the directory is in cannot be named from here, and what is mounted on a directory of its own would propagate
    // through it. So the thread climbs out to that mount, and back in.
    let root = open("/")?;
    let here = open(".")?;
    // What is not below the root is not held back by it: from here, `..` leads out.
    chroot("/proc")?;
    fchdir(&root)?;
    let made = climb_and_make_private();
    fchdir(&root)?;
    chroot(".")?;
    fchdir(&here)?;
    made
}

/// Does it from the first mount that is at or above the working directory.
fn climb_and_make_private() -> nix::Result<()> {
    loop {
        let made = make_private_from(".");
        if made != Err(Errno::EINVAL) || identity(".")? == identity("..")? {
            return made;
        }
        chdir("..")?;
    }
}

fn make_private_from(place: &str) -> nix::Result<()> {
    const NONE: Option<&str> = None;
    mount(
        NONE,
        place,
        NONE,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        NONE,
    )
}

fn identity(place: &str) -> nix::Result<(u64, u64)> {
    let found = std::fs::metadata(place).map_err(errno)?;
    Ok((found.dev(), found.ino()))
}

fn open(place: &str) -> nix::Result<File> {
    File::open(place).map_err(errno)
}

fn errno(error: std::io::Error) -> Errno {
    error
        .raw_os_error()
        .map_or(Errno::UnknownErrno, Errno::from_raw)
}
