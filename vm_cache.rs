// SPDX-License-Identifier: GPL-2.0-only

//! A small cache in front of the table of VMs, which is a tree and takes a walk.
//!
//! One entry for all VMs whose keys end alike. An entry is a pair of words that readers must see
//! together, without a lock: a sequence count tells them that they did. What a reader finds is that
//! of its own VM or nothing, and that of its own VM cannot go away meanwhile ([`crate::vm`]).

use crate::inline_atomic::load;
use kernel::sync::atomic::{Atomic, Relaxed, Release};

/// Keys and addresses; a power of two.
const ENTRIES: usize = 16;

struct Entry {
    /// Odd while the other two change.
    sequence: Atomic<usize>,
    key: Atomic<usize>,
    address: Atomic<usize>,
}

static CACHE: [Entry; ENTRIES] = [const {
    Entry {
        sequence: Atomic::new(0),
        key: Atomic::new(0),
        address: Atomic::new(0),
    }
}; ENTRIES];

fn entry(key: usize) -> &'static Entry {
    &CACHE[key % ENTRIES]
}

/// The address stored for a key. Any context.
#[inline(always)]
pub(crate) fn get(key: usize) -> Option<usize> {
    let entry = entry(key);
    let sequence = load(&entry.sequence);
    let found = load(&entry.key) == key;
    let address = load(&entry.address);
    (found && sequence & 1 == 0 && load(&entry.sequence) == sequence).then_some(address)
}

/// Stores an address for a key, in place of whatever else has the entry. One caller at a time.
pub(crate) fn put(key: usize, address: usize) {
    set(entry(key), key, address);
}

/// Forgets a key. One caller at a time.
pub(crate) fn remove(key: usize) {
    let entry = entry(key);
    if entry.key.load(Relaxed) == key {
        set(entry, 0, 0);
    }
}

fn set(entry: &Entry, key: usize, address: usize) {
    let sequence = entry.sequence.load(Relaxed);
    // On x86 stores become visible in their order.
    entry.sequence.store(sequence + 1, Release);
    entry.key.store(key, Release);
    entry.address.store(address, Release);
    entry.sequence.store(sequence + 2, Release);
}

#[kernel::macros::kunit_tests(kvm_page_track_vm_cache)]
#[allow(unsafe_op_in_unsafe_fn)]
mod tests {
    use super::*;

    // Keys that no VM has: addresses of user space.
    const KEY: usize = 0x1230;

    #[test]
    fn what_is_put_is_found_until_removed() {
        assert_eq!(get(KEY), None);
        put(KEY, 42);
        assert_eq!(get(KEY), Some(42));
        assert_eq!(get(KEY + 1), None);
        assert_eq!(get(KEY + ENTRIES), None);
        remove(KEY + ENTRIES);
        assert_eq!(get(KEY), Some(42));
        remove(KEY);
        assert_eq!(get(KEY), None);
    }

    #[test]
    fn the_last_of_an_entry_wins() {
        put(KEY, 1);
        put(KEY + ENTRIES, 2);
        assert_eq!(get(KEY), None);
        assert_eq!(get(KEY + ENTRIES), Some(2));
        remove(KEY);
        assert_eq!(get(KEY + ENTRIES), Some(2));
        remove(KEY + ENTRIES);
    }

    #[test]
    fn an_entry_that_changes_is_not_believed() {
        put(KEY, 1);
        let entry = entry(KEY);
        let sequence = entry.sequence.load(Relaxed);
        entry.sequence.store(sequence + 1, Release);
        assert_eq!(get(KEY), None);
        entry.sequence.store(sequence + 2, Release);
        assert_eq!(get(KEY), Some(1));
        remove(KEY);
    }
}
