// SPDX-License-Identifier: GPL-2.0-only

//! The provider of external tracking, where `kvm.ko` is one (`CONFIG_KVM_EXTERNAL_WRITE_TRACKING`):
//! its functions are replaced, its list of notifiers and its flag are used, so that C and Rust can
//! take over from each other. `kvm_without_tracking.rs` is the other provider.
//!
//! C source: `arch/x86/kvm/mmu/page_track.c`, `arch/x86/include/asm/kvm_page_track.h`.

use crate::kvm::{Gfn, Gpa, Kvm, Memslot, MmuWrite, Section};
use crate::mmu_hooks::{self, hooks};
use crate::module_pin::ModulePin;
use crate::notifier_list::{Head, Node, Nodes};
use crate::{abi, bindings, memslot, srcu};
use core::ptr::{addr_of, addr_of_mut};
use kernel::ffi::{c_int, c_ulong};
use kernel::prelude::*;
use kernel::sync::atomic::{atomic_store, Release};
use kernel::types::NotThreadSafe;

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

/// How many of the hooks stay until nobody is called by us any more: who tells of VMs that die, and who
/// unregisters, since C waits for its own read sections only.
pub(crate) const UNTIL_DRAINED: usize = 2;

/// Whether C has functions that call notifiers.
pub(crate) const C_HAS_NOTIFIERS: bool = true;

/// Where the list of notifiers is: in KVM, not in the module's state of a VM.
pub(crate) struct Place;

impl Place {
    /// Nothing.
    pub(crate) const fn new() -> Self {
        Self
    }

    /// Nothing is there to be forgotten.
    ///
    /// # Safety
    ///
    /// None needed; the other provider has some.
    pub(crate) unsafe fn forget(&self) {}
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

    fn srcu(self) -> *mut bindings::srcu_struct {
        // SAFETY: Part of the VM; only the address is taken.
        unsafe { addr_of_mut!((*self.kvm.as_ptr()).arch.track_notifier_head.track_srcu) }
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

    /// Waits for who may still call a notifier that was taken out. Sleeps.
    pub(crate) fn synchronize(self) {
        self.kvm.synchronize();
        if enabled_by_c(self.kvm) || ModulePin::is_leaving() {
            // `CSection`, and C's functions if they have just been replaced, or are already again.
            // SAFETY: KVM set the structure up with the VM.
            unsafe { bindings::synchronize_srcu(self.srcu()) };
        }
    }
}

/// The notifiers of a VM, to be called; or nothing if C has registered some. It may also unregister
/// them, when our function for that is not attached: it waits for its own read sections only, so
/// they are to be called in a [`CSection`].
#[inline(always)]
pub(crate) fn notifiers_in(section: Section<'_>) -> Option<Nodes<'_, Node>> {
    // In this order: C sets its flag before it links the first notifier, so either the flag is seen,
    // or none of the nodes from here on is C's.
    let first = Notifiers::of(section.kvm()).head().first();
    if enabled_by_c(section.kvm()) {
        return None;
    }
    // SAFETY: Read in the section just now. All the nodes were registered through us, and only our own
    // function unregisters as long as we call any (the order of attachment: design, section 5, rule
    // 1): `Notifiers::synchronize` waits for the section (rule 3).
    Some(unsafe { Nodes::new(first) })
}

/// A read section of a VM's notifiers as C has them. It may sleep.
pub(crate) struct CSection<'a> {
    section: Section<'a>,
    idx: i32,
    _not_send: NotThreadSafe,
}

impl<'a> CSection<'a> {
    /// Enters it.
    pub(crate) fn enter(section: Section<'a>) -> Self {
        Self {
            section,
            // SAFETY: KVM set the structure up with the VM.
            idx: unsafe { srcu::read_lock(Notifiers::of(section.kvm()).srcu()) },
            _not_send: NotThreadSafe,
        }
    }

    /// The notifiers of the VM, to be called, whoever has registered them.
    pub(crate) fn notifiers(&self) -> Nodes<'_, Node> {
        let first = Notifiers::of(self.section.kvm()).head().first();
        // SAFETY: Read in both sections just now: C waits for the one, `Notifiers::synchronize` for
        // the other (design, section 5, rule 3).
        unsafe { Nodes::new(first) }
    }
}

impl Drop for CSection<'_> {
    fn drop(&mut self) {
        // SAFETY: `idx` is from the matching `read_lock`, in the same task: the type is not `Send`.
        unsafe { srcu::read_unlock(Notifiers::of(self.section.kvm()).srcu(), self.idx) };
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
    // SAFETY: The caller's promise.
    unsafe { bindings::cleanup_srcu_struct(Notifiers::of(kvm).srcu()) };
}
