// SPDX-License-Identifier: GPL-2.0-only

//! What the module knows of a VM, and the table of all VMs it knows something of.
//!
//! A VM gets an entry with the first add, prepare or register, or with the first event if C has
//! enabled its tracker, and loses it when it is destroyed (`kvm_page_track_cleanup()` or
//! `kvm_mmu_uninit_vm()`) or when the module goes. So whoever keeps a VM alive may use its entry as
//! long; [`for_each`] keeps those that it finds.
//!
//! The table is looked up without a lock. Its memory is freed when the module goes, not before: the
//! entry of a VM that is destroyed is used again, for another that belongs to the same chain. So a
//! look at an entry of another VM, which may be destroyed at that moment, reads an entry all the
//! same, and sees that it is another's.

use crate::inline_atomic::load;
use crate::kvm::{hash_64, Kvm, Section};
use crate::notifier_list::{Client, Nodes, NotifierList};
use crate::provider::Place;
use core::ptr::NonNull;
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed, Release};
use kernel::sync::global_lock;

/// The module's state of one VM.
pub(crate) struct Vm {
    /// [`Kvm::key`], the address of the VM; 0 if the entry is nobody's.
    key: Atomic<usize>,
    /// The address of the next entry of the chain, or 0. Never changes.
    next: usize,
    /// Upstream's notifiers, unless they are in a list of KVM's own.
    pub(crate) notifiers: Place,
    /// Clients with `track_move_region`.
    clients: NotifierList<Client>,
    /// Guest writes delivered, each counted once.
    pub(crate) events: Atomic<u64>,
    /// The task that is inside a `track_move_region` callback, or 0.
    mover: Atomic<usize>,
}

/// A power of two.
const CHAINS: usize = 256;

/// The address of the newest entry of each chain, or 0. Changes under [`CREATE`].
static CHAIN: [Atomic<usize>; CHAINS] = [const { Atomic::new(0) }; CHAINS];

global_lock! {
    // SAFETY: Initialised in `init` before anything else uses it.
    unsafe(uninit) static CREATE: Mutex<()> = ();
}

global_lock! {
    // SAFETY: As above. A VM that is in the table is not destroyed while it is held.
    unsafe(uninit) static KEEP: Mutex<()> = ();
}

/// Number of clients of all VMs.
static CLIENTS: Atomic<usize> = Atomic::new(0);

/// Sets up the table.
///
/// # Safety
///
/// To be called once, before anything else of this file.
pub(crate) unsafe fn init() {
    // SAFETY: The caller's promise.
    unsafe {
        CREATE.init();
        KEEP.init();
    }
}

impl Vm {
    fn new(key: usize, next: usize) -> Self {
        Self {
            key: Atomic::new(key),
            next,
            notifiers: Place::new(),
            clients: NotifierList::new(),
            events: Atomic::new(0),
            mover: Atomic::new(0),
        }
    }

    /// Adds a client. False if it is in a list already.
    pub(crate) fn insert_client(&self, client: &Client) -> bool {
        let mmu = self.kvm().lock_mmu();
        // SAFETY: The lock is that of the VM. The client is in no list: it has just been asked, and
        // that it is not registered with another VM meanwhile is up to its owner. An entry does not
        // move.
        !client.is_linked(&mmu) && unsafe { self.clients.insert(client, &mmu) }
    }

    /// Takes a client out. False if it is not there.
    pub(crate) fn remove_client(&self, client: &Client) -> bool {
        // SAFETY: The lock is that of the VM.
        unsafe { self.clients.remove(client, &self.kvm().lock_mmu()) }
    }

    fn kvm(&self) -> &Kvm {
        // SAFETY: Whoever has the entry of a VM has the VM, or holds the lock that keeps it.
        unsafe { &*(self.key.load(Relaxed) as *const Kvm) }
    }

    /// Whether there is a client. A hint: nothing keeps it.
    pub(crate) fn has_clients(&self) -> bool {
        !self.clients.first().is_none()
    }

    /// This task is about to call `track_move_region` callbacks. It holds `slots_arch_lock`, so no
    /// other task of the VM is doing the same.
    pub(crate) fn enter_move_callbacks(&self) {
        self.mover.store(current_task(), Relaxed);
    }

    /// The callbacks are done.
    pub(crate) fn leave_move_callbacks(&self) {
        self.mover.store(0, Relaxed);
    }

    /// Whether this task is in such a callback, hence holds `slots_arch_lock`.
    pub(crate) fn in_move_callback(&self) -> bool {
        self.mover.load(Relaxed) == current_task()
    }
}

fn current_task() -> usize {
    kernel::current!().as_ptr() as usize
}

/// The entry of a VM while a read section of its `kvm->srcu` is open.
///
/// # Invariants
///
/// `vm` is the entry of the section's VM.
#[derive(Clone, Copy)]
pub(crate) struct VmSection<'a> {
    vm: &'a Vm,
    _section: Section<'a>,
}

impl<'a> VmSection<'a> {
    /// The entry.
    #[inline(always)]
    pub(crate) fn vm(self) -> &'a Vm {
        self.vm
    }

    /// The clients of the VM.
    #[inline(always)]
    pub(crate) fn clients(self) -> Nodes<'a, Client> {
        // SAFETY: Read in the section just now, which `notifier::unregister_client` waits for (design,
        // section 5, rule 3).
        unsafe { Nodes::new(self.vm.clients.first()) }
    }
}

/// Whether any VM has a client: a cheap first question of the event path.
#[inline(always)]
pub(crate) fn any_client() -> bool {
    load(&CLIENTS) != 0
}

/// Counts a client that was registered.
pub(crate) fn count_client() {
    CLIENTS.add(1, Relaxed);
}

/// Counts a client that was unregistered.
pub(crate) fn uncount_client() {
    CLIENTS.fetch_sub(1, Relaxed);
}

#[inline(always)]
fn chain(key: usize) -> &'static Atomic<usize> {
    &CHAIN[hash_64(key as u64, CHAINS.ilog2())]
}

/// The first entry with a key, of somebody (`key`) or of nobody (0), in the chain of `of`.
#[inline(always)]
fn search(of: usize, key: usize) -> Option<&'static Vm> {
    let mut next = load(chain(of));
    // SAFETY: What is in a chain is the address of an entry, which is written before it is linked and
    // freed by `clear` only, when no other user of the module is left. The links do not change.
    while let Some(vm) = unsafe { (next as *const Vm).as_ref() } {
        if load(&vm.key) == key {
            return Some(vm);
        }
        next = vm.next;
    }
    None
}

/// What the module knows of a VM. Any context.
#[inline(always)]
pub(crate) fn find(kvm: &Kvm) -> Option<&Vm> {
    search(kvm.key(), kvm.key())
}

/// The same for a VM whose lists are to be read.
#[inline(always)]
pub(crate) fn find_in(section: Section<'_>) -> Option<VmSection<'_>> {
    // INVARIANT: It is that VM's.
    find(section.kvm()).map(|vm| VmSection {
        vm,
        _section: section,
    })
}

/// The same as [`find`], with an entry made if there is none. Sleeps.
///
/// # Errors
///
/// `ENOMEM`.
pub(crate) fn find_or_create(kvm: &Kvm) -> Result<&Vm> {
    match find(kvm) {
        Some(vm) => Ok(vm),
        None => create(kvm),
    }
}

#[inline(never)]
fn create(kvm: &Kvm) -> Result<&Vm> {
    let key = kvm.key();
    let _create = CREATE.lock();
    if let Some(vm) = find(kvm) {
        return Ok(vm);
    }
    if let Some(free) = search(key, 0) {
        // Empty, unless somebody gave back a reference that was not theirs.
        // SAFETY: The entry is nobody's, and the lock keeps others from making it theirs.
        unsafe {
            free.notifiers.forget();
            free.clients.forget();
        }
        free.events.store(0, Relaxed);
        free.key.store(key, Release);
        return Ok(free);
    }
    let chain = chain(key);
    let entry = KBox::new(Vm::new(key, chain.load(Relaxed)), GFP_KERNEL)?;
    chain.store(KBox::into_raw(entry) as usize, Release);
    find(kvm).ok_or(ENOMEM)
}

/// Forgets a VM that is being destroyed.
///
/// # Safety
///
/// The VM has no users left, hence no notifiers and clients; nothing that `find` returned for it is
/// used any more.
pub(crate) unsafe fn destroyed(kvm: &Kvm) {
    // A VM without users gets no entry any more. If it has one, `for_each` may be looking at it.
    if find(kvm).is_none() {
        return;
    }
    let _keep = KEEP.lock();
    if let Some(vm) = find(kvm) {
        vm.key.store(0, Release);
    }
}

/// Calls `f` for every VM in the table. Sleeps.
///
/// No VM of the table is destroyed meanwhile, but it may have no users left: `f` must not take
/// references ([`Kvm::get`]).
pub(crate) fn for_each(mut f: impl FnMut(&Kvm, &Vm) -> Result) -> Result {
    let _keep = KEEP.lock();
    for first in &CHAIN {
        let mut next = load(first);
        // SAFETY: As in `search`.
        while let Some(vm) = unsafe { (next as *const Vm).as_ref() } {
            if load(&vm.key) != 0 {
                // The lock keeps the VM: `destroyed` takes it before the VM's memory goes.
                f(vm.kvm(), vm)?;
            }
            next = vm.next;
        }
    }
    Ok(())
}

/// Frees every entry.
///
/// # Safety
///
/// Every hook is detached and drained, and no other module can call this one.
pub(crate) unsafe fn clear() {
    let _create = CREATE.lock();
    for first in &CHAIN {
        let mut next = first.load(Relaxed);
        first.store(0, Relaxed);
        while let Some(vm) = NonNull::new(next as *mut Vm) {
            // SAFETY: From `KBox::into_raw()` in `create`, and by the caller's promise nobody uses it
            // (design, section 5, rule 2).
            let vm = unsafe { KBox::from_raw(vm.as_ptr()) };
            next = vm.next;
        }
    }
}

#[kernel::macros::kunit_tests(kvm_page_track_vm)]
#[allow(unsafe_op_in_unsafe_fn)]
mod tests {
    use super::*;
    use crate::kvm::unit::with_blank_vm;

    fn entries() -> usize {
        let mut n = 0;
        for first in &CHAIN {
            let mut next = first.load(Relaxed);
            // SAFETY: As in `search`; KUnit runs when nothing else does.
            while let Some(vm) = unsafe { (next as *const Vm).as_ref() } {
                n += 1;
                next = vm.next;
            }
        }
        n
    }

    #[test]
    fn an_entry_lives_as_long_as_its_vm() {
        with_blank_vm(|kvm, _| {
            assert!(find(kvm).is_none());
            let vm = find_or_create(kvm).unwrap();
            assert!(core::ptr::eq(find(kvm).unwrap(), vm));
            assert!(core::ptr::eq(find_or_create(kvm).unwrap(), vm));
            assert!(core::ptr::eq(vm.kvm(), kvm));
            // SAFETY: The entry is not used any more.
            unsafe { destroyed(kvm) };
            assert!(find(kvm).is_none());
        });
    }

    #[test]
    fn an_entry_is_used_again() {
        with_blank_vm(|kvm, _| {
            let vm = find_or_create(kvm).unwrap();
            vm.events.store(7, Relaxed);
            let before = entries();
            // SAFETY: The entry is not used any more.
            unsafe { destroyed(kvm) };
            assert_eq!(entries(), before);
            let again = find_or_create(kvm).unwrap();
            assert_eq!(entries(), before);
            assert_eq!(again.events.load(Relaxed), 0);
            // SAFETY: As above.
            unsafe { destroyed(kvm) };
        });
    }

    #[test]
    fn every_vm_has_its_own() {
        with_blank_vm(|a, _| {
            with_blank_vm(|b, _| {
                let of_a = find_or_create(a).unwrap();
                let of_b = find_or_create(b).unwrap();
                assert!(!core::ptr::eq(of_a, of_b));
                let mut seen = 0;
                for_each(|kvm, vm| {
                    seen += usize::from(core::ptr::eq(kvm, a) && core::ptr::eq(vm, of_a));
                    seen += usize::from(core::ptr::eq(kvm, b) && core::ptr::eq(vm, of_b));
                    Ok(())
                })
                .unwrap();
                assert_eq!(seen, 2);
                // SAFETY: The entries are not used any more.
                unsafe { destroyed(a) };
                assert!(find(a).is_none() && find(b).is_some());
                // SAFETY: As above.
                unsafe { destroyed(b) };
            });
        });
    }
}
