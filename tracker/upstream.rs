// SPDX-License-Identifier: GPL-2.0-only

//! Adding and removing pages by upstream's names, by which C never says "try again".
//!
//! C source: `kvm_write_track_add_gfn()` and `kvm_write_track_remove_gfn()` in
//! `arch/x86/kvm/mmu/page_track.c`.

use super::{add_first, add_locked, add_or, refuse_guest_memfd, remove_locked, remove_or};
use crate::base::guard;
use crate::kvm::{vm, Gfn, Kvm, Page, SlotsArchLocked};
use crate::memslot::owners;
use kernel::prelude::*;

/// [`super::add`] by upstream's name. Sleeps.
///
/// # Errors
///
/// As [`super::add`]; `EAGAIN` only if the VM has no notifier of upstream's, or in a `track_move_region`
/// callback.
pub(crate) fn add(kvm: &Kvm, gfn: Gfn) -> Result {
    add_or(kvm, gfn, |refusal| match refusal {
        Some(e) if e != EAGAIN => Err(e),
        _ => add_slow(kvm, gfn),
    })
}

/// The same where something has to be made, or the memslot is INVALID. One guard for all of it.
#[cold]
fn add_slow(kvm: &Kvm, gfn: Gfn) -> Result {
    let _guard = guard::enter();
    match add_first(kvm, gfn) {
        Err(e) if e == EAGAIN && kvm.has_notifiers() => {
            // Before `slots_arch_lock`: see `vm.rs` for the order.
            vm::find_or_create(kvm)?;
            while_invalid(kvm, gfn, |locked, page| {
                refuse_guest_memfd(page)?;
                locked.alloc_counters(page.slot())?;
                let mmu = kvm.lock_mmu();
                add_locked(locked.slots(), &mmu, page, || mmu.flush_tlbs())
            })
        }
        result => result,
    }
}

/// [`super::remove`] by upstream's name. Sleeps.
///
/// # Errors
///
/// As [`super::remove`]; `EAGAIN` as in [`add`].
pub(crate) fn remove(kvm: &Kvm, gfn: Gfn) -> Result {
    remove_or(kvm, gfn, |e| {
        if e != EAGAIN {
            return Err(e);
        }
        while_invalid(kvm, gfn, |_, page| {
            let mmu = kvm.lock_mmu();
            remove_locked(&mmu, page)
        })
    })
}

/// Changes a count in a memslot that may be INVALID: about to be moved, or deleted.
///
/// While the VM has a notifier of upstream's KVM refuses every move, and the memslot is back with the
/// counts that the INVALID copy has got; with a deletion they go, here as in C. KVM decides on the move
/// with `slots_arch_lock` held. So if the memslot is found INVALID under that lock, the decision is still to
/// come.
#[cold]
fn while_invalid(
    kvm: &Kvm,
    gfn: Gfn,
    change: impl FnOnce(&SlotsArchLocked<'_>, Page<'_>) -> Result,
) -> Result {
    // In a `track_move_region` callback this very task holds `slots_arch_lock`.
    if !kvm.has_notifiers() || vm::find(kvm).is_some_and(|vm| vm.is_in_move_callback()) {
        return Err(EAGAIN);
    }
    let _guard = guard::enter();
    let section = kvm.read_slots();
    let locked = section.slots().lock_arch();
    if !kvm.has_notifiers() {
        return Err(EAGAIN);
    }
    let page = locked.find_page(0, gfn).ok_or(EINVAL)?;
    owners::know(kvm)?;
    change(&locked, page)
}
