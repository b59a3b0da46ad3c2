//! Turns at the authenticators, taken by addresses: as many at once as there are places, no more than a few of one address, and the
//! addresses that wait one after the other.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::address::AddressGroup;

/// Tries at the authenticators at once.
const MAX_RUNNING: usize = 32;
/// Of one address.
const MAX_RUNNING_OF_ONE: usize = 4;
/// Tries that wait at most, of one address and of all.
const MAX_WAITING_OF_ONE: usize = 256;
const MAX_WAITING: usize = 4096;

/// The places, and who waits for one.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Held for single operations, never over an await.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: usize,
    waiting: usize,
    groups: HashMap<AddressGroup, Group>,
    /// Groups in which somebody waits, next first.
    order: VecDeque<AddressGroup>,
}

#[derive(Debug, Default)]
struct Group {
    running: usize,
    waiting: VecDeque<oneshot::Sender<Place>>,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    /// `None` = was never taken.
    queue: Option<Arc<Queue>>,
    group: AddressGroup,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            queue.state().leave(self.group);
            queue.grant();
        }
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn; `None` = too many wait.
    pub(super) async fn place(self: &Arc<Self>, group: AddressGroup) -> Option<Place> {
        let turn = self.state().wait(group)?;
        self.grant();
        turn.await.ok()
    }

    /// Gives free places to those that wait.
    fn grant(self: &Arc<Self>) {
        let mut state = self.state();
        while let Some((group, waiter)) = state.next() {
            let place = Place {
                queue: Some(Arc::clone(self)),
                group,
            };
            if let Err(mut unwanted) = waiter.send(place) {
                // Gone meanwhile. Dropped as it is it would want the lock that is held here.
                unwanted.queue = None;
                state.leave(group);
            }
        }
    }
}

impl State {
    fn wait(&mut self, group: AddressGroup) -> Option<oneshot::Receiver<Place>> {
        let full = self.waiting >= MAX_WAITING;
        let entry = self.groups.entry(group).or_default();
        if full || entry.waiting.len() >= MAX_WAITING_OF_ONE {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        if entry.waiting.is_empty() {
            self.order.push_back(group);
        }
        entry.waiting.push_back(sender);
        self.waiting += 1;
        Some(receiver)
    }

    /// Whose turn it is, counted as running.
    fn next(&mut self) -> Option<(AddressGroup, oneshot::Sender<Place>)> {
        if self.running >= MAX_RUNNING {
            return None;
        }
        let may = |group: &AddressGroup| {
            let running = self.groups.get(group).map(|entry| entry.running);
            running.is_some_and(|running| running < MAX_RUNNING_OF_ONE)
        };
        let place = self.order.iter().position(may)?;
        let group = self.order.remove(place)?;
        let entry = self.groups.get_mut(&group)?;
        let waiter = entry.waiting.pop_front()?;
        entry.running += 1;
        if !entry.waiting.is_empty() {
            self.order.push_back(group);
        }
        self.waiting -= 1;
        self.running += 1;
        Some((group, waiter))
    }

    fn leave(&mut self, group: AddressGroup) {
        self.running = self.running.saturating_sub(1);
        if let Some(entry) = self.groups.get_mut(&group) {
            entry.running = entry.running.saturating_sub(1);
            if entry.running == 0 && entry.waiting.is_empty() {
                self.groups.remove(&group);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(address: &str) -> AddressGroup {
        AddressGroup::of(address.parse().unwrap())
    }

    #[tokio::test(start_paused = true)]
    #[expect(
        clippy::excessive_nesting,
        reason = "each level is one case, and a function for one would hide the order"
    )]
    async fn an_address_with_hundreds_of_tries_holds_nobody_else_up() {
        let queue = Arc::new(Queue::default());
        let loud = group("192.0.2.1");
        let mut tries = tokio::task::JoinSet::new();
        for _ in 0..200 {
            let queue = Arc::clone(&queue);
            tries.spawn(async move { queue.place(loud).await.is_some() });
        }
        let held: Vec<_> =
            futures_util::future::join_all((0..MAX_RUNNING_OF_ONE).map(|_| queue.place(loud)))
                .await;
        let quiet =
            tokio::time::timeout(std::time::Duration::ZERO, queue.place(group("192.0.2.2")));
        assert!(quiet.await.is_ok_and(|place| place.is_some()));
        drop(held);
        while let Some(done) = tries.join_next().await {
            assert!(done.unwrap());
        }
        let state = queue.state();
        assert!(state.groups.is_empty());
        assert_eq!((state.running, state.waiting), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    #[expect(
        clippy::excessive_nesting,
        reason = "each level is one case, and a function for one would hide the order"
    )]
    async fn addresses_that_wait_take_turns() {
        let queue = Arc::new(Queue::default());
        let mut held = Vec::new();
        for index in 0..MAX_RUNNING {
            held.push(queue.place(group(&format!("198.51.100.{index}"))).await);
        }
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut waiting = tokio::task::JoinSet::new();
        for name in ["a", "a", "a", "b", "c"] {
            let (queue, order) = (Arc::clone(&queue), Arc::clone(&order));
            let group = group(match name {
                "a" => "192.0.2.1",
                "b" => "192.0.2.2",
                _ => "192.0.2.3",
            });
            waiting.spawn(async move {
                let place = queue.place(group).await;
                order.lock().unwrap().push(name);
                drop(place);
            });
            tokio::task::yield_now().await;
        }
        drop(held.pop());
        waiting.join_all().await;
        assert_eq!(*order.lock().unwrap(), ["a", "b", "c", "a", "a"]);
    }

    #[tokio::test(start_paused = true)]
    #[expect(
        clippy::excessive_nesting,
        reason = "each level is one case, and a function for one would hide the order"
    )]
    async fn a_try_that_goes_away_gives_its_turn_on() {
        let queue = Arc::new(Queue::default());
        let one = group("192.0.2.1");
        let held: Vec<_> =
            futures_util::future::join_all((0..MAX_RUNNING_OF_ONE).map(|_| queue.place(one))).await;
        let gone = tokio::time::timeout(std::time::Duration::ZERO, queue.place(one)).await;
        assert!(gone.is_err());
        let next = tokio::spawn({
            let queue = Arc::clone(&queue);
            async move { queue.place(one).await.is_some() }
        });
        tokio::task::yield_now().await;
        drop(held);
        assert!(next.await.unwrap());
        assert!(queue.state().groups.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn more_tries_than_can_wait_are_refused() {
        let queue = Arc::new(Queue::default());
        let one = group("192.0.2.1");
        let mut waiting = Vec::new();
        for _ in 0..MAX_RUNNING_OF_ONE {
            waiting.push(queue.state().wait(one).unwrap());
            queue.grant();
        }
        for _ in 0..MAX_WAITING_OF_ONE {
            waiting.push(queue.state().wait(one).unwrap());
        }
        assert!(queue.place(one).await.is_none());
    }
}
