// SPDX-License-Identifier: GPL-2.0-only

//! What user space sees: debugfs.

pub(crate) mod debugfs;
