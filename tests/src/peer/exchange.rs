//! A large transfer there and back on one connection, each way with a hash of what was sent.
//!
//! One side sends all it has and closes its half of the stream; only then does the other answer, with as many bytes of its
//! own. So whatever is on the way has to carry a half-closed stream for as long as the second half takes. Who begins is the client ([`run`]) or the
//! backend ([`run_backend_first`]).

use std::hash::{DefaultHasher, Hasher as _};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};

use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::random::Random;

/// What a request asks to be upgraded to.
pub(super) const PROTOCOL: &str = "exchange";
/// The same where the backend begins.
pub(super) const BACKEND_FIRST: &str = "exchange-first";
/// The header of a request that says how much is sent each way; who answers the first half knows from that.
pub(super) const LENGTH: &str = "exchange-length";
const CHUNK: usize = 1 << 16;
/// Bytes of a hash on the wire.
const HASH: usize = 8;

/// What one side sends: bytes that nobody guesses, and the hash of those that were taken.
struct Source {
    random: Random,
    hash: DefaultHasher,
    left: u64,
}

impl Source {
    fn new(seed: u64, length: u64) -> Self {
        Self {
            random: Random::new(seed),
            hash: DefaultHasher::new(),
            left: length,
        }
    }

    /// Fills the front of `buffer`; an empty slice is the end.
    fn next<'a>(&mut self, buffer: &'a mut [u8]) -> &'a [u8] {
        let length = buffer
            .len()
            .min(usize::try_from(self.left).unwrap_or(CHUNK));
        self.random.fill(&mut buffer[..length]);
        self.hash.write(&buffer[..length]);
        self.left -= length as u64;
        &buffer[..length]
    }
}

/// What a backend answers to who asks for a protocol.
fn answer(protocol: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n"
    )
}

/// Sends `length` bytes to a backend, closes that half, and takes as many back.
///
/// # Errors
/// When the connection breaks, or a byte is missing, wrong or too many in either direction.
pub fn run(mut stream: TcpStream, length: u64, seed: u64) -> Result<()> {
    ask(&mut stream, PROTOCOL, length)?;
    let sent = send(&mut stream, length, seed)?;
    stream.shutdown(Shutdown::Write)?;
    let mut number = [0; HASH];
    stream.read_exact(&mut number)?;
    ensure!(number == sent, "the backend has other bytes than were sent");
    take(&mut stream, length)
}

/// Takes `length` bytes from a backend, which closes that half, and sends as many back, with their hash. Whether they get there is what the backend
/// counts: see [`super::backend::Backend::exchanged`].
///
/// # Errors
/// When the connection breaks, or a byte that the backend sent is missing, wrong or too many.
pub fn run_backend_first(mut stream: TcpStream, length: u64, seed: u64) -> Result<()> {
    ask(&mut stream, BACKEND_FIRST, length)?;
    take(&mut stream, length)?;
    let sent = send(&mut stream, length, seed)?;
    stream.write_all(&sent)?;
    stream.shutdown(Shutdown::Write)?;
    Ok(())
}

/// Agrees on a protocol over a new connection.
fn ask(stream: &mut TcpStream, protocol: &str, length: u64) -> Result<()> {
    write!(
        stream,
        "GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n{LENGTH}: {length}\r\n\r\n"
    )?;
    let expected = answer(protocol);
    let mut answered = vec![0; expected.len()];
    stream.read_exact(&mut answered)?;
    ensure!(
        answered == expected.as_bytes(),
        "the backend does not exchange"
    );
    Ok(())
}

/// Sends so many bytes; gives their hash.
fn send(stream: &mut TcpStream, length: u64, seed: u64) -> Result<[u8; HASH]> {
    let mut buffer = vec![0; CHUNK];
    let mut source = Source::new(seed, length);
    loop {
        let chunk = source.next(&mut buffer);
        if chunk.is_empty() {
            return Ok(source.hash.finish().to_be_bytes());
        }
        stream.write_all(chunk)?;
    }
}

/// Takes so many bytes, their hash, and the end.
fn take(stream: &mut TcpStream, length: u64) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut hash = DefaultHasher::new();
    let mut left = length;
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(CHUNK));
        let got = stream.read(&mut buffer[..most])?;
        ensure!(got > 0, "closed with {left} bytes to come");
        hash.write(&buffer[..got]);
        left -= got as u64;
    }
    let mut number = [0; HASH];
    stream.read_exact(&mut number)?;
    ensure!(
        number == hash.finish().to_be_bytes(),
        "other bytes than the backend sent"
    );
    ensure!(stream.read(&mut buffer)? == 0, "more bytes than agreed");
    Ok(())
}

/// The backend's side, after the request.
pub(super) async fn serve(mut stream: tokio::net::TcpStream) -> Result<()> {
    stream.write_all(answer(PROTOCOL).as_bytes()).await?;
    let mut buffer = vec![0; CHUNK];
    let mut hash = DefaultHasher::new();
    let mut length = 0;
    loop {
        let got = stream.read(&mut buffer).await?;
        if got == 0 {
            break;
        }
        hash.write(&buffer[..got]);
        length += got as u64;
    }
    let hash = hash.finish();
    stream.write_all(&hash.to_be_bytes()).await?;
    give(&mut stream, length, hash).await
}

/// The backend's side where it begins, after a request for so many bytes. Fails too if what comes back is not what the client says it sent.
pub(super) async fn serve_first(mut stream: tokio::net::TcpStream, length: u64) -> Result<()> {
    stream.write_all(answer(BACKEND_FIRST).as_bytes()).await?;
    give(&mut stream, length, length).await?;
    let mut buffer = vec![0; CHUNK];
    let mut hash = DefaultHasher::new();
    let mut left = length;
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(CHUNK));
        let got = stream.read(&mut buffer[..most]).await?;
        ensure!(got > 0, "closed with {left} bytes to come");
        hash.write(&buffer[..got]);
        left -= got as u64;
    }
    let mut number = [0; HASH];
    stream.read_exact(&mut number).await?;
    ensure!(
        number == hash.finish().to_be_bytes(),
        "other bytes than the client sent"
    );
    ensure!(
        stream.read(&mut buffer).await? == 0,
        "more bytes than agreed"
    );
    Ok(())
}

/// Sends so many bytes and their hash, and closes that half.
async fn give(stream: &mut tokio::net::TcpStream, length: u64, seed: u64) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut source = Source::new(seed, length);
    loop {
        let chunk = source.next(&mut buffer);
        if chunk.is_empty() {
            break;
        }
        stream.write_all(chunk).await?;
    }
    stream
        .write_all(&source.hash.finish().to_be_bytes())
        .await?;
    stream.shutdown().await?;
    Ok(())
}
