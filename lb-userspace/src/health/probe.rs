//! One check: the question, and what came of it.
//!
//! Connections are closed with a reset, so that no check leaves a socket in TIME-WAIT: 1,000 backends asked every 5 s would keep
//! 12,000 of them.

use std::{io, net::SocketAddr, ops::RangeInclusive, time::Duration};

use http_body_util::Empty;
use hyper::{Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::track::Reply;
use crate::model::{Check, CheckKind};

/// The most that is read of a response's head, in bytes; a longer one is no valid answer.
const HEAD_BYTES: usize = 16 << 10;
/// The most header fields that a response may have.
const HEADERS: usize = 128;

/// What came of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// What it was.
    pub(super) reply: Reply,
    /// Why it was no yes, in words that are the same every time that the reason is.
    pub(super) error: Option<String>,
}

impl Answer {
    const YES: Self = Self {
        reply: Reply::Yes,
        error: None,
    };

    fn no(error: impl Into<String>) -> Self {
        Self {
            reply: Reply::No,
            error: Some(error.into()),
        }
    }
}

/// Asks `address` as `check` says. Takes at most the check's timeout.
pub(super) async fn probe(address: SocketAddr, check: &Check) -> Answer {
    let deadline = Instant::now() + check.timeout;
    let stream = match timeout_at(deadline, connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return classify(&error),
        Err(_) => {
            return Answer {
                reply: Reply::Silent,
                error: Some(format!(
                    "no answer to a SYN within {}",
                    shown(check.timeout)
                )),
            };
        }
    };
    match &check.kind {
        CheckKind::Tcp => Answer::YES,
        CheckKind::Http { path, host, status } => {
            match timeout_at(deadline, get(stream, path, host, status)).await {
                Ok(answer) => answer,
                Err(_) => Answer::no(format!(
                    "connected, but no HTTP response within {}",
                    shown(check.timeout)
                )),
            }
        }
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_zero_linger()?;
    Ok(stream)
}

/// A connection that did not come to be: did the backend say so, did nobody, or was it this host that could not ask?
fn classify(error: &io::Error) -> Answer {
    let (reply, text) = match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => (Reply::No, "the connection was refused".into()),
        Some(libc::ECONNRESET | libc::EPIPE) => (Reply::No, "the connection was reset".into()),
        Some(libc::ETIMEDOUT) => (Reply::Silent, "no answer to a SYN".into()),
        Some(libc::EHOSTUNREACH | libc::EHOSTDOWN) => {
            (Reply::Silent, "the host is unreachable".into())
        }
        Some(libc::ENETUNREACH | libc::ENETDOWN) => {
            (Reply::Silent, "the network is unreachable".into())
        }
        _ => (Reply::Unasked, format!("this host could not ask: {error}")),
    };
    Answer {
        reply,
        error: Some(text),
    }
}

async fn get(stream: TcpStream, path: &str, host: &str, status: &[RangeInclusive<u16>]) -> Answer {
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(
            header::USER_AGENT,
            concat!("tether/", env!("CARGO_PKG_VERSION")),
        )
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new());
    let request = match request {
        Ok(request) => request,
        // The configuration is checked for this; what slips through must not look like a sick backend.
        Err(error) => {
            return Answer {
                reply: Reply::Unasked,
                error: Some(format!("path or host make no valid request: {error}")),
            };
        }
    };
    let handshake = http1::Builder::new()
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADERS)
        .handshake(TokioIo::new(stream))
        .await;
    let (mut sender, connection) = match handshake {
        Ok(parts) => parts,
        Err(error) => return Answer::no(failure(&error)),
    };
    let response = sender.send_request(request);
    tokio::pin!(response, connection);
    let head = tokio::select! {
        // The response first: the connection also ends when the server closes after a whole response.
        biased;
        head = &mut response => head,
        _ = &mut connection => response.await,
    };
    match head {
        Ok(head) => {
            let code = head.status().as_u16();
            if status.iter().any(|range| range.contains(&code)) {
                Answer::YES
            } else {
                Answer::no(format!("status {code}"))
            }
        }
        Err(error) => Answer::no(failure(&error)),
    }
}

fn failure(error: &hyper::Error) -> String {
    if error.is_parse() {
        "the answer is no HTTP/1.1".into()
    } else {
        "the connection was closed before a response".into()
    }
}

fn shown(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}
