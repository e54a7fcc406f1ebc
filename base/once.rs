// SPDX-License-Identifier: GPL-2.0-only

//! `READ_ONCE()`, `WRITE_ONCE()`, `atomic_read()` and `smp_mb()` as the instructions that they are in C.
//!
//! Those of the kernel crate are function calls. These are for the paths whose instructions are
//! counted: the reader, a guest write, add and remove. Everything else uses the kernel crate's
//! [`Atomic`].
//!
//! On x86, the only architecture of this module, loads keep their order among each other, and so do
//! stores. So [`read_once`] is an acquire as well, and [`write_once`] a release.
//!
//! C source: `include/asm-generic/rwonce.h`, `arch/x86/include/asm/barrier.h`.

use core::arch::asm;
use kernel::sync::atomic::{Atomic, AtomicType};

/// Loads a value that others may store to (`READ_ONCE()`).
///
/// # Safety
///
/// `ptr` is valid for reads, and every store to it is one of the whole value.
#[inline(always)]
pub(crate) unsafe fn read_once<T: Copy>(ptr: *const T) -> T {
    // SAFETY: The caller's promise.
    unsafe { ptr.read_volatile() }
}

/// Stores a value that others may load (`WRITE_ONCE()`).
///
/// # Safety
///
/// `ptr` is valid for writes, and every load from it is one of the whole value.
#[inline(always)]
pub(crate) unsafe fn write_once<T: Copy>(ptr: *mut T, value: T) {
    // SAFETY: The caller's promise.
    unsafe { ptr.write_volatile(value) }
}

/// Loads an atomic word (`atomic_read()`).
#[inline(always)]
pub(crate) fn atomic_read<T: AtomicType>(word: &Atomic<T>) -> T {
    // SAFETY: Valid for reads, and only stored to as a whole.
    unsafe { read_once(word.as_ptr()) }
}

/// Orders all loads and stores before it before all that come after it (`smp_mb()`).
#[inline(always)]
pub(crate) fn smp_mb() {
    // SAFETY: Adds nothing to a word below the stack; the kernel has no red zone, and C does the same.
    unsafe { asm!("lock; addl $0, -4(%rsp)", options(att_syntax, nostack)) };
}
