//! How many connections a listener serves at once, and who goes when there are more.
//!
//! Whoever has not asked anything yet waits, and gives way: of those the one that came first. So peers that open connections and say
//! nothing keep nobody out, however many they are, while one that asks at once is answered.
//!
//! Where peers have addresses, those that are being answered give way too: who has the most of them to who has fewer, and one that is answered slowly to the
//! next of its own. So peers that read slowly keep nobody from elsewhere out, and their like not for long.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

/// Connections that are served at once by one listener, at most.
pub(crate) const CONNECTIONS: usize = 64;
/// An answer that has lasted so long gives way to the next peer of the same source, where that has as many places as anybody.
const SLOW: Duration = Duration::from_secs(5);

/// The places of one listener.
#[derive(Clone, Debug)]
pub(crate) struct Gate(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// How many there are.
    most: usize,
    places: Mutex<Places>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Places {
    /// Of the next connection.
    number: u64,
    /// Those that have asked nothing yet, by number.
    silent: BTreeMap<u64, Taken>,
    /// Those that are being answered.
    asked: BTreeMap<u64, Taken>,
}

/// A place that is taken.
#[derive(Debug)]
struct Taken {
    /// By whom, where peers have addresses.
    source: Option<IpAddr>,
    /// Since it is what it is: silent, or being answered.
    since: Instant,
    /// How it is told to go.
    go: Arc<Notify>,
}

/// A place, for as long as it is held.
#[derive(Debug)]
pub(crate) struct Place {
    gate: Gate,
    number: u64,
    go: Arc<Notify>,
    endless: AtomicBool,
}

impl Default for Gate {
    fn default() -> Self {
        Self::of(CONNECTIONS)
    }
}

impl Gate {
    /// So many places.
    pub(crate) fn of(most: usize) -> Self {
        Self(Arc::new(Shared {
            most,
            places: Mutex::default(),
            freed: Notify::new(),
        }))
    }

    /// Takes a place; waits only while every other is being answered.
    pub(crate) async fn enter(&self) -> Place {
        loop {
            let freed = self.0.freed.notified();
            if let Some(place) = self.try_enter() {
                return place;
            }
            freed.await;
        }
    }

    /// Takes a place, if one is free, or held by somebody who has asked nothing.
    pub(crate) fn try_enter(&self) -> Option<Place> {
        self.take(None, |places| places.silent.keys().next().copied())
    }

    /// Takes a place for a peer with an address, if one is free, or held by somebody who gives way to it.
    pub(crate) fn enter_from(&self, peer: IpAddr) -> Option<Place> {
        let source = source_of(peer);
        self.take(Some(source), |places| places.gives_way_to(source))
    }

    fn take(
        &self,
        source: Option<IpAddr>,
        gives_way: impl FnOnce(&Places) -> Option<u64>,
    ) -> Option<Place> {
        let mut places = self.places();
        if places.asked.len() + places.silent.len() >= self.0.most {
            let number = gives_way(&places)?;
            let taken = places.silent.remove(&number);
            let taken = taken.or_else(|| places.asked.remove(&number))?;
            taken.go.notify_one();
        }
        let number = places.number;
        places.number += 1;
        let go = Arc::new(Notify::new());
        let taken = Taken {
            source,
            since: Instant::now(),
            go: go.clone(),
        };
        places.silent.insert(number, taken);
        Some(Place {
            gate: self.clone(),
            number,
            go,
            endless: AtomicBool::new(false),
        })
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        // Nothing panics while it is held.
        self.0.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Places {
    /// Who gives way to one more peer from a source, if anybody does.
    fn gives_way_to(&self, source: IpAddr) -> Option<u64> {
        let mut held: HashMap<Option<IpAddr>, usize> = HashMap::new();
        for taken in self.silent.values().chain(self.asked.values()) {
            *held.entry(taken.source).or_default() += 1;
        }
        let of = |taken: &Taken| held.get(&taken.source).copied().unwrap_or(0);
        // Of those whose source has the most, the first.
        let greediest = |places: &BTreeMap<u64, Taken>| {
            let most = places.values().map(of).max()?;
            let first = places.iter().find(|(_, taken)| of(taken) == most)?;
            Some((*first.0, most))
        };
        if let Some((number, _)) = greediest(&self.silent) {
            return Some(number);
        }
        let own = held.get(&Some(source)).copied().unwrap_or(0);
        let (number, most) = greediest(&self.asked)?;
        if own < most {
            return Some(number);
        }
        let mut own = self.asked.iter();
        let (number, taken) = own.find(|(_, taken)| taken.source == Some(source))?;
        (taken.since.elapsed() >= SLOW).then_some(*number)
    }
}

/// Whom an address belongs to: of IPv6, whoever has its prefix of 64 bits has all addresses in it.
fn source_of(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)))
        }
        four => four,
    }
}

impl Place {
    /// Its peer has asked something: it gives way to nobody any more who has no address. One that has to go already goes all the same.
    pub(super) fn asked(&self) {
        let mut places = self.gate.places();
        if let Some(taken) = places.silent.remove(&self.number) {
            let taken = Taken {
                since: Instant::now(),
                ..taken
            };
            places.asked.insert(self.number, taken);
        }
    }

    /// Its answer may take any time.
    pub(super) fn is_endless(&self) {
        self.endless.store(true, Ordering::Relaxed);
    }

    /// Waits until the connection is to end: its place is needed, or `patience` is over and its answer should have an end.
    pub(super) async fn given_up(&self, patience: Duration) {
        tokio::select! {
            () = self.go.notified() => {}
            () = async {
                tokio::time::sleep(patience).await;
                if self.endless.load(Ordering::Relaxed) {
                    std::future::pending::<()>().await;
                }
            } => {}
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.gate.places();
        // One that was told to go is in neither.
        places.silent.remove(&self.number);
        places.asked.remove(&self.number);
        drop(places);
        self.gate.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a place's peer has been told to go. To be asked once.
    async fn goes(place: &Place) -> bool {
        let told = place.given_up(Duration::from_hours(1));
        tokio::time::timeout(Duration::from_millis(1), told)
            .await
            .is_ok()
    }

    fn peer(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// A peer that has asked at once.
    fn asks(gate: &Gate, from: &str) -> Option<Place> {
        let place = gate.enter_from(peer(from))?;
        place.asked();
        Some(place)
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_most_places_gives_way_to_who_has_fewer() {
        let gate = Gate::of(4);
        let many: Vec<Place> = (0..4).filter_map(|_| asks(&gate, "192.0.2.1")).collect();
        assert_eq!(many.len(), 4);
        // Its own next one does not get in, while none of them is slow.
        assert!(asks(&gate, "192.0.2.1").is_none());
        let first = asks(&gate, "127.0.0.1").unwrap();
        let second = asks(&gate, "127.0.0.1").unwrap();
        let mut told = Vec::new();
        for place in &many {
            told.push(goes(place).await);
        }
        assert_eq!(told, [true, true, false, false], "those that came first");
        // Two each: that is fair.
        assert!(asks(&gate, "127.0.0.1").is_none());
        assert!(asks(&gate, "192.0.2.1").is_none());
        let other = asks(&gate, "198.51.100.7").unwrap();
        assert!(goes(&many[2]).await);
        for place in [&first, &second, &other, &many[3]] {
            assert!(!goes(place).await);
        }
        // A place that is left is anybody's.
        drop(other);
        assert!(asks(&gate, "127.0.0.1").is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_answered_slowly_gives_way_to_the_next_of_its_own() {
        let gate = Gate::of(2);
        let slow = asks(&gate, "127.0.0.1").unwrap();
        tokio::time::advance(SLOW / 2).await;
        let quick = asks(&gate, "127.0.0.1").unwrap();
        assert!(asks(&gate, "127.0.0.1").is_none());
        tokio::time::advance(SLOW / 2).await;
        let next = asks(&gate, "127.0.0.1").unwrap();
        assert!(goes(&slow).await);
        assert!(!goes(&quick).await);
        assert!(!goes(&next).await);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_asked_nothing_gives_way_first() {
        let gate = Gate::of(3);
        let silent = gate.enter_from(peer("127.0.0.1")).unwrap();
        let many = [0, 1].map(|_| asks(&gate, "192.0.2.1").unwrap());
        let next = asks(&gate, "192.0.2.1").unwrap();
        assert!(goes(&silent).await);
        // Of the silent, those of who has the most.
        drop(many);
        let few = gate.enter_from(peer("127.0.0.1")).unwrap();
        let more = gate.enter_from(peer("192.0.2.1")).unwrap();
        let _other = gate.enter_from(peer("198.51.100.7")).unwrap();
        assert!(goes(&more).await);
        assert!(!goes(&few).await);
        assert!(!goes(&next).await);
    }

    #[test]
    fn a_prefix_of_ipv6_is_one_source_and_an_address_in_its_form_that_of_ipv4() {
        let same = |one: &str, other: &str| source_of(peer(one)) == source_of(peer(other));
        assert!(same("2001:db8:0:1::1", "2001:db8:0:1:ffff::2"));
        assert!(!same("2001:db8:0:1::1", "2001:db8:0:2::1"));
        assert!(same("::ffff:192.0.2.1", "192.0.2.1"));
        assert!(!same("192.0.2.1", "192.0.2.2"));
        assert!(!same("::ffff:192.0.2.1", "::ffff:192.0.2.2"));
    }
}
