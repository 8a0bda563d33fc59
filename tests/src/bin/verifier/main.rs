//! Loads every BPF program as the daemon does and prints, as JSON, what the kernel's verifier says of each.
//!
//! `cargo xtask verifier` runs this and holds the figures against the budget.

mod statistics;

use anyhow::{Context, Result, ensure};
use aya::{Ebpf, programs::Xdp};
use lb_userspace::objects;
use serde::Serialize;

/// What one program costs.
#[derive(Serialize)]
struct Cost {
    object: &'static str,
    program: String,
    /// Instructions in the program and the functions that it calls.
    instructions: usize,
    /// Instructions that the verifier walked through, on all paths together.
    verified_instructions: u32,
    /// Stack of the program and of every function that it calls, in bytes.
    stack_bytes: u32,
    /// Bytes of machine code.
    jited_bytes: u32,
}

fn main() -> Result<()> {
    let objects = [
        ("tether", objects::TETHER),
        ("decap", objects::DECAP),
        ("bench", objects::BENCH),
    ];
    let mut costs = Vec::new();
    for (object, bytes) in objects {
        costs.extend(costs_of(object, bytes).with_context(|| format!("BPF object {object}"))?);
    }
    println!("{}", serde_json::to_string_pretty(&costs)?);
    Ok(())
}

/// Loads the programs of an object, by name.
fn costs_of(object: &'static str, bytes: &[u8]) -> Result<Vec<Cost>> {
    let mut ebpf = Ebpf::load(bytes).context("its maps could not be created")?;
    let mut names: Vec<String> = ebpf.programs().map(|(name, _)| name.to_owned()).collect();
    names.sort();
    let linked = statistics::link(bytes, &ebpf)?;

    let mut costs = Vec::new();
    for name in names {
        let program = ebpf
            .program_mut(&name)
            .context("a program that was just listed is gone")?;
        let program: &mut Xdp = program
            .try_into()
            .with_context(|| format!("program {name}"))?;
        program.load().with_context(|| format!("program {name}"))?;
        let info = program.info().with_context(|| format!("program {name}"))?;
        let verified = info
            .verified_instruction_count()
            .context("this kernel does not count verified instructions: that takes Linux 5.16")?;

        // The loader keeps no log of what succeeds, and stack depth is in the log alone. So the same instructions are loaded
        // once more for it, and that they are the same shows in the verifier's count.
        let statistics = linked
            .load(&name)
            .with_context(|| format!("program {name}"))?;
        ensure!(
            statistics.verified_instructions == verified,
            "program {name}: the verifier walked through {verified} instructions when the loader loaded it, and {} \
             when it was loaded for its statistics; they should be the same program",
            statistics.verified_instructions,
        );
        costs.push(Cost {
            object,
            instructions: statistics.instructions,
            verified_instructions: verified,
            stack_bytes: statistics.stack_bytes,
            jited_bytes: info.size_jitted(),
            program: name,
        });
    }
    Ok(costs)
}
