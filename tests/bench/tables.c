// SPDX-License-Identifier: GPL-2.0-only
/*
 * Shadow paging: a guest that does to its page tables what the kernel under a
 * build does.  A shell forks a child (tables copied, pages shared read-only until
 * written), the child replaces itself by a compiler (all tables dropped, new ones
 * filled by demand faults), two of these run in turn (context switches), and exit
 * (everything freed, to be used again as tables or as data).
 *
 * KVM shadows the tables and write-protects them through the tracker.  The
 * guest takes the time itself, and checks what it reads.
 */
#include "bench.h"
#include "kpt_lib.h"

#define POOL_PAGES	2048
#define JOBS		12		/* pairs of children */
#define TURNS		6		/* of each of a pair */
#define SHELL_PAGES	48
#define TEXT_PAGES	40		/* of the compiler, shared by all of it */
#define HEAP_PAGES	72

#define USER_GVA	0x3f0040000000ULL	/* an entry of the top of its own */
#define TOP_GVA		0x3e0000000000ULL	/* the library's own tables */
#define TABLES		3			/* leaf tables of a process */

/* Where pages are, in pages from USER_GVA: one leaf table each. */
#define TEXT_AT		0
#define HEAP_AT		512
#define STACK_AT	1024

#define P		0x001ULL
#define W		0x002ULL
#define U		0x004ULL
#define ADDR		0x000ffffffffff000ULL

/* ---- memory of the guest ---- */

static u16 free_pages[POOL_PAGES], users[POOL_PAGES];
static u32 nr_free;

static u64 *page_of(u64 entry)
{
	return (u64 *)((entry & ADDR) - BENCH_GPA + BENCH_GVA);
}

static u64 address_of(const void *page)
{
	return (u64)page - BENCH_GVA + BENCH_GPA;
}

static u16 *users_of(const void *page)
{
	return &users[((u64)page - BENCH_GVA) / 4096];
}

static void zero(void *page)
{
	u64 n = 512;

	asm volatile("rep stosq" : "+D"(page), "+c"(n) : "a"(0) : "memory");
}

static void copy(void *to, const void *from)
{
	u64 n = 512;

	asm volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}

static void *get_page(void)
{
	void *page;

	GUEST_ASSERT(nr_free);
	page = (void *)(BENCH_GVA + free_pages[--nr_free] * 4096ULL);
	*users_of(page) = 1;
	return page;
}

static void *get_zeroed(void)
{
	void *page = get_page();

	zero(page);
	return page;
}

static void put_page(void *page)
{
	if (!--*users_of(page))
		free_pages[nr_free++] = ((u64)page - BENCH_GVA) / 4096;
}

/* ---- processes of the guest ---- */

struct process {
	u64 cr3;
	void *upper[4];		/* the tables above the leaves */
	u32 nr_upper;
	u64 *leaf[TABLES];
};

static struct process shell, children[2], *current;
static u64 text_pages[TEXT_PAGES];
static u64 kernel_cr3, levels;
static u64 faults;

static u32 index_at(u64 va, u32 level)
{
	return (va >> (12 + 9 * (level - 1))) & 511;
}

static void make_tables(struct process *p)
{
	u64 *from = (u64 *)TOP_GVA, *table, *low;
	u32 level, i;

	p->nr_upper = 0;
	table = get_page();
	copy(table, from);
	p->upper[p->nr_upper++] = table;
	p->cr3 = address_of(table);
	for (level = levels; level > 2; level--) {
		low = get_zeroed();
		/* With five levels the kernel's part is in the same entry. */
		if (level == 5)
			copy(low, from + 512);
		table[index_at(USER_GVA, level)] = address_of(low) | P | W | U;
		p->upper[p->nr_upper++] = low;
		table = low;
	}
	for (i = 0; i < TABLES; i++) {
		p->leaf[i] = get_zeroed();
		table[index_at(USER_GVA, 2) + i] =
			address_of(p->leaf[i]) | P | W | U;
	}
}

static void drop_tables(struct process *p)
{
	u64 entry;
	u32 i, k;

	for (i = 0; i < TABLES; i++) {
		for (k = 0; k < 512; k++) {
			entry = p->leaf[i][k];
			if (!entry)
				continue;
			p->leaf[i][k] = 0;
			put_page(page_of(entry));
		}
		put_page(p->leaf[i]);
	}
	for (i = 0; i < p->nr_upper; i++)
		put_page(p->upper[i]);
}

static void switch_to(struct process *p)
{
	current = p;
	asm volatile("mov %0, %%cr3" : : "r"(p->cr3) : "memory");
}

static void flush_page(u64 va)
{
	asm volatile("invlpg (%0)" : : "r"(va) : "memory");
}

/* Demand faults and copy on write. */
static void on_fault(struct ex_regs *regs)
{
	u64 va, page, *entry, *fresh;

	asm volatile("mov %%cr2, %0" : "=r"(va));
	page = (va - USER_GVA) / 4096;
	GUEST_ASSERT(va >= USER_GVA && page < TABLES * 512);
	faults++;
	entry = &current->leaf[page / 512][page % 512];
	if (!*entry && page < TEXT_PAGES) {
		fresh = page_of(text_pages[page]);
		++*users_of(fresh);
		*entry = address_of(fresh) | P | U;
	} else if (!*entry) {
		fresh = get_zeroed();
		*entry = address_of(fresh) | P | W | U;
	} else if (*users_of(page_of(*entry)) == 1) {
		*entry |= W;
		flush_page(va);
	} else {
		fresh = get_page();
		copy(fresh, page_of(*entry));
		put_page(page_of(*entry));
		*entry = address_of(fresh) | P | W | U;
		flush_page(va);
	}
}

static volatile u64 *word(u64 page)
{
	return (u64 *)(USER_GVA + page * 4096 + (page % 64) * 8);
}

static void fork_to(struct process *child)
{
	struct process *parent = current;
	u64 *from, *to;
	u32 i, k;

	make_tables(child);
	for (i = 0; i < TABLES; i++) {
		from = parent->leaf[i];
		to = child->leaf[i];
		for (k = 0; k < 512; k++) {
			if (!from[k])
				continue;
			if (from[k] & W)
				from[k] &= ~W;
			++*users_of(page_of(from[k]));
			to[k] = from[k];
		}
	}
	/* the parent's writable translations must go */
	switch_to(parent);
}

/* The child between fork and exec: a little of its stack and data. */
static void before_exec(u32 job)
{
	u32 i;

	for (i = 0; i < 3; i++) {
		GUEST_ASSERT(*word(HEAP_AT + i) >> 32 == i);
		*word(STACK_AT + i) = job;
		*word(HEAP_AT + i) = job;
	}
}

static void exec(void)
{
	struct process old = *current;

	make_tables(current);
	switch_to(current);
	drop_tables(&old);
}

/* A turn of the compiler. */
static void compile(u32 job, u32 turn)
{
	u32 i, per = HEAP_PAGES / TURNS;

	for (i = turn; i < TEXT_PAGES; i += 2)
		GUEST_ASSERT(*word(TEXT_AT + i) == i);
	for (i = 0; i < per; i++) {
		*word(HEAP_AT + turn * per + i) = job + i;
		*word(STACK_AT + i % 4) = i;
	}
	for (i = 0; i < per; i++)
		GUEST_ASSERT(*word(HEAP_AT + turn * per + i) == job + i);
}

/* The shell goes on after fork: its pages are its own again as it writes. */
static void shell_writes(u32 job)
{
	u32 i;

	for (i = 0; i < 6; i++) {
		*word(HEAP_AT + i) = (u64)i << 32 | job;
		*word(STACK_AT + i % 2) = job;
	}
}

static void guest(u64 nr_levels)
{
	u32 job, turn, i, k;
	u64 start;

	levels = nr_levels;
	asm volatile("mov %%cr3, %0" : "=r"(kernel_cr3));
	for (i = 0; i < POOL_PAGES; i++)
		free_pages[nr_free++] = i;
	for (i = 0; i < TEXT_PAGES; i++) {
		u64 *page = get_zeroed();

		page[i % 64] = i;
		text_pages[i] = address_of(page);
	}
	make_tables(&shell);
	switch_to(&shell);
	for (i = 0; i < SHELL_PAGES; i++)
		*word(HEAP_AT + i) = (u64)i << 32;

	GUEST_SYNC(0);
	start = rdtsc();
	for (job = 1; job <= JOBS; job++) {
		for (i = 0; i < 2; i++) {
			fork_to(&children[i]);
			shell_writes(job);
			switch_to(&children[i]);
			before_exec(job);
			exec();
			switch_to(&shell);
		}
		for (turn = 0; turn < TURNS; turn++) {
			for (i = 0; i < 2; i++) {
				switch_to(&children[i]);
				compile(job, turn);
			}
		}
		switch_to(&shell);
		for (k = 0; k < 2; k++)
			drop_tables(&children[k]);
	}
	start = rdtsc() - start;
	GUEST_SYNC(start);
	GUEST_SYNC(faults);
}

/* ---- the host ---- */

static void with(bool notifier, const char *name)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u64 took, n, writes;

	vm = __vm_create_with_one_vcpu(&vcpu, POOL_PAGES, guest);
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, BENCH_GPA,
				    BENCH_SLOT, POOL_PAGES, 0);
	virt_map(vm, BENCH_GVA, BENCH_GPA, POOL_PAGES);
	/* the top, and what its first entry leads to */
	virt_map(vm, TOP_GVA, vm->mmu.pgd, 1);
	virt_map(vm, TOP_GVA + 4096,
		 *(u64 *)addr_gpa2hva(vm, vm->mmu.pgd) & ADDR, 1);
	vm_install_exception_handler(vm, PF_VECTOR, on_fault);
	vcpu_args_set(vcpu, 1, (u64)vm->mmu.pgtable_levels);
	if (notifier)
		bench_do(KPT_BENCH_REGISTER, vm, 0, 1);

	kpt_run_to(vcpu, 0);
	writes = vm_get_stat(vm, mmu_pte_write);
	TEST_ASSERT(kpt_run_sync(vcpu, &took), "no time");
	writes = vm_get_stat(vm, mmu_pte_write) - writes;
	TEST_ASSERT(kpt_run_sync(vcpu, &n) && n > 1000, "%lu faults", n);
	bench_value("insn", took, "page tables: like a build, %s", name);
	printf("# page tables, %s: %lu faults in the guest, %lu writes to tables emulated\n",
	       name, n, writes);
}

void bench_tables(void)
{
	if (bench_nested)
		return;
	bench_why = "timer interrupts, memory allocation";
	with(false, "0 notifiers");
	with(true, "1 notifier");
}
