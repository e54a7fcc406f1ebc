/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the parts of the bench share: rows, the stopwatch module, VMs.
 *
 * Every part measures the same things with the C tracker and with the module
 * attached; bench.c attaches, detaches and repeats.  A part names a row and
 * gives the samples it has of it; the row's value is their median.
 */
#ifndef BENCH_H
#define BENCH_H

#include "kvm_util.h"
#include "processor.h"
#include "kpt_bench.h"

#define BENCH_GPA	0x40000000ULL
#define BENCH_GVA	0xc0000000ULL
#define BENCH_SLOT	10
#define BENCH_GFN	(BENCH_GPA >> 12)

#define MiB	(1ULL << 20)
#define GiB	(1ULL << 30)

/* The module is attached. */
extern bool bench_rust;
/* Nested paging. */
extern bool bench_nested;
/* /dev/kpt_bench, opened for each part. */
extern int bench_dev;
/* Why a row may differ from one measurement to the next. */
extern const char *bench_why;

struct bench_part {
	const char *name;
	void (*run)(void);
	bool attaches;	/* attaches and detaches by itself: nothing of C's */
	bool no_quirks;	/* its guest gets on without tcg_svm_quirks.ko */
};

void bench_reader(void);
void bench_pages(void);
void bench_ranges(void);
void bench_notifiers(void);
void bench_memslots(void);
void bench_writes(void);
void bench_tables(void);
void bench_memory(void);
void bench_attach(void);

/* Prints a row: the median of @n samples, each of @per calls. */
void bench_row(const char *unit, u64 *samples, u32 n, u32 per,
	       const char *fmt, ...) __attribute__((format(printf, 5, 6)));
/* The same with one sample. */
#define bench_value(unit, value, ...) do {				\
	u64 __v = (value);						\
									\
	bench_row(unit, &__v, 1, 1, __VA_ARGS__);			\
} while (0)

/* Modules: must succeed. */
void bench_load(const char *module);
void bench_unload(const char *module);

/* The stopwatch module. */
void bench_run(struct kpt_bench_run *run);
/* @nr calls of @op from @gfn on, each @step further. */
void bench_ticks(u32 op, struct kvm_vm *vm, u64 gfn, u64 step, u32 nr, u64 *ticks);
/* For preparation: the same, nobody looks at the time. */
void bench_do(u32 op, struct kvm_vm *vm, u64 gfn, u32 nr);
u64 bench_events(void);
u64 bench_counter_bytes(struct kvm_vm *vm);

/* Time of what a part does by itself: ticks without those of idleness. */
struct bench_time {
	u64 start, idle;
};

void bench_start(struct bench_time *t);
/* What was freed lazily is given back now, as it is before every start. */
void bench_settle(void);
u64 bench_stop(const struct bench_time *t);

/* Address space without memory behind it. */
void *bench_unbacked(u64 size);
/* A memslot of it; @slot also says which address space, in bits 16 and up. */
void bench_slot(struct kvm_vm *vm, u32 slot, u32 flags, u64 gpa, u64 size, void *mem);
/* A VM without vCPUs and one such memslot at BENCH_GPA. */
struct kvm_vm *bench_vm(u64 size);

/* Runs the guest to its next GUEST_SYNC() or GUEST_DONE(). */
void bench_guest(struct kvm_vcpu *vcpu);

#endif /* BENCH_H */
