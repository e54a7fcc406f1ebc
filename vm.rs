// SPDX-License-Identifier: GPL-2.0-only

//! What the module knows of a VM, and the table of all VMs it knows something of.
//!
//! A VM gets an entry with the first add, prepare or register, and loses it when it is destroyed
//! (`kvm_page_track_cleanup()` or `kvm_mmu_uninit_vm()`) or when the module goes. So whoever has a [`Kvm`] may use the entry
//! as long.

use crate::inline_atomic::load;
use crate::kvm::Kvm;
use crate::notifier_list::{Client, NotifierList};
use crate::provider::Place;
use crate::vm_cache;
use crate::xa::Xa;
use core::ptr::NonNull;
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::sync::global_lock;

/// The module's state of one VM.
pub(crate) struct Vm {
    kvm: KvmPtr,
    /// Upstream's notifiers, unless they are in a list of KVM's own.
    pub(crate) notifiers: Place,
    /// Clients with `track_move_region`.
    pub(crate) clients: NotifierList<Client>,
    /// Guest writes delivered, each counted once.
    pub(crate) events: Atomic<u64>,
    /// The task that is inside a `track_move_region` callback, or 0.
    mover: Atomic<usize>,
}

/// The VM of an entry. Valid as long as the entry is in the table.
struct KvmPtr(NonNull<Kvm>);

// SAFETY: Any task may use a VM, which has locks of its own.
unsafe impl Send for KvmPtr {}
// SAFETY: As above.
unsafe impl Sync for KvmPtr {}

/// [`Kvm::key`] to the address of a [`Vm`].
// SAFETY: `init` sets it up before anything else uses it.
static TABLE: Xa = unsafe { Xa::uninit() };

global_lock! {
    // SAFETY: Initialised in `init` before anything else uses it.
    unsafe(uninit) static TABLE_WRITE: Mutex<()> = ();
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
        TABLE.init();
        TABLE_WRITE.init();
    }
}

impl Vm {
    fn new(kvm: &Kvm) -> Self {
        Self {
            kvm: KvmPtr(NonNull::from(kvm)),
            notifiers: Place::new(),
            clients: NotifierList::new(),
            events: Atomic::new(0),
            mover: Atomic::new(0),
        }
    }

    /// Makes the list of notifiers ready for an insertion. Sleeps.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn open_notifiers(&self) -> Result {
        if self.notifiers.is_open() {
            return Ok(());
        }
        let _write = TABLE_WRITE.lock();
        self.notifiers.open()
    }

    /// Adds a client. False if it is in a list already, or the list of this VM is not open.
    pub(crate) fn insert_client(&self, client: &Client) -> bool {
        let mmu = self.kvm().lock_mmu();
        // SAFETY: The lock is that of the VM. The client is in no list: it has just been asked, and
        // that it is not registered with another VM meanwhile is up to its owner.
        !client.is_linked(&mmu) && unsafe { self.clients.insert(client, &mmu) }
    }

    /// Takes a client out. False if it is not there.
    pub(crate) fn remove_client(&self, client: &Client) -> bool {
        // SAFETY: The lock is that of the VM.
        unsafe { self.clients.remove(client, &self.kvm().lock_mmu()) }
    }

    fn kvm(&self) -> &Kvm {
        // SAFETY: Whoever has the entry has it from the table, which keeps the VM.
        unsafe { self.kvm.0.as_ref() }
    }

    /// Makes the list of clients ready for an insertion. Sleeps.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn open_clients(&self) -> Result {
        if self.clients.is_open() {
            return Ok(());
        }
        let _write = TABLE_WRITE.lock();
        self.clients.open()
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

/// What the module knows of a VM. Any context.
#[inline]
pub(crate) fn find(kvm: &Kvm) -> Option<&Vm> {
    let address = vm_cache::get(kvm.key()).or_else(|| TABLE.load(kvm.key()))?;
    // SAFETY: The table and the cache hold addresses from `KBox::into_raw()` in `find_or_create`. An entry is
    // freed when its VM is destroyed, which cannot be as long as `kvm` is borrowed, or by `clear`
    // after every user of the module is gone.
    Some(unsafe { &*(address as *const Vm) })
}

/// The same as [`find`], with an entry made if there is none. Sleeps.
///
/// # Errors
///
/// `ENOMEM`.
pub(crate) fn find_or_create(kvm: &Kvm) -> Result<&Vm> {
    if let Some(vm) = find(kvm) {
        return Ok(vm);
    }
    let _write = TABLE_WRITE.lock();
    if let Some(vm) = find(kvm) {
        return Ok(vm);
    }
    let raw = KBox::into_raw(KBox::new(Vm::new(kvm), GFP_KERNEL_ACCOUNT)?);
    if let Err(e) = TABLE.insert(kvm.key(), raw as usize) {
        // SAFETY: `raw` comes from `into_raw()` above and nobody else has seen it.
        unsafe { free(raw as usize) };
        return Err(e);
    }
    vm_cache::put(kvm.key(), raw as usize);
    find(kvm).ok_or(ENOMEM)
}

/// Frees an entry.
///
/// # Safety
///
/// `address` comes from `find_or_create`, and nobody uses the entry or can find it.
unsafe fn free(address: usize) {
    // SAFETY: The caller's promise.
    drop(unsafe { KBox::from_raw(address as *mut Vm) });
}

/// Forgets a VM that is being destroyed.
///
/// # Safety
///
/// The VM has no users left; nothing that `find` returned for it is used any more.
pub(crate) unsafe fn destroyed(kvm: &Kvm) {
    let address = {
        let _write = TABLE_WRITE.lock();
        let Some(address) = TABLE.load(kvm.key()) else {
            return;
        };
        vm_cache::remove(kvm.key());
        TABLE.erase(kvm.key());
        address
    };
    // SAFETY: By the caller's promise nobody but `for_each` could use the entry: that holds the lock,
    // and does not find the entry any more.
    unsafe { free(address) };
}

/// Calls `f` for every VM in the table. Sleeps.
///
/// No VM of the table is destroyed meanwhile, but it may have no users left: `f` must not take
/// references ([`Kvm::get`]).
pub(crate) fn for_each(mut f: impl FnMut(&Kvm, &Vm) -> Result) -> Result {
    let _write = TABLE_WRITE.lock();
    let mut from = 0;
    while let Some((key, address)) = TABLE.find(from, usize::MAX) {
        // SAFETY: The entry is in the table and the lock keeps it there; `destroyed` takes the lock
        // before the VM's memory goes.
        unsafe {
            let vm = &*(address as *const Vm);
            f(vm.kvm.0.as_ref(), vm)?;
        }
        from = key + 1;
    }
    Ok(())
}

/// Frees every entry.
///
/// # Safety
///
/// Every hook is detached and drained, and no other module can call this one.
pub(crate) unsafe fn clear() {
    let _write = TABLE_WRITE.lock();
    while let Some((key, address)) = TABLE.find(0, usize::MAX) {
        vm_cache::remove(key);
        TABLE.erase(key);
        // SAFETY: The caller's promise: nobody uses the entry.
        unsafe { free(address) };
    }
}
