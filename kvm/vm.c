// SPDX-License-Identifier: GPL-2.0-only
/*
 * The table of VMs that the module knows: the kernel's hash list, read under RCU,
 * written under the mutex of vm.rs.
 */
#include <linux/hashtable.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>

#include "kvm.h"

static DEFINE_HASHTABLE(kpt_vms, 8);

/* What is found stays as long as @kvm has users.  Any context. */
struct kpt_vm *KPT_DIRECT kpt_vm_find(struct kvm *kvm)
{
	struct kpt_vm *vm, *found = NULL;

	rcu_read_lock();
	hash_for_each_possible_rcu(kpt_vms, vm, node, (unsigned long)kvm) {
		if (vm->kvm == kvm) {
			found = vm;
			break;
		}
	}
	rcu_read_unlock();
	return found;
}

/* The same with the VM's mmu_lock held for write, which is a read section of RCU. */
struct kpt_vm *KPT_DIRECT kpt_vm_find_locked(struct kvm *kvm)
{
	struct kpt_vm *vm;

	lockdep_assert_held_write(&kvm->mmu_lock);
	hash_for_each_possible_rcu(kpt_vms, vm, node, (unsigned long)kvm) {
		if (vm->kvm == kvm)
			return vm;
	}
	return NULL;
}

void kpt_vm_insert(struct kpt_vm *vm)
{
	hash_add_rcu(kpt_vms, &vm->node, (unsigned long)vm->kvm);
}

/* Readers may still look at it: it is freed after a grace period. */
void kpt_vm_remove(struct kpt_vm *vm)
{
	hash_del_rcu(&vm->node);
	kfree_rcu(vm, rcu);
}

static struct kpt_vm *first_from(unsigned int *bucket)
{
	for (; *bucket < HASH_SIZE(kpt_vms); (*bucket)++) {
		struct hlist_node *node = kpt_vms[*bucket].first;

		if (node)
			return hlist_entry(node, struct kpt_vm, node);
	}
	return NULL;
}

/* All of them, in buckets from *@bucket on.  With the mutex held. */
struct kpt_vm *kpt_vm_first(unsigned int *bucket)
{
	*bucket = 0;
	return first_from(bucket);
}

struct kpt_vm *kpt_vm_next(struct kpt_vm *vm, unsigned int *bucket)
{
	if (vm->node.next)
		return hlist_entry(vm->node.next, struct kpt_vm, node);
	(*bucket)++;
	return first_from(bucket);
}
