// SPDX-License-Identifier: GPL-2.0-only

//! A memslot, a page of it, and the page's counter.
//!
//! C source: `struct kvm_memory_slot` and `struct kvm_arch_memory_slot`.

use super::{Gfn, MmuWrite};
use crate::base::bindings;
use crate::base::once::{read_once, write_once};
use core::marker::PhantomData;
use core::ptr::{addr_of, addr_of_mut, NonNull};
use kernel::prelude::*;
use kernel::types::Opaque;

/// A memslot (`struct kvm_memory_slot`).
///
/// # Invariants
///
/// Points to an allocated memslot, kept so by a [`super::Slots`] or by the C caller's locks. The
/// counters it has, if any, are an array of `npages` elements.
#[repr(transparent)]
pub(crate) struct Memslot(Opaque<bindings::kvm_memory_slot>);

/// Levels above 4 KiB at which KVM maps large pages (2 MiB and 1 GiB).
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
    pub(crate) fn as_ptr(&self) -> *mut bindings::kvm_memory_slot {
        self.0.get()
    }

    /// First frame.
    #[inline(always)] // the reader
    pub(crate) fn base_gfn(&self) -> Gfn {
        // SAFETY: By the type invariant; constant once the memslot is visible.
        unsafe { (*self.as_ptr()).base_gfn }
    }

    /// Number of frames. Above zero.
    #[inline(always)] // the reader
    pub(crate) fn npages(&self) -> u64 {
        // SAFETY: As in `base_gfn`.
        unsafe { (*self.as_ptr()).npages as u64 }
    }

    /// Last frame.
    pub(crate) fn last_gfn(&self) -> Gfn {
        self.base_gfn() + (self.npages() - 1)
    }

    /// Address space: 0, or 1 for system management mode.
    #[inline(always)] // the reader
    pub(crate) fn as_id(&self) -> u16 {
        // SAFETY: As in `base_gfn`.
        unsafe { (*self.as_ptr()).as_id }
    }

    fn has_flag(&self, flag: u32) -> bool {
        // SAFETY: As in `base_gfn`; KVM sets flags on a copy before that becomes visible.
        unsafe { (*self.as_ptr()).flags & flag != 0 }
    }

    /// Whether the memslot is about to be moved or deleted.
    pub(crate) fn is_invalid(&self) -> bool {
        self.has_flag(bindings::KPT_SLOT_INVALID)
    }

    /// Whether its memory is in a guest_memfd.
    pub(crate) fn is_guest_memfd(&self) -> bool {
        self.has_flag(bindings::KPT_SLOT_GUEST_MEMFD)
    }

    /// Whether the memslot has reverse mappings: where KVM has no TDP MMU from the beginning (it makes them
    /// before it asks for counters), else from when KVM shadows guest page tables.
    ///
    /// If so it has those of all levels, until it is freed: KVM makes those of the last level last, and
    /// takes none back when it has them.
    pub(crate) fn has_rmaps(&self) -> bool {
        // SAFETY: By the type invariant.
        unsafe { !read_once(addr_of!((*self.as_ptr()).arch.rmap[LARGE_LEVELS])).is_null() }
    }

    /// A page of the memslot; `None` if it does not hold the frame.
    pub(crate) fn page(&self, gfn: Gfn) -> Option<Page<'_>> {
        let holds = gfn.wrapping_sub(self.base_gfn()) < self.npages();
        // INVARIANT: The memslot holds the frame.
        holds.then_some(Page { slot: self, gfn })
    }

    /// The same where somebody has looked already.
    ///
    /// # Safety
    ///
    /// The memslot holds the frame.
    pub(crate) unsafe fn page_unchecked(&self, gfn: Gfn) -> Page<'_> {
        // INVARIANT: The caller's promise.
        Page { slot: self, gfn }
    }

    #[inline(always)] // the reader
    pub(super) fn counters_field(&self) -> *mut *mut u16 {
        // SAFETY: By the type invariant; only the address is taken.
        unsafe { addr_of_mut!((*self.as_ptr()).arch.gfn_write_track) }
    }

    /// The write-track counters, if the memslot has any.
    #[inline(always)] // the reader
    pub(crate) fn counters(&self) -> Option<Counters<'_>> {
        // SAFETY: The field is valid by the type invariant. The load is an acquire: it pairs with the store
        // in `alloc_counters`.
        let array = unsafe { read_once(self.counters_field()) };
        Some(Counters {
            array: NonNull::new(array)?,
            slot: self,
        })
    }

    /// Gives the memslot counters, all zero, if it has none.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn alloc_counters(&self) -> Result {
        if self.counters().is_some() {
            return Ok(());
        }
        // SAFETY: An allocation without conditions.
        let array = unsafe { bindings::kpt_alloc_counters(self.npages() as usize) };
        if array.is_null() {
            return Err(ENOMEM);
        }
        // SAFETY: The field is valid by the type invariant; KVM frees the array with vfree(). The store is a
        // release: who sees the array sees it zeroed.
        unsafe { write_once(self.counters_field(), array.cast()) };
        Ok(())
    }
}

/// The counters of a memslot.
#[derive(Clone, Copy)]
pub(crate) struct Counters<'s> {
    array: NonNull<u16>,
    slot: &'s Memslot,
}

impl Counters<'_> {
    /// The count of a frame; zero for a frame outside the memslot.
    #[inline(always)] // the reader
    pub(crate) fn get(self, gfn: Gfn) -> u16 {
        let index = gfn.wrapping_sub(self.slot.base_gfn());
        if index >= self.slot.npages() {
            return 0;
        }
        // SAFETY: The array has `npages` elements by the invariant of `Memslot`. Every access to a count is a
        // single load or store, here as in C.
        unsafe { read_once(self.array.as_ptr().add(index as usize)) }
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
    pub(crate) fn counter(self) -> Option<Counter<'s>> {
        let counters = self.slot.counters()?;
        let index = self.gfn.wrapping_sub(self.slot.base_gfn());
        // INVARIANT: An element of the array.
        Some(Counter {
            // SAFETY: By the type invariants: of the memslot, whose counters are as many as its pages,
            // and of this, whose frame is one of them.
            count: unsafe { counters.array.add(index as usize) },
            _slot: PhantomData,
        })
    }

    /// Its count; zero if the memslot has no counters.
    pub(crate) fn count(self) -> u16 {
        self.counter().map_or(0, Counter::get)
    }

    /// The memslot.
    pub(crate) fn slot(self) -> &'s Memslot {
        self.slot
    }

    /// The frame.
    pub(crate) fn gfn(self) -> Gfn {
        self.gfn
    }
}

/// The counter of a page.
///
/// # Invariants
///
/// An element of the counters of a memslot, which has them as long as `'s`: KVM frees the array with the
/// memslot. A memslot that moves gives its array away, but not before everybody who found it earlier has
/// let go of it ([`super::NewSlot::take_counters`]).
#[derive(Clone, Copy)]
pub(crate) struct Counter<'s> {
    count: NonNull<u16>,
    _slot: PhantomData<&'s Memslot>,
}

impl Counter<'_> {
    /// The count.
    pub(crate) fn get(self) -> u16 {
        // SAFETY: By the type invariant; every access to a count is a single load or store, here as in C.
        unsafe { read_once(self.count.as_ptr()) }
    }

    /// Sets the count.
    pub(crate) fn set(self, _: &MmuWrite<'_>, value: u16) {
        // SAFETY: As in `get`; `mmu_lock` held for write excludes other writers (docs/internals.md, rule 3).
        unsafe { write_once(self.count.as_ptr(), value) };
    }
}

#[kernel::macros::kunit_tests(kvm_page_track_slot)]
#[allow(unsafe_op_in_unsafe_fn)]
mod tests {
    use super::*;
    use crate::kvm::unit::{with_blank_slot, with_blank_vm};

    fn set(slot: &Memslot, mmu: &MmuWrite<'_>, gfn: Gfn, count: u16) {
        slot.page(gfn).unwrap().counter().unwrap().set(mmu, count);
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
                assert_eq!(slot.last_gfn(), 0x13f);
                assert!(slot.page(0x100).is_some() && slot.page(0x13f).is_some());
                assert!(slot.page(0xff).is_none() && slot.page(0x140).is_none());
            });
        });
    }
}
