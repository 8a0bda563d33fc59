//! Loads a program with the verifier's statistics turned on and reads them.
//!
//! aya's loader asks for a log only when a load fails, and stack depth is found nowhere else. This prepares the object with the same
//! library as the loader (aya-obj), against maps that the loader has made, and calls `bpf(2)` itself.

use std::{
    ffi::CStr,
    io, mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use anyhow::{Context, Result, bail};
use aya::{VerifierLogLevel, maps::Map};
use aya_obj::{
    Function, Object, ProgramSection,
    generated::{
        BPF_F_XDP_HAS_FRAGS, bpf_attach_type, bpf_attr, bpf_cmd, bpf_func_info, bpf_prog_info,
        bpf_prog_type,
    },
};

use crate::stack;

/// Bytes for the verifier's log. Statistics alone are a few lines.
const LOG_BYTES: usize = 64 * 1024;

/// An object whose programs are ready to be loaded.
pub(crate) struct Linked {
    object: Object,
    btf: Option<OwnedFd>,
}

/// What the verifier said.
pub(crate) struct Statistics {
    /// Instructions that were handed over.
    pub(crate) instructions: usize,
    /// Instructions that the verifier walked through, on all paths together.
    pub(crate) verified_instructions: u32,
    /// Stack of the deepest chain of calls, in bytes.
    pub(crate) stack_bytes: u32,
}

/// Prepares the programs of an object against the maps that the loader has made from the same bytes and that `maps` finds by name.
///
/// # Errors
/// If the object is not understood, a map is not found, or the kernel refuses the type information.
pub(crate) fn link<'a>(
    bytes: &[u8],
    maps: impl Fn(&str) -> Option<BorrowedFd<'a>>,
) -> Result<Linked> {
    let mut object = Object::parse(bytes)?;
    let btf = match aya::features().btf() {
        Some(features) => object
            .fixup_and_sanitize_btf(features)?
            .map(|btf| load_btf(&btf.to_bytes()))
            .transpose()?,
        None => None,
    };
    let definitions = mem::take(&mut object.maps);
    let mut descriptors = Vec::new();
    for (name, definition) in &definitions {
        let fd = maps(name).with_context(|| format!("the loader made no map {name}"))?;
        descriptors.push((name.as_str(), fd.as_raw_fd(), definition));
    }
    let sections = object
        .functions
        .keys()
        .map(|(section, _)| *section)
        .collect();
    object.relocate_maps(descriptors.into_iter(), &sections)?;
    object.relocate_calls(&sections)?;
    object.sanitize_functions(aya::features());
    Ok(Linked { object, btf })
}

/// The descriptor of a map, if it is of a type that XDP programs use.
pub(crate) fn map_fd(map: &Map) -> Option<BorrowedFd<'_>> {
    match map {
        Map::Array(data)
        | Map::ArrayOfMaps(data)
        | Map::BloomFilter(data)
        | Map::CpuMap(data)
        | Map::DevMap(data)
        | Map::DevMapHash(data)
        | Map::HashMap(data)
        | Map::HashOfMaps(data)
        | Map::LpmTrie(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuHashMap(data)
        | Map::PerCpuLruHashMap(data)
        | Map::PerfEventArray(data)
        | Map::ProgramArray(data)
        | Map::RingBuf(data)
        | Map::XskMap(data)
        | Map::Unsupported(data) => Some(data.fd().as_fd()),
        _ => None,
    }
}

impl Linked {
    /// Loads the program `name` and returns the verifier's statistics.
    ///
    /// # Errors
    /// If there is no such program, it is no XDP or TC program, or the kernel refuses it; the message then ends with the verifier's log.
    pub(crate) fn load(&self, name: &str) -> Result<Statistics> {
        let program = self.object.programs.get(name).context("no such program")?;
        let sort = match &program.section {
            ProgramSection::Xdp { frags, attach_type } => Sort {
                program: bpf_prog_type::BPF_PROG_TYPE_XDP,
                attach_type: bpf_attach_type::from(*attach_type) as u32,
                flags: if *frags { BPF_F_XDP_HAS_FRAGS } else { 0 },
            },
            ProgramSection::SchedClassifier => Sort {
                program: bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS,
                attach_type: 0,
                flags: 0,
            },
            _ => bail!("neither an XDP nor a TC program"),
        };
        let function = &self.object.functions[&program.function_key()];
        let mut log = vec![0_u8; LOG_BYTES];
        let loaded = load_program(
            function,
            &program.license,
            &sort,
            self.btf.as_ref(),
            &mut log,
        );
        let log = CStr::from_bytes_until_nul(&log)
            .map(CStr::to_string_lossy)
            .unwrap_or_default();
        let loaded = loaded.with_context(|| format!("the kernel refused it:\n{log}"))?;
        let instructions = &function.instructions;
        let statistics = || {
            let (depths, verified_instructions) = parse(&log)?;
            let starts = starts(function, loaded.as_fd(), depths.len())?;
            anyhow::Ok(Statistics {
                instructions: instructions.len(),
                verified_instructions,
                stack_bytes: stack::deepest_chain(instructions, &starts, &depths)?,
            })
        };
        statistics().with_context(|| format!("the verifier's log:\n{log}"))
    }
}

/// Where the functions of a loaded program begin in the instructions that were handed over, in the order of the loaded program: the verifier leaves out
/// what a constant keeps from being called.
fn starts(function: &Function, loaded: BorrowedFd<'_>, most: usize) -> Result<Vec<usize>> {
    let handed_over = &function.func_info.func_info;
    let kept = functions(loaded, handed_over.len().max(most))?;
    kept.iter()
        .map(|kept| {
            let found = handed_over.iter().find(|one| one.type_id == kept.type_id);
            let found = found.context("the kernel has a function that was not handed over")?;
            Ok(found.insn_off as usize)
        })
        .collect()
}

/// What the kernel says of a program's functions: at most so many.
fn functions(program: BorrowedFd<'_>, most: usize) -> Result<Vec<bpf_func_info>> {
    // SAFETY: both are structs of integers, for all of which zero is a value.
    let (mut info, mut attr) =
        unsafe { (mem::zeroed::<bpf_prog_info>(), mem::zeroed::<bpf_attr>()) };
    let mut functions = vec![
        bpf_func_info {
            insn_off: 0,
            type_id: 0
        };
        most
    ];
    info.nr_func_info = u32::try_from(most)?;
    info.func_info_rec_size = size_of::<bpf_func_info>() as u32;
    info.func_info = functions.as_mut_ptr() as u64;
    attr.info.bpf_fd = u32::try_from(program.as_raw_fd())?;
    attr.info.info_len = size_of::<bpf_prog_info>() as u32;
    attr.info.info = std::ptr::from_mut(&mut info) as u64;
    // SAFETY: the attributes name one buffer, which names another, each of the length that is given, and both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            bpf_cmd::BPF_OBJ_GET_INFO_BY_FD as libc::c_long,
            std::ptr::from_mut(&mut attr),
            size_of::<bpf_attr>(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error()).context("asking for a program's functions");
    }
    functions.truncate(info.nr_func_info as usize);
    Ok(functions)
}

/// Reads `stack depth 48+16`, each function's own, and `processed 1234 insns (limit 1000000) …`.
fn parse(log: &str) -> Result<(Vec<u32>, u32)> {
    let after = |prefix: &str| {
        log.lines()
            .find_map(|line| line.strip_prefix(prefix)?.split_whitespace().next())
            .with_context(|| format!("no line `{prefix}…`"))
    };
    let depths = after("stack depth ")?;
    let processed = after("processed ")?;
    Ok((
        depths
            .split('+')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .with_context(|| depths.to_owned())?,
        processed.parse().with_context(|| processed.to_owned())?,
    ))
}

fn load_btf(btf: &[u8]) -> Result<OwnedFd> {
    // SAFETY: `bpf_attr` is a union of structs of integers, for all of which zero is a value.
    let mut attr = unsafe { mem::zeroed::<bpf_attr>() };
    // SAFETY: all bytes are initialised, and BPF_BTF_LOAD is the command of this variant.
    let load = unsafe { &mut attr.__bindgen_anon_7 };
    load.btf = btf.as_ptr() as u64;
    load.btf_size = u32::try_from(btf.len())?;
    // SAFETY: the attributes name one buffer, of the length that they give, which outlives the call.
    unsafe { bpf(bpf_cmd::BPF_BTF_LOAD, &mut attr) }
        .context("the kernel refused the type information")
}

/// What sort of program one is, as the kernel is told.
struct Sort {
    program: bpf_prog_type,
    attach_type: u32,
    flags: u32,
}

fn load_program(
    function: &Function,
    license: &CStr,
    sort: &Sort,
    btf: Option<&OwnedFd>,
    log: &mut [u8],
) -> Result<OwnedFd> {
    let functions = function.func_info.func_info_bytes();
    let lines = function.line_info.line_info_bytes();
    // SAFETY: `bpf_attr` is a union of structs of integers, for all of which zero is a value.
    let mut attr = unsafe { mem::zeroed::<bpf_attr>() };
    // SAFETY: all bytes are initialised, and BPF_PROG_LOAD is the command of this variant.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = sort.program as u32;
    load.expected_attach_type = sort.attach_type;
    load.prog_flags = sort.flags;
    load.insns = function.instructions.as_ptr() as u64;
    load.insn_cnt = u32::try_from(function.instructions.len())?;
    load.license = license.as_ptr() as u64;
    load.log_level = VerifierLogLevel::STATS.bits();
    load.log_buf = log.as_mut_ptr() as u64;
    load.log_size = u32::try_from(log.len())?;
    if let Some(btf) = btf {
        load.prog_btf_fd = u32::try_from(btf.as_raw_fd())?;
        load.func_info = functions.as_ptr() as u64;
        load.func_info_cnt = u32::try_from(function.func_info.len())?;
        load.func_info_rec_size = u32::try_from(function.func_info_rec_size)?;
        load.line_info = lines.as_ptr() as u64;
        load.line_info_cnt = u32::try_from(function.line_info.len())?;
        load.line_info_rec_size = u32::try_from(function.line_info_rec_size)?;
    }
    // SAFETY: the attributes name the instructions, the license (which ends with a zero byte), the type information and the log,
    // each with its own length, and all outlive the call.
    Ok(unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr) }?)
}

/// Calls `bpf(2)` with a command that returns a new descriptor.
///
/// # Safety
/// Every address in `attr` must be valid for what the command does with it, for the length that `attr` gives.
unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: `attr` is valid for reads and writes of its size; what it points to is the caller's promise.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            std::ptr::from_mut(attr),
            size_of::<bpf_attr>(),
        )
    };
    let fd = RawFd::try_from(result).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the command succeeded, so this is a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_among_the_other_lines() {
        let log = "verification time 55 usec\nstack depth 48+16+0\nprocessed 1234 insns (limit 1000000) max_states_per_insn 4\n";
        assert_eq!(
            parse(log).expect("the kernel's format"),
            (vec![48, 16, 0], 1234)
        );
    }

    #[test]
    fn a_log_without_statistics_is_refused() {
        let error = parse("processed 3 insns\n").expect_err("no stack depth");
        assert_eq!(error.to_string(), "no line `stack depth …`");
    }
}
