// SPDX-License-Identifier: GPL-2.0-only
/* The hot reader: kvm_gfn_is_write_tracked(), which every write fault asks. */
#include "bench.h"
#include "kpt_lib.h"

#define SIZE	(64 * MiB)
#define SAMPLES	5
#define TRACKED	(BENCH_GFN + 7)
#define OTHER	(BENCH_GFN + 8)

/* Memslot @BENCH_SLOT of address space 1, which vCPUs in SMM see. */
#define SMM_SLOT (1 << 16 | BENCH_SLOT)

static void row(struct kvm_vm *vm, u32 as_id, u64 gfn, u32 flags, bool expected,
		const char *name)
{
	u64 ticks[SAMPLES];
	struct kpt_bench_run run = {
		.op = KPT_BENCH_READ, .vm_fd = vm->fd, .gfn = gfn,
		.as_id = as_id, .flags = flags, .nr = SAMPLES,
		.ticks = (u64)ticks,
	};

	bench_run(&run);
	TEST_ASSERT(run.result == expected, "%s: it says %u", name, run.result);
	bench_row("insn", ticks, SAMPLES, KPT_BENCH_CALLS,
		  "reader: %s", name);
}

void bench_reader(void)
{
	struct kvm_vm *vm = bench_vm(SIZE);

	row(vm, 0, TRACKED, KPT_BENCH_NO_SLOT, false, "memslot NULL");
	row(vm, 0, 1, 0, false, "page in no memslot");
	/* Under shadow paging every memslot has counters. */
	if (bench_nested)
		row(vm, 0, TRACKED, 0, false, "no counters, no tracker");

	bench_do(KPT_BENCH_REGISTER, vm, 0, 1);
	row(vm, 0, TRACKED, 0, false, "tracker registered, nothing tracked");
	bench_do(KPT_BENCH_ADD, vm, TRACKED, 1);
	row(vm, 0, OTHER, 0, false, "page untracked");
	row(vm, 0, TRACKED, 0, true, "page tracked");

	/* As QEMU does it: both address spaces have the memory. */
	bench_slot(vm, SMM_SLOT, 0, BENCH_GPA, SIZE, bench_unbacked(SIZE));
	row(vm, 0, OTHER, 0, false, "two address spaces, page untracked");
	row(vm, 0, TRACKED, 0, true, "two address spaces, page tracked");
	row(vm, 1, OTHER, 0, false, "two address spaces, in SMM, page untracked");
	row(vm, 1, TRACKED, 0, true, "two address spaces, in SMM, page tracked");
}
