// SPDX-License-Identifier: GPL-2.0-only
/*
 * Guest writes, end to end: the guest reads the clock before and after each.
 * Emulated writes are made with KVM's forced emulation prefix.
 */
#include "bench.h"
#include "kpt_lib.h"

#define WRITES	200
#define NPAGES	16
#define TRACKED	(BENCH_GVA)
#define OTHER	(BENCH_GVA + 0x1000)

enum { NOTHING, PLAIN, FORCED };

static u64 ticks[WRITES], target;
static u32 kind;

static void write_plain(u64 value)
{
	*(volatile u64 *)target = value;
}

static void write_forced(u64 value)
{
	asm volatile(KVM_FEP "mov %1, (%0)"
		     : : "r"(target), "r"(value) : "memory");
}

/* Separate loops: no branch inside what is measured. */
#define MEASURE(what) do {						\
	u32 __i;							\
									\
	for (__i = 0; __i < WRITES; __i++) {				\
		u64 __t = rdtsc();					\
									\
		what;							\
		ticks[__i] = rdtsc() - __t;				\
	}								\
} while (0)

static void guest(void)
{
	for (;;) {
		switch (READ_ONCE(kind)) {
		case NOTHING:
			MEASURE(asm volatile("" : : : "memory"));
			break;
		case PLAIN:
			MEASURE(write_plain(__i));
			break;
		case FORCED:
			MEASURE(write_forced(__i));
			break;
		}
		GUEST_SYNC(0);
	}
}

static struct kvm_vm *vm;
static struct kvm_vcpu *vcpu;
static u64 nothing;

static void measure(u32 what, u64 where)
{
	kind = what;
	target = where;
	sync_global_to_guest(vm, kind);
	sync_global_to_guest(vm, target);
	bench_guest(vcpu);
	sync_global_from_guest(vm, ticks);
}

static void row(u32 what, u64 where, u64 events, const char *name)
{
	u64 before;
	u32 i;

	/* once for nothing, that everything is mapped */
	measure(what, where);
	before = bench_events();
	measure(what, where);
	KPT_EQ(bench_events() - before, events);
	for (i = 0; i < WRITES; i++)
		ticks[i] -= nothing < ticks[i] ? nothing : ticks[i];
	bench_row("insn", ticks, WRITES, 1, "%s", name);
}

void bench_writes(void)
{
	/* C calls every notifier for every emulated write in the VM. */
	u64 unwanted = bench_rust ? 0 : WRITES;
	bool forced;

	KPT_OK(kpt_put("/sys/module/kvm/parameters/force_emulation_prefix", "1"));
	forced = kvm_is_forced_emulation_enabled();
	TEST_ASSERT(forced, "no forced emulation");

	vm = __vm_create_with_one_vcpu(&vcpu, NPAGES, guest);
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, BENCH_GPA,
				    BENCH_SLOT, NPAGES, 0);
	virt_map(vm, BENCH_GVA, BENCH_GPA, NPAGES);

	measure(NOTHING, OTHER);
	measure(NOTHING, OTHER);
	nothing = ticks[WRITES / 2];

	row(FORCED, OTHER, 0, "emulated write: untracked page, 0 notifiers");
	bench_do(KPT_BENCH_REGISTER, vm, 0, 1);
	row(FORCED, OTHER, unwanted,
	    "emulated write: untracked page, 1 notifier, nothing tracked");
	bench_do(KPT_BENCH_ADD, vm, BENCH_GFN, 1);
	row(PLAIN, OTHER, 0, "guest write: untracked page of a VM with trackers");
	row(PLAIN, TRACKED, WRITES, "guest write: tracked page, 1 notifier");
	row(FORCED, OTHER, unwanted, "emulated write: untracked page, 1 notifier");
	bench_do(KPT_BENCH_REGISTER, vm, 0, 7);
	row(PLAIN, TRACKED, 8 * WRITES, "guest write: tracked page, 8 notifiers");
	row(FORCED, OTHER, 8 * unwanted,
	    "emulated write: untracked page, 8 notifiers");
}
