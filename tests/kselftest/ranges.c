// SPDX-License-Identifier: GPL-2.0-only
/*
 * kvm_page_track_add_range() and kvm_page_track_remove_range(): the same as that
 * many single calls, or nothing at all, with one flush of the TLBs.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kpt_lib.h"

#define NPAGES	1000

/* Writes its number to every page of the range, over and over. */
static void guest_sweeps(void)
{
	u64 round, i;

	for (round = 1;; round++) {
		for (i = 0; i < NPAGES; i++)
			*(volatile u64 *)(KPT_GVA + (i << 12)) = round + i;
		GUEST_SYNC(round);
	}
}

static int add_range(struct kvm_vm *vm, u64 gfn, u64 nr)
{
	return kpt_call_n(kpt_dev, KPT_OP_ADD_RANGE, vm, gfn, nr, NULL);
}

static int remove_range(struct kvm_vm *vm, u64 gfn, u64 nr)
{
	return kpt_call_n(kpt_dev, KPT_OP_REMOVE_RANGE, vm, gfn, nr, NULL);
}

/* One sweep of the guest; returns how many events it made. */
static int sweep(struct kvm_vcpu *vcpu, int id)
{
	u64 before = kpt_counters(kpt_dev, id).writes, round, i;

	TEST_ASSERT(kpt_run_sync(vcpu, &round), "the guest ended");
	for (i = 0; i < NPAGES; i++)
		KPT_EQ(*(u64 *)addr_gpa2hva(vcpu->vm, KPT_GPA + (i << 12)),
		       round + i);
	return kpt_counters(kpt_dev, id).writes - before;
}

static void like_single_calls(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = kpt_vm(&vcpu, guest_sweeps, NPAGES,
				   VM_MEM_SRC_ANONYMOUS);
	int id = kpt_reg(kpt_dev, vm, KPT_CLIENT, 0);
	int lpage = kpt_inspect(vm, 0, KPT_GFN).lpage_2m;
	u64 flushes;
	int i;

	TEST_ASSERT(id >= 0, "register: %d", id);
	KPT_EQ(sweep(vcpu, id), 0);

	/*
	 * All of it is mapped writable now.  One flush, or one more for each time
	 * that somebody else wanted the processor: not every time.
	 */
	for (i = 0; i < 20; i++) {
		flushes = vm_get_stat(vm, remote_tlb_flush_requests);
		KPT_OK(add_range(vm, KPT_GFN, NPAGES));
		flushes = vm_get_stat(vm, remote_tlb_flush_requests) - flushes;
		TEST_ASSERT(flushes && flushes <= NPAGES / 64 + 1, "%lu flushes", flushes);
		if (flushes == 1)
			break;
		KPT_OK(remove_range(vm, KPT_GFN, NPAGES));
		KPT_EQ(sweep(vcpu, id), 0);
	}
	KPT_EQ(flushes, 1);
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).slot_sum, NPAGES);
	KPT_EQ(kpt_count(vm, KPT_GFN), 1);
	KPT_EQ(kpt_count(vm, KPT_GFN + NPAGES - 1), 1);
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).lpage_2m, lpage + 512);
	KPT_EQ(sweep(vcpu, id), NPAGES);

	/* nothing is mapped writable any more */
	flushes = vm_get_stat(vm, remote_tlb_flush_requests);
	KPT_OK(add_range(vm, KPT_GFN + 100, 300));
	KPT_EQ(vm_get_stat(vm, remote_tlb_flush_requests) - flushes, 0);
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).slot_sum, NPAGES + 300);

	/* one count, however it is added and removed */
	KPT_OK(kpt_add(vm, KPT_GFN + 500));
	KPT_OK(remove_range(vm, KPT_GFN, NPAGES));
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).slot_sum, 301);
	KPT_EQ(sweep(vcpu, id), 301);
	KPT_OK(kpt_remove(vm, KPT_GFN + 100));
	KPT_OK(remove_range(vm, KPT_GFN + 101, 299));
	KPT_OK(remove_range(vm, KPT_GFN + 500, 1));
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).slot_sum, 0);
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).lpage_2m, lpage);
	KPT_EQ(sweep(vcpu, id), 0);
	KPT_OK(kpt_unreg(kpt_dev, id));
	kvm_vm_free(vm);
}

static void several_memslots(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = kpt_vm(&vcpu, guest_sweeps, NPAGES,
				   VM_MEM_SRC_ANONYMOUS);
	u64 behind = KPT_GFN + NPAGES;

	KPT_REFUSED(vm, behind - 1, add_range(vm, KPT_GFN, NPAGES + 1), EINVAL);
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, behind << 12, 30, 64, 0);
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, (behind + 64) << 12,
				    31, 64, 0);
	KPT_OK(add_range(vm, behind - 10, 84));
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).slot_sum, 10);
	KPT_EQ(kpt_inspect(vm, 0, behind).slot_sum, 64);
	KPT_EQ(kpt_inspect(vm, 0, behind + 64).slot_sum, 10);
	/* to the very last page, and one more */
	KPT_OK(add_range(vm, behind + 127, 1));
	KPT_REFUSED(vm, behind + 127, add_range(vm, KPT_GFN, NPAGES + 129), EINVAL);
	KPT_REFUSED(vm, behind + 127, remove_range(vm, behind + 127, 2), EINVAL);
	KPT_OK(remove_range(vm, behind + 127, 1));
	KPT_OK(remove_range(vm, behind - 10, 84));
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).slot_sum, 0);
	KPT_EQ(kpt_inspect(vm, 0, behind).slot_sum, 0);
	KPT_EQ(kpt_inspect(vm, 0, behind + 64).slot_sum, 0);
	kvm_vm_free(vm);
}

/* Everything of every page, before and after. */
static struct kpt_page *all_pages(struct kvm_vm *vm, struct kpt_page *pages)
{
	kpt_pages_fd(vm->fd, 0, KPT_GFN, NPAGES, pages);
	return pages;
}

static void all_or_nothing(void)
{
	struct kpt_page *before = calloc(NPAGES, sizeof(*before));
	struct kpt_page *after = calloc(NPAGES, sizeof(*after));
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = kpt_vm(&vcpu, guest_sweeps, NPAGES,
				   VM_MEM_SRC_ANONYMOUS);
	int id = kpt_reg(kpt_dev, vm, KPT_NOTIFIER, 0);
	/* at the end, behind the first batch, and at the very beginning */
	u64 where[] = { NPAGES - 1, 70, 0 };
	u64 done, i;

	TEST_ASSERT(id >= 0, "register: %d", id);
	KPT_EQ(sweep(vcpu, id), 0);
	for (i = 0; i < ARRAY_SIZE(where); i++) {
		KPT_OK(kpt_call_n(kpt_dev, KPT_OP_ADD_PAGE, vm,
				  KPT_GFN + where[i], KPT_MAX_USERS, &done));
		all_pages(vm, before);
		KPT_REFUSED(vm, KPT_GFN + where[i], add_range(vm, KPT_GFN, NPAGES),
			    EOVERFLOW);
		TEST_ASSERT(!memcmp(before, all_pages(vm, after),
				    NPAGES * sizeof(*before)),
			    "an add of a range that page %lu refused", where[i]);
		/* as well as what is mapped: only that page is told of */
		KPT_EQ(sweep(vcpu, id), 1);
		KPT_OK(kpt_call_n(kpt_dev, KPT_OP_REMOVE_PAGE, vm,
				  KPT_GFN + where[i], KPT_MAX_USERS, &done));

		KPT_OK(add_range(vm, KPT_GFN, NPAGES));
		KPT_OK(kpt_remove(vm, KPT_GFN + where[i]));
		all_pages(vm, before);
		KPT_REFUSED(vm, KPT_GFN + where[i],
			    remove_range(vm, KPT_GFN, NPAGES), ENOENT);
		TEST_ASSERT(!memcmp(before, all_pages(vm, after),
				    NPAGES * sizeof(*before)),
			    "a remove of a range that page %lu refused", where[i]);
		KPT_EQ(sweep(vcpu, id), NPAGES - 1);
		KPT_OK(kpt_add(vm, KPT_GFN + where[i]));
		KPT_OK(remove_range(vm, KPT_GFN, NPAGES));
		KPT_EQ(sweep(vcpu, id), 0);
	}
	KPT_OK(kpt_unreg(kpt_dev, id));
	kvm_vm_free(vm);
	free(before);
	free(after);
}

static void bad_ranges(void)
{
	static const u32 ops[] = { KPT_OP_ADD_RANGE, KPT_OP_REMOVE_RANGE };
	static const u64 bad[][2] = {
		{ KPT_GFN, 0 }, { KPT_GFN, ~0ULL }, { KPT_GFN + 1, ~0ULL },
		{ 1ULL << 52, 1 }, { ~0ULL, 1 }, { ~0ULL, 2 },
		{ KPT_GFN - 1, 2 }, { KPT_GFN + NPAGES, 1 }, { 0, ~0ULL },
	};
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = kpt_vm(&vcpu, guest_sweeps, NPAGES,
				   VM_MEM_SRC_ANONYMOUS);
	struct kpt_call c = { .vm_fd = vm->fd, .gfn = KPT_GFN, .nr = 1 };
	u32 i, k;

	KPT_OK(kpt_add(vm, KPT_GFN));
	for (k = 0; k < 2; k++) {
		for (i = 0; i < ARRAY_SIZE(bad); i++)
			KPT_REFUSED(vm, KPT_GFN,
				    kpt_call_n(kpt_dev, ops[k], vm, bad[i][0],
					       bad[i][1], NULL), EINVAL);
		c.op = ops[k];
		c.mode = 1;
		KPT_REFUSED(vm, KPT_GFN, kpt_api(kpt_dev, &c), EINVAL);
		c.mode = 0;
		c.flags = KPT_CALL_NULL_KVM;
		KPT_REFUSED(vm, KPT_GFN, kpt_api(kpt_dev, &c), EINVAL);
		c.flags = 0;
	}
	KPT_OK(kpt_remove(vm, KPT_GFN));
	kvm_vm_free(vm);
}

static struct kvm_vm *busy_vm;
static volatile bool stop;

static void *adds_and_removes(void *arg)
{
	u64 first = KPT_GFN + (u64)arg, n = 0;

	do {
		KPT_OK(add_range(busy_vm, first, 600));
		KPT_OK(remove_range(busy_vm, first, 600));
		n++;
	} while (!stop);
	return (void *)n;
}

static void *runs(void *arg)
{
	struct kvm_vcpu *vcpu = arg;
	u64 round, i, n = 0;

	do {
		TEST_ASSERT(kpt_run_sync(vcpu, &round), "the guest ended");
		for (i = 0; i < NPAGES; i++)
			KPT_EQ(*(u64 *)addr_gpa2hva(vcpu->vm, KPT_GPA + (i << 12)),
			       round + i);
		n++;
	} while (!stop);
	return (void *)n;
}

static void at_the_same_time(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = kpt_vm(&vcpu, guest_sweeps, NPAGES,
				   VM_MEM_SRC_ANONYMOUS);
	int lpage = kpt_inspect(vm, 0, KPT_GFN).lpage_2m;
	pthread_t t[3];
	void *n[3];
	int i;

	busy_vm = vm;
	stop = false;
	pthread_create(&t[0], NULL, adds_and_removes, (void *)0);
	pthread_create(&t[1], NULL, adds_and_removes, (void *)400);
	pthread_create(&t[2], NULL, runs, vcpu);
	sleep(2);
	stop = true;
	for (i = 0; i < 3; i++) {
		pthread_join(t[i], &n[i]);
		TEST_ASSERT(n[i], "thread %d did nothing", i);
	}
	printf("# %lu and %lu ranges against %lu sweeps\n", (u64)n[0], (u64)n[1],
	       (u64)n[2]);
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).slot_sum, 0);
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).lpage_2m, lpage);
	kvm_vm_free(vm);
}

static void large_pages(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u64 large;
	int id, i;

	kpt_need_hugepages(2);
	vm = __vm_create_with_one_vcpu(&vcpu, 64, guest_sweeps);
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS_HUGETLB_2MB, KPT_GPA,
				    KPT_SLOT, 1024, 0);
	virt_map_level(vm, KPT_GVA, KPT_GPA, 1024 * 4096, PG_LEVEL_2M);
	id = kpt_reg(kpt_dev, vm, KPT_CLIENT, 0);
	TEST_ASSERT(id >= 0, "register: %d", id);
	large = vm_get_stat(vm, pages_2m);
	for (i = 0; i < 2; i++) {
		/* large for the first time, and again */
		KPT_EQ(sweep(vcpu, id), 0);
		KPT_EQ(vm_get_stat(vm, pages_2m) - large, 2);
		KPT_OK(add_range(vm, KPT_GFN, NPAGES));
		KPT_EQ(sweep(vcpu, id), NPAGES);
		KPT_OK(remove_range(vm, KPT_GFN + 5, NPAGES - 5));
		KPT_EQ(sweep(vcpu, id), 5);
		KPT_OK(remove_range(vm, KPT_GFN, 5));
	}
	KPT_OK(kpt_unreg(kpt_dev, id));
	kvm_vm_free(vm);
}

static void need_tdp_mmu(void)
{
	if (!kpt_tdp_mmu())
		kpt_skip("only mappings of the TDP MMU, with A/D bits, become writable so");
}

static void *writes_once(void *vcpu)
{
	u64 v;

	pin_self_to_cpu(1);
	TEST_ASSERT(kpt_run_sync(vcpu, &v), "the guest ended");
	return NULL;
}

/*
 * A vCPU has asked whether a page is tracked, when it was not, and is about to make
 * its mapping writable again without mmu_lock, as it may where dirty logging has
 * made it read-only.  The range is added in between: the write must not get through
 * untold.
 */
static void fault_on_its_way(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	void *dirty;
	pthread_t t;
	u64 fast;
	int id;

	need_tdp_mmu();
	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		kpt_skip("somebody has to be held on another processor");
	pin_self_to_cpu(0);
	vm = kpt_vm(&vcpu, kpt_write_guest, NPAGES, VM_MEM_SRC_ANONYMOUS);
	id = kpt_reg(kpt_dev, vm, KPT_CLIENT, 0);
	TEST_ASSERT(id >= 0, "register: %d", id);
	dirty = calloc(1, NPAGES / 8 + 8);
	vm_mem_region_set_flags(vm, KPT_SLOT, KVM_MEM_LOG_DIRTY_PAGES);
	kpt_write(vcpu, 100);
	kvm_vm_get_dirty_log(vm, KPT_SLOT, dirty);
	fast = vcpu_get_stat(vcpu, pf_fast);
	kpt_write(vcpu, 100);
	KPT_EQ(vcpu_get_stat(vcpu, pf_fast) - fast, 1);

	kvm_vm_get_dirty_log(vm, KPT_SLOT, dirty);
	KPT_OK(kpt_probe("kvm_tdp_mmu_fast_pf_get_last_sptep", KPT_PROBE_HOLD));
	pthread_create(&t, NULL, writes_once, vcpu);
	kpt_probe_wait();
	KPT_OK(add_range(vm, KPT_GFN, 200));
	KPT_OK(kpt_probe(NULL, KPT_PROBE_OFF));
	pthread_join(t, NULL);
	KPT_EQ(kpt_counters(kpt_dev, id).writes, 1);
	kpt_write(vcpu, 100);
	KPT_EQ(kpt_counters(kpt_dev, id).writes, 2);
	KPT_OK(remove_range(vm, KPT_GFN, 200));
	KPT_OK(kpt_unreg(kpt_dev, id));
	free(dirty);
	kvm_vm_free(vm);
}

/* Each writes the same page when it goes on, in the middle of a new range every time. */
#define LATE		8
#define LATE_PAGES	64
#define LATE_OFFSET(i)	((i) * LATE_PAGES * 4096ULL + 5 * 4096)

static void guest_writes_in_turn(void)
{
	u64 i;

	for (i = 0; i < LATE; i++) {
		GUEST_SYNC(i);
		*(volatile u64 *)(KPT_GVA + LATE_OFFSET(i)) = i + 1;
	}
	GUEST_DONE();
}

static volatile int late_tid, late_go;

static void *faults_late(void *vcpu)
{
	u64 v;

	late_tid = syscall(__NR_gettid);
	while (!late_go)
		usleep(100);
	kpt_run_sync(vcpu, &v);
	return NULL;
}

/*
 * A vCPU has left the guest because a page that it writes is not mapped, and is held
 * before it enters a section of kvm->srcu.  Another vCPU maps the page, a range with
 * it is added, and the first goes on.  It is told of, and the kernel does not
 * complain of what it finds mapped.
 */
static void fault_that_comes_late(void)
{
	struct kvm_vcpu *vcpu, *other;
	struct kvm_vm *vm;
	int id, i, good = 0;
	u64 exits, told;
	pthread_t t;

	vm = kpt_vm(&vcpu, guest_writes_in_turn, LATE * LATE_PAGES, VM_MEM_SRC_ANONYMOUS);
	other = vm_vcpu_add(vm, 1, guest_writes_in_turn);
	id = kpt_reg(kpt_dev, vm, KPT_CLIENT, 0);
	TEST_ASSERT(id >= 0, "register: %d", id);
	kpt_run_to(vcpu, 0);
	kpt_run_to(other, 0);
	for (i = 0; i < LATE; i++) {
		late_tid = late_go = 0;
		pthread_create(&t, NULL, faults_late, vcpu);
		while (!late_tid)
			usleep(100);
		exits = vcpu_get_stat(vcpu, exits);
		told = kpt_counters(kpt_dev, id).writes;
		/* the first is for KVM_RUN, and left when the guest is entered */
		KPT_OK(kpt_probe_srcu(vm, late_tid, 2));
		late_go = 1;
		kpt_probe_wait();
		if (i < LATE - 1)
			kpt_run_to(other, i + 1);
		else
			kpt_run_done(other);
		KPT_EQ(kpt_counters(kpt_dev, id).writes, told);
		KPT_OK(add_range(vm, KPT_GFN + i * LATE_PAGES, LATE_PAGES));
		KPT_OK(kpt_probe(NULL, KPT_PROBE_OFF));
		pthread_join(t, NULL);
		KPT_EQ(*(u64 *)addr_gpa2hva(vm, KPT_GPA + LATE_OFFSET(i)), i + 1);
		/* it was held with the fault: that, and the call of the host */
		exits = vcpu_get_stat(vcpu, exits) - exits;
		told = kpt_counters(kpt_dev, id).writes - told;
		KPT_EQ(told, 1);
		good += exits == 2;
	}
	TEST_ASSERT(good, "never held with the fault");
	printf("# %d of %d times held with the fault\n", good, LATE);
	KPT_OK(kpt_unreg(kpt_dev, id));
	kvm_vm_free(vm);
}

int main(void)
{
	static const struct kpt_test tests[] = {
		{ "a range is like single calls, with one flush", like_single_calls },
		{ "a range in several memslots", several_memslots },
		{ "all of a range or nothing", all_or_nothing },
		{ "bad ranges: -EINVAL", bad_ranges },
		{ "a range over large pages", large_pages },
		{ "a fault on its way when a range is added", fault_on_its_way },
		{ "a fault that comes late when a range is added",
		  fault_that_comes_late, 120 },
		{ "ranges, and a guest that writes, at the same time",
		  at_the_same_time, 120 },
	};

	return kpt_main(tests, ARRAY_SIZE(tests), KPT_NEED_CLIENT);
}
