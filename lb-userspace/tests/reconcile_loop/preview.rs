//! What a reload would do.

use std::{net::Ipv4Addr, path::Path, sync::Arc};

use lb_common::{backend::Serving, net::IpVersion};
use lb_userspace::{
    config, dns,
    guard::{Guard, Lists},
    model::{Admin, Health},
    preview::{BackendChange, GuardPreview, Preview, ServiceChange, ServicePreview},
};

use super::{B1, B2, Daemon, Machine, backend, counted, name, running, serves, slots_of};

/// Backends of a previewed service: name, change, share of the table before and after in slots of 1,009, and active flows.
fn previewed(service: &ServicePreview) -> Vec<(&str, BackendChange, u32, u32, u64)> {
    let slots = |share: Option<f64>| (share.unwrap_or(0.0) * 1_009.0).round() as u32;
    let all = service.backends.iter();
    all.map(|one| {
        let (before, after) = (slots(one.share.before), slots(one.share.after));
        (
            one.name.as_str(),
            one.change,
            before,
            after,
            one.flows.active,
        )
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_says_what_a_reload_then_does_and_changes_nothing_itself() {
    const B3: (&str, Ipv4Addr) = ("b3", Ipv4Addr::new(10, 0, 1, 13));
    let machine = Machine::new("preview");
    let daemon = running(&machine).await;
    daemon.drain("b1").await.unwrap();
    daemon.undrain("b1").await.unwrap();
    daemon
        .census
        .send_replace(Arc::new(counted(1, &[((2, 0), 5)])));
    let before = daemon
        .until("counted", |status| {
            backend(status, "b2").is_some_and(|b2| b2.flows.active == 5)
        })
        .await;
    let read = || {
        let slots: Vec<u32> = (0..10_000)
            .map(|at| machine.maps.tables.get(at).current())
            .collect();
        let states: Vec<u64> = (0..64).map(|id| machine.maps.state(id).0).collect();
        (slots, states)
    };
    let held = read();

    let same = daemon.preview(machine.config(&[B1, B2])).await.unwrap();
    assert!(same.is_empty() && same.unchanged == 1, "{same:?}");

    let mut guarded = machine.config(&[B1, B2]);
    let deny = vec!["192.0.2.0/24".parse().unwrap()];
    let lists = Lists::new(Vec::new(), deny);
    guarded.services[0].guard = Some(Guard::new(IpVersion::V4, lists, None));
    let preview = daemon.preview(guarded).await.unwrap();
    let [service] = &preview.services[..] else {
        panic!("{preview:?}")
    };
    let expected = GuardPreview {
        before: None,
        after: Some("deny 1".to_owned()),
        added: 1,
        removed: 0,
    };
    assert_eq!(
        (service.change, service.moved),
        (ServiceChange::Changed, 0.0)
    );
    assert_eq!(service.guard.as_ref(), Some(&expected));

    let preview = daemon.preview(machine.config(&[B1, B3])).await.unwrap();
    assert_eq!(
        (preview.generation, preview.unchanged, preview.drained_flows),
        (3, 0, 5)
    );
    let [service] = &preview.services[..] else {
        panic!("{preview:?}")
    };
    assert_eq!(service.change, ServiceChange::Changed);
    let foreseen = previewed(service);
    let [
        (b1, kept, b1_before, b1_after, _),
        (b3, added, 0, b3_after, 0),
        (b2, removed, b2_before, 0, 5),
    ] = foreseen[..]
    else {
        panic!("{foreseen:?}")
    };
    assert_eq!((b1, b2, b3), ("b1", "b2", "b3"));
    use BackendChange::{Added, Kept, Removed};
    assert_eq!((kept, added, removed), (Kept, Added, Removed));
    assert_eq!(
        (slots_of(&machine.maps, 1), slots_of(&machine.maps, 2)),
        (b1_before, b2_before)
    );

    // What needs a restart, or more room than there is, is said as a reload would say it.
    let mut other = machine.config(&[B1]);
    other.interfaces = vec!["eth1".into()];
    let error = daemon.preview(other).await.unwrap_err();
    assert!(
        error.contains("interfaces takes effect only when the daemon starts"),
        "{error}"
    );
    let status = daemon.status.borrow().clone();
    assert_eq!(status.generation, before.generation);
    assert_eq!(
        status.config, before.config,
        "a preview is no reload that was refused"
    );
    assert!(read() == held, "the maps are as they were");

    // And so it comes.
    let owners = |slots: &[u32]| {
        let table = lb_common::maglev::TableRef(machine.maps.services.get(1).table);
        slots[table.offset() as usize..][..1_009].to_vec()
    };
    let was = owners(&held.0);
    daemon.reload(machine.config(&[B1, B3])).await.unwrap();
    daemon.reachable("10.0.1.13").await;
    daemon.verdict("b3", "10.0.1.13:80", Health::Up).await;
    daemon
        .until("b3 serves", |status| {
            serves(status, "b3", Serving::New)
                && status.generation.applied == status.generation.accepted
        })
        .await;
    assert_eq!(
        (slots_of(&machine.maps, 1), slots_of(&machine.maps, 3)),
        (b1_after, b3_after)
    );
    let is = owners(&read().0);
    let moved = was.iter().zip(&is).filter(|(was, is)| was != is).count();
    assert_eq!((service.moved * 1_009.0).round() as usize, moved);
    daemon.stop().await;
}

/// The one service that changes.
fn changing(preview: &Preview) -> &ServicePreview {
    let [service] = &preview.services[..] else {
        panic!("{preview:?}")
    };
    service
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_tells_of_drains_by_the_file_of_who_returns_and_of_whole_services() {
    use BackendChange::{Added, Changed, Kept, Removed, Returns};
    let machine = Machine::new("preview-services");
    let daemon = running(&machine).await;
    let flows = [((1, 0), 3), ((2, 0), 5)];
    daemon.census.send_replace(Arc::new(counted(1, &flows)));
    daemon
        .until("counted", |status| {
            let both = ["b1", "b2"].map(|name| backend(status, name).map(|one| one.flows.active));
            both == [Some(3), Some(5)]
        })
        .await;
    let (of_b1, of_b2) = (slots_of(&machine.maps, 1), slots_of(&machine.maps, 2));

    // Drained: it stays configured, and takes no new ones.
    let mut draining = machine.config(&[B1, B2]);
    draining.services[0].backends[1].admin = Admin::Draining;
    let preview = daemon.preview(draining).await.unwrap();
    assert_eq!((preview.unchanged, preview.drained_flows), (0, 5));
    let service = changing(&preview);
    assert_eq!(
        (service.change, service.fail_open),
        (ServiceChange::Changed, false)
    );
    let foreseen = [("b1", Kept, of_b1, 1_009, 3), ("b2", Changed, of_b2, 0, 5)];
    assert_eq!(previewed(service), foreseen);
    assert_eq!((service.moved * 1_009.0).round() as u32, of_b2);
    let b2 = &service.backends[1];
    assert_eq!(
        (b2.admin.before, b2.admin.after),
        (Some(Admin::Active), Some(Admin::Draining))
    );
    assert_eq!(
        (b2.serving.before, b2.serving.after),
        (Some(Serving::New), Some(Serving::ExistingOnly))
    );

    // A service that goes drains all that it has.
    let mut none = machine.config(&[B1, B2]);
    none.services.clear();
    let preview = daemon.preview(none).await.unwrap();
    assert_eq!((preview.unchanged, preview.drained_flows), (0, 8));
    let service = changing(&preview);
    assert_eq!(
        (service.name.as_str(), service.change, service.moved),
        ("chat", ServiceChange::Removed, 0.0)
    );
    let foreseen = [("b1", Removed, of_b1, 0, 3), ("b2", Removed, of_b2, 0, 5)];
    assert_eq!(previewed(service), foreseen);

    // Whoever is configured again while it has flows gets the share that it had.
    daemon.reload(machine.config(&[B1])).await.unwrap();
    daemon
        .until("b2 is removed", |status| {
            backend(status, "b2").is_some_and(|b2| b2.removed)
                && status.generation.applied == status.generation.accepted
        })
        .await;
    let preview = daemon.preview(machine.config(&[B1, B2])).await.unwrap();
    assert_eq!((preview.unchanged, preview.drained_flows), (0, 0));
    let service = changing(&preview);
    assert_eq!(service.change, ServiceChange::Changed);
    let foreseen = [("b1", Kept, 1_009, of_b1, 3), ("b2", Returns, 0, of_b2, 5)];
    assert_eq!(previewed(service), foreseen);
    let b2 = &service.backends[1];
    assert_eq!(
        (b2.admin.before, b2.admin.after),
        (None, Some(Admin::Active))
    );
    assert_eq!(
        (b2.serving.before, b2.serving.after),
        (Some(Serving::ExistingOnly), Some(Serving::New))
    );

    // A service that comes changes nothing of another, though its backend is at an address that the other has too.
    let mut more = machine.config(&[B1]);
    let mut other = more.services[0].clone();
    other.name = "other".to_owned();
    other.vip = [10, 0, 0, 2].into();
    more.services.push(other);
    let preview = daemon.preview(more).await.unwrap();
    assert_eq!((preview.unchanged, preview.drained_flows), (1, 0));
    let service = changing(&preview);
    assert_eq!(
        (service.name.as_str(), service.change, service.moved),
        ("other", ServiceChange::Added, 1.0)
    );
    assert_eq!(previewed(service), [("b1", Added, 0, 1_009, 0)]);
    daemon.stop().await;
}

/// As a reload keeps it.
#[tokio::test(flavor = "multi_thread")]
async fn a_preview_ends_no_drain_of_a_backend_that_the_dns_may_have_again() {
    const POD: &str = "pods-10.0.1.20";
    let machine = Machine::new("preview-dns");
    let named = || {
        let mut config = machine.config(&[B1]);
        let text = "interfaces = [\"eth0\"]\n[[service]]\nname = \"chat\"\nvip = \"10.0.0.1\"\nport = 80\nmode = \"ipip\"\n\
                    [[service.dns]]\nname = \"pods\"\nquery = \"pods.example.\"\n";
        let named = config::parse(Path::new("loop.toml"), text).unwrap().config;
        config.services[0].dns = named.services[0].dns.clone();
        config
    };
    let daemon = Daemon::start(&machine.maps, named());
    let answer = async |last: u8| {
        let found = dns::Found {
            address: [10, 0, 1, last].into(),
            port: None,
            weight: None,
        };
        let question = dns::Question {
            name: "pods.example.".into(),
            kind: dns::Kind::Address,
        };
        let result = Ok(vec![found]);
        let report = dns::Report { question, result };
        daemon.answers.send(report).await.unwrap();
    };
    answer(20).await;
    daemon
        .until("both are watched", |_| daemon.targets.borrow().len() == 2)
        .await;
    for (name, address) in [("b1", "10.0.1.11"), (POD, "10.0.1.20")] {
        daemon.reachable(address).await;
        let checked = format!("{address}:80");
        daemon.verdict(name, &checked, Health::Up).await;
    }
    daemon.drain(POD).await.unwrap();
    answer(21).await;
    daemon
        .until("it has left the DNS", |status| {
            backend(status, POD).is_some_and(|pod| pod.removed)
        })
        .await;
    let ended = daemon.preview(named()).await.unwrap().ended;
    assert!(ended.is_empty(), "{ended:?}");
    // That of a source which is gone does end.
    let without = daemon.preview(machine.config(&[B1])).await.unwrap();
    assert_eq!(without.ended, [name(POD)]);
    daemon.stop().await;
}
