/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * debugfs: the files' operations are C's, because those of the Rust abstraction
 * have no owner, and an open file must keep the module.
 */
#ifndef _KPT_DEBUGFS_H
#define _KPT_DEBUGFS_H

#include <linux/seq_file.h>

/* @hooks is handed to kpt_show_hooks(). */
struct dentry *kpt_debugfs_create(void *hooks);
void kpt_debugfs_remove(struct dentry *dir);

/* Rust: debugfs.rs. */
void kpt_show_hooks(struct seq_file *m, void *hooks);
void kpt_show_vms(struct seq_file *m);

#endif /* _KPT_DEBUGFS_H */
