// SPDX-License-Identifier: GPL-2.0-only
/*
 * A guest that runs a guest of its own: KVM shadows the nested page tables of L1,
 * so that a VM whose pages only the TDP MMU had mapped has reverse mappings from
 * then on.  What L2 writes arrives, at L1's address.
 */
#include <pthread.h>
#include <unistd.h>

#include "kpt_lib.h"
#include "kpt_compat.h"

#define NPAGES	192
#define NR_L2	8
/* L2's page 0 is this page of L1's. */
#define SHIFT	70
#define L1_PAGE(nr)	(SHIFT + (nr))

enum { READY = 1000 };

static struct kvm_vm *vm;
static struct kvm_vcpu *vcpu;
static int id;

static void l1_code(struct svm_test_data *svm)
{
	static u64 stack[64];

	kpt_svm_setup(svm, kpt_write_guest, stack + ARRAY_SIZE(stack));
	GUEST_SYNC(READY);
	run_guest(svm->vmcb, svm->vmcb_gpa);
	GUEST_DONE();
}

static void make(void)
{
	gva_t svm;
	u64 i;

	if (!kpt_tdp_mmu())
		kpt_skip("only VMs of the TDP MMU have reverse mappings later");
	if (!kvm_cpu_has(X86_FEATURE_SVM) || !kvm_cpu_has_tdp())
		kpt_skip("needs nested SVM with nested paging");

	vm = vm_create_with_one_vcpu(&vcpu, l1_code);
	vm_enable_tdp(vm);
	vcpu_alloc_svm(vm, &svm);
	vcpu_args_set(vcpu, 1, svm);
	kpt_vm_add_memory(vm, NPAGES, VM_MEM_SRC_ANONYMOUS);
	tdp_identity_map_default_memslots(vm);
	for (i = 0; i < NR_L2; i++)
		tdp_map(vm, KPT_GPA + i * 4096, KPT_GPA + L1_PAGE(i) * 4096, 4096);

	id = kpt_reg(kpt_dev, vm, KPT_CLIENT, KPT_REG_RECORD);
	TEST_ASSERT(id >= 0, "register: %d", id);
	kpt_run_to(vcpu, READY);
}

static void done(void)
{
	KPT_OK(kpt_unreg(kpt_dev, id));
	kvm_vm_free(vm);
}

/* L2 writes its page @nr, and @events of that arrive. */
static void l2_writes(u64 nr, int events)
{
	u64 gpa = KPT_GPA + L1_PAGE(nr) * 4096, v;
	struct kpt_event ev[4];

	v = kpt_write_at(vcpu, nr, gpa);
	KPT_EQ(kpt_events(kpt_dev, ev, 4), events);
	if (events) {
		KPT_EQ(ev[0].gpa, gpa);
		KPT_EQ(ev[0].len, 8);
		KPT_EQ(*(u64 *)ev[0].data, v);
	}
}

static void writes_of_a_nested_guest(void)
{
	u64 gfn;

	make();
	/* before KVM shadows anything, and mapped by nobody */
	KPT_OK(kpt_add(vm, KPT_GFN + L1_PAGE(0)));
	l2_writes(0, 1);
	l2_writes(0, 1);
	KPT_OK(kpt_remove(vm, KPT_GFN + L1_PAGE(0)));
	l2_writes(0, 0);

	/* mapped writable, for L2 only, by what KVM made of L1's tables */
	l2_writes(1, 0);
	KPT_OK(kpt_add(vm, KPT_GFN + L1_PAGE(1)));
	l2_writes(1, 1);
	l2_writes(2, 0);
	KPT_OK(kpt_remove(vm, KPT_GFN + L1_PAGE(1)));
	l2_writes(1, 0);

	gfn = KPT_GFN + L1_PAGE(0);
	KPT_OK(kpt_call_n(kpt_dev, KPT_OP_ADD_RANGE, vm, gfn, NR_L2, NULL));
	l2_writes(0, 1);
	l2_writes(2, 1);
	KPT_OK(kpt_call_n(kpt_dev, KPT_OP_REMOVE_RANGE, vm, gfn, NR_L2, NULL));
	l2_writes(0, 0);
	l2_writes(2, 0);
	done();
}

static void *adds(void *arg)
{
	KPT_OK(kpt_add(vm, KPT_GFN + L1_PAGE(0)));
	return NULL;
}

static void *changes_flags(void *arg)
{
	vm_mem_region_set_flags(vm, KPT_SLOT, 0);
	return NULL;
}

static u32 slot_flags(void)
{
	return kpt_inspect(vm, 0, KPT_GFN).slot_flags;
}

/*
 * An add is held when it has found the memslot and wants mmu_lock.  Then the flags
 * of the memslot change, so that what it has found is a copy that is not active any
 * more; L1 enters L2, for which KVM gives reverse mappings to what is active, and
 * L2 gets the page mapped writable.
 */
static void reverse_mappings_come_meanwhile(void)
{
	pthread_t adder, changer;
	int i;

	make();
	/* to be changed in a way that protects nothing */
	vm_mem_region_set_flags(vm, KPT_SLOT, KVM_MEM_LOG_DIRTY_PAGES);
	/* with counters */
	KPT_OK(kpt_add(vm, KPT_GFN + L1_PAGE(0)));
	KPT_OK(kpt_remove(vm, KPT_GFN + L1_PAGE(0)));

	KPT_OK(kpt_probe("kpt_mmu_write_lock", KPT_PROBE_SLEEP));
	pthread_create(&adder, NULL, adds, NULL);
	kpt_probe_wait();
	/* waits for the add, but has published the copy before */
	pthread_create(&changer, NULL, changes_flags, NULL);
	for (i = 0; i < 30000 && slot_flags(); i++)
		usleep(1000);
	KPT_EQ(slot_flags(), 0);
	l2_writes(0, 0);
	KPT_EQ(kpt_count(vm, KPT_GFN + L1_PAGE(0)), 0);
	KPT_OK(kpt_probe(NULL, KPT_PROBE_OFF));
	pthread_join(adder, NULL);
	pthread_join(changer, NULL);

	l2_writes(0, 1);
	KPT_OK(kpt_remove(vm, KPT_GFN + L1_PAGE(0)));
	l2_writes(0, 0);
	done();
}

int main(void)
{
	static const struct kpt_test tests[] = {
		{ "writes of a nested guest", writes_of_a_nested_guest },
		{ "reverse mappings come while a page is added",
		  reverse_mappings_come_meanwhile },
	};

	return kpt_main(tests, ARRAY_SIZE(tests), KPT_NEED_CLIENT);
}
