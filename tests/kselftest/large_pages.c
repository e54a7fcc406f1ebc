// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory backed by 2 MiB pages is split exactly where a page is tracked, and is
 * large again after the last remove.  KVM's own statistics are the witness.
 */
#include <string.h>

#include "kpt_lib.h"

#define REGIONS		4
#define PER_REGION	512
#define SZ_2M		0x200000ULL

/* Writes to @off of every 2 MiB region in mask, and says so. */
static struct {
	u64 mask, off, value;
} cmd;

static void guest_code(void)
{
	u64 i;

	for (;;) {
		for (i = 0; i < REGIONS; i++)
			if (READ_ONCE(cmd.mask) & (1 << i))
				WRITE_ONCE(*(u64 *)(KPT_GVA + i * SZ_2M +
						    READ_ONCE(cmd.off)),
					   READ_ONCE(cmd.value));
		GUEST_SYNC(1);
	}
}

static u64 base_2m;

static void guest_write(struct kvm_vcpu *vcpu, u64 mask, u64 off)
{
	static u64 value = 0x1000;
	struct kvm_vm *vm = vcpu->vm;
	u64 *mem;
	int i;

	cmd.mask = mask;
	cmd.off = off;
	cmd.value = ++value;
	sync_global_to_guest(vm, cmd);
	kpt_run_to(vcpu, 1);
	for (i = 0; i < REGIONS; i++) {
		mem = addr_gpa2hva(vm, KPT_GPA + i * SZ_2M + off);
		if (mask & (1 << i))
			KPT_EQ(*mem, value);
	}
}

static int large(struct kvm_vm *vm)
{
	return vm_get_stat(vm, pages_2m) - base_2m;
}

static struct kvm_vm *make(struct kvm_vcpu **vcpu)
{
	struct kvm_vm *vm;

	kpt_need_hugepages(REGIONS);
	vm = __vm_create_with_one_vcpu(vcpu, 64, guest_code);
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS_HUGETLB_2MB, KPT_GPA,
				    KPT_SLOT, REGIONS * PER_REGION, 0);
	/* the guest's own mapping is large too: shadow paging needs both */
	virt_map_level(vm, KPT_GVA, KPT_GPA, REGIONS * SZ_2M, PG_LEVEL_2M);

	guest_write(*vcpu, 0, 0);
	base_2m = vm_get_stat(vm, pages_2m);
	guest_write(*vcpu, 0xf, 0x3008);
	KPT_EQ(large(vm), REGIONS);
	return vm;
}

static void split_and_large_again(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = make(&vcpu);
	int id = kpt_reg(kpt_dev, vm, KPT_NOTIFIER, 0);
	u64 gfn = KPT_GFN + PER_REGION + 3;
	u64 small;
	int i;

	TEST_ASSERT(id >= 0, "register: %d", id);
	small = vm_get_stat(vm, pages_4k);
	for (i = 0; i < REGIONS; i++)
		KPT_EQ(kpt_inspect(vm, 0, KPT_GFN + i * PER_REGION).lpage_2m, 0);

	KPT_OK(kpt_add(vm, gfn));
	for (i = 0; i < REGIONS; i++)
		KPT_EQ(kpt_inspect(vm, 0, KPT_GFN + i * PER_REGION).lpage_2m,
		       i == 1);

	/*
	 * All four regions: first the tracked page, emulated over the large
	 * mapping that is read-only now; then its neighbour, which wants a
	 * writable mapping and cannot have a large one.
	 */
	guest_write(vcpu, 0xf, 0x3010);
	KPT_EQ(kpt_counters(kpt_dev, id).writes, 1);
	guest_write(vcpu, 0xf, 0x4010);
	KPT_EQ(kpt_counters(kpt_dev, id).writes, 1);
	KPT_EQ(large(vm), REGIONS - 1);
	TEST_ASSERT(vm_get_stat(vm, pages_4k) >= small + 2,
		    "no small pages where there were large ones");

	/* counted twice: one remove is not enough */
	KPT_OK(kpt_add(vm, gfn));
	KPT_EQ(kpt_inspect(vm, 0, gfn).lpage_2m, 2);
	KPT_OK(kpt_remove(vm, gfn));
	guest_write(vcpu, 0xf, 0x3018);
	KPT_EQ(kpt_counters(kpt_dev, id).writes, 2);
	KPT_EQ(large(vm), REGIONS - 1);

	/* nor is the other page of the region */
	KPT_OK(kpt_add(vm, gfn + 5));
	guest_write(vcpu, 0xf, 0x8018);
	KPT_EQ(kpt_counters(kpt_dev, id).writes, 3);
	KPT_OK(kpt_remove(vm, gfn));
	guest_write(vcpu, 0xf, 0x3020);
	KPT_EQ(kpt_counters(kpt_dev, id).writes, 3);
	KPT_EQ(large(vm), REGIONS - 1);

	KPT_OK(kpt_remove(vm, gfn + 5));
	for (i = 0; i < REGIONS; i++)
		KPT_EQ(kpt_inspect(vm, 0, KPT_GFN + i * PER_REGION).lpage_2m, 0);
	guest_write(vcpu, 0xf, 0x8020);
	KPT_EQ(kpt_counters(kpt_dev, id).writes, 3);
	KPT_EQ(large(vm), REGIONS);

	KPT_OK(kpt_unreg(kpt_dev, id));
	kvm_vm_free(vm);
}

/* Tracked before the guest ever touched it. */
static void never_large_while_tracked(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	int i, id;

	kpt_need_hugepages(REGIONS);
	vm = __vm_create_with_one_vcpu(&vcpu, 64, guest_code);
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS_HUGETLB_2MB, KPT_GPA,
				    KPT_SLOT, REGIONS * PER_REGION, 0);
	virt_map_level(vm, KPT_GVA, KPT_GPA, REGIONS * SZ_2M, PG_LEVEL_2M);
	guest_write(vcpu, 0, 0);
	base_2m = vm_get_stat(vm, pages_2m);

	id = kpt_reg(kpt_dev, vm, KPT_NOTIFIER, 0);
	TEST_ASSERT(id >= 0, "register: %d", id);
	/* first and last page of a region */
	KPT_OK(kpt_add(vm, KPT_GFN));
	KPT_OK(kpt_add(vm, KPT_GFN + 3 * PER_REGION - 1));
	for (i = 0; i < REGIONS; i++)
		KPT_EQ(kpt_inspect(vm, 0, KPT_GFN + i * PER_REGION).lpage_2m,
		       i == 0 || i == 2);
	guest_write(vcpu, 0xf, 0x5000);
	KPT_EQ(large(vm), 2);
	KPT_EQ(kpt_counters(kpt_dev, id).writes, 0);
	guest_write(vcpu, 0xf, 0);
	KPT_EQ(kpt_counters(kpt_dev, id).writes, 1);
	guest_write(vcpu, 0xf, SZ_2M - 8);
	KPT_EQ(kpt_counters(kpt_dev, id).writes, 2);
	KPT_EQ(large(vm), 2);
	KPT_OK(kpt_remove(vm, KPT_GFN));
	KPT_OK(kpt_remove(vm, KPT_GFN + 3 * PER_REGION - 1));
	guest_write(vcpu, 0xf, 0);
	guest_write(vcpu, 0xf, SZ_2M - 8);
	KPT_EQ(kpt_counters(kpt_dev, id).writes, 2);
	KPT_EQ(large(vm), REGIONS);
	KPT_OK(kpt_unreg(kpt_dev, id));
	kvm_vm_free(vm);
}

static const struct kpt_test tests[] = {
	{ "2 MiB pages are split when tracked and large again afterwards",
	  split_and_large_again },
	{ "no large page over a tracked page", never_large_while_tracked },
};

int main(int argc, char **argv)
{
	/* "c": the same against the C tracker */
	return kpt_main(tests, ARRAY_SIZE(tests),
			argc > 1 && !strcmp(argv[1], "c") ? KPT_WANT_C :
							    KPT_NEED_CLIENT);
}
