//! Which connections are kept when there are more than places.
//!
//! Below the limit nothing is refused and nothing is closed for room. At the limit each client address (an IPv6 network of 64 bits) has an
//! equal share: the longest idle connection of those above theirs is closed first. Trusted proxies speak for many clients: their
//! connections are never closed for room, and their requests count by the client that the proxy names ([`Shares`]).

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{sync::Notify, time::Instant};

use super::activity::Activity;
use crate::telemetry::Telemetry;

/// Connections that were closed for room and are still there, at most: their descriptors come on top of the places.
const MAX_LEAVING: usize = 16;

/// How often a full house is logged at most.
const NOTICE_EVERY: Duration = Duration::from_mins(1);

/// A client for shares: an IPv4 address, or the 64 bits of an IPv6 network that one host may have to itself.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct ClientKey(IpAddr);

impl ClientKey {
    fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = address.to_bits() & !u128::from(u64::MAX);
                IpAddr::V6(network.into())
            }
            address @ IpAddr::V4(_) => address,
        })
    }
}

/// The places for connections of a set of listeners.
#[derive(Debug)]
pub(super) struct Places {
    max: usize,
    /// Held for single operations.
    state: Mutex<State>,
    telemetry: Arc<Telemetry>,
    /// One that was closed for room is gone.
    gone: Notify,
}

#[derive(Debug, Default)]
struct State {
    taken: usize,
    /// Closed for room, and not gone yet.
    leaving: usize,
    last_id: u64,
    clients: HashMap<ClientKey, HashMap<u64, ConnectionEntry>>,
    notice: Notice,
}

/// A connection that can be closed for room.
#[derive(Debug)]
struct ConnectionEntry {
    activity: Arc<Activity>,
    leave: Arc<Notify>,
}

/// What happened since the last line about it.
#[derive(Debug, Default)]
struct Notice {
    last: Option<Instant>,
    closed: u64,
    refused: u64,
}

impl Places {
    pub(super) fn new(max: usize, telemetry: &Arc<Telemetry>) -> Arc<Self> {
        Arc::new(Self {
            max,
            state: Mutex::default(),
            telemetry: Arc::clone(telemetry),
            gone: Notify::new(),
        })
    }

    /// Waits until hardly any connection that was closed for room is left.
    pub(super) async fn settled(&self) {
        loop {
            let gone = self.gone.notified();
            if self.state().leaving < MAX_LEAVING {
                return;
            }
            gone.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a connection a place, that of another when there is no free one; `None` when it must be refused. A `proxy` is trusted.
    pub(super) fn enter(
        self: &Arc<Self>,
        address: IpAddr,
        proxy: bool,
        activity: &Arc<Activity>,
    ) -> Option<Place> {
        let client = (!proxy).then(|| ClientKey::of(address));
        let mut state = self.state();
        if state.taken >= self.max {
            let found = state.least_needed(client, self.max);
            let counter = match found {
                Some(_) => &self.telemetry.connections_closed_for_room,
                None => &self.telemetry.connections_refused,
            };
            counter.inc();
            state.notice(found.is_some(), self.max);
            state.close(found?);
        }
        state.taken += 1;
        state.last_id += 1;
        let id = state.last_id;
        let leave = Arc::new(Notify::new());
        if let Some(client) = client {
            let held = ConnectionEntry {
                activity: Arc::clone(activity),
                leave: Arc::clone(&leave),
            };
            state.clients.entry(client).or_default().insert(id, held);
        }
        Some(Place {
            places: Arc::clone(self),
            client,
            id,
            leave,
        })
    }
}

impl State {
    /// The connection that gives way to one of `newcomer`; `None` when none does.
    fn least_needed(&self, newcomer: Option<ClientKey>, max: usize) -> Option<(ClientKey, u64)> {
        let own = newcomer.and_then(|client| self.clients.get(&client));
        let clients = self.clients.len() + usize::from(newcomer.is_some() && own.is_none());
        let share = max.checked_div(clients).unwrap_or(max).max(1);
        if let (Some(client), Some(own)) = (newcomer, own)
            && own.len() >= share
        {
            return longest_idle([(&client, own)]);
        }
        let above = || self.clients.iter().filter(|(_, held)| held.len() > share);
        longest_idle(above())
            .or_else(|| {
                // All of them are busy: the newest of the client that has most loses least.
                let (client, held) = above().max_by_key(|(_, held)| held.len())?;
                Some((*client, *held.keys().max()?))
            })
            .or_else(|| longest_idle(&self.clients))
    }

    fn close(&mut self, (client, id): (ClientKey, u64)) {
        if let Some(held) = self.forget(client, id) {
            held.leave.notify_one();
            self.taken -= 1;
            self.leaving += 1;
        }
    }

    fn forget(&mut self, client: ClientKey, id: u64) -> Option<ConnectionEntry> {
        let connections = self.clients.get_mut(&client)?;
        let held = connections.remove(&id);
        if connections.is_empty() {
            self.clients.remove(&client);
        }
        held
    }

    fn notice(&mut self, closed: bool, max: usize) {
        self.notice.closed += u64::from(closed);
        self.notice.refused += u64::from(!closed);
        let now = Instant::now();
        let last = self.notice.last;
        if last.is_some_and(|last| now.duration_since(last) < NOTICE_EVERY) {
            return;
        }
        let heaviest = self.clients.iter().max_by_key(|(_, held)| held.len());
        tracing::warn!(
            limit = max,
            closed = self.notice.closed,
            refused = self.notice.refused,
            client.address = heaviest.map(|(client, _)| client.0.to_string()),
            client.connections = heaviest.map(|(_, held)| held.len()),
            "all connections are taken: some were closed or refused to make room since the last such line; the client that has most is shown \
             (limits.connections, and the open files that the system allows the process)"
        );
        self.notice = Notice {
            last: Some(now),
            ..Notice::default()
        };
    }
}

fn longest_idle<'a>(
    clients: impl IntoIterator<Item = (&'a ClientKey, &'a HashMap<u64, ConnectionEntry>)>,
) -> Option<(ClientKey, u64)> {
    let idle = clients.into_iter().flat_map(|(client, connections)| {
        connections
            .iter()
            .filter_map(move |(id, held)| Some((held.activity.idle_since()?, *client, *id)))
    });
    let (_since, client, id) = idle.min_by_key(|(since, _, id)| (*since, *id))?;
    Some((client, id))
}

/// A place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    client: Option<ClientKey>,
    id: u64,
    leave: Arc<Notify>,
}

impl Place {
    /// Completes when the place is another's.
    pub(super) async fn lost(&self) {
        self.leave.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.places.state();
        // One that was closed for room has been counted then.
        let counted = match self.client {
            Some(client) => state.forget(client, self.id).is_some(),
            None => true,
        };
        if counted {
            state.taken -= 1;
        } else {
            state.leaving -= 1;
            self.places.gone.notify_waiters();
        }
    }
}

/// Requests in flight that came by trusted proxies, by the client that the proxy names.
#[derive(Debug)]
pub struct Shares {
    max: usize,
    /// Held for single operations.
    clients: Mutex<(usize, HashMap<ClientKey, usize>)>,
}

impl Shares {
    /// At `max` requests at once, a client above its equal share is refused.
    #[must_use]
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            clients: Mutex::default(),
        })
    }

    fn clients(&self) -> MutexGuard<'_, (usize, HashMap<ClientKey, usize>)> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request until the answer is dropped; `None` when the client has its share already.
    #[must_use]
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Share> {
        let client = ClientKey::of(address);
        let mut clients = self.clients();
        let own = clients.1.get(&client).copied().unwrap_or_default();
        let others = clients.1.len() + usize::from(own == 0);
        if clients.0 >= self.max && own >= (self.max / others).max(1) {
            return None;
        }
        clients.0 += 1;
        clients.1.insert(client, own + 1);
        Some(Share {
            shares: Arc::clone(self),
            client,
        })
    }
}

/// A request in flight.
#[derive(Debug)]
pub struct Share {
    shares: Arc<Shares>,
    client: ClientKey,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut clients = self.shares.clients();
        clients.0 -= 1;
        if let Some(own) = clients.1.get_mut(&self.client) {
            *own -= 1;
            if *own == 0 {
                clients.1.remove(&self.client);
            }
        }
    }
}

/// How many connections the process may have of `wanted`: the system's limit of open files, raised as far as the process may, less what
/// blobs, uploads, fills, upstreams and databases need beside them.
#[must_use]
pub fn connections_that_fit(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let wanted_files = (wanted as u64).saturating_mul(8).div_ceil(5);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    let mut files = limit.current.unwrap_or(u64::MAX);
    if files < wanted_files.min(hard) {
        let raised = Rlimit {
            current: Some(wanted_files.min(hard)),
            maximum: limit.maximum,
        };
        match setrlimit(Resource::Nofile, raised) {
            Ok(()) => files = wanted_files.min(hard),
            Err(error) => tracing::debug!(%error, "cannot raise the limit of open files"),
        }
    }
    let fit = usize::try_from(files - reserve(files)).unwrap_or(usize::MAX);
    if fit < wanted {
        tracing::warn!(
            limit = fit,
            wanted,
            open_files = files,
            "fewer connections than limits.connections: the system allows the process too few open files (ulimit -n, LimitNOFILE)"
        );
    }
    fit.clamp(1, wanted)
}

/// Open files that are no connection's: of databases and for the admin listener 64; of blobs that are read an eighth, of uploads a 32nd
/// (the storage opens no more), of fills and their connections to upstreams two 16ths ([`fills_that_fit`]), and a 32nd for other
/// connections to upstreams and services. At most 4,096.
fn reserve(files: u64) -> u64 {
    (64 + files / 16 * 5).min(4096).min(files)
}

/// How many blobs the process may fetch at once of `wanted`: each has a staging file and a connection.
#[must_use]
pub fn fills_that_fit(wanted: usize) -> usize {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(files / 16).map_or(wanted, |fit| fit.clamp(4, wanted.max(4)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::activity::Limits;

    const LIMITS: Limits = Limits {
        header: Duration::from_secs(10),
        idle: Duration::from_secs(60),
    };

    struct House {
        places: Arc<Places>,
        telemetry: Arc<Telemetry>,
    }

    impl House {
        fn of(max: usize) -> Self {
            let telemetry = Arc::new(Telemetry::new());
            let places = Places::new(max, &telemetry);
            Self { places, telemetry }
        }

        async fn enter(&self, address: &str) -> Option<(Place, Arc<Activity>)> {
            self.enter_as(address, false).await
        }

        async fn enter_as(&self, address: &str, proxy: bool) -> Option<(Place, Arc<Activity>)> {
            // Each one is idle for longer than the next.
            tokio::time::advance(Duration::from_secs(1)).await;
            let activity = Activity::new(LIMITS);
            let place = self
                .places
                .enter(address.parse().unwrap(), proxy, &activity)?;
            Some((place, activity))
        }
    }

    async fn is_lost(place: &Place) -> bool {
        let lost = tokio::time::timeout(Duration::ZERO, place.lost());
        lost.await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_limit_the_longest_idle_gives_way_and_a_busy_one_does_not() {
        let house = House::of(3);
        let (busy, activity) = house.enter("192.0.2.1").await.unwrap();
        let _request = activity.begin();
        let (idle, _) = house.enter("192.0.2.1").await.unwrap();
        let (fresh, _) = house.enter("192.0.2.1").await.unwrap();
        let (_newcomer, _) = house.enter("192.0.2.1").await.unwrap();
        assert!(is_lost(&idle).await);
        assert!(!is_lost(&busy).await && !is_lost(&fresh).await);
        assert_eq!(house.places.state().leaving, 1);
        drop(idle);
        assert_eq!(house.places.state().leaving, 0);
        assert_eq!(house.places.state().taken, 3);
        assert_eq!(house.telemetry.connections_closed_for_room.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_whose_connections_are_all_busy_is_refused_another() {
        let house = House::of(2);
        let taken = [
            house.enter("192.0.2.1").await,
            house.enter("192.0.2.1").await,
        ];
        let requests = taken.iter().flatten().map(|(_, activity)| activity.begin());
        let _requests: Vec<_> = requests.collect();
        assert!(house.enter("192.0.2.1").await.is_none());
        assert_eq!(house.telemetry.connections_refused.get(), 1);
        drop(taken);
        assert!(house.enter("192.0.2.1").await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_never_shuts_out_another() {
        let house = House::of(10);
        let (honest, _) = house.enter("198.51.100.7").await.unwrap();
        let mut taken = Vec::new();
        for _connection in 0..30 {
            taken.extend(house.enter("192.0.2.1").await);
        }
        assert!(!is_lost(&honest).await, "it was idle for longest");
        let (again, _) = house.enter("198.51.100.7").await.unwrap();
        assert!(!is_lost(&again).await);
        // Busy ones are no way around it.
        let busy: Vec<_> = taken.iter().map(|(_, activity)| activity.begin()).collect();
        for _connection in 0..3 {
            taken.extend(house.enter("198.51.100.7").await);
        }
        assert_eq!(house.telemetry.connections_refused.get(), 0);
        assert!(!is_lost(&honest).await && !is_lost(&again).await);
        drop(busy);
    }

    #[tokio::test(start_paused = true)]
    async fn many_addresses_with_a_connection_each_leave_room_for_another() {
        let house = House::of(10);
        let mut taken = Vec::new();
        for host in 1..=200 {
            taken.push(house.enter(&format!("192.0.2.{host}")).await.unwrap());
        }
        let (_newcomer, _) = house.enter("198.51.100.7").await.unwrap();
        assert_eq!(house.places.state().taken, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn an_ipv6_network_is_one_client() {
        let house = House::of(4);
        let mut taken = Vec::new();
        for host in 1..=4 {
            taken.push(house.enter(&format!("2001:db8::{host}")).await.unwrap());
        }
        let (other, _) = house.enter("2001:db8:0:1::1").await.unwrap();
        let (mapped, _) = house.enter("::ffff:192.0.2.1").await.unwrap();
        taken.push(house.enter("2001:db8::ffff:1").await.unwrap());
        assert!(!is_lost(&other).await && !is_lost(&mapped).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_trusted_proxy_is_never_closed_for_room() {
        let house = House::of(3);
        let (proxy, _) = house.enter_as("10.0.0.1", true).await.unwrap();
        let (second, _) = house.enter_as("10.0.0.1", true).await.unwrap();
        let mut taken = Vec::new();
        for _connection in 0..5 {
            taken.push(house.enter("192.0.2.1").await.unwrap());
        }
        let (third, _) = house.enter_as("10.0.0.1", true).await.unwrap();
        for place in [&proxy, &second, &third] {
            assert!(!is_lost(place).await);
        }
        assert!(house.enter("192.0.2.1").await.is_none());
    }

    #[test]
    fn requests_by_proxies_are_shared_only_at_the_limit() {
        let shares = Shares::new(4);
        let (heavy, light) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        let taken: Vec<_> = (0..4).map(|_| shares.enter(heavy).unwrap()).collect();
        assert!(shares.enter(heavy).is_none());
        let first = shares.enter(light).unwrap();
        let second = shares.enter(light).unwrap();
        assert!(shares.enter(light).is_none(), "that is its share");
        drop((taken, first, second));
        assert!(shares.clients().1.is_empty());
        assert!(shares.enter(heavy).is_some());
    }

    #[test]
    fn connections_leave_descriptors_for_everything_else() {
        assert_eq!(reserve(1024), 384);
        assert_eq!(reserve(64), 64);
        assert_eq!(reserve(1 << 20), 4096);
    }
}
