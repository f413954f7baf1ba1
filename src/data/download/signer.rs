//! Who signed the certificate of a server that is not trusted: as a rule the gate of a company's network, which reads along.

use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::ring,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use std::{
    net::{TcpStream, ToSocketAddrs},
    sync::{Arc, Mutex},
    time::Duration,
};

/// What the certificate says that the server of this address shows: `HOST shows a certificate for X that Y signed`.
///
/// Asks the server once more, directly, and sends it nothing. `None` where that does not work.
pub(super) fn signer(address: &str) -> Option<String> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let address: ureq::http::Uri = address.parse().ok()?;
    let (host, port) = (address.host()?, address.port_u16().unwrap_or(443));
    let mut stream = TcpStream::connect_timeout(&(host, port).to_socket_addrs().ok()?.next()?, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    let witness = Arc::new(Witness::default());
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().ok()?.dangerous();
    let config = config.with_custom_certificate_verifier(witness.clone()).with_no_client_auth();
    let mut connection = ClientConnection::new(Arc::new(config), ServerName::try_from(host.to_owned()).ok()?).ok()?;
    // The witness refuses every certificate, so this ends as soon as it has seen one.
    let _ = connection.complete_io(&mut stream);
    let seen = witness.0.lock().ok()?.take()?;
    let (subject, issuer) = names(&seen)?;
    Some(format!("{host} shows a certificate for {subject} that {issuer} signed"))
}

/// Remembers the certificate of a server, and refuses it.
#[derive(Debug, Default)]
struct Witness(Mutex<Option<Vec<u8>>>);

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer,
        _: &[CertificateDer],
        _: &ServerName,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Ok(mut seen) = self.0.lock() {
            *seen = Some(certificate.to_vec());
        }
        only_looking()
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        only_looking()
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        only_looking()
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

fn only_looking<T>() -> Result<T, Error> {
    Err(Error::General("only looking".into()))
}

/// Subject and issuer of a certificate (RFC 5280, section 4.1).
fn names(certificate: &[u8]) -> Option<(String, String)> {
    let (_, certificate, _) = element(certificate)?;
    let (_, mut rest, _) = element(certificate)?;
    // Version (which may be left out), serial number, signature algorithm.
    if element(rest)?.0 == 0xa0 {
        rest = element(rest)?.2;
    }
    rest = element(element(rest)?.2)?.2;
    let (_, issuer, rest) = element(rest)?;
    let (_, _validity, rest) = element(rest)?;
    let (_, subject, _) = element(rest)?;
    Some((shown(subject), shown(issuer)))
}

/// The common name and the organization of a name.
fn shown(mut name: &[u8]) -> String {
    const COMMON_NAME: &[u8] = &[0x55, 4, 3];
    const ORGANIZATION: &[u8] = &[0x55, 4, 10];
    let mut parts = Vec::new();
    while let Some((_, set, rest)) = element(name) {
        name = rest;
        let pair = element(set).and_then(|(_, pair, _)| element(pair));
        if let Some((_, kind, value)) = pair
            && [COMMON_NAME, ORGANIZATION].contains(&kind)
            && let Some((_, value, _)) = element(value)
        {
            let text = String::from_utf8_lossy(value);
            let text = text.chars().filter(|c| !c.is_control()).take(80).collect::<String>();
            parts.push(format!("`{text}`"));
        }
    }
    if parts.is_empty() { "somebody without a name".into() } else { parts.join(" of ") }
}

/// The first element of DER: its tag, its contents, and what follows it.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let mut length = usize::from(first);
    if first >= 0x80 {
        let (digits, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if digits.len() > 4 {
            return None;
        }
        (length, rest) = (digits.iter().fold(0, |length, &digit| length << 8 | usize::from(digit)), after);
    }
    let (contents, after) = rest.split_at_checked(length)?;
    Some((tag, contents, after))
}
