// SPDX-License-Identifier: GPL-2.0-only

//! An XArray whose loads take no lock, with addresses for entries.
//!
//! The kernel crate's `XArray` owns pointers and locks for a load. Here the entries are
//! addresses whose lifetime the user of the array argues, and loads come from the event path.
//!
//! C source: `lib/xarray.c`.

use crate::bindings;
use kernel::prelude::*;
use kernel::types::Opaque;

/// An XArray of addresses. Bit 63 of one must equal bit 62: true for kernel addresses.
pub(crate) struct Xa {
    inner: Opaque<bindings::xarray>,
}

// SAFETY: An XArray has its own lock; entries are numbers.
unsafe impl Send for Xa {}
// SAFETY: As above.
unsafe impl Sync for Xa {}

/// The entry that stands for a number (`xa_mk_value()`).
fn entry(value: usize) -> *mut kernel::ffi::c_void {
    (value.wrapping_shl(1) | 1) as *mut kernel::ffi::c_void
}

fn value(entry: *mut kernel::ffi::c_void) -> Option<usize> {
    // NULL is the only entry that is not a value: nothing else is ever stored.
    if entry.is_null() {
        None
    } else {
        // The shift keeps the sign, so an address comes back whole.
        Some((entry as isize >> 1) as usize)
    }
}

impl Xa {
    /// An array for a static, to be set up with [`Xa::init`].
    ///
    /// # Safety
    ///
    /// Nothing but [`Xa::init`] may be called before that.
    pub(crate) const unsafe fn uninit() -> Self {
        Self {
            inner: Opaque::uninit(),
        }
    }

    /// Sets up an array made with [`Xa::uninit`].
    ///
    /// # Safety
    ///
    /// To be called once, before any other method, and never for an array made otherwise.
    pub(crate) unsafe fn init(&'static self) {
        // SAFETY: `xa_init()` initialises the memory it is given, which never moves.
        unsafe { bindings::kpt_xa_init(self.inner.get()) };
    }

    /// The number stored at an index. Any context.
    #[inline]
    pub(crate) fn load(&self, index: usize) -> Option<usize> {
        // SAFETY: The array is initialised.
        value(unsafe { bindings::xa_load(self.inner.get(), index) })
    }

    /// Stores a number at an index that is empty. Sleeps.
    ///
    /// # Errors
    ///
    /// `EBUSY` if the index is not empty, `ENOMEM`.
    pub(crate) fn insert(&self, index: usize, value: usize) -> Result {
        // SAFETY: As in `load`.
        kernel::error::to_result(unsafe {
            bindings::kpt_xa_insert(self.inner.get(), index, entry(value))
        })
    }

    /// Empties an index. Does not sleep.
    pub(crate) fn erase(&self, index: usize) {
        // SAFETY: As in `load`.
        unsafe { bindings::xa_erase(self.inner.get(), index) };
    }

    /// The first index from `from` to `last` that is not empty, and its number.
    pub(crate) fn find(&self, from: usize, last: usize) -> Option<(usize, usize)> {
        // What `XA_PRESENT` says: entries with any mark or none.
        const PRESENT: u32 = 8;
        let mut index = from;
        // SAFETY: As in `load`.
        let found = unsafe { bindings::xa_find(self.inner.get(), &mut index, last, PRESENT) };
        value(found).map(|value| (index, value))
    }
}
