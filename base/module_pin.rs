// SPDX-License-Identifier: GPL-2.0-only

//! The module's own reference count: while somebody registered through us relies on it, rmmod says "in
//! use".

use crate::base::bindings;
use crate::base::kernel_api::this_module;
use crate::base::once::increment_not_zero;
use core::ptr::{addr_of, addr_of_mut};
use kernel::prelude::*;
use kernel::sync::atomic::Atomic;

/// A reference to this module.
pub(crate) struct ModulePin(());

impl ModulePin {
    /// Takes a reference.
    ///
    /// `try_module_get()` in line, which is half of what it costs to call it; so its tracepoint
    /// (`module:module_get`) does not see it.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if the module is going away.
    #[inline(always)]
    pub(crate) fn get() -> Result<Self> {
        const _: () = assert!(cfg!(CONFIG_MODULE_UNLOAD = "y"), "modules are counted");
        // SAFETY: Our own module; this code runs, so its `struct module` is there. Everybody who changes
        // the count does it atomically, and from zero, which is how rmmod makes it final, nobody does.
        let refcnt = unsafe { Atomic::from_ptr(addr_of_mut!((*this_module()).refcnt.counter)) };
        // A forced unload leaves the count as it is.
        if !Self::is_leaving() && increment_not_zero(refcnt) {
            Ok(Self(()))
        } else {
            Err(EAGAIN)
        }
    }

    /// Whether the module is going away: set before it detaches anything, and for good.
    #[inline(always)]
    pub(crate) fn is_leaving() -> bool {
        // SAFETY: As in `get`; the state is one word, which the module loader changes.
        let state = unsafe { addr_of!((*this_module()).state).read_volatile() };
        state == bindings::module_state_MODULE_STATE_GOING
    }

    /// Keeps the reference beyond the scope.
    pub(crate) fn keep(self) {
        core::mem::forget(self);
    }

    /// Takes back a reference that was kept.
    ///
    /// # Safety
    ///
    /// [`ModulePin::keep`] was called, and this reference has not been taken back before.
    pub(crate) unsafe fn take_back() -> Self {
        Self(())
    }
}

impl Drop for ModulePin {
    fn drop(&mut self) {
        // SAFETY: The type stands for one reference. The text that still runs after it is covered
        // by the guard of the hook (design, section 5, rule 2), or by the calling module's own
        // reference.
        unsafe { bindings::module_put(this_module()) };
    }
}
