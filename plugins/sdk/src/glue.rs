//! Joins the generated exports to the traits. Named only by [`crate::export!`].
//!
//! Invariant: a hook of an instance runs on the plugin that the last `configure` built, and fails before the first.

use std::{cell::RefCell, marker::PhantomData};

pub use crate::bindings::lifecycle::exports::gantry::plugin::lifecycle::ConfigIssue;
use crate::{
    Admission, Authenticator, Authorizer, Events, Principals,
    bindings::{
        admission::exports::gantry::plugin::admission as admission_wit,
        authenticator::exports::gantry::plugin::authenticator as authenticator_wit,
        authorizer::exports::gantry::plugin::authorizer as authorizer_wit,
        events::exports::gantry::plugin::events as events_wit,
        lifecycle::exports::gantry::plugin::lifecycle as lifecycle_wit,
        principals::exports::gantry::plugin::principals as principals_wit,
    },
    plugin::{Answer, Issues, Plugin, parse_config},
    types::PluginError,
};

/// Holds the configured plugin of an instance. A guest has one thread.
#[derive(Debug)]
pub struct Slot<P>(RefCell<Option<P>>);

impl<P> Slot<P> {
    /// Empty, until `configure`.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "only `const` contexts make one")]
    pub const fn new() -> Self {
        Self(RefCell::new(None))
    }
}

/// A plugin with a place to keep it.
pub trait Exported: Plugin {
    /// Visits the place.
    fn slot<T>(visit: impl FnOnce(&Slot<Self>) -> T) -> T;
}

/// The type on which the generated traits are implemented.
#[derive(Debug)]
pub struct Glue<P>(PhantomData<P>);

fn ask<P: Exported, T>(question: impl FnOnce(&P) -> Answer<T>) -> Answer<T> {
    P::slot(|slot| match slot.0.borrow().as_ref() {
        Some(plugin) => question(plugin),
        None => Err(PluginError::Internal("not configured".to_owned())),
    })
}

impl<P: Exported> lifecycle_wit::Guest for Glue<P> {
    fn configure(config: String) -> Result<(), Vec<ConfigIssue>> {
        let mut issues = Issues::default();
        let config = parse_config(&config, &mut issues);
        let plugin = P::new(config, &mut issues);
        let plugin = (!issues.are_fatal()).then_some(plugin);
        P::slot(|slot| slot.0.replace(plugin));
        issues.into_result()
    }

    fn config_schema() -> String {
        P::CONFIG_SCHEMA.to_owned()
    }

    fn self_test() -> Result<(), String> {
        P::slot(|slot| match slot.0.borrow().as_ref() {
            Some(plugin) => plugin.self_test(),
            None => Err("not configured".to_owned()),
        })
    }
}

impl<P: Exported + Authenticator> authenticator_wit::Guest for Glue<P> {
    fn authenticate(
        request: authenticator_wit::AuthnRequest,
    ) -> Answer<authenticator_wit::Outcome> {
        ask(|plugin: &P| plugin.authenticate(&request))
    }
}

impl<P: Exported + Principals> principals_wit::Guest for Glue<P> {
    fn current(id: String) -> Answer<Option<String>> {
        ask(|plugin: &P| plugin.current(&id))
    }
}

impl<P: Exported + Authorizer> authorizer_wit::Guest for Glue<P> {
    fn authorize(request: authorizer_wit::AuthzRequest) -> Answer<authorizer_wit::Decision> {
        ask(|plugin: &P| plugin.authorize(&request))
    }
}

impl<P: Exported + Admission> admission_wit::Guest for Glue<P> {
    fn admit(request: admission_wit::AdmissionRequest) -> Answer<admission_wit::Decision> {
        ask(|plugin: &P| plugin.admit(&request))
    }
}

impl<P: Exported + Events> events_wit::Guest for Glue<P> {
    fn observe(events: Vec<events_wit::Event>) -> Answer<Vec<events_wit::Outcome>> {
        ask(|plugin: &P| plugin.observe(&events))
    }
}

/// Checks that a type exports `lifecycle`.
pub fn lifecycle<G: lifecycle_wit::Guest>() {}
/// Checks that a type exports `authenticator`.
pub fn authenticator<G: authenticator_wit::Guest>() {}
/// Checks that a type exports `principals`.
pub fn principals<G: principals_wit::Guest>() {}
/// Checks that a type exports `authorizer`.
pub fn authorizer<G: authorizer_wit::Guest>() {}
/// Checks that a type exports `admission`.
pub fn admission<G: admission_wit::Guest>() {}
/// Checks that a type exports `events`.
pub fn events<G: events_wit::Guest>() {}
