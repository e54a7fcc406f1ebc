// SPDX-License-Identifier: GPL-2.0-only

//! Adding and removing tracked pages on behalf of other modules.
//!
//! Everything is checked first; then, under `mmu_lock`: count, disallow large pages, write-protect,
//! flush (design, section 5, rule 4). A refused call changes nothing.
//!
//! C source: `kvm_write_track_add_gfn()` and `kvm_write_track_remove_gfn()` in
//! `arch/x86/kvm/mmu/page_track.c`.

use crate::kvm::{Gfn, Kvm, Memslot, MmuWrite, Page, Slots};
use crate::memslot;
use crate::vm::{self, Vm};
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
        return Err(EOPNOTSUPP);
    }
    loop {
        let section = kvm.read_slots();
        let slots = section.slots();
        let page = changeable(slots, gfn)?;
        if page.slot().counters().is_none() {
            drop(section);
            memslot::ensure_counters(kvm, gfn)?;
            continue;
        }
        let vm = vm::find_or_create(kvm)?;
        vm.owners.reserve(gfn)?;
        let mmu = kvm.lock_mmu();
        match add_locked(vm, slots, &mmu, page) {
            // A remove that made the count zero took the room with it.
            Err(e) if e == ENOMEM => continue,
            result => return result,
        }
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
        return Err(EOPNOTSUPP);
    }
    let page = changeable_in(slot, gfn)?;
    let vm = vm::find(slots.kvm()).ok_or(ENOMEM)?;
    add_locked(vm, slots, mmu, page)
}

fn add_locked(vm: &Vm, slots: Slots<'_>, mmu: &MmuWrite<'_>, page: Page<'_>) -> Result {
    let gfn = page.gfn();
    let counters = page.slot().counters().ok_or(ENOMEM)?;
    let count = counters.get(gfn).checked_add(1).ok_or(EOVERFLOW)?;
    let added_before = vm.owners.add(mmu, gfn)?;
    counters.set(mmu, gfn, count);
    mmu.disallow_large_page(page);
    if added_before == 0 {
        // From the second add on there is no writable mapping: the count forbids it. The other
        // address space's slot is protected as well; C leaves its writable mapping behind.
        let mut flush = mmu.write_protect(page);
        if let Some(other) = slots.find(1, gfn).and_then(|slot| slot.page(gfn)) {
            flush |= mmu.write_protect(other);
        }
        if flush {
            mmu.flush_tlbs();
        }
    }
    Ok(())
}

/// Takes back one add (`kvm_page_track_remove_page()`). Sleeps.
///
/// # Errors
///
/// `EOPNOTSUPP`, `EINVAL`, `EAGAIN`, `ENOENT`.
pub(crate) fn remove(kvm: &Kvm, gfn: Gfn) -> Result {
    if !kvm.can_track() {
        return Err(EOPNOTSUPP);
    }
    let section = kvm.read_slots();
    let page = changeable(section.slots(), gfn)?;
    let vm = vm::find(kvm);
    let mmu = kvm.lock_mmu();
    remove_locked(kvm, vm, &mmu, page)
}

/// The same for a caller with locks and a memslot (`kvm_slot_page_track_remove_page()`).
///
/// # Errors
///
/// As [`remove`].
pub(crate) fn remove_from_slot(kvm: &Kvm, mmu: &MmuWrite<'_>, slot: &Memslot, gfn: Gfn) -> Result {
    if !kvm.can_track() {
        return Err(EOPNOTSUPP);
    }
    remove_locked(kvm, vm::find(kvm), mmu, changeable_in(slot, gfn)?)
}

fn remove_locked(kvm: &Kvm, vm: Option<&Vm>, mmu: &MmuWrite<'_>, page: Page<'_>) -> Result {
    let gfn = page.gfn();
    let counters = page.slot().counters().ok_or(ENOENT)?;
    let count = counters.get(gfn).checked_sub(1).ok_or(ENOENT)?;
    let owned = vm.map_or(Err(ENOENT), |vm| vm.owners.remove(mmu, gfn));
    // Where C had enabled its tracker, it may have added the page before insmod.
    if owned.is_err() && !kvm.c_external_enabled() {
        return owned;
    }
    counters.set(mmu, gfn, count);
    mmu.allow_large_page(page);
    Ok(())
}

/// Allocates what [`add_to_slot`] needs for a range of pages (`kvm_page_track_prepare()`). Sleeps.
///
/// # Errors
///
/// `EOPNOTSUPP`, `EINVAL`, `EAGAIN`, `ENOMEM`.
pub(crate) fn prepare(kvm: &Kvm, gfn: Gfn, npages: u64) -> Result {
    if !kvm.can_track() {
        return Err(EOPNOTSUPP);
    }
    let last = npages
        .checked_sub(1)
        .and_then(|n| gfn.checked_add(n))
        .ok_or(EINVAL)?;
    if changeable(kvm.read_slots().slots(), gfn)?
        .slot()
        .page(last)
        .is_none()
    {
        return Err(EINVAL);
    }
    memslot::ensure_counters(kvm, gfn)?;
    let vm = vm::find_or_create(kvm)?;
    for gfn in gfn..=last {
        // The memslot may go at any time: what was prepared goes with it, and nothing is prepared
        // for a page in no memslot, or in a new one that has no counters yet.
        let section = kvm.read_slots();
        if changeable(section.slots(), gfn)?
            .slot()
            .counters()
            .is_none()
        {
            return Err(EAGAIN);
        }
        while !vm.owners.prepare(gfn)? {
            // Somebody has added the page.
            let mmu = kvm.lock_mmu();
            if vm.owners.keep(&mmu, gfn).is_ok() {
                break;
            }
        }
    }
    Ok(())
}
