// SPDX-License-Identifier: GPL-2.0-only

//! The hooks where `kvm.ko` does not track for other modules (no `CONFIG_KVM_EXTERNAL_WRITE_TRACKING`).
//! What KVM tells nobody there is seen where it happens, by running before three of its functions.
//! `with_tracking.rs` has the hooks for the other kernels.
//!
//! C source: what `arch/x86/kvm/mmu/page_track.{c,h}` leave of themselves without the option;
//! `kvm_mmu_track_write()` and `kvm_mmu_uninit_vm()` of `mmu.c`, `kvm_arch_commit_memory_region()` of
//! `x86.c`.

use super::hooks;
use crate::kvm::{Gfn, Gpa, Kvm, Memslot};
use crate::mmu_hooks;
use kernel::ffi::{c_int, c_ulong};
use kernel::prelude::*;

/// What the kernel log says at attach and detach.
pub(crate) const OBSERVED: &str = " and 3 observed";
pub(crate) const ATTACHED: &str = "external write tracking provided";
pub(crate) const DETACHED: &str = "nothing is tracked for other modules any more";

/// Stubs of `without_tracking_stubs.S`. They call the functions of `without_tracking.c`, and these the ones
/// below.
mod stubs {
    extern "C" {
        pub(super) fn kpt_stub_uninit_vm();
        pub(super) fn kpt_stub_track_write();
        pub(super) fn kpt_stub_commit_memory_region();
    }
}

hooks! {
    before kvm_mmu_uninit_vm: stubs::kpt_stub_uninit_vm as unsafe extern "C" fn();
    replace kvm_gfn_is_write_tracked: mmu_hooks::gfn_is_write_tracked
        as unsafe extern "C" fn(&Kvm, Option<&Memslot>, Gfn) -> bool;
    before kvm_mmu_track_write: stubs::kpt_stub_track_write as unsafe extern "C" fn();
    before kvm_arch_commit_memory_region: stubs::kpt_stub_commit_memory_region
        as unsafe extern "C" fn();
    replace kvm_page_track_create_memslot: mmu_hooks::create_memslot
        as unsafe extern "C" fn(&Kvm, &Memslot, c_ulong) -> c_int;
    replace __kvm_write_track_add_gfn: mmu_hooks::add_gfn_locked
        as unsafe extern "C" fn(&Kvm, &Memslot, Gfn);
    replace __kvm_write_track_remove_gfn: mmu_hooks::remove_gfn_locked
        as unsafe extern "C" fn(&Kvm, &Memslot, Gfn);
}

/// A VM is being destroyed.
///
/// # Safety
///
/// As [`mmu_hooks::cleanup`].
#[no_mangle]
unsafe extern "C" fn kpt_vm_dies(kvm: &Kvm) {
    // SAFETY: The caller's promise.
    unsafe { mmu_hooks::cleanup(kvm) };
}

/// A guest write was emulated.
///
/// # Safety
///
/// As [`mmu_hooks::write`].
#[no_mangle]
unsafe extern "C" fn kpt_write_emulated(kvm: &Kvm, gpa: Gpa, new: *const u8, bytes: c_int) {
    // SAFETY: The caller's promise.
    unsafe { mmu_hooks::write(kvm, gpa, new, bytes) };
}

/// A memslot was deleted.
///
/// # Safety
///
/// As [`mmu_hooks::delete_slot`].
#[no_mangle]
unsafe extern "C" fn kpt_slot_deleted(kvm: &Kvm, slot: &Memslot) {
    // SAFETY: The caller's promise.
    unsafe { mmu_hooks::delete_slot(kvm, slot) };
}

/// Whether C has a function that adds pages for others.
pub(super) const C_ADDS_PAGES: bool = false;
