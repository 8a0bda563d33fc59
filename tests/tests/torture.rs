//! Connections of every age, talking and silent, through a storm: the daemon is killed at random moments, backends drain and
//! return, SYNs flood. None may break.

use std::time::{Duration, Instant};

use anyhow::Result;
use lab::address::{self, Family, mac_of};
use lab::config::SERVICE;
use lab::packet_socket::{FloodPlan, SynFlood};
use lab::peer::client::{Close, Connection};
use lab::peer::crowd;
use lab::random::Random;
use lab::stage::Stage;
use lab::topology::{CLIENT_PORT, Place, Topology, UPLINK, backend_name};

/// A quarter of all, half of it silent: open for more than 30 s before anything happens.
const OLD: usize = 125;
const CONNECTIONS: usize = 500;
const PACE: Duration = Duration::from_secs(1);
const SYNS_PER_SECOND: u32 = 4_000;
const SOON: Duration = Duration::from_secs(30);

/// What there is to get through.
#[derive(Debug, Clone, Copy)]
struct Forecast {
    place: Place,
    family: Family,
    /// How long it storms, at least.
    storm: Duration,
    /// How many kills and drains there are, at least.
    blows: u32,
    /// Whether the oldest connections have become pins before it begins, for which they take 30 s.
    pins: bool,
}

/// What happens next in the storm.
#[derive(Debug)]
enum Blow {
    /// The daemon dies and returns after a while.
    Kill { absent: Duration },
    /// One backend drains, or the one that drains returns.
    Drain,
    /// The same, and the daemon dies so soon after that it may not have finished.
    DrainAndKill { after: Duration },
    /// A few short-lived clients must be served.
    Visitors,
}

struct Storm {
    stage: Stage,
    random: Random,
    draining: Option<String>,
    kills: u32,
    drains: u32,
    visitors: usize,
}

impl Storm {
    fn choose(&mut self) -> Blow {
        let brief = Duration::from_millis(30);
        match self.random.below(8) {
            0..=1 => Blow::Kill {
                absent: self.random.span(Duration::ZERO, Duration::from_secs(1)),
            },
            2..=3 => Blow::Drain,
            4..=5 => Blow::DrainAndKill {
                after: self.random.span(Duration::ZERO, brief),
            },
            _ => Blow::Visitors,
        }
    }

    /// Whether chance has left something out so far.
    fn is_weak(&self, blows: u32) -> bool {
        self.kills < blows || self.drains < blows || self.visitors == 0
    }

    fn strike(&mut self, blow: &Blow) -> Result<()> {
        match blow {
            Blow::Kill { absent } => self.kill(*absent),
            Blow::Drain => {
                let arguments = self.next_drain();
                self.stage
                    .tether
                    .succeed(&[arguments.0, &arguments.1])
                    .map(drop)
            }
            Blow::DrainAndKill { after } => {
                // Whether the command is served is a matter of luck; that nobody's connection breaks is not.
                let arguments = self.next_drain();
                let command = lab::tether::command(&[arguments.0, &arguments.1])?;
                let mut child = self.stage.lab.balancer().spawn(command)?;
                std::thread::sleep(*after);
                self.kill(Duration::ZERO)?;
                child.wait()?;
                Ok(())
            }
            Blow::Visitors => {
                let visitors = self.stage.clients.open(10, self.stage.plan(), |_| {})?;
                self.visitors += visitors.len();
                assert_eq!(crowd::echo_all(&visitors), [""; 0]);
                visitors
                    .iter()
                    .try_for_each(|visitor| visitor.close(Close::Orderly))
            }
        }
    }

    /// At most one backend drains at a time: with none left to take new flows, there would be nothing to show.
    fn next_drain(&mut self) -> (&'static str, String) {
        self.drains += 1;
        if let Some(name) = self.draining.take() {
            return ("undrain", format!("{SERVICE}/{name}"));
        }
        let count = u64::from(self.stage.lab.topology().backends);
        let name = backend_name(u8::try_from(self.random.below(count)).unwrap_or(0));
        self.draining = Some(name.clone());
        ("drain", format!("{SERVICE}/{name}"))
    }

    fn kill(&mut self, absent: Duration) -> Result<()> {
        self.kills += 1;
        self.stage.tether.kill()?;
        std::thread::sleep(absent);
        self.stage.tether.restart()?;
        self.stage.tether.wait_ready()?;
        // A drain that was on its way may or may not have been heard.
        let status = self.stage.tether.status()?;
        let mut backends = status
            .services
            .into_iter()
            .flat_map(|service| service.backends);
        self.draining = backends.find(|b| b.admin == "draining").map(|b| b.name);
        Ok(())
    }
}

#[test]
fn no_connection_breaks_in_the_storm() -> Result<()> {
    weather(Forecast {
        place: Place::Farm,
        family: Family::V4,
        storm: Duration::from_secs(40),
        blows: 3,
        pins: true,
    })
}

#[test]
fn no_ipv6_connection_breaks_in_a_short_storm() -> Result<()> {
    weather(Forecast {
        place: Place::Farm,
        family: Family::V6,
        storm: Duration::from_secs(10),
        blows: 2,
        pins: false,
    })
}

#[test]
fn no_translated_connection_breaks_in_a_short_storm() -> Result<()> {
    for (place, family) in [(Place::Hidden, Family::V4), (Place::Behind, Family::V6)] {
        weather(Forecast {
            place,
            family,
            storm: Duration::from_secs(10),
            blows: 2,
            pins: false,
        })?;
    }
    Ok(())
}

fn weather(forecast: Forecast) -> Result<()> {
    let mut random = Random::from_environment();
    let topology = Topology::new(forecast.place).in_family(forecast.family);
    let stage = Stage::set(topology, random.bits(), |_| {})?;
    let open = |count: usize| -> Result<[Vec<Connection>; 2]> {
        let silent = stage.clients.open(count / 2, stage.plan(), |_| {})?;
        let talking = stage
            .clients
            .open(count - count / 2, stage.plan().talking(PACE), |_| {})?;
        Ok([silent, talking])
    };
    let [mut silent, mut talking] = open(OLD)?;
    if forecast.pins {
        // What talked past its 30th second is a pin. What was silent is as old, and young to the table.
        let pins = talking.len() as u64;
        stage.tether.wait_status(
            "the talkers of the first quarter are pins",
            Duration::from_secs(60),
            |s| s.flows.pin >= pins,
        )?;
    }
    let [later_silent, later_talking] = open(CONNECTIONS - OLD)?;
    silent.extend(later_silent);
    talking.extend(later_talking);
    let homes: Vec<_> = silent.iter().map(Connection::backend).collect();

    let flood = SynFlood::start(
        stage.lab.client(),
        UPLINK,
        FloodPlan {
            prefix: address::spoofed(forecast.family.vip()),
            target: stage.target(),
            macs: (
                mac_of(stage.lab.sources()[0]),
                stage.lab.router_mac(CLIENT_PORT)?,
            ),
            rate: SYNS_PER_SECOND,
            seed: random.bits(),
        },
    )?;
    let mut storm = Storm {
        stage,
        random,
        draining: None,
        kills: 0,
        drains: 0,
        visitors: 0,
    };
    let begun = Instant::now();
    while begun.elapsed() < forecast.storm || storm.is_weak(forecast.blows) {
        let blow = storm.choose();
        eprintln!("{:5.1} s  {blow:?}", begun.elapsed().as_secs_f64());
        storm.strike(&blow)?;
        let calm = storm.random.span(Duration::ZERO, Duration::from_secs(1));
        std::thread::sleep(calm);
    }
    let stormed = begun.elapsed();
    let syns = flood.stop()?;
    eprintln!(
        "{} kills, {} drains, {} visitors, {syns} SYNs",
        storm.kills, storm.drains, storm.visitors
    );
    assert!(
        syns >= u64::from(SYNS_PER_SECOND) * stormed.as_secs() / 2,
        "hardly a flood"
    );

    // The silent ones speak for the first time since they connected.
    assert_eq!(crowd::echo_all(silent.iter().chain(&talking)), [""; 0]);
    assert_eq!(crowd::breaks(silent.iter().chain(&talking)), [""; 0]);
    assert_eq!(
        silent.iter().map(Connection::backend).collect::<Vec<_>>(),
        homes
    );
    let least = (stormed.as_secs_f64() / (2.0 * PACE.as_secs_f64())) as u64;
    assert!(
        talking.iter().all(|c| c.history().lives[0].echoes >= least),
        "talkers talked"
    );
    // The daemon counts exactly these flows still.
    storm
        .stage
        .tether
        .wait_status("500 live flows", SOON, |s| {
            s.flows.young + s.flows.pin == CONNECTIONS as u64
        })?;
    storm.stage.close();
    Ok(())
}
