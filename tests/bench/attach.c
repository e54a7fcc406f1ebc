// SPDX-License-Identifier: GPL-2.0-only
/*
 * Attaching and detaching beside virtual machines that the module knows.  There
 * is nothing to compare with: C is always there.
 */
#include "bench.h"
#include "kpt_lib.h"

#define MODULE	"kvm_page_track"
#define MOST	50

/* Ticks of the clock on the wall, idle ones included, in microseconds. */
static u64 wall(const struct bench_time *t)
{
	return (rdtsc() - t->start) / 1000;
}

static void with(u32 vms, const char *name)
{
	struct kvm_vm *vm[MOST];
	struct bench_time t;
	u64 insn, us;
	u32 i;

	for (i = 0; i < vms; i++)
		vm[i] = bench_vm(64 * MiB);

	bench_start(&t);
	bench_load(MODULE);
	us = wall(&t);
	insn = bench_stop(&t);
	bench_value("insn", insn, "attach: %s", name);
	bench_value("us", us, "attach, elapsed: %s", name);

	for (i = 0; i < vms; i++) {
		bench_do(KPT_BENCH_REGISTER, vm[i], 0, 1);
		bench_do(KPT_BENCH_ADD, vm[i], BENCH_GFN, 1);
		bench_do(KPT_BENCH_REMOVE, vm[i], BENCH_GFN, 1);
		bench_do(KPT_BENCH_UNREGISTER, vm[i], 0, 1);
	}

	bench_start(&t);
	bench_unload(MODULE);
	us = wall(&t);
	insn = bench_stop(&t);
	bench_value("insn", insn, "detach: %s", name);
	bench_value("us", us, "detach, elapsed: %s", name);
	for (i = 0; i < vms; i++)
		kvm_vm_free(vm[i]);
}

void bench_attach(void)
{
	bench_why = "grace periods of RCU Tasks, others run";
	with(0, "0 VMs");
	with(1, "1 VM");
	with(MOST, "50 VMs");
}
