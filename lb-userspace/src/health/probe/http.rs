//! A request over HTTP/1.1, and what is expected of the answer.

use std::{ops::RangeInclusive, pin::pin};

use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Failure, HEADER_BYTES, HEADER_FIELDS, Limit, USER_AGENT, quoted};
use crate::model::{HttpCheck, JsonEquals};

/// The most of a body that is read, in bytes, where anything is expected of it.
const BODY_BYTES: usize = 64 << 10;

/// Asks over a stream that is connected.
pub(super) async fn ask<S>(
    stream: S,
    check: &HttpCheck,
    host: &str,
    limit: Limit,
) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = request(check, host)?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HEADER_BYTES)
        .max_headers(HEADER_FIELDS)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| no_response(&error))?;
    let exchange = async {
        let response = limit
            .keep("got no response", async {
                let response = sender.send_request(request).await;
                response.map_err(|error| no_response(&error))
            })
            .await?;
        expect_status(&response, &check.status)?;
        if check.body_contains.is_none() && check.json.is_none() {
            return Ok(());
        }
        limit
            .keep("got no whole body", expect_body(response, check))
            .await
    };
    let (mut connection, mut exchange) = (pin!(connection), pin!(exchange));
    tokio::select! {
        // The exchange first: the connection also ends when the server closes after a whole response.
        biased;
        done = &mut exchange => done,
        _ = &mut connection => exchange.await,
    }
}

fn request(check: &HttpCheck, host: &str) -> Result<Request<Empty<Bytes>>, Failure> {
    let mut request = Request::builder()
        .method(&check.method)
        .uri(check.path.as_str())
        .header(header::HOST, host)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::CONNECTION, "close")
        .body(Empty::new())
        // The configuration is checked for this; what slips through must not look like a sick backend.
        .map_err(|error| Failure::unasked(error.to_string()))?;
    request.headers_mut().extend(check.target.headers.clone());
    Ok(request)
}

fn no_response(error: &hyper::Error) -> Failure {
    Failure::no(if error.is_parse_too_large() {
        "got a response with a header of more than 16 KiB or 128 fields"
    } else if error.is_parse() {
        "got an answer that is no HTTP/1.1"
    } else {
        "was closed without a response"
    })
}

fn expect_status(
    response: &Response<Incoming>,
    expected: &[RangeInclusive<u16>],
) -> Result<(), Failure> {
    let status = response.status().as_u16();
    if expected.iter().any(|range| range.contains(&status)) {
        return Ok(());
    }
    Err(Failure::no(format!(
        "got status {status}, not {}",
        shown(expected)
    )))
}

fn shown(ranges: &[RangeInclusive<u16>]) -> String {
    let one = |range: &RangeInclusive<u16>| match (range.start(), range.end()) {
        (from, to) if from == to => from.to_string(),
        (from, to) => format!("{from}-{to}"),
    };
    ranges.iter().map(one).collect::<Vec<_>>().join(" or ")
}

async fn expect_body(response: Response<Incoming>, check: &HttpCheck) -> Result<(), Failure> {
    let mut body = response.into_body();
    let mut read = Vec::new();
    let mut missing = check.body_contains.as_deref();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Failure::no("was closed before the end of the body"))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        let room = BODY_BYTES - read.len();
        let is_too_long = data.len() > room;
        // The text may begin in what came before.
        let from = read
            .len()
            .saturating_sub(missing.map_or(0, |text| text.len().saturating_sub(1)));
        read.extend_from_slice(&data[..data.len().min(room)]);
        if missing.is_some_and(|text| contains(&read[from..], text.as_bytes())) {
            missing = None;
        }
        match (missing, &check.json) {
            (None, None) => return Ok(()),
            (Some(text), _) if is_too_long => {
                return Err(Failure::no(format!(
                    "got a body without {text:?} in its first 64 KiB"
                )));
            }
            (None, Some(_)) if is_too_long => {
                return Err(Failure::no("got a body of more than 64 KiB"));
            }
            _ => {}
        }
    }
    if let Some(text) = missing {
        return Err(Failure::no(format!("got a body without {text:?}")));
    }
    match &check.json {
        Some(expected) => expect_json(&read, expected),
        None => Ok(()),
    }
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

fn expect_json(body: &[u8], expected: &JsonEquals) -> Result<(), Failure> {
    let JsonEquals { pointer, equals } = expected;
    let document: Value =
        serde_json::from_slice(body).map_err(|_| Failure::no("got a body that is no JSON"))?;
    let place = if pointer.is_empty() {
        "as the JSON document".to_owned()
    } else {
        format!("at {pointer} of the JSON")
    };
    match document.pointer(pointer) {
        Some(found) if is_equal(found, equals) => Ok(()),
        Some(found) => Err(Failure::no(format!(
            "got {} {place}, not {equals}",
            word(found)
        ))),
        None => Err(Failure::no(format!("got nothing {place}, not {equals}"))),
    }
}

/// 1 and 1.0 are one number, in JSON.
fn is_equal(found: &Value, expected: &Value) -> bool {
    match (found, expected) {
        (Value::Number(found), Value::Number(expected)) => {
            found == expected || found.as_f64() == expected.as_f64()
        }
        _ => found == expected,
    }
}

fn word(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}
