// SPDX-License-Identifier: GPL-2.0-only
/*
 * A 64-bit guest that builds, edits and switches its page tables all the time.
 * Under shadow paging every one of its tables is write-protected by KVM through
 * the tracker.  It ends with the right memory whoever the tracker is: the
 * module from the beginning, half-way on, or half-way only.
 *
 * The guest has SPACES address spaces.  Each maps WINDOW pages of virtual memory
 * to some of DATA data pages, with tables of its own.  Guest and host run the
 * same sequence of random steps; the host only does the arithmetic.
 */
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "kpt_lib.h"

#define SPACES		4
#define WINDOW		64
#define DATA		32
#define TABLES		(SPACES * 8)
#define NPAGES		(DATA + TABLES)
#define STAGES		8
#define PER_STAGE	400

#define WINDOW_GVA	0x3f0040000000ULL	/* an entry of the top of its own */

#define P		0x001
#define W		0x002
#define U		0x004
#define PS		0x080

static u64 data_gva(u64 i) { return KPT_GVA + i * 4096; }
static u64 table_gva(u64 i) { return KPT_GVA + (DATA + i) * 4096; }
static u64 table_gpa(u64 i) { return KPT_GPA + (DATA + i) * 4096; }

static u64 next(u64 *state)
{
	*state = *state * 6364136223846793005ULL + 1442695040888963407ULL;
	return *state >> 33;
}

/* What happens in a step, the same for both sides. */
struct step {
	u32 space, page, data, off, op;
	u64 value;
};

static struct step random_step(u64 *rng)
{
	struct step s;

	s.space = next(rng) % SPACES;
	s.page = next(rng) % WINDOW;
	s.data = next(rng) % DATA;
	s.off = next(rng) % 512;
	s.op = next(rng) % 8;
	s.value = next(rng) << 32 | next(rng);
	return s;
}

/* ---- the guest ---- */

struct space {
	u64 cr3;
	u64 *pt;	/* the leaf table in use */
	u64 *pd;
	u64 pts[2];	/* two leaf tables to alternate: tables 6 and 7 */
	u32 which;
};

static struct space spaces[SPACES];
static u64 kernel_cr3, top_levels;

static u64 read_cr3(void)
{
	u64 v;

	asm volatile("mov %%cr3, %0" : "=r"(v));
	return v;
}

static void write_cr3(u64 v)
{
	asm volatile("mov %0, %%cr3" : : "r"(v) : "memory");
}

static void flush_page(u64 va)
{
	asm volatile("invlpg (%0)" : : "r"(va) : "memory");
}

static u32 index_at(u64 va, u32 level)
{
	return (va >> (12 + 9 * (level - 1))) & 511;
}

/* Tables of space s: t + 0 the top, t + 1... down to the leaf. */
static void build_space(u32 s, u64 *kernel_top, u64 *kernel_next)
{
	u32 t = s * 8, level, k;
	u64 *table = (u64 *)table_gva(t), *low;

	for (k = 0; k < 512; k++)
		table[k] = kernel_top[k];
	spaces[s].cr3 = table_gpa(t);
	for (level = top_levels; level > 2; level--) {
		low = (u64 *)table_gva(++t);
		for (k = 0; k < 512; k++)
			low[k] = 0;
		/* With five levels the guest's own part shares the top entry. */
		if (level == 5) {
			for (k = 0; k < 512; k++)
				low[k] = kernel_next[k];
		}
		table[index_at(WINDOW_GVA, level)] = table_gpa(t) | P | W | U;
		table = low;
	}
	spaces[s].pd = table;
	for (k = 0; k < 2; k++)
		spaces[s].pts[k] = s * 8 + 6 + k;
	spaces[s].pt = (u64 *)table_gva(spaces[s].pts[0]);
	for (k = 0; k < 512; k++)
		spaces[s].pt[k] = 0;
	/* every page of the window maps some data page */
	for (k = 0; k < WINDOW; k++)
		spaces[s].pt[k] = (KPT_GPA + (k % DATA) * 4096) | P | W | U;
	table[index_at(WINDOW_GVA, 2)] = table_gpa(spaces[s].pts[0]) | P | W | U;
}

static void guest_step(const struct step *st)
{
	struct space *sp = &spaces[st->space];
	u64 va = WINDOW_GVA + st->page * 4096;
	volatile u64 *p = (u64 *)(va + st->off * 8);
	u64 *table, entry, *other;
	u32 k;

	if (read_cr3() != sp->cr3)
		write_cr3(sp->cr3);

	switch (st->op) {
	case 0:	/* map the page elsewhere */
	case 1:
		sp->pt[st->page] = (KPT_GPA + st->data * 4096) | P | W | U;
		flush_page(va);
		break;
	case 2:	/* unmap it, then map it */
		sp->pt[st->page] = 0;
		flush_page(va);
		sp->pt[st->page] = (KPT_GPA + st->data * 4096) | P | W | U;
		break;
	case 3:	/* another leaf table with the same contents */
		sp->which ^= 1;
		other = (u64 *)table_gva(sp->pts[sp->which]);
		for (k = 0; k < WINDOW; k++)
			other[k] = sp->pt[k];
		sp->pt = other;
		sp->pd[index_at(WINDOW_GVA, 2)] =
			table_gpa(sp->pts[sp->which]) | P | W | U;
		write_cr3(sp->cr3);
		break;
	case 4:	/* read-only and writable again */
		entry = sp->pt[st->page];
		sp->pt[st->page] = entry & ~(u64)W;
		flush_page(va);
		GUEST_ASSERT(*p == *(volatile u64 *)
			     (data_gva(((entry & 0xffffffffff000) - KPT_GPA) / 4096)
			      + st->off * 8));
		sp->pt[st->page] = entry;
		flush_page(va);
		break;
	case 5:	/* back to the kernel's tables and here again */
		write_cr3(kernel_cr3);
		write_cr3(sp->cr3);
		break;
	case 6:	/* half an entry at a time, while it is not present */
		table = sp->pt;
		entry = (KPT_GPA + st->data * 4096) | P | W | U;
		((volatile u32 *)&table[st->page])[0] = 0;
		flush_page(va);
		((volatile u32 *)&table[st->page])[1] = entry >> 32;
		((volatile u32 *)&table[st->page])[0] = entry;
		break;
	}
	*p = st->value;
	GUEST_ASSERT_EQ(*p, st->value);
}

/*
 * Not on the stack: the guest runs on other top-level tables, but all of them
 * have the kernel's entries.
 */
static void guest_code(u64 levels, u64 top_gva)
{
	u64 rng = 42;
	u32 s, stage, i;
	struct step st;

	top_levels = levels;
	kernel_cr3 = read_cr3();
	for (s = 0; s < SPACES; s++)
		build_space(s, (u64 *)top_gva, (u64 *)(top_gva + 4096));

	for (stage = 1; stage <= STAGES; stage++) {
		for (i = 0; i < PER_STAGE; i++) {
			st = random_step(&rng);
			guest_step(&st);
		}
		GUEST_SYNC(stage);
	}
	write_cr3(kernel_cr3);
	GUEST_DONE();
}

/* ---- the host ---- */

static u64 model[DATA][512];
static u32 maps[SPACES][WINDOW];

static void model_stage(u64 *rng)
{
	struct step st;
	int i;

	for (i = 0; i < PER_STAGE; i++) {
		st = random_step(rng);
		if (st.op == 0 || st.op == 1 || st.op == 2 || st.op == 6)
			maps[st.space][st.page] = st.data;
		model[maps[st.space][st.page]][st.off] = st.value;
	}
}

static void check_memory(struct kvm_vm *vm, int stage)
{
	u64 *mem = addr_gpa2hva(vm, KPT_GPA);
	int i, k;

	for (i = 0; i < DATA; i++)
		for (k = 0; k < 512; k++)
			TEST_ASSERT(mem[i * 512 + k] == model[i][k],
				    "stage %d: page %d, word %d is %#lx, not %#lx",
				    stage, i, k, mem[i * 512 + k], model[i][k]);
}

static struct kvm_vcpu *vcpu;
static struct kvm_vm *vm;

static volatile bool ended;

static void *run_rest(void *arg)
{
	int stage;

	for (stage = (long)arg; stage <= STAGES; stage++)
		kpt_run_to(vcpu, stage);
	kpt_run_done(vcpu);
	ended = true;
	return NULL;
}

static void make(void)
{
	u64 top_gva = 0x7000000;
	int i, k;

	vm = kpt_vm(&vcpu, guest_code, NPAGES, VM_MEM_SRC_ANONYMOUS);
	/* the guest sees its own top-level table and the first one below it */
	virt_map(vm, top_gva, vm->mmu.pgd, 1);
	virt_map(vm, top_gva + 4096,
		 *(u64 *)addr_gpa2hva(vm, vm->mmu.pgd) & 0xffffffffff000, 1);
	for (i = 0; i < DATA; i++)
		for (k = 0; k < 512; k++)
			model[i][k] = 0;
	for (i = 0; i < SPACES; i++)
		for (k = 0; k < WINDOW; k++)
			maps[i][k] = k % DATA;
	vcpu_args_set(vcpu, 2, (u64)vm->mmu.pgtable_levels, top_gva);
}

/* How much KVM has tracked, in both memslots: table pages of the guest. */
static u64 tracked_by_kvm(void)
{
	return kpt_inspect(vm, 0, 0).slot_sum +
	       kpt_inspect(vm, 0, KPT_GFN).slot_sum;
}

static void run_stages(int attach_at, int detach_at)
{
	u64 rng = 42, most = 0;
	int stage;

	make();
	for (stage = 1; stage <= STAGES; stage++) {
		if (stage == attach_at)
			kpt_attach();
		if (stage == detach_at)
			kpt_detach();
		kpt_run_to(vcpu, stage);
		model_stage(&rng);
		check_memory(vm, stage);
		most = max(most, tracked_by_kvm());
	}
	kpt_run_done(vcpu);
	check_memory(vm, STAGES + 1);
	if (!kpt_tdp())
		TEST_ASSERT(most >= SPACES, "KVM tracked %lu tables only", most);
	else
		KPT_EQ(most, 0);
	kvm_vm_free(vm);
}

static void attached(void)
{
	kpt_attach();
	run_stages(0, 0);
	kpt_detach();
}

static void attached_half_way(void)
{
	run_stages(STAGES / 2 + 1, 0);
	kpt_detach();
}

static void detached_half_way(void)
{
	kpt_attach();
	run_stages(0, STAGES / 2 + 1);
}

/* The vCPU runs on while the tracker changes hands, and the VM dies in ours. */
static void while_running(void)
{
	u64 cycles = kpt_env("KPT_CYCLES", 2), done = 0, guests = 0, rng;
	pthread_t thread;
	int i;

	while (done < cycles) {
		make();
		ended = false;
		pthread_create(&thread, NULL, run_rest, (void *)1L);
		/* as many as there is time for, and two at least */
		for (i = 0; done < cycles && (i < 2 || !ended); i++, done++) {
			kpt_attach();
			usleep(100000);
			kpt_detach();
			usleep(100000);
		}
		kpt_attach();
		pthread_join(thread, NULL);
		rng = 42;
		for (i = 0; i < STAGES; i++)
			model_stage(&rng);
		check_memory(vm, STAGES);
		kvm_vm_free(vm);
		kpt_detach();
		if (++guests % 10 == 0)
			printf("# %lu cycles, %lu guests\n", done, guests);
	}
	printf("# %lu cycles under %lu guests\n", done, guests);
}

/*
 * Tables of the guest that another module tracks as well: its edits arrive,
 * and KVM sees them too.
 */
static void tracked_twice(void)
{
	u64 rng = 42;
	int stage, id, i;
	u64 own[TABLES];

	/*
	 * The processor walks the guest's tables with write accesses, and KVM
	 * has no instruction to emulate for those: under nested paging a guest
	 * stops where its own tables are write-protected, under C as well.
	 */
	if (kpt_tdp())
		kpt_skip("page tables in use can be tracked under shadow paging only");

	kpt_attach();
	make();
	for (stage = 1; stage <= STAGES / 2; stage++) {
		kpt_run_to(vcpu, stage);
		model_stage(&rng);
	}
	id = kpt_reg(kpt_stock, vm, KPT_NOTIFIER, 0);
	TEST_ASSERT(id >= 0, "register: %d", id);
	for (i = 0; i < TABLES; i++) {
		own[i] = kpt_count(vm, KPT_GFN + DATA + i);
		KPT_OK(kpt_add(vm, KPT_GFN + DATA + i));
		KPT_EQ(kpt_count(vm, KPT_GFN + DATA + i), own[i] + 1);
	}
	for (; stage <= STAGES; stage++) {
		kpt_run_to(vcpu, stage);
		model_stage(&rng);
		check_memory(vm, stage);
	}
	/* a quarter of the steps edits an entry, at least */
	TEST_ASSERT(kpt_counters(kpt_stock, id).writes >
		    STAGES / 2 * PER_STAGE / 4, "%llu events",
		    kpt_counters(kpt_stock, id).writes);
	for (i = 0; i < TABLES; i++) {
		u32 n = kpt_count(vm, KPT_GFN + DATA + i);

		TEST_ASSERT(n >= 1, "table %d: the count is lost", i);
		KPT_OK(kpt_remove(vm, KPT_GFN + DATA + i));
		KPT_EQ(kpt_count(vm, KPT_GFN + DATA + i), n - 1);
		KPT_REFUSED(vm, KPT_GFN + DATA + i,
			    kpt_remove(vm, KPT_GFN + DATA + i), ENOENT);
	}
	kpt_run_done(vcpu);
	KPT_OK(kpt_unreg(kpt_stock, id));
	kvm_vm_free(vm);
	kpt_detach();
}

/* The guest's edits of tables that only KVM tracks are told nobody. */
static void tracked_by_kvm_alone(void)
{
	int stage, id;
	u64 edits;

	if (kpt_tdp())
		kpt_skip("KVM tracks page tables under shadow paging only");

	kpt_attach();
	make();
	id = kpt_reg(kpt_stock, vm, KPT_NOTIFIER, 0);
	TEST_ASSERT(id >= 0, "register: %d", id);
	edits = vm_get_stat(vm, mmu_pte_write);
	for (stage = 1; stage <= STAGES; stage++)
		kpt_run_to(vcpu, stage);
	edits = vm_get_stat(vm, mmu_pte_write) - edits;
	TEST_ASSERT(edits > STAGES, "%lu edits emulated only", edits);
	TEST_ASSERT(tracked_by_kvm() > 1, "KVM tracks nothing");
	KPT_EQ(kpt_counters(kpt_stock, id).writes, 0);
	kpt_run_done(vcpu);
	KPT_OK(kpt_unreg(kpt_stock, id));
	kvm_vm_free(vm);
	kpt_detach();
}

static void by_c(void)
{
	run_stages(0, 0);
}

static const struct kpt_test tests[] = {
	{ "the guest's memory under the C tracker", by_c },
	{ "the guest's memory under the module", attached },
	{ "the module attached half-way", attached_half_way, 120 },
	{ "the module detached half-way", detached_half_way, 120 },
	{ "attached and detached while the guest runs", while_running, 120 },
	{ "the guest's tables tracked by KVM and by another module",
	  tracked_twice },
	{ "the guest's tables tracked by KVM alone are nobody's business",
	  tracked_by_kvm_alone },
};

int main(void)
{
	return kpt_main(tests, ARRAY_SIZE(tests), KPT_WANT_C);
}
