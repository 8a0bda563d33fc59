//! The run.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
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

    overlay(plan, &work, &chat)?;
    cluster.kubectl(&[
        "apply",
        "--kustomize",
        &work.join("overlay").to_string_lossy(),
    ])?;
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

    let mut crowd = Crowd::open(&cluster)?;
    let before = crowd.whole()?;
    say(&format!(
        "{CONNECTIONS} connections are open: {:?}",
        before.open
    ));
    for pod in &chat {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        ensure!(
            before.open.contains_key(name),
            "{name} got no connection: {:?}",
            before.open
        );
    }

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
    let name = pod["metadata"]["name"]
        .as_str()
        .context("a name")?
        .to_owned();
    cluster.kubectl(&["delete", "pod", &name, "--namespace", NAMESPACE])?;
    crowd.hold(&before)?;
    cluster.ready(NAMESPACE, LABEL, 2)?;
    crowd.hold(&before)?;
    say("deletion of the pod on the VIP's node: none is cut");

    // Still a service, and not only old connections.
    let newcomers = Crowd::open(&cluster)?.whole()?;
    say(&format!(
        "{CONNECTIONS} newcomers are served: {:?}",
        newcomers.open
    ));
    drop(tidied);
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
        let name = pod["metadata"]["name"].as_str().context("a pod's name")?;
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
