// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM has a second address space for guests in system management mode.  Counts
 * are kept in the first; a write in either of a page tracked there arrives.
 */
#include <string.h>

#include "kpt_lib.h"
#include "smm.h"

#define NPAGES		8
#define SMRAM_GPA	0x1000000
#define SMM_SLOT	((1 << 16) | KPT_SLOT)
#define PAGE		3
#define SMM_VALUE	0x600dcafe

/* mov dword [addr32], imm32; rsm - in 16-bit code */
static u8 smi_handler[] = {
	0x67, 0x66, 0xc7, 0x05,
	0, 0, 0, 0,
	0xfe, 0xca, 0x0d, 0x60,
	0x0f, 0xaa,
};

static void guest_code(void)
{
	u64 i;

	for (i = 1;; i++) {
		*(volatile u64 *)(KPT_GVA + PAGE * 4096 + 0x100) = i;
		GUEST_SYNC(i);
	}
}

static struct kvm_vm *make(struct kvm_vcpu **vcpu)
{
	u32 addr = KPT_GPA + PAGE * 4096 + 0x40;
	struct userspace_mem_region *region;
	struct kvm_vm *vm;

	if (!kvm_has_cap(KVM_CAP_X86_SMM))
		kpt_skip("this KVM has no SMM");

	memcpy(smi_handler + 4, &addr, 4);
	vm = kpt_vm(vcpu, guest_code, NPAGES, VM_MEM_SRC_ANONYMOUS);
	setup_smram(vm, *vcpu, SMRAM_GPA, smi_handler, sizeof(smi_handler));
	/* the same memory in both address spaces */
	region = memslot2region(vm, KPT_SLOT);
	vm_set_user_memory_region(vm, SMM_SLOT, 0, KPT_GPA, NPAGES * 4096,
				  region->host_mem);
	KPT_EQ(kpt_inspect(vm, 0, 0).nr_as, 2);
	return vm;
}

/* One write in SMM and one outside. */
static void run_both(struct kvm_vcpu *vcpu, u64 stage)
{
	u32 *smm = addr_gpa2hva(vcpu->vm, KPT_GPA + PAGE * 4096 + 0x40);
	u64 *normal = addr_gpa2hva(vcpu->vm, KPT_GPA + PAGE * 4096 + 0x100);

	*smm = 0;
	inject_smi(vcpu);
	kpt_run_to(vcpu, stage);
	KPT_EQ(*smm, SMM_VALUE);
	KPT_EQ(*normal, stage);
}

static void expect_both(u64 stage)
{
	struct kpt_event ev[8];
	u32 v32;
	u64 v64;

	KPT_EQ(kpt_events(kpt_dev, ev, 8), 2);
	KPT_EQ(ev[0].gpa, KPT_GPA + PAGE * 4096 + 0x40);
	KPT_EQ(ev[0].len, 4);
	memcpy(&v32, ev[0].data, 4);
	KPT_EQ(v32, SMM_VALUE);
	KPT_EQ(ev[1].gpa, KPT_GPA + PAGE * 4096 + 0x100);
	KPT_EQ(ev[1].len, 8);
	memcpy(&v64, ev[1].data, 8);
	KPT_EQ(v64, stage);
}

static void writes_in_smm(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = make(&vcpu);
	int id = kpt_reg(kpt_dev, vm, KPT_CLIENT, KPT_REG_RECORD);
	struct kpt_event ev[8];
	u64 gfn = KPT_GFN + PAGE;
	int id2;

	TEST_ASSERT(id >= 0, "register: %d", id);
	/* writable mappings in both address spaces, before it is tracked */
	run_both(vcpu, 1);
	KPT_EQ(kpt_events(kpt_dev, ev, 8), 0);

	KPT_OK(kpt_add(vm, gfn));
	KPT_EQ(kpt_inspect(vm, 0, gfn).count, 1);
	KPT_EQ(kpt_inspect(vm, 1, gfn).count, 0);
	run_both(vcpu, 2);
	expect_both(2);
	run_both(vcpu, 3);
	expect_both(3);

	KPT_OK(kpt_remove(vm, gfn));
	KPT_EQ(kpt_inspect(vm, 0, gfn).count, 0);
	KPT_EQ(kpt_inspect(vm, 1, gfn).count, 0);
	run_both(vcpu, 4);
	KPT_EQ(kpt_events(kpt_dev, ev, 8), 0);

	/* mapped for the first time while it is tracked */
	KPT_OK(kpt_add(vm, gfn));
	id2 = kpt_reg(kpt_dev, vm, KPT_NOTIFIER, 0);
	TEST_ASSERT(id2 >= 0, "register: %d", id2);
	vm_set_user_memory_region(vm, SMM_SLOT, 0, KPT_GPA, 0, NULL);
	/* counts are in the other space: clients are not told, but notifiers */
	KPT_EQ(kpt_events(kpt_dev, ev, 8), 0);
	KPT_EQ(kpt_counters(kpt_dev, id).removes, 0);
	KPT_EQ(kpt_counters(kpt_dev, id2).removes, 1);
	KPT_OK(kpt_unreg(kpt_dev, id2));
	vm_set_user_memory_region(vm, SMM_SLOT, 0, KPT_GPA, NPAGES * 4096,
				  memslot2region(vm, KPT_SLOT)->host_mem);
	KPT_EQ(kpt_count(vm, gfn), 1);
	run_both(vcpu, 5);
	expect_both(5);
	KPT_OK(kpt_remove(vm, gfn));
	KPT_REFUSED(vm, gfn, kpt_remove(vm, gfn), ENOENT);
	KPT_OK(kpt_unreg(kpt_dev, id));
	kvm_vm_free(vm);
}

static void range_in_smm(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = make(&vcpu);
	int id = kpt_reg(kpt_dev, vm, KPT_CLIENT, KPT_REG_RECORD);
	void *mem = memslot2region(vm, KPT_SLOT)->host_mem;
	struct kpt_event ev[8];
	u64 stage = 1;
	int i;

	TEST_ASSERT(id >= 0, "register: %d", id);
	for (i = 0; i < 2; i++) {
		/* writable mappings in both address spaces, before it is tracked */
		run_both(vcpu, stage++);
		KPT_EQ(kpt_events(kpt_dev, ev, 8), 0);
		KPT_OK(kpt_call_n(kpt_dev, KPT_OP_ADD_RANGE, vm, KPT_GFN, NPAGES,
				  NULL));
		run_both(vcpu, stage);
		expect_both(stage++);
		KPT_OK(kpt_call_n(kpt_dev, KPT_OP_REMOVE_RANGE, vm, KPT_GFN, NPAGES,
				  NULL));
		run_both(vcpu, stage++);
		KPT_EQ(kpt_events(kpt_dev, ev, 8), 0);

		/* the same with several memslots there, and a page in none */
		vm_set_user_memory_region(vm, SMM_SLOT, 0, KPT_GPA, 0, NULL);
		vm_set_user_memory_region(vm, SMM_SLOT, 0, KPT_GPA, 4096, mem);
		vm_set_user_memory_region(vm, SMM_SLOT + 1, 0, KPT_GPA + 2 * 4096,
					  (NPAGES - 2) * 4096, mem + 2 * 4096);
	}
	KPT_OK(kpt_unreg(kpt_dev, id));
	kvm_vm_free(vm);
}

/* A memslot of the second address space alone cannot be tracked. */
static void only_in_smm(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = make(&vcpu);
	u64 gfn = KPT_GFN + 0x1000;
	void *mem = memslot2region(vm, KPT_SLOT)->host_mem;

	vm_set_user_memory_region(vm, SMM_SLOT + 1, 0, gfn << 12, NPAGES * 4096,
				  mem);
	KPT_EQ(kpt_inspect(vm, 0, gfn).has_slot, 0);
	KPT_EQ(kpt_inspect(vm, 1, gfn).has_slot, 1);
	KPT_REFUSED(vm, gfn, kpt_add(vm, gfn), EINVAL);
	KPT_REFUSED(vm, gfn, kpt_remove(vm, gfn), EINVAL);
	KPT_REFUSED(vm, gfn, kpt_call(kpt_dev, KPT_OP_PREPARE, vm, gfn), EINVAL);
	KPT_REFUSED(vm, gfn, kpt_call(kpt_dev, KPT_OP_WRITE_ADD, vm, gfn), EINVAL);
	kvm_vm_free(vm);
}

static const struct kpt_test tests[] = {
	{ "writes in SMM and outside arrive alike", writes_in_smm },
	{ "a range is protected in SMM and outside", range_in_smm },
	{ "a page of the SMM address space alone: -EINVAL", only_in_smm },
};

int main(void)
{
	return kpt_main(tests, ARRAY_SIZE(tests), KPT_NEED_CLIENT);
}
