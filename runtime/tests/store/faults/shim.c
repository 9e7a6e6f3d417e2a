/* Put in front of the C library by LD_PRELOAD: writes down, in order, what the files below a folder are told.
 *
 * WEIR_DISK_ROOT is the folder, WEIR_DISK_LOG the file that is appended to. Each entry is four words of 8 bytes (kind, length of
 * the name, offset, length of the data), the name below the folder, and the data. Kinds are those of `log.rs`. A sync is two
 * entries with one number in place of the offset: it speaks for what was told before it began, and only once it has returned. A write and its entry are made under one
 * lock, so that the order is the true one. What shares memory (SQLite's -shm) is made anew by whoever opens the file and is left
 * out, as is whoever maps a file: the store does not. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { MADE = 1, WRITTEN, CUT, SYNC_BEGUN, SYNCED, REMOVED, FOLDER };
enum { FDS = 4096, NAME = 512 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[NAME];
static size_t root_len;
static int log_fd = -1;
/* The name below the folder of what each descriptor is; NULL where it is none of ours. */
static char *names[FDS];

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) {
        fprintf(stderr, "shim: there is no %s\n", name);
        abort();
    }
    return found;
}

__attribute__((constructor)) static void begin(void) {
    const char *folder = getenv("WEIR_DISK_ROOT"), *into = getenv("WEIR_DISK_LOG");
    if (!folder || !into || strlen(folder) >= NAME) return;
    log_fd = REAL(open)(into, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0) abort();
    strcpy(root, folder);
    root_len = strlen(root);
}

/* The name below the folder, "" for the folder itself; NULL for what is not there, or is not of interest. */
static const char *below(const char *path) {
    if (!path || log_fd < 0 || strncmp(path, root, root_len)) return NULL;
    path += root_len;
    if (*path == 0) return path;
    if (*path != '/') return NULL;
    size_t len = strlen(++path);
    const char *no[] = {"-shm", ".lock"};
    for (int i = 0; i < 2; i++) {
        size_t end = strlen(no[i]);
        if (len >= end && !strcmp(path + len - end, no[i])) return NULL;
    }
    return path;
}

static const char *name_of(int fd) { return fd >= 0 && fd < FDS ? names[fd] : NULL; }

static void put(const void *data, size_t len) {
    while (len) {
        ssize_t n = REAL(write)(log_fd, data, len);
        if (n <= 0) abort();
        data = (const char *)data + n;
        len -= n;
    }
}

static void entry(uint64_t kind, const char *name, uint64_t offset, const void *data, uint64_t len) {
    uint64_t head[4] = {kind, strlen(name), offset, len};
    put(head, sizeof head);
    put(name, head[1]);
    put(data, len);
}

static int opened(const char *symbol, int at, const char *path, int flags, mode_t mode) {
    const char *name = below(path);
    pthread_mutex_lock(&lock);
    struct stat known;
    int there = name && stat(path, &known) == 0;
    int fd = !strncmp(symbol, "openat", 6)
                 ? ((int (*)(int, const char *, int, mode_t))real(symbol))(at, path, flags, mode)
                 : ((int (*)(const char *, int, mode_t))real(symbol))(path, flags, mode);
    int error = errno;
    if (name && fd >= 0) {
        if (fd >= FDS) abort();
        free(names[fd]);
        names[fd] = strdup(name);
        if (!there) entry(MADE, name, 0, NULL, 0);
        else if (flags & O_TRUNC) entry(CUT, name, 0, NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    errno = error;
    return fd;
}

#define MODE_OF(flags)                                                                                                             \
    mode_t mode = 0;                                                                                                               \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                                                                                         \
        va_list more;                                                                                                              \
        va_start(more, flags);                                                                                                     \
        mode = va_arg(more, mode_t);                                                                                               \
        va_end(more);                                                                                                              \
    }

int open(const char *path, int flags, ...) { MODE_OF(flags) return opened("open", 0, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE_OF(flags) return opened("open64", 0, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE_OF(flags) return opened("openat", at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE_OF(flags) return opened("openat64", at, path, flags, mode); }

int close(int fd) {
    pthread_mutex_lock(&lock);
    if (name_of(fd)) {
        free(names[fd]);
        names[fd] = NULL;
    }
    pthread_mutex_unlock(&lock);
    return REAL(close)(fd);
}

static ssize_t written(int fd, const void *data, size_t len, off_t offset, int moves) {
    pthread_mutex_lock(&lock);
    const char *name = name_of(fd);
    if (moves) {
        struct stat known;
        int appends = fcntl(fd, F_GETFL) & O_APPEND;
        offset = appends && fstat(fd, &known) == 0 ? known.st_size : lseek(fd, 0, SEEK_CUR);
    }
    ssize_t n = moves ? REAL(write)(fd, data, len) : REAL(pwrite64)(fd, data, len, offset);
    int error = errno;
    if (name && n > 0) entry(WRITTEN, name, offset, data, n);
    pthread_mutex_unlock(&lock);
    errno = error;
    return n;
}

ssize_t write(int fd, const void *data, size_t len) {
    return name_of(fd) ? written(fd, data, len, 0, 1) : REAL(write)(fd, data, len);
}
ssize_t pwrite(int fd, const void *data, size_t len, off_t offset) {
    return name_of(fd) ? written(fd, data, len, offset, 0) : REAL(pwrite)(fd, data, len, offset);
}
ssize_t pwrite64(int fd, const void *data, size_t len, off64_t offset) {
    return name_of(fd) ? written(fd, data, len, offset, 0) : REAL(pwrite64)(fd, data, len, offset);
}

static int cut(int fd, off64_t size) {
    pthread_mutex_lock(&lock);
    const char *name = name_of(fd);
    int done = REAL(ftruncate64)(fd, size), error = errno;
    if (name && done == 0) entry(CUT, name, size, NULL, 0);
    pthread_mutex_unlock(&lock);
    errno = error;
    return done;
}

int ftruncate(int fd, off_t size) { return cut(fd, size); }
int ftruncate64(int fd, off64_t size) { return cut(fd, size); }

static int synced(int fd, int (*sync)(int)) {
    static uint64_t syncs;
    char name[NAME];
    uint64_t number = 0;
    pthread_mutex_lock(&lock);
    const char *known = name_of(fd);
    if (known) {
        snprintf(name, sizeof name, "%s", known);
        number = ++syncs;
        entry(SYNC_BEGUN, name, number, NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    int done = sync(fd), error = errno;
    if (known && done == 0) {
        pthread_mutex_lock(&lock);
        entry(SYNCED, name, number, NULL, 0);
        pthread_mutex_unlock(&lock);
    }
    errno = error;
    return done;
}

int fsync(int fd) { return synced(fd, REAL(fsync)); }
int fdatasync(int fd) { return synced(fd, REAL(fdatasync)); }

int unlink(const char *path) {
    pthread_mutex_lock(&lock);
    const char *name = below(path);
    int done = REAL(unlink)(path), error = errno;
    if (name && done == 0) entry(REMOVED, name, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    errno = error;
    return done;
}

int mkdir(const char *path, mode_t mode) {
    pthread_mutex_lock(&lock);
    const char *name = below(path);
    int done = REAL(mkdir)(path, mode), error = errno;
    if (name && done == 0) entry(FOLDER, name, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    errno = error;
    return done;
}

/* What nobody calls here, and would go unnoticed. */
static void unheard(const char *name, const char *call) {
    if (!name) return;
    fprintf(stderr, "shim: %s of %s is not written down\n", call, name);
    abort();
}

int rename(const char *from, const char *to) {
    unheard(below(from), "rename");
    unheard(below(to), "rename");
    return REAL(rename)(from, to);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    unheard(name_of(fd), "writev");
    return REAL(writev)(fd, parts, count);
}
int fallocate(int fd, int mode, off_t offset, off_t len) {
    unheard(name_of(fd), "fallocate");
    return REAL(fallocate)(fd, mode, offset, len);
}
int posix_fallocate(int fd, off_t offset, off_t len) {
    unheard(name_of(fd), "posix_fallocate");
    return REAL(posix_fallocate)(fd, offset, len);
}
