//! Plain TCP and HTTP from a host of the lab, for what a WebSocket hides.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::namespace::Namespace;

/// Connects from `namespace`; reads and writes on the stream wait no longer than `patience` either.
///
/// # Errors
/// When the connection is refused or not made within `patience`.
pub fn connect(
    namespace: &Namespace,
    target: SocketAddr,
    patience: Duration,
) -> std::io::Result<TcpStream> {
    namespace.run(move || {
        let stream = TcpStream::connect_timeout(&target, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(stream)
    })
}

/// Asks for `path` in one HTTP/1.1 request and returns the status of the answer.
///
/// # Errors
/// When there is no connection, no answer within `patience`, or none that is HTTP.
pub fn http_status(
    namespace: &Namespace,
    target: SocketAddr,
    path: &str,
    patience: Duration,
) -> Result<u16> {
    let mut stream = connect(namespace, target, patience)?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer
        .split_whitespace()
        .nth(1)
        .context("an answer without a status")?;
    status
        .parse()
        .with_context(|| format!("not a status: {status}"))
}
