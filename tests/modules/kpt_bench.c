// SPDX-License-Identifier: GPL-2.0-only
/*
 * The stopwatch of make bench.  Calls what is measured the way KVM and KVMGT
 * do, by direct calls, whether or not kvm_page_track.ko has replaced it; does
 * not depend on that module.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/file.h>
#include <linux/fs.h>
#include <linux/kallsyms.h>
#include <linux/kprobes.h>
#include <linux/kvm_host.h>
#include <linux/magic.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/static_call.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <trace/events/power.h>
#include <asm/kvm_page_track.h>
#include <asm/msr.h>

#include "kpt_bench.h"

struct bench_file {
	struct mutex lock;	/* all of it */
	struct kvm *kvm[KPT_BENCH_NODES];
	struct kvm_page_track_notifier_node node[KPT_BENCH_NODES];
	unsigned int nr_nodes;
};

/* ---- functions that are not exported, or not there ---- */

typedef bool (bench_reader_fn)(struct kvm *kvm,
			       const struct kvm_memory_slot *slot, gfn_t gfn);
typedef int (bench_page_fn)(struct kvm *kvm, gfn_t gfn, unsigned int mode);
typedef int (bench_range_fn)(struct kvm *kvm, gfn_t gfn, unsigned long nr,
			     unsigned int mode);

static int bench_no_page(struct kvm *kvm, gfn_t gfn, unsigned int mode)
{
	return -ENOENT;
}

static int bench_no_range(struct kvm *kvm, gfn_t gfn, unsigned long nr,
			  unsigned int mode)
{
	return -ENOENT;
}

DEFINE_STATIC_CALL_RET0(bench_reader, bench_reader_fn);
DEFINE_STATIC_CALL(bench_page, bench_no_page);
DEFINE_STATIC_CALL(bench_range, bench_no_range);

/* Where a function of KVM begins: what its callers in KVM call. */
static unsigned long bench_entry(const char *symbol)
{
	struct kprobe probe = {
		.symbol_name = symbol,
		.flags = KPROBE_FLAG_DISABLED,
	};
	char name[KSYM_SYMBOL_LEN], *plus;
	unsigned long addr, offset;

	if (register_kprobe(&probe))
		return 0;
	addr = (unsigned long)probe.addr;
	unregister_kprobe(&probe);

	/* The probe is behind the ENDBR, if there is one. */
	sprint_symbol(name, addr);
	plus = strchr(name, '+');
	if (!plus || sscanf(plus, "+0x%lx", &offset) != 1 || offset > 4)
		return 0;
	return addr - offset;
}

/* ---- the clock ---- */

static atomic64_t bench_idle;
static DEFINE_PER_CPU(u64, bench_idle_since);

static void bench_on_idle(void *unused, unsigned int state, unsigned int cpu)
{
	u64 *since = this_cpu_ptr(&bench_idle_since);

	if (state != PWR_EVENT_EXIT) {
		*since = rdtsc_ordered();
	} else if (*since) {
		atomic64_add(rdtsc_ordered() - *since, &bench_idle);
		*since = 0;
	}
}

struct bench_clock {
	u64 start, idle;
};

static __always_inline void bench_start(struct bench_clock *clock)
{
	clock->idle = atomic64_read(&bench_idle);
	clock->start = rdtsc_ordered();
}

static __always_inline u64 bench_stop(const struct bench_clock *clock)
{
	u64 ticks = rdtsc_ordered() - clock->start;

	return ticks - (atomic64_read(&bench_idle) - clock->idle);
}

/* What a measurement of nothing says. */
static u64 bench_nothing(void)
{
	struct bench_clock clock;
	unsigned long flags;
	u64 ticks;

	local_irq_save(flags);
	bench_start(&clock);
	ticks = bench_stop(&clock);
	local_irq_restore(flags);
	return ticks;
}

/* ---- the reader ---- */

static noinline u64 bench_read_calls(struct kvm *kvm,
				     const struct kvm_memory_slot *slot,
				     gfn_t gfn, bool *result)
{
	u64 start;
	int i;

	start = rdtsc_ordered();
	for (i = 0; i < KPT_BENCH_CALLS; i++)
		*result = static_call(bench_reader)(kvm, slot, gfn);
	return rdtsc_ordered() - start;
}

/* The same loop, the arguments in their registers, without the call. */
static noinline u64 bench_read_nothing(struct kvm *kvm,
				       const struct kvm_memory_slot *slot,
				       gfn_t gfn, bool *result)
{
	u64 start;
	int i;

	start = rdtsc_ordered();
	for (i = 0; i < KPT_BENCH_CALLS; i++) {
		unsigned long di = (unsigned long)kvm;
		unsigned long si = (unsigned long)slot;
		unsigned long dx = gfn;
		bool al;

		asm volatile("" : "=a" (al), "+D" (di), "+S" (si), "+d" (dx)
			     : : "rcx", "r8", "r9", "r10", "r11", "cc", "memory");
		*result = al;
	}
	return rdtsc_ordered() - start;
}

static int bench_read(struct kvm *kvm, struct kpt_bench_run *run, u64 *ticks)
{
	struct kvm_memory_slot *slot = NULL;
	unsigned long flags;
	bool result, unused;
	gfn_t gfn = run->gfn;
	int i, idx;

	if (run->as_id >= kvm_arch_nr_memslot_as_ids(kvm))
		return -EDOM;

	for (i = 0; i < run->nr; i++, gfn += run->step) {
		idx = srcu_read_lock(&kvm->srcu);
		if (!(run->flags & KPT_BENCH_NO_SLOT))
			slot = __gfn_to_memslot(__kvm_memslots(kvm, run->as_id),
						gfn);
		local_irq_save(flags);
		ticks[i] = bench_read_calls(kvm, slot, gfn, &result);
		ticks[i] -= bench_read_nothing(kvm, slot, gfn, &unused);
		local_irq_restore(flags);
		srcu_read_unlock(&kvm->srcu, idx);
		run->result = result;
		cond_resched();
	}
	return 0;
}

/* ---- pages ---- */

static int bench_add(struct kvm *kvm, struct kpt_bench_run *run, u64 *ticks)
{
	struct bench_clock clock;
	gfn_t gfn = run->gfn;
	int i, r = 0;

	for (i = 0; i < run->nr && !r; i++, gfn += run->step) {
		bench_start(&clock);
		r = kvm_write_track_add_gfn(kvm, gfn);
		ticks[i] = bench_stop(&clock);
	}
	return r;
}

static int bench_remove(struct kvm *kvm, struct kpt_bench_run *run, u64 *ticks)
{
	struct bench_clock clock;
	gfn_t gfn = run->gfn;
	int i, r = 0;

	for (i = 0; i < run->nr && !r; i++, gfn += run->step) {
		bench_start(&clock);
		r = kvm_write_track_remove_gfn(kvm, gfn);
		ticks[i] = bench_stop(&clock);
	}
	return r;
}

/* Functions of kvm_page_track.ko, which may be absent. */
static int bench_module_page(struct kvm *kvm, struct kpt_bench_run *run, u64 *ticks,
			     const char *symbol)
{
	bench_page_fn *fn = __symbol_get(symbol);
	struct bench_clock clock;
	gfn_t gfn = run->gfn;
	int i, r = 0;

	if (!fn)
		return -ENOENT;

	static_call_update(bench_page, fn);
	for (i = 0; i < run->nr && !r; i++, gfn += run->step) {
		bench_start(&clock);
		r = static_call(bench_page)(kvm, gfn, 0);
		ticks[i] = bench_stop(&clock);
	}
	static_call_update(bench_page, bench_no_page);
	__symbol_put(symbol);
	return r;
}

static int bench_module_range(struct kvm *kvm, struct kpt_bench_run *run,
			      u64 *ticks, const char *symbol)
{
	bench_range_fn *fn = __symbol_get(symbol);
	struct bench_clock clock;
	gfn_t gfn = run->gfn;
	int i, r = 0;

	if (!fn)
		return -ENOENT;

	static_call_update(bench_range, fn);
	for (i = 0; i < run->nr && !r; i++, gfn += run->step) {
		bench_start(&clock);
		r = static_call(bench_range)(kvm, gfn, run->pages, 0);
		ticks[i] = bench_stop(&clock);
	}
	static_call_update(bench_range, bench_no_range);
	__symbol_put(symbol);
	return r;
}

/* ---- notifiers ---- */

static atomic64_t bench_events;

static void bench_on_write(gpa_t gpa, const u8 *new, int bytes,
			   struct kvm_page_track_notifier_node *node)
{
	atomic64_inc(&bench_events);
}

static int bench_register(struct bench_file *bf, struct kvm *kvm,
			  struct kpt_bench_run *run, u64 *ticks)
{
	struct bench_clock clock;
	unsigned int n;
	int i, r;

	for (i = 0; i < run->nr; i++) {
		n = bf->nr_nodes;
		if (n == KPT_BENCH_NODES)
			return -EDOM;
		memset(&bf->node[n], 0, sizeof(bf->node[n]));
		bf->node[n].track_write = bench_on_write;
		bench_start(&clock);
		r = kvm_page_track_register_notifier(kvm, &bf->node[n]);
		ticks[i] = bench_stop(&clock);
		if (r)
			return r;
		bf->kvm[n] = kvm;
		bf->nr_nodes++;
	}
	return 0;
}

static int bench_unregister(struct bench_file *bf, unsigned int nr, u64 *ticks)
{
	struct bench_clock clock;
	unsigned int n;
	int i;

	for (i = 0; i < nr; i++) {
		if (!bf->nr_nodes)
			return -EDOM;
		n = --bf->nr_nodes;
		bench_start(&clock);
		kvm_page_track_unregister_notifier(bf->kvm[n], &bf->node[n]);
		ticks[i] = bench_stop(&clock);
	}
	return 0;
}

/* ---- the device ---- */

static struct kvm *bench_get_kvm(int fd)
{
	struct file *file = fget(fd);
	struct kvm *kvm = NULL;

	if (!file)
		return NULL;
	if (file_inode(file)->i_sb->s_magic == ANON_INODE_FS_MAGIC &&
	    !strcmp(file->f_path.dentry->d_name.name, "kvm-vm"))
		kvm = file->private_data;
	if (kvm && !kvm_get_kvm_safe(kvm))
		kvm = NULL;
	fput(file);
	return kvm;
}

static int bench_call(struct bench_file *bf, struct kvm *kvm,
		      struct kpt_bench_run *run, u64 *ticks)
{
	switch (run->op) {
	case KPT_BENCH_READ:
		return bench_read(kvm, run, ticks);
	case KPT_BENCH_ADD:
		return bench_add(kvm, run, ticks);
	case KPT_BENCH_REMOVE:
		return bench_remove(kvm, run, ticks);
	case KPT_BENCH_ADD_PAGE:
		return bench_module_page(kvm, run, ticks,
					 "kvm_page_track_add_page");
	case KPT_BENCH_REMOVE_PAGE:
		return bench_module_page(kvm, run, ticks,
					 "kvm_page_track_remove_page");
	case KPT_BENCH_ADD_RANGE:
		return bench_module_range(kvm, run, ticks,
					  "kvm_page_track_add_range");
	case KPT_BENCH_REMOVE_RANGE:
		return bench_module_range(kvm, run, ticks,
					  "kvm_page_track_remove_range");
	case KPT_BENCH_REGISTER:
		return bench_register(bf, kvm, run, ticks);
	case KPT_BENCH_UNREGISTER:
		return bench_unregister(bf, run->nr, ticks);
	default:
		return -EDOM;
	}
}

static long bench_run(struct bench_file *bf, struct kpt_bench_run __user *arg)
{
	u64 *ticks, nothing = bench_nothing();
	struct kpt_bench_run run;
	struct kvm *kvm;
	int i, r;

	if (copy_from_user(&run, arg, sizeof(run)))
		return -EFAULT;
	if (!run.nr || run.nr > KPT_BENCH_MAX)
		return -EDOM;

	ticks = kvcalloc(run.nr, sizeof(*ticks), GFP_KERNEL);
	if (!ticks)
		return -ENOMEM;
	kvm = bench_get_kvm(run.vm_fd);
	if (!kvm) {
		kvfree(ticks);
		return -EBADF;
	}

	mutex_lock(&bf->lock);
	r = bench_call(bf, kvm, &run, ticks);
	mutex_unlock(&bf->lock);
	kvm_put_kvm(kvm);

	/* The reader subtracts its own loop. */
	for (i = 0; i < run.nr && run.op != KPT_BENCH_READ; i++)
		ticks[i] -= nothing;
	if (!r && (copy_to_user(u64_to_user_ptr(run.ticks), ticks,
				run.nr * sizeof(*ticks)) ||
		   put_user(run.result, &arg->result)))
		r = -EFAULT;
	kvfree(ticks);
	return r;
}

static long bench_memory(struct kpt_bench_memory __user *arg)
{
	struct kpt_bench_memory m;
	struct kvm_memory_slot *slot;
	struct kvm *kvm;
	int as, bkt, idx;

	if (copy_from_user(&m, arg, sizeof(m)))
		return -EFAULT;
	kvm = bench_get_kvm(m.vm_fd);
	if (!kvm)
		return -EBADF;

	m.bytes = 0;
	idx = srcu_read_lock(&kvm->srcu);
	for (as = 0; as < kvm_arch_nr_memslot_as_ids(kvm); as++) {
		kvm_for_each_memslot(slot, bkt, __kvm_memslots(kvm, as)) {
			if (slot->arch.gfn_write_track)
				m.bytes += PAGE_ALIGN(slot->npages *
						      sizeof(u16));
		}
	}
	srcu_read_unlock(&kvm->srcu, idx);
	kvm_put_kvm(kvm);

	return copy_to_user(arg, &m, sizeof(m)) ? -EFAULT : 0;
}

static long bench_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	void __user *p = (void __user *)arg;
	u64 value;

	switch (cmd) {
	case KPT_BENCH_RUN:
		return bench_run(file->private_data, p);
	case KPT_BENCH_MEMORY:
		return bench_memory(p);
	case KPT_BENCH_IDLE:
		value = atomic64_read(&bench_idle);
		break;
	case KPT_BENCH_EVENTS:
		value = atomic64_read(&bench_events);
		break;
	case KPT_BENCH_SETTLE:
		vm_unmap_aliases();
		return 0;
	default:
		return -ENOTTY;
	}
	return copy_to_user(p, &value, sizeof(value)) ? -EFAULT : 0;
}

static int bench_open(struct inode *inode, struct file *file)
{
	struct bench_file *bf = kzalloc_obj(*bf, GFP_KERNEL);

	if (!bf)
		return -ENOMEM;
	mutex_init(&bf->lock);
	file->private_data = bf;
	return 0;
}

static int bench_release(struct inode *inode, struct file *file)
{
	struct bench_file *bf = file->private_data;
	u64 unused[KPT_BENCH_NODES];

	bench_unregister(bf, bf->nr_nodes, unused);
	kfree(bf);
	return 0;
}

static const struct file_operations bench_fops = {
	.owner = THIS_MODULE,
	.open = bench_open,
	.release = bench_release,
	.unlocked_ioctl = bench_ioctl,
};

static struct miscdevice bench_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = KBUILD_MODNAME,
	.fops = &bench_fops,
	.mode = 0600,
};

static int __init bench_init(void)
{
	unsigned long reader = bench_entry("kvm:kvm_gfn_is_write_tracked");
	int r;

	if (!reader) {
		pr_err("cannot find kvm_gfn_is_write_tracked\n");
		return -ENOENT;
	}
	static_call_update(bench_reader, (bench_reader_fn *)reader);

	r = register_trace_cpu_idle(bench_on_idle, NULL);
	if (r)
		return r;
	r = misc_register(&bench_misc);
	if (r) {
		unregister_trace_cpu_idle(bench_on_idle, NULL);
		tracepoint_synchronize_unregister();
	}
	return r;
}
module_init(bench_init);

static void __exit bench_exit(void)
{
	misc_deregister(&bench_misc);
	unregister_trace_cpu_idle(bench_on_idle, NULL);
	tracepoint_synchronize_unregister();
}
module_exit(bench_exit);

MODULE_DESCRIPTION("Measures calls of KVM's page tracking");
MODULE_LICENSE("GPL");
