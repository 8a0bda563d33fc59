//! TLS: who is believed, and who is asked for.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};

use super::{http::answering, *};
use crate::model::{Authorities, Tls, Trust};

/// One that issues certificates.
pub(super) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let name = format!("authority {}", fastrand::u64(..));
        params.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A server's side, with a certificate for a name.
    pub(super) fn acceptor(&self, name: &str, protocols: &[&str]) -> TlsAcceptor {
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        self.acceptor_with(params, protocols)
    }

    fn acceptor_with(&self, params: CertificateParams, protocols: &[&str]) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        config.alpn_protocols = protocols
            .iter()
            .map(|name| name.as_bytes().into())
            .collect();
        TlsAcceptor::from(Arc::new(config))
    }

    /// Trust in what it issues.
    pub(super) fn trust(&self) -> Trust {
        let certificates = vec![self.0.der().clone()];
        Trust::Authorities(Arc::new(Authorities::new("ca.pem".into(), certificates)))
    }
}

/// What comes of asking with this trust for this name.
async fn asked(address: SocketAddr, trust: Trust, name: Option<&str>) -> String {
    let mut http = get("/");
    http.target.tls = Some(Tls {
        trust,
        name: name.map(|name| name.to_owned().try_into().unwrap()),
    });
    came(address, &check(of_http(http))).await
}

#[tokio::test]
async fn a_certificate_must_be_of_the_authority_and_for_the_name() {
    let (authority, other) = (Authority::new(), Authority::new());
    let acceptor = authority.acceptor("chat.example", &["http/1.1"]);
    let (address, _asked) = answering(Some(acceptor), 200, "").await;
    let name = Some("chat.example");
    assert_eq!(asked(address, authority.trust(), name).await, "");
    assert_eq!(
        asked(address, other.trust(), name).await,
        "got a certificate of an authority that is not trusted"
    );
    assert_eq!(
        asked(address, authority.trust(), Some("feed.example")).await,
        "got a certificate that is not for feed.example"
    );
    assert_eq!(
        asked(address, authority.trust(), None).await,
        "got a certificate that is not for 127.0.0.1"
    );
    // By choice, nothing is verified.
    assert_eq!(asked(address, Trust::Anyone, None).await, "");
    assert_eq!(
        asked(address, Trust::Anyone, Some("feed.example")).await,
        ""
    );

    let acceptor = authority.acceptor("127.0.0.1", &[]);
    let (address, _asked) = answering(Some(acceptor), 200, "").await;
    assert_eq!(asked(address, authority.trust(), None).await, "");
}

#[tokio::test]
async fn a_certificate_must_be_of_today() {
    let authority = Authority::new();
    for (from, to, expected) in [
        (2000, 2001, "got a certificate that has expired"),
        (3000, 3001, "got a certificate that is not valid yet"),
    ] {
        let mut params = CertificateParams::new(["chat.example".to_owned()]).unwrap();
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(to, 1, 1);
        let acceptor = authority.acceptor_with(params, &[]);
        let (address, _asked) = answering(Some(acceptor), 200, "").await;
        let name = Some("chat.example");
        assert_eq!(asked(address, authority.trust(), name).await, expected);
        assert_eq!(asked(address, Trust::Anyone, name).await, "");
    }
}

#[tokio::test]
async fn the_name_is_asked_for_and_an_address_is_not() {
    let authority = Authority::new();
    let acceptor = authority.acceptor("chat.example", &[]);
    let (sender, mut names) = mpsc::unbounded_channel();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let stream: tokio_rustls::server::TlsStream<TcpStream> =
                acceptor.accept(stream).await.unwrap();
            let (_, session) = stream.get_ref();
            let alpn = session.alpn_protocol().map(<[u8]>::to_vec);
            sender
                .send((session.server_name().map(str::to_owned), alpn))
                .unwrap();
        }
    });
    asked(address, authority.trust(), Some("chat.example")).await;
    assert_eq!(
        names.recv().await.unwrap(),
        (Some("chat.example".to_owned()), None)
    );
    asked(address, Trust::Anyone, None).await;
    assert_eq!(names.recv().await.unwrap(), (None, None));
}

#[tokio::test]
async fn what_is_no_tls_is_a_no() {
    let http = saying("HTTP/1.1 400 Bad Request\r\n\r\n").await;
    assert_eq!(
        asked(http, Trust::Anyone, None).await,
        "got an answer that is no TLS"
    );
    let closing = saying("").await;
    assert_eq!(
        asked(closing, Trust::Anyone, None).await,
        "was closed before the TLS handshake was done"
    );
    let mute = server(None, |stream| async move {
        let _held = stream;
        std::future::pending().await
    })
    .await;
    let mut http = get("/");
    http.target.tls = Some(Tls {
        trust: Trust::Anyone,
        name: None,
    });
    let answer = ask(mute, &hasty(of_http(http))).await;
    assert_eq!(
        answer.error.unwrap(),
        format!("GET / over TLS at {mute} got no TLS handshake done within 200 ms")
    );
}

#[tokio::test]
async fn a_configuration_is_made_once_and_goes_with_its_last_check() {
    let (authority, other) = (Authority::new(), Authority::new());
    let clients = TlsClients::default();
    let probe = |trust: Trust| {
        let mut http = get("/");
        http.target.tls = Some(Tls { trust, name: None });
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 443));
        Probe::new(address, &check(of_http(http)), &clients)
    };
    let first: Vec<_> = (0..10).map(|_| probe(authority.trust())).collect();
    assert_eq!(clients.count(), 1);
    let second = probe(other.trust());
    assert_eq!(clients.count(), 2);
    drop(first);
    let _third = probe(other.trust());
    assert_eq!(clients.count(), 1);
    drop(second);
}
