// SPDX-License-Identifier: GPL-2.0-only

//! What takes the place of KVM's own tracking for other modules, where KVM has none (no
//! `CONFIG_KVM_EXTERNAL_WRITE_TRACKING`): it is in what we keep of a VM. `external_with.rs` is for a KVM
//! that has it.

use super::listeners::{List, Node};
use super::vm::{self, Vm};
use super::Kvm;
use crate::base::bindings;
use core::ptr::NonNull;
use kernel::prelude::*;

/// Our list of upstream's notifiers of a VM, if we know the VM.
pub(super) fn notifiers(kvm: &Kvm) -> Option<&List<Node>> {
    vm::find(kvm).map(|vm| &vm.notifiers)
}

/// The SRCU structure in whose sections the lists of a VM are read: one for each VM, since a callback may
/// unregister a notifier of another VM, and must not wait for itself. Nothing before the VM's first
/// registration.
pub(super) fn srcu(kvm: &Kvm) -> Option<NonNull<bindings::srcu_struct>> {
    vm::find(kvm)?.srcu.get()
}

/// Makes what registration needs. Sleeps.
///
/// # Errors
///
/// `ENOMEM`.
pub(super) fn make_ready(vm: &Vm) -> Result {
    vm.srcu.make()
}

/// Whether C's tracker has been enabled for other modules in this VM: there is none.
pub(crate) fn enabled_by_c(_kvm: &Kvm) -> bool {
    false
}

/// There is nobody to hand a VM over to: its notifiers are told nothing any more.
///
/// # Errors
///
/// None; `external_with.rs` has one.
pub(crate) fn hand_over(_kvm: &Kvm) -> Result {
    Ok(())
}

/// Nothing of KVM's is to be cleaned up when a VM is destroyed.
///
/// # Safety
///
/// None needed; `external_with.rs` has some.
pub(crate) unsafe fn cleanup(_kvm: &Kvm) {}
