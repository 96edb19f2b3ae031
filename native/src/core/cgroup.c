/* cgroup.c - reads the memory and processor limits of cgroup v1 and v2. Sources: cgroups(7), proc_pid_mountinfo(5), and
 * Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst and scheduler/sched-bwc.rst of Linux. */
#if defined(__linux__)
#include "core/cgroup.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define PATH_BYTES 4096
#define LINE_BYTES 8192

/* A hierarchy of groups: version 2 has one tree for everything, version 1 one for each controller. */
typedef enum tree { UNIFIED, MEMORY, CPU, N_TREES } tree;

/* The usual mount points. They are read besides those of mountinfo, which also lists mounts that others hide, and which
 * containers may hide itself. */
static const struct {
    tree tree;
    const char *folder;
} usual_places[] = {
    {UNIFIED, "/sys/fs/cgroup"}, {UNIFIED, "/sys/fs/cgroup/unified"}, {MEMORY, "/sys/fs/cgroup/memory"},
    {CPU, "/sys/fs/cgroup/cpu"}, {CPU, "/sys/fs/cgroup/cpu,cpuacct"},
};

typedef struct search {
    const char *root;
    lq_cgroup_limits *found;
    char own[N_TREES][PATH_BYTES]; /* the group of this process in each tree: "/", "/user.slice/a"; "" = not in it */
} search;

/* ---- small text files */

/* Reads the next line, without its end; a line longer than the buffer is cut. */
static bool next_line(FILE *file, char line[LINE_BYTES]) {
    if (fgets(line, LINE_BYTES, file) == NULL) return false;
    size_t n = strcspn(line, "\n");
    if (line[n] == '\0')
        for (int c = fgetc(file); c != '\n' && c != EOF; c = fgetc(file)) {
        }
    line[n] = '\0';
    return true;
}

/* Parses a number at the start of a text; false unless a space or the end follows it. */
static bool parse(const char *text, uint64_t *out) {
    uint64_t value = 0;
    if (*text < '0' || *text > '9') return false;
    for (; *text >= '0' && *text <= '9'; text++) {
        uint64_t digit = (uint64_t)(*text - '0');
        if (value > (UINT64_MAX - digit) / 10) return false;
        value = value * 10 + digit;
    }
    *out = value;
    return *text == '\0' || *text == ' ';
}

/* Reads the first line of a file that begins with a label ("" takes any), without the label; false if there is none. */
static bool read_line(const char *folder, const char *name, const char *label, char line[LINE_BYTES]) {
    char path[2 * PATH_BYTES];
    bool found = false;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "r");
    if (file == NULL) return false;
    while (!found && next_line(file, line)) found = strncmp(line, label, strlen(label)) == 0;
    fclose(file);
    if (found) memmove(line, line + strlen(label), strlen(line + strlen(label)) + 1);
    return found;
}

static bool read_number(const char *folder, const char *name, const char *label, uint64_t *out) {
    char line[LINE_BYTES];
    return read_line(folder, name, label, line) && parse(line, out);
}

/* ---- limits of one folder */

static void note_memory(lq_cgroup_limits *found, uint64_t limit, uint64_t used, uint64_t cached) {
    used -= cached < used ? cached : used;
    uint64_t left = limit > used ? limit - used : 0;
    if (left < found->memory_free) found->memory_free = left;
}

static void note_quota(lq_cgroup_limits *found, uint64_t quota_us, uint64_t period_us) {
    if (quota_us == 0 || period_us == 0) return;
    uint64_t n = quota_us / period_us + (quota_us % period_us != 0);
    if (n <= UINT32_MAX && (found->n_cpus == 0 || n < found->n_cpus)) found->n_cpus = (uint32_t)n;
}

/* The kernel counts cached pages of files as used, though it gives them up on demand: a model that was read once would
 * seem to fill the container. */
static uint64_t cached_bytes(const char *folder, const char *inactive, const char *active) {
    uint64_t a = 0, b = 0;
    if (!read_number(folder, "memory.stat", inactive, &a)) a = 0;
    if (!read_number(folder, "memory.stat", active, &b)) b = 0;
    return a <= UINT64_MAX - b ? a + b : UINT64_MAX;
}

/* memory.high does not kill, but processes above it are slowed down so much that it counts as a limit. */
static void look_unified(const char *folder, lq_cgroup_limits *found) {
    static const char *const names[] = {"memory.max", "memory.high"};
    uint64_t limit, used, quota_us, period_us;
    char line[LINE_BYTES];
    for (int i = 0; i < 2; i++) {
        if (!read_number(folder, names[i], "", &limit)) continue;
        if (!read_number(folder, "memory.current", "", &used)) used = 0;
        note_memory(found, limit, used, cached_bytes(folder, "inactive_file ", "active_file "));
    }
    if (!read_line(folder, "cpu.max", "", line) || !parse(line, &quota_us)) return; /* "max 100000": none */
    const char *period = strchr(line, ' ');
    if (period != NULL && parse(period + 1, &period_us)) note_quota(found, quota_us, period_us);
}

/* A limit of about 2^63 means that there is none. */
static void look_memory(const char *folder, lq_cgroup_limits *found) {
    uint64_t limit, used;
    if (!read_number(folder, "memory.limit_in_bytes", "", &limit)) return;
    if (!read_number(folder, "memory.usage_in_bytes", "", &used)) used = 0;
    if (limit >= UINT64_MAX / 4) return;
    note_memory(found, limit, used, cached_bytes(folder, "total_inactive_file ", "total_active_file "));
}

static void look_cpu(const char *folder, lq_cgroup_limits *found) {
    uint64_t quota_us, period_us;
    if (read_number(folder, "cpu.cfs_quota_us", "", &quota_us) && /* "-1": none */
        read_number(folder, "cpu.cfs_period_us", "", &period_us))
        note_quota(found, quota_us, period_us);
}

/* ---- which folders */

/* Reads the folder of the process's group and all above it, up to the mount. mounted: the group that the mount shows.
 */
static void climb(search *s, tree which, const char *mount, const char *mounted) {
    char path[PATH_BYTES];
    const char *group = s->own[which];
    size_t n_mounted = strcmp(mounted, "/") == 0 ? 0 : strlen(mounted);
    /* A group outside of the mount, as another namespace sees it: only the mount's own group can be read. */
    if (strncmp(group, mounted, n_mounted) != 0 || strstr(group, "/..") != NULL)
        group = "";
    else if (group[n_mounted] != '/' && group[n_mounted] != '\0')
        group = "";
    else
        group += n_mounted;
    int n = snprintf(path, sizeof path, "%s%s%s", s->root, mount, group);
    size_t stop = strlen(s->root) + strlen(mount);
    if (n < 0 || (size_t)n >= sizeof path) return;
    for (size_t end = (size_t)n; end >= stop && end > 0;) {
        path[end] = '\0';
        if (which == UNIFIED) look_unified(path, s->found);
        if (which == MEMORY) look_memory(path, s->found);
        if (which == CPU) look_cpu(path, s->found);
        do end--;
        while (end > stop && path[end] != '/');
    }
}

/* Whether a comma-separated list, such as "cpu,cpuacct", contains a word. */
static bool lists(const char *list, const char *word) {
    size_t n = strlen(word);
    for (; list != NULL; list = strchr(list, ',')) {
        if (*list == ',') list++;
        if (strncmp(list, word, n) == 0 && (list[n] == ',' || list[n] == '\0')) return true;
    }
    return false;
}

/* Reads /proc/self/cgroup, whose lines look like "4:memory:/docker/1f" and "0::/user.slice". */
static void read_own_groups(search *s) {
    char path[PATH_BYTES], line[LINE_BYTES];
    snprintf(path, sizeof path, "%s/proc/self/cgroup", s->root);
    FILE *file = fopen(path, "r");
    if (file == NULL) return;
    while (next_line(file, line)) {
        char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (group == NULL || group[1] != '/' || strlen(group + 1) >= PATH_BYTES) continue;
        *controllers++ = '\0';
        *group++ = '\0';
        if (group[1] == '\0') group++; /* "/", the root: there is nothing to climb */
        if (*controllers == '\0') memcpy(s->own[UNIFIED], group, strlen(group) + 1);
        if (lists(controllers, "memory")) memcpy(s->own[MEMORY], group, strlen(group) + 1);
        if (lists(controllers, "cpu")) memcpy(s->own[CPU], group, strlen(group) + 1);
    }
    fclose(file);
}

/* Replaces octal escapes in place: in mountinfo "\040" stands for a space, and so on. */
static void unescape(char *text) {
    char *to = text;
    for (; *text != '\0'; text++) {
        if (text[0] == '\\' && text[1] >= '0' && text[1] <= '3' && text[2] >= '0' && text[2] <= '7' && text[3] >= '0' &&
            text[3] <= '7') {
            *to++ = (char)((text[1] - '0') * 64 + (text[2] - '0') * 8 + (text[3] - '0'));
            text += 3;
        } else {
            *to++ = *text;
        }
    }
    *to = '\0';
}

/* Reads a line of /proc/self/mountinfo, such as "36 35 98:0 /group /mount rw - cgroup cgroup rw,memory". */
static void climb_mount(search *s, char *line) {
    char mounted[PATH_BYTES], mount[PATH_BYTES], kind[16], *rest = strstr(line, " - ");
    int at = 0;
    if (rest == NULL || strlen(line) >= PATH_BYTES) return;
    if (sscanf(line, "%*s %*s %*s %4095s %4095s", mounted, mount) != 2) return;
    if (sscanf(rest, " - %15s %*s %n", kind, &at) != 1 || at == 0) return;
    unescape(mounted);
    unescape(mount);
    if (strcmp(kind, "cgroup2") == 0) climb(s, UNIFIED, mount, mounted);
    if (strcmp(kind, "cgroup") == 0 && lists(rest + at, "memory")) climb(s, MEMORY, mount, mounted);
    if (strcmp(kind, "cgroup") == 0 && lists(rest + at, "cpu")) climb(s, CPU, mount, mounted);
}

void lq_cgroup_read(const char *root, lq_cgroup_limits *out) {
    search s = {root, out, {"", "", ""}};
    char path[PATH_BYTES], line[LINE_BYTES];
    *out = (lq_cgroup_limits){UINT64_MAX, 0};
    read_own_groups(&s);
    for (size_t i = 0; i < sizeof usual_places / sizeof *usual_places; i++)
        climb(&s, usual_places[i].tree, usual_places[i].folder, "/");
    snprintf(path, sizeof path, "%s/proc/self/mountinfo", root);
    FILE *file = fopen(path, "r");
    if (file == NULL) return;
    while (next_line(file, line)) climb_mount(&s, line);
    fclose(file);
}
#else
typedef int lq_cgroup_nothing; /* C does not allow a file without declarations */
#endif
