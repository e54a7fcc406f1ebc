// SPDX-License-Identifier: GPL-2.0-only

//! Adding and removing tracked pages on behalf of other modules.
//!
//! Everything is checked first; then, under `mmu_lock`: count, disallow large pages, write-protect,
//! flush (design, section 5, rule 4). A refused call changes nothing.
//!
//! C source: `kvm_write_track_add_gfn()` and `kvm_write_track_remove_gfn()` in
//! `arch/x86/kvm/mmu/page_track.c`.

use crate::kvm::{Gfn, Kvm, Memslot, MmuWrite, Slots};
use crate::memslot;
use crate::vm::{self, Vm};
use kernel::prelude::*;

/// Finds the memslot that a change of `gfn` would go to.
fn changeable<'s>(slots: Slots<'s>, gfn: Gfn) -> Result<&'s Memslot> {
    let slot = slots.find(0, gfn).ok_or(EINVAL)?;
    if slot.is_invalid() {
        return Err(EAGAIN);
    }
    Ok(slot)
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
        let slot = changeable(slots, gfn)?;
        if slot.counters().is_none() {
            drop(section);
            memslot::ensure_counters(kvm, gfn)?;
            continue;
        }
        let vm = vm::find_or_create(kvm)?;
        vm.owners.reserve(gfn)?;
        let mmu = kvm.lock_mmu();
        // A remove that made the count zero may have taken the room with it.
        if vm.owners.is_reserved(gfn) {
            return add_locked(vm, slots, &mmu, slot, gfn);
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
    let kvm = slots.kvm();
    check_slot(kvm, slot, gfn)?;
    add_locked(vm::find(kvm).ok_or(ENOMEM)?, slots, mmu, slot, gfn)
}

fn check_slot(kvm: &Kvm, slot: &Memslot, gfn: Gfn) -> Result {
    if !kvm.can_track() {
        return Err(EOPNOTSUPP);
    }
    if slot.as_id() != 0 || !slot.contains(gfn) {
        return Err(EINVAL);
    }
    if slot.is_invalid() {
        return Err(EAGAIN);
    }
    Ok(())
}

fn add_locked(vm: &Vm, slots: Slots<'_>, mmu: &MmuWrite<'_>, slot: &Memslot, gfn: Gfn) -> Result {
    let counters = slot.counters().ok_or(ENOMEM)?;
    let count = counters.get(gfn).checked_add(1).ok_or(EOVERFLOW)?;
    let added_before = vm.owners.add(mmu, gfn)?;
    counters.set(mmu, gfn, count);
    mmu.disallow_large_page(slot, gfn);
    if added_before == 0 {
        // From the second add on there is no writable mapping: the count forbids it. The other
        // address space's slot is protected as well; C leaves its writable mapping behind.
        let mut flush = mmu.write_protect(slot, gfn);
        if let Some(other) = slots.find(1, gfn) {
            flush |= mmu.write_protect(other, gfn);
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
    let slot = changeable(section.slots(), gfn)?;
    remove_locked(kvm, &kvm.lock_mmu(), slot, gfn)
}

/// The same for a caller with locks and a memslot (`kvm_slot_page_track_remove_page()`).
///
/// # Errors
///
/// As [`remove`].
pub(crate) fn remove_from_slot(kvm: &Kvm, mmu: &MmuWrite<'_>, slot: &Memslot, gfn: Gfn) -> Result {
    check_slot(kvm, slot, gfn)?;
    remove_locked(kvm, mmu, slot, gfn)
}

fn remove_locked(kvm: &Kvm, mmu: &MmuWrite<'_>, slot: &Memslot, gfn: Gfn) -> Result {
    let counters = slot.counters().ok_or(ENOENT)?;
    let count = counters.get(gfn).checked_sub(1).ok_or(ENOENT)?;
    let owned = vm::find(kvm).map_or(Err(ENOENT), |vm| vm.owners.remove(mmu, gfn));
    // Where C had enabled its tracker, it may have added the page before insmod.
    if owned.is_err() && !kvm.c_external_enabled() {
        return owned;
    }
    counters.set(mmu, gfn, count);
    mmu.allow_large_page(slot, gfn);
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
    if !changeable(kvm.read_slots().slots(), gfn)?.contains(last) {
        return Err(EINVAL);
    }
    memslot::ensure_counters(kvm, gfn)?;
    let vm = vm::find_or_create(kvm)?;
    for gfn in gfn..=last {
        loop {
            // The memslot may go at any time; what was prepared then goes with it, and nothing is
            // prepared for a page in no memslot.
            let section = kvm.read_slots();
            changeable(section.slots(), gfn)?;
            vm.owners.reserve(gfn)?;
            let mmu = kvm.lock_mmu();
            if vm.owners.keep(&mmu, gfn).is_ok() {
                break;
            }
        }
    }
    Ok(())
}
