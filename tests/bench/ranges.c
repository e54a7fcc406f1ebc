// SPDX-License-Identifier: GPL-2.0-only
/*
 * Many pages at once: C has single calls only, the module may have
 * kvm_page_track_add_range().
 */
#include <sys/mman.h>

#include "bench.h"
#include "kpt_lib.h"

#define PAGES	1000
#define SIZE	((PAGES + 512) * 4096)
#define TIMES	3

static void guest(void)
{
	volatile u8 *p;

	for (;;) {
		for (p = (u8 *)BENCH_GVA; p < (u8 *)BENCH_GVA + PAGES * 4096;
		     p += 4096)
			*p = 1;
		GUEST_SYNC(0);
	}
}

static u64 sum(const u64 *ticks)
{
	u64 s = 0;
	u32 i;

	for (i = 0; i < PAGES; i++)
		s += ticks[i];
	return s;
}

static u64 one_by_one(struct kvm_vm *vm, u32 op)
{
	u64 ticks[PAGES];

	bench_ticks(op, vm, BENCH_GFN, 1, PAGES, ticks);
	return sum(ticks);
}

static u64 at_once(struct kvm_vm *vm, u32 op)
{
	u64 ticks;
	struct kpt_bench_run run = {
		.op = op, .vm_fd = vm->fd, .gfn = BENCH_GFN, .pages = PAGES,
		.nr = 1, .ticks = (u64)&ticks,
	};

	bench_run(&run);
	return ticks;
}

static bool module_has_ranges(void)
{
	struct kvm_vm *vm = bench_vm(MiB);
	u64 ticks;
	struct kpt_bench_run none = {
		.op = KPT_BENCH_ADD_RANGE, .vm_fd = vm->fd, .gfn = BENCH_GFN,
		.nr = 1, .ticks = (u64)&ticks,
	};
	bool has = !ioctl(bench_dev, KPT_BENCH_RUN, &none) || errno != ENOENT;

	kvm_vm_free(vm);
	return has;
}

static void with(bool ranges, bool mapped, const char *how)
{
	u64 adds[TIMES], removes[TIMES], flushes[TIMES];
	const char *what = mapped ? "mapped" : "unmapped";
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u32 i;

	vm = __vm_create_with_one_vcpu(&vcpu, SIZE / 4096, guest);
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, BENCH_GPA,
				    BENCH_SLOT, SIZE / 4096, 0);
	virt_map(vm, BENCH_GVA, BENCH_GPA, SIZE / 4096);
	bench_do(KPT_BENCH_REGISTER, vm, 0, 1);
	bench_do(KPT_BENCH_ADD, vm, BENCH_GFN + PAGES, 1);

	for (i = 0; i < TIMES; i++) {
		bench_guest(vcpu);
		if (!mapped)
			TEST_ASSERT(!madvise(addr_gpa2hva(vm, BENCH_GPA), PAGES * 4096,
					     MADV_DONTNEED), "madvise: %d", errno);
		flushes[i] = vm_get_stat(vm, remote_tlb_flush_requests);
		adds[i] = ranges ? at_once(vm, KPT_BENCH_ADD_RANGE) :
				   one_by_one(vm, KPT_BENCH_ADD);
		flushes[i] = vm_get_stat(vm, remote_tlb_flush_requests) - flushes[i];
		removes[i] = ranges ? at_once(vm, KPT_BENCH_REMOVE_RANGE) :
				      one_by_one(vm, KPT_BENCH_REMOVE);
	}
	bench_row("insn", adds, TIMES, 1, "1,000 %s pages: add, %s", what, how);
	bench_row("flushes", flushes, TIMES, 1,
		  "1,000 %s pages: remote TLB flushes, %s", what, how);
	bench_row("insn", removes, TIMES, 1, "1,000 %s pages: remove, %s", what,
		  how);
	kvm_vm_free(vm);
}

void bench_ranges(void)
{
	bench_why = "timer interrupts";
	with(false, true, "one by one");
	if (bench_rust && !module_has_ranges())
		return;
	with(bench_rust, true, "as a range");
	with(bench_rust, false, "as a range");
}
