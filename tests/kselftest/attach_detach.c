// SPDX-License-Identifier: GPL-2.0-only
/*
 * insmod and rmmod under a running vCPU: every write of the guest to a tracked
 * page is delivered exactly once, in order, whoever the tracker is at the time.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kpt_lib.h"

#define NPAGES	8

static u64 stop, pace;

/* A write to the tracked page 0, then @pace to page 1. */
static void guest_code(void)
{
	u64 i = 0, k, n;

	while (!READ_ONCE(stop)) {
		i++;
		*(volatile u64 *)KPT_GVA = i;
		n = READ_ONCE(pace);
		for (k = 0; k < n; k++)
			*(volatile u64 *)(KPT_GVA + 0x1000) = i;
	}
	GUEST_SYNC(i);
	GUEST_DONE();
}

static struct kvm_vcpu *vcpu;
static struct kvm_vm *vm;
static u64 made;

static void make(u64 guest_pace)
{
	vm = kpt_vm(&vcpu, guest_code, NPAGES, VM_MEM_SRC_ANONYMOUS);
	stop = 0;
	pace = guest_pace;
	sync_global_to_guest(vm, stop);
	sync_global_to_guest(vm, pace);
}

static void *run(void *arg)
{
	TEST_ASSERT(kpt_run_sync(vcpu, &made), "the guest ended");
	kpt_run_done(vcpu);
	return NULL;
}

static void finish(pthread_t thread)
{
	stop = 1;
	sync_global_to_guest(vm, stop);
	pthread_join(thread, NULL);
	KPT_EQ(*(u64 *)addr_gpa2hva(vm, KPT_GPA), made);
}

static void under_a_running_vcpu(void)
{
	u64 cycles = kpt_env("KPT_CYCLES", 5), at_attach, at_detach, in_both = 0, i;
	/* over many cycles fewer events: all of them are kept until they are read */
	struct kvm_vm *writer = kpt_writer_start(kpt_dev, KPT_NOTIFIER,
						 cycles > 20 ? 2000 : 200);

	for (i = 0; i < cycles; i++) {
		at_attach = kpt_writer_heard();
		kpt_attach();
		usleep(50000);
		at_detach = kpt_writer_heard();
		KPT_EQ(kpt_count(writer, KPT_GFN), 1);
		kpt_detach();
		usleep(50000);
		KPT_EQ(kpt_count(writer, KPT_GFN), kpt_writer_stays());
		in_both += at_detach > at_attach &&
			   (!kpt_writer_stays() || kpt_writer_heard() > at_detach);
		if (i % 20 == 19)
			printf("# %lu cycles\n", i + 1);
	}
	printf("# %lu writes, each delivered once, in %lu cycles\n",
	       kpt_writer_stop(), cycles);
	TEST_ASSERT(in_both * 5 >= cycles * 4, "the guest hardly ran");
}

/* Pages and notifiers come and go through kvm.ko's exports all the while. */
static volatile bool churning;
static volatile u64 churned;

/* -EAGAIN: the module is on its way out, the next try reaches C. */
static void call_until_done(u32 op)
{
	int r, i = 0;

	do {
		r = kpt_call(kpt_stock, op, vm, KPT_GFN + 2);
	} while (r == -EAGAIN && i++ < 10000 && !usleep(1000));
	KPT_OK(r);
}

static void *churn(void *arg)
{
	int id, i, tries = 0;

	while (churning) {
		id = kpt_reg(kpt_stock, vm, KPT_NOTIFIER, 0);
		/* rmmod may take a minute */
		if ((id == -EAGAIN || id == -ENOSYS) && tries++ < 60000 &&
		    !usleep(1000))
			continue;
		TEST_ASSERT(id >= 0, "register: %d", id);
		tries = 0;
		for (i = 0; i < 20 && churning; i++) {
			call_until_done(KPT_OP_WRITE_ADD);
			call_until_done(KPT_OP_WRITE_REMOVE);
		}
		KPT_OK(kpt_unreg(kpt_stock, id));
		churned++;
		/* ids are not given twice */
		if (churned >= 200)
			break;
		usleep(20000);
	}
	return NULL;
}

/*
 * The same in VMs that C has never tracked before insmod, so that a notifier pins
 * the module: new ones all the time, since a call may reach C.
 */
static volatile u64 fresh;

static void *churn_fresh(void *arg)
{
	struct kpt_register reg = { .type = KPT_NOTIFIER, .id = -1 };
	struct kvm_vm *new;
	int id, i;
	u32 users;

	while (churning) {
		new = vm_create_barebones();
		users = kpt_inspect(new, 0, 0).users_count;
		reg.vm_fd = new->fd;
		for (i = 0; i < 10 && churning; i++) {
			id = kpt_reg_full(kpt_stock, &reg);
			if (id == -EAGAIN || id == -ENOSYS) {
				usleep(1000);
				continue;
			}
			TEST_ASSERT(id >= 0, "register: %d", id);
			reg.id = id;
			usleep(500);
			KPT_OK(kpt_unreg(kpt_stock, id));
			fresh++;
		}
		KPT_EQ(kpt_inspect(new, 0, 0).users_count, users);
		kvm_vm_free(new);
	}
	return NULL;
}

static void under_calls(void)
{
	pthread_t thread, churner, second;
	u64 before, fresh_before, refused = 0;
	int i, k, r;

	make(2000);
	if (kpt_kvm_tracks()) {
		/* C's arrays are there: calls may reach either tracker */
		KPT_OK(kpt_unreg(kpt_stock, kpt_reg(kpt_stock, vm, KPT_NOTIFIER, 0)));
		KPT_OK(kpt_add(vm, KPT_GFN));
	}
	churning = true;
	pthread_create(&thread, NULL, run, NULL);
	pthread_create(&churner, NULL, churn, NULL);
	pthread_create(&second, NULL, churn_fresh, NULL);
	for (i = 0; i < 3; i++) {
		before = churned;
		fresh_before = fresh;
		kpt_attach();
		for (k = 0; k < 100 && (churned < before + 2 ||
					fresh < fresh_before + 10); k++)
			usleep(10000);
		/* refused while the churn has one registered that pins us */
		for (k = 0; k < 500; k++) {
			r = kpt_mod_unload("kvm_page_track");
			if (r != -EAGAIN)
				break;
			refused++;
			usleep(3000);
		}
		KPT_OK(r);
	}
	printf("# %lu unloads refused, %lu registrations in new VMs\n", refused, fresh);
	churning = false;
	pthread_join(churner, NULL);
	pthread_join(second, NULL);
	finish(thread);
	TEST_ASSERT(churned >= 3, "%lu rounds of calls", churned);
	KPT_EQ(kpt_count(vm, KPT_GFN + 2), 0);
	if (kpt_kvm_tracks()) {
		KPT_EQ(kpt_count(vm, KPT_GFN), 1);
		KPT_OK(kpt_remove(vm, KPT_GFN));
	}
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).slot_sum, 0);
	kvm_vm_free(vm);
}

static volatile bool detached;

static void *detacher(void *unused)
{
	kpt_detach();
	detached = true;
	return NULL;
}

/* The module knows a VM with tracked pages, which may die at any moment of rmmod. */
static void vms_die_during_detach(void)
{
	enum { VMS = 150 };
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), fd[VMS], i, died;
	void *memory = mmap(NULL, 0x10000, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct kvm_userspace_memory_region mr = {
		.slot = KPT_SLOT, .guest_phys_addr = KPT_GPA,
		.memory_size = 0x10000, .userspace_addr = (u64)memory,
	};
	pthread_t thread;

	kpt_attach();
	for (i = 0; i < VMS; i++) {
		struct kpt_call c = { .op = KPT_OP_WRITE_ADD, .gfn = KPT_GFN };

		fd[i] = ioctl(kvm, KVM_CREATE_VM, 0);
		TEST_ASSERT(fd[i] >= 0, "KVM_CREATE_VM: %d", errno);
		TEST_ASSERT(!ioctl(fd[i], KVM_SET_USER_MEMORY_REGION, &mr),
			    "memslot: %d", errno);
		c.vm_fd = fd[i];
		KPT_OK(kpt_api(kpt_stock, &c));
	}
	KPT_EQ(kpt_debugfs_vm(getpid()).rows, VMS);
	detached = false;
	pthread_create(&thread, NULL, detacher, NULL);
	for (i = 0; i < VMS && !detached; i++) {
		close(fd[i]);
		usleep(15000);
	}
	died = i;
	pthread_join(thread, NULL);
	/* of the others nothing is left tracked: C never knew of it */
	for (; i < VMS; i++) {
		KPT_EQ(kpt_inspect_fd(fd[i], 0, KPT_GFN).count, 0);
		close(fd[i]);
	}
	printf("# %d of %d VMs died meanwhile\n", died, VMS);
	TEST_ASSERT(died > 5, "nothing was tested");
	close(kvm);
}

/* An open file in debugfs has our operations, so it must keep the module. */
static void an_open_file_keeps_the_module(void)
{
	static const char * const files[] = { "hooks", "vms" };
	char path[64], buf[4096];
	u32 i;
	int fd;

	kpt_attach();
	for (i = 0; i < ARRAY_SIZE(files); i++) {
		snprintf(path, sizeof(path), "/sys/kernel/debug/kvm_page_track/%s", files[i]);
		fd = open(path, O_RDONLY);
		TEST_ASSERT(fd >= 0, "%s: %d", path, errno);
		KPT_EQ(kpt_mod_refs("kvm_page_track"), 1);
		KPT_ERR(kpt_mod_unload("kvm_page_track"), EAGAIN);
		TEST_ASSERT(read(fd, buf, sizeof(buf)) > 0, "read: %d", errno);
		close(fd);
		KPT_EQ(kpt_mod_refs("kvm_page_track"), 0);
	}
	kpt_detach();
}

static void refused_while_in_use(void)
{
	int id, dev;

	make(0);
	kpt_attach();
	KPT_ERR(kpt_mod_load("kvm_page_track"), EEXIST);
	KPT_EQ(kpt_mod_refs("kvm_page_track"), 0);

	/* a module that imports from us */
	KPT_OK(kpt_mod_load("kpt_client"));
	KPT_ERR(kpt_mod_unload("kvm_page_track"), EAGAIN);

	dev = kpt_open("kpt_client");
	id = kpt_reg(dev, vm, KPT_CLIENT, 0);
	TEST_ASSERT(id >= 0, "register: %d", id);
	KPT_ERR(kpt_mod_unload("kvm_page_track"), EAGAIN);
	KPT_OK(kpt_unreg(dev, id));
	close(dev);
	KPT_OK(kpt_mod_unload("kpt_client"));

	/* one that only knows kvm.ko, but is served by us */
	id = kpt_reg(kpt_stock, vm, KPT_NOTIFIER, 0);
	TEST_ASSERT(id >= 0, "register: %d", id);
	TEST_ASSERT(kpt_mod_refs("kvm_page_track") > 0, "not pinned");
	KPT_ERR(kpt_mod_unload("kvm_page_track"), EAGAIN);
	KPT_OK(kpt_unreg(kpt_stock, id));
	KPT_EQ(kpt_mod_refs("kvm_page_track"), 0);
	kpt_detach();
	kvm_vm_free(vm);
}

/* Without a VM, and with VMs that nobody tracks. */
static void idle(void)
{
	int i, hooks, attached;

	for (i = 0; i < 3; i++) {
		kpt_attach();
		hooks = kpt_debugfs_hooks(&attached);
		KPT_EQ(attached, hooks);
		kpt_detach();
		TEST_ASSERT(access("/sys/kernel/debug/kvm_page_track", 0),
			    "debugfs is left behind");
	}
}

/* It imports from kvm.ko, or from us. */
static void upstreams_api(void)
{
	kpt_attach();
	KPT_OK(kpt_mod_load("kpt_upstream"));
	if (!kpt_kvm_tracks())
		KPT_ERR(kpt_mod_unload("kvm_page_track"), EAGAIN);
	KPT_OK(kpt_mod_unload_retry("kpt_upstream"));
	kpt_detach();
}

static const struct kpt_test tests[] = {
	{ "every write is delivered once, through attach and detach",
	  under_a_running_vcpu, 120 },
	{ "attach and detach under calls of the API", under_calls, 120 },
	{ "VMs that die during rmmod", vms_die_during_detach, 120 },
	{ "rmmod is refused while somebody needs us", refused_while_in_use },
	{ "a module written for upstream's API", upstreams_api },
	{ "an open debugfs file keeps the module", an_open_file_keeps_the_module },
	{ "attach and detach with nobody there", idle },
};

int main(void)
{
	return kpt_main(tests, ARRAY_SIZE(tests), KPT_WANT_C);
}
