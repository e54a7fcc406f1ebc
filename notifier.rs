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
use crate::kvm::{gpa_to_gfn, Gpa, Kvm, Memslot, Section, VcpuSection};
use crate::memslot;
use crate::module_pin::ModulePin;
use crate::notifier_list::{Client, Node, Nodes, Written};
use crate::provider::{self, CSection, Notifiers};
use crate::vm;
use kernel::prelude::*;
use kernel::sync::global_lock;

/// A notifier that was registered through us, and so pins the module and the VM.
#[derive(PartialEq)]
struct Pinned {
    kvm: usize,
    node: usize,
}

global_lock! {
    // SAFETY: Initialised in `init` before anything else uses it.
    unsafe(uninit) static PINNED: Mutex<KVec<Pinned>> = KVec::new();
}

/// Sets up the list of notifiers that pin the module.
///
/// # Safety
///
/// To be called once, before anything else of this file.
pub(crate) unsafe fn init() {
    // SAFETY: The caller's promise.
    unsafe { PINNED.init() };
}

/// What every registration checks first.
fn check(kvm: &Kvm) -> Result {
    if !kvm.mm_is_current() {
        return Err(ESRCH);
    }
    if !kvm.can_track() {
        return Err(eopnotsupp());
    }
    Ok(())
}

/// Registers one of upstream's notifiers (`kvm_page_track_register_notifier()`). Sleeps.
///
/// Pins the VM and the module. Allocates no counters.
///
/// # Errors
///
/// `ESRCH`, `EOPNOTSUPP`, `EAGAIN`, `ENOMEM`, `EEXIST` (also if another VM has it).
pub(crate) fn register(kvm: &Kvm, node: &Node) -> Result {
    check(kvm)?;
    vm::find_or_create(kvm)?;
    let mut pinned = PINNED.lock();
    // In the lock: `hand_over_all` finds whoever got one.
    let pin = ModulePin::get()?;
    pinned.reserve(1, GFP_KERNEL)?;
    // Upstream does not ask for a zeroed node, so its link says nothing about other lists.
    if pinned.iter().any(|entry| entry.node == node.address()) {
        return Err(EEXIST);
    }
    // SAFETY: It is in the list of no other VM: not through us, and that it is not since before insmod,
    // and is not the node of a client that is registered, is the contract of the C API.
    if !unsafe { Notifiers::of(kvm).insert(node) } {
        return Err(EEXIST);
    }
    pinned.push_within_capacity(Pinned {
        kvm: kvm.key(),
        node: node.address(),
    })?;
    // SAFETY: The caller has a reference.
    unsafe { kvm.get() };
    pin.keep();
    Ok(())
}

/// Unregisters a notifier, whoever registered it (`kvm_page_track_unregister_notifier()`).
///
/// When it returns no callback of it runs. Sleeps; not to be called from a callback. A notifier that
/// is not registered is ignored.
pub(crate) fn unregister(kvm: &Kvm, node: &Node) {
    let notifiers = Notifiers::of(kvm);
    // What C registered before insmod has no pin of ours, but a reference to the VM all the same.
    let mut pin = None;
    {
        let mut pinned = PINNED.lock();
        if !notifiers.remove(node) {
            return;
        }
        let entry = Pinned {
            kvm: kvm.key(),
            node: node.address(),
        };
        if let Some(i) = pinned.iter().position(|p| *p == entry) {
            // It is there, so this does not fail.
            pinned.remove(i).ok();
            // SAFETY: The registration kept a pin, and its record has just been taken out.
            pin = Some(unsafe { ModulePin::take_back() });
        }
    }
    notifiers.synchronize();
    // SAFETY: Registering took a reference, here or in C, and the node has been taken out by us and
    // nobody else. `kvm` is not used afterwards.
    unsafe { kvm.put() };
    drop(pin);
}

/// Waits for callbacks that run without a guard. Sleeps.
///
/// There are some if the module is unloaded by force: else nobody is registered through us any more, and
/// who was has waited. To be called when no event comes any more, but VMs that die still do.
pub(crate) fn drain() {
    vm::for_each(|kvm, vm| {
        if is_pinned_by(kvm) || vm.has_clients() {
            kvm.synchronize();
        }
        Ok(())
    })
    // The closure does not fail.
    .ok();
}

/// Whether a notifier of a VM was registered through us.
pub(crate) fn is_pinned_by(kvm: &Kvm) -> bool {
    PINNED.lock().iter().any(|entry| entry.kvm == kvm.key())
}

/// Frees the memory of the list, at module exit.
pub(crate) fn exit() {
    *PINNED.lock() = KVec::new();
}

/// Hands every VM with notifiers that pin us over to C, if C can track, before a forced unload. Sleeps.
pub(crate) fn hand_over_all() {
    vm::for_each(|kvm, _| {
        if is_pinned_by(kvm) {
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

/// Registers a client (`kvm_page_track_register_client()`). Sleeps.
///
/// # Errors
///
/// As [`register`].
pub(crate) fn register_client(kvm: &Kvm, client: &Client) -> Result {
    check(kvm)?;
    let pin = ModulePin::get()?;
    let vm = vm::find_or_create(kvm)?;
    // Before the client can be found, hence unregistered.
    // SAFETY: The caller has a reference.
    unsafe { kvm.get() };
    if !vm.insert_client(client) {
        // SAFETY: The reference just taken; the caller has another.
        unsafe { kvm.put() };
        return Err(EEXIST);
    }
    vm::count_client();
    pin.keep();
    Ok(())
}

/// Unregisters a client (`kvm_page_track_unregister_client()`). As [`unregister`].
pub(crate) fn unregister_client(kvm: &Kvm, client: &Client) {
    let Some(vm) = vm::find(kvm) else { return };
    if !vm.remove_client(client) {
        return;
    }
    vm::uncount_client();
    kvm.synchronize();
    // SAFETY: Registering took a reference and kept a pin, and the client has just been taken out.
    // Neither `kvm` nor `vm` is used afterwards.
    unsafe {
        kvm.put();
        drop(ModulePin::take_back());
    }
}

/// Whether an event may be of interest to somebody. A hint: nothing keeps them.
#[inline(always)]
pub(crate) fn anybody_listens(kvm: &Kvm) -> bool {
    Notifiers::of(kvm).any() || vm::any_client()
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
    if notifiers.is_empty() {
        return tell_clients(section, gpa, written);
    }
    notifiers.track_write(gpa, written);
    if let Some(vm) = vm::find_in(section) {
        vm.clients().track_write(gpa, written);
        increment(&vm.vm().events);
    }
}

/// The same where there is no notifier, and perhaps no client: others' VMs may have some.
#[inline(never)] // as above
fn tell_clients(section: Section<'_>, gpa: Gpa, written: Written) {
    let Some(vm) = vm::find_in(section) else {
        return;
    };
    let clients = vm.clients();
    if !clients.is_empty() {
        clients.track_write(gpa, written);
        increment(&vm.vm().events);
    }
}

/// The notifiers of a VM, if they can be called without a guard.
///
/// They can if they were registered through us: who is registered pins the module, and [`drain`] waits
/// for the rest. What C registered before insmod pins nothing. Nor can they where locks sleep: then so
/// may the look at who owns a count.
#[inline(always)]
fn unguarded(section: Section<'_>) -> Option<Nodes<'_, Node>> {
    provider::notifiers_in(section).filter(|_| !guard::LOCKS_SLEEP)
}

/// Tells notifiers and clients that a memslot was deleted (`kvm_page_track_delete_slot()`). Called
/// with `slots_lock` held; may sleep.
#[inline(always)]
pub(crate) fn region_removed(kvm: &Kvm, slot: &Memslot) {
    if anybody_listens(kvm) {
        region_removed_in_section(kvm, slot);
    }
}

#[inline(never)]
fn region_removed_in_section(kvm: &Kvm, slot: &Memslot) {
    let slots = kvm.read_slots();
    let section = slots.section();
    match unguarded(section) {
        Some(notifiers) => tell_removed(section, slot, &notifiers),
        None => {
            let _guard = guard::enter();
            tell_removed(section, slot, &CSection::enter(section).notifiers());
        }
    }
}

fn tell_removed(section: Section<'_>, slot: &Memslot, notifiers: &Nodes<'_, Node>) {
    let (base, npages) = (slot.base_gfn(), slot.npages());
    notifiers.for_each(|node| node.track_remove_region(base, npages));
    if let (Some(vm), 0) = (vm::find_in(section), slot.as_id()) {
        // Counts are in address space 0; what happens in the other is of no interest to clients,
        // though upstream's notifiers are told.
        vm.clients()
            .for_each(|client| client.node().track_remove_region(base, npages));
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
