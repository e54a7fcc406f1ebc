// SPDX-License-Identifier: GPL-2.0-only

//! Safe views of KVM's structures, and what we keep of a VM.
//!
//! [`Kvm`] is a VM, [`Memslot`] one of its memslots, [`Node`] and [`Client`] are listeners. What may be
//! done when is carried by tokens: [`VcpuSection`] (this task is a vCPU's, in a read section of
//! `kvm->srcu`), [`Slots`] (memslots can be looked up and stay valid), [`SlotsArchLocked`] (the arch part
//! of memslots can be written) and [`MmuWrite`] (`mmu_lock` is held for write: counters can change).
//!
//! Nothing here decides anything. That is for the layers above.
//!
//! C headers: `include/linux/kvm_host.h`, `arch/x86/include/asm/kvm_host.h`.

#[cfg_attr(CONFIG_KVM_EXTERNAL_WRITE_TRACKING = "y", path = "external_with.rs")]
#[cfg_attr(
    not(CONFIG_KVM_EXTERNAL_WRITE_TRACKING = "y"),
    path = "external_without.rs"
)]
pub(crate) mod external;
pub(crate) mod functions;
mod listeners;
mod mmu;
mod new_slot;
pub(crate) mod registry;
mod slot;
mod slots;
#[cfg(CONFIG_KUNIT = "y")]
pub(crate) mod unit;
pub(crate) mod vm;

pub(crate) use listeners::{Client, Listener, Node, RawNode, Written};
pub(crate) use mmu::{MmuGuard, MmuWrite};
pub(crate) use new_slot::NewSlot;
pub(crate) use slot::{Counter, Memslot, Page};
pub(crate) use slots::{Slots, SlotsArchLocked, VcpuSection};

use crate::base::bindings;
use crate::base::once::read_once;
use core::ptr::{addr_of, addr_of_mut, NonNull};
use kernel::types::Opaque;

/// Guest frame number: a guest physical address in units of 4 KiB.
pub(crate) type Gfn = u64;

/// Guest physical address, in bytes.
pub(crate) type Gpa = u64;

/// The frame that holds a guest physical address.
pub(crate) const fn gpa_to_gfn(gpa: Gpa) -> Gfn {
    gpa >> 12
}

/// Finds what [`Kvm::can_track`] asks. To be called once, before anything is attached.
pub(crate) fn init() {
    // SAFETY: Nobody asks yet.
    unsafe { bindings::kpt_find_sev_active() };
}

/// A VM (`struct kvm`).
///
/// # Invariants
///
/// Points to a `struct kvm` that is not freed as long as the reference lasts: the VM has users, or its
/// destruction waits for the caller.
#[repr(transparent)]
pub(crate) struct Kvm(Opaque<bindings::kvm>);

impl Kvm {
    /// Makes a view of a VM.
    ///
    /// # Safety
    ///
    /// `ptr` is valid and the VM is not destroyed as long as `'a` lasts.
    pub(crate) unsafe fn from_ptr<'a>(ptr: NonNull<bindings::kvm>) -> &'a Self {
        // SAFETY: `Kvm` is transparent over `struct kvm`; the rest is the caller's promise.
        unsafe { ptr.cast().as_ref() }
    }

    /// The C view of this VM.
    pub(crate) fn as_ptr(&self) -> *mut bindings::kvm {
        self.0.get()
    }

    /// The process that created the VM, as KVM's own debugfs directory names it.
    pub(crate) fn userspace_pid(&self) -> i32 {
        // SAFETY: By the type invariant; the field is written once, when the VM is created.
        unsafe { (*self.as_ptr()).userspace_pid }
    }

    /// Whether the caller's address space is the one the VM's memory lives in.
    pub(crate) fn mm_is_current(&self) -> bool {
        // SAFETY: By the type invariant; the field is written once, when the VM is created.
        let mm = unsafe { (*self.as_ptr()).mm };
        kernel::current!()
            .mm()
            .is_some_and(|current| core::ptr::addr_eq(current.as_raw(), mm))
    }

    /// Whether guest writes can be intercepted: KVM can emulate them and sees the guest's memory.
    ///
    /// False for every VM type with encrypted state or private memory, and for SEV guests that were
    /// made the old way (`KVM_SEV_INIT`), as VMs of the default type, which have neither.
    pub(crate) fn can_track(&self) -> bool {
        const _: () = assert!(bindings::KVM_X86_DEFAULT_VM == 0);
        let kvm = self.as_ptr();
        // SAFETY: By the type invariant. Single bytes, set when the VM is created or made an SEV guest. The
        // last is a part of what kvm-amd has around `struct kvm`, if the offset is not zero; the offset was
        // set before anybody asks.
        unsafe {
            let arch = addr_of!((*kvm).arch);
            (*arch).vm_type
                | u8::from((*arch).has_private_mem)
                | u8::from((*arch).has_protected_state)
                == 0
                && (bindings::kpt_sev_active == 0
                    || !read_once(kvm.byte_add(bindings::kpt_sev_active).cast::<bool>()))
        }
    }

    /// Whether C consults the counters of this VM (`kvm_page_track_write_tracking_enabled()`): then
    /// every memslot has to have an array.
    pub(crate) fn c_consults_counters(&self) -> bool {
        // SAFETY: By the type invariant.
        unsafe { bindings::kpt_write_tracking_enabled(self.as_ptr()) }
    }

    /// Whether KVM has ever been ready to shadow page tables of this VM. Does not become false again.
    pub(crate) fn may_shadow_page_tables(&self) -> bool {
        // SAFETY: By the type invariant; the pointer is only compared.
        unsafe { !read_once(addr_of!((*self.as_ptr()).arch.mmu_page_hash)).is_null() }
    }

    /// Whether KVM has shadow pages of guest page tables at all. A hint without `mmu_lock`.
    #[inline(always)] // the reader
    pub(crate) fn has_shadow_page_tables(&self) -> bool {
        // SAFETY: By the type invariant; KVM changes the field under `mmu_lock` held for write.
        unsafe { read_once(addr_of!((*self.as_ptr()).arch.indirect_shadow_pages)) != 0 }
    }

    /// Number of address spaces: 2 where the VM can have system management mode.
    fn address_spaces(&self) -> u16 {
        // SAFETY: By the type invariant. The C result is 1 or 2.
        unsafe { bindings::kpt_nr_address_spaces(self.as_ptr()) as u16 }
    }

    /// The memslots of an address space. They are embedded in `struct kvm` (`__memslots`), so what
    /// is not a memslot itself can be read at any time.
    #[inline(always)] // the reader
    fn active_set(&self, as_id: u16) -> *mut bindings::kvm_memslots {
        /// 1 in a kernel without system management mode.
        const SPACES: usize = bindings::KPT_ADDRESS_SPACES as usize;
        // SAFETY: By the type invariant; the index is in bounds.
        unsafe {
            read_once(addr_of!(
                (*self.as_ptr()).memslots[usize::from(as_id) % SPACES]
            ))
        }
    }

    /// Whether the memslots of an address space are being replaced right now.
    #[inline(always)] // the reader
    pub(crate) fn update_in_progress(&self, as_id: u16) -> bool {
        // SAFETY: The set can be read at any time.
        unsafe {
            let set = self.active_set(as_id);
            read_once(addr_of!((*set).generation)) >> bindings::KPT_UPDATE_IN_PROGRESS_BIT & 1 != 0
        }
    }

    /// Whether an address space has no memslot at all. A hint: memslots may come any time.
    #[inline(always)] // the reader
    fn has_no_slots(&self, as_id: u16) -> bool {
        // SAFETY: The set can be read at any time; the root pointer is only compared.
        unsafe {
            let set = self.active_set(as_id);
            read_once(addr_of!((*set).gfn_tree.rb_node)).is_null()
        }
    }

    /// `kvm->srcu`. KVM sets it up before anything of the VM is known to others, and cleans it up after that.
    fn srcu(&self) -> *mut bindings::srcu_struct {
        // SAFETY: By the type invariant; only the address is taken.
        unsafe { addr_of_mut!((*self.as_ptr()).srcu) }
    }
}
