// SPDX-License-Identifier: GPL-2.0-only

//! Adding and removing tracked pages on behalf of other modules.
//!
//! Everything is checked first; then, under `mmu_lock`: count, disallow large pages, write-protect,
//! flush (design, section 5, rule 4). A refused call changes nothing.
//!
//! C source: `kvm_write_track_add_gfn()` and `kvm_write_track_remove_gfn()` in
//! `arch/x86/kvm/mmu/page_track.c`.

pub(crate) mod range;

use crate::base::guard;
use crate::base::kernel_api::eopnotsupp;
use crate::base::once::smp_mb;
use crate::kvm::vm;
use crate::kvm::{Counter, Gfn, Kvm, Memslot, MmuWrite, Page, Slots, SlotsArchLocked};
use crate::memslot;
use crate::memslot::owners;
use crate::notifier;
use kernel::prelude::*;

/// Finds a page whose count may be changed, with an add, or by a remove.
#[inline(always)]
pub(crate) fn changeable<const ADD: bool>(slots: Slots<'_>, gfn: Gfn) -> Result<Page<'_>> {
    check::<ADD>(slots.kvm(), slots.find_page(0, gfn).ok_or(EINVAL)?)
}

/// The same in a memslot.
fn changeable_in<'s, const ADD: bool>(kvm: &Kvm, slot: &'s Memslot, gfn: Gfn) -> Result<Page<'s>> {
    if slot.as_id() != 0 {
        return Err(EINVAL);
    }
    check::<ADD>(kvm, slot.page(gfn).ok_or(EINVAL)?)
}

#[inline(always)]
fn check<'s, const ADD: bool>(kvm: &Kvm, page: Page<'s>) -> Result<Page<'s>> {
    owners::know(kvm)?;
    // Both flags in one question: they are rare.
    if page.slot().is_invalid() || (ADD && page.slot().is_guest_memfd()) {
        unless_guest_memfd::<ADD>(page)?;
        return Err(EAGAIN);
    }
    Ok(page)
}

/// What is in a guest_memfd need not be mapped in the host: KVM could not emulate there.
fn unless_guest_memfd<const ADD: bool>(page: Page<'_>) -> Result {
    if ADD && page.slot().is_guest_memfd() {
        return Err(eopnotsupp());
    }
    Ok(())
}

/// Tracks guest writes to a page (`kvm_page_track_add_page()`). Sleeps.
///
/// # Errors
///
/// `EOPNOTSUPP`, `EINVAL`, `EAGAIN`, `ENOMEM`, `EOVERFLOW`.
pub(crate) fn add(kvm: &Kvm, gfn: Gfn) -> Result {
    add_at_once(kvm, gfn).unwrap_or_else(|| add_with_room(kvm, gfn))
}

/// Adds a page if nothing has to be made for it, or refuses it. Does not sleep (it does on PREEMPT_RT).
#[inline(always)]
fn add_at_once(kvm: &Kvm, gfn: Gfn) -> Option<Result> {
    if !kvm.can_track() {
        return Some(Err(eopnotsupp()));
    }
    vm::find(kvm).and_then(|_| try_add(kvm, gfn))
}

/// Adds a page if its memslot has counters. Does not sleep (it does on PREEMPT_RT).
#[inline(always)]
fn try_add(kvm: &Kvm, gfn: Gfn) -> Option<Result> {
    let section = kvm.read_slots();
    let slots = section.slots();
    let page = match changeable::<true>(slots, gfn) {
        Ok(page) => page,
        Err(e) => return Some(Err(e)),
    };
    let counter = page.counter()?;
    let mmu = kvm.lock_mmu();
    Some(add_and_flush(slots, &mmu, page, counter))
}

/// Adds a page and makes what that takes. One guard for all of it: it sleeps.
#[cold]
#[inline(never)]
fn add_with_room(kvm: &Kvm, gfn: Gfn) -> Result {
    let _guard = guard::enter();
    // A refused call leaves nothing behind.
    changeable::<true>(kvm.read_slots().slots(), gfn)?;
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
    let page = changeable_in::<true>(slots.kvm(), slot, gfn)?;
    vm::find(slots.kvm()).ok_or(ENOMEM)?;
    add_and_flush(slots, mmu, page, page.counter().ok_or(ENOMEM)?)
}

#[inline(always)]
fn add_and_flush(
    slots: Slots<'_>,
    mmu: &MmuWrite<'_>,
    page: Page<'_>,
    counter: Counter<'_>,
) -> Result {
    if add_locked(slots, mmu, page, counter)? {
        mmu.flush_tlbs();
    }
    Ok(())
}

/// Adds a page, whose counter it is. True if TLBs have to be flushed, before `mmu_lock` is released.
#[inline(always)]
pub(crate) fn add_locked(
    slots: Slots<'_>,
    mmu: &MmuWrite<'_>,
    page: Page<'_>,
    counter: Counter<'_>,
) -> Result<bool> {
    let gfn = page.gfn();
    let before = counter.get();
    let of_kvm = || mmu.shadow_page_tables(gfn);
    counter.set(mmu, owners::after_add(before, of_kvm)?);
    // The count first, then what the caller reads of the page. Pairs with `mmu_hooks::write`.
    smp_mb();
    mmu.disallow_large_page(page);
    // From the second add on there is no writable mapping: the count forbids it.
    let mut flush = before == 0 && mmu.write_protect(page);
    // The other address space's slot is protected as well; C leaves its writable mapping behind, and
    // so does KVM's own add.
    if slots.may_have(1) && !owners::any_external(before, of_kvm) {
        if let Some(other) = slots.find_page(1, gfn) {
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
#[inline(always)]
pub(crate) fn remove(kvm: &Kvm, gfn: Gfn) -> Result {
    let section = kvm.read_slots();
    let page = changeable::<false>(section.slots(), gfn)?;
    let counter = page.counter().ok_or(ENOENT)?;
    let mmu = kvm.lock_mmu();
    remove_locked(&mmu, page, counter)
}

/// The same for a caller with locks and a memslot (`kvm_slot_page_track_remove_page()`).
///
/// # Errors
///
/// As [`remove`].
pub(crate) fn remove_from_slot(kvm: &Kvm, mmu: &MmuWrite<'_>, slot: &Memslot, gfn: Gfn) -> Result {
    let page = changeable_in::<false>(kvm, slot, gfn)?;
    remove_locked(mmu, page, page.counter().ok_or(ENOENT)?)
}

/// Removes a page, whose counter it is.
#[inline(always)]
pub(crate) fn remove_locked(mmu: &MmuWrite<'_>, page: Page<'_>, counter: Counter<'_>) -> Result {
    let of_kvm = || mmu.shadow_page_tables(page.gfn());
    counter.set(mmu, owners::after_remove(counter.get(), of_kvm)?);
    mmu.allow_large_page(page);
    Ok(())
}

/// [`add`] by upstream's name, by which C never says "try again". Sleeps.
///
/// # Errors
///
/// As [`add`]; `EAGAIN` only if the VM has no notifier of upstream's.
pub(crate) fn add_as_upstream(kvm: &Kvm, gfn: Gfn) -> Result {
    match add_at_once(kvm, gfn) {
        Some(Err(e)) if e == EAGAIN => add_as_upstream_with_room(kvm, gfn),
        Some(result) => result,
        None => add_as_upstream_with_room(kvm, gfn),
    }
}

/// As [`add_with_room`], also to a memslot that is INVALID.
#[cold]
#[inline(never)]
fn add_as_upstream_with_room(kvm: &Kvm, gfn: Gfn) -> Result {
    let _guard = guard::enter();
    match add_with_room(kvm, gfn) {
        Err(e) if e == EAGAIN => while_invalid::<true>(kvm, gfn, |locked, page| {
            vm::find_or_create(kvm)?;
            locked.alloc_counters(page.slot())?;
            let counter = page.counter().ok_or(ENOMEM)?;
            add_and_flush(locked.slots(), &kvm.lock_mmu(), page, counter)
        }),
        result => result,
    }
}

/// [`remove`] by upstream's name, likewise. Sleeps.
///
/// # Errors
///
/// As [`remove`]; `EAGAIN` only if the VM has no notifier of upstream's.
pub(crate) fn remove_as_upstream(kvm: &Kvm, gfn: Gfn) -> Result {
    match remove(kvm, gfn) {
        Err(e) if e == EAGAIN => while_invalid::<false>(kvm, gfn, |_, page| {
            remove_locked(&kvm.lock_mmu(), page, page.counter().ok_or(ENOENT)?)
        }),
        result => result,
    }
}

/// Changes a count in a memslot that may be INVALID: about to be moved, or deleted.
///
/// While the VM has a notifier of upstream's KVM refuses every move, and the memslot is back with the
/// counts that the INVALID copy has got; with a deletion they go, here as in C. KVM decides on the move
/// with `slots_arch_lock` held: whoever holds it and finds an INVALID memslot comes before that.
#[cold]
#[inline(never)]
fn while_invalid<const ADD: bool>(
    kvm: &Kvm,
    gfn: Gfn,
    change: impl FnOnce(&SlotsArchLocked<'_>, Page<'_>) -> Result,
) -> Result {
    // In a `track_move_region` callback this very task holds `slots_arch_lock`.
    if !notifier::any(kvm) || vm::find(kvm).is_some_and(|vm| vm.in_move_callback()) {
        return Err(EAGAIN);
    }
    let _guard = guard::enter();
    let section = kvm.read_slots();
    let locked = section.slots().lock_arch();
    if !notifier::any(kvm) {
        return Err(EAGAIN);
    }
    let page = locked
        .find(0, gfn)
        .and_then(|slot| slot.page(gfn))
        .ok_or(EINVAL)?;
    owners::know(kvm)?;
    unless_guest_memfd::<ADD>(page)?;
    change(&locked, page)
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
    if changeable::<true>(kvm.read_slots().slots(), gfn)?
        .slot()
        .page(last)
        .is_none()
    {
        return Err(EINVAL);
    }
    vm::find_or_create(kvm)?;
    memslot::ensure_counters(kvm, gfn)
}

/// The last page of a range that starts at `gfn`.
pub(crate) fn last_of(gfn: Gfn, npages: u64) -> Result<Gfn> {
    npages
        .checked_sub(1)
        .and_then(|n| gfn.checked_add(n))
        .ok_or(EINVAL)
}
