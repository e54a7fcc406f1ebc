// SPDX-License-Identifier: GPL-2.0-only

//! Safe views of KVM's structures.
//!
//! [`Kvm`] is a VM, [`Memslot`] one of its memslots, [`Counters`] the `u16` write-track counters of
//! a memslot. What may be done when is carried by tokens: [`VcpuSection`] (this
//! task is a vCPU's, in a read section of `kvm->srcu`), [`Slots`] (memslots can be looked up and stay valid),
//! [`SlotsArchLocked`] (the arch part of memslots can be written) and [`MmuWrite`] (`mmu_lock` held
//! for write: counters can change).
//!
//! C headers: `include/linux/kvm_host.h`, `arch/x86/include/asm/kvm_host.h`.

pub(crate) mod functions;
pub(crate) mod listeners;
pub(crate) mod vm;

use crate::base::bindings;
use crate::base::srcu;
use core::marker::PhantomData;
use core::ops::Deref;
use core::ptr::{addr_of, addr_of_mut, NonNull};
use kernel::ffi::c_void;
use kernel::prelude::*;
use kernel::sync::atomic::{atomic_store, Relaxed, Release};
use kernel::types::{NotThreadSafe, Opaque};

// write_lock() and write_unlock() are macros for these.
#[cfg(not(CONFIG_PREEMPT_RT = "y"))]
use bindings::_raw_write_lock as write_lock;
#[cfg(not(any(CONFIG_PREEMPT_RT = "y", CONFIG_INLINE_WRITE_UNLOCK = "y")))]
use bindings::_raw_write_unlock as write_unlock;
#[cfg(CONFIG_INLINE_WRITE_UNLOCK = "y")]
use bindings::kpt_write_unlock as write_unlock;
#[cfg(CONFIG_PREEMPT_RT = "y")]
use bindings::{rt_write_lock as write_lock, rt_write_unlock as write_unlock};

/// Guest frame number: a guest physical address in units of 4 KiB.
pub(crate) type Gfn = u64;

/// Guest physical address, in bytes.
pub(crate) type Gpa = u64;

/// The frame that holds a guest physical address.
pub(crate) const fn gpa_to_gfn(gpa: Gpa) -> Gfn {
    gpa >> 12
}

/// Loads a value that others may store to, once (`READ_ONCE()`).
///
/// An instruction, where the kernel crate's atomics are a function call. Volatile loads keep their
/// order, and so do loads on x86, the only architecture of this module: it serves as an acquire.
///
/// # Safety
///
/// `ptr` is valid for reads, and writers store the whole value at once.
#[inline(always)]
unsafe fn read_once<T: Copy>(ptr: *const T) -> T {
    // SAFETY: The caller's promise.
    unsafe { ptr.read_volatile() }
}

/// `hash_64()` of `<linux/hash.h>`: the upper `bits` bits of a product, which depend on all of `value`.
#[inline(always)]
pub(crate) fn hash_64(value: u64, bits: u32) -> usize {
    (value.wrapping_mul(bindings::KPT_GOLDEN_RATIO_64) >> (u64::BITS - bits)) as usize
}

/// The address space of the task that runs (`current->mm`); NULL if it has none.
///
/// Two loads, where the kernel crate's `current!()` is a function call.
#[inline(always)]
fn current_mm() -> *const kernel::bindings::mm_struct {
    extern "C" {
        static current_task: *const c_void;
    }
    const _: () = assert!(cfg!(CONFIG_SMP = "y"), "per-CPU data is behind %gs");
    let task: *const kernel::bindings::task_struct;
    // SAFETY: Loads this CPU's pointer to the task that runs, as `get_current()` does: on every CPU it is
    // the same for one task, which is there as long as it runs. Nobody else writes its `mm`.
    unsafe {
        core::arch::asm!(
            "movq %gs:{current}(%rip), {task}",
            current = sym current_task,
            task = lateout(reg) task,
            options(att_syntax, pure, readonly, nostack, preserves_flags)
        );
        (*task).mm
    }
}

/// Something is so that it cannot be: warns, once (`WARN_ON_ONCE()`).
#[cold]
pub(crate) fn warn_once() {
    // SAFETY: Any context.
    unsafe { bindings::kpt_warn_once() };
}

/// Lets other tasks run (`cond_resched()`). Sleeps.
pub(crate) fn reschedule() {
    // SAFETY: Callers are in process context without spinlocks.
    unsafe { bindings::kpt_cond_resched() };
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
/// Points to a `struct kvm` whose `users_count` is above zero, or whose destruction cannot go on
/// before the reference is gone.
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
    #[inline(always)]
    pub(crate) fn as_ptr(&self) -> *mut bindings::kvm {
        self.0.get()
    }

    /// A number that no other VM alive has, and not zero.
    #[inline(always)]
    pub(crate) fn key(&self) -> usize {
        self.as_ptr() as usize
    }

    /// The process that created the VM, as KVM's own debugfs directory names it.
    pub(crate) fn userspace_pid(&self) -> i32 {
        // SAFETY: By the type invariant; the field is written once, when the VM is created.
        unsafe { (*self.as_ptr()).userspace_pid }
    }

    /// Whether the caller's address space is the one the VM's memory lives in.
    #[inline(always)]
    pub(crate) fn mm_is_current(&self) -> bool {
        // SAFETY: By the type invariant; the field is written once, when the VM is created, and not NULL.
        let mm = unsafe { read_once(addr_of!((*self.as_ptr()).mm)) };
        core::ptr::addr_eq(mm, current_mm())
    }

    /// Whether guest writes can be intercepted: KVM can emulate them and sees the guest's memory.
    ///
    /// False for every VM type with encrypted state or private memory, and for SEV guests that were
    /// made the old way (`KVM_SEV_INIT`), as VMs of the default type, which have neither.
    pub(crate) fn can_track(&self) -> bool {
        let kvm = self.as_ptr();
        // SAFETY: By the type invariant. Single bytes, set when the VM is created or made an SEV guest;
        // the last is a part of what kvm-amd has around `struct kvm`, where the offset is not zero, which
        // was set before anybody asks.
        unsafe {
            const _: () = assert!(bindings::KVM_X86_DEFAULT_VM == 0);
            let arch = addr_of!((*kvm).arch);
            (*arch).vm_type
                | u8::from((*arch).has_private_mem)
                | u8::from((*arch).has_protected_state)
                == 0
                && (bindings::kpt_sev_active == 0
                    || !read_once(kvm.byte_add(bindings::kpt_sev_active).cast::<bool>()))
        }
    }

    /// Takes a reference that keeps the VM from being destroyed, without a scope.
    ///
    /// # Safety
    ///
    /// The VM has users: somebody has a reference.
    pub(crate) unsafe fn get(&self) {
        // SAFETY: The caller's promise: the count is above zero.
        unsafe { bindings::kvm_get_kvm(self.as_ptr()) };
    }

    /// Gives back a reference of [`Kvm::get`]. The last one destroys the VM.
    ///
    /// # Safety
    ///
    /// The caller owns such a reference, and does not use the VM afterwards unless it owns another.
    pub(crate) unsafe fn put(&self) {
        // SAFETY: The caller's promise.
        unsafe { bindings::kvm_put_kvm(self.as_ptr()) };
    }

    /// Whether C consults the counters of this VM (`kvm_page_track_write_tracking_enabled()`): then
    /// every memslot has to have an array.
    pub(crate) fn c_consults_counters(&self) -> bool {
        // SAFETY: By the type invariant.
        unsafe { bindings::kpt_write_tracking_enabled(self.as_ptr()) }
    }

    /// Number of address spaces: 2 where the VM can have system management mode.
    pub(crate) fn address_spaces(&self) -> u16 {
        // SAFETY: By the type invariant. The C result is 1 or 2.
        unsafe { bindings::kpt_nr_address_spaces(self.as_ptr()) as u16 }
    }

    /// The memslots of an address space. They are embedded in `struct kvm` (`__memslots`), so what
    /// is not a memslot itself can be read at any time.
    #[inline(always)]
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
    #[inline(always)]
    pub(crate) fn update_in_progress(&self, as_id: u16) -> bool {
        // SAFETY: The set can be read at any time.
        unsafe {
            let set = self.active_set(as_id);
            read_once(addr_of!((*set).generation)) >> bindings::KPT_UPDATE_IN_PROGRESS_BIT & 1 != 0
        }
    }

    /// Whether an address space has no memslot at all. A hint: memslots may come any time.
    #[inline(always)]
    fn has_no_slots(&self, as_id: u16) -> bool {
        // SAFETY: The set can be read at any time; the root pointer is only compared.
        unsafe {
            let set = self.active_set(as_id);
            read_once(addr_of!((*set).gfn_tree.rb_node)).is_null()
        }
    }

    /// KVM sets the structure up before and cleans it up after anything of the VM is known to others.
    #[inline(always)]
    fn srcu(&self) -> *mut bindings::srcu_struct {
        // SAFETY: By the type invariant; only the address is taken.
        unsafe { addr_of_mut!((*self.as_ptr()).srcu) }
    }

    /// Enters a read section of `kvm->srcu`. May be nested; the section may sleep.
    pub(crate) fn read_slots(&self) -> SlotsRead<'_> {
        SlotsRead {
            kvm: self,
            // SAFETY: By the type invariant.
            idx: unsafe { srcu::read_lock(self.srcu()) },
            _not_send: NotThreadSafe,
        }
    }

    /// The token of the read section of `kvm->srcu` that a vCPU is in while it emulates.
    ///
    /// # Safety
    ///
    /// The caller is a vCPU's task in such a section, as long as `'a`.
    #[inline(always)]
    pub(crate) unsafe fn assume_vcpu_section<'a>(&'a self) -> VcpuSection<'a> {
        VcpuSection { kvm: self }
    }

    /// The right to look up memslots, for a caller that has it already.
    ///
    /// # Safety
    ///
    /// The caller is in a `kvm->srcu` read section, or holds `slots_lock`, as long as `'a`.
    #[inline(always)]
    pub(crate) unsafe fn assume_slots<'a>(&'a self) -> Slots<'a> {
        Slots { kvm: self }
    }

    #[inline(always)]
    fn mmu_lock(&self) -> *mut bindings::rwlock_t {
        // SAFETY: By the type invariant; only the address is taken.
        unsafe { addr_of_mut!((*self.as_ptr()).mmu_lock) }
    }

    /// Takes `mmu_lock` for write. Does not sleep (it does on PREEMPT_RT).
    pub(crate) fn lock_mmu(&self) -> MmuGuard<'_> {
        // SAFETY: By the type invariant.
        unsafe { write_lock(self.mmu_lock()) };
        // SAFETY: It is held until the guard is dropped.
        MmuGuard(unsafe { self.assume_mmu_locked() })
    }

    /// Takes `mmu_lock` for read. Does not sleep (it does on PREEMPT_RT).
    pub(crate) fn lock_mmu_read(&self) -> MmuRead<'_> {
        // SAFETY: By the type invariant.
        unsafe { bindings::kpt_mmu_read_lock(self.as_ptr()) };
        MmuRead {
            kvm: self,
            _not_send: NotThreadSafe,
        }
    }

    /// Whether KVM has ever been ready to shadow page tables of this VM. Does not become false again.
    #[inline(always)]
    pub(crate) fn may_shadow_page_tables(&self) -> bool {
        // SAFETY: By the type invariant; the pointer is only compared.
        unsafe { !read_once(addr_of!((*self.as_ptr()).arch.mmu_page_hash)).is_null() }
    }

    /// Whether KVM has shadow pages of guest page tables at all. A hint without `mmu_lock`.
    #[inline(always)]
    pub(crate) fn has_shadow_page_tables(&self) -> bool {
        // SAFETY: By the type invariant; KVM changes the field under `mmu_lock` held for write.
        unsafe { read_once(addr_of!((*self.as_ptr()).arch.indirect_shadow_pages)) != 0 }
    }

    /// Where KVM links the shadow pages of a frame, among others; nothing if it has no table of shadow
    /// pages yet. `kvm_get_mmu_page_hash()` and `kvm_page_table_hashfn()` of `mmu.c`.
    #[inline(always)]
    fn shadow_bucket(&self, gfn: Gfn) -> Option<*const bindings::hlist_head> {
        // The load is an acquire, on x86. It pairs with the release in `kvm_mmu_alloc_page_hash()`.
        // SAFETY: By the type invariant.
        let table = unsafe { read_once(addr_of!((*self.as_ptr()).arch.mmu_page_hash)) };
        let hash = hash_64(gfn, bindings::KPT_SHADOW_HASH_SHIFT);
        (!table.is_null()).then(|| table.cast_const().wrapping_add(hash))
    }

    /// As [`MmuWrite::shadow_page_tables`].
    ///
    /// # Safety
    ///
    /// `mmu_lock` is held.
    #[inline(always)]
    unsafe fn shadow_page_tables(&self, gfn: Gfn) -> u16 {
        // Also keeps a VM that dies from being looked at: KVM frees the table, but only when it has
        // no shadow page any more.
        if !self.has_shadow_page_tables() {
            return 0;
        }
        let Some(bucket) = self.shadow_bucket(gfn) else {
            return 0;
        };
        // SAFETY: KVM has shadow pages, and by the caller's promise it keeps them meanwhile: it does not
        // free the table.
        if unsafe { read_once(addr_of!((*bucket).first)) }.is_null() {
            return 0;
        }
        // SAFETY: As above; shadow pages are linked and unlinked under the lock only.
        let tables = unsafe { bindings::kpt_shadow_page_tables(self.as_ptr(), bucket, gfn) };
        // They are part of a `u16` counter.
        tables as u16
    }

    /// The token of `mmu_lock` for a caller that holds it for write already.
    ///
    /// # Safety
    ///
    /// The caller does, until the token is dropped.
    #[inline(always)]
    pub(crate) unsafe fn assume_mmu_locked(&self) -> MmuWrite<'_> {
        // INVARIANT: The caller's promise.
        MmuWrite {
            kvm: self,
            _not_send: NotThreadSafe,
        }
    }
}

/// A `kvm->srcu` read section.
pub(crate) struct SlotsRead<'k> {
    kvm: &'k Kvm,
    idx: i32,
    _not_send: NotThreadSafe,
}

impl SlotsRead<'_> {
    /// The right to look up memslots, which it gives.
    #[inline(always)]
    pub(crate) fn slots(&self) -> Slots<'_> {
        Slots { kvm: self.kvm }
    }
}

impl Drop for SlotsRead<'_> {
    fn drop(&mut self) {
        // SAFETY: `idx` is from the matching `read_lock`, in the same task: the type is not `Send`.
        unsafe { srcu::read_unlock(self.kvm.srcu(), self.idx) };
    }
}

/// Shows that this task is a vCPU's, in a read section of `kvm->srcu`.
///
/// # Invariants
///
/// It is as long as `'a`, so the VM has users.
#[derive(Clone, Copy)]
pub(crate) struct VcpuSection<'a> {
    kvm: &'a Kvm,
}

impl<'a> VcpuSection<'a> {
    /// The VM.
    #[inline(always)]
    pub(crate) fn kvm(self) -> &'a Kvm {
        self.kvm
    }

    /// The right to look up memslots, which the section gives.
    #[inline(always)]
    pub(crate) fn slots(self) -> Slots<'a> {
        Slots { kvm: self.kvm }
    }

    /// Whether KVM has some shadow page that may be of this frame, or nothing if it has never been ready
    /// to shadow page tables of this VM. Without `mmu_lock`.
    ///
    /// KVM links a shadow page before it counts it, and takes it off the count before it unlinks it: if
    /// there is none, none is part of the count at that moment.
    #[inline(always)]
    pub(crate) fn may_shadow(self, gfn: Gfn) -> Option<bool> {
        self.kvm.shadow_bucket(gfn).map(|bucket| {
            // SAFETY: KVM frees the table when the VM has no users any more: not as long as this vCPU
            // runs. Of what it points to only the address is looked at.
            !unsafe { read_once(addr_of!((*bucket).first)) }.is_null()
        })
    }
}

/// The right to look up memslots.
///
/// # Invariants
///
/// This task is in a `kvm->srcu` read section, or holds `slots_lock`, as long as `'a`.
#[derive(Clone, Copy)]
pub(crate) struct Slots<'a> {
    kvm: &'a Kvm,
}

impl<'a> Slots<'a> {
    /// The VM.
    #[inline(always)]
    pub(crate) fn kvm(self) -> &'a Kvm {
        self.kvm
    }

    /// Whether an address space has any memslot: a cheap question before [`Slots::find`].
    #[inline(always)]
    pub(crate) fn may_have(self, as_id: u16) -> bool {
        u32::from(as_id) < bindings::KPT_ADDRESS_SPACES && !self.kvm.has_no_slots(as_id)
    }

    /// Finds a page of an address space.
    #[inline(always)]
    pub(crate) fn find_page(self, as_id: u16, gfn: Gfn) -> Option<Page<'a>> {
        // INVARIANT: Whatever `find` finds holds the frame.
        self.find(as_id, gfn).map(|slot| Page { slot, gfn })
    }

    /// Finds the memslot of an address space that holds `gfn`.
    #[inline(always)]
    pub(crate) fn find(self, as_id: u16, gfn: Gfn) -> Option<&'a Memslot> {
        let set = self.kvm.active_set(as_id);
        // SAFETY: It has just been looked up.
        unsafe { self.find_again_in(set, gfn) }.or_else(|| {
            // SAFETY: By the type invariant the set is not written, and the memslots in it stay allocated,
            // as long as `'a` (design, section 5, rule 3).
            unsafe {
                bindings::kpt_search_slots(set, gfn)
                    .cast::<Memslot>()
                    .as_ref()
            }
        })
    }

    /// The same if it is the memslot that was found last in a set of memslots.
    ///
    /// # Safety
    ///
    /// `set` was an active one of the VM when the right to look up memslots was there already.
    #[inline(always)]
    unsafe fn find_again_in(
        self,
        set: *mut bindings::kvm_memslots,
        gfn: Gfn,
    ) -> Option<&'a Memslot> {
        // SAFETY: The set can be read at any time. The memslot found last is one of it, so by the caller's
        // promise and the type invariant it stays allocated as long as `'a`.
        let last = unsafe {
            (read_once(addr_of!((*set).last_used_slot.counter)) as *const Memslot).as_ref()
        };
        last.filter(|slot| slot.holds(gfn))
    }

    /// Calls `f` for every memslot of every address space until it fails.
    pub(crate) fn for_each(self, mut f: impl FnMut(&Memslot) -> Result) -> Result {
        let kvm = self.kvm.as_ptr();
        for as_id in 0..self.kvm.address_spaces() {
            // SAFETY: As in `find`. The set that is active now is not written before the right to
            // look up ends: KVM changes a set only after a grace period in which it was inactive.
            let set = unsafe { bindings::kpt_active_slots(kvm, i32::from(as_id)) };
            // SAFETY: As above.
            let mut slot = unsafe { bindings::kpt_first_slot(set) };
            // SAFETY: As above.
            while let Some(s) = unsafe { slot.cast::<Memslot>().as_ref() } {
                f(s)?;
                // SAFETY: As above.
                slot = unsafe { bindings::kpt_next_slot(set, s.as_ptr()) };
            }
        }
        Ok(())
    }

    /// Takes `slots_arch_lock`. Sleeps.
    pub(crate) fn lock_arch(self) -> SlotsArchLocked<'a> {
        // SAFETY: By the invariant of `Kvm`; the lock order `slots_lock` > `srcu` >
        // `slots_arch_lock` is kept by taking it out of a `Slots`.
        unsafe { bindings::kpt_slots_arch_lock(self.kvm.as_ptr()) };
        SlotsArchLocked {
            slots: self,
            _not_send: NotThreadSafe,
        }
    }
}

/// `slots_arch_lock` held: the active memslots are not replaced, their arch part may be written.
pub(crate) struct SlotsArchLocked<'s> {
    slots: Slots<'s>,
    _not_send: NotThreadSafe,
}

impl SlotsArchLocked<'_> {
    /// The right by which the lock was taken.
    pub(crate) fn slots(&self) -> Slots<'_> {
        self.slots
    }

    /// Finds a memslot again, now that it cannot be replaced.
    pub(crate) fn find(&self, as_id: u16, gfn: Gfn) -> Option<&Memslot> {
        self.slots.find(as_id, gfn)
    }

    /// Gives a memslot counters, all zero, if it has none.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn alloc_counters(&self, slot: &Memslot) -> Result {
        slot.alloc_counters()
    }
}

impl Drop for SlotsArchLocked<'_> {
    fn drop(&mut self) {
        // SAFETY: The lock was taken in `lock_arch`.
        unsafe { bindings::kpt_slots_arch_unlock(self.slots.kvm.as_ptr()) };
    }
}

/// Shows that `mmu_lock` is held for write.
///
/// # Invariants
///
/// It is, by this task, whenever the token can be used.
pub(crate) struct MmuWrite<'k> {
    kvm: &'k Kvm,
    _not_send: NotThreadSafe,
}

/// `mmu_lock` taken for write. Lends its token, never gives it away.
pub(crate) struct MmuGuard<'k>(MmuWrite<'k>);

impl<'k> Deref for MmuGuard<'k> {
    type Target = MmuWrite<'k>;

    #[inline(always)]
    fn deref(&self) -> &MmuWrite<'k> {
        &self.0
    }
}

impl Drop for MmuGuard<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: The lock was taken in `lock_mmu`.
        unsafe { write_unlock(self.kvm.mmu_lock()) };
    }
}

impl<'k> MmuWrite<'k> {
    /// The VM whose lock it is.
    #[inline(always)]
    pub(crate) fn kvm(&self) -> &'k Kvm {
        self.kvm
    }
}

impl MmuWrite<'_> {
    /// One more reason not to map the page's surroundings with a large page.
    #[inline(always)]
    pub(crate) fn disallow_large_page(&self, page: Page<'_>) {
        // SAFETY: `mmu_lock` is held, and the memslot holds the page.
        unsafe { page.slot.disallow_large_pages(page.gfn, 1) };
    }

    /// Takes back one [`MmuWrite::disallow_large_page`].
    #[inline(always)]
    pub(crate) fn allow_large_page(&self, page: Page<'_>) {
        // SAFETY: As in `disallow_large_page`.
        unsafe { page.slot.disallow_large_pages(page.gfn, -1) };
    }

    /// Makes the existing mappings of a page read-only. True if TLBs have to be flushed.
    #[inline(always)]
    #[must_use]
    pub(crate) fn write_protect(&self, page: Page<'_>) -> bool {
        if page.slot.has_rmaps() {
            // SAFETY: As has been asked.
            return unsafe { self.write_protect_with_rmaps(page) };
        }
        if self.may_have_rmaps() {
            return self.write_protect_again(page);
        }
        // SAFETY: Without reverse mappings there is a TDP MMU.
        unsafe { self.write_protect_in_tdp_mmu(page) }
    }

    /// Makes those of the TDP MMU read-only.
    ///
    /// # Safety
    ///
    /// There is a TDP MMU.
    #[inline(always)]
    unsafe fn write_protect_in_tdp_mmu(&self, page: Page<'_>) -> bool {
        // SAFETY: `mmu_lock` is held (design, section 5, rule 3), and the memslot holds the page.
        unsafe {
            bindings::kpt_tdp_mmu_write_protect(self.kvm.as_ptr(), page.slot.as_ptr(), page.gfn)
        }
    }

    /// Makes all of them read-only.
    ///
    /// # Safety
    ///
    /// The memslot has reverse mappings ([`Memslot::has_rmaps`]).
    #[inline(always)]
    unsafe fn write_protect_with_rmaps(&self, page: Page<'_>) -> bool {
        // SAFETY: `mmu_lock` is held (design, section 5, rule 3), and the memslot holds the page.
        unsafe {
            bindings::kpt_slot_gfn_write_protect(self.kvm.as_ptr(), page.slot.as_ptr(), page.gfn)
        }
    }

    /// The same where the memslot has none, but others may have some.
    ///
    /// KVM gives them to the memslots that are active when it begins to shadow page tables. Somebody who
    /// found the memslot before its flags were changed has the copy that is not active any more, and is
    /// waited for.
    #[cold]
    #[inline(never)]
    fn write_protect_again(&self, page: Page<'_>) -> bool {
        // SAFETY: The memslot of the page is there, so the right by which it was found is as well: a
        // section, or `slots_lock` (design, section 5, rule 3).
        let slots = unsafe { self.kvm.assume_slots() };
        match slots.find_page(page.slot.as_id(), page.gfn) {
            // SAFETY: It has reverse mappings.
            Some(page) if page.slot.has_rmaps() => unsafe { self.write_protect_with_rmaps(page) },
            // SAFETY: Where the one that was found has none there is a TDP MMU.
            _ => unsafe { self.write_protect_in_tdp_mmu(page) },
        }
    }

    /// Whether KVM has begun to shadow page tables, and so has given reverse mappings to every memslot
    /// that was active then or came later. (Where there is no TDP MMU they all have some anyway.)
    ///
    /// The first mapping that is not the TDP MMU's is made under `mmu_lock`, after this has become true: as
    /// long as it is not, memslots without reverse mappings have no others. C source:
    /// `kvm_memslots_have_rmaps()`.
    #[inline(always)]
    fn may_have_rmaps(&self) -> bool {
        // SAFETY: By the invariant of `Kvm`.
        unsafe { read_once(addr_of!((*self.kvm.as_ptr()).arch.shadow_root_allocated)) }
    }

    /// One more reason for each page of a block not to map its surroundings with a large page.
    #[inline(always)]
    pub(crate) fn disallow_large_pages(&self, block: Block<'_>) {
        // SAFETY: `mmu_lock` is held, and the memslot holds the block.
        unsafe {
            block
                .slot
                .disallow_large_pages(block.first, block.npages as i32)
        };
    }

    /// Takes back one [`MmuWrite::disallow_large_pages`].
    #[inline(always)]
    pub(crate) fn allow_large_pages(&self, block: Block<'_>) {
        // SAFETY: As in `disallow_large_pages`.
        unsafe {
            block
                .slot
                .disallow_large_pages(block.first, -(block.npages as i32))
        };
    }

    /// Flushes the TLBs of every vCPU.
    #[inline(always)]
    pub(crate) fn flush_tlbs(&self) {
        // SAFETY: By the invariant of `Kvm`.
        unsafe { bindings::kpt_flush_remote_tlbs(self.kvm.as_ptr()) };
    }
}

impl MmuGuard<'_> {
    /// Whether somebody waits for the lock, or for the processor.
    #[inline(always)]
    pub(crate) fn is_wanted(&self) -> bool {
        // SAFETY: By the invariant of `Kvm`.
        unsafe { bindings::kpt_mmu_is_wanted(self.kvm.as_ptr()) }
    }

    /// Releases the lock and takes it again, after others.
    pub(crate) fn yield_to_others(&mut self) {
        // SAFETY: The lock was taken in `lock_mmu`, by a task that may sleep without it.
        unsafe { bindings::kpt_mmu_write_yield(self.kvm.as_ptr()) };
    }
}

impl MmuWrite<'_> {
    /// Whether KVM has a shadow page of a guest page table in a frame, of whatever address space, where
    /// we look for it.
    #[inline(always)]
    pub(crate) fn finds_shadow_page(&self, gfn: Gfn) -> bool {
        // As in `Kvm::shadow_page_tables`; KVM counts a shadow page there before it adds its page.
        if !self.kvm.has_shadow_page_tables() {
            return false;
        }
        self.kvm.shadow_bucket(gfn).is_some_and(|bucket| {
            // SAFETY: `mmu_lock` is held (design, section 5, rule 3), and KVM has shadow pages: it does not free
            // the table.
            unsafe { bindings::kpt_finds_shadow_page(bucket, gfn) }
        })
    }

    /// How much of the count of a frame of address space 0 is KVM's: its shadow pages of that guest
    /// page table.
    #[inline(always)]
    pub(crate) fn shadow_page_tables(&self, gfn: Gfn) -> u16 {
        // SAFETY: `mmu_lock` is held.
        unsafe { self.kvm.shadow_page_tables(gfn) }
    }
}

/// `mmu_lock` held for read.
pub(crate) struct MmuRead<'k> {
    kvm: &'k Kvm,
    _not_send: NotThreadSafe,
}

impl MmuRead<'_> {
    /// As [`MmuWrite::shadow_page_tables`].
    pub(crate) fn shadow_page_tables(&self, gfn: Gfn) -> u16 {
        // SAFETY: `mmu_lock` is held.
        unsafe { self.kvm.shadow_page_tables(gfn) }
    }
}

impl Drop for MmuRead<'_> {
    fn drop(&mut self) {
        // SAFETY: The lock was taken in `lock_mmu_read`.
        unsafe { bindings::kpt_mmu_read_unlock(self.kvm.as_ptr()) };
    }
}

/// A memslot (`struct kvm_memory_slot`).
///
/// # Invariants
///
/// Points to an allocated memslot, kept so by a [`Slots`] or by the C caller's locks. The
/// counters it has, if any, are an array of `npages` elements.
#[repr(transparent)]
pub(crate) struct Memslot(Opaque<bindings::kvm_memory_slot>);

/// Levels above 4 KiB at which KVM keeps large page counts (2 MiB and 1 GiB).
const LARGE_LEVELS: usize = 2;

impl Memslot {
    /// Makes a view of a memslot.
    ///
    /// # Safety
    ///
    /// `ptr` is valid and the memslot is not freed as long as `'a` lasts.
    pub(crate) unsafe fn from_ptr<'a>(ptr: NonNull<bindings::kvm_memory_slot>) -> &'a Self {
        // SAFETY: `Memslot` is transparent over the C type; the rest is the caller's promise.
        unsafe { ptr.cast().as_ref() }
    }

    /// The C view of this memslot.
    #[inline(always)]
    pub(crate) fn as_ptr(&self) -> *mut bindings::kvm_memory_slot {
        self.0.get()
    }

    /// First frame.
    #[inline(always)]
    pub(crate) fn base_gfn(&self) -> Gfn {
        // SAFETY: By the type invariant; constant once the memslot is visible.
        unsafe { (*self.as_ptr()).base_gfn }
    }

    /// Number of frames.
    #[inline(always)]
    pub(crate) fn npages(&self) -> u64 {
        // SAFETY: As in `base_gfn`.
        unsafe { (*self.as_ptr()).npages as u64 }
    }

    /// Address space: 0, or 1 for system management mode.
    #[inline(always)]
    pub(crate) fn as_id(&self) -> u16 {
        // SAFETY: As in `base_gfn`.
        unsafe { (*self.as_ptr()).as_id }
    }

    #[inline(always)]
    fn has_flags(&self, any_of: u32) -> bool {
        // SAFETY: As in `base_gfn`; KVM sets flags on a copy before that becomes visible.
        unsafe { (*self.as_ptr()).flags & any_of != 0 }
    }

    /// Whether the memslot is about to be moved or deleted.
    #[inline(always)]
    pub(crate) fn is_invalid(&self) -> bool {
        self.has_flags(bindings::KPT_SLOT_INVALID)
    }

    /// Whether its memory is in a guest_memfd.
    #[inline(always)]
    pub(crate) fn is_guest_memfd(&self) -> bool {
        self.has_flags(bindings::KPT_SLOT_GUEST_MEMFD)
    }

    /// Whether the memslot has reverse mappings: where KVM has no TDP MMU from the beginning (it makes them
    /// before it asks for counters), else from when KVM shadows guest page tables.
    ///
    /// If so it has those of all levels, until it is freed: KVM makes those of the last level last, and
    /// takes none back when it has them.
    #[inline(always)]
    pub(crate) fn has_rmaps(&self) -> bool {
        // SAFETY: By the type invariant.
        unsafe { !read_once(addr_of!((*self.as_ptr()).arch.rmap[LARGE_LEVELS])).is_null() }
    }

    /// A page of the memslot; `None` if it does not hold the frame.
    pub(crate) fn page(&self, gfn: Gfn) -> Option<Page<'_>> {
        // INVARIANT: The memslot holds the frame.
        self.holds(gfn).then_some(Page { slot: self, gfn })
    }

    #[inline(always)]
    fn holds(&self, gfn: Gfn) -> bool {
        gfn.wrapping_sub(self.base_gfn()) < self.npages()
    }

    /// The same where KVM has looked already.
    ///
    /// # Safety
    ///
    /// The memslot holds the frame.
    #[inline(always)]
    pub(crate) unsafe fn page_unchecked(&self, gfn: Gfn) -> Page<'_> {
        // INVARIANT: The caller's promise.
        Page { slot: self, gfn }
    }

    #[inline(always)]
    fn counters_field(&self) -> *mut *mut u16 {
        // SAFETY: By the type invariant; only the address is taken.
        unsafe { addr_of_mut!((*self.as_ptr()).arch.gfn_write_track) }
    }

    /// The write-track counters, if the memslot has any.
    #[inline(always)]
    pub(crate) fn counters(&self) -> Option<Counters<'_>> {
        // SAFETY: The field is valid by the type invariant; `alloc_counters` says why the array is seen zeroed.
        let array = unsafe { read_once(self.counters_field()) };
        Some(Counters {
            array: NonNull::new(array)?,
            base_gfn: self.base_gfn(),
            npages: self.npages(),
            _slot: PhantomData,
        })
    }

    /// The pages of the memslot from `gfn` to `last`, or to the end of their block.
    pub(crate) fn block(&self, gfn: Gfn, last: Gfn) -> Option<Block<'_>> {
        let end = self.base_gfn() + (self.npages() - 1);
        // INVARIANT: All of them are from `gfn`, which the memslot holds, to its last, and in one block.
        (self.holds(gfn) && gfn <= last).then(|| Block {
            slot: self,
            first: gfn,
            npages: end.min(last).min(gfn | BLOCK_MASK) - gfn + 1,
        })
    }

    /// `count` more reasons not to map the surroundings of a frame with a large page. C source:
    /// `update_gfn_disallow_lpage_count()`.
    ///
    /// # Safety
    ///
    /// The memslot holds the frame. `mmu_lock` is held for write, or the memslot is not visible yet.
    #[inline(always)]
    unsafe fn disallow_large_pages(&self, gfn: Gfn, count: i32) {
        for level in 0..LARGE_LEVELS {
            let shift = 9 * (level + 1);
            let index = (gfn >> shift).wrapping_sub(self.base_gfn() >> shift);
            // SAFETY: KVM allocated the arrays, one element per (partial) large page, before anybody but
            // it knew the memslot; by the caller's promise `index` is in bounds, and nobody else
            // writes (design, section 5, rule 3).
            unsafe {
                let info = (*addr_of!((*self.as_ptr()).arch.lpage_info))[level].add(index as usize);
                let before = (*info).disallow_lpage;
                let after = before.wrapping_add(count);
                (*info).disallow_lpage = after;
                // The uppermost bit is KVM's flag for mixed attributes. As in C, 2^31 adds in one GiB
                // would reach it.
                if (before ^ after) < 0 {
                    warn_once();
                }
            }
        }
    }

    fn alloc_counters(&self) -> Result {
        if self.counters().is_some() {
            return Ok(());
        }
        // SAFETY: An allocation without conditions.
        let array = unsafe { bindings::kpt_alloc_counters(self.npages() as usize) };
        if array.is_null() {
            return Err(ENOMEM);
        }
        // Pairs with the loads in `counters` and `Page::counter`: who sees the array sees it zeroed, since
        // stores keep their order on x86, the only architecture of this module.
        // SAFETY: The field is valid by the type invariant. KVM frees the array with vfree().
        unsafe { self.counters_field().write_volatile(array.cast()) };
        Ok(())
    }
}

/// A page of a memslot.
///
/// # Invariants
///
/// `slot` holds `gfn`.
#[derive(Clone, Copy)]
pub(crate) struct Page<'s> {
    slot: &'s Memslot,
    gfn: Gfn,
}

impl<'s> Page<'s> {
    /// Its counter, if the memslot has any.
    #[inline(always)]
    pub(crate) fn counter(self) -> Option<Counter<'s>> {
        // SAFETY: By the invariant of the memslot. As in `Memslot::counters`.
        let array = NonNull::new(unsafe { read_once(self.slot.counters_field()) })?;
        let index = self.gfn.wrapping_sub(self.slot.base_gfn());
        // INVARIANT: An element of the array.
        Some(Counter {
            // SAFETY: By the type invariants: of the memslot, whose counters are as many as its pages,
            // and of this, whose frame is one of them.
            count: unsafe { array.add(index as usize) },
            _slot: PhantomData,
        })
    }

    /// Its count; zero if the memslot has no counters.
    #[inline(always)]
    pub(crate) fn count(self) -> u16 {
        self.counter().map_or(0, Counter::get)
    }

    /// The memslot.
    #[inline(always)]
    pub(crate) fn slot(self) -> &'s Memslot {
        self.slot
    }

    /// The frame.
    #[inline(always)]
    pub(crate) fn gfn(self) -> Gfn {
        self.gfn
    }
}

/// The counter of a page.
///
/// # Invariants
///
/// An element of the counters of a memslot, which has them as long as `'s`: KVM frees the array with the
/// memslot, and one that moves gives its array away when who found the memslot before has let go of it
/// ([`NewSlot::take_counters`]).
#[derive(Clone, Copy)]
pub(crate) struct Counter<'s> {
    count: NonNull<u16>,
    _slot: PhantomData<&'s Memslot>,
}

impl Counter<'_> {
    /// The count.
    #[inline(always)]
    pub(crate) fn get(self) -> u16 {
        // SAFETY: By the type invariant; every access to a count is a single load or store, here as in C.
        unsafe { read_once(self.count.as_ptr()) }
    }

    /// Sets the count.
    #[inline(always)]
    pub(crate) fn set(self, _: &MmuWrite<'_>, value: u16) {
        // SAFETY: As in `get`; `mmu_lock` held for write excludes other writers (design, section 5,
        // rule 3).
        unsafe { self.count.as_ptr().write_volatile(value) };
    }
}

/// Pages from one multiple of this to the next are a block: as many as bits in a word.
const BLOCK_MASK: u64 = u64::BITS as u64 - 1;

/// Pages of a memslot in a row, all in one block.
///
/// # Invariants
///
/// `slot` holds the `npages` frames from `first` on. There is one at least.
#[derive(Clone, Copy)]
pub(crate) struct Block<'s> {
    slot: &'s Memslot,
    first: Gfn,
    npages: u64,
}

impl<'s> Block<'s> {
    /// The memslot.
    pub(crate) fn slot(self) -> &'s Memslot {
        self.slot
    }

    /// The last frame.
    pub(crate) fn last(self) -> Gfn {
        self.first + (self.npages - 1)
    }

    /// Its pages.
    pub(crate) fn pages(self) -> impl Iterator<Item = Page<'s>> {
        (self.first..=self.last()).map(move |gfn| {
            // INVARIANT: As this type's.
            Page {
                slot: self.slot,
                gfn,
            }
        })
    }

    /// None of its pages.
    pub(crate) fn none(self) -> Pages {
        Pages {
            base: self.first & !BLOCK_MASK,
            bits: 0,
        }
    }

    #[inline(always)]
    fn counts(self) -> Option<NonNull<u16>> {
        let counters = self.slot.counters()?;
        // SAFETY: By the type invariant all of the block has counts.
        Some(unsafe {
            counters
                .array
                .add((self.first - counters.base_gfn) as usize)
        })
    }

    /// Calls `f` with the frame and the count of every page, until it fails.
    ///
    /// # Errors
    ///
    /// Those of `f`; `ENOENT` if the memslot has no counters.
    #[inline(always)]
    pub(crate) fn look(self, mut f: impl FnMut(Gfn, u16) -> Result) -> Result {
        let counts = self.counts().ok_or(ENOENT)?;
        for i in 0..self.npages {
            // SAFETY: One of the block's; as in `Counter::get`.
            f(self.first + i, unsafe {
                read_once(counts.as_ptr().add(i as usize))
            })?;
        }
        Ok(())
    }

    /// Replaces every count by what `f` makes of the frame and the count, if the memslot has counters.
    #[inline(always)]
    pub(crate) fn recount(self, _: &MmuWrite<'_>, mut f: impl FnMut(Gfn, u16) -> u16) {
        let Some(counts) = self.counts() else { return };
        for i in 0..self.npages {
            // SAFETY: One of the block's; as in `Counter::get` and `Counter::set`: `mmu_lock` held for
            // write excludes other writers (design, section 5, rule 3).
            unsafe {
                let count = counts.as_ptr().add(i as usize);
                count.write_volatile(f(self.first + i, read_once(count)));
            }
        }
    }
}

/// Some frames of one block.
///
/// # Invariants
///
/// `base` is where the block begins; bit `i` of `bits` stands for the frame `base + i`.
#[derive(Clone, Copy)]
pub(crate) struct Pages {
    base: Gfn,
    bits: u64,
}

impl Pages {
    /// Includes a frame of the block (one of another is taken for that of this in the same place).
    #[inline(always)]
    pub(crate) fn insert(&mut self, gfn: Gfn) {
        self.bits |= 1 << (gfn & BLOCK_MASK);
    }

    /// The first.
    #[inline(always)]
    pub(crate) fn first(self) -> Option<Gfn> {
        (self.bits != 0).then(|| self.base + u64::from(self.bits.trailing_zeros()))
    }

    /// Takes out the first.
    #[inline(always)]
    pub(crate) fn take_first(&mut self) -> Option<Gfn> {
        let first = self.first();
        self.bits &= self.bits.wrapping_sub(1);
        first
    }

    /// Takes out those that a memslot holds.
    pub(crate) fn take_held_by(&mut self, slot: &Memslot) -> Pages {
        let mut held = Pages { bits: 0, ..*self };
        let mut all = *self;
        while let Some(gfn) = all.take_first() {
            if slot.holds(gfn) {
                held.insert(gfn);
            }
        }
        self.bits &= !held.bits;
        held
    }
}

/// The counters of a memslot.
#[derive(Clone, Copy)]
pub(crate) struct Counters<'s> {
    array: NonNull<u16>,
    base_gfn: Gfn,
    npages: u64,
    _slot: PhantomData<&'s Memslot>,
}

impl Counters<'_> {
    #[inline(always)]
    fn at(&self, gfn: Gfn) -> Option<*mut u16> {
        let index = gfn.wrapping_sub(self.base_gfn);
        if index >= self.npages {
            return None;
        }
        // SAFETY: The array has `npages` elements by the invariant of `Memslot`.
        Some(unsafe { self.array.as_ptr().add(index as usize) })
    }

    /// The count of a frame; zero for a frame outside the memslot.
    #[inline(always)]
    pub(crate) fn get(&self, gfn: Gfn) -> u16 {
        match self.at(gfn) {
            // SAFETY: `at` returns valid pointers; every access to a count is a single load or
            // store, here as in C.
            Some(count) => unsafe { read_once(count) },
            None => 0,
        }
    }
}

/// A memslot that KVM is creating, or moving from another place: not visible to anyone yet.
///
/// # Invariants
///
/// As long as `'a`, `slot` is unpublished, `slots_lock` and `slots_arch_lock` of `kvm` are held, and
/// this task may take `mmu_lock`.
#[derive(Clone, Copy)]
pub(crate) struct NewSlot<'a> {
    kvm: &'a Kvm,
    slot: &'a Memslot,
}

impl<'a> NewSlot<'a> {
    /// Makes the view.
    ///
    /// # Safety
    ///
    /// The caller is `kvm_page_track_create_memslot()`: the type invariants hold as long as `'a`.
    pub(crate) unsafe fn new(kvm: &'a Kvm, slot: &'a Memslot) -> Self {
        Self { kvm, slot }
    }

    /// The VM.
    pub(crate) fn kvm(&self) -> &'a Kvm {
        self.kvm
    }

    /// The right to look up memslots that `slots_lock` gives.
    pub(crate) fn slots(&self) -> Slots<'a> {
        // SAFETY: By the type invariants.
        unsafe { self.kvm.assume_slots() }
    }

    /// The memslot itself.
    pub(crate) fn slot(&self) -> &'a Memslot {
        self.slot
    }

    /// The memslot it replaces, if this is a move.
    ///
    /// KVM has then made an INVALID copy active, so the original is in the inactive set.
    pub(crate) fn moved_from(&self) -> Option<&'a Memslot> {
        // SAFETY: By the type invariants the slot is valid, and the inactive set is stable under
        // `slots_lock`; what it holds is not freed before the move is done.
        unsafe {
            let slot = self.slot.as_ptr();
            bindings::kpt_inactive_slot(
                self.kvm.as_ptr(),
                i32::from((*slot).as_id),
                i32::from((*slot).id),
            )
            .cast::<Memslot>()
            .as_ref()
        }
    }

    /// Gives the memslot counters, all zero, if it has none.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn alloc_counters(&self) -> Result {
        self.slot.alloc_counters()
    }

    /// Takes over the counters of `old`, which is left without. No copy: nothing is lost, nothing
    /// is freed twice. The INVALID copy that readers may still use points to the same array.
    ///
    /// # Safety
    ///
    /// `old` is what [`NewSlot::moved_from`] returned, and this memslot has no counters yet.
    pub(crate) unsafe fn take_counters(&self, old: &Memslot) {
        // SAFETY: Both fields are valid by the type invariants, `old` is unreachable for anyone
        // but the holder of `slots_lock`, and both arrays have the same length: a move does not
        // change the size of a memslot.
        unsafe {
            let array = read_once(old.counters_field());
            atomic_store(self.slot.counters_field(), array, Release);
            atomic_store(old.counters_field(), core::ptr::null_mut(), Relaxed);
        }
    }

    /// `count` more reasons not to map the surroundings of `gfn` with a large page.
    pub(crate) fn disallow_large_page(&self, gfn: Gfn, count: u16) {
        if self.slot.page(gfn).is_none() {
            return;
        }
        // SAFETY: The memslot holds the frame, and is unpublished by the type invariants.
        unsafe { self.slot.disallow_large_pages(gfn, i32::from(count)) };
    }
}

/// Blank structures for the unit tests of what is logic. KVM itself is tested in tests/.
#[cfg(CONFIG_KUNIT = "y")]
pub(crate) mod unit {
    use super::*;
    use kernel::alloc::KVVec;

    /// Calls `f` with a VM that is all zeroes but for its `mm` and nobody else knows, as if `mmu_lock` was held.
    pub(crate) fn with_blank_vm(f: impl FnOnce(&Kvm, &MmuWrite<'_>)) {
        // `struct kvm` is a part of what kvm-amd and kvm-intel have.
        let mut blank = KVVec::<u8>::new();
        // SAFETY: A constant of helpers.c.
        let size = unsafe { bindings::kpt_unit_vm_size };
        blank.extend_with(size, 0, GFP_KERNEL).unwrap();
        let ptr = NonNull::new(blank.as_mut_ptr().cast::<bindings::kvm>()).unwrap();
        // SAFETY: The memory is ours. A VM has an address space, here nobody's.
        unsafe { (*ptr.as_ptr()).mm = NonNull::dangling().as_ptr() };
        // SAFETY: The memory outlives the call, and nobody else can lock or free this VM.
        let kvm = unsafe { Kvm::from_ptr(ptr) };
        // SAFETY: As above.
        f(kvm, &unsafe { kvm.assume_mmu_locked() });
    }

    /// Calls `f` with a memslot of `npages` pages at `base_gfn` that is in no VM.
    pub(crate) fn with_blank_slot(base_gfn: Gfn, npages: u64, f: impl FnOnce(&Memslot)) {
        let mut blank =
            KBox::<bindings::kvm_memory_slot>::new_uninit(GFP_KERNEL | __GFP_ZERO).unwrap();
        let ptr = blank.as_mut_ptr();
        // SAFETY: The memory is zeroed and ours.
        let slot = unsafe {
            (*ptr).base_gfn = base_gfn;
            (*ptr).npages = npages as usize;
            Memslot::from_ptr(NonNull::new_unchecked(ptr))
        };
        f(slot);
        // SAFETY: vfree() of what `alloc_counters` made, or of NULL.
        unsafe { bindings::vfree((*ptr).arch.gfn_write_track.cast()) };
    }
}

#[kernel::macros::kunit_tests(kvm_page_track_kvm)]
#[allow(unsafe_op_in_unsafe_fn)]
mod tests {
    use super::unit::{with_blank_slot, with_blank_vm};
    use super::*;

    fn set(slot: &Memslot, mmu: &MmuWrite<'_>, gfn: Gfn, count: u16) {
        slot.page(gfn).unwrap().counter().unwrap().set(mmu, count);
    }

    #[test]
    fn guests_with_encrypted_memory_are_recognised() {
        with_blank_vm(|kvm, _| {
            assert!(kvm.can_track());
            // SAFETY: The VM is ours.
            unsafe {
                // What SEV sets, where there is SEV.
                let sev = bindings::kpt_unit_make_sev(kvm.as_ptr());
                assert_eq!(kvm.can_track(), !sev);
            }
        });
        with_blank_vm(|kvm, _| {
            let arch = |kvm: &Kvm| {
                // SAFETY: The VM is ours.
                unsafe { addr_of_mut!((*kvm.as_ptr()).arch) }
            };
            // SAFETY: As above.
            unsafe {
                (*arch(kvm)).vm_type = 1;
                assert!(!kvm.can_track());
                (*arch(kvm)).vm_type = 0;
                (*arch(kvm)).has_private_mem = true;
                assert!(!kvm.can_track());
                (*arch(kvm)).has_private_mem = false;
                (*arch(kvm)).has_protected_state = true;
                assert!(!kvm.can_track());
                (*arch(kvm)).has_protected_state = false;
            }
            assert!(kvm.can_track());
        });
    }

    #[test]
    fn counters_come_on_demand() {
        with_blank_slot(0x100, 0x40, |slot| {
            assert!(slot.counters().is_none());
            assert!(slot.page(0x100).unwrap().counter().is_none());
            slot.alloc_counters().unwrap();
            let first = slot.counters().unwrap();
            for gfn in 0x100..0x140 {
                assert_eq!(first.get(gfn), 0);
            }
            // A second allocation changes nothing.
            slot.alloc_counters().unwrap();
            assert!(slot.counters().unwrap().array == first.array);
        });
    }

    #[test]
    fn counters_end_with_the_memslot() {
        with_blank_vm(|_, mmu| {
            with_blank_slot(0x100, 0x40, |slot| {
                slot.alloc_counters().unwrap();
                let counters = slot.counters().unwrap();
                set(slot, mmu, 0x100, 1);
                set(slot, mmu, 0x13f, u16::MAX);
                assert_eq!(counters.get(0x100), 1);
                assert_eq!(counters.get(0x101), 0);
                assert_eq!(counters.get(0x13f), u16::MAX);
                assert_eq!(counters.get(0xff), 0);
                assert_eq!(counters.get(0x140), 0);
                assert_eq!(counters.get(u64::MAX), 0);
                assert!(slot.page(0x100).is_some() && slot.page(0x13f).is_some());
                assert!(slot.page(0xff).is_none() && slot.page(0x140).is_none());
            });
        });
    }

    #[test]
    fn blocks_end_where_the_memslot_or_the_word_does() {
        with_blank_slot(0x130, 0x60, |slot| {
            let ends = |gfn, last| slot.block(gfn, last).map(|b| (b.first, b.last()));
            assert_eq!(ends(0x130, 0x200), Some((0x130, 0x13f)));
            assert_eq!(ends(0x140, 0x200), Some((0x140, 0x17f)));
            assert_eq!(ends(0x180, 0x200), Some((0x180, 0x18f)));
            assert_eq!(ends(0x145, 0x150), Some((0x145, 0x150)));
            assert_eq!(ends(0x145, 0x145), Some((0x145, 0x145)));
            assert_eq!(ends(0x145, 0x144), None);
            assert_eq!(ends(0x12f, 0x200), None);
            assert_eq!(ends(0x190, 0x200), None);
        });
    }

    #[test]
    fn a_block_has_the_counts_of_its_pages() {
        with_blank_vm(|_, mmu| {
            with_blank_slot(0x130, 0x60, |slot| {
                let block = slot.block(0x145, 0x150).unwrap();
                assert_eq!(block.look(|_, _| Ok(())), Err(ENOENT));
                slot.alloc_counters().unwrap();
                set(slot, mmu, 0x150, 9);
                block.recount(mmu, |gfn, count| count + (gfn - 0x140) as u16);
                for gfn in 0x130..0x190 {
                    let by = if (0x145..=0x150).contains(&gfn) {
                        (gfn - 0x140) as u16
                    } else {
                        0
                    };
                    let was = if gfn == 0x150 { 9 } else { 0 };
                    assert_eq!(slot.counters().unwrap().get(gfn), was + by);
                }
                let seen = block.look(|gfn, count| match (gfn, count) {
                    (0x150, 0x19) => Err(EBUSY),
                    _ => Ok(()),
                });
                assert_eq!(seen, Err(EBUSY));
                assert_eq!(block.pages().count(), 12);
                assert!(block.pages().all(|page| slot.page(page.gfn()).is_some()));
            });
        });
    }

    #[test]
    fn pages_come_in_order() {
        with_blank_slot(0x130, 0x60, |slot| {
            let mut pages = slot.block(0x145, 0x150).unwrap().none();
            assert!(pages.take_first().is_none());
            for gfn in [0x17f, 0x140, 0x150, 0x140] {
                pages.insert(gfn);
            }
            with_blank_slot(0x141, 0x100, |other| {
                let mut held = pages.take_held_by(other);
                assert_eq!(held.take_first(), Some(0x150));
                assert_eq!(held.take_first(), Some(0x17f));
                assert_eq!(held.take_first(), None);
            });
            assert_eq!(pages.take_first(), Some(0x140));
            assert_eq!(pages.take_first(), None);
        });
    }

    #[test]
    fn large_pages_are_counted_where_they_begin() {
        // Two large pages, and no more than the end of one.
        let mut info = [const { [0i32; 4] }; LARGE_LEVELS];
        with_blank_slot(0x3f0, 0x220, |slot| {
            with_blank_vm(|_, mmu| {
                for (level, info) in info.iter_mut().enumerate() {
                    // SAFETY: The memslot is ours; an element is one `int`.
                    unsafe {
                        (*addr_of_mut!((*slot.as_ptr()).arch.lpage_info))[level] =
                            info.as_mut_ptr().cast();
                    }
                }
                mmu.disallow_large_pages(slot.block(0x3f0, 0x600).unwrap());
                mmu.disallow_large_pages(slot.block(0x400, 0x402).unwrap());
                mmu.disallow_large_page(slot.page(0x5ff).unwrap());
                mmu.disallow_large_pages(slot.block(0x600, 0x60f).unwrap());
                mmu.allow_large_pages(slot.block(0x600, 0x601).unwrap());
                mmu.allow_large_page(slot.page(0x3ff).unwrap());
            });
        });
        assert_eq!(info[0], [15, 4, 14, 0]);
        assert_eq!(info[1], [33, 0, 0, 0]);
    }

    #[test]
    fn counters_change_hands() {
        with_blank_vm(|kvm, mmu| {
            with_blank_slot(0x100, 0x40, |old| {
                with_blank_slot(0x120, 0x40, |new| {
                    old.alloc_counters().unwrap();
                    set(old, mmu, 0x103, 9);
                    // SAFETY: Nobody else knows these memslots, which are of the same size.
                    unsafe { NewSlot::new(kvm, new).take_counters(old) };
                    assert!(old.counters().is_none());
                    assert_eq!(new.counters().unwrap().get(0x123), 9);
                    assert_eq!(new.counters().unwrap().get(0x122), 0);
                });
            });
        });
    }
}
