// SPDX-License-Identifier: GPL-2.0-only
/*
 * Several vCPUs write one page while it is tracked, not tracked, and while that
 * changes: every write is in memory, and every write made while the page was
 * tracked is delivered exactly once.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kpt_lib.h"

#define NVCPUS	4

/*
 * Guest memory: one page is tracked, alone or with all the others, the control
 * page is only read.  Not the first: ranges treat that one apart.
 */
#define NPAGES	8
#define GFN	(KPT_GFN + 3)
#define OTHER	(KPT_GFN + 5)

struct shared {
	volatile u64 counter[NVCPUS];	/* vCPU n writes 1, 2, 3... to its own */
	volatile u64 sum;		/* all of them: lock add */
};

struct control {
	volatile u64 limit;	/* write up to here, then sync */
	volatile u64 stop;	/* or up to anywhere */
};

#define SHARED	((struct shared *)(KPT_GVA + 0x3000))
#define CONTROL	((struct control *)(KPT_GVA + 0x1000))

static void guest_code(u64 id)
{
	u64 i = 0, limit;

	for (;;) {
		while (i < (limit = CONTROL->limit) && !CONTROL->stop) {
			SHARED->counter[id] = ++i;
			asm volatile("lock addq $1, %0" : "+m"(SHARED->sum));
		}
		GUEST_SYNC(i);
	}
}

static struct kvm_vcpu *vcpus[NVCPUS];
static struct shared *shared;
static struct control *control;
static struct kpt_event *events;
static int nr_events;

enum { MAX_EVENTS = 300000 };

static struct kvm_vm *make(void)
{
	struct kvm_vm *vm = __vm_create_with_vcpus(VM_SHAPE_DEFAULT, NVCPUS, 16,
						   guest_code, vcpus);
	int i;

	kpt_vm_add_memory(vm, NPAGES, VM_MEM_SRC_ANONYMOUS);
	for (i = 0; i < NVCPUS; i++)
		vcpu_args_set(vcpus[i], 1, i);
	shared = addr_gpa2hva(vm, GFN << 12);
	control = addr_gpa2hva(vm, KPT_GPA + 0x1000);
	events = calloc(MAX_EVENTS, sizeof(*events));
	nr_events = 0;
	return vm;
}

static void drain(void)
{
	nr_events += kpt_events(kpt_dev, events + nr_events,
				MAX_EVENTS - nr_events);
	TEST_ASSERT(nr_events < MAX_EVENTS, "too many events");
}

/* How many writes the vCPU says it has made. */
static u64 made[NVCPUS];

static void *run(void *arg)
{
	struct kvm_vcpu *vcpu = arg;

	TEST_ASSERT(kpt_run_sync(vcpu, &made[vcpu->id]), "the guest ended");
	return NULL;
}

static pthread_t threads[NVCPUS];

static void start(u64 limit)
{
	int i;

	control->limit = limit;
	for (i = 0; i < NVCPUS; i++)
		pthread_create(&threads[i], NULL, run, vcpus[i]);
}

static void finish(void)
{
	int i;

	for (i = 0; i < NVCPUS; i++)
		pthread_join(threads[i], NULL);
}

static void expect_memory(void)
{
	u64 sum = 0;
	int i;

	for (i = 0; i < NVCPUS; i++) {
		KPT_EQ(shared->counter[i], made[i]);
		sum += made[i];
	}
	KPT_EQ(shared->sum, sum);
}

static void expect_phase(u64 limit)
{
	int i;

	for (i = 0; i < NVCPUS; i++)
		KPT_EQ(made[i], limit);
	expect_memory();
}

/* The values of @vcpu that arrived, in their order, which must be ascending. */
static int values_of(int vcpu, u64 *value)
{
	u64 last = 0, v;
	int i, n = 0;

	for (i = 0; i < nr_events; i++) {
		struct kpt_event *e = &events[i];
		u64 index = (e->gpa - (GFN << 12)) / 8;

		KPT_EQ(e->type, KPT_EV_WRITE);
		KPT_EQ(e->len, 8);
		TEST_ASSERT(e->gpa >= GFN << 12 && e->gpa % 8 == 0 &&
			    index <= NVCPUS, "event at %#llx", e->gpa);
		if (index != (u64)vcpu)
			continue;
		memcpy(&v, e->data, 8);
		TEST_ASSERT(v > last && v <= made[vcpu],
			    "vCPU %d: %lu after %lu (limit %lu)", vcpu, v, last,
			    made[vcpu]);
		last = v;
		value[n++] = v;
	}
	return n;
}

/* Phases in which the page is tracked all the time, or not at all. */
static void whole_phases(void)
{
	enum { PER_PHASE = 300, PHASES = 6 };
	struct kvm_vm *vm = make();
	int id = kpt_reg(kpt_dev, vm, KPT_NOTIFIER, KPT_REG_RECORD);
	u64 v, heard = 0, *value = calloc(MAX_EVENTS, 8);
	int phase, vcpu, adds, i, n;

	TEST_ASSERT(id >= 0, "register: %d", id);
	for (phase = 0; phase < PHASES; phase++) {
		/* untracked, once, untracked, twice... */
		adds = phase & 1 ? (phase + 1) / 2 : 0;
		for (v = 0; v < (u64)adds; v++)
			KPT_OK(kpt_add(vm, GFN));
		start((phase + 1) * PER_PHASE);
		finish();
		for (v = 0; v < (u64)adds; v++)
			KPT_OK(kpt_remove(vm, GFN));
		drain();
		expect_phase((phase + 1) * PER_PHASE);
		/* the counter and the sum */
		if (adds)
			heard += 2 * NVCPUS * PER_PHASE;
		KPT_EQ(nr_events, heard);
		KPT_EQ(kpt_counters(kpt_dev, id).writes, heard);
	}
	for (vcpu = 0; vcpu < NVCPUS; vcpu++) {
		n = values_of(vcpu, value);
		KPT_EQ(n, PHASES / 2 * PER_PHASE);
		for (i = 0; i < n; i++)
			KPT_EQ(((value[i] - 1) / PER_PHASE) & 1, 1);
	}
	KPT_OK(kpt_unreg(kpt_dev, id));
	kvm_vm_free(vm);
}

struct window {
	u64 from[NVCPUS], to[NVCPUS];
};

/*
 * Added and removed while the vCPUs write.  What memory holds when add returns
 * was written before; if it holds v when remove is called, then all of v - 1 is
 * over, its event too (that of v may come too late to be one): everything in
 * between must have been delivered.
 */
static void with_windows(u32 add, u32 remove, u64 gfn, u64 nr)
{
	enum { WINDOWS = 60 };
	struct kvm_vm *vm = make();
	int id = kpt_reg(kpt_dev, vm, KPT_CLIENT, KPT_REG_RECORD);
	u64 *value = calloc(MAX_EVENTS, 8), inside = 0, before;
	static struct window w[WINDOWS];
	int vcpu, i, k, n, in;

	TEST_ASSERT(id >= 0, "register: %d", id);
	start(-1);
	for (i = 0; i < WINDOWS; i++) {
		KPT_OK(kpt_call_n(kpt_dev, add, vm, gfn, nr, NULL));
		for (vcpu = 0; vcpu < NVCPUS; vcpu++)
			w[i].from[vcpu] = shared->counter[vcpu];
		/* longer on slow kernels */
		usleep(1000 * (i % 5) * kpt_env("KPT_SECONDS", 2));
		for (vcpu = 0; vcpu < NVCPUS; vcpu++) {
			u64 v = shared->counter[vcpu];

			w[i].to[vcpu] = v > w[i].from[vcpu] ? v - 1 : v;
		}
		KPT_OK(kpt_call_n(kpt_dev, remove, vm, gfn, nr, NULL));
		drain();
		usleep(1000 * (i % 4));
	}
	control->stop = 1;
	finish();
	drain();
	expect_memory();
	KPT_EQ(kpt_count(vm, GFN), 0);
	KPT_EQ(kpt_counters(kpt_dev, id).writes, nr_events);

	for (vcpu = 0; vcpu < NVCPUS; vcpu++) {
		n = values_of(vcpu, value);
		for (i = 0, k = 0; i < WINDOWS; i++) {
			while (k < n && value[k] <= w[i].from[vcpu])
				k++;
			for (in = 0; k < n && value[k] <= w[i].to[vcpu]; k++)
				in++;
			TEST_ASSERT(w[i].to[vcpu] - w[i].from[vcpu] == (u64)in,
				    "vCPU %d, window %d (%lu, %lu]: %d arrived",
				    vcpu, i, w[i].from[vcpu], w[i].to[vcpu], in);
			inside += in;
		}
	}
	printf("# %d events, %lu of writes surely made while tracked\n",
	       nr_events, inside);
	TEST_ASSERT(inside > 10, "nothing was tested");

	/* the last remove has returned: nothing more */
	before = kpt_counters(kpt_dev, id).writes;
	control->stop = 0;
	start(shared->sum + 100);
	finish();
	expect_memory();
	KPT_EQ(kpt_counters(kpt_dev, id).writes, before);
	KPT_OK(kpt_unreg(kpt_dev, id));
	kvm_vm_free(vm);
}

static void add_and_remove(void)
{
	with_windows(KPT_OP_ADD_PAGE, KPT_OP_REMOVE_PAGE, GFN, 1);
}

static void add_and_remove_range(void)
{
	with_windows(KPT_OP_ADD_RANGE, KPT_OP_REMOVE_RANGE, KPT_GFN, NPAGES);
}

static struct kvm_vm *the_vm;

static void *add_remove_thread(void *arg)
{
	int i;

	for (i = 0; i < 300; i++) {
		KPT_OK(kpt_add(the_vm, GFN));
		KPT_OK(kpt_add(the_vm, OTHER));
		KPT_OK(kpt_remove(the_vm, GFN));
		KPT_OK(kpt_remove(the_vm, OTHER));
	}
	return NULL;
}

/* Several threads add and remove the same pages: no count is lost. */
static void concurrent_users(void)
{
	pthread_t t[4];
	int i, id;

	the_vm = make();
	id = kpt_reg(kpt_dev, the_vm, KPT_NOTIFIER, 0);
	TEST_ASSERT(id >= 0, "register: %d", id);
	/* one that stays: the page is tracked all the time */
	KPT_OK(kpt_add(the_vm, GFN));
	start(1000);
	for (i = 0; i < 4; i++)
		pthread_create(&t[i], NULL, add_remove_thread, NULL);
	for (i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	finish();
	expect_phase(1000);
	KPT_EQ(kpt_counters(kpt_dev, id).writes, 2 * NVCPUS * 1000);
	KPT_EQ(kpt_count(the_vm, GFN), 1);
	KPT_EQ(kpt_count(the_vm, OTHER), 0);
	KPT_OK(kpt_remove(the_vm, GFN));
	KPT_REFUSED(the_vm, GFN, kpt_remove(the_vm, GFN), ENOENT);
	KPT_EQ(kpt_inspect(the_vm, 0, GFN).slot_sum, 0);
	KPT_OK(kpt_unreg(kpt_dev, id));
	kvm_vm_free(the_vm);
}

static const struct kpt_test tests[] = {
	{ "events equal the writes of whole phases", whole_phases },
	{ "no write is lost while the page is added and removed",
	  add_and_remove, 120 },
	{ "nor while a range of pages is", add_and_remove_range, 120 },
	{ "several threads add and remove the same pages", concurrent_users },
};

int main(void)
{
	return kpt_main(tests, ARRAY_SIZE(tests), KPT_NEED_CLIENT);
}
