// SPDX-License-Identifier: GPL-2.0-only
/*
 * kpt_bench PART...: measures with the C tracker and with kvm_page_track.ko, in
 * turn, KPT_ROUNDS times, and prints a line for each row and measurement:
 *
 *	@ IMPLEMENTATION <tab> ROUND <tab> UNIT <tab> MEDIAN <tab> MIN <tab> MAX
 *	<tab> MEAN <tab> SAMPLES <tab> ROW <tab> WHY
 *
 * WHY is what may differ from one measurement to the next.
 * scripts/bench/bench-report.py makes the table.  Needs kpt_bench.ko.
 */
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"
#include "kpt_lib.h"

#define MODULE	"kvm_page_track"
#define QUIRKS	"tcg_svm_quirks"

bool bench_rust, bench_nested;
int bench_dev;
const char *bench_why = "";
static u32 bench_round;

static const struct bench_part parts[] = {
	{ "reader", bench_reader },
	{ "pages", bench_pages },
	{ "ranges", bench_ranges },
	{ "notifiers", bench_notifiers },
	{ "memslots", bench_memslots },
	{ "writes", bench_writes, .no_quirks = true },
	{ "tables", bench_tables },
	{ "memory", bench_memory },
	{ "attach", bench_attach, .attaches = true },
};

static int compare(const void *a, const void *b)
{
	u64 x = *(u64 *)a, y = *(u64 *)b;

	return x < y ? -1 : x > y;
}

void bench_row(const char *unit, u64 *samples, u32 n, u32 per,
	       const char *fmt, ...)
{
	u64 *v = malloc(n * sizeof(*v));
	double sum = 0, d = per;
	va_list ap;
	u32 i;

	memcpy(v, samples, n * sizeof(*v));
	qsort(v, n, sizeof(*v), compare);
	for (i = 0; i < n; i++)
		sum += v[i];
	printf("@ %s\t%u\t%s\t%.10g\t%.10g\t%.10g\t%.10g\t%u\t",
	       bench_rust ? "rust" : "c", bench_round, unit,
	       (v[(n - 1) / 2] + v[n / 2]) / 2 / d, v[0] / d, v[n - 1] / d,
	       sum / n / d, n);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\t%s\n", bench_why);
	free(v);
}

void bench_load(const char *module)
{
	KPT_OK(kpt_mod_load(module));
}

void bench_unload(const char *module)
{
	KPT_OK(kpt_mod_unload_retry(module));
}

void bench_run(struct kpt_bench_run *run)
{
	int r = ioctl(bench_dev, KPT_BENCH_RUN, run);

	TEST_ASSERT(!r, "operation %u on page %#lx: %s", run->op,
		    (unsigned long)run->gfn, strerror(errno));
}

void bench_ticks(u32 op, struct kvm_vm *vm, u64 gfn, u64 step, u32 nr, u64 *ticks)
{
	struct kpt_bench_run run = {
		.op = op, .vm_fd = vm->fd, .gfn = gfn, .step = step, .nr = nr,
		.ticks = (u64)ticks,
	};

	bench_run(&run);
}

void bench_do(u32 op, struct kvm_vm *vm, u64 gfn, u32 nr)
{
	static u64 unused[KPT_BENCH_MAX];
	u32 n;

	for (; nr; nr -= n, gfn += n) {
		n = nr < KPT_BENCH_MAX ? nr : KPT_BENCH_MAX;
		bench_ticks(op, vm, gfn, 1, n, unused);
	}
}

u64 bench_events(void)
{
	u64 v;

	KPT_EQ(ioctl(bench_dev, KPT_BENCH_EVENTS, &v), 0);
	return v;
}

u64 bench_counter_bytes(struct kvm_vm *vm)
{
	struct kpt_bench_memory m = { .vm_fd = vm->fd };

	KPT_EQ(ioctl(bench_dev, KPT_BENCH_MEMORY, &m), 0);
	return m.bytes;
}

static u64 idle(void)
{
	u64 v;

	KPT_EQ(ioctl(bench_dev, KPT_BENCH_IDLE, &v), 0);
	return v;
}

void bench_settle(void)
{
	KPT_EQ(ioctl(bench_dev, KPT_BENCH_SETTLE), 0);
}

void bench_start(struct bench_time *t)
{
	bench_settle();
	/* The scheduler keeps who has just slept in its queue until it is idle. */
	usleep(10000);
	t->idle = idle();
	t->start = rdtsc();
}

u64 bench_stop(const struct bench_time *t)
{
	u64 ticks = rdtsc() - t->start;

	return ticks - (idle() - t->idle);
}

void *bench_unbacked(u64 size)
{
	void *mem = mmap(NULL, size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	TEST_ASSERT(mem != MAP_FAILED, "mmap: %s", strerror(errno));
	return mem;
}

void bench_slot(struct kvm_vm *vm, u32 slot, u32 flags, u64 gpa, u64 size, void *mem)
{
	int r = __vm_set_user_memory_region(vm, slot, flags, gpa, size, mem);

	TEST_ASSERT(!r, "memslot %#x, %lu MiB: %s", slot,
		    (unsigned long)(size / MiB), strerror(errno));
}

struct kvm_vm *bench_vm(u64 size)
{
	struct kvm_vm *vm = vm_create_barebones();

	bench_slot(vm, BENCH_SLOT, 0, BENCH_GPA, size, bench_unbacked(size));
	return vm;
}

void bench_guest(struct kvm_vcpu *vcpu)
{
	kpt_run_sync(vcpu, NULL);
}

/* In a process of its own, which leaves nothing behind. */
static bool run_part(const struct bench_part *part)
{
	int status;
	pid_t pid;

	/* What was left to be done, after a module was loaded or a VM closed, is. */
	sleep(2);
	fflush(NULL);
	pid = fork();
	TEST_ASSERT(pid >= 0, "fork: %s", strerror(errno));
	if (!pid) {
		struct sched_param high = { .sched_priority = 50 };

		/* Nothing runs that is not waited for. */
		TEST_ASSERT(!sched_setscheduler(0, SCHED_FIFO, &high),
			    "SCHED_FIFO: %s", strerror(errno));
		bench_dev = kpt_open("kpt_bench");
		part->run();
		fflush(NULL);
		_exit(0);
	}
	if (waitpid(pid, &status, 0) == pid && !status)
		return true;
	printf("# part %s, %s, round %u: exit status %#x\n", part->name,
	       bench_rust ? "Rust" : "C", bench_round, status);
	return false;
}

static bool wanted(const struct bench_part *part, int argc, char **argv)
{
	int i;

	for (i = 1; i < argc; i++)
		if (!strcmp(argv[i], part->name))
			return true;
	return false;
}

/* Probes in KVM that the part's guest does not need would be measured too. */
static bool run_without_quirks(const struct bench_part *part)
{
	bool good, quirks = part->no_quirks && kpt_mod_loaded(QUIRKS);

	if (quirks)
		bench_unload(QUIRKS);
	good = run_part(part);
	if (quirks)
		bench_load(QUIRKS);
	return good;
}

static bool run_all(bool rust, int argc, char **argv)
{
	bool good = true;
	u32 i;

	bench_rust = rust;
	if (rust)
		bench_load(MODULE);
	for (i = 0; i < ARRAY_SIZE(parts); i++)
		if (!parts[i].attaches && wanted(&parts[i], argc, argv))
			good &= run_without_quirks(&parts[i]);
	if (rust)
		bench_unload(MODULE);

	for (i = 0; rust && i < ARRAY_SIZE(parts); i++)
		if (parts[i].attaches && wanted(&parts[i], argc, argv))
			good &= run_part(&parts[i]);
	return good;
}

/*
 * Nothing else runs while a part does, unless it waits for it: neither what looks at
 * memory from time to time nor, when somebody has run for a second at real-time
 * priority, everybody else for some milliseconds (the scheduler's fair server).  In
 * these the worker of SRCU polls if its reader is whom it has preempted: up to 12
 * million instructions that belong to no row.
 */
static void quieten(void)
{
	static const char *const put[][2] = {
		{ "/sys/kernel/debug/sched/fair_server/cpu0/runtime", "0" },
		{ "/sys/module/damon_stat/parameters/enabled", "N" },
		{ "/proc/sys/vm/compaction_proactiveness", "0" },
	};
	u32 i;

	for (i = 0; i < ARRAY_SIZE(put); i++) {
		int r = kpt_put(put[i][0], put[i][1]);

		TEST_ASSERT(!r || r == -ENOENT, "%s: %d", put[i][0], r);
	}
}

int main(int argc, char **argv)
{
	u32 rounds = kpt_env("KPT_ROUNDS", 3);
	bool good = true;

	setvbuf(stdout, NULL, _IOLBF, 0);
	bench_nested = kpt_tdp();
	bench_load("kpt_bench");
	quieten();
	for (bench_round = 1; bench_round <= rounds; bench_round++) {
		/* Each is first in every other round. */
		good &= run_all(bench_round % 2 == 0, argc, argv);
		good &= run_all(bench_round % 2 == 1, argc, argv);
		printf("# round %u of %u done\n", bench_round, rounds);
	}
	bench_unload("kpt_bench");
	return !good;
}
