//! The run.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lab::wait;
use serde_json::Value;

use super::Plan;
use super::cluster::Cluster;
use super::crowd::Report;
use super::helper::Helper;

/// Where clients are: the cluster's bridge.
const CLIENT: &str = "10.250.0.1";
const NODES: [&str; 2] = ["n1", "n2"];
/// The one that the VIP is routed to.
const NODE: &str = NODES[0];
const NODE_ADDRESS: &str = "10.250.0.11";
const VIP: &str = "10.99.0.1";
const PORT: u16 = 80;
const SNAT: &str = "10.250.0.101";
const CONNECTIONS: usize = 200;
const NAMESPACE: &str = "tether";
const LABEL: &str = "app.kubernetes.io/name=tether";
/// Within which a changed ConfigMap is in a pod's volume: kubelet looks once a minute or so, at what it may have kept for as long.
const CONFIGURED_WITHIN: Duration = Duration::from_secs(180);
/// Within which what kubelet tells of a pod is among the events.
const TOLD_WITHIN: Duration = Duration::from_secs(30);

pub(crate) fn run(plan: &Plan) -> Result<()> {
    let started = Instant::now();
    let say = |what: &str| println!("{:5.1} s  {what}", started.elapsed().as_secs_f64());
    let work = std::env::temp_dir().join(format!("tether-k8s-{}", std::process::id()));
    let cluster = Cluster::up(&plan.lab)?;
    let tidied = Tidied(&work);
    std::fs::create_dir_all(&work)?;
    say("two nodes are ready");
    cluster.load_image(&plan.image)?;
    let _ports = prepare(&cluster)?;

    let program = std::env::current_exe()?;
    std::fs::write(work.join("pods.yaml"), pods(plan, &program)?)?;
    cluster.kubectl(&[
        "apply",
        "--filename",
        &work.join("pods.yaml").to_string_lossy(),
    ])?;
    let wanted = if plan.only_remote { 2 } else { 4 };
    let chat = cluster.ready("default", "app=chat", wanted)?;
    say(&format!("{wanted} pods serve WebSockets"));

    apply(plan, &work, &cluster, &chat)?;
    cluster.ready(NAMESPACE, LABEL, 2)?;
    for node in NODES {
        let link: Value =
            serde_json::from_str(&cluster.run(node, &["ip", "-json", "link", "show", "eth0"])?)?;
        ensure!(
            link[0]["xdp"]["prog"]["id"].is_u64(),
            "no XDP program on eth0 of {node}: {link}"
        );
    }
    say("the DaemonSet is ready on both nodes, with XDP attached");
    hold_capabilities(&cluster)?;
    say("it has the capabilities of its manifest, and no other");

    let mut crowd = Crowd::open(&cluster)?;
    let before = crowd.whole()?;
    say(&format!(
        "{CONNECTIONS} connections are open: {:?}",
        before.open
    ));
    for pod in &chat {
        let name = name_of(pod)?;
        ensure!(
            before.open.contains_key(&name),
            "{name} got no connection: {:?}",
            before.open
        );
    }

    let gone = take_one_out(plan, &work, &cluster, &chat)?;
    crowd.hold(&before)?;
    say(&format!(
        "a ConfigMap without {gone} is in force in each pod, without a rollout: none is cut"
    ));

    cluster.kubectl(&[
        "rollout",
        "restart",
        "daemonset/tether",
        "--namespace",
        NAMESPACE,
    ])?;
    cluster.kubectl(&[
        "rollout",
        "status",
        "daemonset/tether",
        "--namespace",
        NAMESPACE,
        "--timeout",
        "120s",
    ])?;
    cluster.ready(NAMESPACE, LABEL, 2)?;
    crowd.hold(&before)?;
    say("rollout restart: none is cut");

    let pod = cluster
        .ready(NAMESPACE, LABEL, 2)?
        .into_iter()
        .find(|pod| pod["spec"]["nodeName"] == NODE)
        .context("a pod on the node of the VIP")?;
    let name = name_of(&pod)?;
    cluster.kubectl(&["delete", "pod", &name, "--namespace", NAMESPACE])?;
    crowd.hold(&before)?;
    let pods = cluster.ready(NAMESPACE, LABEL, 2)?;
    crowd.hold(&before)?;
    hold_last_words(&cluster, &pods)?;
    say(
        "deletion of the pod on the VIP's node: none is cut, and every pod could say how things were before it ended",
    );

    // Still a service, and not only old connections.
    let newcomers = Crowd::open(&cluster)?.whole()?;
    ensure!(
        !newcomers.open.contains_key(&gone),
        "{gone} is out of the configuration and has newcomers: {:?}",
        newcomers.open
    );
    say(&format!(
        "{CONNECTIONS} newcomers are served: {:?}",
        newcomers.open
    ));
    drop(tidied);
    Ok(())
}

fn name_of(pod: &Value) -> Result<String> {
    let name = pod["metadata"]["name"].as_str();
    name.map(str::to_owned).context("a pod's name")
}

/// Has the cluster run what is shipped, with these pods for backends.
fn apply(plan: &Plan, work: &Path, cluster: &Cluster, chat: &[Value]) -> Result<()> {
    overlay(plan, work, chat)?;
    let overlay = work.join("overlay");
    cluster
        .kubectl(&["apply", "--kustomize", &overlay.to_string_lossy()])
        .map(drop)
}

/// What the daemon in each pod says of itself, by the pod's name.
fn statuses(cluster: &Cluster) -> Result<BTreeMap<String, Value>> {
    let of = |pod: &Value| -> Result<(String, Value)> {
        let name = name_of(pod)?;
        let status = ["--", "/tether", "status", "--json"];
        let exec = ["exec", "--namespace", NAMESPACE, name.as_str()];
        let command = [&exec[..], &status[..]].concat();
        let text = cluster.kubectl(&command)?;
        let status = serde_json::from_str(&text).with_context(|| text.clone())?;
        Ok((name, status))
    };
    let pods = cluster.ready(NAMESPACE, LABEL, 2)?;
    pods.iter().map(of).collect()
}

/// Takes one pod of `chat` out of the ConfigMap, and waits until that is in force in the pods that there are, which stay. Gives its name.
fn take_one_out(plan: &Plan, work: &Path, cluster: &Cluster, chat: &[Value]) -> Result<String> {
    let (gone, kept) = chat.split_last().context("a pod")?;
    let gone = name_of(gone)?;
    let before = statuses(cluster)?;
    apply(plan, work, cluster, kept)?;
    let is_out = |status: &Value| {
        let services = status["services"].as_array().into_iter().flatten();
        let mut backends =
            services.flat_map(|service| service["backends"].as_array().into_iter().flatten());
        backends.all(|backend| backend["name"] != *gone || backend["removed"] == true)
    };
    let is_in_force = |before: &Value, now: &Value| {
        let [was, is] = [before, now].map(|status| &status["generation"]);
        // One that was started anew counts from the beginning.
        now["uptime_s"].as_u64() >= before["uptime_s"].as_u64()
            && is["accepted"].as_u64() > was["accepted"].as_u64()
            && is["applied"] == is["accepted"]
            && is_out(now)
    };
    wait::until_seen(
        "the changed ConfigMap is in force in the pods that were there",
        CONFIGURED_WITHIN,
        || statuses(cluster),
        |now| {
            now.keys().eq(before.keys())
                && now
                    .iter()
                    .all(|(pod, status)| is_in_force(&before[pod], status))
        },
    )?;
    Ok(gone)
}

/// The bits of capabilities that the manifest names (include/uapi/linux/capability.h).
fn bits_of(capabilities: &[Value]) -> Result<u64> {
    let mut bits = 0;
    for name in capabilities {
        bits |= match name.as_str().unwrap_or_default() {
            "NET_ADMIN" => 1 << 12,
            "NET_RAW" => 1 << 13,
            "PERFMON" => 1 << 38,
            "BPF" => 1 << 39,
            _ => bail!("the manifest asks for {name}, which this test does not know"),
        };
    }
    Ok(bits)
}

/// That the daemons have the capabilities that the manifest adds, and could not get others.
fn hold_capabilities(cluster: &Cluster) -> Result<()> {
    let sets = cluster.get(&["daemonsets", "--namespace", NAMESPACE])?;
    let set = sets.first().context("a DaemonSet")?;
    let container = &set["spec"]["template"]["spec"]["containers"][0];
    let capabilities = &container["securityContext"]["capabilities"];
    ensure!(
        capabilities["drop"] == serde_json::json!(["ALL"]),
        "{capabilities}"
    );
    let wanted = bits_of(capabilities["add"].as_array().context("capabilities")?)?;
    for node in NODES {
        // A process may end while it is read.
        let text = cluster.run(node, &["sh", "-c", "cat /proc/[0-9]*/status; true"])?;
        let daemons: Vec<_> = text
            .split("Name:\t")
            .filter(|process| process.lines().next() == Some("tether"))
            .collect();
        ensure!(!daemons.is_empty(), "no daemon runs on {node}");
        for daemon in daemons {
            for kind in ["CapPrm", "CapEff", "CapBnd"] {
                let found = daemon.lines().find_map(|line| {
                    let value = line.strip_prefix(kind)?.strip_prefix(":\t")?;
                    u64::from_str_radix(value, 16).ok()
                });
                let found = found.with_context(|| format!("{kind} in {daemon}"))?;
                ensure!(
                    found == wanted,
                    "{kind} of the daemon on {node} is {found:#x}, and the manifest's is {wanted:#x}"
                );
            }
        }
    }
    Ok(())
}

/// That `preStop` has failed in none of the pods that were before these.
fn hold_last_words(cluster: &Cluster, pods: &[Value]) -> Result<()> {
    // Kubelet tells in order: when the start of its present pod is told, so is all that there was to tell of the one before.
    let names = pods.iter().map(name_of).collect::<Result<Vec<_>>>()?;
    let events = wait::until_seen(
        "the start of each pod is told",
        TOLD_WITHIN,
        || cluster.get(&["events", "--namespace", NAMESPACE]),
        |events| {
            names.iter().all(|name| {
                events.iter().any(|event| {
                    event["reason"] == "Started" && event["involvedObject"]["name"] == **name
                })
            })
        },
    )?;
    let failed = events
        .iter()
        .find(|event| event["reason"] == "FailedPreStopHook");
    ensure!(
        failed.is_none(),
        "a pod could not tell its state before it ended: {failed:?}"
    );
    Ok(())
}

struct Tidied<'a>(&'a Path);

impl Drop for Tidied<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.0);
    }
}

/// What an operator's network does: the VIP is routed to a node, and the node has a SNAT address. And what hardware does: finished checksums, and
/// ports that take what XDP transmits, as long as the result lives.
fn prepare(cluster: &Cluster) -> Result<Helper> {
    cluster.run("lab", &["ip", "route", "add", VIP, "via", NODE_ADDRESS])?;
    cluster.run(
        NODE,
        &["ip", "address", "add", &format!("{SNAT}/32"), "dev", "eth0"],
    )?;
    for (place, interface) in [
        ("lab", "br0"),
        ("lab", "n1"),
        ("lab", "n2"),
        ("n1", "eth0"),
        ("n2", "eth0"),
    ] {
        cluster.run(
            place,
            &[
                "ethtool", "-K", interface, "tx", "off", "tso", "off", "gso", "off",
            ],
        )?;
    }
    for node in NODES {
        cluster.run(
            node,
            &["sysctl", "-q", "-w", "net.ipv4.conf.eth0.forwarding=1"],
        )?;
    }
    // On the bridge each node's port has the node's name.
    Helper::start(cluster, &[&["pass"], &NODES[..]].concat())
}

/// Two pods on each node that takes part. They run this program, with the machine's own libraries, and are privileged since its threads enter namespaces.
fn pods(plan: &Plan, program: &Path) -> Result<String> {
    let directory = program.parent().context("the program is in a directory")?;
    let nodes = if plan.only_remote {
        &NODES[1..]
    } else {
        &NODES[..]
    };
    let mut text = String::new();
    for node in nodes {
        for number in ["a", "b"] {
            let name = format!("chat-{node}-{number}");
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{app: chat}}\nspec:\n  nodeName: {node}\n  terminationGracePeriodSeconds: 0\n  containers:\n  - name: chat\n    image: localhost/tether:{}\n    imagePullPolicy: Never\n    securityContext: {{privileged: true}}\n    command: [{:?}, serve, --name, {name}]\n    readinessProbe: {{tcpSocket: {{port: {PORT}}}, periodSeconds: 1}}\n    volumeMounts:\n",
                plan.version,
                Path::new("/program").join(program.file_name().unwrap_or_default()),
            );
            let mounts = [
                ("program", directory),
                ("lib", Path::new("/usr/lib")),
                ("lib64", Path::new("/usr/lib64")),
            ];
            for (name, _) in mounts {
                let _ = writeln!(
                    text,
                    "    - {{name: {name}, mountPath: /{name}, readOnly: true}}"
                );
            }
            text += "  volumes:\n";
            for (name, path) in mounts {
                let _ = writeln!(text, "  - {{name: {name}, hostPath: {{path: {:?}}}}}", path);
            }
        }
    }
    Ok(text)
}

/// An overlay over what is shipped, as an operator has one: an image and a configuration.
fn overlay(plan: &Plan, work: &Path, chat: &[Value]) -> Result<()> {
    let base = work.join("base");
    std::fs::create_dir_all(&base)?;
    for entry in std::fs::read_dir(&plan.manifests)? {
        let path = entry?.path();
        std::fs::copy(&path, base.join(path.file_name().unwrap_or_default()))?;
    }
    // `bases` and not `resources`: kubectl up to 1.20 knows directories by that name alone, and later ones by both.
    let overlay = work.join("overlay");
    std::fs::create_dir_all(&overlay)?;
    std::fs::write(
        overlay.join("kustomization.yaml"),
        format!(
            "bases:\n- ../base\nnamespace: {NAMESPACE}\nimages:\n- name: tether\n  newName: localhost/tether\n  newTag: {}\ngeneratorOptions:\n  disableNameSuffixHash: true\nconfigMapGenerator:\n- name: tether\n  behavior: replace\n  files:\n  - tether.toml\n",
            plan.version
        ),
    )?;
    let shipped = std::fs::read_to_string(plan.manifests.join("tether.toml"))?;
    let mut text = format!(
        "{shipped}\n[[service]]\nname = \"chat\"\nvip = \"{VIP}\"\nport = {PORT}\nmode = \"nat\"\nsnat = [\"{SNAT}\"]\n[service.health]\ntype = \"tcp\"\ninterval = \"1s\"\ntimeout = \"500ms\"\n"
    );
    for pod in chat {
        let name = name_of(pod)?;
        let address = pod["status"]["podIP"].as_str().context("a pod's address")?;
        let _ = write!(
            text,
            "\n[[service.backend]]\nname = \"{name}\"\naddress = \"{address}\"\n"
        );
    }
    std::fs::write(overlay.join("tether.toml"), text)?;
    Ok(())
}

/// Connections from outside, held by a process in the cluster's network.
struct Crowd(Helper);

impl Crowd {
    fn open(cluster: &Cluster) -> Result<Self> {
        let target = format!("{VIP}:{PORT}");
        let count = CONNECTIONS.to_string();
        let arguments = [
            "hold", "--source", CLIENT, "--target", &target, "--count", &count,
        ];
        Helper::start(cluster, &arguments).map(Self)
    }

    fn report(&mut self) -> Result<Report> {
        let line = self.0.ask("report")?;
        serde_json::from_str(&line).with_context(|| line.clone())
    }

    /// That all connections live, and answer.
    fn whole(&mut self) -> Result<Report> {
        let now = self.report()?;
        ensure!(
            now.broken.is_empty(),
            "{} of {CONNECTIONS} are cut: {:?}",
            now.broken.len(),
            now.broken.first()
        );
        Ok(now)
    }

    /// The same, and that they are on the backends they had.
    fn hold(&mut self, before: &Report) -> Result<()> {
        let now = self.whole()?;
        ensure!(
            now.open == before.open,
            "{:?} became {:?}",
            before.open,
            now.open
        );
        ensure!(now.echoes > before.echoes, "nothing was said meanwhile");
        Ok(())
    }
}
