// SPDX-License-Identifier: GPL-2.0-only
/*
 * A module written for upstream's page tracking and for nothing else: as it is
 * here it builds for kernels whose KVM has that.  For the others the Makefile adds
 * our header to the command line, and kvm_page_track.ko has the functions.
 *
 * Loads only if these are ours: C would not survive the calls.
 */
#include <linux/kvm_host.h>
#include <linux/module.h>

#include <asm/kvm_page_track.h>

static void track_write(gpa_t gpa, const u8 *new, int bytes,
			struct kvm_page_track_notifier_node *node)
{
}

static void track_remove_region(gfn_t gfn, unsigned long nr_pages,
				struct kvm_page_track_notifier_node *node)
{
}

static struct kvm_page_track_notifier_node node = {
	.track_write = track_write,
	.track_remove_region = track_remove_region,
};

static int __init upstream_init(void)
{
	if (kvm_page_track_register_notifier(NULL, &node) != -ESRCH ||
	    kvm_write_track_add_gfn(NULL, 0) != -EINVAL ||
	    kvm_write_track_remove_gfn(NULL, 0) != -EINVAL)
		return -EIO;
	kvm_page_track_unregister_notifier(NULL, &node);
	return 0;
}
module_init(upstream_init);

static void __exit upstream_exit(void)
{
}
module_exit(upstream_exit);

MODULE_DESCRIPTION("A user of upstream's KVM page tracking, for tests");
MODULE_LICENSE("GPL");
