// SPDX-License-Identifier: GPL-2.0-only
/* The client of README.md: watch one page of one VM at a time. */
#include <linux/delay.h>
#include <linux/module.h>

#include "kpt_example.h"

static void on_write(gpa_t gpa, const u8 *new, int bytes,
		     struct kvm_page_track_notifier_node *node)
{
	pr_info("guest wrote %d bytes at %#llx: %*ph\n", bytes, gpa, bytes, new);
}

static struct kvm_page_track_client client = { .node.track_write = on_write };

/* Called in the process of the VM, for example from an ioctl. */
int example_watch(struct kvm *kvm, gfn_t gfn)
{
	int r = kvm_page_track_register_client(kvm, &client);

	if (!r) {
		r = kvm_page_track_add_page(kvm, gfn, KVM_PAGE_TRACK_WRITE);
		if (r)
			kvm_page_track_unregister_client(kvm, &client);
	}
	return r;
}
EXPORT_SYMBOL_GPL(example_watch);

void example_unwatch(struct kvm *kvm, gfn_t gfn)
{
	/* -EAGAIN: KVM is moving or deleting the memslot */
	while (kvm_page_track_remove_page(kvm, gfn, KVM_PAGE_TRACK_WRITE) == -EAGAIN)
		msleep(20);
	kvm_page_track_unregister_client(kvm, &client);
}
EXPORT_SYMBOL_GPL(example_unwatch);

MODULE_DESCRIPTION("The client of README.md");
MODULE_LICENSE("GPL");
