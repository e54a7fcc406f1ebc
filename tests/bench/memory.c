// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory that tracking costs, in guests laid out as QEMU lays out q35: 2 GiB
 * below 4 GiB and the rest above, the same in address space 1 (SMM).  Without
 * firmware's small memslots.
 *
 * Counters are the arrays gfn_write_track, read from the memslots.  All is what
 * the kernel's vmalloc and slab memory has grown by since before the first
 * registration: also the module's record of who has added what.
 */
#include <string.h>
#include <unistd.h>

#include "bench.h"
#include "kpt_lib.h"

#define LOW	(2 * GiB)
#define HIGH_GPA (4 * GiB)

/* vmalloc and slab memory of the kernel, now. */
static u64 kernel_memory(void)
{
	char line[128];
	u64 kb, sum = 0;
	FILE *f;

	/* what was freed goes after a grace period of RCU */
	sleep(1);
	/* gathers the numbers of all processors */
	KPT_OK(kpt_put("/proc/sys/vm/stat_refresh", "1"));
	f = fopen("/proc/meminfo", "r");
	TEST_ASSERT(f, "meminfo: %s", strerror(errno));
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "VmallocUsed: %lu", &kb) == 1 ||
		    sscanf(line, "Slab: %lu", &kb) == 1)
			sum += kb * 1024;
	fclose(f);
	return sum;
}

static void guest_memory(struct kvm_vm *vm, u64 size)
{
	u64 low = size < LOW ? size : LOW;
	u32 as;

	for (as = 0; as < 2; as++) {
		bench_slot(vm, as << 16, 0, 0, low, bench_unbacked(low));
		if (size > low)
			bench_slot(vm, as << 16 | 1, 0, HIGH_GPA, size - low,
				   bench_unbacked(size - low));
	}
}

/* Page @i of @n, of a guest's memory: spread all over, or at its beginning. */
static u64 page_at(u64 size, u64 i, u64 n, bool spread)
{
	u64 gpa = spread ? size / 4096 / n * i * 4096 : i * 4096;

	if (gpa >= LOW)
		gpa += HIGH_GPA - LOW;
	return gpa / 4096;
}

static void track(struct kvm_vm *vm, u64 size, u32 pages, bool spread)
{
	u32 i;

	if (!spread) {
		bench_do(KPT_BENCH_ADD, vm, 0, pages);
		return;
	}
	for (i = 0; i < pages; i++)
		bench_do(KPT_BENCH_ADD, vm, page_at(size, i, pages, spread), 1);
}

static void with(u64 size, u32 pages, bool spread)
{
	const char *how = pages == 1 ? "" : spread ? ", spread" : ", in a row";
	struct kvm_vm *vm = vm_create_barebones();
	u64 before, counters;

	guest_memory(vm, size);
	before = kernel_memory();
	counters = bench_counter_bytes(vm);
	bench_do(KPT_BENCH_REGISTER, vm, 0, 1);
	track(vm, size, pages, spread);
	before = kernel_memory() - before + counters;
	counters = bench_counter_bytes(vm);
	bench_value("bytes", counters,
		    "memory: counters, %u page%s%s, %lu GiB guest", pages,
		    pages > 1 ? "s" : "", how, (unsigned long)(size / GiB));
	bench_value("bytes", before,
		    "memory: all, %u page%s%s, %lu GiB guest", pages,
		    pages > 1 ? "s" : "", how, (unsigned long)(size / GiB));
	bench_do(KPT_BENCH_UNREGISTER, vm, 0, 1);
	kvm_vm_free(vm);
}

void bench_memory(void)
{
	static const u64 sizes[] = { GiB, 64 * GiB, 1024 * GiB };
	static const u32 pages[] = { 1, 1000, 100000 };
	u32 i, k, spread;

	bench_why = "other slab memory of the kernel";
	/* Under shadow paging KVM itself needs the counters, and more. */
	for (i = 0; i < ARRAY_SIZE(sizes) - !bench_nested; i++)
		for (k = 0; k < ARRAY_SIZE(pages); k++)
			for (spread = 0; spread < (pages[k] == 1 ? 1 : 2); spread++)
				with(sizes[i], pages[k], spread);
}
