// SPDX-License-Identifier: GPL-2.0-only

//! What the kernel crate lacks: hooks of ftrace, the text guard, SRCU sections, loads and stores of one
//! instruction. Nothing here knows KVM.

pub(crate) mod bindings;
pub(crate) mod ftrace;
pub(crate) mod guard;
pub(crate) mod kernel_api;
pub(crate) mod module_pin;
pub(crate) mod once;
pub(crate) mod srcu;
pub(crate) mod symbol;
