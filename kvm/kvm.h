/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * C for Rust, of KVM: inline functions and macros, and direct calls to functions
 * that kvm.ko does not export.  No logic lives here.
 */
#ifndef _KPT_KVM_H
#define _KPT_KVM_H

#include <linux/kvm_host.h>
#include <asm/ibt.h>

/* Called often, and directly only: needs no ENDBR. */
#define KPT_DIRECT	__noendbr

/* Functions of kvm.ko that are not exported, by the order of their names. */
enum kpt_kvm_function {
	KPT_KVM_FLUSH_REMOTE_TLBS,
	KPT_KVM_MMU_GFN_ALLOW_LPAGE,
	KPT_KVM_MMU_GFN_DISALLOW_LPAGE,
	KPT_KVM_MMU_SLOT_GFN_WRITE_PROTECT,
	KPT_KVM_PAGE_TRACK_WRITE_TRACKING_ENABLED,
	KPT_KVM_TDP_MMU_WRITE_PROTECT_GFN,
	KPT_KVM_FUNCTIONS,
};

void kpt_set_kvm_function(enum kpt_kvm_function which, unsigned long addr);
void KPT_DIRECT kpt_flush_remote_tlbs(struct kvm *kvm);
void KPT_DIRECT kpt_allow_lpage(struct kvm_memory_slot *slot, gfn_t gfn);
void KPT_DIRECT kpt_disallow_lpage(struct kvm_memory_slot *slot, gfn_t gfn);
bool KPT_DIRECT kpt_slot_gfn_write_protect(struct kvm *kvm,
					   struct kvm_memory_slot *slot,
					   gfn_t gfn);
bool KPT_DIRECT kpt_tdp_mmu_write_protect(struct kvm *kvm,
					  struct kvm_memory_slot *slot, gfn_t gfn);
bool kpt_write_tracking_enabled(struct kvm *kvm);

/* mmu_lock and slots_arch_lock */
void KPT_DIRECT kpt_mmu_write_lock(struct kvm *kvm);
void KPT_DIRECT kpt_mmu_write_unlock(struct kvm *kvm);
bool kpt_mmu_is_wanted(struct kvm *kvm);
void kpt_mmu_write_yield(struct kvm *kvm);
void kpt_mmu_read_lock(struct kvm *kvm);
void kpt_mmu_read_unlock(struct kvm *kvm);
void kpt_slots_arch_lock(struct kvm *kvm);
void kpt_slots_arch_unlock(struct kvm *kvm);

/* KVM's shadow pages */
#define KPT_SHADOW_HASH_SHIFT	12	/* KVM's, as kvm.c asserts */
unsigned int KPT_DIRECT kpt_shadow_page_tables(struct kvm *kvm, gfn_t gfn);
bool KPT_DIRECT kpt_finds_shadow_page(struct kvm *kvm, gfn_t gfn);
bool KPT_DIRECT kpt_may_shadow(struct kvm *kvm, gfn_t gfn);

/* memslots */
int kpt_nr_address_spaces(struct kvm *kvm);
struct kvm_memory_slot *KPT_DIRECT kpt_find_slot(struct kvm_memslots *slots,
						 gfn_t gfn);
const struct kvm_memslots *kpt_active_slots(struct kvm *kvm, int as_id);
struct kvm_memory_slot *kpt_first_slot(const struct kvm_memslots *slots);
struct kvm_memory_slot *kpt_next_slot(const struct kvm_memslots *slots,
				      const struct kvm_memory_slot *slot);
struct kvm_memory_slot *kpt_inactive_slot(struct kvm *kvm, int as_id, int id);
void *kpt_alloc_counters(unsigned long npages);

/*
 * How far into a VM is the bool that sev_guest() of kvm-amd asks; 0 if there is
 * none.  Set once, by kpt_find_sev_active().
 */
extern unsigned long kpt_sev_active;
void kpt_find_sev_active(void);
extern const size_t kpt_unit_vm_size;
bool kpt_unit_make_sev(struct kvm *kvm);

/* What we keep of a VM, as the table of VMs sees it: vm.c, vm.rs. */
struct kpt_vm {
	struct hlist_node node;
	struct kvm *kvm;
	struct rcu_head rcu;
};

struct kpt_vm *KPT_DIRECT kpt_vm_find(struct kvm *kvm);
struct kpt_vm *KPT_DIRECT kpt_vm_find_locked(struct kvm *kvm);
void kpt_vm_insert(struct kpt_vm *vm);
void kpt_vm_remove(struct kpt_vm *vm);
struct kpt_vm *kpt_vm_first(unsigned int *bucket);
struct kpt_vm *kpt_vm_next(struct kpt_vm *vm, unsigned int *bucket);

#endif /* _KPT_KVM_H */
