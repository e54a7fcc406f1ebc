// SPDX-License-Identifier: GPL-2.0-only
/*
 * Every allocation on the way fails in turn (/proc/thread-self/fail-nth): of
 * each call of the API, of what KVM does with memslots and VMs, of insmod and
 * rmmod.  A call that fails says -ENOMEM and leaves nothing behind, and the
 * next one succeeds.  Needs CONFIG_FAULT_INJECTION with failslab and
 * fail_page_alloc: the debug kernel.
 *
 * KPT_FAULT_PATH: of the calls, those whose name contains this.
 *
 * An insmod whose failing allocation did not matter has to be undone, which
 * takes seconds.  So of the module loader's own allocations every
 * KPT_FAULT_STRIDE-th fails (40), of those of our init every
 * KPT_FAULT_INIT_STRIDE-th (1).
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kselftest.h"
#include "kpt_lib.h"

#define FAIL_NTH	"/proc/thread-self/fail-nth"
#define MAKE_IT_FAIL	"/proc/thread-self/make-it-fail"
#define NPAGES		300

static int nth_fd = -1, starve_fd = -1, kmsg = -1;
static int scratch[3];		/* a notifier of each type, not registered */

static int put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY), r;

	if (fd < 0)
		return -errno;
	r = write(fd, text, strlen(text)) < 0 ? -errno : 0;
	close(fd);
	return r;
}

static void knob(const char *name, const char *value)
{
	static const char * const what[] = { "failslab", "fail_page_alloc" };
	char path[128];
	int i;

	for (i = 0; i < 2; i++) {
		snprintf(path, sizeof(path), "/sys/kernel/debug/%s/%s", what[i], name);
		/* failslab knows neither order nor highmem */
		if (put(path, value))
			TEST_ASSERT(i == 0, "%s: %s", path, strerror(errno));
	}
}

static void begin(const char *verbose)
{
	if (access(FAIL_NTH, W_OK) || access("/sys/kernel/debug/failslab", F_OK) ||
	    access("/sys/kernel/debug/fail_page_alloc", F_OK))
		kpt_skip("no fault injection in this kernel");
	knob("ignore-gfp-wait", "N");
	knob("ignore-gfp-highmem", "N");
	knob("min-order", "0");
	knob("verbose", verbose);
	knob("verbose_ratelimit_interval_ms", "0");
	nth_fd = open(FAIL_NTH, O_RDWR | O_CLOEXEC);
	TEST_ASSERT(nth_fd >= 0, "fail-nth: %s", strerror(errno));
	/* for starve(): every allocation of tasks that ask for it */
	knob("task-filter", "Y");
	knob("times", "-1");
	knob("probability", "100");
	starve_fd = open(MAKE_IT_FAIL, O_RDWR | O_CLOEXEC);
	TEST_ASSERT(starve_fd >= 0, "make-it-fail: %s", strerror(errno));
	/* a page fault of ours must not be what fails */
	TEST_ASSERT(!mlockall(MCL_CURRENT | MCL_FUTURE), "mlockall: %s",
		    strerror(errno));
}

static void arm(u32 n)
{
	char text[16];
	int len = snprintf(text, sizeof(text), "%u", n);

	TEST_ASSERT(pwrite(nth_fd, text, len, 0) == len, "fail-nth");
}

/* While @on no allocation of this task succeeds. */
static void starve(bool on)
{
	TEST_ASSERT(pwrite(starve_fd, on ? "1" : "0", 1, 0) == 1, "make-it-fail");
}

/* Did it fail? */
static bool disarm(void)
{
	char text[16] = "";

	TEST_ASSERT(pread(nth_fd, text, sizeof(text) - 1, 0) > 0, "fail-nth");
	arm(0);
	return !strtoul(text, NULL, 10);
}

/* ---- a VM without vCPU and the calls on it ---- */

static int vm_fd = -1, kvm_fd = -1;
static u64 memory;

static int set_region(u64 gfn, u64 npages, u32 flags)
{
	struct kvm_userspace_memory_region mr = {
		.slot = KPT_SLOT, .flags = flags, .guest_phys_addr = gfn << 12,
		.memory_size = npages << 12, .userspace_addr = memory,
	};

	return ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &mr) ? -errno : 0;
}

static int call(u32 op, u64 gfn, u64 nr)
{
	struct kpt_call c = { .op = op, .vm_fd = vm_fd, .gfn = gfn, .nr = nr };

	return kpt_api(kpt_dev, &c);
}

static int reg(u32 type)
{
	struct kpt_register r = {
		.vm_fd = vm_fd, .type = type, .flags = KPT_REG_RECORD,
		.id = scratch[type],
	};
	int ret = kpt_reg_full(kpt_dev, &r);

	return ret < 0 ? ret : 0;
}

static void new_vm(void)
{
	vm_fd = ioctl(kvm_fd, KVM_CREATE_VM, 0);
	TEST_ASSERT(vm_fd >= 0, "KVM_CREATE_VM: %s", strerror(errno));
}

static void new_vm_with_slot(void)
{
	new_vm();
	KPT_OK(set_region(KPT_GFN, NPAGES, 0));
}

static void close_vm(void)
{
	close(vm_fd);
	vm_fd = -1;
	KPT_EQ(kpt_debugfs_vm(getpid()).rows, 0);
	KPT_EQ(kpt_mod_refs("kvm_page_track"), 1);
}

static struct kpt_inspect look(u64 gfn)
{
	return kpt_inspect_fd(vm_fd, 0, gfn);
}

static void expect_stats(u64 pages, u64 notifiers)
{
	struct kpt_vm_stats st = kpt_debugfs_vm(getpid());

	KPT_EQ(st.pages, pages);
	KPT_EQ(st.notifiers, notifiers);
	/* wherever the memslot is */
	KPT_EQ(st.counter_bytes, look(KPT_GFN + 100).has_array ||
				 look(KPT_GFN + 0x1064).has_array ?
				 (st.rows ? 2 * NPAGES : 0) : 0);
}

static void expect_no_events(void)
{
	static struct kpt_event ev[4];

	KPT_EQ(kpt_events(kpt_dev, ev, 4), 0);
}

/* What the VM looks like at @gfn, without the references of a notifier. */
static void expect_page(u64 gfn, u32 count, u64 sum, u64 base)
{
	struct kpt_inspect in = look(gfn);

	KPT_EQ(in.has_slot, 1);
	KPT_EQ(in.count, count);
	KPT_EQ(in.slot_sum, sum);
	KPT_EQ(in.base_gfn, base);
	KPT_EQ(in.npages, NPAGES);
	/* one for the memslot's ends, which are not on 2 MiB boundaries */
	KPT_EQ(in.lpage_2m, 1 + sum);
	KPT_EQ(in.external_enabled, 0);
}

/* One path that allocates. */
struct path {
	const char *name;
	void (*before)(void);	/* from nothing */
	int (*run)(void);
	void (*failed)(void);	/* @run was refused: is all as before? */
	void (*done)(void);	/* it was not: is all as it should be? */
	void (*after)(void);	/* to nothing */
	enum {
		NEEDS_MEMORY,	/* @run without any: -ENOMEM */
		NEEDS_NONE,
		MAY_NEED_NONE,	/* a VM that is gone may have left what it takes */
		COUNTERS_ONLY,	/* under shadow paging KVM has made those: as above */
	} memory;
};

static bool needs_memory(const struct path *p)
{
	return p->memory == NEEDS_MEMORY || (p->memory == COUNTERS_ONLY && kpt_tdp());
}

static void add_failed(void)
{
	expect_page(KPT_GFN, 0, 0, KPT_GFN);
	KPT_EQ(look(KPT_GFN).users_count, 1);
	expect_stats(0, 0);
}

static int first_add(void) { return call(KPT_OP_ADD_PAGE, KPT_GFN + 200, 1); }
static int first_write_add(void)
{
	return call(KPT_OP_WRITE_ADD, KPT_GFN + 200, 1);
}

static void add_done(void)
{
	expect_page(KPT_GFN + 200, 1, 1, KPT_GFN);
	expect_stats(1, 0);
	KPT_OK(call(KPT_OP_REMOVE_PAGE, KPT_GFN + 200, 1));
	expect_page(KPT_GFN + 200, 0, 0, KPT_GFN);
}

static int range(void) { return call(KPT_OP_ADD_RANGE, KPT_GFN + 100, 150); }

static void range_done(void)
{
	expect_page(KPT_GFN + 100, 1, 150, KPT_GFN);
	expect_stats(150, 0);
	KPT_OK(call(KPT_OP_REMOVE_RANGE, KPT_GFN + 100, 150));
	expect_page(KPT_GFN + 100, 0, 0, KPT_GFN);
}

static void vm_with_a_page(void)
{
	new_vm_with_slot();
	KPT_OK(call(KPT_OP_ADD_PAGE, KPT_GFN, 1));
}

static int another_add(void) { return call(KPT_OP_ADD_PAGE, KPT_GFN + 299, 1); }

static void another_failed(void)
{
	expect_page(KPT_GFN, 1, 1, KPT_GFN);
	expect_page(KPT_GFN + 299, 0, 1, KPT_GFN);
	expect_stats(1, 0);
}

static void another_done(void)
{
	expect_page(KPT_GFN, 1, 2, KPT_GFN);
	expect_page(KPT_GFN + 299, 1, 2, KPT_GFN);
	expect_stats(2, 0);
}

static int prepare(void) { return call(KPT_OP_PREPARE, KPT_GFN + 10, 200); }

static void prepare_done(void)
{
	int i;

	expect_page(KPT_GFN, 0, 0, KPT_GFN);
	for (i = 10; i < 210; i += 7)
		KPT_OK(call(KPT_OP_SLOT_ADD, KPT_GFN + i, 1));
	expect_page(KPT_GFN + 10, 1, 29, KPT_GFN);
	expect_stats(29, 0);
}

static int reg_notifier(void) { return reg(KPT_NOTIFIER); }
static int reg_client(void) { return reg(KPT_CLIENT); }
static int reg_client_move(void) { return reg(KPT_CLIENT_MOVE); }

static void reg_failed(void)
{
	KPT_EQ(look(KPT_GFN).users_count, 1);
	KPT_EQ(look(KPT_GFN).list_empty, 1);
	KPT_EQ(kpt_mod_refs("kvm_page_track"), 1);
	expect_stats(0, 0);
}

static void reg_done(void)
{
	KPT_EQ(look(KPT_GFN).users_count, 2);
	KPT_EQ(kpt_mod_refs("kvm_page_track"), 2);
	expect_stats(0, 1);
}

static void unreg_close(void)
{
	int i, n = 0;

	for (i = 0; i < 3; i++) {
		if (kpt_counters(kpt_dev, scratch[i]).registered) {
			KPT_OK(kpt_unreg(kpt_dev, scratch[i]));
			n++;
		}
	}
	KPT_EQ(n, 1);
	close_vm();
}

static void vm_with_client(void)
{
	new_vm();
	KPT_OK(reg_client_move());
}

static int create_slot(void) { return set_region(KPT_GFN, NPAGES, 0); }

static void create_failed(void)
{
	KPT_EQ(look(KPT_GFN).has_slot, 0);
	KPT_EQ(look(KPT_GFN).users_count, 2);
	KPT_ERR(call(KPT_OP_ADD_PAGE, KPT_GFN, 1), EINVAL);
	expect_stats(0, 1);
	expect_no_events();
}

static void create_done(void)
{
	expect_page(KPT_GFN, 0, 0, KPT_GFN);
	KPT_EQ(look(KPT_GFN).has_array, !kpt_tdp());
	KPT_OK(call(KPT_OP_ADD_PAGE, KPT_GFN, 1));
	expect_page(KPT_GFN, 1, 1, KPT_GFN);
	expect_stats(1, 1);
}

/* Counted, prepared, and both, far enough apart for more than one node. */
static void vm_with_counts(void)
{
	vm_with_client();
	KPT_OK(create_slot());
	KPT_OK(call(KPT_OP_ADD_PAGE, KPT_GFN, 3));
	KPT_OK(call(KPT_OP_ADD_PAGE, KPT_GFN + 150, 1));
	KPT_OK(call(KPT_OP_PREPARE, KPT_GFN + 290, 10));
	KPT_OK(call(KPT_OP_SLOT_ADD, KPT_GFN + 299, 2));
}

static int move_slot(void) { return set_region(KPT_GFN + 0x1000, NPAGES, 0); }

static void counts_at(u64 gfn)
{
	expect_page(gfn, 3, 6, gfn);
	expect_page(gfn + 150, 1, 6, gfn);
	expect_page(gfn + 299, 2, 6, gfn);
	expect_page(gfn + 298, 0, 6, gfn);
	expect_stats(3, 1);
	KPT_OK(call(KPT_OP_SLOT_ADD, gfn + 290, 1));
	KPT_OK(call(KPT_OP_SLOT_REMOVE, gfn + 290, 1));
}

static void still_there(void)
{
	counts_at(KPT_GFN);
	KPT_EQ(look(KPT_GFN + 0x1000).has_slot, 0);
	KPT_EQ(look(KPT_GFN).users_count, 2);
	expect_no_events();
}

static void moved(void)
{
	struct kpt_event ev[4];

	KPT_EQ(kpt_events(kpt_dev, ev, 4), 1);
	KPT_EQ(ev[0].type, KPT_EV_MOVE_REGION);
	KPT_EQ(ev[0].gpa, KPT_GFN);
	KPT_EQ(ev[0].new_gfn, KPT_GFN + 0x1000);
	KPT_EQ(look(KPT_GFN).has_slot, 0);
	counts_at(KPT_GFN + 0x1000);
}

/* Onto itself, nearly: places that are old and new ones at a time. */
static int move_by_one(void) { return set_region(KPT_GFN + 9, NPAGES, 0); }

static void moved_by_one(void)
{
	struct kpt_event ev[4];

	KPT_EQ(kpt_events(kpt_dev, ev, 4), 1);
	KPT_EQ(ev[0].new_gfn, KPT_GFN + 9);
	counts_at(KPT_GFN + 9);
}

static int change_flags(void)
{
	return set_region(KPT_GFN, NPAGES, KVM_MEM_LOG_DIRTY_PAGES);
}

static void flags_failed(void)
{
	KPT_EQ(look(KPT_GFN).slot_flags, 0);
	still_there();
}

static void flags_done(void)
{
	KPT_EQ(look(KPT_GFN).slot_flags, KVM_MEM_LOG_DIRTY_PAGES);
	still_there();
}

static int delete_slot(void) { return set_region(KPT_GFN, 0, 0); }

static void deleted(void)
{
	struct kpt_event ev[4];

	KPT_EQ(kpt_events(kpt_dev, ev, 4), 1);
	KPT_EQ(ev[0].type, KPT_EV_REMOVE_REGION);
	KPT_EQ(ev[0].len, NPAGES);
	KPT_EQ(look(KPT_GFN).has_slot, 0);
	expect_stats(0, 1);
}

static int create_vm(void)
{
	vm_fd = ioctl(kvm_fd, KVM_CREATE_VM, 0);
	return vm_fd < 0 ? -errno : 0;
}

static void no_vm(void)
{
	KPT_EQ(kpt_debugfs_vm(getpid()).rows, 0);
}

static void vm_done(void)
{
	KPT_OK(set_region(KPT_GFN, NPAGES, 0));
	KPT_OK(first_add());
	/* no debugfs: KVM does not know the pid of a VM whose uevent failed */
	expect_page(KPT_GFN + 200, 1, 1, KPT_GFN);
	KPT_OK(call(KPT_OP_REMOVE_PAGE, KPT_GFN + 200, 1));
	expect_page(KPT_GFN + 200, 0, 0, KPT_GFN);
}

static void nothing(void)
{
}

static const struct path paths[] = {
	{ "the first add", new_vm_with_slot, first_add, add_failed, add_done,
	  close_vm, COUNTERS_ONLY },
	{ "the first kvm_write_track_add_gfn", new_vm_with_slot, first_write_add,
	  add_failed, add_done, close_vm, COUNTERS_ONLY },
	{ "add of another page", vm_with_a_page, another_add, another_failed,
	  another_done, close_vm, NEEDS_NONE },
	{ "add a range", new_vm_with_slot, range, add_failed, range_done,
	  close_vm, COUNTERS_ONLY },
	{ "prepare", new_vm_with_slot, prepare, add_failed, prepare_done,
	  close_vm, COUNTERS_ONLY },
	{ "register a notifier", new_vm_with_slot, reg_notifier, reg_failed,
	  reg_done, unreg_close, MAY_NEED_NONE },
	{ "register a client", new_vm_with_slot, reg_client, reg_failed, reg_done,
	  unreg_close, MAY_NEED_NONE },
	{ "register a client that follows moves", new_vm_with_slot,
	  reg_client_move, reg_failed, reg_done, unreg_close, MAY_NEED_NONE },
	{ "create a memslot", vm_with_client, create_slot, create_failed,
	  create_done, unreg_close },
	{ "move a memslot", vm_with_counts, move_slot, still_there, moved,
	  unreg_close },
	{ "move a memslot over itself", vm_with_counts, move_by_one, still_there,
	  moved_by_one, unreg_close },
	{ "change a memslot's flags", vm_with_counts, change_flags, flags_failed,
	  flags_done, unreg_close },
	{ "delete a memslot", vm_with_counts, delete_slot, still_there, deleted,
	  unreg_close },
	{ "create a VM", nothing, create_vm, no_vm, vm_done, close_vm },
};

/* All allocations of @p fail in turn. */
static void walk(const struct path *p)
{
	u32 n, fails = 0;
	bool hit;
	int r;

	for (n = 1;; n++) {
		p->before();
		arm(n);
		r = p->run();
		hit = disarm();
		TEST_ASSERT(!r || (hit && r == -ENOMEM),
			    "%s: allocation %u fails: %d", p->name, n, r);
		if (r) {
			fails++;
			p->failed();
			r = p->run();
			TEST_ASSERT(!r, "%s: the next try after allocation %u: %d",
				    p->name, n, r);
		}
		p->done();
		p->after();
		if (!hit)
			break;
		TEST_ASSERT(n < 5000, "%s: no end of allocations", p->name);
	}
	/* some try twice: all of them fail */
	p->before();
	starve(true);
	r = p->run();
	starve(false);
	TEST_ASSERT((r == -ENOMEM && p->memory != NEEDS_NONE) ||
		    (r == 0 && !needs_memory(p)),
		    "%s without memory: %d", p->name, r);
	if (r) {
		p->failed();
		KPT_OK(p->run());
	}
	p->done();
	p->after();
	printf("# %s: %u allocations, %u refused it, %u did not matter\n", p->name,
	       n - 1, fails, n - 1 - fails);
}

static void api(void)
{
	const char *only = getenv("KPT_FAULT_PATH");
	u32 i;

	begin("0");
	kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	memory = (u64)mmap(NULL, NPAGES << 12, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	new_vm();
	for (i = 0; i < 3; i++) {
		scratch[i] = kpt_reg(kpt_dev, &(struct kvm_vm) { .fd = vm_fd }, i,
				     KPT_REG_RECORD);
		TEST_ASSERT(scratch[i] >= 0, "register: %d", scratch[i]);
		KPT_OK(kpt_unreg(kpt_dev, scratch[i]));
	}
	close_vm();
	for (i = 0; i < ARRAY_SIZE(paths); i++)
		if (!only || strstr(paths[i].name, only))
			walk(&paths[i]);
}

/* ---- insmod and rmmod ---- */

static u64 hash_file(const char *path, const char *word)
{
	char line[1024];
	u64 h = 0;
	FILE *f = fopen(path, "r");
	char *c;

	if (!f)
		return 0;
	while (fgets(line, sizeof(line), f)) {
		u64 l = 14695981039346656037ULL;

		if (word && !strstr(line, word))
			continue;
		for (c = line; *c && *c != '('; c++)
			l = (l ^ *c) * 1099511628211ULL;
		h += l;
	}
	fclose(f);
	return h;
}

static u64 hooked, hooked_by_us, probed;
static int kvm_refs;

static void detached(void)
{
	TEST_ASSERT(!kpt_mod_loaded("kvm_page_track"), "it is loaded");
	TEST_ASSERT(access("/sys/kernel/debug/kvm_page_track", F_OK),
		    "debugfs is left behind");
	TEST_ASSERT(access("/sys/module/kvm_page_track", F_OK),
		    "sysfs is left behind");
	KPT_EQ(hash_file("/sys/kernel/tracing/enabled_functions", NULL), hooked);
	KPT_EQ(hash_file("/sys/kernel/debug/kprobes/list", NULL), probed);
	KPT_EQ(kpt_mod_refs("kvm"), kvm_refs);
}

/*
 * All of it: ftrace says the same as after an insmod without failures.  The
 * module does without its debugfs files if there is no memory for them.
 */
static void attached(bool failed)
{
	int n, active;

	TEST_ASSERT(kpt_mod_loaded("kvm_page_track"), "it is not loaded");
	KPT_EQ(hash_file("/sys/kernel/tracing/enabled_functions", NULL),
	       hooked_by_us);
	KPT_EQ(hash_file("/sys/kernel/debug/kprobes/list", NULL), probed);
	if (failed)
		return;
	n = kpt_debugfs_hooks(&active);
	TEST_ASSERT(n > 0 && n == active, "%d of %d hooks", active, n);
}

/* What was in the log since the last call: did our init allocate? */
static bool in_our_init(void)
{
	char rec[8192];
	bool ours = false;
	ssize_t n;

	while ((n = read(kmsg, rec, sizeof(rec) - 1)) > 0 || errno == EPIPE) {
		if (n <= 0)
			continue;
		rec[n] = 0;
		ours |= strstr(rec, "do_one_initcall") ||
			strstr(rec, "[kvm_page_track]");
	}
	return ours;
}

static int insmod(void)
{
	return kpt_mod_load("kvm_page_track");
}

static void before_modules(void)
{
	begin("2");
	/* the unit tests of the module run at each load: not now */
	put("/sys/module/kunit/parameters/filter_glob", "none");
	kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	TEST_ASSERT(kmsg >= 0, "kmsg");
	lseek(kmsg, 0, SEEK_END);
	/* whatever is made once and kept */
	KPT_OK(insmod());
	hooked_by_us = hash_file("/sys/kernel/tracing/enabled_functions", NULL);
	kpt_detach();
	hooked = hash_file("/sys/kernel/tracing/enabled_functions", NULL);
	probed = hash_file("/sys/kernel/debug/kprobes/list", NULL);
	kvm_refs = kpt_mod_refs("kvm");
	TEST_ASSERT(hooked_by_us != hooked, "enabled_functions does not tell");
	KPT_EQ(hash_file("/sys/kernel/tracing/enabled_functions", "page_track"), 0);
}

static void attach(void)
{
	u64 stride = kpt_env("KPT_FAULT_STRIDE", 40);
	u64 our_stride = kpt_env("KPT_FAULT_INIT_STRIDE", 1);
	u32 n, last = 0, tries = 0, refused = 0, ours = 0, ours_refused = 0;
	bool hit, mine;
	int r;

	before_modules();
	for (n = 1;; n += ours ? our_stride : stride) {
		arm(n);
		r = insmod();
		hit = disarm();
		mine = in_our_init();
		if (hit && mine && !ours && n > 1 && stride > 1 && last) {
			/* the first of ours lie in between: back to them */
			if (!r) {
				kpt_detach();
				detached();
			}
			n = last;
			stride = stride > 8 ? stride / 4 : 1;
			continue;
		}
		if (!hit) {
			KPT_OK(r);
			attached(false);
			kpt_detach();
			detached();
			break;
		}
		last = n;
		tries++;
		ours += mine;
		TEST_ASSERT(!r || r == -ENOMEM, "allocation %u of insmod: %d", n, r);
		if (r) {
			refused++;
			ours_refused += mine;
			detached();
			if (!mine || ours_refused % 8 != 1)
				goto next;
			KPT_OK(insmod());
		}
		attached(!r);
		kpt_detach();
		detached();
next:
		if (tries % 20 == 0)
			printf("# allocation %u: %u made to fail, %u refused insmod; of our init %u and %u\n",
			       n, tries, refused, ours, ours_refused);
	}
	printf("# insmod: %u allocations, %u made to fail, %u refused it; of our init %u and %u\n",
	       n - 1, tries, refused, ours, ours_refused);
	TEST_ASSERT(ours_refused > 0, "our init was not tested");
}

/* rmmod cannot fail half-way: no allocation may matter. */
static void detach(void)
{
	u32 n;
	bool hit = true;

	before_modules();
	for (n = 1; hit; n++) {
		KPT_OK(insmod());
		arm(n);
		KPT_OK(kpt_mod_unload("kvm_page_track"));
		hit = disarm();
		detached();
	}
	printf("# rmmod: %u allocations, none matters\n", n - 2);
}

/* ---- and nothing is lost ---- */

static void leaks(void)
{
	static const char path[] = "/sys/kernel/debug/kmemleak";
	char line[256];
	int lines = 0;
	FILE *f;

	if (access(FAIL_NTH, W_OK))
		kpt_skip("no fault injection in this kernel");
	if (put(path, "scan"))
		kpt_skip("no kmemleak in this kernel");
	/* it only believes in objects of some seconds of age, seen twice */
	sleep(6);
	KPT_OK(put(path, "scan"));
	KPT_OK(put(path, "scan"));
	f = fopen(path, "r");
	TEST_ASSERT(f, "kmemleak");
	while (fgets(line, sizeof(line), f)) {
		printf("# %s", line);
		lines++;
	}
	fclose(f);
	KPT_EQ(lines, 0);
}

/*
 * What the log may say of an allocation that fails on purpose: what failed
 * (fault injection, vmalloc), and what others think of it: the module loader, and
 * lockdep of KVM's own way out of a VM that is half made.
 */
static bool complaint(const char *record)
{
	static const char * const failures[] = {
		"FAULT_INJECTION: forcing", "page allocation failure",
		"vmalloc error",
	};
	static const char * const others[] = {
		"Failed to allocate memory for static calls",
		"Failed to allocate memory: jump_label",
		"at sev_vm_destroy+",
	};
	static bool in_trace, in_warning;
	u32 i;

	for (i = 0; i < ARRAY_SIZE(failures); i++)
		in_trace |= !!strstr(record, failures[i]);
	for (i = 0; i < ARRAY_SIZE(others); i++)
		in_warning |= !!strstr(record, others[i]);
	if (strstr(record, "end trace"))
		in_warning = false;
	if (in_warning && (strstr(record, "WARNING:") ||
			   strstr(record, "Call Trace")))
		return false;
	if (in_trace && strstr(record, "Call Trace")) {
		in_trace = false;
		return false;
	}
	return kpt_is_complaint(record);
}

/* The runner of the machine looks at the console, we at all of the log. */
static pid_t main_pid;

static void restore_console(void)
{
	/* not where a failed test ends */
	if (getpid() == main_pid)
		klogctl(7, NULL, 0);
}

int main(void)
{
	static const struct kpt_test tests[] = {
		{ "calls, memslots and VMs", api, 600 },
		{ "no memory is lost", leaks, 300 },
		{ "insmod", attach, 3000, KPT_WANT_C },
		{ "rmmod", detach, 600, KPT_WANT_C },
		{ "no memory is lost by insmod and rmmod", leaks, 300,
		  KPT_WANT_C },
	};

	if (!access(FAIL_NTH, W_OK)) {
		main_pid = getpid();
		kpt_complaint = complaint;
		atexit(restore_console);
		klogctl(6, NULL, 0);
	}
	/* insmod and rmmod are the same with either paging */
	return kpt_main(tests, kpt_tdp() ? ARRAY_SIZE(tests) : 2, KPT_NEED_CLIENT);
}
