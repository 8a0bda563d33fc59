//! What bad peers may do, over real sockets.

use std::time::Instant;

use axum::{body::Body, routing::get};
use futures::StreamExt as _;
use hyper::body::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{
    gate::{CONNECTIONS, Gate},
    *,
};

/// A listener that answers `/` at once, and `/endless` for ever.
async fn start() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new()
        .route("/", get(async || "hello").post(async || "done"))
        .route(
            "/endless",
            get(async || {
                let chunk = Bytes::from_static(&[b'x'; 64 << 10]);
                let forever = futures::stream::repeat(chunk).map(Ok::<_, std::convert::Infallible>);
                let mut response = Response::new(Body::from_stream(forever));
                response.extensions_mut().insert(Endless);
                response
            }),
        );
    tokio::spawn(async move {
        let gate = Gate::default();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let place = gate.enter().await;
            tokio::spawn(serve(stream, router.clone(), place));
        }
    });
    address
}

async fn ask(address: std::net::SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    // A peer that has more to say than was read is reset, maybe before its answer came through.
    drop(stream.read_to_string(&mut answer).await);
    answer
}

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

#[tokio::test]
async fn peers_that_say_nothing_keep_nobody_out() {
    let address = start().await;
    let mut silent = Vec::new();
    for _ in 0..CONNECTIONS * 4 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let begun = Instant::now();
    let answer = ask(address, REQUEST).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(
        begun.elapsed() < HEAD_TIMEOUT,
        "it waited for the silent ones to be timed out: {:?}",
        begun.elapsed()
    );
    // The first was closed for it, before its time.
    let mut byte = [0];
    let read = tokio::time::timeout(Duration::from_secs(2), silent[0].read(&mut byte)).await;
    assert!(matches!(read, Ok(Ok(0) | Err(_))), "{read:?}");
}

#[tokio::test]
async fn a_head_without_an_end_is_refused_and_so_is_one_that_never_comes() {
    let address = start().await;
    let huge = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(BUFFER * 4));
    let answer = ask(address, &huge).await;
    assert!(!answer.contains("200"), "{answer}");
    let begun = Instant::now();
    let answer = ask(address, "GET / HTTP/1.1\r\nHo").await;
    assert!(!answer.contains("200"), "{answer}");
    assert!(begun.elapsed() < HEAD_TIMEOUT * 3);
}

#[tokio::test]
async fn a_huge_body_is_not_taken_in() {
    let address = start().await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        1u64 << 40
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = vec![b'x'; 1 << 20];
    let mut sent = 0u64;
    // It ends by an error, since the other side is gone; were it read, this would go on.
    let ended = tokio::time::timeout(Duration::from_secs(20), async {
        while stream.write_all(&chunk).await.is_ok() {
            sent += chunk.len() as u64;
        }
    });
    ended.await.expect("the connection ends");
    assert!(sent < 64 << 20, "{sent} bytes were taken");
}

/// A peer's end of a pipe that holds next to nothing, so that who does not read stalls the other at once.
#[tokio::test(start_paused = true)]
async fn who_does_not_read_an_endless_answer_is_given_up_and_who_reads_slowly_is_not() {
    let router = || {
        Router::new().route(
            "/",
            get(async || {
                let chunk = Bytes::from_static(b"0123456789");
                let forever = futures::stream::repeat(chunk).map(Ok::<_, std::convert::Infallible>);
                let mut response = Response::new(Body::from_stream(forever));
                response.extensions_mut().insert(Endless);
                response
            }),
        )
    };
    let (mut peer, own) = tokio::io::duplex(64);
    let place = Gate::default().enter().await;
    let served = tokio::spawn(serve(own, router(), place));
    peer.write_all(REQUEST.as_bytes()).await.unwrap();
    let begun = tokio::time::Instant::now();
    let mut some = [0; 32];
    // Far beyond the time that an answer with an end has.
    while begun.elapsed() < CONNECTION_TIMEOUT * 3 {
        peer.read_exact(&mut some).await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    assert!(!served.is_finished());
    let stopped = tokio::time::Instant::now();
    let given_up = tokio::time::timeout(CONNECTION_TIMEOUT, served).await;
    given_up.expect("it is given up").unwrap();
    let waited = stopped.elapsed();
    assert!(
        (Duration::from_secs(8)..Duration::from_secs(12)).contains(&waited),
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_should_have_an_end_has_its_time() {
    let router = Router::new().route("/", get(async || std::future::pending::<()>().await));
    let (mut peer, own) = tokio::io::duplex(64);
    let place = Gate::default().enter().await;
    let begun = tokio::time::Instant::now();
    let served = tokio::spawn(serve(own, router, place));
    peer.write_all(REQUEST.as_bytes()).await.unwrap();
    served.await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), CONNECTION_TIMEOUT.as_secs());
}

#[tokio::test]
async fn places_come_back() {
    let address = start().await;
    for _ in 0..CONNECTIONS * 2 {
        let answer = ask(address, REQUEST).await;
        assert!(answer.ends_with("hello"), "{answer}");
    }
    // One that reads no more and one that reads: a place each, until they go.
    let mut streams = Vec::new();
    for _ in 0..CONNECTIONS - 1 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        stream.read_exact(&mut [0; 64]).await.unwrap();
        streams.push(stream);
    }
    let answer = ask(address, REQUEST).await;
    assert!(answer.ends_with("hello"), "{answer}");
}
