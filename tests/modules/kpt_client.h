/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * ioctls of the test devices /dev/kpt_client and /dev/kpt_stock
 *
 * /dev/kpt_client (kpt_client.ko) is a client of kvm_page_track.ko that uses
 * nothing but include/kvm_page_track.h.  /dev/kpt_stock (kpt_stock.ko) speaks
 * the same ioctls with the functions kvm.ko itself exports, does not depend on
 * kvm_page_track.ko, and can look inside KVM (KPT_INSPECT).
 *
 * An ioctl returns what the API returned: 0 or its errno, unchanged.  Errors
 * of the device itself are those no function of the API returns: -EBADF (not a
 * VM's fd), -EFAULT, -ENXIO (no such notifier id), -EBUSY (the id is in use),
 * -ENOSPC (too many notifiers), -ENOSYS (not offered by this device), -EDOM (a
 * reserved or unknown value), -ENOTTY (unknown ioctl).
 *
 * Closing the fd unregisters every notifier that was registered through it.
 * Pages that were added stay added.
 */
#ifndef KPT_CLIENT_H
#define KPT_CLIENT_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define KPT_IOC_MAGIC	0xf7

/* What KPT_CALL calls. */
enum kpt_op {
	KPT_OP_ADD_PAGE,	/* kvm_page_track_add_page */
	KPT_OP_REMOVE_PAGE,	/* kvm_page_track_remove_page */
	KPT_OP_PREPARE,		/* kvm_page_track_prepare(gfn, nr) */
	KPT_OP_SLOT_ADD,	/* kvm_slot_page_track_add_page */
	KPT_OP_SLOT_REMOVE,	/* kvm_slot_page_track_remove_page */
	KPT_OP_WRITE_ADD,	/* kvm_write_track_add_gfn */
	KPT_OP_WRITE_REMOVE,	/* kvm_write_track_remove_gfn */
	KPT_OP_ADD_RANGE,	/* kvm_page_track_add_range(gfn, nr) */
	KPT_OP_REMOVE_RANGE,	/* kvm_page_track_remove_range(gfn, nr) */
};

/* kpt_call.flags */
#define KPT_CALL_NULL_KVM	(1U << 0)	/* pass kvm = NULL */
#define KPT_CALL_NULL_SLOT	(1U << 1)	/* slot variants: slot = NULL */
#define KPT_CALL_SLOT_OF	(1U << 2)	/* slot variants: slot_gfn's slot */
#define KPT_CALL_BY_NODE	(1U << 3)	/* vm_fd: a notifier id, take its VM */
#define KPT_CALL_STEP		(1U << 4)	/* gfn + 1 at each repetition */

/**
 * struct kpt_call - one call of the API, or the same one many times
 * @op: enum kpt_op
 * @vm_fd: fd of the VM
 * @gfn: guest frame number
 * @nr: number of pages (KPT_OP_PREPARE, KPT_OP_*_RANGE), else how often to call; the first
 *	error ends it; 0 means once
 * @slot_gfn: see KPT_CALL_SLOT_OF
 * @mode: the mode argument as it is; 0 is KVM_PAGE_TRACK_WRITE
 * @flags: KPT_CALL_*
 * @done: out: how many calls succeeded
 */
struct kpt_call {
	__u32 op;
	__s32 vm_fd;
	__u64 gfn;
	__u64 nr;
	__u64 slot_gfn;
	__u32 mode;
	__u32 flags;
	__u64 done;
};

/* kpt_register.type */
enum kpt_node_type {
	KPT_NOTIFIER,		/* kvm_page_track_register_notifier */
	KPT_CLIENT,		/* kvm_page_track_register_client */
	KPT_CLIENT_MOVE,	/* the same with track_move_region */
};

/* kpt_register.flags */
#define KPT_REG_RECORD		(1U << 0)	/* record events, not only count them */
#define KPT_REG_CB_ADD		(1U << 1)	/* track_write adds cb_gfn */
#define KPT_REG_CB_REMOVE	(1U << 2)	/* track_write removes cb_gfn (after the add) */
/* track_move_region adds, prepares and removes cb_gfn */
#define KPT_REG_MOVE_CALLS	(1U << 3)
#define KPT_REG_NULL_KVM	(1U << 4)	/* pass kvm = NULL */
#define KPT_REG_NULL_NODE	(1U << 5)	/* pass a NULL notifier or client */
#define KPT_REG_DIRTY		(1U << 6)	/* of a notifier: rubbish in its link */

/**
 * struct kpt_register - register a notifier
 * @vm_fd: fd of the VM
 * @type: enum kpt_node_type
 * @flags: KPT_REG_*
 * @sleep_ms: track_write sleeps so long
 * @cb_gfn: see the flags
 * @id: in: -1 makes a new notifier; the id of a registered one registers that
 *	same structure once more.  out: the id
 */
struct kpt_register {
	__s32 vm_fd;
	__u32 type;
	__u32 flags;
	__u32 sleep_ms;
	__u64 cb_gfn;
	__s32 id;
	__u32 pad;
};

/* kpt_unregister.flags */
#define KPT_UNREG_NULL_KVM	(1U << 0)
#define KPT_UNREG_NULL_NODE	(1U << 1)
#define KPT_UNREG_AGAIN		(1U << 2)	/* one not registered; no notifiers */

/**
 * struct kpt_unregister - unregister a notifier
 * @id: its id; it stays valid for KPT_COUNTERS
 * @flags: KPT_UNREG_*
 */
struct kpt_unregister {
	__s32 id;
	__u32 flags;
};

enum kpt_event_type {
	KPT_EV_WRITE,
	KPT_EV_REMOVE_REGION,
	KPT_EV_MOVE_REGION,
};

#define KPT_EV_DATA	64

/**
 * struct kpt_event - what a callback was called with
 * @seq: number of the event on this fd, without gaps unless one was dropped
 * @type: enum kpt_event_type
 * @id: the notifier
 * @gpa: write: the address; regions: the (old) first gfn
 * @new_gfn: move: the new first gfn
 * @len: write: number of bytes; regions: number of pages
 * @data: write: the first KPT_EV_DATA bytes
 */
struct kpt_event {
	__u64 seq;
	__u32 type;
	__s32 id;
	__u64 gpa;
	__u64 new_gfn;
	__u64 len;
	__u8 data[KPT_EV_DATA];
};

/**
 * struct kpt_read - take recorded events, oldest first
 * @events: where to put them
 * @max: room for so many
 * @count: out: how many were put there
 * @dropped: out: events dropped since the last KPT_READ, the ring having been full
 *	for 30 s
 */
struct kpt_read {
	__u64 events;
	__u32 max;
	__u32 count;
	__u64 dropped;
};

/**
 * struct kpt_counters - counts of one notifier since it was made
 * @id: in: which
 * @registered: is it registered now
 * @writes: calls of track_write
 * @bytes: the sum of their lengths
 * @removes: calls of track_remove_region
 * @moves: calls of track_move_region
 * @late: calls of any callback after unregister had returned: must be 0
 * @running: callbacks running now
 * @cb_ok: adds and removes in callbacks that succeeded
 * @cb_err: and that failed
 * @cb_errno: what the last failed one returned (0: none)
 * @move_errno: what add, prepare, remove returned in track_move_region
 * @wrong: callbacks with arguments that make no sense (length not positive,
 *	a write across a page boundary, another node)
 */
struct kpt_counters {
	__s32 id;
	__u32 registered;
	__u64 writes;
	__u64 bytes;
	__u64 removes;
	__u64 moves;
	__u64 late;
	__u64 running;
	__u64 cb_ok;
	__u64 cb_err;
	__s32 cb_errno;
	__s32 move_errno[3];
	__u64 wrong;
};

/**
 * struct kpt_inspect - what KVM's own structures say (kpt_stock only)
 * @vm_fd: the VM
 * @as_id: address space
 * @gfn: guest frame number
 * @has_slot: a memslot of that address space holds @gfn; else all up to
 *	@lpage_1g are 0
 * @has_array: the slot's gfn_write_track is allocated
 * @count: gfn_write_track of @gfn
 * @slot_sum: the sum of the whole array
 * @slot_id: of the memslot
 * @slot_flags: of the memslot
 * @external_tracking: kvm.ko tracks for other modules by itself
 * @base_gfn: of the memslot
 * @npages: of the memslot
 * @lpage_2m: disallow_lpage of @gfn's 2 MiB
 * @lpage_1g: disallow_lpage of @gfn's 1 GiB
 * @nr_as: address spaces of the VM
 * @external_enabled: kvm->arch.external_write_tracking_enabled
 * @list_empty: kvm->arch.track_notifier_head is empty
 * @users_count: references to the VM without the one of this ioctl
 */
struct kpt_inspect {
	__s32 vm_fd;
	__u32 as_id;
	__u64 gfn;
	__u32 has_slot;
	__u32 has_array;
	__u32 count;
	__u32 slot_id;
	__u64 slot_sum;
	__u32 slot_flags;
	__u32 external_tracking;
	__u64 base_gfn;
	__u64 npages;
	__s32 lpage_2m;
	__s32 lpage_1g;
	__u32 nr_as;
	__u32 external_enabled;
	__u32 list_empty;
	__u32 users_count;
};

/* kpt_page.flags */
#define KPT_PAGE_SLOT	(1U << 0)	/* a memslot holds it */
#define KPT_PAGE_ARRAY	(1U << 1)	/* and has gfn_write_track */

/* One page of KPT_PAGES, as in struct kpt_inspect. */
struct kpt_page {
	__u32 flags;
	__u32 count;
	__s32 lpage_2m;
	__s32 lpage_1g;
};

/**
 * struct kpt_pages - KPT_INSPECT of many pages at once (kpt_stock only)
 * @vm_fd: the VM
 * @as_id: address space
 * @gfn: first guest frame number
 * @nr: number of pages, up to KPT_PAGES_MAX
 * @pages: where to put as many struct kpt_page
 */
struct kpt_pages {
	__s32 vm_fd;
	__u32 as_id;
	__u64 gfn;
	__u64 nr;
	__u64 pages;
};

#define KPT_PAGES_MAX	4096

enum kpt_probe_op {
	KPT_PROBE_OFF,		/* take it off again; whoever is held goes on */
	KPT_PROBE_OCCUPY,	/* with a post handler: shared with no one who replaces */
	KPT_PROBE_COUNT,	/* count how often it is called */
	KPT_PROBE_HOLD,		/* and hold who calls it first, for 10 s at most */
	KPT_PROBE_SLEEP,	/* the same, but sleeping, for 100 s at most */
	KPT_PROBE_SLEEP_SRCU,	/* the same of @pid, in @nth call for the VM's srcu */
	KPT_PROBE_LOOK,		/* only say what has been counted */
};

/**
 * struct kpt_probe - put a kprobe on a function of KVM (kpt_stock only)
 * @symbol: the function
 * @op: enum kpt_probe_op.  There is one probe at a time; it goes with the module at
 *	the latest.  Who is held by %KPT_PROBE_HOLD spins with preemption disabled:
 *	there has to be another processor, and the function has to be one that
 *	ftrace knows (else interrupts are disabled as well).  %KPT_PROBE_SLEEP is for
 *	a function that may sleep, with up to six parameters.  %KPT_PROBE_OFF is
 *	-ETIMEDOUT if somebody was held for as long as that.
 * @vm_fd: %KPT_PROBE_SLEEP_SRCU: only calls are counted whose first argument is
 *	kvm->srcu of this VM
 * @pid: and of this task
 * @nth: and this one is held; the first is 1
 * @hits: out: how often it was called, for %KPT_PROBE_LOOK and %KPT_PROBE_OFF
 * @held: out: how many are held, sleeping
 */
struct kpt_probe {
	char symbol[64];
	__u32 op;
	__s32 vm_fd;
	__u32 pid;
	__u32 nth;
	__u64 hits;
	__u64 held;
};

#define KPT_CALL	_IOWR(KPT_IOC_MAGIC, 0x01, struct kpt_call)
#define KPT_REGISTER	_IOWR(KPT_IOC_MAGIC, 0x02, struct kpt_register)
#define KPT_UNREGISTER	_IOW(KPT_IOC_MAGIC, 0x03, struct kpt_unregister)
#define KPT_READ	_IOWR(KPT_IOC_MAGIC, 0x04, struct kpt_read)
#define KPT_COUNTERS	_IOWR(KPT_IOC_MAGIC, 0x05, struct kpt_counters)
#define KPT_INSPECT	_IOWR(KPT_IOC_MAGIC, 0x06, struct kpt_inspect)
#define KPT_PROBE	_IOWR(KPT_IOC_MAGIC, 0x07, struct kpt_probe)
#define KPT_PAGES	_IOW(KPT_IOC_MAGIC, 0x08, struct kpt_pages)

#endif /* KPT_CLIENT_H */
