// SPDX-License-Identifier: GPL-2.0-only

//! kvm_page_track: write tracking of KVM guest pages, beside a stock `kvm.ko`.
//!
//! ```text
//! kvm.ko  --jump-->  mmu_hooks  -->  memslot   the u16 counters, asked by the fault path
//!                               -->  notifier  events: guest writes, memslots deleted and moved
//!                               -->  tracker   adds and removes of other modules
//! other modules  -->  abi       -->  tracker, ranges, notifier
//! ```
//!
//! [`owners`] knows which counts are not KVM's, [`vm`] what belongs to which VM. [`provider`] is what
//! differs between a KVM that tracks for other modules and one that does not. The edges to C are
//! [`provider`], [`kvm`], [`notifier_list`], [`clients`], [`inline_atomic`], [`guard`], [`module_pin`],
//! [`srcu`], [`ftrace`], [`kvm_symbols`], [`kvm_functions`], [`mmu_hooks`], [`debugfs`] and [`abi`], and [`vm`] is
//! a table that is read without a lock. Of the rest only [`notifier`] and [`memslot`] say `unsafe`, where
//! a reference is taken across a function, and where counters change hands.

#![deny(unsafe_op_in_unsafe_fn)]

mod abi;
mod base;
mod dev;
mod kvm;
mod memslot;
mod mmu_hooks;
mod notifier;
mod notifier_clients;
#[cfg_attr(
    CONFIG_KVM_EXTERNAL_WRITE_TRACKING = "y",
    path = "mmu_hooks/with_tracking.rs"
)]
#[cfg_attr(
    not(CONFIG_KVM_EXTERNAL_WRITE_TRACKING = "y"),
    path = "mmu_hooks/without_tracking.rs"
)]
mod provider;
mod tracker;

use crate::dev::debugfs;
use crate::kvm::vm;
use kernel::prelude::*;

module! {
    type: PageTrack,
    name: "kvm_page_track",
    authors: ["The kvm-page-track authors"],
    description: "KVM guest page tracking beside a stock kvm.ko",
    license: "GPL",
}

/// The module while it is loaded: attached from insmod to rmmod.
struct PageTrack {
    debugfs: Option<debugfs::DebugFs>,
}

impl kernel::Module for PageTrack {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        // SAFETY: Module init runs once, and these are its first statements.
        unsafe { vm::init() };
        kvm::init();
        kvm::functions::connect()?;
        if let Err(e) = mmu_hooks::attach() {
            // SAFETY: Nothing is attached any more, and no other module has found our symbols.
            unsafe { vm::clear() };
            return Err(e);
        }
        let debugfs = Some(debugfs::DebugFs::new());
        pr_info!(
            "attached to kvm.ko: {} functions replaced{}, {}\n",
            mmu_hooks::all()
                .iter()
                .filter(|hook| hook.replaces())
                .count(),
            provider::OBSERVED,
            provider::ATTACHED
        );
        Ok(Self { debugfs })
    }
}

impl Drop for PageTrack {
    fn drop(&mut self) {
        self.debugfs = None;
        // Only a forced unload finds live notifiers. C serves them from here on, if it can.
        notifier::hand_over_all();
        mmu_hooks::detach();
        // SAFETY: Every hook is detached and drained, and a module that uses our symbols would have
        // kept us from being unloaded.
        unsafe { vm::clear() };
        pr_info!("detached from kvm.ko: {}\n", provider::DETACHED);
    }
}
