// SPDX-License-Identifier: GPL-2.0-only

//! What needs counters and listeners both. Here: adding and removing pages on behalf of other modules.
//!
//! Everything is checked first; then, under `mmu_lock`: count, disallow large pages, write-protect,
//! flush (docs/internals.md, rule 4). A refused call changes nothing.
//!
//! C source: `kvm_write_track_add_gfn()` and `kvm_write_track_remove_gfn()` in
//! `arch/x86/kvm/mmu/page_track.c`.

pub(crate) mod detach;
pub(crate) mod event;
pub(crate) mod memslot_moves;
pub(crate) mod range;
pub(crate) mod upstream;

use crate::base::guard;
use crate::base::kernel_api::eopnotsupp;
use crate::base::once::smp_mb;
use crate::kvm::{registry, vm, Gfn, Kvm, Memslot, MmuWrite, Page, Slots};
use crate::memslot::{self, owners};
use kernel::prelude::*;

/// Tracks guest writes to a page (`kvm_page_track_add_page()`). Sleeps.
///
/// # Errors
///
/// `EOPNOTSUPP`, `EINVAL`, `EAGAIN`, `ENOMEM`, `EOVERFLOW`.
pub(crate) fn add(kvm: &Kvm, gfn: Gfn) -> Result {
    add_or(kvm, gfn, |refusal| match refusal {
        Some(e) => Err(e),
        None => add_first(kvm, gfn),
    })
}

/// Adds a page. Or does `otherwise`: with the reason if the page is refused, with nothing if something has to
/// be made for it first. Does not sleep itself (it does on PREEMPT_RT).
fn add_or(kvm: &Kvm, gfn: Gfn, otherwise: impl FnOnce(Option<Error>) -> Result) -> Result {
    if !kvm.can_track() {
        return otherwise(Some(eopnotsupp()));
    }
    let section = kvm.read_slots();
    let refusal = match page_to_add(section.slots(), gfn) {
        Ok(page) => {
            let mmu = kvm.lock_mmu();
            if registry::is_known(&mmu) && page.counter().is_some() {
                return add_locked(section.slots(), &mmu, page, || mmu.flush_tlbs());
            }
            None
        }
        Err(e) => Some(e),
    };
    drop(section);
    otherwise(refusal)
}

/// Adds a page and makes what that takes. One guard for all of it: it sleeps.
#[cold]
fn add_first(kvm: &Kvm, gfn: Gfn) -> Result {
    let _guard = guard::enter();
    // A refused call leaves nothing behind.
    page_to_add(kvm.read_slots().slots(), gfn)?;
    // The entry shows the VM in debugfs.
    vm::find_or_create(kvm)?;
    loop {
        let mut lacks_counters = false;
        add_or(kvm, gfn, |refusal| match refusal {
            Some(e) => Err(e),
            None => {
                lacks_counters = true;
                Ok(())
            }
        })?;
        if !lacks_counters {
            return Ok(());
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
    let page = page_of(slot, gfn)?;
    refuse_guest_memfd(page)?;
    may_change(slots.kvm(), page)?;
    vm::find_locked(mmu).ok_or(ENOMEM)?;
    add_locked(slots, mmu, page, || mmu.flush_tlbs())
}

/// Adds a page, if its memslot has counters. Calls `flush` if TLBs have to be flushed, before `mmu_lock` is
/// released.
///
/// # Errors
///
/// `ENOMEM` without counters, `EOVERFLOW`.
fn add_locked(
    slots: Slots<'_>,
    mmu: &MmuWrite<'_>,
    page: Page<'_>,
    flush: impl FnOnce(),
) -> Result {
    let gfn = page.gfn();
    let counter = page.counter().ok_or(ENOMEM)?;
    let before = counter.get();
    let of_kvm = || mmu.shadow_page_tables(gfn);
    counter.set(mmu, owners::after_add(before, of_kvm)?);
    // The count first, then what the caller reads of the page: see `event::written`.
    smp_mb();
    mmu.disallow_large_page(page);
    // From the second add on there is no writable mapping: the count forbids it.
    let mut writable = before == 0 && mmu.write_protect(page);
    if slots.may_have(1) && !owners::any_external(before, of_kvm) {
        writable |= protect_other_space(slots, mmu, gfn);
    }
    if writable {
        flush();
    }
    Ok(())
}

/// The other address space's page is protected as well; C leaves its writable mapping behind, and so does
/// KVM's own add. True if TLBs have to be flushed.
#[cold]
fn protect_other_space(slots: Slots<'_>, mmu: &MmuWrite<'_>, gfn: Gfn) -> bool {
    slots
        .find_page(1, gfn)
        .is_some_and(|other| mmu.write_protect(other))
}

/// Takes back one add (`kvm_page_track_remove_page()`). Sleeps.
///
/// # Errors
///
/// `EOPNOTSUPP`, `EINVAL`, `EAGAIN`, `ENOENT`.
pub(crate) fn remove(kvm: &Kvm, gfn: Gfn) -> Result {
    remove_or(kvm, gfn, Err)
}

/// Removes a page. Or does `otherwise`, with the reason why it is refused. Does not sleep itself (it does on
/// PREEMPT_RT).
fn remove_or(kvm: &Kvm, gfn: Gfn, otherwise: impl FnOnce(Error) -> Result) -> Result {
    let section = kvm.read_slots();
    match page_to_remove(section.slots(), gfn) {
        Ok(page) => {
            let mmu = kvm.lock_mmu();
            remove_locked(&mmu, page)
        }
        Err(e) => {
            drop(section);
            otherwise(e)
        }
    }
}

/// The same for a caller with locks and a memslot (`kvm_slot_page_track_remove_page()`).
///
/// # Errors
///
/// As [`remove`].
pub(crate) fn remove_from_slot(kvm: &Kvm, mmu: &MmuWrite<'_>, slot: &Memslot, gfn: Gfn) -> Result {
    remove_locked(mmu, may_change(kvm, page_of(slot, gfn)?)?)
}

/// Removes a page.
fn remove_locked(mmu: &MmuWrite<'_>, page: Page<'_>) -> Result {
    let of_kvm = mmu.shadow_page_tables(page.gfn());
    let counter = page.counter().ok_or(ENOENT)?;
    counter.set(mmu, owners::after_remove(counter.get(), || of_kvm)?);
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
        return Err(eopnotsupp());
    }
    let last = last_of(gfn, npages)?;
    let in_one_memslot = page_to_add(kvm.read_slots().slots(), gfn)?
        .slot()
        .page(last)
        .is_some();
    if !in_one_memslot {
        return Err(EINVAL);
    }
    vm::find_or_create(kvm)?;
    memslot::ensure_counters(kvm, gfn)
}

/// The last page of a range that starts at `gfn`.
fn last_of(gfn: Gfn, npages: u64) -> Result<Gfn> {
    npages
        .checked_sub(1)
        .and_then(|n| gfn.checked_add(n))
        .ok_or(EINVAL)
}

/// Finds a page that may be added.
fn page_to_add(slots: Slots<'_>, gfn: Gfn) -> Result<Page<'_>> {
    let page = slots.find_page(0, gfn).ok_or(EINVAL)?;
    refuse_guest_memfd(page)?;
    may_change(slots.kvm(), page)
}

/// Finds a page whose count may be taken back.
fn page_to_remove(slots: Slots<'_>, gfn: Gfn) -> Result<Page<'_>> {
    may_change(slots.kvm(), slots.find_page(0, gfn).ok_or(EINVAL)?)
}

/// A page of a memslot of the caller's.
fn page_of(slot: &Memslot, gfn: Gfn) -> Result<Page<'_>> {
    slot.page(gfn).filter(|_| slot.as_id() == 0).ok_or(EINVAL)
}

/// Whether counts of a page may be changed.
fn may_change<'s>(kvm: &Kvm, page: Page<'s>) -> Result<Page<'s>> {
    owners::know(kvm)?;
    if page.slot().is_invalid() {
        return Err(EAGAIN);
    }
    Ok(page)
}

/// What is in a guest_memfd need not be mapped in the host: KVM could not emulate there.
fn refuse_guest_memfd(page: Page<'_>) -> Result {
    if page.slot().is_guest_memfd() {
        return Err(eopnotsupp());
    }
    Ok(())
}
