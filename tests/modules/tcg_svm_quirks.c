// SPDX-License-Identifier: GPL-2.0-only
/*
 * Two faults of QEMU's emulated SVM, mended for the tests.  Refuses to load
 * anywhere but in a machine emulated by QEMU (TCG).
 *
 * 1. After an event was delivered QEMU clears the VALID bit of EXITINTINFO and
 *    leaves the type behind.  KVM looks at the type in
 *    svm_check_emulate_instruction() and takes the next emulated access for one
 *    that happened during the delivery: KVM_INTERNAL_ERROR_DELIVERY_EV.
 * 2. QEMU takes every "mov reg, CRn" for a read of CR0 and tests that intercept
 *    alone.  Under shadow paging KVM wants reads of CR3 intercepted and may not
 *    care for CR0: the guest then reads the shadow CR3.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/kprobes.h>
#include <linux/module.h>
#include <asm/cpuid/api.h>

#include "svm.h"

#define TCG_CPUID_LEAF	0x40000000

static int fix_exit_int_info(struct kprobe *p, struct pt_regs *regs)
{
	struct kvm_vcpu *vcpu = (struct kvm_vcpu *)regs_get_kernel_argument(regs, 0);
	struct vmcb_control_area *control = &to_svm(vcpu)->vmcb->control;

	if (!(control->exit_int_info & SVM_EXITINTINFO_VALID))
		control->exit_int_info = 0;
	return 0;
}

static int fix_cr0_read(struct kprobe *p, struct pt_regs *regs)
{
	struct kvm_vcpu *vcpu = (struct kvm_vcpu *)regs_get_kernel_argument(regs, 0);
	struct vmcb *vmcb = to_svm(vcpu)->vmcb;

	if (vmcb_is_intercept(&vmcb->control, INTERCEPT_CR3_READ) &&
	    !vmcb_is_intercept(&vmcb->control, INTERCEPT_CR0_READ)) {
		vmcb_set_intercept(&vmcb->control, INTERCEPT_CR0_READ);
		vmcb_mark_dirty(vmcb, VMCB_INTERCEPTS);
	}
	return 0;
}

static struct kprobe probe_emulate = {
	.symbol_name = "svm_check_emulate_instruction",
	.pre_handler = fix_exit_int_info,
};

static struct kprobe probe_switch = {
	.symbol_name = "svm_prepare_switch_to_guest",
	.pre_handler = fix_cr0_read,
};

static struct kprobe *probes[] = { &probe_emulate, &probe_switch };

static bool __init on_tcg(void)
{
	u32 eax, sig[3];

	if (!boot_cpu_has(X86_FEATURE_HYPERVISOR))
		return false;
	cpuid(TCG_CPUID_LEAF, &eax, &sig[0], &sig[1], &sig[2]);
	return !memcmp(sig, "TCGTCGTCGTCG", sizeof(sig));
}

static int __init quirks_init(void)
{
	int r;

	if (!on_tcg()) {
		pr_err("not a machine emulated by QEMU\n");
		return -ENODEV;
	}

	r = register_kprobes(probes, ARRAY_SIZE(probes));
	if (r)
		pr_err("no kprobe, is kvm-amd loaded? (%d)\n", r);
	return r;
}
module_init(quirks_init);

static void __exit quirks_exit(void)
{
	unregister_kprobes(probes, ARRAY_SIZE(probes));
}
module_exit(quirks_exit);

MODULE_DESCRIPTION("Mends two faults of QEMU's emulated SVM");
MODULE_LICENSE("GPL");
