//! How many checks are under way at once: of all services together, and of each, so that one whose backends all hang does not keep the others waiting.
//!
//! Of either a quarter is kept for checks that may change something soon. Each check of a silent backend takes its whole timeout: a thousand that are known to be dead
//! would else have all places, and the others be asked late.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::track::Track;
use crate::model::Target;

/// Which places a check may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Any.
    Usual,
    /// None of the quarter that is kept for others.
    Behind,
}

/// Places of all services, or of one.
#[derive(Clone, Debug)]
struct Room {
    places: Arc<Semaphore>,
    /// As many as those that are behind others may have.
    behind: Arc<Semaphore>,
}

/// What is taken of a room, until it is dropped.
type Taken = [Option<OwnedSemaphorePermit>; 2];

/// The places of all services.
#[derive(Debug)]
pub(super) struct Places {
    all: Room,
    services: HashMap<String, ServicePlaces>,
}

/// The places of one service.
#[derive(Clone, Debug)]
pub(super) struct ServicePlaces {
    all: Room,
    own: Room,
    count: usize,
}

/// A place that a check has, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    _own: Taken,
    _of_all: Taken,
}

impl Turn {
    /// The next one of a backend whose last check took so long, of at most `timeout`. One that refuses at once is in nobody's way.
    pub(super) fn after(track: &Track, took: Duration, timeout: Duration) -> Self {
        if track.is_given_up() && took > timeout / 2 {
            Self::Behind
        } else {
            Self::Usual
        }
    }
}

impl Room {
    fn new(count: usize) -> Self {
        // Where there is but one it is anybody's.
        let behind = (count - count.div_ceil(4)).max(1);
        Self {
            places: Arc::new(Semaphore::new(count)),
            behind: Arc::new(Semaphore::new(behind)),
        }
    }

    /// Waits for a place, first come, first served among those of one turn.
    async fn take(&self, turn: Turn) -> Taken {
        // In this order: who is behind others waits without a place. Neither is ever closed.
        let behind = match turn {
            Turn::Usual => None,
            Turn::Behind => Arc::clone(&self.behind).acquire_owned().await.ok(),
        };
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        [behind, place]
    }
}

impl Places {
    /// So many in all.
    pub(super) fn new(at_once: usize) -> Self {
        Self {
            all: Room::new(at_once),
            services: HashMap::new(),
        }
    }

    /// Gives each service as many as its checks say. Those under way keep the places they have.
    pub(super) fn adjust(&mut self, targets: &[Target]) {
        let mut wanted: HashMap<&str, usize> = HashMap::new();
        for target in targets {
            let count = wanted.entry(&target.name.service).or_default();
            *count = (*count).max(target.check.at_once);
        }
        self.services
            .retain(|service, places| wanted.get(service.as_str()) == Some(&places.count));
        for (service, count) in wanted {
            if !self.services.contains_key(service) {
                let places = self.places(count);
                self.services.insert(service.to_owned(), places);
            }
        }
    }

    /// Those of a service that the last [`Places::adjust`] named.
    pub(super) fn of(&self, service: &str) -> ServicePlaces {
        let known = self.services.get(service).cloned();
        known.unwrap_or_else(|| self.places(1))
    }

    fn places(&self, count: usize) -> ServicePlaces {
        ServicePlaces {
            all: self.all.clone(),
            own: Room::new(count),
            count,
        }
    }
}

impl ServicePlaces {
    /// Waits for a place.
    pub(super) async fn take(&self, turn: Turn) -> Place {
        // In this order: who waits for its own service's turn keeps nobody else waiting.
        let own = self.own.take(turn).await;
        let of_all = self.all.take(turn).await;
        Place {
            _own: own,
            _of_all: of_all,
        }
    }
}

impl PartialEq for ServicePlaces {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.own.places, &other.own.places)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        net::{Ipv4Addr, SocketAddr},
    };

    use futures::FutureExt as _;

    use super::*;
    use crate::{
        health::track::{Reply, Rules, Sign},
        ids::Numbered,
        model::{BackendName, Check, Health},
    };

    fn target(service: &str, at_once: usize) -> Target {
        Target {
            name: BackendName {
                service: service.into(),
                backend: "b1".into(),
            },
            object: Numbered {
                id: 1,
                generation: 0,
            },
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 80)),
            check: Check {
                at_once,
                ..Check::DEFAULT
            },
            through: None,
            answers_echoes: false,
            verdict: Health::Unknown,
        }
    }

    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        future.now_or_never()
    }

    fn usual(places: &ServicePlaces) -> Option<Place> {
        now(places.take(Turn::Usual))
    }

    fn behind(places: &ServicePlaces) -> Option<Place> {
        now(places.take(Turn::Behind))
    }

    #[test]
    fn a_service_has_its_places_and_all_have_theirs() {
        let mut places = Places::new(3);
        places.adjust(&[target("chat", 2), target("game", 2)]);
        let (chat, game) = (places.of("chat"), places.of("game"));
        let first = usual(&chat).unwrap();
        let _second = usual(&chat).unwrap();
        assert!(usual(&chat).is_none());
        // The third of all is another service's.
        let _third = usual(&game).unwrap();
        assert!(usual(&game).is_none());
        drop(first);
        let fourth = usual(&game);
        assert!(fourth.is_some());
        // Its own service has room, but all places are taken.
        assert!(usual(&chat).is_none());
        drop(fourth);
        assert!(usual(&chat).is_some());
    }

    #[test]
    fn a_quarter_of_the_places_is_kept_from_those_behind_others() {
        let mut places = Places::new(8);
        let names = ["chat", "game", "shop"];
        places.adjust(&names.map(|name| target(name, 4)));
        let held = names.map(|name| {
            let own = places.of(name);
            std::iter::from_fn(|| behind(&own)).collect::<Vec<_>>()
        });
        // Of each service's four, and of all eight.
        assert_eq!(held.each_ref().map(Vec::len), [3, 3, 0]);
        let others = ["chat", "shop"].map(|name| usual(&places.of(name)));
        assert!(others.iter().all(Option::is_some));
        assert!(usual(&places.of("shop")).is_none());
        drop((held, others));
        // The only one is anybody's.
        places.adjust(&[target("chat", 1)]);
        let only = behind(&places.of("chat"));
        assert!(only.is_some() && usual(&places.of("chat")).is_none());
    }

    #[test]
    fn who_is_given_up_and_keeps_its_place_for_long_is_behind_others() {
        let second = Duration::from_secs(1);
        let mut track = Track::new(Rules {
            interval: second,
            doubt_interval: second,
            fall: 2,
            rise: 1,
        });
        let slow = |track: &Track| Turn::after(track, second, second);
        assert_eq!(slow(&track), Turn::Usual);
        for (reply, turn) in [
            (Reply::Silent, Turn::Usual),
            (Reply::Silent, Turn::Behind),
            (Reply::No, Turn::Behind),
            (Reply::Yes, Turn::Usual),
        ] {
            track.observe(reply, Sign::Absent);
            assert_eq!(slow(&track), turn, "{reply:?}");
        }
        for _ in 0..2 {
            track.observe(Reply::No, Sign::Absent);
        }
        assert_eq!(slow(&track), Turn::Behind);
        let refuses_at_once = Turn::after(&track, second / 9, second);
        assert_eq!(refuses_at_once, Turn::Usual);
    }

    #[test]
    fn another_count_makes_other_places_and_the_same_one_none() {
        let mut places = Places::new(9);
        places.adjust(&[target("chat", 1), target("game", 1)]);
        let (chat, game) = (places.of("chat"), places.of("game"));
        let _held = usual(&chat).unwrap();
        places.adjust(&[target("chat", 2), target("game", 1)]);
        assert_ne!(places.of("chat"), chat);
        assert_eq!(places.of("game"), game);
        assert!(usual(&places.of("chat")).is_some());
        places.adjust(&[]);
        assert!(places.services.is_empty());
    }
}
