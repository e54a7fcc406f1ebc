// SPDX-License-Identifier: GPL-2.0-only

//! The provider of external tracking, where `kvm.ko` is one (`CONFIG_KVM_EXTERNAL_WRITE_TRACKING`):
//! its functions are replaced, its list of notifiers and its flag are used, so that C and Rust can
//! take over from each other. `kvm_without_tracking.rs` is the other provider.
//!
//! C source: `arch/x86/kvm/mmu/page_track.c`, `arch/x86/include/asm/kvm_page_track.h`.

use crate::abi;
use crate::base::bindings;
use crate::kvm::listeners::{Head, Node, Nodes};
use crate::kvm::{Gfn, Gpa, Kvm, Memslot, MmuWrite};
use crate::memslot;
use crate::mmu_hooks::{self, hooks};
use core::ptr::{addr_of, addr_of_mut, NonNull};
use kernel::ffi::{c_int, c_ulong};
use kernel::prelude::*;
use kernel::sync::atomic::{atomic_store, Release};

pub(crate) use bindings::kvm_page_track_notifier_node as RawNode;

/// What the kernel log says at attach and detach.
pub(crate) const OBSERVED: &str = "";
pub(crate) const ATTACHED: &str = "external write tracking built in";
pub(crate) const DETACHED: &str = "the C tracker has taken over";

type KvmPtr = *mut bindings::kvm;

hooks! {
    replace kvm_page_track_cleanup: mmu_hooks::cleanup as unsafe extern "C" fn(&Kvm);
    replace kvm_page_track_unregister_notifier: abi::unregister_notifier
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
    replace kvm_write_track_add_gfn: abi::write_track_add_gfn
        as unsafe extern "C" fn(KvmPtr, Gfn) -> c_int;
    replace kvm_write_track_remove_gfn: abi::write_track_remove_gfn
        as unsafe extern "C" fn(KvmPtr, Gfn) -> c_int;
    replace kvm_page_track_register_notifier: abi::register_notifier
        as unsafe extern "C" fn(KvmPtr, *mut RawNode) -> c_int;
}

/// How many of the hooks stay until nobody is called by us any more: who tells of VMs that die.
pub(crate) const UNTIL_DRAINED: usize = 1;

/// Whether C has a function that adds pages for others.
pub(crate) const C_ADDS_PAGES: bool = true;

/// What the provider keeps in the module's state of a VM: nothing, KVM has it.
pub(crate) struct PerVm;

impl PerVm {
    /// Nothing.
    pub(crate) const fn new() -> Self {
        Self
    }

    /// Whether a notifier can be registered.
    pub(crate) fn is_ready(&self) -> bool {
        true
    }

    /// Nothing is missing.
    ///
    /// # Errors
    ///
    /// None; the other provider has one.
    pub(crate) fn make_ready(&self) -> Result {
        Ok(())
    }

    /// Nothing is there to be forgotten.
    ///
    /// # Safety
    ///
    /// None needed; the other provider has some.
    pub(crate) unsafe fn forget(&self) {}
}

/// The SRCU structure whose sections the lists of a VM are read in: C's own. So C waits for our
/// sections when it unregisters, and we for C's.
#[inline(always)]
pub(crate) fn list_srcu(kvm: &Kvm) -> Option<NonNull<bindings::srcu_struct>> {
    // SAFETY: Part of the VM; only the address is taken.
    NonNull::new(unsafe { addr_of_mut!((*kvm.as_ptr()).arch.track_notifier_head.track_srcu) })
}

/// KVM's own list of a VM (`kvm->arch.track_notifier_head`): C serves its nodes before insmod and
/// after rmmod, and KVM refuses to move memslots while it is not empty.
#[derive(Clone, Copy)]
pub(crate) struct Notifiers<'k> {
    kvm: &'k Kvm,
}

impl<'k> Notifiers<'k> {
    /// The list of a VM.
    #[inline(always)]
    pub(crate) fn of(kvm: &'k Kvm) -> Self {
        Self { kvm }
    }

    #[inline(always)]
    fn head(self) -> Head<'k> {
        // SAFETY: The head is part of the VM. What C and we link there are nodes that upstream's
        // contract keeps valid.
        unsafe {
            Head::new(addr_of_mut!(
                (*self.kvm.as_ptr())
                    .arch
                    .track_notifier_head
                    .track_notifier_list
            ))
        }
    }

    /// Whether there is a notifier. A hint: nothing keeps it.
    #[inline(always)]
    pub(crate) fn any(self) -> bool {
        !self.head().first().is_none()
    }

    /// Whether a notifier is in the list of the VM that is locked.
    pub(crate) fn contains(mmu: &MmuWrite<'k>, node: &Node) -> bool {
        // SAFETY: The lock is that of the VM.
        unsafe { Self::of(mmu.kvm()).head().contains(node, mmu) }
    }

    /// Adds a notifier to the list of the VM that is locked.
    ///
    /// # Safety
    ///
    /// The notifier is in no list.
    #[inline(always)]
    pub(crate) unsafe fn insert(mmu: &MmuWrite<'k>, node: &Node) {
        // SAFETY: The lock is that of the VM; the rest is the caller's promise and the invariant of
        // `Node`.
        unsafe { Self::of(mmu.kvm()).head().insert(node, mmu) }
    }

    /// Takes a notifier out of the list of the VM that is locked. False if it is not there.
    pub(crate) fn remove(mmu: &MmuWrite<'k>, node: &Node) -> bool {
        // SAFETY: The lock is that of the VM.
        unsafe { Self::of(mmu.kvm()).head().remove(node, mmu) }
    }

    /// The notifiers, to be called.
    ///
    /// # Safety
    ///
    /// The caller is in a read section of [`list_srcu`] as long as `'a`.
    #[inline(always)]
    pub(crate) unsafe fn nodes<'a>(self) -> Nodes<'a, Node> {
        // SAFETY: The caller's promise: whoever unregisters, C or we, waits for it (design, section 5,
        // rule 3).
        unsafe { Nodes::new(self.head().first()) }
    }
}

/// Whether C's tracker has been enabled for external users of this VM: they may have been there
/// before us.
#[inline(always)]
pub(crate) fn enabled_by_c(kvm: &Kvm) -> bool {
    // SAFETY: By the invariant of `Kvm`. C reads and writes the flag with acquire and release; on
    // x86, which keeps the order of loads, one load is an acquire.
    unsafe { addr_of!((*kvm.as_ptr()).arch.external_write_tracking_enabled).read_volatile() }
}

/// Hands a VM with live notifiers over to C: C must consult the counters from now on. Sleeps.
///
/// # Errors
///
/// `ENOMEM`.
pub(crate) fn hand_over(kvm: &Kvm) -> Result {
    memslot::give_counters_to_all(kvm, || {
        // SAFETY: By the invariant of `Kvm`. C writes the flag under `slots_arch_lock` only, which is
        // held in this closure, when every memslot has counters.
        unsafe {
            atomic_store(
                addr_of_mut!((*kvm.as_ptr()).arch.external_write_tracking_enabled),
                true,
                Release,
            );
        }
    })
}

/// What C's `kvm_page_track_cleanup()` does when a VM is destroyed.
///
/// # Safety
///
/// The VM is being destroyed and its list is not used again.
pub(crate) unsafe fn cleanup(kvm: &Kvm) {
    if let Some(srcu) = list_srcu(kvm) {
        // SAFETY: The caller's promise.
        unsafe { bindings::cleanup_srcu_struct(srcu.as_ptr()) };
    }
}
