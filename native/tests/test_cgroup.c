/* test_cgroup.c - tests reading a container's limits, from folders made like /proc and /sys/fs/cgroup of real systems.
 */
#define _XOPEN_SOURCE 700
#include "check.h"

#if defined(__linux__)
#include <ftw.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/cgroup.h"
#include "core/system.h"

static char root[64];

static int erase(const char *path, const struct stat *about, int kind, struct FTW *at) {
    (void)about, (void)kind, (void)at;
    return remove(path);
}

/* Makes an empty root folder. */
static void begin(void) {
    if (root[0] != '\0') nftw(root, erase, 8, FTW_DEPTH | FTW_PHYS);
    snprintf(root, sizeof root, "/tmp/lq-cgroup-XXXXXX");
    if (mkdtemp(root) == NULL) exit(2);
}

/* Writes a file below the root, and makes missing folders. */
static void put_file(const char *path, const char *text) {
    char full[512];
    snprintf(full, sizeof full, "%s%s", root, path);
    for (char *slash = strchr(full + strlen(root) + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(full, 0700);
        *slash = '/';
    }
    FILE *file = fopen(full, "w");
    if (file == NULL || fputs(text, file) < 0 || fclose(file) != 0) exit(2);
}

static lq_cgroup_limits limits(void) {
    lq_cgroup_limits found = {1, 1};
    lq_cgroup_read(root, &found);
    return found;
}

#define CHECK_LIMITS(free_bytes, cpus)                                                                                 \
    do {                                                                                                               \
        lq_cgroup_limits found_ = limits();                                                                            \
        CHECK_MSG(found_.memory_free == (free_bytes), "%llu bytes free, not %llu",                                     \
                  (unsigned long long)found_.memory_free, (unsigned long long)(free_bytes));                           \
        CHECK_MSG(found_.n_cpus == (cpus), "%u processors, not %u", (unsigned)found_.n_cpus, (unsigned)(cpus));        \
    } while (0)

#define NONE UINT64_MAX

static void test_nothing_there(void) {
    begin();
    CHECK_LIMITS(NONE, 0);
    put_file("/proc/self/cgroup", "");
    put_file("/proc/self/mountinfo", "");
    CHECK_LIMITS(NONE, 0);
}

/* A container of version 2: its own group is the mount's root. Most of what it uses is the model file, read once. */
static void test_v2_container(void) {
    begin();
    put_file("/proc/self/cgroup", "0::/\n");
    put_file("/proc/self/mountinfo", "31 23 0:28 / /sys/fs/cgroup ro,relatime - cgroup2 cgroup rw,nsdelegate\n");
    put_file("/sys/fs/cgroup/memory.max", "2147483648\n");
    put_file("/sys/fs/cgroup/memory.high", "max\n");
    put_file("/sys/fs/cgroup/memory.current", "2100000000\n");
    put_file("/sys/fs/cgroup/memory.stat",
             "anon 60000000\nfile 2030000000\ninactive_file 1500000000\nactive_file 530000000\n");
    put_file("/sys/fs/cgroup/cpu.max", "150000 100000\n");
    CHECK_LIMITS(2147483648u - 70000000u, 2);
    put_file("/sys/fs/cgroup/memory.high", "1000000000\n");
    CHECK_LIMITS(930000000u, 2);
    put_file("/sys/fs/cgroup/cpu.max", "max 100000\n");
    put_file("/sys/fs/cgroup/memory.high", "max\n");
    put_file("/sys/fs/cgroup/memory.max", "max\n");
    CHECK_LIMITS(NONE, 0);
    put_file("/sys/fs/cgroup/memory.max", "1000\n"); /* lowered below what is used: nothing is left, not very much */
    CHECK_LIMITS(0, 0);
}

/* A container's /proc may hide mounts, but their usual folders are still read. */
static void test_v2_without_mountinfo(void) {
    begin();
    put_file("/sys/fs/cgroup/memory.max", "5000\n");
    put_file("/sys/fs/cgroup/cpu.max", "50000 100000\n");
    CHECK_LIMITS(5000, 1);
}

/* A service with limits on the slices above it: the tightest one counts, at whatever level. */
static void test_v2_nested(void) {
    begin();
    put_file("/proc/self/cgroup", "0::/a.slice/b.slice/c.service\n");
    put_file("/proc/self/mountinfo", "31 23 0:28 / /mnt/with\\040space rw - cgroup2 cgroup2 rw\n");
    put_file("/mnt/with space/a.slice/memory.max", "9000\n");
    put_file("/mnt/with space/a.slice/memory.current", "2000\n");
    put_file("/mnt/with space/a.slice/cpu.max", "400000 100000\n");
    put_file("/mnt/with space/a.slice/b.slice/memory.max", "8000\n");
    put_file("/mnt/with space/a.slice/b.slice/memory.current", "500\n");
    put_file("/mnt/with space/a.slice/b.slice/cpu.max", "250000 100000\n");
    put_file("/mnt/with space/a.slice/b.slice/c.service/memory.max", "max\n");
    put_file("/mnt/with space/a.slice/b.slice/c.service/cpu.max", "max 100000\n");
    put_file("/mnt/with space/other.slice/memory.max", "10\n");
    put_file("/mnt/with space/other.slice/cpu.max", "1000 100000\n");
    CHECK_LIMITS(7000, 3);
}

#define V1_MOUNTS                                                                                                      \
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"                             \
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"                                       \
    "36 31 0:33 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n"

static void test_v1(void) {
    begin();
    put_file("/proc/self/cgroup", "5:cpuset:/job\n4:memory:/job/step\n2:cpu,cpuacct:/job\n0::/\n");
    put_file("/proc/self/mountinfo", V1_MOUNTS);
    put_file("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    put_file("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "1000000\n");
    put_file("/sys/fs/cgroup/memory/job/memory.usage_in_bytes", "900000\n");
    put_file("/sys/fs/cgroup/memory/job/memory.stat",
             "inactive_file 1\nactive_file 2\ntotal_inactive_file 300000\ntotal_active_file 200000\n");
    put_file("/sys/fs/cgroup/memory/job/step/memory.limit_in_bytes", "9223372036854771712\n");
    put_file("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
    put_file("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
    put_file("/sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "50000\n");
    put_file("/sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "20000\n");
    CHECK_LIMITS(600000, 3);
}

/* A container of version 1 without a namespace of its own: the path is the host's, the mount shows the group's folder.
 */
static void test_v1_container(void) {
    begin();
    put_file("/proc/self/cgroup", "4:memory:/docker/1f\n2:cpu,cpuacct:/docker/1f/inner\n");
    put_file("/proc/self/mountinfo",
             "32 31 0:29 /docker/1f /sys/fs/cgroup/cpu ro master:9 shared:1 - cgroup cgroup rw,cpu,cpuacct\n"
             "35 31 0:32 /docker/1f /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n");
    put_file("/sys/fs/cgroup/memory/memory.limit_in_bytes", "7000\n");
    put_file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "800000\n");
    put_file("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
    put_file("/sys/fs/cgroup/cpu/inner/cpu.cfs_quota_us", "100001\n");
    put_file("/sys/fs/cgroup/cpu/inner/cpu.cfs_period_us", "100000\n");
    CHECK_LIMITS(7000, 2);
    put_file("/proc/self/cgroup", "4:memory:/../../other\n2:cpu,cpuacct:/docker/1face\n"); /* outside the mount */
    CHECK_LIMITS(7000, 8);
}

static void test_garbage(void) {
    static const char *const texts[] = {
        "",     "\n",    "maximum\n", "-5\n",  "0x7", "1e9", "99999999999999999999999", "12abc 100000",
        "100 ", "100 0", "0 100000",  "100 -1"};
    begin();
    put_file("/proc/self/cgroup", "no colon\n:\n::\n1:memory\n0::relative\n7:memory:\n9::\n0::/g\n");
    put_file("/proc/self/mountinfo", "\n-\n - \n - cgroup2\n1 2 3 /sys - cgroup2\n1 2 3 / /sys/fs/cgroup x - cgroup\n");
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        put_file("/sys/fs/cgroup/cpu.max", texts[i]);
        CHECK_LIMITS(NONE, 0);
    }
    for (size_t i = 0; i < 8; i++) {
        put_file("/sys/fs/cgroup/g/memory.max", texts[i]);
        CHECK_LIMITS(NONE, 0);
    }
    put_file("/sys/fs/cgroup/g/memory.max", "1000");
    put_file("/sys/fs/cgroup/g/memory.current", "what");
    put_file("/sys/fs/cgroup/g/memory.stat", "inactive_file\nactive_file x\n");
    CHECK_LIMITS(1000, 0);
    put_file("/sys/fs/cgroup/g/memory.current", "400");
    put_file("/sys/fs/cgroup/g/memory.stat", "inactive_file 18446744073709551615\nactive_file 18446744073709551615\n");
    CHECK_LIMITS(1000, 0);
}

/* Lines longer than any buffer: the lines after them are still found. */
static void test_long_lines(void) {
    static char text[20000];
    begin();
    memset(text, 'x', sizeof text - 1);
    size_t n = (size_t)snprintf(text, sizeof text, "1 2 3 / /");
    text[n] = 'x';
    snprintf(text + 15000, 5000, "\n31 23 0:28 / /c rw - cgroup2 cgroup2 rw\n");
    put_file("/proc/self/mountinfo", text);
    put_file("/proc/self/cgroup", "0::/\n");
    put_file("/c/memory.max", "300\n");
    CHECK_LIMITS(300, 0);
}

/* On this machine, whatever it is, the numbers must be plausible. */
static void test_here(void) {
    lq_cgroup_limits found;
    lq_cgroup_read("", &found);
    CHECK(lq_memory_available() > 1 << 20);
    CHECK(lq_cpu_cores() >= 1);
    if (found.n_cpus != 0) CHECK(lq_cpu_cores() <= found.n_cpus);
}

int main(void) {
    test_nothing_there();
    test_v2_container();
    test_v2_without_mountinfo();
    test_v2_nested();
    test_v1();
    test_v1_container();
    test_garbage();
    test_long_lines();
    test_here();
    nftw(root, erase, 8, FTW_DEPTH | FTW_PHYS);
    return check_report("test_cgroup");
}
#else
int main(void) { return check_report("test_cgroup"); }
#endif
