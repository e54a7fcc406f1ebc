// SPDX-License-Identifier: GPL-2.0-only
/*
 * The functions of kvm.ko that the module replaces (mmu_hooks/) or calls
 * (functions.rs) by their names, with the prototypes that it takes them to
 * have.  There is no code here: a kernel in which one is missing or is another
 * function does not get past this file.
 */
#include <linux/build_bug.h>
#include <linux/kvm_host.h>

#include "x86.h"
#include "mmu.h"
#include "mmu/mmu_internal.h"
#include "mmu/page_track.h"
#include "mmu/tdp_mmu.h"

#define KVM_FUNCTION(name, result, ...)						\
	static_assert(__same_type(name, result(__VA_ARGS__)),			\
		      "kvm_page_track: this kernel is refused: " #name		\
		      "() is not the function that the module knows (docs/kernels.md)")

/* Replaced. */
KVM_FUNCTION(kvm_gfn_is_write_tracked, bool, struct kvm *,
	     const struct kvm_memory_slot *, gfn_t);
KVM_FUNCTION(kvm_page_track_create_memslot, int, struct kvm *,
	     struct kvm_memory_slot *, unsigned long);
KVM_FUNCTION(__kvm_write_track_add_gfn, void, struct kvm *,
	     struct kvm_memory_slot *, gfn_t);
KVM_FUNCTION(__kvm_write_track_remove_gfn, void, struct kvm *,
	     struct kvm_memory_slot *, gfn_t);

#ifdef CONFIG_KVM_EXTERNAL_WRITE_TRACKING
KVM_FUNCTION(kvm_page_track_cleanup, void, struct kvm *);
KVM_FUNCTION(__kvm_page_track_write, void, struct kvm *, gpa_t, const u8 *, int);
KVM_FUNCTION(kvm_page_track_delete_slot, void, struct kvm *,
	     struct kvm_memory_slot *);
KVM_FUNCTION(kvm_write_track_add_gfn, int, struct kvm *, gfn_t);
KVM_FUNCTION(kvm_write_track_remove_gfn, int, struct kvm *, gfn_t);
KVM_FUNCTION(kvm_page_track_register_notifier, int, struct kvm *,
	     struct kvm_page_track_notifier_node *);
KVM_FUNCTION(kvm_page_track_unregister_notifier, void, struct kvm *,
	     struct kvm_page_track_notifier_node *);
#endif

/* Called. */
KVM_FUNCTION(kvm_flush_remote_tlbs, void, struct kvm *);
KVM_FUNCTION(kvm_mmu_gfn_allow_lpage, void, const struct kvm_memory_slot *, gfn_t);
KVM_FUNCTION(kvm_mmu_gfn_disallow_lpage, void, const struct kvm_memory_slot *,
	     gfn_t);
KVM_FUNCTION(kvm_mmu_slot_gfn_write_protect, bool, struct kvm *,
	     struct kvm_memory_slot *, u64, int);
KVM_FUNCTION(kvm_page_track_write_tracking_enabled, bool, struct kvm *);
KVM_FUNCTION(kvm_tdp_mmu_write_protect_gfn, bool, struct kvm *,
	     struct kvm_memory_slot *, gfn_t, int);
