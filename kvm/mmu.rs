// SPDX-License-Identifier: GPL-2.0-only

//! `mmu_lock`, and what may be done under it.
//!
//! C source: `arch/x86/kvm/mmu/mmu.c`, `arch/x86/kvm/mmu/tdp_mmu.c`.

use super::{Gfn, Kvm, Page};
use crate::base::bindings;
use crate::base::once::read_once;
use core::ops::Deref;
use core::ptr::addr_of;
use kernel::types::NotThreadSafe;

/// Shows that `mmu_lock` is held for write.
///
/// # Invariants
///
/// It is, by this task, whenever the token can be used.
pub(crate) struct MmuWrite<'k> {
    kvm: &'k Kvm,
    _not_send: NotThreadSafe,
}

/// `mmu_lock` taken for write. Lends its token, never gives it away.
pub(crate) struct MmuGuard<'k>(MmuWrite<'k>);

/// `mmu_lock` taken for read.
pub(crate) struct MmuRead<'k> {
    kvm: &'k Kvm,
    _not_send: NotThreadSafe,
}

impl Kvm {
    /// Takes `mmu_lock` for write. Does not sleep (it does on PREEMPT_RT).
    pub(crate) fn lock_mmu(&self) -> MmuGuard<'_> {
        // SAFETY: By the type invariant.
        unsafe { bindings::kpt_mmu_write_lock(self.as_ptr()) };
        // SAFETY: It is held until the guard is dropped.
        MmuGuard(unsafe { self.assume_mmu_locked() })
    }

    /// Takes `mmu_lock` for read. Does not sleep (it does on PREEMPT_RT).
    pub(crate) fn lock_mmu_read(&self) -> MmuRead<'_> {
        // SAFETY: By the type invariant.
        unsafe { bindings::kpt_mmu_read_lock(self.as_ptr()) };
        MmuRead {
            kvm: self,
            _not_send: NotThreadSafe,
        }
    }

    /// The token of `mmu_lock` for a caller that holds it for write already.
    ///
    /// # Safety
    ///
    /// The caller does, until the token is dropped.
    pub(crate) unsafe fn assume_mmu_locked(&self) -> MmuWrite<'_> {
        // INVARIANT: The caller's promise.
        MmuWrite {
            kvm: self,
            _not_send: NotThreadSafe,
        }
    }
}

impl<'k> Deref for MmuGuard<'k> {
    type Target = MmuWrite<'k>;

    fn deref(&self) -> &MmuWrite<'k> {
        &self.0
    }
}

impl Drop for MmuGuard<'_> {
    fn drop(&mut self) {
        // SAFETY: The lock was taken in `lock_mmu`.
        unsafe { bindings::kpt_mmu_write_unlock(self.kvm.as_ptr()) };
    }
}

impl Drop for MmuRead<'_> {
    fn drop(&mut self) {
        // SAFETY: The lock was taken in `lock_mmu_read`.
        unsafe { bindings::kpt_mmu_read_unlock(self.kvm.as_ptr()) };
    }
}

impl MmuGuard<'_> {
    /// Whether somebody waits for the lock, or for the processor.
    pub(crate) fn is_wanted(&self) -> bool {
        // SAFETY: By the invariant of `Kvm`.
        unsafe { bindings::kpt_mmu_is_wanted(self.kvm.as_ptr()) }
    }

    /// Releases the lock and takes it again, after others.
    pub(crate) fn yield_to_others(&mut self) {
        // SAFETY: The lock was taken in `lock_mmu`, by a task that may sleep without it.
        unsafe { bindings::kpt_mmu_write_yield(self.kvm.as_ptr()) };
    }
}

impl<'k> MmuWrite<'k> {
    /// The VM whose lock it is.
    pub(crate) fn kvm(&self) -> &'k Kvm {
        self.kvm
    }

    /// One more reason not to map the page's surroundings with a large page.
    pub(crate) fn disallow_large_page(&self, page: Page<'_>) {
        // SAFETY: `mmu_lock` is held, and the memslot holds the page.
        unsafe { bindings::kpt_disallow_lpage(page.slot().as_ptr(), page.gfn()) };
    }

    /// Takes back one [`MmuWrite::disallow_large_page`].
    pub(crate) fn allow_large_page(&self, page: Page<'_>) {
        // SAFETY: As in `disallow_large_page`.
        unsafe { bindings::kpt_allow_lpage(page.slot().as_ptr(), page.gfn()) };
    }

    /// Makes the existing mappings of a page read-only. True if TLBs have to be flushed.
    #[must_use]
    pub(crate) fn write_protect(&self, page: Page<'_>) -> bool {
        if page.slot().has_rmaps() {
            // SAFETY: As has been asked.
            return unsafe { self.write_protect_with_rmaps(page) };
        }
        if self.may_have_rmaps() {
            return self.write_protect_again(page);
        }
        // SAFETY: Without reverse mappings there is a TDP MMU.
        unsafe { self.write_protect_in_tdp_mmu(page) }
    }

    /// Makes those of the TDP MMU read-only.
    ///
    /// # Safety
    ///
    /// There is a TDP MMU.
    unsafe fn write_protect_in_tdp_mmu(&self, page: Page<'_>) -> bool {
        let (kvm, slot) = (self.kvm.as_ptr(), page.slot().as_ptr());
        // SAFETY: `mmu_lock` is held (docs/internals.md, rule 3), and the memslot holds the page.
        unsafe { bindings::kpt_tdp_mmu_write_protect(kvm, slot, page.gfn()) }
    }

    /// Makes all of them read-only.
    ///
    /// # Safety
    ///
    /// The memslot has reverse mappings.
    unsafe fn write_protect_with_rmaps(&self, page: Page<'_>) -> bool {
        let (kvm, slot) = (self.kvm.as_ptr(), page.slot().as_ptr());
        // SAFETY: `mmu_lock` is held (docs/internals.md, rule 3), and the memslot holds the page.
        unsafe { bindings::kpt_slot_gfn_write_protect(kvm, slot, page.gfn()) }
    }

    /// The same where the memslot has none, but others may have some.
    ///
    /// KVM gives reverse mappings to the memslots that are active when it begins to shadow page tables.
    /// Somebody who found the memslot before its flags were changed has the copy that is no more active, and
    /// KVM waits for him before it frees that.
    #[cold]
    fn write_protect_again(&self, page: Page<'_>) -> bool {
        // SAFETY: The memslot of the page is there, so the right by which it was found is as well: a
        // section, or `slots_lock` (docs/internals.md, rule 3).
        let slots = unsafe { self.kvm.assume_slots() };
        match slots.find_page(page.slot().as_id(), page.gfn()) {
            // SAFETY: It has reverse mappings.
            Some(page) if page.slot().has_rmaps() => unsafe { self.write_protect_with_rmaps(page) },
            // SAFETY: Where the one that was found has none there is a TDP MMU.
            _ => unsafe { self.write_protect_in_tdp_mmu(page) },
        }
    }

    /// Whether KVM has begun to shadow page tables, and so has given reverse mappings to every memslot
    /// that was active then or came later. (Where there is no TDP MMU they all have some anyway.)
    ///
    /// The first mapping that is not the TDP MMU's is made under `mmu_lock`, after this has become true: as
    /// long as it is not, memslots without reverse mappings have no others. C source:
    /// `kvm_memslots_have_rmaps()`.
    fn may_have_rmaps(&self) -> bool {
        // SAFETY: By the invariant of `Kvm`.
        unsafe { read_once(addr_of!((*self.kvm.as_ptr()).arch.shadow_root_allocated)) }
    }

    /// Flushes the TLBs of every vCPU.
    pub(crate) fn flush_tlbs(&self) {
        // SAFETY: By the invariant of `Kvm`.
        unsafe { bindings::kpt_flush_remote_tlbs(self.kvm.as_ptr()) };
    }

    /// Whether KVM has a shadow page of a guest page table in a frame, of whatever address space, where
    /// we look for it.
    pub(crate) fn finds_shadow_page(&self, gfn: Gfn) -> bool {
        // KVM counts a shadow page there before it adds its page.
        self.kvm.has_shadow_page_tables()
            // SAFETY: `mmu_lock` is held (docs/internals.md, rule 3), and there are shadow pages.
            && unsafe { bindings::kpt_finds_shadow_page(self.kvm.as_ptr(), gfn) }
    }

    /// How much of the count of a frame of address space 0 is KVM's: its shadow pages of that guest
    /// page table.
    pub(crate) fn shadow_page_tables(&self, gfn: Gfn) -> u16 {
        if !self.kvm.has_shadow_page_tables() {
            return 0;
        }
        // SAFETY: `mmu_lock` is held (docs/internals.md, rule 3). They are part of a `u16` counter.
        unsafe { bindings::kpt_shadow_page_tables(self.kvm.as_ptr(), gfn) as u16 }
    }
}

impl MmuRead<'_> {
    /// As [`MmuWrite::shadow_page_tables`].
    pub(crate) fn shadow_page_tables(&self, gfn: Gfn) -> u16 {
        if !self.kvm.has_shadow_page_tables() {
            return 0;
        }
        // SAFETY: As there.
        unsafe { bindings::kpt_shadow_page_tables(self.kvm.as_ptr(), gfn) as u16 }
    }
}
