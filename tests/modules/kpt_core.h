/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What kpt_client.ko and kpt_stock.ko share: the device, the notifiers with
 * their counters, the ring of events.  Each module includes this file once,
 * after the header that declares the tracker's types, and defines the
 * functions declared at the top.
 */
#ifndef KPT_CORE_H
#define KPT_CORE_H

#include <linux/atomic.h>
#include <linux/delay.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/kvm_host.h>
#include <linux/list.h>
#include <linux/magic.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#include "kpt_client.h"

#define KPT_RING	16384
#define KPT_MAX_NODES	256
#define KPT_MAGIC	0x6b70746e6f646521ULL

struct kpt_file;

/* One notifier.  Freed at module exit only, so that a late callback is seen. */
struct kpt_node {
	kpt_tracker_t tracker;
	u64 magic;
	struct list_head graveyard;
	struct kpt_file *file;
	struct kvm *kvm;
	int id;
	u32 type;
	u32 flags;
	u32 sleep_ms;
	gfn_t cb_gfn;
	bool registered;	/* under kpt_file.lock */
	bool returned;		/* unregister has returned */
	atomic64_t writes, bytes, removes, moves, late, running, wrong;
	atomic64_t cb_ok, cb_err;
	int cb_errno;
	int move_errno[3];
};

struct kpt_file {
	struct mutex lock;	/* nodes, nr_nodes */
	struct kpt_node *nodes[KPT_MAX_NODES];
	int nr_nodes;
	spinlock_t ring_lock;	/* what follows */
	struct kpt_event *ring;
	u64 head, tail;
	u64 seq, dropped;
};

/* The API under test.  @kvm, @slot and @node may be NULL when asked for. */
static int kpt_api_page(u32 op, struct kvm *kvm, gfn_t gfn, u64 nr, u32 mode);
static int kpt_api_slot_page(u32 op, struct kvm *kvm,
			     struct kvm_memory_slot *slot, gfn_t gfn, u32 mode);
static int kpt_api_register(u32 type, struct kvm *kvm, struct kpt_node *node);
static void kpt_api_unregister(u32 type, struct kvm *kvm,
			       struct kpt_node *node);
static long kpt_other_ioctl(unsigned int cmd, void __user *arg);
static int kpt_other_init(void);
static void kpt_other_exit(void);

static LIST_HEAD(kpt_graveyard);
static DEFINE_MUTEX(kpt_graveyard_lock);

/*
 * Takes the lock of the ring, with room in it: who reads it may be late, and the
 * guest waits.  False, and an event is dropped, if he does not come for 30 s, has
 * not come since one was dropped, or the guest is killed.
 */
static bool kpt_lock_ring(struct kpt_file *kf)
{
	int i;

	spin_lock(&kf->ring_lock);
	for (i = 0; kf->head - kf->tail == KPT_RING; i++) {
		if (kf->dropped || i == 1500 || fatal_signal_pending(current)) {
			kf->seq++;
			kf->dropped++;
			spin_unlock(&kf->ring_lock);
			return false;
		}
		spin_unlock(&kf->ring_lock);
		msleep(20);
		spin_lock(&kf->ring_lock);
	}
	return true;
}

static void kpt_record(struct kpt_node *node, u32 type, u64 gpa, u64 new_gfn,
		       u64 len, const u8 *data)
{
	struct kpt_file *kf = node->file;
	struct kpt_event *ev;

	if (!(node->flags & KPT_REG_RECORD) || !kpt_lock_ring(kf))
		return;

	ev = &kf->ring[kf->head++ % KPT_RING];
	memset(ev, 0, sizeof(*ev));
	ev->seq = kf->seq++;
	ev->type = type;
	ev->id = node->id;
	ev->gpa = gpa;
	ev->new_gfn = new_gfn;
	ev->len = len;
	if (data)
		memcpy(ev->data, data, min_t(u64, len, KPT_EV_DATA));
	spin_unlock(&kf->ring_lock);
}

/* Returns false if the event is for one that is unregistered. */
static bool kpt_enter(struct kpt_node *node)
{
	if (READ_ONCE(node->returned)) {
		atomic64_inc(&node->late);
		pr_err("BUG: callback of notifier %d after unregister\n",
		       node->id);
		return false;
	}
	atomic64_inc(&node->running);
	if (node->magic != KPT_MAGIC)
		atomic64_inc(&node->wrong);
	return true;
}

static void kpt_leave(struct kpt_node *node)
{
	/* Looked at once more: unregister must have waited for this callback. */
	if (READ_ONCE(node->returned)) {
		atomic64_inc(&node->late);
		pr_err("BUG: unregister of notifier %d did not wait\n",
		       node->id);
	}
	atomic64_dec(&node->running);
}

static void kpt_count_result(struct kpt_node *node, int r)
{
	if (r) {
		WRITE_ONCE(node->cb_errno, r);
		atomic64_inc(&node->cb_err);
	} else {
		atomic64_inc(&node->cb_ok);
	}
}

static void kpt_on_write(struct kpt_node *node, gpa_t gpa, const u8 *new,
			 int bytes)
{
	if (!kpt_enter(node))
		return;

	atomic64_inc(&node->writes);
	if (bytes <= 0 || offset_in_page(gpa) + bytes > PAGE_SIZE)
		atomic64_inc(&node->wrong);
	else
		atomic64_add(bytes, &node->bytes);
	kpt_record(node, KPT_EV_WRITE, gpa, 0, bytes, new);

	if (node->flags & KPT_REG_CB_ADD)
		kpt_count_result(node, kpt_api_page(KPT_OP_ADD_PAGE, node->kvm,
						    node->cb_gfn, 1, 0));
	if (node->flags & KPT_REG_CB_REMOVE)
		kpt_count_result(node, kpt_api_page(KPT_OP_REMOVE_PAGE,
						    node->kvm, node->cb_gfn, 1,
						    0));
	if (node->sleep_ms)
		msleep(node->sleep_ms);
	kpt_leave(node);
}

static void kpt_on_remove_region(struct kpt_node *node, gfn_t gfn,
				 unsigned long nr)
{
	if (!kpt_enter(node))
		return;

	atomic64_inc(&node->removes);
	kpt_record(node, KPT_EV_REMOVE_REGION, gfn, 0, nr, NULL);
	kpt_leave(node);
}

static void __maybe_unused kpt_on_move_region(struct kpt_node *node,
					      gfn_t old_gfn, gfn_t new_gfn,
					      unsigned long nr)
{
	static const u32 ops[] = {
		KPT_OP_ADD_PAGE, KPT_OP_PREPARE, KPT_OP_REMOVE_PAGE,
	};
	int i;

	if (!kpt_enter(node))
		return;

	atomic64_inc(&node->moves);
	kpt_record(node, KPT_EV_MOVE_REGION, old_gfn, new_gfn, nr, NULL);
	if (node->flags & KPT_REG_MOVE_CALLS) {
		for (i = 0; i < ARRAY_SIZE(ops); i++)
			WRITE_ONCE(node->move_errno[i],
				   kpt_api_page(ops[i], node->kvm, node->cb_gfn,
						1, 0));
	}
	kpt_leave(node);
}

/*
 * file_is_kvm() is exported to KVM's own modules only.  An inode of the
 * anonymous inode file system with this name is KVM's all the same.
 */
static struct kvm *kpt_file_to_kvm(struct file *file)
{
	struct kvm *kvm;

	if (!file || file_inode(file)->i_sb->s_magic != ANON_INODE_FS_MAGIC ||
	    strcmp(file->f_path.dentry->d_name.name, "kvm-vm"))
		return NULL;

	kvm = file->private_data;
	return kvm_get_kvm_safe(kvm) ? kvm : NULL;
}

static struct kvm *kpt_get_kvm(int fd)
{
	struct file *file = fget(fd);
	struct kvm *kvm = kpt_file_to_kvm(file);

	/* The reference to the VM is enough. */
	if (file)
		fput(file);
	return kvm;
}

static struct kpt_node *kpt_find(struct kpt_file *kf, int id)
{
	return id >= 0 && id < kf->nr_nodes ? kf->nodes[id] : NULL;
}

static int kpt_one_call(struct kvm *kvm, const struct kpt_call *c, gfn_t gfn)
{
	struct kvm_memory_slot *slot = NULL;
	gfn_t slot_gfn = gfn;
	int idx, r;

	if (c->op != KPT_OP_SLOT_ADD && c->op != KPT_OP_SLOT_REMOVE)
		return kpt_api_page(c->op, c->flags & KPT_CALL_NULL_KVM ? NULL :
				    kvm, gfn, c->nr, c->mode);

	if (c->flags & KPT_CALL_SLOT_OF)
		slot_gfn = c->slot_gfn;

	idx = srcu_read_lock(&kvm->srcu);
	write_lock(&kvm->mmu_lock);
	if (!(c->flags & KPT_CALL_NULL_SLOT))
		slot = __gfn_to_memslot(__kvm_memslots(kvm, 0), slot_gfn);
	r = kpt_api_slot_page(c->op,
			      c->flags & KPT_CALL_NULL_KVM ? NULL : kvm, slot,
			      gfn, c->mode);
	write_unlock(&kvm->mmu_lock);
	srcu_read_unlock(&kvm->srcu, idx);
	return r;
}

static long kpt_call(struct kpt_file *kf, struct kpt_call __user *arg)
{
	struct kpt_node *node;
	struct kpt_call c;
	struct kvm *kvm;
	u64 i, times;
	int r = 0;

	if (copy_from_user(&c, arg, sizeof(c)))
		return -EFAULT;
	if (c.op > KPT_OP_REMOVE_RANGE)
		return -EDOM;

	if (c.flags & KPT_CALL_BY_NODE) {
		mutex_lock(&kf->lock);
		node = kpt_find(kf, c.vm_fd);
		if (!node || !node->registered) {
			mutex_unlock(&kf->lock);
			return -ENXIO;
		}
		/* The registration keeps the VM. */
		kvm = node->kvm;
		kvm_get_kvm(kvm);
		mutex_unlock(&kf->lock);
	} else {
		kvm = kpt_get_kvm(c.vm_fd);
		if (!kvm)
			return -EBADF;
	}

	times = c.op == KPT_OP_PREPARE || c.op >= KPT_OP_ADD_RANGE || !c.nr ? 1 :
									      c.nr;
	for (i = 0; i < times; i++) {
		r = kpt_one_call(kvm, &c, c.gfn +
				 (c.flags & KPT_CALL_STEP ? i : 0));
		if (r)
			break;
		if (signal_pending(current)) {
			r = -EINTR;
			i++;
			break;
		}
		cond_resched();
	}
	kvm_put_kvm(kvm);

	return put_user(i, &arg->done) ? -EFAULT : r;
}

static struct kpt_node *kpt_new_node(struct kpt_file *kf)
{
	struct kpt_node *node;

	if (kf->nr_nodes == KPT_MAX_NODES)
		return ERR_PTR(-ENOSPC);

	node = kzalloc_obj(*node, GFP_KERNEL_ACCOUNT);
	if (!node)
		return ERR_PTR(-ENOSPC);

	node->magic = KPT_MAGIC;
	node->file = kf;
	node->id = kf->nr_nodes;
	return node;
}

static long kpt_register(struct kpt_file *kf, struct kpt_register __user *arg)
{
	struct kpt_register reg;
	struct kpt_node *node;
	struct kvm *kvm;
	bool fresh;
	int r;

	if (copy_from_user(&reg, arg, sizeof(reg)))
		return -EFAULT;
	if (reg.type > KPT_CLIENT_MOVE || reg.pad)
		return -EDOM;

	kvm = kpt_get_kvm(reg.vm_fd);
	if (!kvm)
		return -EBADF;

	mutex_lock(&kf->lock);
	fresh = reg.id < 0;
	node = fresh ? kpt_new_node(kf) : kpt_find(kf, reg.id);
	if (IS_ERR_OR_NULL(node)) {
		r = node ? PTR_ERR(node) : -ENXIO;
		goto out;
	}
	/* The same structure for another kind of notifier makes no sense. */
	if (!fresh && reg.type != node->type) {
		r = -EBUSY;
		goto out;
	}

	if (!node->registered) {
		node->type = reg.type;
		node->flags = reg.flags;
		node->sleep_ms = reg.sleep_ms;
		node->cb_gfn = reg.cb_gfn;
		node->kvm = kvm;
		WRITE_ONCE(node->returned, false);
		/* Upstream asks nobody to zero a notifier.  This looks linked. */
		if (reg.flags & KPT_REG_DIRTY)
			memset(&node->tracker, 0xff, sizeof(struct hlist_node));
	}

	r = kpt_api_register(reg.type,
			     reg.flags & KPT_REG_NULL_KVM ? NULL : kvm,
			     reg.flags & KPT_REG_NULL_NODE ? NULL : node);
	if (r) {
		if (fresh)
			kfree(node);
		else if (!node->registered)
			WRITE_ONCE(node->returned, true);
		goto out;
	}

	node->registered = true;
	if (fresh)
		kf->nodes[kf->nr_nodes++] = node;
	if (put_user(node->id, &arg->id))
		r = -EFAULT;
out:
	mutex_unlock(&kf->lock);
	/* What keeps the VM from now on is the tracker's own reference. */
	kvm_put_kvm(kvm);
	return r;
}

static void kpt_unregister_node(struct kpt_node *node)
{
	/* node->kvm may be gone when this returns. */
	kpt_api_unregister(node->type, node->kvm, node);
	WRITE_ONCE(node->returned, true);
	node->registered = false;
	if (atomic64_read(&node->running)) {
		atomic64_inc(&node->late);
		pr_err("BUG: unregister of notifier %d did not wait\n",
		       node->id);
	}
}

static long kpt_unregister(struct kpt_file *kf,
			   struct kpt_unregister __user *arg)
{
	struct kpt_unregister u;
	struct kpt_node *node;
	long r = 0;

	if (copy_from_user(&u, arg, sizeof(u)))
		return -EFAULT;

	mutex_lock(&kf->lock);
	node = kpt_find(kf, u.id);
	if (!node) {
		r = -ENXIO;
	} else if (u.flags & (KPT_UNREG_NULL_KVM | KPT_UNREG_NULL_NODE)) {
		kpt_api_unregister(node->type,
				   u.flags & KPT_UNREG_NULL_KVM ? NULL :
				   node->kvm,
				   u.flags & KPT_UNREG_NULL_NODE ? NULL : node);
	} else if (node->registered) {
		kpt_unregister_node(node);
	} else if ((u.flags & KPT_UNREG_AGAIN) && node->type != KPT_NOTIFIER) {
		kpt_api_unregister(node->type, node->kvm, node);
	} else {
		r = -ENXIO;
	}
	mutex_unlock(&kf->lock);
	return r;
}

static long kpt_read(struct kpt_file *kf, struct kpt_read __user *arg)
{
	struct kpt_event __user *to;
	struct kpt_event ev;
	struct kpt_read rd;

	if (copy_from_user(&rd, arg, sizeof(rd)))
		return -EFAULT;

	to = u64_to_user_ptr(rd.events);
	for (rd.count = 0; rd.count < rd.max; rd.count++) {
		spin_lock(&kf->ring_lock);
		if (kf->head == kf->tail) {
			spin_unlock(&kf->ring_lock);
			break;
		}
		ev = kf->ring[kf->tail++ % KPT_RING];
		spin_unlock(&kf->ring_lock);

		if (copy_to_user(&to[rd.count], &ev, sizeof(ev)))
			return -EFAULT;
	}

	spin_lock(&kf->ring_lock);
	rd.dropped = kf->dropped;
	kf->dropped = 0;
	spin_unlock(&kf->ring_lock);

	return copy_to_user(arg, &rd, sizeof(rd)) ? -EFAULT : 0;
}

static long kpt_counters(struct kpt_file *kf, struct kpt_counters __user *arg)
{
	struct kpt_counters c = {};
	struct kpt_node *node;
	int i;

	if (get_user(c.id, &arg->id))
		return -EFAULT;

	mutex_lock(&kf->lock);
	node = kpt_find(kf, c.id);
	if (node)
		c.registered = node->registered;
	mutex_unlock(&kf->lock);
	if (!node)
		return -ENXIO;

	c.writes = atomic64_read(&node->writes);
	c.bytes = atomic64_read(&node->bytes);
	c.removes = atomic64_read(&node->removes);
	c.moves = atomic64_read(&node->moves);
	c.late = atomic64_read(&node->late);
	c.running = atomic64_read(&node->running);
	c.wrong = atomic64_read(&node->wrong);
	c.cb_ok = atomic64_read(&node->cb_ok);
	c.cb_err = atomic64_read(&node->cb_err);
	c.cb_errno = READ_ONCE(node->cb_errno);
	for (i = 0; i < ARRAY_SIZE(c.move_errno); i++)
		c.move_errno[i] = READ_ONCE(node->move_errno[i]);

	return copy_to_user(arg, &c, sizeof(c)) ? -EFAULT : 0;
}

static long kpt_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct kpt_file *kf = file->private_data;
	void __user *p = (void __user *)arg;

	switch (cmd) {
	case KPT_CALL:
		return kpt_call(kf, p);
	case KPT_REGISTER:
		return kpt_register(kf, p);
	case KPT_UNREGISTER:
		return kpt_unregister(kf, p);
	case KPT_READ:
		return kpt_read(kf, p);
	case KPT_COUNTERS:
		return kpt_counters(kf, p);
	default:
		return kpt_other_ioctl(cmd, p);
	}
}

static int kpt_open(struct inode *inode, struct file *file)
{
	struct kpt_file *kf = kzalloc_obj(*kf, GFP_KERNEL_ACCOUNT);

	if (!kf)
		return -ENOMEM;

	kf->ring = vcalloc(KPT_RING, sizeof(*kf->ring));
	if (!kf->ring) {
		kfree(kf);
		return -ENOMEM;
	}

	mutex_init(&kf->lock);
	spin_lock_init(&kf->ring_lock);
	file->private_data = kf;
	return 0;
}

static int kpt_release(struct inode *inode, struct file *file)
{
	struct kpt_file *kf = file->private_data;
	int i;

	for (i = 0; i < kf->nr_nodes; i++) {
		if (kf->nodes[i]->registered)
			kpt_unregister_node(kf->nodes[i]);
	}

	mutex_lock(&kpt_graveyard_lock);
	for (i = 0; i < kf->nr_nodes; i++)
		list_add(&kf->nodes[i]->graveyard, &kpt_graveyard);
	mutex_unlock(&kpt_graveyard_lock);

	vfree(kf->ring);
	kfree(kf);
	return 0;
}

static const struct file_operations kpt_fops = {
	.owner = THIS_MODULE,
	.open = kpt_open,
	.release = kpt_release,
	.unlocked_ioctl = kpt_ioctl,
};

static struct miscdevice kpt_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = KBUILD_MODNAME,
	.fops = &kpt_fops,
	.mode = 0600,
};

static int __init kpt_init(void)
{
	int r = kpt_other_init();

	if (r)
		return r;
	r = misc_register(&kpt_misc);
	if (r)
		kpt_other_exit();
	return r;
}
module_init(kpt_init);

static void __exit kpt_exit(void)
{
	struct kpt_node *node, *next;

	misc_deregister(&kpt_misc);
	kpt_other_exit();
	list_for_each_entry_safe(node, next, &kpt_graveyard, graveyard)
		kfree(node);
}
module_exit(kpt_exit);

#endif /* KPT_CORE_H */
