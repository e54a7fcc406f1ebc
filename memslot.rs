// SPDX-License-Identifier: GPL-2.0-only

//! The write-track counters of a memslot: on demand, kept over flag changes and moves, freed with
//! it.
//!
//! They are where C keeps them (`slot->arch.gfn_write_track`), so that C and Rust can take over from
//! each other at any time. A memslot without an array is one in which nothing is tracked.
//!
//! C source: `arch/x86/kvm/mmu/page_track.c`, `kvm_alloc_memslot_metadata()` in `x86.c`.

pub(crate) mod owners;

use crate::base::guard;
use crate::kvm::vm;
use crate::kvm::{self, Counter, Gfn, Kvm, Memslot, MmuWrite, NewSlot, Page, Slots, VcpuSection};
use crate::notifier;
use crate::provider;
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
#[inline(never)]
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
    if vm::find(kvm).is_some_and(|vm| vm.in_move_callback()) {
        // This very task holds `slots_arch_lock`.
        return Err(EAGAIN);
    }
    let section = kvm.read_slots();
    let locked = section.slots().lock_arch();
    // Looked up under the lock: a flags-only change copies the arch part under it.
    let slot = locked.find(0, gfn).ok_or(EINVAL)?;
    if slot.is_invalid() {
        return Err(EAGAIN);
    }
    locked.alloc_counters(slot)
}

/// KVM creates a memslot or moves one (`kvm_page_track_create_memslot()`).
///
/// Sleeps, in a guard. Called with `slots_lock` and `slots_arch_lock` held, before the memslot is
/// visible.
///
/// # Errors
///
/// `EINVAL` if somebody cannot follow a move, `ENOMEM`. KVM makes `ENOMEM` of either.
#[inline(always)]
pub(crate) fn created(new: NewSlot<'_>) -> Result {
    // Without reverse mappings KVM has a TDP MMU and shadows no page tables: then C needs counters only if
    // it has been enabled to track for other modules. And a memslot that moves may have some already.
    if new.slot().has_rmaps() || provider::enabled_by_c(new.kvm()) || vm::is_known(new.kvm()) {
        created_with_counters(new)
    } else {
        Ok(())
    }
}

#[inline(never)]
fn created_with_counters(new: NewSlot<'_>) -> Result {
    // Where nobody has tracked for other modules, nothing can have to be carried over.
    if provider::enabled_by_c(new.kvm()) || vm::is_known(new.kvm()) {
        if let Some(old) = new.moved_from() {
            return moved(new, old);
        }
    }
    if !new.kvm().c_consults_counters() {
        return Ok(());
    }
    let _guard = guard::enter();
    new.alloc_counters()
}

#[inline(never)]
fn moved(new: NewSlot<'_>, old: &Memslot) -> Result {
    let _guard = guard::enter();
    carry_over(new, old)?;
    if new.slot().counters().is_none() && new.kvm().c_consults_counters() {
        new.alloc_counters()?;
    }
    // Nothing fails from here on, in KVM neither.
    notifier::region_moved(new.kvm(), old, new.slot());
    Ok(())
}

/// A memslot moves: its counters and large page counts go with it, or nothing changes.
///
/// External adds are in address space 0 only, and KVM's own counts are zero by now: the INVALID
/// copy has made KVM zap every shadow page of the memslot.
fn carry_over(new: NewSlot<'_>, old: &Memslot) -> Result {
    if !notifier::all_follow_moves(new.kvm()) {
        return Err(EINVAL);
    }
    let Some(counters) = old.counters().filter(|_| old.as_id() == 0) else {
        return Ok(());
    };
    let (from, to, npages) = (old.base_gfn(), new.slot().base_gfn(), old.npages());
    for i in 0..npages {
        if i % BATCH == 0 {
            kvm::reschedule();
        }
        let count = counters.get(from + i);
        if count != 0 {
            new.disallow_large_page(to + i, count);
            protect_other_space(new, to + i);
        }
    }
    // SAFETY: This is the memslot that moves, and the new one comes without counters.
    unsafe { new.take_counters(old) };
    Ok(())
}

/// A page is about to be tracked at a new place, where address space 1 may have it mapped writable.
fn protect_other_space(new: NewSlot<'_>, gfn: Gfn) {
    if let Some(page) = new.slots().find(1, gfn).and_then(|slot| slot.page(gfn)) {
        let mmu = new.kvm().lock_mmu();
        if mmu.write_protect(page) {
            mmu.flush_tlbs();
        }
    }
}

/// KVM adds one of its own shadow page tables (`__kvm_write_track_add_gfn()`).
///
/// C sees to it that every memslot of such a VM has counters. External users leave KVM the 2^14 it
/// may need, so the count does not overflow. Should either be broken, a guest page table may become
/// writable behind KVM's back: that warns, as in C.
#[inline(always)]
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
#[inline(always)]
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

#[inline(always)]
fn recount(mmu: &MmuWrite<'_>, page: Page<'_>, change: impl FnOnce(u16) -> Option<u16>) {
    let counter = page.counter();
    match (counter, counter.and_then(|counter| change(counter.get()))) {
        (Some(counter), Some(count)) => counter.set(mmu, count),
        _ => kvm::warn_once(),
    }
}

/// Number of pages of a VM that somebody outside KVM tracks, by looking at every counter. Sleeps.
pub(crate) fn tracked_pages(kvm: &Kvm) -> u64 {
    let mut pages = 0;
    for_each_counted(kvm.read_slots().slots(), |page, _| {
        // Not `has_external`: nobody may use this VM any more.
        pages += u64::from(!kvm.may_shadow_page_tables() || has_more_than_kvm(kvm, page));
    });
    pages
}

/// Whether somebody outside KVM tracks a page of address space 0, where external adds go.
///
/// Asks KVM's records under `mmu_lock` if it has to ([`external`]).
pub(crate) fn has_external(vcpu: VcpuSection<'_>, gfn: Gfn) -> bool {
    vcpu.slots().find_page(0, gfn).is_some_and(|page| {
        external(vcpu, page).unwrap_or_else(|| has_more_than_kvm(vcpu.kvm(), page))
    })
}

/// The same without a lock; or nothing if KVM has some shadow page that may be of this page: only
/// `mmu_lock` makes sure then.
///
/// If it has none, no count is KVM's. Should KVM put one on the page just then, before the count is
/// looked at, the answer may be yes though the count is KVM's; it is never no though somebody else's is
/// part of it.
#[inline(always)]
fn external(vcpu: VcpuSection<'_>, page: Page<'_>) -> Option<bool> {
    // Not `has_shadow_page_tables`: KVM takes the last shadow page off that before it takes it off
    // the count. And this first: KVM takes a page off the count before it unlinks it, so a count that is
    // seen after an empty bucket was not KVM's when that was looked at.
    let shadowed = vcpu.may_shadow(page.gfn());
    // (`Page::count` would be two instructions more.)
    let counted = page.counter().is_some_and(|counter| counter.get() != 0);
    match (counted, shadowed) {
        (true, Some(true)) => None,
        (counted, _) => Some(counted),
    }
}

#[inline(never)]
fn has_more_than_kvm(kvm: &Kvm, page: Page<'_>) -> bool {
    let mmu = kvm.lock_mmu_read();
    // Rather an event too many than one too few.
    owners::know(kvm).is_err()
        || owners::any_external(page.count(), || mmu.shadow_page_tables(page.gfn()))
}

/// Takes back every external add of a VM, on behalf of whoever has not. Sleeps.
///
/// To be called when nobody can add through us any more. Without it the next insmod would find pages
/// that count as tracked and that C, which does not look, has mapped writable meanwhile. Nothing is
/// taken back if `unless` says so: C sets its flag under the lock that is held meanwhile, before it
/// counts anything for others; and a memslot that moves is at its new place.
pub(crate) fn untrack_all(kvm: &Kvm, unless: impl FnOnce() -> bool) {
    let section = kvm.read_slots();
    let _locked = section.slots().lock_arch();
    // Nor if some of the counts may be KVM's.
    if unless() || owners::know(kvm).is_err() {
        return;
    }
    for_each_counted(section.slots(), |page, counter| {
        let mmu = kvm.lock_mmu();
        let count = counter.get();
        let of_kvm = count.min(mmu.shadow_page_tables(page.gfn()));
        counter.set(&mmu, of_kvm);
        for _ in of_kvm..count {
            mmu.allow_large_page(page);
        }
    });
}

/// Pages looked at between two offers of the processor to others.
const BATCH: u64 = 1 << 16;

/// Calls `f` for every page of address space 0 whose count is not zero. Sleeps.
fn for_each_counted(slots: Slots<'_>, mut f: impl FnMut(Page<'_>, Counter<'_>)) {
    slots
        .for_each(|slot| {
            if slot.counters().is_none() || slot.as_id() != 0 {
                return Ok(());
            }
            for i in 0..slot.npages() {
                if i % BATCH == 0 {
                    kvm::reschedule();
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

/// Gives counters to every memslot of a VM, and then calls `f` before memslots change. Sleeps.
///
/// # Errors
///
/// `ENOMEM`.
#[allow(dead_code)] // where there is no C tracker to hand over to
pub(crate) fn give_counters_to_all(kvm: &Kvm, f: impl FnOnce()) -> Result {
    let section = kvm.read_slots();
    let locked = section.slots().lock_arch();
    section
        .slots()
        .for_each(|slot| locked.alloc_counters(slot))?;
    f();
    Ok(())
}
