/* system.c - asks POSIX or Windows for memory, time and cores. */
#if !defined(_WIN32)
#define _GNU_SOURCE /* sched_getaffinity, MAP_ANONYMOUS, MAP_NORESERVE */
#endif
#include "core/system.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/cgroup.h"
#include "core/checked.h"

#if defined(_WIN32)
#include <malloc.h>
#include <windows.h>
#else
#include <sched.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#endif

#define ALIGNMENT 64

#if defined(__linux__)
#define HUGE_PAGE ((uintptr_t)2 << 20)
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* headers have it since Linux 6.1 */
#endif
#endif

void lq_format_bytes(char text[32], uint64_t n_bytes) {
    if (n_bytes >= (uint64_t)1 << 30) {
        snprintf(text, 32, "%.1f GiB", (double)n_bytes / (double)((uint64_t)1 << 30));
    } else if (n_bytes >= (uint64_t)1 << 20) {
        snprintf(text, 32, "%.1f MiB", (double)n_bytes / (double)((uint64_t)1 << 20));
    } else {
        snprintf(text, 32, "%.1f KiB", (double)n_bytes / 1024.0);
    }
}

static lq_status out_of_memory(uint64_t n_bytes, const char *purpose) {
    char size[32];
    lq_format_bytes(size, n_bytes);
    return lq_fail(LQ_E_MEMORY, "out of memory: %s needs %s", purpose, size);
}

lq_status lq_alloc(uint64_t n_bytes, const char *purpose, void **out) {
    uint64_t padded;
    *out = NULL;
    if (!lq_align_u64(n_bytes ? n_bytes : 1, ALIGNMENT, &padded) || padded > SIZE_MAX / 2)
        return out_of_memory(n_bytes, purpose);
#if defined(_WIN32)
    void *memory = _aligned_malloc((size_t)padded, ALIGNMENT);
#else
    void *memory = aligned_alloc(ALIGNMENT, (size_t)padded);
#endif
    if (memory == NULL) return out_of_memory(n_bytes, purpose);
    memset(memory, 0, (size_t)padded);
    *out = memory;
    return LQ_OK;
}

void lq_free(void *memory) {
#if defined(_WIN32)
    _aligned_free(memory);
#else
    free(memory);
#endif
}

lq_status lq_reserve(uint64_t n_bytes, const char *purpose, void **out) {
    *out = NULL;
    if (n_bytes == 0) n_bytes = 1;
    if (n_bytes > SIZE_MAX / 2) return out_of_memory(n_bytes, purpose);
#if defined(_WIN32)
    void *memory = VirtualAlloc(NULL, (size_t)n_bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
    if (memory == NULL) return out_of_memory(n_bytes, purpose);
#else
    void *memory = mmap(NULL, (size_t)n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return out_of_memory(n_bytes, purpose);
#endif
    *out = memory;
    return LQ_OK;
}

void lq_release(void *memory, uint64_t n_bytes) {
    if (memory == NULL) return;
#if defined(_WIN32)
    (void)n_bytes;
    VirtualFree(memory, 0, MEM_RELEASE);
#else
    munmap(memory, n_bytes ? (size_t)n_bytes : 1);
#endif
}

void lq_settle(void *memory, uint64_t n_bytes) {
#if defined(__linux__)
    uintptr_t first = ((uintptr_t)memory + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
    uintptr_t end = ((uintptr_t)memory + (uintptr_t)n_bytes) & ~(HUGE_PAGE - 1);
    if (first >= end) return;
    /* Linux collapses the pages at once or, before 6.1, later in the background. A failure only costs speed. */
    if (madvise((void *)first, end - first, MADV_COLLAPSE) != 0)
        (void)madvise((void *)first, end - first, MADV_HUGEPAGE);
#else
    (void)memory;
    (void)n_bytes;
#endif
}

double lq_seconds(void) {
#if defined(_WIN32)
    LARGE_INTEGER now, per_s;
    QueryPerformanceCounter(&now);
    QueryPerformanceFrequency(&per_s);
    return (double)now.QuadPart / (double)per_s.QuadPart;
#else
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
#endif
}

#if defined(__linux__)
uint64_t lq_memory_available(void) {
    static const char label[] = "MemAvailable:";
    char line[256];
    unsigned long long kib = 0;
    lq_cgroup_limits limits;
    FILE *file = fopen("/proc/meminfo", "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        if (strncmp(line, label, sizeof label - 1) == 0 && sscanf(line + sizeof label - 1, "%llu", &kib) == 1) break;
    if (file != NULL) fclose(file);
    uint64_t available = kib * 1024;
    /* A container's limit can be far below the machine's memory. */
    lq_cgroup_read("", &limits);
    if (limits.memory_free == UINT64_MAX) return available;
    if (available == 0 || limits.memory_free < available) available = limits.memory_free;
    return available != 0 ? available : 1; /* 0 would mean "unknown" */
}

/* Counts distinct (package, core) pairs among the CPUs this process may run on. */
uint32_t lq_cpu_cores(void) {
    cpu_set_t allowed;
    uint32_t n_cores = 0;
    uint64_t seen[CPU_SETSIZE];
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 1;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &allowed)) continue;
        /* The lowest-numbered sibling names the core: "0-1" and "0,8" both start with 0. */
        char path[96];
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
        FILE *file = fopen(path, "r");
        int first = cpu;
        if (file != NULL) {
            if (fscanf(file, "%d", &first) != 1) first = cpu;
            fclose(file);
        }
        bool known = false;
        for (uint32_t i = 0; i < n_cores; i++) known = known || seen[i] == (uint64_t)first;
        if (!known) seen[n_cores++] = (uint64_t)first;
    }
    /* With more threads than the quota pays for, threads wait for others that the system has suspended. */
    lq_cgroup_limits limits;
    lq_cgroup_read("", &limits);
    if (limits.n_cpus != 0 && limits.n_cpus < n_cores) return limits.n_cpus;
    return n_cores ? n_cores : 1;
}
#elif defined(_WIN32)
uint64_t lq_memory_available(void) {
    MEMORYSTATUSEX status = {.dwLength = sizeof status};
    return GlobalMemoryStatusEx(&status) ? status.ullAvailPhys : 0;
}

uint32_t lq_cpu_cores(void) {
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return info.dwNumberOfProcessors ? info.dwNumberOfProcessors : 1;
}
#else
uint64_t lq_memory_available(void) { return 0; }

uint32_t lq_cpu_cores(void) {
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (uint32_t)n : 1;
}
#endif
