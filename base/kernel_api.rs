// SPDX-License-Identifier: GPL-2.0-only

//! What the module uses of the Rust API of the kernel and not every supported kernel has.
//!
//! Made here from what all of them have, so that one source builds for all, the same code
//! everywhere. What only C knows differently is in `helpers.c`.

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

#[kernel::macros::kunit_tests(kvm_page_track_kernel_api)]
#[allow(unsafe_op_in_unsafe_fn)]
mod tests {
    use super::*;

    #[test]
    fn the_errno_is_that_of_c() {
        assert_eq!(eopnotsupp().to_errno(), -95);
    }
}
