//! Backends' addresses from the DNS: A, AAAA and SRV, asked for again as their TTL says, within bounds.
//!
//! Only asks and reports. That a name which stops resolving keeps its last answer is decided by the reconciler, which alone knows that.

mod ask;

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use self::ask::Resolver;
use crate::shutdown;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Question {
    /// The name.
    pub name: String,
    /// Which records.
    pub kind: Kind,
}

/// Which records are asked for.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A and AAAA, both.
    Address,
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Names with ports and weights, and then the addresses of these.
    Srv,
}

/// Bounds of the time after which is asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// No sooner than this, and after a failure.
    pub min: Duration,
    /// No later than this.
    pub max: Duration,
}

impl Bounds {
    /// What suits both.
    pub fn and(self, other: Self) -> Self {
        Self {
            min: self.min.min(other.min),
            max: self.max.min(other.max),
        }
    }
}

/// How a question is to be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// When again.
    pub bounds: Bounds,
    /// Since which generation without a break. Whoever has let go of a question has forgotten the answer too: wanted again, it is asked at once, also if it was
    /// never seen to be gone.
    pub since: u64,
}

/// One address of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Found {
    /// The address.
    pub address: IpAddr,
    /// Its port, if the records give one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Its weight, 1 to 1000, if the records give any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
}

/// An answer, or that there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What was asked.
    pub question: Question,
    /// The addresses, in order and at least one; or why there are none.
    pub result: Result<Vec<Found>, String>,
}

/// Whom is asked: servers; none is those of `/etc/resolv.conf`.
pub type Servers = Option<Vec<SocketAddr>>;

/// Asks what is to be asked, again and again, until `shutdown` turns true.
pub async fn run(
    mut questions: watch::Receiver<BTreeMap<Question, Wanted>>,
    reports: mpsc::Sender<Report>,
    servers: Servers,
    mut shutdown: watch::Receiver<bool>,
) {
    let mut asking: HashMap<Question, (Wanted, Asking)> = HashMap::new();
    loop {
        let wanted = questions.borrow_and_update().clone();
        asking.retain(|question, (how, _)| wanted.get(question) == Some(how));
        for (question, how) in wanted {
            asking.entry(question.clone()).or_insert_with(|| {
                let resolver = Resolver::new(servers.clone());
                let running = ask_again(question, how.bounds, resolver, reports.clone());
                (how, Asking(tokio::spawn(running)))
            });
        }
        tokio::select! {
            () = shutdown::requested(&mut shutdown) => return,
            changed = questions.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

/// A task that ends with its owner.
struct Asking(JoinHandle<()>);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn ask_again(
    question: Question,
    bounds: Bounds,
    mut resolver: Resolver,
    reports: mpsc::Sender<Report>,
) {
    loop {
        let asked = resolver.ask(&question).await;
        let (result, ttl) = match asked {
            Ok((found, ttl)) => (Ok(found), ttl),
            Err(error) => (Err(error), Duration::ZERO),
        };
        let report = Report {
            question: question.clone(),
            result,
        };
        if reports.send(report).await.is_err() {
            return;
        }
        tokio::time::sleep(ttl.min(bounds.max).max(bounds.min)).await;
    }
}

#[cfg(test)]
mod tests;
