//! `[server.tls]`: a certificate and its key, in files that may be replaced while the server runs.
//!
//! rustls over ring, which the tree has already for fetching models. TLS 1.2 and 1.3, HTTP/1.1 by ALPN, no client
//! certificates. A connection keeps what it was made with; the next one gets what the files hold now.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        crypto::ring::default_provider,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        version::{TLS12, TLS13},
    },
};

use super::Watched;

/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A certificate in force.
#[derive(Debug)]
pub struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    config: ArcSwap<ServerConfig>,
    /// With what was wrong the last time.
    watched: Mutex<(Watched, Option<String>)>,
}

/// Files that make no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// One cannot be read.
    #[error("{path}: {cause}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// One is no PEM file of what is needed.
    #[error("{path}: no {what} in PEM in it")]
    Pem {
        /// Which.
        path: PathBuf,
        /// A certificate, or a private key.
        what: &'static str,
    },
    /// They do not go together.
    #[error("{certificate} and {key} do not go together: {cause}")]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What rustls says.
        cause: rustls::Error,
    },
}

impl Tls {
    /// Reads both files: the certificate first, then those it is signed with; a key in PKCS #8, SEC 1 or PKCS #1.
    pub fn open(certificate: PathBuf, key: PathBuf) -> Result<Self, TlsError> {
        // Before they are read: a change in between is seen as one.
        let watched = Mutex::new((Watched::new(vec![certificate.clone(), key.clone()]), None));
        let config = ArcSwap::new(config(&certificate, &key)?);
        Ok(Tls { certificate, key, config, watched })
    }

    /// Reads the files again if they hold something else. True when new connections get something new; after an error
    /// they get what was in force, and the files are read again each time until they can be used, with the same error
    /// said once. Files are replaced one after the other, so a pair that does not go together is no more than a moment
    /// between two writes, as a rule.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let (files, failed) = &mut *watched;
        if !files.changed() && failed.is_none() {
            return Ok(false);
        }
        match config(&self.certificate, &self.key) {
            Ok(config) => {
                self.config.store(config);
                *failed = None;
                Ok(true)
            }
            Err(error) => match failed.replace(error.to_string()) == Some(error.to_string()) {
                true => Ok(false),
                false => Err(error),
            },
        }
    }

    /// For the next connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.load_full())
    }
}

fn config(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let pem = |path: &Path, what| TlsError::Pem { path: path.to_owned(), what };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&read(certificate)?)
        .collect::<Result<_, _>>()
        .map_err(|_| pem(certificate, "certificate"))?;
    if chain.is_empty() {
        return Err(pem(certificate, "certificate"));
    }
    let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|_| pem(key, "private key"))?;
    let made = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private));
    let mut made =
        made.map_err(|cause| TlsError::Pair { certificate: certificate.to_owned(), key: key.to_owned(), cause })?;
    made.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(made))
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let fail = |cause| TlsError::File { path: path.to_owned(), cause };
    match fs::metadata(path).map_err(fail)?.len() {
        0..=FILE_BYTES_MAX => fs::read(path).map_err(fail),
        _ => Err(fail(io::ErrorKind::FileTooLarge.into())),
    }
}

#[cfg(test)]
mod tests;
