//! What the daemon itself costs, and how soon it acts: rows of a real daemon, on the balancer of a lab.
//!
//! A crowd of backends stands on the lab's router, which has all their addresses and answers health checks at each. One more service has a real backend:
//! a flow to it echoes while all others are configured anew.

mod crowd;

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    os::fd::AsFd as _,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapData;
use lab::{
    namespace::Namespace,
    peer::{
        backend::{Backend, PORT},
        client::{Clients, Plan},
    },
    tether::{self, CONFIG_PATH, PINS, Tether},
    topology::{Lab, Place, Topology, UPLINK},
    wait,
};
use lb_common::{
    backend,
    maglev::{Slot, TableRef},
    maps::{self, default},
    service::Service,
};
use lb_userspace::dataplane::array::{Array, Entry};
use nix::sys::signal::Signal;

use self::crowd::Crowd;
use crate::rows::{Row, absolute};

/// What the names of all these rows begin with.
pub(crate) const ROWS: &str = "control";

const RELOAD: &str = "control/reload/1000x20";
const SCRAPE: &str = "control/scrape/1000x20";
const PROBE_TO_TABLE: &str = "control/probe-to-table";
const IDLE_CPU: &str = "control/idle-cpu";
const IDLE_MEMORY: &str = "control/idle-memory";

/// Where the daemon serves metrics if nothing is said.
const METRICS: &str = "127.0.0.1:9477";
/// Until all backends take new flows, which are checked for the first time.
const UP_WITHIN: Duration = Duration::from_secs(120);
/// Whatever else is waited for: the checks of a backend come by far more often, and the marks are by far shorter.
const PATIENCE: Duration = Duration::from_secs(60);
/// From message to message of the flow that echoes.
const PACE: Duration = Duration::from_millis(20);

/// How the many services are checked: rarely, since it is not what is measured.
const RARELY: &str = "type = \"tcp\"\ninterval = \"1m\"\ntimeout = \"5s\"\n";
/// How the crowd of one service is checked. One answer decides, so that it is known which.
fn often(interval: &str) -> String {
    format!(
        "type = \"http\"\npath = \"/status\"\njson = {{ pointer = \"/status\", equals = \"ok\" }}\n\
         interval = \"{interval}\"\nfall = 1\nrise = 1\n"
    )
}

/// How large daemons are, and how long they are looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Services that are reloaded and scraped.
    services: u32,
    /// Backends of each, and slots of its table.
    of_each: (u32, u32),
    /// Backends of the one service of the idle daemon, and slots of its table.
    of_one: (u32, u32),
    /// How often each of these is checked.
    interval: &'static str,
    /// For how long it idles.
    idle: Duration,
    /// How often everything else is measured.
    rounds: u32,
    /// Whether the marks apply.
    has_marks: bool,
}

impl Size {
    /// What the marks are for.
    pub(crate) const fn full(rounds: u32) -> Self {
        Self {
            services: 1_000,
            of_each: (20, 2_039),
            of_one: (1_000, 65_537),
            interval: "5s",
            idle: Duration::from_secs(60),
            rounds,
            has_marks: true,
        }
    }

    /// Hardly anything: to see that it can be measured.
    pub(crate) const SMOKE: Self = Self {
        services: 3,
        of_each: (2, 211),
        of_one: (5, 509),
        interval: "500ms",
        idle: Duration::from_secs(1),
        rounds: 2,
        has_marks: false,
    };

    fn row(&self, name: &str, unit: &'static str, figures: &[f64], under: f64) -> Row {
        absolute(name, unit, figures, self.has_marks.then_some(under))
    }
}

/// Measures those of these rows whose name begins with `only`.
pub(crate) fn measure(only: &str, size: &Size) -> Result<Vec<Row>> {
    let wanted = |name: &str| name.starts_with(only);
    let mut rows = Vec::new();
    if wanted(RELOAD) || wanted(SCRAPE) {
        let many = |weight| {
            let services = 0..size.services;
            services
                .map(|number| service(number, size.of_each, weight, RARELY))
                .collect::<String>()
        };
        let site = Site::set(&many(100))?;
        if wanted(RELOAD) {
            rows.push(reload(&site, size, many)?);
        }
        if wanted(SCRAPE) {
            rows.push(scrape(&site, size)?);
        }
    }
    if wanted(PROBE_TO_TABLE) || wanted(IDLE_CPU) || wanted(IDLE_MEMORY) {
        let site = Site::set(&service(0, size.of_one, 100, &often(size.interval)))?;
        if wanted(IDLE_CPU) {
            rows.push(idle_cpu(&site, size)?);
        }
        if wanted(IDLE_MEMORY) {
            rows.push(idle_memory(&site, size)?);
        }
        if wanted(PROBE_TO_TABLE) {
            rows.push(probe_to_table(&site, size)?);
        }
    }
    Ok(rows)
}

/// A daemon on the balancer of a lab, and all that it needs. Dropping it takes all of it away.
struct Site {
    tether: Tether,
    crowd: Crowd,
    clients: Clients,
    _echo: Backend,
    lab: Lab,
}

impl Site {
    /// Starts the daemon with these services beside that of the real backend, and waits until all backends take new flows.
    fn set(services: &str) -> Result<Self> {
        let topology = Topology {
            client_addresses: 1,
            backends: 1,
            ..Topology::new(Place::Farm)
        };
        let lab = topology.build()?;
        let host = &lab.backends()[0];
        tether::succeed(host, &["decap", "--interface", UPLINK])?;
        let echo = Backend::start(host)?;
        let crowd = Crowd::start(lab.router())?;
        let clients = Clients::start(lab.client(), lab.sources(), 1)?;
        let mut tether = Tether::start(lab.balancer(), &config(&topology, services))?;
        tether.wait_ready()?;
        let site = Self {
            tether,
            crowd,
            clients,
            _echo: echo,
            lab,
        };
        site.wait_up()?;
        Ok(site)
    }

    fn wait_up(&self) -> Result<()> {
        let left = || -> Result<usize> {
            let status = self.tether.status()?;
            let backends = status.services.iter().flat_map(|s| &s.backends);
            Ok(backends
                .filter(|b| b.serving != "new" || b.health != "up")
                .count())
        };
        let what = "all backends take new flows";
        wait::until_seen(what, UP_WITHIN, left, |left| *left == 0).map(drop)
    }
}

/// A file with these services and the lab's own. All that it does not say is as shipped, the limits too.
fn config(topology: &Topology, services: &str) -> String {
    format!(
        "interfaces = [\"{UPLINK}\"]\nreload_on_change = false\n\n\
         [[service]]\nname = \"real\"\nvip = \"{}\"\nport = {PORT}\nmode = \"ipip\"\ntable_size = 1009\n\n\
         [[service.backend]]\nname = \"b1\"\naddress = \"{}\"\n{services}",
        topology.vip(),
        topology.backend_address(0),
    )
}

/// A service of the crowd with so many backends and slots, the first backend of such a weight.
fn service(number: u32, (backends, slots): (u32, u32), weight: u32, health: &str) -> String {
    let mut text = format!(
        "\n[[service]]\nname = \"crowd-{number}\"\nvip = \"{}\"\nport = {PORT}\nmode = \"ipip\"\ntable_size = {slots}\n\n\
         [service.health]\nport = {}\n{health}",
        vip(number),
        crowd::PORT,
    );
    for backend in 0..backends {
        let address = crowd::address(number * backends + backend);
        let weight = if backend == 0 { weight } else { 100 };
        let _ = write!(
            text,
            "\n[[service.backend]]\nname = \"c{backend}\"\naddress = \"{address}\"\nweight = {weight}\n"
        );
    }
    text
}

fn vip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 64, 0, 1)) + number)
}

/// From the order to read a file in which a weight of every service but one is another, until that is in force. A flow of the one echoes throughout.
fn reload(site: &Site, size: &Size, services: impl Fn(u32) -> String) -> Result<Row> {
    let topology = site.lab.topology();
    let target = SocketAddr::new(topology.vip(), PORT);
    let flow = site.clients.open_one(Plan::new(target).talking(PACE))?;
    let events = site.tether.begin(&["events", "--follow", "--json"])?;
    let mut times = Vec::new();
    for round in 0..size.rounds {
        let generation = site.tether.status()?.generation.accepted + 1;
        let weight = if round % 2 == 0 { 200 } else { 100 };
        let text = config(&topology, &services(weight));
        site.lab.balancer().write(CONFIG_PATH, &text)?;
        let echoes = flow.history().echoes();
        let ordered = Instant::now();
        site.tether.signal(Signal::SIGHUP)?;
        // Told with the status that says it is applied, and far cheaper to ask for.
        let told = format!("reloaded: generation {generation}\"");
        let applied = wait::until(&told, PATIENCE, || {
            let is_told = events.said().iter().any(|line| line.contains(&told));
            is_told.then(Instant::now)
        })?;
        times.push(milliseconds(applied - ordered));
        let now = site.tether.status()?.generation;
        ensure!(
            now.applied == generation,
            "{RELOAD}: {now:?} after generation {generation} was told of"
        );
        wait::until("the flow echoes on", PATIENCE, || {
            (flow.history().echoes() > echoes).then_some(())
        })?;
        ensure!(
            flow.history().breaks().next().is_none(),
            "{RELOAD}: the flow of a service that stayed as it is broke"
        );
    }
    Ok(size.row(RELOAD, "ms", &times, 2_000.0))
}

/// From the connection for a scrape to its last byte.
fn scrape(site: &Site, size: &Size) -> Result<Row> {
    let times = (0..size.rounds)
        .map(|_| site.lab.balancer().run(scrape_once).map(milliseconds))
        .collect::<Result<Vec<_>>>()?;
    Ok(size.row(SCRAPE, "ms", &times, 250.0))
}

fn scrape_once() -> Result<Duration> {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(METRICS).context("connecting for a scrape")?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let time = begun.elapsed();
    ensure!(answer.ends_with(b"# EOF\n"), "{SCRAPE}: it broke off");
    Ok(time)
}

/// From the reply of one backend that decides, to the moment when its service's table in the kernel does not have it any more.
fn probe_to_table(site: &Site, size: &Size) -> Result<Row> {
    let maps = Mapped::open(site.lab.balancer())?;
    let service = maps.service(vip(0)).context("the crowd's service")?;
    let (backends, _) = size.of_one;
    let mut times = Vec::new();
    for round in 0..size.rounds {
        let address = crowd::address(round % backends);
        let backend = maps.backend(address).context("a backend of the crowd")?;
        let replied = site.crowd.refuse(address, PATIENCE)?;
        while maps.has(service, backend) {
            ensure!(
                replied.elapsed() < PATIENCE,
                "{PROBE_TO_TABLE}: {address} said no, and stays in the table"
            );
        }
        times.push(milliseconds(replied.elapsed()));
        site.crowd.relent();
        wait::until("the backend is in the table again", PATIENCE, || {
            maps.has(service, backend).then_some(())
        })?;
    }
    Ok(size.row(PROBE_TO_TABLE, "ms", &times, 10.0).for_each())
}

/// The share of a core that the daemon takes while nothing happens but checks.
fn idle_cpu(site: &Site, size: &Size) -> Result<Row> {
    let pid = site.tether.pid()?;
    let (begun, before) = (Instant::now(), cpu_time(pid)?);
    // Not a wait for something: the time that is looked at.
    thread::sleep(size.idle);
    let used = cpu_time(pid)?.saturating_sub(before);
    let percent = 100.0 * used.as_secs_f64() / begun.elapsed().as_secs_f64();
    Ok(size.row(IDLE_CPU, "%", &[percent], 5.0))
}

/// Time that a process has had of CPUs, its own and the kernel's for it.
fn cpu_time(pid: u32) -> Result<Duration> {
    /// Of the unit of these figures, which is the same on every kernel of x86-64.
    const MS: u64 = 10;
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).context("the daemon's times")?;
    // The name before may have blanks in it.
    let (_, fields) = text.rsplit_once(')').context("a process's times")?;
    let mut fields = fields.split_whitespace().skip(11).map(str::parse::<u64>);
    let mut next = || -> Result<u64> { Ok(fields.next().context("a process's times")??) };
    Ok(Duration::from_millis((next()? + next()?) * MS))
}

/// Memory of the daemon's own; that of maps is not in it.
fn idle_memory(site: &Site, size: &Size) -> Result<Row> {
    let mib = site.tether.own_memory_kib()? as f64 / 1_024.0;
    Ok(size.row(IDLE_MEMORY, "MiB", &[mib], 64.0))
}

/// The daemon's maps, as the kernel has them: of the sizes that are shipped.
struct Mapped {
    services: Array<Service>,
    backends: Array<backend::Backend>,
    tables: Array<Slot>,
}

impl Mapped {
    fn open(balancer: &Arc<Namespace>) -> Result<Self> {
        balancer.run(|| {
            Ok(Self {
                services: mapped(maps::SERVICES, default::SERVICES)?,
                backends: mapped(maps::BACKENDS, default::BACKENDS)?,
                tables: mapped(maps::TABLES, default::TABLE_SLOTS)?,
            })
        })
    }

    /// The id of the service at a VIP.
    fn service(&self, vip: Ipv4Addr) -> Option<u32> {
        (1..self.services.len()).find(|&id| {
            let service = self.services.get(id);
            service.identity != 0 && IpAddr::from(service.vip) == vip
        })
    }

    /// The id of the backend at an address.
    fn backend(&self, address: Ipv4Addr) -> Option<u32> {
        (1..self.backends.len()).find(|&id| {
            let backend = self.backends.get(id);
            backend.identity != 0 && IpAddr::from(backend.address) == address
        })
    }

    /// Whether a service's table gives new flows to a backend.
    fn has(&self, service: u32, backend: u32) -> bool {
        let table = TableRef(self.services.get(service).table);
        (table.offset()..table.offset() + table.size())
            .any(|index| self.tables.get(index).current() == backend)
    }
}

/// Maps a pinned map into this process's memory. To be called on the host that has the pin.
fn mapped<T: Entry>(name: &str, len: u32) -> Result<Array<T>> {
    let pin = Path::new(PINS).join("maps").join(name);
    let map = MapData::from_pin(&pin).with_context(|| format!("opening {}", pin.display()))?;
    let array = Array::of_map(map.fd().as_fd(), len);
    array.with_context(|| format!("mapping {}", pin.display()))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
