//! What a segment of either side changes of its flow: [`lb_common::nat::life`] on the maps.

use lb_common::{
    clock::Tick,
    flow::{
        table::{Entry, Look, Place},
        word::{State, Word},
    },
    nat::{TranslationWord, life::Flow},
    tcp::Segment,
    verdict::Reason,
};

use super::store;
use crate::{
    flow::{self, Table},
    maps,
};

/// The segment is a client's.
pub(super) const CLIENT: bool = false;
/// The segment is a backend's.
pub(super) const BACKEND: bool = true;

// How it ended: numbers, since that is what a BPF function returns.
/// What had to be written is written.
const WRITTEN: u32 = 0;
/// Others have changed the flow meanwhile, twice; or it is no more.
const LOST: u32 = 1;
/// Nothing can be written now: see [`lb_common::maps::Hold`].
const HELD: u32 = 2;
/// What had to be written is written, and the flow has proven itself with that.
const PROVEN: u32 = 3;

/// Writes what a segment changes of the flow at a place, which acknowledges `ack`. Gives whether the flow has proven itself with that. An error if that
/// is to be seen again, and so the packet.
#[inline(always)]
pub(super) fn live_on<T: Table, const SIDE: bool>(
    place: Place,
    segment: &Segment,
    ack: u32,
) -> Result<bool, Reason> {
    let flags = segment.flags as u64 | ((segment.payload as u64) << 8);
    let what = ((segment.seq as u64) << 32) | flags;
    let when = ((ack as u64) << 32) | maps::now().0 as u64;
    match write::<T, SIDE>(place.index, place.way, what, when) {
        WRITTEN => Ok(false),
        PROVEN => Ok(true),
        HELD => Err(Reason::Held),
        _ => Err(Reason::Untranslated),
    }
}

/// By value, and a function of its own: see [`live_on`].
#[inline(never)]
fn write<T: Table, const SIDE: bool>(index: u32, way: u32, what: u64, when: u64) -> u32 {
    let place = Place { index, way };
    let segment = Segment {
        seq: (what >> 32) as u32,
        flags: what as u8,
        payload: (what >> 8) & 1 != 0,
    };
    let (ack, now) = ((when >> 32) as u32, Tick(when as u32));
    let Some(translation) = store::at::<T>(place) else {
        return LOST;
    };
    let mut attempt = 0;
    while attempt < 2 {
        let Some((key, value)) = flow::at::<T>(place) else {
            return LOST;
        };
        let (word, stamp) = store::load(translation);
        if stamp != store::stamp::<T>(&key, value.backend()) {
            return LOST;
        }
        let before = Flow {
            value,
            translation: word,
        };
        let after = if SIDE == BACKEND {
            before.after_backend(&segment, ack, now)
        } else {
            before.after_client(&segment, ack, now)
        };
        if after == before {
            return WRITTEN;
        }
        if maps::is_held() {
            // A later segment tells the same as this one, but for one that opens or ends.
            const REST: u64 = TranslationWord::ANSWERED
                | TranslationWord::PROVEN
                | TranslationWord::CLIENT_FIN
                | TranslationWord::BACKEND_FIN;
            let is_refresh = !value.is_nascent()
                && (after.value.0 ^ value.0) & State::Invalid as u64 == 0
                && (after.translation.0 ^ word.0) & REST == 0;
            return if is_refresh { WRITTEN } else { HELD };
        }
        // The translation first: of two FINs that meet here, whoever comes second sees the other's.
        let is_written = (after.translation == word
            || store::replace(translation, word, after.translation))
            && (after.value == value || flow::replace::<T>(place, value, after.value));
        if is_written {
            if value.is_nascent() && after.value.is_live() {
                flow::note_first_seen::<T>(place, now.0);
                return PROVEN;
            }
            return WRITTEN;
        }
        attempt += 1;
    }
    LOST
}

/// Whether the packet that is being steered acknowledges what the backend of the flow at a place has answered. None if the flow is not translated.
#[inline(always)]
pub(crate) fn answers<T: Table>(place: Place) -> Option<bool> {
    acknowledges::<T>(place, maps::handed_on().mtu)
}

/// The same of a packet that acknowledges `ack`.
#[inline(always)]
pub(crate) fn acknowledges<T: Table>(place: Place, ack: u32) -> Option<bool> {
    let (key, value) = flow::at::<T>(place)?;
    let word = store::valid::<T>(place, &key, value.backend())?;
    let is_answered = word.has(TranslationWord::ANSWERED) && !word.has(TranslationWord::PROVEN);
    Some(is_answered && word.isn().wrapping_add(1) == ack)
}

/// Ends the former flow of the client's port, of mode `dnat`, once a flow at a place has proven itself: the backend knows them by the same numbers, so
/// that nobody could tell the two flows' segments apart; and since it has answered another SYN from there, it knows the former no more.
#[inline(always)]
pub(super) fn end_former<T: Table>(place: Place) {
    let is_dnat = match store::at::<T>(place) {
        Some(translation) => store::load(translation).0.pair() == 0,
        None => false,
    };
    if let Some((key, word)) = flow::at::<T>(place)
        && is_dnat
        && word.is_live()
        && word.has(Word::SECOND)
    {
        let subject = flow::subject::<T>(key);
        if let Some(former) = flow::look::<T>(&subject, &Look::twin_of(&Entry { place, word }))
            && former.word.is_live()
            && endpoint_of(former.word) == endpoint_of(word)
        {
            flow::replace::<T>(former.place, former.word, Word::EMPTY);
        }
    }
}

/// The id of the endpoint that an entry's backend is at; 0 is none.
#[inline(always)]
fn endpoint_of(word: Word) -> u32 {
    match maps::backend(word.backend().id()) {
        Some((backend, _)) => maps::endpoint_of(backend),
        None => 0,
    }
}
