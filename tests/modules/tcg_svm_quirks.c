// SPDX-License-Identifier: GPL-2.0-only
/*
 * Three faults of QEMU's emulated SVM, mended for the tests.  Refuses to load
 * anywhere but in a machine emulated by QEMU (TCG).
 *
 * 1. After an event was delivered QEMU clears the VALID bit of EXITINTINFO and
 *    leaves the type behind.  KVM looks at the type in
 *    svm_check_emulate_instruction() and takes the next emulated access for one
 *    that happened during the delivery: KVM_INTERNAL_ERROR_DELIVERY_EV.
 * 2. QEMU takes every "mov reg, CRn" for a read of CR0 and tests that intercept
 *    alone.  Under shadow paging KVM wants reads of CR3 intercepted and may not
 *    care for CR0: the guest then reads the shadow CR3.
 * 3. Having injected an interrupt (EVENTINJ), VMRUN leaves its vector behind as
 *    an exception to be raised.  If QEMU then leaves its loop for a reason of its
 *    own (-icount, other processors on the same thread) before the guest exits or
 *    faults, it raises it: the guest gets the interrupt twice, the second time even
 *    with interrupts disabled, and may wait for ever for a lock that it holds.
 *    Virtual interrupts (V_IRQ) are delivered well, so what KVM injects is made
 *    one, and injected again if the guest exited before it was delivered: for an
 *    interrupt of the host's, or a fault of the delivery.  A window for another
 *    interrupt, which KVM may want at the same time, opens with the next exit.
 *    Not if KVM has the guest exit at once: QEMU does that first of all, and KVM
 *    counts on the delivery.  Nor for what V_IRQ cannot do: injection with
 *    interrupts disabled.  Nor in guests of guests, whose V_IRQ is their host's.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/kprobes.h>
#include <linux/module.h>
#include <asm/cpuid/api.h>

#include "svm.h"
#include "trace.h"

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

/* What was injected on this processor's way into the guest, and what it hides. */
struct injected {
	u32 event_inj;
	u32 int_ctl;
	u32 int_vector;
	bool window;
};

static DEFINE_PER_CPU(struct injected, on_this_cpu);

static bool can_be_virtual(struct vcpu_svm *svm)
{
	struct vmcb *vmcb = svm->vmcb;
	u32 event = vmcb->control.event_inj;

	return (event & SVM_EVTINJ_VALID) &&
	       (event & SVM_EVTINJ_TYPE_MASK) == SVM_EVTINJ_TYPE_INTR &&
	       (vmcb->save.rflags & X86_EFLAGS_IF) &&
	       !(vmcb->control.int_state & SVM_INTERRUPT_SHADOW_MASK) &&
	       !svm->nmi_singlestep && !is_guest_mode(&svm->vcpu);
}

/* With interrupts disabled until after at_exit(). */
static void at_entry(void *data, struct kvm_vcpu *vcpu, bool immediate_exit)
{
	struct vmcb *vmcb = to_svm(vcpu)->vmcb;
	struct vmcb_control_area *control = &vmcb->control;
	struct injected *was = this_cpu_ptr(&on_this_cpu);

	was->event_inj = 0;
	if (immediate_exit || !can_be_virtual(to_svm(vcpu)))
		return;
	was->event_inj = control->event_inj;
	was->int_ctl = control->int_ctl;
	was->int_vector = control->int_vector;
	was->window = vmcb_is_intercept(control, INTERCEPT_VINTR);

	control->event_inj = 0;
	control->int_vector = was->event_inj & SVM_EVTINJ_VEC_MASK;
	control->int_ctl = (control->int_ctl & ~V_INTR_PRIO_MASK) | V_IRQ_MASK | V_IGN_TPR_MASK;
	vmcb_clr_intercept(control, INTERCEPT_VINTR);
	vmcb_mark_dirty(vmcb, VMCB_INTR);
	vmcb_mark_dirty(vmcb, VMCB_INTERCEPTS);
}

static void at_exit(void *data, struct kvm_vcpu *vcpu, u32 isa)
{
	struct vmcb *vmcb = to_svm(vcpu)->vmcb;
	struct vmcb_control_area *control = &vmcb->control;
	struct injected *was = this_cpu_ptr(&on_this_cpu);

	if (!was->event_inj)
		return;
	if (control->int_ctl & V_IRQ_MASK)
		control->exit_int_info = was->event_inj;
	control->int_ctl &= ~V_IRQ_INJECTION_BITS_MASK;
	control->int_ctl |= was->int_ctl & V_IRQ_INJECTION_BITS_MASK;
	control->int_vector = was->int_vector;
	if (was->window)
		vmcb_set_intercept(control, INTERCEPT_VINTR);
	was->event_inj = 0;
	vmcb_mark_dirty(vmcb, VMCB_INTR);
	vmcb_mark_dirty(vmcb, VMCB_INTERCEPTS);
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
	if (r) {
		pr_err("no kprobe, is kvm-amd loaded? (%d)\n", r);
		return r;
	}
	r = register_trace_kvm_exit(at_exit, NULL);
	if (r)
		goto no_exit;
	r = register_trace_kvm_entry(at_entry, NULL);
	if (r)
		goto no_entry;
	return 0;

no_entry:
	unregister_trace_kvm_exit(at_exit, NULL);
	tracepoint_synchronize_unregister();
no_exit:
	unregister_kprobes(probes, ARRAY_SIZE(probes));
	pr_err("no tracepoint (%d)\n", r);
	return r;
}
module_init(quirks_init);

static void __exit quirks_exit(void)
{
	unregister_trace_kvm_entry(at_entry, NULL);
	tracepoint_synchronize_unregister();
	/* Whoever entered a guest with at_entry() leaves it with at_exit(). */
	kick_all_cpus_sync();
	unregister_trace_kvm_exit(at_exit, NULL);
	tracepoint_synchronize_unregister();
	unregister_kprobes(probes, ARRAY_SIZE(probes));
}
module_exit(quirks_exit);

MODULE_DESCRIPTION("Mends three faults of QEMU's emulated SVM");
MODULE_LICENSE("GPL");
