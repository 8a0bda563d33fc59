//! Changes that were made at runtime, beside the file.

use std::net::Ipv4Addr;

use lb_common::backend::Serving;
use lb_userspace::{
    config::BackendSpec,
    desired::{Edit, Refusal},
    model::{Admin, Health},
    status::{DifferenceKind, Status},
};

use super::{B1, B2, Daemon, Machine, backend, running, serves, slots_of};

/// What the status says is otherwise than in the file: backend, in what, how it is, how the file has it.
fn differences(status: &Status) -> Vec<(&str, DifferenceKind, Option<&str>, Option<&str>)> {
    let all = status.config.differences.iter();
    all.map(|one| {
        let (now, file) = (one.now.as_deref(), one.file.as_deref());
        (one.backend.as_str(), one.change, now, file)
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_made_at_runtime_hold_over_restarts_and_reloads_and_are_shown_beside_the_file() {
    let machine = Machine::new("edits");
    let mut daemon = running(&machine).await;
    let b3 = BackendSpec {
        address: [10, 0, 1, 13].into(),
        port: None,
        weight: 100,
        admin: Admin::Active,
    };
    daemon.edit("b3", Edit::Put(b3.clone())).await.unwrap();
    daemon.edit("b1", Edit::Weight(25)).await.unwrap();
    daemon.edit("b2", Edit::Remove).await.unwrap();
    daemon.reachable("10.0.1.13").await;
    daemon.verdict("b3", "10.0.1.13:80", Health::Up).await;
    let expected = [
        (
            "b1",
            DifferenceKind::Weight,
            Some("weight 25"),
            Some("weight 100"),
        ),
        (
            "b2",
            DifferenceKind::Removed,
            None,
            Some("10.0.1.12:80, weight 100"),
        ),
        (
            "b3",
            DifferenceKind::Added,
            Some("10.0.1.13:80, weight 100"),
            None,
        ),
    ];
    let in_force = |status: &Status| {
        serves(status, "b3", Serving::New)
            && !serves(status, "b2", Serving::New)
            && backend(status, "b1").is_some_and(|b1| b1.weight == 25)
            && status.generation.applied == status.generation.accepted
    };
    let status = daemon.until("the edits", |status| in_force(status)).await;
    assert_eq!(differences(&status), expected);
    // b1 has a fifth of what both have.
    let slots = |id| slots_of(&machine.maps, id);
    let (of_b1, of_b2, of_b3) = (slots(1), slots(2), slots(3));
    assert_eq!((of_b1 + of_b3, of_b2), (1_009, 0));
    assert!((180..224).contains(&of_b1), "{of_b1}");

    // A file that says nothing of them changes nothing of them; nor does a restart, though nobody is asked before.
    daemon.reload(machine.config(&[B1, B2])).await.unwrap();
    daemon.stop().await;
    daemon = Daemon::start(&machine.maps, machine.config(&[B1, B2]));
    let status = daemon
        .until("first status", |status| !status.services.is_empty())
        .await;
    assert_eq!(differences(&status), expected);
    for address in ["10.0.1.11", "10.0.1.12", "10.0.1.13"] {
        daemon.reachable(address).await;
    }
    for (name, address) in [("b1", "10.0.1.11:80"), ("b3", "10.0.1.13:80")] {
        daemon.verdict(name, address, Health::Up).await;
    }
    daemon
        .until("the edits again", |status| in_force(status))
        .await;
    assert_eq!(
        (slots(1), slots(3)),
        (of_b1, of_b3),
        "the table is the same"
    );

    // What is wrong changes nothing, and is not remembered.
    let twice = daemon.edit("b4", Edit::Put(b3)).await.unwrap_err();
    assert!(matches!(twice, Refusal::Invalid(_)), "{twice}");
    let absent = daemon.edit("b2", Edit::Weight(1)).await.unwrap_err();
    assert!(matches!(absent, Refusal::Absent(_)), "{absent}");
    // What the file comes to say itself is no difference any more, and what it no longer has cannot be changed.
    daemon
        .reload(machine.config(&[B1, ("b3", Ipv4Addr::new(10, 0, 1, 13))]))
        .await
        .unwrap();
    let status = daemon
        .until("the file has b3", |status| differences(status).len() == 1)
        .await;
    assert_eq!(differences(&status), expected[..1]);
    daemon.edit("b1", Edit::Revert).await.unwrap();
    let status = daemon
        .until("all as in the file", |status| {
            differences(status).is_empty()
        })
        .await;
    assert_eq!(backend(&status, "b1").unwrap().weight, 100);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_answered_once_it_is_in_force() {
    let machine = Machine::new("answered");
    let daemon = running(&machine).await;
    for _ in 0..5 {
        daemon.drain("b2").await.unwrap();
        assert_eq!(slots_of(&machine.maps, 2), 0);
        daemon.undrain("b2").await.unwrap();
        assert!(slots_of(&machine.maps, 2) > 0);
        daemon.edit("b2", Edit::Remove).await.unwrap();
        assert_eq!(slots_of(&machine.maps, 2), 0);
        daemon.edit("b2", Edit::Revert).await.unwrap();
        assert!(slots_of(&machine.maps, 2) > 0);
        daemon.reload(machine.config(&[B1])).await.unwrap();
        assert_eq!(slots_of(&machine.maps, 2), 0);
        daemon.reload(machine.config(&[B1, B2])).await.unwrap();
        assert!(slots_of(&machine.maps, 2) > 0);
    }
    daemon.stop().await;
}
