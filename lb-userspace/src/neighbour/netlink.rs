//! Questions to the kernel about routes, links and neighbours, over rtnetlink: here alone its messages are built, and in `read` they are read.

mod read;

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{Stream, StreamExt as _, TryStreamExt as _, channel::mpsc::UnboundedReceiver};
use lb_common::net::IpVersion;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressHeaderFlags, AddressMessage, AddressScope},
    link::LinkMessage,
    neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAttribute, RouteFlags, RouteMessage},
};
use rtnetlink::{
    Handle, MulticastGroup,
    packet_core::{
        NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
    },
};
use tokio::task::JoinHandle;

use self::read::{event, read_entry, read_filter, read_link, read_route, speaking};
use super::way::{Entry, Link, Route};

/// The kernel answers within microseconds; an answer that cannot be decoded never comes.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why a question went without a usable answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel said no.
    #[error("{0}")]
    Refused(#[source] io::Error),
    /// The netlink socket is closed.
    #[error("the netlink socket is closed")]
    Closed,
    /// No answer, or none that could be understood.
    #[error("the kernel gave no usable answer")]
    NoAnswer,
}

impl Error {
    /// The kernel's error number, if it gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused(error) => error.raw_os_error(),
            Self::Closed | Self::NoAnswer => None,
        }
    }
}

/// What changed in the kernel, as far as next hops are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A route to this prefix came, changed or went.
    Route(IpAddr, u8),
    /// A link came, changed or went.
    Link(u32),
    /// A neighbour's entry came, changed or went; its MAC if it has a valid one.
    Neighbour(u32, IpAddr, Option<[u8; 6]>),
    /// Anything may have changed: events were lost, or the change concerns no single route.
    Anything,
}

/// Messages of the multicast groups that next hops depend on.
#[derive(Debug)]
pub struct Events(
    UnboundedReceiver<(
        NetlinkMessage<RouteNetlinkMessage>,
        rtnetlink::sys::SocketAddr,
    )>,
);

impl Events {
    /// The next event; none when the socket is closed.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            let (message, _) = self.0.next().await?;
            if let Some(event) = event(message.payload) {
                return Some(event);
            }
        }
    }

    /// The next event that is already there.
    pub fn ready(&mut self) -> Option<Event> {
        loop {
            let (message, _) = self.0.try_recv().ok()?;
            if let Some(event) = event(message.payload) {
                return Some(event);
            }
        }
    }
}

/// A connection to the kernel's routing tables, of the network namespace of the thread that made it.
#[derive(Clone, Debug)]
pub struct Netlink(Arc<Mutex<Open>>);

#[derive(Debug)]
struct Open {
    handle: Handle,
    /// What carries questions and answers, where nobody else sees to it that it goes on. It ends with the first error of its socket, a moment's lack of
    /// memory among them.
    carrier: Option<JoinHandle<()>>,
}

impl Open {
    fn for_questions() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self {
            handle,
            carrier: Some(tokio::spawn(connection)),
        })
    }
}

impl Netlink {
    fn of(open: Open) -> Self {
        Self(Arc::new(Mutex::new(open)))
    }

    /// Opens a connection for questions. One that ends is opened again with the next question.
    ///
    /// # Errors
    /// When the socket is not to be had.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn connect() -> io::Result<Self> {
        Open::for_questions().map(Self::of)
    }

    /// One that has ended, and that nobody opens again.
    #[cfg(test)]
    pub(super) fn closed() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        drop(connection);
        Ok(Self::of(Open {
            handle,
            carrier: None,
        }))
    }

    /// What questions are asked by.
    fn handle(&self) -> Handle {
        // Nothing panics while it is held.
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if open.carrier.as_ref().is_some_and(JoinHandle::is_finished) {
            match Open::for_questions() {
                Ok(again) => {
                    tracing::warn!("a netlink socket for questions had failed; another is open");
                    *open = again;
                }
                // The question gets no answer, and the next one tries again.
                Err(error) => tracing::debug!(%error, "no netlink socket for questions"),
            }
        }
        open.handle.clone()
    }

    /// Opens a connection for questions that tells of changes too.
    ///
    /// # Errors
    /// When the socket is not to be had.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn subscribe() -> io::Result<(Self, Events)> {
        let (connection, handle, events) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv6Rule,
        ])?;
        tokio::spawn(connection);
        // Whoever follows the events learns of its end, and needs all of them anew.
        let open = Open {
            handle,
            carrier: None,
        };
        Ok((Self::of(open), Events(events)))
    }

    /// The route to an address, as the kernel would choose it now.
    ///
    /// # Errors
    /// `ENETUNREACH` and the like if there is none.
    pub async fn route(&self, address: IpAddr) -> Result<Route, Error> {
        let route = self.get_route(address, RouteFlags::default()).await?;
        Ok(read_route(&route))
    }

    /// Whether the route to an address is for that one alone, and no prefix.
    ///
    /// # Errors
    /// As [`Netlink::route`].
    pub async fn is_host_route(&self, address: IpAddr) -> Result<bool, Error> {
        // The route as it stands in the table, and not as it is for this address.
        let route = self.get_route(address, RouteFlags::FibMatch).await?;
        let whole = IpVersion::of(address).address_bits();
        Ok(route.header.destination_prefix_length == whole)
    }

    /// What the kernel says of the route to an address.
    async fn get_route(&self, address: IpAddr, flags: RouteFlags) -> Result<RouteMessage, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = address.into();
        message.header.destination_prefix_length = IpVersion::of(address).address_bits();
        message.header.flags = flags;
        message
            .attributes
            .push(RouteAttribute::Destination(address.into()));
        match self
            .ask_one(RouteNetlinkMessage::GetRoute(message), 0)
            .await?
        {
            Some(RouteNetlinkMessage::NewRoute(route)) => Ok(route),
            _ => Err(Error::NoAnswer),
        }
    }

    /// A link, by its index.
    ///
    /// # Errors
    /// `ENODEV` if there is none.
    pub async fn link(&self, interface: u32) -> Result<Link, Error> {
        let mut message = LinkMessage::default();
        message.header.index = interface;
        match self
            .ask_one(RouteNetlinkMessage::GetLink(message), 0)
            .await?
        {
            Some(RouteNetlinkMessage::NewLink(link)) => Ok(read_link(&link)),
            _ => Err(Error::NoAnswer),
        }
    }

    /// All links, by their index.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn links(&self) -> Result<HashMap<u32, Link>, Error> {
        let links = all(self.handle().link().get().execute()).await?;
        Ok(links
            .iter()
            .map(|link| (link.header.index, read_link(link)))
            .collect())
    }

    /// Whether the kernel can ask neighbours of IPv6 on a link. It asks from a link-local address, and sends nothing while there is none that is known
    /// to be nobody else's (`ndisc_send_ns`): so for two seconds after a link has come up.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn can_solicit(&self, interface: u32) -> Result<bool, Error> {
        let mut request = self.handle().address().get();
        request.message_mut().header.family = AddressFamily::Inet6;
        // Kernels may answer with those of all links.
        let addresses = all(request.set_link_index_filter(interface).execute()).await?;
        let unusable = AddressHeaderFlags::Tentative
            | AddressHeaderFlags::Optimistic
            | AddressHeaderFlags::Dadfailed;
        Ok(addresses.iter().any(|AddressMessage { header, .. }| {
            header.scope == AddressScope::Link && !header.flags.intersects(unusable)
        }))
    }

    /// This host's addresses of one version of IP that it can speak from to hosts beyond a link, each with its interface: neither those of its loopback interface, nor those that are
    /// deprecated or not yet known to be nobody else's.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn addresses(&self, version: IpVersion) -> Result<Vec<(u32, IpAddr)>, Error> {
        let mut request = self.handle().address().get();
        request.message_mut().header.family = match version {
            IpVersion::V4 => AddressFamily::Inet,
            IpVersion::V6 => AddressFamily::Inet6,
        };
        let addresses = all(request.execute()).await?;
        Ok(addresses.iter().filter_map(speaking).collect())
    }

    /// The filters of traffic control on a link, ingress and egress: a name for each.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn filters(&self, interface: u32) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        for egress in [false, true] {
            let handle = self.handle();
            let mut filters = handle.traffic_filter(interface as i32);
            let request = filters.get();
            let request = if egress {
                request.egress()
            } else {
                request.ingress()
            };
            let mut answers = Box::pin(request.execute());
            let all = async {
                while let Some(answer) = answers.next().await {
                    match answer {
                        Ok(filter) => names.extend(read_filter(&filter)),
                        // Without a qdisc that has filters there are none.
                        Err(rtnetlink::Error::NetlinkError(_)) => return Ok(()),
                        Err(_) => return Err(Error::NoAnswer),
                    }
                }
                Ok(())
            };
            match tokio::time::timeout(PATIENCE, all).await {
                Ok(result) => result?,
                Err(_) => return Err(Error::NoAnswer),
            }
        }
        Ok(names)
    }

    /// A neighbour's entry, if there is one.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn entry(&self, interface: u32, address: IpAddr) -> Result<Option<Entry>, Error> {
        let message = neighbour(interface, address);
        match self
            .ask_one(RouteNetlinkMessage::GetNeighbour(message), 0)
            .await
        {
            Ok(Some(RouteNetlinkMessage::NewNeighbour(entry))) => Ok(Some(read_entry(&entry))),
            Ok(_) => Err(Error::NoAnswer),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Uses a neighbour as if a packet were sent to it: resolves it if it is not, and has a stale entry confirmed in the
    /// kernel's own time. Makes the entry if there is none.
    ///
    /// # Errors
    /// When the kernel refuses, as for an interface that is down.
    pub async fn use_neighbour(&self, interface: u32, address: IpAddr) -> Result<(), Error> {
        let mut message = neighbour(interface, address);
        message.header.flags = NeighbourFlags::Use;
        self.ask_one(
            RouteNetlinkMessage::NewNeighbour(message),
            NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE,
        )
        .await
        .map(drop)
    }

    /// Has an entry with a MAC confirmed at once: the kernel asks at intervals of a second (`retrans_time_ms`), three times
    /// (`ucast_solicit`), and calls the entry failed a second after that. An entry merely used would first be trusted for five seconds
    /// (`delay_first_probe_time`).
    ///
    /// # Errors
    /// `EINVAL` if the entry has no MAC, `ENOENT` if there is no entry.
    pub async fn probe_neighbour(&self, interface: u32, address: IpAddr) -> Result<(), Error> {
        let mut message = neighbour(interface, address);
        message.header.state = NeighbourState::Probe;
        self.ask_one(
            RouteNetlinkMessage::NewNeighbour(message),
            NLM_F_ACK | NLM_F_REPLACE,
        )
        .await
        .map(drop)
    }

    async fn ask_one(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Option<RouteNetlinkMessage>, Error> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        let mut answers = self.handle().request(request).map_err(|_| Error::Closed)?;
        match tokio::time::timeout(PATIENCE, answers.next()).await {
            Err(_) => Err(Error::NoAnswer),
            // The connection keeps an acknowledgement to itself, and ends the answers.
            Ok(None) => Ok(None),
            Ok(Some(answer)) => match answer.payload {
                NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
                NetlinkPayload::Error(error) => Err(Error::Refused(error.to_io())),
                _ => Err(Error::NoAnswer),
            },
        }
    }
}

fn neighbour(interface: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = address.into();
    message.header.ifindex = interface;
    message
        .attributes
        .push(NeighbourAttribute::Destination(address.into()));
    message
}

/// All answers to a question.
async fn all<T>(answers: impl Stream<Item = Result<T, rtnetlink::Error>>) -> Result<Vec<T>, Error> {
    let all = answers
        .map(|answer| match answer {
            Err(rtnetlink::Error::NetlinkError(error)) => Err(Error::Refused(error.to_io())),
            answer => answer.map_err(|_| Error::NoAnswer),
        })
        .try_collect();
    tokio::time::timeout(PATIENCE, all)
        .await
        .unwrap_or(Err(Error::NoAnswer))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The loopback interface, of every network namespace.
    const LOOPBACK: u32 = 1;

    #[tokio::test]
    async fn a_connection_for_questions_that_ended_is_opened_again() {
        let netlink = Netlink::connect().unwrap();
        netlink.link(LOOPBACK).await.unwrap();
        // As an error of its socket ends it.
        let carrier = netlink.0.lock().unwrap().carrier.take().unwrap();
        carrier.abort();
        while !carrier.is_finished() {
            tokio::task::yield_now().await;
        }
        netlink.0.lock().unwrap().carrier = Some(carrier);
        netlink.link(LOOPBACK).await.unwrap();
        assert!(!netlink.links().await.unwrap().is_empty());
    }
}
