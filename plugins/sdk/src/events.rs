//! Hook `observe`: takes committed events, at least once each.

#[doc(inline)]
pub use crate::bindings::events::exports::gantry::plugin::events::{Event, Outcome};
use crate::plugin::{Answer, Plugin};

/// A plugin that takes events.
pub trait Events: Plugin {
    /// Takes a batch; answers one outcome per event, in the same order.
    ///
    /// # Errors
    /// Nothing of the batch is known to be delivered; all of it comes again.
    fn observe(&self, events: &[Event]) -> Answer<Vec<Outcome>>;
}

impl Outcome {
    /// It comes again when the gateway thinks fit.
    #[must_use]
    pub fn retry() -> Self {
        Self::Retry(0)
    }

    /// It never comes again, because.
    pub fn dropped(why: impl Into<String>) -> Self {
        Self::Drop(why.into())
    }
}
