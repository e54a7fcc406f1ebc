// SPDX-License-Identifier: GPL-2.0-only

//! A memslot is made, or made anew at another place: its counters come or move along.
//!
//! C source: `kvm_page_track_create_memslot()` in `arch/x86/kvm/mmu/page_track.c`.

use crate::base::guard;
use crate::base::kernel_api::cond_resched;
use crate::kvm::{external, vm, Gfn, Memslot, NewSlot};
use crate::memslot::BATCH;
use crate::notifier;
use kernel::prelude::*;

/// KVM creates a memslot or moves one (`kvm_page_track_create_memslot()`). Sleeps.
///
/// Called with `slots_lock` and `slots_arch_lock` held, before the memslot is visible.
///
/// # Errors
///
/// `EINVAL` if somebody cannot follow a move, `ENOMEM`. KVM makes `ENOMEM` of either.
pub(crate) fn created(new: NewSlot<'_>) -> Result {
    let _guard = guard::enter();
    // Where nobody has tracked for other modules there is nothing to carry over.
    if external::enabled_by_c(new.kvm()) || vm::find(new.kvm()).is_some() {
        if let Some(old) = new.moved_from() {
            return moved(new, old);
        }
    }
    if new.kvm().c_consults_counters() {
        new.alloc_counters()?;
    }
    Ok(())
}

fn moved(new: NewSlot<'_>, old: &Memslot) -> Result {
    carry_over(new, old)?;
    if new.kvm().c_consults_counters() {
        new.alloc_counters()?;
    }
    // Nothing fails from here on, in KVM neither.
    notifier::tell_moved(new.kvm(), old, new.slot());
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
    let (from, to) = (old.base_gfn(), new.slot().base_gfn());
    let mut done = 0;
    for i in 0..old.npages() {
        let count = counters.get(from + i);
        done += 1 + u64::from(count);
        if done >= BATCH {
            done = 0;
            cond_resched();
        }
        if count != 0 {
            new.disallow_large_page(to + i, count);
            protect_other_space(new, to + i);
        }
    }
    new.take_counters();
    Ok(())
}

/// A page is about to be tracked at a new place, where address space 1 may have it mapped writable.
fn protect_other_space(new: NewSlot<'_>, gfn: Gfn) {
    if !new.slots().may_have(1) {
        return;
    }
    if let Some(page) = new.slots().find_page(1, gfn) {
        let mmu = new.kvm().lock_mmu();
        if mmu.write_protect(page) {
            mmu.flush_tlbs();
        }
    }
}
