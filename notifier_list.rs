// SPDX-License-Identifier: GPL-2.0-only

//! Lists of notifiers, shared with C and walked under SRCU.
//!
//! Two lists have the same form: KVM's own (`kvm->arch.track_notifier_head`, so that C serves its
//! nodes before insmod and after rmmod) and ours of clients that can follow a moved memslot. Both
//! are written under `mmu_lock` held for write.
//!
//! C source: `arch/x86/kvm/mmu/page_track.c`, `include/linux/rculist.h`.

use crate::bindings;
use crate::kvm::{Gfn, Gpa, Kvm, MmuWrite};
use core::ptr::{addr_of, addr_of_mut, NonNull};
use kernel::new_srcu;
use kernel::prelude::*;
use kernel::sync::{srcu, Srcu};
use kernel::types::Opaque;

/// Upstream's notifier (`struct kvm_page_track_notifier_node`), owned by another module.
///
/// # Invariants
///
/// Valid, and its callbacks are callable, from before it is registered until after it is
/// unregistered: the contract of the C API.
#[repr(transparent)]
pub(crate) struct Node(Opaque<bindings::kvm_page_track_notifier_node>);

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
    gpa: Gpa,
    new: *const u8,
    bytes: i32,
}

impl Written {
    /// Describes a write.
    ///
    /// # Safety
    ///
    /// The type invariant holds until the value is dropped.
    pub(crate) unsafe fn new(gpa: Gpa, new: *const u8, bytes: i32) -> Self {
        Self { gpa, new, bytes }
    }

    /// Where it begins.
    pub(crate) fn gpa(&self) -> Gpa {
        self.gpa
    }
}

impl Node {
    /// Makes a view of a node.
    ///
    /// # Safety
    ///
    /// The type invariant holds as long as `'a`.
    pub(crate) unsafe fn from_ptr<'a>(
        ptr: NonNull<bindings::kvm_page_track_notifier_node>,
    ) -> &'a Self {
        // SAFETY: Transparent; the rest is the caller's promise.
        unsafe { ptr.cast().as_ref() }
    }

    /// What the list of registered nodes knows it by.
    pub(crate) fn address(&self) -> usize {
        self.0.get() as usize
    }

    fn link(&self) -> *mut bindings::hlist_node {
        // SAFETY: By the type invariant; only the address is taken.
        unsafe { addr_of_mut!((*self.0.get()).node) }
    }

    /// Tells the notifier of a guest write.
    #[inline(never)] // scripts/check-indirect-calls.sh knows it by name
    pub(crate) fn track_write(&self, written: &Written) {
        // SAFETY: By the type invariants of `Node` and `Written`; the pointer is constant while the
        // node is registered.
        unsafe {
            let node = self.0.get();
            if let Some(f) = (*node).track_write {
                f(written.gpa, written.new, written.bytes, node);
            }
        }
    }

    /// Tells the notifier that a memslot is gone.
    #[inline(never)] // scripts/check-indirect-calls.sh knows it by name
    pub(crate) fn track_remove_region(&self, gfn: Gfn, npages: u64) {
        // SAFETY: By the type invariant.
        unsafe {
            let node = self.0.get();
            if let Some(f) = (*node).track_remove_region {
                f(gfn, npages as usize, node);
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

    /// The node in it.
    pub(crate) fn node(&self) -> &Node {
        // SAFETY: By the type invariant; the node is part of the client.
        unsafe { Node::from_ptr(NonNull::new_unchecked(addr_of_mut!((*self.0.get()).node))) }
    }

    /// The client that a node of a list of clients is in.
    fn of(node: &Node) -> &Self {
        const _: () = assert!(core::mem::offset_of!(bindings::kvm_page_track_client, node) == 0);
        // SAFETY: Only `node()` of clients are put into a list of clients, and the node is their
        // first member.
        unsafe { &*(core::ptr::from_ref(node).cast::<Client>()) }
    }

    /// Whether the client can follow a moved memslot.
    pub(crate) fn follows_moves(&self) -> bool {
        // SAFETY: By the type invariant.
        unsafe { (*self.0.get()).track_move_region.is_some() }
    }

    /// Tells the client that a memslot moves.
    #[inline(never)] // scripts/check-indirect-calls.sh knows it by name
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

#[inline(always)]
fn is_empty(head: *mut bindings::hlist_head) -> bool {
    // SAFETY: Callers pass the head of one of the two lists.
    unsafe { addr_of!((*head).first).read_volatile().is_null() }
}

/// Calls `f` for the nodes of a list until it returns false.
///
/// # Safety
///
/// The caller is in a read section of the list's SRCU, or holds `mmu_lock` for write.
unsafe fn walk(head: *mut bindings::hlist_head, mut f: impl FnMut(&Node) -> bool) {
    // What a link points to was initialised before it was linked, and is reached through the link:
    // the dependency orders the loads, as in rcu_dereference().
    // SAFETY: Callers pass the head of one of the two lists.
    let mut link = unsafe { addr_of!((*head).first).read_volatile() };
    while let Some(ptr) = NonNull::new(link) {
        const _: () =
            assert!(core::mem::offset_of!(bindings::kvm_page_track_notifier_node, node) == 0);
        // SAFETY: What is linked is the first member of a registered node, and the caller keeps
        // nodes from being unregistered (SRCU: from being done so).
        if !f(unsafe { Node::from_ptr(ptr.cast()) }) {
            return;
        }
        // SAFETY: As above.
        link = unsafe { addr_of!((*ptr.as_ptr()).next).read_volatile() };
    }
}

fn contains(head: *mut bindings::hlist_head, node: &Node, _: &MmuWrite<'_>) -> bool {
    let mut found = false;
    // SAFETY: The token proves that `mmu_lock` is held for write.
    unsafe {
        walk(head, |n| {
            found = n.address() == node.address();
            !found
        })
    };
    found
}

fn insert(head: *mut bindings::hlist_head, node: &Node, mmu: &MmuWrite<'_>) -> bool {
    if contains(head, node, mmu) {
        return false;
    }
    // SAFETY: The node is valid and in no list, and writers are excluded.
    unsafe { bindings::kpt_hlist_add_head_rcu(node.link(), head) };
    true
}

fn remove(head: *mut bindings::hlist_head, node: &Node, mmu: &MmuWrite<'_>) -> bool {
    if !contains(head, node, mmu) {
        return false;
    }
    // SAFETY: The node is in the list, and writers are excluded.
    unsafe { bindings::kpt_hlist_del_rcu(node.link()) };
    true
}

/// Our list: the nodes in it are those of clients.
#[pin_data]
pub(crate) struct NotifierList {
    #[pin]
    head: Opaque<bindings::hlist_head>,
    #[pin]
    srcu: Srcu,
}

impl NotifierList {
    /// An empty list.
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            // The first node's link points back to the head, hence the pin.
            head <- Opaque::ffi_init(|head: *mut bindings::hlist_head| {
                // SAFETY: The memory is given to be written.
                unsafe {
                    head.write(bindings::hlist_head {
                        first: core::ptr::null_mut(),
                    });
                }
            }),
            srcu <- new_srcu!(),
        })
    }

    /// Whether there is no client. A hint without `mmu_lock`.
    pub(crate) fn is_empty(&self) -> bool {
        is_empty(self.head.get())
    }

    /// Adds a client. False if it is in this list, or that of another VM, already.
    pub(crate) fn insert(&self, client: &Client, mmu: &MmuWrite<'_>) -> bool {
        // Clients are zeroed before their first registration, so their link can be trusted.
        // SAFETY: The node is valid.
        if unsafe { bindings::kpt_hlist_linked(client.node().link()) } {
            return false;
        }
        insert(self.head.get(), client.node(), mmu)
    }

    /// Takes a client out. False if it is not there.
    pub(crate) fn remove(&self, client: &Client, mmu: &MmuWrite<'_>) -> bool {
        remove(self.head.get(), client.node(), mmu)
    }

    /// Enters a read section. It may sleep.
    pub(crate) fn read(&self) -> ClientsRead<'_> {
        ClientsRead {
            list: self,
            _section: self.srcu.read_lock(),
        }
    }

    /// Waits for the read sections that are open. Sleeps.
    pub(crate) fn synchronize(&self) {
        self.srcu.synchronize();
    }
}

/// A read section of our list.
pub(crate) struct ClientsRead<'a> {
    list: &'a NotifierList,
    _section: srcu::Guard<'a>,
}

impl ClientsRead<'_> {
    /// Calls `f` for every client.
    pub(crate) fn for_each(&self, mut f: impl FnMut(&Client)) {
        // SAFETY: `self` is the read section.
        unsafe {
            walk(self.list.head.get(), |node| {
                f(Client::of(node));
                true
            })
        };
    }
}

/// KVM's own list of a VM.
pub(crate) struct KvmNotifiers<'k> {
    kvm: &'k Kvm,
}

impl<'k> KvmNotifiers<'k> {
    /// The list of a VM.
    pub(crate) fn of(kvm: &'k Kvm) -> Self {
        Self { kvm }
    }

    fn head(&self) -> *mut bindings::hlist_head {
        // SAFETY: The head is part of the VM; only the address is taken.
        unsafe { addr_of_mut!((*self.kvm.notifier_head()).track_notifier_list) }
    }

    fn srcu(&self) -> *mut bindings::srcu_struct {
        // SAFETY: As in `head`.
        unsafe { addr_of_mut!((*self.kvm.notifier_head()).track_srcu) }
    }

    /// Whether there is no notifier. A hint without `mmu_lock`.
    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        is_empty(self.head())
    }

    /// Adds a notifier. False if it is there already.
    pub(crate) fn insert(&self, node: &Node, mmu: &MmuWrite<'_>) -> bool {
        insert(self.head(), node, mmu)
    }

    /// Takes a notifier out. False if it is not there.
    pub(crate) fn remove(&self, node: &Node, mmu: &MmuWrite<'_>) -> bool {
        remove(self.head(), node, mmu)
    }

    /// Calls `f` for every notifier, in a read section that may sleep.
    pub(crate) fn for_each(&self, mut f: impl FnMut(&Node)) {
        // SAFETY: KVM set up the SRCU structure with the VM.
        let idx = unsafe { bindings::kpt_srcu_read_lock(self.srcu()) };
        // SAFETY: In the read section just entered.
        unsafe {
            walk(self.head(), |node| {
                f(node);
                true
            })
        };
        // SAFETY: `idx` is from the matching read lock.
        unsafe { bindings::kpt_srcu_read_unlock(self.srcu(), idx) };
    }

    /// Waits for the read sections that are open. Sleeps.
    pub(crate) fn synchronize(&self) {
        // SAFETY: As in `for_each`.
        unsafe { bindings::synchronize_srcu(self.srcu()) };
    }

    /// What C's `kvm_page_track_cleanup()` does when a VM is destroyed.
    ///
    /// # Safety
    ///
    /// The VM is being destroyed and the list is not used again.
    pub(crate) unsafe fn cleanup(&self) {
        // SAFETY: The caller's promise.
        unsafe { bindings::cleanup_srcu_struct(self.srcu()) };
    }
}

#[kernel::macros::kunit_tests(kvm_page_track_notifier_list)]
#[allow(unsafe_op_in_unsafe_fn)]
mod tests {
    use super::*;
    use crate::kvm::unit::with_blank_vm;

    /// Two clients, all zeroes, that outlive the test's list.
    fn with_clients(f: impl FnOnce(&NotifierList, &Client, &Client, &MmuWrite<'_>)) {
        let list = KBox::pin_init(NotifierList::new(), GFP_KERNEL).unwrap();
        let clients =
            KBox::<[bindings::kvm_page_track_client; 2]>::new_uninit(GFP_KERNEL | __GFP_ZERO)
                .unwrap();
        let first = NonNull::from(&*clients).cast::<bindings::kvm_page_track_client>();
        // SAFETY: The memory is zeroed, and outlives the call.
        let (a, b) = unsafe { (Client::from_ptr(first), Client::from_ptr(first.add(1))) };
        with_blank_vm(|_, mmu| f(&list, a, b, mmu));
    }

    fn addresses(list: &NotifierList) -> KVec<usize> {
        let mut all = KVec::new();
        list.read()
            .for_each(|client| all.push(client.node().address(), GFP_KERNEL).unwrap());
        all
    }

    #[test]
    fn a_client_is_in_the_list_once() {
        with_clients(|list, a, b, mmu| {
            assert!(list.insert(a, mmu));
            assert!(!list.insert(a, mmu));
            assert!(list.insert(b, mmu));
            assert_eq!(addresses(list).len(), 2);
            assert!(list.remove(a, mmu));
            assert!(!list.remove(a, mmu));
            assert_eq!(addresses(list).len(), 1);
            assert_eq!(addresses(list)[0], b.node().address());
            assert!(list.insert(a, mmu));
            assert_eq!(addresses(list).len(), 2);
        });
    }

    #[test]
    fn a_client_is_in_one_list() {
        with_clients(|list, a, _, mmu| {
            let other = KBox::pin_init(NotifierList::new(), GFP_KERNEL).unwrap();
            assert!(list.insert(a, mmu));
            assert!(!other.insert(a, mmu));
            assert!(!other.remove(a, mmu));
            assert!(list.remove(a, mmu));
            assert!(other.insert(a, mmu));
            assert!(other.remove(a, mmu));
        });
    }

    #[test]
    fn without_a_callback_no_move() {
        with_clients(|_, a, _, _| assert!(!a.follows_moves()));
    }
}
