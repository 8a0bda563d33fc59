//! gRPC's health service.

use h2::server::SendResponse;
use hyper::{
    HeaderMap, Request, Response,
    body::{Buf as _, Bytes},
};

use super::{tls::Authority, *};
use crate::model::{GrpcCheck, Tls, Trust};

fn grpc(service: &str) -> GrpcCheck {
    GrpcCheck {
        target: RequestTarget::default(),
        service: service.to_owned(),
    }
}

fn of(grpc: GrpcCheck) -> CheckKind {
    CheckKind::Grpc(Arc::new(grpc))
}

/// What a server does with a call, when it has read its message.
type Handler = fn(&Request<()>, &[u8], SendResponse<Bytes>);

async fn grpc_server(tls: Option<TlsAcceptor>, handle: Handler) -> SocketAddr {
    server(tls, move |stream| async move {
        let Ok(mut connection) = h2::server::handshake(stream).await else {
            return;
        };
        while let Some(Ok((request, respond))) = connection.accept().await {
            tokio::spawn(async move {
                let (head, mut body) = request.into_parts();
                let mut message = Vec::new();
                while let Some(Ok(data)) = body.data().await {
                    message.extend_from_slice(data.chunk());
                }
                handle(&Request::from_parts(head, ()), &message, respond);
            });
        }
    })
    .await
}

fn answer(respond: &mut SendResponse<Bytes>, message: &'static [u8], status: &'static str) {
    let response = Response::builder()
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    let mut stream = respond.send_response(response, false).unwrap();
    stream
        .send_data(Bytes::from_static(message), false)
        .unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    stream.send_trailers(trailers).unwrap();
}

/// As a server of the protocol does: its own health is good, that of "chat" too, that of "feed" is bad, and it knows no other.
fn honest(request: &Request<()>, message: &[u8], mut respond: SendResponse<Bytes>) {
    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
    assert_eq!(request.headers()["content-type"], "application/grpc");
    assert_eq!(request.headers()["te"], "trailers");
    match message {
        b"\0\0\0\0\0" | b"\0\0\0\0\x06\x0a\x04chat" => {
            answer(&mut respond, b"\0\0\0\0\x02\x08\x01", "0");
        }
        b"\0\0\0\0\x06\x0a\x04feed" => answer(&mut respond, b"\0\0\0\0\x02\x08\x02", "0"),
        _ => {
            let response = Response::builder().header("grpc-status", "5").body(());
            respond.send_response(response.unwrap(), true).unwrap();
        }
    }
}

#[tokio::test]
async fn health_is_asked_for_by_service() {
    let address = grpc_server(None, honest).await;
    for (service, expected) in [
        ("", ""),
        ("chat", ""),
        ("feed", "got NOT_SERVING, not SERVING"),
        (
            "mail",
            "got gRPC status 5 (it does not know this service), not 0",
        ),
    ] {
        assert_eq!(came(address, &check(of(grpc(service)))).await, expected);
    }
    let answer = ask(address, &check(of(grpc("feed")))).await;
    assert_eq!(
        answer.error.unwrap(),
        format!("a gRPC health check of \"feed\" at {address} got NOT_SERVING, not SERVING")
    );
}

#[tokio::test]
async fn it_goes_over_tls_too() {
    let authority = Authority::new();
    let address = grpc_server(Some(authority.acceptor("chat.example", &["h2"])), honest).await;
    let mut asked = grpc("chat");
    asked.target.tls = Some(Tls {
        trust: authority.trust(),
        name: Some("chat.example".try_into().unwrap()),
    });
    assert_eq!(came(address, &check(of(asked.clone()))).await, "");

    // A server that speaks HTTP/1.1 alone says so by ALPN.
    let address = grpc_server(
        Some(authority.acceptor("chat.example", &["http/1.1"])),
        honest,
    )
    .await;
    asked.target.tls = Some(Tls {
        trust: Trust::Anyone,
        name: None,
    });
    assert_eq!(
        came(address, &check(of(asked))).await,
        "was ended by the server with the TLS alert NoApplicationProtocol"
    );
}

#[tokio::test]
async fn what_is_no_health_is_a_no() {
    let cases: [(Handler, &str); 6] = [
        (
            |_, _, mut respond| answer(&mut respond, b"", "12"),
            "got gRPC status 12 (it has no health service), not 0",
        ),
        (
            |_, _, mut respond| answer(&mut respond, b"\0\0\0\0\x02\x08\x01", "14"),
            "got gRPC status 14 (unavailable), not 0",
        ),
        (
            |_, _, mut respond| answer(&mut respond, b"\0\0\0\0\x02\x08", "0"),
            "got an answer that is no HealthCheckResponse",
        ),
        (
            |_, _, mut respond| answer(&mut respond, b"\0\0\0\0\x02\x08\x01", "x\"y"),
            r#"got gRPC status "x\"y", not 0"#,
        ),
        (
            |_, _, mut respond| {
                let response = Response::builder().status(404).body(()).unwrap();
                respond.send_response(response, true).unwrap();
            },
            "got HTTP status 404, not 200",
        ),
        (
            |_, _, mut respond| {
                let mut stream = respond.send_response(Response::new(()), false).unwrap();
                let message = Bytes::from_static(b"\0\0\0\0\x02\x08\x01");
                stream.send_data(message, true).unwrap();
            },
            "got a response without a gRPC status",
        ),
    ];
    for (handle, expected) in cases {
        let address = grpc_server(None, handle).await;
        assert_eq!(came(address, &check(of(grpc("")))).await, expected);
    }
    let refusing = grpc_server(None, |_, _, mut respond| {
        respond.send_reset(h2::Reason::REFUSED_STREAM);
    })
    .await;
    let refused = came(refusing, &check(of(grpc("")))).await;
    assert!(refused.starts_with("was refused by HTTP/2 ("), "{refused}");

    let address = saying("HTTP/1.1 400 Bad Request\r\n\r\n").await;
    assert_eq!(
        came(address, &check(of(grpc("")))).await,
        "got an answer that is no HTTP/2"
    );
    let address = saying("").await;
    assert_eq!(
        came(address, &check(of(grpc("")))).await,
        "was closed without a response"
    );
}
