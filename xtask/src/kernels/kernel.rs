//! Debian's kernels: an image to boot, and of the modules those that a network lab may ask for.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::{
    apt::{Apt, Suite},
    cache::Cache,
    cpio::Archive,
    emulator::Emulator,
};
use crate::exec;

/// The package that names the newest kernel of its suite.
const PACKAGE: &str = "linux-image-amd64";
/// How the names of the packages that a kernel consists of start.
const PARTS: &str = "linux-";
/// Names in a kernel's directory in the cache.
const IMAGE: &str = "vmlinuz";
const MODULES: &str = "modules.cpio";

/// Modules that guests may load, by the kernel or by name: files and directories below a kernel's module directory. One that
/// a kernel does not have is built into it, or not known to it yet or any more.
const WANTED: [&str; 37] = [
    "kernel/arch/x86/crypto",
    "kernel/crypto",
    "kernel/drivers/net/bonding",
    "kernel/drivers/net/dummy.ko",
    "kernel/drivers/net/geneve.ko",
    "kernel/drivers/net/ifb.ko",
    "kernel/drivers/net/ipvlan",
    "kernel/drivers/net/macvlan.ko",
    "kernel/drivers/net/net_failover.ko",
    "kernel/drivers/net/nlmon.ko",
    "kernel/drivers/net/tun.ko",
    "kernel/drivers/net/veth.ko",
    "kernel/drivers/net/virtio_net.ko",
    "kernel/drivers/net/vrf.ko",
    "kernel/drivers/net/vxlan",
    "kernel/drivers/virtio",
    "kernel/fs/nls",
    "kernel/lib",
    "kernel/net/802",
    "kernel/net/8021q",
    "kernel/net/bridge",
    "kernel/net/core",
    "kernel/net/ipv4",
    "kernel/net/ipv6",
    "kernel/net/key",
    "kernel/net/l2tp",
    "kernel/net/llc",
    "kernel/net/mpls",
    "kernel/net/netfilter",
    "kernel/net/netlink",
    "kernel/net/nsh",
    "kernel/net/packet",
    "kernel/net/psample",
    "kernel/net/sched",
    "kernel/net/tls",
    "kernel/net/unix",
    "kernel/net/xfrm",
];

/// A kernel that guests are booted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kernel {
    /// Debian 12's: the oldest that Tether is meant for
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13's, as backported to Debian 12
    #[value(name = "6.12")]
    V6_12,
    /// The newest that Debian has
    Newest,
}

impl Kernel {
    /// The name it is asked for by.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::Newest => "newest",
        }
    }

    fn suites(self) -> &'static [Suite] {
        match self {
            Self::V6_1 => &[
                ("debian", "bookworm"),
                ("debian-security", "bookworm-security"),
            ],
            Self::V6_12 => &[("debian", "bookworm-backports")],
            Self::Newest => &[("debian", "sid")],
        }
    }

    /// Fetches it, unless it is there.
    ///
    /// # Errors
    /// If it cannot be had, or is not what was asked for.
    pub(crate) fn provide(self, cache: &Cache, emulator: &Emulator) -> Result<Bootable> {
        let directory = cache.provide(
            self.name(),
            |directory| {
                let apt = Apt::with_lists(directory, self.suites())?;
                let (version, packages) = apt.resolve(PACKAGE, PARTS)?;
                if self != Self::Newest && !version.starts_with(&format!("{}.", self.name())) {
                    bail!("{PACKAGE} is at version {version} by now");
                }
                Ok((version, (apt, packages)))
            },
            |(apt, packages), content| {
                let root = content.with_file_name("root");
                apt.unpack(&packages, false, &root)?;
                extract(&root, content, emulator)
            },
        )?;
        Ok(Bootable {
            image: directory.join(IMAGE),
            modules: directory.join(MODULES),
        })
    }
}

/// A kernel on this machine.
pub(crate) struct Bootable {
    /// What a boot loader takes.
    pub(crate) image: PathBuf,
    /// An archive of its modules with their index.
    pub(crate) modules: PathBuf,
}

/// Takes the image and the modules that are wanted out of unpacked packages.
fn extract(root: &Path, content: &Path, emulator: &Emulator) -> Result<()> {
    let parents = ["lib/modules", "usr/lib/modules"].map(|parent| root.join(parent));
    let entry = parents
        .iter()
        .filter_map(|parent| fs::read_dir(parent).ok()?.next())
        .next()
        .context("there are no modules in the kernel's packages")??;
    let (source, release) = (entry.path(), entry.file_name());
    let release = release.to_string_lossy();

    let images = [
        source.join(IMAGE),
        root.join(format!("boot/{IMAGE}-{release}")),
    ];
    let image = images.iter().find(|image| image.exists());
    let image = image.context("there is no image in the kernel's packages")?;
    fs::copy(image, content.join(IMAGE)).with_context(|| image.display().to_string())?;

    // As the index wants it: below lib/modules of a root of its own.
    let root = content.with_file_name("chosen");
    let chosen = root.join("lib/modules").join(&*release);
    let mut compressed = vec![];
    for wanted in WANTED {
        choose(&source, wanted, &chosen, &mut compressed)?;
    }
    for index in [
        "modules.order",
        "modules.builtin",
        "modules.builtin.modinfo",
    ] {
        fs::copy(source.join(index), chosen.join(index)).context(index)?;
    }
    if !compressed.is_empty() {
        exec::run_aside(
            exec::command(emulator.busybox())
                .arg("unxz")
                .args(&compressed),
        )?;
    }
    exec::run_aside(
        exec::command(emulator.busybox())
            .args(["depmod", "-b"])
            .arg(&root)
            .arg(&*release),
    )?;
    let mut archive = Archive::append_to(File::create(content.join(MODULES))?)?;
    archive.tree(&format!("usr/lib/modules/{release}"), &chosen)?;
    archive.finish()
}

/// Copies a module, or all of a directory, and notes which are compressed.
fn choose(source: &Path, wanted: &str, chosen: &Path, compressed: &mut Vec<PathBuf>) -> Result<()> {
    let from = source.join(wanted);
    if from.is_dir() {
        for entry in fs::read_dir(&from)? {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            choose(source, &format!("{wanted}/{name}"), chosen, compressed)?;
        }
        return Ok(());
    }
    let packed = format!("{wanted}.xz");
    for name in [wanted, &packed] {
        let from = source.join(name);
        if !from.exists() {
            continue;
        }
        let to = chosen.join(name);
        let parent = to.parent().context("a module is in a directory")?;
        fs::create_dir_all(parent)?;
        fs::copy(&from, &to).with_context(|| from.display().to_string())?;
        if name.ends_with(".xz") {
            compressed.push(to);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_directories_are_chosen_and_absent_ones_are_not() -> Result<()> {
        let work = std::env::temp_dir().join(format!("xtask-kernel-{}", std::process::id()));
        let source = work.join("source");
        for name in ["a/x.ko", "a/b/y.ko.xz", "c/z.ko.xz", "d/no.ko"] {
            let path = source.join(name);
            fs::create_dir_all(path.parent().context("a parent")?)?;
            fs::write(path, name)?;
        }
        let chosen = work.join("chosen");
        let mut compressed = vec![];
        for wanted in ["a", "c/z.ko", "e"] {
            choose(&source, wanted, &chosen, &mut compressed)?;
        }
        compressed.sort();
        let expected = ["a/b/y.ko.xz", "c/z.ko.xz"].map(|name| chosen.join(name));
        assert_eq!(compressed, expected);
        assert!(chosen.join("a/x.ko").exists());
        assert!(!chosen.join("d").exists());
        Ok(fs::remove_dir_all(work)?)
    }
}
