// SPDX-License-Identifier: GPL-2.0-only

//! The provider of external tracking, where `kvm.ko` is none (no
//! `CONFIG_KVM_EXTERNAL_WRITE_TRACKING`): all of it is ours. Upstream's functions are exported from
//! here, notifiers are in the module's state of a VM, and what KVM tells nobody is seen where it
//! happens, by running before three of its functions. `kvm_with_tracking.rs` is the other provider.
//!
//! C source: what `arch/x86/kvm/mmu/page_track.{c,h}` leave of themselves without the option;
//! `kvm_mmu_track_write()` and `kvm_mmu_uninit_vm()` of `mmu.c`, `kvm_arch_commit_memory_region()` of
//! `x86.c`.

use crate::abi;
use crate::base::bindings;
use crate::kvm::listeners::{First, Node, Nodes, NotifierList};
use crate::kvm::vm;
use crate::kvm::{Gfn, Gpa, Kvm, Memslot, MmuWrite};
use crate::mmu_hooks::{self, hooks};
use core::ptr::NonNull;
use kernel::ffi::{c_int, c_ulong};
use kernel::prelude::*;
use kernel::sync::atomic::{Acquire, Atomic, Full, Relaxed};

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

/// Whether C has a function that adds pages for others.
pub(crate) const C_ADDS_PAGES: bool = false;

/// What the provider keeps in the module's state of a VM.
pub(crate) struct PerVm {
    notifiers: NotifierList<Node>,
    /// The address of the SRCU structure whose sections the lists are read in; 0 before the first
    /// registration.
    srcu: Atomic<usize>,
}

impl PerVm {
    /// No notifiers.
    pub(crate) const fn new() -> Self {
        Self {
            notifiers: NotifierList::new(),
            srcu: Atomic::new(0),
        }
    }

    fn srcu(&self) -> Option<NonNull<bindings::srcu_struct>> {
        NonNull::new(self.srcu.load(Acquire) as *mut bindings::srcu_struct)
    }

    /// Whether a notifier can be registered.
    pub(crate) fn is_ready(&self) -> bool {
        self.srcu().is_some()
    }

    /// Makes what registration needs. Sleeps.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn make_ready(&self) -> Result {
        if self.is_ready() {
            return Ok(());
        }
        // SAFETY: An allocation without conditions.
        let srcu = unsafe { bindings::kpt_srcu_alloc() };
        if srcu.is_null() {
            return Err(ENOMEM);
        }
        if self.srcu.cmpxchg(0, srcu as usize, Full).is_err() {
            // SAFETY: Somebody else was first, so nobody knows this one.
            unsafe { bindings::kpt_srcu_free(srcu) };
        }
        Ok(())
    }

    /// Forgets everything, for a VM that dies or when the module goes. Sleeps.
    ///
    /// # Safety
    ///
    /// Nobody else uses the VM's lists, nor will.
    pub(crate) unsafe fn forget(&self) {
        // SAFETY: The caller's promise.
        unsafe { self.notifiers.forget() };
        if let Some(srcu) = self.srcu() {
            self.srcu.store(0, Relaxed);
            // SAFETY: From `make_ready`. By the caller's promise nobody is or comes into a section of it: the VM
            // has no users, or the guard is drained (design, section 5, rule 2).
            unsafe { bindings::kpt_srcu_free(srcu.as_ptr()) };
        }
    }
}

/// The SRCU structure whose sections the lists of a VM are read in: ours, one a VM. (A callback may
/// unregister a notifier of another VM, and must not wait for itself.) Nothing before the VM's first
/// registration.
pub(crate) fn list_srcu(kvm: &Kvm) -> Option<NonNull<bindings::srcu_struct>> {
    vm::find(kvm)?.provider.srcu()
}

/// The list of a VM.
#[derive(Clone, Copy)]
pub(crate) struct Notifiers<'k> {
    /// Nothing if the module knows nothing of the VM.
    list: Option<&'k NotifierList<Node>>,
}

impl<'k> Notifiers<'k> {
    /// The list of a VM.
    #[inline(always)]
    pub(crate) fn of(kvm: &'k Kvm) -> Self {
        Self {
            list: vm::find(kvm).map(|vm| &vm.provider.notifiers),
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

    /// The notifiers, to be called.
    ///
    /// # Safety
    ///
    /// The caller is in a read section of [`list_srcu`] as long as `'a`.
    pub(crate) unsafe fn nodes<'a>(self) -> Nodes<'a, Node> {
        let first = self.list.map_or(First::none(), NotifierList::first);
        // SAFETY: The caller's promise: whoever unregisters waits for it (design, section 5, rule 3).
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
