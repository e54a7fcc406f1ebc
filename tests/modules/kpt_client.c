// SPDX-License-Identifier: GPL-2.0-only
/*
 * A client of kvm_page_track.ko for the tests: everything it asks of the
 * tracker it asks through include/kvm_page_track.h.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include "../../include/kvm_page_track.h"

typedef struct kvm_page_track_client kpt_tracker_t;

#include "kpt_core.h"

static struct kpt_node *to_kpt_node(struct kvm_page_track_notifier_node *n)
{
	return container_of(n, struct kpt_node, tracker.node);
}

static void track_write(gpa_t gpa, const u8 *new, int bytes,
			struct kvm_page_track_notifier_node *n)
{
	kpt_on_write(to_kpt_node(n), gpa, new, bytes);
}

static void track_remove_region(gfn_t gfn, unsigned long nr_pages,
				struct kvm_page_track_notifier_node *n)
{
	kpt_on_remove_region(to_kpt_node(n), gfn, nr_pages);
}

static void track_move_region(gfn_t old_gfn, gfn_t new_gfn,
			      unsigned long nr_pages,
			      struct kvm_page_track_client *client)
{
	kpt_on_move_region(container_of(client, struct kpt_node, tracker),
			   old_gfn, new_gfn, nr_pages);
}

static int kpt_api_page(u32 op, struct kvm *kvm, gfn_t gfn, u64 nr, u32 mode)
{
	switch (op) {
	case KPT_OP_ADD_PAGE:
		return kvm_page_track_add_page(kvm, gfn, mode);
	case KPT_OP_REMOVE_PAGE:
		return kvm_page_track_remove_page(kvm, gfn, mode);
	case KPT_OP_PREPARE:
		return kvm_page_track_prepare(kvm, gfn, nr);
	case KPT_OP_ADD_RANGE:
		return kvm_page_track_add_range(kvm, gfn, nr, mode);
	case KPT_OP_REMOVE_RANGE:
		return kvm_page_track_remove_range(kvm, gfn, nr, mode);
	case KPT_OP_WRITE_ADD:
		return kvm_write_track_add_gfn(kvm, gfn);
	case KPT_OP_WRITE_REMOVE:
		return kvm_write_track_remove_gfn(kvm, gfn);
	default:
		return -EDOM;
	}
}

static int kpt_api_slot_page(u32 op, struct kvm *kvm,
			     struct kvm_memory_slot *slot, gfn_t gfn, u32 mode)
{
	if (op == KPT_OP_SLOT_ADD)
		return kvm_slot_page_track_add_page(kvm, slot, gfn, mode);
	return kvm_slot_page_track_remove_page(kvm, slot, gfn, mode);
}

static int kpt_api_register(u32 type, struct kvm *kvm, struct kpt_node *node)
{
	if (node) {
		node->tracker.node.track_write = track_write;
		node->tracker.node.track_remove_region = track_remove_region;
		if (type == KPT_CLIENT_MOVE)
			node->tracker.track_move_region = track_move_region;
	}

	if (type == KPT_NOTIFIER)
		return kvm_page_track_register_notifier(kvm, node ?
							&node->tracker.node :
							NULL);
	return kvm_page_track_register_client(kvm, node ? &node->tracker : NULL);
}

static void kpt_api_unregister(u32 type, struct kvm *kvm, struct kpt_node *node)
{
	if (type == KPT_NOTIFIER)
		kvm_page_track_unregister_notifier(kvm, node ?
						   &node->tracker.node : NULL);
	else
		kvm_page_track_unregister_client(kvm, node ? &node->tracker :
						 NULL);
}

static long kpt_other_ioctl(unsigned int cmd, void __user *arg)
{
	switch (cmd) {
	case KPT_INSPECT:
	case KPT_PAGES:
	case KPT_PROBE:
		return -ENOSYS;
	default:
		return -ENOTTY;
	}
}

static int kpt_other_init(void)
{
	return 0;
}

static void kpt_other_exit(void)
{
}

MODULE_DESCRIPTION("Test client of kvm_page_track");
MODULE_LICENSE("GPL");
