// SPDX-License-Identifier: GPL-2.0-only
/*
 * The module's own unit tests: the kernel runs them when the module is loaded,
 * here is what came out.  Only a kernel with CONFIG_KUNIT can (make test-debug).
 */
#include <dirent.h>
#include <string.h>

#include "kpt_lib.h"

#define KUNIT_DIR "/sys/kernel/debug/kunit"
#define PREFIX "kvm_page_track_"

/* Print the test cases of a suite, or only count them. */
static int suite(const char *name, bool print)
{
	char path[PATH_MAX], line[512], test[256];
	int n = 0, bad;
	FILE *f;

	snprintf(path, sizeof(path), KUNIT_DIR "/%s/results", name);
	f = fopen(path, "r");
	TEST_ASSERT(f, "%s cannot be read", path);
	while (fgets(line, sizeof(line), f)) {
		/* test cases are indented, the suite is not */
		bad = sscanf(line, "    not ok %*d %255[^\n]", test) == 1;
		if (!bad && sscanf(line, "    ok %*d %255[^\n]", test) != 1)
			continue;
		if (line[0] != ' ')
			continue;
		n++;
		if (!print)
			continue;
		if (bad)
			ksft_test_result_fail("%s: %s\n", name, test);
		else
			ksft_test_result_pass("%s: %s\n", name, test);
	}
	fclose(f);
	return n;
}

static int suites(bool print)
{
	struct dirent *d;
	DIR *dir = opendir(KUNIT_DIR);
	int n = 0;

	if (!dir)
		return 0;
	while ((d = readdir(dir)))
		if (!strncmp(d->d_name, PREFIX, strlen(PREFIX)))
			n += suite(d->d_name, print);
	closedir(dir);
	return n;
}

int main(void)
{
	int n, loaded;

	ksft_print_header();
	if (access(KUNIT_DIR, F_OK))
		ksft_exit_skip("this kernel has no KUnit: make test-debug\n");
	loaded = kpt_mod_load("kvm_page_track");
	n = suites(false);
	if (!n)
		ksft_exit_fail_msg("the module has no unit tests\n");
	ksft_set_plan(n);
	suites(true);
	if (!loaded)
		kpt_mod_unload("kvm_page_track");
	ksft_finished();
}
