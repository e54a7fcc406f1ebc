// SPDX-License-Identifier: GPL-2.0-only

//! Blank structures for the unit tests of what is logic. KVM itself is tested in tests/.

use super::{Gfn, Kvm, Memslot, MmuWrite};
use crate::base::bindings;
use core::ptr::NonNull;
use kernel::alloc::KVVec;
use kernel::prelude::*;

/// Calls `f` with a VM that nobody else knows, as if `mmu_lock` was held. It is all zeroes but for its
/// `mm`.
pub(crate) fn with_blank_vm(f: impl FnOnce(&Kvm, &MmuWrite<'_>)) {
    // `struct kvm` is a part of what kvm-amd and kvm-intel have.
    let mut blank = KVVec::<u8>::new();
    // SAFETY: A constant of kvm.c.
    let size = unsafe { bindings::kpt_unit_vm_size };
    blank.extend_with(size, 0, GFP_KERNEL).unwrap();
    let ptr = NonNull::new(blank.as_mut_ptr().cast::<bindings::kvm>()).unwrap();
    // SAFETY: The memory is ours. A VM has an address space, here nobody's.
    unsafe { (*ptr.as_ptr()).mm = NonNull::dangling().as_ptr() };
    // SAFETY: The memory outlives the call, and nobody else can lock or free this VM.
    let kvm = unsafe { Kvm::from_ptr(ptr) };
    // SAFETY: As above.
    f(kvm, &unsafe { kvm.assume_mmu_locked() });
}

/// Calls `f` with a memslot of `npages` pages at `base_gfn` that is in no VM.
pub(crate) fn with_blank_slot(base_gfn: Gfn, npages: u64, f: impl FnOnce(&Memslot)) {
    let mut blank = KBox::<bindings::kvm_memory_slot>::new_uninit(GFP_KERNEL | __GFP_ZERO).unwrap();
    let ptr = blank.as_mut_ptr();
    // SAFETY: The memory is zeroed and ours.
    let slot = unsafe {
        (*ptr).base_gfn = base_gfn;
        (*ptr).npages = npages as usize;
        Memslot::from_ptr(NonNull::new_unchecked(ptr))
    };
    f(slot);
    // SAFETY: vfree() of what `alloc_counters` made, or of NULL.
    unsafe { bindings::vfree((*ptr).arch.gfn_write_track.cast()) };
}

#[kernel::macros::kunit_tests(kvm_page_track_kvm)]
#[allow(unsafe_op_in_unsafe_fn)]
mod tests {
    use super::*;
    use core::ptr::addr_of_mut;

    #[test]
    fn guests_with_encrypted_memory_are_recognised() {
        with_blank_vm(|kvm, _| {
            assert!(kvm.can_track());
            // SAFETY: The VM is ours.
            unsafe {
                // What SEV sets, where there is SEV.
                let sev = bindings::kpt_unit_make_sev(kvm.as_ptr());
                assert_eq!(kvm.can_track(), !sev);
            }
        });
        with_blank_vm(|kvm, _| {
            let arch = |kvm: &Kvm| {
                // SAFETY: The VM is ours.
                unsafe { addr_of_mut!((*kvm.as_ptr()).arch) }
            };
            // SAFETY: As above.
            unsafe {
                (*arch(kvm)).vm_type = 1;
                assert!(!kvm.can_track());
                (*arch(kvm)).vm_type = 0;
                (*arch(kvm)).has_private_mem = true;
                assert!(!kvm.can_track());
                (*arch(kvm)).has_private_mem = false;
                (*arch(kvm)).has_protected_state = true;
                assert!(!kvm.can_track());
                (*arch(kvm)).has_protected_state = false;
            }
            assert!(kvm.can_track());
        });
    }
}
