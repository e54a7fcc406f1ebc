// SPDX-License-Identifier: GPL-2.0-only

//! What other modules have added and not taken back, when the module goes.

use crate::kvm::{external, vm, Kvm};
use crate::memslot::{self, owners};

/// What other modules have left tracked is tracked no more, in any VM. Sleeps.
///
/// Without this the next insmod would find pages that count as tracked and that C, which does not look, has
/// mapped writable meanwhile. To be called when nobody can add through us any more, and while VMs that die
/// still tell us.
pub(crate) fn untrack_all() {
    vm::for_each(|kvm, vm| {
        untrack(kvm, || external::enabled_by_c(kvm) || vm.pins());
        Ok(())
    })
    // The closure does not fail.
    .ok();
}

/// The same in one VM, unless `goes_on`: C goes on with it; or, after a forced unload, somebody is still
/// registered.
fn untrack(kvm: &Kvm, goes_on: impl FnOnce() -> bool) {
    let section = kvm.read_slots();
    // C sets its flag under this lock, before it counts anything for others. And a memslot that moves is at
    // its new place.
    let _locked = section.slots().lock_arch();
    // Nor if some of the counts may be KVM's.
    if goes_on() || owners::know(kvm).is_err() {
        return;
    }
    memslot::for_each_counted(section.slots(), |page, counter| {
        let mmu = kvm.lock_mmu();
        let count = counter.get();
        let of_kvm = count.min(mmu.shadow_page_tables(page.gfn()));
        counter.set(&mmu, of_kvm);
        for _ in of_kvm..count {
            mmu.allow_large_page(page);
        }
    });
}
