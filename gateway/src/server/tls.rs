//! TLS from PEM files: certificate chain, key, optional client authorities, lowest version.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use aws_lc_rs::digest::{Context, SHA256};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};

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
}

/// The TLS of one listener while it serves: each new connection takes what is there then.
#[derive(Clone, Debug)]
pub struct ServedTls {
    current: Arc<ArcSwap<LoadedTls>>,
}

impl ServedTls {
    /// Serves what was loaded.
    #[must_use]
    pub fn new(loaded: LoadedTls) -> Self {
        Self {
            current: Arc::new(ArcSwap::from_pointee(loaded)),
        }
    }

    /// What a connection takes that is accepted now.
    #[must_use]
    pub fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.load().config)
    }

    /// Serves something else from now on. The same files are no change: sessions that clients keep stay good.
    pub fn replace(&self, loaded: LoadedTls) {
        if self.current.load().digest != loaded.digest {
            self.current.store(Arc::new(loaded));
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
        // Before the reading: what changes meanwhile differs next time.
        let digest = self.digest();
        let config = self.configure()?;
        Ok(LoadedTls { config, digest })
    }

    /// Digest of the files' bytes; an unreadable one is told by reading it for its meaning.
    fn digest(&self) -> [u8; 32] {
        let mut context = Context::new(&SHA256);
        context.update(&[u8::from(self.only_tls13)]);
        let files = [
            Some(&self.certificate),
            Some(&self.key),
            self.client_ca.as_ref(),
        ];
        for path in files {
            let bytes = path.and_then(|path| std::fs::read(path).ok());
            let bytes = bytes.unwrap_or_default();
            context.update(&(bytes.len() as u64).to_le_bytes());
            context.update(&bytes);
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        digest
    }

    fn configure(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let chain = certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|source| TlsError::File {
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
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates(path)? {
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
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |source| TlsError::File {
        path: path.to_owned(),
        source,
    };
    let chain = CertificateDer::pem_file_iter(path)
        .map_err(failed)?
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    if chain.is_empty() {
        return Err(TlsError::Empty(path.to_owned()));
    }
    Ok(chain)
}
