use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{
    TlsConnector, client,
    rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion, pki_types::ServerName},
    server,
};

use super::*;

fn fixture(name: &str) -> PathBuf {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/tls/");
    Path::new(folder).join(name)
}

fn connector(trusted: &str, versions: &[&'static SupportedProtocolVersion], alpn: &[&str]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(fixture(trusted)).expect("a certificate")).expect("a root");
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

type Ends = (io::Result<client::TlsStream<DuplexStream>>, io::Result<server::TlsStream<DuplexStream>>);

async fn connect(tls: &Tls, connector: TlsConnector) -> Ends {
    let (near, far) = duplex(64 << 10);
    let name = ServerName::try_from("localhost").expect("a name");
    tokio::join!(connector.connect(name, near), tls.acceptor().accept(far))
}

const BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];

/// A pair of files that can be replaced.
fn pair(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    let (certificate, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    fs::copy(fixture(&format!("{name}.pem")), &certificate).expect("copied");
    fs::copy(fixture(&format!("{name}.key")), &key).expect("copied");
    (certificate, key)
}

#[tokio::test]
async fn both_versions_are_spoken_and_nothing_but_http_1() {
    let tls = Tls::open(fixture("one.pem"), fixture("one.key")).expect("a pair");
    for version in BOTH {
        let (client, server) = connect(&tls, connector("one.pem", &[version], &["http/1.1"])).await;
        let (client, server) = (client.expect("connected"), server.expect("accepted"));
        assert_eq!(client.get_ref().1.protocol_version(), Some(version.version));
        assert_eq!(server.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    }
    let (client, _) = connect(&tls, connector("one.pem", BOTH, &["h2"])).await;
    assert!(client.is_err(), "HTTP/2 is not spoken");
    let (client, _) = connect(&tls, connector("two.pem", BOTH, &[])).await;
    assert!(client.is_err(), "another certificate than the client trusts");
}

#[tokio::test]
async fn a_new_certificate_is_for_new_connections_and_old_ones_go_on() {
    let folder = tempfile::tempdir().expect("folder");
    let (certificate, key) = pair(folder.path(), "one");
    let tls = Tls::open(certificate.clone(), key.clone()).expect("a pair");
    let (client, server) = connect(&tls, connector("one.pem", BOTH, &[])).await;
    let (mut client, mut server) = (client.expect("connected"), server.expect("accepted"));
    assert!(!tls.reload().expect("nothing new"));

    // Between the two writes the files do not go together: what is in force stays.
    fs::copy(fixture("two.pem"), &certificate).expect("copied");
    assert!(matches!(tls.reload(), Err(TlsError::Pair { .. })));
    assert!(!tls.reload().expect("said once"));
    assert!(connect(&tls, connector("one.pem", BOTH, &[])).await.0.is_ok());
    fs::copy(fixture("two.key"), &key).expect("copied");
    assert!(tls.reload().expect("a pair"));
    assert!(connect(&tls, connector("two.pem", BOTH, &[])).await.0.is_ok());
    assert!(connect(&tls, connector("one.pem", BOTH, &[])).await.0.is_err());

    let mut word = [0; 5];
    client.write_all(b"still").await.expect("sent");
    client.flush().await.expect("sent");
    server.read_exact(&mut word).await.expect("heard");
    assert_eq!(&word, b"still");
}

#[test]
fn a_pair_that_could_not_be_read_is_read_again_without_a_change() {
    let folder = tempfile::tempdir().expect("folder");
    let (certificate, key) = pair(folder.path(), "one");
    let tls = Tls::open(certificate.clone(), key).expect("a pair");
    // What is watched is the first mebibyte: the file gets small enough without a change of that.
    let mut text = fs::read(&certificate).expect("text");
    text.resize(FILE_BYTES_MAX as usize + 1, b'\n');
    fs::write(&certificate, &text).expect("written");
    assert!(matches!(tls.reload(), Err(TlsError::File { .. })));
    assert!(!tls.reload().expect("said once"));
    text.pop();
    fs::write(&certificate, &text).expect("written");
    assert!(tls.reload().expect("a pair"));
    assert!(!tls.reload().expect("nothing new"));
}

#[test]
fn files_that_make_no_tls_say_why() {
    let folder = tempfile::tempdir().expect("folder");
    let (certificate, key) = pair(folder.path(), "one");
    let open =
        |certificate: &Path, key: &Path| Tls::open(certificate.into(), key.into()).map(|_| ()).expect_err("refused");
    assert!(matches!(open(&folder.path().join("missing"), &key), TlsError::File { .. }));
    assert!(matches!(open(&certificate, &fixture("two.key")), TlsError::Pair { .. }));
    assert!(matches!(open(&key, &certificate), TlsError::Pem { what: "certificate", .. }));
    assert!(matches!(open(&certificate, &certificate), TlsError::Pem { what: "private key", .. }));
    fs::write(&certificate, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").expect("written");
    assert!(Tls::open(certificate.clone(), key.clone()).is_err());
    fs::write(&certificate, "").expect("written");
    assert!(matches!(open(&certificate, &key), TlsError::Pem { what: "certificate", .. }));
    // Messages name the file, and nothing of what is in it.
    let secret = fs::read_to_string(&key).expect("text");
    let said = open(&certificate, &key).to_string();
    assert!(said.contains("cert.pem") && !secret.lines().nth(1).is_some_and(|line| said.contains(line)), "{said}");
}
