//! The registry: one struct, one entry, one line per operation.

use std::sync::Arc;

use gantry_model::Permit;

use crate::{
    body::Body,
    error::Error,
    outcome::Outcome,
    ports::{Ports, Settings},
};

/// The domain behind its ports. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registry {
    pub(crate) shared: Arc<Shared>,
}

/// What every operation needs.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) ports: Ports,
    pub(crate) settings: Settings,
}

impl Registry {
    /// Makes a registry on its ports.
    #[must_use]
    pub fn new(ports: Ports, settings: Settings) -> Self {
        Self {
            shared: Arc::new(Shared { ports, settings }),
        }
    }

    /// Performs what `permit` allows.
    ///
    /// # Errors
    /// [`Error`], in the words of the distribution spec.
    pub async fn perform(&self, permit: Permit, body: Body) -> Result<Outcome, Error> {
        let (operation, requester, granted) = permit.into_parts();
        tracing::trace!(settings = ?self.shared.settings, ports = ?self.shared.ports, ?operation, ?requester, ?granted, ?body);
        Err(Error::Unsupported("not built yet".to_owned()))
    }
}
