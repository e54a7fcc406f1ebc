// SPDX-License-Identifier: GPL-2.0-only

//! Read sections of SRCU structures that C has set up: KVM's, that of the text guard, and those of
//! VMs' lists where KVM has none.
//!
//! C source: `include/linux/srcu.h`.

use crate::base::bindings;
use kernel::ffi::c_int;

// srcu_read_lock() and srcu_read_unlock() are inline, and call these; with lockdep they do more.
#[cfg(not(CONFIG_DEBUG_LOCK_ALLOC = "y"))]
use bindings::{__srcu_read_lock as srcu_read_lock, __srcu_read_unlock as srcu_read_unlock};
#[cfg(CONFIG_DEBUG_LOCK_ALLOC = "y")]
use bindings::{kpt_srcu_read_lock as srcu_read_lock, kpt_srcu_read_unlock as srcu_read_unlock};

/// Enters a read section, which may be nested and may sleep. Any context but NMI.
///
/// # Safety
///
/// The structure is set up, and is not cleaned up before the section is left.
#[inline(always)]
pub(crate) unsafe fn read_lock(srcu: *mut bindings::srcu_struct) -> c_int {
    // SAFETY: The caller's promise.
    unsafe { srcu_read_lock(srcu) }
}

/// Leaves it.
///
/// # Safety
///
/// `idx` is what the [`read_lock`] of this section has returned, to this task.
#[inline(always)]
pub(crate) unsafe fn read_unlock(srcu: *mut bindings::srcu_struct, idx: c_int) {
    // SAFETY: The caller's promise.
    unsafe { srcu_read_unlock(srcu, idx) };
}
