// SPDX-License-Identifier: GPL-2.0-only
/* Registering and unregistering notifiers. */
#include "bench.h"
#include "kpt_lib.h"

#define VMS	3
#define FURTHER	7

static void with(u64 size, const char *name)
{
	u64 first[VMS], page[VMS], use[VMS], last[VMS];
	u64 more[VMS * FURTHER], less[VMS * FURTHER];
	u64 only[VMS], one_more[VMS * FURTHER];
	struct kvm_vm *vm;
	u32 i, k;

	for (i = 0; i < VMS; i++) {
		vm = bench_vm(size);
		bench_ticks(KPT_BENCH_REGISTER, vm, 0, 0, 1, &first[i]);
		bench_ticks(KPT_BENCH_ADD, vm, BENCH_GFN, 0, 1, &page[i]);
		use[i] = first[i] + page[i];
		bench_ticks(KPT_BENCH_REGISTER, vm, 0, 0, FURTHER,
			    &more[i * FURTHER]);
		bench_ticks(KPT_BENCH_UNREGISTER, vm, 0, 0, FURTHER,
			    &less[i * FURTHER]);
		bench_ticks(KPT_BENCH_UNREGISTER, vm, 0, 0, 1, &last[i]);
		bench_do(KPT_BENCH_REMOVE, vm, BENCH_GFN, 1);
		kvm_vm_free(vm);
		only[i] = first[i] + last[i];
		for (k = i * FURTHER; k < (i + 1) * FURTHER; k++)
			one_more[k] = more[k] + less[k];
	}
	bench_why = "memory allocation";
	bench_row("insn", first, VMS, 1, "register: first notifier, %s", name);
	bench_row("insn", use, VMS, 1, "register and first add, %s", name);
	bench_why = "memory allocation";
	bench_row("insn", more, VMS * FURTHER, 1,
		  "register: further notifier, %s", name);
	bench_why = "waits for an SRCU grace period, others run";
	bench_row("insn", less, VMS * FURTHER, 1,
		  "unregister: further notifier, %s", name);
	bench_row("insn", last, VMS, 1, "unregister: last notifier, %s", name);
	bench_row("insn", only, VMS, 1,
		  "register and unregister: only notifier, %s", name);
	bench_row("insn", one_more, VMS * FURTHER, 1,
		  "register and unregister: further notifier, %s", name);
}

void bench_notifiers(void)
{
	with(64 * MiB, "64 MiB guest");
	with(GiB, "1 GiB guest");
	with(64 * GiB, "64 GiB guest");
}
