//! `cargo xtask test`: every test there is.

use anyhow::Result;

use crate::{cargo, exec, kernels, root, setup, verifier};

/// Runs everything, the quickest to fail first.
///
/// # Errors
/// If this is not root, setup fails, or any test does.
pub(crate) fn run() -> Result<()> {
    root::require("test")?;
    setup::ensure()?;
    verifier::run()?;
    model_check()?;

    let workspace = || {
        let mut command = exec::cargo();
        command.args(["test", "--workspace", "--exclude", "lb-ebpf"]);
        command
    };
    exec::run(workspace().args(["--lib", "--bins"]))?;
    exec::run(workspace().arg("--doc"))?;
    other_version()?;
    // Labs measure time and flood their networks, so they run one after the other; and they come last, being the slowest. Those of
    // guest need a kernel of `cargo xtask kernels`.
    exec::run(workspace().args(["--exclude", "lab-guest"]).args([
        "--test",
        "*",
        "--",
        "--test-threads=1",
    ]))?;
    kernels::smoke()
}

/// Builds the daemon with another version of the layouts, which tests of upgrade and downgrade start; and has its layouts tested.
fn other_version() -> Result<()> {
    exec::run(exec::cargo().args([
        "test",
        "--package",
        "lb-common",
        "--features",
        "user,next-abi",
        "--lib",
    ]))?;
    exec::run(exec::cargo().args([
        "build",
        "--package",
        "lab",
        "--features",
        "next-abi",
        "--bin",
        "tether-of-next-version",
    ]))
}

/// Lets loom try the interleavings of the flow table's protocol. It compiles with a flag of its own, and so into a directory of its
/// own.
fn model_check() -> Result<()> {
    exec::run(
        exec::cargo()
            .args([
                "test",
                "--package",
                "lb-common",
                "--release",
                "--test",
                "loom",
            ])
            .arg("--target-dir")
            .arg(cargo::target_directory()?.join("loom"))
            .env("RUSTFLAGS", "--cfg loom")
            .env_remove("CARGO_ENCODED_RUSTFLAGS"),
    )
}
