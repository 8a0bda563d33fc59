//! Pins of interfaces that were renamed: each gets the name that its interface has by now.

use std::path::{Path, PathBuf};

use super::{
    super::{
        bpf, device,
        error::Error,
        pins::{Pins, Rename, Sort, rename},
    },
    Whereabouts,
    filter::{is_filter_on, unmarked},
    open_sound, whereabouts,
};

/// Of links.
///
/// # Errors
/// When the kernel cannot be asked, or bpffs refuses.
pub(super) fn follow_links(pins: &Pins) -> Result<(), Error> {
    let mut links: Vec<(String, PathBuf)> = Vec::new();
    for (interface, path) in pins.all_of(Sort::Local)? {
        links.extend(name_by_now(&interface, &path)?.map(|name| (name, path)));
    }
    for at in 0..links.len() {
        let (name, path) = links[at].clone();
        let wanted = pins.of(Sort::Local, &name);
        if path == wanted {
            continue;
        }
        give_name(&path, &wanted)?;
        for (_, other) in &mut links {
            if *other == wanted {
                other.clone_from(&path);
            }
        }
        links[at].1 = wanted;
    }
    Ok(())
}

/// Of the marks of filters, and those of their qdiscs.
///
/// # Errors
/// When the kernel cannot be asked, or bpffs refuses.
pub(super) fn follow_filters(pins: &Pins) -> Result<(), Error> {
    for (interface, mark) in pins.all_of(Sort::Filter)? {
        // What is no program is on no interface.
        let Ok(program) = bpf::pinned_program(&mark) else {
            continue;
        };
        let failed = |source| Error::Device {
            interface: interface.clone(),
            doing: "looking for its filter",
            source,
        };
        let is_there = match device::index(&interface) {
            Some(index) => is_filter_on(index, program).map_err(failed)?,
            None => false,
        };
        if is_there {
            continue;
        }
        let Some(name) = unmarked(pins, program).map_err(failed)? else {
            continue;
        };
        // By the filter's mark it is known that something is left to do: so that one last.
        for sort in [Sort::Qdisc, Sort::Filter] {
            let from = pins.of(sort, &interface);
            if from.exists() {
                give_name(&from, &pins.of(sort, &name))?;
            }
        }
    }
    Ok(())
}

/// The name of the interface that a link is attached to which is pinned for `interface`; none if it is attached to none of this network namespace.
fn name_by_now(interface: &str, path: &Path) -> Result<Option<String>, Error> {
    let Some(link) = open_sound(path)? else {
        return Ok(None);
    };
    let Whereabouts::Here(index) = whereabouts(&link, interface)? else {
        return Ok(None);
    };
    let name = nix::net::if_::if_indextoname(index).ok();
    Ok(name.map(|name| name.to_string_lossy().into_owned()))
}

/// Exchanges the two, and replaces none: the other pin may be that of an interface which has another name itself.
fn give_name(from: &Path, to: &Path) -> Result<(), Error> {
    let how = if to.exists() {
        Rename::Exchange
    } else {
        Rename::Refuse
    };
    rename(from, to, how).map_err(Error::file(from, "giving the pin its interface's new name"))
}
