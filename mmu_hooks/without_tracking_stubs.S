/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the first instruction of a function of kvm.ko calls: keeps the registers
 * that carry its (at most four) arguments, runs ours, and returns into it.  Only
 * ftrace comes here; ours may sleep, which a callback of ftrace must not.
 *
 * Learnt from samples/ftrace/ftrace-direct.c.
 */
#include <linux/linkage.h>
#include <asm/frame.h>
#include <asm/ibt.h>
#include <asm/nospec-branch.h>

.macro KPT_STUB name ours
SYM_FUNC_START(\name)
	ENDBR
	FRAME_BEGIN
	CALL_DEPTH_ACCOUNT
	pushq	%rdi
	pushq	%rsi
	pushq	%rdx
	pushq	%rcx
	call	\ours
	popq	%rcx
	popq	%rdx
	popq	%rsi
	popq	%rdi
	FRAME_END
	RET
SYM_FUNC_END(\name)
.endm

	.text

KPT_STUB kpt_stub_uninit_vm kpt_before_uninit_vm
KPT_STUB kpt_stub_track_write kpt_before_track_write
KPT_STUB kpt_stub_commit_memory_region kpt_before_commit_memory_region
