// SPDX-License-Identifier: GPL-2.0-only

//! The module's own reference count: while somebody relies on what he has registered through us, rmmod
//! says "in use".
//!
//! C source: `kernel/module/main.c`.

use crate::base::bindings;
use crate::base::kernel_api::this_module;
use kernel::prelude::*;

/// A reference to this module.
pub(crate) struct ModulePin(());

impl ModulePin {
    /// Takes a reference. Any context.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if the module is going away.
    pub(crate) fn get() -> Result<Self> {
        // SAFETY: Our own module: this code runs, so its `struct module` is there.
        if unsafe { bindings::try_module_get(this_module()) } {
            Ok(Self(()))
        } else {
            Err(EAGAIN)
        }
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
        // SAFETY: The type stands for one reference. The text that still runs after it is covered by
        // the guard of the hook (docs/internals.md, rule 2), or by the calling module's own reference.
        unsafe { bindings::module_put(this_module()) };
    }
}
