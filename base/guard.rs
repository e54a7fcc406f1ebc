// SPDX-License-Identifier: GPL-2.0-only

//! The text guard. A task that sleeps inside the module's text holds it meanwhile. Where spinlocks sleep,
//! a task that takes one does, too.
//!
//! Before the text is freed, [`drain`] waits for every guard, and then for Tasks RCU: for tasks in the few
//! instructions before a guard is entered or after it is left, and in hook functions that do not sleep and
//! so need no guard (docs/internals.md, rule 2). A function must not leave the guard and enter it again:
//! [`drain`] may have waited for the first part, and does not wait for the second.
//!
//! C source: `include/linux/srcu.h`.

use crate::base::bindings;
use crate::base::srcu;
use kernel::types::NotThreadSafe;

/// A guard held. It may be held across a sleep.
pub(crate) struct Guard {
    idx: i32,
    _not_send: NotThreadSafe,
}

/// Enters the guard. Any context but NMI.
pub(crate) fn enter() -> Guard {
    Guard {
        // SAFETY: The structure is static, set up before the module runs and cleaned up after its end.
        idx: unsafe { srcu::read_lock(&raw mut bindings::kpt_guard) },
        _not_send: NotThreadSafe,
    }
}

/// Whether taking a spinlock may sleep: on PREEMPT_RT. Elsewhere Tasks RCU waits for a task that holds
/// one or waits for one.
const LOCKS_SLEEP: bool = cfg!(CONFIG_PREEMPT_RT = "y");

/// Enters the guard where taking a spinlock may sleep.
#[inline(always)]
pub(crate) fn enter_if_locks_sleep() -> Option<Guard> {
    LOCKS_SLEEP.then(enter)
}

impl Drop for Guard {
    fn drop(&mut self) {
        // SAFETY: `idx` is from the matching `read_lock`, in the same task: the type is not `Send`.
        unsafe { srcu::read_unlock(&raw mut bindings::kpt_guard, self.idx) };
    }
}

/// Waits until nobody is in the module's text any more. Sleeps.
///
/// Every hook must have been detached before.
pub(crate) fn drain() {
    wait();
    synchronize_tasks();
}

/// Waits for the guards that are held now. Sleeps.
///
/// To be called from module exit, or from a module init that failed.
pub(crate) fn wait() {
    // SAFETY: Process context without locks.
    unsafe { bindings::synchronize_srcu(&raw mut bindings::kpt_guard) };
}

/// Waits until every task has slept once, or run in user space: a grace period of Tasks RCU. Sleeps.
///
/// To be called from module init or exit, without locks.
pub(crate) fn synchronize_tasks() {
    // SAFETY: Process context without locks.
    unsafe { bindings::synchronize_rcu_tasks() };
}
