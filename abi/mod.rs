// SPDX-License-Identifier: GPL-2.0-only

//! Functions for other modules: what `include/kvm_page_track.h` declares and `exports.c` exports.
//!
//! They check pointers and the mode, make views of them, and turn errors into numbers. Nothing else
//! belongs here.

pub(crate) mod upstream;

use crate::base::bindings;
use crate::kvm::{Client, Gfn, Kvm, Memslot};
use crate::tracker::{self, range};
use crate::{memslot, notifier};
use core::ptr::NonNull;
use kernel::error::from_result;
use kernel::ffi::{c_int, c_uint, c_ulong};
use kernel::prelude::*;

/// `KVM_PAGE_TRACK_WRITE`.
const WRITE: c_uint = bindings::kvm_page_track_mode_KVM_PAGE_TRACK_WRITE;

const _: () = assert!(bindings::KVM_PAGE_TRACK_MAX_USERS == memslot::owners::MAX_USERS as c_uint);

/// Checks the two arguments that most functions share.
///
/// # Safety
///
/// `kvm` is NULL or a VM that is kept alive as long as `'a`.
unsafe fn check<'a>(kvm: *mut bindings::kvm, mode: c_uint) -> Result<&'a Kvm> {
    match NonNull::new(kvm) {
        // SAFETY: The caller's promise.
        Some(kvm) if mode == WRITE => Ok(unsafe { Kvm::from_ptr(kvm) }),
        _ => Err(EINVAL),
    }
}

/// What C is told of a result. ([`from_result`] is a function call, which these paths count.)
pub(crate) fn errno(result: Result) -> c_int {
    match result {
        Ok(()) => 0,
        Err(e) => e.to_errno(),
    }
}

/// See the C header.
///
/// # Safety
///
/// `kvm` is NULL or a VM that the caller keeps alive.
#[no_mangle]
unsafe extern "C" fn kvm_page_track_add_page(
    kvm: *mut bindings::kvm,
    gfn: Gfn,
    mode: c_uint,
) -> c_int {
    // SAFETY: The caller's promise.
    errno(unsafe { check(kvm, mode) }.and_then(|kvm| tracker::add(kvm, gfn)))
}

/// See the C header.
///
/// # Safety
///
/// As [`kvm_page_track_add_page`].
#[no_mangle]
unsafe extern "C" fn kvm_page_track_remove_page(
    kvm: *mut bindings::kvm,
    gfn: Gfn,
    mode: c_uint,
) -> c_int {
    // SAFETY: The caller's promise.
    errno(unsafe { check(kvm, mode) }.and_then(|kvm| tracker::remove(kvm, gfn)))
}

/// See the C header.
///
/// # Safety
///
/// As [`kvm_page_track_add_page`].
#[no_mangle]
unsafe extern "C" fn kvm_page_track_add_range(
    kvm: *mut bindings::kvm,
    gfn: Gfn,
    nr: c_ulong,
    mode: c_uint,
) -> c_int {
    from_result(|| {
        // SAFETY: The caller's promise.
        let kvm = unsafe { check(kvm, mode) }?;
        range::add(kvm, gfn, nr as u64).map(|()| 0)
    })
}

/// See the C header.
///
/// # Safety
///
/// As [`kvm_page_track_add_page`].
#[no_mangle]
unsafe extern "C" fn kvm_page_track_remove_range(
    kvm: *mut bindings::kvm,
    gfn: Gfn,
    nr: c_ulong,
    mode: c_uint,
) -> c_int {
    from_result(|| {
        // SAFETY: The caller's promise.
        let kvm = unsafe { check(kvm, mode) }?;
        range::remove(kvm, gfn, nr as u64).map(|()| 0)
    })
}

/// See the C header.
///
/// # Safety
///
/// As [`kvm_page_track_add_page`].
#[no_mangle]
unsafe extern "C" fn kvm_page_track_prepare(
    kvm: *mut bindings::kvm,
    gfn: Gfn,
    nr: c_ulong,
) -> c_int {
    from_result(|| {
        // SAFETY: The caller's promise.
        let kvm = unsafe { check(kvm, WRITE) }?;
        tracker::prepare(kvm, gfn, nr as u64).map(|()| 0)
    })
}

/// See the C header.
///
/// # Safety
///
/// As [`kvm_page_track_add_page`]; `mmu_lock` is held for write, in a `kvm->srcu` read section in
/// which `slot` (or NULL) was looked up.
#[no_mangle]
unsafe extern "C" fn kvm_slot_page_track_add_page(
    kvm: *mut bindings::kvm,
    slot: *mut bindings::kvm_memory_slot,
    gfn: Gfn,
    mode: c_uint,
) -> c_int {
    from_result(|| {
        let slot = NonNull::new(slot).ok_or(EINVAL)?;
        // SAFETY: The caller's promise.
        let (kvm, slot) = unsafe { (check(kvm, mode)?, Memslot::from_ptr(slot)) };
        // SAFETY: The caller's promise.
        let (slots, mmu) = unsafe { (kvm.assume_slots(), kvm.assume_mmu_locked()) };
        tracker::add_to_slot(slots, &mmu, slot, gfn).map(|()| 0)
    })
}

/// See the C header.
///
/// # Safety
///
/// As [`kvm_slot_page_track_add_page`].
#[no_mangle]
unsafe extern "C" fn kvm_slot_page_track_remove_page(
    kvm: *mut bindings::kvm,
    slot: *mut bindings::kvm_memory_slot,
    gfn: Gfn,
    mode: c_uint,
) -> c_int {
    from_result(|| {
        let slot = NonNull::new(slot).ok_or(EINVAL)?;
        // SAFETY: The caller's promise.
        let (kvm, slot) = unsafe { (check(kvm, mode)?, Memslot::from_ptr(slot)) };
        // SAFETY: The caller's promise.
        let mmu = unsafe { kvm.assume_mmu_locked() };
        tracker::remove_from_slot(kvm, &mmu, slot, gfn).map(|()| 0)
    })
}

/// See the C header.
///
/// # Safety
///
/// As [`kvm_page_track_add_page`]; `client` is NULL or stays valid until it is unregistered.
#[no_mangle]
unsafe extern "C" fn kvm_page_track_register_client(
    kvm: *mut bindings::kvm,
    client: *mut bindings::kvm_page_track_client,
) -> c_int {
    from_result(|| {
        // SAFETY: The caller's promise.
        let kvm = unsafe { check(kvm, WRITE) }?;
        notifier::check_process(kvm)?;
        let client = NonNull::new(client).ok_or(EINVAL)?;
        // SAFETY: The caller's promise.
        notifier::register_client(kvm, unsafe { Client::from_ptr(client) }).map(|()| 0)
    })
}

/// See the C header.
///
/// # Safety
///
/// As [`kvm_page_track_register_client`].
#[no_mangle]
unsafe extern "C" fn kvm_page_track_unregister_client(
    kvm: *mut bindings::kvm,
    client: *mut bindings::kvm_page_track_client,
) {
    if let (Some(kvm), Some(client)) = (NonNull::new(kvm), NonNull::new(client)) {
        // SAFETY: The caller's promise.
        let (kvm, client) = unsafe { (Kvm::from_ptr(kvm), Client::from_ptr(client)) };
        notifier::unregister_client(kvm, client);
    }
}

#[kernel::macros::kunit_tests(kvm_page_track_abi)]
#[allow(unsafe_op_in_unsafe_fn)]
mod tests {
    use super::*;
    use crate::kvm::unit::with_blank_vm;
    use core::ptr::null_mut;

    #[test]
    fn bad_arguments_have_their_errno() {
        let einval = EINVAL.to_errno();
        with_blank_vm(|kvm, _| {
            let vm = kvm.as_ptr();
            // SAFETY: A VM that is blank, and of no process, and NULL pointers are what these calls must
            // refuse before they look at anything else.
            unsafe {
                assert_eq!(kvm_page_track_add_page(null_mut(), 0, WRITE), einval);
                assert_eq!(kvm_page_track_remove_page(null_mut(), 0, WRITE), einval);
                assert_eq!(kvm_page_track_prepare(null_mut(), 0, 1), einval);
                for mode in [WRITE + 1, 100, c_uint::MAX] {
                    assert_eq!(kvm_page_track_add_page(vm, 0, mode), einval);
                    assert_eq!(kvm_page_track_remove_page(vm, 0, mode), einval);
                    assert_eq!(kvm_page_track_add_range(vm, 0, 1, mode), einval);
                    assert_eq!(kvm_page_track_remove_range(vm, 0, 1, mode), einval);
                }
                let no_slot = null_mut();
                assert_eq!(kvm_slot_page_track_add_page(vm, no_slot, 0, WRITE), einval);
                assert_eq!(
                    kvm_slot_page_track_remove_page(vm, no_slot, 0, WRITE),
                    einval
                );
                let esrch = ESRCH.to_errno();
                assert_eq!(kvm_page_track_register_client(vm, null_mut()), esrch);
                assert_eq!(
                    kvm_page_track_register_client(null_mut(), null_mut()),
                    einval
                );
                kvm_page_track_unregister_client(null_mut(), null_mut());
            }
        });
    }
}
