// SPDX-License-Identifier: GPL-2.0-only

//! Who owns a count: how often other modules have added each page of a VM.
//!
//! The `u16` of a page also holds the counts of KVM's own shadow page tables. External adds are
//! counted here besides, exactly, so that a remove can never take a count that is KVM's or nobody's,
//! and events go out for pages that somebody asked for. C does not know the difference.
//!
//! Counts change under `mmu_lock` held for write, like the `u16`; memory for them is made before it
//! is taken ([`Owners::reserve`]).

use crate::kvm::{Gfn, MmuWrite};
use crate::xa::Xa;
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};

/// How often other modules together may add one page: what a `u16` leaves of KVM's own 2^14.
///
/// `KVM_PAGE_TRACK_MAX_USERS` in the C header.
pub(crate) const MAX_USERS: u16 = u16::MAX - (1 << 14);

/// The entry of a page: its count, and whether it was prepared and so stays when the count is zero.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Entry {
    count: u16,
    prepared: bool,
}

impl Entry {
    fn from_number(number: usize) -> Self {
        Self {
            count: (number >> 1) as u16,
            prepared: number & 1 != 0,
        }
    }

    fn number(self) -> usize {
        usize::from(self.count) << 1 | usize::from(self.prepared)
    }
}

/// External counts of a VM's pages.
#[pin_data]
pub(crate) struct Owners {
    #[pin]
    pages: Xa,
    tracked: Atomic<usize>,
}

impl Owners {
    /// Nothing tracked.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            pages <- Xa::new(),
            tracked: Atomic::new(0),
        })
    }

    fn load(&self, gfn: Gfn) -> Option<Entry> {
        self.pages.load(gfn as usize).map(Entry::from_number)
    }

    /// How often a page has been added. Any context; exact under `mmu_lock`.
    pub(crate) fn count(&self, gfn: Gfn) -> u16 {
        self.load(gfn).map_or(0, |entry| entry.count)
    }

    /// Number of pages that have been added at least once.
    pub(crate) fn tracked(&self) -> usize {
        self.tracked.load(Relaxed)
    }

    /// Makes room for the count of a page. Sleeps.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn reserve(&self, gfn: Gfn) -> Result {
        let empty = Entry {
            count: 0,
            prepared: false,
        };
        match self.pages.insert(gfn as usize, empty.number()) {
            Err(e) if e == EBUSY => Ok(()),
            result => result,
        }
    }

    /// Makes permanent room for the count of a page that has none. False if it has. Sleeps.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn prepare(&self, gfn: Gfn) -> Result<bool> {
        let empty = Entry {
            count: 0,
            prepared: true,
        };
        match self.pages.insert(gfn as usize, empty.number()) {
            Ok(()) => Ok(true),
            Err(e) if e == EBUSY => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Whether there is room for the count of a page.
    #[cfg(CONFIG_KUNIT = "y")]
    fn is_reserved(&self, gfn: Gfn) -> bool {
        self.load(gfn).is_some()
    }

    /// Makes the room for the count of a page permanent.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if there is no room.
    pub(crate) fn keep(&self, _: &MmuWrite<'_>, gfn: Gfn) -> Result {
        let entry = self.load(gfn).ok_or(ENOMEM)?;
        self.pages.replace(
            gfn as usize,
            Entry {
                prepared: true,
                ..entry
            }
            .number(),
        );
        Ok(())
    }

    /// Counts one add. Returns how often the page had been added before.
    ///
    /// # Errors
    ///
    /// `ENOMEM` without room, `EOVERFLOW` at the limit.
    pub(crate) fn add(&self, _: &MmuWrite<'_>, gfn: Gfn) -> Result<u16> {
        let entry = self.load(gfn).ok_or(ENOMEM)?;
        if entry.count >= MAX_USERS {
            return Err(EOVERFLOW);
        }
        let count = entry.count + 1;
        self.pages
            .replace(gfn as usize, Entry { count, ..entry }.number());
        if entry.count == 0 {
            self.tracked.add(1, Relaxed);
        }
        Ok(entry.count)
    }

    /// Counts one remove.
    ///
    /// # Errors
    ///
    /// `ENOENT` if nobody has added the page.
    pub(crate) fn remove(&self, _: &MmuWrite<'_>, gfn: Gfn) -> Result {
        let entry = self.load(gfn).ok_or(ENOENT)?;
        let count = entry.count.checked_sub(1).ok_or(ENOENT)?;
        if count == 0 {
            self.tracked.fetch_sub(1, Relaxed);
        }
        if count == 0 && !entry.prepared {
            self.pages.erase(gfn as usize);
        } else {
            self.pages
                .replace(gfn as usize, Entry { count, ..entry }.number());
        }
        Ok(())
    }

    /// Forgets a range of pages: their memslot is gone.
    ///
    /// No add or remove of these pages runs: the caller holds `slots_lock` and the range is in no
    /// memslot.
    pub(crate) fn forget(&self, base: Gfn, npages: u64) {
        self.for_range(base, npages, |gfn, entry| {
            if entry.count != 0 {
                self.tracked.fetch_sub(1, Relaxed);
            }
            self.pages.erase(gfn as usize);
            Ok(())
        })
        // The closure does not fail.
        .ok();
    }

    /// Carries the counts of a range of pages to another place, which may overlap.
    ///
    /// No add or remove of these pages runs: the caller holds `slots_lock`, and the memslot that
    /// held the old range has been made INVALID. Sleeps.
    ///
    /// # Errors
    ///
    /// `ENOMEM`; nothing has changed then.
    pub(crate) fn relocate(&self, from: Gfn, to: Gfn, npages: u64) -> Result {
        let mut moving = KVec::new();
        self.for_range(from, npages, |gfn, entry| {
            Ok(moving.push((gfn, entry), GFP_KERNEL_ACCOUNT)?)
        })?;
        let target = |gfn: Gfn| gfn - from + to;

        // Room first: this is all that can fail.
        for (done, &(gfn, _)) in moving.iter().enumerate() {
            if self.reserve(target(gfn)).is_err() {
                for &(gfn, _) in &moving[..done] {
                    if !Self::among(&moving, target(gfn)) {
                        self.pages.erase(target(gfn) as usize);
                    }
                }
                return Err(ENOMEM);
            }
        }
        for &(gfn, entry) in &moving {
            self.pages.replace(target(gfn) as usize, entry.number());
        }
        // An old place stays if a page of the same range has moved there.
        for &(gfn, _) in &moving {
            let is_target = (gfn + from)
                .checked_sub(to)
                .is_some_and(|source| Self::among(&moving, source));
            if !is_target {
                self.pages.erase(gfn as usize);
            }
        }
        Ok(())
    }

    fn among(sorted: &[(Gfn, Entry)], gfn: Gfn) -> bool {
        sorted.binary_search_by_key(&gfn, |&(g, _)| g).is_ok()
    }

    fn for_range(&self, base: Gfn, npages: u64, mut f: impl FnMut(Gfn, Entry) -> Result) -> Result {
        let last = (base + npages - 1) as usize;
        let mut from = base as usize;
        while let Some((index, number)) = self.pages.find(from, last) {
            f(index as Gfn, Entry::from_number(number))?;
            if index == last {
                break;
            }
            from = index + 1;
        }
        Ok(())
    }
}

#[kernel::macros::kunit_tests(kvm_page_track_owners)]
#[allow(unsafe_op_in_unsafe_fn)]
mod tests {
    use super::*;
    use crate::kvm::unit::with_blank_vm;

    fn owners() -> Pin<KBox<Owners>> {
        KBox::pin_init(Owners::new(), GFP_KERNEL).unwrap()
    }

    #[test]
    fn entry_survives_encoding() {
        for count in [0, 1, MAX_USERS, u16::MAX] {
            for prepared in [false, true] {
                let entry = Entry { count, prepared };
                assert!(Entry::from_number(entry.number()) == entry);
            }
        }
    }

    #[test]
    fn add_needs_room() {
        with_blank_vm(|_, mmu| {
            let owners = owners();
            assert_eq!(owners.add(mmu, 7), Err(ENOMEM));
            assert_eq!(owners.tracked(), 0);
            owners.reserve(7).unwrap();
            assert_eq!(owners.tracked(), 0);
            assert_eq!(owners.add(mmu, 7), Ok(0));
            assert_eq!(owners.tracked(), 1);
        });
    }

    #[test]
    fn as_many_removes_as_adds() {
        with_blank_vm(|_, mmu| {
            let owners = owners();
            assert_eq!(owners.remove(mmu, 7), Err(ENOENT));
            owners.reserve(7).unwrap();
            assert_eq!(owners.remove(mmu, 7), Err(ENOENT));
            for n in 0..5 {
                assert_eq!(owners.add(mmu, 7), Ok(n));
            }
            assert_eq!(owners.tracked(), 1);
            for n in (0..5).rev() {
                assert_eq!(owners.remove(mmu, 7), Ok(()));
                assert_eq!(owners.count(7), n);
            }
            assert_eq!(owners.remove(mmu, 7), Err(ENOENT));
            assert_eq!(owners.tracked(), 0);
            assert!(!owners.is_reserved(7));
        });
    }

    #[test]
    fn users_of_a_page_are_limited() {
        with_blank_vm(|_, mmu| {
            let owners = owners();
            owners.reserve(7).unwrap();
            for _ in 0..MAX_USERS {
                owners.add(mmu, 7).unwrap();
            }
            assert_eq!(owners.add(mmu, 7), Err(EOVERFLOW));
            assert_eq!(owners.count(7), MAX_USERS);
            owners.remove(mmu, 7).unwrap();
            assert_eq!(owners.add(mmu, 7), Ok(MAX_USERS - 1));
        });
    }

    #[test]
    fn prepared_room_stays() {
        with_blank_vm(|_, mmu| {
            let owners = owners();
            assert_eq!(owners.keep(mmu, 7), Err(ENOMEM));
            assert_eq!(owners.prepare(7), Ok(true));
            assert_eq!(owners.prepare(7), Ok(false));
            owners.reserve(7).unwrap();
            owners.keep(mmu, 7).unwrap();
            owners.add(mmu, 7).unwrap();
            owners.remove(mmu, 7).unwrap();
            assert!(owners.is_reserved(7));
            assert_eq!(owners.add(mmu, 7), Ok(0));
        });
    }

    #[test]
    fn counts_follow_a_move() {
        // To the right by one, to the left by one, by all but one, and far away.
        for to in [101, 99, 109, 91, 5000] {
            with_blank_vm(|_, mmu| {
                let owners = owners();
                for (gfn, count) in [(100, 3), (101, 1), (104, 2), (109, 4), (110, 9)] {
                    owners.reserve(gfn).unwrap();
                    for _ in 0..count {
                        owners.add(mmu, gfn).unwrap();
                    }
                }
                owners.relocate(100, to, 10).unwrap();
                for gfn in 80..130 {
                    let expected = match (gfn + 100_u64).wrapping_sub(to) {
                        100 => 3,
                        101 => 1,
                        104 => 2,
                        109 => 4,
                        _ if gfn == 110 => 9,
                        _ => 0,
                    };
                    // The target of a real move holds no tracked page outside the moving range.
                    if gfn != 110 || to != 101 {
                        assert_eq!(owners.count(gfn), expected);
                    }
                }
                assert_eq!(owners.count(to + 9), 4);
            });
        }
    }

    #[test]
    fn a_deleted_range_is_forgotten() {
        with_blank_vm(|_, mmu| {
            let owners = owners();
            for gfn in 0..20 {
                owners.reserve(gfn).unwrap();
                owners.add(mmu, gfn).unwrap();
            }
            owners.forget(5, 10);
            assert_eq!(owners.tracked(), 10);
            for gfn in 0..20 {
                assert_eq!(owners.count(gfn), u16::from(!(5..15).contains(&gfn)));
                assert_eq!(owners.is_reserved(gfn), !(5..15).contains(&gfn));
            }
        });
    }
}
