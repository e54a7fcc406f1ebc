// SPDX-License-Identifier: GPL-2.0-only
/*
 * Counting, and every refused call: its errno, and that nothing changed.
 */
#include <string.h>
#include <unistd.h>

#include "kpt_lib.h"

#define NPAGES	16

static void guest_writes(void)
{
	u64 i;

	for (i = 1;; i++) {
		*(volatile u64 *)KPT_GVA = i;
		GUEST_SYNC(i);
	}
}

/* One guest write to page 0; returns how many events it made. */
static int write_once(struct kvm_vcpu *vcpu, int id)
{
	u64 before = kpt_counters(kpt_dev, id).writes, arg;
	u64 *mem = addr_gpa2hva(vcpu->vm, KPT_GPA);

	TEST_ASSERT(kpt_run_sync(vcpu, &arg), "the guest ended");
	KPT_EQ(*mem, arg);
	return kpt_counters(kpt_dev, id).writes - before;
}

static void n_adds_need_n_removes(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = kpt_vm(&vcpu, guest_writes, NPAGES,
				   VM_MEM_SRC_ANONYMOUS);
	int id = kpt_reg(kpt_dev, vm, KPT_NOTIFIER, 0);
	int lpage = kpt_inspect(vm, 0, KPT_GFN).lpage_2m;
	int i;

	TEST_ASSERT(id >= 0, "register: %d", id);
	KPT_EQ(write_once(vcpu, id), 0);
	for (i = 1; i <= 5; i++) {
		/* both spellings count alike */
		KPT_OK(kpt_call(kpt_dev, i & 1 ? KPT_OP_ADD_PAGE :
						 KPT_OP_WRITE_ADD, vm, KPT_GFN));
		KPT_EQ(kpt_count(vm, KPT_GFN), i);
		KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).slot_sum, i);
		KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).lpage_2m, lpage + i);
		KPT_EQ(write_once(vcpu, id), 1);
	}
	for (i = 4; i >= 0; i--) {
		KPT_OK(kpt_call(kpt_dev, i & 1 ? KPT_OP_REMOVE_PAGE :
						 KPT_OP_WRITE_REMOVE, vm,
				KPT_GFN));
		KPT_EQ(kpt_count(vm, KPT_GFN), i);
		KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).lpage_2m, lpage + i);
		KPT_EQ(write_once(vcpu, id), i ? 1 : 0);
	}
	KPT_REFUSED(vm, KPT_GFN, kpt_remove(vm, KPT_GFN), ENOENT);
	KPT_OK(kpt_unreg(kpt_dev, id));
	kvm_vm_free(vm);
}

static void pages_count_apart(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = kpt_vm(&vcpu, guest_writes, NPAGES,
				   VM_MEM_SRC_ANONYMOUS);
	int i, k;

	/* page i: i times, in turn */
	for (k = 1; k < NPAGES; k++)
		for (i = k; i < NPAGES; i++)
			KPT_OK(kpt_add(vm, KPT_GFN + i));
	for (i = 0; i < NPAGES; i++)
		KPT_EQ(kpt_count(vm, KPT_GFN + i), i);
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).slot_sum, NPAGES * (NPAGES - 1) / 2);
	for (i = 0; i < NPAGES; i++) {
		for (k = i; k; k--)
			KPT_OK(kpt_remove(vm, KPT_GFN + i));
		KPT_REFUSED(vm, KPT_GFN + i, kpt_remove(vm, KPT_GFN + i), ENOENT);
	}
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).slot_sum, 0);
	kvm_vm_free(vm);
}

static void the_limit_of_users(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = kpt_vm(&vcpu, guest_writes, NPAGES,
				   VM_MEM_SRC_ANONYMOUS);
	int lpage = kpt_inspect(vm, 0, KPT_GFN).lpage_2m;
	int id = kpt_reg(kpt_dev, vm, KPT_NOTIFIER, 0);
	u64 done;

	TEST_ASSERT(id >= 0, "register: %d", id);
	KPT_OK(kpt_call_n(kpt_dev, KPT_OP_ADD_PAGE, vm, KPT_GFN,
			  KPT_MAX_USERS - 1, &done));
	KPT_EQ(done, KPT_MAX_USERS - 1);
	KPT_OK(kpt_call(kpt_dev, KPT_OP_WRITE_ADD, vm, KPT_GFN));
	KPT_EQ(kpt_count(vm, KPT_GFN), KPT_MAX_USERS);
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).lpage_2m, lpage + KPT_MAX_USERS);

	KPT_REFUSED(vm, KPT_GFN, kpt_add(vm, KPT_GFN), EOVERFLOW);
	KPT_REFUSED(vm, KPT_GFN, kpt_call(kpt_dev, KPT_OP_WRITE_ADD, vm, KPT_GFN),
		    EOVERFLOW);
	KPT_REFUSED(vm, KPT_GFN, kpt_call(kpt_dev, KPT_OP_SLOT_ADD, vm, KPT_GFN),
		    EOVERFLOW);
	KPT_REFUSED(vm, KPT_GFN, kpt_call(kpt_stock, KPT_OP_WRITE_ADD, vm, KPT_GFN),
		    EOVERFLOW);
	/* the neighbour has a count of its own */
	KPT_OK(kpt_add(vm, KPT_GFN + 1));
	KPT_OK(kpt_remove(vm, KPT_GFN + 1));
	KPT_EQ(write_once(vcpu, id), 1);

	/* one off, one on, and full again */
	KPT_OK(kpt_remove(vm, KPT_GFN));
	KPT_OK(kpt_add(vm, KPT_GFN));
	KPT_REFUSED(vm, KPT_GFN, kpt_add(vm, KPT_GFN), EOVERFLOW);

	KPT_ERR(kpt_call_n(kpt_dev, KPT_OP_REMOVE_PAGE, vm, KPT_GFN,
			   KPT_MAX_USERS + 10, &done), ENOENT);
	KPT_EQ(done, KPT_MAX_USERS);
	KPT_EQ(kpt_count(vm, KPT_GFN), 0);
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).lpage_2m, lpage);
	KPT_EQ(write_once(vcpu, id), 0);
	KPT_OK(kpt_unreg(kpt_dev, id));
	kvm_vm_free(vm);
}

static void remove_of_an_untracked_page(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = kpt_vm(&vcpu, guest_writes, NPAGES,
				   VM_MEM_SRC_ANONYMOUS);
	static const u32 ops[] = {
		KPT_OP_REMOVE_PAGE, KPT_OP_WRITE_REMOVE, KPT_OP_SLOT_REMOVE,
	};
	int pass;
	u32 i;

	/* the second time its memslot has counters */
	for (pass = 0; pass < 2; pass++) {
		for (i = 0; i < ARRAY_SIZE(ops); i++)
			KPT_REFUSED(vm, KPT_GFN, kpt_call(kpt_dev, ops[i], vm,
							  KPT_GFN), ENOENT);
		KPT_REFUSED(vm, KPT_GFN, kpt_call(kpt_stock, KPT_OP_WRITE_REMOVE,
						  vm, KPT_GFN), ENOENT);
		if (!pass)
			KPT_OK(kpt_add(vm, KPT_GFN + 1));
	}
	KPT_EQ(kpt_count(vm, KPT_GFN + 1), 1);
	KPT_OK(kpt_remove(vm, KPT_GFN + 1));
	kvm_vm_free(vm);
}

/* A count that is KVM's own cannot be taken away by other modules. */
static void remove_of_a_page_only_kvm_tracks(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u64 gfn;
	u32 own;
	int i;

	if (kpt_tdp())
		kpt_skip("KVM tracks page tables under shadow paging only");

	vm = kpt_vm(&vcpu, guest_writes, NPAGES, VM_MEM_SRC_ANONYMOUS);
	kpt_run_to(vcpu, 1);
	/* the guest's top-level table */
	gfn = vm->mmu.pgd >> 12;
	own = kpt_count(vm, gfn);
	TEST_ASSERT(own > 0, "the guest's page table is not tracked by KVM");

	KPT_REFUSED(vm, gfn, kpt_remove(vm, gfn), ENOENT);
	KPT_REFUSED(vm, gfn, kpt_call(kpt_dev, KPT_OP_WRITE_REMOVE, vm, gfn), ENOENT);
	KPT_REFUSED(vm, gfn, kpt_call(kpt_dev, KPT_OP_SLOT_REMOVE, vm, gfn), ENOENT);
	KPT_REFUSED(vm, gfn, kpt_call(kpt_stock, KPT_OP_WRITE_REMOVE, vm, gfn),
		    ENOENT);

	/* ours come on top and go again */
	for (i = 1; i <= 3; i++) {
		KPT_OK(kpt_add(vm, gfn));
		KPT_EQ(kpt_count(vm, gfn), own + i);
	}
	kpt_run_to(vcpu, 2);
	for (i = 2; i >= 0; i--) {
		KPT_OK(kpt_remove(vm, gfn));
		KPT_EQ(kpt_count(vm, gfn), own + i);
	}
	KPT_REFUSED(vm, gfn, kpt_remove(vm, gfn), ENOENT);

	/* the limit is of external users: KVM's counts do not eat into it */
	KPT_ERR(kpt_call_n(kpt_dev, KPT_OP_ADD_PAGE, vm, gfn, KPT_MAX_USERS + 1,
			   NULL), EOVERFLOW);
	KPT_EQ(kpt_count(vm, gfn), own + KPT_MAX_USERS);
	KPT_ERR(kpt_call_n(kpt_dev, KPT_OP_REMOVE_PAGE, vm, gfn,
			   KPT_MAX_USERS + 1, NULL), ENOENT);
	KPT_EQ(kpt_count(vm, gfn), own);
	kpt_run_to(vcpu, 3);
	kvm_vm_free(vm);
}

static void gfn_in_no_memslot(void)
{
	static const u32 ops[] = {
		KPT_OP_ADD_PAGE, KPT_OP_REMOVE_PAGE, KPT_OP_PREPARE,
		KPT_OP_WRITE_ADD, KPT_OP_WRITE_REMOVE,
	};
	const u64 gfns[] = {
		KPT_GFN - 1, KPT_GFN + NPAGES, 1ULL << 40, 1ULL << 52, 1ULL << 63,
		~0ULL, ~0ULL >> 12, (1ULL << 52) | KPT_GFN,
	};
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = kpt_vm(&vcpu, guest_writes, NPAGES,
				   VM_MEM_SRC_ANONYMOUS);
	struct kpt_call c;
	u32 i, k;

	KPT_OK(kpt_add(vm, KPT_GFN));
	for (i = 0; i < ARRAY_SIZE(ops); i++)
		for (k = 0; k < ARRAY_SIZE(gfns); k++)
			KPT_REFUSED(vm, KPT_GFN,
				    kpt_call(kpt_dev, ops[i], vm, gfns[k]),
				    EINVAL);

	/* slot variants: a memslot that does not hold the gfn */
	for (i = KPT_OP_SLOT_ADD; i <= KPT_OP_SLOT_REMOVE; i++) {
		for (k = 0; k < ARRAY_SIZE(gfns); k++) {
			c = (struct kpt_call) {
				.op = i, .vm_fd = vm->fd, .gfn = gfns[k],
				.slot_gfn = KPT_GFN, .flags = KPT_CALL_SLOT_OF,
			};
			KPT_REFUSED(vm, KPT_GFN, kpt_api(kpt_dev, &c), EINVAL);
		}
		/* nor one that holds others */
		c = (struct kpt_call) {
			.op = i, .vm_fd = vm->fd, .gfn = KPT_GFN,
			.slot_gfn = 0, .flags = KPT_CALL_SLOT_OF,
		};
		KPT_REFUSED(vm, KPT_GFN, kpt_api(kpt_dev, &c), EINVAL);
	}
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).slot_sum, 1);
	KPT_OK(kpt_remove(vm, KPT_GFN));
	kvm_vm_free(vm);
}

static void unknown_mode_and_null(void)
{
	static const u32 paged[] = {
		KPT_OP_ADD_PAGE, KPT_OP_REMOVE_PAGE, KPT_OP_SLOT_ADD,
		KPT_OP_SLOT_REMOVE,
	};
	static const u32 modes[] = { 1, 2, 7, 0x80000000, 0xffffffff };
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = kpt_vm(&vcpu, guest_writes, NPAGES,
				   VM_MEM_SRC_ANONYMOUS);
	struct kpt_call c;
	u32 i, k;

	/* one is tracked, so a wrong remove would find something to remove */
	KPT_OK(kpt_add(vm, KPT_GFN));
	for (i = 0; i < ARRAY_SIZE(paged); i++) {
		for (k = 0; k < ARRAY_SIZE(modes); k++) {
			c = (struct kpt_call) {
				.op = paged[i], .vm_fd = vm->fd, .gfn = KPT_GFN,
				.mode = modes[k],
			};
			KPT_REFUSED(vm, KPT_GFN, kpt_api(kpt_dev, &c), EINVAL);
		}
	}

	for (i = KPT_OP_ADD_PAGE; i <= KPT_OP_WRITE_REMOVE; i++) {
		c = (struct kpt_call) {
			.op = i, .vm_fd = vm->fd, .gfn = KPT_GFN,
			.nr = 1, .flags = KPT_CALL_NULL_KVM,
		};
		KPT_REFUSED(vm, KPT_GFN, kpt_api(kpt_dev, &c), EINVAL);
		if (i >= KPT_OP_WRITE_ADD)
			KPT_REFUSED(vm, KPT_GFN, kpt_api(kpt_stock, &c), EINVAL);
		if (i == KPT_OP_SLOT_ADD || i == KPT_OP_SLOT_REMOVE) {
			c.flags = KPT_CALL_NULL_SLOT;
			KPT_REFUSED(vm, KPT_GFN, kpt_api(kpt_dev, &c), EINVAL);
		}
	}
	KPT_EQ(kpt_count(vm, KPT_GFN), 1);
	KPT_OK(kpt_remove(vm, KPT_GFN));
	kvm_vm_free(vm);
}

static void slot_variants_and_prepare(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = kpt_vm(&vcpu, guest_writes, NPAGES,
				   VM_MEM_SRC_ANONYMOUS);
	int id = kpt_reg(kpt_dev, vm, KPT_CLIENT, 0);
	u64 last = KPT_GFN + NPAGES - 1;

	TEST_ASSERT(id >= 0, "register: %d", id);
	/* Under shadow paging KVM gives every memslot counters at once. */
	if (kpt_tdp()) {
		KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).has_array, 0);
		KPT_REFUSED(vm, KPT_GFN, kpt_call(kpt_dev, KPT_OP_SLOT_ADD, vm,
						  KPT_GFN), ENOMEM);
	}

	/* not all in one memslot */
	KPT_REFUSED(vm, KPT_GFN, kpt_call_n(kpt_dev, KPT_OP_PREPARE, vm, KPT_GFN,
					    NPAGES + 1, NULL), EINVAL);
	KPT_REFUSED(vm, KPT_GFN, kpt_call_n(kpt_dev, KPT_OP_PREPARE, vm, last, 2,
					    NULL), EINVAL);
	KPT_REFUSED(vm, KPT_GFN, kpt_call_n(kpt_dev, KPT_OP_PREPARE, vm,
					    KPT_GFN + 1, ~0ULL, NULL), EINVAL);

	KPT_OK(kpt_call_n(kpt_dev, KPT_OP_PREPARE, vm, KPT_GFN, NPAGES, NULL));
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).has_array, 1);
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).slot_sum, 0);
	KPT_OK(kpt_call_n(kpt_dev, KPT_OP_PREPARE, vm, last, 1, NULL));
	KPT_EQ(write_once(vcpu, id), 0);

	KPT_OK(kpt_call(kpt_dev, KPT_OP_SLOT_ADD, vm, KPT_GFN));
	KPT_OK(kpt_call(kpt_dev, KPT_OP_SLOT_ADD, vm, last));
	KPT_EQ(kpt_count(vm, KPT_GFN), 1);
	KPT_EQ(kpt_count(vm, last), 1);
	KPT_EQ(write_once(vcpu, id), 1);
	/* one count, however it is added and removed */
	KPT_OK(kpt_add(vm, KPT_GFN));
	KPT_OK(kpt_call(kpt_dev, KPT_OP_SLOT_REMOVE, vm, KPT_GFN));
	KPT_EQ(kpt_count(vm, KPT_GFN), 1);
	KPT_EQ(write_once(vcpu, id), 1);
	KPT_OK(kpt_remove(vm, KPT_GFN));
	KPT_EQ(write_once(vcpu, id), 0);
	KPT_REFUSED(vm, KPT_GFN, kpt_call(kpt_dev, KPT_OP_SLOT_REMOVE, vm,
					  KPT_GFN), ENOENT);
	KPT_OK(kpt_call(kpt_dev, KPT_OP_SLOT_REMOVE, vm, last));
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).slot_sum, 0);
	KPT_OK(kpt_unreg(kpt_dev, id));
	kvm_vm_free(vm);
}

static void counters_on_demand(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = kpt_vm(&vcpu, guest_writes, NPAGES,
				   VM_MEM_SRC_ANONYMOUS);
	int id = kpt_reg(kpt_dev, vm, KPT_NOTIFIER, 0);
	u32 always = !kpt_tdp();

	TEST_ASSERT(id >= 0, "register: %d", id);
	KPT_EQ(kpt_inspect(vm, 0, 0).has_array, always);
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).has_array, always);
	/* registering is not what C does: no flag, no arrays */
	KPT_EQ(kpt_inspect(vm, 0, 0).external_enabled, 0);

	KPT_OK(kpt_add(vm, KPT_GFN + 3));
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).has_array, 1);
	KPT_EQ(kpt_inspect(vm, 0, 0).has_array, always);
	KPT_EQ(kpt_inspect(vm, 0, 0).external_enabled, 0);
	KPT_OK(kpt_remove(vm, KPT_GFN + 3));
	KPT_OK(kpt_unreg(kpt_dev, id));
	kvm_vm_free(vm);
}

/* What is in a guest_memfd need not be mapped in the host: KVM cannot emulate there. */
static void guest_memfd(void)
{
	static const u32 adds[] = {
		KPT_OP_ADD_PAGE, KPT_OP_PREPARE, KPT_OP_SLOT_ADD, KPT_OP_WRITE_ADD,
		KPT_OP_ADD_RANGE,
	};
	/* C may have added some */
	static const u32 removes[] = {
		KPT_OP_REMOVE_PAGE, KPT_OP_SLOT_REMOVE, KPT_OP_WRITE_REMOVE,
		KPT_OP_REMOVE_RANGE,
	};
	u64 gfn = KPT_GFN + 0x1000, size = NPAGES * 4096;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	void *mem;
	int fd;
	u32 i;

	if (!kvm_has_cap(KVM_CAP_GUEST_MEMFD))
		kpt_skip("this KVM has no guest_memfd");
	vm = kpt_vm(&vcpu, guest_writes, NPAGES, VM_MEM_SRC_ANONYMOUS);
	fd = __vm_create_guest_memfd(vm, size, 0);
	if (fd < 0)
		kpt_skip("no guest_memfd for an ordinary VM (errno %d)", errno);
	mem = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	vm_set_user_memory_region2(vm, KPT_SLOT + 1, KVM_MEM_GUEST_MEMFD, gfn << 12,
				   size, mem, fd, 0);
	/* the memslot beside it has counters */
	KPT_OK(kpt_add(vm, KPT_GFN));
	for (i = 0; i < ARRAY_SIZE(adds); i++)
		KPT_REFUSED(vm, gfn, kpt_call_n(kpt_dev, adds[i], vm, gfn, 1, NULL),
			    EOPNOTSUPP);
	for (i = 0; i < ARRAY_SIZE(removes); i++)
		KPT_REFUSED(vm, gfn, kpt_call_n(kpt_dev, removes[i], vm, gfn, 1, NULL),
			    ENOENT);
	KPT_REFUSED(vm, gfn, kpt_call(kpt_stock, KPT_OP_WRITE_ADD, vm, gfn), EOPNOTSUPP);
	KPT_OK(kpt_remove(vm, KPT_GFN));
	kvm_vm_free(vm);
	close(fd);
}

static const struct kpt_test tests[] = {
	{ "n adds need n removes", n_adds_need_n_removes },
	{ "every page has its own count", pages_count_apart },
	{ "the limit of external users, and one more", the_limit_of_users },
	{ "remove of an untracked page: -ENOENT", remove_of_an_untracked_page },
	{ "remove of a page only KVM tracks: -ENOENT",
	  remove_of_a_page_only_kvm_tracks },
	{ "gfn in no memslot: -EINVAL", gfn_in_no_memslot },
	{ "unknown mode, NULL arguments: -EINVAL", unknown_mode_and_null },
	{ "slot variants need prepare", slot_variants_and_prepare },
	{ "counters are allocated on demand", counters_on_demand },
	{ "memory of a guest_memfd: -EOPNOTSUPP", guest_memfd },
};

int main(void)
{
	return kpt_main(tests, ARRAY_SIZE(tests), KPT_NEED_CLIENT);
}
