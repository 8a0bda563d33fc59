//! Which VIPs the host itself has, as addresses of its own or by a local route: what is not TCP for a service there is the host's.

use std::{collections::BTreeSet, io, net::IpAddr, time::Instant};

use tokio::sync::watch;

use super::{
    FULL_INTERVAL, SETTLE,
    netlink::{Error, Event, Netlink},
    reopen,
    way::covers,
};

/// Tells which of `vips` are the host's own, once that is known and whenever it changes, until `shutdown` turns true or the sender of `vips` is
/// gone.
///
/// # Errors
/// When no netlink socket is to be had at the start; later failures are logged, and the socket is opened again.
pub async fn run(
    mut vips: watch::Receiver<BTreeSet<IpAddr>>,
    own: watch::Sender<Option<BTreeSet<IpAddr>>>,
    mut shutdown: watch::Receiver<bool>,
) -> io::Result<()> {
    let (mut netlink, mut events) = Netlink::subscribe()?;
    let mut full = tokio::time::interval(FULL_INTERVAL);
    full.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut watched = vips.borrow_and_update().clone();
    let mut look_at = Some(Instant::now());
    loop {
        let event = tokio::select! {
            () = crate::shutdown::requested(&mut shutdown) => return Ok(()),
            changed = vips.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                watched.clone_from(&vips.borrow_and_update());
                look_at = Some(Instant::now());
                continue;
            }
            event = events.next() => event,
            () = tokio::time::sleep_until(look_at.unwrap_or_else(Instant::now).into()), if look_at.is_some() => {
                look_at = None;
                let known = own.borrow().clone().unwrap_or_default();
                tell(&own, look(&netlink, &watched, &known).await);
                continue;
            }
            _ = full.tick() => Some(Event::Anything),
        };
        let concerns_any = match event {
            Some(Event::Anything) => true,
            Some(Event::Route(prefix, length)) => {
                watched.iter().any(|vip| covers(prefix, length, *vip))
            }
            Some(Event::Link(_) | Event::Neighbour(..)) => false,
            None => {
                (netlink, events) = reopen().await;
                true
            }
        };
        if concerns_any {
            // Changes come in bursts.
            look_at.get_or_insert_with(|| Instant::now() + SETTLE);
        }
    }
}

/// Which of `vips` are the host's own; `known` are those that were.
async fn look(
    netlink: &Netlink,
    vips: &BTreeSet<IpAddr>,
    known: &BTreeSet<IpAddr>,
) -> BTreeSet<IpAddr> {
    let mut own = BTreeSet::new();
    for vip in vips {
        let is_own = match netlink.route(*vip).await {
            Ok(route) => route.local,
            // An address without a route is nobody's.
            Err(Error::Refused(_)) => false,
            // That the kernel could not be asked says nothing.
            Err(Error::Closed | Error::NoAnswer) => known.contains(vip),
        };
        if is_own {
            own.insert(*vip);
        }
    }
    own
}

fn tell(own: &watch::Sender<Option<BTreeSet<IpAddr>>>, now: BTreeSet<IpAddr>) {
    own.send_if_modified(|told| {
        if told.as_ref() == Some(&now) {
            return false;
        }
        let nothing = BTreeSet::new();
        let before = told.as_ref().unwrap_or(&nothing);
        for vip in now.difference(before) {
            tracing::info!(%vip, "this host has the VIP itself: what is not TCP for a service there is the host's");
        }
        for vip in before.difference(&now) {
            tracing::info!(%vip, "this host no longer has the VIP itself");
        }
        *told = Some(now);
        true
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testnet::{FOUR, PATIENCE, Pair, SIX, block_on};

    #[tokio::test]
    async fn what_the_kernel_could_not_be_asked_is_as_it_was() {
        let [own, other] = [FOUR.here, FOUR.there];
        let netlink = Netlink::closed().unwrap();
        let (vips, known) = (BTreeSet::from([own, other]), BTreeSet::from([own]));
        assert_eq!(look(&netlink, &vips, &known).await, known);
    }

    #[test]
    fn addresses_and_local_routes_of_both_versions_make_a_vip_the_hosts_own() {
        let pair = Pair::new();
        let outside = pair.near.twin();
        let vip = |text: &str| -> IpAddr { text.parse().unwrap() };
        let vips = [
            vip("192.0.2.1"),
            vip("192.0.2.2"),
            vip("2001:db8:9::1"),
            vip("2001:db8:9::2"),
        ];
        block_on(&pair.near, move || async move {
            let (wanted, watched) =
                watch::channel(BTreeSet::from([FOUR.here, FOUR.there, SIX.there]));
            let (own, mut told) = watch::channel(None);
            let (_stop, shutdown) = watch::channel(false);
            tokio::spawn(run(watched, own, shutdown));
            let mut until = async |expected: &[IpAddr]| {
                let expected = Some(expected.iter().copied().collect());
                let wait = told.wait_for(|told| *told == expected);
                tokio::time::timeout(PATIENCE, wait)
                    .await
                    .expect("not told")
                    .unwrap();
            };
            until(&[FOUR.here]).await;
            wanted.send_modify(|wanted| wanted.extend([SIX.here].iter().chain(&vips)));
            until(&[FOUR.here, SIX.here]).await;
            outside.ip("addr add 192.0.2.1 dev lo");
            outside.ip("addr add 2001:db8:9::1 dev lo");
            until(&[FOUR.here, SIX.here, vips[0], vips[2]]).await;
            outside.ip("route add local 192.0.2.2 dev lo");
            outside.ip("route add local 2001:db8:9::2 dev lo");
            until(&[FOUR.here, SIX.here, vips[0], vips[1], vips[2], vips[3]]).await;
            outside.ip("addr del 192.0.2.1 dev lo");
            outside.ip("route del local 2001:db8:9::2 dev lo");
            until(&[FOUR.here, SIX.here, vips[1], vips[2]]).await;
            wanted.send_modify(|wanted| wanted.retain(IpAddr::is_ipv6));
            until(&[SIX.here, vips[2]]).await;
        });
    }
}
