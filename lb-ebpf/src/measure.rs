//! The program that comes before all others while a service wants to know what its clients send again. It looks, counts, and hands every packet on as it is.
//!
//! A program of its own, and not a part of those that steer: these are as they were, so that nobody pays for it who has not asked, neither in time nor in
//! what the verifier has to walk through, which for them is near its end already. It looks for the flow's entry a moment before they do, and so has fetched it
//! for them.

use core::intrinsics::{AtomicOrdering::SeqCst, atomic_xadd};

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    macros::xdp,
    programs::XdpContext,
};
use lb_common::{
    flow::{
        FlowKey as _, life,
        table::{Entry, Look},
        word::{Word, epoch_of},
    },
    headers::TCP_LEN,
    maps::MAIN_INDEX,
    net::IpVersion,
    repeats::{
        Counted, DATA_CLIENTS, ENOUGH, PLACES, Repeats, SYN_CLIENTS, Sample, one_of, place,
        syn_place,
    },
    tcp::SYN,
};

use lb_ebpf::packet::Frame;

use crate::{
    family::{Family, V4, V6},
    flow, hand_on, maps, nat, rewrite,
};

/// Any packet.
#[xdp(frags)]
fn measure(ctx: XdpContext) -> u32 {
    if measure4(ctx.ctx) == OTHER {
        measure6(ctx.ctx);
    }
    hand_on(&ctx, MAIN_INDEX)
}

// What a function returns.
/// It is a segment of this version of IP.
const DONE: u32 = xdp_action::XDP_PASS;
/// It is not, or may not be.
const OTHER: u32 = u32::MAX;

#[inline(never)]
fn measure4(ctx: *mut xdp_md) -> u32 {
    look::<V4>(&XdpContext::new(ctx), |a, b, ends, what, length| {
        weigh4(a, b, ends, what, length)
    })
}

#[inline(never)]
fn measure6(ctx: *mut xdp_md) -> u32 {
    look::<V6>(&XdpContext::new(ctx), |a, b, ends, what, length| {
        weigh6(a, b, ends, what, length)
    })
}

/// Looks whether a packet is a segment of a service that is measured, and has `weigh` count it: told the client's address, its port, the service and the
/// number that it acknowledges, the sequence number and flags, and the length of the data.
#[inline(always)]
fn look<F: Family>(ctx: &XdpContext, weigh: impl Fn(u64, u64, u64, u64, u32) -> u32) -> u32 {
    let Ok((segment, ends)) = rewrite::parse::<F>(ctx) else {
        return OTHER;
    };
    let Ok(service) = F::service(ends.destination, segment.destination_port) else {
        return DONE;
    };
    if !maps::is_measured(service) {
        return DONE;
    }
    let is_syn = segment.tcp.has_any(SYN);
    if is_syn && !segment.tcp.opens() {
        return DONE;
    }
    let Some(tcp) = Frame::of(ctx).at(segment.transport(), TCP_LEN) else {
        return DONE;
    };
    let mut length = 0;
    if segment.tcp.payload {
        let headers = segment.headers_len() + (tcp.u8(12) >> 4) as u32 * 4;
        length = segment.length.wrapping_sub(headers);
    }
    let [first, second] = F::as_words(ends.source);
    let ends = ((tcp.u32(8) as u64) << 32) | ((segment.source_port as u64) << 16) | service as u64;
    let what = ((segment.tcp.seq as u64) << 8) | segment.tcp.flags as u64;
    weigh(first, second, ends, what, length)
}

/// A global function, which the verifier walks through once, and not once for each way that a packet is parsed.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn weigh4(first: u64, second: u64, ends: u64, what: u64, length: u32) -> u32 {
    weigh::<V4>(first, second, ends, what, length)
}

/// The same of IPv6.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn weigh6(first: u64, second: u64, ends: u64, what: u64, length: u32) -> u32 {
    weigh::<V6>(first, second, ends, what, length)
}

/// Counts a segment.
#[inline(always)]
fn weigh<F: Family>(first: u64, second: u64, ends: u64, what: u64, length: u32) -> u32 {
    let client = F::of_words([first, second]);
    let service = ends as u16;
    let key = F::key(client, (ends >> 16) as u16, service);
    let segment = lb_common::tcp::Segment {
        seq: (what >> 8) as u32,
        flags: what as u8,
        payload: length != 0,
    };
    let mixed = key.mixed(&maps::flow_seed());
    if segment.opens() {
        begin::<F>(
            &key,
            segment.seq,
            mixed,
            client_of::<F>(first, second, service),
        );
        return DONE;
    }
    if !segment.continues() {
        return DONE;
    }
    let mut word = match flow::glance::<F>(&key) {
        Some(word) => word,
        None => Word::EMPTY,
    };
    if word == Word::EMPTY {
        // The second look is for one whose SYN was the last that came.
        let entry = nascent::<F>(&key);
        word = entry.word;
        if word == Word::EMPTY || !life::follows(word, &segment) {
            return DONE;
        }
        // Where the backend's answer is seen, nothing else ends a handshake; the entry stays as it is, however often something comes.
        if nat::acknowledges::<F>(entry.place, (ends >> 32) as u32) == Some(false) {
            return DONE;
        }
        count(word, |repeats| add(repeats, Counted::Handshake));
    } else if word.has(Word::CONTESTED | Word::UNCONFIRMED) || !word.is_near(epoch_of(segment.seq))
    {
        // Of which of two connections it is, is for others to find out; and what is far from the stream is of none, or a forgery that would make repeats of
        // all that comes after it.
        return DONE;
    }
    if length == 0 {
        return DONE;
    }
    let client = client_of::<F>(first, second, service);
    let (index, fingerprint) = place(client, mixed);
    let Some(sample) = maps::sample(index) else {
        return DONE;
    };
    let noted = load(sample).with_data(fingerprint, segment.seq, length, maps::now());
    store(sample, noted.sample);
    if noted.counts {
        count(word, |repeats| {
            add(repeats, Counted::Data);
            if noted.is_again {
                add(repeats, Counted::DataAgain);
                note_client(repeats, DATA_CLIENTS, client);
            }
        });
    }
    DONE
}

/// A client, mixed: its address, of IPv6 the network of 64 bits that it is in, since a host has as many addresses of it as it likes.
#[inline(always)]
fn client_of<F: Family>(first: u64, second: u64, service: u16) -> u64 {
    let words = match F::VERSION {
        IpVersion::V4 => [first, second],
        IpVersion::V6 => [first, 0],
    };
    F::key(F::of_words(words), 0, service).mixed(&maps::flow_seed())
}

/// Looks whether a SYN has come before.
#[inline(always)]
fn begin<F: Family>(key: &<F as flow::Table>::Key, seq: u32, mixed: u64, client: u64) {
    let word = nascent::<F>(key).word;
    if word == Word::EMPTY || word.isn() != seq {
        // Another connection begins.
        let (index, fingerprint) = place(client, mixed);
        if let Some(sample) = maps::sample(index) {
            let held = load(sample);
            if held.anew(fingerprint) != held {
                store(sample, Sample::EMPTY);
            }
        }
        return;
    }
    let (index, fingerprint) = syn_place(client, mixed, seq);
    if let Some(sample) = maps::sample(PLACES + index) {
        let noted = load(sample).with_syn(fingerprint, maps::now());
        if noted.counts {
            store(sample, noted.sample);
            count(word, |repeats| {
                add(repeats, Counted::Syn);
                note_client(repeats, SYN_CLIENTS, client);
            });
        }
    }
}

/// The entry of a flow that has not been answered yet; [`Entry::NONE`] if there is none.
#[inline(always)]
fn nascent<F: Family>(key: &<F as flow::Table>::Key) -> Entry {
    match flow::look::<F>(&flow::subject::<F>(*key), &Look::NASCENT) {
        Some(entry) => entry,
        None => Entry::NONE,
    }
}

#[inline(always)]
fn load(sample: *mut Sample) -> Sample {
    // SAFETY: an entry of the map. Volatile: other CPUs write it meanwhile.
    unsafe {
        Sample {
            flow: core::ptr::addr_of!((*sample).flow).read_volatile(),
            seen: core::ptr::addr_of!((*sample).seen).read_volatile(),
        }
    }
}

#[inline(always)]
fn store(sample: *mut Sample, new: Sample) {
    // SAFETY: as above.
    unsafe {
        core::ptr::addr_of_mut!((*sample).flow).write_volatile(new.flow);
        core::ptr::addr_of_mut!((*sample).seen).write_volatile(new.seen);
    }
}

/// Counts in the counters of the backend of an entry, if that is still who it was.
#[inline(always)]
fn count(word: Word, what: impl FnOnce(*mut Repeats)) {
    let reference = word.backend();
    let id = reference.id();
    let Some((_, state)) = maps::backend(id) else {
        return;
    };
    if state.generation() != reference.generation() {
        return;
    }
    if let Some(repeats) = maps::repeats(id) {
        what(repeats);
    }
}

/// Counts one more.
#[inline(always)]
fn add(repeats: *mut Repeats, what: Counted) {
    // SAFETY: an aligned word of the map: it has as many as there are counters.
    let _before =
        unsafe { atomic_xadd::<u64, u64, { SeqCst }>(repeats.cast::<u64>().add(what as usize), 1) };
}

/// Notes in a word of a backend's which part of all clients a repeat is of.
#[inline(always)]
fn note_client(repeats: *mut Repeats, word: usize, client: u64) {
    // SAFETY: an aligned word of the map, as above. Volatile: other CPUs write it meanwhile.
    unsafe {
        let noted = repeats.cast::<u64>().add(word);
        if noted.read_volatile() & ENOUGH == 0 {
            let _before = atomic_xadd::<u64, u64, { SeqCst }>(noted, one_of(client));
        }
    }
}
