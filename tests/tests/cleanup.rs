//! A lab leaves nothing behind, however it ends, and while it lives the machine does not see it.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use lab::topology::{Lab, Place, Topology};
use lab::wait;

/// Namespace numbers are reused: a lab of another test may bear one that is free again, for as long as that test takes.
const SOON: Duration = Duration::from_secs(30);

/// Every namespace that something on this machine keeps alive: a thread that is in it, an open file, or a mount.
fn namespaces_alive() -> BTreeSet<String> {
    let mut alive = BTreeSet::new();
    let list = |path: String| std::fs::read_dir(path).into_iter().flatten().flatten();
    for process in list("/proc".into()) {
        let process = process.path();
        for task in list(process.join("task").display().to_string()) {
            for kind in ["net", "mnt"] {
                let link = std::fs::read_link(task.path().join("ns").join(kind));
                alive.extend(link.map(|link| link.display().to_string()));
            }
        }
        for file in list(process.join("fd").display().to_string()) {
            alive.extend(std::fs::read_link(file.path()).map(|link| link.display().to_string()));
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("procfs is mounted");
    alive.extend(
        mounts
            .split_whitespace()
            .filter(|word| word.contains(":["))
            .map(str::to_owned),
    );
    alive
}

fn identities(lab: &Lab) -> BTreeSet<String> {
    lab.hosts()
        .flat_map(|host| host.identity().expect("open files have numbers"))
        .collect()
}

fn assert_gone(identities: &BTreeSet<String>) {
    wait::until("every namespace of the lab is gone", SOON, || {
        namespaces_alive().is_disjoint(identities).then_some(())
    })
    .expect("nothing keeps a namespace of the lab alive");
}

#[test]
fn a_dropped_lab_is_gone() {
    let lab = Topology::new(Place::Farm).build().unwrap();
    let identities = identities(&lab);
    assert_eq!(identities.len(), 12, "six hosts of two namespaces each");
    assert!(namespaces_alive().is_superset(&identities));
    // A child that outlived the lab would hold its namespaces.
    let mut child = lab.balancer().spawn({
        let mut sleep = Command::new("sleep");
        sleep.arg("1000");
        sleep
    });
    drop(lab);
    child.as_mut().unwrap().wait().unwrap();
    assert_gone(&identities);
}

#[test]
fn a_lab_is_gone_after_a_panic() {
    let (tell, told) = std::sync::mpsc::channel();
    let panicked = std::thread::spawn(move || {
        let lab = Topology::new(Place::Segment).build().unwrap();
        tell.send(identities(&lab)).unwrap();
        panic!("on purpose");
    })
    .join();
    assert!(panicked.is_err());
    assert_gone(&told.recv().unwrap());
}

#[test]
fn a_lab_is_gone_after_its_process_was_killed() {
    let mut shell = Command::new(env!("CARGO_BIN_EXE_lab-shell"))
        .args([
            "--bare",
            "--in",
            "balancer",
            "--",
            "sh",
            "-c",
            "echo $$; exec sleep 1000",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(shell.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let inside = format!("/proc/{}", line.trim());
    assert!(std::fs::exists(&inside).unwrap());
    let mut identities = BTreeSet::new();
    for task in std::fs::read_dir(format!("/proc/{}/task", shell.id())).unwrap() {
        for kind in ["net", "mnt"] {
            let read = |path: std::path::PathBuf| std::fs::read_link(path).unwrap();
            let link = read(task.as_ref().unwrap().path().join("ns").join(kind));
            if link != read(format!("/proc/self/ns/{kind}").into()) {
                identities.insert(link.display().to_string());
            }
        }
    }
    assert_eq!(identities.len(), 12);

    shell.kill().unwrap();
    shell.wait().unwrap();
    assert_gone(&identities);
    wait::until("the command inside is gone", SOON, || {
        (!std::fs::exists(&inside).ok()?).then_some(())
    })
    .unwrap();
}

#[test]
fn the_machine_does_not_see_a_lab() {
    let lab = Topology::new(Place::Farm).build().unwrap();
    let names = |host: &lab::namespace::Namespace| host.list("/sys/class/net").unwrap();
    let inside: BTreeSet<String> = lab.hosts().flat_map(|host| names(host)).collect();
    assert!(inside.contains("farm") && inside.contains("b3") && inside.contains("eth0"));
    for entry in std::fs::read_dir("/sys/class/net").unwrap() {
        let path = entry.unwrap().path();
        let address = std::fs::read_to_string(path.join("address")).unwrap_or_default();
        assert!(
            !address.starts_with("02:00:0a:00:"),
            "{} is a lab's",
            path.display()
        );
    }

    lab.balancer().write("/run/a-file", "text").unwrap();
    lab.balancer()
        .run(|| std::fs::create_dir("/sys/fs/bpf/a-directory"))
        .unwrap();
    let pinned = |host: &lab::namespace::Namespace| {
        host.list("/sys/fs/bpf")
            .unwrap()
            .contains(&"a-directory".to_owned())
    };
    assert!(pinned(lab.balancer()));
    for elsewhere in [lab.router(), &lab.backends()[0]] {
        assert!(!pinned(elsewhere));
        assert_eq!(elsewhere.list("/run").unwrap(), [""; 0]);
    }
    assert!(!std::fs::exists("/run/a-file").unwrap());
    assert!(!std::fs::exists("/sys/fs/bpf/a-directory").unwrap());
}
