// SPDX-License-Identifier: GPL-2.0-only

//! Adding and removing many pages at once, all or none: in one hold of `mmu_lock`, with one flush of TLBs.
//!
//! C has no ranges. What happens to each page is in [`super`].

use super::{add_locked, last_of, page_to_add, page_to_remove, remove_locked};
use crate::base::kernel_api::eopnotsupp;
use crate::kvm::{vm, Gfn, Kvm, MmuGuard, MmuWrite, Page, Slots};
use crate::memslot::{self, owners};
use kernel::prelude::*;

/// Tracks guest writes to a range of pages, or to none (`kvm_page_track_add_range()`). Sleeps.
///
/// # Errors
///
/// As [`super::add`].
pub(crate) fn add(kvm: &Kvm, gfn: Gfn, npages: u64) -> Result {
    if !kvm.can_track() {
        return Err(eopnotsupp());
    }
    let last = last_of(gfn, npages)?;
    loop {
        let read = kvm.read_slots();
        let missing = without_counters(read.slots(), gfn, last, page_to_add)?;
        vm::find_or_create(kvm)?;
        let Some(missing) = missing else {
            return change::<Add>(read.slots(), gfn, last);
        };
        drop(read);
        memslot::ensure_counters(kvm, missing)?;
    }
}

/// Takes back one add of each page of a range, or none (`kvm_page_track_remove_range()`). Sleeps.
///
/// # Errors
///
/// As [`super::remove`].
pub(crate) fn remove(kvm: &Kvm, gfn: Gfn, npages: u64) -> Result {
    let last = last_of(gfn, npages)?;
    let read = kvm.read_slots();
    match without_counters(read.slots(), gfn, last, page_to_remove)? {
        Some(_) => Err(ENOENT),
        None => change::<Remove>(read.slots(), gfn, last),
    }
}

/// The first page of a range whose memslot has no counters, if `find` finds a page in each memslot of it.
fn without_counters<'s>(
    slots: Slots<'s>,
    first: Gfn,
    last: Gfn,
    find: impl Fn(Slots<'s>, Gfn) -> Result<Page<'s>>,
) -> Result<Option<Gfn>> {
    let mut missing = None;
    let mut gfn = first;
    loop {
        let slot = find(slots, gfn)?.slot();
        if slot.counters().is_none() {
            missing.get_or_insert(gfn);
        }
        if slot.last_gfn() >= last {
            return Ok(missing);
        }
        gfn = slot.last_gfn() + 1;
    }
}

/// How far a change has got.
#[derive(Default)]
struct Progress {
    /// Whether TLBs have to be flushed before `mmu_lock` is released.
    flush: bool,
    /// Whether others may have had `mmu_lock` since the first page was looked at.
    yielded: bool,
}

/// What happens to every page of a range.
trait Change {
    /// Whether its count allows it.
    fn check(mmu: &MmuWrite<'_>, page: Page<'_>, count: u16) -> Result;

    /// Does it.
    fn apply(slots: Slots<'_>, mmu: &MmuWrite<'_>, page: Page<'_>, so_far: &mut Progress)
        -> Result;

    /// Takes it back.
    fn undo(slots: Slots<'_>, mmu: &MmuWrite<'_>, page: Page<'_>, so_far: &mut Progress) -> Result;
}

struct Add;
struct Remove;

impl Change for Add {
    #[inline]
    fn check(mmu: &MmuWrite<'_>, page: Page<'_>, count: u16) -> Result {
        owners::after_add(count, || mmu.shadow_page_tables(page.gfn())).map(|_| ())
    }

    #[inline]
    fn apply(
        slots: Slots<'_>,
        mmu: &MmuWrite<'_>,
        page: Page<'_>,
        so_far: &mut Progress,
    ) -> Result {
        add_locked(slots, mmu, page, || so_far.flush = true)
    }

    fn undo(_: Slots<'_>, mmu: &MmuWrite<'_>, page: Page<'_>, _: &mut Progress) -> Result {
        remove_locked(mmu, page)
    }
}

impl Change for Remove {
    #[inline]
    fn check(mmu: &MmuWrite<'_>, page: Page<'_>, count: u16) -> Result {
        owners::after_remove(count, || mmu.shadow_page_tables(page.gfn())).map(|_| ())
    }

    #[inline]
    fn apply(_: Slots<'_>, mmu: &MmuWrite<'_>, page: Page<'_>, so_far: &mut Progress) -> Result {
        if so_far.yielded {
            return remove_locked(mmu, page);
        }
        // `check` has just found that its count is not KVM's alone.
        let counter = page.counter().ok_or(ENOENT)?;
        counter.set(mmu, counter.get().saturating_sub(1));
        mmu.allow_large_page(page);
        Ok(())
    }

    fn undo(slots: Slots<'_>, mmu: &MmuWrite<'_>, page: Page<'_>, so_far: &mut Progress) -> Result {
        add_locked(slots, mmu, page, || so_far.flush = true)
    }
}

/// Changes every page of a range, or none: looks at all of them before the first is changed.
///
/// `mmu_lock` is yielded if somebody waits for it. Only if he then changed a page of the range can one be
/// refused half-way. What was done is undone then, except for pages that somebody else has meanwhile
/// removed without having added them, or added up to the limit.
fn change<C: Change>(slots: Slots<'_>, first: Gfn, last: Gfn) -> Result {
    let mut mmu = slots.kvm().lock_mmu();
    let mut so_far = Progress::default();
    for_pages(slots, &mut mmu, &mut so_far, first, last, |mmu, page, _| {
        C::check(mmu, page, page.count())
    })
    .1?;
    let (refused, result) = for_pages(
        slots,
        &mut mmu,
        &mut so_far,
        first,
        last,
        |mmu, page, so_far| C::apply(slots, mmu, page, so_far),
    );
    if result.is_err() && refused > first {
        for_pages(
            slots,
            &mut mmu,
            &mut so_far,
            first,
            refused - 1,
            |mmu, page, so_far| {
                C::undo(slots, mmu, page, so_far).ok();
                Ok(())
            },
        )
        .1
        .ok();
    }
    result
}

/// Calls `f` for the pages of a range up to the first that it refuses, and says which that is. TLBs are
/// flushed once for one hold of `mmu_lock`.
///
/// The memslots were there, and not INVALID, when the read section had begun. One that becomes so
/// meanwhile has the same counters, and is neither zapped nor moved before the section ends.
fn for_pages(
    slots: Slots<'_>,
    mmu: &mut MmuGuard<'_>,
    so_far: &mut Progress,
    first: Gfn,
    last: Gfn,
    mut f: impl FnMut(&MmuWrite<'_>, Page<'_>, &mut Progress) -> Result,
) -> (Gfn, Result) {
    /// Pages changed between two looks at who waits.
    const BATCH: u64 = 64;

    let mut gfn = first;
    let result = 'range: loop {
        let Some(slot) = slots.find(0, gfn) else {
            break Err(EINVAL);
        };
        let end = slot.last_gfn().min(last).min(gfn | (BATCH - 1));
        while let Some(page) = slot.page(gfn) {
            if let Err(e) = f(mmu, page, so_far) {
                break 'range Err(e);
            }
            if gfn == end {
                break;
            }
            gfn += 1;
        }
        if end == last {
            break Ok(());
        }
        gfn = end + 1;
        if mmu.is_wanted() {
            // Who gets the lock relies on it that read-only is read-only in every TLB.
            if core::mem::take(&mut so_far.flush) {
                mmu.flush_tlbs();
            }
            mmu.yield_to_others();
            so_far.yielded = true;
        }
    };
    if core::mem::take(&mut so_far.flush) {
        mmu.flush_tlbs();
    }
    (gfn, result)
}
