// SPDX-License-Identifier: GPL-2.0-only

//! Who owns a count: KVM, or other modules.
//!
//! The `u16` of a page is the sum of KVM's own adds, one for each shadow page that KVM has of that guest
//! page table, and of external adds. KVM's records tell how many shadow pages there are
//! ([`MmuWrite::shadow_page_tables`]); the rest is external. So nothing is stored for external adds, and
//! those that C made before insmod are known as well.
//!
//! The records are private to KVM. If we looked for them in the wrong place, a remove would take a count of
//! KVM's. So each add of KVM's is checked: its shadow page must be where we look ([`check_records`]). If
//! ever one is not, no external count is changed any more where KVM may shadow page tables ([`know`]).
//!
//! C source: `account_shadowed()` and `unaccount_shadowed()` of `arch/x86/kvm/mmu/mmu.c`.
//!
//! [`MmuWrite::shadow_page_tables`]: crate::kvm::MmuWrite::shadow_page_tables

use crate::base::kernel_api::eopnotsupp;
use crate::base::once::atomic_read;
use crate::kvm::{Gfn, Kvm, MmuWrite};
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Full};

/// KVM's adds are not checked: C may add pages for other modules by the same function.
const NOT_NOW: i32 = 0;
/// Every one that was checked had its record.
const RIGHT: i32 = 1;
/// One had none.
const WRONG: i32 = 2;

/// What is known of KVM's records.
static RECORDS: Atomic<i32> = Atomic::new(NOT_NOW);

/// From now on only KVM itself adds by `__kvm_write_track_add_gfn()`.
pub(crate) fn begin_to_check() {
    RECORDS.cmpxchg(NOT_NOW, RIGHT, Full).ok();
}

/// From now on C may add pages for other modules by it again.
pub(crate) fn stop_checking() {
    RECORDS.cmpxchg(RIGHT, NOT_NOW, Full).ok();
}

/// KVM adds a page: it has linked its shadow page before (`kvm_mmu_alloc_shadow_page()`).
pub(crate) fn check_records(mmu: &MmuWrite<'_>, gfn: Gfn) {
    if atomic_read(&RECORDS) == RIGHT && !mmu.finds_shadow_page(gfn) {
        records_are_wrong();
    }
}

#[cold]
fn records_are_wrong() {
    if RECORDS.cmpxchg(RIGHT, WRONG, Full).is_ok() {
        pr_err!(
            "this kernel's KVM keeps its shadow pages elsewhere than in the kernel that the module was \
             built for: pages of VMs whose page tables it may shadow are refused\n"
        );
    }
}

/// Whether it can be known how much of a count is KVM's, in a VM.
///
/// # Errors
///
/// `EOPNOTSUPP` if it cannot.
pub(crate) fn know(kvm: &Kvm) -> Result {
    if atomic_read(&RECORDS) == WRONG && kvm.may_shadow_page_tables() {
        return Err(eopnotsupp());
    }
    Ok(())
}

/// How often other modules together may add one page: what a `u16` leaves of KVM's own 2^14.
///
/// `KVM_PAGE_TRACK_MAX_USERS` in the C header.
pub(crate) const MAX_USERS: u16 = u16::MAX - (1 << 14);

/// Whether some of the `count` of a page is not KVM's. `of_kvm` is only asked if that matters.
pub(crate) fn any_external(count: u16, of_kvm: impl FnOnce() -> u16) -> bool {
    count != 0 && count > of_kvm()
}

/// The count of a page after one external add.
///
/// # Errors
///
/// `EOVERFLOW` at the limit of external adds.
pub(crate) fn after_add(count: u16, of_kvm: impl FnOnce() -> u16) -> Result<u16> {
    if count < MAX_USERS {
        return Ok(count + 1);
    }
    if count.saturating_sub(of_kvm()) >= MAX_USERS {
        return Err(EOVERFLOW);
    }
    count.checked_add(1).ok_or(EOVERFLOW)
}

/// The count of a page after one external remove.
///
/// # Errors
///
/// `ENOENT` if the whole count is KVM's.
pub(crate) fn after_remove(count: u16, of_kvm: impl FnOnce() -> u16) -> Result<u16> {
    if any_external(count, of_kvm) {
        Ok(count - 1)
    } else {
        Err(ENOENT)
    }
}

#[kernel::macros::kunit_tests(kvm_page_track_owners)]
#[allow(unsafe_op_in_unsafe_fn)]
mod tests {
    use super::*;

    fn never() -> u16 {
        unreachable!("KVM's share does not matter here")
    }

    #[test]
    fn an_untracked_page_has_no_owner() {
        assert!(!any_external(0, never));
        assert_eq!(after_remove(0, never), Err(ENOENT));
        assert_eq!(after_add(0, never), Ok(1));
    }

    #[test]
    fn as_many_removes_as_adds() {
        for of_kvm in [0, 1, 5, 1 << 14] {
            let mut count = of_kvm;
            for _ in 0..5 {
                count = after_add(count, || of_kvm).unwrap();
                assert!(any_external(count, || of_kvm));
            }
            for _ in 0..5 {
                count = after_remove(count, || of_kvm).unwrap();
            }
            assert_eq!(count, of_kvm);
            assert!(!any_external(count, || of_kvm));
            assert_eq!(after_remove(count, || of_kvm), Err(ENOENT));
        }
    }

    #[test]
    fn external_users_are_limited() {
        for of_kvm in [0, 1, 1 << 14] {
            let full = MAX_USERS + of_kvm;
            assert_eq!(after_add(full, || of_kvm), Err(EOVERFLOW));
            assert_eq!(after_add(full - 1, || of_kvm), Ok(full));
            assert_eq!(after_remove(full, || of_kvm), Ok(full - 1));
        }
        // Up to the limit KVM's share does not matter.
        assert_eq!(after_add(MAX_USERS - 1, never), Ok(MAX_USERS));
    }

    #[test]
    fn kvm_keeps_its_share() {
        let mut count = 0;
        while let Ok(more) = after_add(count, || 0) {
            count = more;
        }
        assert_eq!(u16::MAX - count, 1 << 14);
        assert_eq!(after_add(u16::MAX, || u16::MAX), Err(EOVERFLOW));
    }
}
