//! `cargo xtask build-ebpf`: builds the BPF objects and prints what is in them.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use object::{File, Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};
use rustc_demangle::demangle;

use crate::{cargo::Built, exec, setup};

/// The objects that the build script of `lb-userspace` leaves in its `OUT_DIR`.
const OBJECTS: [&str; 3] = ["tether", "decap", "bench"];

/// Bytes of one BPF instruction; loading a 64-bit constant takes two.
const INSTRUCTION_BYTES: u64 = 8;

/// A function in an object.
#[derive(Debug, PartialEq, Eq)]
struct Function {
    /// The section: a program type's name for a program, `.text` for a function that programs call.
    section: String,
    /// Demangled.
    name: String,
    bytes: u64,
}

/// Builds and prints.
///
/// # Errors
/// If setup or the build fails, or an object cannot be read or has no programs.
pub(crate) fn run() -> Result<()> {
    setup::ensure()?;
    let built = Built::by(exec::cargo().args(["build", "--package", "lb-userspace"]))?;
    let directory = built.out_dir("lb-userspace")?;
    println!(
        "{:<8}{:<12}{:>12}{:>9}  function",
        "object", "section", "instructions", "bytes"
    );
    for object in OBJECTS {
        let path = directory.join(object);
        for function in read(&path).with_context(|| format!("object {}", path.display()))? {
            let Function {
                section,
                name,
                bytes,
            } = &function;
            let instructions = bytes / INSTRUCTION_BYTES;
            println!("{object:<8}{section:<12}{instructions:>12}{bytes:>9}  {name}");
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<Function>> {
    let functions = functions(&fs::read(path)?)?;
    if functions.iter().all(|function| function.section == ".text") {
        bail!("there is no program in it");
    }
    Ok(functions)
}

/// Every function of an object: programs first, then what they call, each by name.
fn functions(object: &[u8]) -> Result<Vec<Function>> {
    let file = File::parse(object)?;
    let mut functions = Vec::new();
    for symbol in file
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text)
    {
        let Some(index) = symbol.section_index() else {
            continue;
        };
        let section = file.section_by_index(index)?;
        if section.kind() == SectionKind::Text && symbol.size() > 0 {
            functions.push(Function {
                section: section.name()?.to_owned(),
                name: format!("{:#}", demangle(symbol.name()?)),
                bytes: symbol.size(),
            });
        }
    }
    functions.sort_by(|a, b| {
        let key = |f: &Function| (f.section == ".text", f.section.clone(), f.name.clone());
        key(a).cmp(&key(b))
    });
    Ok(functions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_of_an_elf_file_are_found() {
        let own = std::env::current_exe()
            .and_then(fs::read)
            .expect("a test has an executable");
        let functions = functions(&own).expect("an ELF file");
        let main = functions
            .iter()
            .find(|function| function.name == "main")
            .expect("it has a main");
        assert_eq!(main.section, ".text");
        assert!(main.bytes > 0);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(functions(b"no object").is_err());
    }
}
