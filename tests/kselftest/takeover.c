// SPDX-License-Identifier: GPL-2.0-only
/*
 * Handing over between the C tracker and the module, in both directions, with
 * pages tracked and notifiers registered: nothing is lost, nothing invented.
 * All is done with the calls kvm.ko exports; who serves them depends on whether
 * the module is attached.
 */
#include <string.h>
#include <unistd.h>

#include "kpt_lib.h"

#define NPAGES	16

static struct kvm_vcpu *vcpu;
static struct kvm_vm *vm;

static void make(void)
{
	vm = kpt_vm(&vcpu, kpt_write_guest, NPAGES, VM_MEM_SRC_ANONYMOUS);
}

/* One write; it must reach each of @n notifiers, with its value. */
static void write_page(u64 nr, int n)
{
	struct kpt_event ev[16];
	u64 v = kpt_write(vcpu, nr), value;
	int i;

	KPT_EQ(kpt_events(kpt_dev, ev, 16), n);
	for (i = 0; i < n; i++) {
		KPT_EQ(ev[i].gpa, KPT_GPA + nr * 4096);
		KPT_EQ(ev[i].len, 8);
		memcpy(&value, ev[i].data, 8);
		KPT_EQ(value, v);
	}
}

static int reg(void)
{
	int id = kpt_reg(kpt_dev, vm, KPT_NOTIFIER, KPT_REG_RECORD);

	TEST_ASSERT(id >= 0, "register: %d", id);
	return id;
}

static void tracked_before_insmod(void)
{
	int a, b, lpage, refs;
	u32 users;

	kpt_need_c_tracker();
	make();
	users = kpt_inspect(vm, 0, 0).users_count;
	a = reg();
	b = reg();
	lpage = kpt_inspect(vm, 0, KPT_GFN).lpage_2m;
	KPT_OK(kpt_add(vm, KPT_GFN + 1));
	KPT_OK(kpt_add(vm, KPT_GFN + 2));
	KPT_OK(kpt_add(vm, KPT_GFN + 2));
	write_page(1, 2);
	write_page(3, 0);

	kpt_attach();
	/* nodes of C's pin nothing of ours */
	refs = kpt_mod_refs("kvm_page_track");
	KPT_EQ(refs, 0);
	KPT_EQ(kpt_count(vm, KPT_GFN + 1), 1);
	KPT_EQ(kpt_count(vm, KPT_GFN + 2), 2);
	write_page(1, 2);
	write_page(2, 2);
	write_page(3, 0);

	/* counts made through C are accepted, in their number */
	KPT_OK(kpt_remove(vm, KPT_GFN + 1));
	KPT_OK(kpt_remove(vm, KPT_GFN + 2));
	KPT_EQ(kpt_count(vm, KPT_GFN + 1), 0);
	KPT_EQ(kpt_count(vm, KPT_GFN + 2), 1);
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).lpage_2m, lpage + 1);
	write_page(1, 0);
	write_page(2, 2);
	KPT_REFUSED(vm, KPT_GFN + 1, kpt_remove(vm, KPT_GFN + 1), ENOENT);

	/* new ones, and one notifier leaves */
	KPT_OK(kpt_add(vm, KPT_GFN + 3));
	write_page(3, 2);
	KPT_OK(kpt_unreg(kpt_dev, a));
	write_page(3, 1);

	kpt_detach();
	KPT_EQ(kpt_count(vm, KPT_GFN + 1), 0);
	KPT_EQ(kpt_count(vm, KPT_GFN + 2), 1);
	KPT_EQ(kpt_count(vm, KPT_GFN + 3), 1);
	write_page(1, 0);
	write_page(2, 1);
	write_page(3, 1);
	KPT_OK(kpt_remove(vm, KPT_GFN + 2));
	KPT_OK(kpt_remove(vm, KPT_GFN + 3));
	write_page(2, 0);
	write_page(3, 0);
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).slot_sum, 0);
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).lpage_2m, lpage);
	KPT_OK(kpt_unreg(kpt_dev, b));
	KPT_EQ(kpt_inspect(vm, 0, 0).users_count, users);
	kvm_vm_free(vm);
}

/* All that was registered before may be undone by us, and pins nothing. */
static void undone_by_us(void)
{
	u32 users;
	int a;

	kpt_need_c_tracker();
	make();
	users = kpt_inspect(vm, 0, 0).users_count;
	a = reg();
	KPT_OK(kpt_add(vm, KPT_GFN + 1));
	kpt_attach();
	KPT_OK(kpt_unreg(kpt_dev, a));
	KPT_EQ(kpt_inspect(vm, 0, 0).list_empty, 1);
	KPT_EQ(kpt_inspect(vm, 0, 0).users_count, users);
	KPT_OK(kpt_remove(vm, KPT_GFN + 1));
	write_page(1, 0);
	kpt_detach();
	write_page(1, 0);
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).slot_sum, 0);
	kvm_vm_free(vm);
}

/*
 * Where C is prepared to track, it takes over whoever was registered meanwhile:
 * they pin nothing either.
 */
static void registered_beside_c(void)
{
	u32 users;
	int a, b, c;

	kpt_need_c_tracker();
	make();
	users = kpt_inspect(vm, 0, 0).users_count;
	a = reg();
	kpt_attach();
	b = reg();
	KPT_EQ(kpt_inspect(vm, 0, 0).users_count, users + 2);
	KPT_EQ(kpt_mod_refs("kvm_page_track"), 0);
	KPT_EQ(kpt_debugfs_vm(getpid()).notifiers, 2);
	KPT_OK(kpt_add(vm, KPT_GFN + 1));
	write_page(1, 2);
	kpt_detach();
	write_page(1, 2);
	KPT_OK(kpt_unreg(kpt_dev, a));
	write_page(1, 1);
	kpt_attach();
	write_page(1, 1);
	KPT_OK(kpt_unreg(kpt_dev, b));
	write_page(1, 0);
	/* the first one again, in a VM that C goes on to be prepared for */
	KPT_EQ(kpt_inspect(vm, 0, 0).list_empty, 1);
	KPT_EQ(kpt_inspect(vm, 0, 0).users_count, users);
	c = reg();
	KPT_EQ(kpt_mod_refs("kvm_page_track"), 0);
	write_page(1, 1);
	kpt_detach();
	write_page(1, 1);
	KPT_OK(kpt_remove(vm, KPT_GFN + 1));
	write_page(1, 0);
	KPT_OK(kpt_unreg(kpt_dev, c));
	KPT_EQ(kpt_inspect(vm, 0, 0).users_count, users);
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).slot_sum, 0);
	kvm_vm_free(vm);
}

static void notifier_through_us_refuses_rmmod(void)
{
	int id, other;

	make();
	kpt_attach();
	id = reg();
	KPT_OK(kpt_add(vm, KPT_GFN + 1));
	KPT_ERR(kpt_mod_unload("kvm_page_track"), EAGAIN);
	/* and nothing has been detached meanwhile */
	write_page(1, 1);
	other = reg();
	KPT_OK(kpt_unreg(kpt_dev, id));
	KPT_ERR(kpt_mod_unload("kvm_page_track"), EAGAIN);
	write_page(1, 1);
	KPT_OK(kpt_unreg(kpt_dev, other));
	KPT_OK(kpt_remove(vm, KPT_GFN + 1));
	kpt_detach();
	write_page(1, 0);
	kvm_vm_free(vm);
}

/* Tracked through us, in a VM in which C consults the counters afterwards. */
static void tracked_through_us(void)
{
	int id, i;

	kpt_need_c_tracker();
	make();
	id = reg();
	kpt_attach();
	for (i = 1; i <= 3; i++)
		KPT_OK(kpt_call_n(kpt_dev, KPT_OP_WRITE_ADD, vm, KPT_GFN + i, i,
				  NULL));
	write_page(3, 1);
	kpt_detach();
	for (i = 1; i <= 3; i++) {
		KPT_EQ(kpt_count(vm, KPT_GFN + i), i);
		write_page(i, 1);
	}
	write_page(4, 0);
	for (i = 1; i <= 3; i++) {
		KPT_OK(kpt_call_n(kpt_dev, KPT_OP_WRITE_REMOVE, vm, KPT_GFN + i, i,
				  NULL));
		write_page(i, 0);
	}
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).slot_sum, 0);
	KPT_OK(kpt_unreg(kpt_dev, id));
	kvm_vm_free(vm);
}

/*
 * A VM that only we tracked: C does not look at its counters.  What was not taken
 * back goes with the module, and does not come back with it.
 */
static void tracked_by_us_alone(void)
{
	int id, lpage;

	make();
	lpage = kpt_inspect(vm, 0, KPT_GFN).lpage_2m;
	kpt_attach();
	id = reg();
	KPT_OK(kpt_add(vm, KPT_GFN + 1));
	KPT_OK(kpt_add(vm, KPT_GFN + 1));
	KPT_OK(kpt_add(vm, KPT_GFN + 3));
	write_page(1, 1);
	KPT_OK(kpt_unreg(kpt_dev, id));
	KPT_EQ(kpt_inspect(vm, 0, 0).external_enabled, 0);
	/* left behind: the guest must not notice */
	kpt_detach();
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).slot_sum, 0);
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).lpage_2m, lpage);
	write_page(1, 0);
	write_page(2, 0);
	write_page(3, 0);
	/* the same page again, which the guest has written meanwhile */
	kpt_attach();
	KPT_REFUSED(vm, KPT_GFN + 1, kpt_remove(vm, KPT_GFN + 1), ENOENT);
	id = reg();
	KPT_OK(kpt_add(vm, KPT_GFN + 1));
	KPT_EQ(kpt_count(vm, KPT_GFN + 1), 1);
	write_page(1, 1);
	write_page(3, 0);
	KPT_OK(kpt_remove(vm, KPT_GFN + 1));
	KPT_OK(kpt_unreg(kpt_dev, id));
	kpt_detach();
	if (!kpt_kvm_tracks()) {
		kvm_vm_free(vm);
		return;
	}
	/* a first registration through C finds the counters that are there */
	id = reg();
	KPT_EQ(kpt_inspect(vm, 0, 0).external_enabled, 1);
	KPT_EQ(kpt_inspect(vm, 0, 0).has_array, 1);
	KPT_OK(kpt_add(vm, KPT_GFN + 5));
	write_page(5, 1);
	write_page(6, 0);
	KPT_OK(kpt_remove(vm, KPT_GFN + 5));
	write_page(5, 0);
	KPT_OK(kpt_unreg(kpt_dev, id));
	kvm_vm_free(vm);
}

/* What C would consult must be there when C is back. */
static void memslots_made_meanwhile(void)
{
	struct kpt_event ev[4];
	int id, i;

	kpt_need_c_tracker();
	make();
	id = reg();
	kpt_attach();
	for (i = 1; i <= 3; i++) {
		u64 gpa = KPT_GPA + i * 0x1000000;

		vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, gpa,
					    KPT_SLOT + i, NPAGES, 0);
		KPT_EQ(kpt_inspect(vm, 0, gpa >> 12).has_array, 1);
		KPT_EQ(kpt_inspect(vm, 0, gpa >> 12).slot_sum, 0);
	}
	/* flags change, and one is deleted and made again, as well */
	vm_mem_region_set_flags(vm, KPT_SLOT + 1, KVM_MEM_LOG_DIRTY_PAGES);
	vm_mem_region_reload(vm, KPT_SLOT + 2);
	KPT_EQ(kpt_events(kpt_dev, ev, 4), 1);
	KPT_EQ(ev[0].type, KPT_EV_REMOVE_REGION);
	KPT_EQ(ev[0].gpa, (KPT_GPA + 0x2000000) >> 12);
	KPT_OK(kpt_add(vm, (KPT_GPA + 0x3000000) >> 12));
	kpt_detach();
	for (i = 1; i <= 3; i++) {
		u64 gpa = KPT_GPA + i * 0x1000000;

		KPT_EQ(kpt_inspect(vm, 0, gpa >> 12).has_array, 1);
		KPT_EQ(kpt_inspect(vm, 0, gpa >> 12).slot_sum, i == 3);
		/* C reads the counters when the guest touches the page */
		virt_map(vm, KPT_GVA + i * 0x100000, gpa, NPAGES);
	}
	for (i = 1; i <= 3; i++) {
		kpt_write_at(vcpu, i * 0x100, KPT_GPA + i * 0x1000000);
		KPT_EQ(kpt_events(kpt_dev, ev, 4), i == 3);
	}
	KPT_OK(kpt_remove(vm, (KPT_GPA + 0x3000000) >> 12));
	KPT_OK(kpt_unreg(kpt_dev, id));
	kvm_vm_free(vm);
}

/* A VM made under one tracker and torn down under the other. */
static void made_here_freed_there(void)
{
	int id;

	kpt_attach();
	make();
	KPT_OK(kpt_add(vm, KPT_GFN + 1));
	write_page(1, 0);
	kpt_detach();
	kvm_vm_free(vm);

	kpt_need_c_tracker();
	make();
	id = reg();
	KPT_OK(kpt_add(vm, KPT_GFN + 1));
	write_page(1, 1);
	kpt_attach();
	KPT_OK(kpt_unreg(kpt_dev, id));
	kvm_vm_free(vm);
	usleep(100000);
	KPT_EQ(kpt_debugfs_vm(getpid()).rows, 0);
	kpt_detach();
}

/* As KVMGT does at every open of a device: one node, never zeroed again. */
static void registered_again(void)
{
	struct kpt_register r = {
		.type = KPT_NOTIFIER, .flags = KPT_REG_RECORD, .id = -1,
	};
	int i;

	kpt_need_c_tracker();
	make();
	r.vm_fd = vm->fd;
	for (i = 0; i < 2; i++) {
		r.id = kpt_reg_full(kpt_dev, &r);
		TEST_ASSERT(r.id >= 0, "register, C's turn %d: %d", i, r.id);
		if (!i)
			KPT_OK(kpt_add(vm, KPT_GFN + 1));
		write_page(1, 1);
		KPT_OK(kpt_unreg(kpt_dev, r.id));
		kpt_attach();
		r.id = kpt_reg_full(kpt_dev, &r);
		TEST_ASSERT(r.id >= 0, "register, our turn %d: %d", i, r.id);
		write_page(1, 1);
		KPT_ERR(kpt_reg_full(kpt_dev, &r), EEXIST);
		KPT_OK(kpt_unreg(kpt_dev, r.id));
		write_page(1, 0);
		kpt_detach();
	}
	kvm_vm_free(vm);
}

static void back_and_forth(void)
{
	int id, i;

	kpt_need_c_tracker();
	make();
	id = reg();
	for (i = 1; i <= 4; i++) {
		KPT_OK(kpt_add(vm, KPT_GFN + 1));
		write_page(1, 1);
		kpt_attach();
		KPT_OK(kpt_add(vm, KPT_GFN + 1));
		KPT_EQ(kpt_count(vm, KPT_GFN + 1), 2 * i);
		write_page(1, 1);
		write_page(2, 0);
		kpt_detach();
		write_page(1, 1);
		write_page(2, 0);
	}
	kpt_attach();
	for (i = 7; i >= 0; i--) {
		KPT_OK(kpt_remove(vm, KPT_GFN + 1));
		KPT_EQ(kpt_count(vm, KPT_GFN + 1), i);
		write_page(1, i ? 1 : 0);
	}
	KPT_REFUSED(vm, KPT_GFN + 1, kpt_remove(vm, KPT_GFN + 1), ENOENT);
	KPT_OK(kpt_unreg(kpt_dev, id));
	kpt_detach();
	kvm_vm_free(vm);
}

static const struct kpt_test tests[] = {
	{ "tracked through C before insmod, and through us before rmmod",
	  tracked_before_insmod },
	{ "registered through C, undone by us", undone_by_us },
	{ "registered through us beside C, served by C after rmmod",
	  registered_beside_c },
	{ "a notifier registered through us refuses rmmod",
	  notifier_through_us_refuses_rmmod },
	{ "tracked through us, served by C after rmmod", tracked_through_us },
	{ "tracked by us alone, left behind at rmmod", tracked_by_us_alone },
	{ "memslots made while attached have what C needs",
	  memslots_made_meanwhile },
	{ "VMs made under one tracker, freed under the other",
	  made_here_freed_there },
	{ "one node, registered by turns", registered_again },
	{ "back and forth", back_and_forth, 120 },
};

int main(void)
{
	return kpt_main(tests, ARRAY_SIZE(tests), KPT_WANT_C);
}
