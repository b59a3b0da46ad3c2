//! From a configuration to a served gateway and back: logging, listeners, signals, what runs beside the requests, the drain.

mod telling;

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use futures_util::FutureExt as _;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

use self::telling::Telling;
use crate::{
    app::{App, EdgeSettings},
    auth::revocation,
    config::{AuditTo, Config, ListenAddress, LogFormat},
    http::admin::{Admin, Readiness},
    modes,
    reload::{Reloader, Source, Trigger},
    server::{
        self, Listener, Stage,
        tls::{ServedTls, TlsFiles},
    },
    telemetry::{self, AuditSink, Logging, OtlpSettings, Traces},
};

/// Threads that wait for disks and password hashes. Each keeps buffers of its own: two hundred readers on the default of 512 threads held
/// 300 MiB.
const MAX_BLOCKING_THREADS: usize = 16;

/// Connections of the admin listener at most: probes, scrapes and operators.
const MAX_ADMIN_CONNECTIONS: usize = 64;

/// How often sessions nobody closes are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(600);

/// How often the mirrors' caches are held against what they may keep.
const EVICT_EVERY: Duration = Duration::from_secs(60);

/// How often the blob store is looked through for content that no repository has: what a crash left. Once at the start as well.
const SWEEP_STORE_EVERY: Duration = Duration::from_secs(6 * 60 * 60);

/// How long bytes that were taken from a client may still be on their way to a disk after the drain.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// Serves until told to stop: SIGTERM or SIGINT drains, a second one ends at once. During the start the
/// first one ends at once. SIGHUP reads `source` again.
///
/// # Errors
/// A sentence for the operator, when something of the configuration does not work here.
pub fn run(config: &Config, source: Source) -> anyhow::Result<()> {
    modes::set();
    let format = match config.log.format {
        LogFormat::Human => telemetry::LogFormat::Human,
        LogFormat::Json => telemetry::LogFormat::Json,
    };
    let traces = config.otlp.as_ref().map(|otlp| {
        Traces::start(&OtlpSettings {
            endpoint: otlp.endpoint.clone(),
            one_in: otlp.one_in,
        })
    });
    let traces = traces.transpose()?;
    telemetry::init(Logging {
        format,
        level: &config.log.level,
        audit: audit_sink(config.audit.as_ref())?,
        traces: traces.as_ref(),
    })?;
    config.warnings.log();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .build()
        .context("cannot start the runtime")?;
    let ended = runtime.block_on(serve(config, source, watch::Sender::new(Stage::Run)));
    // A disk that hangs must not hold up the end for long, and not at all when nobody waits for it.
    let patience = match ended {
        Ok(Stage::Run | Stage::Drain) => LAST_WRITES,
        Ok(Stage::Abort) | Err(_) => Duration::ZERO,
    };
    runtime.shutdown_timeout(patience);
    if let Some(traces) = traces {
        traces.finish();
    }
    ended.map(drop)
}

fn audit_sink(to: Option<&AuditTo>) -> anyhow::Result<Option<AuditSink>> {
    Ok(match to {
        None => None,
        Some(AuditTo::Stdout) => Some(AuditSink::Stdout),
        Some(AuditTo::File(path)) => {
            let sink = AuditSink::open(path);
            Some(sink.with_context(|| format!("cannot open the audit file {}", path.display()))?)
        }
    })
}

/// How far the shutdown was when it ended.
async fn serve(
    config: &Config,
    source: Source,
    stage: watch::Sender<Stage>,
) -> anyhow::Result<Stage> {
    let watched = stage.subscribe();
    // Before anything that takes time: the first process of a container is not ended by a signal it does not listen for, and any
    // process by a SIGHUP that it does not.
    let signals = tokio::spawn(follow_signals(stage)?);
    let hangup = signal(SignalKind::hangup()).context("cannot listen for signals")?;
    // Before the stores, which take their part of what the system allows.
    let max_connections = server::connections_that_fit(config.limits.max_connections);
    let (app, tripped) = tokio::select! {
        built = App::build(config) => built?,
        () = server::reached(watched.clone(), Stage::Drain) => {
            tracing::info!("told to stop during the start");
            return Ok(Stage::Abort);
        }
    };
    let (listeners, tls) = listeners(config)?;
    let reloader = Reloader::new(Arc::clone(&app), source, config, tls);
    let beside = [
        signals,
        tokio::spawn(follow_hangups(hangup, Arc::clone(&reloader))),
        tokio::spawn(Arc::clone(&reloader).follow_trips(tripped)),
        tokio::spawn(Arc::clone(&reloader).follow_files()),
        tokio::spawn(revocation::follow(Arc::clone(&app))),
        tokio::spawn(sweep(Arc::clone(&app))),
        tokio::spawn(evict(Arc::clone(&app))),
        tokio::spawn(sweep_store(Arc::clone(&app))),
        admin(config, &reloader, &watched)?,
    ];
    let telling = Telling::start(&app);
    for listen in &config.listen {
        let (tls, mirror) = (listen.tls.is_some(), listen.mirror.as_deref());
        tracing::info!(address = %listen.address, tls, mirror, "listening");
    }
    let (edge, telemetry) = (Arc::clone(&app.current().edge), Arc::clone(&app.telemetry));
    let edge = EdgeSettings {
        max_connections,
        ..(*edge).clone()
    };
    server::serve(
        Arc::clone(&app),
        listeners,
        &edge,
        &telemetry,
        watched.clone(),
    )
    .await;
    // A blob leaves before it is published, and the client that has it may be the last one.
    let settled = async { app.current().registry.settled().await };
    tokio::select! {
        _late = tokio::time::timeout(LAST_WRITES, settled) => {}
        () = server::reached(watched.clone(), Stage::Abort) => {}
    }
    telling.stop().await;
    beside.iter().for_each(tokio::task::JoinHandle::abort);
    tracing::info!("drained");
    Ok(*watched.borrow())
}

/// The listeners, and the TLS of each.
fn listeners(config: &Config) -> anyhow::Result<(Vec<Listener>, Vec<Option<ServedTls>>)> {
    let mut listeners = Vec::with_capacity(config.listen.len());
    let mut served = Vec::with_capacity(config.listen.len());
    for listen in &config.listen {
        let tls = listen.tls.as_ref().map(|tls| TlsFiles::from(tls).load());
        let tls = tls
            .transpose()
            .with_context(|| format!("cannot serve TLS on {}", listen.address))?
            .map(ServedTls::new);
        served.push(tls.clone());
        let listener = match &listen.address {
            ListenAddress::Tcp(address) => Listener::tcp(*address, tls),
            ListenAddress::Unix(path) => Listener::unix(path),
        };
        let listener = listener.with_context(|| format!("cannot listen on {}", listen.address))?;
        listeners.push(listener.of_mirror(listen.mirror.clone()));
    }
    Ok((listeners, served))
}

/// The admin listener in a task of its own: it answers until everything else has drained.
fn admin(
    config: &Config,
    reloader: &Arc<Reloader>,
    stage: &watch::Receiver<Stage>,
) -> anyhow::Result<tokio::task::JoinHandle<()>> {
    let Some(address) = config.admin else {
        return Ok(tokio::spawn(std::future::pending()));
    };
    let listener =
        Listener::tcp(address, None).with_context(|| format!("cannot listen on {address}"))?;
    let app = reloader.app();
    let ready = readiness(app, stage.clone());
    let handler = Arc::new(Admin::new(Arc::clone(reloader), ready));
    let (edge, telemetry) = (Arc::clone(&app.current().edge), Arc::clone(&app.telemetry));
    let edge = EdgeSettings {
        max_connections: MAX_ADMIN_CONNECTIONS,
        ..(*edge).clone()
    };
    tracing::info!(%address, "admin listening");
    Ok(tokio::spawn(async move {
        // Its own stage never ends: load balancers must see a drain.
        let (_running, watched) = watch::channel(Stage::Run);
        server::serve(handler, vec![listener], &edge, &telemetry, watched).await;
    }))
}

/// Ready: serving, and the metadata answers.
fn readiness(app: &Arc<App>, stage: watch::Receiver<Stage>) -> Readiness {
    let app = Arc::clone(app);
    Arc::new(move || {
        let (app, stage) = (Arc::clone(&app), stage.clone());
        async move {
            if *stage.borrow() != Stage::Run {
                return Err("draining".to_owned());
            }
            app.current().registry.check().await.map_err(|error| {
                tracing::warn!(error = ?error, "not ready");
                "the metadata store does not answer".to_owned()
            })
        }
        .boxed()
    })
}

/// The first signal drains, the second aborts.
fn follow_signals(stage: watch::Sender<Stage>) -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
    Ok(async move {
        for next in [Stage::Drain, Stage::Abort] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!(stage = ?next, "told to stop");
            stage.send_replace(next);
        }
    })
}

/// Each SIGHUP reloads; what is wrong with the new configuration is in the log.
async fn follow_hangups(mut hangup: Signal, reloader: Arc<Reloader>) {
    while hangup.recv().await.is_some() {
        drop(reloader.reload(Trigger::Signal).await);
    }
}

/// Keeps the mirrors' caches within their settings.
async fn evict(app: Arc<App>) {
    let mut ticks = tokio::time::interval(EVICT_EVERY);
    loop {
        ticks.tick().await;
        match app.current().registry.evict().await {
            Ok(evicted) if evicted.blobs + evicted.manifests > 0 => tracing::info!(
                manifests = evicted.manifests,
                blobs = evicted.blobs,
                freed_bytes = evicted.bytes,
                "evicted from the cache"
            ),
            Ok(_nothing) => {}
            Err(error) => tracing::warn!(error = ?error, "an eviction failed"),
        }
    }
}

async fn sweep_store(app: Arc<App>) {
    let mut ticks = tokio::time::interval(SWEEP_STORE_EVERY);
    loop {
        ticks.tick().await;
        match app.current().registry.sweep_unowned().await {
            Ok(swept) => app.telemetry.count_swept(swept),
            Err(error) => tracing::warn!(error = ?error, "the sweep of the blob store failed"),
        }
    }
}

async fn sweep(app: Arc<App>) {
    let mut ticks = tokio::time::interval(SWEEP_EVERY);
    loop {
        ticks.tick().await;
        if let Err(error) = app.current().registry.sweep_uploads().await {
            tracing::warn!(error = ?error, "the sweep of old uploads failed");
        }
    }
}
