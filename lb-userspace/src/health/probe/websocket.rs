//! A WebSocket's opening handshake (RFC 6455), and a ping.

use futures::{SinkExt as _, StreamExt as _};
use hyper::{Request, header};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout_at,
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        Error, Message,
        error::ProtocolError,
        handshake::client::generate_key,
        protocol::{CloseFrame, WebSocketConfig, frame::coding::CloseCode},
    },
};

use super::{Failure, Limit, USER_AGENT};
use crate::model::WebSocketCheck;

/// The largest message that a server may send before it answers a ping, in bytes.
const MESSAGE_BYTES: usize = 64 << 10;

/// Asks over a stream that is connected.
pub(super) async fn ask<S>(
    stream: S,
    check: &WebSocketCheck,
    host: &str,
    limit: Limit,
) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = request(check, host)?;
    let config = WebSocketConfig::default()
        .read_buffer_size(4 << 10)
        .max_message_size(Some(MESSAGE_BYTES))
        .max_frame_size(Some(MESSAGE_BYTES));
    let mut socket = limit
        .keep("got no response to its upgrade", async {
            let opened = client_async_with_config(request, stream, Some(config)).await;
            match opened {
                Ok((socket, _)) => Ok(socket),
                Err(error) => Err(not_opened(&error)),
            }
        })
        .await?;
    if check.ping {
        limit
            .keep("got no pong in answer to its ping", ping(&mut socket))
            .await?;
    }
    // A farewell, so that the server does not take this for a client that broke down. Whether it says goodbye is its own affair.
    let _ = timeout_at(limit.deadline, leave(&mut socket)).await;
    Ok(())
}

fn request(check: &WebSocketCheck, host: &str) -> Result<Request<()>, Failure> {
    let mut request = Request::get(format!("ws://{host}{}", check.path))
        .header(header::HOST, host)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, generate_key())
        .header(header::USER_AGENT, USER_AGENT)
        .body(())
        // The configuration is checked for this; what slips through must not look like a sick backend.
        .map_err(|error| Failure::unasked(error.to_string()))?;
    request.headers_mut().extend(check.target.headers.clone());
    Ok(request)
}

fn not_opened(error: &Error) -> Failure {
    Failure::no(match error {
        Error::Http(response) => format!(
            "got status {}, not 101, to its upgrade",
            response.status().as_u16()
        ),
        Error::Protocol(ProtocolError::SecWebSocketAcceptKeyMismatch) => {
            "got an upgrade with a wrong Sec-WebSocket-Accept".to_owned()
        }
        Error::Protocol(ProtocolError::MissingUpgradeWebSocketHeader) => {
            "got an upgrade without Upgrade: websocket".to_owned()
        }
        Error::Protocol(ProtocolError::MissingConnectionUpgradeHeader) => {
            "got an upgrade without Connection: Upgrade".to_owned()
        }
        Error::Protocol(ProtocolError::SecWebSocketSubProtocolError(_)) => {
            "got an upgrade to a subprotocol other than those offered".to_owned()
        }
        Error::Protocol(ProtocolError::HandshakeIncomplete) | Error::Io(_) => {
            "was closed without a response to its upgrade".to_owned()
        }
        Error::AttackAttempt | Error::Capacity(_) => {
            "got a response with too long a header to its upgrade".to_owned()
        }
        _ => "got an answer that is no HTTP/1.1 to its upgrade".to_owned(),
    })
}

async fn ping<S>(socket: &mut WebSocketStream<S>) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let closed = || Failure::no("was opened, and closed before a pong");
    let nonce = fastrand::u64(..).to_be_bytes();
    let sent = socket.send(Message::Ping(nonce.to_vec().into())).await;
    sent.map_err(|_| closed())?;
    while let Some(message) = socket.next().await {
        match message {
            Ok(Message::Pong(payload)) if payload == nonce.as_slice() => return Ok(()),
            Ok(Message::Close(_)) => return Err(closed()),
            // What a server says of its own accord.
            Ok(_) => {}
            Err(Error::Capacity(_)) => {
                return Err(Failure::no(
                    "was opened, and got a message of more than 64 KiB before a pong",
                ));
            }
            Err(Error::Io(_) | Error::ConnectionClosed | Error::AlreadyClosed) => {
                return Err(closed());
            }
            Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => {
                return Err(closed());
            }
            Err(_) => {
                return Err(Failure::no(
                    "was opened, and got frames that are no WebSocket's before a pong",
                ));
            }
        }
    }
    Err(closed())
}

async fn leave<S>(socket: &mut WebSocketStream<S>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let farewell = CloseFrame {
        code: CloseCode::Normal,
        reason: "health check".into(),
    };
    if socket.close(Some(farewell)).await.is_ok() {
        while let Some(Ok(_)) = socket.next().await {}
    }
}
