//! The program's filter in a clsact qdisc, where the kernel has no TCX links: its marks, and how a process that was killed between two of them is made
//! up for.

use std::{fs, io, os::fd::BorrowedFd};

use super::{
    super::{
        bpf, device,
        error::Error,
        pins::{Pins, Sort},
        tc,
    },
    Hook, Pinned,
};

impl Hook {
    /// The marks come first, so that whatever a killed process leaves is found again.
    pub(super) fn set_filter(
        &self,
        program: BorrowedFd<'_>,
        interface: &str,
        index: u32,
    ) -> Result<(), Error> {
        let failed = |source| Error::AttachLocal {
            interface: interface.to_owned(),
            source,
        };
        let mark = self.pins.of(Sort::Qdisc, interface);
        if !tc::has_qdisc(index).map_err(failed)? {
            self.pins.renew(program, &mark)?;
            if let Err(error) = tc::add_qdisc(index) {
                fs::remove_file(&mark).map_err(Error::file(&mark, "unpinning"))?;
                return Err(failed(error));
            }
        } else if self.qdiscs.contains(&index) && !mark.exists() {
            self.pins.renew(program, &mark)?;
        }
        put_filter(&self.pins, program, interface, index)
    }
}

/// Whether tether's filter is on an interface.
pub(super) fn filter_of(pins: &Pins, interface: &str, index: u32) -> Result<bool, Error> {
    let mark = pins.of(Sort::Filter, interface);
    if !mark.exists() {
        return Ok(false);
    }
    let id =
        bpf::pinned_program(&mark).map_err(Error::file(&mark, "opening the pinned program"))?;
    is_filter_on(index, id).map_err(|source| Error::Device {
        interface: interface.to_owned(),
        doing: "asking for its filters",
        source,
    })
}

pub(super) fn is_filter_on(index: u32, program: u32) -> io::Result<bool> {
    let filters = tc::filters(index, tc::EGRESS)?;
    Ok(filters
        .iter()
        .any(|filter| filter.is_in_place() && filter.program == Some(program)))
}

/// Puts a program into tether's filter on an interface. At whatever moment this process is killed, the program that is in the filter is pinned: as its
/// mark, or aside.
pub(super) fn put_filter(
    pins: &Pins,
    program: BorrowedFd<'_>,
    interface: &str,
    index: u32,
) -> Result<(), Error> {
    settle(pins)?;
    let set = || {
        tc::set_filter(index, program).map_err(|source| Error::AttachLocal {
            interface: interface.to_owned(),
            source,
        })
    };
    let mark = pins.of(Sort::Filter, interface);
    if mark.exists() {
        pins.renew_once(program, &mark, set)
    } else {
        pins.renew(program, &mark)?;
        set()
    }
}

/// Marks the filter whose program a killed process has replaced, and not come to mark.
///
/// # Errors
/// When the kernel cannot be asked, or bpffs refuses.
pub(in super::super) fn settle(pins: &Pins) -> Result<(), Error> {
    let aside = pins.aside();
    // Nothing else has a use for what is there.
    let Ok(program) = bpf::pinned_program(&aside) else {
        return pins.discard_aside();
    };
    let found = unmarked(pins, program).map_err(Error::file(
        &aside,
        "looking for the filter that has this program",
    ))?;
    let Some(interface) = found else {
        return pins.discard_aside();
    };
    let mark = pins.of(Sort::Filter, &interface);
    fs::rename(&aside, &mark).map_err(Error::file(&mark, "pinning the filter's program"))
}

/// An interface whose filter has this program, and no mark of that.
pub(super) fn unmarked(pins: &Pins, program: u32) -> io::Result<Option<String>> {
    for interface in nix::net::if_::if_nameindex()?.iter() {
        let name = interface.name().to_string_lossy();
        // Several may have the same program.
        let is_marked = || bpf::pinned_program(&pins.of(Sort::Filter, &name)).ok() == Some(program);
        if is_filter_on(interface.index(), program)? && !is_marked() {
            return Ok(Some(name.into_owned()));
        }
    }
    Ok(None)
}

impl Pinned {
    /// By its program too, and not by the interface's name alone: another's filter may be in its place by now.
    pub(super) fn remove_filter(&self) -> io::Result<()> {
        let program = bpf::pinned_program(&self.path)?;
        match device::index(&self.interface) {
            Some(index) if is_filter_on(index, program)? => tc::remove_filter(index),
            _ => Ok(()),
        }
    }

    /// Unless somebody else has put filters into it since.
    pub(super) fn remove_qdisc(&self) -> io::Result<()> {
        let Some(index) = device::index(&self.interface) else {
            return Ok(());
        };
        if !tc::has_qdisc(index)? {
            return Ok(());
        }
        let is_empty = tc::filters(index, tc::EGRESS)?.is_empty()
            && tc::filters(index, tc::INGRESS)?.is_empty();
        if is_empty {
            tc::remove_qdisc(index)
        } else {
            tracing::info!(
                interface = self.interface,
                "the clsact qdisc that tether has made stays: others have filters in it"
            );
            Ok(())
        }
    }
}
