// SPDX-License-Identifier: GPL-2.0-only

//! What the module shows in `debugfs`, under `kvm_page_track/`:
//!
//! - `hooks`: `function address state`, a line each;
//! - `vms`: `pid pages counter_bytes notifiers events`, a header and a line per VM that the module
//!   knows: the process that created it, pages tracked for other modules, memory of the counters,
//!   notifiers and clients registered, guest writes that clients were told of.
//!
//! An open file keeps the module: the files' operations are in `debugfs.c` for that reason.

use crate::base::bindings;
use crate::base::ftrace::Hook;
use crate::kvm::vm;
use crate::{memslot, notifier};
use kernel::ffi::c_void;
use kernel::seq_file::SeqFile;
use kernel::seq_print;
use kernel::sync::atomic::Relaxed;

/// The directory; it goes when this is dropped.
pub(crate) struct DebugFs(*mut bindings::dentry);

// SAFETY: debugfs has locks of its own.
unsafe impl Send for DebugFs {}
// SAFETY: As above.
unsafe impl Sync for DebugFs {}

impl DebugFs {
    /// Makes the directory and its files. They are there to look at: the module works without.
    pub(crate) fn new(hooks: &'static &'static [Hook]) -> Self {
        let hooks = core::ptr::from_ref(hooks).cast_mut().cast();
        // SAFETY: Process context. An error pointer is what `debugfs_remove()` ignores.
        Self(unsafe { bindings::kpt_debugfs_create(hooks) })
    }
}

impl Drop for DebugFs {
    fn drop(&mut self) {
        // SAFETY: Made in `new`; waits for readers.
        unsafe { bindings::kpt_debugfs_remove(self.0) };
    }
}

/// Shows `hooks`.
///
/// # Safety
///
/// `m` is a valid seq_file; `hooks` is what [`DebugFs::new`] was given.
#[no_mangle]
unsafe extern "C" fn kpt_show_hooks(m: *mut bindings::seq_file, hooks: *mut c_void) {
    // SAFETY: The caller's promise.
    let (m, hooks) = unsafe { (SeqFile::from_raw(m.cast()), *hooks.cast::<&[Hook]>()) };
    for hook in hooks {
        let name = hook.symbol().name();
        match hook.attached_at() {
            Some(address) => seq_print!(m, "{name} {address:#x} attached\n"),
            None => seq_print!(m, "{name} - detached\n"),
        }
    }
}

/// Shows `vms`.
///
/// # Safety
///
/// `m` is a valid seq_file.
#[no_mangle]
unsafe extern "C" fn kpt_show_vms(m: *mut bindings::seq_file) {
    // SAFETY: The caller's promise.
    let m = unsafe { SeqFile::from_raw(m.cast()) };
    seq_print!(m, "pid pages counter_bytes notifiers events\n");
    vm::for_each(|kvm, vm| {
        seq_print!(
            m,
            "{} {} {} {} {}\n",
            kvm.userspace_pid(),
            memslot::tracked_pages(kvm),
            memslot::counter_bytes(kvm),
            notifier::count(kvm),
            vm.events.load(Relaxed),
        );
        Ok(())
    })
    // The closure does not fail.
    .ok();
}
