// SPDX-License-Identifier: GPL-2.0-only
/*
 * For a kvm.ko without CONFIG_KVM_EXTERNAL_WRITE_TRACKING: what runs before
 * three of its functions.  See without_tracking.rs.
 */
#include <linux/kvm_host.h>

#include "x86.h"
#include "mmu.h"

#include "without_tracking.h"

/* With the very prototypes: their arguments are what the stubs hand on. */
typeof(kvm_mmu_uninit_vm) kpt_before_uninit_vm;
typeof(kvm_mmu_track_write) kpt_before_track_write;
typeof(kvm_arch_commit_memory_region) kpt_before_commit_memory_region;

void kpt_before_uninit_vm(struct kvm *kvm)
{
	kpt_vm_dies(kvm);
}

void kpt_before_track_write(struct kvm_vcpu *vcpu, gpa_t gpa, const u8 *new,
			    int bytes)
{
	kpt_write_emulated(vcpu->kvm, gpa, new, bytes);
}

void kpt_before_commit_memory_region(struct kvm *kvm, struct kvm_memory_slot *old,
				     const struct kvm_memory_slot *new,
				     enum kvm_mr_change change)
{
	if (change == KVM_MR_DELETE)
		kpt_slot_deleted(kvm, old);
}
