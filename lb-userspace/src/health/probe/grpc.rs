//! A call of `grpc.health.v1.Health/Check`
//! ([the protocol](https://github.com/grpc/grpc/blob/master/doc/health-checking.md), [on the wire](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md)).
//!
//! Both messages have one field, so they are written and read by hand.

use std::pin::pin;

use h2::{RecvStream, client};
use hyper::{
    HeaderMap, Method, Request, StatusCode, Uri, Version,
    body::{Buf as _, Bytes},
    header,
};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Failure, HEADER_BYTES, Limit, USER_AGENT, quoted};
use crate::model::GrpcCheck;

const METHOD: &str = "/grpc.health.v1.Health/Check";
/// The most of a message that is read, in bytes: an honest one has two.
const MESSAGE_BYTES: usize = 1 << 10;
/// What precedes a message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// Asks over a stream that is connected.
pub(super) async fn ask<S>(
    stream: S,
    check: &GrpcCheck,
    host: &str,
    limit: Limit,
) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = request(check, host, limit)?;
    let (sender, connection) = limit
        .keep("got no HTTP/2 connection", async {
            client::Builder::new()
                .enable_push(false)
                .max_header_list_size(HEADER_BYTES as u32)
                .handshake::<_, Bytes>(stream)
                .await
                .map_err(|error| broken(&error))
        })
        .await?;
    let exchange = limit.keep("got no response", async {
        let mut sender = sender.ready().await.map_err(|error| broken(&error))?;
        let (response, mut body) = sender
            .send_request(request, false)
            .map_err(|error| broken(&error))?;
        body.send_data(message(&check.service), true)
            .map_err(|error| broken(&error))?;
        let (head, body) = response.await.map_err(|error| broken(&error))?.into_parts();
        if head.status != StatusCode::OK {
            return Err(Failure::no(format!(
                "got HTTP status {}, not 200",
                head.status.as_u16()
            )));
        }
        // A response of trailers only has its status at its head.
        expect_ok(&head.headers, check)?;
        expect_serving(body, check).await
    });
    let (mut connection, mut exchange) = (pin!(connection), pin!(exchange));
    tokio::select! {
        biased;
        done = &mut exchange => done,
        _ = &mut connection => exchange.await,
    }
}

fn request(check: &GrpcCheck, host: &str, limit: Limit) -> Result<Request<()>, Failure> {
    let scheme = if check.target.tls.is_some() {
        "https"
    } else {
        "http"
    };
    // The configuration is checked for this; what slips through must not look like a sick backend.
    let impossible = |error: hyper::http::Error| Failure::unasked(error.to_string());
    let uri = Uri::builder()
        .scheme(scheme)
        .authority(host)
        .path_and_query(METHOD)
        .build()
        .map_err(impossible)?;
    let mut request = Request::builder()
        .version(Version::HTTP_2)
        .method(Method::POST)
        .uri(uri)
        .header(header::TE, "trailers")
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::USER_AGENT, USER_AGENT)
        .header("grpc-timeout", format!("{}m", limit.timeout.as_millis()))
        .body(())
        .map_err(impossible)?;
    request.headers_mut().extend(check.target.headers.clone());
    Ok(request)
}

fn broken(error: &h2::Error) -> Failure {
    Failure::no(match error.reason() {
        _ if error.is_io() => "was closed without a response".to_owned(),
        Some(reason) if error.is_remote() => {
            format!("was refused by HTTP/2 ({})", reason.description())
        }
        _ => "got an answer that is no HTTP/2".to_owned(),
    })
}

/// `HealthCheckRequest { string service = 1; }`, with its prefix.
fn message(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        // Field 1, delimited by its length.
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push(length as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut whole = vec![0; PREFIX_BYTES];
    whole[1..].copy_from_slice(&(message.len() as u32).to_be_bytes());
    whole.append(&mut message);
    whole.into()
}

/// Whether the call went well as far as these headers or trailers tell; those of a response that goes on say nothing.
fn expect_ok(headers: &HeaderMap, check: &GrpcCheck) -> Result<(), Failure> {
    let Some(status) = headers.get("grpc-status") else {
        return Ok(());
    };
    let status = String::from_utf8_lossy(status.as_bytes());
    if status == "0" {
        return Ok(());
    }
    let meaning = match status.as_ref() {
        "5" if !check.service.is_empty() => " (it does not know this service)",
        "12" => " (it has no health service)",
        "7" => " (permission denied)",
        "14" => " (unavailable)",
        "16" => " (unauthenticated)",
        _ => "",
    };
    Err(Failure::no(format!(
        "got gRPC status {}{meaning}, not 0",
        match status.parse::<u32>() {
            Ok(number) => number.to_string(),
            Err(_) => quoted(&status),
        }
    )))
}

async fn expect_serving(mut body: RecvStream, check: &GrpcCheck) -> Result<(), Failure> {
    let mut read = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(|error| broken(&error))?;
        let _ = body.flow_control().release_capacity(data.len());
        if read.len() + data.remaining() > PREFIX_BYTES + MESSAGE_BYTES {
            return Err(Failure::no("got a message of more than 1 KiB"));
        }
        read.extend_from_slice(&data);
    }
    let trailers = body.trailers().await.map_err(|error| broken(&error))?;
    let trailers = trailers.unwrap_or_default();
    expect_ok(&trailers, check)?;
    let status = serving_status(&read)
        .ok_or_else(|| Failure::no("got an answer that is no HealthCheckResponse"))?;
    if trailers.get("grpc-status").is_none() {
        return Err(Failure::no("got a response without a gRPC status"));
    }
    // ServingStatus.
    let word = match status {
        0 => "UNKNOWN".to_owned(),
        1 => return Ok(()),
        2 => "NOT_SERVING".to_owned(),
        3 => "SERVICE_UNKNOWN".to_owned(),
        other => format!("health status {other}"),
    };
    Err(Failure::no(format!("got {word}, not SERVING")))
}

/// `HealthCheckResponse { ServingStatus status = 1; }` with its prefix; fields that a later version may add are skipped.
fn serving_status(bytes: &[u8]) -> Option<u64> {
    let (prefix, mut message) = bytes.split_at_checked(PREFIX_BYTES)?;
    let length = u32::from_be_bytes(prefix[1..].try_into().ok()?);
    // No encoding was offered, so it cannot be compressed.
    if prefix[0] != 0 || length as usize != message.len() {
        return None;
    }
    let mut status = 0;
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        match tag & 7 {
            0 => {
                let value = varint(&mut message)?;
                if tag >> 3 == 1 {
                    status = value;
                }
            }
            1 => message = message.get(8..)?,
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            5 => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_are_protobuf() {
        assert_eq!(message(""), &[0, 0, 0, 0, 0][..]);
        assert_eq!(message("chat"), &b"\0\0\0\0\x06\x0a\x04chat"[..]);
        let long = "s".repeat(200);
        assert_eq!(message(&long)[..8], [0, 0, 0, 0, 203, 0x0a, 0xc8, 0x01]);
    }

    #[test]
    fn responses_are_read_as_protobuf_is() {
        assert_eq!(serving_status(b"\0\0\0\0\x02\x08\x01"), Some(1));
        // The default is not sent.
        assert_eq!(serving_status(b"\0\0\0\0\0"), Some(0));
        // Unknown fields before and after, of each wire type.
        assert_eq!(
            serving_status(b"\0\0\0\0\x16\x10\x96\x01\x1a\x02hi\x08\x02\x25abcd\x29abcdefg"),
            None
        );
        assert_eq!(
            serving_status(b"\0\0\0\0\x17\x10\x96\x01\x1a\x02hi\x08\x02\x25abcd\x29abcdefgh"),
            Some(2)
        );
        for wrong in [
            &b""[..],
            b"\0\0\0\0",
            b"\x01\0\0\0\x02\x08\x01",
            b"\0\0\0\0\x03\x08\x01",
            b"\0\0\0\0\x02\x08\x81",
            b"\0\0\0\0\x02\x0b\x01",
            b"\0\0\0\0\x02\x0a\x7f",
            b"\0\0\0\0\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            assert_eq!(serving_status(wrong), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut whole = vec![0];
            whole.extend((bytes.len() as u32).to_be_bytes());
            whole.extend(&bytes);
            serving_status(&whole);
            serving_status(&bytes);
        }
    }
}
