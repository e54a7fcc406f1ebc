// SPDX-License-Identifier: GPL-2.0-only

//! Adding and removing many pages at once, all or none.
//!
//! A range is changed block by block, a block being the pages for which a word has bits: the counts of
//! large pages change once for all of them. TLBs are flushed once.
//!
//! C has no ranges. What a range does to each of its pages is in [`crate::tracker`].

use crate::base::kernel_api::eopnotsupp;
use crate::base::once::smp_mb;
use crate::kvm::vm;
use crate::kvm::{Block, Gfn, Kvm, Memslot, MmuGuard, MmuWrite, Pages, Slots};
use crate::memslot;
use crate::memslot::owners;
use crate::tracker::{add_locked, changeable, last_of, remove_locked};
use kernel::prelude::*;

/// Tracks guest writes to a range of pages, or to none (`kvm_page_track_add_range()`). Sleeps.
///
/// # Errors
///
/// As [`crate::tracker::add`].
pub(crate) fn add(kvm: &Kvm, gfn: Gfn, npages: u64) -> Result {
    if !kvm.can_track() {
        return Err(eopnotsupp());
    }
    let last = last_of(gfn, npages)?;
    loop {
        let read = kvm.read_slots();
        let missing = without_counters::<true>(read.slots(), gfn, last)?;
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
/// As [`crate::tracker::remove`].
pub(crate) fn remove(kvm: &Kvm, gfn: Gfn, npages: u64) -> Result {
    let last = last_of(gfn, npages)?;
    let read = kvm.read_slots();
    without_counters::<false>(read.slots(), gfn, last)?;
    change::<Remove>(read.slots(), gfn, last)
}

/// The first page of a range whose memslot has no counters, if all of the range can be changed.
fn without_counters<const ADD: bool>(
    slots: Slots<'_>,
    first: Gfn,
    last: Gfn,
) -> Result<Option<Gfn>> {
    let mut missing = None;
    let mut gfn = first;
    loop {
        let slot = changeable::<ADD>(slots, gfn)?.slot();
        if slot.counters().is_none() {
            missing.get_or_insert(gfn);
        }
        // The last page of the memslot.
        let end = slot.base_gfn() + (slot.npages() - 1);
        if end >= last {
            return Ok(missing);
        }
        gfn = end + 1;
    }
}

/// What happens to every block of a range.
trait Change {
    /// Whether the counts of all its pages allow it.
    fn check(mmu: &MmuWrite<'_>, block: Block<'_>) -> Result;

    /// Does it. True if TLBs have to be flushed.
    fn apply(slots: Slots<'_>, mmu: &MmuWrite<'_>, block: Block<'_>) -> bool;

    /// Takes it back, as far as others allow. True if TLBs have to be flushed.
    fn undo(slots: Slots<'_>, mmu: &MmuWrite<'_>, block: Block<'_>) -> bool;
}

struct Add;

impl Change for Add {
    #[inline(always)]
    fn check(mmu: &MmuWrite<'_>, block: Block<'_>) -> Result {
        block
            .look(|gfn, count| owners::after_add(count, || mmu.shadow_page_tables(gfn)).map(|_| ()))
    }

    #[inline(always)]
    fn apply(slots: Slots<'_>, mmu: &MmuWrite<'_>, block: Block<'_>) -> bool {
        let two_spaces = slots.may_have(1);
        let (mut new, mut new_to_others) = (block.none(), block.none());
        block.recount(mmu, |gfn, before| {
            if before == 0 {
                new.insert(gfn);
            }
            if two_spaces && !owners::any_external(before, || mmu.shadow_page_tables(gfn)) {
                new_to_others.insert(gfn);
            }
            // `check` has found room for one more.
            before.saturating_add(1)
        });
        // As in `tracker::add_locked`, here for the whole block.
        smp_mb();
        mmu.disallow_large_pages(block);
        let flush = write_protect(mmu, block.slot(), new);
        flush | write_protect_other_space(slots, mmu, new_to_others)
    }

    fn undo(_: Slots<'_>, mmu: &MmuWrite<'_>, block: Block<'_>) -> bool {
        for page in block.pages() {
            if let Some(counter) = page.counter() {
                remove_locked(mmu, page, counter).ok();
            }
        }
        false
    }
}

struct Remove;

impl Change for Remove {
    #[inline(always)]
    fn check(mmu: &MmuWrite<'_>, block: Block<'_>) -> Result {
        block.look(|gfn, count| {
            owners::after_remove(count, || mmu.shadow_page_tables(gfn)).map(|_| ())
        })
    }

    #[inline(always)]
    fn apply(_: Slots<'_>, mmu: &MmuWrite<'_>, block: Block<'_>) -> bool {
        // `check` has found counts that are not KVM's alone.
        block.recount(mmu, |_, before| before.saturating_sub(1));
        mmu.allow_large_pages(block);
        false
    }

    fn undo(slots: Slots<'_>, mmu: &MmuWrite<'_>, block: Block<'_>) -> bool {
        let mut flush = false;
        for page in block.pages() {
            if let Some(counter) = page.counter() {
                flush |= add_locked(slots, mmu, page, counter).unwrap_or(false);
            }
        }
        flush
    }
}

/// Makes the existing mappings of some pages of a block read-only. True if TLBs have to be flushed.
fn write_protect(mmu: &MmuWrite<'_>, slot: &Memslot, mut pages: Pages) -> bool {
    let mut flush = false;
    while let Some(page) = pages.take_first().and_then(|gfn| slot.page(gfn)) {
        flush |= mmu.write_protect(page);
    }
    flush
}

/// The same in address space 1, where other memslots may have the same pages.
fn write_protect_other_space(slots: Slots<'_>, mmu: &MmuWrite<'_>, mut pages: Pages) -> bool {
    let mut flush = false;
    while let Some(gfn) = pages.first() {
        match slots.find(1, gfn) {
            Some(slot) => {
                let here = pages.take_held_by(slot);
                flush |= write_protect(mmu, slot, here);
            }
            None => {
                pages.take_first();
            }
        }
    }
    flush
}

/// `mmu_lock`, held for a block of pages, and longer only if nobody waits for it or for the processor.
struct Hold<'k> {
    mmu: MmuGuard<'k>,
    /// Whether others may have had it meanwhile.
    yielded: bool,
}

/// Changes every page of a range, or none: looks at all of them before the first is changed.
///
/// Only if `mmu_lock` was yielded to somebody who then changed a page of the range can one be refused
/// half-way. What was done is undone then, except for pages that somebody else has meanwhile removed
/// without having added them, or added up to the limit.
#[inline(always)]
fn change<C: Change>(slots: Slots<'_>, first: Gfn, last: Gfn) -> Result {
    let mut hold = Hold {
        mmu: slots.kvm().lock_mmu(),
        yielded: false,
    };
    for_blocks(slots, &mut hold, first, last, |hold, block| {
        C::check(&hold.mmu, block).map(|()| false)
    })
    .1?;
    let (done, result) = for_blocks(slots, &mut hold, first, last, |hold, block| {
        if hold.yielded {
            C::check(&hold.mmu, block)?;
        }
        Ok(C::apply(slots, &hold.mmu, block))
    });
    if result.is_err() && done > first {
        for_blocks(slots, &mut hold, first, done - 1, |hold, block| {
            Ok(C::undo(slots, &hold.mmu, block))
        })
        .1
        .ok();
    }
    result
}

/// Calls `f` for the blocks of a range up to the first that it refuses; returns where that begins.
///
/// `f` tells whether TLBs have to be flushed. That is done once for one hold of `mmu_lock`.
///
/// The memslots were there, and not INVALID, when the read section had begun. One that becomes so
/// meanwhile has the same counters, and is neither zapped nor moved before the section ends.
#[inline(always)]
fn for_blocks(
    slots: Slots<'_>,
    hold: &mut Hold<'_>,
    first: Gfn,
    last: Gfn,
    mut f: impl FnMut(&Hold<'_>, Block<'_>) -> Result<bool>,
) -> (Gfn, Result) {
    let mut flush = false;
    let mut gfn = first;
    let result = 'range: loop {
        let Some(slot) = slots.find(0, gfn) else {
            break Err(EINVAL);
        };
        while let Some(block) = slot.block(gfn, last) {
            match f(hold, block) {
                Ok(needs_flush) => flush |= needs_flush,
                Err(e) => break 'range Err(e),
            }
            if block.last() == last {
                break 'range Ok(());
            }
            gfn = block.last() + 1;
            if hold.mmu.is_wanted() {
                // Who gets the lock relies on it that read-only is read-only in every TLB.
                if core::mem::take(&mut flush) {
                    hold.mmu.flush_tlbs();
                }
                hold.mmu.yield_to_others();
                hold.yielded = true;
            }
        }
    };
    if flush {
        hold.mmu.flush_tlbs();
    }
    (gfn, result)
}
