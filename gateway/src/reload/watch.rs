//! Sees watched files change: the system's notices on their folders, and a slow look as a net where there are none.
//!
//! Folders are watched and not files, because files are replaced: by a rename, or by the swap of a link somewhere on the way, as a
//! Kubernetes `ConfigMap` does. A notice is only a hint to look; what counts is whether a file holds other bytes than when it was read.

use std::{
    collections::{BTreeSet, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, Interval, MissedTickBehavior, interval, timeout_at},
};

use super::{Reloader, Trigger, files};

/// Quiet for so long, and a change is over.
const QUIET: Duration = Duration::from_millis(200);
/// A change that does not end is looked at all the same.
const LONGEST: Duration = Duration::from_secs(2);
/// How often files are looked at where no notice comes: network mounts, and folders that were replaced whole. A look reads no more than
/// the stamps of files. A user who is deleted from a file is to lose running transfers within five seconds.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Reloads whenever a watched file holds something else than when it was read.
pub(super) async fn follow(reloader: &Reloader) {
    let (noticed, mut notices) = mpsc::channel(1);
    let mut names = reloader.files.subscribe();
    let mut notifier = Notifier::new(noticed);
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let watched = Arc::clone(&names.borrow_and_update());
        notifier.watch(&watched);
        // In this order: what changes between the look and the next notice is noticed.
        if reloader.differs(&watched).await {
            // Where no notice came, the one who writes may not be done.
            tokio::time::sleep(QUIET).await;
            // The attempt has said what is wrong.
            drop(reloader.reload(Trigger::File).await);
            continue;
        }
        if !reason(&mut notices, &mut names, &mut looks).await {
            return;
        }
    }
}

/// Waits for a reason to look again; false = there will be none.
async fn reason(
    notices: &mut mpsc::Receiver<()>,
    names: &mut watch::Receiver<Arc<BTreeSet<PathBuf>>>,
    looks: &mut Interval,
) -> bool {
    tokio::select! {
        notice = notices.recv() => {
            if notice.is_some() {
                quiet(notices).await;
            }
            notice.is_some()
        }
        changed = names.changed() => changed.is_ok(),
        _ = looks.tick() => true,
    }
}

/// Waits for the end of a change: editors and copies write in several steps.
async fn quiet(notices: &mut mpsc::Receiver<()>) {
    let end = Instant::now() + LONGEST;
    while let Ok(Some(())) = timeout_at(end.min(Instant::now() + QUIET), notices.recv()).await {}
}

impl Reloader {
    async fn differs(&self, watched: &Arc<BTreeSet<PathBuf>>) -> bool {
        let (watched, seen) = (Arc::clone(watched), self.seen().clone());
        let look = move || {
            let now = files::print(&watched, &seen);
            now != seen
        };
        tokio::task::spawn_blocking(look).await.unwrap_or(false)
    }
}

/// The system's notices.
struct Notifier {
    /// `None` = this system gives none; the slow look remains.
    watcher: Option<RecommendedWatcher>,
    folders: BTreeSet<PathBuf>,
    entries: Arc<ArcSwap<HashSet<PathBuf>>>,
}

impl Notifier {
    fn new(noticed: mpsc::Sender<()>) -> Self {
        let entries = Arc::new(ArcSwap::from_pointee(HashSet::new()));
        let wanted = Arc::clone(&entries);
        let heard = move |event: notify::Result<Event>| {
            let hint = match &event {
                Ok(event) => concerns(event, &wanted.load()),
                Err(_lost) => true,
            };
            // Full means that a notice waits already.
            if hint && noticed.try_send(()).is_err() {
                tracing::trace!("a notice waits already");
            }
        };
        let watcher = notify::recommended_watcher(heard)
            .inspect_err(|error| tracing::warn!(%error, "files are not watched, only looked at"))
            .ok();
        Self {
            watcher,
            folders: BTreeSet::new(),
            entries,
        }
    }

    /// Watches the folders of everything that the paths lead through.
    fn watch(&mut self, paths: &BTreeSet<PathBuf>) {
        let entries: HashSet<PathBuf> =
            paths.iter().flat_map(|path| files::entries(path)).collect();
        let folders: BTreeSet<PathBuf> = entries
            .iter()
            .filter_map(|entry| entry.parent())
            .filter(|folder| folder.is_dir())
            .map(Path::to_owned)
            .collect();
        self.entries.store(Arc::new(entries));
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        for folder in self.folders.difference(&folders) {
            // It may be gone, which ends the watch too.
            if let Err(error) = watcher.unwatch(folder) {
                tracing::debug!(%error, folder = %folder.display(), "a folder is no longer watched");
            }
        }
        // Also those that are watched already: a folder that was replaced under its name is another one, and watching twice is once.
        for folder in &folders {
            if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive) {
                tracing::warn!(%error, folder = %folder.display(), "a folder is not watched, only looked at");
            }
        }
        self.folders = folders;
    }
}

/// Whether the event may have changed one of `entries`. Our own reading makes events too.
fn concerns(event: &Event, entries: &HashSet<PathBuf>) -> bool {
    let written = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        _ => true,
    };
    let named = event.paths.iter().any(|path| entries.contains(path));
    event.need_rescan() || (written && named)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A loop that nobody tells anything, unless `noticed` is used.
    struct Loop {
        noticed: mpsc::Sender<()>,
        notices: mpsc::Receiver<()>,
        named: watch::Sender<Arc<BTreeSet<PathBuf>>>,
        names: watch::Receiver<Arc<BTreeSet<PathBuf>>>,
        looks: Interval,
    }

    impl Loop {
        /// After the look that the first tick is for.
        async fn after_its_first_look() -> Self {
            let (noticed, notices) = mpsc::channel(1);
            let (named, names) = watch::channel(Arc::default());
            let mut looks = interval(LOOK_EVERY);
            looks.tick().await;
            Self {
                noticed,
                notices,
                named,
                names,
                looks,
            }
        }

        async fn reason(&mut self) -> (bool, Duration) {
            let began = Instant::now();
            let reason = reason(&mut self.notices, &mut self.names, &mut self.looks);
            (reason.await, began.elapsed())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn where_no_notice_comes_files_are_looked_at_every_two_seconds() {
        let mut following = Loop::after_its_first_look().await;
        for _look in 0..3 {
            assert_eq!(following.reason().await, (true, Duration::from_secs(2)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_looked_at_when_it_is_quiet_or_lasts_too_long() {
        let mut following = Loop::after_its_first_look().await;
        following.noticed.send(()).await.unwrap();
        assert_eq!(following.reason().await, (true, QUIET));
        let without_end = tokio::spawn(notices_without_end(following.noticed.clone()));
        assert_eq!(following.reason().await, (true, LONGEST));
        without_end.abort();
    }

    async fn notices_without_end(noticed: mpsc::Sender<()>) {
        while noticed.send(()).await.is_ok() {
            tokio::time::sleep(QUIET / 2).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn other_files_are_looked_at_at_once() {
        let mut following = Loop::after_its_first_look().await;
        following.named.send(Arc::default()).unwrap();
        assert_eq!(following.reason().await, (true, Duration::ZERO));
    }
}
