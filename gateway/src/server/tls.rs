//! TLS from PEM files: certificate chain, key, optional client authorities, lowest version.
//!
//! Invariant: no connection outlives what its client was let in by. Where clients show certificates no session is resumed, so that every
//! connection shows one; the connection ends with that certificate, and when the authorities are replaced (`ConnectionTls`).

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use aws_lc_rs::digest::{Context, SHA256};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    version::{TLS12, TLS13},
};
use tokio::sync::watch;

use crate::files;

/// The files of one listener.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The server's certificate and what leads to a root, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM (PKCS#8, PKCS#1 or SEC1).
    pub key: PathBuf,
    /// Authorities of client certificates, PEM. With them a client must show a certificate.
    pub client_ca: Option<PathBuf>,
    /// Whether TLS 1.2 is refused.
    pub only_tls13: bool,
}

/// One reading of the files: what to serve, and a digest of what it was made from.
#[derive(Clone, Debug)]
pub struct LoadedTls {
    /// What rustls takes.
    pub config: Arc<ServerConfig>,
    digest: [u8; 32],
    /// Of the client authorities alone.
    authorities: [u8; 32],
}

/// The TLS of one listener while it serves: each new connection takes what is there then.
#[derive(Clone, Debug)]
pub struct ServedTls {
    current: Arc<ArcSwap<LoadedTls>>,
    /// Told when the client authorities are replaced.
    authorities: watch::Sender<()>,
}

/// The TLS of one connection.
#[derive(Clone, Debug)]
pub(super) struct ConnectionTls {
    pub(super) config: Arc<ServerConfig>,
    authorities: watch::Receiver<()>,
}

impl ConnectionTls {
    /// Completes when clients have to be let in by other authorities than this one was.
    pub(super) async fn replaced(&self) {
        let replaced = self.authorities.clone().changed().await;
        if replaced.is_err() {
            // Nothing replaces them any more.
            std::future::pending::<()>().await;
        }
    }
}

impl ServedTls {
    /// Serves what was loaded.
    #[must_use]
    pub fn new(loaded: LoadedTls) -> Self {
        Self {
            current: Arc::new(ArcSwap::from_pointee(loaded)),
            authorities: watch::Sender::new(()),
        }
    }

    /// What a connection takes that is accepted now.
    pub(super) fn accept(&self) -> ConnectionTls {
        // Before the configuration: a connection between the two ends for nothing, and none stays by mistake.
        let authorities = self.authorities.subscribe();
        ConnectionTls {
            config: Arc::clone(&self.current.load().config),
            authorities,
        }
    }

    /// Serves something else from now on. The same files are no change: sessions that clients keep stay good. Other client authorities end
    /// the connections that were let in by the former ones, or by none, after their running requests.
    pub fn replace(&self, loaded: LoadedTls) {
        let before = self.current.load_full();
        if before.digest == loaded.digest {
            return;
        }
        let is_other_authority = before.authorities != loaded.authorities;
        self.current.store(Arc::new(loaded));
        if is_other_authority {
            self.authorities.send_replace(());
        }
    }
}

/// TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds no PEM of its kind.
    #[error("cannot read {}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// A file holds no certificate.
    #[error("no certificate in {}", .0.display())]
    Empty(PathBuf),
    /// An authority is no certificate, or there is none.
    #[error("cannot use the client authorities")]
    ClientAuthority(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The parts do not fit together.
    #[error("cannot use the certificate with its key")]
    Rejected(#[from] rustls::Error),
}

impl From<&crate::config::Tls> for TlsFiles {
    fn from(tls: &crate::config::Tls) -> Self {
        Self {
            certificate: tls.certificate.clone(),
            key: tls.key.clone(),
            client_ca: tls.client_ca.clone(),
            only_tls13: tls.minimum == crate::config::TlsVersion::Tls13,
        }
    }
}

impl TlsFiles {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`], naming the file.
    pub fn load(&self) -> Result<LoadedTls, TlsError> {
        let read = |path: &Path| {
            files::read(path).map_err(|error| TlsError::File {
                path: path.to_owned(),
                source: rustls::pki_types::pem::Error::Io(error),
            })
        };
        let bytes = PemBytes {
            certificate: read(&self.certificate)?,
            key: read(&self.key)?,
            client_ca: self.client_ca.as_deref().map(read).transpose()?,
        };
        let authorities = bytes.client_ca.as_deref().unwrap_or_default();
        let versions = [u8::from(self.only_tls13)];
        Ok(LoadedTls {
            config: self.configure(&bytes)?,
            digest: digest([&versions, &*bytes.certificate, &*bytes.key, authorities]),
            authorities: digest([authorities]),
        })
    }

    fn configure(&self, bytes: &PemBytes) -> Result<Arc<ServerConfig>, TlsError> {
        let chain = certificates(&self.certificate, &bytes.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&bytes.key).map_err(|source| TlsError::File {
            path: self.key.clone(),
            source,
        })?;
        let versions: &[_] = if self.only_tls13 {
            &[&TLS13]
        } else {
            &[&TLS13, &TLS12]
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)?;
        let client_ca = self.client_ca.as_ref().zip(bytes.client_ca.as_ref());
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some((path, bytes)) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates(path, bytes)? {
                    roots
                        .add(authority)
                        .map_err(|error| TlsError::ClientAuthority(error.into()))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .build()
                        .map_err(|error| TlsError::ClientAuthority(error.into()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_single_cert(chain, key)?;
        if client_ca.is_some() {
            // A resumed session shows no certificate: it would outlive the one that it began with.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// What the files hold.
struct PemBytes {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_le_bytes());
        context.update(part);
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

fn certificates(path: &Path, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    let chain = chain.map_err(|source| TlsError::File {
        path: path.to_owned(),
        source,
    })?;
    if chain.is_empty() {
        return Err(TlsError::Empty(path.to_owned()));
    }
    Ok(chain)
}
