// SPDX-License-Identifier: GPL-2.0-only
/*
 * Adding and removing single pages.
 *
 * A running vCPU is one whose thread is inside KVM_RUN, in the middle of guest
 * code.  The machine has one processor, so the thread is not on it at that very
 * moment: a flush that is due asks no other processor.
 */
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include "bench.h"
#include "kpt_lib.h"

#define SIZE	(64 * MiB)
#define PAGES	128
#define LARGE	16		/* pages of 2 MiB */
#define STEP	512		/* from one to the next */
/* Pages that no guest writes to. */
#define UNMAPPED (BENCH_GFN + SIZE / 4096 / 2)

struct names {
	const char *add, *remove;
	u32 add_op, remove_op;
};

/* Upstream's names, and besides them what only the module has. */
static const struct names upstream = {
	"add", "remove", KPT_BENCH_ADD, KPT_BENCH_REMOVE,
};

static const struct names own = {
	"kvm_page_track_add_page", "kvm_page_track_remove_page",
	KPT_BENCH_ADD_PAGE, KPT_BENCH_REMOVE_PAGE,
};

/*
 * The module's functions are compared with upstream's, which is what there is
 * without it.
 */
static const struct names own_in_c = {
	"kvm_page_track_add_page", "kvm_page_track_remove_page",
	KPT_BENCH_ADD, KPT_BENCH_REMOVE,
};

/* A warm-up page, so that no sample is the VM's or the memslot's first. */
static void begin(struct kvm_vm *vm)
{
	bench_do(KPT_BENCH_REGISTER, vm, 0, 1);
	bench_do(KPT_BENCH_ADD, vm, BENCH_GFN + SIZE / 4096 - 1, 1);
}

static void add_and_remove(struct kvm_vm *vm, const struct names *f, u64 gfn,
			   u64 step, u32 nr, const char *what,
			   const char *vcpus)
{
	u64 ticks[PAGES];

	bench_ticks(f->add_op, vm, gfn, step, nr, ticks);
	bench_row("insn", ticks, nr, 1, "%s: %s, %s", f->add, what, vcpus);
	bench_ticks(f->remove_op, vm, gfn, step, nr, ticks);
	bench_row("insn", ticks, nr, 1, "%s: %s, %s", f->remove, what, vcpus);
}

/* One page after another, nothing else tracked near it. */
static void alone(struct kvm_vm *vm, const struct names *f, const char *vcpus)
{
	u64 adds[PAGES], removes[PAGES];
	u32 i;

	for (i = 0; i < PAGES; i++) {
		bench_ticks(f->add_op, vm, UNMAPPED, 0, 1, &adds[i]);
		bench_ticks(f->remove_op, vm, UNMAPPED, 0, 1, &removes[i]);
	}
	bench_row("insn", adds, PAGES, 1, "%s: unmapped, no other near, %s",
		  f->add, vcpus);
	bench_row("insn", removes, PAGES, 1, "%s: unmapped, no other near, %s",
		  f->remove, vcpus);
}

/* States of a page that need no vCPU. */
static void unmapped(struct kvm_vm *vm, const struct names *f, const char *vcpus)
{
	add_and_remove(vm, f, UNMAPPED, 1, PAGES, "unmapped", vcpus);
	alone(vm, f, vcpus);

	bench_do(f->add_op, vm, UNMAPPED, PAGES);
	add_and_remove(vm, f, UNMAPPED, 1, PAGES, "tracked already", vcpus);
	bench_do(f->remove_op, vm, UNMAPPED, PAGES);
}

static void *guest_at, *guest_end;
static u64 guest_step;

/* Writes to every page at its first command, then goes on for ever. */
static void guest(void)
{
	volatile u8 *p;

	for (;;) {
		for (p = guest_at; p < (u8 *)guest_end; p += guest_step)
			*p = 1;
		GUEST_SYNC(0);
		while (!READ_ONCE(guest_step))
			;
	}
}

static void *run_vcpu(void *vcpu)
{
	for (;;)
		ioctl(((struct kvm_vcpu *)vcpu)->fd, KVM_RUN, 0);
	return NULL;
}

struct mapped {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
};

static struct mapped mapped_vm(enum vm_mem_backing_src_type src, u64 step)
{
	struct mapped m;

	m.vm = __vm_create_with_one_vcpu(&m.vcpu, SIZE / 4096, guest);
	vm_userspace_mem_region_add(m.vm, src, BENCH_GPA, BENCH_SLOT,
				    SIZE / 4096, 0);
	virt_map(m.vm, BENCH_GVA, BENCH_GPA, SIZE / 4096);
	guest_at = (void *)BENCH_GVA;
	guest_end = (void *)(BENCH_GVA + LARGE * STEP * 4096);
	if (step == 1)
		guest_end = (void *)(BENCH_GVA + PAGES * 4096);
	guest_step = step * 4096;
	sync_global_to_guest(m.vm, guest_at);
	sync_global_to_guest(m.vm, guest_end);
	sync_global_to_guest(m.vm, guest_step);
	return m;
}

/* Has the guest map what is measured next. */
static void map(struct mapped *m)
{
	bench_guest(m->vcpu);
}

static void with_vcpu(const struct names *f)
{
	struct mapped m = mapped_vm(VM_MEM_SRC_ANONYMOUS, 1);
	const char *vcpu = "1 running vCPU";
	struct sched_param low = {};
	pthread_attr_t attr;
	pthread_t thread;

	begin(m.vm);
	map(&m);
	guest_step = 0;
	sync_global_to_guest(m.vm, guest_step);
	pthread_attr_init(&attr);
	pthread_attr_setinheritsched(&attr, PTHREAD_EXPLICIT_SCHED);
	pthread_attr_setschedpolicy(&attr, SCHED_OTHER);
	pthread_attr_setschedparam(&attr, &low);
	pthread_create(&thread, &attr, run_vcpu, m.vcpu);
	usleep(20000);
	add_and_remove(m.vm, f, BENCH_GFN, 1, PAGES, "mapped by 4 KiB", vcpu);
	add_and_remove(m.vm, f, BENCH_GFN, 1, PAGES, "mapped read-only", vcpu);
	unmapped(m.vm, f, vcpu);
}

static void large(const struct names *f)
{
	struct mapped m = mapped_vm(VM_MEM_SRC_ANONYMOUS_HUGETLB_2MB, STEP);

	begin(m.vm);
	map(&m);
	if (bench_nested)
		TEST_ASSERT(vm_get_stat(m.vm, pages_2m) >= LARGE,
			    "%lu large pages", vm_get_stat(m.vm, pages_2m));
	add_and_remove(m.vm, f, BENCH_GFN, STEP, LARGE, "mapped by 2 MiB",
		       "1 vCPU");
}

static void with(const struct names *f)
{
	struct kvm_vm *vm = bench_vm(SIZE);

	begin(vm);
	unmapped(vm, f, "0 vCPUs");
	with_vcpu(f);
	large(f);
}

void bench_pages(void)
{
	bench_why = "the module allocates per 64 pages; timer interrupts";
	with(&upstream);
	with(bench_rust ? &own : &own_in_c);
}
