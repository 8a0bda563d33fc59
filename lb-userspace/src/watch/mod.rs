//! Watching single packets while somebody listens: events of flows, and captures. Off, and without cost, while nobody does.
//!
//! With the first listener a program that watches takes the place of the one that runs otherwise, and after the last one has gone that one is put
//! back. A listener's time ends by itself ([`LEASE`]): a daemon that dies tells nobody anything any more, and the next one puts its own program in
//! place.
//!
//! * [`wish`][]: what a listener wants, from names to ids; pure
//! * [`flow`][]: what a packet means for its flow; pure
//! * [`pcapng`][]: packets as a file; pure

pub mod flow;
pub mod pcapng;
pub mod wish;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use aya::maps::{MapData, RingBuf};
use lb_common::watch::{Filter, Head, LISTENERS, Record};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{mpsc, oneshot, watch},
};

use crate::{
    chain::chain,
    dataplane::{
        array::Array,
        kernel::tap::{Tap, Tapped},
        maps,
    },
};

/// How long a listener is told of packets unless that is put off.
const LEASE: Duration = Duration::from_secs(10);
/// Time between two looks at who still listens.
const LOOK: Duration = Duration::from_secs(1);
/// Packets that may wait for a slow listener.
const WAITING: usize = 8_192;
/// Packets that are taken in together, so that many of them do not keep a thread from other work.
const BATCH: usize = 256;
/// Where the time that a listener has stands in a filter: its first word.
const UNTIL: usize = 0;

/// A packet that a listener is told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What became of it.
    pub head: Head,
    /// Its first bytes, as it came in.
    pub data: Vec<u8>,
}

/// What a listener hears. It stops listening when this is dropped.
#[derive(Debug)]
pub struct Listening {
    /// Packets, as they come.
    pub packets: mpsc::Receiver<Arc<Seen>>,
    /// Packets that there was no room to tell of, of all listeners together, since the first of them came.
    pub lost: Arc<AtomicU64>,
}

/// Why nobody can listen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// All places are taken.
    #[error("{LISTENERS} listen already; try again when one has ended")]
    Full,
    /// The kernel refuses.
    #[error("{0}")]
    Refused(String),
    /// The daemon ends.
    #[error("the daemon is stopping")]
    Stopping,
}

type Asked = (Filter, oneshot::Sender<Result<Listening, Error>>);

/// Where one may listen. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Watch(mpsc::Sender<Asked>);

/// What comes in by a [`Watch`].
#[derive(Debug)]
pub struct Requests(mpsc::Receiver<Asked>);

impl Watch {
    /// One, and what [`run`] is to be given.
    pub fn new() -> (Self, Requests) {
        let (sender, requests) = mpsc::channel(4);
        (Self(sender), Requests(requests))
    }

    /// Listens. Comes back when the program is in its place, a second or more after the first who asks.
    ///
    /// # Errors
    /// When all places are taken, or the kernel refuses the program.
    pub async fn listen(&self, filter: Filter) -> Result<Listening, Error> {
        let (reply, answer) = oneshot::channel();
        self.0
            .send((filter, reply))
            .await
            .map_err(|_| Error::Stopping)?;
        answer.await.map_err(|_| Error::Stopping)?
    }
}

/// A place for a listener.
enum Place {
    Free,
    Taken(mpsc::Sender<Arc<Seen>>),
    /// Free after the next look: what was told before is not for who comes next.
    Resting,
}

/// While somebody listens.
struct Open {
    told: AsyncFd<RingBuf<MapData>>,
    listeners: Array<Filter>,
    records: Array<Record>,
    places: [Place; LISTENERS as usize],
    lost: Arc<AtomicU64>,
    /// Of `lost`, those that listeners were too slow for.
    missed: u64,
}

/// Serves listeners until told to stop: `shutdown` true, or closed.
///
/// # Errors
/// When the ring buffer cannot be waited for.
pub async fn run(
    tap: Arc<Tap>,
    Requests(mut requests): Requests,
    mut shutdown: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut open: Option<Open> = None;
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = crate::shutdown::requested(&mut shutdown) => {
                if open.is_some() {
                    close(&tap).await;
                }
                return Ok(());
            }
            Some((filter, reply)) = requests.recv() => {
                let is_first = open.is_none();
                if is_first {
                    match opened(&tap).await {
                        Ok(Ok(tapped)) => open = Some(Open::new(tapped)?),
                        Ok(Err(why)) => {
                            drop(reply.send(Err(Error::Refused(why))));
                            continue;
                        }
                        Err(error) => return Err(io::Error::other(error)),
                    }
                }
                if let Some(open) = &mut open {
                    let admitted = open.admit(filter);
                    if is_first {
                        tracing::info!("somebody listens: the program that watches is in its place");
                    }
                    // One that has gone by now leaves its place at the next look.
                    drop(reply.send(admitted));
                }
            }
            told = readable(&mut open) => told?,
            _ = looks.tick() => {
                if let Some(still) = &mut open
                    && !still.look()
                    && close(&tap).await
                {
                    open = None;
                }
            }
        }
    }
}

async fn opened(tap: &Arc<Tap>) -> Result<Result<Tapped, String>, tokio::task::JoinError> {
    let tap = Arc::clone(tap);
    tokio::task::spawn_blocking(move || tap.open().map_err(|error| chain(&error))).await
}

/// Whether it is done; else it is to be tried again.
async fn close(tap: &Arc<Tap>) -> bool {
    let tap = Arc::clone(tap);
    let closed = tokio::task::spawn_blocking(move || tap.close()).await;
    match closed {
        Ok(Ok(())) => {
            tracing::info!("nobody listens any more: the program that watches is gone");
            true
        }
        Ok(Err(error)) => {
            tracing::error!(
                error = chain(&error),
                "the program that watches stays in its place"
            );
            false
        }
        Err(error) => {
            tracing::error!(%error, "putting the program back broke off");
            false
        }
    }
}

/// Waits for what is told, and hands it on; for ever while nobody listens.
async fn readable(open: &mut Option<Open>) -> io::Result<()> {
    match open {
        Some(open) => open.hand_on().await,
        None => std::future::pending().await,
    }
}

impl Open {
    fn new(tapped: Tapped) -> io::Result<Self> {
        let Tapped {
            listeners,
            records,
            told,
        } = tapped;
        // SAFETY: the descriptor is the map's, which the ring buffer owns and never replaces.
        let told = unsafe { AsyncFd::register_with_interest(told, Interest::READABLE) }
            .map_err(io::Error::from)?;
        Ok(Self {
            told,
            listeners,
            records,
            places: [const { Place::Free }; LISTENERS as usize],
            lost: Arc::default(),
            missed: 0,
        })
    }

    /// Gives a listener a place.
    fn admit(&mut self, filter: Filter) -> Result<Listening, Error> {
        let free = self
            .places
            .iter()
            .position(|place| matches!(place, Place::Free))
            .ok_or(Error::Full)?;
        let (sender, packets) = mpsc::channel(WAITING);
        let until_ns = maps::now_ns() + LEASE.as_nanos() as u64;
        // Its first word, which makes it valid, is written last.
        self.listeners
            .set(free as u32, &Filter { until_ns, ..filter });
        self.places[free] = Place::Taken(sender);
        Ok(Listening {
            packets,
            lost: Arc::clone(&self.lost),
        })
    }

    /// Puts off the end of who still listens. False if nobody does.
    fn look(&mut self) -> bool {
        let until_ns = maps::now_ns() + LEASE.as_nanos() as u64;
        let mut is_used = false;
        for (index, place) in (0..).zip(&mut self.places) {
            let until = self.listeners.word(index, UNTIL);
            match place {
                Place::Free => {}
                Place::Resting => *place = Place::Free,
                Place::Taken(sender) if sender.is_closed() => {
                    until.store(0, Ordering::Release);
                    *place = Place::Resting;
                }
                Place::Taken(_) => {
                    until.store(until_ns, Ordering::Release);
                    is_used = true;
                }
            }
        }
        self.count_lost();
        is_used
    }

    fn count_lost(&self) {
        const LOST: usize = std::mem::offset_of!(Head, lost) / 8;
        let told: u64 = (0..self.records.len())
            .map(|cpu| self.records.word(cpu, LOST).load(Ordering::Relaxed))
            .sum();
        self.lost.store(told + self.missed, Ordering::Relaxed);
    }

    /// Hands on what was told.
    async fn hand_on(&mut self) -> io::Result<()> {
        let mut readable = self.told.readable_mut().await?;
        for _ in 0..BATCH {
            let Some(item) = readable.get_inner_mut().next() else {
                readable.clear_ready();
                return Ok(());
            };
            let Some((head, data)) = Head::split(&item) else {
                continue;
            };
            let seen = Arc::new(Seen {
                head,
                data: data.to_vec(),
            });
            drop(item);
            for (index, place) in self.places.iter().enumerate() {
                if let Place::Taken(sender) = place
                    && head.listeners >> index & 1 != 0
                    && let Err(mpsc::error::TrySendError::Full(_)) =
                        sender.try_send(Arc::clone(&seen))
                {
                    self.missed += 1;
                }
            }
        }
        tokio::task::yield_now().await;
        Ok(())
    }
}
