//! `cargo xtask ci`: what must hold before the tests are worth running.

use anyhow::Result;

use crate::{cargo, exec, setup};

/// Checks format and lints.
///
/// # Errors
/// If setup fails, or anything is not formatted, or there is a warning.
pub(crate) fn run() -> Result<()> {
    setup::ensure()?;
    exec::run(exec::cargo().args(["fmt", "--all", "--check"]))?;
    let lints = ["--", "-D", "warnings"];
    exec::run(
        exec::cargo()
            .args([
                "clippy",
                "--workspace",
                "--all-targets",
                "--exclude",
                "lb-ebpf",
            ])
            .args(lints),
    )?;
    // The BPF crate compiles for its own target only, as the build script of lb-userspace does it. A directory of its own keeps
    // these settings from making the other builds start again.
    exec::run(
        exec::cargo()
            .args([
                "clippy",
                "--package",
                "lb-ebpf",
                "--lib",
                "--bins",
                "--release",
            ])
            .args(["-Z", "build-std=core", "--target", "bpfel-unknown-none"])
            .arg("--target-dir")
            .arg(cargo::target_directory()?.join("clippy-bpf"))
            .env("RUSTC_BOOTSTRAP", "1")
            .env(
                "RUSTFLAGS",
                "--cfg=bpf_target_arch=\"x86_64\" -Ctarget-cpu=v3",
            )
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .args(lints),
    )
}
