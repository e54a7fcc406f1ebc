// SPDX-License-Identifier: GPL-2.0-only

//! Read sections of SRCU structures that C has set up: KVM's, that of the text guard, and those of
//! VMs' lists where KVM has none ([`OnDemand`]).
//!
//! C source: `include/linux/srcu.h`.

use crate::base::bindings;
use core::ptr::NonNull;
use kernel::ffi::c_int;
use kernel::prelude::*;
use kernel::sync::atomic::{Acquire, Atomic, Full, Relaxed};

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

/// An SRCU structure that is made when it is needed.
#[allow(dead_code)] // where KVM has one for the purpose
pub(crate) struct OnDemand(Atomic<usize>);

#[allow(dead_code)] // as above
impl OnDemand {
    /// None yet.
    pub(crate) const fn new() -> Self {
        Self(Atomic::new(0))
    }

    /// The structure, if there is one.
    pub(crate) fn get(&self) -> Option<NonNull<bindings::srcu_struct>> {
        NonNull::new(self.0.load(Acquire) as *mut bindings::srcu_struct)
    }

    /// Makes it, if there is none. Sleeps.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn make(&self) -> Result {
        if self.get().is_some() {
            return Ok(());
        }
        // SAFETY: An allocation without conditions.
        let srcu = unsafe { bindings::kpt_srcu_alloc() };
        if srcu.is_null() {
            return Err(ENOMEM);
        }
        if self.0.cmpxchg(0, srcu as usize, Full).is_err() {
            // SAFETY: Somebody else was first, so nobody knows this one.
            unsafe { bindings::kpt_srcu_free(srcu) };
        }
        Ok(())
    }

    /// Frees it, if there is one. Sleeps.
    ///
    /// # Safety
    ///
    /// Nobody is in one of its sections, or comes into one.
    pub(crate) unsafe fn free(&self) {
        if let Some(srcu) = self.get() {
            self.0.store(0, Relaxed);
            // SAFETY: From `make`; the rest is the caller's promise.
            unsafe { bindings::kpt_srcu_free(srcu.as_ptr()) };
        }
    }
}
