//! How long a scrape takes with 1,000 services of 20 backends: `cargo run --release -p lb-userspace --example scrape_speed`.
//!
//! Over HTTP on loopback, from the request to the last byte; the mark is 250 ms. All backends have entries in maps in memory, of as many
//! CPUs as this machine may have.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::{
    backend::{Backend, Mode, Serving},
    service::Service,
};
use lb_userspace::{
    dataplane::{
        kernel::possible_cpus,
        maps::{Capacity, Maps},
    },
    flows::Census,
    health::{ProbeTimes, track::Reply},
    history::History,
    ids::{backend_identity, service_identity},
    model::{Admin, Health},
    status::{BackendStatus, ConfigStatus, Neighbour, ServiceStatus, Status},
    web::{self, Web},
};
use tokio::sync::watch;

const SERVICES: u16 = 1_000;
const BACKENDS: u32 = 20;
const RUNS: usize = 11;
const MARK_MS: f64 = 250.0;

fn main() -> anyhow::Result<()> {
    let status = status();
    let maps = Arc::new(maps(&status)?);
    let probes = ProbeTimes::default();
    for service in &status.services {
        probes
            .of(&service.name)
            .note(Reply::Yes, Duration::from_millis(3));
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let (_status, watched) = watch::channel(Arc::new(status));
    let (_census, census) = watch::channel(Arc::new(Census::default()));
    let (_stop, stopping) = watch::channel(false);
    let address = runtime.block_on(async {
        let listener = web::listen((Ipv4Addr::LOCALHOST, 0).into()).await?;
        let address = listener.local_addr()?;
        tokio::spawn(web::serve(
            listener,
            Web::new(
                maps,
                watched,
                census,
                probes,
                History::default(),
                Default::default(),
            ),
            stopping,
        ));
        anyhow::Ok(address)
    })?;
    let mut times = Vec::new();
    let mut bytes = 0;
    for _ in 0..RUNS {
        let begun = Instant::now();
        bytes = scrape(address)?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_unstable_by(f64::total_cmp);
    println!(
        "scrape of {SERVICES} services by {BACKENDS} backends   median {:.1} ms, {:.1} to {:.1}; {:.1} MB; mark {MARK_MS} ms",
        times[RUNS / 2],
        times[0],
        times[RUNS - 1],
        bytes as f64 / 1e6
    );
    Ok(())
}

fn scrape(address: SocketAddr) -> anyhow::Result<usize> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    anyhow::ensure!(answer.ends_with(b"# EOF\n"), "the scrape broke off");
    Ok(answer.len())
}

fn status() -> Status {
    let backend = |service: u16, n: u32| BackendStatus {
        name: format!("backend-{n}"),
        address: Ipv4Addr::from_bits(0x0a80_0000 + u32::from(service) * BACKENDS + n).into(),
        port: 80,
        weight: 100,
        admin: Admin::Active,
        removed: false,
        health: Health::Up,
        serving: Serving::New,
        neighbour: Neighbour::Resolved,
        last_error: None,
        last_error_ended: None,
        drain: None,
        balance: Default::default(),
        flows: Default::default(),
        snat: Vec::new(),
    };
    let service = |n: u16| ServiceStatus {
        name: format!("service-{n}"),
        vip: Ipv4Addr::from_bits(0x0a00_0001 + u32::from(n)).into(),
        port: 80,
        mode: Mode::Ipip,
        removed: false,
        fail_open: false,
        fail_open_flows: 0,
        clients: None,
        full: false,
        balance: Default::default(),
        resets_suspended: None,
        error: None,
        backends: (0..BACKENDS).map(|b| backend(n, b)).collect(),
    };
    Status {
        version: "speed".into(),
        pid: 1,
        uptime_s: 1,
        at: 1,
        generation: Default::default(),
        evacuated: false,
        dns: vec![],
        config: ConfigStatus {
            path: "speed.toml".into(),
            error: None,
            differences: vec![],
            reloads: Default::default(),
        },
        attachments: vec![],
        closed_egress: vec![],
        flows: Default::default(),
        services: (0..SERVICES).map(service).collect(),
        reasons: Default::default(),
    }
}

fn maps(status: &Status) -> anyhow::Result<Maps> {
    let capacity = Capacity::for_flows(1_000, 1_000, 4_096, 32_768, 64, possible_cpus()?);
    let maps = Maps::in_memory(capacity)?;
    let mut id = 1;
    for (service_id, service) in (1..).zip(&status.services) {
        let entry = Service {
            identity: service_identity(service.vip, service.port),
            ..maps.services.get(service_id)
        };
        maps.services.set(service_id, &entry);
        for backend in &service.backends {
            let entry = Backend {
                identity: backend_identity(
                    (&service.name, service.vip, service.port),
                    &backend.name,
                    backend.address,
                    backend.port,
                    service.mode,
                ),
                ..Default::default()
            };
            maps.backends.set(id, &entry);
            id += 1;
        }
    }
    Ok(maps)
}
