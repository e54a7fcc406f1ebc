// SPDX-License-Identifier: GPL-2.0-only
#include "bench.h"
void bench_memory(void)
{
}
