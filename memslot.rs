// SPDX-License-Identifier: GPL-2.0-only

//! The write-track counters of a memslot: a `u16` a page, in an array that is made with the first add,
//! kept over flag changes and moves of the memslot, and freed with it.
//!
//! They are where C keeps them (`slot->arch.gfn_write_track`), so that C and Rust can take over from
//! each other at any time. A memslot without an array is one in which nothing is tracked. Nothing here
//! knows listeners.
//!
//! C source: `arch/x86/kvm/mmu/page_track.c`, `kvm_alloc_memslot_metadata()` in `x86.c`.

pub(crate) mod owners;

use crate::base::kernel_api::{cond_resched, warn_on_once};
use crate::kvm::{vm, Counter, Gfn, Kvm, Memslot, MmuWrite, Page, Slots, VcpuSection};
use kernel::prelude::*;

/// Whether guest writes to a page are tracked (`kvm_gfn_is_write_tracked()`).
///
/// The hot reader: every write fault and every SPTE made writable asks. Loads and compares only.
#[inline(always)]
pub(crate) fn is_write_tracked(slots: Slots<'_>, slot: Option<&Memslot>, gfn: Gfn) -> bool {
    let Some(slot) = slot else { return false };
    let as_id = slot.as_id();
    match slot.counters() {
        Some(counters) if counters.get(gfn) != 0 => return true,
        // A vCPU may still hold the copy of a memslot from before a flags-only change, without
        // counters, while an add has given counters to the new copy. Only then is the memslot
        // looked up again.
        None if slots.kvm().update_in_progress(as_id) => return tracked_in_any(slots, gfn),
        _ => (),
    }
    // A page tracked through one address space is tracked in the other as well. External adds are in
    // address space 0, so in the other there is something only if KVM shadows page tables.
    if as_id == 0 && !slots.kvm().has_shadow_page_tables() {
        return false;
    }
    slots.may_have(as_id ^ 1) && tracked_in(slots, as_id ^ 1, gfn)
}

/// Whether the memslot that an address space has for a page now counts it.
#[inline(never)] // not a part of the reader
fn tracked_in(slots: Slots<'_>, as_id: u16, gfn: Gfn) -> bool {
    slots
        .find_page(as_id, gfn)
        .is_some_and(|page| page.count() != 0)
}

#[cold]
#[inline(never)]
fn tracked_in_any(slots: Slots<'_>, gfn: Gfn) -> bool {
    tracked_in(slots, 0, gfn) || tracked_in(slots, 1, gfn)
}

/// Makes sure that the memslot of a page has counters. Sleeps.
///
/// # Errors
///
/// `EINVAL` if the page is in no memslot, `EAGAIN` if that is being moved or deleted, or if this is
/// a `track_move_region` callback, `ENOMEM`.
pub(crate) fn ensure_counters(kvm: &Kvm, gfn: Gfn) -> Result {
    if vm::find(kvm).is_some_and(|vm| vm.is_in_move_callback()) {
        // This very task holds `slots_arch_lock`.
        return Err(EAGAIN);
    }
    let section = kvm.read_slots();
    let locked = section.slots().lock_arch();
    // Looked up under the lock: a flags-only change copies the arch part under it.
    let slot = locked.find_page(0, gfn).ok_or(EINVAL)?.slot();
    if slot.is_invalid() {
        return Err(EAGAIN);
    }
    locked.alloc_counters(slot)
}

/// KVM adds one of its own shadow page tables (`__kvm_write_track_add_gfn()`).
///
/// C sees to it that every memslot of such a VM has counters. External users leave KVM the 2^14 it
/// may need, so the count does not overflow. Should either be broken, a guest page table may become
/// writable behind KVM's back: that warns, as in C.
pub(crate) fn kvm_added(mmu: &MmuWrite<'_>, page: Page<'_>) {
    owners::check_records(mmu, page.gfn());
    recount(mmu, page, |count| count.checked_add(1));
    #[cfg(CONFIG_KVM_PROVE_MMU = "y")]
    prove_owners(mmu, page);
    mmu.disallow_large_page(page);
    if mmu.write_protect(page) {
        mmu.flush_tlbs();
    }
}

/// KVM removes one of its own shadow page tables (`__kvm_write_track_remove_gfn()`).
pub(crate) fn kvm_removed(mmu: &MmuWrite<'_>, page: Page<'_>) {
    recount(mmu, page, |count| count.checked_sub(1));
    mmu.allow_large_page(page);
}

/// Whether we read KVM's records right: its shadow pages are part of the count. (Only part of it even
/// if it is C that adds the page for somebody else, while we attach.)
#[cfg(CONFIG_KVM_PROVE_MMU = "y")]
fn prove_owners(mmu: &MmuWrite<'_>, page: Page<'_>) {
    if let (Some(counter), 0) = (page.counter(), page.slot().as_id()) {
        kernel::warn_on!(mmu.shadow_page_tables(page.gfn()) > counter.get());
    }
}

fn recount(mmu: &MmuWrite<'_>, page: Page<'_>, change: impl FnOnce(u16) -> Option<u16>) {
    let counter = page.counter();
    match (counter, counter.and_then(|counter| change(counter.get()))) {
        (Some(counter), Some(count)) => counter.set(mmu, count),
        _ => warn_on_once(),
    }
}

/// Number of pages of a VM that somebody outside KVM tracks, by looking at every counter. Sleeps.
pub(crate) fn tracked_pages(kvm: &Kvm) -> u64 {
    let mut pages = 0;
    for_each_counted(kvm.read_slots().slots(), |page, _| {
        // The VM may have no users any more, so `has_external` cannot be asked.
        pages += u64::from(!kvm.may_shadow_page_tables() || has_more_than_kvm(kvm, page));
    });
    pages
}

/// Whether somebody outside KVM tracks a page of address space 0, where external adds go.
///
/// Takes `mmu_lock` for read if part of the count may be KVM's.
pub(crate) fn has_external(vcpu: VcpuSection<'_>, gfn: Gfn) -> bool {
    let Some(page) = vcpu.slots().find_page(0, gfn) else {
        return false;
    };
    // In this order: KVM takes a page off the count before it unlinks its shadow page. So if there is no
    // shadow page, none is part of a count that is seen afterwards. (Should KVM add one just then, the
    // answer may be yes though the whole count is KVM's. It is never no though somebody else's is part of
    // it.)
    let may_shadow = vcpu.may_shadow(gfn);
    page.count() != 0 && (!may_shadow || has_more_than_kvm(vcpu.kvm(), page))
}

fn has_more_than_kvm(kvm: &Kvm, page: Page<'_>) -> bool {
    let mmu = kvm.lock_mmu_read();
    // Rather an event too many than one too few.
    owners::know(kvm).is_err()
        || owners::any_external(page.count(), || mmu.shadow_page_tables(page.gfn()))
}

/// Pages looked at between two offers of the processor to others.
pub(crate) const BATCH: u64 = 1 << 16;

/// Calls `f` for every page of address space 0 whose count is not zero. Sleeps.
pub(crate) fn for_each_counted(slots: Slots<'_>, mut f: impl FnMut(Page<'_>, Counter<'_>)) {
    slots
        .for_each(|slot| {
            if slot.counters().is_none() || slot.as_id() != 0 {
                return Ok(());
            }
            for i in 0..slot.npages() {
                if i % BATCH == 0 {
                    cond_resched();
                }
                let Some(page) = slot.page(slot.base_gfn() + i) else {
                    break;
                };
                if let Some(counter) = page.counter().filter(|counter| counter.get() != 0) {
                    f(page, counter);
                }
            }
            Ok(())
        })
        // The closure does not fail.
        .ok();
}

/// Memory of the counters of a VM, in bytes. Sleeps.
pub(crate) fn counter_bytes(kvm: &Kvm) -> u64 {
    let mut bytes = 0;
    kvm.read_slots()
        .slots()
        .for_each(|slot| {
            if slot.counters().is_some() {
                bytes += slot.npages() * size_of::<u16>() as u64;
            }
            Ok(())
        })
        // The closure does not fail.
        .ok();
    bytes
}
