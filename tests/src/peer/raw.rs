//! Plain TCP and HTTP from a host of the lab, for what a WebSocket hides; and ports that its kernel keeps.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::namespace::Namespace;
use crate::wait;

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

/// Whether a host has no connection left at this port of its own. When a client has closed, the last acknowledgement may still be on its way, and until it is
/// there the kernel keeps the port.
///
/// # Errors
/// When that cannot be found out.
pub fn is_free(host: &Namespace, port: u16) -> Result<bool> {
    Ok(kept(host, port)?.is_empty())
}

/// Waits until [`is_free`].
///
/// # Errors
/// When `patience` passes first; the message holds what has the port.
pub fn wait_free(host: &Namespace, port: u16, patience: Duration) -> Result<()> {
    let kept = || kept(host, port);
    wait::until_seen("the port is free", patience, kept, String::is_empty).map(drop)
}

/// Connections of a host from or to this port of its own, a line for each.
fn kept(host: &Namespace, port: u16) -> Result<String> {
    host.sh(&format!(
        "ss --no-header --tcp --numeric state all sport = :{port}"
    ))
}
