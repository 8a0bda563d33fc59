//! What is seen of backends' hosts, and whether a fall of many of them is theirs or this machine's own blindness.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use super::BackendFacts;
use crate::{model::Health, pace::Moment};

/// A fall of many backends within this time is suspect, in milliseconds.
const MASS_FALL_MS: u64 = 10_000;
/// Of fewer hosts than this no fall is suspect.
const MASS_FALL_MINIMUM: usize = 4;
/// So long after it a fall of many is suspect, while another host is seen to be well; and until that is so.
const MASS_FALL_DOUBT: Duration = Duration::from_secs(60);
/// A backend may be the first of many to fall when checks of at least one in so many others fail too.
const FALTERING_ONE_IN: usize = 4;

/// When a host was last seen to be well, up and its latest check good: who fell a minute before that, or earlier, is dead, also when nobody is well any more.
///
/// No restart needs it. The maps say of who was taken for dead that it serves nothing, and for the next daemon such a one has not fallen; all others fall
/// anew when that daemon finds them down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WellSeen {
    /// One of the service's own.
    pub own: Option<Moment>,
    /// One of any service.
    pub everywhere: Option<Moment>,
}

/// That a fall of many may be this machine's own blindness.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doubt {
    /// When that ends by itself; none while nobody is seen to be well.
    pub(super) ends: Option<Moment>,
}

/// What is seen of one host, whatever ports it serves at.
#[derive(Clone, Copy, Debug)]
struct Host {
    /// Nothing that it serves is there.
    is_down: bool,
    /// Some of it is up, and its checks were good until then; [`STILL`] if its latest one was.
    well_until_ms: Option<u64>,
    /// When the last of what fell did so.
    fell_at_ms: Option<u64>,
}

/// Until now, and for as long as nobody says otherwise.
const STILL: u64 = u64::MAX;

/// What is seen of several hosts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight {
    /// When one was last seen to be well.
    pub(super) well_seen: Option<Moment>,
    /// Whether so many of them fell together that they may be well.
    pub(super) doubt: Option<Doubt>,
}

impl Sight {
    /// Looks at the hosts of `backends`, of which one was last seen to be well at `well_seen`.
    pub(super) fn of<'f>(
        backends: impl Iterator<Item = &'f BackendFacts<'f>>,
        well_seen: Option<Moment>,
        now: Moment,
    ) -> Self {
        let mut hosts: BTreeMap<IpAddr, Host> = BTreeMap::new();
        for backend in backends.filter(|backend| backend.wanted.is_some()) {
            let host = hosts.entry(backend.address).or_insert(Host {
                is_down: true,
                well_until_ms: None,
                fell_at_ms: None,
            });
            host.is_down &= backend.health == Health::Down;
            if backend.health == Health::Up {
                let until = backend.faltered_at_ms.unwrap_or(STILL);
                host.well_until_ms = host.well_until_ms.max(Some(until));
            }
            host.fell_at_ms = host.fell_at_ms.max(backend.fell_at_ms);
        }
        let well_until = hosts.values().filter_map(|host| host.well_until_ms).max();
        let is_one_well = well_until == Some(STILL);
        let well_seen = if is_one_well {
            Some(now)
        } else {
            well_seen.max(well_until.map(moment))
        };
        let doubted_until = fell_together(&hosts)
            .map(|fell_at| fell_at.later(MASS_FALL_DOUBT))
            // Seen so late it was believed, and is so still, whatever became of who was well.
            .filter(|&ends| well_seen.is_none_or(|seen| seen < ends));
        Self {
            well_seen,
            doubt: doubted_until.map(|ends| Doubt {
                ends: is_one_well.then_some(ends),
            }),
        }
    }
}

/// A moment of the checks.
fn moment(ms: u64) -> Moment {
    Moment(i64::try_from(ms).unwrap_or(i64::MAX))
}

/// When the last fell of over half of at least four hosts that fell within ten seconds of one another and are down still.
fn fell_together(hosts: &BTreeMap<IpAddr, Host>) -> Option<Moment> {
    if hosts.len() < MASS_FALL_MINIMUM {
        return None;
    }
    let down = hosts.values().filter(|host| host.is_down);
    let mut falls: Vec<u64> = down.filter_map(|host| host.fell_at_ms).collect();
    falls.sort_unstable();
    let suspect = hosts.len() / 2 + 1;
    let together = falls
        .windows(suspect)
        .rfind(|window| window[suspect - 1] - window[0] <= MASS_FALL_MS)?;
    Some(moment(together[suspect - 1]))
}

/// Whether so many others falter since about when a backend fell that these may be the first signs of a fall of many.
pub(super) fn may_be_the_first(fallen: &BackendFacts<'_>, all: &[BackendFacts<'_>]) -> bool {
    let Some(fell_at) = fallen.fell_at_ms else {
        return false;
    };
    // By address: what one host serves at several ports is lost as one.
    let mut others: BTreeMap<IpAddr, bool> = BTreeMap::new();
    for other in all {
        if other.wanted.is_none() || other.address == fallen.address {
            continue;
        }
        let falters = other.health != Health::Down
            && other
                .faltered_at_ms
                .is_some_and(|since| since.abs_diff(fell_at) <= MASS_FALL_MS);
        *others.entry(other.address).or_default() |= falters;
    }
    let faltering = others.values().filter(|falters| **falters).count();
    faltering > 0 && faltering * FALTERING_ONE_IN >= others.len()
}
