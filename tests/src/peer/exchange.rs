//! A large transfer there and back on one connection, each way with a hash of what was sent.
//!
//! The client sends all it has and closes its half of the stream; only then does the backend answer, with as many bytes of its
//! own. So whatever is on the way has to carry a half-closed stream for as long as the second half takes.

use std::hash::{DefaultHasher, Hasher as _};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};

use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::random::Random;

/// What a request asks to be upgraded to.
pub(super) const PROTOCOL: &str = "exchange";
const ANSWER: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: exchange\r\n\r\n";
const CHUNK: usize = 1 << 16;

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

/// Sends `length` bytes to a backend, closes that half, and takes as many back.
///
/// # Errors
/// When the connection breaks, or a byte is missing, wrong or too many in either direction.
pub fn run(mut stream: TcpStream, length: u64, seed: u64) -> Result<()> {
    write!(
        stream,
        "GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: {PROTOCOL}\r\n\r\n"
    )?;
    let mut answer = [0; ANSWER.len()];
    stream.read_exact(&mut answer)?;
    ensure!(answer == ANSWER, "the backend does not exchange");

    let mut buffer = vec![0; CHUNK];
    let mut source = Source::new(seed, length);
    loop {
        let chunk = source.next(&mut buffer);
        if chunk.is_empty() {
            break;
        }
        stream.write_all(chunk)?;
    }
    stream.shutdown(Shutdown::Write)?;

    let mut number = [0; 8];
    stream.read_exact(&mut number)?;
    ensure!(
        number == source.hash.finish().to_be_bytes(),
        "the backend has other bytes than were sent"
    );
    let mut hash = DefaultHasher::new();
    let mut left = length;
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(CHUNK));
        let got = stream.read(&mut buffer[..most])?;
        ensure!(got > 0, "closed with {left} bytes to come");
        hash.write(&buffer[..got]);
        left -= got as u64;
    }
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
    stream.write_all(ANSWER).await?;
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
    let mut source = Source::new(hash, length);
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
