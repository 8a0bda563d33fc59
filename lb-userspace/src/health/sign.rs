//! Signs of life of a backend's host, beside its TCP port: the neighbour entry of one on the link, an ICMP or ICMPv6 echo of a routed one.
//!
//! **On the link.** After a check without a reply, the kernel is told to confirm the neighbour's entry at once
//! (`NUD_PROBE`): an entry that is merely used would be trusted for five seconds more before the first question. The kernel then asks by ARP or NDP every second. A
//! host that lives answers within a round trip, and its entry's time of confirmation says so. One that has let two questions pass (1.1 s) is
//! gone, though the kernel calls the entry failed only after the third. So a dark host is found out within about two seconds of the first
//! check that failed, no raw socket is needed, and it is the kernel's entry that tells, whatever made it true.
//!
//! **Routed**, or on the link with an entry that the operator set: an echo goes along with the check, every ten seconds while all is well (that is the
//! baseline: does this host answer echoes while it is up?), and with every check while it is silent. The baseline is reported, and the next daemon begins
//! with it. Its first check has an echo along all the same, so that a host that is up and answers no more is known for that before it may fall silent.
//!
//! **No evidence**: there is no route, the interface is down or has no carrier (that is this machine's trouble, and would be the death of every backend at once), it has no link-local
//! address yet to ask a neighbour of IPv6 from, or no socket for echoes is to be had.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use lb_common::net::IpVersion;

use super::{echo::Echo, track::Sign};
use crate::{
    by_version::ByVersion,
    neighbour::{
        netlink::Netlink,
        way::{Entry, EntryState},
    },
};

/// Two questions by ARP or NDP, a second apart, and time to answer the second.
const UNANSWERED: Duration = Duration::from_millis(1_100);
/// Time for a host on the link to answer ARP or NDP, so that one that lives is seen in the same check.
const ROUND_TRIP: Duration = Duration::from_millis(30);
/// Steps in which the kernel tells when an entry was confirmed.
const CLOCK_STEP: Duration = Duration::from_millis(10);
/// How often a host that is up is sent an echo.
const BASELINE_INTERVAL: Duration = Duration::from_secs(10);
/// How often it is looked up how a backend is reached.
const PLACE_INTERVAL: Duration = Duration::from_secs(30);
/// The longest time that is waited for an echo.
const ECHO_PATIENCE: Duration = Duration::from_secs(1);

/// What signs of life are read with.
#[derive(Debug)]
pub(super) struct Senses {
    netlink: Netlink,
    /// By version of IP; none where no socket is to be had.
    echo: ByVersion<Option<Echo>>,
}

impl Senses {
    /// Opens the sockets. Without one for echoes, hosts that are routed give no sign of life, which is logged.
    ///
    /// # Errors
    /// When no netlink socket is to be had.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(super) fn open() -> std::io::Result<Self> {
        Ok(Self {
            netlink: Netlink::connect()?,
            echo: ByVersion::of(open_echo),
        })
    }

    fn echo(&self, address: IpAddr) -> Option<&Echo> {
        self.echo[IpVersion::of(address)].as_ref()
    }
}

fn open_echo(version: IpVersion) -> Option<Echo> {
    match Echo::open(version) {
        Ok(echo) => Some(echo),
        // A kernel without this version of IP has no backends in it.
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
        Err(error) => {
            tracing::warn!(
                %error,
                "no socket for ICMP echoes in IPv{}: a routed backend that vanishes will be called refusing, never down; give the daemon \
                 CAP_NET_RAW",
                version as u32
            );
            None
        }
    }
}

/// How a backend's host can be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It is this host.
    Here,
    /// By its neighbour entry on this interface.
    OnLink(u32),
    /// By echoes.
    ByEcho,
    /// Not at all: there is no route to it.
    Nowhere,
}

/// The signs of life of one backend's host.
#[derive(Debug)]
pub(super) struct Signs {
    address: IpAddr,
    place: Option<(Place, Instant)>,
    /// Since when its neighbour entry is being confirmed in vain.
    asked_at: Option<Instant>,
    /// When the last echo was sent.
    echoed_at: Option<Instant>,
}

impl Signs {
    /// Nothing is known yet.
    pub(super) fn new(address: IpAddr) -> Self {
        Self {
            address,
            place: None,
            asked_at: None,
            echoed_at: None,
        }
    }

    /// Sends an echo along with a check if one is due, and tells whether it was answered. `silent`: the last check had no reply.
    pub(super) async fn echo_along(
        &mut self,
        senses: &Senses,
        silent: bool,
        timeout: Duration,
    ) -> Option<bool> {
        let echo = senses.echo(self.address)?;
        let due = silent
            || self
                .echoed_at
                .is_none_or(|at| at.elapsed() >= BASELINE_INTERVAL);
        if !due || self.place(senses).await != Place::ByEcho {
            return None;
        }
        self.echoed_at = Some(Instant::now());
        Some(echo.ask(self.address, timeout.min(ECHO_PATIENCE)).await)
    }

    /// The check had a reply: whatever was asked of the neighbour before is settled.
    pub(super) fn settle(&mut self) {
        self.asked_at = None;
    }

    /// Looks for a sign of life after a check that began at `began` and had no reply; `echoed` is what came of the echo along with it.
    pub(super) async fn look(
        &mut self,
        senses: &Senses,
        began: Instant,
        echoed: Option<bool>,
    ) -> Sign {
        if self.asked_at.is_none() {
            // The first silence: how the host is reached may have changed.
            self.place = None;
        }
        match self.place(senses).await {
            Place::OnLink(interface) => self.look_at_neighbour(senses, interface, began).await,
            Place::Here => Sign::Alive,
            Place::ByEcho if senses.echo(self.address).is_some() => {
                self.asked_at.get_or_insert(began);
                echoed.map_or(Sign::Asked, Sign::Echo)
            }
            _ => Sign::Absent,
        }
    }

    async fn look_at_neighbour(&mut self, senses: &Senses, interface: u32, began: Instant) -> Sign {
        let address = self.address;
        if !senses
            .netlink
            .link(interface)
            .await
            .is_ok_and(|link| link.up)
        {
            return Sign::Absent;
        }
        let can_ask =
            address.is_ipv4() || senses.netlink.can_solicit(interface).await.unwrap_or(false);
        if !can_ask {
            return Sign::Absent;
        }
        let mut may_ask = true;
        loop {
            let Ok(entry) = senses.netlink.entry(interface, address).await else {
                return Sign::Absent;
            };
            let asked_for = self.asked_at.map(|at| at.elapsed());
            match judge(entry.as_ref(), began.elapsed(), asked_for) {
                Judgement::Ask if may_ask => {
                    may_ask = false;
                    let asked = if entry.is_some_and(|entry| entry.mac.is_some()) {
                        senses.netlink.probe_neighbour(interface, address).await
                    } else {
                        senses.netlink.use_neighbour(interface, address).await
                    };
                    if let Err(error) = asked {
                        tracing::debug!(%error, %address, "a neighbour could not be asked for a sign of life");
                        return Sign::Absent;
                    }
                    self.asked_at.get_or_insert_with(Instant::now);
                    tokio::time::sleep(ROUND_TRIP).await;
                }
                Judgement::Ask | Judgement::Wait => {
                    self.asked_at.get_or_insert_with(Instant::now);
                    return Sign::Asked;
                }
                Judgement::Alive => {
                    self.asked_at = None;
                    return Sign::Alive;
                }
                Judgement::Gone => return Sign::Gone,
            }
        }
    }

    async fn place(&mut self, senses: &Senses) -> Place {
        if let Some((place, at)) = self.place
            && at.elapsed() < PLACE_INTERVAL
        {
            return place;
        }
        let place = self.find_place(senses).await;
        self.place = Some((place, Instant::now()));
        place
    }

    async fn find_place(&self, senses: &Senses) -> Place {
        match senses.netlink.route(self.address).await {
            Err(_) => Place::Nowhere,
            Ok(route) if route.local => Place::Here,
            Ok(route) if !route.unicast => Place::Nowhere,
            Ok(route) if route.gateway.is_some() || route.foreign_gateway => Place::ByEcho,
            Ok(route) => match senses.netlink.entry(route.interface, self.address).await {
                Ok(Some(entry)) if entry.state == EntryState::Fixed => Place::ByEcho,
                _ => Place::OnLink(route.interface),
            },
        }
    }
}

/// What an entry tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judgement {
    Alive,
    Gone,
    /// The kernel must be told to ask.
    Ask,
    /// The kernel is asking.
    Wait,
}

/// `check_age`: time since the check began. `asked_for`: how long the kernel has been asking in vain.
fn judge(entry: Option<&Entry>, check_age: Duration, asked_for: Option<Duration>) -> Judgement {
    let overdue = asked_for.is_some_and(|time| time >= UNANSWERED);
    let Some(entry) = entry else {
        return Judgement::Ask;
    };
    match entry.state {
        EntryState::Valid | EntryState::Probing | EntryState::Fixed
            if entry.confirmed_ago <= check_age.max(asked_for.unwrap_or_default()) + CLOCK_STEP =>
        {
            Judgement::Alive
        }
        EntryState::Failed => Judgement::Gone,
        EntryState::Incomplete | EntryState::Probing if overdue => Judgement::Gone,
        EntryState::Incomplete | EntryState::Probing => Judgement::Wait,
        EntryState::Valid => Judgement::Ask,
        // Set by the operator meanwhile: echoes tell from the next look on.
        EntryState::Fixed => Judgement::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHECK: Duration = Duration::from_millis(300);

    fn judged(state: EntryState, confirmed_ago_ms: u64, asked_ms: Option<u64>) -> Judgement {
        let entry = Entry {
            state,
            mac: state.has_mac().then_some([2; 6]),
            confirmed_ago: Duration::from_millis(confirmed_ago_ms),
        };
        judge(Some(&entry), CHECK, asked_ms.map(Duration::from_millis))
    }

    #[test]
    fn a_confirmation_since_the_check_began_is_life() {
        assert_eq!(judged(EntryState::Valid, 200, None), Judgement::Alive);
        assert_eq!(
            judged(EntryState::Valid, 200, Some(5_000)),
            Judgement::Alive
        );
        assert_eq!(judged(EntryState::Valid, 400, Some(500)), Judgement::Alive);
        assert_eq!(judged(EntryState::Valid, 400, None), Judgement::Ask);
        assert_eq!(judged(EntryState::Valid, 30_000, None), Judgement::Ask);
    }

    #[test]
    fn a_failed_entry_is_death_and_an_unanswered_one_after_two_questions() {
        assert_eq!(judged(EntryState::Failed, 9_000, None), Judgement::Gone);
        for state in [EntryState::Probing, EntryState::Incomplete] {
            assert_eq!(judged(state, 9_000, None), Judgement::Wait);
            assert_eq!(judged(state, 9_000, Some(1_000)), Judgement::Wait);
            assert_eq!(judged(state, 9_000, Some(1_100)), Judgement::Gone);
        }
        assert_eq!(judge(None, CHECK, None), Judgement::Ask);
    }
}
