//! One question to the DNS.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime},
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::runtime::TokioRuntimeProvider,
    proto::rr::{Name, RData, RecordType},
};

use super::{Found, Kind, Question, Servers};
use crate::config::MAX_WEIGHT;

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Asks servers that are given, or those of `/etc/resolv.conf`, which may change meanwhile.
pub(super) struct Resolver {
    servers: Servers,
    /// When the file that it is made of was changed.
    made: Option<(Option<SystemTime>, TokioResolver)>,
}

impl Resolver {
    pub(super) fn new(servers: Servers) -> Self {
        Self {
            servers,
            made: None,
        }
    }

    /// The addresses, in order and at least one, and how long they are good.
    pub(super) async fn ask(
        &mut self,
        question: &Question,
    ) -> Result<(Vec<Found>, Duration), String> {
        let resolver = self.resolver()?;
        let name = &question.name;
        let (mut found, ttl) = match question.kind {
            Kind::A => addresses(resolver, name, &[RecordType::A]).await?,
            Kind::Aaaa => addresses(resolver, name, &[RecordType::AAAA]).await?,
            Kind::Address => addresses(resolver, name, &BOTH).await?,
            Kind::Srv => services(resolver, name).await?,
        };
        if found.is_empty() {
            return Err(format!("{name} has no address"));
        }
        found.sort_unstable();
        // One address and port is one backend, whatever names lead there; the heavier counts.
        found.reverse();
        found.dedup_by_key(|one| (one.address, one.port));
        found.reverse();
        Ok((found, ttl))
    }

    fn resolver(&mut self) -> Result<&TokioResolver, String> {
        let changed = match self.servers {
            Some(_) => None,
            None => fs::metadata(RESOLV_CONF)
                .and_then(|file| file.modified())
                .ok(),
        };
        if self.made.as_ref().is_none_or(|(at, _)| *at != changed) {
            let (config, options) = match &self.servers {
                Some(servers) => (of_servers(servers), ResolverOpts::default()),
                None => of_file().map_err(|error| format!("{RESOLV_CONF}: {error}"))?,
            };
            let mut builder =
                TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
            let used = builder.options_mut();
            *used = options;
            // When to ask again is decided here, and what a file of this host says is no answer for a fleet.
            used.cache_size = 0;
            used.use_hosts_file = ResolveHosts::Never;
            let resolver = builder.build().map_err(|error| error.to_string())?;
            self.made = Some((changed, resolver));
        }
        match &self.made {
            Some((_, resolver)) => Ok(resolver),
            None => Err("there is no resolver".to_owned()),
        }
    }
}

const BOTH: [RecordType; 2] = [RecordType::A, RecordType::AAAA];

fn of_servers(servers: &[SocketAddr]) -> ResolverConfig {
    let server = |server: &SocketAddr| {
        let at = |mut connection: ConnectionConfig| {
            connection.port = server.port();
            connection
        };
        let connections = vec![at(ConnectionConfig::udp()), at(ConnectionConfig::tcp())];
        NameServerConfig::new(server.ip(), true, connections)
    };
    ResolverConfig::from_parts(None, vec![], servers.iter().map(server).collect())
}

fn of_file() -> io::Result<(ResolverConfig, ResolverOpts)> {
    let text = fs::read(RESOLV_CONF)?;
    let (parsed, _) = resolv_conf::Config::parse_with_errors(&text);
    let servers: Vec<_> = parsed
        .nameservers
        .iter()
        .map(|server| NameServerConfig::udp_and_tcp(server.into()))
        .collect();
    if servers.is_empty() {
        return Err(io::Error::other(
            "it names no server; give some with servers in [dns]",
        ));
    }
    let search = parsed.get_last_search_or_domain();
    let search = search.filter_map(|domain| Name::from_str_relaxed(domain).ok());
    let mut options = ResolverOpts::default();
    options.ndots = parsed.ndots as usize;
    options.timeout = Duration::from_secs(parsed.timeout.into());
    options.attempts = parsed.attempts as usize;
    let config = ResolverConfig::from_parts(None, search.collect(), servers);
    Ok((config, options))
}

/// Addresses of a name, none if it has none. One of two types may be missing, but neither may fail for another reason: half an answer would drain the other
/// half.
async fn addresses(
    resolver: &TokioResolver,
    name: &str,
    types: &[RecordType],
) -> Result<(Vec<Found>, Duration), String> {
    let mut found = Vec::new();
    let mut ttl = u32::MAX;
    for &kind in types {
        let lookup = match resolver.lookup(name, kind).await {
            Ok(lookup) => lookup,
            Err(error) if error.is_no_records_found() => continue,
            Err(error) => return Err(format!("{name}: {error}")),
        };
        for record in lookup.answers() {
            let address: IpAddr = match &record.data {
                RData::A(address) => address.0.into(),
                RData::AAAA(address) => address.0.into(),
                // The aliases that led there count for how long it is good.
                _ => {
                    ttl = ttl.min(record.ttl);
                    continue;
                }
            };
            ttl = ttl.min(record.ttl);
            found.push(Found {
                address,
                port: None,
                weight: None,
            });
        }
    }
    Ok((found, Duration::from_secs(ttl.into())))
}

/// Addresses of the services of a name: those of the best priority, with their ports and weights.
async fn services(resolver: &TokioResolver, name: &str) -> Result<(Vec<Found>, Duration), String> {
    let lookup = resolver.lookup(name, RecordType::SRV).await;
    let lookup = lookup.map_err(|error| format!("{name}: {error}"))?;
    let records: Vec<_> = lookup
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            // A lone dot says that there is no such service (RFC 2782).
            RData::SRV(service) if !service.target.is_root() => Some((record.ttl, service)),
            _ => None,
        })
        .collect();
    let Some(best) = records.iter().map(|(_, service)| service.priority).min() else {
        return Ok((vec![], Duration::ZERO));
    };
    let best = || {
        records
            .iter()
            .filter(move |(_, service)| service.priority == best)
    };
    let heaviest = best().map(|(_, service)| service.weight).max().unwrap_or(0);
    let mut found = Vec::new();
    let mut ttl = best().map(|(ttl, _)| *ttl).min().unwrap_or(0).into();
    let mut known: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for (_, service) in best() {
        let target = service.target.to_utf8();
        if !known.contains_key(&target) {
            let (all, good) = addresses(resolver, &target, &BOTH).await?;
            ttl = good.as_secs().min(ttl);
            known.insert(target.clone(), all.iter().map(|one| one.address).collect());
        }
        for &address in &known[&target] {
            found.push(Found {
                address,
                port: Some(service.port),
                weight: share(service.weight, heaviest),
            });
        }
    }
    Ok((found, Duration::from_secs(ttl)))
}

/// A weight of SRV's 16 bits as one of ours, in the same relation as far as ours are fine enough; none if no record has one.
fn share(weight: u16, heaviest: u16) -> Option<u16> {
    let (weight, heaviest) = (u32::from(weight), u32::from(heaviest));
    let most = u32::from(MAX_WEIGHT);
    let scaled = match heaviest {
        0 => return None,
        _ if heaviest <= most => weight,
        _ => (weight * most + heaviest / 2) / heaviest,
    };
    u16::try_from(scaled.max(1)).ok()
}
