//! `cargo xtask setup`: finds what building and testing need and this machine lacks, says what it will do, and does it.
//!
//! On Debian and its kin, as root, that is everything. Elsewhere it prints the commands to run.

mod apt;
mod linker;
mod missing;
mod plan;
mod rustc;

use std::process::ExitCode;

use anyhow::{Result, bail};

use self::{
    linker::Llvm,
    missing::{Missing, Tool},
    plan::Step,
};
pub(crate) use self::{
    missing::{EXAMPLES, PACKAGES, RELEASE},
    rustc::Toolchain,
};
use crate::{exec, root};

/// The command. With `check` it only reports.
///
/// # Errors
/// If something is missing and cannot be installed; the message is the remedy.
pub(crate) fn run(check: bool) -> Result<ExitCode> {
    let toolchain = Toolchain::find()?;
    let missing = Missing::on_this_machine(&toolchain)?;
    if missing.is_empty() {
        let version = &toolchain.version;
        eprintln!(
            "setup: nothing is missing (Rust {}, LLVM {})",
            version.release, version.llvm
        );
        return Ok(ExitCode::SUCCESS);
    }
    eprint!("setup: missing on this machine:\n{missing}");
    if check {
        eprintln!("setup: `cargo xtask setup` installs it");
        return Ok(ExitCode::FAILURE);
    }
    install(&toolchain, &missing)?;
    Ok(ExitCode::SUCCESS)
}

/// Sets up what is missing before another command goes on; says nothing if nothing is.
///
/// # Errors
/// As [`run`].
pub(crate) fn ensure() -> Result<()> {
    let toolchain = Toolchain::find()?;
    let missing = Missing::on_this_machine(&toolchain)?;
    if missing.is_empty() {
        return Ok(());
    }
    eprint!("setup: missing on this machine:\n{missing}");
    install(&toolchain, &missing)
}

/// Installs what one command takes beside that; says nothing if nothing is missing.
///
/// # Errors
/// If it is missing and cannot be installed; the message is the remedy.
pub(crate) fn ensure_tools(tools: &'static [Tool]) -> Result<()> {
    let missing = missing::missing_of(tools);
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("setup: missing on this machine:");
    for tool in &missing {
        eprintln!("  {}: {}", tool.program, tool.purpose);
    }
    let packages = missing.iter().flat_map(|tool| tool.packages);
    let packages: Vec<String> = packages.map(|&package| package.to_owned()).collect();
    if !apt::is_there() || !root::is_root() {
        bail!(
            "install what Debian calls {}, as root: apt-get install {}",
            packages.join(", "),
            packages.join(" ")
        );
    }
    announce_and_perform(vec![
        Step::run_as_root(apt::update()),
        Step::run_as_root(apt::install(&packages)),
    ])
}

fn install(toolchain: &Toolchain, missing: &Missing) -> Result<()> {
    let rustc_llvm = toolchain.version.llvm;
    if !missing.components.is_empty() && exec::find("rustup").is_none() {
        bail!(
            "the Rust toolchain lacks {} and there is no rustup to add it: \
             install Rust with rustup (https://rustup.rs), or your distribution's packages of the same, and run this again",
            missing.components.join(", ")
        );
    }
    let llvm = linker::choose(rustc_llvm, Llvm::installed(), |llvm| llvm.major);
    if !apt::is_there() {
        without_apt(toolchain, missing, llvm)
    } else if root::is_root() {
        with_apt(toolchain, missing, llvm)
    } else {
        as_user(toolchain, missing, llvm)
    }
}

/// Installs with apt, as root. `llvm` is the one on this machine, if any serves.
fn with_apt(toolchain: &Toolchain, missing: &Missing, llvm: Option<Llvm>) -> Result<()> {
    let lacks_llvm = missing.linker.is_some() && llvm.is_none();
    if !lacks_llvm && apt::not_installed(&plan::packages(missing, None)).is_empty() {
        return finish(toolchain, plan::steps(missing, &[], llvm.as_ref()));
    }
    announce_and_perform(vec![Step::run_as_root(apt::update())])?;
    // Which LLVM there is to be had shows only in fresh lists.
    let (llvm, added) = if lacks_llvm {
        let major = llvm_from_apt(toolchain.version.llvm)?;
        (Some(Llvm::of_debian(major)), Some(major))
    } else {
        (llvm, None)
    };
    let packages = apt::not_installed(&plan::packages(missing, added));
    finish(toolchain, plan::steps(missing, &packages, llvm.as_ref()))
}

/// Does what an ordinary user can do where that is all; else prints the commands that root must run.
fn as_user(toolchain: &Toolchain, missing: &Missing, llvm: Option<Llvm>) -> Result<()> {
    let rustc_llvm = toolchain.version.llvm;
    let lacks_llvm = missing.linker.is_some() && llvm.is_none();
    let offered = if lacks_llvm {
        llvm_in_apt(rustc_llvm)?
    } else {
        None
    };
    let added = lacks_llvm.then(|| offered.unwrap_or(rustc_llvm));
    let packages = apt::not_installed(&plan::packages(missing, added));
    let llvm = llvm.or(added.map(Llvm::of_debian));
    let mut steps = plan::steps(missing, &packages, llvm.as_ref());
    if steps.iter().all(|step| !step.as_root) {
        return finish(toolchain, steps);
    }
    if !packages.is_empty() {
        steps.insert(0, Step::run_as_root(apt::update()));
    }
    if lacks_llvm && offered.is_none() {
        steps.splice(0..0, apt::add_security_suite());
    }
    let lines: Vec<_> = steps.iter().map(Step::remedy).collect();
    bail!("installing this takes root. Run:\n  {}", lines.join("\n  "));
}

/// Does the last steps and looks whether they sufficed.
fn finish(toolchain: &Toolchain, steps: Vec<Step>) -> Result<()> {
    announce_and_perform(steps)?;
    let missing = Missing::on_this_machine(toolchain)?;
    if !missing.is_empty() {
        bail!("every step of setup succeeded, and yet this is missing:\n{missing}");
    }
    eprintln!("setup: done");
    Ok(())
}

/// Says what will be done, then does it.
fn announce_and_perform(mut steps: Vec<Step>) -> Result<()> {
    eprintln!("setup: will now do:");
    for step in &steps {
        eprintln!("  {}", step.show());
    }
    steps.iter_mut().try_for_each(Step::perform)
}

/// The version of LLVM to install, as far as apt's lists have one.
fn llvm_in_apt(rustc_llvm: u32) -> Result<Option<u32>> {
    Ok(linker::choose(rustc_llvm, apt::llvm_versions()?, |major| {
        *major
    }))
}

/// The version of LLVM to install, from lists that are fresh; adds Debian's security suite if it is not to be had otherwise.
fn llvm_from_apt(rustc_llvm: u32) -> Result<u32> {
    if let Some(major) = llvm_in_apt(rustc_llvm)? {
        return Ok(major);
    }
    if let Some(add) = apt::add_security_suite() {
        eprintln!(
            "setup: apt has no LLVM {rustc_llvm} or newer; Debian brings it by its security suite, which is not among apt's sources"
        );
        announce_and_perform(vec![add, Step::run_as_root(apt::update())])?;
        if let Some(major) = llvm_in_apt(rustc_llvm)? {
            return Ok(major);
        }
    }
    bail!(
        "rustc has LLVM {rustc_llvm}, and apt has no llvm-{rustc_llvm}-dev nor a newer one. Add a source that has it and run this again; \
         https://apt.llvm.org has one for each Debian and Ubuntu release:\n  \
         wget -qO /etc/apt/trusted.gpg.d/apt.llvm.org.asc https://apt.llvm.org/llvm-snapshot.gpg.key\n  \
         . /etc/os-release && echo \"deb http://apt.llvm.org/$VERSION_CODENAME/ llvm-toolchain-$VERSION_CODENAME-{rustc_llvm} main\" > /etc/apt/sources.list.d/llvm.list"
    )
}

/// Does what takes no packages; else prints the remedy for a machine whose packages have other names.
fn without_apt(toolchain: &Toolchain, missing: &Missing, llvm: Option<Llvm>) -> Result<()> {
    let rustc_llvm = toolchain.version.llvm;
    let lacks_llvm = missing.linker.is_some() && llvm.is_none();
    let steps = plan::steps(missing, &[], llvm.as_ref());
    let packages = missing.packages();
    let needs_root = steps.iter().any(|step| step.as_root) && !root::is_root();
    if packages.is_empty() && !lacks_llvm && !needs_root {
        return finish(toolchain, steps);
    }
    let mut lines = Vec::new();
    if !packages.is_empty() {
        lines.push(format!(
            "install what Debian calls {} with this machine's package manager",
            packages.join(", ")
        ));
    }
    if lacks_llvm {
        lines.push(format!(
            "install LLVM {rustc_llvm} with its headers and shared library, then run:\n    LLVM_PREFIX=/where/it/is cargo {}",
            linker::install_arguments(rustc_llvm).join(" ")
        ));
    }
    lines.extend(steps.iter().map(Step::remedy));
    bail!(
        "there is no apt here to install this with. By hand:\n  {}",
        lines.join("\n  ")
    )
}
