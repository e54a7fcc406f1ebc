// SPDX-License-Identifier: GPL-2.0-only

//! Atomics and barriers as one instruction: those of the kernel crate are function calls.
//!
//! C source: `READ_ONCE()`, `WRITE_ONCE()`, `smp_mb()`, `atomic_long_cmpxchg()`,
//! `atomic_inc_not_zero()` and `atomic64_inc()`.

use core::arch::asm;
use kernel::sync::atomic::{Atomic, AtomicType};

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
pub(crate) fn load<T: AtomicType>(word: &Atomic<T>) -> T {
    // SAFETY: Valid for reads, aligned, and only stored to as a whole.
    unsafe { word.as_ptr().read_volatile() }
}

/// Stores a word that others may load. Such stores keep their order among each other, on x86.
#[inline(always)]
pub(crate) fn store(word: &Atomic<usize>, value: usize) {
    // SAFETY: Valid for writes, aligned, and only accessed as a whole.
    unsafe { word.as_ptr().write_volatile(value) }
}

/// Replaces a word if it is `old`, and returns what it was (`cmpxchg()`). Orders everything before it
/// before everything after it.
#[inline(always)]
pub(crate) fn cmpxchg(word: &Atomic<usize>, old: usize, new: usize) -> usize {
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
    found
}

/// Adds one, unless the word is zero (`atomic_inc_not_zero()`). False if it is. Orders as [`cmpxchg`].
#[inline(always)]
pub(crate) fn increment_not_zero(word: &Atomic<i32>) -> bool {
    let before: i32;
    // SAFETY: Valid for reads and writes, and aligned; the bus lock excludes other writers.
    unsafe {
        asm!(
            "movl ({word}), %eax",
            "2: testl %eax, %eax",
            "je 3f",
            "leal 1(%rax), {new:e}",
            "lock; cmpxchgl {new:e}, ({word})",
            "jne 2b",
            "3:",
            word = in(reg) word.as_ptr(),
            new = out(reg) _,
            out("eax") before,
            options(att_syntax, nostack)
        );
    }
    before != 0
}

/// Adds one, in any order with what is before and after it.
#[inline(always)]
pub(crate) fn increment(word: &Atomic<u64>) {
    // SAFETY: Valid for reads and writes, and aligned; the bus lock excludes other writers.
    unsafe { asm!("lock; incq ({})", in(reg) word.as_ptr(), options(att_syntax, nostack)) };
}

#[kernel::macros::kunit_tests(kvm_page_track_inline_atomic)]
#[allow(unsafe_op_in_unsafe_fn)]
mod tests {
    use super::*;
    use kernel::sync::atomic::Relaxed;

    #[test]
    fn a_word_is_replaced_if_it_is_the_expected_one() {
        let word = Atomic::new(5usize);
        assert_eq!(cmpxchg(&word, 4, 9), 5);
        assert_eq!(load(&word), 5);
        assert_eq!(cmpxchg(&word, 5, 9), 5);
        assert_eq!(load(&word), 9);
        store(&word, usize::MAX);
        assert_eq!(cmpxchg(&word, usize::MAX, 0), usize::MAX);
        assert_eq!(load(&word), 0);
    }

    #[test]
    fn zero_is_final() {
        let word = Atomic::new(1i32);
        assert!(increment_not_zero(&word));
        assert_eq!(word.load(Relaxed), 2);
        word.store(-1, Relaxed);
        assert!(increment_not_zero(&word));
        assert!(!increment_not_zero(&word));
        assert_eq!(word.load(Relaxed), 0);
    }

    #[test]
    fn an_event_counts_one() {
        let word = Atomic::new(u64::from(u32::MAX));
        increment(&word);
        assert_eq!(word.load(Relaxed), 1 << 32);
    }
}
