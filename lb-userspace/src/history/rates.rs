//! Counters, sampled: rates of the last minutes, of the instance and of each service.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
};

use lb_common::{
    counters::Counter,
    verdict::{Reason, Verdict},
};
use serde::Serialize;

use crate::{
    dataplane::maps::Maps,
    inventory::Ids,
    status::{ServiceStatus, Status},
};

/// Samples that are kept: five minutes, at one every two seconds.
const SAMPLES: usize = 150;
/// Samples of a service that are kept: two minutes.
const SERVICE_SAMPLES: usize = 60;

/// What there was in a second, and flows at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Total {
    /// Young and pinned flows.
    pub live: u64,
    /// New flows a second.
    pub opened: f64,
    /// Packets a second that were sent to backends.
    pub packets: f64,
    /// Their bits a second.
    pub bits: f64,
    /// Packets a second to VIPs that were dropped or answered with a RST.
    pub lost: f64,
}

/// Rates as last sampled.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Rates {
    /// Of the instance.
    pub total: Total,
    /// Packets a second of each service, as the status of that moment lists them.
    pub services: Vec<f64>,
}

/// Rates of the last minutes, the latest last.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Past {
    /// Of the instance.
    pub total: Vec<Total>,
    /// Packets a second of each service, as the latest status lists them.
    pub services: Vec<Vec<f64>>,
}

type Key = (String, IpAddr, u16);

fn key(service: &ServiceStatus) -> Key {
    (service.name.clone(), service.vip, service.port)
}

/// Makes rates of counters.
#[derive(Debug, Default)]
pub struct Sampler {
    before: Option<Sample>,
    total: VecDeque<Total>,
    services: HashMap<Key, VecDeque<f64>>,
    /// Services in the order of the latest status.
    order: Vec<Key>,
}

/// Counters at one moment.
#[derive(Debug)]
struct Sample {
    at_ms: u64,
    opened: u64,
    sent: Counter,
    lost: u64,
    services: HashMap<Key, u64>,
}

impl Sampler {
    /// Samples the counters; `now_ms` is of any steady clock.
    pub fn sample(&mut self, maps: &Maps, status: &Status, now_ms: u64) {
        let now = Sample::take(maps, status, now_ms);
        self.order = status.services.iter().map(key).collect();
        if let Some(before) = &self.before {
            let seconds = now_ms.saturating_sub(before.at_ms).max(1) as f64 / 1e3;
            // Maps that were made anew begin at nothing.
            let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
            let total = Total {
                live: status.flows.live(),
                opened: rate(now.opened, before.opened),
                packets: rate(now.sent.packets, before.sent.packets),
                bits: rate(now.sent.bytes, before.sent.bytes) * 8.0,
                lost: rate(now.lost, before.lost),
            };
            push(&mut self.total, total, SAMPLES);
            let mut past = std::mem::take(&mut self.services);
            for (key, packets) in &now.services {
                let mut rates = past.remove(key).unwrap_or_default();
                if let Some(before) = before.services.get(key) {
                    push(&mut rates, rate(*packets, *before), SERVICE_SAMPLES);
                }
                self.services.insert(key.clone(), rates);
            }
        }
        self.before = Some(now);
    }

    /// As last sampled.
    pub fn latest(&self) -> Rates {
        let of = |key| {
            let rates: Option<&VecDeque<f64>> = self.services.get(key);
            rates.and_then(|rates| rates.back().copied())
        };
        Rates {
            total: self.total.back().copied().unwrap_or_default(),
            services: self
                .order
                .iter()
                .map(|key| of(key).unwrap_or_default())
                .collect(),
        }
    }

    /// The last minutes.
    pub fn past(&self) -> Past {
        let of = |key| {
            let rates: Option<&VecDeque<f64>> = self.services.get(key);
            rates.map_or(vec![], |rates| rates.iter().copied().collect())
        };
        Past {
            total: self.total.iter().copied().collect(),
            services: self.order.iter().map(of).collect(),
        }
    }
}

impl Sample {
    fn take(maps: &Maps, status: &Status, at_ms: u64) -> Self {
        let layout = maps.capacity.counters();
        let of = |reason| maps.counter(layout.reason(reason));
        let (mut sent, mut lost) = (Counter::default(), 0);
        for reason in Reason::ALL {
            let counter = of(*reason);
            match reason.verdict() {
                Verdict::Forward => {
                    sent.packets += counter.packets;
                    sent.bytes += counter.bytes;
                }
                Verdict::Drop | Verdict::Reset => lost += counter.packets,
                Verdict::Pass | Verdict::Answer => {}
            }
        }
        let ids = Ids::of(maps);
        let packets = |service: &ServiceStatus| {
            let id = ids.service(service)?;
            Some((key(service), maps.counter(layout.service(id)).packets))
        };
        Self {
            at_ms,
            opened: of(Reason::Opened).packets + of(Reason::Adopted).packets,
            sent,
            lost,
            services: status.services.iter().filter_map(packets).collect(),
        }
    }
}

fn push<T>(ring: &mut VecDeque<T>, value: T, most: usize) {
    if ring.len() == most {
        ring.pop_front();
    }
    ring.push_back(value);
}
