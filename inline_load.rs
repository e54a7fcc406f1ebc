// SPDX-License-Identifier: GPL-2.0-only

//! A load of an atomic as one instruction: those of the kernel crate are function calls.
//!
//! C source: `READ_ONCE()`.

use kernel::sync::atomic::Atomic;

/// Loads a word that others may store to.
///
/// Such loads keep their order among each other, on x86, the only architecture of this module.
#[inline(always)]
pub(crate) fn load(word: &Atomic<usize>) -> usize {
    // SAFETY: Valid for reads, aligned, and only stored to as a whole.
    unsafe { word.as_ptr().read_volatile() }
}
