//! The unit as it is shipped, run by systemd, and the package's scripts, which ask systemd for what they want. `cargo xtask release --unit` boots a
//! machine that has both; anywhere else this says what it misses, and fails.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::config::SERVICE;
use lab::namespace::Namespace;
use lab::passing;
use lab::peer::backend::{Backend, PORT};
use lab::peer::client::{Clients, Connection, Plan};
use lab::peer::crowd;
use lab::status::{Attachment, Status};
use lab::tether::{PINS, link_id};
use lab::wait;
use lab_guest::{GROUP, SCRIPTS};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const UNIT: &str = "tether.service";
const UNIT_FILE: &str = "/usr/lib/systemd/system/tether.service";
/// What makes the daemon a member of a group, as docs/configuration.md says.
const DROP_IN: &str = "/etc/systemd/system/tether.service.d/group.conf";
const CONFIG: &str = "/etc/tether/tether.toml";
const STATE_DIR: &str = "/run/tether";
/// Where `state_dir` may be instead, on disk.
const ON_DISK: &str = "/var/lib/tether";
/// The machine's interface that the program is attached to.
const UPLINK: &str = "up0";
const CLIENT: &str = "10.99.0.1";
const BALANCER: &str = "10.99.0.2";
const BACKEND: &str = "10.99.0.11";
const VIP: &str = "10.99.1.1";
/// Somebody who is not root.
const NOBODY: u32 = 65_534;
const CONNECTIONS: usize = 20;
const SOON: Duration = Duration::from_secs(20);

/// Capabilities, as `linux/capability.h` numbers them.
const CAPABILITIES: [(&str, u32); 4] = [
    ("CAP_NET_ADMIN", 12),
    ("CAP_NET_RAW", 13),
    ("CAP_PERFMON", 38),
    ("CAP_BPF", 39),
];

/// What the journal says when the unit takes away something that is needed.
const DENIALS: [&str; 6] = [
    "Operation not permitted",
    "Permission denied",
    "Read-only file system",
    "Bad system call",
    "status=31/SYS",
    "Failed at step",
];

/// A client and a backend on one segment with this machine, which balances in mode `l2`.
struct Network {
    client: Namespace,
    backend: Namespace,
    _passing: OwnedFd,
}

impl Network {
    fn build(host: &Namespace) -> Result<Self> {
        let client = Namespace::new("client")?;
        client.ip("link add segment type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set segment up")?;
        let backend = Namespace::new("b1")?;
        for (other, interface, port) in [(host, UPLINK, "lb"), (&backend, "eth0", "b1")] {
            client.ip(&format!(
                "link add {port} type veth peer name {interface} netns {}",
                other.net_path().display()
            ))?;
            // As on hardware: segments and checksums are finished by the sender.
            for (host, interface) in [(&client, port), (other, interface)] {
                host.sh(&format!("ethtool -K {interface} tx off tso off gso off"))?;
            }
            client.ip(&format!("link set {port} master segment up"))?;
            other.ip(&format!("link set {interface} up"))?;
        }
        client.ip(&format!("address add {CLIENT}/24 dev segment"))?;
        host.ip(&format!("address add {BALANCER}/24 dev {UPLINK}"))?;
        client.ip(&format!("route add {VIP} via {BALANCER}"))?;
        for (key, value) in [("arp_ignore", "1"), ("arp_announce", "2")] {
            backend.sysctl(&format!("net/ipv4/conf/all/{key}"), value)?;
        }
        backend.ip(&format!(
            "address add {BACKEND}/24 dev eth0\naddress add {VIP} dev lo"
        ))?;
        let passing = passing::pass_all(&client, "lb")?;
        Ok(Self {
            client,
            backend,
            _passing: passing,
        })
    }
}

/// A configuration. Only a reload loads it.
fn config(top: &str, weight: u16) -> String {
    format!(
        "interfaces = [\"{UPLINK}\"]\nreload_on_change = false\n{top}\n\
         [limits]\nflows = 20000\nflows6 = 20000\nservices = 16\nbackends = 256\ntable_slots = 524288\n\n\
         [[service]]\nname = \"{SERVICE}\"\nvip = \"{VIP}\"\nport = {PORT}\nmode = \"l2\"\n\n\
         [service.health]\ntype = \"tcp\"\ninterval = \"1s\"\ntimeout = \"900ms\"\n\n\
         [[service.backend]]\nname = \"b1\"\naddress = \"{BACKEND}\"\nweight = {weight}\n"
    )
}

fn write_config(top: &str, weight: u16) -> Result<()> {
    fs::write(CONFIG, config(top, weight)).context(CONFIG)
}

/// The unit, as systemd has it.
struct Unit<'a>(&'a Namespace);

impl Unit<'_> {
    fn show(&self, property: &str) -> Result<String> {
        let line = format!("systemctl show --value --property={property} {UNIT}");
        Ok(self.0.sh(&line)?.trim().to_owned())
    }

    fn is(&self, property: &str, value: &str) -> Result<()> {
        let shown = self.show(property)?;
        ensure!(
            shown == value,
            "{UNIT} has {property}={shown}, and not {value}"
        );
        Ok(())
    }

    fn pid(&self) -> Result<u32> {
        let shown = self.show("MainPID")?;
        shown.parse().context(shown)
    }

    fn ask(&self, verb: &str) -> Result<()> {
        self.0.sh(&format!("systemctl {verb} {UNIT}")).map(drop)
    }

    /// The same, whatever comes of it.
    fn attempt(&self, verb: &str) -> Result<Output> {
        let mut command = Command::new("systemctl");
        command.args([verb, UNIT]);
        self.0.output(command)
    }

    fn status(&self) -> Result<Status> {
        let text = self.0.sh("tether status --json")?;
        serde_json::from_str(&text).with_context(|| format!("not a status: {text}"))
    }

    /// Waits for the daemon's main process to be another one, which serves.
    fn serves_instead_of(&self, before: u32) -> Result<Status> {
        let status = wait::until_seen(
            "the backend takes new flows",
            SOON,
            || self.status(),
            |status| {
                status.pid != before
                    && status.serving("b1") == "new"
                    && status.health("b1") == "up"
                    && !status.attachments.is_empty()
            },
        )?;
        ensure!(status.pid == self.pid()?, "{status:#?}");
        Ok(status)
    }

    /// Waits until all connections are in the flow table.
    fn has_flows(&self) -> Result<()> {
        wait::until_seen(
            "all flows are there",
            SOON,
            || self.status(),
            |status| {
                let flows = status.backend("b1").map(|backend| backend.flows);
                flows.is_some_and(|flows| flows.live() == CONNECTIONS as u64)
            },
        )
        .map(drop)
    }

    /// Has systemd reload the unit with what is in the file, and waits until that is in force.
    fn reload(&self) -> Result<()> {
        let before = self.status()?.generation.accepted;
        self.ask("reload")?;
        wait::until_seen(
            "the new configuration is in force",
            SOON,
            || self.status(),
            |status| {
                status.generation.accepted == before + 1 && status.generation.applied == before + 1
            },
        )
        .map(drop)
    }

    fn journal(&self) -> Result<String> {
        self.0
            .sh(&format!("journalctl --no-pager --output=cat --unit={UNIT}"))
    }
}

/// The capabilities that the unit grants, as a set of bits.
fn granted() -> Result<u64> {
    let unit = fs::read_to_string(UNIT_FILE).context(UNIT_FILE)?;
    let names = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="))
        .context("the unit bounds its capabilities")?;
    let bits = names.split_whitespace().map(|name| -> Result<u64> {
        let found = CAPABILITIES.iter().find(|(known, _)| *known == name);
        let (_, number) = found.with_context(|| format!("{name} has no number here"))?;
        Ok(1_u64 << number)
    });
    bits.sum()
}

/// What `/proc` says of a process.
fn fact(pid: u32, name: &str) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let found = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let value = found.with_context(|| format!("no {name} in {text}"))?;
    Ok(value.trim().to_owned())
}

/// The options of what a process has mounted at a place.
fn mounted(pid: u32, place: &str) -> Result<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    // The latest lies on top.
    let options = text.lines().rev().find_map(|line| {
        let mut fields = line.split(' ').skip(4);
        (fields.next()? == place).then(|| fields.next())?
    });
    let options = options.with_context(|| format!("{place} is no mount of {text}"))?;
    Ok(options.split(',').map(str::to_owned).collect())
}

/// The daemon may do what the unit says and nothing else.
fn is_confined(pid: u32) -> Result<()> {
    let granted = granted()?;
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        let held = u64::from_str_radix(&fact(pid, set)?, 16)?;
        ensure!(held == granted, "{set} is {held:#x}, and not {granted:#x}");
    }
    for (name, value) in [
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        let found = fact(pid, name)?;
        ensure!(found == value, "{name} is {found}, and not {value}");
    }
    for (place, right) in [
        ("/", "ro"),
        (STATE_DIR, "rw"),
        (ON_DISK, "rw"),
        ("/sys/fs/bpf", "rw"),
    ] {
        let options = mounted(pid, place)?;
        ensure!(
            options.iter().any(|option| option == right),
            "{place} is {options:?}, and not {right}"
        );
    }
    Ok(())
}

/// Each connection echoes, and none has ever broken.
fn hold(connections: &[Connection], when: &str) -> Result<()> {
    let lost = [crowd::echo_all(connections), crowd::breaks(connections)].concat();
    ensure!(lost.is_empty(), "after {when}: {lost:?}");
    Ok(())
}

/// Runs a `tether` command as a member of the group who is nobody else.
fn as_member(arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new("/usr/bin/tether");
    command.args(arguments).uid(NOBODY).gid(GROUP.1);
    command.output().context("start tether")
}

/// A member of the group may look, and no more.
fn members_look() -> Result<()> {
    let looked = as_member(&["status", "--json"])?;
    ensure!(looked.status.success(), "{looked:?}");
    let backend = format!("{SERVICE}/b1");
    let changed = as_member(&["drain", &backend])?;
    ensure!(!changed.status.success(), "{changed:?}");
    Ok(())
}

fn is_enabled(host: &Namespace) -> Result<String> {
    let mut command = Command::new("systemctl");
    // Its status says so too.
    command.args(["is-enabled", UNIT]);
    let output = host.output(command)?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn install_run_upgrade_and_remove(host: &Namespace) -> Result<()> {
    let unit = Unit(host);
    let script = |line: &str| host.sh(&format!("sh {SCRIPTS}/{line}"));
    script("postinst configure")?;
    ensure!(is_enabled(host)? == "enabled", "{}", is_enabled(host)?);
    unit.ask("start")?;
    unit.is("ActiveState", "inactive")
        .context("there is nothing to start with yet")?;
    unit.is("ConditionResult", "no")?;

    let network = Network::build(host)?;
    let _backend = Backend::start(&network.backend)?;
    let clients = Clients::start(&network.client, &[CLIENT.parse()?], 1)?;
    write_config("", 100)?;
    unit.ask("start")?;
    // Systemd takes it for started once it serves, and not before.
    let link = link_id(host, UPLINK).context("a start is over too early")?;
    unit.is("ActiveState", "active")?;
    let status = unit.serves_instead_of(0)?;
    is_confined(status.pid)?;
    let native = Attachment {
        interface: UPLINK.into(),
        mode: "native".into(),
    };
    ensure!(status.attachments == [native], "{status:#?}");
    let vip: IpAddr = VIP.parse()?;
    let plan = Plan::new(SocketAddr::new(vip, PORT));
    let connections = clients.open(CONNECTIONS, plan, |_| {})?;
    unit.has_flows()?;

    write_config("", 50)?;
    unit.reload()?;
    fs::write(CONFIG, "interfaces = 7\n")?;
    let before = unit.status()?.generation;
    let refused = unit.attempt("reload")?;
    ensure!(!refused.status.success(), "a bad file is loaded");
    ensure!(unit.status()?.generation == before);
    unit.is("ActiveState", "active")?;
    write_config("", 50)?;
    unit.reload()?;
    ensure!(unit.pid()? == status.pid, "a reload starts another daemon");

    kill(Pid::from_raw(i32::try_from(status.pid)?), Signal::SIGKILL)?;
    let status = unit.serves_instead_of(status.pid)?;
    unit.is("NRestarts", "1")?;
    // Before any packet could bring one back.
    unit.has_flows()?;
    ensure!(link_id(host, UPLINK)? == link, "the program was detached");
    hold(&connections, "a kill")?;

    script("postinst configure 0.0.1")?;
    let status = unit.serves_instead_of(status.pid)?;
    ensure!(link_id(host, UPLINK)? == link, "the program was detached");
    hold(&connections, "an upgrade")?;

    unit.ask("stop")?;
    unit.is("ActiveState", "inactive")?;
    unit.is("Result", "success")?;
    ensure!(link_id(host, UPLINK)? == link, "the program was detached");
    hold(&connections, "a stop")?;
    let newcomer = clients.open_one(plan)?;
    drop(newcomer);

    // Other rights of the socket, which the unit's own for its directory must not take back.
    fs::create_dir_all(Path::new(DROP_IN).parent().context("a directory")?)?;
    let group = GROUP.0;
    fs::write(DROP_IN, format!("[Service]\nSupplementaryGroups={group}\n"))?;
    write_config(&format!("admin_group = \"{group}\""), 50)?;
    host.sh("systemctl daemon-reload")?;
    unit.ask("start")?;
    let status = unit.serves_instead_of(status.pid)?;
    is_confined(status.pid)?;
    members_look()?;
    unit.reload()?;
    members_look().context("after a reload")?;

    let journal = unit.journal()?;
    let denied: Vec<_> = journal
        .lines()
        .filter(|line| DENIALS.iter().any(|denial| line.contains(denial)))
        .collect();
    ensure!(denied.is_empty(), "{denied:#?}");
    ensure!(journal.matches("ready").count() >= 4, "it tells nothing");

    script("prerm remove")?;
    unit.is("ActiveState", "inactive")?;
    ensure!(is_enabled(host)? == "disabled", "{}", is_enabled(host)?);
    script("postrm remove")?;
    hold(&connections, "the removal")?;
    script("postrm purge")?;
    ensure!(
        !host
            .sh(&format!("ip link show dev {UPLINK}"))?
            .contains("xdp")
    );
    for gone in [PINS, STATE_DIR, "/etc/tether", ON_DISK] {
        ensure!(!Path::new(gone).exists(), "a purge leaves {gone}");
    }
    Ok(())
}

#[test]
fn the_unit_runs_as_it_is_shipped() -> Result<()> {
    ensure!(
        Path::new("/run/systemd/system").exists() && Path::new(SCRIPTS).exists(),
        "there is no systemd here, or no package; `cargo xtask release --unit` runs this where both are"
    );
    let host = Namespace::current("balancer")?;
    install_run_upgrade_and_remove(&host).with_context(|| {
        let unit = Unit(&host);
        let or_why = |said: Result<String>| said.unwrap_or_else(|error| format!("{error:#}"));
        format!(
            "{}\n{}",
            or_why(unit.show("ActiveState,SubState,Result,ExecMainStatus,NRestarts")),
            or_why(unit.journal())
        )
    })
}
