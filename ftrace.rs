// SPDX-License-Identifier: GPL-2.0-only

//! Replacing functions of another module by direct jumps of ftrace.
//!
//! The first instruction of the function becomes a jump to ours, which takes its arguments and
//! returns to its caller. Function and graph tracers, kprobes and kretprobes on the same function
//! go on working; a livepatch or another direct user excludes us, and we it (`EBUSY`).
//!
//! C source: `kernel/trace/ftrace.c`, `include/linux/ftrace.h` (`ftrace_jmp_set()`).

use crate::bindings;
use crate::kvm_symbols::Symbol;
use kernel::error::to_result;
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::types::Opaque;

/// Tells ftrace to jump instead of to call.
const JMP: usize = 1;

/// The jump from one function to its replacement.
///
/// # Invariants
///
/// `ops` is used by ftrace from a successful [`Jump::attach`] to a successful [`Jump::detach`].
pub(crate) struct Jump {
    symbol: Symbol,
    replacement: *const (),
    ops: Opaque<bindings::ftrace_ops>,
    /// Where the function is; 0 if not attached.
    address: Atomic<usize>,
    /// Where the jump leads, while attached.
    target: Atomic<usize>,
}

// SAFETY: `ops` has locks of its own in ftrace; `replacement` is the address of a function.
unsafe impl Sync for Jump {}

impl Jump {
    /// A jump from `symbol` to `replacement`, not attached.
    ///
    /// # Safety
    ///
    /// `replacement` is a function of the "C" ABI with the prototype of `symbol`, and keeps its
    /// contract.
    pub(crate) const unsafe fn new(symbol: Symbol, replacement: *const ()) -> Self {
        Self {
            symbol,
            replacement,
            // SAFETY: All zeroes is how C declares an `ftrace_ops` that ftrace will set up.
            ops: Opaque::new(unsafe { core::mem::zeroed() }),
            address: Atomic::new(0),
            target: Atomic::new(0),
        }
    }

    /// The function that is replaced.
    pub(crate) fn symbol(&self) -> Symbol {
        self.symbol
    }

    /// The address of the replacement.
    pub(crate) fn replacement(&self) -> usize {
        self.replacement as usize
    }

    /// Where the jump is to lead: past the ENDBR of the replacement, which only an indirect jump needs.
    fn past_endbr(&self) -> usize {
        const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
        let entry = self.replacement.cast::<[u8; 4]>();
        // SAFETY: The replacement is a function of ours, and no function is shorter: what follows
        // in the text section may be read in any case.
        let begins_with = unsafe { entry.read_unaligned() };
        self.replacement() + if begins_with == ENDBR64 { 4 } else { 0 }
    }

    /// Where it is, if the jump is attached.
    pub(crate) fn attached_at(&self) -> Option<usize> {
        match self.address.load(Relaxed) {
            0 => None,
            address => Some(address),
        }
    }

    /// Attaches the jump at the function's address. Sleeps.
    ///
    /// # Safety
    ///
    /// `address` is that of the function the jump was made for.
    ///
    /// # Errors
    ///
    /// `EBUSY` if somebody else has replaced the function, `EINVAL` if ftrace has no call site
    /// there, and what else ftrace says.
    pub(crate) unsafe fn attach(&'static self, address: usize) -> Result {
        let target = self.past_endbr();
        if target & JMP != 0 || self.attached_at().is_some() {
            return Err(EINVAL);
        }
        let ops = self.ops.get();
        // SAFETY: `ops` is static, and not registered by the type invariant.
        let result = to_result(unsafe { bindings::ftrace_set_filter_ip(ops, address, 0, 0) })
            .and_then(|()| {
                // SAFETY: As above. The target is a replacement by the contract of `new`, and its
                // text stays until after `detach` and the drain of the guard.
                to_result(unsafe { bindings::register_ftrace_direct(ops, target | JMP) })
            });
        match result {
            // INVARIANT: ftrace uses `ops` from here on.
            Ok(()) => {
                self.target.store(target, Relaxed);
                self.address.store(address, Relaxed);
            }
            // SAFETY: `ops` is not registered.
            Err(_) => unsafe { bindings::ftrace_free_filter(ops) },
        }
        result
    }

    /// Detaches the jump. Waits for a grace period of Tasks RCU: takes 0.1 s and more.
    ///
    /// # Errors
    ///
    /// If ftrace has disabled itself the jump stays, and with it our text must.
    pub(crate) fn detach(&'static self) -> Result {
        if self.attached_at().is_none() {
            return Ok(());
        }
        let target = self.target.load(Relaxed);
        // SAFETY: Attached with the same arguments.
        to_result(unsafe {
            bindings::unregister_ftrace_direct(self.ops.get(), target | JMP, true)
        })?;
        // INVARIANT: ftrace has let go of `ops`.
        self.address.store(0, Relaxed);
        Ok(())
    }
}
