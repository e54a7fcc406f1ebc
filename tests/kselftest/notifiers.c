// SPDX-License-Identifier: GPL-2.0-only
/*
 * Who hears what, and for how long: several notifiers, several VMs, callbacks
 * that call, unregistering under a storm of events, a VM that user space has
 * closed.  And what debugfs says of all that.
 */
#include <dirent.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kpt_lib.h"

#define NPAGES	8

/* Writes without pause until told to stop. */
static u64 stop;

static void guest_storm(void)
{
	u64 i;

	for (i = 1; !READ_ONCE(stop); i++)
		*(volatile u64 *)KPT_GVA = i;
	GUEST_DONE();
}

static struct kvm_vm *make(struct kvm_vcpu **vcpu, void *guest)
{
	return kpt_vm(vcpu, guest, NPAGES, VM_MEM_SRC_ANONYMOUS);
}

static int reg(struct kvm_vm *vm, u32 type, u32 flags)
{
	int id = kpt_reg(kpt_dev, vm, type, flags);

	TEST_ASSERT(id >= 0, "register: %d", id);
	return id;
}

static void several_on_one_vm(void)
{
	static const u32 types[] = {
		KPT_NOTIFIER, KPT_CLIENT, KPT_NOTIFIER, KPT_CLIENT_MOVE,
		KPT_CLIENT,
	};
	enum { N = ARRAY_SIZE(types) };
	struct kpt_event ev[2 * N];
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = make(&vcpu, kpt_write_guest);
	int id[N], i, k, n, live, seen;
	u64 v, value;

	for (i = 0; i < N; i++)
		id[i] = reg(vm, types[i], KPT_REG_RECORD);
	KPT_OK(kpt_add(vm, KPT_GFN + 1));

	/* unregistered one after the other, from the middle outwards */
	for (live = N; live >= 0; live--) {
		v = kpt_write(vcpu, 1);
		n = kpt_events(kpt_dev, ev, 2 * N);
		KPT_EQ(n, live);
		for (i = 0; i < N; i++) {
			for (k = 0, seen = 0; k < n; k++)
				seen += ev[k].id == id[i];
			KPT_EQ(seen, kpt_counters(kpt_dev, id[i]).registered);
		}
		for (k = 0; k < n; k++) {
			KPT_EQ(ev[k].gpa, KPT_GPA + 0x1000);
			KPT_EQ(ev[k].len, 8);
			memcpy(&value, ev[k].data, 8);
			KPT_EQ(value, v);
		}
		if (live) {
			static const int order[N] = { 2, 1, 3, 0, 4 };

			KPT_OK(kpt_unreg(kpt_dev, id[order[N - live]]));
		}
	}
	for (i = 0; i < N; i++) {
		static const int heard[N] = { 4, 2, 1, 3, 5 };

		KPT_EQ(kpt_counters(kpt_dev, id[i]).writes, heard[i]);
		KPT_EQ(kpt_counters(kpt_dev, id[i]).bytes, 8 * heard[i]);
	}
	/* the page stays tracked: counts are not the notifiers' */
	KPT_EQ(kpt_count(vm, KPT_GFN + 1), 1);
	KPT_OK(kpt_remove(vm, KPT_GFN + 1));
	kvm_vm_free(vm);
}

static void two_vms(void)
{
	struct kvm_vcpu *va, *vb;
	struct kvm_vm *a = make(&va, kpt_write_guest), *b = make(&vb, kpt_write_guest);
	int ia = reg(a, KPT_NOTIFIER, 0), ib = reg(b, KPT_CLIENT, 0);
	int i;

	KPT_OK(kpt_add(a, KPT_GFN + 1));
	KPT_OK(kpt_add(b, KPT_GFN + 2));
	KPT_EQ(kpt_count(a, KPT_GFN + 2), 0);
	KPT_EQ(kpt_count(b, KPT_GFN + 1), 0);
	for (i = 1; i <= 3; i++) {
		kpt_write(va, 1);
		kpt_write(va, 2);
		kpt_write(vb, 1);
		kpt_write(vb, 2);
		kpt_write(vb, 2);
		KPT_EQ(kpt_counters(kpt_dev, ia).writes, i);
		KPT_EQ(kpt_counters(kpt_dev, ib).writes, 2 * i);
	}
	/* pages tracked in one VM are no other VM's */
	KPT_REFUSED(a, KPT_GFN + 2, kpt_remove(a, KPT_GFN + 2), ENOENT);
	KPT_OK(kpt_unreg(kpt_dev, ia));
	kvm_vm_free(a);
	kpt_write(vb, 2);
	KPT_EQ(kpt_counters(kpt_dev, ib).writes, 7);
	KPT_OK(kpt_unreg(kpt_dev, ib));
	kvm_vm_free(b);
}

static void registered_already(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = make(&vcpu, kpt_write_guest);
	struct kvm_vm *other = vm_create_barebones();
	struct kpt_register again, elsewhere;
	u32 type;
	int id;

	KPT_OK(kpt_add(vm, KPT_GFN + 1));
	for (type = KPT_NOTIFIER; type <= KPT_CLIENT_MOVE; type++) {
		id = reg(vm, type, 0);
		again = (struct kpt_register) {
			.vm_fd = vm->fd, .type = type, .id = id,
		};
		KPT_REFUSED(vm, KPT_GFN + 1, kpt_reg_full(kpt_dev, &again), EEXIST);
		/* with another VM neither */
		elsewhere = again;
		elsewhere.vm_fd = other->fd;
		KPT_ERR(kpt_reg_full(kpt_dev, &elsewhere), EEXIST);
		/* once, not twice */
		kpt_write(vcpu, 1);
		KPT_EQ(kpt_counters(kpt_dev, id).writes, 1);
		KPT_OK(kpt_unreg(kpt_dev, id));
		kpt_write(vcpu, 1);
		KPT_EQ(kpt_counters(kpt_dev, id).writes, 1);
		/* afterwards it may be registered once more */
		KPT_EQ(kpt_reg_full(kpt_dev, &again), id);
		kpt_write(vcpu, 1);
		KPT_EQ(kpt_counters(kpt_dev, id).writes, 2);
		KPT_OK(kpt_unreg(kpt_dev, id));
	}
	kvm_vm_free(vm);
	kvm_vm_free(other);
}

/* Upstream's notifiers need not be zeroed before they are registered. */
static void never_zeroed(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = make(&vcpu, kpt_write_guest);
	struct kvm_vm *other = vm_create_barebones();
	struct kpt_register again, elsewhere;
	int first = reg(vm, KPT_NOTIFIER, 0), id, i;

	KPT_OK(kpt_add(vm, KPT_GFN + 1));
	id = reg(vm, KPT_NOTIFIER, KPT_REG_DIRTY);
	again = (struct kpt_register) {
		.vm_fd = vm->fd, .type = KPT_NOTIFIER, .id = id,
		.flags = KPT_REG_DIRTY,
	};
	elsewhere = again;
	elsewhere.vm_fd = other->fd;
	for (i = 1; i <= 3; i++) {
		kpt_write(vcpu, 1);
		KPT_EQ(kpt_counters(kpt_dev, id).writes, i);
		KPT_REFUSED(vm, KPT_GFN + 1, kpt_reg_full(kpt_dev, &again), EEXIST);
		KPT_ERR(kpt_reg_full(kpt_dev, &elsewhere), EEXIST);
		KPT_OK(kpt_unreg(kpt_dev, id));
		/* rubbish again */
		KPT_EQ(kpt_reg_full(kpt_dev, &again), id);
	}
	KPT_OK(kpt_unreg(kpt_dev, id));
	/* as the only one of its VM */
	KPT_EQ(kpt_reg_full(kpt_dev, &elsewhere), id);
	KPT_ERR(kpt_reg_full(kpt_dev, &again), EEXIST);
	KPT_OK(kpt_unreg(kpt_dev, id));
	kpt_write(vcpu, 1);
	KPT_EQ(kpt_counters(kpt_dev, id).writes, 3);
	KPT_EQ(kpt_counters(kpt_dev, first).writes, 4);
	KPT_OK(kpt_unreg(kpt_dev, first));
	kvm_vm_free(vm);
	kvm_vm_free(other);
}

static void another_process(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = make(&vcpu, kpt_write_guest);
	int status, refs = kpt_mod_refs("kvm_page_track");
	u32 type;
	pid_t pid;

	pid = fork();
	if (!pid) {
		for (type = KPT_NOTIFIER; type <= KPT_CLIENT_MOVE; type++)
			KPT_REFUSED(vm, KPT_GFN, kpt_reg(kpt_dev, vm, type, 0),
				    ESRCH);
		KPT_REFUSED(vm, KPT_GFN, kpt_reg(kpt_stock, vm, KPT_NOTIFIER, 0),
			    ESRCH);
		_exit(0);
	}
	KPT_EQ(waitpid(pid, &status, 0), pid);
	KPT_EQ(status, 0);
	KPT_EQ(kpt_mod_refs("kvm_page_track"), refs);
	kvm_vm_free(vm);
}

static void null_arguments(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = make(&vcpu, kpt_write_guest);
	static const u32 unreg_flags[] = {
		KPT_UNREG_NULL_KVM, KPT_UNREG_NULL_NODE,
		KPT_UNREG_NULL_KVM | KPT_UNREG_NULL_NODE,
	};
	struct kpt_unregister u;
	u32 type, i;
	int id;

	KPT_OK(kpt_add(vm, KPT_GFN + 1));
	for (type = KPT_NOTIFIER; type <= KPT_CLIENT_MOVE; type++) {
		/* upstream's function says so of a VM that is not there */
		int no_vm = type == KPT_NOTIFIER ? ESRCH : EINVAL;

		KPT_REFUSED(vm, KPT_GFN, kpt_reg(kpt_dev, vm, type,
						 KPT_REG_NULL_KVM), no_vm);
		KPT_REFUSED(vm, KPT_GFN, kpt_reg(kpt_dev, vm, type,
						 KPT_REG_NULL_NODE), EINVAL);
		KPT_REFUSED(vm, KPT_GFN,
			    kpt_reg(kpt_dev, vm, type,
				    KPT_REG_NULL_KVM | KPT_REG_NULL_NODE), no_vm);

		id = reg(vm, type, 0);
		for (i = 0; i < ARRAY_SIZE(unreg_flags); i++) {
			u = (struct kpt_unregister) {
				.id = id, .flags = unreg_flags[i],
			};
			KPT_REFUSED(vm, KPT_GFN, ioctl(kpt_dev, KPT_UNREGISTER, &u),
				    0);
		}
		kpt_write(vcpu, 1);
		KPT_EQ(kpt_counters(kpt_dev, id).writes, 1);
		KPT_OK(kpt_unreg(kpt_dev, id));
		/* one that is not registered is ignored */
		if (type != KPT_NOTIFIER) {
			u = (struct kpt_unregister) {
				.id = id, .flags = KPT_UNREG_AGAIN,
			};
			KPT_REFUSED(vm, KPT_GFN, ioctl(kpt_dev, KPT_UNREGISTER, &u),
				    0);
		}
	}
	kvm_vm_free(vm);
}

static void callbacks_that_call(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = make(&vcpu, kpt_write_guest);
	struct kpt_register r = {
		.vm_fd = vm->fd, .type = KPT_NOTIFIER, .flags = KPT_REG_CB_ADD,
		.cb_gfn = KPT_GFN + 2, .id = -1,
	};
	struct kpt_counters c;
	int adder, remover, both, bad;

	/* adds page 2 whenever a tracked page is written */
	adder = kpt_reg_full(kpt_dev, &r);
	TEST_ASSERT(adder >= 0, "register: %d", adder);
	KPT_OK(kpt_add(vm, KPT_GFN + 1));
	KPT_EQ(kpt_count(vm, KPT_GFN + 2), 0);
	kpt_write(vcpu, 2);
	KPT_EQ(kpt_count(vm, KPT_GFN + 2), 0);
	kpt_write(vcpu, 1);
	KPT_EQ(kpt_count(vm, KPT_GFN + 2), 1);
	kpt_write(vcpu, 2);
	KPT_EQ(kpt_count(vm, KPT_GFN + 2), 2);
	c = kpt_counters(kpt_dev, adder);
	KPT_EQ(c.writes, 2);
	KPT_EQ(c.cb_ok, 2);
	KPT_EQ(c.cb_err, 0);
	KPT_OK(kpt_unreg(kpt_dev, adder));

	/* removes the very page that is written */
	r.flags = KPT_REG_CB_REMOVE;
	r.type = KPT_CLIENT;
	r.id = -1;
	remover = kpt_reg_full(kpt_dev, &r);
	TEST_ASSERT(remover >= 0, "register: %d", remover);
	kpt_write(vcpu, 2);
	KPT_EQ(kpt_count(vm, KPT_GFN + 2), 1);
	kpt_write(vcpu, 2);
	KPT_EQ(kpt_count(vm, KPT_GFN + 2), 0);
	kpt_write(vcpu, 2);
	c = kpt_counters(kpt_dev, remover);
	KPT_EQ(c.writes, 2);
	KPT_EQ(c.cb_ok, 2);
	/* page 1 is tracked, page 2 no more: the callback's remove is refused */
	kpt_write(vcpu, 1);
	c = kpt_counters(kpt_dev, remover);
	KPT_EQ(c.cb_err, 1);
	KPT_EQ(c.cb_errno, -ENOENT);
	KPT_OK(kpt_unreg(kpt_dev, remover));

	/* adds and removes in one go, a page of another memslot */
	r.flags = KPT_REG_CB_ADD | KPT_REG_CB_REMOVE;
	r.cb_gfn = 0x20;
	r.id = -1;
	both = kpt_reg_full(kpt_dev, &r);
	r.cb_gfn = KPT_GFN + NPAGES + 1;
	r.id = -1;
	bad = kpt_reg_full(kpt_dev, &r);
	TEST_ASSERT(both >= 0 && bad >= 0, "register: %d %d", both, bad);
	kpt_write(vcpu, 1);
	c = kpt_counters(kpt_dev, both);
	KPT_EQ(c.cb_ok, 2);
	KPT_EQ(c.cb_err, 0);
	c = kpt_counters(kpt_dev, bad);
	KPT_EQ(c.cb_ok, 0);
	KPT_EQ(c.cb_err, 2);
	KPT_EQ(c.cb_errno, -EINVAL);
	KPT_EQ(kpt_count(vm, 0x20), 0);
	KPT_EQ(kpt_inspect(vm, 0, 0x20).has_array, 1);
	KPT_OK(kpt_remove(vm, KPT_GFN + 1));
	kvm_vm_free(vm);
}

static void *run_storm(void *arg)
{
	kpt_run_done(arg);
	return NULL;
}

/* @rounds notifiers come and go while the guest writes without pause. */
static void storm(u32 type, u32 sleep_ms, int rounds)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = make(&vcpu, guest_storm);
	struct kpt_counters c;
	struct kpt_register r;
	u64 heard = 0, before;
	pthread_t thread;
	int id, i, k, steady;

	stop = 0;
	sync_global_to_guest(vm, stop);
	KPT_OK(kpt_add(vm, KPT_GFN));
	/* one that stays: its list is walked while others leave it */
	steady = reg(vm, type, 0);
	pthread_create(&thread, NULL, run_storm, vcpu);

	for (i = 0; i < rounds; i++) {
		r = (struct kpt_register) {
			.vm_fd = vm->fd, .type = type, .sleep_ms = sleep_ms,
			.id = -1,
		};
		id = kpt_reg_full(kpt_dev, &r);
		TEST_ASSERT(id >= 0, "register: %d", id);
		/* until it has heard something, so that it leaves in the storm */
		for (k = 0; k < 2000; k++) {
			if (kpt_counters(kpt_dev, id).writes > (u64)(i & 3))
				break;
			usleep(1000);
		}
		KPT_OK(kpt_unreg(kpt_dev, id));
		c = kpt_counters(kpt_dev, id);
		KPT_EQ(c.running, 0);
		before = c.writes;
		TEST_ASSERT(before > 0, "no event in round %d", i);
		usleep(3000);
		/* kpt_counters() asserts that none came late */
		KPT_EQ(kpt_counters(kpt_dev, id).writes, before);
		heard += before;
	}
	TEST_ASSERT(heard >= (u64)rounds, "%lu events in %d rounds", heard, rounds);
	before = kpt_counters(kpt_dev, steady).writes;
	for (k = 0; k < 2000 && kpt_counters(kpt_dev, steady).writes == before; k++)
		usleep(1000);
	TEST_ASSERT(kpt_counters(kpt_dev, steady).writes > before,
		    "the storm has ended by itself");

	stop = 1;
	sync_global_to_guest(vm, stop);
	pthread_join(thread, NULL);
	KPT_OK(kpt_unreg(kpt_dev, steady));
	KPT_EQ(kpt_counters(kpt_dev, steady).running, 0);
	KPT_OK(kpt_remove(vm, KPT_GFN));
	kvm_vm_free(vm);
}

static void storm_of_notifiers(void) { storm(KPT_NOTIFIER, 0, 40); }
static void storm_of_clients(void) { storm(KPT_CLIENT, 0, 40); }
static void storm_of_sleepers(void)
{
	storm(KPT_NOTIFIER, 20, 6);
	storm(KPT_CLIENT, 20, 6);
}

/* KVM's own debugfs directory of a VM lives as long as the VM. */
static int vms_of(int pid)
{
	DIR *d = opendir("/sys/kernel/debug/kvm");
	struct dirent *e;
	char prefix[32];
	int n = 0;

	TEST_ASSERT(d, "no debugfs of kvm");
	snprintf(prefix, sizeof(prefix), "%d-", pid);
	while ((e = readdir(d)))
		n += !strncmp(e->d_name, prefix, strlen(prefix));
	closedir(d);
	return n;
}

static void wait_for_vms(int pid, int n)
{
	int i;

	for (i = 0; i < 100 && vms_of(pid) != n; i++)
		usleep(50000);
	KPT_EQ(vms_of(pid), n);
}

static void vm_closed_while_registered(void)
{
	int refs = kpt_mod_refs("kvm_page_track"), id;
	struct kpt_call c = { .flags = KPT_CALL_BY_NODE };
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u32 type, users;

	for (type = KPT_NOTIFIER; type <= KPT_CLIENT_MOVE; type++) {
		vm = make(&vcpu, kpt_write_guest);
		users = kpt_inspect(vm, 0, 0).users_count;
		id = reg(vm, type, 0);
		TEST_ASSERT(kpt_inspect(vm, 0, 0).users_count > users,
			    "the VM is not pinned");
		TEST_ASSERT(kpt_mod_refs("kvm_page_track") > refs,
			    "the module is not pinned");
		KPT_OK(kpt_add(vm, KPT_GFN + 1));
		kpt_write(vcpu, 1);
		KPT_EQ(kpt_counters(kpt_dev, id).writes, 1);
		KPT_EQ(vms_of(getpid()), 1);
		kvm_vm_free(vm);

		/* user space has let it go, the notifier has not */
		usleep(200000);
		KPT_EQ(vms_of(getpid()), 1);
		c.vm_fd = id;
		c.op = KPT_OP_ADD_PAGE;
		c.gfn = KPT_GFN + 2;
		KPT_OK(kpt_api(kpt_dev, &c));
		c.op = KPT_OP_REMOVE_PAGE;
		KPT_OK(kpt_api(kpt_dev, &c));
		KPT_ERR(kpt_api(kpt_dev, &c), ENOENT);
		c.gfn = KPT_GFN + 1;
		KPT_OK(kpt_api(kpt_dev, &c));
		KPT_ERR(kpt_api(kpt_dev, &c), ENOENT);

		KPT_OK(kpt_unreg(kpt_dev, id));
		wait_for_vms(getpid(), 0);
		KPT_EQ(kpt_mod_refs("kvm_page_track"), refs);
	}
}

/* The process dies with everything registered and tracked. */
static void process_killed_while_registered(void)
{
	int refs = kpt_mod_refs("kvm_page_track"), status, i;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	pid_t pid;

	for (i = 0; i < 3; i++) {
		pid = fork();
		if (!pid) {
			/* the VM's fd before the device's, or after it */
			int dev = i & 1 ? kpt_open("kpt_client") : -1;

			vm = make(&vcpu, guest_storm);
			if (dev < 0)
				dev = kpt_open("kpt_client");
			TEST_ASSERT(kpt_reg(dev, vm, KPT_NOTIFIER, 0) >= 0 &&
				    kpt_reg(dev, vm, KPT_CLIENT, 0) >= 0 &&
				    kpt_reg(dev, vm, KPT_CLIENT_MOVE, 0) >= 0,
				    "register");
			KPT_OK(kpt_call(dev, KPT_OP_ADD_PAGE, vm, KPT_GFN));
			alarm(1);
			kpt_run_done(vcpu);
			_exit(1);
		}
		KPT_EQ(waitpid(pid, &status, 0), pid);
		TEST_ASSERT(WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM,
			    "the child ended with %#x", status);
		wait_for_vms(pid, 0);
		KPT_EQ(kpt_mod_refs("kvm_page_track"), refs);
	}
}

/* Interrupts would have KVM halt the vCPU, and not wait in the fault. */
static void guest_without_interrupts(void)
{
	asm volatile("cli");
	*(volatile u64 *)KPT_GVA = 1;
	GUEST_DONE();
}

static void *runs_to_its_end(void *vcpu)
{
	kpt_run_done(vcpu);
	return NULL;
}

static struct uffdio_copy missing_page;
static volatile bool unregistered, had_to_help;

/* Gives the page to the vCPU, in the end, even if somebody waits for that. */
static void *helps_later(void *uffd)
{
	int i;

	for (i = 0; i < 2000 && !unregistered; i++)
		usleep(10000);
	had_to_help = !unregistered;
	KPT_OK(ioctl((long)uffd, UFFDIO_COPY, &missing_page));
	return NULL;
}

/*
 * A vCPU waits in a fault for as long as user space likes, in a read section of
 * kvm->srcu.  Unregistering waits for callbacks, of which there are none.
 */
static void unregister_beside_userfaultfd(void)
{
	static const u8 page[4096] __aligned(4096);
	static const u32 types[] = { KPT_NOTIFIER, KPT_CLIENT, KPT_CLIENT_MOVE };
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register area = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	long uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	pthread_t runner, helper;
	struct kvm_vcpu *vcpu;
	struct uffd_msg msg;
	struct kvm_vm *vm;
	int id[3];
	u32 i;

	if (uffd < 0)
		kpt_skip("no userfaultfd");
	KPT_OK(ioctl(uffd, UFFDIO_API, &api));
	vm = make(&vcpu, guest_without_interrupts);
	area.range.start = (u64)addr_gpa2hva(vm, KPT_GPA);
	area.range.len = NPAGES * 4096;
	KPT_OK(ioctl(uffd, UFFDIO_REGISTER, &area));
	for (i = 0; i < ARRAY_SIZE(types); i++)
		id[i] = reg(vm, types[i], 0);

	pthread_create(&runner, NULL, runs_to_its_end, vcpu);
	KPT_EQ(read(uffd, &msg, sizeof(msg)), sizeof(msg));
	KPT_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
	missing_page = (struct uffdio_copy) {
		.src = (u64)page, .dst = area.range.start, .len = 4096,
	};
	unregistered = false;
	pthread_create(&helper, NULL, helps_later, (void *)uffd);
	for (i = 0; i < ARRAY_SIZE(types); i++)
		KPT_OK(kpt_unreg(kpt_dev, id[i]));
	unregistered = true;
	pthread_join(helper, NULL);
	pthread_join(runner, NULL);
	TEST_ASSERT(!had_to_help, "unregister waited for the vCPU");
	KPT_EQ(*(u64 *)addr_gpa2hva(vm, KPT_GPA), 1);
	kvm_vm_free(vm);
	close(uffd);
}

static void what_debugfs_says(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = make(&vcpu, kpt_write_guest);
	struct kpt_vm_stats st;
	int a, b, attached, hooks;
	u64 bytes = 0, slots[] = { 0, KPT_GFN }, i;

	hooks = kpt_debugfs_hooks(&attached);
	TEST_ASSERT(hooks >= 6, "%d hooks", hooks);
	KPT_EQ(attached, hooks);

	st = kpt_debugfs_vm(getpid());
	KPT_EQ(st.pages, 0);
	KPT_EQ(st.notifiers, 0);
	KPT_EQ(st.events, 0);

	a = reg(vm, KPT_NOTIFIER, 0);
	st = kpt_debugfs_vm(getpid());
	KPT_EQ(st.rows, 1);
	KPT_EQ(st.notifiers, 1);
	KPT_EQ(st.pages, 0);
	b = reg(vm, KPT_CLIENT, 0);
	KPT_OK(kpt_add(vm, KPT_GFN + 1));
	KPT_OK(kpt_add(vm, KPT_GFN + 1));
	KPT_OK(kpt_add(vm, KPT_GFN + 3));
	for (i = 0; i < ARRAY_SIZE(slots); i++) {
		struct kpt_inspect in = kpt_inspect(vm, 0, slots[i]);

		if (in.has_array)
			bytes += in.npages * 2;
	}
	TEST_ASSERT(bytes >= NPAGES * 2, "no counters");

	st = kpt_debugfs_vm(getpid());
	KPT_EQ(st.notifiers, 2);
	/* pages, however often each was added */
	KPT_EQ(st.pages, 2);
	KPT_EQ(st.counter_bytes, bytes + kpt_apic_bytes_fd(vm->fd));
	KPT_EQ(st.events, 0);

	kpt_write(vcpu, 1);
	kpt_write(vcpu, 2);
	kpt_write(vcpu, 3);
	kpt_write(vcpu, 3);
	KPT_EQ(kpt_counters(kpt_dev, a).writes, 3);
	KPT_EQ(kpt_counters(kpt_dev, b).writes, 3);
	/* guest writes that clients were told of, each once */
	KPT_EQ(kpt_debugfs_vm(getpid()).events, 3);

	KPT_OK(kpt_remove(vm, KPT_GFN + 1));
	KPT_EQ(kpt_debugfs_vm(getpid()).pages, 2);
	KPT_OK(kpt_remove(vm, KPT_GFN + 1));
	KPT_EQ(kpt_debugfs_vm(getpid()).pages, 1);
	KPT_OK(kpt_unreg(kpt_dev, a));
	KPT_EQ(kpt_debugfs_vm(getpid()).notifiers, 1);
	KPT_OK(kpt_unreg(kpt_dev, b));
	KPT_EQ(kpt_debugfs_vm(getpid()).notifiers, 0);
	KPT_OK(kpt_remove(vm, KPT_GFN + 3));
	KPT_EQ(kpt_debugfs_vm(getpid()).pages, 0);
	kvm_vm_free(vm);
	wait_for_vms(getpid(), 0);
	KPT_EQ(kpt_debugfs_vm(getpid()).rows, 0);
}

static const struct kpt_test tests[] = {
	{ "several notifiers on one VM", several_on_one_vm },
	{ "two VMs", two_vms },
	{ "registered already: -EEXIST", registered_already },
	{ "a notifier that was never zeroed", never_zeroed },
	{ "not the VM's process: -ESRCH", another_process },
	{ "NULL arguments: -EINVAL, or -ESRCH as C", null_arguments },
	{ "callbacks that add and remove pages", callbacks_that_call },
	{ "notifiers leave in a storm of events", storm_of_notifiers },
	{ "clients leave in a storm of events", storm_of_clients },
	{ "unregister waits for a sleeping callback", storm_of_sleepers },
	{ "unregister does not wait for a vCPU in userfaultfd",
	  unregister_beside_userfaultfd },
	{ "a VM closed while a notifier is registered",
	  vm_closed_while_registered },
	{ "a process killed with everything registered",
	  process_killed_while_registered },
	{ "debugfs shows what is", what_debugfs_says },
};

int main(void)
{
	return kpt_main(tests, ARRAY_SIZE(tests), KPT_NEED_CLIENT);
}
