//! How much stack a program takes: the deepest chain of calls.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use aya_obj::generated::{
    BPF_CALL, BPF_DW, BPF_IMM, BPF_JMP, BPF_LD, BPF_PSEUDO_CALL, BPF_PSEUDO_FUNC, bpf_insn,
};

/// The kernel counts each frame in units of this when it holds a chain of calls against its limit of 512 bytes. Kernels that compile
/// the program round less; this is what every kernel accepts.
const FRAME_UNIT_BYTES: u32 = 32;

/// Bytes of stack of the deepest chain of calls that begins at the first instruction, given the depth of each function, and where those begin in
/// `instructions`, in the same order. What is not among them is never called: the verifier has left it out.
///
/// # Errors
/// If the depths are not those of these functions, or these are none of this program's.
pub(crate) fn deepest_chain(
    instructions: &[bpf_insn],
    starts: &[usize],
    depths: &[u32],
) -> Result<u32> {
    let calls = calls(instructions);
    ensure!(
        starts.len() == depths.len(),
        "the verifier tells the stack of {} functions, and the program has {}",
        depths.len(),
        starts.len()
    );
    ensure!(
        starts.iter().all(|start| calls.contains_key(start)),
        "no call leads to some of the functions that begin at {starts:?}"
    );
    let frames: BTreeMap<usize, u32> = starts
        .iter()
        .zip(depths)
        .map(|(start, depth)| (*start, (*depth).max(1).next_multiple_of(FRAME_UNIT_BYTES)))
        .collect();
    Ok(below(0, &calls, &frames))
}

/// Stack of the function at `start` and the deepest chain that it calls. The kernel admits no recursion, so this ends.
fn below(start: usize, calls: &BTreeMap<usize, Vec<usize>>, frames: &BTreeMap<usize, u32>) -> u32 {
    let Some(own) = frames.get(&start) else {
        return 0;
    };
    let callees = calls.get(&start).into_iter().flatten();
    let deepest = callees.map(|callee| below(*callee, calls, frames)).max();
    own + deepest.unwrap_or_default()
}

/// The functions of a program by the index of their first instruction, and which functions each calls.
fn calls(instructions: &[bpf_insn]) -> BTreeMap<usize, Vec<usize>> {
    let sites: Vec<(usize, usize)> = instructions
        .iter()
        .enumerate()
        .filter_map(|(index, instruction)| Some((index, callee(index, instruction)?)))
        .collect();
    let mut functions = BTreeMap::from([(0, Vec::new())]);
    functions.extend(sites.iter().map(|(_, callee)| (*callee, Vec::new())));
    for (site, callee) in sites {
        if let Some((_, callees)) = functions.range_mut(..=site).next_back() {
            callees.push(callee);
        }
    }
    functions
}

/// The function that an instruction calls, or hands to a helper that will.
fn callee(index: usize, instruction: &bpf_insn) -> Option<usize> {
    let code = u32::from(instruction.code);
    let source = u32::from(instruction.src_reg());
    let is_call = code == BPF_JMP | BPF_CALL && source == BPF_PSEUDO_CALL;
    let is_reference = code == BPF_LD | BPF_IMM | BPF_DW && source == BPF_PSEUDO_FUNC;
    if !is_call && !is_reference {
        return None;
    }
    (index + 1).checked_add_signed(isize::try_from(instruction.imm).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXIT: u8 = 0x95;

    fn instruction(code: u8, source: u32, imm: i32) -> bpf_insn {
        let registers = bpf_insn::new_bitfield_1(0, source as u8);
        bpf_insn {
            code,
            _bitfield_align_1: [],
            _bitfield_1: registers,
            off: 0,
            imm,
        }
    }

    fn exit() -> bpf_insn {
        instruction(EXIT, 0, 0)
    }

    /// A call at `from` of the function at `to`.
    fn call(from: i32, to: i32) -> bpf_insn {
        instruction((BPF_JMP | BPF_CALL) as u8, BPF_PSEUDO_CALL, to - from - 1)
    }

    /// With nothing left out.
    fn chain(instructions: &[bpf_insn], depths: &[u32]) -> Result<u32> {
        let starts: Vec<usize> = calls(instructions).into_keys().collect();
        deepest_chain(instructions, &starts, depths)
    }

    #[test]
    fn what_is_left_out_counts_for_nothing() {
        // 0 calls 2, which calls 4, and 6, which is never reached.
        let program = [
            call(0, 2),
            call(1, 6),
            call(2, 4),
            exit(),
            exit(),
            exit(),
            exit(),
        ];
        let depths = [32, 64, 32];
        let kept = deepest_chain(&program, &[0, 2, 4], &depths);
        assert_eq!(kept.expect("three functions"), 128);
        assert!(deepest_chain(&program, &[0, 2, 5], &depths).is_err());
    }

    #[test]
    fn a_program_without_calls_takes_its_own_frame() {
        assert_eq!(chain(&[exit()], &[40]).expect("one function"), 64);
    }

    #[test]
    fn the_deepest_chain_counts_and_not_all_functions() {
        // 0 calls 3 and 5; 5 calls 7, which lies after it. Depths: 8, 100, 33, 0.
        let program = [
            call(0, 3),
            call(1, 5),
            exit(),
            exit(),
            exit(),
            call(5, 7),
            exit(),
            exit(),
        ];
        let depths = [8, 100, 33, 0];
        // 32 + max(128, 64 + 32)
        assert_eq!(chain(&program, &depths).expect("four functions"), 160);
        let depths = [8, 0, 33, 100];
        // 32 + max(32, 64 + 128)
        assert_eq!(chain(&program, &depths).expect("four functions"), 224);
    }

    #[test]
    fn a_function_handed_to_a_helper_is_called() {
        let reference = instruction((BPF_LD | BPF_IMM | BPF_DW) as u8, BPF_PSEUDO_FUNC, 2);
        let program = [reference, instruction(0, 0, 0), exit(), exit()];
        assert_eq!(chain(&program, &[1, 32]).expect("two functions"), 64);
    }

    #[test]
    fn a_call_of_a_helper_is_none_of_a_function() {
        let helper = instruction((BPF_JMP | BPF_CALL) as u8, 0, 5);
        assert_eq!(chain(&[helper, exit()], &[1]).expect("one function"), 32);
    }

    #[test]
    fn depths_of_another_program_are_refused() {
        let error = chain(&[exit()], &[8, 8]).expect_err("there is one function");
        assert_eq!(
            error.to_string(),
            "the verifier tells the stack of 2 functions, and the program has 1"
        );
    }
}
