//! What building and testing need and this machine lacks. Looks and changes nothing.

use std::{fmt, fs};

use anyhow::{Context, Result};

use super::{linker, rustc::Toolchain};
use crate::exec;

/// A program, the Debian packages that bring it, and what it is for.
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    pub(crate) packages: &'static [&'static str],
    pub(crate) purpose: &'static str,
}

static TOOLS: [Tool; 7] = [
    Tool {
        program: "cc",
        packages: &["gcc", "libc6-dev"],
        purpose: "links Rust programs",
    },
    Tool {
        program: "ip",
        packages: &["iproute2"],
        purpose: "builds the labs' networks",
    },
    Tool {
        program: "ethtool",
        packages: &["ethtool"],
        purpose: "sets the labs' checksum offload",
    },
    Tool {
        program: "nft",
        packages: &["nftables"],
        purpose: "silences links in the labs",
    },
    Tool {
        program: "tcpdump",
        packages: &["tcpdump"],
        purpose: "captures frames in the labs",
    },
    Tool {
        program: "chromium",
        packages: &["chromium"],
        purpose: "opens the status page in its tests",
    },
    Tool {
        program: "promtool",
        packages: &["prometheus"],
        purpose: "tests the alert rules",
    },
];

/// What `cargo xtask release` takes beside that.
pub(crate) static RELEASE: &[Tool] = &[
    Tool {
        program: "musl-gcc",
        packages: &["musl-tools"],
        purpose: "compiles what little C is in the static binary",
    },
    Tool {
        program: "strip",
        packages: &["binutils"],
        purpose: "takes symbols off the binary",
    },
    Tool {
        program: "dpkg-deb",
        packages: &["dpkg"],
        purpose: "builds the package",
    },
];

/// What `cargo xtask release --test` takes beside that.
pub(crate) static PACKAGES: &[Tool] = &[
    Tool {
        program: "podman",
        packages: &["podman"],
        purpose: "runs the image",
    },
    Tool {
        program: "runc",
        packages: &["runc"],
        purpose: "runs the image",
    },
    Tool {
        program: "kubectl",
        packages: &["kubernetes-client"],
        purpose: "builds the manifests",
    },
    Tool {
        program: "python3",
        packages: &["python3-venv"],
        purpose: "holds the manifests to their schemas",
    },
    Tool {
        program: "systemd-analyze",
        packages: &["systemd"],
        purpose: "checks the unit",
    },
];

/// What `cargo xtask examples` takes.
pub(crate) static EXAMPLES: &[Tool] = &[Tool {
    program: "npm",
    packages: &["npm"],
    purpose: "fetches and runs Socket.IO",
}];

/// Of `tools`, those that are missing.
pub(crate) fn missing_of(tools: &'static [Tool]) -> Vec<&'static Tool> {
    tools
        .iter()
        .filter(|tool| exec::find(tool.program).is_none())
        .collect()
}

/// A filesystem that labs need: its type and its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) kind: &'static str,
    pub(crate) target: &'static str,
}

/// In the order in which they must be mounted.
const MOUNTS: [Mount; 2] = [
    Mount {
        kind: "sysfs",
        target: "/sys",
    },
    Mount {
        kind: "bpf",
        target: "/sys/fs/bpf",
    },
];

/// What is missing.
pub(crate) struct Missing {
    /// Components of the Rust toolchain, as rustup names them.
    pub(crate) components: Vec<&'static str>,
    /// Programs.
    pub(crate) tools: Vec<&'static Tool>,
    /// What is wrong with bpf-linker, if anything.
    pub(crate) linker: Option<String>,
    /// Filesystems, in the order of mounting.
    pub(crate) mounts: Vec<Mount>,
}

impl Missing {
    /// Looks for everything.
    ///
    /// # Errors
    /// If the Rust compiler cannot be asked, or it is for another architecture.
    pub(crate) fn on_this_machine(toolchain: &Toolchain) -> Result<Self> {
        let mounts = "/proc/self/mounts";
        let mounted = fs::read_to_string(mounts).with_context(|| {
            format!("reading {mounts} (mount -t proc proc /proc, if it is not)")
        })?;
        Ok(Self {
            components: toolchain.missing_components(),
            tools: missing_of(&TOOLS),
            linker: linker::problem(toolchain.version.llvm),
            mounts: not_mounted(&mounted),
        })
    }

    /// Nothing missing.
    #[cfg(test)]
    pub(crate) fn nothing() -> Self {
        Self {
            components: Vec::new(),
            tools: Vec::new(),
            linker: None,
            mounts: Vec::new(),
        }
    }

    /// Whether nothing is.
    pub(crate) fn is_empty(&self) -> bool {
        self.components.is_empty()
            && self.tools.is_empty()
            && self.linker.is_none()
            && self.mounts.is_empty()
    }

    /// The Debian packages of the programs that are missing.
    pub(crate) fn packages(&self) -> Vec<String> {
        self.tools
            .iter()
            .flat_map(|tool| tool.packages)
            .map(|package| (*package).to_owned())
            .collect()
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for component in &self.components {
            writeln!(f, "  {component}: component of the Rust toolchain")?;
        }
        for tool in &self.tools {
            writeln!(f, "  {}: {}", tool.program, tool.purpose)?;
        }
        if let Some(problem) = &self.linker {
            writeln!(f, "  {problem}: links BPF programs")?;
        }
        for mount in &self.mounts {
            writeln!(f, "  {} at {}: not mounted", mount.kind, mount.target)?;
        }
        Ok(())
    }
}

/// Of [`MOUNTS`], those that the text of `/proc/self/mounts` does not show.
fn not_mounted(mounts: &str) -> Vec<Mount> {
    let is_mounted = |mount: &Mount| {
        mounts.lines().any(|line| {
            let mut fields = line.split(' ').skip(1);
            fields.next() == Some(mount.target) && fields.next() == Some(mount.kind)
        })
    };
    MOUNTS
        .into_iter()
        .filter(|mount| !is_mounted(mount))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYS: &str = "sysfs /sys sysfs rw,nosuid 0 0\n";
    const BPF: &str = "none /sys/fs/bpf bpf rw 0 0\n";

    fn targets(mounts: &str) -> Vec<&'static str> {
        not_mounted(mounts)
            .into_iter()
            .map(|mount| mount.target)
            .collect()
    }

    #[test]
    fn nothing_is_mounted_twice() {
        assert_eq!(targets(&[SYS, BPF].concat()), Vec::<&str>::new());
        assert_eq!(targets(SYS), ["/sys/fs/bpf"]);
    }

    #[test]
    fn parents_come_before_children() {
        assert_eq!(targets(""), ["/sys", "/sys/fs/bpf"]);
    }

    #[test]
    fn another_filesystem_in_the_place_does_not_count() {
        let bound = "tmpfs /sys/fs/bpf tmpfs rw 0 0\n";
        assert_eq!(targets(&[SYS, bound].concat()), ["/sys/fs/bpf"]);
    }
}
