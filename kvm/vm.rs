// SPDX-License-Identifier: GPL-2.0-only

//! What we keep of a VM, and the table of all VMs that we know.
//!
//! A VM gets an entry with the first add, prepare or register. The entry goes when the VM is destroyed,
//! or with the module: as long as a VM has users, its entry may be used. The table is the kernel's hash
//! list, read under RCU and written under one mutex (`vm.c`). The mutex comes before `slots_arch_lock` and
//! `mmu_lock` in the order of locks.

use super::listeners::{Client, List};
use super::{Kvm, MmuWrite};
use crate::base::bindings;
use crate::base::module_pin::ModulePin;
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::sync::global_lock;
use kernel::types::Opaque;

/// What we keep of a VM.
#[repr(C)]
pub(crate) struct Vm {
    /// The entry in the table. The first field: C frees the whole by it.
    link: Opaque<bindings::kpt_vm>,
    /// Upstream's notifiers, where KVM has no list of its own.
    #[cfg(not(CONFIG_KVM_EXTERNAL_WRITE_TRACKING = "y"))]
    pub(super) notifiers: List<super::Node>,
    /// In whose sections the lists are read, there.
    #[cfg(not(CONFIG_KVM_EXTERNAL_WRITE_TRACKING = "y"))]
    pub(super) srcu: crate::base::srcu::OnDemand,
    /// Notifiers that can follow a moved memslot.
    pub(super) clients: List<Client>,
    /// Guest writes that clients were told of, each counted once.
    pub(crate) events: Atomic<u64>,
    /// The task that is inside a `track_move_region` callback, or 0.
    mover: Atomic<usize>,
    /// Whether the VM's notifiers pin the module: 1, or 0. Changes under `mmu_lock`.
    pinned: Atomic<i32>,
}

// SAFETY: `link` is written under the mutex of the table; the rest is `Sync`.
unsafe impl Sync for Vm {}

global_lock! {
    // SAFETY: Initialised in `init` before anything else uses it.
    unsafe(uninit) static TABLE: Mutex<()> = ();
}

/// Sets up the table.
///
/// # Safety
///
/// To be called once, before anything else of this file.
pub(crate) unsafe fn init() {
    // SAFETY: The caller's promise.
    unsafe { TABLE.init() };
}

impl Vm {
    /// An entry that is in no table.
    fn new(kvm: &Kvm) -> Self {
        // SAFETY: C's types: a list node, a pointer and an RCU head may all be zero.
        let mut link: bindings::kpt_vm = unsafe { core::mem::zeroed() };
        link.kvm = kvm.as_ptr();
        Self {
            link: Opaque::new(link),
            #[cfg(not(CONFIG_KVM_EXTERNAL_WRITE_TRACKING = "y"))]
            notifiers: List::new(),
            #[cfg(not(CONFIG_KVM_EXTERNAL_WRITE_TRACKING = "y"))]
            srcu: crate::base::srcu::OnDemand::new(),
            clients: List::new(),
            events: Atomic::new(0),
            mover: Atomic::new(0),
            pinned: Atomic::new(0),
        }
    }

    /// Whether the VM's notifiers pin the module. Without the lock a hint.
    pub(crate) fn pins(&self) -> bool {
        self.pinned.load(Relaxed) != 0
    }

    /// Calls `f`, which calls `track_move_region` callbacks. This task holds `slots_arch_lock`, so no
    /// other task of the VM is doing the same.
    pub(crate) fn in_move_callbacks(&self, f: impl FnOnce()) {
        self.mover.store(current_task(), Relaxed);
        f();
        self.mover.store(0, Relaxed);
    }

    /// Whether this task is in such a callback, hence holds `slots_arch_lock`.
    pub(crate) fn is_in_move_callback(&self) -> bool {
        self.mover.load(Relaxed) == current_task()
    }
}

fn current_task() -> usize {
    kernel::current!().as_ptr() as usize
}

/// What we keep of a VM, if we know it. Any context.
pub(crate) fn find(kvm: &Kvm) -> Option<&Vm> {
    // SAFETY: An entry is freed when its VM is destroyed, or when nobody uses the module any more: not as
    // long as the result.
    unsafe {
        bindings::kpt_vm_find(kvm.as_ptr())
            .cast::<Vm>()
            .cast_const()
            .as_ref()
    }
}

/// The same for the VM that is locked.
pub(crate) fn find_locked<'k>(mmu: &MmuWrite<'k>) -> Option<&'k Vm> {
    // SAFETY: As in `find`; the lock is held.
    unsafe {
        bindings::kpt_vm_find_locked(mmu.kvm().as_ptr())
            .cast::<Vm>()
            .cast_const()
            .as_ref()
    }
}

/// The same, with an entry made if there is none. Sleeps.
///
/// # Errors
///
/// `ENOMEM`.
pub(crate) fn find_or_create(kvm: &Kvm) -> Result<&Vm> {
    if let Some(vm) = find(kvm) {
        return Ok(vm);
    }
    let _table = TABLE.lock();
    if let Some(vm) = find(kvm) {
        return Ok(vm);
    }
    let vm = KBox::into_raw(KBox::new(Vm::new(kvm), GFP_KERNEL_ACCOUNT)?);
    // SAFETY: It is in no table, does not move, and is freed by `forget`. The mutex excludes other writers.
    unsafe { bindings::kpt_vm_insert(vm.cast()) };
    // SAFETY: As in `find`.
    Ok(unsafe { &*vm })
}

/// Pins the module for the notifiers of the VM that is locked, which has an entry. True if they did not pin it
/// yet.
///
/// # Errors
///
/// `EAGAIN` if the module is going away.
pub(crate) fn pin(mmu: &MmuWrite<'_>) -> Result<bool> {
    let vm = find_locked(mmu).ok_or(EAGAIN)?;
    if vm.pins() {
        return Ok(false);
    }
    ModulePin::get()?.keep();
    vm.pinned.store(1, Relaxed);
    Ok(true)
}

/// Takes that back, if they do.
pub(crate) fn unpin(mmu: &MmuWrite<'_>) -> Option<ModulePin> {
    let vm = find_locked(mmu).filter(|vm| vm.pins())?;
    vm.pinned.store(0, Relaxed);
    // SAFETY: `pin` kept one, and has just been told so.
    Some(unsafe { ModulePin::take_back() })
}

/// Forgets a VM that is being destroyed. Sleeps.
///
/// # Safety
///
/// The VM has no users left, hence no notifiers and clients; nothing that `find` returned for it is
/// used any more.
pub(crate) unsafe fn destroyed(kvm: &Kvm) {
    // A VM without users gets no entry any more.
    if find(kvm).is_none() {
        return;
    }
    // `for_each` may be looking at it.
    let _table = TABLE.lock();
    if let Some(vm) = find(kvm) {
        // SAFETY: The caller's promise, and the mutex.
        unsafe { forget(vm) };
    }
}

/// Takes an entry out of the table, and frees it when no reader of the table can see it any more.
///
/// # Safety
///
/// The mutex is held, and nobody uses what is in the entry.
unsafe fn forget(vm: &Vm) {
    // If the VM's notifiers still pin the module, it stays pinned: their owner has yet to unregister them.
    #[cfg(not(CONFIG_KVM_EXTERNAL_WRITE_TRACKING = "y"))]
    // SAFETY: Nobody is or comes into a section: the VM has no users, or the guard is drained
    // (docs/internals.md, rule 2).
    unsafe {
        vm.srcu.free()
    };
    // SAFETY: It is in the table, and from `KBox::into_raw()`. Nothing in it has to be dropped.
    unsafe { bindings::kpt_vm_remove(vm.link.get()) };
}

/// Calls `f` for every VM in the table. Sleeps.
///
/// No VM of the table is destroyed meanwhile, but it may have no users left.
///
/// # Errors
///
/// Those of `f`.
pub(crate) fn for_each(mut f: impl FnMut(&Kvm, &Vm) -> Result) -> Result {
    let _table = TABLE.lock();
    let mut bucket = 0;
    // SAFETY: The mutex excludes writers.
    let mut next = unsafe { bindings::kpt_vm_first(&mut bucket) };
    // SAFETY: An entry is not freed before `destroyed` has had the mutex, nor its VM.
    while let Some(vm) = unsafe { next.cast::<Vm>().cast_const().as_ref() } {
        // SAFETY: As above.
        f(unsafe { &*(*vm.link.get()).kvm.cast::<Kvm>() }, vm)?;
        // SAFETY: As above.
        next = unsafe { bindings::kpt_vm_next(vm.link.get(), &mut bucket) };
    }
    Ok(())
}

/// Forgets every VM. Sleeps.
///
/// # Safety
///
/// Every hook is detached and drained, and no other module can call this one.
pub(crate) unsafe fn clear() {
    let _table = TABLE.lock();
    let mut bucket = 0;
    loop {
        // SAFETY: The mutex excludes writers.
        let first = unsafe { bindings::kpt_vm_first(&mut bucket) };
        // SAFETY: As in `for_each`.
        let Some(vm) = (unsafe { first.cast::<Vm>().cast_const().as_ref() }) else {
            return;
        };
        // SAFETY: By the caller's promise nobody uses it (docs/internals.md, rule 2).
        unsafe { forget(vm) };
    }
}

#[kernel::macros::kunit_tests(kvm_page_track_vm)]
#[allow(unsafe_op_in_unsafe_fn)]
mod tests {
    use super::*;
    use crate::kvm::unit::with_blank_vm;
    use core::mem::MaybeUninit;

    fn made(kvm: &Kvm) -> &Vm {
        find_or_create(kvm).unwrap()
    }

    #[test]
    fn an_entry_lives_as_long_as_its_vm() {
        with_blank_vm(|kvm, _| {
            assert!(find(kvm).is_none());
            let vm = made(kvm);
            assert!(core::ptr::eq(find(kvm).unwrap(), vm));
            assert!(core::ptr::eq(made(kvm), vm));
            // SAFETY: The entry is not used any more.
            unsafe { destroyed(kvm) };
            assert!(find(kvm).is_none());
            // SAFETY: There is none.
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

    #[test]
    fn all_are_found_and_none_is_left() {
        let mut vms = KVec::new();
        // So many that some share a bucket.
        for _ in 0..40 {
            let kvm = KBox::<Opaque<bindings::kvm>>::new_uninit(GFP_KERNEL).unwrap();
            vms.push(kvm, GFP_KERNEL).unwrap();
        }
        let view = |vm: &KBox<MaybeUninit<Opaque<bindings::kvm>>>| vm.as_ptr().cast::<Kvm>();
        for vm in &vms {
            // SAFETY: Only the address is looked at.
            made(unsafe { &*view(vm) });
        }
        let mut n = 0;
        for_each(|kvm, _| {
            n += usize::from(vms.iter().any(|vm| core::ptr::eq(view(vm), kvm)));
            Ok(())
        })
        .unwrap();
        assert_eq!(n, vms.len());
        for vm in &vms {
            // SAFETY: The entry is not used any more.
            unsafe { destroyed(&*view(vm)) };
        }
        for_each(|kvm, _| {
            assert!(!vms.iter().any(|vm| core::ptr::eq(view(vm), kvm)));
            Ok(())
        })
        .unwrap();
    }
}
