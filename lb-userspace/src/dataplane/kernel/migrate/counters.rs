//! What another version has counted, added up over its CPUs and kept in the region of the CPU that there is not: nobody else writes there.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use lb_common::{
    counters::{Counter, MULTIPLE},
    layout, maps as names,
};

use super::load;
use crate::dataplane::{
    array::Array,
    layouts::{Layouts, convert::Conversion},
    maps::Maps,
};

/// Reads all counters, and writes their sums. To be called again does no harm.
pub(super) fn read(
    from: &Layouts,
    words: &BTreeMap<&'static str, Array<u64>>,
    counter: &Conversion,
    to: &Maps,
) {
    let own = Layouts::own();
    let reasons =
        |layouts: &Layouts| layouts.number(layout::COUNTERS_OF_REASONS).unwrap_or(0) as u32;
    let objects = to.capacity.services + to.capacity.backends;
    let (old_words, new_words) = counter.words();
    let old_per_cpu = (reasons(from) + objects).next_multiple_of(MULTIPLE);
    let layout = to.capacity.counters();
    let spare_cpu = to.capacity.cpus - 1;
    let regions = words[names::COUNTERS]
        .all()
        .chunks_exact(old_per_cpu as usize * old_words);
    let pairs = from
        .reasons(&own)
        .chain((0..objects).map(|object| (reasons(from) + object, reasons(&own) + object)));
    let (mut raw, mut new) = (vec![0; old_words], vec![0; new_words]);
    for (old, new_at) in pairs {
        let mut sum = Counter::default();
        for region in regions.clone() {
            load(&region[old as usize * old_words..][..old_words], &mut raw);
            if counter.apply(&raw, &mut new).is_ok() {
                sum.packets = sum.packets.wrapping_add(new[0]);
                sum.bytes = sum.bytes.wrapping_add(new[1]);
            }
        }
        to.counters.set(spare_cpu * layout.per_cpu + new_at, &sum);
    }
    if let Some(at) = from.place("cpu_state", "notices_lost") {
        let cpus = words[names::CPUS]
            .all()
            .chunks_exact(from.bytes_of("cpu_state") / 8);
        let mut spare = to.cpus.get(spare_cpu);
        spare.notices_lost = cpus.map(|cpu| cpu[at / 64].load(Ordering::Relaxed)).sum();
        to.cpus.set(spare_cpu, &spare);
    }
}
