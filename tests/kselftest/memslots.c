// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tracking over the life of a memslot: flags-only changes, delete and create,
 * moves that are allowed and moves that are refused.
 */
#include <pthread.h>
#include <string.h>

#include "kpt_lib.h"

#define NPAGES	16

/* Writes cmd.value to cmd.gva at every turn. */
static struct {
	u64 gva, value;
} cmd;

static void guest_code(void)
{
	for (;;) {
		WRITE_ONCE(*(u64 *)READ_ONCE(cmd.gva), READ_ONCE(cmd.value));
		GUEST_SYNC(1);
	}
}

static u64 last_value = 0x5000;

static void guest_write(struct kvm_vcpu *vcpu, u64 gva)
{
	cmd.gva = gva;
	cmd.value = ++last_value;
	sync_global_to_guest(vcpu->vm, cmd);
	kpt_run_to(vcpu, 1);
}

/* The recorded event, the only one, is the last write, to @gpa. */
static void expect_write(int dev, u64 gpa)
{
	struct kpt_event ev[4];
	u64 v;

	KPT_EQ(kpt_events(dev, ev, 4), 1);
	KPT_EQ(ev[0].type, KPT_EV_WRITE);
	KPT_EQ(ev[0].gpa, gpa);
	KPT_EQ(ev[0].len, 8);
	memcpy(&v, ev[0].data, 8);
	KPT_EQ(v, last_value);
}

static void expect_nothing(int dev)
{
	struct kpt_event ev[4];

	KPT_EQ(kpt_events(dev, ev, 4), 0);
}

static u64 memory(struct kvm_vm *vm, u64 offset)
{
	struct userspace_mem_region *region = memslot2region(vm, KPT_SLOT);

	return *(u64 *)((char *)region->host_mem + offset);
}

/* KVM_SET_USER_MEMORY_REGION of the test memory at another place: its errno. */
static int move_to(struct kvm_vm *vm, u64 gpa)
{
	struct userspace_mem_region *region = memslot2region(vm, KPT_SLOT);

	return __vm_set_user_memory_region(vm, KPT_SLOT, region->region.flags, gpa,
					   region->region.memory_size,
					   region->host_mem) ? -errno : 0;
}

/*
 * What user space is told of a move that a notifier cannot follow.  Where kvm.ko
 * knows of no notifiers, the refusal comes from a function all of whose errors it
 * takes for lack of memory.
 */
static int refusal(void)
{
	return kpt_kvm_tracks() ? EINVAL : ENOMEM;
}

static void flags_only_change(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = kpt_vm(&vcpu, guest_code, NPAGES,
				   VM_MEM_SRC_ANONYMOUS);
	int id = kpt_reg(kpt_dev, vm, KPT_CLIENT, KPT_REG_RECORD);
	unsigned long dirty[1];
	int i;

	TEST_ASSERT(id >= 0, "register: %d", id);
	guest_write(vcpu, KPT_GVA + 0x3000);
	KPT_OK(kpt_add(vm, KPT_GFN + 3));
	KPT_OK(kpt_add(vm, KPT_GFN + 3));
	for (i = 0; i < 4; i++) {
		vm_mem_region_set_flags(vm, KPT_SLOT, KVM_MEM_LOG_DIRTY_PAGES);
		KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).slot_flags,
		       KVM_MEM_LOG_DIRTY_PAGES);
		KPT_EQ(kpt_count(vm, KPT_GFN + 3), 2);
		KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).slot_sum, 2);
		guest_write(vcpu, KPT_GVA + 0x3010);
		expect_write(kpt_dev, KPT_GPA + 0x3010);
		KPT_EQ(memory(vm, 0x3010), last_value);
		/* an emulated write is logged like any other */
		kvm_vm_get_dirty_log(vm, KPT_SLOT, dirty);
		KPT_EQ(dirty[0] & 0xffff, 1 << 3);
		guest_write(vcpu, KPT_GVA + 0x4010);
		expect_nothing(kpt_dev);
		kvm_vm_get_dirty_log(vm, KPT_SLOT, dirty);
		KPT_EQ(dirty[0] & 0xffff, 1 << 4);

		/* counts may change while the log is on */
		KPT_OK(kpt_add(vm, KPT_GFN + 5));

		vm_mem_region_set_flags(vm, KPT_SLOT, 0);
		KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).slot_flags, 0);
		KPT_EQ(kpt_count(vm, KPT_GFN + 3), 2);
		KPT_EQ(kpt_count(vm, KPT_GFN + 5), 1);
		guest_write(vcpu, KPT_GVA + 0x3018);
		expect_write(kpt_dev, KPT_GPA + 0x3018);
		guest_write(vcpu, KPT_GVA + 0x5018);
		expect_write(kpt_dev, KPT_GPA + 0x5018);
		guest_write(vcpu, KPT_GVA + 0x4018);
		expect_nothing(kpt_dev);
		KPT_OK(kpt_remove(vm, KPT_GFN + 5));
	}
	KPT_OK(kpt_remove(vm, KPT_GFN + 3));
	KPT_OK(kpt_remove(vm, KPT_GFN + 3));
	KPT_REFUSED(vm, KPT_GFN + 3, kpt_remove(vm, KPT_GFN + 3), ENOENT);
	guest_write(vcpu, KPT_GVA + 0x3010);
	expect_nothing(kpt_dev);
	KPT_OK(kpt_unreg(kpt_dev, id));
	kvm_vm_free(vm);
}

static void delete_and_create(void)
{
	static struct kpt_event ev[32];
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = kpt_vm(&vcpu, guest_code, NPAGES,
				   VM_MEM_SRC_ANONYMOUS);
	static const u32 types[] = { KPT_NOTIFIER, KPT_CLIENT, KPT_CLIENT_MOVE };
	int id[3], n, i, k, seen, turn;
	struct userspace_mem_region *region = memslot2region(vm, KPT_SLOT);
	void *mem = region->host_mem;
	u64 size = region->region.memory_size;

	for (i = 0; i < 3; i++) {
		id[i] = kpt_reg(kpt_dev, vm, types[i], KPT_REG_RECORD);
		TEST_ASSERT(id[i] >= 0, "register: %d", id[i]);
	}

	for (turn = 0; turn < 3; turn++) {
		KPT_OK(kpt_call_n(kpt_dev, KPT_OP_ADD_PAGE, vm, KPT_GFN + 2, 3, NULL));
		KPT_OK(kpt_add(vm, KPT_GFN + NPAGES - 1));
		guest_write(vcpu, KPT_GVA + 0x2008);
		KPT_EQ(kpt_events(kpt_dev, ev, 32), 3);

		vm_set_user_memory_region(vm, KPT_SLOT, 0, KPT_GPA, 0, mem);
		n = kpt_events(kpt_dev, ev, 32);
		KPT_EQ(n, 3);
		for (i = 0; i < 3; i++) {
			for (k = 0, seen = 0; k < n; k++) {
				if (ev[k].id != id[i])
					continue;
				seen++;
				KPT_EQ(ev[k].type, KPT_EV_REMOVE_REGION);
				KPT_EQ(ev[k].gpa, KPT_GFN);
				KPT_EQ(ev[k].len, NPAGES);
			}
			KPT_EQ(seen, 1);
			KPT_EQ(kpt_counters(kpt_dev, id[i]).removes, turn + 1);
		}
		KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).has_slot, 0);
		KPT_ERR(kpt_add(vm, KPT_GFN + 2), EINVAL);
		KPT_ERR(kpt_remove(vm, KPT_GFN + 2), EINVAL);

		/* the new one knows nothing of the old one's counts */
		vm_set_user_memory_region(vm, KPT_SLOT, 0, KPT_GPA, size, mem);
		KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).slot_sum, 0);
		if (kpt_tdp())
			KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).has_array, 0);
		KPT_REFUSED(vm, KPT_GFN + 2, kpt_remove(vm, KPT_GFN + 2), ENOENT);
		KPT_REFUSED(vm, KPT_GFN + 2, kpt_call(kpt_dev, KPT_OP_SLOT_REMOVE,
						      vm, KPT_GFN + 2), ENOENT);
		guest_write(vcpu, KPT_GVA + 0x2010);
		KPT_EQ(memory(vm, 0x2010), last_value);
		expect_nothing(kpt_dev);

		/* one add is one count, not four */
		KPT_OK(kpt_add(vm, KPT_GFN + 2));
		KPT_EQ(kpt_count(vm, KPT_GFN + 2), 1);
		guest_write(vcpu, KPT_GVA + 0x2018);
		KPT_EQ(kpt_events(kpt_dev, ev, 32), 3);
		KPT_OK(kpt_remove(vm, KPT_GFN + 2));
		KPT_REFUSED(vm, KPT_GFN + 2, kpt_remove(vm, KPT_GFN + 2), ENOENT);
	}
	for (i = 0; i < 3; i++) {
		KPT_EQ(kpt_counters(kpt_dev, id[i]).moves, 0);
		KPT_OK(kpt_unreg(kpt_dev, id[i]));
	}
	kvm_vm_free(vm);
}

/* Nobody is told of the deletion of what another VM has. */
static void delete_is_told_to_its_vm_only(void)
{
	struct kvm_vcpu *va, *vb;
	struct kvm_vm *a = kpt_vm(&va, guest_code, NPAGES, VM_MEM_SRC_ANONYMOUS);
	struct kvm_vm *b = kpt_vm(&vb, guest_code, NPAGES, VM_MEM_SRC_ANONYMOUS);
	int ia = kpt_reg(kpt_dev, a, KPT_NOTIFIER, 0);
	int ib = kpt_reg(kpt_dev, b, KPT_NOTIFIER, 0);

	TEST_ASSERT(ia >= 0 && ib >= 0, "register: %d %d", ia, ib);
	KPT_OK(kpt_add(b, KPT_GFN));
	vm_set_user_memory_region(a, KPT_SLOT, 0, KPT_GPA, 0, NULL);
	KPT_EQ(kpt_counters(kpt_dev, ia).removes, 1);
	KPT_EQ(kpt_counters(kpt_dev, ib).removes, 0);
	KPT_EQ(kpt_count(b, KPT_GFN), 1);
	KPT_OK(kpt_remove(b, KPT_GFN));
	kvm_vm_free(a);
	kvm_vm_free(b);
}

/* How often page i of the memslot is added. */
static const int counts[NPAGES] = { 1, 0, 2, 0, 0, 3, [15] = 1 };

static void add_counts(struct kvm_vm *vm, u64 gfn)
{
	int i, k;

	for (i = 0; i < NPAGES; i++)
		for (k = 0; k < counts[i]; k++)
			KPT_OK(kpt_add(vm, gfn + i));
}

static void expect_counts(struct kvm_vm *vm, u64 gfn)
{
	int i, sum = 0;

	for (i = 0; i < NPAGES; i++) {
		KPT_EQ(kpt_count(vm, gfn + i), counts[i]);
		sum += counts[i];
	}
	KPT_EQ(kpt_inspect(vm, 0, gfn).slot_sum, sum);
	KPT_EQ(kpt_inspect(vm, 0, gfn).base_gfn, gfn);
	KPT_EQ(kpt_inspect(vm, 0, gfn).npages, NPAGES);
}

/* Every page of the memslot, now at @gpa, seen through @gva by the guest. */
static void expect_tracked(struct kvm_vm *vm, struct kvm_vcpu *vcpu, u64 gva,
			   u64 gpa)
{
	int i;

	for (i = 0; i < NPAGES; i++) {
		u64 off = i * 4096 + 0x20;

		guest_write(vcpu, gva + off);
		KPT_EQ(memory(vm, off), last_value);
		if (counts[i])
			expect_write(kpt_dev, gpa + off);
		else
			expect_nothing(kpt_dev);
	}
}

static void remove_counts(struct kvm_vm *vm, u64 gfn)
{
	int i, k;

	for (i = 0; i < NPAGES; i++) {
		for (k = 0; k < counts[i]; k++)
			KPT_OK(kpt_remove(vm, gfn + i));
		KPT_REFUSED(vm, gfn + i, kpt_remove(vm, gfn + i), ENOENT);
	}
	KPT_EQ(kpt_inspect(vm, 0, gfn).slot_sum, 0);
}

static void expect_move(int id, u64 from, u64 to)
{
	struct kpt_event ev[4];

	KPT_EQ(kpt_events(kpt_dev, ev, 4), 1);
	KPT_EQ(ev[0].type, KPT_EV_MOVE_REGION);
	KPT_EQ(ev[0].id, id);
	KPT_EQ(ev[0].gpa, from);
	KPT_EQ(ev[0].new_gfn, to);
	KPT_EQ(ev[0].len, NPAGES);
}

static void moves(void)
{
	/* away, by one page (both ways), by all but one, next door, back */
	static const s64 steps[] = { 0x100, 1, -1, NPAGES - 1, NPAGES, -0x11f };
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = kpt_vm(&vcpu, guest_code, NPAGES,
				   VM_MEM_SRC_ANONYMOUS);
	int id = kpt_reg(kpt_dev, vm, KPT_CLIENT_MOVE, KPT_REG_RECORD);
	u64 gfn = KPT_GFN, to, gva = KPT_GVA + 0x100000;
	u32 i, users;
	int k;

	TEST_ASSERT(id >= 0, "register: %d", id);
	users = kpt_inspect(vm, 0, 0).users_count;
	add_counts(vm, gfn);
	expect_tracked(vm, vcpu, KPT_GVA, KPT_GPA);
	for (i = 0; i < ARRAY_SIZE(steps); i++) {
		to = gfn + steps[i];
		KPT_OK(move_to(vm, to << 12));
		expect_move(id, gfn, to);
		expect_counts(vm, to);
		for (k = 0; k < NPAGES; k++) {
			u64 old = gfn + k;

			if (old >= to && old < to + NPAGES)
				continue;
			KPT_EQ(kpt_inspect(vm, 0, old).has_slot, 0);
			KPT_ERR(kpt_add(vm, old), EINVAL);
			KPT_ERR(kpt_remove(vm, old), EINVAL);
		}
		/* a fresh view of the new place for the guest */
		virt_map(vm, gva, to << 12, NPAGES);
		expect_tracked(vm, vcpu, gva, to << 12);
		gva += 0x100000;
		gfn = to;
	}
	KPT_EQ(gfn, KPT_GFN);
	KPT_EQ(kpt_counters(kpt_dev, id).moves, ARRAY_SIZE(steps));
	KPT_EQ(kpt_counters(kpt_dev, id).removes, 0);
	KPT_EQ(kpt_inspect(vm, 0, 0).users_count, users);
	remove_counts(vm, gfn);
	for (k = 0; k < NPAGES; k++) {
		guest_write(vcpu, KPT_GVA + k * 4096);
		KPT_EQ(memory(vm, k * 4096), last_value);
		expect_nothing(kpt_dev);
	}
	KPT_OK(kpt_unreg(kpt_dev, id));
	kvm_vm_free(vm);
}

/* Several clients, each told once; the callbacks may call. */
static void calls_in_move_callbacks(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = kpt_vm(&vcpu, guest_code, NPAGES,
				   VM_MEM_SRC_ANONYMOUS);
	struct kpt_register reg = {
		.vm_fd = vm->fd, .type = KPT_CLIENT_MOVE,
		.flags = KPT_REG_MOVE_CALLS, .id = -1,
	};
	struct kpt_counters c;
	int other, own, gone;

	/* a memslot without counters (but under shadow paging) */
	reg.cb_gfn = 0x10;
	other = kpt_reg_full(kpt_dev, &reg);
	/* the one that moves, at its old place and at its new one */
	reg.id = -1;
	reg.cb_gfn = KPT_GFN + 1;
	gone = kpt_reg_full(kpt_dev, &reg);
	reg.id = -1;
	reg.cb_gfn = KPT_GFN + 0x1001;
	own = kpt_reg_full(kpt_dev, &reg);
	TEST_ASSERT(other >= 0 && gone >= 0 && own >= 0, "register: %d %d %d",
		    other, gone, own);

	add_counts(vm, KPT_GFN);
	KPT_OK(move_to(vm, KPT_GPA + 0x1000000));
	expect_counts(vm, KPT_GFN + 0x1000);

	c = kpt_counters(kpt_dev, other);
	KPT_EQ(c.moves, 1);
	KPT_EQ(c.move_errno[0], kpt_tdp() ? -EAGAIN : 0);
	KPT_EQ(c.move_errno[1], -EAGAIN);
	KPT_EQ(c.move_errno[2], kpt_tdp() ? -ENOENT : 0);
	c = kpt_counters(kpt_dev, gone);
	KPT_EQ(c.moves, 1);
	KPT_EQ(c.move_errno[0], -EAGAIN);
	KPT_EQ(c.move_errno[1], -EAGAIN);
	KPT_EQ(c.move_errno[2], -EAGAIN);
	/* not visible yet */
	c = kpt_counters(kpt_dev, own);
	KPT_EQ(c.moves, 1);
	TEST_ASSERT(c.move_errno[0] == -EINVAL || c.move_errno[0] == -EAGAIN,
		    "add at the new place: %d", c.move_errno[0]);
	TEST_ASSERT(c.move_errno[2] == -EINVAL || c.move_errno[2] == -EAGAIN,
		    "remove at the new place: %d", c.move_errno[2]);
	KPT_EQ(kpt_count(vm, 0x10), 0);
	remove_counts(vm, KPT_GFN + 0x1000);
	kvm_vm_free(vm);
}

/* Pages are tracked, nobody is registered: nobody objects. */
static void move_without_notifiers(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = kpt_vm(&vcpu, guest_code, NPAGES,
				   VM_MEM_SRC_ANONYMOUS);

	add_counts(vm, KPT_GFN);
	KPT_OK(move_to(vm, KPT_GPA + 0x3000));
	expect_counts(vm, KPT_GFN + 3);
	remove_counts(vm, KPT_GFN + 3);
	/* and nothing tracked at all */
	KPT_OK(move_to(vm, KPT_GPA));
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).slot_sum, 0);
	kvm_vm_free(vm);
}

/* The types that are registered while the move is tried, and its errno. */
static void refused_move(u32 type, int err, bool follower)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = kpt_vm(&vcpu, guest_code, NPAGES,
				   VM_MEM_SRC_ANONYMOUS);
	int id = kpt_reg(kpt_dev, vm, type, KPT_REG_RECORD);
	int f = -1;

	TEST_ASSERT(id >= 0, "register: %d", id);
	if (follower) {
		f = kpt_reg(kpt_dev, vm, KPT_CLIENT_MOVE, 0);
		TEST_ASSERT(f >= 0, "register: %d", f);
	}
	add_counts(vm, KPT_GFN);
	expect_tracked(vm, vcpu, KPT_GVA, KPT_GPA);

	KPT_REFUSED(vm, KPT_GFN + 5, move_to(vm, KPT_GPA + 0x100000), err);
	KPT_REFUSED(vm, KPT_GFN + 5, move_to(vm, KPT_GPA + 0x1000), err);
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN + 0x100).has_slot, 0);
	expect_nothing(kpt_dev);
	expect_counts(vm, KPT_GFN);
	expect_tracked(vm, vcpu, KPT_GVA, KPT_GPA);
	if (follower) {
		KPT_EQ(kpt_counters(kpt_dev, f).moves, 0);
		KPT_EQ(kpt_counters(kpt_dev, f).removes, 0);
	}
	KPT_EQ(kpt_counters(kpt_dev, id).removes, 0);

	/* without the one that objects it goes */
	KPT_OK(kpt_unreg(kpt_dev, id));
	KPT_OK(move_to(vm, KPT_GPA + 0x100000));
	expect_counts(vm, KPT_GFN + 0x100);
	if (follower)
		KPT_EQ(kpt_counters(kpt_dev, f).moves, 1);
	remove_counts(vm, KPT_GFN + 0x100);
	kvm_vm_free(vm);
}

static void refused_by_notifier(void)
{
	refused_move(KPT_NOTIFIER, refusal(), false);
	refused_move(KPT_NOTIFIER, refusal(), true);
}

static struct kvm_vm *changing_vm;
static volatile bool changing;
static volatile u64 tries;

/* A move that is refused, again and again. */
static void *tries_to_move(void *arg)
{
	do {
		KPT_ERR(move_to(changing_vm, KPT_GPA + 0x100000), refusal());
		tries++;
	} while (changing);
	return NULL;
}

static void *deletes(void *arg)
{
	vm_mem_region_delete(changing_vm, KPT_SLOT);
	return NULL;
}

/*
 * The memslot is INVALID, before KVM decides what becomes of it.  By upstream's
 * names a page is added and removed all the same, as in C: with a notifier of
 * upstream's it is not moved; and if it is deleted, the counts go with it.
 */
static void as_upstream(void *(*change)(void *))
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = kpt_vm(&vcpu, guest_code, NPAGES,
				   VM_MEM_SRC_ANONYMOUS);
	int id = kpt_reg(kpt_dev, vm, KPT_NOTIFIER, KPT_REG_RECORD);
	pthread_t t;
	u64 i;

	TEST_ASSERT(id >= 0, "register: %d", id);
	changing_vm = vm;
	changing = false;
	KPT_OK(kpt_probe("kvm_arch_flush_shadow_memslot", KPT_PROBE_SLEEP));
	pthread_create(&t, NULL, change, NULL);
	kpt_probe_wait();
	/* the very first add of the memslot is one of these */
	KPT_OK(kpt_call(kpt_dev, KPT_OP_WRITE_ADD, vm, KPT_GFN + 1));
	KPT_OK(kpt_call(kpt_dev, KPT_OP_WRITE_ADD, vm, KPT_GFN + 2));
	KPT_OK(kpt_call(kpt_stock, KPT_OP_WRITE_ADD, vm, KPT_GFN + 2));
	KPT_EQ(kpt_count(vm, KPT_GFN + 1), 1);
	KPT_EQ(kpt_count(vm, KPT_GFN + 2), 2);
	KPT_OK(kpt_call(kpt_dev, KPT_OP_WRITE_REMOVE, vm, KPT_GFN + 2));
	KPT_OK(kpt_call(kpt_stock, KPT_OP_WRITE_REMOVE, vm, KPT_GFN + 2));
	KPT_REFUSED(vm, KPT_GFN + 2, kpt_call(kpt_dev, KPT_OP_WRITE_REMOVE, vm,
					      KPT_GFN + 2), ENOENT);
	KPT_REFUSED(vm, KPT_GFN + 1, kpt_add(vm, KPT_GFN + 1), EAGAIN);
	KPT_REFUSED(vm, KPT_GFN + 1, kpt_remove(vm, KPT_GFN + 1), EAGAIN);
	KPT_OK(kpt_probe(NULL, KPT_PROBE_OFF));
	pthread_join(t, NULL);
	if (change == deletes) {
		KPT_REFUSED(vm, KPT_GFN + 1, kpt_call(kpt_dev, KPT_OP_WRITE_REMOVE, vm,
						      KPT_GFN + 1), EINVAL);
		KPT_OK(kpt_unreg(kpt_dev, id));
		kvm_vm_free(vm);
		return;
	}
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).slot_sum, 1);
	guest_write(vcpu, KPT_GVA + 0x1000);
	expect_write(kpt_dev, KPT_GPA + 0x1000);
	KPT_EQ(memory(vm, 0x1000), last_value);
	KPT_OK(kpt_call(kpt_dev, KPT_OP_WRITE_REMOVE, vm, KPT_GFN + 1));

	/* and at any other moment of it */
	changing = true;
	tries = 0;
	pthread_create(&t, NULL, change, NULL);
	for (i = 0; i < 500 || tries < 30; i++) {
		KPT_OK(kpt_call(kpt_dev, KPT_OP_WRITE_ADD, vm, KPT_GFN + (i & (NPAGES - 1))));
		KPT_OK(kpt_call(kpt_dev, KPT_OP_WRITE_REMOVE, vm, KPT_GFN + (i & (NPAGES - 1))));
	}
	changing = false;
	pthread_join(t, NULL);
	printf("# %lu adds and removes during %lu refused moves\n", i, tries);
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).slot_sum, 0);
	KPT_OK(kpt_unreg(kpt_dev, id));
	kvm_vm_free(vm);
}

static void upstream_on_an_invalid_memslot(void)
{
	as_upstream(tries_to_move);
	as_upstream(deletes);
}

static void refused_by_client(void)
{
	refused_move(KPT_CLIENT, ENOMEM, false);
	refused_move(KPT_CLIENT, ENOMEM, true);
}

/* disallow_lpage of every 2 MiB is one per count, at the new place. */
static void large_pages_follow(void)
{
	enum { REGIONS = 4 };
	static const int per_region[REGIONS] = { 0, 3, 0, 1 };
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	int id, i, base[REGIONS + 1];
	u64 gfn = KPT_GFN, to;

	kpt_need_hugepages(REGIONS);
	vm = __vm_create_with_one_vcpu(&vcpu, 64, guest_code);
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS_HUGETLB_2MB, KPT_GPA,
				    KPT_SLOT, REGIONS * 512, 0);
	id = kpt_reg(kpt_dev, vm, KPT_CLIENT_MOVE, 0);
	TEST_ASSERT(id >= 0, "register: %d", id);

	/* what it is without any tracking, where it is going */
	to = gfn + 512 * 3;
	KPT_OK(move_to(vm, to << 12));
	for (i = 0; i < REGIONS; i++)
		base[i] = kpt_inspect(vm, 0, to + i * 512).lpage_2m;
	KPT_OK(move_to(vm, gfn << 12));

	KPT_OK(kpt_call_n(kpt_dev, KPT_OP_ADD_PAGE, vm, gfn + 512 + 7, 2, NULL));
	KPT_OK(kpt_add(vm, gfn + 512 + 511));
	KPT_OK(kpt_add(vm, gfn + 3 * 512 + 511));
	for (i = 0; i < REGIONS; i++)
		KPT_EQ(kpt_inspect(vm, 0, gfn + i * 512).lpage_2m,
		       base[i] + per_region[i]);

	KPT_OK(move_to(vm, to << 12));
	for (i = 0; i < REGIONS; i++)
		KPT_EQ(kpt_inspect(vm, 0, to + i * 512).lpage_2m,
		       base[i] + per_region[i]);
	KPT_EQ(kpt_inspect(vm, 0, to).slot_sum, 4);

	virt_map_level(vm, KPT_GVA, to << 12, REGIONS * 0x200000ull, PG_LEVEL_2M);
	guest_write(vcpu, KPT_GVA + 2 * 0x200000 + 8);
	i = vm_get_stat(vm, pages_2m);
	guest_write(vcpu, KPT_GVA + 8);
	KPT_EQ(vm_get_stat(vm, pages_2m), i + 1);
	guest_write(vcpu, KPT_GVA + 0x200000 + 8);
	KPT_EQ(vm_get_stat(vm, pages_2m), i + 1);
	KPT_EQ(kpt_counters(kpt_dev, id).writes, 0);
	guest_write(vcpu, KPT_GVA + 0x200000 + 7 * 4096);
	KPT_EQ(kpt_counters(kpt_dev, id).writes, 1);
	KPT_EQ(memory(vm, 0x200000 + 7 * 4096), last_value);

	/*
	 * To a place that does not match the host's 2 MiB: no large pages at
	 * all there, and the counts on top.
	 */
	gfn = to;
	to += 1;
	KPT_OK(move_to(vm, to << 12));
	KPT_EQ(kpt_count(vm, to + 512 + 7), 2);
	/* page 511 of region 1 is in the next 2 MiB now */
	KPT_EQ(kpt_inspect(vm, 0, to + 512).lpage_2m, 1 + 2);
	KPT_EQ(kpt_inspect(vm, 0, to + 1024).lpage_2m, 1 + 1);
	KPT_OK(kpt_remove(vm, to + 512 + 7));
	KPT_OK(kpt_remove(vm, to + 512 + 7));
	KPT_OK(kpt_remove(vm, to + 512 + 511));
	KPT_OK(kpt_remove(vm, to + 3 * 512 + 511));
	KPT_EQ(kpt_inspect(vm, 0, to + 512).lpage_2m, 1);
	KPT_EQ(kpt_inspect(vm, 0, to + 1024).lpage_2m, 1);

	/* and back, where it may be large */
	KPT_OK(move_to(vm, gfn << 12));
	for (i = 0; i < REGIONS; i++)
		KPT_EQ(kpt_inspect(vm, 0, gfn + i * 512).lpage_2m, base[i]);
	kvm_vm_free(vm);
}

static const struct kpt_test tests[] = {
	{ "flags-only changes keep tracking", flags_only_change },
	{ "delete calls track_remove_region once, create starts untracked",
	  delete_and_create },
	{ "a deletion is told to its own VM", delete_is_told_to_its_vm_only },
	{ "counts follow a move, also one that overlaps", moves },
	{ "calls in track_move_region", calls_in_move_callbacks },
	{ "counts follow a move without any notifier", move_without_notifiers },
	{ "a notifier refuses moves, nothing changed",
	  refused_by_notifier },
	{ "a client without track_move_region refuses moves: -ENOMEM",
	  refused_by_client },
	{ "upstream's names while a memslot is refused to move, or deleted",
	  upstream_on_an_invalid_memslot, 120 },
	{ "large page counts follow a move", large_pages_follow },
};

int main(void)
{
	return kpt_main(tests, ARRAY_SIZE(tests), KPT_NEED_CLIENT);
}
