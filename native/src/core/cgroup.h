/* cgroup.h - the limits that Linux sets for this process's control group: a container, a service, a batch job. */
#ifndef LQ_CORE_CGROUP_H
#define LQ_CORE_CGROUP_H

#include <stdint.h>

typedef struct lq_cgroup_limits {
    uint64_t memory_free; /* bytes until the tightest limit, page cache counted as free; UINT64_MAX without a limit */
    uint32_t n_cpus;      /* processors that the tightest quota pays for, rounded up; 0 without a quota */
} lq_cgroup_limits;

/* Reads the files of cgroup v1 and v2 for the group of this process and all groups above it. root: a prefix of every
 * path, "" except in tests. A file that is missing or cannot be understood sets no limit. */
void lq_cgroup_read(const char *root, lq_cgroup_limits *out);

#endif
