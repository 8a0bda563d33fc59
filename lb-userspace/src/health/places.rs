//! How many checks are under way at once: of all services together, and of each, so that one whose backends all hang does not keep the others waiting.

use std::{collections::HashMap, sync::Arc};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::model::Target;

/// The places of all services.
#[derive(Debug)]
pub(super) struct Places {
    all: Arc<Semaphore>,
    services: HashMap<String, ServicePlaces>,
}

/// The places of one service.
#[derive(Clone, Debug)]
pub(super) struct ServicePlaces {
    all: Arc<Semaphore>,
    own: Arc<Semaphore>,
    count: usize,
}

/// A place that a check has, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    _own: Option<OwnedSemaphorePermit>,
    _of_all: Option<OwnedSemaphorePermit>,
}

impl Places {
    /// So many in all.
    pub(super) fn new(at_once: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(at_once)),
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
            all: Arc::clone(&self.all),
            own: Arc::new(Semaphore::new(count)),
            count,
        }
    }
}

impl ServicePlaces {
    /// Waits for a place, first come, first served.
    pub(super) async fn take(&self) -> Place {
        // In this order: who waits for its own service's turn keeps nobody else waiting. Neither is ever closed.
        let own = Arc::clone(&self.own).acquire_owned().await.ok();
        let of_all = Arc::clone(&self.all).acquire_owned().await.ok();
        Place {
            _own: own,
            _of_all: of_all,
        }
    }
}

impl PartialEq for ServicePlaces {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.own, &other.own)
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

    #[test]
    fn a_service_has_its_places_and_all_have_theirs() {
        let mut places = Places::new(3);
        places.adjust(&[target("chat", 2), target("game", 2)]);
        let (chat, game) = (places.of("chat"), places.of("game"));
        let first = now(chat.take()).unwrap();
        let _second = now(chat.take()).unwrap();
        assert!(now(chat.take()).is_none());
        // The third of all is another service's.
        let _third = now(game.take()).unwrap();
        assert!(now(game.take()).is_none());
        drop(first);
        let fourth = now(game.take());
        assert!(fourth.is_some());
        // Its own service has room, but all places are taken.
        assert!(now(chat.take()).is_none());
        drop(fourth);
        assert!(now(chat.take()).is_some());
    }

    #[test]
    fn another_count_makes_other_places_and_the_same_one_none() {
        let mut places = Places::new(9);
        places.adjust(&[target("chat", 1), target("game", 1)]);
        let (chat, game) = (places.of("chat"), places.of("game"));
        let _held = now(chat.take()).unwrap();
        places.adjust(&[target("chat", 2), target("game", 1)]);
        assert_ne!(places.of("chat"), chat);
        assert_eq!(places.of("game"), game);
        assert!(now(places.of("chat").take()).is_some());
        places.adjust(&[]);
        assert!(places.services.is_empty());
    }
}
