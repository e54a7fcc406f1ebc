// SPDX-License-Identifier: GPL-2.0-only
/*
 * C for Rust, of the kernel at large: inline functions and macros.  No logic
 * lives here.
 */
#include <linux/bug.h>
#include <linux/poison.h>
#include <linux/rculist.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/srcu.h>

#include "base.h"

DEFINE_SRCU(kpt_guard);

/* What these do beyond __srcu_read_lock() is for lockdep; else Rust calls that. */
int kpt_srcu_read_lock(struct srcu_struct *srcu)
{
	return srcu_read_lock(srcu);
}

void kpt_srcu_read_unlock(struct srcu_struct *srcu, int idx)
{
	srcu_read_unlock(srcu, idx);
}

struct srcu_struct *kpt_srcu_alloc(void)
{
	struct srcu_struct *srcu = kzalloc_obj(*srcu, GFP_KERNEL_ACCOUNT);

	if (srcu && init_srcu_struct(srcu)) {
		kfree(srcu);
		return NULL;
	}
	return srcu;
}

void kpt_srcu_free(struct srcu_struct *srcu)
{
	cleanup_srcu_struct(srcu);
	kfree(srcu);
}

void kpt_hlist_add_head_rcu(struct hlist_node *n, struct hlist_head *h)
{
	hlist_add_head_rcu(n, h);
}

void kpt_hlist_del_rcu(struct hlist_node *n)
{
	hlist_del_rcu(n);
}

/*
 * Whether a node is certainly in no list: it was zeroed, or hlist_del_rcu() has
 * taken it out, C's or ours.
 */
bool kpt_node_is_free(const struct hlist_node *n)
{
	return hlist_unhashed(n) || n->pprev == LIST_POISON2;
}

void kpt_sleep_idle(void)
{
	schedule_timeout_idle(MAX_SCHEDULE_TIMEOUT);
}

void kpt_warn_once(void)
{
	WARN_ON_ONCE(1);
}

void kpt_cond_resched(void)
{
	cond_resched();
}
