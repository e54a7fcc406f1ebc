/* SPDX-License-Identifier: GPL-2.0-only */
/* Rust for C: without_tracking.rs. */
#ifndef _KPT_WITHOUT_TRACKING_H
#define _KPT_WITHOUT_TRACKING_H

#include <linux/kvm_host.h>

void kpt_vm_dies(struct kvm *kvm);
void kpt_write_emulated(struct kvm *kvm, gpa_t gpa, const u8 *new, int bytes);
void kpt_slot_deleted(struct kvm *kvm, struct kvm_memory_slot *slot);

#endif /* _KPT_WITHOUT_TRACKING_H */
