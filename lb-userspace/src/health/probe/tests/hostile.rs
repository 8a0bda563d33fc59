//! Backends that mean harm: they make their own check fail, in time, and nothing else.

use std::time::Instant;

use super::{tls::Authority, *};
use crate::model::{GrpcCheck, JsonEquals, Tls, Trust, WebSocketCheck};

/// A server that sends `first`, and then `again` for ever, `pause` after each.
async fn endless(
    tls: Option<TlsAcceptor>,
    first: &'static [u8],
    again: impl Into<Vec<u8>>,
    pause: Duration,
) -> SocketAddr {
    let again: Arc<Vec<u8>> = Arc::new(again.into());
    server(tls, move |mut stream| {
        let again = again.clone();
        async move {
            let mut request = [0; 4_096];
            let _ = stream.read(&mut request).await;
            if stream.write_all(first).await.is_err() {
                return;
            }
            while stream.write_all(&again).await.is_ok() {
                let _ = stream.flush().await;
                tokio::time::sleep(pause).await;
            }
        }
    })
    .await
}

fn wanting_json() -> HttpCheck {
    HttpCheck {
        json: Some(JsonEquals {
            pointer: "/status".to_owned(),
            equals: "ok".into(),
        }),
        ..get("/")
    }
}

fn wanting_text() -> HttpCheck {
    HttpCheck {
        body_contains: Some("ok".to_owned()),
        ..get("/")
    }
}

fn of_websocket() -> CheckKind {
    CheckKind::WebSocket(Arc::new(WebSocketCheck {
        target: RequestTarget::default(),
        path: "/".parse().unwrap(),
        ping: true,
    }))
}

fn of_grpc() -> CheckKind {
    CheckKind::Grpc(Arc::new(GrpcCheck {
        target: RequestTarget::default(),
        service: String::new(),
    }))
}

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n";
const PAGE: [u8; 16 << 10] = [b'x'; 16 << 10];

#[tokio::test]
async fn a_body_without_end_is_read_to_its_limit() {
    let address = endless(None, HEAD, PAGE, Duration::ZERO).await;
    assert_eq!(
        came(address, &check(of_http(wanting_json()))).await,
        "got a body of more than 64 KiB"
    );
    assert_eq!(
        came(address, &check(of_http(wanting_text()))).await,
        r#"got a body without "ok" in its first 64 KiB"#
    );
    // Of no interest: it is not read.
    assert_eq!(came(address, &check(of_http(get("/")))).await, "");
}

#[tokio::test]
async fn a_header_without_end_is_read_to_its_limit() {
    let first = b"HTTP/1.1 200 OK\r\nX: ";
    let address = endless(None, first, PAGE, Duration::ZERO).await;
    assert_eq!(
        came(address, &check(of_http(get("/")))).await,
        "got a response with a header of more than 16 KiB or 128 fields"
    );
    assert_eq!(
        came(address, &check(of_websocket())).await,
        "got a response with too long a header to its upgrade"
    );
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(200));
    assert_eq!(
        came(saying(many).await, &check(of_http(get("/")))).await,
        "got a response with a header of more than 16 KiB or 128 fields"
    );
}

/// Each of them is valid, and none is the answer.
#[tokio::test]
async fn interim_responses_without_end_are_read_to_their_limit() {
    let again = b"HTTP/1.1 102 Processing\r\n\r\n".repeat(100);
    let address = endless(None, b"", again, Duration::ZERO).await;
    assert_eq!(
        came(address, &check(of_http(get("/")))).await,
        "got more than 256 KiB without an end"
    );
}

#[tokio::test]
async fn a_drip_is_over_when_the_time_is() {
    const DRIP: Duration = Duration::from_millis(5);
    let authority = Authority::new();
    let mut over_tls = wanting_text();
    over_tls.target.tls = Some(Tls {
        trust: Trust::Anyone,
        name: None,
    });
    let tls = || Some(authority.acceptor("chat.example", &[]));
    for (address, kind, expected) in [
        (
            endless(None, b"HTTP/1.1 200 OK\r\nX: ", b"x", DRIP).await,
            of_http(get("/")),
            "got no response within 200 ms",
        ),
        (
            endless(None, HEAD, b"x", DRIP).await,
            of_http(wanting_text()),
            "got no whole body within 200 ms",
        ),
        (
            endless(tls(), HEAD, b"x", DRIP).await,
            of_http(over_tls.clone()),
            "got no whole body within 200 ms",
        ),
        (
            // A record of TLS of 16 KiB that goes on and on.
            endless(None, b"\x16\x03\x03\x3f\xff\x02\x00\x3f\xfb", b"x", DRIP).await,
            of_http(over_tls.clone()),
            "got no TLS handshake done within 200 ms",
        ),
        (
            endless(
                None,
                b"HTTP/1.1 101 Switching Protocols\r\nX: ",
                b"x",
                DRIP * 4,
            )
            .await,
            of_websocket(),
            "got no response to its upgrade within 200 ms",
        ),
        (
            // SETTINGS, and then one frame byte by byte.
            endless(
                None,
                b"\0\0\0\x04\0\0\0\0\0\0\x20\0\0\0\0\0\0\0",
                b"x",
                DRIP,
            )
            .await,
            of_grpc(),
            "got no response within 200 ms",
        ),
    ] {
        let begun = Instant::now();
        assert_eq!(came(address, &hasty(kind)).await, expected);
        assert!(begun.elapsed() < PATIENT, "{:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn frames_without_end_are_read_to_their_limit() {
    // SETTINGS, and PINGs without end.
    let pings = b"\0\0\x08\x06\0\0\0\0\0abcdefgh".repeat(100);
    let address = endless(None, b"\0\0\0\x04\0\0\0\0\0", pings, Duration::ZERO).await;
    assert_eq!(
        came(address, &check(of_grpc())).await,
        "got more than 256 KiB without an end"
    );
    let chatter = server(None, |stream| async {
        use futures::SinkExt as _;
        use tokio_tungstenite::tungstenite::Message;
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        while socket.send(Message::text("x".repeat(1_000))).await.is_ok() {}
    })
    .await;
    assert_eq!(
        came(chatter, &check(of_websocket())).await,
        "got more than 256 KiB without an end"
    );
    let shouting = server(None, |stream| async {
        use futures::SinkExt as _;
        use tokio_tungstenite::tungstenite::Message;
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        let _ = socket.send(Message::text("x".repeat(100_000))).await;
        std::future::pending().await
    })
    .await;
    assert_eq!(
        came(shouting, &check(of_websocket())).await,
        "was opened, and got a message of more than 64 KiB before a pong"
    );
}

/// Whatever comes, something is said about it, and nothing panics.
#[tokio::test]
async fn garbage_is_a_no_for_every_kind() {
    let mut over_tls = get("/");
    over_tls.target.tls = Some(Tls {
        trust: Trust::Anyone,
        name: None,
    });
    let kinds = [
        of_http(get("/")),
        of_http(wanting_json()),
        of_http(over_tls),
        of_websocket(),
        of_grpc(),
    ];
    let mut random = fastrand::Rng::with_seed(7);
    let starts: [&[u8]; 5] = [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n",
        b"\0\0\0\x04\0\0\0\0\0",
        b"\x16\x03\x03",
    ];
    for round in 0..15 {
        let mut bytes = starts[round % starts.len()].to_vec();
        bytes.extend((0..random.usize(1..2_000)).map(|_| random.u8(..)));
        let address = saying(bytes.clone()).await;
        for kind in &kinds {
            let said = came(address, &hasty(kind.clone())).await;
            assert_ne!(said, "", "{kind:?} takes {bytes:?} for a yes");
        }
    }
}
