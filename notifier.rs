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
use crate::kvm::{gpa_to_gfn, Gpa, Kvm, Memslot, MmuGuard, MmuWrite, Section, VcpuSection};
use crate::module_pin::ModulePin;
use crate::notifier_list::{Client, Node, Nodes, Written};
use crate::provider::{self, CSection, Notifiers};
use crate::vm::{self, VmSection};
use crate::{clients, memslot};
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
    vm::find_or_create(kvm)?;
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
    mmu.kvm().can_track() && vm::find_or_claim_only(mmu).is_some_and(|vm| vm.pin_first(mmu).is_ok())
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
    Notifiers::of(kvm).synchronize();
    // SAFETY: Registering took a reference, here or in C, and the node has been taken out by us and
    // nobody else. `kvm` is not used afterwards.
    unsafe { kvm.put() };
    drop(pin);
}

/// Waits for callbacks that run without a guard. Sleeps.
///
/// There are some if the module is unloaded by force, or if C has started to track a VM as we came: else
/// nobody is registered any more in a VM whose notifiers ever pinned us, and who was has waited. To be
/// called when no event comes any more, but VMs that die still do.
pub(crate) fn drain() {
    vm::for_each(|kvm, vm| {
        if (vm.has_ever_pinned() && Notifiers::of(kvm).any()) || vm.has_clients() {
            kvm.synchronize();
        }
        Ok(())
    })
    // The closure does not fail.
    .ok();
}

/// Hands every VM with notifiers that pin us over to C, if C can track, before a forced unload. Sleeps.
pub(crate) fn hand_over_all() {
    vm::for_each(|kvm, vm| {
        // `prepare` makes the entry before it asks whether we are going away, and says under the lock that
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
    let vm = vm::find_or_create(kvm)?;
    clients::open();
    // Before the client can be found, hence unregistered.
    // SAFETY: The caller has a reference.
    unsafe { kvm.get() };
    if !vm.insert_client(client) {
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
    let Some(vm) = vm::find(kvm) else { return };
    if !vm.remove_client(client) {
        return;
    }
    clients::uncount();
    kvm.synchronize();
    // SAFETY: Registering took a reference and kept a pin, and the client has just been taken out.
    // Neither `kvm` nor `vm` is used afterwards.
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
#[inline(never)]
pub(crate) fn write_emulated(vcpu: VcpuSection<'_>, gpa: Gpa, written: Written) {
    // Nothing is called before it is known what is to be done, and nothing afterwards: no register is
    // saved for a write that nobody is told of.
    match memslot::may_have_external(vcpu, gpa_to_gfn(gpa)) {
        Some(false) => (),
        Some(true) => match unguarded(vcpu.section()) {
            Some(notifiers) => tell_written(vcpu.section(), gpa, written, notifiers),
            None => write_emulated_slow(vcpu, gpa, written),
        },
        None => write_emulated_slow(vcpu, gpa, written),
    }
}

#[inline(never)]
fn write_emulated_slow(vcpu: VcpuSection<'_>, gpa: Gpa, written: Written) {
    let section = vcpu.section();
    // Decided before the guard is taken (design, section 5, rule 2).
    let Some(page) = memslot::counted(section.slots(), gpa_to_gfn(gpa)) else {
        return;
    };
    // Whoever is not in the list yet adds pages later than this: see `mmu_hooks::write`.
    let tell = |notifiers: Nodes<'_, Node>| {
        if memslot::has_external(vcpu, page) {
            tell_written(section, gpa, written, notifiers);
        }
    };
    match unguarded(section) {
        Some(notifiers) => tell(notifiers),
        None => {
            let _guard = guard::enter();
            if provider::enabled_by_c(section.kvm()) {
                // Before insmod: it has no entry yet, and counts no events without one.
                vm::find_or_create(section.kvm()).ok();
            }
            tell(CSection::enter(section).notifiers());
        }
    }
}

/// Tells of a write to a page that somebody outside KVM tracks.
#[inline(never)] // scripts/check-indirect-calls.sh knows it by name
fn tell_written(section: Section<'_>, gpa: Gpa, written: Written, notifiers: Nodes<'_, Node>) {
    match vm::find_in(section) {
        Some(vm) if !notifiers.is_empty() && vm.clients().is_empty() => {
            // Before they are called, so that nothing but the write is kept in registers meanwhile.
            increment(&vm.vm().events);
            notifiers.track_write(gpa, written);
        }
        vm => tell_all(vm, gpa, written, notifiers),
    }
}

/// The same where there may be clients, or an entry could not be made.
#[inline(never)] // as above
fn tell_all(vm: Option<VmSection<'_>>, gpa: Gpa, written: Written, notifiers: Nodes<'_, Node>) {
    if let Some(vm) = vm {
        let clients = vm.clients();
        if notifiers.is_empty() && clients.is_empty() {
            // Others' VMs may have some.
            return;
        }
        increment(&vm.vm().events);
        clients.track_write(gpa, written);
    }
    notifiers.track_write(gpa, written);
}

/// The notifiers of a VM, if they can be called without a guard.
///
/// They can if C has not tracked the VM before us: then they pin the module, and [`drain`] waits for the
/// rest. Nor can they where locks sleep: then so may the look at who owns a count.
#[inline(always)]
fn unguarded(section: Section<'_>) -> Option<Nodes<'_, Node>> {
    provider::notifiers_in(section).filter(|_| !guard::LOCKS_SLEEP)
}

/// Tells notifiers and clients that a memslot was deleted (`kvm_page_track_delete_slot()`). Called
/// with `slots_lock` held; may sleep.
#[inline(never)] // scripts/check-indirect-calls.sh knows it by name
pub(crate) fn region_removed(kvm: &Kvm, slot: &Memslot) {
    let slots = kvm.read_slots();
    match unguarded(slots.section()) {
        Some(notifiers) if !clients::any() => notifiers.track_remove_region(slot),
        _ => tell_all_removed(slots.section(), slot),
    }
}

/// The same where there may be clients, or a guard is needed.
#[inline(never)] // as above
fn tell_all_removed(section: Section<'_>, slot: &Memslot) {
    let notifiers = unguarded(section);
    let _guard = notifiers.is_none().then(guard::enter);
    match notifiers {
        Some(notifiers) => notifiers.track_remove_region(slot),
        None => CSection::enter(section)
            .notifiers()
            .track_remove_region(slot),
    }
    if let (Some(vm), 0) = (vm::find_in(section), slot.as_id()) {
        // Counts are in address space 0; what happens in the other is of no interest to clients,
        // though upstream's notifiers are told.
        vm.clients().track_remove_region(slot);
    }
}

/// Whether everybody who is told of events can follow a moved memslot.
///
/// KVM itself refuses moves while its own list is not empty.
pub(crate) fn all_follow_moves(section: Section<'_>) -> bool {
    let mut all = !Notifiers::of(section.kvm()).any();
    if let Some(vm) = vm::find_in(section) {
        vm.clients()
            .for_each(|client| all &= client.follows_moves());
    }
    all
}

/// Tells clients that a memslot moves. Called with `slots_lock` and `slots_arch_lock` held.
///
/// Only address space 0 has external adds, so only its memslots are of interest.
pub(crate) fn region_moved(section: Section<'_>, old: &Memslot, new: &Memslot) {
    let Some(vm) = vm::find_in(section).filter(|_| old.as_id() == 0) else {
        return;
    };
    vm.vm().enter_move_callbacks();
    vm.clients().for_each(|client| {
        client.track_move_region(old.base_gfn(), new.base_gfn(), old.npages());
    });
    vm.vm().leave_move_callbacks();
}

/// Number of notifiers and clients of a VM. Sleeps.
pub(crate) fn count(kvm: &Kvm) -> usize {
    let slots = kvm.read_slots();
    let mut n = 0;
    let open = CSection::enter(slots.section());
    open.notifiers().for_each(|_| n += 1);
    if let Some(vm) = vm::find_in(slots.section()) {
        vm.clients().for_each(|_| n += 1);
    }
    n
}
