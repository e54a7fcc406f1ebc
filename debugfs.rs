// SPDX-License-Identifier: GPL-2.0-only

//! What the module shows in `debugfs`, under `kvm_page_track/`:
//!
//! - `hooks`: `function address state`, a line each;
//! - `vms`: `pid pages counter_bytes notifiers events`, a header and a line per VM that the module
//!   knows: the process that created it, pages tracked for other modules, memory of the counters,
//!   notifiers and clients registered, guest writes delivered.

use crate::{memslot, mmu_hooks, notifier, vm};
use kernel::debugfs::{Dir, File};
use kernel::fmt;
use kernel::prelude::*;
use kernel::sync::atomic::Relaxed;

/// The directory; it goes when this is dropped.
#[pin_data]
pub(crate) struct DebugFs {
    #[pin]
    hooks: File<()>,
    #[pin]
    vms: File<()>,
}

impl DebugFs {
    /// Makes the directory.
    pub(crate) fn new(dir: &Dir) -> impl PinInit<Self, Error> + '_ {
        try_pin_init!(Self {
            hooks <- dir.read_callback_file(c"hooks", (), &show_hooks),
            vms <- dir.read_callback_file(c"vms", (), &show_vms),
        })
    }
}

fn show_hooks(_: &(), f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for hook in mmu_hooks::all() {
        let name = hook.symbol().name();
        match hook.attached_at() {
            Some(address) => writeln!(f, "{name} {address:#x} attached")?,
            None => writeln!(f, "{name} - detached")?,
        }
    }
    Ok(())
}

fn show_vms(_: &(), f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "pid pages counter_bytes notifiers events")?;
    vm::for_each(|kvm, vm| {
        writeln!(
            f,
            "{} {} {} {} {}",
            kvm.userspace_pid(),
            vm.owners.tracked(),
            memslot::counter_bytes(kvm),
            notifier::count(kvm, vm),
            vm.events.load(Relaxed),
        )
        .map_err(|_| ENOMEM)
    })
    .map_err(|_| fmt::Error)
}
