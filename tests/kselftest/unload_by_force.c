// SPDX-License-Identifier: GPL-2.0-only
/*
 * rmmod -f while notifiers pin the module: C, if it can track for others, takes
 * over their VMs with all that is tracked and registered.
 *
 * It taints the kernel (lockdep goes off), so this is a program of its own, the
 * last one by name.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kpt_lib.h"

#define NPAGES	8

static struct kvm_vcpu *vcpu;
static struct kvm_vm *vm;

static u32 make(void)
{
	vm = kpt_vm(&vcpu, kpt_write_guest, NPAGES, VM_MEM_SRC_ANONYMOUS);
	return kpt_inspect(vm, 0, 0).users_count;
}

static int reg(void)
{
	int id = kpt_reg(kpt_dev, vm, KPT_NOTIFIER, 0);

	TEST_ASSERT(id >= 0, "register: %d", id);
	return id;
}

static void write_page(u64 nr)
{
	kpt_write(vcpu, nr);
}

static void unload_by_force(void)
{
	KPT_ERR(kpt_mod_unload("kvm_page_track"), EAGAIN);
	KPT_OK(syscall(SYS_delete_module, "kvm_page_track", O_NONBLOCK | O_TRUNC) ?
	       -errno : 0);
	KPT_EQ(kpt_mod_loaded("kvm_page_track"), 0);
}

static void handed_over(void)
{
	u32 users;
	int a, b, i;

	kpt_need_c_tracker();
	users = make();
	kpt_attach();
	a = reg();
	b = reg();
	KPT_EQ(kpt_inspect(vm, 0, 0).users_count, users + 2);
	KPT_OK(kpt_add(vm, KPT_GFN + 1));
	write_page(1);
	KPT_EQ(kpt_inspect(vm, 0, 0).external_enabled, 0);

	unload_by_force();
	KPT_EQ(kpt_inspect(vm, 0, 0).external_enabled, 1);
	KPT_EQ(kpt_count(vm, KPT_GFN + 1), 1);
	write_page(1);
	/* C can be asked for more */
	KPT_OK(kpt_add(vm, KPT_GFN + 2));
	write_page(2);
	KPT_EQ(kpt_counters(kpt_dev, a).writes, 3);
	KPT_EQ(kpt_counters(kpt_dev, b).writes, 3);
	KPT_OK(kpt_unreg(kpt_dev, a));
	write_page(2);
	KPT_EQ(kpt_counters(kpt_dev, a).writes, 3);
	KPT_EQ(kpt_counters(kpt_dev, b).writes, 4);

	/* and the module comes back, to a VM that is C's now */
	kpt_attach();
	KPT_EQ(kpt_mod_refs("kvm_page_track"), 0);
	write_page(1);
	KPT_EQ(kpt_counters(kpt_dev, b).writes, 5);
	for (i = 1; i <= 2; i++)
		KPT_OK(kpt_remove(vm, KPT_GFN + i));
	KPT_OK(kpt_unreg(kpt_dev, b));
	write_page(1);
	KPT_EQ(kpt_counters(kpt_dev, b).writes, 5);
	KPT_EQ(kpt_inspect(vm, 0, 0).users_count, users);
	KPT_EQ(kpt_inspect(vm, 0, KPT_GFN).slot_sum, 0);
	kpt_detach();
	kvm_vm_free(vm);
}

/*
 * Notifiers come and go meanwhile, in the VM whose guest writes and has another
 * one, and in a VM that has no other.
 */
struct churner {
	pthread_t thread;
	struct kvm_vm *vm;
	u64 registered, refused;
	int id;
};

static volatile bool churning;
static u64 written;

static void *churn(void *arg)
{
	struct churner *c = arg;

	while (churning) {
		struct kpt_register reg = {
			.vm_fd = c->vm->fd, .type = KPT_NOTIFIER, .id = c->id,
		};
		int id = kpt_reg_full(kpt_dev, &reg);

		if (id == -EAGAIN) {
			/* the module is on its way out */
			c->refused++;
			usleep(1000);
			continue;
		}
		TEST_ASSERT(id >= 0, "register: %d", id);
		c->id = id;
		KPT_OK(kpt_unreg(kpt_dev, id));
		__atomic_add_fetch(&c->registered, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

static void *write_on(void *arg)
{
	while (churning) {
		write_page(1);
		written++;
	}
	return NULL;
}

static void under_load(void)
{
	u64 i, k, at_unload[2], all = 0, refused = 0;
	struct churner churners[2];
	struct kpt_inspect look;
	pthread_t writer;
	u32 users[2];
	int id;

	kpt_need_c_tracker();
	for (i = 0; i < 5; i++) {
		memset(churners, 0, sizeof(churners));
		users[0] = make();
		churners[0].vm = vm;
		churners[1].vm = vm_create_barebones();
		users[1] = kpt_inspect(churners[1].vm, 0, 0).users_count;
		kpt_attach();
		id = reg();
		KPT_OK(kpt_add(vm, KPT_GFN + 1));
		written = 0;
		churning = true;
		for (k = 0; k < 2; k++) {
			churners[k].id = -1;
			pthread_create(&churners[k].thread, NULL, churn, &churners[k]);
		}
		pthread_create(&writer, NULL, write_on, NULL);
		for (k = 0; k < 2; k++)
			while (!__atomic_load_n(&churners[k].registered, __ATOMIC_RELAXED))
				usleep(1000);
		usleep(50000);
		for (k = 0; k < 2; k++)
			at_unload[k] = __atomic_load_n(&churners[k].registered,
						       __ATOMIC_RELAXED);
		unload_by_force();
		usleep(50000);
		churning = false;
		for (k = 0; k < 2; k++)
			pthread_join(churners[k].thread, NULL);
		pthread_join(writer, NULL);

		/* who was there all the time has heard of every write, once */
		KPT_EQ(kpt_counters(kpt_dev, id).writes, written);
		KPT_OK(kpt_remove(vm, KPT_GFN + 1));
		KPT_OK(kpt_unreg(kpt_dev, id));
		for (k = 0; k < 2; k++) {
			struct churner *c = &churners[k];

			TEST_ASSERT(c->registered > at_unload[k],
				    "%lu registrations before, %lu in all",
				    at_unload[k], c->registered);
			all += c->registered;
			refused += c->refused;
			look = kpt_inspect(c->vm, 0, KPT_GFN);
			KPT_EQ(look.list_empty, 1);
			KPT_EQ(look.users_count, users[k]);
			KPT_EQ(look.external_enabled, 1);
			KPT_EQ(look.slot_sum, 0);
			kvm_vm_free(c->vm);
		}
	}
	printf("# %lu registrations, %lu refused\n", all, refused);
}

static const struct kpt_test tests[] = {
	{ "C takes over who pinned the module", handed_over },
	{ "while notifiers come and go and the guest writes", under_load },
};

int main(void)
{
	return kpt_main(tests, ARRAY_SIZE(tests), KPT_WANT_C);
}
