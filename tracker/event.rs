// SPDX-License-Identifier: GPL-2.0-only

//! What KVM tells us of: a guest write that it has emulated, a memslot that is gone.
//!
//! C source: `__kvm_page_track_write()` and `kvm_page_track_delete_slot()` in
//! `arch/x86/kvm/mmu/page_track.c`.

use crate::base::guard;
use crate::base::once::smp_mb;
use crate::kvm::{gpa_to_gfn, Gpa, Kvm, Memslot, VcpuSection, Written};
use crate::{memslot, notifier};

/// A guest write was emulated (`__kvm_page_track_write()`).
///
/// Only writes to pages that somebody outside KVM has added are told: C tells every notifier of
/// every emulated write. Sleeps if a callback does.
#[inline(always)] // the event path
pub(crate) fn written(vcpu: VcpuSection<'_>, gpa: Gpa, written: Written) {
    // First the guest's write, then the look at who listens and at the count. `tracker::add_locked` does the
    // reverse: first the count, then what its caller reads of the page. So either the event is told, or
    // the caller reads what was written. KVM has the same pair in kvm_mmu_track_write() and
    // account_shadowed().
    smp_mb();
    if notifier::anybody(vcpu.kvm()) {
        written_with_listeners(vcpu, gpa, written);
    }
}

/// The same in a VM in which somebody may listen.
fn written_with_listeners(vcpu: VcpuSection<'_>, gpa: Gpa, written: Written) {
    // The look at who owns a count may take a lock.
    let _guard = guard::enter_if_locks_sleep();
    if memslot::has_external(vcpu, gpa_to_gfn(gpa)) {
        notifier::tell_written(vcpu.kvm(), gpa, written);
    }
}

/// A memslot was deleted and is about to be freed (`kvm_page_track_delete_slot()`). Called with
/// `slots_lock` held; sleeps if a callback does.
pub(crate) fn memslot_deleted(kvm: &Kvm, slot: &Memslot) {
    if notifier::anybody(kvm) {
        notifier::tell_removed(kvm, slot);
    }
}
