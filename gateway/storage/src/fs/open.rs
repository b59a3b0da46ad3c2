//! A bound on open files: the one that was not used for longest is closed when another one opens.
//!
//! A file that is closed here opens again at its next use, so neither slow readers nor slow uploads take the descriptors that others need.

use std::{
    collections::VecDeque,
    fmt::Debug,
    sync::{Arc, Mutex, Weak},
};

use rustix::process::{Resource, getrlimit};

use crate::blocking::lock;

/// Something with a file that can be closed and opened again.
pub(super) trait Reopens: Debug {
    /// Whether its file was used since this was last called.
    fn take_used(&self) -> bool;

    /// Closes the file unless it is in use now. False when it stays open and still counts. Blocks.
    fn close(&self) -> bool;
}

/// Files that are open, at most so many at a time, beside those in use at this moment.
#[derive(Debug)]
pub(super) struct OpenFiles<T> {
    /// The longest open first. Held for single operations.
    open: Mutex<VecDeque<Weak<T>>>,
    max: usize,
}

impl<T: Reopens> OpenFiles<T> {
    pub(super) fn new(max: usize) -> Self {
        Self {
            open: Mutex::default(),
            max,
        }
    }

    /// Counts one more open file, and closes others when there are too many. Blocks.
    pub(super) fn opened(&self, opened: &Weak<T>) {
        let mut turns = {
            let mut open = lock(&self.open);
            open.push_back(Weak::clone(opened));
            2 * open.len()
        };
        while let Some(oldest) = self.oldest(opened, &mut turns) {
            if !oldest.close() {
                lock(&self.open).push_back(Arc::downgrade(&oldest));
            }
        }
    }

    /// The file to be closed now: in a first round of `turns` those are spared that were used since the last one.
    fn oldest(&self, opened: &Weak<T>, turns: &mut usize) -> Option<Arc<T>> {
        let mut open = lock(&self.open);
        while open.len() > self.max && *turns > 0 {
            *turns -= 1;
            let oldest = open.pop_front()?;
            let Some(held) = oldest.upgrade() else {
                continue;
            };
            if !oldest.ptr_eq(opened) && !held.take_used() {
                return Some(held);
            }
            open.push_back(oldest);
        }
        None
    }
}

/// Blobs that may be open at once: an eighth of what the process may open, for connections and uploads need descriptors too.
pub(super) fn max_open_blobs() -> usize {
    share(8, 1024)
}

/// Uploads and fills whose staging file may be open at once: a 32nd of what the process may open.
pub(super) fn max_open_uploads() -> usize {
    share(32, 512)
}

fn share(part: u64, most: u64) -> usize {
    const LEAST: u64 = 16;
    let allowed = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from((allowed / part).clamp(LEAST, most)).unwrap_or(16)
}
