// SPDX-License-Identifier: GPL-2.0-only

//! The functions of `kvm.ko` that jump to us, and what they do now.
//!
//! The bodies only turn KVM's arguments into safe views and hand over to [`crate::memslot`],
//! [`crate::notifier`] and [`crate::tracker`]. Any mixture of C and Rust functions is correct, so
//! that attaching and detaching need no stop: readers and events come first, then what creates and
//! changes counters, registration last (design, section 5, rule 1).
//!
//! C source: `arch/x86/kvm/mmu/page_track.c`.

use crate::bindings;
use crate::ftrace::Jump;
use crate::guard;
use crate::kvm::{Gfn, Gpa, Kvm, Memslot, NewSlot};
use crate::kvm_symbols::{resolve, Symbol};
use crate::notifier_list::{KvmNotifiers, Node, Written};
use crate::{abi, memslot, notifier, vm};
use core::ptr::NonNull;
use kernel::error::from_result;
use kernel::ffi::{c_int, c_ulong};
use kernel::prelude::*;

/// Declares the table: functions of `kvm.ko`, in the order in which they are attached, their
/// replacements, and the type that both have.
macro_rules! hooks {
    ($($name:ident => $replacement:path as $proto:ty;)*) => {
        static HOOKS: [Jump; hooks!(@count $($name)*)] = [$({
            const REPLACEMENT: $proto = $replacement;
            // SAFETY: The type ascription above repeats the prototype of page_track.c; the body
            // keeps its contract as its documentation says.
            unsafe {
                Jump::new(
                    Symbol::new(hooks!(@symbol $name)),
                    REPLACEMENT as *const (),
                )
            }
        }),*];
    };
    (@count $($name:ident)*) => { [$(stringify!($name)),*].len() };
    (@symbol $name:ident) => {
        match CStr::from_bytes_with_nul(concat!("kvm:", stringify!($name), "\0").as_bytes()) {
            Ok(name) => name,
            Err(_) => unreachable!(),
        }
    };
}

type KvmPtr = *mut bindings::kvm;
type NodePtr = *mut bindings::kvm_page_track_notifier_node;

hooks! {
    kvm_page_track_cleanup => cleanup as unsafe extern "C" fn(&Kvm);
    kvm_gfn_is_write_tracked => gfn_is_write_tracked
        as unsafe extern "C" fn(&Kvm, Option<&Memslot>, Gfn) -> bool;
    __kvm_page_track_write => write
        as unsafe extern "C" fn(&Kvm, Gpa, *const u8, c_int);
    kvm_page_track_delete_slot => delete_slot as unsafe extern "C" fn(&Kvm, &Memslot);
    kvm_page_track_create_memslot => create_memslot
        as unsafe extern "C" fn(&Kvm, &Memslot, c_ulong) -> c_int;
    __kvm_write_track_add_gfn => add_gfn_locked as unsafe extern "C" fn(&Kvm, &Memslot, Gfn);
    __kvm_write_track_remove_gfn => remove_gfn_locked
        as unsafe extern "C" fn(&Kvm, &Memslot, Gfn);
    kvm_write_track_add_gfn => add_gfn as unsafe extern "C" fn(KvmPtr, Gfn) -> c_int;
    kvm_write_track_remove_gfn => remove_gfn as unsafe extern "C" fn(KvmPtr, Gfn) -> c_int;
    kvm_page_track_unregister_notifier => unregister_notifier
        as unsafe extern "C" fn(KvmPtr, NodePtr);
    kvm_page_track_register_notifier => register_notifier
        as unsafe extern "C" fn(KvmPtr, NodePtr) -> c_int;
}

/// `kvm_page_track_cleanup()`: a VM is being destroyed.
///
/// # Safety
///
/// KVM's arguments: a VM without users.
unsafe extern "C" fn cleanup(kvm: &Kvm) {
    let _guard = guard::enter();
    // SAFETY: The VM is being destroyed, nobody uses it any more.
    unsafe {
        vm::destroyed(kvm);
        KvmNotifiers::of(kvm).cleanup();
    }
}

/// `kvm_gfn_is_write_tracked()`. Neither sleeps nor takes a lock, so it needs no guard.
///
/// # Safety
///
/// KVM's arguments; the caller is in a `kvm->srcu` read section or holds `slots_lock`.
unsafe extern "C" fn gfn_is_write_tracked(kvm: &Kvm, slot: Option<&Memslot>, gfn: Gfn) -> bool {
    // SAFETY: As the caller promises.
    let slots = unsafe { kvm.assume_slots() };
    memslot::is_write_tracked(slots, slot, gfn)
}

/// `__kvm_page_track_write()`: a guest write was emulated.
///
/// # Safety
///
/// KVM's arguments; the caller is a vCPU task inside a `kvm->srcu` read section.
unsafe extern "C" fn write(kvm: &Kvm, gpa: Gpa, new: *const u8, bytes: c_int) {
    if !notifier::anybody_listens(kvm) {
        return;
    }
    // SAFETY: As the caller promises; `new` holds the bytes written during the call.
    let (slots, written) = unsafe { (kvm.assume_slots(), Written::new(gpa, new, bytes)) };
    notifier::write_emulated(slots, &written);
}

/// `kvm_page_track_delete_slot()`: a memslot was deleted and is about to be freed.
///
/// # Safety
///
/// KVM's arguments; `slots_lock` is held.
unsafe extern "C" fn delete_slot(kvm: &Kvm, slot: &Memslot) {
    notifier::region_removed(kvm, slot);
}

/// `kvm_page_track_create_memslot()`: a memslot is made, or made anew at another place.
///
/// # Safety
///
/// KVM's arguments; `slots_lock` and `slots_arch_lock` are held and the memslot is unpublished.
unsafe extern "C" fn create_memslot(kvm: &Kvm, slot: &Memslot, _npages: c_ulong) -> c_int {
    // SAFETY: As the caller promises.
    let new = unsafe { NewSlot::new(kvm, slot) };
    from_result(|| memslot::created(&new).map(|()| 0))
}

/// `__kvm_write_track_add_gfn()`: KVM shadows a guest page table. Neither sleeps nor takes a lock.
///
/// # Safety
///
/// KVM's arguments: `slot` holds `gfn`; `mmu_lock` is held for write.
unsafe extern "C" fn add_gfn_locked(kvm: &Kvm, slot: &Memslot, gfn: Gfn) {
    // SAFETY: As the caller promises.
    let (mmu, page) = unsafe { (kvm.assume_mmu_locked(), slot.page_unchecked(gfn)) };
    memslot::kvm_added(&mmu, page);
}

/// `__kvm_write_track_remove_gfn()`: KVM shadows it no more. Neither sleeps nor takes a lock.
///
/// # Safety
///
/// KVM's arguments: `slot` holds `gfn`; `mmu_lock` is held for write.
unsafe extern "C" fn remove_gfn_locked(kvm: &Kvm, slot: &Memslot, gfn: Gfn) {
    // SAFETY: As the caller promises.
    let (mmu, page) = unsafe { (kvm.assume_mmu_locked(), slot.page_unchecked(gfn)) };
    memslot::kvm_removed(&mmu, page);
}

/// `kvm_write_track_add_gfn()`: upstream's name of `kvm_page_track_add_page()`. What may sleep in it
/// takes the guard itself.
///
/// # Safety
///
/// `kvm` is NULL or a VM that the caller keeps alive.
unsafe extern "C" fn add_gfn(kvm: KvmPtr, gfn: Gfn) -> c_int {
    let _guard = guard::enter_if_locks_sleep();
    // SAFETY: The caller's promise.
    unsafe { abi::kvm_page_track_add_page(kvm, gfn, abi::WRITE) }
}

/// `kvm_write_track_remove_gfn()`: upstream's name of `kvm_page_track_remove_page()`.
///
/// # Safety
///
/// As [`add_gfn`].
unsafe extern "C" fn remove_gfn(kvm: KvmPtr, gfn: Gfn) -> c_int {
    let _guard = guard::enter_if_locks_sleep();
    // SAFETY: The caller's promise.
    unsafe { abi::kvm_page_track_remove_page(kvm, gfn, abi::WRITE) }
}

/// `kvm_page_track_register_notifier()`.
///
/// # Safety
///
/// As [`add_gfn`]; `node` is NULL or a notifier that stays valid until it is unregistered.
unsafe extern "C" fn register_notifier(kvm: KvmPtr, node: NodePtr) -> c_int {
    let _guard = guard::enter();
    from_result(|| {
        let kvm = NonNull::new(kvm).ok_or(EINVAL)?;
        let node = NonNull::new(node).ok_or(EINVAL)?;
        // SAFETY: The caller's promise.
        let (kvm, node) = unsafe { (Kvm::from_ptr(kvm), Node::from_ptr(node)) };
        notifier::register(kvm, node).map(|()| 0)
    })
}

/// `kvm_page_track_unregister_notifier()`.
///
/// # Safety
///
/// As [`register_notifier`].
unsafe extern "C" fn unregister_notifier(kvm: KvmPtr, node: NodePtr) {
    let _guard = guard::enter();
    if let (Some(kvm), Some(node)) = (NonNull::new(kvm), NonNull::new(node)) {
        // SAFETY: The caller's promise.
        let (kvm, node) = unsafe { (Kvm::from_ptr(kvm), Node::from_ptr(node)) };
        notifier::unregister(kvm, node);
    }
}

/// Every hook, in the order of attachment.
pub(crate) fn all() -> &'static [Jump] {
    &HOOKS
}

/// Attaches every hook, or none. Sleeps.
///
/// # Errors
///
/// `ENOENT` if a function is missing, `EBUSY` if somebody else has replaced one; the kernel log
/// names it.
pub(crate) fn attach() -> Result {
    let addresses = resolve(&HOOKS.each_ref().map(Jump::symbol))?;
    for (hook, &address) in HOOKS.iter().zip(&addresses) {
        // SAFETY: The address is that of the hook's function.
        if let Err(e) = unsafe { hook.attach(address) } {
            let name = hook.symbol().name();
            if e == EBUSY {
                pr_err!("{name} is in use by a livepatch, a kprobe or a BPF program\n");
            } else {
                pr_err!("cannot attach to {name} (error {})\n", e.to_errno());
            }
            detach();
            return Err(e);
        }
    }
    Ok(())
}

/// Detaches every hook and waits until nobody runs in this module. Takes seconds.
///
/// If ftrace cannot take back a jump, this function says so and never returns: the text that the
/// jump leads to must not be freed.
pub(crate) fn detach() {
    let [cleanup, others @ ..] = &HOOKS;
    others.iter().rev().for_each(detach_one);
    // While VMs that die still tell us.
    notifier::drain();
    detach_one(cleanup);
    guard::drain();
}

fn detach_one(hook: &'static Jump) {
    let Err(e) = hook.detach() else { return };
    pr_emerg!(
        "ftrace cannot detach {} (error {}). KVM goes on jumping to this module, which therefore \
         stays in memory for good; reboot when you can\n",
        hook.symbol().name(),
        e.to_errno()
    );
    loop {
        // SAFETY: Sleeps, in module exit or in a failed init: no lock is held.
        unsafe { bindings::kpt_sleep_idle() };
    }
}

#[kernel::macros::kunit_tests(kvm_page_track_mmu_hooks)]
#[allow(unsafe_op_in_unsafe_fn)]
mod tests {
    use super::*;

    #[test]
    fn no_function_is_replaced_twice() {
        for (i, hook) in HOOKS.iter().enumerate() {
            assert!(!hook.symbol().name().is_empty());
            assert!(!hook.symbol().name().contains(':'));
            for other in &HOOKS[i + 1..] {
                assert!(hook.symbol().name() != other.symbol().name());
                assert!(hook.replacement() != other.replacement());
            }
        }
    }

    #[test]
    fn replacements_can_carry_the_jump_tag() {
        for hook in &HOOKS {
            assert_eq!(hook.replacement() & 1, 0);
        }
    }

    #[test]
    fn registration_comes_last_and_readers_come_before_writers() {
        let at = |name| {
            HOOKS
                .iter()
                .position(|hook| hook.symbol().name() == name)
                .unwrap()
        };
        assert_eq!(at("kvm_page_track_register_notifier"), HOOKS.len() - 1);
        // The table of VMs is right as long as VMs that die tell us: first and last.
        assert_eq!(at("kvm_page_track_cleanup"), 0);
        assert!(at("kvm_gfn_is_write_tracked") < at("kvm_page_track_create_memslot"));
        assert!(at("__kvm_page_track_write") < at("kvm_page_track_create_memslot"));
        assert!(at("kvm_page_track_create_memslot") < at("__kvm_write_track_add_gfn"));
        assert!(at("__kvm_write_track_add_gfn") < at("kvm_write_track_add_gfn"));
        assert!(at("kvm_write_track_remove_gfn") < at("kvm_page_track_register_notifier"));
    }
}
