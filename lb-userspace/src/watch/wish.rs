//! What a listener wants, in names, and as the program is told. Pure.

use std::net::IpAddr;

use lb_common::{
    net::Address,
    verdict::{Reason, Verdict},
    watch::{ANY, Filter, MOST_KEPT},
};
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;

use crate::{dataplane::maps::Maps, inventory::Ids, status::Status};

/// Bytes of a packet that say what it means for its flow: all headers that there may be, and hardly more.
const HEADERS: u32 = 160;

/// Which packets, or flows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub struct Wish {
    /// Only of the service of this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Only on this backend, as SERVICE/BACKEND.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Only of clients in this prefix, as `10.0.0.0/8`, or of this one address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// Only those that come to one of these reasons, with commas between them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// One of so many: packets of a capture, flows of events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<u32>,
}

impl Wish {
    /// For a capture that keeps so many bytes of each packet. Without reasons, those of packets for services.
    ///
    /// # Errors
    /// With what is wrong, and what there is.
    pub fn packets(&self, maps: &Maps, status: &Status, kept: u32) -> Result<Filter, String> {
        let reasons = match &self.reason {
            Some(names) => reasons(names)?,
            None => Reason::ALL
                .iter()
                .filter(|reason| reason.verdict() != Verdict::Pass)
                .fold(0, |set, reason| set | Filter::bit(*reason)),
        };
        Ok(Filter {
            reasons,
            kept: kept.min(MOST_KEPT),
            ..self.common(maps, status)?
        })
    }

    /// For events of flows.
    ///
    /// # Errors
    /// As [`Wish::packets`].
    pub fn flows(&self, maps: &Maps, status: &Status) -> Result<Filter, String> {
        let all = Reason::ALL
            .iter()
            .filter(|reason| {
                matches!(reason.verdict(), Verdict::Drop | Verdict::Reset)
                    || matches!(
                        reason,
                        Reason::Opened | Reason::Challenged | Reason::Adopted
                    )
            })
            .fold(0, |set, reason| set | Filter::bit(*reason));
        let (reasons, changes) = match &self.reason {
            Some(names) => (reasons(names)?, 0),
            None => (all, 1),
        };
        Ok(Filter {
            reasons,
            changes,
            by_flow: 1,
            kept: HEADERS,
            ..self.common(maps, status)?
        })
    }

    fn common(&self, maps: &Maps, status: &Status) -> Result<Filter, String> {
        let ids = Ids::of(maps);
        let mut filter = Filter {
            service: ANY,
            backend: ANY,
            sample: match self.sample {
                None | Some(1) => u32::MAX,
                Some(0) => return Err("sample is one of so many: 1 or more".into()),
                Some(of) => u32::MAX / of,
            },
            ..Filter::default()
        };
        if let Some(name) = &self.service {
            let service = status.services.iter().find(|service| service.name == *name);
            let id = service.and_then(|service| ids.service(service));
            filter.service = u32::from(id.ok_or_else(|| {
                format!("there is no service {name:?}; `tether services` lists them")
            })?);
        }
        if let Some(name) = &self.backend {
            let found = name.split_once('/').and_then(|(service, backend)| {
                let service = status.services.iter().find(|known| known.name == service)?;
                let backend = service
                    .backends
                    .iter()
                    .find(|known| known.name == backend)?;
                ids.backend(service, backend)
            });
            filter.backend = found.ok_or_else(|| {
                format!(
                    "there is no backend {name:?}; write it as SERVICE/BACKEND, as `tether backends` lists them"
                )
            })?;
        }
        if let Some(text) = &self.client {
            (filter.prefix, filter.mask) = prefix(text).ok_or_else(|| {
                format!("{text:?} is no address and no prefix; write it like 10.0.0.0/8 or 2001:db8::/32")
            })?;
        }
        Ok(filter)
    }
}

/// A set of reasons of names with commas between them.
fn reasons(names: &str) -> Result<u64, String> {
    names.split(',').try_fold(0, |set, name| {
        let reason = Reason::ALL.iter().find(|reason| reason.name() == name);
        let reason = reason.ok_or_else(|| {
            let all: Vec<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
            format!("there is no reason {name:?}; there are {}", all.join(", "))
        })?;
        Ok(set | Filter::bit(*reason))
    })
}

/// A prefix as the program compares addresses: masked address and mask.
fn prefix(text: &str) -> Option<([u64; 2], [u64; 2])> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits.parse::<u32>().ok()?)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    // An IPv4 address stands behind 96 bits that say so.
    let (before, most) = if address.is_ipv4() {
        (96, 32)
    } else {
        (0, 128)
    };
    let bits = bits.unwrap_or(most);
    if bits > most {
        return None;
    }
    let ones = u128::MAX.checked_shl(128 - before - bits).unwrap_or(0);
    let mask = Address(ones.to_be_bytes()).words();
    let words = Address::from(address).words();
    Some(([words[0] & mask[0], words[1] & mask[1]], mask))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::tests as shown;

    fn filter(change: impl FnOnce(&mut Wish)) -> Result<Filter, String> {
        let status = shown::a_status();
        let mut wish = Wish::default();
        change(&mut wish);
        wish.packets(&shown::maps_of(&status), &status, 100_000)
    }

    #[test]
    fn names_become_ids() {
        let all = filter(|_| ()).unwrap();
        assert_eq!((all.service, all.backend, all.mask), (ANY, ANY, [0; 2]));
        assert_eq!(
            (all.sample, all.kept, all.changes),
            (u32::MAX, MOST_KEPT, 0)
        );
        assert_eq!(all.reasons & Filter::bit(Reason::NotService), 0);
        assert_ne!(all.reasons & Filter::bit(Reason::Established), 0);
        let one = filter(|wish| {
            wish.service = Some("chat".into());
            wish.backend = Some("chat/b2".into());
            wish.reason = Some("opened,no_backend".into());
            wish.sample = Some(4);
        })
        .unwrap();
        assert_eq!((one.service, one.backend, one.sample), (3, 6, u32::MAX / 4));
        assert_eq!(
            one.reasons,
            Filter::bit(Reason::Opened) | Filter::bit(Reason::NoBackend)
        );
    }

    #[test]
    fn what_is_not_there_is_said_with_what_is() {
        for (error, remedy) in [
            (
                filter(|wish| wish.service = Some("none".into())),
                "tether services",
            ),
            (
                filter(|wish| wish.backend = Some("b1".into())),
                "SERVICE/BACKEND",
            ),
            (
                filter(|wish| wish.client = Some("10.0.0.0/33".into())),
                "10.0.0.0/8",
            ),
            (
                filter(|wish| wish.reason = Some("opend".into())),
                "reopened",
            ),
            (filter(|wish| wish.sample = Some(0)), "1 or more"),
        ] {
            let error = error.unwrap_err();
            assert!(error.contains(remedy), "{error}");
        }
    }

    #[test]
    fn prefixes_compare_as_they_should() {
        let is_in = |text: &str, address: &str| {
            let (prefix, mask) = prefix(text).unwrap();
            let words = Address::from(address.parse::<IpAddr>().unwrap()).words();
            (words[0] & mask[0], words[1] & mask[1]) == (prefix[0], prefix[1])
        };
        assert!(is_in("10.0.0.0/8", "10.255.0.1") && !is_in("10.0.0.0/8", "11.0.0.1"));
        assert!(is_in("10.9.8.7", "10.9.8.7") && !is_in("10.9.8.7", "10.9.8.6"));
        assert!(is_in("0.0.0.0/0", "10.9.8.7") && !is_in("0.0.0.0/0", "2001:db8::1"));
        assert!(is_in("2001:db8::/33", "2001:db8:7fff::1"));
        assert!(!is_in("2001:db8::/33", "2001:db8:8000::1"));
        assert!(is_in("::/0", "2001:db8::1"));
    }

    #[test]
    fn events_are_of_changes_and_refusals_and_of_whole_flows() {
        let status = shown::a_status();
        let filter = Wish::default()
            .flows(&shown::maps_of(&status), &status)
            .unwrap();
        assert_eq!((filter.changes, filter.by_flow), (1, 1));
        assert_eq!(filter.reasons & Filter::bit(Reason::Established), 0);
        for reason in [Reason::Opened, Reason::NoBackend, Reason::BackendDead] {
            assert_ne!(filter.reasons & Filter::bit(reason), 0);
        }
    }
}
