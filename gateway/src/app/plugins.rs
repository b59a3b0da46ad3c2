//! Loads the configured plugins: reads, verifies, configures, self-tests; takes over what did not change.
//!
//! Owns every sentence about a binding that does not fit its component. All mistakes are said, not only the first.

use std::{fmt, num::NonZero, sync::Arc};

use anyhow::Context as _;
use aws_lc_rs::digest::{Context, SHA256};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use gantry_plugin_host::{Hook, PluginSource, Redaction};

use super::{Generation, Lasting};
use crate::{
    auth::ids::IdPattern,
    builtin,
    config::{self, Config, PluginFrom},
    files,
    policy::binding::{Binding, Health, default_changes},
};

/// Why plugins of a configuration cannot be taken.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Mistakes(pub(crate) Vec<Mistake>);

/// Why one plugin cannot be taken.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Mistake {
    /// The binding.
    pub(crate) plugin: Arc<str>,
    /// A sentence that names it.
    pub(crate) message: String,
}

impl fmt::Display for Mistakes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(formatter, "{separator}{}", mistake.message)?;
        }
        Ok(())
    }
}

/// Loads every plugin, several at once. What `before` runs already, unchanged, is not loaded again.
pub(crate) async fn load(
    lasting: &Lasting,
    config: &Config,
    before: Option<&Generation>,
) -> Result<Vec<Arc<Binding>>, Mistakes> {
    let mut bindings = Vec::with_capacity(config.plugins.len());
    let mut mistakes = Mistakes::default();
    let at_once = std::thread::available_parallelism().map_or(2, NonZero::get);
    let loads: Vec<_> = config
        .plugins
        .iter()
        .map(|written| bind(lasting, written, before).boxed())
        .collect();
    // In the order of the configuration, whichever is done first.
    let loads = futures_util::stream::iter(loads).buffered(at_once);
    let loaded: Vec<anyhow::Result<Binding>> = loads.collect().await;
    for (written, loaded) in config.plugins.iter().zip(loaded) {
        match loaded {
            Ok(binding) => bindings.push(Arc::new(binding)),
            Err(error) => mistakes.0.push(Mistake {
                plugin: Arc::clone(&written.name),
                message: withheld(written).clean(sentence(&written.name, &error)),
            }),
        }
    }
    if mistakes.0.is_empty() {
        mistakes.0.extend(overlap(&bindings));
    }
    if mistakes.0.is_empty() {
        Ok(bindings)
    } else {
        Err(mistakes)
    }
}

fn sentence(name: &str, error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    if text.starts_with(&format!("plugin {name}")) {
        text
    } else {
        format!("plugin {name}: {text}")
    }
}

async fn bind(
    lasting: &Lasting,
    written: &config::Binding,
    before: Option<&Generation>,
) -> anyhow::Result<Binding> {
    let component = component(&written.from).await?;
    let fingerprint = fingerprint(&component, written);
    let same = before.and_then(|before| {
        before
            .bindings
            .iter()
            .find(|binding| binding.fingerprint == fingerprint)
    });
    let (plugin, health, generation) = match same {
        Some(same) => (
            same.plugin.clone(),
            Arc::clone(&same.health),
            same.generation,
        ),
        None => {
            let source = PluginSource {
                name: Arc::clone(&written.name),
                component,
                config: written.config.clone(),
                grants: written.grants.clone(),
                limits: written.limits,
                redaction: withheld(written),
            };
            let plugin = lasting.host().load(source).await?;
            tracing::info!(plugin.name = &*written.name, plugin.digest = %plugin.digest(), "plugin loaded");
            let health = Health::new(Arc::clone(&written.name), lasting.trips().clone());
            let generation = before.map_or(1, |before| before.number + 1);
            (plugin, Arc::new(health), generation)
        }
    };
    let binding = Binding {
        meter: lasting.telemetry.plugin(&written.name),
        redaction: withheld(written),
        plugin,
        health,
        generation,
        fingerprint,
        from: written.from.clone(),
        repositories: written.repositories.clone(),
        ids: ids(written),
        changes: written.changes.clone().unwrap_or_else(default_changes),
        mode: written.mode,
        on_error: written.on_error,
        hold_for: written.hold_for,
    };
    refuse_misfit(written, &binding)?;
    Ok(binding)
}

/// What only the component tells: whether the binding's words make sense for the hooks it has.
fn refuse_misfit(written: &config::Binding, binding: &Binding) -> anyhow::Result<()> {
    let (name, hooks) = (&written.name, binding.plugin.hooks());
    if written.changes.is_some() && !hooks.has(Hook::Admit) {
        anyhow::bail!(
            "plugin {name} has `changes`, but the component does not take part in admission"
        );
    }
    if written.ids.is_some() && !hooks.has(Hook::Authenticate) {
        anyhow::bail!("plugin {name} has `ids`, but the component is no authenticator");
    }
    if binding.ids.is_empty() && hooks.0.len() == 1 && hooks.has(Hook::Authenticate) {
        anyhow::bail!(
            "plugin {name} is an authenticator, and its binding does not say which principals it may make: write `ids: [\"{name}:*\"]`, or what their ids begin with"
        );
    }
    if hooks.has(Hook::Authenticate)
        && (binding.on_error != config::OnError::Deny || binding.mode != config::Mode::Enforce)
    {
        anyhow::bail!(
            "plugin {name} is an authenticator: `on_error` can only be deny and `mode` only enforce"
        );
    }
    Ok(())
}

/// The ids that a binding may make: as written, a built-in's own, or none.
fn ids(written: &config::Binding) -> Vec<IdPattern> {
    written.ids.clone().unwrap_or_else(|| {
        let own = match &written.from {
            PluginFrom::Builtin(name) => builtin::ids(name),
            PluginFrom::File(_) => None,
        };
        own.and_then(|own| IdPattern::parse(own).ok())
            .into_iter()
            .collect()
    })
}

/// Two authenticators that could make the same id.
fn overlap(bindings: &[Arc<Binding>]) -> Option<Mistake> {
    let authenticators = || {
        let takes_part = |binding: &&Arc<Binding>| binding.plugin.hooks().has(Hook::Authenticate);
        bindings.iter().filter(takes_part).enumerate()
    };
    authenticators().find_map(|(index, second)| {
        let before = authenticators().take(index);
        let pairs = before.flat_map(|(_, first)| first.ids.iter().map(move |id| (first, id)));
        let mut pairs = pairs.flat_map(|(first, id)| second.ids.iter().map(move |it| (first, id, it)));
        let (first, one, other) = pairs.find(|(_, one, other)| one.overlaps(other))?;
        let (first, name) = (first.name(), second.name());
        let also = match &second.from {
            PluginFrom::Builtin(_) => format!(" and `prefix: {name}` in its config"),
            PluginFrom::File(_) => ", or what its principals' ids begin with".to_owned(),
        };
        Some(Mistake {
            plugin: Arc::clone(name),
            message: format!(
                "plugin {name} may make the principals {other}, and plugin {first} the principals {one}: the same id could mean two. Say in each binding which ids are its own; for {name}, write `ids: [\"{name}:*\"]`{also}"
            ),
        })
    })
}

async fn component(from: &PluginFrom) -> anyhow::Result<Bytes> {
    match from {
        PluginFrom::Builtin(name) => {
            let component = builtin::builtin(name)
                .with_context(|| format!("there is no built-in plugin {name}"))?;
            Ok(Bytes::from_static(component))
        }
        PluginFrom::File(path) => {
            let file = path.clone();
            let read = tokio::task::spawn_blocking(move || files::read(&file));
            let bytes = read
                .await?
                .with_context(|| format!("cannot read the plugin {}", path.display()))?;
            Ok(bytes.into())
        }
    }
}

/// Digest of everything that decides what a plugin answers: part of every cache key, and what tells whether it changed. Secrets are in
/// it by their bytes, because no other text of them exists.
fn fingerprint(component: &[u8], written: &config::Binding) -> Arc<str> {
    let described = format!(
        "{}\n{}\n{:?}\n{:?}",
        written.name, written.config, written.grants, written.limits
    );
    let secrets = written
        .grants
        .secrets
        .values()
        .map(|secret| secret.0.as_ref());
    digest_of_parts([component, described.as_bytes()].into_iter().chain(secrets))
}

/// SHA-256 over parts that cannot run into each other.
pub(super) fn digest_of_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Arc<str> {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_le_bytes());
        context.update(part);
    }
    URL_SAFE_NO_PAD.encode(context.finish().as_ref()).into()
}

/// What a binding was given in files: it is in nothing that is said about it or by it.
fn withheld(written: &config::Binding) -> Redaction {
    let granted = written.grants.secrets.values();
    let granted = granted.map(|secret| String::from_utf8_lossy(&secret.0).into_owned());
    Redaction::of(written.included.iter().cloned().chain(granted))
}

#[cfg(test)]
mod tests {
    use super::digest_of_parts;

    #[test]
    fn parts_do_not_run_into_each_other() {
        let digest = |parts: &[&str]| digest_of_parts(parts.iter().map(|part| part.as_bytes()));
        assert_eq!(digest(&["ab", "c"]), digest(&["ab", "c"]));
        assert_ne!(digest(&["ab", "c"]), digest(&["a", "bc"]));
        assert_ne!(digest(&["ab"]), digest(&["ab", ""]));
    }
}
