// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memslots created, changed and deleted by user space.  What frees memory is done
 * when that has been given back, which somebody else would do at another time.
 */

#include "bench.h"
#include "kpt_lib.h"

#define SMALL_GPA	0x10000000ULL	/* a memslot that stays */
#define TIMES		11	/* of a small memslot */
#define TIMES_LARGE	3
#define TRACKED		16

/*
 * Takes some pages for good: the lists of the page allocator are in another state
 * each time, and it is not the next row that fills up what an add has emptied.
 */
static void take_pages(void)
{
	TEST_ASSERT(mmap(NULL, 7 * 4096, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1,
			 0) != MAP_FAILED,
		    "mmap: %s", strerror(errno));
}

static void with(u64 size, bool trackers, const char *name)
{
	u64 create[TIMES], dirty[TIMES], clean[TIMES], gone[TIMES];
	const char *how = trackers ? "with trackers" : "no trackers";
	void *mem = bench_unbacked(size), *small = bench_unbacked(MiB);
	struct kvm_vm *vm = vm_create_barebones();
	u32 times = size > GiB ? TIMES_LARGE : TIMES, i;
	struct bench_time t;

	bench_slot(vm, 0, 0, SMALL_GPA, MiB, small);
	if (trackers)
		bench_do(KPT_BENCH_REGISTER, vm, 0, 1);
	for (i = 0; i < times; i++) {
		take_pages();
		bench_start(&t);
		bench_slot(vm, BENCH_SLOT, 0, BENCH_GPA, size, mem);
		create[i] = bench_stop(&t);
		if (trackers)
			bench_do(KPT_BENCH_ADD, vm, BENCH_GFN, TRACKED);
		take_pages();
		bench_start(&t);
		bench_slot(vm, BENCH_SLOT, KVM_MEM_LOG_DIRTY_PAGES, BENCH_GPA,
			   size, mem);
		dirty[i] = bench_stop(&t);
		bench_start(&t);
		bench_slot(vm, BENCH_SLOT, 0, BENCH_GPA, size, mem);
		bench_settle();
		clean[i] = bench_stop(&t);
		bench_start(&t);
		bench_slot(vm, BENCH_SLOT, 0, BENCH_GPA, 0, mem);
		bench_settle();
		gone[i] = bench_stop(&t);
	}
	bench_why = "memory allocation; waits for SRCU grace periods, others run";
	bench_row("insn", create, times, 1, "memslot: create, %s, %s", name, how);
	bench_row("insn", dirty, times, 1, "memslot: dirty log on, %s, %s", name, how);
	bench_row("insn", clean, times, 1, "memslot: dirty log off, %s, %s", name, how);
	bench_row("insn", gone, times, 1, "memslot: delete, %s, %s", name, how);
	kvm_vm_free(vm);
	munmap(mem, size);
	munmap(small, MiB);
}

void bench_memslots(void)
{
	int trackers;

	for (trackers = 0; trackers < 2; trackers++) {
		with(64 * MiB, trackers, "64 MiB");
		with(GiB, trackers, "1 GiB");
		with(64 * GiB, trackers, "64 GiB");
	}
}
