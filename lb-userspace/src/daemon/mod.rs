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
mod scouts;
mod upkeep;
mod wires;

use std::{collections::BTreeMap, os::unix::fs::FileTypeExt as _, path::PathBuf, sync::Arc};

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
    wires::Wires,
};
use crate::{
    admin::{self, Admin, Reloader},
    chain::chain,
    config::Config,
    dataplane::{
        kernel::{Kernel, Options, foreseen_capacity, possible_cpus},
        maps::Capacity,
    },
    flows, health,
    history::{self, History},
    notice::{self, Teller, Told},
    reconcile,
    status::{ConfigStatus, Flows, Generation, Reloads, Status},
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
    let (commands, queue) = mpsc::channel(QUEUE);
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
    let orders = Orders {
        commands,
        queue,
        reloader,
    };
    let running = run_parts(config, &mut state, sockets, kernel, signals, orders);
    let ended = runtime.block_on(running);
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

/// What people ask for, on its way to the reconciler.
struct Orders {
    commands: mpsc::Sender<reconcile::Command>,
    queue: mpsc::Receiver<reconcile::Command>,
    reloader: Arc<Reloader>,
}

/// Starts the parts, and ends them.
async fn run_parts(
    config: Config,
    state: &mut StateDir,
    sockets: Sockets,
    mut kernel: Kernel,
    mut signals: Signals,
    orders: Orders,
) -> Result<()> {
    let Sockets {
        readers,
        admin: admin_listener,
        web: web_listener,
        file: socket,
    } = sockets;
    let Orders {
        commands,
        queue,
        reloader,
    } = orders;
    let maps = kernel.maps();
    let (stop, stopping) = watch::channel(false);
    let (listeners, later_listeners) = mpsc::channel(1);
    let Wires {
        inputs,
        outputs,
        scouts,
        census,
        attachments,
    } = Wires::new(starting(&config), queue, stopping.clone());
    let (watched_status, watched_census) = (scouts.status.clone(), inputs.census.clone());

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
    let watched_file = config.reload_on_change.then(|| config.path.clone());
    let probes = health::ProbeTimes::default();
    let told = Arc::new(Told::default());
    let mut parts = Parts::default();
    scouts.start(&mut parts, &config, &kernel, probes.clone(), &stopping)?;
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
    start_readers(
        &mut parts,
        &mut kernel,
        census,
        told.clone(),
        listeners_to_packets,
        &stopping,
    )?;
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

/// Starts the parts that read what the program writes: the flow tables, notices, single packets, its log.
///
/// # Errors
/// When there are no file descriptors left.
fn start_readers(
    parts: &mut Parts,
    kernel: &mut Kernel,
    census: watch::Sender<Arc<flows::Census>>,
    told: Arc<Told>,
    listeners_to_packets: packets::Requests,
    stopping: &watch::Receiver<bool>,
) -> Result<()> {
    parts.start_infallible(
        "the sweep of the flow tables",
        flows::sweep(kernel.maps(), census, stopping.clone()),
    );
    parts.start("the notices to backends", {
        let teller = Teller::new(kernel.maps(), kernel.program()?, told);
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
    Ok(())
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
