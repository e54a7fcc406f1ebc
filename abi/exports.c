// SPDX-License-Identifier: GPL-2.0-only
/*
 * The symbols other modules link against.  The bodies are in mod.rs and
 * upstream.rs; their prototypes come from the header that clients use.  And the module's version,
 * which Rust's module! cannot say.
 */
#include <linux/export.h>
#include <linux/module.h>

#include <kvm_page_track.h>

EXPORT_SYMBOL_GPL(kvm_page_track_add_page);
EXPORT_SYMBOL_GPL(kvm_page_track_remove_page);
EXPORT_SYMBOL_GPL(kvm_page_track_add_range);
EXPORT_SYMBOL_GPL(kvm_page_track_remove_range);
EXPORT_SYMBOL_GPL(kvm_page_track_prepare);
EXPORT_SYMBOL_GPL(kvm_slot_page_track_add_page);
EXPORT_SYMBOL_GPL(kvm_slot_page_track_remove_page);
EXPORT_SYMBOL_GPL(kvm_page_track_register_client);
EXPORT_SYMBOL_GPL(kvm_page_track_unregister_client);

/* Where kvm.ko has them, the module replaces KVM's. */
#ifndef CONFIG_KVM_EXTERNAL_WRITE_TRACKING
EXPORT_SYMBOL_GPL(kvm_write_track_add_gfn);
EXPORT_SYMBOL_GPL(kvm_write_track_remove_gfn);
EXPORT_SYMBOL_GPL(kvm_page_track_register_notifier);
EXPORT_SYMBOL_GPL(kvm_page_track_unregister_notifier);
#endif

MODULE_VERSION(KPT_VERSION);
