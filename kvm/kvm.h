/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * C for Rust: inline functions and macros of the kernel, and direct calls to
 * functions that kvm.ko does not export.  No logic lives here.
 */
#ifndef _KPT_HELPERS_H
#define _KPT_HELPERS_H

#include <linux/kvm_host.h>
#include <linux/seq_file.h>
#include <linux/static_call.h>
#include <asm/ibt.h>

/* Called often, and directly only: needs no ENDBR. */
#define KPT_DIRECT	__noendbr

/* Functions of kvm.ko that are not exported, by the order of their names. */
enum kpt_kvm_function {
	KPT_KVM_FLUSH_REMOTE_TLBS,
	KPT_KVM_MMU_SLOT_GFN_WRITE_PROTECT,
	KPT_KVM_PAGE_TRACK_WRITE_TRACKING_ENABLED,
	KPT_KVM_TDP_MMU_WRITE_PROTECT_GFN,
	KPT_KVM_FUNCTIONS,
};

void kpt_set_kvm_function(enum kpt_kvm_function which, unsigned long addr);
void KPT_DIRECT kpt_flush_remote_tlbs(struct kvm *kvm);
bool KPT_DIRECT kpt_slot_gfn_write_protect(struct kvm *kvm,
					   struct kvm_memory_slot *slot,
					   gfn_t gfn);
bool KPT_DIRECT kpt_tdp_mmu_write_protect(struct kvm *kvm,
					  struct kvm_memory_slot *slot, gfn_t gfn);
bool kpt_write_tracking_enabled(struct kvm *kvm);

/* kvm_host.h: locks and memslot lookups. */
void kpt_write_unlock(rwlock_t *lock);
bool kpt_mmu_is_wanted(struct kvm *kvm);
void kpt_mmu_write_yield(struct kvm *kvm);
void kpt_mmu_read_lock(struct kvm *kvm);
void kpt_mmu_read_unlock(struct kvm *kvm);
#define KPT_SHADOW_HASH_SHIFT	12	/* KVM's, as helpers.c asserts */
unsigned int KPT_DIRECT kpt_shadow_page_tables(struct kvm *kvm,
					       const struct hlist_head *bucket,
					       gfn_t gfn);
bool KPT_DIRECT kpt_finds_shadow_page(const struct hlist_head *bucket, gfn_t gfn);
void kpt_slots_arch_lock(struct kvm *kvm);
void kpt_slots_arch_unlock(struct kvm *kvm);
int kpt_nr_address_spaces(struct kvm *kvm);
struct kvm_memory_slot *KPT_DIRECT kpt_search_slots(struct kvm_memslots *slots,
						    gfn_t gfn);
const struct kvm_memslots *kpt_active_slots(struct kvm *kvm, int as_id);
struct kvm_memory_slot *kpt_first_slot(const struct kvm_memslots *slots);
struct kvm_memory_slot *kpt_next_slot(const struct kvm_memslots *slots,
				      const struct kvm_memory_slot *slot);
struct kvm_memory_slot *kpt_inactive_slot(struct kvm *kvm, int as_id, int id);
void *kpt_alloc_counters(unsigned long npages);
/*
 * How far into a VM is the bool that sev_guest() of kvm-amd asks; 0 if there is none.
 * Set once, by kpt_find_sev_active().
 */
extern unsigned long kpt_sev_active;
void kpt_find_sev_active(void);
extern const size_t kpt_unit_vm_size;
bool kpt_unit_make_sev(struct kvm *kvm);

/* The text guard: see guard.rs. */
extern struct srcu_struct kpt_guard;

/* rculist and srcu inlines. */
int kpt_srcu_read_lock(struct srcu_struct *srcu);
void kpt_srcu_read_unlock(struct srcu_struct *srcu, int idx);
struct srcu_struct *kpt_srcu_alloc(void);
void kpt_srcu_free(struct srcu_struct *srcu);
bool kpt_node_is_free(const struct hlist_node *n);
void kpt_hlist_del_rcu(struct hlist_node *n);

/* The way to clients: see clients.rs, which has these two functions. */
void kpt_write_to_clients(struct kvm *kvm, gpa_t gpa, const u8 *new, int bytes);
void kpt_deletion_to_clients(struct kvm *kvm, struct kvm_memory_slot *slot);
DECLARE_STATIC_CALL(kpt_written, kpt_write_to_clients);
DECLARE_STATIC_CALL(kpt_deleted, kpt_deletion_to_clients);

/*
 * Rust for C: called by kvm_without_tracking_edge.c, which is only built where KVM
 * does not track for other modules.
 */
void kpt_vm_dies(struct kvm *kvm);
void kpt_write_emulated(struct kvm *kvm, gpa_t gpa, const u8 *new, int bytes);
void kpt_slot_deleted(struct kvm *kvm, struct kvm_memory_slot *slot);

void kpt_sleep_idle(void);
void kpt_cond_resched(void);
void kpt_warn_once(void);

/*
 * debugfs: the files' operations are C's, because those of the Rust abstraction
 * have no owner, and an open file must keep the module.  The last two functions
 * are in debugfs.rs.
 */
struct dentry *kpt_debugfs_create(void);
void kpt_debugfs_remove(struct dentry *dir);
void kpt_show_hooks(struct seq_file *m);
void kpt_show_vms(struct seq_file *m);

#endif /* _KPT_HELPERS_H */
