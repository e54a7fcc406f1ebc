// SPDX-License-Identifier: GPL-2.0-only

//! Looking up memslots, and the rights that it takes.
//!
//! C source: `include/linux/kvm_host.h`, `virt/kvm/kvm_main.c`.

use super::{Gfn, Kvm, Memslot, Page};
use crate::base::{bindings, srcu};
use kernel::prelude::*;
use kernel::types::NotThreadSafe;

/// A `kvm->srcu` read section.
pub(crate) struct SlotsRead<'k> {
    kvm: &'k Kvm,
    idx: i32,
    _not_send: NotThreadSafe,
}

impl Kvm {
    /// Enters a read section of `kvm->srcu`. May be nested; the section may sleep.
    pub(crate) fn read_slots(&self) -> SlotsRead<'_> {
        SlotsRead {
            kvm: self,
            // SAFETY: By the type invariant.
            idx: unsafe { srcu::read_lock(self.srcu()) },
            _not_send: NotThreadSafe,
        }
    }

    /// The token of the read section of `kvm->srcu` that a vCPU is in while it emulates.
    ///
    /// # Safety
    ///
    /// The caller is a vCPU's task in such a section, as long as `'a`.
    pub(crate) unsafe fn assume_vcpu_section<'a>(&'a self) -> VcpuSection<'a> {
        VcpuSection { kvm: self }
    }

    /// The right to look up memslots, for a caller that has it already.
    ///
    /// # Safety
    ///
    /// The caller is in a `kvm->srcu` read section, or holds `slots_lock`, as long as `'a`.
    #[inline(always)] // the reader
    pub(crate) unsafe fn assume_slots<'a>(&'a self) -> Slots<'a> {
        Slots { kvm: self }
    }
}

impl SlotsRead<'_> {
    /// The right to look up memslots, which it gives.
    pub(crate) fn slots(&self) -> Slots<'_> {
        Slots { kvm: self.kvm }
    }
}

impl Drop for SlotsRead<'_> {
    fn drop(&mut self) {
        // SAFETY: `idx` is from the matching `read_lock`, in the same task: the type is not `Send`.
        unsafe { srcu::read_unlock(self.kvm.srcu(), self.idx) };
    }
}

/// Shows that this task is a vCPU's, in a read section of `kvm->srcu`.
///
/// # Invariants
///
/// It is as long as `'a`, so the VM has users.
#[derive(Clone, Copy)]
pub(crate) struct VcpuSection<'a> {
    kvm: &'a Kvm,
}

impl<'a> VcpuSection<'a> {
    /// The VM.
    pub(crate) fn kvm(self) -> &'a Kvm {
        self.kvm
    }

    /// The right to look up memslots, which the section gives.
    pub(crate) fn slots(self) -> Slots<'a> {
        Slots { kvm: self.kvm }
    }

    /// Whether KVM has some shadow page that may be of this frame. Without `mmu_lock`.
    ///
    /// KVM links a shadow page before it counts it, and takes it off the count before it unlinks it: if
    /// there is none, none is part of the count at that moment.
    pub(crate) fn may_shadow(self, gfn: Gfn) -> bool {
        // SAFETY: By the type invariant the VM has users: KVM does not free its table of shadow pages.
        unsafe { bindings::kpt_may_shadow(self.kvm.as_ptr(), gfn) }
    }
}

/// The right to look up memslots.
///
/// # Invariants
///
/// This task is in a `kvm->srcu` read section, or holds `slots_lock`, as long as `'a`.
#[derive(Clone, Copy)]
pub(crate) struct Slots<'a> {
    kvm: &'a Kvm,
}

impl<'a> Slots<'a> {
    /// The VM.
    #[inline(always)] // the reader
    pub(crate) fn kvm(self) -> &'a Kvm {
        self.kvm
    }

    /// Whether an address space has any memslot: a cheap question before [`Slots::find`].
    #[inline(always)] // the reader
    pub(crate) fn may_have(self, as_id: u16) -> bool {
        u32::from(as_id) < bindings::KPT_ADDRESS_SPACES && !self.kvm.has_no_slots(as_id)
    }

    /// Finds a page of an address space.
    pub(crate) fn find_page(self, as_id: u16, gfn: Gfn) -> Option<Page<'a>> {
        self.find(as_id, gfn)
            // SAFETY: What `find` finds holds the frame.
            .map(|slot| unsafe { slot.page_unchecked(gfn) })
    }

    /// Finds the memslot of an address space that holds `gfn`. There has to be such an address space.
    pub(crate) fn find(self, as_id: u16, gfn: Gfn) -> Option<&'a Memslot> {
        // SAFETY: By the type invariant the set of memslots is not written, and the memslots in it stay
        // allocated, as long as `'a` (docs/internals.md, rule 3).
        unsafe {
            bindings::kpt_find_slot(self.kvm.active_set(as_id), gfn)
                .cast::<Memslot>()
                .as_ref()
        }
    }

    /// Calls `f` for every memslot of every address space until it fails.
    ///
    /// # Errors
    ///
    /// Those of `f`.
    pub(crate) fn for_each(self, mut f: impl FnMut(&Memslot) -> Result) -> Result {
        let kvm = self.kvm.as_ptr();
        for as_id in 0..self.kvm.address_spaces() {
            // SAFETY: As in `find`. The set that is active now is not written before the right to
            // look up ends: KVM changes a set only after a grace period in which it was inactive.
            let set = unsafe { bindings::kpt_active_slots(kvm, i32::from(as_id)) };
            // SAFETY: As above.
            let mut slot = unsafe { bindings::kpt_first_slot(set) };
            // SAFETY: As above.
            while let Some(s) = unsafe { slot.cast::<Memslot>().as_ref() } {
                f(s)?;
                // SAFETY: As above.
                slot = unsafe { bindings::kpt_next_slot(set, s.as_ptr()) };
            }
        }
        Ok(())
    }

    /// Takes `slots_arch_lock`. Sleeps.
    pub(crate) fn lock_arch(self) -> SlotsArchLocked<'a> {
        // SAFETY: By the invariant of `Kvm`; the lock order `slots_lock` > `srcu` >
        // `slots_arch_lock` is kept by taking it out of a `Slots`.
        unsafe { bindings::kpt_slots_arch_lock(self.kvm.as_ptr()) };
        SlotsArchLocked {
            slots: self,
            _not_send: NotThreadSafe,
        }
    }
}

/// `slots_arch_lock` held: the active memslots are not replaced, their arch part may be written.
pub(crate) struct SlotsArchLocked<'s> {
    slots: Slots<'s>,
    _not_send: NotThreadSafe,
}

impl SlotsArchLocked<'_> {
    /// The right by which the lock was taken.
    pub(crate) fn slots(&self) -> Slots<'_> {
        self.slots
    }

    /// Finds a page again, now that its memslot cannot be replaced.
    pub(crate) fn find_page(&self, as_id: u16, gfn: Gfn) -> Option<Page<'_>> {
        self.slots.find_page(as_id, gfn)
    }

    /// Gives a memslot counters, all zero, if it has none.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn alloc_counters(&self, slot: &Memslot) -> Result {
        slot.alloc_counters()
    }
}

impl Drop for SlotsArchLocked<'_> {
    fn drop(&mut self) {
        // SAFETY: The lock was taken in `lock_arch`.
        unsafe { bindings::kpt_slots_arch_unlock(self.slots.kvm.as_ptr()) };
    }
}
