//! The decapsulator: one program on the interfaces of a backend, without maps and without a daemon.

use std::{fs, io, os::fd::AsFd, path::Path};

use aya::{Ebpf, programs::Xdp};
use lb_common::maps::DECAP_PROGRAM;

use super::{
    attach::{Attached, attach, discard},
    bpf::Link,
    error::Error,
    pins::Pins,
};
use crate::objects;

/// Attaches the decapsulator to an interface, or atomically replaces the one that is there. Its link is pinned in `bpffs`, which is
/// created if its parent is on a bpffs.
///
/// # Errors
/// When the interface is missing, runs another XDP program or cannot take this one, or the directory is a load balancer's.
pub fn attach_decap(interface: &str, bpffs: &Path) -> Result<Attached, Error> {
    let pins = Pins::open(bpffs)?;
    check_owner(&pins)?;
    let attached = load_and_attach(interface, &pins);
    if attached.is_err() {
        remove_if_empty(pins)?;
    }
    attached
}

fn load_and_attach(interface: &str, pins: &Pins) -> Result<Attached, Error> {
    let mut ebpf = Ebpf::load(objects::DECAP).map_err(|source| Error::Load {
        what: "the decapsulator",
        source: Box::new(source),
    })?;
    let refused = |error| Error::program("the decapsulator", error);
    let program: &mut Xdp = ebpf
        .program_mut(DECAP_PROGRAM)
        .ok_or_else(|| Error::Bpf {
            doing: "loading the decapsulator",
            source: io::Error::new(io::ErrorKind::NotFound, "the object has no such program"),
        })?
        .try_into()
        .map_err(refused)?;
    program.load().map_err(refused)?;
    let fd = program.fd().map_err(refused)?;
    let interfaces = [interface.to_owned()];
    attach(pins, fd.as_fd(), &interfaces)?
        .pop()
        .ok_or_else(|| Error::NoInterface {
            interface: interface.to_owned(),
        })
}

/// Detaches the decapsulator from an interface, and removes `bpffs` with its last link. False if it was not attached.
///
/// # Errors
/// When the kernel refuses, or the directory is a load balancer's.
pub fn detach_decap(interface: &str, bpffs: &Path) -> Result<bool, Error> {
    let Some(pins) = Pins::open_existing(bpffs)? else {
        return Ok(false);
    };
    check_owner(&pins)?;
    let path = pins.link(interface);
    let was_attached = path.exists();
    if was_attached {
        match Link::from_pin(&path) {
            Ok(link) => discard(&link, &path)?,
            Err(_) => fs::remove_file(&path).map_err(Error::file(&path, "unpinning"))?,
        }
    }
    remove_if_empty(pins)?;
    Ok(was_attached)
}

/// Refuses the directory of a load balancer, whose links have the same names. Forwarding goes by them while its daemon is away.
fn check_owner(pins: &Pins) -> Result<(), Error> {
    if pins.has_maps() {
        return Err(Error::Balancer {
            path: pins.directory().to_owned(),
        });
    }
    Ok(())
}

fn remove_if_empty(pins: Pins) -> Result<(), Error> {
    if pins.links()?.is_empty() {
        pins.remove()?;
    }
    Ok(())
}
