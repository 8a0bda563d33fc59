//! What a reload would do.

use std::{net::Ipv4Addr, sync::Arc};

use lb_common::backend::Serving;
use lb_userspace::{
    model::Health,
    preview::{BackendChange, ServiceChange, ServicePreview},
};

use super::{B1, B2, Machine, backend, counted, running, serves, slots_of};

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
