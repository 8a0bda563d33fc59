//! Root: labs make network namespaces and load BPF programs.

use anyhow::{Result, bail};

/// Whether this process runs as root.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Refuses to go on without root.
///
/// # Errors
/// If this is not root; the message is the command that works.
pub(crate) fn require(command: &str) -> Result<()> {
    if !is_root() {
        bail!(
            "`cargo xtask {command}` needs root: it loads BPF programs and makes network namespaces. \
             Run: sudo env \"PATH=$PATH\" \"HOME=$HOME\" cargo xtask {command}"
        );
    }
    Ok(())
}
