//! The Debian package: installed, upgraded, rolled back, removed and purged on a balancer in a lab, in a copy of this machine's file system that is gone
//! afterwards, while connections go on.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::config::Config;
use lab::namespace::Namespace;
use lab::peer::backend::Backend;
use lab::peer::client::{Clients, Connection, Plan};
use lab::sandbox::{self, ROOT};
use lab::tether;
use lab::topology::{Place, Topology, UPLINK};
use lab::wait;

use super::attached;

const SOON: Duration = Duration::from_secs(30);

/// The daemon that a service manager would run.
struct Daemon(Child);

impl Daemon {
    fn start(host: &Namespace) -> Result<Self> {
        let mut command = sandbox::command(&[
            "/usr/bin/tether",
            "run",
            "--config",
            "/etc/tether/tether.toml",
        ]);
        command.stdin(Stdio::null());
        Ok(Self(host.spawn(command)?))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn test(package: &Path) -> Result<()> {
    let topology = Topology::new(Place::Farm);
    let lab = topology.build()?;
    let backends = lab
        .backends()
        .iter()
        .map(|host| {
            tether::succeed(host, &["decap", "--interface", UPLINK])?;
            Backend::start(host)
        })
        .collect::<Result<Vec<_>>>()?;
    let host = lab.balancer();
    let sh = |line: &str| sandbox::outside(host, line);
    sandbox::make(host)?;
    // Scripts of the package ask systemd for what they want, which is written down here.
    sh(&format!(
        "mkdir -p {ROOT}/run/systemd/system && printf '#!/bin/sh\\necho \"$@\" >> /run/asked\\n' > {ROOT}/usr/bin/systemctl && chmod 755 {ROOT}/usr/bin/systemctl && cp {} {ROOT}/run/old.deb",
        package.display()
    ))?;
    sh(&format!(
        "cd {ROOT}/run && dpkg-deb -R old.deb new && sed -i 's/^Version: .*/&+next/' new/DEBIAN/control && dpkg-deb -b new new.deb"
    ))?;
    let inside = |line: &str| sandbox::sh(host, line);
    let asked = || -> Result<String> {
        let text = inside("cat /run/asked 2>/dev/null; rm -f /run/asked")?;
        Ok(text)
    };

    inside("dpkg --install /run/old.deb")?;
    let said = asked()?;
    ensure!(
        said.contains("enable tether.service") && !said.contains("start"),
        "{said}"
    );
    for file in [
        "/usr/share/man/man1/tether-run.1.gz",
        "/usr/share/bash-completion/completions/tether",
        "/usr/lib/systemd/system/tether.service",
        "/usr/share/doc/tether/copyright",
        "/usr/share/doc/tether/changelog.gz",
    ] {
        inside(&format!("test -s {file}")).with_context(|| format!("{file} is not installed"))?;
    }
    inside("systemd-analyze verify --man=no /usr/lib/systemd/system/tether.service")?;
    // As systemd counts exposure, from 0 to 100; a service without any hardening has 96.
    inside(
        "systemd-analyze security --offline=yes --threshold=30 /usr/lib/systemd/system/tether.service",
    )?;

    host.write(
        &format!("{ROOT}/etc/tether/tether.toml"),
        &Config::new(topology).text(),
    )?;
    let serving = || -> Result<()> {
        wait::until_seen(
            "all backends take new flows",
            SOON,
            || inside("tether backends --json"),
            |text| text.matches("\"serving\":\"new\"").count() == 3,
        )
        .map(drop)
    };
    let mut daemon = Daemon::start(host)?;
    serving()?;
    let clients = Clients::start(lab.client(), lab.sources(), 5)?;
    let target = std::net::SocketAddr::new(topology.vip(), lab::peer::backend::PORT);
    let connections = clients.open(60, Plan::new(target), |_| {})?;
    let hold = |when: &str| -> Result<()> {
        connections.iter().try_for_each(|connection: &Connection| {
            connection
                .echo()
                .map(drop)
                .with_context(|| format!("cut by {when}"))
        })
    };

    for (package, change) in [("new.deb", "upgrade"), ("old.deb", "rollback")] {
        inside(&format!("dpkg --install /run/{package}"))?;
        let said = asked()?;
        ensure!(
            said.contains("try-restart tether.service")
                && !said.contains("stop")
                && !said.contains("disable"),
            "{said}"
        );
        hold(&format!("the {change}'s scripts"))?;
        drop(daemon);
        daemon = Daemon::start(host)?;
        serving()?;
        hold(&format!("the {change}'s restart"))?;
    }

    inside("dpkg --remove tether")?;
    ensure!(asked()?.contains("disable --now tether.service"));
    drop(daemon);
    hold("the removal")?;
    ensure!(attached(host)?.is_some(), "removal has ended forwarding");
    let newcomers = clients.open(10, Plan::new(target), |_| {})?;
    drop(newcomers);

    // Installed again, it is what it was: a service that begins with the machine.
    inside("test -x /var/lib/tether/tether").context("a purge would find no program")?;
    inside("dpkg --install /run/old.deb")?;
    let said = asked()?;
    ensure!(said.contains("enable tether.service"), "{said}");
    inside("test ! -e /var/lib/tether/tether").context("it is kept twice")?;
    hold("another installation")?;
    inside("dpkg --remove tether")?;
    ensure!(asked()?.contains("disable --now tether.service"));

    // Whatever the file has come to.
    host.write(
        &format!("{ROOT}/etc/tether/tether.toml"),
        "interfaces = 7\n",
    )?;
    inside("dpkg --purge tether")?;
    ensure!(
        attached(host)?.is_none(),
        "a purge leaves the program attached"
    );
    inside("test ! -e /sys/fs/bpf/tether").context("a purge leaves maps")?;
    inside("test ! -e /etc/tether -a ! -e /var/lib/tether -a ! -e /usr/bin/tether")?;
    drop(backends);
    println!(
        "deb: installed, upgraded, rolled back, removed and purged; 60 connections lived until the purge"
    );
    Ok(())
}
