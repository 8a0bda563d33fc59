//! What the replies of modes `nat` and `dnat` need of this host, while a service has such a mode: that the kernel forwards on the interfaces that
//! they come in by, which VLAN devices lead to clients, interfaces that they may leave by, next hops that it knows, and SNAT addresses that are this
//! host's.
//!
//! The program asks the kernel's own routes for the way of each reply (`bpf_fib_lookup`), so nothing else about clients is known here.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::{
    nat::{LINK_PLACES, LINKS_LEN, Link as Device, link_place},
    net::{IpVersion, VlanTag},
};
use tokio::sync::watch;

use super::{
    Admit, SETTLE,
    netlink::{Event, Netlink},
    reopen,
    way::{Link, MOST_TAGS},
};
use crate::{
    by_version::ByVersion,
    status::{BackendStatus, Status},
    sysctl,
};

/// How often is looked at what comes without an event: sysctls.
const EVERY: Duration = Duration::from_secs(5);
/// Next hops that the kernel is asked for each time: so few that what a flood of made-up clients on the link names does not fill its table, where each stays
/// for three seconds (`gc_thresh3` is 1024 by default).
const MOST_AT_ONCE: usize = 16;
/// How often the program is asked for next hops to clients that the kernel did not know: well before a backend sends its first answer again, after
/// a second (RFC 6298, section 2).
const UNRESOLVED_EVERY: Duration = Duration::from_millis(200);

/// Why no reply of a version of IP can reach a client, if none can, and what to do.
pub type Hindrances = ByVersion<Option<String>>;

/// VLAN devices as the data path looks for them, see [`link_place`].
pub type Devices = [Device; LINKS_LEN as usize];

/// What the watch changes.
pub struct Gate {
    /// The interfaces that the program is attached to.
    pub interfaces: Vec<String>,
    /// Lets packets leave by an interface.
    pub admit: Admit,
    /// Gives the data path the VLAN devices.
    pub write_devices: Box<dyn Fn(&Devices) + Send + Sync>,
    /// Next hops that replies were to take and that the kernel did not know, since it was asked last: interfaces and addresses.
    pub take_unresolved: Box<dyn Fn() -> BTreeSet<(u32, IpAddr)> + Send + Sync>,
}

/// What is to be watched for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wanted {
    /// Whether a service of this version has its addresses translated.
    versions: ByVersion<bool>,
    /// SNAT addresses, each with the addresses of its backends.
    snat: BTreeMap<IpAddr, BTreeSet<IpAddr>>,
}

impl Wanted {
    fn is_anything(&self) -> bool {
        self.versions.v4 || self.versions.v6
    }

    fn of(status: &Status) -> Self {
        let mut wanted = Self::default();
        for service in &status.services {
            // Flows of those that were removed go on in the mode that the service had then.
            let mut backends = service.backends.iter();
            let is_translated = |backend: &BackendStatus| backend.mode(service).translates();
            if !service.mode.translates() && !backends.any(is_translated) {
                continue;
            }
            wanted.versions[IpVersion::of(service.vip)] = true;
            for backend in &service.backends {
                for snat in &backend.snat {
                    let backends = wanted.snat.entry(snat.address).or_default();
                    backends.insert(backend.address);
                }
            }
        }
        wanted
    }
}

/// Watches until `shutdown` turns true or the sender of `status` is gone.
///
/// # Errors
/// When no netlink socket is to be had at the start; later failures are logged, and the socket is opened again.
pub async fn run(
    mut status: watch::Receiver<Arc<Status>>,
    gate: Gate,
    hindrances: watch::Sender<Hindrances>,
    mut shutdown: watch::Receiver<bool>,
) -> io::Result<()> {
    let (netlink, mut events) = Netlink::subscribe()?;
    let mut watch = Watch {
        netlink,
        gate,
        hindrances,
        wanted: Wanted::of(&status.borrow_and_update()),
        devices: None,
        told: BTreeSet::new(),
    };
    let mut interval = tokio::time::interval(EVERY);
    let mut unresolved = tokio::time::interval(UNRESOLVED_EVERY);
    for interval in [&mut interval, &mut unresolved] {
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    }
    let mut look_at: Option<Instant> = None;
    loop {
        let event = tokio::select! {
            () = crate::shutdown::requested(&mut shutdown) => return Ok(()),
            changed = status.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let wanted = Wanted::of(&status.borrow_and_update());
                if wanted != watch.wanted {
                    watch.wanted = wanted;
                    look_at = Some(Instant::now());
                }
                continue;
            }
            event = events.next() => event,
            () = tokio::time::sleep_until(look_at.unwrap_or_else(Instant::now).into()), if look_at.is_some() => {
                look_at = None;
                watch.look().await;
                continue;
            }
            _ = unresolved.tick(), if watch.wanted.is_anything() => {
                watch.resolve().await;
                continue;
            }
            _ = interval.tick() => Some(Event::Anything),
        };
        match event {
            Some(Event::Neighbour(..)) => continue,
            Some(Event::Anything | Event::Link(_) | Event::Route(..)) => {}
            None => (watch.netlink, events) = reopen().await,
        }
        // Changes come in bursts.
        look_at.get_or_insert_with(|| Instant::now() + SETTLE);
    }
}

struct Watch {
    netlink: Netlink,
    gate: Gate,
    hindrances: watch::Sender<Hindrances>,
    wanted: Wanted,
    /// As they were written last.
    devices: Option<Box<Devices>>,
    /// What was warned of, and still is so.
    told: BTreeSet<String>,
}

impl Watch {
    async fn look(&mut self) {
        let versions = self.wanted.versions;
        if !self.wanted.is_anything() {
            self.tell_hindrances(Hindrances::default());
            self.told.clear();
            return;
        }
        let links = match self.netlink.links().await {
            Ok(links) => links,
            Err(error) => {
                tracing::debug!(%error, "links could not be listed; trying again");
                return;
            }
        };
        let mut warnings = self.write_devices(&links);
        warnings.extend(self.admit(&links));
        warnings.extend(self.snat_addresses().await);
        for warning in warnings.difference(&self.told) {
            tracing::warn!("{warning}");
        }
        self.told = warnings;
        let interfaces = &self.gate.interfaces;
        self.tell_hindrances(ByVersion::of(|version| {
            let disabled: Vec<String> = interfaces
                .iter()
                .filter_map(|interface| sysctl::unforwarded(version, interface))
                .flatten()
                .collect();
            (versions[version] && !disabled.is_empty()).then(|| hindrance(version, &disabled))
        }));
    }

    /// Has the kernel find the next hops that it did not know. It would by itself for a reply that it is left to send; but where conntrack drops what
    /// is invalid it never gets so far, since it has not seen the request.
    async fn resolve(&self) {
        let unresolved = (self.gate.take_unresolved)();
        for (interface, neighbour) in unresolved.into_iter().take(MOST_AT_ONCE) {
            if let Err(error) = self.netlink.use_neighbour(interface, neighbour).await {
                tracing::debug!(%error, %neighbour, interface, "the next hop to a client could not be asked for");
            }
        }
    }

    fn tell_hindrances(&self, now: Hindrances) {
        self.hindrances.send_if_modified(|told| {
            for (version, now) in now.each() {
                match (&told[version], now) {
                    (before, Some(now)) if before.as_ref() != Some(now) => {
                        tracing::error!("{now}");
                    }
                    (Some(_), None) => tracing::info!(
                        "IPv{} packets that backends send back can be sent on to clients now",
                        version as u32
                    ),
                    _ => {}
                }
            }
            let news = *told != now;
            *told = now;
            news
        });
    }

    /// Gives the data path the VLAN devices that clients may be reached by. Gives what to warn of.
    fn write_devices(&mut self, links: &HashMap<u32, Link>) -> BTreeSet<String> {
        let (devices, homeless) = arrange(&devices(links));
        if self.devices.as_deref() != Some(&devices) {
            (self.gate.write_devices)(&devices);
            self.devices = Some(Box::new(devices));
        }
        homeless
            .into_iter()
            .map(|device| {
                let name = links
                    .get(&device.ifindex)
                    .map_or("?", |link| link.name.as_str());
                format!("there are too many VLAN devices: replies to clients behind {name} are dropped and counted as no_route_back; remove some")
            })
            .collect()
    }

    /// Lets replies leave by the interfaces that clients' packets come in by. Gives what to warn of.
    fn admit(&self, links: &HashMap<u32, Link>) -> BTreeSet<String> {
        let attached = links
            .iter()
            .filter(|(_, link)| self.gate.interfaces.contains(&link.name));
        attached
            .filter_map(|(&ifindex, link)| {
                let reason = (self.gate.admit)(ifindex).err()?;
                Some(format!(
                    "interface {}: replies that came in by another interface cannot leave by it: {reason}",
                    link.name
                ))
            })
            .collect()
    }

    /// Looks whether SNAT addresses are this host's, and no more than that. Gives what to warn of.
    async fn snat_addresses(&self) -> BTreeSet<String> {
        let mut warnings = BTreeSet::new();
        for (&snat, backends) in &self.wanted.snat {
            if !self
                .netlink
                .route(snat)
                .await
                .is_ok_and(|route| route.local)
            {
                let length = if snat.is_ipv4() { 32 } else { 128 };
                warnings.insert(format!(
                    "SNAT address {snat} is none of this host's: what backends send back comes here only if their network routes it here; where they are on the \
                     link, run `ip addr add {snat}/{length} dev INTERFACE`"
                ));
                continue;
            }
            for &backend in backends {
                let route = self.netlink.route(backend).await;
                if route.is_ok_and(|route| route.source == Some(snat)) {
                    warnings.insert(format!(
                        "SNAT address {snat} is what this host itself connects to backend {backend} from, by health checks for one: a connection of its own fails \
                         when a flow has the same port; give `snat` an address that this host uses for nothing else"
                    ));
                }
            }
        }
        warnings
    }
}

fn hindrance(version: IpVersion, interfaces: &[String]) -> String {
    let key = |interface: &String| {
        let key = sysctl::of_interface(version, interface, "forwarding");
        format!("{key}=1")
    };
    let keys: Vec<String> = interfaces.iter().map(key).collect();
    format!(
        "IPv{} packets that backends send back cannot be sent on to clients, since this host does not forward what comes in by {}: run `sysctl -w {}`, \
         and write it to /etc/sysctl.d so that it lasts",
        version as u32,
        interfaces.join(", "),
        keys.join(" ")
    )
}

/// The VLAN devices among links, by what is below them.
fn devices(links: &HashMap<u32, Link>) -> Vec<Device> {
    let mut devices: Vec<Device> = links
        .iter()
        .filter_map(|(&ifindex, link)| device(ifindex, link, links))
        .collect();
    devices.sort_unstable_by_key(|device| device.ifindex);
    devices
}

/// A VLAN device; none if it is none, or more tags are needed than fit, or its parent is elsewhere.
fn device(ifindex: u32, link: &Link, links: &HashMap<u32, Link>) -> Option<Device> {
    let mut vlan = link.vlan?;
    let mut found = vec![vlan.tag];
    let physical = loop {
        let parent = vlan.parent?;
        match links.get(&parent)?.vlan {
            None => break parent,
            Some(below) => vlan = below,
        }
        found.push(vlan.tag);
    };
    if found.len() > MOST_TAGS {
        return None;
    }
    // From the outermost, which is that of the lowest device.
    let mut tags = [VlanTag::NONE; 2];
    for (to, from) in tags.iter_mut().zip(found.into_iter().rev()) {
        *to = from;
    }
    Some(Device {
        ifindex,
        physical,
        tags,
    })
}

/// Puts devices where they are looked for. Gives those too that find no place.
fn arrange(devices: &[Device]) -> (Devices, Vec<Device>) {
    let mut arranged = [Device::default(); LINKS_LEN as usize];
    let mut homeless = Vec::new();
    for device in devices {
        let place = (0..LINK_PLACES)
            .map(|before| link_place(device.ifindex, before) as usize)
            .find(|&place| arranged[place].ifindex == 0);
        match place {
            Some(place) => arranged[place] = *device,
            None => homeless.push(*device),
        }
    }
    (arranged, homeless)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use lb_common::backend::Mode;

    use super::*;
    use crate::{
        neighbour::way::{Kind, Vlan},
        status::SnatStatus,
        testnet::{FOUR, PATIENCE, Pair, block_on},
    };

    fn link(name: &str, vlan: Option<(Option<u32>, u16)>) -> Link {
        Link {
            name: name.to_owned(),
            mac: Some([2, 0, 0, 0, 0, 1]),
            mtu: 1_500,
            up: true,
            vlan: vlan.map(|(parent, id)| Vlan {
                parent,
                tag: VlanTag::new(0x8100, id),
            }),
            kind: Kind::Other,
            master: None,
        }
    }

    #[test]
    fn vlan_devices_are_found_with_their_tags_outermost_first() {
        let links = HashMap::from([
            (2, link("eth0", None)),
            (3, link("eth0.100", Some((Some(2), 100)))),
            (4, link("eth0.100.7", Some((Some(3), 7)))),
            (5, link("eth0.100.7.8", Some((Some(4), 8)))),
            (6, link("elsewhere.9", Some((None, 9)))),
            (7, link("gone.9", Some((Some(99), 9)))),
        ]);
        let tag = |id| VlanTag::new(0x8100, id);
        let of = |ifindex, tags| Device {
            ifindex,
            physical: 2,
            tags,
        };
        assert_eq!(
            devices(&links),
            [of(3, [tag(100), VlanTag::NONE]), of(4, [tag(100), tag(7)])]
        );
    }

    #[test]
    fn devices_are_found_from_their_index_on() {
        let all: Vec<Device> = [5, 5 + LINKS_LEN, 6, 255, 511, 767]
            .map(|ifindex| Device {
                ifindex,
                physical: 2,
                ..Device::default()
            })
            .into();
        let (arranged, homeless) = arrange(&all);
        assert_eq!(homeless, []);
        for device in &all {
            let found = (0..LINK_PLACES)
                .map(|before| arranged[link_place(device.ifindex, before) as usize])
                .take_while(|found| found.ifindex != 0)
                .find(|found| found.ifindex == device.ifindex);
            assert_eq!(found, Some(*device));
        }
        let crowd: Vec<Device> = (0..LINK_PLACES + 2)
            .map(|n| Device {
                ifindex: 5 + n * LINKS_LEN,
                ..Device::default()
            })
            .collect();
        assert_eq!(arrange(&crowd).1, crowd[LINK_PLACES as usize..]);
    }

    #[test]
    fn flows_of_a_service_that_had_another_mode_need_what_they_needed() {
        let mut status = crate::inventory::tests::a_status();
        for service in &mut status.services {
            service.mode = Mode::Ipip;
        }
        assert_eq!(Wanted::of(&status), Wanted::default());
        let old = &mut status.services[0].backends[1];
        (old.removed, old.mode) = (true, Some(Mode::Nat));
        let address = IpAddr::from([10, 0, 2, 100]);
        old.snat = vec![SnatStatus { address, ports: 1 }];
        let wanted = Wanted::of(&status);
        assert_eq!((wanted.versions.v4, wanted.versions.v6), (true, false));
        assert!(wanted.snat.contains_key(&address));
    }

    #[test]
    fn the_remedy_names_the_sysctls_of_all_interfaces() {
        let text = hindrance(IpVersion::V6, &["eth0".into(), "eth1.100".into()]);
        assert!(
            text.contains(
                "`sysctl -w net.ipv6.conf.eth0.forwarding=1 net.ipv6.conf.eth1/100.forwarding=1`"
            ),
            "{text}"
        );
    }

    /// What `nat` needs of an interface that does not forward: said, and taken back when it does.
    #[test]
    fn an_interface_that_does_not_forward_is_told_until_it_does() {
        let pair = Pair::new();
        let set = |host: &crate::testnet::Host, on: &'static str| {
            host.run(move || fs::write("/proc/sys/net/ipv4/conf/near/forwarding", on).unwrap());
        };
        set(&pair.near, "0");
        let outside = pair.near.twin();
        block_on(&pair.near, move || async move {
            let gate = Gate {
                interfaces: vec!["near".to_owned()],
                admit: Arc::new(|_| Ok(())),
                write_devices: Box::new(|_| ()),
                take_unresolved: Box::new(BTreeSet::new),
            };
            let mut status = crate::status::tests::empty();
            let (sender, watched) = watch::channel(Arc::new(status.clone()));
            let (hindrances, mut told) = watch::channel(Hindrances::default());
            let (_stop, shutdown) = watch::channel(false);
            tokio::spawn(run(watched, gate, hindrances, shutdown));
            status
                .services
                .push(crate::status::tests::service(FOUR.nobody));
            sender.send_replace(Arc::new(status.clone()));
            let wait = told.wait_for(|told| told.v4.is_some());
            let text = tokio::time::timeout(PATIENCE, wait)
                .await
                .unwrap()
                .unwrap()
                .clone();
            assert!(text.v4.unwrap().contains("net.ipv4.conf.near.forwarding=1"));
            assert_eq!(text.v6, None);
            set(&outside, "1");
            let wait = told.wait_for(|told| told.v4.is_none());
            tokio::time::timeout(PATIENCE, wait).await.unwrap().unwrap();
        });
    }
}
