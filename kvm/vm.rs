// SPDX-License-Identifier: GPL-2.0-only

//! What the module knows of a VM, and the table of all VMs it knows something of.
//!
//! A VM gets an entry with the first add, prepare or register, or with the first event if C has
//! enabled its tracker, and loses it when it is destroyed (`kvm_page_track_cleanup()` or
//! `kvm_mmu_uninit_vm()`) or when the module goes. So whoever keeps a VM alive may use its entry as
//! long; [`for_each`] keeps those that it finds.
//!
//! The table is looked up without a lock. Each chain has an entry from the start, and gets another if
//! that is taken; their memory is freed when the module goes, not before: the entry of a VM that is
//! destroyed is used again, for another that belongs to the same chain. So a
//! look at an entry of another VM, which may be destroyed at that moment, reads an entry all the
//! same, and sees that it is another's. An entry becomes a VM's under the `mmu_lock` of that VM.

use crate::base::module_pin::ModulePin;
use crate::base::once::{cmpxchg, increment, load, store};
use crate::kvm::listeners::{Client, First, Node, NotifierList};
use crate::kvm::{hash_64, Kvm, MmuWrite};
use crate::provider::PerVm;
use core::ops::Deref;
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed, Release};
use kernel::sync::global_lock;

/// The module's state of one VM.
#[repr(C)]
pub(crate) struct Vm {
    /// Guest writes delivered, each counted once. The first field: its address is that of the entry.
    pub(crate) events: Atomic<u64>,
    /// [`Kvm::key`], the address of the VM; 0 if the entry is nobody's.
    key: Atomic<usize>,
    /// The address of the next entry of the chain, or 0. Never changes.
    next: usize,
    /// What the provider keeps: upstream's notifiers, unless they are in a list of KVM's own.
    pub(crate) provider: PerVm,
    /// Clients with `track_move_region`.
    clients: NotifierList<Client>,
    /// The task that is inside a `track_move_region` callback, or 0.
    mover: Atomic<usize>,
    /// Whether the VM's notifiers pin the module: [`YES`] or [`NO`]. Changes under `mmu_lock`, or when
    /// the VM is destroyed.
    pinned: Atomic<usize>,
}

const NO: usize = 0;
const YES: usize = 1;

/// A power of two.
const CHAINS: usize = 256;

/// The address of the newest entry of each chain; 0 only before `init`. Changes under [`GROW`].
static CHAIN: [Atomic<usize>; CHAINS] = [const { Atomic::new(0) }; CHAINS];

/// The oldest entry of each chain, which is always there.
static OLDEST: [Vm; CHAINS] = [const { Vm::new(0) }; CHAINS];

global_lock! {
    // SAFETY: Initialised in `init` before anything else uses it.
    unsafe(uninit) static GROW: Mutex<()> = ();
}

global_lock! {
    // SAFETY: As above. A VM that is in the table is not destroyed while it is held.
    unsafe(uninit) static KEEP: Mutex<()> = ();
}

/// Number of VMs in the table.
///
/// A VM is counted under the `mmu_lock` under which it gets its entry, so whoever has taken that lock after
/// he found the entry sees it counted: who has counted a page, or linked a notifier or client.
static KNOWN: Atomic<u64> = Atomic::new(0);

/// Sets up the table.
///
/// # Safety
///
/// To be called once, before anything else of this file.
pub(crate) unsafe fn init() {
    // SAFETY: The caller's promise.
    unsafe {
        GROW.init();
        KEEP.init();
    }
    for (chain, oldest) in CHAIN.iter().zip(&OLDEST) {
        chain.store(core::ptr::from_ref(oldest) as usize, Relaxed);
    }
}

impl Vm {
    /// An entry of nobody.
    const fn new(next: usize) -> Self {
        Self {
            key: Atomic::new(0),
            next,
            provider: PerVm::new(),
            clients: NotifierList::new(),
            events: Atomic::new(0),
            mover: Atomic::new(0),
            pinned: Atomic::new(NO),
        }
    }

    /// The VM.
    ///
    /// # Safety
    ///
    /// The entry is a VM's, and the VM is not destroyed as long as the result is used.
    unsafe fn kvm(&self) -> &Kvm {
        // SAFETY: The caller's promise.
        unsafe { &*(self.key.load(Relaxed) as *const Kvm) }
    }

    /// The first client, to be looked at in a section of the VM's lists.
    pub(crate) fn first_client(&self) -> First {
        self.clients.first()
    }

    /// Pins the module, unless the VM's notifiers do already.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if the module is going away.
    pub(crate) fn pin(&self, mmu: &MmuWrite<'_>) -> Result {
        if load(&self.pinned) == YES {
            return Ok(());
        }
        self.pin_first(mmu)
    }

    /// The same where the VM has no notifiers, hence none that do.
    #[inline(always)]
    pub(crate) fn pin_first(&self, _: &MmuWrite<'_>) -> Result {
        #[cfg(CONFIG_KVM_PROVE_MMU = "y")]
        kernel::warn_on!(self.pins());
        ModulePin::get()?.keep();
        store(&self.pinned, YES);
        Ok(())
    }

    /// Takes that back, if they do.
    pub(crate) fn unpin(&self, _: &MmuWrite<'_>) -> Option<ModulePin> {
        if load(&self.pinned) != YES {
            return None;
        }
        store(&self.pinned, NO);
        // SAFETY: `pin` kept one, and has just been told so.
        Some(unsafe { ModulePin::take_back() })
    }

    /// Whether the VM's notifiers pin the module. Without the lock a hint.
    pub(crate) fn pins(&self) -> bool {
        load(&self.pinned) == YES
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

#[inline(always)]
fn chain(key: usize) -> &'static Atomic<usize> {
    &CHAIN[hash_64(key as u64, CHAINS.ilog2())]
}

/// The newest entry of a chain.
#[inline(always)]
fn newest(chain: &Atomic<usize>) -> &'static Vm {
    // SAFETY: From `init` on there is one. It is static, or written before it is linked and freed by
    // `clear` only, when no other user of the module is left (design, section 5, rule 2).
    unsafe { &*(load(chain) as *const Vm) }
}

impl Vm {
    /// The entry that was there before this one.
    #[inline(always)]
    fn next(&self) -> Option<&'static Vm> {
        // SAFETY: 0, or what was the newest entry when this one was linked: as in `newest`. The links do
        // not change.
        unsafe { (self.next as *const Vm).as_ref() }
    }
}

/// The entries of a chain, from the newest on.
#[inline(always)]
fn entries(chain: &Atomic<usize>) -> impl Iterator<Item = &'static Vm> {
    core::iter::successors(Some(newest(chain)), |vm| vm.next())
}

/// Adds a client to the VM that is locked, which has an entry. False if it is in a list already.
pub(crate) fn insert_client(mmu: &MmuWrite<'_>, client: &Client) -> bool {
    let Some(vm) = find(mmu.kvm()).filter(|_| !client.is_linked(mmu)) else {
        return false;
    };
    // SAFETY: The lock is that of the VM. The client is in no list: it has just been asked, and
    // that it is not registered with another VM meanwhile is up to its owner. An entry does not
    // move.
    unsafe { vm.clients.insert(client, mmu) };
    true
}

/// Takes a client out of the VM that is locked. False if it is not there.
pub(crate) fn remove_client(mmu: &MmuWrite<'_>, client: &Client) -> bool {
    // SAFETY: The lock is that of the VM.
    find(mmu.kvm()).is_some_and(|vm| unsafe { vm.clients.remove(client, mmu) })
}

/// Whether a node is that of a client of the VM that is locked.
pub(crate) fn has_client_node(mmu: &MmuWrite<'_>, node: &Node) -> bool {
    // SAFETY: The lock is that of the VM.
    find(mmu.kvm()).is_some_and(|vm| unsafe { vm.clients.head().contains(node, mmu) })
}

/// Whether the module knows a VM: a cheap no where it knows none. Any context.
#[inline(always)]
pub(crate) fn is_known(kvm: &Kvm) -> bool {
    load(&KNOWN) != 0 && find(kvm).is_some()
}

/// What the module knows of a VM. Any context.
#[inline(always)]
pub(crate) fn find(kvm: &Kvm) -> Option<&Vm> {
    // A loop of its own: the event path, which does not look at the link of the entry that it wants.
    let mut vm = newest(chain(kvm.key()));
    while load(&vm.key) != kvm.key() {
        vm = vm.next()?;
    }
    Some(vm)
}

/// The entry of the VM that is locked: its own, or an unused one, if there is either.
#[inline(always)]
pub(crate) fn find_or_claim<'k>(mmu: &MmuWrite<'k>) -> Option<&'k Vm> {
    let key = mmu.kvm().key();
    let mut unused = None;
    for vm in entries(chain(key)) {
        match load(&vm.key) {
            0 => unused = Some(vm),
            k if k == key => return Some(vm),
            _ => (),
        }
    }
    // Nobody else claims one for this VM meanwhile, but perhaps this one for another VM.
    let vm = unused.filter(|vm| cmpxchg(&vm.key, 0, key) == 0)?;
    increment(&KNOWN);
    Some(vm)
}

/// The same where the chain has one entry only: mostly, and without a loop.
#[inline(always)]
pub(crate) fn find_or_claim_only<'k>(mmu: &MmuWrite<'k>) -> Option<&'k Vm> {
    let key = mmu.kvm().key();
    let vm = newest(chain(key));
    if vm.next != 0 {
        return None;
    }
    // As above. Entries that come meanwhile come before it, and none of them becomes this VM's.
    match cmpxchg(&vm.key, 0, key) {
        0 => {
            increment(&KNOWN);
            Some(vm)
        }
        owner if owner == key => {
            // A branch of its own: mostly a VM's first notifier is the first that is known of it.
            // SAFETY: No instruction.
            unsafe { core::arch::asm!("", options(nomem, nostack, preserves_flags)) };
            Some(vm)
        }
        _ => None,
    }
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
    create_with(kvm, || kvm.lock_mmu())
}

fn create_with<'k, T>(kvm: &'k Kvm, lock: impl Fn() -> T) -> Result<&'k Vm>
where
    T: Deref<Target = MmuWrite<'k>>,
{
    loop {
        if let Some(vm) = find_or_claim(&lock()) {
            return Ok(vm);
        }
        // (Tasks that do this for one VM at the same time leave unused entries behind.)
        let _grow = GROW.lock();
        let chain = chain(kvm.key());
        let entry = KBox::new(Vm::new(chain.load(Relaxed)), GFP_KERNEL)?;
        chain.store(KBox::into_raw(entry) as usize, Release);
    }
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
        // Both are empty, unless somebody gave back a reference that was not theirs.
        // SAFETY: The VM has no users left, and the lock excludes who looks at all entries.
        unsafe {
            vm.provider.forget();
            vm.clients.forget();
        }
        vm.events.store(0, Relaxed);
        // If they still pin the module, it stays pinned: whoever registered them has yet to call us.
        store(&vm.pinned, NO);
        vm.key.store(0, Release);
        KNOWN.fetch_sub(1, Relaxed);
    }
}

/// Calls `f` for every VM in the table. Sleeps.
///
/// No VM of the table is destroyed meanwhile, but it may have no users left: `f` must not take
/// references ([`Kvm::get`]).
pub(crate) fn for_each(mut f: impl FnMut(&Kvm, &Vm) -> Result) -> Result {
    let _keep = KEEP.lock();
    for vm in CHAIN.iter().flat_map(entries) {
        if load(&vm.key) != 0 {
            // SAFETY: The lock keeps the VM: `destroyed` takes it before the VM's memory goes.
            f(unsafe { vm.kvm() }, vm)?;
        }
    }
    Ok(())
}

/// Forgets every VM, and frees every entry but the oldest. Sleeps.
///
/// # Safety
///
/// Every hook is detached and drained, and no other module can call this one.
pub(crate) unsafe fn clear() {
    let _grow = GROW.lock();
    for (chain, oldest) in CHAIN.iter().zip(&OLDEST) {
        // SAFETY: By the caller's promise nobody uses it (design, section 5, rule 2).
        unsafe { oldest.provider.forget() };
        let oldest = core::ptr::from_ref(oldest) as usize;
        let mut next = chain.load(Relaxed);
        chain.store(oldest, Relaxed);
        while next != oldest {
            // SAFETY: From `KBox::into_raw()` in `create_with`; the rest as above.
            let vm = unsafe {
                let vm = KBox::from_raw(next as *mut Vm);
                vm.provider.forget();
                vm
            };
            next = vm.next;
        }
    }
}

#[kernel::macros::kunit_tests(kvm_page_track_vm)]
#[allow(unsafe_op_in_unsafe_fn)]
mod tests {
    use super::*;
    use crate::kvm::unit::with_blank_vm;

    fn all() -> usize {
        CHAIN.iter().flat_map(entries).count()
    }

    struct AsIfLocked<'k>(MmuWrite<'k>);

    impl<'k> Deref for AsIfLocked<'k> {
        type Target = MmuWrite<'k>;

        fn deref(&self) -> &MmuWrite<'k> {
            &self.0
        }
    }

    /// [`find_or_create`], for a VM whose lock cannot be taken.
    fn made(kvm: &Kvm) -> &Vm {
        // SAFETY: Nobody else knows the VM.
        create_with(kvm, || AsIfLocked(unsafe { kvm.assume_mmu_locked() })).unwrap()
    }

    #[test]
    fn an_entry_lives_as_long_as_its_vm() {
        with_blank_vm(|kvm, _| {
            assert!(find(kvm).is_none());
            let vm = made(kvm);
            assert!(core::ptr::eq(find(kvm).unwrap(), vm));
            assert!(core::ptr::eq(made(kvm), vm));
            // SAFETY: The VM is ours.
            assert!(core::ptr::eq(unsafe { vm.kvm() }, kvm));
            // SAFETY: The entry is not used any more.
            unsafe { destroyed(kvm) };
            assert!(find(kvm).is_none());
        });
    }

    #[test]
    fn an_entry_is_used_again() {
        with_blank_vm(|kvm, _| {
            let vm = made(kvm);
            vm.events.store(7, Relaxed);
            let before = all();
            let alone = entries(chain(kvm.key())).count() == 1;
            // SAFETY: The entry is not used any more.
            unsafe { destroyed(kvm) };
            assert_eq!(all(), before);
            let again = made(kvm);
            assert_eq!(all(), before);
            assert!(core::ptr::eq(again, vm) || !alone);
            assert_eq!(again.events.load(Relaxed), 0);
            // SAFETY: As above.
            unsafe { destroyed(kvm) };
        });
    }

    #[test]
    fn an_only_entry_is_found_without_a_search() {
        with_blank_vm(|kvm, mmu| {
            let vm = made(kvm);
            let only = entries(chain(kvm.key())).count() == 1;
            assert_eq!(find_or_claim_only(mmu).is_some(), only);
            // SAFETY: The entry is not used any more.
            unsafe { destroyed(kvm) };
            assert_eq!(find_or_claim_only(mmu).is_some(), only);
            assert_eq!(find(kvm).is_some(), only);
            // Another's.
            vm.key.store(kvm.key() + 1, Relaxed);
            assert!(find_or_claim_only(mmu).is_none());
            vm.key.store(if only { kvm.key() } else { 0 }, Relaxed);
            // SAFETY: As above.
            unsafe { destroyed(kvm) };
        });
    }

    #[test]
    fn every_vm_has_its_own() {
        with_blank_vm(|a, _| {
            with_blank_vm(|b, _| {
                let of_a = made(a);
                let of_b = made(b);
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
