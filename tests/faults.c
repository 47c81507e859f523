/* Faults in the system calls that change files, for tests: preloaded into Python, armed by tests/faults.py.

   Counts every call that changes something under one folder (open for writing or creating, write, truncate, fsync, rename, link, unlink,
   mkdir, rmdir, chmod), and at call number N kills the process before the call, lets the call fail with an errno, once or from then on, or
   takes a folder away before it. Every call can be logged with its bytes, so that what a disk may hold after a power loss can be worked
   out (tests/power_loss.py).

   Limits: calls that libc makes inside itself (stdio's own writes) and those of programs without libc go unseen; Python makes all of its
   own through these. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static char under[4096], taken[4096], taken_to[4096];
static size_t under_length;
static long at, seen;  /* answers are committed by a thread of their own */
static int failing, lasting, log_to = -1;

/* folder: absolute, without a slash at its end; nth: 0 only counts; error: 0 kills; path: where calls are logged, or an empty text. */
void faults_arm(const char *folder, long nth, int error, int from_then_on, const char *path) {
    snprintf(under, sizeof under, "%s", folder);
    under_length = strlen(under);
    at = nth, seen = 0, failing = error, lasting = from_then_on;
    log_to = *path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND, 0600) : -1;
}

/* At the call that faults_arm named: this folder goes there, or where that is an empty text, is removed; the call itself is made. */
void faults_take(const char *folder, const char *to) {
    snprintf(taken, sizeof taken, "%s", folder);
    snprintf(taken_to, sizeof taken_to, "%s", to);
}

long faults_seen(void) { return seen; }

static int inside(const char *path) {
    return under_length && strncmp(path, under, under_length) == 0 && (path[under_length] == '/' || !path[under_length]);
}

/* The absolute path of a name relative to an open folder; links are not followed. */
static const char *whole(int folder, const char *name, char *out, size_t size) {
    if (*name == '/') return name;
    char link[64], base[4096];
    ssize_t length;
    if (folder == AT_FDCWD) {
        if (!getcwd(base, sizeof base)) return name;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        if ((length = readlink(link, base, sizeof base - 1)) < 0) return name;
        base[length] = 0;
    }
    snprintf(out, size, "%s/%s", base, name);
    return out;
}

static const char *path_of(int file, char *out, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, out, size - 1);
    if (length < 0) return "";
    out[length] = 0;
    return out;
}

static void put(const void *data, size_t size) {
    const char *from = data;
    while (size) {
        ssize_t done = syscall(SYS_write, log_to, from, size);
        if (done <= 0) return;
        from += done, size -= (size_t)done;
    }
}

static int removed(const char *path, const struct stat *there, int kind, struct FTW *place) {
    (void)there, (void)place;
    return (int)syscall(SYS_unlinkat, AT_FDCWD, path, kind == FTW_DP ? AT_REMOVEDIR : 0);
}

static void take(void) {
    if (*taken_to) syscall(SYS_renameat, AT_FDCWD, taken, AT_FDCWD, taken_to);
    else nftw(taken, removed, 16, FTW_DEPTH | FTW_PHYS);
}

/* One call to come. Returns the errno that it is to fail with, or 0. Log: "<call> <offset> <bytes> <path>\0<second path>\0<data>". */
static int call(const char *name, const char *path, const char *second, int64_t offset, const void *data, size_t size) {
    if (!(inside(path) || (second && inside(second)))) return 0;
    long number = __atomic_add_fetch(&seen, 1, __ATOMIC_SEQ_CST);
    if (*taken) {
        if (number == at) take();
    } else if (at && (number == at || (lasting && number > at))) {
        if (!failing) {
            kill(getpid(), SIGKILL);
            for (;;) pause();
        }
        return failing;
    }
    if (log_to >= 0) {
        char head[4400];
        int length = snprintf(head, sizeof head, "%s %lld %zu %s", name, (long long)offset, size, path);
        put(head, (size_t)length + 1);
        put(second ? second : "", (second ? strlen(second) : 0) + 1);
        if (size) put(data, size);
    }
    return 0;
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = dlsym(RTLD_NEXT, name)
#define FAIL(error) do { int told = (error); if (told) { errno = told; return -1; } } while (0)

static int opening(int folder, const char *name, int flags) {
    char out[8192];
    if (!(flags & (O_CREAT | O_TRUNC)) && (flags & O_ACCMODE) == O_RDONLY) return 0;
    const char *path = whole(folder, name, out, sizeof out);
    struct stat there;
    int exists = stat(path, &there) == 0;
    return call(exists ? (flags & O_TRUNC ? "truncate" : "open") : "create", path, NULL, 0, NULL, 0);
}

#define OPEN(symbol) \
    int symbol(const char *name, int flags, ...) { \
        REAL(int, #symbol, const char *, int, ...); \
        va_list rest; va_start(rest, flags); mode_t mode = (mode_t)va_arg(rest, int); va_end(rest); \
        FAIL(opening(AT_FDCWD, name, flags)); \
        return real(name, flags, mode); \
    }
#define OPENAT(symbol) \
    int symbol(int folder, const char *name, int flags, ...) { \
        REAL(int, #symbol, int, const char *, int, ...); \
        va_list rest; va_start(rest, flags); mode_t mode = (mode_t)va_arg(rest, int); va_end(rest); \
        FAIL(opening(folder, name, flags)); \
        return real(folder, name, flags, mode); \
    }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)

ssize_t write(int file, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    char out[4096];
    const char *path = path_of(file, out, sizeof out);
    if (inside(path)) {
        int64_t offset = (fcntl(file, F_GETFL) & O_APPEND) ? -1 : (int64_t)lseek(file, 0, SEEK_CUR);
        FAIL(call("write", path, NULL, offset, data, size));
    }
    return real(file, data, size);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    char out[4096];
    const char *path = path_of(file, out, sizeof out);
    if (inside(path)) {
        size_t size = 0, done = 0;
        for (int part = 0; part < count; part++) size += parts[part].iov_len;
        char *data = malloc(size ? size : 1);
        for (int part = 0; part < count; done += parts[part++].iov_len) memcpy(data + done, parts[part].iov_base, parts[part].iov_len);
        int64_t offset = (fcntl(file, F_GETFL) & O_APPEND) ? -1 : (int64_t)lseek(file, 0, SEEK_CUR);
        int error = call("write", path, NULL, offset, data, size);
        free(data);
        FAIL(error);
    }
    return real(file, parts, count);
}

#define PWRITE(symbol) \
    ssize_t symbol(int file, const void *data, size_t size, off_t offset) { \
        REAL(ssize_t, #symbol, int, const void *, size_t, off_t); \
        char out[4096]; \
        FAIL(call("write", path_of(file, out, sizeof out), NULL, (int64_t)offset, data, size)); \
        return real(file, data, size, offset); \
    }
PWRITE(pwrite) PWRITE(pwrite64)

ssize_t sendfile(int to, int from, off_t *offset, size_t size) {
    REAL(ssize_t, "sendfile", int, int, off_t *, size_t);
    char out[4096];
    FAIL(call("send", path_of(to, out, sizeof out), NULL, 0, NULL, 0)); /* tests/power_loss.py does not know its bytes */
    return real(to, from, offset, size);
}

/* C++ streams, as torch writes checkpoints with, open by stdio and write by write and writev. */
#define FOPEN(symbol) \
    FILE *symbol(const char *name, const char *mode) { \
        REAL(FILE *, #symbol, const char *, const char *); \
        int flags = *mode == 'w' ? O_WRONLY | O_CREAT | O_TRUNC : *mode == 'a' ? O_WRONLY | O_CREAT : strchr(mode, '+') ? O_RDWR : O_RDONLY; \
        int error = opening(AT_FDCWD, name, flags); \
        if (error) { \
            errno = error; \
            return NULL; \
        } \
        return real(name, mode); \
    }
FOPEN(fopen) FOPEN(fopen64)

int chmod(const char *name, mode_t mode) {
    REAL(int, "chmod", const char *, mode_t);
    char out[8192];
    FAIL(call("chmod", whole(AT_FDCWD, name, out, sizeof out), NULL, 0, NULL, 0));
    return real(name, mode);
}

#define ON_FILE(symbol, label) \
    int symbol(int file) { \
        REAL(int, #symbol, int); \
        char out[4096]; \
        FAIL(call(label, path_of(file, out, sizeof out), NULL, 0, NULL, 0)); \
        return real(file); \
    }
ON_FILE(fsync, "fsync") ON_FILE(fdatasync, "fsync")

#define TRUNCATE(symbol) \
    int symbol(int file, off_t length) { \
        REAL(int, #symbol, int, off_t); \
        char out[4096]; \
        FAIL(call("cut", path_of(file, out, sizeof out), NULL, (int64_t)length, NULL, 0)); \
        return real(file, length); \
    }
TRUNCATE(ftruncate) TRUNCATE(ftruncate64)

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    char first[8192], second[8192];
    FAIL(call("rename", whole(AT_FDCWD, from, first, sizeof first), whole(AT_FDCWD, to, second, sizeof second), 0, NULL, 0));
    return real(from, to);
}

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    REAL(int, "renameat", int, const char *, int, const char *);
    char first[8192], second[8192];
    FAIL(call("rename", whole(from_folder, from, first, sizeof first), whole(to_folder, to, second, sizeof second), 0, NULL, 0));
    return real(from_folder, from, to_folder, to);
}

int unlink(const char *name) {
    REAL(int, "unlink", const char *);
    char out[8192];
    FAIL(call("unlink", whole(AT_FDCWD, name, out, sizeof out), NULL, 0, NULL, 0));
    return real(name);
}

int unlinkat(int folder, const char *name, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    char out[8192];
    FAIL(call(flags & AT_REMOVEDIR ? "rmdir" : "unlink", whole(folder, name, out, sizeof out), NULL, 0, NULL, 0));
    return real(folder, name, flags);
}

int rmdir(const char *name) {
    REAL(int, "rmdir", const char *);
    char out[8192];
    FAIL(call("rmdir", whole(AT_FDCWD, name, out, sizeof out), NULL, 0, NULL, 0));
    return real(name);
}

int mkdir(const char *name, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    char out[8192];
    FAIL(call("mkdir", whole(AT_FDCWD, name, out, sizeof out), NULL, 0, NULL, 0));
    return real(name, mode);
}

int mkdirat(int folder, const char *name, mode_t mode) {
    REAL(int, "mkdirat", int, const char *, mode_t);
    char out[8192];
    FAIL(call("mkdir", whole(folder, name, out, sizeof out), NULL, 0, NULL, 0));
    return real(folder, name, mode);
}
