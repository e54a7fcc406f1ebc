// SPDX-License-Identifier: GPL-2.0-only

//! Who is told of events, as C sees them, and lists of them.
//!
//! A list is C's `hlist`: KVM's own of upstream's notifiers, or one of ours. It is written under
//! `mmu_lock` held for write, and read in a [`super::ListSection`].
//!
//! C source: `arch/x86/include/asm/kvm_page_track.h`, `include/linux/rculist.h`.

use super::{Gfn, Gpa, Memslot, MmuWrite};
use crate::base::bindings;
use core::marker::PhantomData;
use core::ptr::{addr_of, addr_of_mut, NonNull};
use kernel::types::Opaque;

#[cfg(not(CONFIG_KVM_EXTERNAL_WRITE_TRACKING = "y"))]
pub(crate) use bindings::kpt_notifier_node as RawNode;
/// Upstream's notifier, as KVM's header has it; or ours, where KVM does not track for others.
#[cfg(CONFIG_KVM_EXTERNAL_WRITE_TRACKING = "y")]
pub(crate) use bindings::kvm_page_track_notifier_node as RawNode;

/// Upstream's notifier (`struct kvm_page_track_notifier_node`), owned by another module.
///
/// # Invariants
///
/// Valid, and its callbacks are callable, from before it is registered until after it is
/// unregistered; and it is not being registered with two VMs at a time: the contract of the C API.
#[repr(transparent)]
pub(crate) struct Node(Opaque<RawNode>);

/// A notifier that can follow a moved memslot (`struct kvm_page_track_client`).
///
/// # Invariants
///
/// As [`Node`].
#[repr(transparent)]
pub(crate) struct Client(Opaque<bindings::kvm_page_track_client>);

/// The bytes a guest write left in memory, as the emulator hands them on.
///
/// # Invariants
///
/// `new` points to `bytes` readable bytes for the time of the call that delivers them.
#[derive(Clone, Copy)]
pub(crate) struct Written {
    new: *const u8,
    bytes: i32,
}

impl Written {
    /// Describes a write.
    ///
    /// # Safety
    ///
    /// The type invariant holds until the value is dropped.
    pub(crate) unsafe fn new(new: *const u8, bytes: i32) -> Self {
        Self { new, bytes }
    }
}

impl Node {
    /// Makes a view of a node.
    ///
    /// # Safety
    ///
    /// The type invariant holds as long as `'a`.
    pub(crate) unsafe fn from_ptr<'a>(ptr: NonNull<RawNode>) -> &'a Self {
        // SAFETY: Transparent; the rest is the caller's promise.
        unsafe { ptr.cast().as_ref() }
    }

    fn link(&self) -> *mut bindings::hlist_node {
        // SAFETY: By the type invariant; only the address is taken.
        unsafe { addr_of_mut!((*self.0.get()).node) }
    }

    /// Tells the notifier of a guest write.
    #[inline(always)] // the event path
    pub(crate) fn track_write(&self, gpa: Gpa, written: Written) {
        // SAFETY: By the type invariants of `Node` and `Written`; the pointer is constant while the
        // node is registered.
        unsafe {
            let node = self.0.get();
            if let Some(f) = (*node).track_write {
                f(gpa, written.new, written.bytes, node);
            }
        }
    }

    /// Tells the notifier that a memslot is gone.
    #[inline(always)] // the event path
    pub(crate) fn track_remove_region(&self, slot: &Memslot) {
        // SAFETY: By the type invariant.
        unsafe {
            let node = self.0.get();
            if let Some(f) = (*node).track_remove_region {
                f(slot.base_gfn(), slot.npages() as usize, node);
            }
        }
    }
}

impl Client {
    /// Makes a view of a client.
    ///
    /// # Safety
    ///
    /// The type invariant holds as long as `'a`.
    pub(crate) unsafe fn from_ptr<'a>(ptr: NonNull<bindings::kvm_page_track_client>) -> &'a Self {
        // SAFETY: Transparent; the rest is the caller's promise.
        unsafe { ptr.cast().as_ref() }
    }

    /// Whether the client can follow a moved memslot.
    pub(crate) fn follows_moves(&self) -> bool {
        // SAFETY: By the type invariant.
        unsafe { (*self.0.get()).track_move_region.is_some() }
    }

    /// Tells the client that a memslot moves.
    #[inline(never)] // scripts/check/indirect-calls.sh knows it by name
    pub(crate) fn track_move_region(&self, from: Gfn, to: Gfn, npages: u64) {
        // SAFETY: By the type invariant.
        unsafe {
            let client = self.0.get();
            if let Some(f) = (*client).track_move_region {
                f(from, to, npages as usize, client);
            }
        }
    }
}

/// What is linked into lists: [`Node`] itself, and what has one as its first member.
///
/// # Safety
///
/// `node` returns the first member.
pub(crate) unsafe trait Listener {
    /// The node in it.
    fn node(&self) -> &Node;

    /// Whether it may be in a list, of whatever VM.
    ///
    /// What was zeroed, or taken out of a list, is in none. Upstream asks nobody to zero a node: anything
    /// else may be rubbish, and has to be looked for.
    fn may_be_linked(&self, _: &MmuWrite<'_>) -> bool {
        // SAFETY: By the invariant of `Node`.
        unsafe { !bindings::kpt_node_is_free(self.node().link()) }
    }
}

// SAFETY: It is the node.
unsafe impl Listener for Node {
    fn node(&self) -> &Node {
        self
    }
}

// SAFETY: As asserted.
unsafe impl Listener for Client {
    fn node(&self) -> &Node {
        const _: () = assert!(core::mem::offset_of!(bindings::kvm_page_track_client, node) == 0);
        // SAFETY: By the type invariant; the node is part of the client.
        unsafe { Node::from_ptr(NonNull::new_unchecked(addr_of_mut!((*self.0.get()).node))) }
    }
}

/// A list, ours or KVM's (`struct hlist_head`).
///
/// # Invariants
///
/// What is linked is a `T`. The head does not move while something is: the first node points back to it.
#[repr(transparent)]
pub(super) struct List<T> {
    head: Opaque<bindings::hlist_head>,
    _nodes: PhantomData<fn(&T)>,
}

// SAFETY: Nodes may be called by any task; the head is written under `mmu_lock`.
unsafe impl<T> Send for List<T> {}
// SAFETY: As above, and read as a whole.
unsafe impl<T> Sync for List<T> {}

impl<T: Listener> List<T> {
    /// An empty list.
    pub(super) const fn new() -> Self {
        Self {
            head: Opaque::new(bindings::hlist_head {
                first: core::ptr::null_mut(),
            }),
            _nodes: PhantomData,
        }
    }

    /// Makes a view of a list of C's.
    ///
    /// # Safety
    ///
    /// `head` is valid as long as `'a`, and the type invariant holds.
    #[allow(dead_code)] // only where KVM has one
    pub(super) unsafe fn from_ptr<'a>(head: *mut bindings::hlist_head) -> &'a Self {
        // SAFETY: Transparent; the rest is the caller's promise.
        unsafe { &*head.cast::<Self>() }
    }

    /// Whether the list is empty. A hint: nothing keeps it so.
    #[inline(always)] // the event path
    pub(super) fn is_empty(&self) -> bool {
        self.first().is_null()
    }

    #[inline(always)] // the event path
    fn first(&self) -> *mut bindings::hlist_node {
        // SAFETY: By the type invariant. Written as a whole, also by C.
        unsafe { addr_of!((*self.head.get()).first).read_volatile() }
    }

    /// What is in the list.
    ///
    /// # Safety
    ///
    /// As long as `'a` the caller is in a read section of this list, for which unregistering waits, or
    /// holds its `mmu_lock` for write.
    #[inline(always)] // the event path
    pub(super) unsafe fn nodes<'a>(&self) -> Nodes<'a, T> {
        // INVARIANT: The caller's promise. A node that leaves keeps its link onwards.
        Nodes {
            first: self.first(),
            _nodes: PhantomData,
        }
    }

    /// Whether something is in the list.
    ///
    /// # Safety
    ///
    /// The lock is that of the VM that the list belongs to.
    pub(super) unsafe fn contains(&self, listener: &T, _: &MmuWrite<'_>) -> bool {
        let mut found = false;
        // SAFETY: The token proves that `mmu_lock` is held for write: nobody is unregistered.
        unsafe { self.nodes() }.for_each(|other| found |= core::ptr::eq(other, listener));
        found
    }

    /// Adds something.
    ///
    /// # Safety
    ///
    /// It is in no list, and stays valid until [`List::remove`] and then the end of the read sections in
    /// which the list is read. The lock is that of the VM that the list belongs to.
    pub(super) unsafe fn insert(&self, listener: &T, _: &MmuWrite<'_>) {
        // SAFETY: The node is valid and in no list, and writers are excluded. C orders what was stored into
        // the node, its callbacks also, before it can be found.
        unsafe { bindings::kpt_hlist_add_head_rcu(listener.node().link(), self.head.get()) };
    }

    /// Takes something out. False if it is not there.
    ///
    /// # Safety
    ///
    /// The lock is that of the VM that the list belongs to.
    pub(super) unsafe fn remove(&self, listener: &T, mmu: &MmuWrite<'_>) -> bool {
        // SAFETY: The caller's promise.
        if !unsafe { self.contains(listener, mmu) } {
            return false;
        }
        // SAFETY: The node is in the list, and writers are excluded.
        unsafe { bindings::kpt_hlist_del_rcu(listener.node().link()) };
        true
    }
}

/// Listeners that may be looked at and called: none that was there is gone before `'a` ends.
///
/// # Invariants
///
/// What is linked is a `T`, and stays valid as long as `'a`.
pub(crate) struct Nodes<'a, T> {
    first: *mut bindings::hlist_node,
    _nodes: PhantomData<&'a T>,
}

impl<T: Listener> Nodes<'_, T> {
    /// None.
    pub(super) const fn none() -> Self {
        // INVARIANT: Nothing is linked.
        Self {
            first: core::ptr::null_mut(),
            _nodes: PhantomData,
        }
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_null()
    }

    /// Calls `f` for every one.
    #[inline(always)] // the event path
    pub(crate) fn for_each(&self, mut f: impl FnMut(&T)) {
        const _: () = assert!(core::mem::offset_of!(RawNode, node) == 0);
        // What a link points to was initialised before it was linked, and is reached through the
        // link: the dependency orders the loads, as in rcu_dereference().
        let mut link = self.first;
        while let Some(ptr) = NonNull::new(link) {
            // SAFETY: By the type invariant; what is linked is the first member of a node, and that
            // the first member of a `T` by the contract of `Listener`.
            f(unsafe { ptr.cast::<T>().as_ref() });
            // SAFETY: As above.
            link = unsafe { addr_of!((*ptr.as_ptr()).next).read_volatile() };
        }
    }
}

#[kernel::macros::kunit_tests(kvm_page_track_listeners)]
#[allow(unsafe_op_in_unsafe_fn)]
mod tests {
    use super::*;
    use crate::kvm::unit::with_blank_vm;
    use kernel::prelude::*;

    /// Two clients, all zeroes, that outlive the test's list.
    fn with_clients(f: impl FnOnce(&List<Client>, &Client, &Client, &MmuWrite<'_>)) {
        let list = List::new();
        let clients =
            KBox::<[bindings::kvm_page_track_client; 2]>::new_uninit(GFP_KERNEL | __GFP_ZERO)
                .unwrap();
        let first = NonNull::from(&*clients).cast::<bindings::kvm_page_track_client>();
        // SAFETY: The memory is zeroed, and outlives the call.
        let (a, b) = unsafe { (Client::from_ptr(first), Client::from_ptr(first.add(1))) };
        with_blank_vm(|_, mmu| f(&list, a, b, mmu));
    }

    fn all(list: &List<Client>) -> KVec<*const Client> {
        let mut all = KVec::new();
        // SAFETY: Nobody else knows these lists.
        unsafe { list.nodes() }.for_each(|client| {
            all.push(core::ptr::from_ref(client), GFP_KERNEL).unwrap();
        });
        all
    }

    fn insert(list: &List<Client>, client: &Client, mmu: &MmuWrite<'_>) -> bool {
        if client.may_be_linked(mmu) {
            return false;
        }
        // SAFETY: It is in no list, and nobody else knows this one.
        unsafe { list.insert(client, mmu) };
        true
    }

    fn remove(list: &List<Client>, client: &Client, mmu: &MmuWrite<'_>) -> bool {
        // SAFETY: Nobody else knows these lists.
        unsafe { list.remove(client, mmu) }
    }

    #[test]
    fn a_new_list_is_empty() {
        with_clients(|list, a, _, mmu| {
            assert!(list.is_empty());
            assert_eq!(all(list).len(), 0);
            assert!(!remove(list, a, mmu));
        });
    }

    #[test]
    fn who_leaves_is_passed_by_who_walks() {
        with_clients(|list, a, b, mmu| {
            assert!(insert(list, a, mmu));
            assert!(insert(list, b, mmu));
            // SAFETY: Nobody else knows these lists.
            let nodes = unsafe { list.nodes() };
            let mut n = 0;
            nodes.for_each(|client| {
                assert!(remove(list, client, mmu));
                n += 1;
            });
            assert_eq!(n, 2);
            assert!(list.is_empty());
        });
    }

    #[test]
    fn a_client_is_in_the_list_once() {
        with_clients(|list, a, b, mmu| {
            assert!(insert(list, a, mmu));
            assert!(!insert(list, a, mmu));
            assert!(insert(list, b, mmu));
            assert_eq!(all(list).len(), 2);
            assert!(remove(list, a, mmu));
            assert!(!remove(list, a, mmu));
            assert_eq!(all(list).len(), 1);
            assert!(core::ptr::eq(all(list)[0], b));
            assert!(insert(list, a, mmu));
            assert_eq!(all(list).len(), 2);
        });
    }

    #[test]
    fn a_client_is_in_one_list() {
        with_clients(|list, a, _, mmu| {
            let other = List::new();
            assert!(insert(list, a, mmu));
            assert!(!insert(&other, a, mmu));
            assert!(!remove(&other, a, mmu));
            assert!(remove(list, a, mmu));
            assert!(insert(&other, a, mmu));
            assert!(remove(&other, a, mmu));
        });
    }

    #[test]
    fn what_is_in_no_list_does_not_look_linked() {
        with_clients(|list, a, _, mmu| {
            assert!(!a.may_be_linked(mmu));
            assert!(insert(list, a, mmu));
            assert!(a.may_be_linked(mmu));
            // What is left there is LIST_POISON2.
            assert!(remove(list, a, mmu));
            assert!(!a.may_be_linked(mmu));
            for (byte, linked) in [(0x00, false), (0x5a, true), (0x6b, true), (0xff, true)] {
                // SAFETY: The client is in no list.
                unsafe { a.node().link().write_bytes(byte, 1) };
                assert_eq!(a.may_be_linked(mmu), linked);
            }
        });
    }

    #[test]
    fn without_a_callback_no_move() {
        with_clients(|_, a, _, _| assert!(!a.follows_moves()));
    }
}
