// SPDX-License-Identifier: GPL-2.0-only

//! Addresses of functions of `kvm.ko` that are not exported.
//!
//! A kprobe that is registered disabled finds an address by name and changes no text. Where the
//! kernel uses IBT it finds the instruction after the function's ENDBR, which is what a direct call
//! wants (the ENDBR is sealed away) and where ftrace's call site is.
//!
//! C source: `kernel/kprobes.c`.

use crate::base::bindings;
use core::ptr::addr_of_mut;
use kernel::prelude::*;

/// A function of `kvm.ko`: its name with the module's in front.
#[derive(Clone, Copy)]
pub(crate) struct Symbol(&'static CStr);

impl Symbol {
    /// Names a function; `qualified` begins with `kvm:`.
    pub(crate) const fn new(qualified: &'static CStr) -> Self {
        Self(qualified)
    }

    /// The function's own name.
    pub(crate) fn name(&self) -> &'static str {
        let qualified = self.0.to_str().unwrap_or("");
        qualified.strip_prefix("kvm:").unwrap_or(qualified)
    }
}

/// Finds the addresses of functions, all or none. Sleeps.
///
/// # Errors
///
/// `ENOENT`, with the name in the kernel log, if one is missing; `ENOMEM`.
pub(crate) fn resolve(symbols: &[Symbol]) -> Result<KVec<usize>> {
    let mut addresses = KVec::with_capacity(symbols.len(), GFP_KERNEL)?;
    let mut probes: KVec<bindings::kprobe> = KVec::with_capacity(symbols.len(), GFP_KERNEL)?;
    let mut pointers: KVec<*mut bindings::kprobe> = KVec::with_capacity(symbols.len(), GFP_KERNEL)?;
    let mut result = Ok(());
    for symbol in symbols {
        // SAFETY: All zeroes is what C gives `register_kprobe()` besides the two fields set here.
        let mut probe: bindings::kprobe = unsafe { core::mem::zeroed() };
        probe.symbol_name = symbol.0.as_char_ptr();
        probe.flags = bindings::KPT_KPROBE_DISABLED;
        probes.push_within_capacity(probe)?;
        let last = probes.len() - 1;
        // SAFETY: The vector has the capacity already, so the probe stays where it is until it is
        // unregistered below. It is never enabled.
        let err = unsafe { bindings::register_kprobe(addr_of_mut!(probes[last])) };
        if err != 0 {
            pr_err!(
                "kvm.ko has no function {} to work with (error {})\n",
                symbol.name(),
                err
            );
            probes.pop();
            result = Err(ENOENT);
            break;
        }
        addresses.push_within_capacity(probes[last].addr as usize)?;
    }
    for probe in &mut probes {
        pointers.push_within_capacity(addr_of_mut!(*probe))?;
    }
    // One grace period for all.
    // SAFETY: Exactly the probes that were registered above.
    unsafe { bindings::unregister_kprobes(pointers.as_mut_ptr(), pointers.len() as i32) };
    result.map(|()| addresses)
}
