// SPDX-License-Identifier: GPL-2.0-only

//! The hooks where `kvm.ko` tracks for other modules (`CONFIG_KVM_EXTERNAL_WRITE_TRACKING`): its functions
//! are replaced. `without_tracking.rs` has the hooks for the other kernels.
//!
//! C source: `arch/x86/kvm/mmu/page_track.c`.

use super::hooks;
use crate::abi::upstream;
use crate::base::bindings;
use crate::kvm::{Gfn, Gpa, Kvm, Memslot, RawNode};
use crate::mmu_hooks;
use kernel::ffi::{c_int, c_ulong};
use kernel::prelude::*;

/// What the kernel log says at attach and detach.
pub(crate) const OBSERVED: &str = "";
pub(crate) const ATTACHED: &str = "external write tracking built in";
pub(crate) const DETACHED: &str = "the C tracker has taken over";

type KvmPtr = *mut bindings::kvm;

hooks! {
    replace kvm_page_track_cleanup: mmu_hooks::cleanup as unsafe extern "C" fn(&Kvm);
    replace kvm_page_track_unregister_notifier: upstream::unregister_notifier
        as unsafe extern "C" fn(KvmPtr, *mut RawNode);
    replace kvm_gfn_is_write_tracked: mmu_hooks::gfn_is_write_tracked
        as unsafe extern "C" fn(&Kvm, Option<&Memslot>, Gfn) -> bool;
    replace __kvm_page_track_write: mmu_hooks::write
        as unsafe extern "C" fn(&Kvm, Gpa, *const u8, c_int);
    replace kvm_page_track_delete_slot: mmu_hooks::delete_slot
        as unsafe extern "C" fn(&Kvm, &Memslot);
    replace kvm_page_track_create_memslot: mmu_hooks::create_memslot
        as unsafe extern "C" fn(&Kvm, &Memslot, c_ulong) -> c_int;
    replace __kvm_write_track_add_gfn: mmu_hooks::add_gfn_locked
        as unsafe extern "C" fn(&Kvm, &Memslot, Gfn);
    replace __kvm_write_track_remove_gfn: mmu_hooks::remove_gfn_locked
        as unsafe extern "C" fn(&Kvm, &Memslot, Gfn);
    replace kvm_write_track_add_gfn: upstream::write_track_add_gfn
        as unsafe extern "C" fn(KvmPtr, Gfn) -> c_int;
    replace kvm_write_track_remove_gfn: upstream::write_track_remove_gfn
        as unsafe extern "C" fn(KvmPtr, Gfn) -> c_int;
    replace kvm_page_track_register_notifier: upstream::register_notifier
        as unsafe extern "C" fn(KvmPtr, *mut RawNode) -> c_int;
}

/// Whether C has a function that adds pages for others.
pub(super) const C_ADDS_PAGES: bool = true;
