//! Accept, TLS, connection tasks, limits, graceful drain.
//!
//! Owns sockets and time limits; knows no operation, no credential and no response but the ones about broken HTTP. Invariants: no
//! phase of a connection is without a time limit; accepting survives every error; after a drain no connection is left.

mod activity;
mod connection;
mod flow;
mod head;
mod io;
mod mapped;
mod places;
mod served;
mod subject;
pub mod tls;
mod unread;
mod windows;

use std::{
    future::Future,
    io as std_io,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use http::{Request, Response};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
};
use tokio_util::task::TaskTracker;

use self::{
    activity::{Activity, Limits},
    connection::Connection,
    io::Transport,
    places::Places,
    tls::ServedTls,
    unread::Unread,
    windows::UploadWindows,
};
pub use self::{
    mapped::Mappings,
    places::{Share, Shares, connections_that_fit, fills_that_fit},
    served::RequestBody,
};
use crate::{
    app::EdgeSettings,
    http::{body::ResponseBody, forwarded},
    modes,
    telemetry::Telemetry,
};

/// Connections the kernel holds while we are busy.
const BACKLOG: i32 = 1024;

/// How long accepting pauses after an error such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers requests. [`crate::App`] is one; the admin listener another.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request.
    fn handle(
        &self,
        request: Request<RequestBody>,
        peer: &Peer,
    ) -> impl Future<Output = Response<ResponseBody>> + Send;

    /// The limits of a connection that is accepted now; `None` = those that [`serve`] was given.
    fn edge(&self) -> Option<Arc<EdgeSettings>> {
        None
    }
}

/// The other end of a connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Peer {
    /// Its address; loopback for a Unix socket.
    pub address: IpAddr,
    /// Whether the connection is encrypted.
    pub tls: bool,
    /// Subject of its verified certificate.
    pub tls_subject: Option<String>,
    /// The mirror whose listener it came in by.
    pub mirror: Option<Arc<str>>,
}

/// How far a shutdown is. The first signal drains, the second aborts.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum Stage {
    /// Serving.
    #[default]
    Run,
    /// Nothing new is accepted; what is in flight may finish, up to the drain timeout.
    Drain,
    /// Everything is closed at once.
    Abort,
}

/// A bound socket.
#[derive(Debug)]
pub struct Listener {
    socket: Bound,
    tls: Option<ServedTls>,
    mirror: Option<Arc<str>>,
}

#[derive(Debug)]
enum Bound {
    Tcp(TcpListener),
    Unix(UnixListener),
}

fn bind_unix(path: &Path) -> std_io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    modes::open_socket(path)?;
    Ok(listener)
}

impl Listener {
    /// Binds a TCP address.
    ///
    /// # Errors
    /// The system's, when the address is taken or not ours.
    pub fn tcp(address: SocketAddr, tls: Option<ServedTls>) -> std_io::Result<Self> {
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(Self {
            socket: Bound::Tcp(TcpListener::from_std(socket.into())?),
            tls,
            mirror: None,
        })
    }

    /// Binds a Unix socket, taking the place of a stale one.
    ///
    /// # Errors
    /// The system's; also when another process still listens there.
    pub fn unix(path: &Path) -> std_io::Result<Self> {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(std_io::ErrorKind::AddrInUse.into());
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std_io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Ok(Self {
            socket: Bound::Unix(bind_unix(path)?),
            tls: None,
            mirror: None,
        })
    }

    /// Names the mirror that everything is asked of that comes in here.
    #[must_use]
    pub fn of_mirror(self, mirror: Option<Arc<str>>) -> Self {
        Self { mirror, ..self }
    }

    /// The bound address; `None` for a Unix socket.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.socket {
            Bound::Tcp(listener) => listener.local_addr().ok(),
            Bound::Unix(_) => None,
        }
    }

    async fn accept(&self) -> std_io::Result<(Transport, IpAddr)> {
        match &self.socket {
            Bound::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Transport::Tcp(stream), address.ip()))
            }
            Bound::Unix(listener) => {
                let (stream, _address) = listener.accept().await?;
                Ok((Transport::Unix(stream), IpAddr::from([127, 0, 0, 1])))
            }
        }
    }
}

/// What a set of listeners shares.
#[derive(Debug)]
struct Shared<H> {
    handler: Arc<H>,
    edge: Arc<EdgeSettings>,
    telemetry: Arc<Telemetry>,
    places: Arc<Places>,
    unread: Arc<Unread>,
    /// What clients may send ahead.
    windows: Arc<UploadWindows>,
    stage: watch::Receiver<Stage>,
    tasks: TaskTracker,
}

/// Serves `listeners` until `stage` leaves [`Stage::Run`], then drains. Returns when no connection is left, at the latest when the
/// drain timeout has passed or the stage is [`Stage::Abort`].
pub async fn serve<H: Handler>(
    handler: Arc<H>,
    listeners: Vec<Listener>,
    edge: &EdgeSettings,
    telemetry: &Arc<Telemetry>,
    stage: watch::Receiver<Stage>,
) {
    let shared = Arc::new(Shared {
        handler,
        edge: Arc::new(edge.clone()),
        telemetry: Arc::clone(telemetry),
        places: Places::new(edge.max_connections, telemetry),
        unread: Arc::default(),
        windows: Arc::default(),
        stage: stage.clone(),
        tasks: TaskTracker::new(),
    });
    for listener in listeners {
        let shared = Arc::clone(&shared);
        let tasks = shared.tasks.clone();
        tasks.spawn(accept_loop(shared, listener));
    }
    shared.tasks.close();
    reached(stage.clone(), Stage::Drain).await;
    // Connection tasks end by themselves at `Abort`, and at the drain timeout.
    shared.tasks.wait().await;
}

/// Waits until the stage is at least `goal`. A sender that is gone means that nobody will stop us politely: drain.
pub(crate) async fn reached(mut stage: watch::Receiver<Stage>, goal: Stage) {
    let reached = stage.wait_for(|stage| *stage >= goal).await.is_ok();
    if !reached && goal > Stage::Drain {
        std::future::pending::<()>().await;
    }
}

async fn accept_loop<H: Handler>(shared: Arc<Shared<H>>, listener: Listener) {
    let mut stopped = std::pin::pin!(reached(shared.stage.clone(), Stage::Drain));
    loop {
        let next = async {
            shared.places.settled().await;
            listener.accept().await
        };
        let accepted = tokio::select! {
            biased;
            () = &mut stopped => return,
            accepted = next => accepted,
        };
        match accepted {
            Ok((transport, address)) => admit(&shared, &listener, transport, address),
            Err(error) if is_of_one_connection(&error) => {
                tracing::debug!(%error, "a connection ended before it was accepted");
            }
            Err(error) => {
                tracing::error!(%error, "cannot accept connections");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves a connection in a task of its own, or closes it when all places are taken.
fn admit<H: Handler>(
    shared: &Arc<Shared<H>>,
    listener: &Listener,
    transport: Transport,
    address: IpAddr,
) {
    let edge = shared.handler.edge();
    let edge = edge.unwrap_or_else(|| Arc::clone(&shared.edge));
    let activity = Activity::new(Limits {
        header: edge.header_timeout,
        idle: edge.idle_timeout,
    });
    // Behind a Unix socket is a proxy, or a program of this machine.
    let proxy = matches!(listener.socket, Bound::Unix(_))
        || forwarded::is_trusted(address.to_canonical(), &edge.trusted_proxies);
    let Some(place) = shared.places.enter(address, proxy, &activity) else {
        if listener.tls.is_none() {
            transport.refuse();
        }
        return;
    };
    let connection = Connection {
        edge,
        tls: listener.tls.as_ref().map(ServedTls::accept),
        mirror: listener.mirror.clone(),
        shared: Arc::clone(shared),
        address,
        activity,
        place,
    };
    shared.tasks.spawn(connection.run(transport));
}

/// Errors of the connection that was about to be accepted, not of the listener.
fn is_of_one_connection(error: &std_io::Error) -> bool {
    use std_io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::InvalidInput
    )
}

/// Lets the kernel end a connection whose client acknowledges nothing for `window`: it alone sees past its own buffers.
fn set_user_timeout(transport: &Transport, window: Duration) {
    if let Transport::Tcp(stream) = transport
        && let Err(error) = SockRef::from(stream).set_tcp_user_timeout(Some(window))
    {
        tracing::debug!(%error, "cannot set the TCP user timeout");
    }
}
