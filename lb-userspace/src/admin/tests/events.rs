//! Changes, as they are followed.

use super::*;
use crate::{
    history::{Event, changes::Level},
    model::Health,
};

/// Follows the daemon's changes.
fn follow(daemon: &Daemon, asked: AskedEvents) -> mpsc::UnboundedReceiver<Event> {
    let (sender, heard) = mpsc::unbounded_channel();
    let client = daemon.client.clone();
    tokio::spawn(async move {
        drop(
            client
                .events(asked, |event| sender.send(event).is_ok())
                .await,
        );
    });
    heard
}

/// Has the daemon hear of a backend whose health is this.
fn health(daemon: &Daemon, health: Health) {
    let mut status = shown::a_status();
    status.services[0].backends[0].health = health;
    daemon.history.heard(&Arc::new(status), 1_800_000_100);
}

#[tokio::test]
async fn who_follows_hears_what_was_and_what_comes() {
    let daemon = Daemon::start_for("follow", Readers::default(), shown::a_status()).await;
    let everything = AskedEvents {
        follow: true,
        ..AskedEvents::default()
    };
    let mut all = follow(&daemon, everything);
    let mut bad = follow(
        &daemon,
        AskedEvents {
            level: Some(Level::Bad),
            ..everything
        },
    );
    let first = all.recv().await.unwrap();
    assert_eq!((first.number, first.change.subject.as_str()), (0, "daemon"));
    health(&daemon, Health::Down);
    let down = all.recv().await.unwrap();
    assert_eq!((down.number, down.at), (1, 1_800_000_100));
    assert_eq!(
        (down.change.level, down.change.subject.as_str()),
        (Level::Bad, "chat/b1")
    );
    assert_eq!(bad.recv().await.unwrap(), down);
    health(&daemon, Health::Up);
    assert_eq!(all.recv().await.unwrap().change.text, "up");
    health(&daemon, Health::Down);
    // What is less grave was left out.
    assert_eq!(bad.recv().await.unwrap().number, 3);

    let mut past = Vec::new();
    let asked = AskedEvents {
        limit: Some(2),
        ..AskedEvents::default()
    };
    daemon
        .client
        .events(asked, |event| {
            past.push(event.number);
            true
        })
        .await
        .unwrap();
    assert_eq!(past, [2, 3]);
}

/// Silence is not taken for an end, on either side.
#[tokio::test]
async fn a_follower_waits_through_silence() {
    let daemon = Daemon::start_for("silence", Readers::default(), shown::a_status()).await;
    let asked = AskedEvents {
        follow: true,
        limit: Some(0),
        level: None,
    };
    let mut heard = follow(&daemon, asked);
    // Two of the daemon's empty lines.
    let silent = tokio::time::timeout(
        2 * crate::admin::events::BEAT + Duration::from_secs(1),
        heard.recv(),
    );
    assert!(silent.await.is_err(), "it ended, or told of a change");
    health(&daemon, Health::Down);
    assert_eq!(heard.recv().await.unwrap().number, 1);
}

/// Whoever follows has a place for as long as it likes: those who come when all are taken are told so, and nobody else is kept out.
#[tokio::test]
async fn followers_are_bounded_and_leave_room_for_others() {
    let daemon = Daemon::start_for("followers", Readers::default(), shown::a_status()).await;
    let asked = AskedEvents {
        follow: true,
        ..AskedEvents::default()
    };
    let mut all = Vec::new();
    for _ in 0..crate::admin::events::FOLLOWERS {
        let mut heard = follow(&daemon, asked);
        heard.recv().await.unwrap();
        all.push(heard);
    }
    let refused = daemon.client.events(asked, |_| true).await.unwrap_err();
    assert!(
        matches!(&refused, client::Error::Later(text) if text.contains("16 follow")),
        "{refused}"
    );
    // What has an end needs no place.
    let past = AskedEvents::default();
    daemon.client.events(past, |_| true).await.unwrap();
    daemon.client.status().await.unwrap();
    drop(all);
    // One that is gone is noticed when it is told of something.
    let one_more = async {
        loop {
            health(&daemon, Health::Down);
            health(&daemon, Health::Up);
            if daemon.client.events(asked, |_| false).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), one_more)
        .await
        .expect("places come back");
}
