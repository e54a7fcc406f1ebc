// SPDX-License-Identifier: GPL-2.0-only

//! What the Rust API of the kernel lacks, on some of the supported kernels or on all.
//!
//! Made here from what all of them have, so that one source builds for all. What only C knows is in
//! `base.c`.

use crate::base::bindings;
use kernel::prelude::*;

/// Operation not supported (`-EOPNOTSUPP`), which Linux 7.3 has in the prelude.
#[cold]
pub(crate) fn eopnotsupp() -> Error {
    Error::from_errno(-(bindings::EOPNOTSUPP as i32))
}

/// This module as C sees it. How to ask the kernel's crate is different in Linux 7.3.
pub(crate) fn this_module() -> *mut bindings::module {
    &raw mut bindings::__this_module
}

/// Warns of something that cannot be, once (`WARN_ON_ONCE(1)`).
#[cold]
pub(crate) fn warn_on_once() {
    // SAFETY: Any context.
    unsafe { bindings::kpt_warn_once() };
}

/// Lets other tasks run (`cond_resched()`). Sleeps: process context without spinlocks.
pub(crate) fn cond_resched() {
    // SAFETY: As the callers are told.
    unsafe { bindings::kpt_cond_resched() };
}

/// Sleeps for ever, in a way that nobody counts as load. Process context without locks.
pub(crate) fn sleep_for_ever() -> ! {
    loop {
        // SAFETY: As the callers are told.
        unsafe { bindings::kpt_sleep_idle() };
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
