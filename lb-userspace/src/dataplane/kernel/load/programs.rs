//! The object's programs: which of them packets are handed on to, how the kernel is asked to take them, and their places.

use std::{
    iter,
    num::NonZero,
    os::fd::{AsFd, BorrowedFd},
    panic::resume_unwind,
    sync::{Mutex, PoisonError},
    thread,
};

use aya::{
    Ebpf,
    programs::{Program, Xdp},
};
use lb_common::maps as names;

use super::{
    super::{bpf, error::Error, shapes::refused_call},
    foreign_object,
};
use crate::dataplane::maps::Capacity;

/// What an operator is told of a program that packets are handed on to.
const HANDED_ON_TO: &str = "an XDP program that packets are handed on to";

pub(super) fn no_array() -> Error {
    foreign_object("the object has no array of the programs that packets are handed on to")
}

/// Puts a program in its place, that packets are handed on to.
pub(super) fn put(programs: BorrowedFd<'_>, index: u32, program: &Xdp) -> Result<(), Error> {
    let program = program
        .fd()
        .map_err(|error| Error::program(HANDED_ON_TO, error))?;
    bpf::set_program(programs, index, program.as_fd()).map_err(refused_call(
        "putting an XDP program in its place, that packets are handed on to",
    ))
}

/// One of the object's programs, which was loaded.
pub(super) fn program_of<'a>(ebpf: &'a Ebpf, name: &str) -> &'a Xdp {
    ebpf.program(name)
        .and_then(|program| program.try_into().ok())
        .expect("the program was loaded under this name")
}

/// The programs that packets are handed on to if the maps are of this capacity, with their indices, in the order in which they are put in their places.
///
/// Those that guard come first, and those that hand packets on to them after: while the first guard comes, packets come in, and one that is handed on to a
/// program which is missing is left to the host, whose stack may answer a VIP's flow with a RST. All others are there already then.
pub(super) fn handed_on_to(
    capacity: &Capacity,
) -> impl Iterator<Item = (u32, &'static str)> + use<> {
    let (translates, guards) = (capacity.translates(), capacity.guards);
    (0..names::MAIN_INDEX)
        .zip(names::HANDED_ON_TO)
        .rev()
        .filter(move |(index, _)| match *index {
            names::GUARD_INDEX.. => guards,
            names::STEER_INDEX.. => translates,
            _ => true,
        })
}

/// Whether a program that packets are handed on to is for backends on this host.
pub(super) fn is_local(index: u32) -> bool {
    (names::LOCAL_INDEX..names::STEER_INDEX).contains(&index)
}

/// Has the kernel verify and take one of the object's programs.
pub(super) fn load_program(ebpf: &mut Ebpf, name: &'static str) -> Result<(), Error> {
    match load_programs(ebpf, &[name]).pop() {
        Some((_, loaded)) => loaded,
        None => Err(foreign_object("the object lacks one of the programs")),
    }
}

/// Programs that the kernel verifies at a time, at most: each takes a CPU, and some megabytes of memory.
const AT_A_TIME: usize = 4;

/// Has the kernel verify and take some of the object's programs, which takes it up to a second for each: so several at a time, if there are CPUs. Gives
/// what came of them, in the order asked for.
pub(super) fn load_programs(
    ebpf: &mut Ebpf,
    wanted: &[&'static str],
) -> Vec<(&'static str, Result<(), Error>)> {
    let mut found: Vec<_> = ebpf
        .programs_mut()
        .filter_map(|(name, program)| {
            let at = wanted.iter().position(|other| *other == name)?;
            Some((at, program))
        })
        .collect();
    found.sort_unstable_by_key(|(at, _)| *at);
    let mut results: Vec<_> = wanted
        .iter()
        .map(|name| {
            let lacking = foreign_object("the object lacks one of the programs");
            (*name, Err(lacking))
        })
        .collect();
    let cpus = thread::available_parallelism().map_or(1, NonZero::get);
    let todo = Mutex::new(found.into_iter());
    let next = || todo.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        iter::from_fn(next)
            .map(|(at, program)| (at, load_one(wanted[at], program)))
            .collect::<Vec<_>>()
    };
    thread::scope(|scope| {
        // A thread that is not to be had is not needed.
        let others: Vec<_> = (1..cpus.min(AT_A_TIME).min(wanted.len()))
            .filter_map(|_| thread::Builder::new().spawn_scoped(scope, work).ok())
            .collect();
        let own = work();
        let all = others
            .into_iter()
            .flat_map(|other| other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        for (at, result) in all.chain(own) {
            results[at].1 = result;
        }
    });
    results
}

fn load_one(name: &'static str, program: &mut Program) -> Result<(), Error> {
    match program {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => return Err(foreign_object("one of the programs is of another type")),
    }
    .map_err(|error| Error::program(name, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_program_comes_before_one_that_it_hands_packets_on_to_and_that_may_be_missing() {
        let capacity = Capacity::for_flows(1, 1, 4, 4, 64, 1).guarding(true);
        let order: Vec<u32> = handed_on_to(&capacity).map(|(index, _)| index).collect();
        let at = |index| order.iter().position(|other| *other == index).unwrap();
        for guard in [names::GUARD_INDEX, names::GUARD_INDEX + 1] {
            for from in [names::IPV6_INDEX, names::ANY_INDEX, names::ANY_INDEX + 1] {
                assert!(at(guard) < at(from), "{order:?}");
            }
        }
        for (index, name) in handed_on_to(&capacity) {
            assert_eq!(name, names::HANDED_ON_TO[index as usize]);
        }
    }
}
