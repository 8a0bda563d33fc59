//! The shape of the file, for editors and for tools that write it: a JSON schema, generated from the types here.
//!
//! The parser reads the text itself, so that it can tell where each mistake is and what to do about it; tests hold it and these types to the
//! same keys, defaults and bounds. (JSON Schema has no bounds of durations: `x-least` and `x-most` are what they are called here.)
//!
//! The tables of docs/configuration.md are made from these types, with the doc comment of each key as its meaning:
//! `TETHER_RECORD=1 cargo test -p lb-userspace reference` writes them.
#![expect(dead_code, reason = "only their shape is used")]

use std::collections::BTreeMap;

use lb_common::{maps::default, nat::SNAT_ADDRESSES};
use schemars::{JsonSchema, Schema, generate::SchemaSettings, transform::RecursiveTransform};
use serde_json::Value;

use super::{
    MAX_FLOWS, MAX_FLOWS6, MAX_NAT_PAIRS, MAX_PREFIXES, MAX_RATE, MAX_WEIGHT, WEIGHT,
    spec::MOST_CHECKS,
};

/// How a duration is written.
const DURATION: &str = "^[0-9]+(ms|s|m|h)$";

/// The schema of a configuration file (JSON Schema 2020-12).
pub fn schema() -> Schema {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.inline_subschemas = true;
        let no_null = RecursiveTransform(without_null);
        settings.transforms.push(Box::new(no_null));
    });
    settings.into_generator().into_root_schema_for::<Tether>()
}

/// What may be left out is left out: TOML has no null.
fn without_null(schema: &mut Schema) {
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|one| one != "null");
        if let [only] = &types[..] {
            let only = only.clone();
            schema.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(choices)) = schema.get_mut("enum") {
        choices.retain(|one| !one.is_null());
    }
    if let Some(Value::Array(choices)) = schema.get_mut("anyOf") {
        choices.retain(|one| one.get("type") != Some(&Value::from("null")));
        if let [Value::Object(only)] = &choices[..] {
            let only = only.clone();
            schema.remove("anyOf");
            for (key, value) in only {
                schema.ensure_object().entry(key).or_insert(value);
            }
        }
    }
}

/// A configuration of Tether.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Tether {
    /// Where clients' packets come in: the XDP program is attached there.
    #[schemars(length(min = 1), inner(length(min = 1, max = 15)))]
    interfaces: Vec<String>,
    /// The interfaces behind which backends are on this host, with `*` at the end of a name's beginning. Found out if it is left out.
    #[schemars(inner(length(min = 1, max = 15)))]
    local_interfaces: Option<Vec<String>>,
    /// Prefixes that are routed to this host, one for each version of IP at most: what the outer headers of mode `ipip` are from, a flow's always from the
    /// same address. This host's own address if it is left out.
    #[schemars(length(min = 1, max = 2))]
    outer_sources: Option<Vec<String>>,
    /// Holds the lock, the admin socket, and what is changed at runtime.
    #[schemars(regex(pattern = "^/"), extend("default" = "/run/tether"))]
    state_dir: Option<String>,
    /// The pin directory, on a bpffs; one for each daemon.
    #[schemars(regex(pattern = "^/"), extend("default" = "/sys/fs/bpf/tether"))]
    bpffs: Option<String>,
    /// The secret that load balancers which share VIPs have in common. Made up if it is left out.
    #[schemars(length(min = 1))]
    fleet_seed: Option<String>,
    /// The group whose members may read by the admin socket.
    #[schemars(length(min = 1))]
    admin_group: Option<String>,
    /// Whether the file is loaded whenever it has changed.
    #[schemars(extend("default" = true))]
    reload_on_change: Option<bool>,
    /// The zone that this load balancer is in; without it, it prefers none.
    #[schemars(regex(pattern = r"^[A-Za-z0-9._:-]{1,63}$"))]
    zone: Option<String>,
    /// Whom names are asked of.
    dns: Option<Dns>,
    /// Where metrics and the status page are served.
    metrics: Option<Metrics>,
    /// Sizes of the maps, and how many checks are made at once.
    limits: Option<Limits>,
    /// What is balanced.
    service: Option<Vec<Service>>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Dns {
    /// Addresses, with a port if it is not 53; without the key, those of /etc/resolv.conf.
    #[schemars(length(min = 1))]
    servers: Option<Vec<String>>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Metrics {
    /// An address and a port, IPv6 in brackets, or "off": where the status page, metrics and the health of the daemon are served, read-only.
    #[schemars(extend("default" = "127.0.0.1:9477"))]
    listen: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Limits {
    /// IPv4 flows that their table is sized for.
    #[schemars(range(min = 1, max = MAX_FLOWS), extend("default" = default::FLOWS))]
    flows: Option<u32>,
    /// IPv6 flows that their table is sized for.
    #[schemars(range(min = 1, max = MAX_FLOWS6), extend("default" = default::FLOWS6))]
    flows6: Option<u32>,
    /// One more than there are services.
    #[schemars(range(min = 2, max = 65_536), extend("default" = default::SERVICES))]
    services: Option<u32>,
    /// One more than there are backends, removed ones that have flows among them.
    #[schemars(range(min = 2, max = 262_144), extend("default" = default::BACKENDS))]
    backends: Option<u32>,
    /// The table sizes of all services together, and the largest once more.
    #[schemars(range(min = 128, max = 67_108_864), extend("default" = default::TABLE_SLOTS))]
    table_slots: Option<u32>,
    /// Pairs of a SNAT address and a backend's address and port, in mode `nat`.
    #[schemars(range(min = 1, max = MAX_NAT_PAIRS), extend("default" = default::NAT_PAIRS))]
    nat_pairs: Option<u32>,
    /// Clients that keep their backends, of services with `affinity`.
    #[schemars(range(min = 1, max = MAX_FLOWS6), extend("default" = default::AFFINITIES))]
    clients: Option<u32>,
    /// Ranges of client addresses that the `allow` and `deny` lists of all services come to: at most two for each prefix and one, and the most of one service
    /// once more.
    #[schemars(range(min = 1, max = MAX_PREFIXES), extend("default" = default::RANGES))]
    prefixes: Option<u32>,
    /// Sources of clients that are told apart at a time, of services with a `source_limit`.
    #[schemars(range(min = 1, max = MAX_FLOWS6), extend("default" = default::SOURCES))]
    sources: Option<u32>,
    /// Health checks that are under way at once, of all services.
    #[schemars(range(min = 1, max = MOST_CHECKS), extend("default" = 256))]
    checks: Option<u32>,
}

/// One VIP, one port, and its backends.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Service {
    /// Unique among services.
    #[schemars(regex(pattern = r"^[A-Za-z0-9._:-]{1,63}$"))]
    name: String,
    /// The address that clients connect to.
    vip: String,
    /// The port that clients connect to.
    #[schemars(range(min = 1))]
    port: u16,
    /// How packets get to backends.
    mode: Mode,
    /// Mode `nat`: what backends see in the place of clients' addresses.
    #[schemars(length(min = 1, max = SNAT_ADDRESSES))]
    snat: Option<Vec<String>>,
    /// Slots of its table, made the next prime; at least 64 for each backend.
    #[schemars(range(min = 1, max = 16_777_213), extend("default" = 65_537))]
    table_size: Option<u32>,
    /// With fewer usable backends than this the service fails open; 0: it never does.
    #[schemars(range(min = 0, max = 262_144), extend("default" = 1))]
    min_healthy: Option<u32>,
    /// How long flows may stay on a backend that is drained or removed; without it, as long as they live.
    #[schemars(extend("x-least" = "0s", "x-most" = "720h"))]
    drain_deadline: Option<Duration>,
    /// Over which time what is left at the deadline is closed; `"0s"` is at once.
    #[schemars(extend("default" = "60s", "x-least" = "0s", "x-most" = "24h"))]
    close_over: Option<Duration>,
    /// What becomes of the flows of a dead backend.
    #[schemars(extend("default" = "reset"))]
    on_down: Option<OnDown>,
    /// Over which time the clients of a dead backend are told, each on its next packet; `"0s"` is at once.
    #[schemars(extend("default" = "0s", "x-least" = "0s", "x-most" = "1h"))]
    reset_over: Option<Duration>,
    /// What goes to one backend: each connection by itself, or all connections of a client's address.
    #[schemars(extend("default" = "connection"))]
    affinity: Option<AffinityKind>,
    /// How long a client without connections keeps its backend.
    #[schemars(extend("default" = "3h", "x-least" = "10s", "x-most" = "72h"))]
    affinity_timeout: Option<Duration>,
    /// Services of one group keep a client at backends of one address.
    #[schemars(regex(pattern = r"^[A-Za-z0-9._:-]{1,63}$"))]
    affinity_group: Option<String>,
    /// Backups take new flows while fewer primary backends than this can; without it, than `min_healthy`, and at least 1.
    #[schemars(range(min = 1, max = 262_144))]
    backup_below: Option<u32>,
    /// Percent of the local zone's weight that must be able to take new flows, or other zones take some.
    #[schemars(range(min = 1, max = 100), extend("default" = 70))]
    zone_enough: Option<u8>,
    /// Over which time a backend that begins to take new flows gets its share.
    #[schemars(extend("default" = "0s", "x-least" = "0s", "x-most" = "24h"))]
    slow_start: Option<Duration>,
    /// What shares follow: weights, or weights that move by how many connections each backend has.
    #[schemars(extend("default" = "weights"))]
    balance: Option<Balance>,
    /// Prefixes and addresses that may open new flows, and no others; without it, all may.
    #[schemars(length(min = 1))]
    allow: Option<Vec<String>>,
    /// A file with more of them, one a line, and comments from `#` on.
    #[schemars(regex(pattern = "^/"))]
    allow_file: Option<String>,
    /// Prefixes and addresses that may open none, whatever is allowed.
    deny: Option<Vec<String>>,
    /// A file with more of them, one a line, and comments from `#` on.
    #[schemars(regex(pattern = "^/"))]
    deny_file: Option<String>,
    /// How many new flows, and how many at a time, one source may have.
    source_limit: Option<SourceLimit>,
    /// What its clients send again, compared between its backends; without it, that is not counted.
    outlier: Option<Outlier>,
    /// How backends are checked; without it, by a TCP connection.
    health: Option<Health>,
    /// Who serves it.
    backend: Option<Vec<Backend>>,
    /// Names in the DNS whose addresses serve it too.
    dns: Option<Vec<Source>>,
}

/// How many flows one source of clients may open and have.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct SourceLimit {
    /// Addresses with so many bits in common are one source, 1 to 32 of an IPv4 VIP; without it, 32, or 64 of an IPv6 VIP.
    #[schemars(range(min = 1, max = 64))]
    prefix: Option<u8>,
    /// New flows a second, in the long run.
    #[schemars(range(min = 1, max = MAX_RATE))]
    new_per_second: Option<u32>,
    /// New flows at once, after a while without any; without it, as many as `new_per_second`.
    #[schemars(range(min = 1, max = MAX_RATE))]
    burst: Option<u32>,
    /// Flows at a time.
    #[schemars(range(min = 1, max = MAX_FLOWS))]
    flows: Option<u32>,
}

/// A name in the DNS whose addresses are backends.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Source {
    /// What the names of its backends begin with; unique among the service's sources.
    #[schemars(regex(pattern = r"^[A-Za-z0-9._:-]{1,16}$"))]
    name: String,
    /// The name that is asked for.
    query: String,
    /// Which records: A and AAAA, one of them, or SRV.
    #[schemars(extend("default" = "address"))]
    r#type: Option<RecordType>,
    /// Without it, the service's; another one in modes `nat` and `dnat` only.
    #[schemars(range(min = 1))]
    port: Option<u16>,
    /// The weight of each backend, unless SRV records give one.
    #[schemars(range(min = 0, max = MAX_WEIGHT), extend("default" = WEIGHT))]
    weight: Option<u16>,
    /// The name is not asked again sooner, whatever its TTL; after a failure it is asked again after this time.
    #[schemars(extend("default" = "5s", "x-least" = "1s", "x-most" = "24h"))]
    min_ttl: Option<Duration>,
    /// The name is asked again by then; the default is `min_ttl` if that is longer.
    #[schemars(extend("default" = "5m", "x-least" = "1s", "x-most" = "24h"))]
    max_ttl: Option<Duration>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum RecordType {
    /// A and AAAA.
    Address,
    A,
    Aaaa,
    Srv,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum OnDown {
    /// Each is closed on its next packet.
    Reset,
    /// They stay.
    Keep,
    /// They go where today's table sends them.
    Rehash,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
enum AffinityKind {
    /// Each connection is placed for itself.
    Connection,
    /// All connections of a client's address go to one backend.
    ClientIp,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
enum Balance {
    /// Weights.
    Weights,
    /// Weights, and how many connections each backend has.
    LeastConnections,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum Mode {
    /// The destination MAC is rewritten.
    L2,
    /// A second IP header is put in front.
    Ipip,
    /// Both addresses and ports are translated, and those of replies back.
    Nat,
    /// Address and port of the destination are translated, and replies' source back.
    Dnat,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum CheckType {
    Tcp,
    Http,
    Https,
    WebSocket,
    Grpc,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "UPPERCASE")]
enum Method {
    Get,
    Head,
    Options,
    Post,
}

/// A whole number and a unit: ms, s, m or h.
#[derive(JsonSchema)]
#[schemars(extend("pattern" = DURATION))]
struct Duration(String);

/// A status, or a range of them.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum Status {
    One(#[schemars(range(min = 100, max = 599))] u16),
    Range(#[schemars(regex(pattern = "^[1-5][0-9]{2}-[1-5][0-9]{2}$"))] String),
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum Scalar {
    Text(String),
    Number(f64),
    Flag(bool),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Outlier {
    /// How many times the median of its peers a backend's share of what is sent again is, that makes it an outlier.
    #[schemars(range(min = 2, max = 100), extend("default" = 3))]
    ratio: Option<u32>,
    /// The least that this share is, percent.
    #[schemars(range(min = 1, max = 100), extend("default" = 5))]
    floor: Option<u32>,
    /// Of fewer handshakes, or segments with data, in the window no share is judged.
    #[schemars(range(min = 10, max = 1_000_000), extend("default" = 200))]
    least: Option<u32>,
    /// Percent of the backends that are ejected at a time, at most; but one, if there are two. 0: it is only counted.
    #[schemars(range(min = 0, max = 100), extend("default" = 10))]
    at_most: Option<u32>,
    /// How long a backend is ejected for the first time; for the second twice as long, and so on up to ten times.
    #[schemars(extend("default" = "30s", "x-least" = "1s", "x-most" = "1h"))]
    eject_for: Option<Duration>,
    /// The time that is looked back on.
    #[schemars(extend("default" = "30s", "x-least" = "3s", "x-most" = "1h"))]
    window: Option<Duration>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Health {
    /// What is asked.
    #[schemars(extend("default" = "tcp"))]
    r#type: Option<CheckType>,
    /// The port that is asked; without it the backend's.
    #[schemars(range(min = 1))]
    port: Option<u16>,
    /// Where the check goes: to the backend's own address, or as clients' packets do; the latter in modes `ipip` and `l2` only.
    #[schemars(extend("default" = "address"))]
    through: Option<Through>,
    /// Types `http`, `https` and `websocket`: the path of the request.
    #[schemars(regex(pattern = "^/"), extend("default" = "/"))]
    path: Option<String>,
    /// All types but `tcp`: the `Host` header, in gRPC `:authority`; without it the address that is asked, an IPv6 one in brackets.
    host: Option<String>,
    /// All types but `tcp`: further headers.
    headers: Option<BTreeMap<String, String>>,
    /// Types `http` and `https`: the method of the request.
    #[schemars(extend("default" = "GET"))]
    method: Option<Method>,
    /// Types `http` and `https`: the answers that are a yes, as numbers, or strings with a range of them.
    #[schemars(length(min = 1), extend("default" = ["200-399"]))]
    status: Option<Vec<Status>>,
    /// Types `http` and `https`: what must be in the first 64 KiB of the body.
    #[schemars(length(min = 1))]
    body_contains: Option<String>,
    /// Types `http` and `https`: the body must be JSON, and have a value at a place.
    json: Option<Json>,
    /// Type `websocket`: whether a ping must be answered by its pong.
    #[schemars(extend("default" = false))]
    ping: Option<bool>,
    /// Type `grpc`: the service that health is asked for; empty is the server as a whole.
    #[schemars(extend("default" = ""))]
    service: Option<String>,
    /// Types `https`, `websocket` and `grpc`: how the connection is wrapped; without it, `https` has the defaults of that table, and the others no TLS.
    tls: Option<Tls>,
    /// The time from check to check.
    #[schemars(extend("default" = "2s", "x-least" = "10ms", "x-most" = "1h"))]
    interval: Option<Duration>,
    /// Instead of `interval`, if it is shorter, while a verdict is about to change, and before the first.
    #[schemars(extend("default" = "500ms", "x-least" = "10ms", "x-most" = "1h"))]
    doubt_interval: Option<Duration>,
    /// By how many percent `interval` and `doubt_interval` vary at random, so that checks of many backends do not fall together.
    #[schemars(range(min = 0, max = 50), extend("default" = 10))]
    jitter: Option<u8>,
    /// For the whole of a check: connection, TLS, request, answer; at most `interval`, which is the default if it is shorter.
    #[schemars(extend("default" = "1s", "x-least" = "10ms", "x-most" = "1h"))]
    timeout: Option<Duration>,
    /// Failed checks in a row before a backend is no longer `up`.
    #[schemars(range(min = 1, max = 100), extend("default" = 3))]
    fall: Option<u32>,
    /// Good checks in a row before it is `up` again; the very first verdict takes one.
    #[schemars(range(min = 1, max = 100), extend("default" = 2))]
    rise: Option<u32>,
    /// What a new backend counts as before the first verdict: `"unknown"` takes no new flows, `"up"` does.
    #[schemars(extend("default" = "unknown"))]
    initial: Option<Initial>,
    /// From a new backend's first check on, failures do not count for so long unless it has been `up`.
    #[schemars(extend("default" = "0s", "x-least" = "0s", "x-most" = "1h"))]
    startup_grace: Option<Duration>,
    /// Checks of this service that are under way at once; others wait for their turn.
    #[schemars(range(min = 1, max = MOST_CHECKS), extend("default" = 128))]
    at_once: Option<u32>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Json {
    /// A place in the body ([RFC 6901](https://www.rfc-editor.org/rfc/rfc6901)); `""` is the whole.
    #[schemars(regex(pattern = "^(/.*)?$"))]
    pointer: String,
    /// What must be there; 1 and 1.0 are equal.
    equals: Scalar,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum Through {
    /// To the backend's address.
    Address,
    /// To the VIP, as clients' packets do, and to this backend alone.
    Vip,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum Initial {
    /// It takes no new flows.
    Unknown,
    /// It does.
    Up,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Tls {
    /// A file of certificates in PEM; without it the authorities that the host trusts.
    #[schemars(regex(pattern = "^/"))]
    ca: Option<String>,
    /// The name or address that the certificate must be for; without it, `host` without its port, or the backend's address.
    name: Option<String>,
    /// Whether the certificate is verified; `false` takes any.
    #[schemars(extend("default" = true))]
    verify: Option<bool>,
}

/// One address that serves.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Backend {
    /// Unique in its service.
    #[schemars(regex(pattern = r"^[A-Za-z0-9._:-]{1,63}$"))]
    name: String,
    /// Its address.
    address: String,
    /// Without it, the service's; another one in modes `nat` and `dnat` only.
    #[schemars(range(min = 1))]
    port: Option<u16>,
    /// Its share of new flows in relation to the others'.
    #[schemars(range(min = 0, max = MAX_WEIGHT), extend("default" = WEIGHT))]
    weight: Option<u16>,
    /// What is wanted of it: that it takes flows, keeps those it has, or that it is out of use.
    #[schemars(extend("default" = "active"))]
    admin: Option<Admin>,
    /// With so many connections it takes no new ones.
    #[schemars(range(min = 1, max = 20_000_000))]
    max_connections: Option<u32>,
    /// Whether it takes new flows only while too few of the others can.
    #[schemars(extend("default" = false))]
    backup: Option<bool>,
    /// The zone that it is in.
    #[schemars(regex(pattern = r"^[A-Za-z0-9._:-]{1,63}$"))]
    zone: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum Admin {
    /// It takes flows as its health allows.
    Active,
    /// It keeps its flows and takes no new ones.
    Draining,
    /// The same, and it does not count as usable.
    Disabled,
}

#[cfg(test)]
mod tests;
