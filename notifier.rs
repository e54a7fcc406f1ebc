// SPDX-License-Identifier: GPL-2.0-only

//! Notifiers and clients: who is told of guest writes, deleted memslots and moved memslots.
//!
//! Upstream's notifiers go where the provider has them ([`crate::provider`]): into KVM's own list, if
//! it has one. Clients, which can follow a moved memslot, go into ours. One dispatch serves both.
//!
//! C source: `arch/x86/kvm/mmu/page_track.c`.

use crate::guard;
use crate::inline_atomic::increment;
use crate::kernel_api::eopnotsupp;
use crate::kvm::{gpa_to_gfn, Gpa, Kvm, Memslot, MmuGuard, MmuWrite, VcpuSection};
use crate::module_pin::ModulePin;
use crate::notifier_list::{Client, ListSection, Node, Written};
use crate::provider::{self, Notifiers};
use crate::{clients, memslot, vm};
use kernel::prelude::*;

/// What every registration checks first.
///
/// # Errors
///
/// `ESRCH` if the VM is another process's.
#[inline(always)]
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
/// been tracking it before us: then it takes them all back at rmmod. Allocates no counters.
///
/// # Errors
///
/// `EOPNOTSUPP` (asked before the first notifier of a VM), `EAGAIN`, `ENOMEM`, `EEXIST` (also if another
/// VM has it).
#[inline(always)]
pub(crate) fn register(kvm: &Kvm, node: &Node) -> Result {
    // Does not sleep, so it needs no guard.
    let mmu = kvm.lock_mmu();
    // Where there is a notifier that C has not registered, the VM is known, can be tracked, and pins us.
    // (Unless it was left behind by a forced unload, which has asked its owner to take it back first.)
    if node.may_be_linked(&mmu)
        || provider::enabled_by_c(kvm)
        || !(Notifiers::of(kvm).any() || prepare_at_once(&mmu))
    {
        return register_slow(mmu, node);
    }
    // SAFETY: It does not look linked.
    unsafe { link(&mmu, node) };
    Ok(())
}

/// Links a notifier into the list of the VM that is locked.
///
/// # Safety
///
/// The notifier is in no list of a VM that we know.
#[inline(always)]
unsafe fn link(mmu: &MmuWrite<'_>, node: &Node) {
    // SAFETY: That the notifier was not registered before insmod, and is not being registered with
    // another VM at this moment, is the contract of the C API; the rest is the caller's promise. The
    // caller has a reference to the VM; nobody gives back the one taken here before the lock is
    // released. Callbacks see the list in a section that `unregister` waits for (design, section 5,
    // rule 3).
    unsafe {
        Notifiers::insert(mmu, node);
        mmu.kvm().get();
    }
}

/// The same where memory has to be allocated, or lists have to be looked through; or the error.
#[cold]
#[inline(never)]
fn register_slow(mmu: MmuGuard<'_>, node: &Node) -> Result {
    let kvm = mmu.kvm();
    drop(mmu);
    if !kvm.can_track() {
        return Err(eopnotsupp());
    }
    let _guard = guard::enter();
    let may_be_linked = node.may_be_linked(&kvm.lock_mmu());
    if may_be_linked {
        vm::for_each(|kvm, _| {
            let mmu = kvm.lock_mmu();
            if Notifiers::contains(&mmu, node) || vm::has_client_node(&mmu, node) {
                return Err(EEXIST);
            }
            Ok(())
        })?;
    }
    vm::find_or_create(kvm)?.provider.make_ready()?;
    let mmu = kvm.lock_mmu();
    // Somebody else may have registered it since.
    if node.may_be_linked(&mmu) && (!may_be_linked || Notifiers::contains(&mmu, node)) {
        return Err(EEXIST);
    }
    if !provider::enabled_by_c(kvm) {
        vm::find_or_claim(&mmu).ok_or(ENOMEM)?.pin(&mmu)?;
    }
    // SAFETY: It does not look linked, or was looked for in all lists, and now in that of this VM.
    unsafe { link(&mmu, node) };
    Ok(())
}

/// Prepares the VM that is locked for its first notifier: finds its entry, and pins us. False if that
/// takes more than a look, or fails.
#[inline(always)]
fn prepare_at_once(mmu: &MmuWrite<'_>) -> bool {
    mmu.kvm().can_track()
        && vm::find_or_claim_only(mmu)
            .is_some_and(|vm| vm.provider.is_ready() && vm.pin_first(mmu).is_ok())
}

/// Unregisters a notifier, whoever registered it (`kvm_page_track_unregister_notifier()`).
///
/// When it returns no callback of it runs. Sleeps; not to be called from a callback. A notifier that
/// is not registered is ignored.
pub(crate) fn unregister(kvm: &Kvm, node: &Node) {
    let pin = {
        let mmu = kvm.lock_mmu();
        if !Notifiers::remove(&mmu, node) {
            return;
        }
        // If C has started to track the VM as we came, it takes back whoever is left.
        if Notifiers::of(kvm).any() && !provider::enabled_by_c(kvm) {
            None
        } else {
            vm::find(kvm).and_then(|vm| vm.unpin(&mmu))
        }
    };
    ListSection::synchronize(kvm);
    // SAFETY: Registering took a reference, here or in C, and the node has been taken out by us and
    // nobody else. `kvm` is not used afterwards.
    unsafe { kvm.put() };
    drop(pin);
}

/// Hands every VM with notifiers that pin us over to C, if C can track, before a forced unload. Sleeps.
pub(crate) fn hand_over_all() {
    vm::for_each(|kvm, vm| {
        // `register_slow` makes the entry before it asks whether we are going away, and says under the lock that
        // it has pinned us; we are said to be going away before we look for entries. So whoever got a
        // pin is found here.
        let pins = {
            let _mmu = kvm.lock_mmu();
            vm.pins()
        };
        if pins {
            pr_warn!(
                "unloaded by force while a notifier of the VM of process {} is registered\n",
                kvm.userspace_pid()
            );
            if provider::hand_over(kvm).is_err() {
                pr_err!("no memory for its counters: do not add or remove its pages\n");
            }
        }
        Ok(())
    })
    // The closure does not fail.
    .ok();
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
    if client.is_linked(&kvm.lock_mmu()) {
        return Err(EEXIST);
    }
    let pin = ModulePin::get()?;
    vm::find_or_create(kvm)?.provider.make_ready()?;
    clients::open();
    // Before the client can be found, hence unregistered.
    // SAFETY: The caller has a reference.
    unsafe { kvm.get() };
    if !vm::insert_client(&kvm.lock_mmu(), client) {
        // SAFETY: The reference just taken; the caller has another.
        unsafe { kvm.put() };
        return Err(EEXIST);
    }
    clients::count();
    pin.keep();
    Ok(())
}

/// Unregisters a client (`kvm_page_track_unregister_client()`). As [`unregister`].
pub(crate) fn unregister_client(kvm: &Kvm, client: &Client) {
    if !vm::remove_client(&kvm.lock_mmu(), client) {
        return;
    }
    clients::uncount();
    ListSection::synchronize(kvm);
    // SAFETY: Registering took a reference and kept a pin, and the client has just been taken out.
    // `kvm` is not used afterwards.
    unsafe {
        kvm.put();
        drop(ModulePin::take_back());
    }
}

/// Whether a VM has notifiers of upstream's. A hint: nothing keeps them.
#[inline(always)]
pub(crate) fn any(kvm: &Kvm) -> bool {
    Notifiers::of(kvm).any()
}

/// Tells notifiers and clients of a guest write that was emulated (`__kvm_page_track_write()`).
///
/// Only writes to pages that somebody outside KVM has added are told: C tells every notifier of
/// every emulated write. May sleep if the callbacks do.
pub(crate) fn write_emulated(vcpu: VcpuSection<'_>, gpa: Gpa, written: Written) {
    // The look at who owns a count may take a lock.
    let _guard = guard::enter_if_locks_sleep();
    // Whoever is not in the list yet adds pages later than this: see `mmu_hooks::write`.
    if memslot::has_external(vcpu, gpa_to_gfn(gpa)) {
        tell_written(vcpu.kvm(), gpa, written);
    }
}

/// Tells of a write to a page that somebody outside KVM tracks.
#[inline(never)] // scripts/check/indirect-calls.sh knows it by name
fn tell_written(kvm: &Kvm, gpa: Gpa, written: Written) {
    let _guard = guard::enter();
    let Some(lists) = ListSection::enter(kvm) else {
        return;
    };
    let (clients, notifiers) = (lists.clients(), lists.notifiers());
    if clients.is_empty() && notifiers.is_empty() {
        // Others' VMs may have some.
        return;
    }
    // A VM that C has tracked before insmod may have no entry yet.
    if let Ok(vm) = vm::find_or_create(kvm) {
        increment(&vm.events);
    }
    clients.track_write(gpa, written);
    notifiers.track_write(gpa, written);
}

/// Tells notifiers and clients that a memslot was deleted (`kvm_page_track_delete_slot()`). Called
/// with `slots_lock` held; may sleep.
#[inline(never)] // scripts/check/indirect-calls.sh knows it by name
pub(crate) fn region_removed(kvm: &Kvm, slot: &Memslot) {
    let _guard = guard::enter();
    let Some(lists) = ListSection::enter(kvm) else {
        return;
    };
    lists.notifiers().track_remove_region(slot);
    // Counts are in address space 0; what happens in the other is of no interest to clients,
    // though upstream's notifiers are told.
    if slot.as_id() == 0 {
        lists.clients().track_remove_region(slot);
    }
}

/// Whether everybody who is told of events can follow a moved memslot.
///
/// KVM itself refuses moves while its own list is not empty.
pub(crate) fn all_follow_moves(kvm: &Kvm) -> bool {
    let mut all = !Notifiers::of(kvm).any();
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
pub(crate) fn region_moved(kvm: &Kvm, old: &Memslot, new: &Memslot) {
    let (Some(vm), Some(lists), 0) = (vm::find(kvm), ListSection::enter(kvm), old.as_id()) else {
        return;
    };
    vm.enter_move_callbacks();
    lists.clients().for_each(|client| {
        client.track_move_region(old.base_gfn(), new.base_gfn(), old.npages());
    });
    vm.leave_move_callbacks();
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
