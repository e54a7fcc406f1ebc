// SPDX-License-Identifier: GPL-2.0-only
/*
 * A module that looks for KVM's shadow pages where KVM has none (its hash shift is
 * another: tests/Makefile builds it).  It sees that at the first page that KVM adds,
 * says so once, and changes no count any more that may be KVM's.
 */
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "kpt_lib.h"

#define NPAGES	16
#define DIR	"/modules/wrong_shift"
#define SAYS	"keeps its shadow pages elsewhere"

static int kmsg;

/* How often the module has said it since the last call. */
static int said(void)
{
	char record[8192];
	ssize_t n;
	int i = 0;

	while ((n = read(kmsg, record, sizeof(record) - 1)) > 0 || errno == EPIPE) {
		if (n <= 0)
			continue;
		record[n] = 0;
		i += !!strstr(record, SAYS);
	}
	return i;
}

/* That is what the program wants to hear. */
static bool complaint(const char *record)
{
	return !strstr(record, SAYS) && kpt_is_complaint(record);
}

static void attach_wrong(void)
{
	char *dir = getenv("KPT_MODULES");

	setenv("KPT_MODULES", DIR, 1);
	KPT_OK(kpt_mod_load("kvm_page_track"));
	if (dir)
		setenv("KPT_MODULES", dir, 1);
	else
		unsetenv("KPT_MODULES");
	KPT_OK(kpt_mod_load("kpt_client"));
	kpt_dev = kpt_open("kpt_client");
}

static void refused(struct kvm_vm *vm, u64 gfn)
{
	static const u32 ops[] = {
		KPT_OP_ADD_PAGE, KPT_OP_REMOVE_PAGE, KPT_OP_PREPARE, KPT_OP_SLOT_ADD,
		KPT_OP_SLOT_REMOVE, KPT_OP_WRITE_ADD, KPT_OP_WRITE_REMOVE,
		KPT_OP_ADD_RANGE, KPT_OP_REMOVE_RANGE,
	};
	u32 i;

	for (i = 0; i < ARRAY_SIZE(ops); i++)
		KPT_REFUSED(vm, gfn, kpt_call_n(kpt_dev, ops[i], vm, gfn, 1, NULL),
			    EOPNOTSUPP);
	KPT_REFUSED(vm, gfn, kpt_call(kpt_stock, KPT_OP_WRITE_REMOVE, vm, gfn),
		    EOPNOTSUPP);
}

static void nothing_of_kvms_is_taken(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u64 gfn;
	u32 own;
	int id;

	if (kpt_tdp())
		kpt_skip("KVM tracks page tables under shadow paging only");
	kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	TEST_ASSERT(kmsg >= 0, "kmsg");
	lseek(kmsg, 0, SEEK_END);
	attach_wrong();
	vm = kpt_vm(&vcpu, kpt_write_guest, NPAGES, VM_MEM_SRC_ANONYMOUS);
	id = kpt_reg(kpt_dev, vm, KPT_CLIENT, 0);
	TEST_ASSERT(id >= 0, "register: %d", id);
	/* KVM shadows nothing yet: the module believes what it sees */
	KPT_OK(kpt_add(vm, KPT_GFN + 1));
	KPT_EQ(said(), 0);

	kpt_write(vcpu, 2);
	KPT_EQ(said(), 1);
	gfn = vm->mmu.pgd >> 12;
	own = kpt_count(vm, gfn);
	TEST_ASSERT(own > 0, "the guest's page table is not tracked by KVM");
	refused(vm, gfn);
	refused(vm, KPT_GFN + 1);
	refused(vm, KPT_GFN + 3);
	KPT_EQ(kpt_count(vm, gfn), own);
	KPT_EQ(kpt_count(vm, KPT_GFN + 1), 1);

	/* what was added is told of, and the guest goes on */
	kpt_write(vcpu, 1);
	kpt_write(vcpu, 2);
	KPT_EQ(kpt_counters(kpt_dev, id).writes, 1);
	KPT_EQ(said(), 0);

	/* nor is anything taken at rmmod */
	KPT_OK(kpt_unreg(kpt_dev, id));
	close(kpt_dev);
	KPT_OK(kpt_mod_unload_retry("kpt_client"));
	kpt_detach();
	KPT_EQ(kpt_count(vm, gfn), own);
	KPT_EQ(kpt_count(vm, KPT_GFN + 1), 1);
	kpt_write(vcpu, 2);
	kvm_vm_free(vm);
}

int main(void)
{
	static const struct kpt_test tests[] = {
		{ "KVM's records are elsewhere: nothing of KVM's is taken",
		  nothing_of_kvms_is_taken },
	};

	kpt_complaint = complaint;
	return kpt_main(tests, ARRAY_SIZE(tests), KPT_WANT_C);
}
