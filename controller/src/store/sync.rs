//! The sync thread: makes the journal survive power failures, for as many acknowledgements at once as wait.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::journal::sync_all;
use super::shared::{Part, Shared};
use super::spill::Spill;

/// Without anybody waiting, the disk is synced this often.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long an acknowledgement waits for others: most quick tasks are over by then, and need none.
const TOGETHER: Duration = Duration::from_millis(5);

/// Runs until the store is closed.
pub(crate) fn run(bell: &Receiver<()>, shared: &Arc<Shared>, spill: &Spill, dir: &Path) {
    // After a failed sync the kernel may have dropped what could not be written, and the next sync will say that all is well.
    // What had been written by then is durable only once a checkpoint of the database has it.
    let mut doubtful: Option<u64> = None;
    let mut synced = 0;
    loop {
        let rung = bell.recv_timeout(INTERVAL);
        let gone = rung == Err(RecvTimeoutError::Disconnected);
        if rung.is_ok() && !shared.stopping.load(Relaxed) {
            std::thread::sleep(TOGETHER);
        }
        let last = gone || shared.stopping.load(Relaxed);
        let target = shared.written.load(Acquire);
        if target > synced || (target > shared.durable.load(Relaxed) && doubtful.is_some()) {
            match sync_all(shared, spill, dir) {
                Ok(()) => {
                    synced = target;
                    if doubtful.is_some_and(|end| shared.durable.load(Relaxed) >= end) {
                        doubtful = None;
                    }
                    if doubtful.is_none() {
                        shared.heal(Part::Sync);
                        shared.made_durable(target);
                    }
                }
                Err(e) => {
                    doubtful = Some(target);
                    shared.fault(
                        Part::Sync,
                        format!("cannot sync the journal in {}: {e}; acknowledgements wait for the database", dir.display()),
                    );
                }
            }
        }
        if last {
            return;
        }
    }
}
