// SPDX-License-Identifier: GPL-2.0-only

//! Upstream's functions. Where KVM has them, ours replace them ([`crate::mmu_hooks`]); where it has none,
//! ours are exported under the same names.
//!
//! C source: `arch/x86/kvm/mmu/page_track.c`.

use super::{check, errno, WRITE};
use crate::base::{bindings, guard};
use crate::kvm::{Gfn, Kvm, Node, RawNode};
use crate::{notifier, tracker};
use core::ptr::NonNull;
use kernel::ffi::c_int;
use kernel::prelude::*;

/// `kvm_write_track_add_gfn()`: upstream's name of `kvm_page_track_add_page()`. What may sleep in it
/// takes the guard itself.
///
/// # Safety
///
/// `kvm` is NULL or a VM that the caller keeps alive.
pub(crate) unsafe extern "C" fn write_track_add_gfn(kvm: *mut bindings::kvm, gfn: Gfn) -> c_int {
    let _guard = guard::enter_if_locks_sleep();
    // SAFETY: The caller's promise.
    errno(unsafe { check(kvm, WRITE) }.and_then(|kvm| tracker::upstream::add(kvm, gfn)))
}

/// `kvm_write_track_remove_gfn()`: upstream's name of `kvm_page_track_remove_page()`.
///
/// # Safety
///
/// As [`write_track_add_gfn`].
pub(crate) unsafe extern "C" fn write_track_remove_gfn(kvm: *mut bindings::kvm, gfn: Gfn) -> c_int {
    let _guard = guard::enter_if_locks_sleep();
    // SAFETY: The caller's promise.
    errno(unsafe { check(kvm, WRITE) }.and_then(|kvm| tracker::upstream::remove(kvm, gfn)))
}

/// `kvm_page_track_register_notifier()`.
///
/// # Safety
///
/// As [`write_track_add_gfn`]; `node` is NULL or a notifier that stays valid until it is unregistered.
pub(crate) unsafe extern "C" fn register_notifier(
    kvm: *mut bindings::kvm,
    node: *mut RawNode,
) -> c_int {
    let _guard = guard::enter_if_locks_sleep();
    errno((|| {
        let kvm = NonNull::new(kvm).ok_or(ESRCH)?;
        // SAFETY: The caller's promise.
        let kvm = unsafe { Kvm::from_ptr(kvm) };
        notifier::check_process(kvm)?;
        let node = NonNull::new(node).ok_or(EINVAL)?;
        // SAFETY: The caller's promise.
        notifier::register(kvm, unsafe { Node::from_ptr(node) })
    })())
}

/// `kvm_page_track_unregister_notifier()`.
///
/// # Safety
///
/// As [`register_notifier`].
pub(crate) unsafe extern "C" fn unregister_notifier(kvm: *mut bindings::kvm, node: *mut RawNode) {
    let _guard = guard::enter();
    if let (Some(kvm), Some(node)) = (NonNull::new(kvm), NonNull::new(node)) {
        // SAFETY: The caller's promise.
        let (kvm, node) = unsafe { (Kvm::from_ptr(kvm), Node::from_ptr(node)) };
        notifier::unregister(kvm, node);
    }
}

/// Upstream's functions under their own names.
#[cfg(not(CONFIG_KVM_EXTERNAL_WRITE_TRACKING = "y"))]
mod exported {
    use super::*;

    /// Upstream's function, under its own name.
    ///
    /// # Safety
    ///
    /// As [`write_track_add_gfn`].
    #[no_mangle]
    unsafe extern "C" fn kvm_write_track_add_gfn(kvm: *mut bindings::kvm, gfn: Gfn) -> c_int {
        // SAFETY: The caller's promise.
        unsafe { write_track_add_gfn(kvm, gfn) }
    }

    /// Upstream's function, under its own name.
    ///
    /// # Safety
    ///
    /// As [`write_track_remove_gfn`].
    #[no_mangle]
    unsafe extern "C" fn kvm_write_track_remove_gfn(kvm: *mut bindings::kvm, gfn: Gfn) -> c_int {
        // SAFETY: The caller's promise.
        unsafe { write_track_remove_gfn(kvm, gfn) }
    }

    /// Upstream's function, under its own name.
    ///
    /// # Safety
    ///
    /// As [`register_notifier`].
    #[no_mangle]
    unsafe extern "C" fn kvm_page_track_register_notifier(
        kvm: *mut bindings::kvm,
        node: *mut RawNode,
    ) -> c_int {
        // SAFETY: The caller's promise.
        unsafe { register_notifier(kvm, node) }
    }

    /// Upstream's function, under its own name.
    ///
    /// # Safety
    ///
    /// As [`unregister_notifier`].
    #[no_mangle]
    unsafe extern "C" fn kvm_page_track_unregister_notifier(
        kvm: *mut bindings::kvm,
        node: *mut RawNode,
    ) {
        // SAFETY: The caller's promise.
        unsafe { unregister_notifier(kvm, node) };
    }
}
