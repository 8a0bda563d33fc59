//! `tether run`: starts the parts in order, connects them, and ends them.
//!
//! 1. the state directory's lock
//! 2. the admin socket and the metrics listener, which are served later; and whether maps that are pinned have room for what is configured. What
//!    fails here has changed nothing
//! 3. the instance in the kernel: adopted if its maps are pinned, else created
//! 4. health checks, next hops, the host's own VIPs, the sweep of the flow tables, notices to backends, the admin socket,
//!    the metrics listener, the reconciler
//! 5. the reconciler's first application: it waits, bounded, for first verdicts and next hops
//! 6. the XDP program: attached, or its old version atomically replaced. On a fresh start this comes after the maps are whole; an
//!    adopted instance's old program goes on forwarding until here
//! 7. `ready`, in the log and to a service manager that asks
//!
//! However the daemon ends, the data path goes on forwarding.

mod file;
pub(crate) mod heap;
pub mod lock;
mod manager;
mod parts;
mod upkeep;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::FileTypeExt as _,
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context as _, Error, Result, anyhow};
use lb_common::net::IpVersion;
use tokio::{
    net::{TcpListener, UnixListener},
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
};

use self::{
    lock::StateDir,
    parts::{Parts, STOP_PATIENCE},
    upkeep::Upkeep,
};
use crate::{
    admin::{self, Admin, Reloader},
    chain::chain,
    config::Config,
    dataplane::{
        kernel::{Kernel, Options, foreseen_capacity, possible_cpus},
        maps::Capacity,
    },
    dns, flows, guard, health,
    history::{self, History},
    neighbour,
    notice::{self, Teller, Told},
    reconcile::{self, Inputs, Outputs},
    status::{Attachments, ConfigStatus, Flows, Generation, Reloads, Status},
    watch::{self as packets, Watch},
    web::{self, Web},
};

/// Reports and commands that may wait for the reconciler.
const QUEUE: usize = 1_024;

/// Runs the daemon until it is told to end by SIGTERM or SIGINT.
///
/// # Errors
/// When a part cannot start, or ends by itself. What the kernel holds by then stays and goes on forwarding.
pub fn run(config: Config) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime could not be started")?;
    // Before the program is loaded, which takes a second or more: a reload that comes meanwhile waits, and ends nothing.
    let signals = {
        let _entered = runtime.enter();
        Signals::catch().context("signals could not be caught")?
    };
    let (commands, command_queue) = mpsc::channel(QUEUE);
    // It looks at the files that the configuration was read from before maps are opened, which may take minutes: what they become meanwhile is news.
    let reloader = Arc::new(Reloader::new(&config, commands.clone()));
    let mut state = StateDir::take(&config.state_dir)?;
    let sockets = runtime.block_on(Sockets::open(&config, &state))?;
    let options = options(&config)?;
    // What cannot be looked at is told by opening.
    if let Ok(Some(capacity)) = foreseen_capacity(&options) {
        reconcile::would_fit(&config, &capacity).map_err(Error::msg)?;
    }
    let kernel = Kernel::open(&options)?;
    if let Some(error) = kernel.not_resized() {
        tracing::error!(
            "{}: limits: the flow tables stay as large as they are: {error}",
            config.path.display()
        );
    }
    let ended = runtime.block_on(run_parts(
        config,
        &mut state,
        sockets,
        kernel,
        signals,
        (commands, command_queue),
        reloader,
    ));
    // A thread that hangs in a read of a file must not keep the process, and with it the lock.
    runtime.shutdown_timeout(STOP_PATIENCE);
    ended
}

/// What a configuration asks of the kernel.
///
/// # Errors
/// When the number of CPUs cannot be had.
pub(crate) fn options(config: &Config) -> Result<Options> {
    let limits = &config.limits;
    let cpus = possible_cpus()?;
    Ok(Options {
        interfaces: config.interfaces.clone(),
        bpffs: config.bpffs.clone(),
        capacity: Capacity::for_flows(
            limits.flows,
            limits.flows6,
            limits.services,
            limits.backends,
            limits.table_slots,
            cpus,
        )
        .with_pairs(limits.nat_pairs)
        .with_affinities(limits.clients)
        .with_guards(limits.prefixes, limits.sources)
        .guarding(config.guards())
        .translating_flows_of(IpVersion::V4, config.translates(IpVersion::V4))
        .translating_flows_of(IpVersion::V6, config.translates(IpVersion::V6))
        .measuring(config.measures()),
        fleet_seed: config.fleet_seed,
    })
}

/// Sockets that others connect to. They are opened first, so that one that is taken is told before anything has begun, and who connects meanwhile
/// waits.
struct Sockets {
    readers: admin::Readers,
    admin: UnixListener,
    web: Option<TcpListener>,
    /// The admin socket's file.
    file: SocketFile,
}

/// A file that goes with the daemon, however that ends.
struct SocketFile(PathBuf);

impl Sockets {
    async fn open(config: &Config, state: &StateDir) -> Result<Self> {
        let file = SocketFile(state.socket());
        let named = admin::Readers::named(config.admin_group.as_deref(), &config.path);
        // Who may look is no reason to leave the data path to itself: until it is known who that is, nobody else may.
        let readers = named.unwrap_or_else(|error| {
            tracing::warn!(
                "{}. Until the daemon is started again the admin socket is for root and the daemon's own user alone",
                chain(error.as_ref())
            );
            admin::Readers::default()
        });
        let admin = admin::listen(&file.0, readers).with_context(|| {
            format!("{}: the admin socket could not be opened", file.0.display())
        })?;
        let web = match config.metrics {
            Some(address) => Some(web::listen(address).await.with_context(|| {
                format!(
                    "{address}: the metrics listener could not be opened; set `listen` in [metrics] to another address, or to \"off\""
                )
            })?),
            None => None,
        };
        Ok(Self {
            readers,
            admin,
            web,
            file,
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_socket =
            std::fs::symlink_metadata(&self.0).is_ok_and(|found| found.file_type().is_socket());
        // It is only a socket without a listener now; the next daemon replaces it all the same.
        if is_socket && let Err(error) = std::fs::remove_file(&self.0) {
            tracing::debug!(%error, "the admin socket could not be removed");
        }
    }
}

/// What a signal asks for.
enum Asked {
    Reload,
    End,
}

/// Signals, caught from the beginning, so that none ends the daemon halfway.
struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn catch() -> std::io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// What the next signal asks for.
    async fn next(&mut self) -> Asked {
        let name = tokio::select! {
            _ = self.hangup.recv() => return Asked::Reload,
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "stopping");
        Asked::End
    }
}

async fn run_parts(
    config: Config,
    state: &mut StateDir,
    sockets: Sockets,
    mut kernel: Kernel,
    mut signals: Signals,
    (commands, command_queue): (
        mpsc::Sender<reconcile::Command>,
        mpsc::Receiver<reconcile::Command>,
    ),
    reloader: Arc<Reloader>,
) -> Result<()> {
    let Sockets {
        readers,
        admin: admin_listener,
        web: web_listener,
        file: socket,
    } = sockets;
    let maps = kernel.maps();
    let (health_reports, health_queue) = mpsc::channel(QUEUE);
    let (hop_reports, hop_queue) = mpsc::channel(QUEUE);
    let (targets, watched_targets) = watch::channel(vec![]);
    let (addresses, watched_addresses) = watch::channel(BTreeSet::new());
    let (answers, answer_queue) = mpsc::channel(QUEUE);
    let (questions, watched_questions) = watch::channel(BTreeMap::new());
    let (vips, watched_vips) = watch::channel(BTreeSet::new());
    let (own_vips, watched_own_vips) = watch::channel(None);
    let (hindrances, watched_hindrances) =
        watch::channel(neighbour::replies::Hindrances::default());
    let (unguarded, watched_unguarded) = watch::channel(None);
    let (census, watched_census) = watch::channel(Arc::new(flows::Census::default()));
    let (attachments, watched_attachments) = watch::channel(Attachments::default());
    let (closed_egress, watched_closed_egress) = watch::channel(vec![]);
    let (status, watched_status) = watch::channel(Arc::new(starting(&config)));
    let (stop, stopping) = watch::channel(false);
    let (listeners, later_listeners) = mpsc::channel(1);

    let history = History::default();
    let (packet_watch, listeners_to_packets) = Watch::new();
    let admin = Admin::new(
        watched_status.clone(),
        maps.clone(),
        commands,
        reloader.clone(),
    )
    .remembering(history.clone())
    .explaining(Arc::new(kernel.rehearsals()?))
    .watching(packet_watch);
    let checks_at_once = config.checks_at_once;
    let dns_servers = config.dns_servers.clone();
    let watched_file = config.reload_on_change.then(|| config.path.clone());
    let interfaces = config.interfaces.clone();
    let local_interfaces = config.local_interfaces.clone();
    let outer_sources = config.outer_sources;
    let probes = health::ProbeTimes::default();
    let inputs = Inputs {
        commands: command_queue,
        health: health_queue,
        next_hops: hop_queue,
        answers: answer_queue,
        own_vips: watched_own_vips,
        hindrances: watched_hindrances,
        unguarded: watched_unguarded,
        census: watched_census.clone(),
        attachments: watched_attachments,
        closed_egress: watched_closed_egress,
        shutdown: stopping.clone(),
    };
    let outputs = Outputs {
        targets,
        addresses,
        questions,
        vips,
        status,
    };
    let mut parts = Parts::default();
    parts.start("the reconciler", {
        let running = reconcile::run(
            maps.clone(),
            kernel.fleet_seed(),
            config,
            kernel.grace(),
            inputs,
            outputs,
        );
        async { running.await.map_err(Into::into) }
    });
    parts.start("the health checks", {
        let running = health::run(
            watched_targets,
            watched_vips.clone(),
            health_reports,
            checks_at_once,
            probes.clone(),
            stopping.clone(),
        );
        async { running.await.context("no netlink socket") }
    });
    parts.start("the watch over next hops", {
        let egress = neighbour::Egress {
            admit: admit(&kernel)?,
            closed: closed_egress,
        };
        let replies = kernel.local_replies();
        let local = neighbour::Local {
            rule: neighbour::local::Rule {
                interfaces: interfaces.clone(),
                named: local_interfaces,
            },
            open: Arc::new(move || {
                tokio::task::block_in_place(|| replies.open()).map_err(|error| error.to_string())
            }),
        };
        let running = neighbour::run(
            watched_addresses,
            hop_reports,
            egress,
            local,
            outer_sources,
            stopping.clone(),
        );
        async { running.await.context("no netlink socket") }
    });
    parts.start_infallible(
        "the questions to the DNS",
        dns::run(watched_questions, answers, dns_servers, stopping.clone()),
    );
    parts.start("the watch over the way of replies", {
        let (maps, told) = (maps.clone(), maps.clone());
        let gate = neighbour::replies::Gate {
            interfaces: interfaces.clone(),
            admit: admit(&kernel)?,
            write_devices: Box::new(move |devices| maps.write_links(devices)),
            take_unresolved: Box::new(move || told.take_unresolved()),
        };
        let running =
            neighbour::replies::run(watched_status.clone(), gate, hindrances, stopping.clone());
        async { running.await.context("no netlink socket") }
    });
    parts.start_infallible("the watch over guards", {
        let tap = kernel.tap();
        let load: guard::programs::Load =
            Arc::new(move || tap.guard().map_err(|error| chain(&error)));
        guard::programs::run(
            watched_status.clone(),
            maps.capacity.guards,
            load,
            unguarded,
            stopping.clone(),
        )
    });
    parts.start("the watch over the host's own VIPs", {
        let running = neighbour::own::run(watched_vips, own_vips, stopping.clone());
        async { running.await.context("no netlink socket") }
    });
    parts.start_infallible(
        "the sweep of the flow tables",
        flows::sweep(maps.clone(), census, stopping.clone()),
    );
    let told = Arc::new(Told::default());
    parts.start("the notices to backends", {
        let teller = Teller::new(maps.clone(), kernel.program()?, told.clone());
        let running = notice::run(teller, kernel.take_notices()?, stopping.clone());
        async {
            running
                .await
                .context("the ring buffer cannot be waited for")
        }
    });
    parts.start("the watch over single packets", {
        let running = packets::run(kernel.tap(), listeners_to_packets, stopping.clone());
        async {
            running
                .await
                .context("the ring buffer cannot be waited for")
        }
    });
    parts.start_infallible(
        "the admin socket",
        admin::serve(
            admin_listener,
            later_listeners,
            admin,
            readers,
            stopping.clone(),
        ),
    );
    if let Some(path) = watched_file {
        parts.start_infallible(
            "the watch over the configuration file",
            file::run(path, reloader.clone(), stopping.clone()),
        );
    }
    #[cfg(feature = "log")]
    match kernel.log() {
        Ok(log) => {
            let mut stopping = stopping.clone();
            parts.start("the program's log", async move {
                tokio::select! {
                    () = crate::shutdown::requested(&mut stopping) => Ok(()),
                    ended = log => ended.context("it cannot be read"),
                }
            });
        }
        Err(error) => tracing::warn!(%error, "the program logs nothing"),
    }
    parts.start_infallible(
        "the record of changes",
        history::record(
            history.clone(),
            maps.clone(),
            watched_status.clone(),
            stopping.clone(),
        ),
    );
    if let Some(listener) = web_listener {
        let tap = kernel.tap();
        let web = Web::new(
            maps,
            watched_status.clone(),
            watched_census,
            probes,
            history,
            told,
        )
        .with_runs(move || tap.runs());
        parts.start_infallible(
            "the metrics listener",
            web::serve(listener, web, stopping.clone()),
        );
    }

    let upkeep = Upkeep {
        kernel: &mut kernel,
        state,
        attachments: &attachments,
        listeners: &listeners,
        readers,
        trouble: None,
        is_open: true,
        is_admitted: true,
    };
    let ended = serve(upkeep, &mut parts, &mut signals, watched_status, &reloader).await;
    // Nobody is left to listen only if every part has ended already.
    stop.send_replace(true);
    parts.end().await;
    drop(socket);
    ended?;
    tracing::info!("stopped; the data path goes on forwarding, `tether cleanup` removes it");
    Ok(())
}

/// What lets packets leave by an interface.
///
/// # Errors
/// When there are no file descriptors left.
fn admit(kernel: &Kernel) -> Result<neighbour::Admit> {
    let egress = kernel.egress()?;
    Ok(Arc::new(move |ifindex| {
        egress.admit(ifindex).map_err(|error| error.to_string())
    }))
}

/// From the first application to the signal that ends it.
async fn serve(
    mut upkeep: Upkeep<'_>,
    parts: &mut Parts,
    signals: &mut Signals,
    mut status: watch::Receiver<Arc<Status>>,
    reloader: &Arc<Reloader>,
) -> Result<()> {
    let mut ready = false;
    let mut look = tokio::time::interval(upkeep::EVERY);
    loop {
        tokio::select! {
            failure = parts.failure() => return Err(failure),
            signal = signals.next() => match signal {
                Asked::End => return Ok(()),
                Asked::Reload => {
                    // Systemd's own part of a reload comes before the signal.
                    upkeep.admit_again();
                    let reloader = reloader.clone();
                    // Its errors are logged and in the status; there is nobody else to tell.
                    tokio::spawn(async move { drop(reloader.reload().await) });
                }
            },
            applied = applied(&mut status), if !ready => {
                applied?;
                upkeep.attach()?;
                ready = true;
                // Scripts wait for this line. The status may be a moment behind it.
                tracing::info!(
                    adopted = upkeep.kernel.adopted(),
                    pid = std::process::id(),
                    "ready"
                );
                manager::tell_ready();
            }
            _ = look.tick() => {
                upkeep.open_again();
                upkeep.admit_again();
                if ready {
                    upkeep.attach_again();
                }
            }
        }
    }
}

/// The status before the reconciler's first.
fn starting(config: &Config) -> Status {
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_s: 0,
        at: 0,
        generation: Generation::default(),
        config: ConfigStatus {
            path: config.path.clone(),
            error: None,
            differences: vec![],
            reloads: Reloads::default(),
        },
        evacuated: false,
        attachments: vec![],
        detached: vec![],
        closed_egress: vec![],
        dns: vec![],
        flows: Flows::default(),
        services: vec![],
        reasons: BTreeMap::new(),
    }
}

/// Waits for the first application. One service that cannot be served must not keep the others from it, so it need not be whole:
/// the status tells what is missing, and the metrics that the applied generation lags.
async fn applied(status: &mut watch::Receiver<Arc<Status>>) -> Result<()> {
    status
        .wait_for(|status| status.generation.resolved > 0)
        .await
        .map(drop)
        .map_err(|_| anyhow!("the reconciler ended before it applied anything"))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

    use super::*;

    #[tokio::test]
    async fn a_group_that_is_not_there_ends_no_start_and_lets_nobody_in() {
        let directory = std::env::temp_dir().join(format!("tether-readers-{}", std::process::id()));
        let text = "interfaces = [\"eth0\"]\nadmin_group = \"no-such-group-here\"\n[metrics]\nlisten = \"off\"\n";
        let config = crate::config::parse(Path::new("t.toml"), text)
            .unwrap()
            .config;
        let state = StateDir::take(&directory).unwrap();
        let sockets = Sockets::open(&config, &state).await.unwrap();
        assert_eq!(sockets.readers, admin::Readers::default());
        let mode = fs::metadata(state.socket()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(sockets);
        state.remove(&[]).unwrap();
    }
}
