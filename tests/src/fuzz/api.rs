//! The daemon's two listeners: requests that are nearly right, or not at all, to the admin socket and to the status page.
//!
//! Promised is that each is answered or its connection closed, never with a fault of the daemon's; and that the daemon lives on, with its state as a
//! status that can be read, and with every connection that it steers.

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    config::SERVICE,
    peer::crowd,
    random::Random,
    stage::Stage,
    topology::{Place, Topology},
};

const SOCKET: &str = "/run/tether/admin.sock";
const PAGE: &str = "127.0.0.1:9477";
/// No answer may take longer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Who does not read a request on within this time has heard enough: a stream of events has begun, say.
const HEARING: Duration = Duration::from_secs(1);
const CONNECTIONS: usize = 30;

/// Sends requests from a seed on to a daemon in a lab until the time is over. Gives their number.
///
/// # Errors
/// When the lab cannot be built, or a promise is broken; the message holds the request.
pub fn run(first: u64, time: Duration) -> Result<u64> {
    let stage = Stage::set(Topology::new(Place::Farm), first, |_| {})?;
    let connections = stage.clients.open(CONNECTIONS, stage.plan(), |_| {})?;
    let pid = stage.tether.pid()?;
    let requests = stage.lab.balancer().run(move || send_all(first, time))?;
    ensure!(stage.tether.status()?.pid == pid, "the daemon is another");
    for connection in &connections {
        connection.echo()?;
    }
    let breaks = crowd::breaks(&connections);
    ensure!(breaks.is_empty(), "connections broke: {breaks:?}");
    stage.close();
    Ok(requests)
}

/// On the daemon's own host.
fn send_all(first: u64, time: Duration) -> Result<u64> {
    let paths = described_paths()?;
    let began = Instant::now();
    let mut number = 0;
    while began.elapsed() < time {
        let seed = first.wrapping_add(number);
        let mut random = Random::new(seed);
        let request = request(&mut random, &paths);
        let shown = || format!("seed {seed}: {}", String::from_utf8_lossy(&request));
        let answer = if random.below(4) == 0 {
            let stream = TcpStream::connect(PAGE).with_context(shown)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(HEARING))?;
            ask(stream, &request, |stream| {
                stream.shutdown(std::net::Shutdown::Write)
            })
        } else {
            let stream = UnixStream::connect(SOCKET).with_context(shown)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(HEARING))?;
            ask(stream, &request, |stream| {
                stream.shutdown(std::net::Shutdown::Write)
            })
        };
        let answer = answer.with_context(shown)?;
        // Who asks in the older version is answered in it.
        let status: Option<u16> = answer
            .strip_prefix(b"HTTP/1.1 ")
            .or_else(|| answer.strip_prefix(b"HTTP/1.0 "))
            .and_then(|rest| std::str::from_utf8(rest.get(..3)?).ok()?.parse().ok());
        // 503 says that it is busy, or not ready.
        let is_fault = match status {
            Some(status) => status >= 500 && status != 503,
            None => !answer.is_empty(),
        };
        ensure!(
            !is_fault,
            "{}\nanswered {}",
            shown(),
            String::from_utf8_lossy(&answer)
        );
        if number % 64 == 0 {
            get_json("/v1/status").with_context(shown)?;
        }
        number += 1;
    }
    get_json("/v1/status")?;
    Ok(number)
}

/// Sends a request and reads what comes of it, a few thousand bytes at most: a stream of events has no end.
fn ask<S: Read + Write>(
    mut stream: S,
    request: &[u8],
    done: impl Fn(&S) -> std::io::Result<()>,
) -> Result<Vec<u8>> {
    // Who has heard enough may close while this writes still.
    let is_heard = stream.write_all(request).is_ok();
    if is_heard {
        let _ = done(&stream);
    }
    let mut answer = vec![0; 4_096];
    let mut length = 0;
    while length < answer.len() && !answer[..length].windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut answer[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            // Half a request need not be answered.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && !is_heard => break,
            Err(error) => return Err(error).context("no answer"),
        }
    }
    answer.truncate(length);
    Ok(answer)
}

fn get_json(path: &str) -> Result<Value> {
    let mut stream = UnixStream::connect(SOCKET)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: tether\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("no end of the head")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{path}: {head}");
    // In one chunk or as it is.
    let start = body.find('{').context("no object")?;
    let end = body.rfind('}').context("no object's end")?;
    serde_json::from_str(&body[start..=end]).with_context(|| path.to_owned())
}

/// The methods and paths that the admin API describes.
fn described_paths() -> Result<Vec<(String, String)>> {
    let document = get_json("/v1/openapi.json")?;
    let paths = document["paths"].as_object().context("no paths")?;
    Ok(paths
        .iter()
        .flat_map(|(path, methods)| {
            let methods = methods.as_object().into_iter().flatten();
            methods.map(|(method, _)| (method.to_uppercase(), path.clone()))
        })
        .collect())
}

/// One request.
fn request(random: &mut Random, paths: &[(String, String)]) -> Vec<u8> {
    const NAMES: [&str; 8] = [SERVICE, "b1", "b2", "nobody", "", "%2e%2e", "%00", "b1%2f"];
    const QUERIES: [&str; 10] = [
        "wait=maybe",
        "weight=-1",
        "weight=1e9",
        "limit=0",
        "limit=99999999999",
        "client=10.0.0.0/99",
        "sort=colour",
        "after=%ff",
        "idle_after=-5s",
        "&&=&?",
    ];
    const BODIES: [&str; 9] = [
        "",
        "{}",
        "[]",
        "null",
        "{\"weight\":50}",
        "{\"weight\":-1}",
        "{\"address\":\"10.0.3.11\"}",
        "{\"address\":\"::\",\"port\":0}",
        "{\"weight\":1e400,\"weight\":\"x\"}",
    ];
    const METHODS: [&str; 7] = ["GET", "PUT", "POST", "DELETE", "HEAD", "OPTIONS", "BREW"];
    let pick =
        |random: &mut Random, of: &[&str]| of[random.below(of.len() as u64) as usize].to_owned();
    let (mut method, path) = paths[random.below(paths.len() as u64) as usize].clone();
    if random.below(8) == 0 {
        method = pick(random, &METHODS);
    }
    let mut target = String::new();
    for (n, part) in path.split('{').enumerate() {
        match part.split_once('}').filter(|_| n > 0) {
            Some((_, rest)) => {
                target += &pick(random, &NAMES);
                target += rest;
            }
            None => target += part,
        }
    }
    if random.below(3) == 0 {
        target += "?";
        target += &pick(random, &QUERIES);
    }
    let mut body = pick(random, &BODIES);
    match random.below(16) {
        0 => body = "[".repeat(100_000),
        1 => body = format!("{{\"config\":\"{}\"}}", "x".repeat(2 << 20)),
        _ => {}
    }
    let length = match random.below(16) {
        0 => "18446744073709551616".to_owned(),
        1 => "-1".to_owned(),
        2 => (body.len() + 10).to_string(),
        _ => body.len().to_string(),
    };
    let mut request = format!(
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
    .into_bytes();
    if random.below(4) == 0 {
        let within = request.len().min(400) as u64;
        for _ in 0..=random.below(4) {
            let at = random.below(within) as usize;
            match random.below(3) {
                0 => request[at] = random.bits() as u8,
                1 => request[at] ^= 1 << random.below(8),
                _ => request.truncate(at.max(1)),
            }
            if request.len() < within as usize {
                break;
            }
        }
    }
    request
}
