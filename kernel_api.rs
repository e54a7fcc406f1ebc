// SPDX-License-Identifier: GPL-2.0-only

//! What the module uses of the Rust API of the kernel and not every supported kernel has.
//!
//! Made here from what all of them have, so that one source builds for all, the same code
//! everywhere. What only C knows differently is in `helpers.c`.

use crate::bindings;
use kernel::error::to_result;
use kernel::prelude::*;
use kernel::types::{NotThreadSafe, Opaque};

/// Operation not supported (`-EOPNOTSUPP`), which Linux 7.3 has in the prelude.
#[cold]
pub(crate) fn eopnotsupp() -> Error {
    Error::from_errno(-(bindings::EOPNOTSUPP as i32))
}

/// This module as C sees it. How to ask the kernel's crate is different in Linux 7.3.
pub(crate) fn this_module() -> *mut bindings::module {
    &raw mut bindings::__this_module
}

/// Sleepable RCU (`struct srcu_struct`). Linux 7.3 has `kernel::sync::Srcu`.
///
/// C header: `include/linux/srcu.h`.
#[pin_data(PinnedDrop)]
pub(crate) struct Srcu {
    #[pin]
    inner: Opaque<bindings::srcu_struct>,
}

// SAFETY: It may be used and freed by any task.
unsafe impl Send for Srcu {}
// SAFETY: As above.
unsafe impl Sync for Srcu {}

/// A read section of an [`Srcu`]. It may sleep.
pub(crate) struct SrcuRead<'a> {
    srcu: &'a Srcu,
    idx: i32,
    _not_send: NotThreadSafe,
}

impl Srcu {
    /// Makes one, with memory of its own.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            inner <- Opaque::try_ffi_init(|srcu: *mut bindings::srcu_struct| {
                // SAFETY: The memory is given to be set up, and is pinned.
                to_result(unsafe { bindings::kpt_srcu_init(srcu) })
            }),
        })
    }

    /// Enters a read section.
    pub(crate) fn read_lock(&self) -> SrcuRead<'_> {
        SrcuRead {
            srcu: self,
            // SAFETY: Set up in `new`.
            idx: unsafe { bindings::kpt_srcu_read_lock(self.inner.get()) },
            _not_send: NotThreadSafe,
        }
    }

    /// Waits for the read sections that are open. Sleeps.
    pub(crate) fn synchronize(&self) {
        // SAFETY: Set up in `new`.
        unsafe { bindings::synchronize_srcu(self.inner.get()) };
    }
}

impl Drop for SrcuRead<'_> {
    fn drop(&mut self) {
        // SAFETY: `idx` is from the matching `kpt_srcu_read_lock()`.
        unsafe { bindings::kpt_srcu_read_unlock(self.srcu.inner.get(), self.idx) };
    }
}

#[pinned_drop]
impl PinnedDrop for Srcu {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Set up in `new`; read sections borrow it, so none is open.
        unsafe { bindings::cleanup_srcu_struct(self.inner.get()) };
    }
}

#[kernel::macros::kunit_tests(kvm_page_track_kernel_api)]
#[allow(unsafe_op_in_unsafe_fn)]
mod tests {
    use super::*;

    #[test]
    fn the_errno_is_that_of_c() {
        assert_eq!(eopnotsupp().to_errno(), -95);
    }
}
