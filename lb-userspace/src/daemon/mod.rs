//! `tether run`: starts the parts in order, connects them, and ends them.
//!
//! 1. the state directory's lock
//! 2. the instance in the kernel: adopted if its maps are pinned, else created
//! 3. health checks, next hops, the sweep of the flow table, the admin socket, the metrics listener, the reconciler
//! 4. the reconciler's first application: it waits, bounded, for first verdicts and next hops
//! 5. the XDP program: attached, or its old version atomically replaced. On a fresh start this comes after the maps are whole; an
//!    adopted instance's old program goes on forwarding until here
//! 6. `ready`
//!
//! However the daemon ends, the data path goes on forwarding.

pub mod lock;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
};

use self::lock::StateDir;
use crate::{
    admin::{self, Admin, Reloader},
    config::Config,
    dataplane::{
        kernel::{Attached, Kernel, Options, XdpMode, possible_cpus},
        maps::Capacity,
    },
    flows, health, neighbour,
    reconcile::{self, Inputs, Outputs},
    status::{AttachMode, Attachment, ConfigStatus, FlowTable, Generation, Status},
    web::{self, Web},
};

/// Reports and commands that may wait for the reconciler.
const QUEUE: usize = 1_024;
/// Time in which the parts end once they are told to.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Time between two looks at whether the program is still attached.
const ATTACHMENT_CHECK: Duration = Duration::from_secs(5);

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
    let state = StateDir::take(&config.state_dir)?;
    let kernel = Kernel::open(&options(&config)?)?;
    let ended = runtime.block_on(run_parts(config, &state, kernel, signals));
    // A thread that hangs in a read of a file must not keep the process, and with it the lock.
    runtime.shutdown_timeout(STOP_PATIENCE);
    ended
}

fn options(config: &Config) -> Result<Options> {
    let limits = &config.limits;
    let cpus = possible_cpus()?;
    Ok(Options {
        interfaces: config.interfaces.clone(),
        bpffs: config.bpffs.clone(),
        capacity: Capacity::for_flows(
            limits.flows,
            limits.services,
            limits.backends,
            limits.table_slots,
            cpus,
        ),
        fleet_seed: config.fleet_seed,
    })
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
    state: &StateDir,
    mut kernel: Kernel,
    mut signals: Signals,
) -> Result<()> {
    let maps = kernel.maps();
    let (commands, command_queue) = mpsc::channel(QUEUE);
    let (health_reports, health_queue) = mpsc::channel(QUEUE);
    let (hop_reports, hop_queue) = mpsc::channel(QUEUE);
    let (targets, watched_targets) = watch::channel(vec![]);
    let (addresses, watched_addresses) = watch::channel(BTreeSet::new());
    let (census, watched_census) = watch::channel(Arc::new(flows::Census::default()));
    let (attachments, watched_attachments) = watch::channel(vec![]);
    let (status, watched_status) = watch::channel(Arc::new(starting(&config)));
    let (stop, stopping) = watch::channel(false);

    // Sockets first: what is taken is said before anything begins.
    let socket = state.socket();
    let admin_listener = admin::listen(&socket)
        .with_context(|| format!("{}: the admin socket could not be opened", socket.display()))?;
    let web_listener = match config.metrics {
        Some(address) => Some(web::listen(address).await.with_context(|| {
            format!(
                "{address}: the metrics listener could not be opened; set `listen` in [metrics] to another address, or to \"off\""
            )
        })?),
        None => None,
    };

    let reloader = Arc::new(Reloader::new(config.path.clone(), commands.clone()));
    let admin = Admin {
        status: watched_status.clone(),
        commands,
        reloader: reloader.clone(),
    };
    let inputs = Inputs {
        commands: command_queue,
        health: health_queue,
        next_hops: hop_queue,
        census: watched_census.clone(),
        attachments: watched_attachments,
        shutdown: stopping.clone(),
    };
    let outputs = Outputs {
        targets,
        addresses,
        status,
    };
    let mut parts = Parts(JoinSet::new());
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
        let running = health::run(watched_targets, health_reports, stopping.clone());
        async { running.await.context("no netlink socket") }
    });
    parts.start("the watch over next hops", {
        let running = neighbour::run(watched_addresses, hop_reports, stopping.clone());
        async { running.await.context("no netlink socket") }
    });
    parts.start("the sweep of the flow table", {
        let running = flows::sweep(maps.clone(), census, stopping.clone());
        async {
            running.await;
            Ok(())
        }
    });
    parts.start("the admin socket", {
        let running = admin::serve(admin_listener, admin, stopping.clone());
        async {
            running.await;
            Ok(())
        }
    });
    if let Some(listener) = web_listener {
        let web = Web::new(maps, watched_status.clone(), watched_census);
        let running = web::serve(listener, web, stopping.clone());
        parts.start("the metrics listener", async {
            running.await;
            Ok(())
        });
    }

    let ended = serve(
        &mut kernel,
        &mut parts,
        &mut signals,
        watched_status,
        &attachments,
        &reloader,
    )
    .await;
    // Nobody is left to listen only if every part has ended already.
    stop.send_replace(true);
    parts.end().await;
    // It is only a socket without a listener now; the next daemon replaces it all the same.
    if let Err(error) = std::fs::remove_file(&socket) {
        tracing::debug!(%error, "the admin socket could not be removed");
    }
    ended?;
    tracing::info!("stopped; the data path goes on forwarding, `tether cleanup` removes it");
    Ok(())
}

/// From the first application to the signal that ends it.
async fn serve(
    kernel: &mut Kernel,
    parts: &mut Parts,
    signals: &mut Signals,
    mut status: watch::Receiver<Arc<Status>>,
    attachments: &watch::Sender<Vec<Attachment>>,
    reloader: &Arc<Reloader>,
) -> Result<()> {
    let mut ready = false;
    let mut is_attached = true;
    let mut check = tokio::time::interval(ATTACHMENT_CHECK);
    loop {
        tokio::select! {
            failure = parts.failure() => return Err(failure),
            signal = signals.next() => match signal {
                Asked::End => return Ok(()),
                Asked::Reload => {
                    let reloader = reloader.clone();
                    // Its errors are logged and in the status; there is nobody else to tell.
                    tokio::spawn(async move { drop(reloader.reload().await) });
                }
            },
            applied = applied(&mut status), if !ready => {
                applied?;
                let attached = tokio::task::block_in_place(|| kernel.attach())?;
                attachments.send_replace(attached.iter().map(attachment).collect());
                ready = true;
                // Scripts wait for this line. The status may be a moment behind it.
                tracing::info!(
                    adopted = kernel.adopted(),
                    pid = std::process::id(),
                    "ready"
                );
            }
            _ = check.tick(), if ready => {
                is_attached = attach_again(kernel, attachments, is_attached);
            }
        }
    }
}

/// Sees to it that the program is still attached: an interface may have been recreated, or somebody may have detached the program.
/// Returns whether it is; the status shows it.
fn attach_again(
    kernel: &mut Kernel,
    attachments: &watch::Sender<Vec<Attachment>>,
    was_attached: bool,
) -> bool {
    let attached = tokio::task::block_in_place(|| {
        if kernel.is_attached()? {
            return Ok(None);
        }
        kernel.attach().map(Some)
    });
    match attached {
        Ok(None) => true,
        Ok(Some(attached)) => {
            tracing::warn!(
                "the program was detached, or an interface recreated; it is attached again"
            );
            attachments.send_replace(attached.iter().map(attachment).collect());
            true
        }
        Err(error) => {
            if was_attached {
                tracing::error!(%error, "the program is not attached, and no traffic is served there; trying again");
                attachments.send_replace(vec![]);
            }
            false
        }
    }
}

/// The status before the reconciler's first.
fn starting(config: &Config) -> Status {
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_s: 0,
        generation: Generation::default(),
        config: ConfigStatus {
            path: config.path.clone(),
            error: None,
        },
        attachments: vec![],
        flows: FlowTable::default(),
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

fn attachment(attached: &Attached) -> Attachment {
    Attachment {
        interface: attached.interface.clone(),
        mode: match attached.mode {
            XdpMode::Native => AttachMode::Native,
            XdpMode::Generic => AttachMode::Generic,
        },
    }
}

/// The parts that run until they are told to stop, by their names.
struct Parts(JoinSet<(&'static str, Result<()>)>);

impl Parts {
    fn start(
        &mut self,
        name: &'static str,
        part: impl Future<Output = Result<()>> + Send + 'static,
    ) {
        self.0.spawn(async move { (name, part.await) });
    }

    /// Waits until a part ends by itself, which none should, and says why.
    ///
    /// A part that fails takes others with it, which end without an error of their own, and maybe before it: they are not the reason
    /// if another is found within [`STOP_PATIENCE`].
    async fn failure(&mut self) -> anyhow::Error {
        let mut ended = self.0.join_next().await;
        if matches!(ended, Some(Ok((_, Ok(()))))) {
            let reason = async {
                while let Some(other) = self.0.join_next().await {
                    if !matches!(other, Ok((_, Ok(())))) {
                        return Some(other);
                    }
                }
                None
            };
            if let Ok(Some(other)) = tokio::time::timeout(STOP_PATIENCE, reason).await {
                ended = Some(other);
            }
        }
        match ended {
            None => anyhow!("no part is running"),
            Some(Ok((name, Ok(())))) => anyhow!("{name} ended without being told to"),
            Some(Ok((name, Err(error)))) => error.context(format!("{name} failed")),
            Some(Err(error)) => anyhow!("a part of the daemon panicked: {error}"),
        }
    }

    /// Waits for all to end as they were told to; not for ever.
    async fn end(&mut self) {
        let all = async {
            while let Some(ended) = self.0.join_next().await {
                match ended {
                    Ok((_, Ok(()))) => (),
                    Ok((name, Err(error))) => tracing::warn!("{name} ended with {error:#}"),
                    Err(error) => tracing::error!("a part of the daemon panicked: {error}"),
                }
            }
        };
        if tokio::time::timeout(STOP_PATIENCE, all).await.is_err() {
            tracing::warn!("not everything ended in time; leaving it behind");
        }
    }
}
