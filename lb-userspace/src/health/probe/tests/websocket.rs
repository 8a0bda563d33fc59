//! The opening handshake of WebSockets, and pings.

use futures::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::{
    accept_async, accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{Request, Response},
    },
};

use super::*;
use crate::model::WebSocketCheck;

fn websocket(ping: bool) -> WebSocketCheck {
    WebSocketCheck {
        target: RequestTarget::default(),
        path: "/chat?room=1".parse().unwrap(),
        ping,
    }
}

fn of(websocket: WebSocketCheck) -> CheckKind {
    CheckKind::WebSocket(Arc::new(websocket))
}

#[tokio::test]
async fn an_upgrade_is_a_yes_and_is_taken_leave_of() {
    let (sender, mut seen) = mpsc::unbounded_channel();
    let address = server(None, move |stream| {
        let sender = sender.clone();
        async move {
            let headers = sender.clone();
            #[expect(clippy::result_large_err, reason = "the library's signature")]
            let look = move |request: &Request, response: Response| {
                let header = |name| request.headers().get(name).cloned();
                headers
                    .send(format!(
                        "{} {:?} {:?} {:?}",
                        request.uri(),
                        header("host"),
                        header("origin"),
                        header("sec-websocket-version")
                    ))
                    .unwrap();
                Ok(response)
            };
            let mut socket = accept_hdr_async(stream, look).await.unwrap();
            while let Some(Ok(message)) = socket.next().await {
                sender.send(format!("{message:?}")).unwrap();
            }
            sender.send("the end".to_owned()).unwrap();
        }
    })
    .await;
    let mut asked = websocket(false);
    let origin = HeaderValue::from_static("https://chat.example");
    asked.target.headers.append("origin", origin);
    asked.target.host = Some(HeaderValue::from_static("chat.example"));
    assert_eq!(came(address, &check(of(asked))).await, "");
    assert_eq!(
        seen.recv().await.unwrap(),
        r#"/chat?room=1 Some("chat.example") Some("https://chat.example") Some("13")"#
    );
    let farewell = seen.recv().await.unwrap();
    assert!(farewell.starts_with("Close("), "{farewell}");
    assert_eq!(seen.recv().await.unwrap(), "the end");
}

#[tokio::test]
async fn a_ping_is_answered_whatever_is_said_before() {
    let address = server(None, |stream| async {
        let mut socket = accept_async(stream).await.unwrap();
        for _ in 0..20 {
            let _ = socket.send(Message::text("welcome")).await;
        }
        // Reading answers pings.
        while let Some(Ok(_)) = socket.next().await {}
    })
    .await;
    assert_eq!(came(address, &check(of(websocket(true)))).await, "");
}

#[tokio::test]
async fn a_ping_without_an_answer_is_a_no() {
    let mute = server(None, |stream| async {
        let _socket = accept_async(stream).await.unwrap();
        std::future::pending().await
    })
    .await;
    assert_eq!(
        came(mute, &hasty(of(websocket(true)))).await,
        "got no pong in answer to its ping within 200 ms"
    );
    // The upgrade alone is all that is asked without `ping`.
    assert_eq!(came(mute, &hasty(of(websocket(false)))).await, "");

    let closing = server(None, |stream| async {
        let mut socket = accept_async(stream).await.unwrap();
        let _ = socket.close(None).await;
    })
    .await;
    assert_eq!(
        came(closing, &check(of(websocket(true)))).await,
        "was opened, and closed before a pong"
    );
}

#[tokio::test]
async fn what_is_no_upgrade_is_a_no() {
    let accepted =
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n";
    let wrong_key = format!("{accepted}Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n");
    let no_key = format!("{accepted}\r\n");
    for (response, expected) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "got status 200, not 101, to its upgrade",
        ),
        (
            "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
            "got status 503, not 101, to its upgrade",
        ),
        (
            &wrong_key,
            "got an upgrade with a wrong Sec-WebSocket-Accept",
        ),
        (&no_key, "got an upgrade with a wrong Sec-WebSocket-Accept"),
        (
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n",
            "got an upgrade without Upgrade: websocket",
        ),
        (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
            "got an upgrade without Connection: Upgrade",
        ),
        (
            "220 mail.example ESMTP\r\n",
            "got an answer that is no HTTP/1.1 to its upgrade",
        ),
        ("", "was closed without a response to its upgrade"),
    ] {
        let address = saying(response).await;
        assert_eq!(
            came(address, &check(of(websocket(true)))).await,
            expected,
            "{response:?}"
        );
    }
}
