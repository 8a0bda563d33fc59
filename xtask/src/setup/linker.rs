//! bpf-linker and the LLVM it is built against.
//!
//! bpf-linker reads the bitcode that rustc writes, and LLVM reads the bitcode of its own and of older versions only. So the linker's
//! LLVM must be at least as new as rustc's.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result};
use object::{
    Endianness,
    elf::{self, FileHeader64},
    read::elf::FileHeader,
};

use crate::exec;

/// The release that is installed: what this repository is tested with.
const RELEASE: &str = "0.13.0";
/// The newest LLVM that [`RELEASE`] can be built against.
const RELEASE_NEWEST_LLVM: u32 = 23;

/// An LLVM that bpf-linker can be built against: with headers and the shared library's development link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Llvm {
    /// Major version.
    pub(crate) major: u32,
    /// Where it is installed: what bpf-linker's build calls `LLVM_PREFIX`.
    pub(crate) prefix: PathBuf,
}

impl Llvm {
    /// Where Debian's package of this version puts it.
    pub(crate) fn of_debian(major: u32) -> Self {
        Self {
            major,
            prefix: format!("/usr/lib/llvm-{major}").into(),
        }
    }

    /// Every LLVM found on this machine.
    pub(crate) fn installed() -> Vec<Self> {
        let named = env::var_os("LLVM_PREFIX").map(PathBuf::from);
        let debian = fs::read_dir("/usr/lib")
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path());
        let debian = debian.filter(|path| {
            path.file_name()
                .and_then(OsStr::to_str)
                .is_some_and(|name| name.starts_with("llvm-"))
        });
        let on_path = exec::find("llvm-config")
            .and_then(|config| fs::canonicalize(config).ok())
            .and_then(|config| Some(config.parent()?.parent()?.to_path_buf()));
        named
            .into_iter()
            .chain(debian)
            .chain(on_path)
            .filter_map(Self::at)
            .collect()
    }

    /// The LLVM below `prefix`, if what a build needs is there.
    fn at(prefix: PathBuf) -> Option<Self> {
        let link = ["lib", "lib64"].map(|lib| prefix.join(lib).join("libLLVM.so"));
        let library = link.iter().find_map(|link| fs::canonicalize(link).ok())?;
        let major = library_version(library.file_name()?.to_str()?)?;
        Some(Self { major, prefix })
    }
}

/// The smallest version that reads the bitcode of a compiler with LLVM `rustc`: the nearest to the compiler's own is the best tested
/// with it.
pub(crate) fn choose<T>(rustc: u32, available: Vec<T>, major: impl Fn(&T) -> u32) -> Option<T> {
    available
        .into_iter()
        .filter(|llvm| major(llvm) >= rustc)
        .min_by_key(&major)
}

/// The major version in a library's name: 22 of `libLLVM.so.22.1`, `libLLVM-22.so.1` and `libLLVM-22.so`.
fn library_version(name: &str) -> Option<u32> {
    let rest = name.strip_prefix("libLLVM")?;
    let rest = rest
        .strip_prefix(".so.")
        .or_else(|| rest.strip_prefix('-'))?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// Why the bpf-linker of this machine does not serve a compiler with LLVM `rustc`; none if it does.
pub(crate) fn problem(rustc: u32) -> Option<String> {
    let Some(path) = exec::find("bpf-linker") else {
        return Some("bpf-linker".to_owned());
    };
    let place = path.display();
    match needed_llvm(&path) {
        Err(error) => {
            return Some(format!(
                "a bpf-linker that can be read ({place}: {error:#})"
            ));
        }
        Ok(Some(llvm)) if llvm < rustc => {
            return Some(format!(
                "a bpf-linker of LLVM {rustc} or newer, as rustc's own is {rustc} ({place} is of LLVM {llvm})"
            ));
        }
        // One without the shared library carries its LLVM inside and was not installed by this command; whoever chose it knows.
        Ok(_) => {}
    }
    let starts = exec::command(&path)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match starts {
        Ok(status) if status.success() => None,
        _ => Some(format!(
            "a bpf-linker that starts ({place} does not: its LLVM may be gone)"
        )),
    }
}

/// Major version of the shared LLVM that a program names among the libraries it needs, if it names one.
fn needed_llvm(program: &Path) -> Result<Option<u32>> {
    let data = fs::read(program)?;
    let data = data.as_slice();
    let header = FileHeader64::<Endianness>::parse(data).context("not a 64-bit ELF file")?;
    let endian = header.endian()?;
    let libraries = header.sections(endian, data)?.dynamic_table(endian, data)?;
    for entry in libraries.iter() {
        if entry.tag != elf::DT_NEEDED {
            continue;
        }
        let name = std::str::from_utf8(libraries.string(entry)?)?;
        if let Some(major) = library_version(name) {
            return Ok(Some(major));
        }
    }
    Ok(None)
}

/// The cargo arguments that install bpf-linker for `llvm`.
pub(crate) fn install_arguments(llvm: u32) -> Vec<String> {
    let mut arguments = vec!["install".to_owned(), "bpf-linker".to_owned()];
    if llvm <= RELEASE_NEWEST_LLVM {
        arguments.push(format!("--version={RELEASE}"));
    }
    let rest = ["--locked", "--force", "--no-default-features"].map(str::to_owned);
    arguments.extend(rest);
    arguments.push(format!("--features=llvm-{llvm}"));
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(rustc: u32, available: &[u32]) -> Option<u32> {
        choose(rustc, available.to_vec(), |major| *major)
    }

    #[test]
    fn the_smallest_llvm_that_reads_rustcs_bitcode_is_chosen() {
        assert_eq!(chosen(22, &[13, 19, 24, 22, 23]), Some(22));
        assert_eq!(chosen(22, &[24, 23]), Some(23));
    }

    #[test]
    fn an_older_llvm_is_never_chosen() {
        assert_eq!(chosen(22, &[13, 14, 19, 21]), None);
        assert_eq!(chosen(22, &[]), None);
    }

    #[test]
    fn library_names_tell_their_version() {
        for name in ["libLLVM.so.22.1", "libLLVM-22.so.1", "libLLVM-22.so"] {
            assert_eq!(library_version(name), Some(22), "{name}");
        }
        for name in ["libLLVM.so", "libLLVMCore.a", "libLTO.so.22.1", "libc.so.6"] {
            assert_eq!(library_version(name), None, "{name}");
        }
    }

    #[test]
    fn the_tested_release_is_installed_unless_llvm_is_too_new_for_it() {
        let tested = install_arguments(22).join(" ");
        assert_eq!(
            tested,
            "install bpf-linker --version=0.13.0 --locked --force --no-default-features --features=llvm-22"
        );
        let newest = install_arguments(24).join(" ");
        assert_eq!(
            newest,
            "install bpf-linker --locked --force --no-default-features --features=llvm-24"
        );
    }

    #[test]
    fn a_program_without_llvm_needs_none() {
        let own = env::current_exe().expect("a test has an executable");
        assert_eq!(needed_llvm(&own).expect("an ELF file"), None);
    }
}
