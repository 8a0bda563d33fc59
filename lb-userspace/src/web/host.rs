//! By which names the listener is asked, where it is on loopback and so meant for this host.
//!
//! Anybody may have a name of his own lead to 127.0.0.1. A page of his, in the browser of somebody on this host, then asks in that name, and to the browser
//! all of that is one site: it would let the page read which services and backends there are. Such a request tells the name in its `Host`.

use std::net::{IpAddr, Ipv6Addr};

use axum::{
    extract::Request,
    http::{StatusCode, header},
    middleware::Next,
    response::Response,
};

use crate::http;

/// Turns away who asks in the name of another host.
pub(super) async fn guard(request: Request, next: Next) -> Response {
    let of_uri = request.uri().host();
    let of_header = request.headers().get(header::HOST);
    let is_own = of_uri.is_none_or(is_own)
        && of_header.is_none_or(|host| host.to_str().is_ok_and(|host| is_own(without_port(host))));
    if is_own {
        return next.run(request).await;
    }
    http::error(
        StatusCode::MISDIRECTED_REQUEST,
        "this listens on loopback, and answers to `localhost` and to addresses, whoever else's names lead here; a proxy before it sends one of those as `Host`",
    )
}

/// Whether a name is this host's whatever anybody says, or an address, which none leads to. None at all is an old client's.
fn is_own(host: &str) -> bool {
    let host = host.trim_end_matches('.');
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let is_address = match bare {
        Some(bare) => bare.parse::<Ipv6Addr>().is_ok(),
        None => host.parse::<IpAddr>().is_ok(),
    };
    let is_local = |name: &str| name.eq_ignore_ascii_case("localhost");
    // Names below `localhost` are its own too (RFC 6761, section 6.3).
    let last = host.rsplit('.').next().unwrap_or_default();
    host.is_empty() || is_address || is_local(last)
}

/// `Host` without the port, which an address in brackets has colons before.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_localhost_are_this_hosts_names() {
        for host in [
            "",
            "localhost",
            "LOCALHOST:9477",
            "localhost.",
            "balancer.localhost:80",
            "127.0.0.1",
            "127.0.0.1:9477",
            "10.0.2.2:9477",
            "[::1]",
            "[::1]:9477",
            "[fd00::2]:9477",
        ] {
            assert!(is_own(without_port(host)), "{host}");
        }
        for host in [
            "x",
            "balancer:9477",
            "rebound.example",
            "rebound.example:9477",
            "localhost.rebound.example",
            "notlocalhost",
            "127.0.0.1.rebound.example:9477",
            "[rebound.example]",
            "[127.0.0.1",
            "localhost:rebound.example",
            "127.0.0.1@rebound.example",
        ] {
            assert!(!is_own(without_port(host)), "{host}");
        }
    }
}
