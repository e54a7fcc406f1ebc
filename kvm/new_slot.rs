// SPDX-License-Identifier: GPL-2.0-only

//! A memslot that is being made.
//!
//! C source: `kvm_alloc_memslot_metadata()` in `x86.c`, `kvm_set_memslot()` in `kvm_main.c`.

use super::{Gfn, Kvm, Memslot, Slots};
use crate::base::bindings;
use crate::base::kernel_api::warn_on_once;
use crate::base::once::{read_once, write_once};
use kernel::prelude::*;

/// A memslot that KVM is creating, or moving from another place: not visible to anyone yet.
///
/// # Invariants
///
/// As long as `'a`, `slot` is unpublished, `slots_lock` and `slots_arch_lock` of `kvm` are held, and
/// this task may take `mmu_lock`.
#[derive(Clone, Copy)]
pub(crate) struct NewSlot<'a> {
    kvm: &'a Kvm,
    slot: &'a Memslot,
}

impl<'a> NewSlot<'a> {
    /// Makes the view.
    ///
    /// # Safety
    ///
    /// The caller is `kvm_page_track_create_memslot()`: the type invariants hold as long as `'a`.
    pub(crate) unsafe fn new(kvm: &'a Kvm, slot: &'a Memslot) -> Self {
        Self { kvm, slot }
    }

    /// The VM.
    pub(crate) fn kvm(self) -> &'a Kvm {
        self.kvm
    }

    /// The right to look up memslots that `slots_lock` gives.
    pub(crate) fn slots(self) -> Slots<'a> {
        // SAFETY: By the type invariants.
        unsafe { self.kvm.assume_slots() }
    }

    /// The memslot itself.
    pub(crate) fn slot(self) -> &'a Memslot {
        self.slot
    }

    /// The memslot it replaces, if this is a move.
    ///
    /// KVM has then made an INVALID copy active, so the original is in the inactive set.
    pub(crate) fn moved_from(self) -> Option<&'a Memslot> {
        // SAFETY: By the type invariants the slot is valid, and the inactive set is stable under
        // `slots_lock`; what it holds is not freed before the move is done.
        unsafe {
            let slot = self.slot.as_ptr();
            bindings::kpt_inactive_slot(
                self.kvm.as_ptr(),
                i32::from((*slot).as_id),
                i32::from((*slot).id),
            )
            .cast::<Memslot>()
            .as_ref()
        }
    }

    /// Gives the memslot counters, all zero, if it has none.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn alloc_counters(self) -> Result {
        self.slot.alloc_counters()
    }

    /// Takes over the counters of the memslot it replaces, which is left without. No copy: nothing is
    /// lost, nothing is freed twice. The INVALID copy that readers may still use points to the same array.
    pub(crate) fn take_counters(self) {
        match (self.moved_from(), self.slot.counters()) {
            // SAFETY: `old` is in the inactive set: by the type invariants nobody else reaches it.
            (Some(old), None) => unsafe { self.take_counters_of(old) },
            // A new memslot has none: KVM has cleared it.
            _ => warn_on_once(),
        }
    }

    /// Moves the array from `old` to this memslot.
    ///
    /// # Safety
    ///
    /// Nobody else changes the counters of `old`, which is of the same size.
    unsafe fn take_counters_of(self, old: &Memslot) {
        // SAFETY: Both fields are valid by the invariant of `Memslot`; both arrays have the same length,
        // since a move does not change the size of a memslot. The first store is a release.
        unsafe {
            let array = read_once(old.counters_field());
            write_once(self.slot.counters_field(), array);
            write_once(old.counters_field(), core::ptr::null_mut());
        }
    }

    /// `count` more reasons not to map the surroundings of `gfn` with a large page.
    pub(crate) fn disallow_large_page(self, gfn: Gfn, count: u16) {
        if self.slot.page(gfn).is_none() {
            return;
        }
        for _ in 0..count {
            // SAFETY: The memslot holds the frame, and is unpublished by the type invariants.
            unsafe { bindings::kpt_disallow_lpage(self.slot.as_ptr(), gfn) };
        }
    }
}

#[kernel::macros::kunit_tests(kvm_page_track_new_slot)]
#[allow(unsafe_op_in_unsafe_fn)]
mod tests {
    use super::*;
    use crate::kvm::unit::{with_blank_slot, with_blank_vm};

    #[test]
    fn counters_change_hands() {
        with_blank_vm(|kvm, mmu| {
            with_blank_slot(0x100, 0x40, |old| {
                with_blank_slot(0x120, 0x40, |new| {
                    old.alloc_counters().unwrap();
                    old.page(0x103).unwrap().counter().unwrap().set(mmu, 9);
                    // SAFETY: Nobody else knows these memslots, which are of the same size.
                    unsafe { NewSlot::new(kvm, new).take_counters_of(old) };
                    assert!(old.counters().is_none());
                    assert_eq!(new.counters().unwrap().get(0x123), 9);
                    assert_eq!(new.counters().unwrap().get(0x122), 0);
                });
            });
        });
    }
}
