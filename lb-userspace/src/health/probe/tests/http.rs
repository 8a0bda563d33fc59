//! HTTP and what is expected of its answers.

use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::json;

use super::*;
use crate::model::JsonEquals;

type Asked = mpsc::UnboundedReceiver<Request<()>>;

/// A server that answers every request with this, and what it was asked.
pub(super) async fn answering(
    tls: Option<TlsAcceptor>,
    status: u16,
    body: &'static str,
) -> (SocketAddr, Asked) {
    let (sender, asked) = mpsc::unbounded_channel();
    let address = server(tls, move |stream| {
        let sender = sender.clone();
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            let _ = sender.send(request.map(drop));
            let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            async move { Ok::<_, std::convert::Infallible>(response) }
        });
        async move {
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        }
    })
    .await;
    (address, asked)
}

#[tokio::test]
async fn the_request_is_as_configured() {
    let (address, mut asked) = answering(None, 204, "").await;
    let mut http = get("/health?deep=1");
    assert_eq!(came(address, &check(of_http(http.clone()))).await, "");
    let request = asked.recv().await.unwrap();
    assert_eq!(
        (request.method(), request.uri().to_string().as_str()),
        (&Method::GET, "/health?deep=1")
    );
    // Without a word on the host it is the address.
    assert_eq!(request.headers()["host"], "127.0.0.1");
    assert_eq!(request.headers()["user-agent"], USER_AGENT);
    assert_eq!(request.headers()["connection"], "close");

    http.method = Method::HEAD;
    http.target.host = Some(HeaderValue::from_static("chat.example:8080"));
    let headers = &mut http.target.headers;
    headers.append("x-probe", HeaderValue::from_static("one"));
    headers.append("x-probe", HeaderValue::from_static("two"));
    headers.append("user-agent", HeaderValue::from_static("doctor"));
    assert_eq!(came(address, &check(of_http(http))).await, "");
    let request = asked.recv().await.unwrap();
    assert_eq!(request.method(), Method::HEAD);
    assert_eq!(request.headers()["host"], "chat.example:8080");
    assert_eq!(request.headers()["user-agent"], "doctor");
    let values: Vec<_> = request.headers().get_all("x-probe").iter().collect();
    assert_eq!(values, ["one", "two"]);
}

#[tokio::test]
async fn a_status_is_in_the_set_or_a_no() {
    for (status, expected) in [
        (200, ""),
        (204, ""),
        (299, ""),
        (201, "got status 201, not 200 or 204-299"),
        (503, "got status 503, not 200 or 204-299"),
        // Where it leads is not looked at.
        (302, "got status 302, not 200 or 204-299"),
    ] {
        let (address, mut asked) = answering(None, status, "").await;
        assert_eq!(came(address, &check(of_http(get("/")))).await, expected);
        asked.recv().await.unwrap();
        assert!(asked.try_recv().is_err(), "asked twice");
    }
}

#[tokio::test]
async fn a_body_contains_a_text_or_is_a_no() {
    let contains = |text: &str| {
        check(of_http(HttpCheck {
            body_contains: Some(text.to_owned()),
            ..get("/")
        }))
    };
    let (address, _asked) = answering(None, 200, "all is well").await;
    assert_eq!(came(address, &contains("is well")).await, "");
    assert_eq!(
        came(address, &contains("is ill")).await,
        r#"got a body without "is ill""#
    );
    // In parts, whatever falls between them.
    let parts = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                 3\r\nall\r\n4\r\n is \r\n2\r\nwe\r\n2\r\nll\r\n0\r\n\r\n";
    let address = saying(parts).await;
    assert_eq!(came(address, &contains("s well")).await, "");
    assert_eq!(came(address, &contains("all is well")).await, "");
    // Once it is found, the rest is not waited for.
    let address = saying("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nall is well").await;
    assert_eq!(came(address, &contains("is well")).await, "");
    assert_eq!(
        came(address, &contains("is ill")).await,
        "was closed before the end of the body"
    );
}

#[tokio::test]
async fn json_holds_a_value_or_is_a_no() {
    let body = r#"{"status":"ok","load":0.5,"shards":[{"id":7,"up":true}],"a/b":1e2,"none":null}"#;
    let (address, _asked) = answering(None, 200, body).await;
    let holds = |pointer: &str, equals: serde_json::Value| {
        check(of_http(HttpCheck {
            json: Some(JsonEquals {
                pointer: pointer.to_owned(),
                equals,
            }),
            ..get("/")
        }))
    };
    for (pointer, equals, expected) in [
        ("/status", json!("ok"), ""),
        ("/shards/0/up", json!(true), ""),
        ("/shards/0/id", json!(7), ""),
        ("/shards/0/id", json!(7.0), ""),
        ("/a~1b", json!(100), ""),
        ("/load", json!(0.5), ""),
        (
            "/status",
            json!("fine"),
            r#"got "ok" at /status of the JSON, not "fine""#,
        ),
        (
            "/shards/0/id",
            json!("7"),
            r#"got 7 at /shards/0/id of the JSON, not "7""#,
        ),
        (
            "/none",
            json!(false),
            "got null at /none of the JSON, not false",
        ),
        (
            "/shards",
            json!(1),
            "got an array at /shards of the JSON, not 1",
        ),
        (
            "/state",
            json!("ok"),
            r#"got nothing at /state of the JSON, not "ok""#,
        ),
        (
            "",
            json!("ok"),
            r#"got an object as the JSON document, not "ok""#,
        ),
    ] {
        let came = came(address, &holds(pointer, equals)).await;
        assert_eq!(came, expected, "{pointer}");
    }
    let (address, _asked) = answering(None, 200, "<html>ok</html>").await;
    assert_eq!(
        came(address, &holds("/status", json!("ok"))).await,
        "got a body that is no JSON"
    );
    // A document that is deeper than any honest one.
    let deep = format!("HTTP/1.1 200 OK\r\n\r\n{}", "[".repeat(60_000));
    assert_eq!(
        came(saying(deep).await, &holds("/0", json!("ok"))).await,
        "got a body that is no JSON"
    );
}

#[tokio::test]
async fn what_is_no_http_is_a_no() {
    let check = check(of_http(get("/")));
    for (response, expected) in [
        (
            &b"\x15\x03\x01\x00\x02\x02\x46"[..],
            "got an answer that is no HTTP/1.1",
        ),
        (b"", "was closed without a response"),
        (b"HTTP/1.1 2", "was closed without a response"),
        (
            b"SSH-2.0-OpenSSH_9.2\r\n",
            "got an answer that is no HTTP/1.1",
        ),
    ] {
        let address = saying(response).await;
        assert_eq!(came(address, &check).await, expected, "{response:?}");
    }
}
