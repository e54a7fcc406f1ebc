// SPDX-License-Identifier: GPL-2.0-only

//! Adding and removing tracked pages on behalf of other modules.
//!
//! Everything is checked first; then, under `mmu_lock`: count, disallow large pages, write-protect,
//! flush (design, section 5, rule 4). A refused call changes nothing.
//!
//! C source: `kvm_write_track_add_gfn()` and `kvm_write_track_remove_gfn()` in
//! `arch/x86/kvm/mmu/page_track.c`.

use crate::guard;
use crate::inline_atomic::smp_mb;
use crate::kernel_api::eopnotsupp;
use crate::kvm::{Gfn, Kvm, Memslot, MmuWrite, Page, Slots};
use crate::{memslot, owners, vm};
use kernel::prelude::*;

/// Finds the page in the memslot that a change of its count would go to.
fn changeable(slots: Slots<'_>, gfn: Gfn) -> Result<Page<'_>> {
    let slot = slots.find(0, gfn).ok_or(EINVAL)?;
    changeable_in(slot, gfn)
}

/// The page of a memslot whose count may be changed.
fn changeable_in(slot: &Memslot, gfn: Gfn) -> Result<Page<'_>> {
    if slot.as_id() != 0 {
        return Err(EINVAL);
    }
    let page = slot.page(gfn).ok_or(EINVAL)?;
    if slot.is_invalid() {
        return Err(EAGAIN);
    }
    Ok(page)
}

/// Tracks guest writes to a page (`kvm_page_track_add_page()`). Sleeps.
///
/// # Errors
///
/// `EOPNOTSUPP`, `EINVAL`, `EAGAIN`, `ENOMEM`, `EOVERFLOW`.
pub(crate) fn add(kvm: &Kvm, gfn: Gfn) -> Result {
    if !kvm.can_track() {
        return Err(eopnotsupp());
    }
    if vm::find(kvm).is_some() {
        if let Some(result) = try_add(kvm, gfn) {
            return result;
        }
    }
    add_with_room(kvm, gfn)
}

/// Adds a page if its memslot has counters. Does not sleep (it does on PREEMPT_RT).
#[inline(always)]
fn try_add(kvm: &Kvm, gfn: Gfn) -> Option<Result> {
    let section = kvm.read_slots();
    let slots = section.slots();
    let page = match changeable(slots, gfn) {
        Ok(page) => page,
        Err(e) => return Some(Err(e)),
    };
    page.slot().counters()?;
    Some(add_and_flush(slots, &kvm.lock_mmu(), page))
}

/// Adds a page and makes what that takes. One guard for all of it: it sleeps.
#[cold]
#[inline(never)]
fn add_with_room(kvm: &Kvm, gfn: Gfn) -> Result {
    let _guard = guard::enter();
    // A refused call leaves nothing behind.
    changeable(kvm.read_slots().slots(), gfn)?;
    // The entry shows the VM in debugfs.
    vm::find_or_create(kvm)?;
    loop {
        if let Some(result) = try_add(kvm, gfn) {
            return result;
        }
        memslot::ensure_counters(kvm, gfn)?;
    }
}

/// The same for a caller with locks and a memslot (`kvm_slot_page_track_add_page()`).
///
/// # Errors
///
/// As [`add`]; `ENOMEM` if the page was not prepared.
pub(crate) fn add_to_slot(
    slots: Slots<'_>,
    mmu: &MmuWrite<'_>,
    slot: &Memslot,
    gfn: Gfn,
) -> Result {
    if !slots.kvm().can_track() {
        return Err(eopnotsupp());
    }
    let page = changeable_in(slot, gfn)?;
    vm::find(slots.kvm()).ok_or(ENOMEM)?;
    add_and_flush(slots, mmu, page)
}

#[inline(always)]
fn add_and_flush(slots: Slots<'_>, mmu: &MmuWrite<'_>, page: Page<'_>) -> Result {
    if add_locked(slots, mmu, page)? {
        mmu.flush_tlbs();
    }
    Ok(())
}

/// Adds a page. True if TLBs have to be flushed, before `mmu_lock` is released.
fn add_locked(slots: Slots<'_>, mmu: &MmuWrite<'_>, page: Page<'_>) -> Result<bool> {
    let gfn = page.gfn();
    let counters = page.slot().counters().ok_or(ENOMEM)?;
    let before = counters.get(gfn);
    let of_kvm = || mmu.shadow_page_tables(gfn);
    counters.set(mmu, gfn, owners::after_add(before, of_kvm)?);
    // The count first, then what the caller reads of the page. Pairs with `mmu_hooks::write`.
    smp_mb();
    mmu.disallow_large_page(page);
    // From the second add on there is no writable mapping: the count forbids it.
    let mut flush = before == 0 && mmu.write_protect(page);
    // The other address space's slot is protected as well; C leaves its writable mapping behind, and
    // so does KVM's own add.
    if slots.may_have(1) && !owners::any_external(before, of_kvm) {
        if let Some(other) = slots.find(1, gfn).and_then(|slot| slot.page(gfn)) {
            flush |= mmu.write_protect(other);
        }
    }
    Ok(flush)
}

/// Takes back one add (`kvm_page_track_remove_page()`). Sleeps.
///
/// # Errors
///
/// `EOPNOTSUPP`, `EINVAL`, `EAGAIN`, `ENOENT`.
pub(crate) fn remove(kvm: &Kvm, gfn: Gfn) -> Result {
    if !kvm.can_track() {
        return Err(eopnotsupp());
    }
    let section = kvm.read_slots();
    let page = changeable(section.slots(), gfn)?;
    remove_locked(&kvm.lock_mmu(), page)
}

/// The same for a caller with locks and a memslot (`kvm_slot_page_track_remove_page()`).
///
/// # Errors
///
/// As [`remove`].
pub(crate) fn remove_from_slot(kvm: &Kvm, mmu: &MmuWrite<'_>, slot: &Memslot, gfn: Gfn) -> Result {
    if !kvm.can_track() {
        return Err(eopnotsupp());
    }
    remove_locked(mmu, changeable_in(slot, gfn)?)
}

fn remove_locked(mmu: &MmuWrite<'_>, page: Page<'_>) -> Result {
    let gfn = page.gfn();
    let counters = page.slot().counters().ok_or(ENOENT)?;
    let count = owners::after_remove(counters.get(gfn), || mmu.shadow_page_tables(gfn))?;
    counters.set(mmu, gfn, count);
    mmu.allow_large_page(page);
    Ok(())
}

/// Tracks guest writes to a range of pages, or to none (`kvm_page_track_add_range()`). Sleeps.
///
/// # Errors
///
/// As [`add`].
pub(crate) fn add_range(kvm: &Kvm, gfn: Gfn, npages: u64) -> Result {
    if !kvm.can_track() {
        return Err(eopnotsupp());
    }
    let last = last_of(gfn, npages)?;
    loop {
        let section = kvm.read_slots();
        let slots = section.slots();
        let missing = without_counters(slots, gfn, last)?;
        vm::find_or_create(kvm)?;
        let Some(missing) = missing else {
            return change_range::<Add>(slots, gfn, last);
        };
        drop(section);
        memslot::ensure_counters(kvm, missing)?;
    }
}

/// Takes back one add of each page of a range, or none (`kvm_page_track_remove_range()`). Sleeps.
///
/// # Errors
///
/// As [`remove`].
pub(crate) fn remove_range(kvm: &Kvm, gfn: Gfn, npages: u64) -> Result {
    if !kvm.can_track() {
        return Err(eopnotsupp());
    }
    let last = last_of(gfn, npages)?;
    let section = kvm.read_slots();
    without_counters(section.slots(), gfn, last)?;
    change_range::<Remove>(section.slots(), gfn, last)
}

fn last_of(gfn: Gfn, npages: u64) -> Result<Gfn> {
    npages
        .checked_sub(1)
        .and_then(|n| gfn.checked_add(n))
        .ok_or(EINVAL)
}

/// The first page of a range whose memslot has no counters, if all of the range can be changed.
fn without_counters(slots: Slots<'_>, first: Gfn, last: Gfn) -> Result<Option<Gfn>> {
    let mut missing = None;
    let mut gfn = first;
    loop {
        let slot = changeable(slots, gfn)?.slot();
        if slot.counters().is_none() {
            missing.get_or_insert(gfn);
        }
        // The last page of the memslot.
        let end = slot.base_gfn() + (slot.npages() - 1);
        if end >= last {
            return Ok(missing);
        }
        gfn = end + 1;
    }
}

/// What happens to every page of a range.
trait Change {
    /// Whether the page's count allows it.
    fn check(mmu: &MmuWrite<'_>, page: Page<'_>) -> Result;

    /// Does it. True if TLBs have to be flushed.
    fn apply(slots: Slots<'_>, mmu: &MmuWrite<'_>, page: Page<'_>) -> Result<bool>;

    /// Takes it back, as far as others allow. True if TLBs have to be flushed.
    fn undo(slots: Slots<'_>, mmu: &MmuWrite<'_>, page: Page<'_>) -> bool;
}

struct Add;

impl Change for Add {
    #[inline(always)]
    fn check(mmu: &MmuWrite<'_>, page: Page<'_>) -> Result {
        owners::after_add(page.count(), || mmu.shadow_page_tables(page.gfn())).map(|_| ())
    }

    #[inline(always)]
    fn apply(slots: Slots<'_>, mmu: &MmuWrite<'_>, page: Page<'_>) -> Result<bool> {
        add_locked(slots, mmu, page)
    }

    fn undo(_: Slots<'_>, mmu: &MmuWrite<'_>, page: Page<'_>) -> bool {
        remove_locked(mmu, page).ok();
        false
    }
}

struct Remove;

impl Change for Remove {
    #[inline(always)]
    fn check(mmu: &MmuWrite<'_>, page: Page<'_>) -> Result {
        owners::after_remove(page.count(), || mmu.shadow_page_tables(page.gfn())).map(|_| ())
    }

    #[inline(always)]
    fn apply(_: Slots<'_>, mmu: &MmuWrite<'_>, page: Page<'_>) -> Result<bool> {
        if mmu.has_yielded() {
            remove_locked(mmu, page)?;
        } else if let Some(counters) = page.slot().counters() {
            // `check` has found counters, and a count that is not KVM's alone.
            counters.set(mmu, page.gfn(), page.count().saturating_sub(1));
            mmu.allow_large_page(page);
        }
        Ok(false)
    }

    fn undo(slots: Slots<'_>, mmu: &MmuWrite<'_>, page: Page<'_>) -> bool {
        add_locked(slots, mmu, page).unwrap_or(false)
    }
}

/// Changes every page of a range, or none: looks at all of them before the first is changed.
///
/// Only if `mmu_lock` was yielded to somebody who then changed a page of the range can one be refused
/// half-way. What was done is undone then, except for pages that somebody else has meanwhile removed
/// without having added them, or added up to the limit.
#[inline(always)]
fn change_range<C: Change>(slots: Slots<'_>, first: Gfn, last: Gfn) -> Result {
    let mut mmu = slots.kvm().lock_mmu();
    for_pages(slots, &mut mmu, first, last, |mmu, page| {
        C::check(mmu, page).map(|()| false)
    })
    .1?;
    let (done, result) = for_pages(slots, &mut mmu, first, last, |mmu, page| {
        C::apply(slots, mmu, page)
    });
    if result.is_err() && done > first {
        for_pages(slots, &mut mmu, first, done - 1, |mmu, page| {
            Ok(C::undo(slots, mmu, page))
        })
        .1
        .ok();
    }
    result
}

/// Calls `f` for the pages of a range up to the first that it refuses, which is returned.
///
/// `f` tells whether TLBs have to be flushed. That is done once for one hold of `mmu_lock`, which
/// lasts for a batch of pages, and longer only if nobody waits for it or for the processor.
///
/// The memslots were there, and not INVALID, when the read section of `slots` had begun. One that
/// becomes so meanwhile has the same counters, and is neither zapped nor moved before `slots` ends.
#[inline(always)]
fn for_pages(
    slots: Slots<'_>,
    mmu: &mut MmuWrite<'_>,
    first: Gfn,
    last: Gfn,
    mut f: impl FnMut(&MmuWrite<'_>, Page<'_>) -> Result<bool>,
) -> (Gfn, Result) {
    /// Pages between two looks at who waits.
    const BATCH: u64 = 64;
    let mut flush = false;
    let mut gfn = first;
    let result = 'range: loop {
        let Some(slot) = slots.find(0, gfn) else {
            break Err(EINVAL);
        };
        while let Some(page) = slot.page(gfn) {
            match f(mmu, page) {
                Ok(needs_flush) => flush |= needs_flush,
                Err(e) => break 'range Err(e),
            }
            if gfn == last {
                break 'range Ok(());
            }
            gfn += 1;
            if gfn % BATCH == 0 && mmu.is_wanted() {
                // Who gets the lock relies on it that read-only is read-only in every TLB.
                if core::mem::take(&mut flush) {
                    mmu.flush_tlbs();
                }
                mmu.yield_to_others();
            }
        }
    };
    if flush {
        mmu.flush_tlbs();
    }
    (gfn, result)
}

/// Allocates what [`add_to_slot`] needs for a range of pages (`kvm_page_track_prepare()`). Sleeps.
///
/// # Errors
///
/// `EOPNOTSUPP`, `EINVAL`, `EAGAIN`, `ENOMEM`.
pub(crate) fn prepare(kvm: &Kvm, gfn: Gfn, npages: u64) -> Result {
    if !kvm.can_track() {
        return Err(eopnotsupp());
    }
    let last = last_of(gfn, npages)?;
    if changeable(kvm.read_slots().slots(), gfn)?
        .slot()
        .page(last)
        .is_none()
    {
        return Err(EINVAL);
    }
    vm::find_or_create(kvm)?;
    memslot::ensure_counters(kvm, gfn)
}
