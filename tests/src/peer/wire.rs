//! What a client says, on the wire: WebSocket messages, or plain bytes that a backend sends back as they are.

use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message};

use super::client::{Break, Close, Protocol};

/// What a request asks to be upgraded to, for plain bytes.
pub(super) const PLAIN: &str = "bytes";
/// What comes before a backend's name in answer to that; a line's end follows it.
pub(super) const PLAIN_ANSWER: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: bytes\r\n\r\n";
/// The longest answer with a name in it.
const LONGEST_ANSWER: usize = 256;

/// An open connection whose backend has said its name.
#[derive(Debug)]
pub(super) enum Wire {
    Web(Box<WebSocketStream<TcpStream>>),
    Plain(TcpStream),
}

impl From<tungstenite::Error> for Break {
    fn from(error: tungstenite::Error) -> Self {
        match error {
            tungstenite::Error::Io(error) => error.into(),
            tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => {
                Self::Closed
            }
            tungstenite::Error::Protocol(
                tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
            ) => Self::Closed,
            other => Self::Other(other.to_string()),
        }
    }
}

impl Wire {
    /// Agrees on a protocol over a new connection; gives the backend's name too.
    pub(super) async fn open(
        protocol: Protocol,
        mut stream: TcpStream,
    ) -> Result<(Self, String), Break> {
        let target = stream.peer_addr()?;
        match protocol {
            Protocol::WebSocket => {
                let url = format!("ws://{target}/");
                let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await?;
                match read(socket.next().await)? {
                    Message::Text(name) => Ok((Self::Web(Box::new(socket)), name.to_string())),
                    _ => Err(Break::WrongBytes),
                }
            }
            Protocol::Plain => {
                let request = format!(
                    "GET / HTTP/1.1\r\nHost: {target}\r\nConnection: Upgrade\r\nUpgrade: {PLAIN}\r\n\r\n"
                );
                stream.write_all(request.as_bytes()).await?;
                let mut answer = Vec::new();
                // Nothing but this line comes before the client has said something.
                while !(answer.len() > PLAIN_ANSWER.len() && answer.ends_with(b"\n")) {
                    if stream.read_buf(&mut answer).await? == 0 {
                        return Err(Break::Closed);
                    }
                    if answer.len() > LONGEST_ANSWER {
                        return Err(Break::WrongBytes);
                    }
                }
                let answer = String::from_utf8(answer).map_err(|_| Break::WrongBytes)?;
                let name = answer
                    .strip_prefix(PLAIN_ANSWER)
                    .ok_or(Break::WrongBytes)?
                    .trim_end();
                let name = name.to_owned();
                Ok((Self::Plain(stream), name))
            }
        }
    }

    /// Sends `payload` and takes in as much; whether it is the same is checked.
    pub(super) async fn exchange(&mut self, payload: &[u8]) -> Result<(), Break> {
        match self {
            Self::Web(socket) => {
                socket.send(Message::binary(payload.to_vec())).await?;
                match read(socket.next().await)? {
                    Message::Binary(echoed) if echoed == payload => Ok(()),
                    _ => Err(Break::WrongBytes),
                }
            }
            Self::Plain(stream) => {
                stream.write_all(payload).await?;
                let mut echoed = vec![0; payload.len()];
                stream.read_exact(&mut echoed).await?;
                if echoed == payload {
                    Ok(())
                } else {
                    Err(Break::WrongBytes)
                }
            }
        }
    }

    /// Waits for what comes between two messages: an end, or something that nobody asked for. May be dropped at any time.
    pub(super) async fn unasked(&mut self) -> Break {
        match self {
            Self::Web(socket) => read(socket.next().await).err().unwrap_or(Break::WrongBytes),
            Self::Plain(stream) => match stream.read(&mut [0]).await {
                Ok(0) => Break::Closed,
                Ok(_) => Break::WrongBytes,
                Err(error) => error.into(),
            },
        }
    }

    fn stream(&self) -> &TcpStream {
        match self {
            Self::Web(socket) => socket.get_ref(),
            Self::Plain(stream) => stream,
        }
    }

    /// Closes it; it is to be dropped right after that.
    pub(super) async fn close(&mut self, how: Close, patience: Duration) {
        match how {
            Close::Orderly => {
                let _ = timeout(patience, self.take_leave()).await;
            }
            // The socket closes when its value is dropped.
            Close::Abort => {
                let _ = self.stream().set_zero_linger();
            }
            // A socket in repair mode closes without a word (tcp(7) does not tell; CRIU lives on it).
            Close::Vanish => {
                let _ = nix::sys::socket::setsockopt(
                    self.stream(),
                    nix::sys::socket::sockopt::TcpRepair,
                    &1,
                );
            }
        }
    }

    async fn take_leave(&mut self) {
        match self {
            Self::Web(socket) => {
                let _ = socket.as_mut().close(None).await;
                while let Some(Ok(_)) = socket.next().await {}
            }
            Self::Plain(stream) => {
                let _ = stream.shutdown().await;
                while stream.read(&mut [0]).await.is_ok_and(|length| length > 0) {}
            }
        }
    }
}

fn read(message: Option<tungstenite::Result<Message>>) -> Result<Message, Break> {
    match message {
        Some(Ok(Message::Close(_))) | None => Err(Break::Closed),
        Some(Ok(message)) => Ok(message),
        Some(Err(error)) => Err(error.into()),
    }
}
