//! The flows of an instance, as they are asked for: read from the mapped tables in one pass, and handed on as they are found.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use lb_common::{
    clock::{Tick, seconds},
    flow::{
        bucket::WAYS,
        v4, v6,
        word::{EMBRYO_TICK_BITS, State, Word},
    },
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Names, Selection, Sort,
    page::{Cursor, Key, Page, Place},
};
use crate::{
    dataplane::{
        maps::Maps,
        table::{Table, TableKey},
    },
    flows::judge,
    status::Status,
    wall_clock::since_1970,
};

/// The state of a flow's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FlowState {
    /// A SYN was seen.
    Embryo,
    /// A SYN was seen for a client's port that has a live flow.
    Challenger,
    /// Answered or adopted, not yet proven by time.
    Young,
    /// Proven: it keeps its backend for as long as it lives.
    Pin,
    /// A FIN or RST was seen.
    Closing,
}

impl FlowState {
    /// Every state.
    pub const ALL: [Self; 5] = [
        Self::Embryo,
        Self::Challenger,
        Self::Young,
        Self::Pin,
        Self::Closing,
    ];

    /// Its name.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Embryo => "embryo",
            Self::Challenger => "challenger",
            Self::Young => "young",
            Self::Pin => "pin",
            Self::Closing => "closing",
        }
    }

    /// Of an entry's value; none if that is no entry.
    pub const fn of(word: Word) -> Option<Self> {
        match word.state() {
            State::Embryo => Some(Self::Embryo),
            State::Challenger => Some(Self::Challenger),
            State::Young => Some(Self::Young),
            State::Pin => Some(Self::Pin),
            State::Closing => Some(Self::Closing),
            State::Empty | State::Busy | State::Invalid => None,
        }
    }
}

/// A flow. Times are known to about 4.3 s, in which the tables count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FlowRow {
    /// Address and port of the client.
    #[schema(value_type = String)]
    pub client: SocketAddr,
    /// Name of the service; none for a moment while it comes or goes.
    pub service: Option<String>,
    /// VIP and port of the service.
    #[schema(value_type = Option<String>)]
    pub endpoint: Option<SocketAddr>,
    /// Name of the backend; none for a moment while it comes or goes.
    pub backend: Option<String>,
    /// Address and port of the backend.
    #[schema(value_type = Option<String>)]
    pub address: Option<SocketAddr>,
    /// State of its entry.
    pub state: FlowState,
    /// When its client first answered, or it was adopted, in seconds since 1970; none before that, or if it is not known.
    pub first_seen: Option<u64>,
    /// Seconds since then; of an embryo or challenger, since its SYN.
    pub age_s: Option<u64>,
    /// Seconds since its last packet; of a young flow, at most so many.
    pub idle_s: u64,
    /// Whether it was adopted in mid-stream, its SYN not seen here.
    pub adopted: bool,
}

/// The last line of an answer: without it the answer is not whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FlowEnd {
    /// How many flows were listed before it.
    pub listed: u64,
    /// What to give as `after` for those that follow; none if these were the last.
    pub next: Option<String>,
}

/// A line of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FlowLine {
    /// A flow.
    Flow(FlowRow),
    /// The last line.
    End(FlowEnd),
}

/// An entry that was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    client: (IpAddr, u16),
    service: u16,
    word: Word,
    first_seen: Option<Tick>,
    /// Ticks since its last packet.
    idle: u32,
}

/// What the keys of both tables have for people.
trait Client: TableKey {
    fn client(&self) -> (IpAddr, u16);
}

impl Client for v4::Key {
    fn client(&self) -> (IpAddr, u16) {
        (Ipv4Addr::from_bits(self.address()).into(), self.port())
    }
}

impl Client for v6::Key {
    fn client(&self) -> (IpAddr, u16) {
        (self.address().into(), self.port())
    }
}

/// Lists the flows of a selection, one after another, each to `take`; the end comes last. Ends early, and without it, when `take` says
/// false: nobody listens any more.
pub fn list(
    maps: &Maps,
    status: &Status,
    selection: &Selection,
    now: Tick,
    mut take: impl FnMut(FlowLine) -> bool,
) {
    let names = Names::of(maps, status);
    let view = View {
        names: &names,
        selection,
        now,
        epoch_s: since_1970(),
    };
    let end = match selection.sort {
        Some(sort) => sorted(maps, &view, sort, &mut take),
        None => unsorted(maps, &view, &mut take),
    };
    if let Some(end) = end {
        take(FlowLine::End(end));
    }
}

fn sorted(
    maps: &Maps,
    view: &View<'_>,
    sort: Sort,
    take: &mut impl FnMut(FlowLine) -> bool,
) -> Option<FlowEnd> {
    let after = match view.selection.after {
        Some(Cursor::Key(key)) => Some(key),
        _ => None,
    };
    let mut page = Page::new(view.selection.limit, view.selection.reverse, after);
    let mut offer = |_, found: Found| {
        page.offer(view.key(sort, &found), found);
        true
    };
    view.pass(v4::Key::table(maps), 4, None, &mut offer);
    view.pass(v6::Key::table(maps), 6, None, &mut offer);
    let (found, next) = page.finish();
    let listed = found.len() as u64;
    for found in found {
        if !take(FlowLine::Flow(view.row(&found))) {
            return None;
        }
    }
    Some(FlowEnd {
        listed,
        next: next.map(|cursor| cursor.text()),
    })
}

fn unsorted(
    maps: &Maps,
    view: &View<'_>,
    take: &mut impl FnMut(FlowLine) -> bool,
) -> Option<FlowEnd> {
    let after = match view.selection.after {
        Some(Cursor::Place(place)) => Some(place),
        _ => None,
    };
    let mut listed = 0;
    let mut last = None;
    let mut next = None;
    let mut gone = false;
    let mut offer = |place, found: Found| {
        if listed == view.selection.limit as u64 {
            next = last;
            return false;
        }
        (listed, last) = (listed + 1, Some(place));
        gone = !take(FlowLine::Flow(view.row(&found)));
        !gone
    };
    let _ = view.pass(v4::Key::table(maps), 4, after, &mut offer)
        && view.pass(v6::Key::table(maps), 6, after, &mut offer);
    if gone {
        return None;
    }
    Some(FlowEnd {
        listed,
        next: next.map(|place| Cursor::Place(place).text()),
    })
}

/// Everything that a look at one entry needs.
struct View<'a> {
    names: &'a Names<'a>,
    selection: &'a Selection,
    now: Tick,
    /// The time, in seconds since 1970.
    epoch_s: u64,
}

impl View<'_> {
    /// Shows `offer` what is selected, from behind a place on. False if it has had enough.
    fn pass<K: Client>(
        &self,
        table: Table<'_, K>,
        version: u8,
        after: Option<Place>,
        offer: &mut impl FnMut(Place, Found) -> bool,
    ) -> bool {
        let first = match after {
            Some(place) if place.version > version => return true,
            Some(place) if place.version == version => place.bucket,
            _ => 0,
        };
        for bucket in first..table.buckets() {
            for way in 0..WAYS {
                let place = Place {
                    version,
                    bucket,
                    way,
                };
                if after.is_some_and(|after| place <= after) {
                    continue;
                }
                if let Some(found) = self.look(table, place)
                    && !offer(place, found)
                {
                    return false;
                }
            }
        }
        true
    }

    /// The entry at a place, if there is one and it is asked for.
    fn look<K: Client>(&self, table: Table<'_, K>, place: Place) -> Option<Found> {
        let (key, word) = table.read((place.bucket, place.way))?;
        let selection = self.selection;
        if !selection.states.contains(FlowState::of(word)?) {
            return None;
        }
        let client = key.client();
        if selection
            .client
            .is_some_and(|prefix| !prefix.contains(client.0))
        {
            return None;
        }
        let first_seen = if word.is_nascent() {
            None
        } else {
            let facts = table.facts().get(place.bucket);
            let tick = facts.first_seen[place.way as usize];
            (tick != 0).then_some(Tick(tick))
        };
        let found = Found {
            client,
            service: key.service(),
            word,
            first_seen,
            idle: if word.is_nascent() {
                judge::just_now(word.nascent_age(self.now), EMBRYO_TICK_BITS)
            } else {
                judge::age(word, self.now)
            },
        };
        let (idle, age) = (seconds(found.idle), self.age_s(&found));
        let within = |value: Option<u64>, least: Option<u64>, most: Option<u64>| {
            least.is_none_or(|least| value.is_some_and(|value| value >= least))
                && most.is_none_or(|most| value.is_some_and(|value| value <= most))
        };
        let wanted = within(Some(idle), selection.min_idle_s, selection.max_idle_s)
            && within(age, selection.min_age_s, selection.max_age_s)
            && self.is_named(&found);
        wanted.then_some(found)
    }

    fn is_named(&self, found: &Found) -> bool {
        let selection = self.selection;
        selection.service.as_ref().is_none_or(|wanted| {
            let service = self.names.service(found.service);
            let by_backend = self.names.backend(found.word.backend());
            // One that was renamed still has flows on backends of its old name.
            by_backend
                .map(|(service, _)| service)
                .or(service)
                .is_some_and(|service| service.name == *wanted)
        }) && selection.backend.as_ref().is_none_or(|wanted| {
            self.names
                .backend(found.word.backend())
                .is_some_and(|(_, backend)| backend.name == *wanted)
        })
    }

    fn age_s(&self, found: &Found) -> Option<u64> {
        if found.word.is_nascent() {
            return Some(seconds(found.idle));
        }
        let since = found.first_seen?;
        Some(seconds(self.now.0.saturating_sub(since.0)))
    }

    fn key(&self, sort: Sort, found: &Found) -> Key {
        let last_seen = self.now.0.saturating_sub(found.idle);
        Key {
            tick: match sort {
                Sort::Client => 0,
                Sort::Age if found.word.is_nascent() => last_seen,
                Sort::Age => found.first_seen.map_or(u32::MAX, |tick| tick.0),
                Sort::Idle => last_seen,
            },
            client: found.client,
            service: found.service,
            second: found.word.is(State::Challenger)
                || (found.word.is_live() && found.word.has(Word::SECOND)),
        }
    }

    fn row(&self, found: &Found) -> FlowRow {
        let backend = self.names.backend(found.word.backend());
        let service = backend
            .map(|(service, _)| service)
            .or_else(|| self.names.service(found.service));
        let age_s = self.age_s(found);
        let is_live = found.word.is_live();
        FlowRow {
            client: SocketAddr::from(found.client),
            service: service.map(|service| service.name.clone()),
            endpoint: service.map(|service| SocketAddr::new(service.vip, service.port)),
            backend: backend.map(|(_, backend)| backend.name.clone()),
            address: backend.map(|(_, backend)| SocketAddr::new(backend.address, backend.port)),
            // It was selected, and so has one.
            state: FlowState::of(found.word).unwrap_or(FlowState::Embryo),
            first_seen: age_s
                .filter(|_| found.first_seen.is_some())
                .map(|age| self.epoch_s.saturating_sub(age)),
            age_s,
            idle_s: seconds(found.idle),
            adopted: is_live && found.word.has(Word::FOREIGN),
        }
    }
}
