// SPDX-License-Identifier: GPL-2.0-only
/*
 * insmod and rmmod while others come and go at the hooked functions: tracers,
 * kprobes, a BPF program; while somebody tries to disable ftrace; and while a
 * processor comes and goes.  A guest writes a tracked page all the while; every
 * write must arrive once and in order.
 *
 * KPT_CYCLES: how often each test loads and unloads (1).
 */
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/btf.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kpt_lib.h"

#define TRACEFS		"/sys/kernel/tracing"
#define CPU1		"/sys/devices/system/cpu/cpu1/online"

static volatile bool storming;
static struct kvm_vm *vm;

static u64 cycles(void)
{
	return kpt_env("KPT_CYCLES", 1);
}

/* Upstream's notifier: it stays while the module comes and goes, if kvm.ko has it. */
static void begin(void)
{
	vm = kpt_writer_start(kpt_stock, KPT_NOTIFIER, 500);
	storming = true;
}

/* ---- tracers and probes ---- */

static u64 turns, accepted;

static void *tracer_storm(void *arg)
{
	static const char * const tracers[] = { "function", "function_graph" };

	while (storming) {
		KPT_OK(kpt_put(TRACEFS "/current_tracer", tracers[turns & 1]));
		usleep(30000);
		kpt_put(TRACEFS "/current_tracer", "nop");
		usleep(30000);
		turns++;
	}
	kpt_put(TRACEFS "/current_tracer", "nop");
	return NULL;
}

static void *kprobe_storm(void *arg)
{
	while (storming) {
		/* a probe and a return probe, as "perf probe" makes them */
		if (!kpt_put(TRACEFS "/kprobe_events", "p:kpt_p kvm_gfn_is_write_tracked\n"))
			accepted++;
		kpt_put(TRACEFS "/events/kprobes/kpt_p/enable", "1");
		usleep(30000);
		kpt_put(TRACEFS "/events/kprobes/kpt_p/enable", "0");
		kpt_put(TRACEFS "/kprobe_events", "");
		usleep(30000);
		turns++;
	}
	return NULL;
}

/* It is refused, and changes nothing. */
static void *sysctl_storm(void *arg)
{
	int fd = open("/proc/sys/kernel/ftrace_enabled", O_RDWR | O_CLOEXEC);
	char c;

	TEST_ASSERT(fd >= 0, "no ftrace_enabled");
	while (storming) {
		TEST_ASSERT(pwrite(fd, "0", 1, 0) < 0, "ftrace was disabled");
		KPT_EQ(pread(fd, &c, 1, 0), 1);
		KPT_EQ(c, '1');
		accepted++;
		turns++;
		usleep(10000);
	}
	close(fd);
	return NULL;
}

static void *hotplug_storm(void *arg)
{
	while (storming) {
		KPT_OK(kpt_put(CPU1, "0"));
		usleep(50000);
		KPT_OK(kpt_put(CPU1, "1"));
		usleep(50000);
		accepted++;
		turns++;
	}
	return NULL;
}

static void load_against(void *(*fn)(void *), const char *what)
{
	pthread_t t;
	u64 made;

	begin();
	TEST_ASSERT(!pthread_create(&t, NULL, fn, NULL), "no thread");
	kpt_load_and_unload(cycles());
	storming = false;
	pthread_join(t, NULL);
	made = kpt_writer_stop();
	printf("# %lu cycles against %s, %lu turns, %lu writes\n", cycles(), what,
	       turns, made);
	TEST_ASSERT(turns > 0, "no storm");
}

/* One at a time: that is how much of it the kernel takes. */
static int add_filter(const char *function)
{
	int fd = open(TRACEFS "/set_ftrace_filter", O_WRONLY | O_APPEND), r;

	if (fd < 0)
		return -errno;
	r = write(fd, function, strlen(function)) < 0 ? -errno : 0;
	close(fd);
	return r;
}

static void tracers(void)
{
	static const char * const functions[] = {
		"kvm_gfn_is_write_tracked", "__kvm_page_track_write",
		"kvm_page_track_create_memslot",
		"kvm_page_track_register_notifier",
	};
	u32 i;

	if (kpt_put(TRACEFS "/current_tracer", "nop"))
		mount("tracefs", TRACEFS, "tracefs", 0, NULL);
	if (kpt_put(TRACEFS "/current_tracer", "nop") ||
	    access(TRACEFS "/set_ftrace_filter", W_OK))
		kpt_skip("no tracefs or no function tracer");
	/* these only: all functions would be a day's work */
	for (i = 0; i < ARRAY_SIZE(functions); i++)
		KPT_OK(add_filter(functions[i]));
	load_against(tracer_storm, "the function tracers");
	KPT_OK(kpt_put(TRACEFS "/set_ftrace_filter", ""));
}

static void kprobes(void)
{
	if (access(TRACEFS "/kprobe_events", W_OK))
		kpt_skip("no kprobe_events");
	load_against(kprobe_storm, "kprobes");
	TEST_ASSERT(accepted > 0, "no probe was accepted");
}

static void ftrace_switch(void)
{
	int fd = open("/proc/sys/kernel/ftrace_enabled", O_RDWR | O_CLOEXEC);
	pthread_t t;
	u64 i, made;

	TEST_ASSERT(fd >= 0, "no ftrace_enabled");
	/* Since 7.3 whether somebody is attached or not. */
	if (pwrite(fd, "0", 1, 0) != 1) {
		close(fd);
		load_against(sysctl_storm, "kernel.ftrace_enabled=0");
		return;
	}
	KPT_EQ(pwrite(fd, "1", 1, 0), 1);
	close(fd);
	begin();
	for (i = 0; i < cycles(); i++) {
		kpt_attach();
		storming = true;
		TEST_ASSERT(!pthread_create(&t, NULL, sysctl_storm, NULL), "no thread");
		usleep(200000);
		storming = false;
		pthread_join(t, NULL);
		kpt_detach();
	}
	made = kpt_writer_stop();
	printf("# %lu cycles, kernel.ftrace_enabled=0 refused %lu times, %lu writes\n",
	       cycles(), accepted, made);
}

static void hotplug(void)
{
	if (access(CPU1, W_OK))
		kpt_skip("processor 1 cannot be taken away");
	load_against(hotplug_storm, "processor 1 coming and going");
}

/* ---- BPF ---- */

static int sys_bpf(int cmd, union bpf_attr *attr)
{
	int r = syscall(__NR_bpf, cmd, attr, sizeof(*attr));

	return r < 0 ? -errno : r;
}

static u8 *slurp(const char *path, u32 *len)
{
	u8 *data = NULL;
	int fd = open(path, O_RDONLY | O_CLOEXEC), n;

	*len = 0;
	if (fd < 0)
		return NULL;
	do {
		data = realloc(data, *len + 65536);
		n = read(fd, data + *len, 65536);
		*len += n > 0 ? n : 0;
	} while (n > 0);
	close(fd);
	return data;
}

/* Size of what follows a type's header. */
static u32 btf_extra(const struct btf_type *t)
{
	u32 n = BTF_INFO_VLEN(t->info);

	switch (BTF_INFO_KIND(t->info)) {
	case BTF_KIND_INT:
	case BTF_KIND_VAR:
	case BTF_KIND_DECL_TAG:
		return 4;
	case BTF_KIND_ARRAY:
		return sizeof(struct btf_array);
	case BTF_KIND_STRUCT:
	case BTF_KIND_UNION:
	case BTF_KIND_ENUM64:
	case BTF_KIND_DATASEC:
		return n * 12;
	case BTF_KIND_ENUM:
	case BTF_KIND_FUNC_PROTO:
		return n * 8;
	default:
		return 0;
	}
}

/*
 * The number of types in a BTF blob, and the one of function @name, whose
 * strings begin at @str_base (those of the module come after the kernel's).
 */
static u32 btf_scan(const u8 *btf, u32 str_base, const char *name, u32 *func)
{
	const struct btf_header *h = (const void *)btf;
	const u8 *p = btf + h->hdr_len + h->type_off, *end = p + h->type_len;
	const char *strings = (const char *)btf + h->hdr_len + h->str_off;
	const struct btf_type *t;
	u32 n = 0;

	while (p < end) {
		t = (const void *)p;
		n++;
		if (name && BTF_INFO_KIND(t->info) == BTF_KIND_FUNC &&
		    t->name_off >= str_base &&
		    !strcmp(strings + t->name_off - str_base, name))
			*func = n;
		p += sizeof(*t) + btf_extra(t);
	}
	return n;
}

static int btf_fd_of_kvm(void)
{
	struct bpf_btf_info info;
	union bpf_attr attr;
	char name[64];
	u32 id = 0;
	int fd;

	for (;;) {
		memset(&attr, 0, sizeof(attr));
		attr.start_id = id;
		if (sys_bpf(BPF_BTF_GET_NEXT_ID, &attr) < 0)
			return -1;
		id = attr.next_id;
		memset(&attr, 0, sizeof(attr));
		attr.btf_id = id;
		fd = sys_bpf(BPF_BTF_GET_FD_BY_ID, &attr);
		if (fd < 0)
			continue;
		memset(&info, 0, sizeof(info));
		info.name = (u64)name;
		info.name_len = sizeof(name);
		memset(&attr, 0, sizeof(attr));
		attr.info.bpf_fd = fd;
		attr.info.info_len = sizeof(info);
		attr.info.info = (u64)&info;
		if (!sys_bpf(BPF_OBJ_GET_INFO_BY_FD, &attr) && info.kernel_btf &&
		    !strcmp(name, "kvm"))
			return fd;
		close(fd);
	}
}

static int bpf_prog = -1;

/* fentry: "return 0" before each call of @function of kvm.ko. */
static void bpf_load(const char *function)
{
	struct bpf_insn insns[] = {
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = 0 },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	u32 len, func = 0, base_types, base_strings;
	const struct btf_header *h;
	union bpf_attr attr = {};
	u8 *base, *mod;
	int btf_fd;

	base = slurp("/sys/kernel/btf/vmlinux", &len);
	mod = slurp("/sys/kernel/btf/kvm", &len);
	if (!base || !mod)
		kpt_skip("no BTF of kvm.ko in this kernel");
	h = (const void *)base;
	base_strings = h->str_len;
	base_types = btf_scan(base, 0, NULL, NULL);
	btf_scan(mod, base_strings, function, &func);
	free(base);
	free(mod);
	TEST_ASSERT(func, "%s is not in the BTF of kvm.ko", function);
	btf_fd = btf_fd_of_kvm();
	TEST_ASSERT(btf_fd >= 0, "no BTF fd of kvm.ko");

	attr.prog_type = BPF_PROG_TYPE_TRACING;
	attr.expected_attach_type = BPF_TRACE_FENTRY;
	attr.insns = (u64)insns;
	attr.insn_cnt = ARRAY_SIZE(insns);
	attr.license = (u64)"GPL";
	attr.attach_btf_obj_fd = btf_fd;
	attr.attach_btf_id = base_types + func;
	bpf_prog = sys_bpf(BPF_PROG_LOAD, &attr);
	TEST_ASSERT(bpf_prog >= 0, "BPF_PROG_LOAD: %d", bpf_prog);
	close(btf_fd);
}

static int bpf_attach(void)
{
	union bpf_attr attr = {};

	attr.raw_tracepoint.prog_fd = bpf_prog;
	return sys_bpf(BPF_RAW_TRACEPOINT_OPEN, &attr);
}

/* 7.3: -EINVAL from update_ftrace_direct_add(); before, -EBUSY. */
static bool bpf_refusal(int r)
{
	return r == -EINVAL || r == -EBUSY;
}

static u64 bpf_refused;

static void *bpf_storm(void *arg)
{
	int link;

	while (storming) {
		link = bpf_attach();
		if (link >= 0) {
			accepted++;
			usleep(20000);
			close(link);
		} else {
			TEST_ASSERT(bpf_refusal(link), "BPF: %d", link);
			bpf_refused++;
		}
		/* a link goes with a delay: leave the module its chance */
		usleep(100000 + turns++ % 4 * 200000);
	}
	return NULL;
}

static bool writer_is_heard(void)
{
	u64 before = kpt_writer_heard();
	int i;

	for (i = 0; i < 200 && kpt_writer_heard() == before; i++)
		usleep(50000);
	return kpt_writer_heard() > before;
}

static void bpf_fentry(void)
{
	u64 i, loaded = 0, made;
	int link, r;
	pthread_t t;

	bpf_load("kvm_gfn_is_write_tracked");
	begin();

	/* it is there first */
	link = bpf_attach();
	TEST_ASSERT(link >= 0, "attach a BPF program: %d", link);
	KPT_ERR(kpt_mod_load("kvm_page_track"), EBUSY);
	TEST_ASSERT(!kpt_mod_loaded("kvm_page_track"), "it is loaded");
	TEST_ASSERT(!kpt_writer_stays() || writer_is_heard(), "C is deaf");
	close(link);
	/* we are there first; its links go with a delay */
	for (i = 0; i < 1000; i++) {
		r = kpt_mod_load("kvm_page_track");
		if (r != -EBUSY)
			break;
		usleep(20000);
	}
	KPT_OK(r);
	kpt_detach();
	kpt_attach();
	link = bpf_attach();
	TEST_ASSERT(bpf_refusal(link), "BPF: %d", link);
	TEST_ASSERT(writer_is_heard(), "the module is deaf");
	kpt_detach();
	link = bpf_attach();
	TEST_ASSERT(link >= 0, "attach a BPF program: %d", link);
	close(link);

	/* and both at a time */
	accepted = 0;
	TEST_ASSERT(!pthread_create(&t, NULL, bpf_storm, NULL), "no thread");
	for (i = 0; i < cycles() + 2; i++) {
		r = kpt_mod_load("kvm_page_track");
		if (!r) {
			loaded++;
			usleep(50000);
			kpt_detach();
		} else {
			KPT_EQ(r, -EBUSY);
			usleep(20000);
		}
	}
	storming = false;
	pthread_join(t, NULL);
	made = kpt_writer_stop();
	printf("# BPF: attached %lu times, refused %lu times; the module: %lu of %lu; %lu writes\n",
	       accepted, bpf_refused, loaded, cycles() + 2, made);
	TEST_ASSERT(accepted + bpf_refused > 0, "no storm");
}

static void restore(void)
{
	kpt_put(CPU1, "1");
	kpt_put(TRACEFS "/current_tracer", "nop");
	kpt_put(TRACEFS "/set_ftrace_filter", "");
	kpt_put(TRACEFS "/events/kprobes/kpt_p/enable", "0");
	kpt_put(TRACEFS "/kprobe_events", "");
}

static const struct kpt_test tests[] = {
	{ "function tracers", tracers },
	{ "kprobes", kprobes },
	{ "kernel.ftrace_enabled=0", ftrace_switch },
	{ "a BPF program", bpf_fentry },
	{ "processor 1 coming and going", hotplug },
};

int main(void)
{
	atexit(restore);
	return kpt_main(tests, ARRAY_SIZE(tests), KPT_WANT_C);
}
