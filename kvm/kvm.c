// SPDX-License-Identifier: GPL-2.0-only
/*
 * C for Rust, of KVM: inline functions and macros, and direct calls to functions
 * that kvm.ko does not export.  No logic lives here.
 */
#include <linux/hash.h>
#include <linux/kvm_host.h>
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
typedef void (kpt_lpage_fn)(const struct kvm_memory_slot *slot, gfn_t gfn);

DEFINE_STATIC_CALL_NULL(kpt_flush, kpt_flush_fn);
DEFINE_STATIC_CALL_NULL(kpt_allow, kpt_lpage_fn);
DEFINE_STATIC_CALL_NULL(kpt_disallow, kpt_lpage_fn);
DEFINE_STATIC_CALL_RET0(kpt_protect, kpt_protect_fn);
DEFINE_STATIC_CALL_RET0(kpt_tdp_protect, kpt_protect_fn);
DEFINE_STATIC_CALL_RET0(kpt_enabled, kpt_enabled_fn);

void kpt_set_kvm_function(enum kpt_kvm_function which, unsigned long addr)
{
	switch (which) {
	case KPT_KVM_FLUSH_REMOTE_TLBS:
		static_call_update(kpt_flush, (kpt_flush_fn *)addr);
		break;
	case KPT_KVM_MMU_GFN_ALLOW_LPAGE:
		static_call_update(kpt_allow, (kpt_lpage_fn *)addr);
		break;
	case KPT_KVM_MMU_GFN_DISALLOW_LPAGE:
		static_call_update(kpt_disallow, (kpt_lpage_fn *)addr);
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

void KPT_DIRECT kpt_allow_lpage(struct kvm_memory_slot *slot, gfn_t gfn)
{
	static_call(kpt_allow)(slot, gfn);
}

void KPT_DIRECT kpt_disallow_lpage(struct kvm_memory_slot *slot, gfn_t gfn)
{
	static_call(kpt_disallow)(slot, gfn);
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

void KPT_DIRECT kpt_mmu_write_lock(struct kvm *kvm)
{
	write_lock(&kvm->mmu_lock);
}

void KPT_DIRECT kpt_mmu_write_unlock(struct kvm *kvm)
{
	write_unlock(&kvm->mmu_lock);
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

/*
 * The first of the shadow pages that KVM has linked where those of a gfn are, from
 * when they are made until they are freed: kvm_page_table_hashfn() and
 * kvm_get_mmu_page_hash(), which are private to mmu.c.
 */
static_assert(KPT_SHADOW_HASH_SHIFT == KVM_MMU_HASH_SHIFT);

static __always_inline struct kvm_mmu_page *first_shadow(struct kvm *kvm, gfn_t gfn)
{
	/* Pairs with the smp_store_release() in kvm_mmu_alloc_page_hash(). */
	struct hlist_head *table = smp_load_acquire(&kvm->arch.mmu_page_hash);

	if (!table)
		return NULL;
	return hlist_entry_safe(READ_ONCE(table[hash_64(gfn, KPT_SHADOW_HASH_SHIFT)].first),
				struct kvm_mmu_page, hash_link);
}

/*
 * The shadow pages of @gfn in address space 0 for which KVM counts it as
 * tracked: those of guest page tables (not direct, not passed through) that are
 * not leaves, from when they are made until they are zapped (made invalid).
 *
 * To be asked only if there are shadow pages at all: KVM frees the table of a
 * dying VM when it has none any more.
 */
unsigned int KPT_DIRECT kpt_shadow_page_tables(struct kvm *kvm, gfn_t gfn)
{
	struct kvm_mmu_page *sp = first_shadow(kvm, gfn);
	unsigned int found = 0;

	lockdep_assert_held(&kvm->mmu_lock);
	hlist_for_each_entry_from(sp, hash_link) {
		union kvm_mmu_page_role role = sp->role;

		if (sp->gfn == gfn && role.level > PG_LEVEL_4K && !role.smm &&
		    !role.invalid && !role.direct && !role.passthrough)
			found++;
	}
	return found;
}

/* Whether one is there at all, of whatever role that KVM counts. */
bool KPT_DIRECT kpt_finds_shadow_page(struct kvm *kvm, gfn_t gfn)
{
	struct kvm_mmu_page *sp = first_shadow(kvm, gfn);

	lockdep_assert_held_write(&kvm->mmu_lock);
	hlist_for_each_entry_from(sp, hash_link) {
		if (sp->gfn == gfn && sp->role.level > PG_LEVEL_4K &&
		    !sp->role.direct)
			return true;
	}
	return false;
}

/*
 * Whether there may be one, without the lock: false only if none was linked at
 * that moment.  The caller is a vCPU: KVM frees the table after the last one.
 */
bool KPT_DIRECT kpt_may_shadow(struct kvm *kvm, gfn_t gfn)
{
	return first_shadow(kvm, gfn);
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

/* In a read section of kvm->srcu, or with slots_lock held. */
struct kvm_memory_slot *KPT_DIRECT kpt_find_slot(struct kvm_memslots *slots,
						 gfn_t gfn)
{
	return __gfn_to_memslot(slots, gfn);
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
