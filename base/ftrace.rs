// SPDX-License-Identifier: GPL-2.0-only

//! Hooking functions of another module by direct jumps and calls of ftrace.
//!
//! To replace a function its first instruction becomes a jump to ours, which takes its arguments and
//! returns to its caller. To run before a function it becomes a call of a stub, which keeps the
//! arguments and returns into the function. Function and graph tracers, kprobes and kretprobes on
//! the same function go on working; a livepatch or another direct user excludes us, and we it
//! (`EBUSY`).
//!
//! C source: `kernel/trace/ftrace.c`, `include/linux/ftrace.h` (`ftrace_jmp_set()`),
//! `samples/ftrace/ftrace-direct.c`.

use crate::base::bindings;
use crate::base::symbol::Symbol;
use kernel::error::to_result;
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::types::Opaque;

/// Tells ftrace to jump instead of to call.
const JMP: usize = 1;

/// The jump or call from one function to ours.
///
/// # Invariants
///
/// `ops` is used by ftrace from a successful [`Hook::attach`] to a successful [`Hook::detach`].
pub(crate) struct Hook {
    symbol: Symbol,
    ours: *const (),
    /// [`JMP`] for a jump, 0 for a call.
    tag: usize,
    ops: Opaque<bindings::ftrace_ops>,
    /// Where the function is; 0 if not attached.
    address: Atomic<usize>,
}

// SAFETY: `ops` has locks of its own in ftrace; `ours` is the address of a function.
unsafe impl Sync for Hook {}

impl Hook {
    /// A jump from `symbol` to `replacement`, not attached.
    ///
    /// # Safety
    ///
    /// `replacement` is a function of the "C" ABI with the prototype of `symbol`, and keeps its
    /// contract.
    pub(crate) const unsafe fn replace(symbol: Symbol, replacement: *const ()) -> Self {
        // SAFETY: The caller's promise.
        unsafe { Self::new(symbol, replacement, JMP) }
    }

    /// A call of `stub` at the beginning of `symbol`, not attached.
    ///
    /// # Safety
    ///
    /// `stub` is no ordinary function: it keeps the registers that carry the arguments of `symbol`,
    /// and returns to where it was called from.
    #[allow(dead_code)] // only where KVM does not track for others
    pub(crate) const unsafe fn before(symbol: Symbol, stub: *const ()) -> Self {
        // SAFETY: The caller's promise.
        unsafe { Self::new(symbol, stub, 0) }
    }

    /// A hook, not attached.
    ///
    /// # Safety
    ///
    /// That of [`Hook::replace`] or [`Hook::before`], as the tag says.
    const unsafe fn new(symbol: Symbol, ours: *const (), tag: usize) -> Self {
        // SAFETY: All zeroes is how C declares an `ftrace_ops` that ftrace will set up.
        let mut ops: bindings::ftrace_ops = unsafe { core::mem::zeroed() };
        // Before Linux 7.3 `kernel.ftrace_enabled=0` would take the hook away behind our back, with
        // the state of KVM half ours.
        ops.flags = bindings::KPT_FTRACE_PERMANENT;
        Self {
            symbol,
            ours,
            tag,
            ops: Opaque::new(ops),
            address: Atomic::new(0),
        }
    }

    /// The function that is hooked.
    pub(crate) fn symbol(&self) -> Symbol {
        self.symbol
    }

    /// The address of what it leads to.
    pub(crate) fn ours(&self) -> usize {
        self.ours as usize
    }

    /// Whether the function is replaced: jumps, and does not call.
    pub(crate) fn replaces(&self) -> bool {
        self.tag == JMP
    }

    /// Where it is to lead: past the ENDBR of our function, which only an indirect branch needs. That is one
    /// instruction less for the reader.
    fn target(&self) -> usize {
        const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
        // SAFETY: It is a function of ours, and no function is shorter.
        let begins_with = unsafe { self.ours.cast::<[u8; 4]>().read_unaligned() };
        self.ours() + if begins_with == ENDBR64 { 4 } else { 0 }
    }

    /// Where the hooked function is, if it is.
    pub(crate) fn attached_at(&self) -> Option<usize> {
        match self.address.load(Relaxed) {
            0 => None,
            address => Some(address),
        }
    }

    /// Attaches the hook at the function's address. Sleeps.
    ///
    /// # Safety
    ///
    /// `address` is that of the function the hook was made for.
    ///
    /// # Errors
    ///
    /// `EBUSY` if somebody else has replaced the function or ftrace is switched off, `EINVAL` if ftrace has no call site
    /// there, and what else ftrace says.
    pub(crate) unsafe fn attach(&'static self, address: usize) -> Result {
        if self.target() & JMP != 0 || self.attached_at().is_some() {
            return Err(EINVAL);
        }
        let ops = self.ops.get();
        // SAFETY: `ops` is static, and not registered by the type invariant.
        let result = to_result(unsafe { bindings::ftrace_set_filter_ip(ops, address, 0, 0) })
            .and_then(|()| {
                // SAFETY: As above. The target is what the tag says by the contracts of `replace` and
                // `before`, and its text stays until after `detach` and the drain of the guard.
                to_result(unsafe {
                    bindings::register_ftrace_direct(ops, self.target() | self.tag)
                })
            });
        match result {
            // INVARIANT: ftrace uses `ops` from here on.
            Ok(()) => self.address.store(address, Relaxed),
            // SAFETY: `ops` is not registered.
            Err(_) => unsafe { bindings::ftrace_free_filter(ops) },
        }
        result
    }

    /// Detaches the hook. Waits for a grace period of Tasks RCU: takes 0.1 s and more.
    ///
    /// # Errors
    ///
    /// If ftrace has disabled itself the hook stays, and with it our text must.
    pub(crate) fn detach(&'static self) -> Result {
        if self.attached_at().is_none() {
            return Ok(());
        }
        // SAFETY: Attached with the same arguments.
        to_result(unsafe {
            bindings::unregister_ftrace_direct(self.ops.get(), self.target() | self.tag, true)
        })?;
        // INVARIANT: ftrace has let go of `ops`.
        self.address.store(0, Relaxed);
        Ok(())
    }
}
