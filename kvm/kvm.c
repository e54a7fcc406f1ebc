// SPDX-License-Identifier: GPL-2.0-only
/*
 * C for Rust: inline functions and macros of the kernel, and direct calls to
 * functions that kvm.ko does not export.  No logic lives here.
 */
#include <linux/debugfs.h>
#include <linux/kvm_host.h>
#include <linux/module.h>
#include <linux/poison.h>
#include <linux/rculist.h>
#include <linux/srcu.h>
#include <linux/static_call.h>
#include <linux/vmalloc.h>

/* KVM's own headers: struct kvm_mmu_page and struct kvm_svm. */
#include "x86.h"
#include "mmu.h"
#include "mmu/mmu_internal.h"
#include "mmu/tdp_mmu.h"
#include "svm/svm.h"

#include "kvm.h"

/*
 * kvm.ko's own functions.  Their ENDBR is sealed away in distribution kernels:
 * an indirect call would be a fatal #CP on a CPU with IBT.  A static_call is a
 * direct call whose target is written once, before the first hook is attached.
 */
typedef void (kpt_flush_fn)(struct kvm *kvm);
typedef bool (kpt_protect_fn)(struct kvm *kvm, struct kvm_memory_slot *slot,
			      u64 gfn, int min_level);
typedef bool (kpt_enabled_fn)(struct kvm *kvm);

DEFINE_STATIC_CALL_NULL(kpt_flush, kpt_flush_fn);
DEFINE_STATIC_CALL_RET0(kpt_protect, kpt_protect_fn);
DEFINE_STATIC_CALL_RET0(kpt_tdp_protect, kpt_protect_fn);
DEFINE_STATIC_CALL_RET0(kpt_enabled, kpt_enabled_fn);

/* clients.rs calls and updates these. */
DEFINE_STATIC_CALL_NULL(kpt_written, kpt_write_to_clients);
DEFINE_STATIC_CALL_NULL(kpt_deleted, kpt_deletion_to_clients);

void kpt_set_kvm_function(enum kpt_kvm_function which, unsigned long addr)
{
	switch (which) {
	case KPT_KVM_FLUSH_REMOTE_TLBS:
		static_call_update(kpt_flush, (kpt_flush_fn *)addr);
		break;
	case KPT_KVM_MMU_SLOT_GFN_WRITE_PROTECT:
		static_call_update(kpt_protect, (kpt_protect_fn *)addr);
		break;
	case KPT_KVM_PAGE_TRACK_WRITE_TRACKING_ENABLED:
		static_call_update(kpt_enabled, (kpt_enabled_fn *)addr);
		break;
	case KPT_KVM_TDP_MMU_WRITE_PROTECT_GFN:
		static_call_update(kpt_tdp_protect, (kpt_protect_fn *)addr);
		break;
	case KPT_KVM_FUNCTIONS:
		break;
	}
}

void KPT_DIRECT kpt_flush_remote_tlbs(struct kvm *kvm)
{
	static_call(kpt_flush)(kvm);
}

bool KPT_DIRECT kpt_slot_gfn_write_protect(struct kvm *kvm,
					   struct kvm_memory_slot *slot,
					   gfn_t gfn)
{
	return static_call(kpt_protect)(kvm, slot, gfn, PG_LEVEL_4K);
}

bool KPT_DIRECT kpt_tdp_mmu_write_protect(struct kvm *kvm,
					  struct kvm_memory_slot *slot, gfn_t gfn)
{
	return static_call(kpt_tdp_protect)(kvm, slot, gfn, PG_LEVEL_4K);
}

bool kpt_write_tracking_enabled(struct kvm *kvm)
{
	return static_call(kpt_enabled)(kvm);
}

/* Where it is inline; else Rust calls it. */
void kpt_write_unlock(rwlock_t *lock)
{
	write_unlock(lock);
}

bool kpt_mmu_is_wanted(struct kvm *kvm)
{
	return need_resched() || rwlock_needbreak(&kvm->mmu_lock);
}

void kpt_mmu_write_yield(struct kvm *kvm)
{
	cond_resched_rwlock_write(&kvm->mmu_lock);
}

void kpt_mmu_read_lock(struct kvm *kvm)
{
	read_lock(&kvm->mmu_lock);
}

void kpt_mmu_read_unlock(struct kvm *kvm)
{
	read_unlock(&kvm->mmu_lock);
}

/* kvm.rs computes kvm_page_table_hashfn(). */
static_assert(KPT_SHADOW_HASH_SHIFT == KVM_MMU_HASH_SHIFT);
#ifdef CONFIG_HAVE_ARCH_HASH
#error "hash_64() is not the generic one"
#endif

/*
 * The shadow pages of @gfn in address space 0 for which KVM counts it as
 * tracked: those of guest page tables (not direct, not passed through) that are
 * not leaves, from when they are made until they are zapped (made invalid).
 * @bucket is where KVM links them.
 */
unsigned int KPT_DIRECT kpt_shadow_page_tables(struct kvm *kvm,
					       const struct hlist_head *bucket,
					       gfn_t gfn)
{
	struct kvm_mmu_page *sp;
	unsigned int n = 0;

	lockdep_assert_held(&kvm->mmu_lock);
	hlist_for_each_entry(sp, bucket, hash_link) {
		union kvm_mmu_page_role role = sp->role;

		if (sp->gfn == gfn && role.level > PG_LEVEL_4K && !role.smm &&
		    !role.invalid && !role.direct && !role.passthrough)
			n++;
	}
	return n;
}

/* Whether one is there at all, of whatever role that KVM counts. */
bool KPT_DIRECT kpt_finds_shadow_page(const struct hlist_head *bucket, gfn_t gfn)
{
	struct kvm_mmu_page *sp;

	hlist_for_each_entry(sp, bucket, hash_link) {
		if (sp->gfn == gfn && sp->role.level > PG_LEVEL_4K &&
		    !sp->role.direct)
			return true;
	}
	return false;
}

void kpt_slots_arch_lock(struct kvm *kvm)
{
	mutex_lock(&kvm->slots_arch_lock);
}

void kpt_slots_arch_unlock(struct kvm *kvm)
{
	mutex_unlock(&kvm->slots_arch_lock);
}

int kpt_nr_address_spaces(struct kvm *kvm)
{
	return kvm_arch_nr_memslot_as_ids(kvm);
}

/* What __gfn_to_memslot() does if it is not the memslot that was found last. */
struct kvm_memory_slot *KPT_DIRECT kpt_search_slots(struct kvm_memslots *slots,
						    gfn_t gfn)
{
	struct kvm_memory_slot *slot = search_memslots(slots, gfn, false);

	if (slot)
		atomic_long_set(&slots->last_used_slot, (unsigned long)slot);
	return slot;
}

static struct kvm_memory_slot *slot_of(const struct kvm_memslots *slots,
				       struct rb_node *node)
{
	if (!node)
		return NULL;
	return container_of(node, struct kvm_memory_slot,
			    gfn_node[slots->node_idx]);
}

const struct kvm_memslots *kpt_active_slots(struct kvm *kvm, int as_id)
{
	return __kvm_memslots(kvm, as_id);
}

struct kvm_memory_slot *kpt_first_slot(const struct kvm_memslots *slots)
{
	return slot_of(slots, rb_first(&slots->gfn_tree));
}

struct kvm_memory_slot *kpt_next_slot(const struct kvm_memslots *slots,
				      const struct kvm_memory_slot *slot)
{
	return slot_of(slots, rb_next(&slot->gfn_node[slots->node_idx]));
}

struct kvm_memory_slot *kpt_inactive_slot(struct kvm *kvm, int as_id, int id)
{
	int active = __kvm_memslots(kvm, as_id)->node_idx;

	return id_to_memslot(&kvm->__memslots[as_id][active ^ 1], id);
}

void *kpt_alloc_counters(unsigned long npages)
{
	return __vcalloc(npages, sizeof(u16), GFP_KERNEL_ACCOUNT);
}

unsigned long kpt_sev_active __ro_after_init;

void kpt_find_sev_active(void)
{
#ifdef CONFIG_KVM_AMD_SEV
	/* Where there is SVM every VM is kvm-amd's. */
	if (boot_cpu_has(X86_FEATURE_SVM))
		kpt_sev_active = offsetof(struct kvm_svm, sev_info.active);
#endif
}

#ifdef CONFIG_KUNIT
/* For the unit tests: a VM as kvm-amd makes it. */
const size_t kpt_unit_vm_size = sizeof(struct kvm_svm);

bool kpt_unit_make_sev(struct kvm *kvm)
{
#ifdef CONFIG_KVM_AMD_SEV
	to_kvm_svm(kvm)->sev_info.active = true;
	return boot_cpu_has(X86_FEATURE_SVM);
#else
	return false;
#endif
}
#endif

DEFINE_SRCU(kpt_guard);

/* What these do beyond __srcu_read_lock() is for lockdep; else Rust calls that. */
int kpt_srcu_read_lock(struct srcu_struct *srcu)
{
	return srcu_read_lock(srcu);
}

void kpt_srcu_read_unlock(struct srcu_struct *srcu, int idx)
{
	srcu_read_unlock(srcu, idx);
}

struct srcu_struct *kpt_srcu_alloc(void)
{
	struct srcu_struct *srcu = kzalloc_obj(*srcu, GFP_KERNEL_ACCOUNT);

	if (srcu && init_srcu_struct(srcu)) {
		kfree(srcu);
		return NULL;
	}
	return srcu;
}

void kpt_srcu_free(struct srcu_struct *srcu)
{
	cleanup_srcu_struct(srcu);
	kfree(srcu);
}

void kpt_hlist_del_rcu(struct hlist_node *n)
{
	hlist_del_rcu(n);
}

/*
 * Whether a node is certainly in no list: one that was zeroed, or that
 * hlist_del_rcu(), C's or ours, has taken out.
 */
bool kpt_node_is_free(const struct hlist_node *n)
{
	return hlist_unhashed(n) || n->pprev == LIST_POISON2;
}

void kpt_sleep_idle(void)
{
	schedule_timeout_idle(MAX_SCHEDULE_TIMEOUT);
}

void kpt_warn_once(void)
{
	WARN_ON_ONCE(1);
}

void kpt_cond_resched(void)
{
	cond_resched();
}

static int kpt_hooks_show(struct seq_file *m, void *unused)
{
	kpt_show_hooks(m);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(kpt_hooks);

static int kpt_vms_show(struct seq_file *m, void *unused)
{
	kpt_show_vms(m);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(kpt_vms);

struct dentry *kpt_debugfs_create(void)
{
	struct dentry *dir = debugfs_create_dir("kvm_page_track", NULL);

	debugfs_create_file("hooks", 0400, dir, NULL, &kpt_hooks_fops);
	debugfs_create_file("vms", 0400, dir, NULL, &kpt_vms_fops);
	return dir;
}

void kpt_debugfs_remove(struct dentry *dir)
{
	debugfs_remove(dir);
}
