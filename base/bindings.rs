// SPDX-License-Identifier: GPL-2.0-only

//! Types and functions of C as bindgen sees them (see `bindings.h`).
//!
//! Only the edges of the crate use this module (see `page_track.rs`).

#![cfg_attr(CONFIG_RUSTC_HAS_UNNECESSARY_TRANSMUTES, allow(unnecessary_transmutes))]
#![allow(
    clippy::all,
    clippy::as_underscore,
    clippy::cast_lossless,
    clippy::ptr_as_ptr,
    clippy::ref_as_ptr,
    clippy::undocumented_unsafe_blocks,
    dead_code,
    improper_ctypes,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    unnameable_types,
    unsafe_op_in_unsafe_fn,
    unused_qualifications
)]

type __kernel_size_t = usize;
type __kernel_ssize_t = isize;
type __kernel_ptrdiff_t = isize;

include!(env!("KPT_BINDINGS"));
