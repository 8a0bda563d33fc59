//! What the old program has gone on to record in the old tables after their hold had ended, while a link still ran it: brought into the new tables, which
//! are in use by then.
//!
//! A flow's packets may have come by several interfaces meanwhile, so that each table knows a part of what became of it: one has the answer to its SYN, the
//! other the acknowledgement; or each the FIN of one side. So an entry of the old table is joined with that of the same flow in the new one, if there
//! is one, by one compare-and-exchange ([`copy::joined`], [`Flow::joined`]). One that the new table lacks is inserted there by the program that alone does so: in
//! the place of what is over, or beside a live entry of the same key, as the newer of the two.

use lb_common::{
    clock::Tick,
    flow::{
        copy::{self, Kind},
        table, v4, v6,
        word::{State, Word},
    },
    hash::Seed,
    maps::Instance,
    nat::{life::Flow, slot_of},
};

use super::{
    copier::{Copied, Copier, Traveller},
    error::Error,
    mirror::Mirror,
    transfer::Origin,
};
use crate::dataplane::{
    maps::{self, Maps},
    table::{Place, Table, TableKey},
};

/// Copies what the old program has recorded after the hold of its tables had ended, and the new tables lack; nobody writes the old ones any more.
///
/// What else it has written since is of no weight: no flow depends on it.
pub(super) fn rescue(
    old: &dyn Origin,
    instance: &Instance,
    copier: &mut Copier,
) -> Result<(), Error> {
    old.refresh()?;
    rescue_from::<v4::Key>(old, instance, copier)?;
    rescue_from::<v6::Key>(old, instance, copier)
}

fn rescue_from<K: TableKey>(
    old: &dyn Origin,
    instance: &Instance,
    copier: &mut Copier,
) -> Result<(), Error> {
    let seed = instance.flow_seed;
    let since = Tick::from_ns(old.held_until());
    let mut mirror = Mirror::<K>::new(old.maps().clone(), seed, old.is_of_this_version());
    mirror.refresh();
    let now = maps::now();
    let ticks = now.0.wrapping_sub(since.0);
    let to = copier.loaded().maps();
    let (mut missing, mut newer, mut joined) = (vec![], vec![], 0_u64);
    // The answer to a SYN changes nothing of its entry.
    let is_late = |late: &Traveller<K>| late.word.is_nascent() || late.word.age(now) <= ticks;
    for late in mirror.entries(now).filter(is_late) {
        match settle(&to, &seed, &late, maps::now) {
            Fate::Stands => {}
            Fate::Joined => joined += 1,
            Fate::Missing => missing.push(late),
            Fate::Newer => newer.push(Traveller {
                word: late.word.with(Word::CONTESTED | Word::SECOND),
                ..late
            }),
        }
    }
    let Copied { done, homeless, .. } = copier.insert(missing.into_iter(), Kind::Rescue)?;
    let beside = copier.insert(newer.into_iter(), Kind::Copy)?;
    let (done, homeless) = (done + beside.done, homeless + beside.homeless);
    if done > 0 || homeless > 0 || joined > 0 {
        tracing::warn!(
            done,
            joined,
            homeless,
            version = K::VERSION as u32,
            "what flows did while the flow tables were being switched was copied afterwards"
        );
    }
    Ok(())
}

/// What becomes of an entry of the old table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Nothing: the new table knows as much, or it has two other flows of that key.
    Stands,
    /// What it said is in the new table.
    Joined,
    /// The new table has no entry of its key.
    Missing,
    /// The new table has one of an older flow of its key, which is marked.
    Newer,
}

/// Joins an entry of the old table with that of the same flow in the new one; if there is none, makes room for it.
fn settle<K: TableKey>(
    to: &Maps,
    seed: &Seed,
    late: &Traveller<K>,
    clock: impl Fn() -> Tick,
) -> Fate {
    let table = K::table(to);
    // Packets come meanwhile. What has changed twice goes on in the new table.
    for _ in 0..2 {
        let found: Vec<_> = table.entries_of(late.key, seed).collect();
        // Read after them, or what was written since would look as old as can be.
        let now = clock();
        let same = found
            .iter()
            .find(|(_, word)| are_of_one_flow(*word, late.word));
        let settled = match same {
            Some(&(place, ours)) => join(to, seed, late, (place, ours), now),
            None => replace(to, seed, late, &found, now),
        };
        if let Some(fate) = settled {
            return fate;
        }
    }
    Fate::Stands
}

/// Whether two entries of one key are of one flow: of one backend, and both the newer of their pair or both not.
fn are_of_one_flow(ours: Word, theirs: Word) -> bool {
    ours.backend() == theirs.backend() && is_newer(ours) == is_newer(theirs)
}

/// Whether an entry began as a challenger.
fn is_newer(word: Word) -> bool {
    word.is(State::Challenger) || (word.is_live() && word.has(Word::SECOND))
}

/// Joins an entry of the old table with that of the same flow. None if that has changed meanwhile.
fn join<K: TableKey>(
    to: &Maps,
    seed: &Seed,
    late: &Traveller<K>,
    (place, ours): (Place, Word),
    now: Tick,
) -> Option<Fate> {
    let table = K::table(to);
    let translation = table.translation(place, late.key, ours, seed);
    let value = match (translation, late.translation) {
        (Some(translation), Some(theirs)) => {
            let flow = Flow {
                value: ours,
                translation,
            };
            let joined = flow.joined(
                Flow {
                    value: late.word,
                    translation: theirs,
                },
                now,
            );
            // First, as the data path does: of two FINs that meet here, whoever comes second sees the other's.
            if joined.translation != translation
                && !table.replace_translation(place, translation, joined.translation)
            {
                return None;
            }
            joined.value
        }
        // Nobody but the old table knows the port of this flow.
        (None, Some(theirs))
            if theirs.pair() != 0 && (late.word.is_live() || ours.is_nascent()) =>
        {
            return remove(to, seed, late.key, (place, ours)).then_some(Fate::Missing);
        }
        _ => copy::joined(ours, late.word, now),
    };
    if value == ours {
        return Some(Fate::Stands);
    }
    if !table.replace(place, ours, value) {
        return None;
    }
    if ours.is_nascent() {
        table.set_first_seen(place, late.first_seen);
    }
    Some(Fate::Joined)
}

/// Makes room for an entry of the old table whose flow the new one does not know, beside the entries that were found of its key. None if one has changed
/// meanwhile.
fn replace<K: TableKey>(
    to: &Maps,
    seed: &Seed,
    late: &Traveller<K>,
    found: &[(Place, Word)],
    now: Tick,
) -> Option<Fate> {
    if found.is_empty() {
        return Some(Fate::Missing);
    }
    // A SYN that nobody has answered comes again.
    if late.word.is_nascent() {
        return Some(Fate::Stands);
    }
    let is_over = |word: Word| word.is_nascent() || word.is_vacant(now);
    for &(place, word) in found {
        if is_over(word) && !remove(to, seed, late.key, (place, word)) {
            return None;
        }
    }
    let mut left = found.iter().filter(|(_, word)| !is_over(*word));
    match (left.next(), left.next()) {
        (None, _) => Some(Fate::Missing),
        (Some(&(place, older)), None) => mark(K::table(to), place, older).then_some(Fate::Newer),
        _ => Some(Fate::Stands),
    }
}

/// Marks a live entry as the older of two. False if it has changed meanwhile.
fn mark<K: TableKey>(table: Table<'_, K>, place: Place, word: Word) -> bool {
    let marked = word.with(Word::CONTESTED).without(Word::SECOND);
    marked == word || table.replace(place, word, marked)
}

/// Removes an entry, and gives back its port. False if it has changed meanwhile.
fn remove<K: TableKey>(to: &Maps, seed: &Seed, key: K, (place, word): (Place, Word)) -> bool {
    let table = K::table(to);
    let translation = table.translation(place, key, word, seed);
    if !table.replace(place, word, Word::EMPTY) {
        return false;
    }
    if let Some(translation) = translation {
        let (index, way) = place;
        let slot = slot_of(table::Place { index, way });
        to.give_back_port(translation.pair(), translation.port(), slot);
    }
    true
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use lb_common::{
        flow::{
            FlowKey as _,
            word::{BackendRef, LINGER_FIN_TICKS},
        },
        nat::{Translation, TranslationWord, slot_index, translation::stamp},
        net::IpVersion,
    };

    use super::*;
    use crate::dataplane::maps::Capacity;

    const NOW: Tick = Tick(2_000_000);
    const SEED: Seed = Seed::new([11, 12, 13]);
    const ONE: BackendRef = BackendRef::new(1, 0);
    const OTHER: BackendRef = BackendRef::new(2, 0);
    const KEY: v4::Key = v4::Key::new(0x0a00_0001, 40_000, 1);
    const PAIR: u16 = 2;

    /// New tables that are in use.
    fn new_tables() -> Maps {
        let capacity = Capacity::for_flows(100, 10, 2, 4, 64, 1)
            .with_pairs(4)
            .translating_flows_of(IpVersion::V4, true);
        Maps::in_memory(capacity).unwrap()
    }

    fn live(state: State, backend: BackendRef, age: u32, flags: u64) -> Word {
        Word::live(state, backend, 9, Tick(NOW.0 - age), flags)
    }

    fn late(word: Word) -> Traveller<v4::Key> {
        Traveller {
            key: KEY,
            word,
            first_seen: 77,
            translation: None,
        }
    }

    fn settled(to: &Maps, late: &Traveller<v4::Key>) -> Fate {
        settle(to, &SEED, late, || NOW)
    }

    /// Puts an entry of the key into one of its homes.
    fn put(to: &Maps, home: usize, word: Word) -> Place {
        let table = v4::Key::table(to);
        let place = (table.homes(KEY, &SEED)[home], 2);
        let bucket = table.bucket(place.0);
        bucket.key_words(place.1)[0].store(KEY.0, Ordering::SeqCst);
        bucket.value(place.1).store(word.0, Ordering::SeqCst);
        place
    }

    fn at(to: &Maps, place: Place) -> Word {
        let value = v4::Key::table(to).bucket(place.0).value(place.1);
        Word(value.load(Ordering::SeqCst))
    }

    fn translate(to: &Maps, (index, way): Place, word: TranslationWord) {
        let mut bucket = to.nat4.get(index);
        bucket.translations[way as usize] = Translation {
            word: word.0,
            stamp: stamp(KEY.mixed(&SEED), ONE),
        };
        to.nat4.set(index, &bucket);
        let slot = slot_index(word.pair(), word.port());
        let place = slot_of(table::Place { index, way });
        let slots = to.slots.word(slot / 2, 0);
        slots.fetch_or(u64::from(place) << (32 * (slot % 2)), Ordering::SeqCst);
    }

    fn slot(to: &Maps, port: u16) -> u32 {
        let slot = slot_index(PAIR, port);
        (to.slots.get(slot / 2) >> (32 * (slot % 2))) as u32
    }

    #[test]
    fn what_the_new_table_lacks_is_missing_there() {
        let to = new_tables();
        for word in [Word::embryo(ONE, 5, NOW), live(State::Pin, ONE, 1, 0)] {
            assert_eq!(settled(&to, &late(word)), Fate::Missing);
        }
    }

    #[test]
    fn a_flow_that_has_gone_on_in_the_old_table_goes_on() {
        let to = new_tables();
        let place = put(&to, 1, Word::embryo(ONE, 5, NOW));
        let mut before = Word::embryo(ONE, 5, NOW);
        for after in [
            live(State::Young, ONE, 9, 0),
            live(State::Pin, ONE, 2, 0),
            live(State::Pin, ONE, 1, Word::HINT),
            live(State::Closing, ONE, 1, Word::EXCEPTION),
        ] {
            assert_eq!(at(&to, place), before);
            assert_eq!(settled(&to, &late(after)), Fate::Joined, "{after:?}");
            assert_eq!(at(&to, place), after);
            assert_eq!(settled(&to, &late(after)), Fate::Stands, "{after:?}");
            before = after;
        }
        let facts = v4::Key::table(&to).facts().get(place.0);
        assert_eq!(facts.first_seen, [0, 0, 77, 0], "when it was promoted");
    }

    #[test]
    fn a_flow_that_has_gone_on_in_the_new_table_stands() {
        let to = new_tables();
        let pin = live(State::Pin, ONE, 1, 0);
        let place = put(&to, 0, pin);
        for word in [
            Word::embryo(ONE, 5, NOW),
            Word::embryo(OTHER, 5, NOW),
            Word::challenger(OTHER, 5, NOW),
            live(State::Young, ONE, 0, 0),
            live(State::Pin, ONE, 2, 0),
            live(State::Closing, ONE, 2, 0),
        ] {
            assert_eq!(settled(&to, &late(word)), Fate::Stands, "{word:?}");
            assert_eq!(at(&to, place), pin);
        }
    }

    #[test]
    fn the_next_flow_of_a_port_stands_beside_the_former() {
        let young = live(State::Young, OTHER, 1, 0);
        let marked = live(State::Pin, ONE, 9, Word::CONTESTED);
        for flags in [0, Word::SECOND] {
            let to = new_tables();
            let place = put(&to, 0, live(State::Pin, ONE, 9, flags));
            assert_eq!(settled(&to, &late(young)), Fate::Newer);
            assert_eq!(at(&to, place), marked);
        }
        // Of the same backend, when it began as a challenger.
        let to = new_tables();
        let place = put(&to, 0, live(State::Pin, ONE, 9, 0));
        let second = live(State::Young, ONE, 1, Word::CONTESTED | Word::SECOND);
        assert_eq!(settled(&to, &late(second)), Fate::Newer);
        assert_eq!(at(&to, place), marked);
        // The challenger itself is there, but not that it was answered.
        let challenger = put(&to, 1, Word::challenger(ONE, 5, NOW));
        assert_eq!(settled(&to, &late(second)), Fate::Joined);
        assert_eq!(at(&to, challenger), second);
        // Of three one is too many.
        assert_eq!(settled(&to, &late(young)), Fate::Stands);
    }

    #[test]
    fn what_is_over_in_the_new_table_gives_way() {
        let young = live(State::Young, OTHER, 1, 0);
        for over in [
            Word::embryo(ONE, 5, NOW),
            live(State::Closing, ONE, LINGER_FIN_TICKS, 0),
        ] {
            let to = new_tables();
            let place = put(&to, 1, over);
            translate(&to, place, TranslationWord::new(PAIR, 2_000));
            assert_eq!(settled(&to, &late(young)), Fate::Missing);
            assert_eq!(at(&to, place), Word::EMPTY);
            assert_eq!(slot(&to, 2_000), 0, "its port is given back");
        }
    }

    #[test]
    fn what_either_table_has_seen_of_a_translated_flow_is_known() {
        let to = new_tables();
        let new = TranslationWord::new(PAIR, 2_000);
        let embryo = Word::embryo(ONE, 5, NOW);
        let place = put(&to, 0, embryo);
        translate(&to, place, new);
        let translated = |word, translation| Traveller {
            translation: Some(translation),
            ..late(word)
        };
        let at_place = |value| v4::Key::table(&to).translation(place, KEY, value, &SEED);
        // The backend's answer came by an interface that ran the old program.
        let answered = translated(embryo, new.answered(7));
        assert_eq!(settled(&to, &answered), Fate::Stands, "its entry");
        assert_eq!(at(&to, place), embryo);
        assert_eq!(at_place(embryo), Some(new.answered(7)));
        // And so with the FINs.
        let pin = live(State::Pin, ONE, 3, 0);
        let proven = new.proven(7);
        let client = proven.with_fin(TranslationWord::CLIENT_FIN, 9);
        let backend = proven.with_fin(TranslationWord::BACKEND_FIN, 9);
        assert_eq!(settled(&to, &translated(pin, client)), Fate::Joined);
        assert_eq!((at(&to, place), at_place(pin)), (pin, Some(client)));
        assert_eq!(settled(&to, &translated(pin, backend)), Fate::Joined);
        let closed = live(State::Closing, ONE, 0, Word::BY_RESET);
        assert_eq!(at(&to, place), closed);
        assert_eq!(at_place(closed), Some(client.joined(backend)));
        assert_ne!(slot(&to, 2_000), 0);
    }

    #[test]
    fn a_flow_whose_port_only_the_old_table_knows_is_inserted_with_it() {
        let to = new_tables();
        let place = put(&to, 0, Word::embryo(ONE, 5, NOW));
        let pin = Traveller {
            translation: Some(TranslationWord::new(PAIR, 2_000).proven(7)),
            ..late(live(State::Pin, ONE, 1, 0))
        };
        assert_eq!(settled(&to, &pin), Fate::Missing);
        assert_eq!(at(&to, place), Word::EMPTY);
    }
}
