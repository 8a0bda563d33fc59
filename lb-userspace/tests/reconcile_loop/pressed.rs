//! A loop that has more to do than it has time for.

use std::{
    sync::Once,
    thread::sleep,
    time::{Duration, Instant},
};

use lb_common::{backend::Serving, share::Share};
use lb_userspace::{desired::Edit, model::Health};
use tracing_subscriber::layer::{Context, SubscriberExt as _};

use super::{Machine, running, serves};

/// The time in which clients of a dead backend are told, in a hundred steps.
const RESET_OVER: Duration = Duration::from_secs(10);
/// Longer than from one step to the next.
const APPLYING: Duration = Duration::from_millis(250);

/// Has each step of what is closed at a pace take long to be applied, as where there are thousands of backends to be looked at.
struct Pressed;

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Pressed {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        struct IsStep(bool);
        impl tracing::field::Visit for IsStep {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0 |=
                    field.name() == "operation" && format!("{value:?}").ends_with("parts closed");
            }
        }
        let mut is_step = IsStep(false);
        event.record(&mut is_step);
        if is_step.0 {
            sleep(APPLYING);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_closes_flows_at_a_pace_hears_what_else_happens() {
    static PRESSED: Once = Once::new();
    PRESSED.call_once(|| {
        let subscriber = tracing_subscriber::registry().with(Pressed);
        tracing::subscriber::set_global_default(subscriber).unwrap();
    });
    let machine = Machine::new("pressed");
    let daemon = running(&machine).await;
    let mut config = machine.config(&[super::B1, super::B2]);
    config.services[0].reset_over = RESET_OVER;
    daemon.reload(config).await.unwrap();
    daemon.verdict("b2", "10.0.1.12:80", Health::Down).await;
    daemon
        .until("b2 is dead", |status| serves(status, "b2", Serving::None))
        .await;

    let closed = || machine.maps.state(2).share();
    daemon.edit("b1", Edit::Weight(7)).await.unwrap();
    assert!(
        closed().is_some_and(|share| share < Share::ALL),
        "the change had to wait until all were told: {:?}",
        closed()
    );
    let asked_to_end = Instant::now();
    daemon.stop().await;
    assert!(
        closed().is_some_and(|share| share < Share::ALL),
        "it ended only after {:?}, when all were told",
        asked_to_end.elapsed()
    );
}
