//! Builds the BPF objects of `lb-ebpf` and leaves them in `OUT_DIR`, where `src/objects.rs` finds them.
//!
//! `aya-build` does this too, but sets the BPF crate's flags itself and so leaves no way to choose the instruction set; the
//! flow table needs v3 (32-bit jumps, and compare-and-exchange: kernel 5.12).

use std::{env, fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};

/// The object files: the binaries of `lb-ebpf`.
const OBJECTS: [&str; 3] = ["tether", "decap", "bench"];

fn main() -> Result<()> {
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    if arch != "x86_64" {
        bail!(
            "Tether runs on x86_64 only: its flow table relies on that architecture's memory ordering, and this build is for {arch}"
        );
    }
    let workspace = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?)
        .join("..")
        .canonicalize()?;
    for part in ["lb-ebpf", "lb-common"] {
        println!("cargo:rerun-if-changed={}", workspace.join(part).display());
    }

    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    let target_dir = out_dir.join("bpf");
    let rustflags = [
        "--cfg=bpf_target_arch=\"x86_64\"",
        "-Ctarget-cpu=v3",
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
    ]
    .join("\x1f");
    let output = Command::new(env::var("CARGO")?)
        .current_dir(&workspace)
        .args(["build", "--package", "lb-ebpf", "--bins", "--release"])
        .args(["-Z", "build-std=core", "--target", "bpfel-unknown-none"])
        .arg("--target-dir")
        .arg(&target_dir)
        .args(env::var_os("CARGO_FEATURE_LOG").map(|_| "--features=log"))
        .args(env::var_os("CARGO_FEATURE_NEXT_ABI").map(|_| "--features=next-abi"))
        // The BPF target has no prebuilt `core`: it is built from rust-src, which takes an unstable flag. A stable toolchain
        // accepts that flag only with this variable, and it is set for this build alone, since other crates change with it.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags)
        // Code that is compiled in increments is inlined otherwise, and the verifier refuses it.
        .env("CARGO_INCREMENTAL", "0")
        .env_remove("RUSTC")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .output()
        .context("cargo could not be started for the BPF build")?;
    if !output.status.success() {
        bail!(
            "the BPF build failed ({}); `cargo xtask setup` installs what it needs (rust-src, LLVM, bpf-linker)\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    for line in String::from_utf8_lossy(&output.stderr)
        .lines()
        .filter(|line| line.starts_with("warning"))
    {
        println!("cargo:warning={line}");
    }
    for object in OBJECTS {
        let built = target_dir.join("bpfel-unknown-none/release").join(object);
        fs::copy(&built, out_dir.join(object))
            .with_context(|| format!("copying {}", built.display()))?;
    }
    Ok(())
}
