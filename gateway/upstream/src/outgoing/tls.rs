//! What TLS rests on: the machine's root certificates and others, and who we are.

use std::sync::Arc;

use rustls::{
    ClientConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    version::{TLS12, TLS13},
};
use rustls_platform_verifier::Verifier;

use crate::settings::{BuildError, Tls};

/// What a client's connections speak. An identity is shown only where it `is_home`.
///
/// # Errors
/// [`BuildError`].
pub fn tls_config(tls: &Tls, is_home: bool) -> Result<ClientConfig, BuildError> {
    let provider = CryptoProvider::get_default().cloned();
    let provider =
        provider.unwrap_or_else(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    let unusable = |error: rustls::Error| BuildError::Client(error.into());
    let roots = roots(tls.roots.as_deref())?;
    let verifier =
        Verifier::new_with_extra_roots(roots, Arc::clone(&provider)).map_err(unusable)?;
    let versions: &[_] = match tls.only_1_3 {
        true => &[&TLS13],
        false => &[&TLS13, &TLS12],
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let Some(pem) = tls.identity.as_deref().filter(|_| is_home) else {
        return Ok(builder.with_no_client_auth());
    };
    let refused = |error: rustls::pki_types::pem::Error| BuildError::Identity(error.into());
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let chain = chain.map_err(refused)?;
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(refused)?;
    if chain.is_empty() {
        return Err(BuildError::Identity("there is no certificate".into()));
    }
    let config = builder.with_client_auth_cert(chain, key);
    config.map_err(|error| BuildError::Identity(error.into()))
}

fn roots(pem: Option<&[u8]>) -> Result<Vec<CertificateDer<'static>>, BuildError> {
    let Some(pem) = pem else {
        return Ok(Vec::new());
    };
    let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let roots = roots.map_err(|error| BuildError::RootCertificates(Some(error.into())))?;
    if roots.is_empty() {
        return Err(BuildError::RootCertificates(None));
    }
    Ok(roots)
}
