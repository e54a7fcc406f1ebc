// SPDX-License-Identifier: GPL-2.0-only

//! The way from KVM's events to clients, closed until there has been one.
//!
//! What happens in a VM without upstream's notifiers is of interest to clients only, and mostly there
//! is none in any VM. So what leads to them are static calls that return at once, without a look at
//! anything, until a client is registered for the first time.
//!
//! C source: `include/linux/static_call.h`.

use crate::base::bindings;
use crate::base::once::load;
use crate::kvm::listeners::Written;
use crate::kvm::{Gpa, Kvm, Memslot};
use crate::notifier;
use kernel::ffi::c_int;
use kernel::sync::atomic::{Atomic, Relaxed};

/// Number of clients of all VMs.
static CLIENTS: Atomic<usize> = Atomic::new(0);

/// Whether any VM has a client: a cheap first question of the event path.
#[inline(always)]
pub(crate) fn any() -> bool {
    load(&CLIENTS) != 0
}

/// Opens the way, for good, before a client is registered. Sleeps, and takes `cpus_read_lock()`.
///
/// When it returns every processor has been interrupted since the way was opened: who did not find it
/// open had made his write visible before, and before whatever the client adds.
pub(crate) fn open() {
    // What `static_call_update()` is; here, so that objtool finds the keys of the calls below in this
    // object as well.
    // SAFETY: The functions are of the types that helpers.h declares the static calls with, and are ours,
    // like the calls. Process context without spinlocks.
    unsafe {
        bindings::__static_call_update(
            &raw mut bindings::__SCK__kpt_written,
            bindings::__SCT__kpt_written as *mut _,
            kpt_write_to_clients as *mut _,
        );
        bindings::__static_call_update(
            &raw mut bindings::__SCK__kpt_deleted,
            bindings::__SCT__kpt_deleted as *mut _,
            kpt_deletion_to_clients as *mut _,
        );
    }
}

/// Counts a client that was registered.
pub(crate) fn count() {
    CLIENTS.add(1, Relaxed);
}

/// Counts a client that was unregistered.
pub(crate) fn uncount() {
    CLIENTS.fetch_sub(1, Relaxed);
}

/// A guest write was emulated in a VM in which no notifier of upstream's was seen.
///
/// # Safety
///
/// As [`crate::mmu_hooks::write`].
#[inline(always)]
pub(crate) unsafe fn written(kvm: &Kvm, gpa: Gpa, new: *const u8, bytes: c_int) {
    // SAFETY: Returns at once, or leads to `kpt_write_to_clients`, whose contract is the caller's promise.
    unsafe { bindings::__SCT__kpt_written(kvm.as_ptr(), gpa, new, bytes) };
}

/// A memslot was deleted in such a VM.
#[inline(always)]
pub(crate) fn deleted(kvm: &Kvm, slot: &Memslot) {
    // SAFETY: Returns at once, or leads to `kpt_deletion_to_clients`, for which these are valid.
    unsafe { bindings::__SCT__kpt_deleted(kvm.as_ptr(), slot.as_ptr()) };
}

/// Where [`written`] leads when it is open.
///
/// # Safety
///
/// As [`crate::mmu_hooks::write`].
#[no_mangle]
unsafe extern "C" fn kpt_write_to_clients(kvm: &Kvm, gpa: Gpa, new: *const u8, bytes: c_int) {
    if any() {
        // SAFETY: The caller is a vCPU's task in a `kvm->srcu` read section; `new` holds the bytes written
        // during the call.
        let (vcpu, written) = unsafe { (kvm.assume_vcpu_section(), Written::new(new, bytes)) };
        notifier::write_emulated(vcpu, gpa, written);
    }
}

/// Where [`deleted`] leads when it is open.
#[no_mangle]
extern "C" fn kpt_deletion_to_clients(kvm: &Kvm, slot: &Memslot) {
    if any() {
        notifier::region_removed(kvm, slot);
    }
}
