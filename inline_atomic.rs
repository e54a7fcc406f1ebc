// SPDX-License-Identifier: GPL-2.0-only

//! Atomics and barriers as one instruction: those of the kernel crate are function calls.
//!
//! C source: `READ_ONCE()`, `smp_mb()` and `atomic64_inc()`.

use core::arch::asm;
use kernel::sync::atomic::Atomic;

/// Orders what comes before it, stores included, before what comes after it (`smp_mb()`).
#[inline(always)]
pub(crate) fn smp_mb() {
    // SAFETY: Adds nothing to a word below the stack; the kernel has no red zone, and C does the same.
    unsafe { asm!("lock; addl $0, -4(%rsp)", options(att_syntax, nostack)) };
}

/// Loads a word that others may store to.
///
/// Such loads keep their order among each other, on x86, the only architecture of this module.
#[inline(always)]
pub(crate) fn load(word: &Atomic<usize>) -> usize {
    // SAFETY: Valid for reads, aligned, and only stored to as a whole.
    unsafe { word.as_ptr().read_volatile() }
}

/// Adds one, in any order with what is before and after it.
#[inline(always)]
pub(crate) fn increment(word: &Atomic<u64>) {
    // SAFETY: Valid for reads and writes, and aligned; the bus lock excludes other writers.
    unsafe { asm!("lock; incq ({})", in(reg) word.as_ptr(), options(att_syntax, nostack)) };
}
