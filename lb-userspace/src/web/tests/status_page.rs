//! The status page and its news.

use super::*;

/// The names of the first events that `/events` brings, and the data of the last of them.
pub(super) async fn news(
    address: SocketAddr,
    query: &str,
    events: usize,
) -> (Vec<String>, serde_json::Value) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET /events{query} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    while text.matches("\n\n").count() < events {
        let mut some = [0; 4096];
        let read = stream.read(&mut some).await.unwrap();
        assert_ne!(read, 0, "it ended after {text}");
        text += str::from_utf8(&some[..read]).unwrap();
    }
    let lines = |start| {
        text.lines()
            .filter_map(move |line| line.strip_prefix(start))
    };
    let names = lines("event: ").take(events).map(str::to_owned).collect();
    let data = lines("data: ").nth(events - 1).unwrap();
    (names, serde_json::from_str(data).unwrap())
}

#[tokio::test]
async fn the_page_is_one_file_that_may_fetch_nothing_but_its_news() {
    let (address, _status, _stop) = start(a_status()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(
        text.contains("content-security-policy: default-src 'none';"),
        "{text}"
    );
    let (_, page) = text.split_once("\r\n\r\n").unwrap();
    assert!(page.contains("prefers-color-scheme") && page.contains("EventSource"));
    assert!(!page.contains("/*STYLE*/") && !page.contains("/*SCRIPT*/"));
    let elsewhere =
        page.matches("http").count() - page.matches("http://www.w3.org/2000/svg").count();
    assert_eq!(elsewhere, 0, "it names another host");
}

#[tokio::test]
async fn the_news_begin_with_the_past_and_bring_the_backends_that_are_asked_for() {
    let (address, status, _stop) = start(a_status()).await;
    let (names, now) = news(address, "", 2).await;
    assert_eq!(names, ["past", "now"]);
    assert_eq!(now["evacuated"], false);
    assert_eq!(now["services"][0]["state"], "fail-open");
    assert_eq!(now["services"][0]["backends"]["new"], 1);
    assert_eq!(now["tables"][1]["fill"], "high");
    let (names, opened) = news(address, "?open=[%22chat%22]", 3).await;
    assert_eq!(names, ["past", "now", "backends"]);
    assert_eq!(opened["backends"][0]["packets"], 40);
    assert_eq!(
        opened["backends"][0]["error"],
        "ejected: clients repeat themselves"
    );
    let (_, opened) = news(address, "?open=[%22other%22]", 3).await;
    assert_eq!(opened["backends"], serde_json::json!([]));
    let mut full = a_status();
    full.services[0].fail_open = false;
    status.send(Arc::new(full)).unwrap();
    let (_, now) = news(address, "", 2).await;
    assert_eq!(now["services"][0]["state"], "full");
    let mut evacuated = a_status();
    evacuated.evacuated = true;
    status.send(Arc::new(evacuated)).unwrap();
    let (_, now) = news(address, "", 2).await;
    assert_eq!(now["evacuated"], true);
    for wrong in [
        "?open=chat",
        "?open=[1]",
        &format!("?open=[{}%22%22]", "%22%22,".repeat(99)),
    ] {
        assert_eq!(
            get(address, &format!("/events{wrong}")).await.0,
            400,
            "{wrong}"
        );
    }
}

#[tokio::test]
async fn open_pages_are_bounded_and_leave_room_for_scrapes() {
    let (address, _status, _stop) = start(a_status()).await;
    let mut readers = Vec::new();
    for _ in 0..page::READERS {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.read_exact(&mut [0; 64]).await.unwrap();
        readers.push(stream);
    }
    assert_eq!(get(address, "/events").await.0, 503);
    assert_eq!(get(address, "/metrics").await.0, 200);
    drop(readers);
    let one_more = async {
        while get_head(address, "/events").await != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), one_more)
        .await
        .expect("places come back when pages are closed");
}
