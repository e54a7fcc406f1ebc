// SPDX-License-Identifier: GPL-2.0-only

//! The functions of `kvm.ko` that lead to us, and what they do now.
//!
//! Which these are depends on what KVM offers to other modules: the two tables are in `mmu_hooks/`. The
//! bodies only turn KVM's arguments into safe views and hand over to the layers below; nothing else
//! belongs here.
//!
//! Any mixture of C and Rust functions is correct, so that attaching and detaching need no stop: who
//! unregisters, reads and tells comes first, then what creates and changes counters, registration last
//! (docs/internals.md, rule 1).
//!
//! C source: `arch/x86/kvm/mmu/page_track.c`.

#[cfg_attr(
    CONFIG_KVM_EXTERNAL_WRITE_TRACKING = "y",
    path = "mmu_hooks/with_tracking.rs"
)]
#[cfg_attr(
    not(CONFIG_KVM_EXTERNAL_WRITE_TRACKING = "y"),
    path = "mmu_hooks/without_tracking.rs"
)]
mod table;

pub(crate) use table::{ATTACHED, DETACHED, OBSERVED};

use crate::abi::errno;
use crate::base::ftrace::Hook;
use crate::base::guard;
use crate::base::kernel_api::sleep_for_ever;
use crate::base::symbol::resolve;
use crate::kvm::{external, vm, Gfn, Gpa, Kvm, Memslot, NewSlot, Written};
use crate::memslot::{self, owners};
use crate::tracker::{detach::untrack_all, event, memslot_moves};
use kernel::ffi::{c_int, c_ulong};
use kernel::prelude::*;
use table::HOOKS;

/// How many of the hooks stay until nobody is called by us any more: who tells of VMs that die.
const UNTIL_DRAINED: usize = 1;

/// Declares the table of hooks in the order in which they are attached: `replace` a function by ours
/// and the type that both have; `before` a function, a stub that it is to call.
macro_rules! hooks {
    ($($kind:ident $name:ident: $ours:path as $type:ty;)*) => {
        pub(super) static HOOKS: [$crate::base::ftrace::Hook; [$(stringify!($name)),*].len()] = [$({
            const OURS: $type = $ours;
            // SAFETY: The type ascription above repeats the prototype of the function replaced, and
            // the body keeps its contract as its documentation says; or it is a stub of
            // without_tracking_stubs.S, which only returns.
            unsafe {
                $crate::base::ftrace::Hook::$kind(
                    $crate::base::symbol::Symbol::new($crate::mmu_hooks::hooks!(@symbol $name)),
                    OURS as *const (),
                )
            }
        }),*];
    };
    (@symbol $name:ident) => {
        match CStr::from_bytes_with_nul(concat!("kvm:", stringify!($name), "\0").as_bytes()) {
            Ok(name) => name,
            Err(_) => unreachable!(),
        }
    };
}
use hooks;

/// A VM is being destroyed: `kvm_page_track_cleanup()`, or before `kvm_mmu_uninit_vm()`.
///
/// # Safety
///
/// KVM's arguments: a VM without users.
pub(crate) unsafe extern "C" fn cleanup(kvm: &Kvm) {
    let _guard = guard::enter();
    // SAFETY: The VM is being destroyed, nobody uses it any more.
    unsafe {
        vm::destroyed(kvm);
        external::cleanup(kvm);
    }
}

/// `kvm_gfn_is_write_tracked()`. Neither sleeps nor takes a lock, so it needs no guard.
///
/// # Safety
///
/// KVM's arguments; the caller is in a `kvm->srcu` read section or holds `slots_lock`.
pub(crate) unsafe extern "C" fn gfn_is_write_tracked(
    kvm: &Kvm,
    slot: Option<&Memslot>,
    gfn: Gfn,
) -> bool {
    // SAFETY: As the caller promises.
    let slots = unsafe { kvm.assume_slots() };
    memslot::is_write_tracked(slots, slot, gfn)
}

/// `__kvm_page_track_write()`, or before `kvm_mmu_track_write()`: a guest write was emulated.
///
/// # Safety
///
/// KVM's arguments; the caller is a vCPU task inside a `kvm->srcu` read section.
pub(crate) unsafe extern "C" fn write(kvm: &Kvm, gpa: Gpa, new: *const u8, bytes: c_int) {
    // SAFETY: As the caller promises; `new` holds the bytes written during the call.
    let (vcpu, written) = unsafe { (kvm.assume_vcpu_section(), Written::new(new, bytes)) };
    event::written(vcpu, gpa, written);
}

/// `kvm_page_track_delete_slot()`, or before `kvm_arch_commit_memory_region()`: a memslot was deleted
/// and is about to be freed.
///
/// # Safety
///
/// KVM's arguments; `slots_lock` is held.
pub(crate) unsafe extern "C" fn delete_slot(kvm: &Kvm, slot: &Memslot) {
    event::memslot_deleted(kvm, slot);
}

/// `kvm_page_track_create_memslot()`: a memslot is made, or made anew at another place.
///
/// # Safety
///
/// KVM's arguments; `slots_lock` and `slots_arch_lock` are held and the memslot is unpublished.
pub(crate) unsafe extern "C" fn create_memslot(
    kvm: &Kvm,
    slot: &Memslot,
    _npages: c_ulong,
) -> c_int {
    // SAFETY: As the caller promises.
    let new = unsafe { NewSlot::new(kvm, slot) };
    errno(memslot_moves::created(new))
}

/// `__kvm_write_track_add_gfn()`: KVM shadows a guest page table. Sleeps on PREEMPT_RT only.
///
/// # Safety
///
/// KVM's arguments: `slot` holds `gfn`; `mmu_lock` is held for write.
pub(crate) unsafe extern "C" fn add_gfn_locked(kvm: &Kvm, slot: &Memslot, gfn: Gfn) {
    let _guard = guard::enter_if_locks_sleep();
    // SAFETY: As the caller promises.
    let (mmu, page) = unsafe { (kvm.assume_mmu_locked(), slot.page_unchecked(gfn)) };
    memslot::kvm_added(&mmu, page);
}

/// `__kvm_write_track_remove_gfn()`: KVM shadows it no more. Sleeps on PREEMPT_RT only.
///
/// # Safety
///
/// KVM's arguments: `slot` holds `gfn`; `mmu_lock` is held for write.
pub(crate) unsafe extern "C" fn remove_gfn_locked(kvm: &Kvm, slot: &Memslot, gfn: Gfn) {
    let _guard = guard::enter_if_locks_sleep();
    // SAFETY: As the caller promises.
    let (mmu, page) = unsafe { (kvm.assume_mmu_locked(), slot.page_unchecked(gfn)) };
    memslot::kvm_removed(&mmu, page);
}

/// Every hook, in the order of attachment.
pub(crate) static ALL: &[Hook] = &HOOKS;

/// Attaches every hook, or none. Sleeps.
///
/// # Errors
///
/// `ENOENT` if a function is missing, `EBUSY` if somebody else has replaced one; the kernel log
/// names it.
pub(crate) fn attach() -> Result {
    let addresses = resolve(&HOOKS.each_ref().map(Hook::symbol))?;
    for (hook, &address) in HOOKS.iter().zip(&addresses) {
        // SAFETY: The address is that of the hook's function.
        if let Err(e) = unsafe { hook.attach(address) } {
            let name = hook.symbol().name();
            if e == EBUSY {
                pr_err!(
                    "{name} is in use by a livepatch, a kprobe or a BPF program, or \
                     kernel.ftrace_enabled is 0\n"
                );
            } else {
                pr_err!("cannot attach to {name} (error {})\n", e.to_errno());
            }
            detach();
            return Err(e);
        }
    }
    if table::C_ADDS_PAGES {
        // Nobody is in C's function that adds pages any more, which has been replaced.
        guard::synchronize_tasks();
    }
    owners::begin_to_check();
    Ok(())
}

/// Detaches every hook and waits until nobody runs in this module. Takes seconds.
///
/// If ftrace cannot take back a jump, this function says so and never returns: the text that the
/// jump leads to must not be freed.
pub(crate) fn detach() {
    owners::stop_checking();
    let (last, others) = HOOKS.split_at(UNTIL_DRAINED);
    others.iter().rev().for_each(detach_one);
    // While VMs that die still tell us.
    guard::wait();
    untrack_all();
    last.iter().rev().for_each(detach_one);
    guard::drain();
}

fn detach_one(hook: &'static Hook) {
    let Err(e) = hook.detach() else { return };
    pr_emerg!(
        "ftrace cannot detach {} (error {}). KVM goes on using this module, which therefore \
         stays in memory for good; reboot when you can\n",
        hook.symbol().name(),
        e.to_errno()
    );
    sleep_for_ever();
}

#[kernel::macros::kunit_tests(kvm_page_track_mmu_hooks)]
#[allow(unsafe_op_in_unsafe_fn)]
mod tests {
    use super::*;

    #[test]
    fn no_function_is_hooked_twice() {
        for (i, hook) in HOOKS.iter().enumerate() {
            assert!(!hook.symbol().name().is_empty());
            assert!(!hook.symbol().name().contains(':'));
            for other in &HOOKS[i + 1..] {
                assert!(hook.symbol().name() != other.symbol().name());
                assert!(hook.ours() != other.ours());
            }
        }
    }

    #[test]
    fn ours_can_carry_the_jump_tag() {
        for hook in &HOOKS {
            assert_eq!(hook.ours() & 1, 0);
        }
    }

    #[test]
    fn readers_come_before_writers() {
        let at = |name| HOOKS.iter().position(|hook| hook.symbol().name() == name);
        let create = at("kvm_page_track_create_memslot").unwrap();
        let kvm_adds = at("__kvm_write_track_add_gfn").unwrap();
        assert!(at("kvm_gfn_is_write_tracked").unwrap() < create);
        assert!(create < kvm_adds);
        // Where there are such functions to replace.
        for name in ["kvm_write_track_add_gfn", "kvm_write_track_remove_gfn"] {
            assert!(at(name).map_or(true, |add| kvm_adds < add));
        }
        if let Some(register) = at("kvm_page_track_register_notifier") {
            assert_eq!(register, HOOKS.len() - 1);
        }
        // The table of VMs is right as long as VMs that die tell us: first and last.
        let dies = at("kvm_page_track_cleanup").or_else(|| at("kvm_mmu_uninit_vm"));
        assert_eq!(dies, Some(0));
    }
}
