// SPDX-License-Identifier: GPL-2.0-only
/* The files of debugfs.  See debugfs.rs. */
#include <linux/debugfs.h>
#include <linux/module.h>

#include "debugfs.h"

static int kpt_hooks_show(struct seq_file *m, void *unused)
{
	kpt_show_hooks(m, m->private);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(kpt_hooks);

static int kpt_vms_show(struct seq_file *m, void *unused)
{
	kpt_show_vms(m);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(kpt_vms);

struct dentry *kpt_debugfs_create(void *hooks)
{
	struct dentry *dir = debugfs_create_dir("kvm_page_track", NULL);

	debugfs_create_file("hooks", 0400, dir, hooks, &kpt_hooks_fops);
	debugfs_create_file("vms", 0400, dir, NULL, &kpt_vms_fops);
	return dir;
}

void kpt_debugfs_remove(struct dentry *dir)
{
	debugfs_remove(dir);
}
