// SPDX-License-Identifier: GPL-2.0-only

//! The provider of external tracking, where `kvm.ko` is none (no
//! `CONFIG_KVM_EXTERNAL_WRITE_TRACKING`): all of it is ours. Upstream's functions are exported from
//! here, notifiers are in the module's state of a VM, and what KVM tells nobody is seen where it
//! happens, by running before three of its functions. `kvm_with_tracking.rs` is the other provider.
//!
//! C source: what `arch/x86/kvm/mmu/page_track.{c,h}` leave of themselves without the option;
//! `kvm_mmu_track_write()` and `kvm_mmu_uninit_vm()` of `mmu.c`, `kvm_arch_commit_memory_region()` of
//! `x86.c`.

use crate::kvm::{Gfn, Gpa, Kvm, Memslot, MmuWrite, Section};
use crate::mmu_hooks::{self, hooks};
use crate::notifier_list::{First, Node, Nodes, NotifierList};
use crate::{abi, bindings, vm};
use kernel::ffi::{c_int, c_ulong};
use kernel::prelude::*;

pub(crate) use bindings::kpt_notifier_node as RawNode;

/// What the kernel log says at attach and detach.
pub(crate) const OBSERVED: &str = " and 3 observed";
pub(crate) const ATTACHED: &str = "external write tracking provided";
pub(crate) const DETACHED: &str = "nothing is tracked for other modules any more";

/// Stubs of `kvm_without_tracking_stubs.S`. They call the functions of `kvm_without_tracking_edge.c`, and
/// these the ones below.
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

/// Upstream's function, under its own name.
///
/// # Safety
///
/// As [`abi::write_track_add_gfn`].
#[no_mangle]
unsafe extern "C" fn kvm_write_track_add_gfn(kvm: *mut bindings::kvm, gfn: Gfn) -> c_int {
    // SAFETY: The caller's promise.
    unsafe { abi::write_track_add_gfn(kvm, gfn) }
}

/// Upstream's function, under its own name.
///
/// # Safety
///
/// As [`abi::write_track_remove_gfn`].
#[no_mangle]
unsafe extern "C" fn kvm_write_track_remove_gfn(kvm: *mut bindings::kvm, gfn: Gfn) -> c_int {
    // SAFETY: The caller's promise.
    unsafe { abi::write_track_remove_gfn(kvm, gfn) }
}

/// Upstream's function, under its own name.
///
/// # Safety
///
/// As [`abi::register_notifier`].
#[no_mangle]
unsafe extern "C" fn kvm_page_track_register_notifier(
    kvm: *mut bindings::kvm,
    node: *mut RawNode,
) -> c_int {
    // SAFETY: The caller's promise.
    unsafe { abi::register_notifier(kvm, node) }
}

/// Upstream's function, under its own name.
///
/// # Safety
///
/// As [`abi::unregister_notifier`].
#[no_mangle]
unsafe extern "C" fn kvm_page_track_unregister_notifier(
    kvm: *mut bindings::kvm,
    node: *mut RawNode,
) {
    // SAFETY: The caller's promise.
    unsafe { abi::unregister_notifier(kvm, node) };
}

/// How many of the hooks stay until nobody is called by us any more: who tells of VMs that die.
pub(crate) const UNTIL_DRAINED: usize = 1;

/// Whether C has functions that call notifiers.
pub(crate) const C_HAS_NOTIFIERS: bool = false;

/// Where the list of notifiers is: in the module's state of a VM.
pub(crate) type Place = NotifierList<Node>;

/// The list of a VM.
#[derive(Clone, Copy)]
pub(crate) struct Notifiers<'k> {
    kvm: &'k Kvm,
    /// Nothing if the module knows nothing of the VM.
    list: Option<&'k NotifierList<Node>>,
}

impl<'k> Notifiers<'k> {
    /// The list of a VM.
    #[inline(always)]
    pub(crate) fn of(kvm: &'k Kvm) -> Self {
        Self {
            kvm,
            list: vm::find(kvm).map(|vm| &vm.notifiers),
        }
    }

    /// Whether there is a notifier. A hint: nothing keeps it.
    #[inline(always)]
    pub(crate) fn any(self) -> bool {
        self.list.is_some_and(|list| !list.first().is_none())
    }

    /// Whether a notifier is in the list of the VM that is locked.
    pub(crate) fn contains(mmu: &MmuWrite<'k>, node: &Node) -> bool {
        Self::of(mmu.kvm())
            .list
            // SAFETY: The lock is that of the VM.
            .is_some_and(|list| unsafe { list.head().contains(node, mmu) })
    }

    /// Adds a notifier to the list of the VM that is locked. The module knows the VM.
    ///
    /// # Safety
    ///
    /// The notifier is in no list.
    #[inline(always)]
    pub(crate) unsafe fn insert(mmu: &MmuWrite<'k>, node: &Node) {
        if let Some(list) = Self::of(mmu.kvm()).list {
            // SAFETY: The lock is that of the VM, and an entry does not move; the rest is the caller's
            // promise.
            unsafe { list.insert(node, mmu) };
        }
    }

    /// Takes a notifier out of the list of the VM that is locked. False if it is not there.
    pub(crate) fn remove(mmu: &MmuWrite<'k>, node: &Node) -> bool {
        Self::of(mmu.kvm())
            .list
            // SAFETY: The lock is that of the VM.
            .is_some_and(|list| unsafe { list.remove(node, mmu) })
    }

    /// Waits for who may still call a notifier that was taken out. Sleeps.
    pub(crate) fn synchronize(self) {
        self.kvm.synchronize();
    }
}

/// The notifiers of a VM, to be called. Always something here.
#[inline(always)]
pub(crate) fn notifiers_in(section: Section<'_>) -> Option<Nodes<'_, Node>> {
    Some(CSection::enter(section).notifiers())
}

/// What is a read section of C's in the other provider: nothing.
pub(crate) struct CSection<'a>(Section<'a>);

impl<'a> CSection<'a> {
    /// Enters it.
    #[inline(always)]
    pub(crate) fn enter(section: Section<'a>) -> Self {
        Self(section)
    }

    /// The notifiers of the VM, to be called.
    #[inline(always)]
    pub(crate) fn notifiers(&self) -> Nodes<'a, Node> {
        let list = Notifiers::of(self.0.kvm()).list;
        let first = list.map_or(First::none(), NotifierList::first);
        // SAFETY: Read in the section just now, which `Notifiers::synchronize` waits for (design,
        // section 5, rule 3).
        unsafe { Nodes::new(first) }
    }
}

/// Whether C's tracker has been enabled for external users of this VM: there is none.
#[inline(always)]
pub(crate) fn enabled_by_c(_kvm: &Kvm) -> bool {
    false
}

/// There is nobody to hand a VM over to: its notifiers are told nothing any more.
pub(crate) fn hand_over(_kvm: &Kvm) -> Result {
    Ok(())
}

/// Nothing of KVM's is to be cleaned up when a VM is destroyed.
///
/// # Safety
///
/// None needed; the other provider has some.
pub(crate) unsafe fn cleanup(_kvm: &Kvm) {}
