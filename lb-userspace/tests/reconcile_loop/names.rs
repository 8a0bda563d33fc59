//! Backends by name.

use std::{collections::BTreeMap, path::Path, time::Duration};

use lb_common::backend::Serving;
use lb_userspace::{config, desired::Edit, dns, model::Health};

use super::{B1, Daemon, Machine, backend, serves};

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_stops_resolving_keeps_its_addresses_and_an_address_that_leaves_is_drained() {
    let machine = Machine::new("dns");
    let config = || {
        let mut config = machine.config(&[B1]);
        let text = "interfaces = [\"eth0\"]\n[[service]]\nname = \"chat\"\nvip = \"10.0.0.1\"\nport = 80\nmode = \"ipip\"\n\
                    [[service.dns]]\nname = \"pods\"\nquery = \"pods.example.\"\ntype = \"srv\"\nmin_ttl = \"2s\"\n";
        let named = config::parse(Path::new("loop.toml"), text).unwrap().config;
        config.services[0].dns = named.services[0].dns.clone();
        // For 65 backends, which are more than the maps hold.
        config.services[0].table_size = 4_177;
        config
    };
    let daemon = Daemon::start(&machine.maps, config());
    let question = dns::Question {
        name: "pods.example.".into(),
        kind: dns::Kind::Srv,
    };
    let wanted = dns::Wanted {
        bounds: dns::Bounds {
            min: Duration::from_secs(2),
            max: Duration::from_secs(300),
        },
        since: 0,
    };
    daemon
        .until("the question", |_| {
            *daemon.questions.borrow() == BTreeMap::from([(question.clone(), wanted)])
        })
        .await;
    let answer = async |daemon: &Daemon, result: Result<&[u8], &str>| {
        let found = |&last: &u8| dns::Found {
            address: [10, 0, 1, last].into(),
            port: Some(80),
            weight: Some(50),
        };
        let result = result
            .map(|all| all.iter().map(found).collect())
            .map_err(str::to_owned);
        let question = question.clone();
        let report = dns::Report { question, result };
        daemon.answers.send(report).await.unwrap();
    };
    // Nothing is applied before the name was asked once: its backends are not taken for removed.
    for address in ["10.0.1.11", "10.0.1.20", "10.0.1.21"] {
        daemon.reachable(address).await;
    }
    daemon.verdict("b1", "10.0.1.11:80", Health::Up).await;
    assert_eq!(daemon.status.borrow().generation.resolved, 0);
    // An address that cannot be a backend is told, and takes nothing from the others.
    answer(&daemon, Ok(&[20, 21, 11])).await;
    let serve = async |daemon: &Daemon| {
        daemon
            .until("they are watched", |_| daemon.targets.borrow().len() >= 3)
            .await;
        for (name, address) in [
            ("b1", "10.0.1.11:80"),
            ("pods-10.0.1.20", "10.0.1.20:80"),
            ("pods-10.0.1.21", "10.0.1.21:80"),
        ] {
            daemon.verdict(name, address, Health::Up).await;
        }
        daemon
            .until("both serve", |status| {
                serves(status, "pods-10.0.1.20", Serving::New)
                    && serves(status, "pods-10.0.1.21", Serving::New)
            })
            .await
    };
    let status = serve(&daemon).await;
    let [source] = &status.dns[..] else {
        panic!("{:?}", status.dns)
    };
    assert_eq!((source.addresses.len(), source.failures), (3, 0));
    assert!(
        source.ignored[0].contains("10.0.1.11 is backend \"chat/b1\"'s already"),
        "{source:?}"
    );
    let pod = backend(&status, "pods-10.0.1.20").unwrap();
    assert_eq!((pod.weight, pod.port), (50, 80));

    answer(&daemon, Err("request timed out")).await;
    answer(&daemon, Err("request timed out")).await;
    let status = daemon
        .until("the failures", |status| status.dns[0].failures == 2)
        .await;
    assert_eq!(status.dns[0].error.as_deref(), Some("request timed out"));
    assert!(serves(&status, "pods-10.0.1.20", Serving::New));
    // What is known outlives the daemon, though the name still does not resolve.
    daemon.stop().await;
    let daemon = Daemon::start(&machine.maps, config());
    for address in ["10.0.1.11", "10.0.1.20", "10.0.1.21"] {
        daemon.reachable(address).await;
    }
    answer(&daemon, Err("request timed out")).await;
    serve(&daemon).await;

    // Asked by another name, it has its addresses until that is answered.
    let mut renamed = config();
    renamed.services[0].dns[0].question.name = "other.example.".into();
    daemon.reload(renamed).await.unwrap();
    let status = daemon
        .until("the other name", |status| {
            status.dns[0].query == "other.example."
                && status.generation.applied == status.generation.accepted
        })
        .await;
    assert!(serves(&status, "pods-10.0.1.20", Serving::New));
    daemon.reload(config()).await.unwrap();

    // A drain and a weight are a backend's, wherever it comes from.
    daemon
        .edit("pods-10.0.1.21", Edit::Weight(10))
        .await
        .unwrap();
    answer(&daemon, Ok(&[21])).await;
    let status = daemon
        .until("one left", |status| {
            !serves(status, "pods-10.0.1.20", Serving::New)
                && serves(status, "pods-10.0.1.21", Serving::New)
                && status.generation.applied == status.generation.accepted
        })
        .await;
    assert_eq!(status.dns[0].error, None);
    assert_eq!(backend(&status, "pods-10.0.1.21").unwrap().weight, 10);
    assert!(backend(&status, "pods-10.0.1.20").is_none_or(|gone| gone.removed));
    // The maps have room for 63 backends: more than that is refused as a whole.
    let many: Vec<u8> = (100..164).collect();
    answer(&daemon, Ok(&many)).await;
    let status = daemon
        .until("too many", |status| status.dns[0].error.is_some())
        .await;
    assert!(serves(&status, "pods-10.0.1.21", Serving::New));
    assert_eq!(status.dns[0].addresses.len(), 1);
    // The source is gone, and so are its backends.
    daemon.reload(machine.config(&[B1])).await.unwrap();
    let status = daemon
        .until("no source", |status| {
            status.dns.is_empty() && !serves(status, "pods-10.0.1.21", Serving::New)
        })
        .await;
    assert!(serves(&status, "b1", Serving::New));
    assert!(daemon.questions.borrow().is_empty());
    daemon.stop().await;
}
