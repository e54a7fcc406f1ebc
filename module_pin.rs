// SPDX-License-Identifier: GPL-2.0-only

//! The module's own reference count: while somebody registered through us relies on it, rmmod says "in
//! use".

use crate::bindings;
use crate::kernel_api::this_module;
use core::ptr::addr_of;
use kernel::prelude::*;

/// A reference to this module.
pub(crate) struct ModulePin(());

impl ModulePin {
    /// Takes a reference.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if the module is going away.
    pub(crate) fn get() -> Result<Self> {
        // SAFETY: Our own module; this code runs, so its `struct module` is there.
        if unsafe { bindings::try_module_get(this_module()) } {
            Ok(Self(()))
        } else {
            Err(EAGAIN)
        }
    }

    /// Whether the module is going away: set before it detaches anything, and for good.
    #[allow(dead_code)] // where there is no C tracker beside us
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
