// SPDX-License-Identifier: GPL-2.0-only
/*
 * A client of upstream's page tracking, straight from kvm.ko, for the tests.
 * It does not depend on kvm_page_track.ko: its notifiers and pages may be made
 * before that module is loaded and outlive it.  KPT_INSPECT reads KVM's own
 * structures, so that a test need not believe what the tracker says of itself.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/kprobes.h>
#include <linux/timekeeping.h>
#include <linux/wait.h>
#include <linux/kvm_host.h>
#ifdef CONFIG_KVM_EXTERNAL_WRITE_TRACKING
#include <asm/kvm_page_track.h>
#else
#include "../../include/kvm_page_track.h"
#endif

typedef struct kvm_page_track_notifier_node kpt_tracker_t;

#include "kpt_core.h"

#ifdef CONFIG_KVM_EXTERNAL_WRITE_TRACKING
#define get_upstream(fn)	(&(fn))
#define put_upstream(fn)	((void)(fn))
#else
/*
 * kvm.ko offers nothing to other modules.  kvm_page_track.ko has the functions
 * while it is loaded, and must not be kept from being unloaded in between.
 *
 * symbol_get() is a BUG if it meets the very end of a module (it finds it alive,
 * and then its state is MODULE_STATE_UNFORMED).  So nobody is in it by then.
 */
static DECLARE_RWSEM(kpt_module_lock);
static bool kpt_module_lives = true;

static int kpt_module_event(struct notifier_block *nb, unsigned long state,
			    void *data)
{
	const struct module *mod = data;

	if (strcmp(mod->name, "kvm_page_track"))
		return NOTIFY_OK;
	down_write(&kpt_module_lock);
	kpt_module_lives = state == MODULE_STATE_LIVE;
	up_write(&kpt_module_lock);
	return NOTIFY_OK;
}

static struct notifier_block kpt_module_nb = {
	.notifier_call = kpt_module_event,
};

#define get_upstream(fn) ({				\
	typeof(fn) *_get = NULL;			\
							\
	down_read(&kpt_module_lock);			\
	if (kpt_module_lives)				\
		_get = symbol_get(fn);			\
	up_read(&kpt_module_lock);			\
	_get;						\
})
#define put_upstream(fn)	symbol_put(fn)
#endif

/* Calls upstream's function, or is -ENOSYS. */
#define CALL_UPSTREAM(fn, ...) ({			\
	typeof(fn) *_fn = get_upstream(fn);		\
	int _r = -ENOSYS;				\
							\
	if (_fn) {					\
		_r = _fn(__VA_ARGS__);			\
		put_upstream(fn);			\
	}						\
	_r;						\
})

static struct kpt_node *to_kpt_node(struct kvm_page_track_notifier_node *n)
{
	return container_of(n, struct kpt_node, tracker);
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

static int kpt_api_page(u32 op, struct kvm *kvm, gfn_t gfn, u64 nr, u32 mode)
{
	switch (op) {
	case KPT_OP_ADD_PAGE:
	case KPT_OP_WRITE_ADD:
		return CALL_UPSTREAM(kvm_write_track_add_gfn, kvm, gfn);
	case KPT_OP_REMOVE_PAGE:
	case KPT_OP_WRITE_REMOVE:
		return CALL_UPSTREAM(kvm_write_track_remove_gfn, kvm, gfn);
	default:
		return -ENOSYS;
	}
}

static int kpt_api_register(u32 type, struct kvm *kvm, struct kpt_node *node)
{
	if (type != KPT_NOTIFIER)
		return -ENOSYS;

	if (node) {
		node->tracker.track_write = track_write;
		node->tracker.track_remove_region = track_remove_region;
	}
	int idx, r;

	/*
	 * C walks the memslots under slots_arch_lock alone.  That is enough, but
	 * not for lockdep.  (Our header wants no kvm->srcu section around the call,
	 * which does no harm: nothing in it waits for one.)
	 */
	idx = kvm ? srcu_read_lock(&kvm->srcu) : 0;
	r = CALL_UPSTREAM(kvm_page_track_register_notifier, kvm,
			  node ? &node->tracker : NULL);
	if (kvm)
		srcu_read_unlock(&kvm->srcu, idx);
	return r;
}

static void kpt_api_unregister(u32 type, struct kvm *kvm, struct kpt_node *node)
{
	void (*fn)(struct kvm *kvm, struct kvm_page_track_notifier_node *n);

	fn = get_upstream(kvm_page_track_unregister_notifier);
	if (fn) {
		fn(kvm, node ? &node->tracker : NULL);
		put_upstream(kvm_page_track_unregister_notifier);
	}
}

static void kpt_inspect_tracker(struct kvm *kvm, struct kpt_inspect *in)
{
#ifdef CONFIG_KVM_EXTERNAL_WRITE_TRACKING
	in->external_tracking = 1;
	in->external_enabled =
		READ_ONCE(kvm->arch.external_write_tracking_enabled);
	in->list_empty =
		hlist_empty(&kvm->arch.track_notifier_head.track_notifier_list);
#else
	in->list_empty = 1;
#endif
}

static int kpt_api_slot_page(u32 op, struct kvm *kvm,
			     struct kvm_memory_slot *slot, gfn_t gfn, u32 mode)
{
	return -ENOSYS;
}

static unsigned long lpage_index(const struct kvm_memory_slot *slot, gfn_t gfn,
				 int level)
{
	int shift = KVM_HPAGE_GFN_SHIFT(level);

	return (gfn >> shift) - (slot->base_gfn >> shift);
}

static void kpt_inspect_slot(const struct kvm_memory_slot *slot, gfn_t gfn,
			     struct kpt_inspect *in)
{
	unsigned long i;

	in->has_slot = 1;
	in->slot_id = slot->id;
	in->slot_flags = slot->flags;
	in->base_gfn = slot->base_gfn;
	in->npages = slot->npages;

	if (slot->arch.gfn_write_track) {
		in->has_array = 1;
		in->count = slot->arch.gfn_write_track[gfn - slot->base_gfn];
		for (i = 0; i < slot->npages; i++)
			in->slot_sum += slot->arch.gfn_write_track[i];
	}
	if (slot->arch.lpage_info[0]) {
		i = lpage_index(slot, gfn, PG_LEVEL_2M);
		in->lpage_2m = slot->arch.lpage_info[0][i].disallow_lpage;
	}
	if (slot->arch.lpage_info[1]) {
		i = lpage_index(slot, gfn, PG_LEVEL_1G);
		in->lpage_1g = slot->arch.lpage_info[1][i].disallow_lpage;
	}
}

static long kpt_inspect(struct kpt_inspect __user *arg)
{
	struct kpt_inspect in, out = {};
	struct kvm_memory_slot *slot;
	struct kvm *kvm;
	int idx;

	if (copy_from_user(&in, arg, sizeof(in)))
		return -EFAULT;

	kvm = kpt_get_kvm(in.vm_fd);
	if (!kvm)
		return -EBADF;

	out.vm_fd = in.vm_fd;
	out.as_id = in.as_id;
	out.gfn = in.gfn;
	out.nr_as = kvm_arch_nr_memslot_as_ids(kvm);
	if (in.as_id >= out.nr_as) {
		kvm_put_kvm(kvm);
		return -EDOM;
	}

	idx = srcu_read_lock(&kvm->srcu);
	write_lock(&kvm->mmu_lock);
	slot = __gfn_to_memslot(__kvm_memslots(kvm, in.as_id), in.gfn);
	if (slot)
		kpt_inspect_slot(slot, in.gfn, &out);
	write_unlock(&kvm->mmu_lock);
	srcu_read_unlock(&kvm->srcu, idx);

	kpt_inspect_tracker(kvm, &out);
	out.users_count = refcount_read(&kvm->users_count) - 1;
	kvm_put_kvm(kvm);

	return copy_to_user(arg, &out, sizeof(out)) ? -EFAULT : 0;
}

static void kpt_inspect_page(const struct kvm_memory_slot *slot, gfn_t gfn,
			     struct kpt_page *page)
{
	page->flags = KPT_PAGE_SLOT;
	if (slot->arch.gfn_write_track) {
		page->flags |= KPT_PAGE_ARRAY;
		page->count = slot->arch.gfn_write_track[gfn - slot->base_gfn];
	}
	if (slot->arch.lpage_info[0])
		page->lpage_2m = slot->arch.lpage_info[0]
			[lpage_index(slot, gfn, PG_LEVEL_2M)].disallow_lpage;
	if (slot->arch.lpage_info[1])
		page->lpage_1g = slot->arch.lpage_info[1]
			[lpage_index(slot, gfn, PG_LEVEL_1G)].disallow_lpage;
}

static long kpt_pages(struct kpt_pages __user *arg)
{
	struct kvm_memory_slot *slot = NULL;
	struct kpt_page *pages;
	struct kpt_pages in;
	struct kvm *kvm;
	int idx, r = 0;
	gfn_t gfn;
	u64 i;

	if (copy_from_user(&in, arg, sizeof(in)))
		return -EFAULT;
	if (!in.nr || in.nr > KPT_PAGES_MAX)
		return -EDOM;

	pages = kvcalloc(in.nr, sizeof(*pages), GFP_KERNEL);
	if (!pages)
		return -ENOSPC;
	kvm = kpt_get_kvm(in.vm_fd);
	if (!kvm) {
		r = -EBADF;
		goto out;
	}
	if (in.as_id >= kvm_arch_nr_memslot_as_ids(kvm)) {
		kvm_put_kvm(kvm);
		r = -EDOM;
		goto out;
	}

	idx = srcu_read_lock(&kvm->srcu);
	write_lock(&kvm->mmu_lock);
	for (i = 0; i < in.nr; i++) {
		gfn = in.gfn + i;
		if (!slot || gfn >= slot->base_gfn + slot->npages)
			slot = __gfn_to_memslot(__kvm_memslots(kvm, in.as_id),
						gfn);
		if (slot)
			kpt_inspect_page(slot, gfn, &pages[i]);
	}
	write_unlock(&kvm->mmu_lock);
	srcu_read_unlock(&kvm->srcu, idx);
	kvm_put_kvm(kvm);

	if (copy_to_user(u64_to_user_ptr(in.pages), pages,
			 in.nr * sizeof(*pages)))
		r = -EFAULT;
out:
	kvfree(pages);
	return r;
}

static struct kprobe kpt_kprobe;
static char kpt_symbol[64];
static DEFINE_MUTEX(kpt_probe_lock);
static DECLARE_WAIT_QUEUE_HEAD(kpt_waitq);
static atomic64_t kpt_hits;
static atomic_t kpt_sleepers, kpt_held;
static bool kpt_hold, kpt_tired;
static struct kpt_probe kpt_filter;
static struct kvm *kpt_filter_kvm;

static void kpt_post_handler(struct kprobe *p, struct pt_regs *regs,
			     unsigned long flags)
{
}

static int kpt_spin_handler(struct kprobe *p, struct pt_regs *regs)
{
	u64 until = ktime_get_mono_fast_ns() + 10 * NSEC_PER_SEC;

	if (atomic64_inc_return(&kpt_hits) != 1)
		return 0;
	while (READ_ONCE(kpt_hold)) {
		if (ktime_get_mono_fast_ns() > until) {
			WRITE_ONCE(kpt_tired, true);
			break;
		}
		cpu_relax();
	}
	return 0;
}

typedef unsigned long (*kpt_fn_t)(unsigned long, unsigned long, unsigned long,
				  unsigned long, unsigned long, unsigned long);

/*
 * Stands in for the function of the probe, for one call.  (That may lack ENDBR: the
 * machines of the tests have no IBT.)
 */
static noinline unsigned long kpt_sleeps(unsigned long a, unsigned long b,
					 unsigned long c, unsigned long d,
					 unsigned long e, unsigned long f)
{
	kpt_fn_t function = (kpt_fn_t)READ_ONCE(kpt_kprobe.addr);
	unsigned long r;

	/*
	 * A vCPU also enters a section of kvm->srcu when it is scheduled out.  That
	 * does not count, nor does the call here, which the probe sees as well.
	 */
	if (!preemptible()) {
		r = function(a, b, c, d, e, f);
		atomic64_sub(2, &kpt_hits);
		atomic_dec(&kpt_sleepers);
		return r;
	}
	atomic_inc(&kpt_held);
	if (!wait_event_killable_timeout(kpt_waitq, !READ_ONCE(kpt_hold), 100 * HZ))
		WRITE_ONCE(kpt_tired, true);
	atomic_dec(&kpt_held);
	if (atomic_dec_and_test(&kpt_sleepers))
		wake_up_all(&kpt_waitq);
	return function(a, b, c, d, e, f);
}

/*
 * A handler must not sleep, and that of a breakpoint runs with interrupts disabled:
 * whoever sends this processor an interrupt and waits would be held as well.
 */
static int kpt_sleep_handler(struct kprobe *p, struct pt_regs *regs)
{
	if (kpt_filter_kvm && (task_pid_nr(current) != kpt_filter.pid ||
			       regs->di != (unsigned long)&kpt_filter_kvm->srcu))
		return 0;
	if (atomic64_inc_return(&kpt_hits) != kpt_filter.nth)
		return 0;
	atomic_inc(&kpt_sleepers);
	regs->ip = (unsigned long)kpt_sleeps;
	return 1;
}

/*
 * Nobody sleeps any more when it returns.  (Who did may still be on his way back
 * through kpt_sleeps(): his process has the device open, and so has the module.)
 */
static int kpt_probe_off(void)
{
	if (!kpt_symbol[0])
		return 0;
	WRITE_ONCE(kpt_hold, false);
	wake_up_all(&kpt_waitq);
	unregister_kprobe(&kpt_kprobe);
	/* who could not sleep wakes nobody */
	while (atomic_read(&kpt_sleepers))
		wait_event_timeout(kpt_waitq, !atomic_read(&kpt_sleepers), HZ / 10);
	kpt_symbol[0] = 0;
	if (kpt_filter_kvm)
		kvm_put_kvm(kpt_filter_kvm);
	kpt_filter_kvm = NULL;
	return READ_ONCE(kpt_tired) ? -ETIMEDOUT : 0;
}

static int kpt_probe_on(const struct kpt_probe *probe)
{
	int r;

	kpt_probe_off();
	kpt_filter = *probe;
	if (probe->op == KPT_PROBE_SLEEP_SRCU) {
		kpt_filter_kvm = kpt_get_kvm(probe->vm_fd);
		if (!kpt_filter_kvm)
			return -EBADF;
	} else {
		kpt_filter.nth = 1;
	}
	strscpy(kpt_symbol, probe->symbol);
	memset(&kpt_kprobe, 0, sizeof(kpt_kprobe));
	kpt_kprobe.symbol_name = kpt_symbol;
	/* so that a handler may change regs->ip: with a post handler nobody jumps */
	if (probe->op == KPT_PROBE_OCCUPY || probe->op >= KPT_PROBE_SLEEP)
		kpt_kprobe.post_handler = kpt_post_handler;
	if (probe->op >= KPT_PROBE_SLEEP)
		kpt_kprobe.pre_handler = kpt_sleep_handler;
	else if (probe->op != KPT_PROBE_OCCUPY)
		kpt_kprobe.pre_handler = kpt_spin_handler;
	atomic64_set(&kpt_hits, 0);
	WRITE_ONCE(kpt_tired, false);
	WRITE_ONCE(kpt_hold,
		   probe->op == KPT_PROBE_HOLD || probe->op >= KPT_PROBE_SLEEP);
	r = register_kprobe(&kpt_kprobe);
	if (r) {
		kpt_symbol[0] = 0;
		if (kpt_filter_kvm)
			kvm_put_kvm(kpt_filter_kvm);
		kpt_filter_kvm = NULL;
	}
	return r;
}

static long kpt_probe(struct kpt_probe __user *arg)
{
	struct kpt_probe probe;
	int r = 0;

	if (copy_from_user(&probe, arg, sizeof(probe)))
		return -EFAULT;

	mutex_lock(&kpt_probe_lock);
	if (probe.op == KPT_PROBE_OFF)
		r = kpt_probe_off();
	else if (probe.op < KPT_PROBE_LOOK)
		r = kpt_probe_on(&probe);
	else if (probe.op != KPT_PROBE_LOOK)
		r = -EDOM;
	probe.hits = atomic64_read(&kpt_hits);
	probe.held = atomic_read(&kpt_held);
	mutex_unlock(&kpt_probe_lock);

	if (copy_to_user(arg, &probe, sizeof(probe)))
		return -EFAULT;
	return r;
}

static long kpt_other_ioctl(unsigned int cmd, void __user *arg)
{
	switch (cmd) {
	case KPT_INSPECT:
		return kpt_inspect(arg);
	case KPT_PAGES:
		return kpt_pages(arg);
	case KPT_PROBE:
		return kpt_probe(arg);
	default:
		return -ENOTTY;
	}
}

static int kpt_other_init(void)
{
#ifdef CONFIG_KVM_EXTERNAL_WRITE_TRACKING
	return 0;
#else
	return register_module_notifier(&kpt_module_nb);
#endif
}

static void kpt_other_exit(void)
{
	kpt_probe_off();
#ifndef CONFIG_KVM_EXTERNAL_WRITE_TRACKING
	unregister_module_notifier(&kpt_module_nb);
#endif
}

MODULE_DESCRIPTION("Test client of upstream's page tracking, and inspector");
MODULE_LICENSE("GPL");
