//! A newcomer's path, from README.md's own text: what stands there in code blocks is run as it stands, in the lab that it opens, and on the hosts of a lab
//! that it is about.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lab::namespace::Namespace;
use lab::peer::backend::{Backend, PORT};
use lab::peer::client::{Clients, Plan};
use lab::running::Running;
use lab::sandbox;
use lab::tether::program;
use lab::topology::{Place, Topology};
use lab::wait;

const SOON: Duration = Duration::from_secs(30);

/// README.md.
struct Readme(String);

impl Readme {
    fn read() -> Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
        Ok(Self(std::fs::read_to_string(path)?))
    }

    /// The text below a heading, up to the next.
    fn section(&self, heading: &str) -> Result<&str> {
        let from = format!("\n### {heading}\n");
        let text = self
            .0
            .split_once(&from)
            .with_context(|| format!("no heading {heading:?}"))?
            .1;
        let end = ["\n### ", "\n## "]
            .iter()
            .filter_map(|next| text.find(*next));
        Ok(&text[..end.min().unwrap_or(text.len())])
    }

    /// The code blocks below a heading; with the language, if there is one, as their first line.
    fn blocks(&self, heading: &str) -> Result<Vec<&str>> {
        Ok(self
            .section(heading)?
            .split("```")
            .skip(1)
            .step_by(2)
            .collect())
    }

    /// The code blocks without a language below a heading.
    fn all_commands(&self, heading: &str) -> Result<Vec<&str>> {
        let blocks = self.blocks(heading)?;
        let plain = blocks.iter().filter_map(|block| block.strip_prefix('\n'));
        Ok(plain.collect())
    }

    /// The `number`-th of them.
    fn commands(&self, heading: &str, number: usize) -> Result<&str> {
        let all = self.all_commands(heading)?;
        let found = all.get(number).copied();
        found.with_context(|| format!("{heading:?} has no block {number} of commands"))
    }
}

/// Runs a session as it is shown, `# COMMAND` and what it prints; the prints of both, line by line.
fn session(
    shown: &str,
    run: impl Fn(&str) -> Result<String>,
) -> Result<(Vec<String>, Vec<String>)> {
    let (mut expected, mut printed) = (vec![], vec![]);
    for line in shown.lines() {
        match line.strip_prefix("# ") {
            Some(command) => printed.extend(run(command)?.lines().map(str::to_owned)),
            None => expected.push(line.to_owned()),
        }
    }
    Ok((expected, printed))
}

/// The lines that need no systemd, of which there is none in the lab.
fn without_systemd(commands: &str) -> impl Iterator<Item = &str> {
    let lines = commands.lines();
    lines.filter(|line| !line.starts_with("systemctl "))
}

fn get(host: &Namespace, path: &'static str) -> Result<String> {
    host.run(move || -> Result<String> {
        let mut stream = TcpStream::connect("127.0.0.1:9477")?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })
}

#[test]
fn the_readmes_way_leads_there_and_back() -> Result<()> {
    let readme = Readme::read()?;
    let topology = Topology::new(Place::Farm);
    let lab = topology.build()?;
    let balancer = lab.balancer();

    // Hosts as they are before anybody has read anything.
    let vip = topology.vip();
    let mut backends = vec![];
    for host in lab.hosts() {
        sandbox::make(host)?;
        sandbox::put(host, &program()?, "/src/target/release/tether")?;
    }
    for host in lab.backends() {
        host.ip(&format!("address del {vip}/32 dev lo"))?;
        backends.push(Backend::start(host)?);
    }
    let on = |line: &str| sandbox::sh(balancer, line);

    // Install: building it is what has made the program that is tested.
    let install = readme.commands("Build and install", 0)?;
    let install = install
        .lines()
        .find(|line| line.starts_with("install "))
        .context("a line that installs")?;
    for host in lab.hosts() {
        sandbox::sh(host, &format!("cd /src && {install}"))?;
    }

    let configure = readme.blocks("Configure")?;
    let toml = configure
        .iter()
        .find_map(|block| block.strip_prefix("toml\n"))
        .context("a configuration")?;
    let path = toml
        .lines()
        .next()
        .and_then(|line| line.strip_prefix("# "))
        .context("its path")?;
    for line in readme.commands("Configure", 0)?.lines() {
        on(line)?;
    }
    balancer.write(&format!("{}{path}", sandbox::ROOT), toml)?;
    let (expected, printed) = session(readme.commands("Configure", 1)?, on)?;
    assert_eq!(printed, expected);

    for line in readme.commands("Bring the VIP to the balancer", 0)?.lines() {
        lab.router().sh(line)?;
    }
    for host in lab.backends() {
        for line in readme.commands("Backends for `ipip`", 0)?.lines() {
            sandbox::sh(host, line)?;
        }
    }

    // The unit, too, with the file's path: systemd itself runs in a test of its own.
    let unit = "/etc/systemd/system/tether.service";
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd/tether.service");
    sandbox::put(balancer, &shipped, "/src/deploy/systemd/tether.service")?;
    on("mkdir -p /etc/systemd/system")?;
    for line in without_systemd(readme.commands("Start", 1)?) {
        on(&format!("cd /src && {line}"))?;
    }
    on(&format!(
        "grep -q '^ExecStart=/usr/local/bin/tether run' {unit}"
    ))?;

    let run: Vec<&str> = readme.commands("Start", 0)?.split_whitespace().collect();
    let start = || -> Result<Running> {
        let daemon = Running::start(balancer, sandbox::command(&run))?;
        wait::until("it says ready", SOON, || {
            daemon
                .said()
                .iter()
                .any(|line| line.contains("ready"))
                .then_some(())
        })
        .with_context(|| daemon.said().join("\n"))?;
        Ok(daemon)
    };
    // By the number that it tells: the machine may run others of the name.
    let stop = || -> Result<()> {
        let status: serde_json::Value = serde_json::from_str(&on("tether status --json")?)?;
        on(&format!(
            "kill -TERM {}",
            status["pid"].as_u64().context("a process id")?
        ))
        .map(drop)
    };
    let mut daemon = start()?;
    let clients = Clients::start(lab.client(), lab.sources(), 11)?;
    let target = SocketAddr::new(vip, PORT);
    wait::until_seen(
        "all backends take new flows",
        SOON,
        || on("tether backends --json"),
        |text| text.matches("\"serving\":\"new\"").count() == 3,
    )?;
    let connections = clients.open(60, Plan::new(target), |_| {})?;

    // What is shown has the shape of what is printed: the same first words, line by line.
    let (expected, printed) = session(readme.commands("Look", 0)?, on)?;
    let heads = |lines: &[String]| -> Vec<String> {
        let head = |line: &String| {
            line.split_whitespace()
                .next()
                .unwrap_or_default()
                .to_owned()
        };
        lines.iter().map(head).take(10).collect()
    };
    assert_eq!(heads(&printed), heads(&expected), "{printed:#?}");
    let page = get(balancer, "/")?;
    ensure!(
        page.starts_with("HTTP/1.0 200") && page.contains("<html"),
        "{page}"
    );
    ensure!(get(balancer, "/readyz")?.starts_with("HTTP/1.0 200"));
    // What is wrong with this host, if anything is: nothing that fails.
    let doctor = readme.commands("Look", 1)?;
    on(doctor
        .trim_start_matches("# ")
        .lines()
        .next()
        .context("a command")?)?;

    let drain = readme.section("Drain, change, stop")?;
    let command = "tether drain chat/b1";
    ensure!(
        drain.contains(&format!("`{command}`")),
        "README.md tells of another drain"
    );
    on(command)?;
    let newcomers = clients.open(30, Plan::new(target), |_| {})?;
    for newcomer in &newcomers {
        ensure!(
            newcomer.backend().is_some_and(|name| name != "b1"),
            "a drained backend got a newcomer"
        );
    }
    on("tether undrain chat/b1")?;

    // Upgrade: the new one is asked, the file is replaced, and the daemon restarted.
    ensure!(
        drain.contains("of the new one, SIGTERM, then start it"),
        "README.md tells of another way to upgrade"
    );
    let foreseen = on(&format!(
        "/src/target/release/tether upgrade-check --config {path}"
    ))?;
    ensure!(foreseen.contains("it would go on with them"), "{foreseen}");
    on(&format!("cd /src && {install}"))?;
    stop()?;
    daemon.wait_to_end(SOON)?;
    for connection in &connections {
        connection.echo().context("while no daemon runs")?;
    }
    daemon = start()?;
    for connection in connections.iter().chain(&newcomers) {
        connection.echo().context("after the upgrade")?;
    }

    // And away: whatever the above has put anywhere.
    stop()?;
    daemon.wait_to_end(SOON)?;
    let [service, all, backend] = readme.all_commands("Uninstall")?[..] else {
        bail!("README.md takes away otherwise");
    };
    for line in without_systemd(service).chain(all.lines()) {
        on(line)?;
    }
    for left in [
        "/usr/local/bin/tether",
        "/etc/tether",
        unit,
        "/var/lib/tether",
        "/run/tether",
        "/sys/fs/bpf/tether",
    ] {
        on(&format!("test ! -e {left}"))?;
    }
    let link = balancer.sh("ip link show eth0")?;
    ensure!(!link.contains("xdp"), "{link}");
    for host in lab.backends() {
        for line in backend.lines() {
            sandbox::sh(host, line)?;
        }
        for left in ["/usr/local/bin/tether", "/sys/fs/bpf/tether-decap"] {
            sandbox::sh(host, &format!("test ! -e {left}"))?;
        }
        let addresses = host.sh("ip address show")?;
        ensure!(
            !addresses.contains("xdp") && !addresses.contains(&format!("inet {vip}/")),
            "{addresses}"
        );
    }
    Ok(())
}

/// The session in the lab: a connection is opened, lives through a drain, a kill and a restart, and nothing is left of what was started.
#[test]
fn the_readmes_ten_minutes_in_a_lab() -> Result<()> {
    let readme = Readme::read()?;
    let blocks = readme.all_commands("A ten-minute lab")?;
    let (opens, session) = blocks.split_first().context("blocks of commands")?;
    let arguments = opens
        .trim()
        .strip_prefix("cargo xtask lab shell")
        .with_context(|| format!("{opens:?} opens no lab"))?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab-shell"));
    command
        .args(arguments.split_whitespace())
        .args(["--", "bash", "-ec", &session.concat()]);
    let here = Namespace::current("here")?;
    let mut shell = Running::start(&here, command)?;
    let (status, said) = shell.wait_to_end(Duration::from_secs(120))?;
    ensure!(status.success(), "{status}: {}", said.join("\n"));

    let mut lines = said.iter();
    let backend = lines.find_map(|line| line.strip_prefix("connected to "));
    ensure!(
        backend.is_some_and(|name| ["b1", "b2", "b3"].contains(&name)),
        "{backend:?}: {said:#?}"
    );
    for echoed in ["still there", "nobody is in charge", "and back"] {
        ensure!(
            lines.any(|line| line == echoed),
            "{echoed:?} came back too late or not at all: {said:#?}"
        );
    }
    // The daemon that the session has started tells its number: `tether VERSION, pid NUMBER, up TIME`.
    let pid: u32 = said
        .iter()
        .find_map(|line| line.split_once(", pid ")?.1.split(',').next())
        .context("no status was shown")?
        .parse()?;
    wait::until("the daemon has gone with the lab", SOON, || {
        (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    })
}
