//! Which flows are asked for, in which order, and from where on.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{FlowState, page::Cursor};

/// The most flows in one sorted page.
pub const MOST_SORTED: usize = 10_000;
/// How many a sorted page has if nothing is said.
const SORTED: usize = 1_000;

/// What is asked for, as it stands in a URL.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct FlowQuery {
    /// Only flows of the service of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Only flows on backends of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Only flows of clients in this prefix: `10.0.0.0/8`, `2001:db8::/32`, or one address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// Only flows in one of these states, separated by commas: `embryo`, `challenger`, `young`, `pin`, `closing`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Only flows first seen so many seconds ago or longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_age_s: Option<u64>,
    /// Only flows first seen so many seconds ago at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_s: Option<u64>,
    /// Only flows without a packet for so many seconds or longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_idle_s: Option<u64>,
    /// Only flows with a packet in the last so many seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_idle_s: Option<u64>,
    /// The order; without it, that of the tables, which costs one pass over them however much is listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sort: Option<Sort>,
    /// The other way round. Needs `sort`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reverse: bool,
    /// How many flows at most; without it all, or 1,000 of a sorted list, of which 10,000 is the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Where the list goes on: what an earlier answer to the same question gave as `next`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// An order of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Sort {
    /// By address and port of the client.
    Client,
    /// Those first seen longest ago first; of which that is not known, last.
    Age,
    /// Those without a packet for the longest time first.
    Idle,
}

/// Why a question cannot be answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadQuery {
    /// No prefix.
    #[error(
        "client is {0:?}, which is no address and no prefix; write it like 10.1.0.0/16, 2001:db8::/32 or 10.1.2.3"
    )]
    Client(String),
    /// No state.
    #[error(
        "state has {0:?}; the states are embryo, challenger, young, pin and closing, separated by commas"
    )]
    State(String),
    /// A limit that nothing can hold.
    #[error(
        "limit is {0}; it is 1 to {MOST_SORTED} for a sorted list, and at least 1 for any: the rest comes with `after`"
    )]
    Limit(usize),
    /// Reversed what has no order.
    #[error("reverse needs sort")]
    Reverse,
    /// Not what an answer gave.
    #[error(
        "after is {0:?}, which no answer to this question gave; give what the last answer had as `next`, and the same sort"
    )]
    After(String),
}

/// What is asked for, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    pub(super) service: Option<String>,
    pub(super) backend: Option<String>,
    pub(super) client: Option<Prefix>,
    pub(super) states: States,
    pub(super) min_age_s: Option<u64>,
    pub(super) max_age_s: Option<u64>,
    pub(super) min_idle_s: Option<u64>,
    pub(super) max_idle_s: Option<u64>,
    pub(super) sort: Option<Sort>,
    pub(super) reverse: bool,
    pub(super) limit: usize,
    pub(super) after: Option<Cursor>,
}

impl FlowQuery {
    /// Understands it.
    ///
    /// # Errors
    /// When a part of it means nothing.
    pub fn select(self) -> Result<Selection, BadQuery> {
        let client = self
            .client
            .map(|text| text.parse().map_err(|()| BadQuery::Client(text)))
            .transpose()?;
        let states = match &self.state {
            None => States::ALL,
            Some(text) => text.parse()?,
        };
        if self.reverse && self.sort.is_none() {
            return Err(BadQuery::Reverse);
        }
        let limit = match (self.sort, self.limit) {
            (_, Some(limit @ 0)) => return Err(BadQuery::Limit(limit)),
            (Some(_), Some(limit)) if limit > MOST_SORTED => return Err(BadQuery::Limit(limit)),
            (_, Some(limit)) => limit,
            (Some(_), None) => SORTED,
            (None, None) => usize::MAX,
        };
        let after = self
            .after
            .map(|text| Cursor::parse(&text, self.sort).ok_or(BadQuery::After(text)))
            .transpose()?;
        Ok(Selection {
            service: self.service,
            backend: self.backend,
            client,
            states,
            min_age_s: self.min_age_s,
            max_age_s: self.max_age_s,
            min_idle_s: self.min_idle_s,
            max_idle_s: self.max_idle_s,
            sort: self.sort,
            reverse: self.reverse,
            limit,
            after,
        })
    }
}

/// A prefix of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    network: IpAddr,
    bits: u32,
}

impl Prefix {
    /// Whether an address lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.network, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let differ = network.to_bits() ^ address.to_bits();
                differ.leading_zeros() >= self.bits
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let differ = network.to_bits() ^ address.to_bits();
                differ.leading_zeros() >= self.bits
            }
            _ => false,
        }
    }
}

impl FromStr for Prefix {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse().map_err(drop)?)),
            None => (text, None),
        };
        let network: IpAddr = address.parse().map_err(drop)?;
        let most = if network.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(most);
        if bits > most {
            return Err(());
        }
        Ok(Self { network, bits })
    }
}

/// A set of states.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct States(u8);

impl States {
    /// Every one.
    pub const ALL: Self = Self(0b1_1111);

    /// Whether a state is one of them.
    pub fn contains(self, state: FlowState) -> bool {
        self.0 & (1 << state as u8) != 0
    }
}

impl fmt::Debug for States {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let states = FlowState::ALL.into_iter().filter(|s| self.contains(*s));
        f.debug_set().entries(states).finish()
    }
}

impl FromStr for States {
    type Err = BadQuery;

    fn from_str(text: &str) -> Result<Self, BadQuery> {
        text.split(',').try_fold(Self(0), |states, word| {
            let state = FlowState::ALL.into_iter().find(|s| s.word() == word.trim());
            let state = state.ok_or_else(|| BadQuery::State(word.to_owned()))?;
            Ok(Self(states.0 | 1 << state as u8))
        })
    }
}
