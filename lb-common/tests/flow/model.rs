//! The flow table as design.md tells it, with none of its words, buckets or places.

use std::{cmp::Ordering, collections::HashMap};

use lb_common::{
    backend::Serving,
    clock::Tick,
    flow::{
        v4::Key,
        word::{State, Word},
    },
    tcp::{ACK, FIN, RST, SYN, Segment},
    verdict::Reason,
};

use crate::{
    rig::Outcome,
    story::{Backend, Outside, key_of},
};

/// Ticks of 2^32 ns after which so many seconds have surely passed.
fn surely(seconds: u32) -> u32 {
    (f64::from(seconds) / 4.294_967_296).ceil() as u32 + 1
}

/// The life of a flow, as design.md tells it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Life {
    /// A SYN was seen.
    Asked {
        isn: u32,
        at: u32,
        challenges: bool,
    },
    /// Promoted or adopted at `since`.
    Young {
        since: u32,
    },
    Pin {
        seen: u32,
    },
    Closing {
        by_reset: bool,
        exception: bool,
        quiet_since: u32,
    },
}

/// One entry of a flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    backend: u32,
    generation: u8,
    life: Life,
    /// Position in the client's stream, in MiB, of what is not merely asked for.
    epoch: i64,
    /// The epoch jumped, and nothing has agreed yet.
    doubtful: bool,
    /// The later of two.
    newer: bool,
}

impl Held {
    fn is_asked(&self) -> bool {
        matches!(self.life, Life::Asked { .. })
    }

    fn is_closing(&self) -> bool {
        matches!(self.life, Life::Closing { .. })
    }

    fn is_claimable(&self, now: u32) -> bool {
        match self.life {
            Life::Closing {
                by_reset,
                exception,
                quiet_since,
            } => {
                let linger = match (by_reset, exception) {
                    (true, _) => 60,
                    (false, true) => 2 * 60 * 60,
                    (false, false) => 15 * 60,
                };
                // Its last packet may be a minute younger than what is known of it.
                let unknown = if by_reset { 0 } else { surely(60) };
                now - quiet_since >= surely(linger) + unknown
            }
            _ => false,
        }
    }

    /// For how long it has certainly not been seen; of a young one, since when it is.
    fn quiet(&self, now: u32) -> u32 {
        match self.life {
            Life::Asked { .. } => 0,
            Life::Young { since } => now - since,
            Life::Pin { seen } => now - seen,
            Life::Closing { quiet_since, .. } => now - quiet_since,
        }
    }

    /// Whether a client's segment is where this entry's stream is, and that may go on.
    fn has(&self, segment: &Segment) -> bool {
        matches!(self.life, Life::Young { .. } | Life::Pin { .. })
            && self.ahead(segment.seq).abs() <= 1
    }

    fn has_replaced(&self, other: &Self) -> bool {
        match self.life {
            Life::Pin { .. } => other.is_closing(),
            Life::Young { .. } => self.newer && other.is_closing(),
            _ => false,
        }
    }

    /// Closing, and its place can be had by a SYN beside another one.
    fn gives_way(&self, beside: &Self, now: u32) -> bool {
        match self.life {
            Life::Closing { by_reset, .. } => {
                by_reset
                    || beside.is_closing()
                    || self.is_claimable(now)
                    || (self.backend, self.generation) == (beside.backend, beside.generation)
            }
            _ => false,
        }
    }

    /// How many epochs a sequence number is ahead, from -2048 to 2047.
    fn ahead(&self, seq: u32) -> i64 {
        (i64::from(seq >> 20) - self.epoch + 2048).rem_euclid(4096) - 2048
    }

    fn is_followed_by(&self, segment: &Segment) -> bool {
        match self.life {
            Life::Asked { isn, .. } => {
                segment.flags & (SYN | ACK | FIN | RST) == ACK
                    && (0..=1 << 17).contains(&segment.seq.wrapping_sub(isn))
            }
            _ => false,
        }
    }

    /// Whether a segment is the very next after the SYN.
    fn is_next(&self, segment: &Segment) -> bool {
        match self.life {
            Life::Asked { isn, .. } => segment.seq == isn.wrapping_add(1),
            _ => false,
        }
    }

    fn is_young(&self) -> bool {
        matches!(self.life, Life::Young { .. })
    }

    fn has_proven(&self) -> bool {
        self.newer && matches!(self.life, Life::Pin { .. })
    }

    /// A segment without SYN that belongs to this entry.
    fn takes(&mut self, segment: &Segment, now: u32, pick: u32) {
        if self.is_asked() {
            if self.is_followed_by(segment) {
                self.newer = matches!(
                    self.life,
                    Life::Asked {
                        challenges: true,
                        ..
                    }
                );
                self.life = Life::Young { since: now };
                self.epoch = i64::from(segment.seq >> 20);
                self.doubtful = false;
            }
            return;
        }
        let ahead = self.ahead(segment.seq);
        let near = ahead.abs() <= 1;
        if segment.flags & (FIN | RST) != 0 {
            if near && !self.doubtful {
                self.follow(ahead);
                let resets = segment.flags & RST != 0;
                self.life = match self.life {
                    Life::Closing {
                        by_reset,
                        exception,
                        quiet_since,
                    } => Life::Closing {
                        by_reset: by_reset || resets,
                        exception,
                        quiet_since: if by_reset || resets || now - quiet_since >= surely(60) {
                            now
                        } else {
                            quiet_since
                        },
                    },
                    _ => Life::Closing {
                        by_reset: resets,
                        exception: pick != self.backend,
                        quiet_since: now,
                    },
                };
            }
            return;
        }
        let agrees = near && self.doubtful;
        // What comes soon after a FIN was sent before it, unless two have come from where the stream is not yet.
        let early = match self.life {
            Life::Closing {
                by_reset: false,
                quiet_since,
                ..
            } => now - quiet_since < surely(10),
            _ => false,
        };
        if early && !near && (-2047..0).contains(&ahead) {
            return;
        }
        if near {
            self.doubtful = false;
            self.follow(ahead);
        } else {
            self.doubtful = true;
            self.epoch = i64::from(segment.seq >> 20);
        }
        match self.life {
            Life::Young { since } if now - since >= surely(30) => {
                self.life = Life::Pin { seen: now };
            }
            Life::Pin { .. } => self.life = Life::Pin { seen: now },
            Life::Closing {
                by_reset,
                exception,
                quiet_since,
            } => {
                self.life = if near && (by_reset || segment.payload && (agrees || !early)) {
                    Life::Young { since: now }
                } else {
                    // Whatever else its client sends begins its time to linger anew; for what is near, that is looked at once a minute.
                    let again = !near || by_reset || now - quiet_since >= surely(60);
                    Life::Closing {
                        by_reset,
                        exception,
                        quiet_since: if again { now } else { quiet_since },
                    }
                };
            }
            _ => {}
        }
    }

    /// After [`Held::takes`], of a flow whose backend is dead: the client knows that it is over, by its own RST or FIN or by ours.
    fn is_refused(&mut self, segment: &Segment, now: u32) {
        let is_credible = self.ahead(segment.seq).abs() <= 1 && !self.doubtful;
        if !self.is_asked() && is_credible {
            self.life = Life::Closing {
                by_reset: true,
                exception: false,
                quiet_since: now,
            };
        }
    }

    fn follow(&mut self, ahead: i64) {
        if ahead == 1 {
            self.epoch = (self.epoch + 1) % 4096;
        }
    }
}

/// Who went where: the reference.
#[derive(Default)]
pub(crate) struct Reference {
    pub(crate) flows: HashMap<u32, Vec<Held>>,
}

/// A backend that was chosen: id and what is known of it.
type Choice = (u32, Backend);

fn sent(choice: Choice, reason: Reason) -> Outcome {
    let reason = if choice.1.resolved {
        reason
    } else {
        Reason::Unresolved
    };
    (reason, Some(choice.0))
}

impl Reference {
    fn pick_new(outside: &Outside, key: Key) -> Result<Choice, Outcome> {
        let mut refusal = Reason::NoBackend;
        for attempt in 0..4 {
            let id = outside.rig.slot_of(key, attempt).current();
            let backend = outside.backends[id as usize];
            if backend.serving == Serving::New && id != 0 {
                if backend.resolved {
                    return Ok((id, backend));
                }
                refusal = Reason::Unresolved;
            }
        }
        Err((refusal, None))
    }

    /// The backend that an entry was made for, if its id was not reused.
    fn still(outside: &Outside, held: &Held) -> Option<Choice> {
        let backend = outside.backends[held.backend as usize];
        (backend.generation == held.generation).then_some((held.backend, backend))
    }

    fn asked(choice: Choice, isn: u32, now: Tick, challenges: bool) -> Held {
        Held {
            backend: choice.0,
            generation: choice.1.generation,
            life: Life::Asked {
                isn,
                at: now.0,
                challenges,
            },
            epoch: 0,
            doubtful: false,
            newer: challenges,
        }
    }

    /// The daemon has swept.
    pub(crate) fn sweep(&mut self, now: Tick) {
        for held in self.flows.values_mut() {
            held.retain(|one| match one.life {
                Life::Asked { at, .. } => now.0 - at < surely(128),
                _ => !one.is_claimable(now.0),
            });
        }
    }

    /// Forgets what was claimable and is gone: it could go at any time.
    fn forget_claimed(&mut self, flow: u32, words: &[Word], now: Tick) {
        let held = self.flows.entry(flow).or_default();
        held.retain(|one| {
            !one.is_claimable(now.0)
                || words.iter().any(|word| {
                    word.is(State::Closing)
                        && word.backend().id() == one.backend
                        && word.has(Word::SECOND) == one.newer
                })
        });
        assert_eq!(held.len(), words.len(), "flow {flow}: {held:?} {words:?}");
    }

    /// What becomes of a packet.
    pub(crate) fn packet(&mut self, outside: &Outside, flow: u32, segment: &Segment) -> Outcome {
        let words = outside.rig.entries(key_of(flow));
        self.forget_claimed(flow, &words, outside.now);
        if segment.flags & SYN != 0 {
            if segment.flags & (ACK | FIN | RST) != 0 {
                return (Reason::BadFlags, None);
            }
            // Which of two equals goes is the table's to choose.
            let first_is_newer = words.first().is_some_and(|word| word.has(Word::SECOND));
            return self
                .syn(outside, flow, segment.seq, first_is_newer)
                .unwrap_or_else(|refusal| refusal);
        }
        let held = self.flows.entry(flow).or_default();
        if held.is_empty() {
            return self.unknown(outside, flow, segment);
        }
        let owner = Self::owner(held, segment, outside.now.0);
        let Some(choice) = Self::still(outside, &held[owner]) else {
            held.remove(owner);
            return (Reason::StaleGeneration, None);
        };
        let pick = outside.rig.slot_of(key_of(flow), 0).current();
        held[owner].takes(segment, outside.now.0, pick);
        if choice.1.serving == Serving::None {
            held[owner].is_refused(segment, outside.now.0);
        }
        match choice.1.serving {
            Serving::None if segment.flags & RST != 0 => (Reason::ResetToDead, Some(choice.0)),
            Serving::None => (Reason::BackendDead, Some(choice.0)),
            _ => sent(choice, Reason::Established),
        }
    }

    /// Whose a segment is.
    fn owner(held: &[Held], segment: &Segment, now: u32) -> usize {
        if held.len() == 1 {
            return 0;
        }
        if let Some(asked) = held.iter().position(Held::is_asked) {
            if segment.flags & RST != 0 {
                let other = &held[1 - asked];
                let is_of_other = other.doubtful || other.ahead(segment.seq).abs() <= 1;
                return if is_of_other { 1 - asked } else { asked };
            }
            let is_next = held[asked].is_next(segment);
            return if held[asked].is_followed_by(segment)
                && (is_next || !held[1 - asked].has(segment))
            {
                asked
            } else {
                1 - asked
            };
        }
        // A young one has nothing that is not near; and near are all within an epoch.
        let far: Vec<_> = held
            .iter()
            .map(|one| one.ahead(segment.seq).abs())
            .zip(held)
            .map(|(epochs, one)| (one.is_young() && epochs > 8, epochs.max(1)))
            .collect();
        match far[0].cmp(&far[1]) {
            Ordering::Less => 0,
            Ordering::Greater => 1,
            // In a tie to the newer one, or to a pin, rather than to one that is closing; else to the one seen last, or to the older.
            Ordering::Equal if held[0].has_replaced(&held[1]) => 0,
            Ordering::Equal if held[1].has_replaced(&held[0]) => 1,
            // Then to the newer one if that has proven itself.
            Ordering::Equal if held[0].has_proven() != held[1].has_proven() => {
                usize::from(held[1].has_proven())
            }
            Ordering::Equal => match held[0].quiet(now).cmp(&held[1].quiet(now)) {
                Ordering::Less => 0,
                Ordering::Greater => 1,
                Ordering::Equal if held.iter().all(Held::is_young) => usize::from(!held[0].newer),
                Ordering::Equal => usize::from(held[0].newer),
            },
        }
    }

    fn syn(
        &mut self,
        outside: &Outside,
        flow: u32,
        isn: u32,
        first_is_newer: bool,
    ) -> Result<Outcome, Outcome> {
        let key = key_of(flow);
        let now = outside.now;
        let held = self.flows.entry(flow).or_default();
        let for_challenger = |incumbent: &Held| match Self::still(outside, incumbent) {
            Some(kept) if kept.1.serving == Serving::New && kept.1.resolved => Ok(kept),
            _ => Self::pick_new(outside, key),
        };
        let asked = held.iter().position(Held::is_asked);
        if let Some(asked) = asked {
            let Life::Asked {
                isn: before,
                challenges,
                ..
            } = held[asked].life
            else {
                unreachable!()
            };
            let same = before == isn;
            // Another SYN goes where the live flow is, if there is one.
            let preferred = if same || held.len() == 1 {
                held[asked]
            } else {
                held[1 - asked]
            };
            let kept = Self::still(outside, &preferred).filter(|kept| {
                // The same SYN stays where it is; another one may as well go where there is a way.
                match kept.1.serving {
                    Serving::New => same || kept.1.resolved,
                    Serving::ExistingOnly => same,
                    Serving::None => false,
                }
            });
            if same && let Some(kept) = kept {
                return Ok(sent(kept, Reason::Reopened));
            }
            let choice = kept.map_or_else(|| Self::pick_new(outside, key), Ok)?;
            held[asked] = Self::asked(choice, isn, now, challenges);
            return Ok(sent(choice, Reason::Reopened));
        }
        match held.len() {
            0 => {
                let choice = Self::pick_new(outside, key)?;
                held.push(Self::asked(choice, isn, now, false));
                Ok(sent(choice, Reason::Opened))
            }
            1 if held[0].is_claimable(now.0) => {
                let choice = Self::pick_new(outside, key)?;
                held[0] = Self::asked(choice, isn, now, false);
                Ok(sent(choice, Reason::Opened))
            }
            1 => {
                let choice = for_challenger(&held[0])?;
                held[0].newer = false;
                held.push(Self::asked(choice, isn, now, true));
                Ok(sent(choice, Reason::Challenged))
            }
            _ => {
                // A flow of a dead backend is over.
                let dead = |held: &Held| {
                    Self::still(outside, held).is_none_or(|kept| kept.1.serving == Serving::None)
                };
                // Of two dead ones the one goes that is found first in the table, which only the table knows.
                let dead = [dead(&held[0]), dead(&held[1])];
                let gives_way = [
                    held[0].gives_way(&held[1], now.0),
                    held[1].gives_way(&held[0], now.0),
                ];
                let goes = match (gives_way[0], gives_way[1]) {
                    (false, false) if dead == [true, false] => 0,
                    (false, false) if dead == [false, true] => 1,
                    (false, false) if dead == [true, true] => {
                        usize::from(held[1].newer == first_is_newer)
                    }
                    (false, false) => {
                        let as_data = Segment {
                            seq: isn,
                            flags: ACK,
                            payload: false,
                        };
                        let nearer = held[Self::owner(held, &as_data, now.0)];
                        return match Self::still(outside, &nearer) {
                            Some(kept) if kept.1.serving == Serving::New => {
                                Ok(sent(kept, Reason::Unpinned))
                            }
                            _ => Err((Reason::Contested, None)),
                        };
                    }
                    (true, false) => 0,
                    (false, true) => 1,
                    (true, true) => match held[0].quiet(now.0).cmp(&held[1].quiet(now.0)) {
                        Ordering::Greater => 0,
                        Ordering::Less => 1,
                        Ordering::Equal => usize::from(held[1].newer == first_is_newer),
                    },
                };
                let choice = for_challenger(&held[1 - goes])?;
                held[1 - goes].newer = false;
                held[goes] = Self::asked(choice, isn, now, true);
                Ok(sent(choice, Reason::Challenged))
            }
        }
    }

    fn unknown(&mut self, outside: &Outside, flow: u32, segment: &Segment) -> Outcome {
        let slot = outside.rig.slot_of(key_of(flow), 0);
        let handing_over = outside.now.0 - slot.changed().0 < surely(600);
        let candidates = [
            if handing_over { slot.previous() } else { 0 },
            slot.current(),
        ];
        let serves =
            |id: &&u32| **id != 0 && outside.backends[**id as usize].serving != Serving::None;
        let mid_stream = segment.flags & (SYN | ACK | FIN | RST) == ACK;
        let Some(&id) = candidates.iter().find(serves) else {
            let told = mid_stream || segment.flags & (FIN | RST) == FIN;
            let reason = if told {
                Reason::NoBackendForFlow
            } else {
                Reason::NoBackend
            };
            return (reason, None);
        };
        let choice = (id, outside.backends[id as usize]);
        if !mid_stream {
            return sent(choice, Reason::Stray);
        }
        if !choice.1.resolved || !outside.adoption {
            return sent(choice, Reason::Unadopted);
        }
        self.flows.entry(flow).or_default().push(Held {
            backend: id,
            generation: choice.1.generation,
            life: Life::Young {
                since: outside.now.0,
            },
            epoch: i64::from(segment.seq >> 20),
            doubtful: false,
            newer: false,
        });
        sent(choice, Reason::Adopted)
    }
}

/// What the reference says of a flow's entries, to be compared with the words.
pub(crate) fn shape_of_held(held: &Held) -> (u32, u8, &'static str) {
    let name = match held.life {
        Life::Asked {
            challenges: false, ..
        } => "Embryo",
        Life::Asked {
            challenges: true, ..
        } => "Challenger",
        Life::Young { .. } => "Young",
        Life::Pin { .. } => "Pin",
        Life::Closing { .. } => "Closing",
    };
    (held.backend, held.generation, name)
}
