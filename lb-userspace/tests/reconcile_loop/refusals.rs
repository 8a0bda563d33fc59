//! What is refused, and changes nothing.

use lb_common::backend::Serving;
use lb_userspace::reconcile::Command;

use super::{B1, Daemon, Machine, PATIENCE, running, serves};

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_configuration_leaves_all_as_it_is_and_is_shown() {
    let machine = Machine::new("refused");
    let daemon = running(&machine).await;
    let mut other = machine.config(&[B1]);
    other.services[0].table_size = 9_973;
    let error = daemon.reload(other).await.unwrap_err();
    assert!(
        error.contains("table_slots = 10000, 9946 too few"),
        "{error}"
    );
    let mut other = machine.config(&[B1]);
    other.interfaces = vec!["eth1".to_owned()];
    let error = daemon.reload(other).await.unwrap_err();
    assert!(
        error.contains("interfaces takes effect only when the daemon starts"),
        "{error}"
    );
    let mut other = machine.config(&[B1]);
    other.checks_at_once += 1;
    let error = daemon.reload(other).await.unwrap_err();
    assert!(
        error.contains("checks in [limits] takes effect only when the daemon starts"),
        "{error}"
    );
    let error = "loop.toml:1:1: …".to_owned();
    daemon
        .commands
        .send(Command::RejectedConfig {
            error: error.clone(),
        })
        .await
        .unwrap();
    let status = daemon
        .until("shown", |status| {
            status.config.error.as_ref() == Some(&error)
        })
        .await;
    assert!(serves(&status, "b2", Serving::New));
    assert_eq!(status.generation.accepted, 1);
    daemon.reload(machine.config(&[B1])).await.unwrap();
    daemon
        .until("mended", |status| status.config.error.is_none())
        .await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn maps_that_are_too_small_are_refused() {
    let machine = Machine::new("size");
    let mut config = machine.config(&[B1]);
    config.limits.table_slots = 20_000;
    config.services[0].table_size = 9_973;
    let daemon = Daemon::start(&machine.maps, config);
    let error = tokio::time::timeout(PATIENCE, daemon.task)
        .await
        .unwrap()
        .unwrap()
        .unwrap_err()
        .to_string();
    for part in [
        "loop.toml:7:15: limits: ",
        "table_slots = 10000, 9946 too few",
        "table_slots = 19946 or more",
        "`tether cleanup`",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
}
