/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * kvm_page_track - write tracking of KVM guest pages, for other modules
 *
 * The header for C clients.  The notifier functions of <asm/kvm_page_track.h>
 * and kvm_write_track_{add,remove}_gfn() are kvm.ko's own symbols, with bodies
 * from kvm_page_track.ko while that is loaded; the others are kvm_page_track.ko's.
 * Where kvm.ko is built without CONFIG_KVM_EXTERNAL_WRITE_TRACKING, all of them are
 * kvm_page_track.ko's.
 *
 * Contexts.  Unless a function says otherwise it may sleep, and is called
 * without kvm->mmu_lock or kvm->slots_arch_lock.  Register is called
 * outside kvm->srcu read sections as well, all others inside or outside.
 * Unregister waits for running callbacks of that VM, and for nothing else.  A
 * callback that reads guest memory may wait for user space (userfaultfd), so hold
 * no lock that user space may need, such as its mmap_lock.
 * The caller keeps @kvm alive across the call (kvm_get_kvm()), and does not
 * register one notifier or client with two VMs at the same moment.
 *
 * Errors.  A refused call changes no count, no mapping and no registration.
 *
 *   -EINVAL      NULL argument, unknown mode, gfn in no memslot (any more: the
 *                count of a page goes with its memslot), a range of no pages or
 *                past the end of gfns; prepare: a range of several memslots
 *   -ENOENT      remove: no external user has added this page, or not since its
 *                memslot was deleted and made again
 *   -EOVERFLOW   add: the limit of external users of one page is reached
 *   -ENOMEM      no memory for the counters; slot variants: not prepared
 *   -EAGAIN      the slot is being moved or deleted: try again later, outside
 *                callbacks and kvm->srcu read sections (KVM waits for those before
 *                it goes on); or the module is going away, which it does not while
 *                a client is registered (the next call of upstream's functions is
 *                KVM's own, where KVM has them).  kvm_write_track_{add,remove}_gfn()
 *                say so only if the VM has no notifier of upstream's: else a
 *                memslot does not move, and counts change as in C
 *   -ESRCH       register: the caller's mm is not the VM's;
 *                kvm_page_track_register_notifier() also: @kvm is NULL
 *   -EEXIST      register: registered already, with this VM or (through
 *                kvm_page_track.ko) another
 *   -EOPNOTSUPP  the VM's writes cannot be emulated or its memory is private
 *                (SEV, SEV-ES, SNP, TDX, software-protected VMs): asked at every
 *                add and prepare, and when a VM gets its first notifier or a client.  The
 *                memslot is one of a guest_memfd.  Or KVM keeps its own records
 *                elsewhere than the module expects (the kernel log says so), and
 *                may shadow page tables of the VM
 *
 * C's kvm_write_track_{add,remove}_gfn() return 0 or -EINVAL only, ours also the
 * errors above.  -ENOMEM of an add is one of them because C allocates the counters
 * of all of the VM's memory when its first notifier registers, and we those of one
 * memslot when its first page is added.
 */
#ifndef _KVM_PAGE_TRACK_H
#define _KVM_PAGE_TRACK_H

#include <linux/kvm_host.h>

#include <asm/kvm_page_track.h>

/**
 * enum kvm_page_track_mode - what is tracked
 * @KVM_PAGE_TRACK_WRITE: guest writes.  As long as its count is above zero the
 *	page is mapped read-only.  It gets no new mapping by a large page; one that is
 *	there is made read-only, and split by the next write to another of its pages.
 */
enum kvm_page_track_mode {
	KVM_PAGE_TRACK_WRITE,
};

/*
 * How often other modules together may add one page.  The u16 counter also
 * counts KVM's own shadow page tables, which need up to 2^14 of a page.
 */
#define KVM_PAGE_TRACK_MAX_USERS	(65535 - 16384)

#ifndef CONFIG_KVM_EXTERNAL_WRITE_TRACKING
/*
 * This kernel's KVM tracks nothing for other modules, and <asm/kvm_page_track.h>
 * has only an empty struct kvm_page_track_notifier_node.  The name stands for
 * this one from here on, and kvm_page_track.ko has the functions.  What is written
 * for upstream's API builds unchanged if every file that sees the name includes
 * this header first: ccflags-y += -include .../kvm_page_track.h
 */
struct kpt_notifier_node {
	struct hlist_node node;
	void (*track_write)(gpa_t gpa, const u8 *new, int bytes,
			    struct kpt_notifier_node *node);
	void (*track_remove_region)(gfn_t gfn, unsigned long nr_pages,
				    struct kpt_notifier_node *node);
};

#define kvm_page_track_notifier_node kpt_notifier_node

/**
 * kvm_page_track_register_notifier() - upstream's way to receive a VM's events
 * @kvm: the VM; the caller's mm must be its mm
 * @n: valid until kvm_page_track_unregister_notifier() returns; its callbacks are
 *	those of &struct kvm_page_track_client.  It cannot follow a memslot.
 *
 * Return: 0, -EINVAL, -ESRCH (also if @kvm is NULL), -EEXIST, -EOPNOTSUPP, -ENOMEM,
 * -EAGAIN.
 */
int kvm_page_track_register_notifier(struct kvm *kvm,
				     struct kvm_page_track_notifier_node *n);

/**
 * kvm_page_track_unregister_notifier() - as kvm_page_track_unregister_client()
 * @kvm: the VM
 * @n: the notifier
 */
void kvm_page_track_unregister_notifier(struct kvm *kvm,
					struct kvm_page_track_notifier_node *n);

/**
 * kvm_write_track_add_gfn() - kvm_page_track_add_page(), under upstream's name
 * @kvm: the VM
 * @gfn: guest frame number, in a memslot of address space 0
 *
 * While the VM has a notifier of upstream's this works on a memslot that is about to
 * be moved or deleted as well, as in C: then it is not moved, and a count in one that
 * is deleted goes with it.
 *
 * Return: 0, -EINVAL, -EOVERFLOW, -ENOMEM, -EAGAIN, -EOPNOTSUPP.
 */
int kvm_write_track_add_gfn(struct kvm *kvm, gfn_t gfn);

/**
 * kvm_write_track_remove_gfn() - kvm_page_track_remove_page(), likewise
 * @kvm: the VM
 * @gfn: guest frame number
 *
 * Return: 0, -EINVAL, -ENOENT, -EAGAIN, -EOPNOTSUPP.
 */
int kvm_write_track_remove_gfn(struct kvm *kvm, gfn_t gfn);
#endif

/**
 * struct kvm_page_track_client - a notifier that can follow a moved memslot
 * @node: the callbacks of upstream's notifier.  @node.track_write is called
 *	after a guest write to a tracked page was emulated (guest memory already
 *	holds the value): gpa, the bytes written, valid until it returns, and their
 *	number.  Several vCPUs may be in it at once.  Have one client for each
 *	VM, in a struct that container_of() finds: that says which VM it is.  A write
 *	that crosses a page boundary arrives as one call per page.  A write that
 *	races with the last remove of its page may go untold.
 *	@node.track_remove_region is called once when a memslot is deleted; its
 *	counters are gone by then.  Memslots of address space 0: counts are there.
 * @track_move_region: called when user space moves a memslot, after its
 *	counters were carried over and before the new place becomes visible to
 *	the guest.  NULL: this client cannot follow, user space's attempt to
 *	move a memslot of the VM fails.
 *
 * track_write is called for pages that somebody outside KVM has added, no matter
 * who; not for emulated writes to others, nor for those that only KVM tracks
 * (its shadow page tables; but for a write just when KVM begins to shadow the
 * page).
 *
 * Callbacks run in task context, without kvm->mmu_lock, and may sleep.  None may wait
 * for a grace period of kvm->srcu: track_write runs in a read section of it, and others
 * may be waited for, or wait for locks that are held, in one.
 * track_write and track_remove_region may add and remove pages.
 * track_remove_region runs under kvm->slots_lock, track_move_region under that
 * and kvm->slots_arch_lock: in it the moving memslot's pages can be neither added
 * nor removed (-EAGAIN at the old place, -EINVAL at the new one), and what would
 * have to allocate counters for another memslot returns -EAGAIN.
 *
 * No callback may take kvm->slots_lock, kvm->lock or a vCPU's mutex, nor
 * unregister a notifier or client of the same VM (it would wait for itself).  A
 * lock that a callback takes must not be held over an unregister; one that
 * track_move_region takes not over kvm_page_track_add_page(), _add_range(), _prepare()
 * or kvm_write_track_{add,remove}_gfn() either: they may take kvm->slots_arch_lock.
 *
 * Zero the struct before the first registration.
 */
struct kvm_page_track_client {
	struct kvm_page_track_notifier_node node;
	void (*track_move_region)(gfn_t old_gfn, gfn_t new_gfn,
				  unsigned long nr_pages,
				  struct kvm_page_track_client *client);
};

/**
 * kvm_page_track_register_client() - start receiving the events of a VM
 * @kvm: the VM; the caller's mm must be its mm
 * @client: the client, valid until kvm_page_track_unregister_client() returns
 *
 * Its node is not to be registered as a notifier meanwhile.  Pins the VM and
 * kvm_page_track.ko until the client is unregistered.
 *
 * Context: takes cpus_read_lock(), so neither kvm_lock, kvm->slots_lock nor a lock
 * that is taken when a processor comes or goes may be held.  So it is called from no
 * callback: track_write is in a section of kvm->srcu, the others hold kvm->slots_lock.
 *
 * Return: 0, -EINVAL, -ESRCH, -EEXIST, -EOPNOTSUPP, -ENOMEM, -EAGAIN.
 */
int kvm_page_track_register_client(struct kvm *kvm,
				   struct kvm_page_track_client *client);

/**
 * kvm_page_track_unregister_client() - stop receiving the events of a VM
 * @kvm: the VM
 * @client: the client
 *
 * When it returns no callback of @client runs, and none will.  Pages it added
 * stay tracked until they are removed.  Waits for running callbacks, so it must
 * not be called from one.  A client that is not registered is ignored.
 */
void kvm_page_track_unregister_client(struct kvm *kvm,
				      struct kvm_page_track_client *client);

/**
 * kvm_page_track_add_page() - track writes to a guest page
 * @kvm: the VM
 * @gfn: guest frame number, in a memslot of address space 0
 * @mode: %KVM_PAGE_TRACK_WRITE
 *
 * Every add needs one remove.  When the first add of a page returns, the page's
 * existing mappings are write-protected in every address space and no vCPU's
 * TLB holds a writable one.  (As in C, a memslot of address space 1, SMM, that
 * large pages back may later map the page writable again, by a large page.)
 *
 * Return: 0, -EINVAL, -EOVERFLOW, -ENOMEM, -EAGAIN, -EOPNOTSUPP.
 */
int kvm_page_track_add_page(struct kvm *kvm, gfn_t gfn,
			    enum kvm_page_track_mode mode);

/**
 * kvm_page_track_remove_page() - undo one kvm_page_track_add_page()
 * @kvm: the VM
 * @gfn: guest frame number
 * @mode: %KVM_PAGE_TRACK_WRITE
 *
 * Counts have no names: what is removed is one external user's, and each removes
 * as often as it has added.  Those of a memslot that was deleted are gone
 * (track_remove_region says so) and must not be removed from one made there later,
 * in which they are somebody else's.
 *
 * Return: 0, -EINVAL, -ENOENT, -EAGAIN, -EOPNOTSUPP.
 */
int kvm_page_track_remove_page(struct kvm *kvm, gfn_t gfn,
			       enum kvm_page_track_mode mode);

/**
 * kvm_page_track_add_range() - kvm_page_track_add_page() of many pages
 * @kvm: the VM
 * @gfn: first guest frame number
 * @nr: number of pages, at least 1, every one in some memslot of address space 0
 * @mode: %KVM_PAGE_TRACK_WRITE
 *
 * All of the pages are added, or none.  TLBs are flushed once if a page was mapped
 * writable; more often if somebody waits for kvm->mmu_lock or the processor meanwhile:
 * the lock is held for a bounded number of pages then.  (Only if others add or remove
 * pages of the range in such a moment, so that it has to be refused half-way, are
 * some pages tracked for a while that then are not.)  Pages of the range may be added
 * and removed one by one as well.  A callback may call this.
 *
 * Return: 0, -EINVAL, -EOVERFLOW, -ENOMEM, -EAGAIN, -EOPNOTSUPP.
 */
int kvm_page_track_add_range(struct kvm *kvm, gfn_t gfn, unsigned long nr,
			     enum kvm_page_track_mode mode);

/**
 * kvm_page_track_remove_range() - kvm_page_track_remove_page() of many pages
 * @kvm: the VM
 * @gfn: first guest frame number
 * @nr: number of pages, at least 1, every one in some memslot of address space 0
 * @mode: %KVM_PAGE_TRACK_WRITE
 *
 * One add of every page is undone, or none: -ENOENT if a page of the range has
 * no external user.  (As with kvm_page_track_add_range(), others that add or remove
 * pages of the range meanwhile may have it refused half-way: then some pages are not
 * tracked for a while that then are again.)
 *
 * Return: 0, -EINVAL, -ENOENT, -EAGAIN, -EOPNOTSUPP.
 */
int kvm_page_track_remove_range(struct kvm *kvm, gfn_t gfn, unsigned long nr,
				enum kvm_page_track_mode mode);

/**
 * kvm_page_track_prepare() - allocate what the slot variants need
 * @kvm: the VM
 * @gfn: first guest frame number
 * @nr: number of pages, all in one memslot of address space 0
 *
 * That is the counters of the memslot: what was prepared, or added once by
 * kvm_page_track_add_page(), is for the whole memslot, until that is deleted.
 *
 * Return: 0, -EINVAL, -ENOMEM, -EAGAIN, -EOPNOTSUPP.
 */
int kvm_page_track_prepare(struct kvm *kvm, gfn_t gfn, unsigned long nr);

/**
 * kvm_slot_page_track_add_page() - kvm_page_track_add_page() under mmu_lock
 * @kvm: the VM
 * @slot: the memslot of address space 0 that holds @gfn
 * @gfn: guest frame number, in a memslot prepared with kvm_page_track_prepare()
 * @mode: %KVM_PAGE_TRACK_WRITE
 *
 * Context: kvm->mmu_lock held for write, in a kvm->srcu read section in which
 * @slot was looked up.  Does not sleep (on PREEMPT_RT as the lock's holder may).
 *
 * Return: 0, -EINVAL, -EOVERFLOW, -ENOMEM (not prepared), -EAGAIN, -EOPNOTSUPP.
 */
int kvm_slot_page_track_add_page(struct kvm *kvm, struct kvm_memory_slot *slot,
				 gfn_t gfn, enum kvm_page_track_mode mode);

/**
 * kvm_slot_page_track_remove_page() - kvm_page_track_remove_page() under mmu_lock
 * @kvm: the VM
 * @slot: the memslot of address space 0 that holds @gfn
 * @gfn: guest frame number
 * @mode: %KVM_PAGE_TRACK_WRITE
 *
 * Context: as kvm_slot_page_track_add_page().
 *
 * Return: 0, -EINVAL, -ENOENT, -EAGAIN, -EOPNOTSUPP.
 */
int kvm_slot_page_track_remove_page(struct kvm *kvm,
				    struct kvm_memory_slot *slot, gfn_t gfn,
				    enum kvm_page_track_mode mode);

#endif /* _KVM_PAGE_TRACK_H */
