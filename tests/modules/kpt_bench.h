/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * ioctls of /dev/kpt_bench (kpt_bench.ko), the stopwatch of make bench
 *
 * It calls the functions of kvm.ko that are measured and reads the time stamp
 * counter around every call.  In a machine that QEMU runs with -icount a tick is
 * an instruction.  What an empty measurement takes is subtracted, and so is the
 * time that the processor was idle.
 *
 * Errors: those of the function called, -EBADF (not a VM's fd), -EFAULT, -EDOM
 * (an unknown or senseless value), -ENOENT (the function is not in this kernel,
 * or kvm_page_track.ko not loaded), -ENOTTY.
 */
#ifndef KPT_BENCH_H
#define KPT_BENCH_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define KPT_BENCH_MAGIC		0xf8
#define KPT_BENCH_MAX		4096	/* samples of one ioctl */
#define KPT_BENCH_NODES		16	/* notifiers of one fd */
#define KPT_BENCH_CALLS		1000	/* calls in one sample of the reader */

/* What is called. */
enum kpt_bench_op {
	/* kvm_gfn_is_write_tracked(), KPT_BENCH_CALLS times a sample */
	KPT_BENCH_READ,
	/* kvm_write_track_add_gfn(), kvm_write_track_remove_gfn() */
	KPT_BENCH_ADD,
	KPT_BENCH_REMOVE,
	/* kvm_page_track_add_page(), kvm_page_track_remove_page() */
	KPT_BENCH_ADD_PAGE,
	KPT_BENCH_REMOVE_PAGE,
	/* kvm_page_track_add_range(), kvm_page_track_remove_range() */
	KPT_BENCH_ADD_RANGE,
	KPT_BENCH_REMOVE_RANGE,
	/* kvm_page_track_register_notifier() and its opposite, last one first */
	KPT_BENCH_REGISTER,
	KPT_BENCH_UNREGISTER,
	KPT_BENCH_OPS,
};

#define KPT_BENCH_NO_SLOT	(1U << 0)	/* READ: pass slot = NULL */

/**
 * struct kpt_bench_run - call a function and say how long each call took
 * @op: enum kpt_bench_op
 * @vm_fd: the VM
 * @gfn: the page of the first sample
 * @step: how much further the page of the next sample is
 * @nr: number of samples
 * @pages: ranges: their length
 * @as_id: READ: the address space whose memslot is asked about
 * @flags: KPT_BENCH_NO_SLOT
 * @result: out: READ: what it returned, the same in all calls
 * @ticks: address of @nr __u64: ticks of each sample
 */
struct kpt_bench_run {
	__u32 op;
	__s32 vm_fd;
	__u64 gfn;
	__u64 step;
	__u64 pages;
	__u32 nr;
	__u32 as_id;
	__u32 flags;
	__u32 result;
	__u64 ticks;
};

/**
 * struct kpt_bench_memory - the counters of a VM
 * @vm_fd: the VM
 * @pad: 0
 * @bytes: out: memory of the arrays gfn_write_track of all memslots, in whole
 *	pages as vmalloc hands it out
 */
struct kpt_bench_memory {
	__s32 vm_fd;
	__u32 pad;
	__u64 bytes;
};

#define KPT_BENCH_RUN		_IOWR(KPT_BENCH_MAGIC, 0x01, struct kpt_bench_run)
#define KPT_BENCH_MEMORY	_IOWR(KPT_BENCH_MAGIC, 0x02, struct kpt_bench_memory)
/* Ticks that the processors have been idle since the module was loaded. */
#define KPT_BENCH_IDLE		_IOR(KPT_BENCH_MAGIC, 0x03, __u64)
/* How often a notifier was called since the module was loaded. */
#define KPT_BENCH_EVENTS	_IOR(KPT_BENCH_MAGIC, 0x04, __u64)
/* Gives back vmalloc memory that was freed lazily, which somebody else would. */
#define KPT_BENCH_SETTLE	_IO(KPT_BENCH_MAGIC, 0x05)

#endif /* KPT_BENCH_H */
