// SPDX-License-Identifier: GPL-2.0-only

//! The functions of `kvm.ko` that the module calls although they are not exported.
//!
//! They are called directly, through the static calls of `kvm.c`: an indirect call would be a
//! fatal #CP on CPUs with IBT.

use crate::base::bindings::{self, kpt_kvm_function};
use crate::base::symbol::{resolve, Symbol};
use kernel::prelude::*;

const FUNCTIONS: [(Symbol, kpt_kvm_function); 6] = [
    (
        Symbol::new(c"kvm:kvm_flush_remote_tlbs"),
        bindings::kpt_kvm_function_KPT_KVM_FLUSH_REMOTE_TLBS,
    ),
    (
        Symbol::new(c"kvm:kvm_mmu_gfn_allow_lpage"),
        bindings::kpt_kvm_function_KPT_KVM_MMU_GFN_ALLOW_LPAGE,
    ),
    (
        Symbol::new(c"kvm:kvm_mmu_gfn_disallow_lpage"),
        bindings::kpt_kvm_function_KPT_KVM_MMU_GFN_DISALLOW_LPAGE,
    ),
    (
        Symbol::new(c"kvm:kvm_mmu_slot_gfn_write_protect"),
        bindings::kpt_kvm_function_KPT_KVM_MMU_SLOT_GFN_WRITE_PROTECT,
    ),
    (
        Symbol::new(c"kvm:kvm_page_track_write_tracking_enabled"),
        bindings::kpt_kvm_function_KPT_KVM_PAGE_TRACK_WRITE_TRACKING_ENABLED,
    ),
    (
        Symbol::new(c"kvm:kvm_tdp_mmu_write_protect_gfn"),
        bindings::kpt_kvm_function_KPT_KVM_TDP_MMU_WRITE_PROTECT_GFN,
    ),
];

/// Finds the functions and aims the static calls at them. Sleeps.
///
/// To be done before the first hook is attached: until then the static calls do nothing.
///
/// # Errors
///
/// As [`resolve`].
pub(crate) fn connect() -> Result {
    const _: () = assert!(
        FUNCTIONS.len() == bindings::kpt_kvm_function_KPT_KVM_FUNCTIONS as usize,
        "every function of the C enumeration has a name"
    );
    let addresses = resolve(&FUNCTIONS.map(|(symbol, _)| symbol))?;
    for ((_, which), &address) in FUNCTIONS.iter().zip(&addresses) {
        // SAFETY: The address is that of the function named, whose prototype kvm.c repeats; the
        // module links against kvm.ko, so that text stays as long as ours.
        unsafe { bindings::kpt_set_kvm_function(*which, address) };
    }
    Ok(())
}
