//! Lists of flows, over a real socket: as they come, and with readers that do not behave.

use std::time::Duration;

use tokio::{io::AsyncWriteExt as _, net::UnixStream};

use super::*;
use crate::inventory::{FlowQuery, Sort};

async fn crowd(test: &str, flows: u32) -> Daemon {
    let status = shown::a_status();
    let maps = shown::maps_of(&status);
    shown::fill(&maps, flows);
    Daemon::start_with(test, Readers::default(), status, maps).await
}

impl Daemon {
    /// Waits until exactly so many more lists may be read.
    async fn wait_for_lists(&self, free: usize) {
        tokio::time::timeout(Duration::from_secs(5), async {
            while self.lists.free() != free {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("lists begin, and their places come back when readers are gone");
    }
}

#[tokio::test]
async fn flows_come_one_by_one_and_pages_follow_each_other() {
    let daemon = crowd("lists", 3_000).await;
    let mut clients = Vec::new();
    let end = daemon
        .client
        .flows(&FlowQuery::default(), |row| {
            clients.push(row.client);
            true
        })
        .await
        .unwrap()
        .unwrap();
    assert_eq!((end.listed, end.next), (3_000, None));
    clients.sort_unstable();

    let mut query = FlowQuery {
        sort: Some(Sort::Client),
        limit: Some(1_300),
        ..FlowQuery::default()
    };
    let mut sorted = Vec::new();
    for expected in [1_300, 1_300, 400] {
        let take = |row: crate::inventory::FlowRow| {
            sorted.push(row.client);
            true
        };
        let end = daemon.client.flows(&query, take).await.unwrap().unwrap();
        assert_eq!(end.listed, expected);
        query.after = end.next;
    }
    assert_eq!(query.after, None);
    assert_eq!(sorted, clients);
}

#[tokio::test]
async fn filters_with_any_text_are_only_text() {
    let daemon = crowd("text", 10).await;
    let query = FlowQuery {
        service: Some("chat&limit=1 ü%41".into()),
        ..FlowQuery::default()
    };
    let end = daemon.client.flows(&query, |_| true).await.unwrap();
    assert_eq!(end.unwrap().listed, 0);
    let wrong = FlowQuery {
        client: Some("10.0.0.0/99".into()),
        ..FlowQuery::default()
    };
    let error = daemon.client.flows(&wrong, |_| true).await.unwrap_err();
    assert!(error.to_string().contains("10.0.0.0/99"), "{error}");
}

#[tokio::test]
async fn who_has_enough_of_a_list_leaves_no_reader_behind() {
    let daemon = crowd("enough", 5_000).await;
    for _ in 0..20 {
        let mut seen = 0;
        let everything = FlowQuery::default();
        let end = daemon.client.flows(&everything, |_| {
            seen += 1;
            seen < 3
        });
        assert_eq!(end.await.unwrap(), None);
        assert_eq!(seen, 3);
        daemon.wait_for_lists(4).await;
    }
}

#[tokio::test]
async fn lists_that_nobody_reads_are_bounded_and_keep_no_place_for_ever() {
    let daemon = crowd("stalled", 6_000).await;
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let mut stream = UnixStream::connect(daemon.socket()).await.unwrap();
        stream
            .write_all(b"GET /v1/flows HTTP/1.1\r\nHost: tether\r\n\r\n")
            .await
            .unwrap();
        stalled.push(stream);
    }
    daemon.wait_for_lists(0).await;
    let (code, body) = daemon.exchange("GET", "/v1/flows").await;
    assert_eq!(code, 503, "{body}");
    // Everything else goes on.
    assert_eq!(daemon.exchange("GET", "/v1/status").await.0, 200);
    drop(stalled);
    daemon.wait_for_lists(4).await;
    assert_eq!(daemon.exchange("GET", "/v1/flows?limit=1").await.0, 200);
}

#[tokio::test]
async fn a_list_that_breaks_off_is_told_from_one_that_ends() {
    let directory = std::env::temp_dir().join(format!("tether-broken-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let socket = directory.join("admin.sock");
    let listener = listen(&socket, Readers::default()).unwrap();
    let half = tokio::spawn(async move {
        use tokio::io::AsyncReadExt as _;
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 1024];
        let _ = stream.read(&mut request).await.unwrap();
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    let error = Client::new(&socket)
        .flows(&FlowQuery::default(), |_| true)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("broke off"), "{error}");
    half.await.unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
}
