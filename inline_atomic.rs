// SPDX-License-Identifier: GPL-2.0-only

//! Atomics and barriers as one instruction: those of the kernel crate are function calls.
//!
//! C source: `READ_ONCE()`, `WRITE_ONCE()`, `smp_mb()`, `atomic_long_try_cmpxchg()` and
//! `atomic64_inc()`.

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

/// Stores a word that others may load. Such stores keep their order among each other, on x86.
#[inline(always)]
pub(crate) fn store(word: &Atomic<usize>, value: usize) {
    // SAFETY: Valid for writes, aligned, and only accessed as a whole.
    unsafe { word.as_ptr().write_volatile(value) }
}

/// Replaces a word if it is `old` (`try_cmpxchg()`). Orders everything before it before everything
/// after it.
#[inline(always)]
pub(crate) fn claim(word: &Atomic<usize>, old: usize, new: usize) -> bool {
    let found: usize;
    // SAFETY: Valid for reads and writes, and aligned; the bus lock excludes other writers.
    unsafe {
        asm!(
            "lock; cmpxchgq {new}, ({word})",
            new = in(reg) new,
            word = in(reg) word.as_ptr(),
            inlateout("rax") old => found,
            options(att_syntax, nostack)
        );
    }
    found == old
}

/// Adds one, in any order with what is before and after it.
#[inline(always)]
pub(crate) fn increment(word: &Atomic<u64>) {
    // SAFETY: Valid for reads and writes, and aligned; the bus lock excludes other writers.
    unsafe { asm!("lock; incq ({})", in(reg) word.as_ptr(), options(att_syntax, nostack)) };
}
