// SPDX-License-Identifier: GPL-2.0-only

//! kvm_page_track: write tracking of KVM guest pages, beside a stock `kvm.ko`.
//!
//! The layers, each of which knows only those below it (`make check` looks at that):
//!
//! - [`mmu_hooks`]: the functions of KVM that lead to us;
//! - [`abi`]: functions for other modules; [`dev`]: debugfs;
//! - [`tracker`]: adds, removes and events, which need counters and listeners both;
//! - [`memslot`]: the counters; [`notifier`]: the listeners;
//! - [`kvm`]: views of KVM's structures, and what we keep of a VM;
//! - [`base`]: what the kernel crate lacks.
//!
//! `unsafe` is in [`mmu_hooks`], [`abi`], [`dev`], [`kvm`] and [`base`] only, and here, where the module
//! begins and ends.

#![deny(unsafe_op_in_unsafe_fn)]

mod abi;
mod base;
mod dev;
mod kvm;
mod memslot;
mod mmu_hooks;
mod notifier;
mod tracker;

use dev::debugfs::DebugFs;
use kernel::prelude::*;
use kvm::vm;

module! {
    type: PageTrack,
    name: "kvm_page_track",
    authors: ["The kvm-page-track authors"],
    description: "KVM guest page tracking beside a stock kvm.ko",
    license: "GPL",
}

/// The module while it is loaded: attached from insmod to rmmod.
struct PageTrack {
    debugfs: Option<DebugFs>,
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
        let debugfs = Some(DebugFs::new(&mmu_hooks::ALL));
        pr_info!(
            "attached to kvm.ko: {} functions replaced{}, {}\n",
            mmu_hooks::ALL.iter().filter(|hook| hook.replaces()).count(),
            mmu_hooks::OBSERVED,
            mmu_hooks::ATTACHED
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
        pr_info!("detached from kvm.ko: {}\n", mmu_hooks::DETACHED);
    }
}
