/* test_replace.c - tests replacing files as a whole, with and without unnamed temporary files; linked with --wrap=open
 * and --wrap=linkat. */
#define _GNU_SOURCE
#include "check.h"

#if defined(__linux__)
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/replace.h"

static bool without_unnamed, without_links;
static char root[64];

int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...);

/* Fails like a file system that has no unnamed files. */
int __wrap_open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = (flags & (O_CREAT | O_TMPFILE)) != 0 ? (mode_t)va_arg(rest, int) : 0;
    va_end(rest);
    if (without_unnamed && (flags & O_TMPFILE) == O_TMPFILE) {
        errno = EOPNOTSUPP;
        return -1;
    }
    return __real_open(path, flags, mode);
}

int __real_linkat(int from_folder, const char *from, int to_folder, const char *to, int flags);
int __wrap_linkat(int from_folder, const char *from, int to_folder, const char *to, int flags);

/* Fails like a system whose policy forbids hard links. */
int __wrap_linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    if (!without_links) return __real_linkat(from_folder, from, to_folder, to, flags);
    errno = EACCES;
    return -1;
}

static int erase(const char *path, const struct stat *about, int kind, struct FTW *at) {
    (void)about, (void)kind, (void)at;
    return remove(path);
}

static const char *in_root(const char *name) {
    static char path[8][512];
    static int next;
    char *out = path[next++ % 8];
    snprintf(out, sizeof path[0], "%s/%s", root, name);
    return out;
}

static void put_file(const char *name, const char *text) {
    FILE *file = fopen(in_root(name), "w");
    if (file == NULL || fputs(text, file) < 0 || fclose(file) != 0) exit(2);
}

static bool holds(const char *name, const char *text) {
    char found[64] = "";
    FILE *file = fopen(in_root(name), "r");
    if (file == NULL) return false;
    size_t n = fread(found, 1, sizeof found - 1, file);
    fclose(file);
    return n == strlen(text) && memcmp(found, text, n) == 0;
}

static int n_files(void) {
    int n = 0;
    DIR *folder = opendir(root);
    for (struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder))
        n += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    closedir(folder);
    return n;
}

static lq_status save(const char *name, const char *text) { return lq_file_replace(in_root(name), text, strlen(text)); }

static void test_new_and_replaced(void) {
    struct stat about;
    CHECK_STATUS(save("s", "one"), LQ_OK);
    CHECK(holds("s", "one") && stat(in_root("s"), &about) == 0 && (about.st_mode & 0777) == 0600);
    CHECK(chmod(in_root("s"), 0644) == 0 && link(in_root("s"), in_root("hard")) == 0);
    CHECK_STATUS(save("s", "two"), LQ_OK);
    CHECK(holds("s", "two") && stat(in_root("s"), &about) == 0 && (about.st_mode & 0777) == 0644);
    CHECK(holds("hard", "one"));
    CHECK_STATUS(save("s", ""), LQ_OK);
    CHECK(holds("s", "") && n_files() == 2);
    CHECK_STATUS(lq_file_replace(NULL, "", 0), LQ_E_ARG);
    CHECK_STATUS(lq_file_replace("", "", 0), LQ_E_IO);
}

/* The old file stays until the new one is complete, and nothing is left of a new one that is abandoned. */
static void test_undone(void) {
    lq_replacement r;
    put_file("s", "old");
    CHECK_STATUS(lq_replacement_begin(in_root("s"), &r), LQ_OK);
    CHECK(n_files() == (without_unnamed ? 2 : 1));
    CHECK(fputs("new", r.file) >= 0 && fflush(r.file) == 0 && holds("s", "old"));
    lq_replacement_undo(&r);
    lq_replacement_undo(&r);
    CHECK(holds("s", "old") && n_files() == 1);
}

/* Something that appears at the target meanwhile is as safe as what was there before. */
static void test_changed_meanwhile(void) {
    lq_replacement r;
    CHECK_STATUS(lq_replacement_begin(in_root("s"), &r), LQ_OK);
    CHECK(mkfifo(in_root("s"), 0600) == 0);
    CHECK_STATUS(lq_replacement_finish(&r), LQ_E_IO);
    CHECK(n_files() == 1);
}

/* A killed writer leaves nothing, or only until the next writer comes; a living writer's file stays. */
static void test_killed(void) {
    lq_replacement alive, next;
    CHECK_STATUS(lq_replacement_begin(in_root("s"), &alive), LQ_OK);
    for (int i = 0; i < 3; i++) {
        pid_t child = fork();
        if (child == 0) {
            lq_replacement r;
            _exit(lq_replacement_begin(in_root("s"), &r) == LQ_OK && fputs("x", r.file) >= 0 ? 0 : 1);
        }
        int status = -1;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
        CHECK(n_files() == (without_unnamed ? 2 : 0)); /* the last one's, and the living one's */
    }
    CHECK_STATUS(lq_replacement_begin(in_root("s"), &next), LQ_OK);
    CHECK(n_files() == (without_unnamed ? 2 : 0));
    CHECK_STATUS(lq_replacement_finish(&alive), LQ_OK);
    CHECK_STATUS(lq_replacement_finish(&next), LQ_OK);
    CHECK(n_files() == 1 && holds("s", ""));
}

/* Only temporary files with exactly the right form of name, and of exactly that path, are removed. */
static void test_what_is_swept(void) {
    static const char *const stay[] = {".s.lq-backup.tmp",        ".s.lq-0123456789ab.tmp2", ".s.lq-0123456789aB.tmp",
                                       ".s.lq-0123456789abc.tmp", ".t.lq-0123456789ab.tmp",  "s.lq-0123456789ab.tmp",
                                       ".s.x.lq-0123456789ab.tmp"};
    int n = (int)(sizeof stay / sizeof *stay);
    for (int i = 0; i < n; i++) put_file(stay[i], "mine");
    put_file(".s.lq-0123456789ab.tmp", "dead");
    CHECK(mkdir(in_root(".s.lq-000000000000.tmp"), 0700) == 0);
    CHECK(symlink(in_root(stay[0]), in_root(".s.lq-111111111111.tmp")) == 0);
    CHECK(mkfifo(in_root(".s.lq-222222222222.tmp"), 0600) == 0);
    CHECK_STATUS(save("s", "x"), LQ_OK);
    CHECK(access(in_root(".s.lq-0123456789ab.tmp"), F_OK) != 0);
    CHECK(n_files() == n + 4);
}

static void test_long_names(void) {
    char name[256];
    for (int n = 95; n <= 255; n += 32) {
        for (int i = 0; i + 1 < n; i += 2) memcpy(name + i, "\xc3\xa9", 2);
        name[n - 1] = 'x';
        name[n] = '\0';
        CHECK_STATUS(save(name, "x"), LQ_OK);
        CHECK(holds(name, "x"));
    }
    CHECK(n_files() == 6);
}

/* Writes more than any buffer holds. */
static void test_large(void) {
    static char bytes[300001];
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (char)(i % 251);
    CHECK_STATUS(lq_file_replace(in_root("s"), bytes, sizeof bytes), LQ_OK);
    static char found[sizeof bytes + 1];
    FILE *file = fopen(in_root("s"), "r");
    CHECK(file != NULL && fread(found, 1, sizeof found, file) == sizeof bytes);
    CHECK(memcmp(found, bytes, sizeof bytes) == 0 && n_files() == 1);
    if (file != NULL) fclose(file);
}

static void test_in_the_working_folder(void) {
    char before[512];
    CHECK(getcwd(before, sizeof before) != NULL && chdir(root) == 0);
    CHECK_STATUS(lq_file_replace("plain", "x", 1), LQ_OK);
    CHECK(symlink("plain", "link") == 0);
    CHECK_STATUS(lq_file_replace("link", "y", 1), LQ_OK);
    CHECK_STATUS(lq_file_replace("./link", "z", 1), LQ_OK);
    CHECK(holds("plain", "z") && n_files() == 2 && chdir(before) == 0);
}

int main(void) {
    static void (*const tests[])(void) = {
        test_new_and_replaced, test_undone, test_changed_meanwhile,    test_killed, test_what_is_swept,
        test_long_names,       test_large,  test_in_the_working_folder};
    for (int i = 0; i < 3; i++) {
        int unnamed = open("/tmp", O_TMPFILE | O_WRONLY, 0600);
        without_links = i == 2;
        without_unnamed = i == 1 || unnamed < 0; /* not every file system of a /tmp can */
        if (unnamed >= 0) close(unnamed);
        for (size_t j = 0; j < sizeof tests / sizeof *tests; j++) {
            snprintf(root, sizeof root, "/tmp/lq-replace-XXXXXX");
            if (mkdtemp(root) == NULL) return 2;
            tests[j]();
            nftw(root, erase, 8, FTW_DEPTH | FTW_PHYS);
        }
    }
    return check_report("test_replace");
}
#else
int main(void) { return check_report("test_replace"); }
#endif
