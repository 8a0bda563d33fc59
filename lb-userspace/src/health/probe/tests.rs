//! Checks against servers of each kind, and against what is none.

mod grpc;
mod hostile;
mod http;
mod tls;
mod websocket;

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use hyper::{Method, header::HeaderValue};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::model::{HttpCheck, RequestTarget};

/// Long enough for any honest answer on a busy machine.
const PATIENT: Duration = Duration::from_secs(10);
/// For answers that do not come.
const HASTY: Duration = Duration::from_millis(200);

fn check(kind: CheckKind) -> Check {
    Check {
        kind,
        timeout: PATIENT,
        ..Check::DEFAULT
    }
}

fn hasty(kind: CheckKind) -> Check {
    Check {
        timeout: HASTY,
        ..check(kind)
    }
}

fn get(path: &str) -> HttpCheck {
    HttpCheck {
        target: RequestTarget::default(),
        method: Method::GET,
        path: path.parse().unwrap(),
        status: vec![200..=200, 204..=299],
        body_contains: None,
        json: None,
    }
}

fn of_http(http: HttpCheck) -> CheckKind {
    CheckKind::Http(Arc::new(http))
}

async fn ask(address: SocketAddr, check: &Check) -> Answer {
    Probe::new(address, check, &TlsClients::default())
        .ask()
        .await
}

/// What came of a check, without what was asked where; empty is a yes.
async fn came(address: SocketAddr, check: &Check) -> String {
    let answer = ask(address, check).await;
    let Some(error) = answer.error else {
        assert_eq!(answer.reply, Reply::Yes);
        return String::new();
    };
    assert_eq!(answer.reply, Reply::No, "{error}");
    let at = format!("at {address} ");
    let (_, came) = error.split_once(&at).expect("it says who was asked");
    came.to_owned()
}

/// A connection to a test's server.
trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Connection for S {}

type Incoming = Box<dyn Connection>;

/// Serves each connection with `serve`, over TLS if there is something to do that with.
async fn server<F>(
    tls: Option<TlsAcceptor>,
    serve: impl Fn(Incoming) -> F + Send + Sync + 'static,
) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (tls, serve) = (tls.clone(), serve.clone());
            tokio::spawn(async move {
                let stream: Incoming = match &tls {
                    None => Box::new(stream),
                    Some(tls) => match tls.accept(stream).await {
                        Ok(stream) => Box::new(stream),
                        Err(_) => return,
                    },
                };
                serve(stream).await;
            });
        }
    });
    address
}

/// A server that sends these bytes to whoever asks, and closes.
async fn saying(response: impl Into<Vec<u8>>) -> SocketAddr {
    let response: Arc<Vec<u8>> = Arc::new(response.into());
    server(None, move |mut stream| {
        let response = response.clone();
        async move {
            let mut request = [0; 4_096];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(&response).await;
            let _ = stream.shutdown().await;
            // What the other side still sends must not reset what it was sent.
            let _ = stream.read(&mut request).await;
        }
    })
    .await
}

#[tokio::test]
async fn what_was_asked_and_what_came_is_one_sentence() {
    let closed = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let answer = ask(closed, &check(CheckKind::Tcp)).await;
    assert_eq!(answer.reply, Reply::No);
    assert_eq!(
        answer.error.unwrap(),
        "a TCP connection at 127.0.0.1:1 was refused"
    );
    let answer = ask(closed, &check(of_http(get("/live?x=1")))).await;
    assert_eq!(
        answer.error.unwrap(),
        "GET /live?x=1 at 127.0.0.1:1 was refused"
    );
    // Without a link it is an address that nobody can be asked at.
    let nowhere = SocketAddr::from(("fe80::1".parse::<Ipv6Addr>().unwrap(), 80));
    let answer = ask(nowhere, &check(CheckKind::Tcp)).await;
    assert_eq!(answer.reply, Reply::Unasked);
    let error = answer.error.unwrap();
    assert!(
        error.starts_with("a TCP connection at [fe80::1]:80 could not be asked for: "),
        "{error}"
    );
}

#[test]
fn long_text_is_cut() {
    assert_eq!(quoted("a\"\nb"), r#""a\"\nb""#);
    let long = "é".repeat(61);
    assert_eq!(quoted(&long), format!("{:?}…", "é".repeat(60)));
}
