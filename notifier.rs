// SPDX-License-Identifier: GPL-2.0-only

//! Notifiers and clients: registering them, and telling them of guest writes and of memslots that are
//! deleted or moved.
//!
//! Upstream's notifiers are in KVM's own list, if it has one. Clients, which can follow a moved memslot,
//! are in ours. Nothing here knows counters.
//!
//! C source: `arch/x86/kvm/mmu/page_track.c`.

use crate::base::guard;
use crate::base::kernel_api::eopnotsupp;
use crate::base::module_pin::ModulePin;
use crate::kvm::registry::{self, ListSection};
use crate::kvm::{external, vm, Client, Gpa, Kvm, Listener, Memslot, Node, Written};
use kernel::prelude::*;
use kernel::sync::atomic::Relaxed;

/// What every registration checks first.
///
/// # Errors
///
/// `ESRCH` if the VM is another process's.
pub(crate) fn check_process(kvm: &Kvm) -> Result {
    if kvm.mm_is_current() {
        Ok(())
    } else {
        Err(ESRCH)
    }
}

/// Registers one of upstream's notifiers (`kvm_page_track_register_notifier()`) after
/// [`check_process`]. Sleeps.
///
/// Takes a reference to the VM, as C does. Pins the module while the VM has notifiers, unless C had
/// been tracking it before us: then C takes them all back at rmmod. Allocates no counters.
///
/// # Errors
///
/// `EOPNOTSUPP` (asked before the first notifier of a VM), `EAGAIN`, `ENOMEM`, `EEXIST` (also if another
/// VM has it).
pub(crate) fn register(kvm: &Kvm, node: &Node) -> Result {
    {
        // Does not sleep, so it needs no guard.
        let mmu = kvm.lock_mmu();
        // Where there is a notifier that C has not registered, the VM is known, can be tracked, and pins us.
        // (Unless a forced unload left it behind, which has asked its owner to take it back first.)
        let is_further = kvm.has_notifiers() && !external::enabled_by_c(kvm);
        if is_further && !node.may_be_linked(&mmu) {
            return registry::insert_notifier(&mmu, node, None);
        }
    }
    register_first(kvm, node)
}

/// The same for a VM's first notifier, or one that looks registered.
fn register_first(kvm: &Kvm, node: &Node) -> Result {
    if !kvm.can_track() {
        return Err(eopnotsupp());
    }
    let _guard = guard::enter();
    let may_be_linked = node.may_be_linked(&kvm.lock_mmu());
    let looked_for = may_be_linked
        .then(|| registry::look_for(node))
        .transpose()?;
    registry::make_ready(kvm)?;
    let mmu = kvm.lock_mmu();
    let is_first = !external::enabled_by_c(kvm) && vm::pin(&mmu)?;
    let result = registry::insert_notifier(&mmu, node, looked_for);
    if result.is_err() && is_first {
        drop(vm::unpin(&mmu));
    }
    result
}

/// Unregisters a notifier, which C or we registered (`kvm_page_track_unregister_notifier()`).
///
/// When it returns no callback of it runs. Sleeps; not to be called from a callback. A notifier that
/// is not registered is ignored.
pub(crate) fn unregister(kvm: &Kvm, node: &Node) {
    let registered = registry::remove_notifier(&kvm.lock_mmu(), node);
    drop(registered);
}

/// Registers a client (`kvm_page_track_register_client()`) after [`check_process`]. Sleeps.
///
/// # Errors
///
/// As [`register`].
pub(crate) fn register_client(kvm: &Kvm, client: &Client) -> Result {
    if !kvm.can_track() {
        return Err(eopnotsupp());
    }
    // Before anything is made for it.
    if client.may_be_linked(&kvm.lock_mmu()) {
        return Err(EEXIST);
    }
    let pin = ModulePin::get()?;
    registry::make_ready(kvm)?;
    registry::insert_client(kvm, client, pin)
}

/// Unregisters a client (`kvm_page_track_unregister_client()`). As [`unregister`].
pub(crate) fn unregister_client(kvm: &Kvm, client: &Client) {
    drop(registry::remove_client(kvm, client));
}

/// Hands every VM with notifiers that pin us over to C, if C can track, before a forced unload. Sleeps.
pub(crate) fn hand_over_all() {
    vm::for_each(|kvm, vm| {
        // A registration that is under way is seen or refused: it makes the VM's entry, and then pins us under
        // the lock, which fails since the module has been marked as going, before we came here.
        let pins = {
            let _mmu = kvm.lock_mmu();
            vm.pins()
        };
        if pins {
            pr_warn!(
                "unloaded by force while a notifier of the VM of process {} is registered\n",
                kvm.userspace_pid()
            );
            if external::hand_over(kvm).is_err() {
                pr_err!("no memory for its counters: do not add or remove its pages\n");
            }
        }
        Ok(())
    })
    // The closure does not fail.
    .ok();
}

/// Whether somebody may want to know of what happens in a VM. A hint: nothing keeps them.
#[inline(always)] // the event path
pub(crate) fn anybody(kvm: &Kvm) -> bool {
    kvm.has_notifiers() || registry::any_client()
}

/// Tells notifiers and clients of a write to a page that somebody outside KVM tracks. Sleeps if a callback
/// does.
#[inline(never)] // scripts/check/indirect-calls.sh knows it by name
pub(crate) fn tell_written(kvm: &Kvm, gpa: Gpa, written: Written) {
    let _guard = guard::enter();
    let Some(lists) = ListSection::enter(kvm) else {
        return;
    };
    let clients = lists.clients();
    if !clients.is_empty() {
        if let Some(vm) = vm::find(kvm) {
            vm.events.add(1, Relaxed);
        }
        clients.for_each(|client| client.node().track_write(gpa, written));
    }
    lists
        .notifiers()
        .for_each(|node| node.track_write(gpa, written));
}

/// Tells notifiers and clients that a memslot was deleted (`kvm_page_track_delete_slot()`). Called
/// with `slots_lock` held; sleeps if a callback does.
#[inline(never)] // scripts/check/indirect-calls.sh knows it by name
pub(crate) fn tell_removed(kvm: &Kvm, slot: &Memslot) {
    let _guard = guard::enter();
    let Some(lists) = ListSection::enter(kvm) else {
        return;
    };
    lists
        .notifiers()
        .for_each(|node| node.track_remove_region(slot));
    // Counts are in address space 0; what happens in the other is of no interest to clients,
    // though upstream's notifiers are told.
    if slot.as_id() == 0 {
        lists
            .clients()
            .for_each(|client| client.node().track_remove_region(slot));
    }
}

/// Whether every listener of a VM can follow a moved memslot.
///
/// KVM itself refuses moves while its own list is not empty.
pub(crate) fn all_follow_moves(kvm: &Kvm) -> bool {
    let mut all = !kvm.has_notifiers();
    if let Some(lists) = ListSection::enter(kvm) {
        lists
            .clients()
            .for_each(|client| all &= client.follows_moves());
    }
    all
}

/// Tells clients that a memslot moves. Called with `slots_lock` and `slots_arch_lock` held.
///
/// Only address space 0 has external adds, so only its memslots are of interest.
pub(crate) fn tell_moved(kvm: &Kvm, old: &Memslot, new: &Memslot) {
    let (Some(vm), Some(lists), 0) = (vm::find(kvm), ListSection::enter(kvm), old.as_id()) else {
        return;
    };
    vm.in_move_callbacks(|| {
        lists.clients().for_each(|client| {
            client.track_move_region(old.base_gfn(), new.base_gfn(), old.npages());
        });
    });
}

/// Number of notifiers and clients of a VM. Sleeps.
pub(crate) fn count(kvm: &Kvm) -> usize {
    let mut n = 0;
    if let Some(lists) = ListSection::enter(kvm) {
        lists.notifiers().for_each(|_| n += 1);
        lists.clients().for_each(|_| n += 1);
    }
    n
}
