// SPDX-License-Identifier: GPL-2.0-only

//! What KVM keeps of tracking for other modules, where it can do that
//! (`CONFIG_KVM_EXTERNAL_WRITE_TRACKING`). C and Rust share it, so that they can take over from each
//! other. `external_without.rs` is for a KVM that cannot.
//!
//! C source: `arch/x86/kvm/mmu/page_track.c`, `kvm->arch.track_notifier_head`.

use super::listeners::{List, Node};
use super::vm::Vm;
use super::Kvm;
use crate::base::bindings;
use crate::base::once::{read_once, write_once};
use core::ptr::{addr_of, addr_of_mut, NonNull};
use kernel::prelude::*;

/// KVM's list of upstream's notifiers of a VM. C serves its nodes before insmod and after rmmod, and KVM
/// refuses to move memslots while it is not empty.
pub(super) fn notifiers(kvm: &Kvm) -> Option<&List<Node>> {
    // SAFETY: The head is part of the VM. What C and we link there are nodes that upstream's contract
    // keeps valid.
    Some(unsafe {
        List::from_ptr(addr_of_mut!(
            (*kvm.as_ptr()).arch.track_notifier_head.track_notifier_list
        ))
    })
}

/// The SRCU structure in whose sections the lists of a VM are read: C's own. So C waits for our
/// sections when it unregisters, and we for C's.
pub(super) fn srcu(kvm: &Kvm) -> Option<NonNull<bindings::srcu_struct>> {
    // SAFETY: Part of the VM; only the address is taken.
    NonNull::new(unsafe { addr_of_mut!((*kvm.as_ptr()).arch.track_notifier_head.track_srcu) })
}

/// Makes what registration needs: nothing, KVM has it.
///
/// # Errors
///
/// None; `external_without.rs` has one.
pub(super) fn make_ready(_vm: &Vm) -> Result {
    Ok(())
}

/// Whether C's tracker has been enabled for other modules in this VM: they may have been there before
/// us.
pub(crate) fn enabled_by_c(kvm: &Kvm) -> bool {
    // SAFETY: By the invariant of `Kvm`. An acquire, as in C.
    unsafe {
        read_once(addr_of!(
            (*kvm.as_ptr()).arch.external_write_tracking_enabled
        ))
    }
}

/// Hands a VM with live notifiers over to C: C must consult the counters from now on. Sleeps.
///
/// # Errors
///
/// `ENOMEM`.
pub(crate) fn hand_over(kvm: &Kvm) -> Result {
    let section = kvm.read_slots();
    let locked = section.slots().lock_arch();
    section
        .slots()
        .for_each(|slot| locked.alloc_counters(slot))?;
    // SAFETY: By the invariant of `Kvm`. C writes the flag under `slots_arch_lock` only, when every memslot
    // has counters. The store is a release.
    unsafe {
        write_once(
            addr_of_mut!((*kvm.as_ptr()).arch.external_write_tracking_enabled),
            true,
        );
    }
    Ok(())
}

/// What C's `kvm_page_track_cleanup()` does when a VM is destroyed.
///
/// # Safety
///
/// The VM is being destroyed and its list is not used again.
pub(crate) unsafe fn cleanup(kvm: &Kvm) {
    if let Some(srcu) = srcu(kvm) {
        // SAFETY: The caller's promise.
        unsafe { bindings::cleanup_srcu_struct(srcu.as_ptr()) };
    }
}
