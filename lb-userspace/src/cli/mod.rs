//! The command line.
//!
//! Exit status: 0 is success, 1 that something failed, 2 that the command line or the configuration is wrong.

/// Puts a text on standard output. Where that does not take it, as on a full disk, the command fails.
macro_rules! put {
    ($($part:tt)*) => {
        $crate::cli::put(format_args!($($part)*))?
    };
}

/// Puts a line on standard output, as `put!` does.
macro_rules! put_line {
    ($($part:tt)*) => {
        $crate::cli::put(format_args!("{}\n", format_args!($($part)*)))?
    };
}

mod capture;
mod change;
mod doctor;
mod drain;
mod events;
mod explain;
mod inventory;
mod listing;
mod manual;
mod plan;
mod progress;
mod seed;
mod service_state;
mod table;
mod top;
mod upgrade;

use std::{
    fmt,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
};

use clap::{Args, Parser, Subcommand};

use crate::{
    admin::client::{self, Client},
    chain::chain,
    config::{self, Config, Problems},
    daemon::{
        self,
        lock::{SOCKET, StateDir},
    },
    dataplane::kernel::{self, XdpMode},
    logging,
    model::BackendName,
    reconcile,
    wall_clock::since_1970,
};

/// Default state directory, as in the configuration.
const STATE_DIR: &str = "/run/tether";
/// Default pin directory, as in the configuration.
const BPFFS: &str = "/sys/fs/bpf/tether";
/// Default pin directory of the decapsulator.
const DECAP_BPFFS: &str = "/sys/fs/bpf/tether-decap";

const EXIT_STATUS: &str =
    "Exit status: 0 success; 1 something failed; 2 the command line or the configuration is wrong.";

/// A layer-4 TCP load balancer for connections that must not drop.
#[derive(Debug, Parser)]
#[command(name = "tether", bin_name = "tether", version, after_help = EXIT_STATUS)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, PartialEq, Eq, Subcommand)]
enum Command {
    /// Run the daemon
    ///
    /// It logs to stderr, and says `ready` when the configuration is in force. SIGHUP reads the configuration again; a bad
    /// one is refused and the one in force stays. SIGTERM and SIGINT end the daemon; the data path goes on forwarding
    /// until `tether cleanup`. The variable TETHER_LOG filters the log, for example `debug`.
    #[command(after_help = EXIT_STATUS)]
    Run {
        #[command(flatten)]
        config: ConfigFile,
        /// How log lines look.
        #[arg(long, value_enum, default_value_t)]
        log_format: logging::Format,
    },
    /// Validate a configuration
    ///
    /// Says all that is wrong at once, each with file, line, object and remedy, and touches neither the kernel nor a daemon.
    #[command(after_help = EXIT_STATUS)]
    Check {
        /// The configuration file.
        #[arg(long, value_name = "FILE", required_unless_present = "schema")]
        config: Option<PathBuf>,
        /// Print the JSON schema of a configuration file instead, for editors and for tools that write one.
        #[arg(long, conflicts_with = "config")]
        schema: bool,
    },
    /// Show what a configuration would change, and change nothing
    ///
    /// Asks the running daemon: backends added and removed, the share of each table that moves, and the flows of backends
    /// that would take no new ones.
    #[command(after_help = EXIT_STATUS)]
    Plan(plan::Plan),
    /// Show services, backends, health and flows
    ///
    /// Also what is wrong: what is not attached or not served as configured, a configuration that was refused, what is otherwise than the file
    /// says. And what became of packets, by reason.
    #[command(after_help = EXIT_STATUS)]
    Status {
        #[command(flatten)]
        daemon: Daemon,
        /// As one line of JSON.
        #[arg(long)]
        json: bool,
    },
    /// Find what keeps Tether from working, or from working well, with remedies
    ///
    /// Looks at the kernel, capabilities, interfaces with their drivers and offloads, and the way to each backend, and asks backends what cannot be seen
    /// from here: a few packets each. Changes nothing, and needs no running daemon.
    #[command(after_help = doctor::EXIT_STATUS)]
    Doctor(doctor::Doctor),
    /// List services
    ///
    /// Each with the worst that there is to say of it, how many of its backends take new flows, and what came for it.
    #[command(after_help = EXIT_STATUS)]
    Services(inventory::Services),
    /// List backends
    ///
    /// Each with what the checks say of it, what follows for clients, its flows, what it was sent, and why its last failed check failed.
    #[command(after_help = EXIT_STATUS)]
    Backends(inventory::Backends),
    /// List flows
    ///
    /// They are printed as the daemon finds them in its tables. Times are known to about 4 s. A flow that has just been opened is an embryo, is young once its
    /// client has answered, and a pin when it has lived for 30 s; in modes `nat` and `dnat` a pin with its handshake.
    #[command(after_help = EXIT_STATUS)]
    Flows(inventory::Flows),
    /// Watch services and backends, live in the terminal
    ///
    /// Rates, flows and health, with plots of the last minutes. The last line of the screen says which keys there are.
    #[command(after_help = EXIT_STATUS)]
    Top(top::Top),
    /// Tell what becomes of a packet from a client to a VIP, and why
    ///
    /// The real program is run with a packet that is built for the purpose, on copies of what it writes: no flow is recorded, nothing is counted, nothing is
    /// sent. Without options it is a segment in mid-stream if the flow has an entry, and else a SYN. Takes a second or more, and for that time
    /// as much memory as the flow table of the packet's version of IP.
    #[command(after_help = EXIT_STATUS)]
    Explain(explain::Explain),
    /// List changes of state: health, drains, next hops, reloads, interfaces
    ///
    /// The daemon remembers the last 200 since its start. With `--flows`, events of single flows instead, as they come: opened, promoted, pinned, closed, refused. For as
    /// long as somebody listens to those, the program is replaced by one that watches.
    #[command(after_help = EXIT_STATUS)]
    Events(events::Events),
    /// Capture packets into a file for Wireshark, each with what became of it
    ///
    /// Packets are as they came in, with the verdict as their comment (pcapng). For as long as it lasts the program is replaced by one that watches,
    /// without a packet lost; it takes a second or more until that is in its place. It ends with the first of its bounds, or when interrupted.
    #[command(after_help = EXIT_STATUS)]
    Capture(capture::Capture),
    /// Give a backend no new flows; it keeps those it has
    ///
    /// With a deadline, or if its service has one, those that are left then are closed: each on its next packet, client and backend both told.
    #[command(after_help = EXIT_STATUS)]
    Drain(drain::Drain),
    /// End a drain
    ///
    /// What was ordered is taken back, a deadline of its own with it. A backend that is `draining` or `disabled` in the file takes no new flows
    /// all the same, and the command says so.
    #[command(after_help = EXIT_STATUS)]
    Undrain(drain::Undrain),
    /// Give a backend another share of new flows
    ///
    /// Until `tether revert`, over restarts and reloads; `tether status` shows it beside the file.
    #[command(after_help = EXIT_STATUS)]
    Weight(change::Weight),
    /// Add a backend to a service, or put another in the place of one
    ///
    /// Until `tether remove` or `tether revert`, over restarts and reloads; `tether status` shows it beside the file.
    #[command(after_help = EXIT_STATUS)]
    Add(change::Add),
    /// Remove a backend: it takes no new flows, and is gone when its last one has ended
    ///
    /// Until `tether revert`, over restarts and reloads, if the file has it; `tether status` shows that.
    #[command(after_help = EXIT_STATUS)]
    Remove(change::Remove),
    /// Make a backend what the file says of it
    ///
    /// Takes back what `tether add`, `remove` and `weight` have changed; one that the file does not have is removed. `tether undrain` ends a drain.
    #[command(after_help = EXIT_STATUS)]
    Revert(change::Revert),
    /// Compare, share and rotate the fleet's seed, of which the tables are built
    #[command(after_help = EXIT_STATUS)]
    Seed {
        #[command(subcommand)]
        seed: seed::Seed,
    },
    /// Tell whether this program can take over the maps that another has pinned
    ///
    /// Changes nothing, and may be asked while a daemon runs: with the program that is to replace it.
    #[command(after_help = upgrade::EXIT_STATUS)]
    UpgradeCheck(upgrade::UpgradeCheckCommand),
    /// Detach the XDP program, and remove maps and state
    ///
    /// Every flow is forgotten, and what is in flight for a VIP reaches this host. Refused while the daemon runs.
    #[command(after_help = EXIT_STATUS)]
    Cleanup {
        /// The configuration that names the directories.
        #[arg(long, value_name = "FILE", conflicts_with_all = ["bpffs", "state_dir"])]
        config: Option<PathBuf>,
        /// The pin directory.
        #[arg(long, value_name = "DIR", default_value = BPFFS)]
        bpffs: PathBuf,
        /// The state directory.
        #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
        state_dir: PathBuf,
    },
    /// Unwrap IP in IP on a backend, by XDP
    ///
    /// For backends of services with mode `ipip` that have no tunnel device. Returns at once; the program stays on the
    /// interface until `--detach`.
    #[command(after_help = EXIT_STATUS)]
    Decap {
        /// The interface that encapsulated packets come in by.
        #[arg(long)]
        interface: String,
        /// Take it off again.
        #[arg(long)]
        detach: bool,
        /// The pin directory.
        #[arg(long, value_name = "DIR", default_value = DECAP_BPFFS)]
        bpffs: PathBuf,
    },
    /// Print the completions of a shell
    ///
    /// For bash: `tether completions bash > /etc/bash_completion.d/tether`.
    #[command(after_help = EXIT_STATUS)]
    Completions(manual::Completions),
    /// Print a manual page
    ///
    /// `tether man flows | man -l -` shows one; `tether man --dir /usr/local/share/man/man1` installs all.
    #[command(after_help = EXIT_STATUS)]
    Man(manual::Man),
}

#[derive(Args, Debug, PartialEq, Eq)]
struct ConfigFile {
    /// The configuration file.
    #[arg(long = "config", value_name = "FILE")]
    path: PathBuf,
}

#[derive(Args, Debug, PartialEq, Eq)]
struct Daemon {
    /// The daemon's admin socket.
    #[arg(long, value_name = "PATH", default_value_os_t = Path::new(STATE_DIR).join(SOCKET))]
    socket: PathBuf,
}

/// A backend's name on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Named(BackendName);

impl FromStr for Named {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((service, backend)) if !service.is_empty() && !backend.is_empty() => {
                Ok(Self(BackendName {
                    service: service.into(),
                    backend: backend.into(),
                }))
            }
            _ => Err("write it as SERVICE/BACKEND, as `tether status` names them"),
        }
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// All errors of a configuration.
    #[error("{0}")]
    Config(Problems),
    #[error("tether: {0}")]
    Client(#[from] client::Error),
    #[error("tether: {0}")]
    Kernel(#[from] kernel::Error),
    #[error("tether: {0}")]
    Lock(#[from] daemon::lock::Error),
    /// The command line asks for what does not go together.
    #[error("tether: {0}")]
    CommandLine(&'static str),
    /// A start would be refused.
    #[error("tether: {0}")]
    Refused(String),
    #[error("tether: {}", chain(.0.as_ref()))]
    Other(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

impl Failure {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(_) | Self::CommandLine(_) => ExitCode::from(2),
            Self::Refused(_) => ExitCode::from(3),
            _ => ExitCode::FAILURE,
        }
    }
}

/// The command line's own description.
#[cfg(test)]
pub(crate) fn description() -> clap::Command {
    use clap::CommandFactory as _;
    Cli::command()
}

/// Does what the process's arguments ask for.
pub fn main() -> ExitCode {
    let command = Cli::parse().command;
    // A reader that has seen enough (`tether status | head`) ends this process, as it does any other tool. But not the daemon: its peers are sockets, and
    // one that goes before it has read its answer must not take the daemon along.
    if !matches!(command, Command::Run { .. }) {
        // SAFETY: no handler of ours is replaced, and nothing else runs yet.
        let restored = unsafe {
            nix::sys::signal::signal(
                nix::sys::signal::Signal::SIGPIPE,
                nix::sys::signal::SigHandler::SigDfl,
            )
        };
        if let Err(error) = restored {
            eprintln!("tether: the default of SIGPIPE could not be restored: {error}");
        }
    }
    let ended = match command {
        // Its exit status says more.
        Command::Doctor(command) => command.run(),
        command => run(command).map(|()| ExitCode::SUCCESS),
    };
    match ended {
        Ok(code) => {
            logging::settle();
            code
        }
        Err(failure) => {
            logging::last_words(&failure);
            failure.exit_code()
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run { config, log_format } => {
            // Before there is another thread, as that of the log.
            daemon::heap::keep_little();
            logging::start(log_format)
                .map_err(|error| anyhow::Error::new(error).context("the log"))?;
            let config = load(&config.path, |warning| tracing::warn!("{warning}"))?;
            Ok(daemon::run(config)?)
        }
        Command::Check { config, schema: _ } => {
            match config {
                Some(path) => {
                    let config = load(&path, |warning| eprintln!("warning: {warning}"))?;
                    put_line!("{}", listing::checked(&config));
                }
                None => put_line!("{:#}", config::schema().to_value()),
            }
            Ok(())
        }
        Command::Status { daemon, json } => {
            let status = ask(&daemon, async |client| client.status().await)?;
            if json {
                return print_json(&status);
            }
            put!("{}", listing::status(&status, since_1970()));
            Ok(())
        }
        Command::Doctor(command) => command.run().map(drop),
        Command::Services(asked) => inventory::services(&asked),
        Command::Backends(asked) => inventory::backends(&asked),
        Command::Flows(asked) => inventory::flows(&asked),
        Command::Top(asked) => asked.run(),
        Command::Explain(asked) => explain::explain(&asked),
        Command::Events(asked) => asked.run(),
        Command::Capture(asked) => asked.run(),
        Command::Completions(asked) => manual::completions(&asked),
        Command::Man(asked) => manual::man(&asked),
        Command::Drain(drain) => drain.run(),
        Command::Undrain(undrain) => undrain.run(),
        Command::Plan(command) => command.run(),
        Command::Weight(command) => command.run(),
        Command::Add(command) => command.run(),
        Command::Remove(command) => command.run(),
        Command::Revert(command) => command.run(),
        Command::Seed { seed } => seed::run(&seed),
        Command::UpgradeCheck(command) => command.run(),
        Command::Cleanup {
            config,
            bpffs,
            state_dir,
        } => match config {
            Some(path) => {
                let config = load(&path, |_| ())?;
                cleanup(&config.bpffs, &config.state_dir)
            }
            None => cleanup(&bpffs, &state_dir),
        },
        Command::Decap {
            interface,
            detach,
            bpffs,
        } => decap(&interface, detach, &bpffs),
    }
}

/// Puts a text on standard output, all of it now: what is still held when the process ends would be lost without a word.
fn put(text: fmt::Arguments<'_>) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_fmt(text)
        .and_then(|()| out.flush())
        .map_err(|error| Failure::Other(anyhow::Error::new(error).context("standard output")))
}

/// Puts something on standard output for programs: one line of JSON.
fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    put_line!(
        "{}",
        serde_json::to_string(value).map_err(anyhow::Error::from)?
    );
    Ok(())
}

fn load(path: &Path, warn: impl Fn(&config::Problem)) -> Result<Config, Failure> {
    let loaded = config::load(path).map_err(Failure::Config)?;
    loaded.warnings.iter().for_each(warn);
    Ok(loaded.config)
}

fn ask<T>(
    daemon: &Daemon,
    question: impl AsyncFnOnce(Client) -> Result<T, client::Error>,
) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)?;
    Ok(runtime.block_on(question(Client::new(&daemon.socket)))?)
}

fn cleanup(bpffs: &Path, state_dir: &Path) -> Result<(), Failure> {
    // Held while maps go, so that no daemon starts on what is half removed.
    let state = match state_dir.try_exists() {
        Ok(false) => None,
        _ => Some(StateDir::take(state_dir)?),
    };
    let removed = kernel::cleanup(bpffs)?;
    let had_state = state.is_some();
    if let Some(state) = state {
        state.remove(&reconcile::MEMORY_FILES)?;
    }
    // All is done before a word of it: nobody who reads none of them, or goes, is to leave a half of it behind.
    put!("{removed}");
    if had_state {
        put_line!("removed the state in {}", state_dir.display());
    }
    Ok(())
}

fn decap(interface: &str, detach: bool, bpffs: &Path) -> Result<(), Failure> {
    if detach {
        if kernel::detach_decap(interface, bpffs)? {
            put_line!("no longer decapsulating on {interface}");
        } else {
            put_line!("was not decapsulating on {interface}");
        }
        return Ok(());
    }
    let attached = kernel::attach_decap(interface, bpffs)?;
    let mode = match attached.mode {
        XdpMode::Native => "native",
        XdpMode::Generic => "generic",
    };
    if let Some(warning) = attached.warning {
        eprintln!("warning: {warning}");
    }
    put_line!("decapsulating on {interface} ({mode})");
    Ok(())
}

#[cfg(test)]
mod tests;
