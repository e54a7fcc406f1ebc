// SPDX-License-Identifier: GPL-2.0-only
/*
 * Others who want the functions we replace.  Tracers share them with us; one
 * who replaces or single-steps them excludes us, and we it.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#include "kpt_lib.h"

#define TRACEFS		"/sys/kernel/tracing"

static void guest_code(void)
{
	u64 i;

	for (i = 1;; i++) {
		*(volatile u64 *)KPT_GVA = i;
		GUEST_SYNC(i);
	}
}

static struct kvm_vcpu *vcpu;
static struct kvm_vm *vm;
static int id;

/* Where kvm.ko does not track by itself, only while the module is attached. */
static void track(void)
{
	id = kpt_reg(kpt_stock, vm, KPT_NOTIFIER, 0);
	TEST_ASSERT(id >= 0, "register: %d", id);
	KPT_OK(kpt_call(kpt_stock, KPT_OP_WRITE_ADD, vm, KPT_GFN));
}

static void untrack(void)
{
	KPT_OK(kpt_call(kpt_stock, KPT_OP_WRITE_REMOVE, vm, KPT_GFN));
	KPT_EQ(kpt_count(vm, KPT_GFN), 0);
	KPT_OK(kpt_unreg(kpt_stock, id));
	id = -1;
}

static void make(void)
{
	vm = kpt_vm(&vcpu, guest_code, 4, VM_MEM_SRC_ANONYMOUS);
	id = -1;
	if (kpt_kvm_tracks())
		track();
}

static void attach(void)
{
	kpt_attach();
	if (id < 0)
		track();
}

static void detach(void)
{
	if (!kpt_kvm_tracks())
		untrack();
	kpt_detach();
}

/* If it is tracked. */
static void write_is_heard(void)
{
	u64 before = id < 0 ? 0 : kpt_counters(kpt_stock, id).writes, v;

	TEST_ASSERT(kpt_run_sync(vcpu, &v), "the guest ended");
	KPT_EQ(*(u64 *)addr_gpa2hva(vm, KPT_GPA), v);
	if (id >= 0)
		KPT_EQ(kpt_counters(kpt_stock, id).writes, before + 1);
}

static void done(void)
{
	if (id >= 0)
		untrack();
	kvm_vm_free(vm);
}

static int probe(const char *symbol, bool on)
{
	return kpt_probe(symbol, on ? KPT_PROBE_OCCUPY : KPT_PROBE_OFF);
}

/*
 * register_kprobe() of 7.3 returns 0 even if ftrace refused to arm the probe; what
 * the kernel lists tells.
 */
static bool probed(const char *symbol)
{
	char line[512];
	bool found = false;
	FILE *f = fopen("/sys/kernel/debug/kprobes/list", "r");

	TEST_ASSERT(f, "no list of kprobes");
	while (fgets(line, sizeof(line), f))
		found |= !!strstr(line, symbol);
	fclose(f);
	return found;
}

#define NFUNCTIONS	3

/* First, last and in between of what is attached to. */
static const char * const functions_with[NFUNCTIONS] = {
	"kvm_gfn_is_write_tracked", "kvm_page_track_create_memslot",
	"kvm_page_track_register_notifier",
};

/* The same where kvm.ko has no such function: one of those we run before. */
static const char * const functions_without[NFUNCTIONS] = {
	"kvm_gfn_is_write_tracked", "kvm_mmu_track_write",
	"__kvm_write_track_remove_gfn",
};

static void occupied_functions(void)
{
	const char * const *functions = kpt_kvm_tracks() ? functions_with :
							   functions_without;
	int attached;
	u32 i;

	make();
	for (i = 0; i < NFUNCTIONS; i++) {
		KPT_OK(probe(functions[i], true));
		TEST_ASSERT(probed(functions[i]), "no probe");
		KPT_ERR(kpt_mod_load("kvm_page_track"), EBUSY);
		TEST_ASSERT(!kpt_mod_loaded("kvm_page_track"), "it is loaded");
		TEST_ASSERT(access("/sys/kernel/debug/kvm_page_track", 0),
			    "debugfs is left behind");
		/* nothing is attached: C serves all */
		write_is_heard();
		KPT_OK(probe("", false));
	}
	/* and without them it loads */
	attach();
	write_is_heard();
	for (i = 0; i < NFUNCTIONS; i++) {
		probe(functions[i], true);
		TEST_ASSERT(!probed(functions[i]), "%s is probed", functions[i]);
		write_is_heard();
		probe("", false);
	}
	/* by us: nothing has gone back to C */
	KPT_EQ(kpt_debugfs_hooks(&attached), attached);
	detach();
	for (i = 0; i < NFUNCTIONS; i++) {
		KPT_OK(probe(functions[i], true));
		TEST_ASSERT(probed(functions[i]), "no probe");
	}
	KPT_OK(probe("", false));
	write_is_heard();
	done();
}

static int put(const char *file, const char *text)
{
	char path[128];
	int fd, r;

	snprintf(path, sizeof(path), "%s/%s", TRACEFS, file);
	fd = open(path, O_WRONLY | O_TRUNC);
	if (fd < 0)
		return -errno;
	r = write(fd, text, strlen(text)) == (ssize_t)strlen(text) ? 0 : -errno;
	close(fd);
	return r;
}

static int lines_with(const char *word)
{
	char line[512];
	FILE *f = fopen(TRACEFS "/trace", "r");
	int n = 0;

	TEST_ASSERT(f, "no trace");
	while (fgets(line, sizeof(line), f))
		n += line[0] != '#' && strstr(line, word);
	fclose(f);
	return n;
}

/* Traced before we attach, traced after: both trackers heard, both seen. */
static void traced(const char *tracer)
{
	int n;

	if (put("current_tracer", "nop"))
		mount("tracefs", TRACEFS, "tracefs", 0, NULL);
	if (put("current_tracer", "nop"))
		kpt_skip("no tracefs");
	KPT_OK(put("set_ftrace_filter", "kvm_gfn_is_write_tracked\n"));
	make();

	KPT_OK(put("trace", ""));
	KPT_OK(put("current_tracer", tracer));
	write_is_heard();
	n = lines_with("kvm_gfn_is_write_tracked");
	TEST_ASSERT(n > 0, "the tracer does not see C");
	attach();
	KPT_OK(put("trace", ""));
	write_is_heard();
	n = lines_with("kvm_gfn_is_write_tracked");
	TEST_ASSERT(n > 0, "the tracer does not see the call");
	KPT_OK(put("current_tracer", "nop"));
	write_is_heard();
	KPT_OK(put("current_tracer", tracer));
	write_is_heard();
	detach();
	write_is_heard();
	KPT_OK(put("current_tracer", "nop"));
	KPT_OK(put("set_ftrace_filter", ""));
	write_is_heard();
	done();
}

static void function_tracer(void) { traced("function"); }
static void graph_tracer(void) { traced("function_graph"); }

/*
 * Switching ftrace off would switch us off: it is refused.  Where it can be done
 * before, insmod is.
 */
static void ftrace_cannot_be_disabled(void)
{
	int fd = open("/proc/sys/kernel/ftrace_enabled", O_RDWR);
	char c;

	TEST_ASSERT(fd >= 0, "no ftrace_enabled");
	make();
	if (pwrite(fd, "0", 1, 0) == 1) {
		KPT_ERR(kpt_mod_load("kvm_page_track"), EBUSY);
		TEST_ASSERT(!kpt_mod_loaded("kvm_page_track"), "it is loaded");
		KPT_EQ(pwrite(fd, "1", 1, 0), 1);
	}
	attach();
	/* -EBUSY or, where the knob is deprecated, -EOPNOTSUPP */
	TEST_ASSERT(pwrite(fd, "0", 1, 0) < 0, "ftrace was disabled");
	KPT_EQ(pread(fd, &c, 1, 0), 1);
	KPT_EQ(c, '1');
	write_is_heard();
	detach();
	write_is_heard();
	close(fd);
	done();
}

static const struct kpt_test tests[] = {
	{ "an occupied function: -EBUSY, nothing attached", occupied_functions },
	{ "the function tracer", function_tracer },
	{ "the function graph tracer", graph_tracer },
	{ "ftrace cannot be disabled", ftrace_cannot_be_disabled },
};

int main(void)
{
	return kpt_main(tests, ARRAY_SIZE(tests), KPT_WANT_C);
}
