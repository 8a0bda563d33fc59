//! What health checks cost: `cargo run --release -p lb-userspace --example health_cost [SECONDS]`.
//!
//! 1,000 backends are checked every 5 s, by each type of check in turn, against servers in threads of their own. The time of the thread that checks is
//! taken, beside the mark that the design sets for the whole idle daemon.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use futures::StreamExt as _;
use http_body_util::Full;
use hyper::{Response, body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use lb_userspace::{
    health,
    ids::Numbered,
    model::{
        BackendName, Check, CheckKind, GrpcCheck, Health, HttpCheck, JsonEquals, RequestTarget,
        Target, Tls, Trust, WebSocketCheck,
    },
};
use nix::time::{ClockId, clock_gettime};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_rustls::TlsAcceptor;

const BACKENDS: u32 = 1_000;
const INTERVAL: Duration = Duration::from_secs(5);
/// In percent of a core.
const MARK: f64 = 5.0;

/// What a server speaks.
#[derive(Clone, Copy)]
enum Speech {
    Http,
    Https,
    WebSocket,
    Grpc,
}

fn main() -> anyhow::Result<()> {
    let seconds = match std::env::args().nth(1) {
        Some(text) => text.parse().context("SECONDS is a number")?,
        None => 20,
    };
    let target = RequestTarget::default;
    let http = |tls| {
        CheckKind::Http(Arc::new(HttpCheck {
            target: RequestTarget { tls, ..target() },
            method: hyper::Method::GET,
            path: hyper::http::uri::PathAndQuery::from_static("/status"),
            status: vec![200..=299],
            body_contains: None,
            json: Some(JsonEquals {
                pointer: "/status".to_owned(),
                equals: "ok".into(),
            }),
        }))
    };
    let tls = Tls {
        trust: Trust::Anyone,
        name: None,
    };
    let websocket = CheckKind::WebSocket(Arc::new(WebSocketCheck {
        target: target(),
        path: hyper::http::uri::PathAndQuery::from_static("/"),
        ping: true,
    }));
    let grpc = CheckKind::Grpc(Arc::new(GrpcCheck {
        target: target(),
        service: "chat".to_owned(),
    }));
    for (label, speech, kind) in [
        ("tcp", Speech::Http, CheckKind::Tcp),
        ("http, JSON", Speech::Http, http(None)),
        ("websocket, ping", Speech::WebSocket, websocket),
        ("grpc", Speech::Grpc, grpc),
        ("https, JSON", Speech::Https, http(Some(tls))),
    ] {
        let port = serve(speech)?;
        let percent = cost(port, kind, Duration::from_secs(seconds))?;
        println!("{label:<20} {percent:>6.2}% of a core; mark {MARK}% for all of an idle daemon");
    }
    Ok(())
}

/// The share of a core that checking takes once every backend is up.
fn cost(port: u16, kind: CheckKind, time: Duration) -> anyhow::Result<f64> {
    let check = Check {
        kind,
        interval: INTERVAL,
        timeout: INTERVAL,
        ..Check::DEFAULT
    };
    let targets = (0..BACKENDS).map(|n| Target {
        name: BackendName {
            service: "chat".to_owned(),
            backend: format!("b{n}"),
        },
        object: Numbered {
            id: n + 1,
            generation: 0,
        },
        address: (Ipv4Addr::from_bits(0x7f01_0001 + n), port).into(),
        check: check.clone(),
        through: None,
        answers_echoes: false,
        verdict: Health::Unknown,
    });
    let (_targets, watched) = watch::channel(targets.collect());
    let (_, vips) = watch::channel(BTreeSet::new());
    let (sender, mut reports) = mpsc::channel(64);
    let (_stop, shutdown) = watch::channel(false);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        tokio::spawn(health::run(
            watched,
            vips,
            sender,
            256,
            health::ProbeTimes::default(),
            shutdown,
        ));
        for _ in 0..BACKENDS {
            let report = reports.recv().await.context("the checks have ended")?;
            if report.health != Health::Up {
                bail!("{report:?}");
            }
        }
        let before = thread_time()?;
        tokio::time::sleep(time).await;
        if let Ok(report) = reports.try_recv() {
            bail!("{report:?}");
        }
        Ok(100.0 * (thread_time()? - before).as_secs_f64() / time.as_secs_f64())
    })
}

/// Time that this thread has had of a CPU.
fn thread_time() -> nix::Result<Duration> {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from)
}

/// Serves on all addresses from a thread of its own, and gives the port.
fn serve(speech: Speech) -> anyhow::Result<u16> {
    let acceptor = match speech {
        Speech::Https => Some(acceptor()?),
        Speech::Http | Speech::WebSocket | Speech::Grpc => None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let all = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let listener = runtime.block_on(TcpListener::bind(all))?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        runtime.block_on(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    match acceptor {
                        None => speak(speech, stream).await,
                        Some(acceptor) => match acceptor.accept(stream).await {
                            Ok(stream) => speak(speech, stream).await,
                            Err(error) => Err(error.into()),
                        },
                    }
                });
            }
        });
    });
    Ok(port)
}

fn acceptor() -> anyhow::Result<TlsAcceptor> {
    let certified = rcgen::generate_simple_self_signed(["chat.example".to_owned()])?;
    let key = PrivateKeyDer::Pkcs8(certified.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn speak<S>(speech: Speech, stream: S) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match speech {
        Speech::Http | Speech::Https => {
            let body = Full::new(Bytes::from_static(br#"{"status":"ok"}"#));
            let service = service_fn(move |_| {
                let response = Response::new(body.clone());
                async { Ok::<_, std::convert::Infallible>(response) }
            });
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            connection.await?;
        }
        Speech::WebSocket => {
            let mut socket = tokio_tungstenite::accept_async(stream).await?;
            // Reading answers pings.
            while let Some(Ok(_)) = socket.next().await {}
        }
        Speech::Grpc => {
            let mut connection = h2::server::handshake(stream).await?;
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let mut body = respond.send_response(Response::new(()), false)?;
                body.send_data(Bytes::from_static(b"\0\0\0\0\x02\x08\x01"), false)?;
                let mut trailers = hyper::HeaderMap::new();
                trailers.insert("grpc-status", hyper::header::HeaderValue::from_static("0"));
                body.send_trailers(trailers)?;
            }
        }
    }
    Ok(())
}
