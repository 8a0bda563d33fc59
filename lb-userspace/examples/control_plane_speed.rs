//! How long the control plane takes, against maps in memory: `cargo run --release -p lb-userspace --example control_plane_speed`.
//!
//! Medians of several runs, beside the marks that the design sets.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::{
    backend::{Mode, NextHop},
    clock::Tick,
};
use lb_userspace::{
    balance::{Part, Policy},
    config::{Backend, CLOSE_OVER, Config, Limits, Service},
    dataplane::maps::{Capacity, Maps},
    flows::Census,
    maglev::{self, Member},
    model::{Admin, BackendName, Check, Health, HealthReport, NextHopReport},
    reconcile::State,
};

const SEED: [u64; 4] = [1, 2, 3, 4];
const RUNS: usize = 11;
const LIMITS: Limits = Limits {
    flows: 1_000,
    flows6: 1_000,
    services: 4_096,
    backends: 32_768,
    table_slots: 4_194_304,
    nat_pairs: 64,
};

fn main() -> anyhow::Result<()> {
    let names: Vec<String> = (0..1_000).map(|n| format!("backend-{n}")).collect();
    let equal = |_| 100;
    let all_different = |n| 1 + n as u16;
    maglev("maglev/65537/1000", &names, equal);
    maglev("maglev/65537/1000 weights", &names, all_different);

    let mut large = World::new(1, 1_000, 65_537)?;
    large.converge();
    let mut healthy = true;
    report("one backend of 1000, plan and apply", 10.0, || {
        healthy = !healthy;
        let health = if healthy {
            Health::Up
        } else {
            Health::Refusing
        };
        large.verdict(0, 7, health);
        timed(|| large.converge())
    });

    report("1000 services of 20, first application", 2_000.0, || {
        let mut fresh = World::new(1_000, 20, 2_039).expect("memory for the maps");
        timed(|| fresh.converge())
    });
    let mut many = World::new(1_000, 20, 2_039)?;
    many.converge();
    let mut weight = 100;
    report(
        "1000 services of 20, full reload, all change",
        2_000.0,
        || {
            weight = 300 - weight;
            let mut config = many.config.clone();
            for service in &mut config.services {
                service.backends[0].weight = weight;
            }
            timed(|| {
                many.state.reload(config).expect("the configuration fits");
                many.converge();
            })
        },
    );
    report("1000 services of 20, nothing changes", 10.0, || {
        timed(|| many.converge())
    });
    report("1000 services of 20, full comparison", 100.0, || {
        timed(|| {
            many.state.observe(Tick(1_000));
            many.converge();
        })
    });
    std::fs::remove_dir_all(&many.config.state_dir)?;
    Ok(())
}

fn maglev(label: &str, names: &[String], weight: impl Fn(usize) -> u16) {
    let members: Vec<Member<'_>> = names
        .iter()
        .enumerate()
        .map(|(n, name)| Member {
            name,
            weight: weight(n),
        })
        .collect();
    let build = || maglev::build(&SEED, "chat", &members, 65_537);
    report(label, 2.0, || timed(|| assert_eq!(build().len(), 65_537)));
}

fn timed(work: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed()
}

fn report(label: &str, mark_ms: f64, mut run: impl FnMut() -> Duration) {
    let mut times: Vec<Duration> = (0..RUNS).map(|_| run()).collect();
    times.sort_unstable();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!(
        "{label:<48} median {:>9.3} ms, {:.3} to {:.3}; mark {mark_ms} ms",
        ms(times[RUNS / 2]),
        ms(times[0]),
        ms(times[RUNS - 1])
    );
}

struct World {
    maps: Arc<Maps>,
    state: State,
    config: Config,
}

impl World {
    fn new(services: usize, backends: usize, table_size: u32) -> anyhow::Result<Self> {
        let capacity = Capacity::for_flows(
            LIMITS.flows,
            LIMITS.flows6,
            LIMITS.services,
            LIMITS.backends,
            LIMITS.table_slots,
            1,
        );
        let maps = Arc::new(Maps::in_memory(capacity)?);
        let name = format!("tether-speed-{}", std::process::id());
        let config = config(
            services,
            backends,
            table_size,
            std::env::temp_dir().join(name),
        );
        let census = Arc::new(Census::default());
        let mut state = State::adopt(Arc::clone(&maps), SEED, config.clone(), census, Tick(1_000))?;
        for address in state.addresses() {
            let next_hop = Some(NextHop {
                ifindex: 1,
                mtu: 1_500,
                ..NextHop::default()
            });
            state.next_hop(NextHopReport {
                address,
                next_hop,
                on_link: true,
            });
        }
        let mut world = Self {
            maps,
            state,
            config,
        };
        for service in 0..services {
            for backend in 0..backends {
                world.verdict(service, backend, Health::Up);
            }
        }
        Ok(world)
    }

    fn verdict(&mut self, service: usize, backend: usize, health: Health) {
        let service = &self.config.services[service];
        let backend = &service.backends[backend];
        let report = HealthReport {
            name: BackendName {
                service: service.name.clone(),
                backend: backend.name.clone(),
            },
            address: backend.check_address,
            health,
            last_error: None,
        };
        self.state.heard(report, 0);
    }

    fn converge(&mut self) {
        let plan = self.state.plan(Tick(1_000));
        for operation in &plan.operations {
            operation.apply(&self.maps, &|| {});
        }
        self.state.applied(&plan, Tick(1_000));
    }
}

fn config(services: usize, backends: usize, table_size: u32, state_dir: PathBuf) -> Config {
    let address = |service: usize, backend: usize| {
        IpAddr::from(Ipv4Addr::from_bits(
            0x0a80_0000 + (service * backends + backend) as u32,
        ))
    };
    Config {
        digest: 0,
        reload_on_change: false,
        path: "speed.toml".into(),
        interfaces: vec!["eth0".to_owned()],
        local_interfaces: None,
        state_dir,
        bpffs: "/sys/fs/bpf/speed".into(),
        fleet_seed: None,
        dns_servers: None,
        admin_group: None,
        metrics: None,
        limits: LIMITS,
        checks_at_once: 256,
        services: (0..services)
            .map(|s| Service {
                check: Check::DEFAULT,
                check_port: None,
                dns: vec![],
                name: format!("service-{s}"),
                vip: Ipv4Addr::from_bits(0x0a00_0001 + s as u32).into(),
                port: 80,
                mode: Mode::Ipip,
                snat: Vec::new(),
                table_size,
                min_healthy: 1,
                drain_deadline: None,
                close_over: CLOSE_OVER,
                on_down: lb_userspace::model::OnDown::Reset,
                reset_over: Duration::ZERO,
                policy: Policy::default(),
                backends: (0..backends)
                    .map(|b| Backend {
                        name: format!("backend-{b}"),
                        address: address(s, b),
                        port: 80,
                        part: Part::default(),
                        zone: None,
                        weight: 100,
                        admin: Admin::Active,
                        check: Check::DEFAULT,
                        check_address: SocketAddr::new(address(s, b), 80),
                    })
                    .collect(),
            })
            .collect(),
    }
}
