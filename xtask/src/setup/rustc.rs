//! The Rust compiler in use: which it is, and which of its components are there.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::exec;

/// A component that a build or a check needs, and the file of the toolchain that tells whether it is there.
const COMPONENTS: [(&str, &str); 3] = [
    ("rust-src", "lib/rustlib/src/rust/library/core/Cargo.toml"),
    ("rustfmt", "bin/cargo-fmt"),
    ("clippy", "bin/cargo-clippy"),
];

/// What `rustc -vV` says, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Version {
    /// Release, as `1.95.0` or `1.97.0-nightly`.
    pub(crate) release: String,
    /// The platform it runs on and builds for, as `x86_64-unknown-linux-gnu`.
    pub(crate) host: String,
    /// Major version of its LLVM: a linker of its bitcode must be at least as new.
    pub(crate) llvm: u32,
}

impl Version {
    fn parse(text: &str) -> Result<Self> {
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .with_context(|| format!("no line `{name}: …`"))
        };
        let llvm = field("LLVM version")?;
        let major = llvm.split('.').next().unwrap_or_default();
        Ok(Self {
            release: field("release")?.to_owned(),
            host: field("host")?.to_owned(),
            llvm: major
                .parse()
                .with_context(|| format!("LLVM version: {llvm}"))?,
        })
    }
}

/// The Rust toolchain that builds use.
pub(crate) struct Toolchain {
    pub(crate) version: Version,
    sysroot: PathBuf,
}

impl Toolchain {
    /// Asks the compiler.
    ///
    /// # Errors
    /// If it cannot be run, or its answer is not understood, or it builds for an architecture that Tether does not run on.
    pub(crate) fn find() -> Result<Self> {
        let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let ask = |argument| exec::output(exec::command(&rustc).arg(argument));
        let text = ask("-vV")?;
        let version = Version::parse(&text).with_context(|| format!("rustc -vV said:\n{text}"))?;
        if !version.host.starts_with("x86_64-") {
            bail!(
                "Tether runs on x86_64 only: its flow table relies on that architecture's memory ordering, and this Rust is for {}",
                version.host
            );
        }
        let sysroot = ask("--print=sysroot")?.trim_end().into();
        Ok(Self { version, sysroot })
    }

    /// The rustup components that this toolchain lacks.
    pub(crate) fn missing_components(&self) -> Vec<&'static str> {
        COMPONENTS
            .into_iter()
            .filter(|(_, file)| !self.has(Path::new(file)))
            .map(|(component, _)| component)
            .collect()
    }

    /// Where a library is that the toolchain has of its own for a target, so that the machine's need not be there.
    pub(crate) fn own_library(&self, target: &str, name: &str) -> PathBuf {
        let libraries = self.sysroot.join("lib/rustlib").join(target).join("lib");
        libraries.join("self-contained").join(name)
    }

    /// Whether the toolchain has the file. Distributions put programs beside the sysroot's `bin`; with rustup, what is on the search
    /// path are stand-ins that are there even when the component is not.
    fn has(&self, file: &Path) -> bool {
        if self.sysroot.join(file).is_file() {
            return true;
        }
        let program = file.strip_prefix("bin").ok().and_then(Path::to_str);
        exec::find("rustup").is_none() && program.is_some_and(|name| exec::find(name).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STABLE: &str = "/home/user/.rustup/toolchains/stable
rustc 1.95.0 (59807616e 2026-04-14)
binary: rustc
commit-hash: 59807616e1fa2540724bfbac14d7976d7e4a3860
commit-date: 2026-04-14
host: x86_64-unknown-linux-gnu
release: 1.95.0
LLVM version: 22.1.2
";

    #[test]
    fn the_compilers_llvm_and_host_are_read() {
        let version = Version::parse(STABLE).expect("rustc's own format");
        let expected = Version {
            release: "1.95.0".into(),
            host: "x86_64-unknown-linux-gnu".into(),
            llvm: 22,
        };
        assert_eq!(version, expected);
    }

    #[test]
    fn an_answer_without_llvm_is_refused() {
        let text = STABLE.replace("LLVM version", "Cranelift version");
        let error = Version::parse(&text).expect_err("no LLVM");
        assert_eq!(error.to_string(), "no line `LLVM version: …`");
    }

    #[test]
    fn an_llvm_version_that_is_no_number_is_shown() {
        let error = Version::parse(&STABLE.replace("22.1.2", "trunk")).expect_err("no number");
        assert_eq!(error.to_string(), "LLVM version: trunk");
    }
}
