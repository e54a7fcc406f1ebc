// SPDX-License-Identifier: GPL-2.0-only

//! Registering listeners with a VM, and reading its lists of them.
//!
//! A registered listener has a reference to its VM. A client has one to this module as well; upstream's
//! notifiers of a VM share one.
//!
//! C source: `kvm_page_track_register_notifier()` and `kvm_page_track_unregister_notifier()` in
//! `arch/x86/kvm/mmu/page_track.c`.

use super::listeners::{Client, Listener, Node, Nodes};
use super::{external, vm, Kvm, MmuWrite};
use crate::base::module_pin::ModulePin;
use crate::base::once::{atomic_read, smp_mb};
use crate::base::{bindings, srcu};
use core::ptr::NonNull;
use kernel::ffi::c_int;
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::types::NotThreadSafe;

/// Number of clients of all VMs.
static CLIENTS: Atomic<usize> = Atomic::new(0);

/// Whether any VM has a client: a cheap question before a VM's are looked for.
///
/// A client is counted and listed before its registration's full barrier, and a vCPU asks after its write and
/// a full barrier. So if the vCPU sees no client, what the client reads from then on includes the write.
pub(crate) fn any_client() -> bool {
    atomic_read(&CLIENTS) != 0
}

/// A read section of the lists of a VM. It may sleep.
pub(crate) struct ListSection<'k> {
    kvm: &'k Kvm,
    srcu: NonNull<bindings::srcu_struct>,
    idx: c_int,
    _not_send: NotThreadSafe,
}

impl<'k> ListSection<'k> {
    /// Enters it. Nothing if nobody can be registered with the VM.
    pub(crate) fn enter(kvm: &'k Kvm) -> Option<Self> {
        let srcu = external::srcu(kvm)?;
        Some(Self {
            kvm,
            srcu,
            // SAFETY: Set up, and not cleaned up before the VM dies, or before the module goes and everybody
            // has left it (docs/internals.md, rule 2).
            idx: unsafe { srcu::read_lock(srcu.as_ptr()) },
            _not_send: NotThreadSafe,
        })
    }

    /// Waits for the sections of a VM that are open now. Sleeps; not to be called in one.
    fn synchronize(kvm: &Kvm) {
        if let Some(srcu) = external::srcu(kvm) {
            // SAFETY: As in `enter`.
            unsafe { bindings::synchronize_srcu(srcu.as_ptr()) };
        }
    }

    /// Upstream's notifiers, to be called.
    pub(crate) fn notifiers(&self) -> Nodes<'_, Node> {
        match external::notifiers(self.kvm) {
            // SAFETY: In the section, as long as `self`.
            Some(list) => unsafe { list.nodes() },
            None => Nodes::none(),
        }
    }

    /// The clients, to be called.
    pub(crate) fn clients(&self) -> Nodes<'_, Client> {
        let vm = any_client().then(|| vm::find(self.kvm)).flatten();
        match vm {
            // SAFETY: In the section, as long as `self`.
            Some(vm) => unsafe { vm.clients.nodes() },
            None => Nodes::none(),
        }
    }
}

impl Drop for ListSection<'_> {
    fn drop(&mut self) {
        // SAFETY: `idx` is from the matching `read_lock`, in the same task: the type is not `Send`.
        unsafe { srcu::read_unlock(self.srcu.as_ptr(), self.idx) };
    }
}

impl Kvm {
    /// Whether the VM has notifiers of upstream's. A hint: nothing keeps them.
    #[inline(always)] // the event path
    pub(crate) fn has_notifiers(&self) -> bool {
        external::notifiers(self).is_some_and(|list| !list.is_empty())
    }

    /// Takes a reference for a listener.
    fn get(&self) -> Result {
        // SAFETY: By the type invariant.
        if unsafe { bindings::kvm_get_kvm_safe(self.as_ptr()) } {
            Ok(())
        } else {
            Err(ESRCH)
        }
    }
}

/// Whether we know the VM that is locked: has it an entry in the table of VMs?
///
/// A VM with notifiers that C has not registered has one, so mostly the table is not asked.
pub(crate) fn is_known(mmu: &MmuWrite<'_>) -> bool {
    (mmu.kvm().has_notifiers() && !external::enabled_by_c(mmu.kvm()))
        || vm::find_locked(mmu).is_some()
}

/// Shows that a notifier that looks linked was in no list of any VM, a moment ago.
pub(crate) struct LookedFor<'n>(&'n Node);

/// Looks for a notifier in the lists of all VMs. Sleeps.
///
/// # Errors
///
/// `EEXIST` if it is there.
pub(crate) fn look_for(node: &Node) -> Result<LookedFor<'_>> {
    vm::for_each(|kvm, vm| {
        let mmu = kvm.lock_mmu();
        let mut found = false;
        // SAFETY: The lock is that of the VM.
        unsafe {
            found |= external::notifiers(kvm).is_some_and(|list| list.contains(node, &mmu));
            vm.clients
                .nodes()
                .for_each(|client| found |= core::ptr::eq(client.node(), node));
        }
        if found {
            Err(EEXIST)
        } else {
            Ok(())
        }
    })?;
    Ok(LookedFor(node))
}

/// Makes what the first registration with a VM needs. Sleeps.
///
/// # Errors
///
/// `ENOMEM`.
pub(crate) fn make_ready(kvm: &Kvm) -> Result {
    let vm = vm::find_or_create(kvm)?;
    external::make_ready(vm)
}

/// Registers a notifier with the VM that is locked, for which [`make_ready`] has been called. One that looks
/// linked has to have been looked for.
///
/// # Errors
///
/// `EEXIST` if it is registered, or may be; `ESRCH` if the VM has no users any more.
pub(crate) fn insert_notifier(
    mmu: &MmuWrite<'_>,
    node: &Node,
    looked_for: Option<LookedFor<'_>>,
) -> Result {
    let list = external::notifiers(mmu.kvm()).ok_or(ESRCH)?;
    if node.may_be_linked(mmu) {
        let was_in_none = looked_for.is_some_and(|found| core::ptr::eq(found.0, node));
        // Somebody else may have registered it with this VM since.
        // SAFETY: The lock is that of the VM.
        if !was_in_none || unsafe { list.contains(node, mmu) } {
            return Err(EEXIST);
        }
    }
    mmu.kvm().get()?;
    // SAFETY: It is in no list, as has been asked; by the invariant of `Node` nobody registers it with another
    // VM meanwhile, and it stays valid until it is unregistered. The lock is that of the VM, whose list stays
    // where it is.
    unsafe { list.insert(node, mmu) };
    Ok(())
}

/// Takes a notifier out of the list of the VM that is locked, if it is there.
pub(crate) fn remove_notifier<'k>(mmu: &MmuWrite<'k>, node: &Node) -> Option<Registered<'k>> {
    let kvm = mmu.kvm();
    // SAFETY: The lock is that of the VM.
    if !unsafe { external::notifiers(kvm)?.remove(node, mmu) } {
        return None;
    }
    // Where C tracked the VM before us, nothing pins us: the notifiers that are left go back to C.
    let is_last = !kvm.has_notifiers() || external::enabled_by_c(kvm);
    Some(Registered {
        kvm,
        pin: is_last.then(|| vm::unpin(mmu)).flatten(),
    })
}

/// Registers a client with a VM, for which [`make_ready`] has been called.
///
/// # Errors
///
/// `EEXIST` if the client is registered, `ESRCH` if the VM has no users any more.
pub(crate) fn insert_client(kvm: &Kvm, client: &Client, pin: ModulePin) -> Result {
    let mmu = kvm.lock_mmu();
    let vm = vm::find(kvm).ok_or(ESRCH)?;
    // (Clients are zeroed before their first registration.)
    if client.may_be_linked(&mmu) {
        return Err(EEXIST);
    }
    kvm.get()?;
    CLIENTS.add(1, Relaxed);
    // SAFETY: It is in no list, and that it is not being registered with another VM is its contract, as is
    // that it stays valid until it is unregistered. The lock is that of the VM; an entry does not move.
    unsafe { vm.clients.insert(client, &mmu) };
    // First the list, then what the caller reads of guest memory: see `any_client`.
    smp_mb();
    pin.keep();
    Ok(())
}

/// Takes a client out of the list of a VM, if it is there.
pub(crate) fn remove_client<'k>(kvm: &'k Kvm, client: &Client) -> Option<Registered<'k>> {
    let mmu = kvm.lock_mmu();
    // SAFETY: The lock is that of the VM.
    if !unsafe { vm::find(kvm)?.clients.remove(client, &mmu) } {
        return None;
    }
    CLIENTS.fetch_sub(1, Relaxed);
    Some(Registered {
        kvm,
        // SAFETY: `insert_client` kept one.
        pin: Some(unsafe { ModulePin::take_back() }),
    })
}

/// What a listener had that has been taken out of its list: a reference to the VM, and perhaps one to the
/// module.
///
/// Dropped, it waits until no callback of the listener runs any more, and gives them back. That sleeps, and
/// may destroy the VM: not to be done under `mmu_lock`.
pub(crate) struct Registered<'k> {
    kvm: &'k Kvm,
    /// Given back last.
    #[allow(dead_code)]
    pin: Option<ModulePin>,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        ListSection::synchronize(self.kvm);
        // SAFETY: The reference that registering took, here or in C. `kvm` is not used afterwards.
        unsafe { bindings::kvm_put_kvm(self.kvm.as_ptr()) };
    }
}
