/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * C for Rust, of the kernel at large: inline functions and macros.  No logic
 * lives here.
 */
#ifndef _KPT_BASE_H
#define _KPT_BASE_H

#include <linux/srcu.h>
#include <linux/types.h>

/* The text guard: see guard.rs. */
extern struct srcu_struct kpt_guard;

int kpt_srcu_read_lock(struct srcu_struct *srcu);
void kpt_srcu_read_unlock(struct srcu_struct *srcu, int idx);
struct srcu_struct *kpt_srcu_alloc(void);
void kpt_srcu_free(struct srcu_struct *srcu);

void kpt_hlist_add_head_rcu(struct hlist_node *n, struct hlist_head *h);
void kpt_hlist_del_rcu(struct hlist_node *n);
bool kpt_node_is_free(const struct hlist_node *n);

void kpt_sleep_idle(void);
void kpt_cond_resched(void);
void kpt_warn_once(void);

#endif /* _KPT_BASE_H */
