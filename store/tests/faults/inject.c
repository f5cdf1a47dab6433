/* Faults of the operating system, for the tests: a library for LD_PRELOAD.
 *
 * Every call that changes something below CUSTODY_FAULT_DIR is counted (a "write
 * boundary"; RocksDB's own diary LOG is left out). At the CUSTODY_FAULT_AT-th one
 * happens what CUSTODY_FAULT says:
 *
 *   kill            the process dies before the call
 *   torn            a write writes its first half, and the process dies
 *   after           the process dies after the call
 *   cut             the power fails before the call: of what was not synced a part
 *                   is lost, by CUSTODY_FAULT_SEED: bytes, and files made, renamed
 *                   or removed since their directory was synced
 *   eio, eio-once   the call fails, and all after it or none
 *   enospc          the disk is full from there on; the first write is cut short
 *   fsync-eio-once  counts syncs only: the sync fails, and what was not synced is
 *                   gone, as when a kernel drops the pages that it could not write
 *   slow            every sync takes 20 ms longer
 *
 * At exit the counts are written to CUSTODY_FAULT_REPORT: boundaries, syncs, and
 * the numbers of the boundaries that put a new `checkpoint` in place.
 * One lock is held over every call, so that after the fault nothing more happens.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define FILES_MAX 8192
#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

enum mode { NONE, KILL, TORN, AFTER, CUT, EIO_ON, EIO_ONCE, NO_SPACE, SYNC_EIO_ONCE, SLOW };
enum what { PASS, HALF_AND_DIE, DIE_AFTER, FAIL, SHORT, DROP };
enum kind { GROWS, SYNCS, NAMES };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static enum mode mode;
static char root[PATH_MAX];
static long at, boundaries, syncs, undo_names;
static unsigned long long seed;

/* Boundaries at which a checkpoint was put in place. */
static long signings[FILES_MAX];
static int signings_len;

/* What of each file survives a power cut. */
static struct file { dev_t dev; ino_t ino; off_t synced; int fd; } files[FILES_MAX];
static int files_len;

/* What of the directories does not: names changed since the directory was synced. */
static struct change { char path[PATH_MAX], from[PATH_MAX], backup[PATH_MAX], dir[PATH_MAX]; int made_dir; } *changes;
static int changes_len;

__attribute__((constructor)) static void start(void) {
    static const char *names[] = {"", "kill", "torn", "after", "cut", "eio", "eio-once", "enospc", "fsync-eio-once", "slow"};
    const char *dir = getenv("CUSTODY_FAULT_DIR"), *fault = getenv("CUSTODY_FAULT");
    const char *number = getenv("CUSTODY_FAULT_AT"), *random = getenv("CUSTODY_FAULT_SEED");
    if (!dir || !realpath(dir, root)) return;
    for (unsigned i = 0; fault && i < sizeof names / sizeof *names; i++)
        if (!strcmp(fault, names[i])) mode = i;
    at = number ? atol(number) : 0;
    seed = random ? strtoull(random, 0, 10) : 0;
    changes = calloc(FILES_MAX, sizeof *changes);
}

__attribute__((destructor)) static void finish(void) {
    const char *report = getenv("CUSTODY_FAULT_REPORT");
    FILE *file = report ? fopen(report, "w") : 0;
    if (!file) return;
    fprintf(file, "%ld %ld", boundaries, syncs);
    for (int i = 0; i < signings_len; i++) fprintf(file, " %ld", signings[i]);
    fclose(file);
}

static unsigned long long draw(unsigned long long below) {
    seed += 0x9e3779b97f4a7c15ull;
    unsigned long long z = seed;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return (z ^ (z >> 31)) % below;
}

__attribute__((noreturn)) static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static int ours(const char *path) {
    size_t len = strlen(root);
    if (!len || strncmp(path, root, len) || (path[len] && path[len] != '/')) return 0;
    const char *name = strrchr(path, '/') + 1;
    return strncmp(name, "LOG", 3) || (name[3] && name[3] != '.');
}

static int path_of(int fd, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, out, PATH_MAX - 1);
    out[len > 0 ? len : 0] = 0;
    return len > 0;
}

static int ours_fd(int fd) {
    char path[PATH_MAX];
    int before = errno, is = root[0] && path_of(fd, path) && ours(path);
    errno = before;
    return is;
}

/* The path as the kernel has it; its directory must exist. */
static int resolve(int dirfd, const char *path, char *out) {
    char joined[PATH_MAX * 2], base[PATH_MAX], dir[PATH_MAX];
    if (!root[0] || !path) return 0;
    if (path[0] == '/' || dirfd == AT_FDCWD) snprintf(joined, sizeof joined, "%s", path);
    else if (path_of(dirfd, base)) snprintf(joined, sizeof joined, "%s/%s", base, path);
    else return 0;
    char *slash = strrchr(joined, '/');
    const char *name = slash ? slash + 1 : joined;
    if (slash) *slash = 0;
    if (!realpath(slash ? (slash == joined ? "/" : joined) : ".", dir)) return 0;
    return snprintf(out, PATH_MAX, "%s/%s", dir, name) < PATH_MAX && ours(out);
}

static struct file *file_of(int fd) {
    struct stat st;
    if (fstat(fd, &st) || !S_ISREG(st.st_mode)) return 0;
    for (int i = 0; i < files_len; i++)
        if (files[i].ino == st.st_ino && files[i].dev == st.st_dev) return &files[i];
    if (files_len == FILES_MAX) abort();
    int kept = fcntl(fd, F_DUPFD_CLOEXEC, 200);
    files[files_len] = (struct file){st.st_dev, st.st_ino, st.st_size, kept};
    return &files[files_len++];
}

static off_t size_of(int fd) {
    struct stat st;
    return fstat(fd, &st) ? 0 : st.st_size;
}

static void shrunk(int fd) {
    struct file *file = file_of(fd);
    if (file && size_of(fd) < file->synced) file->synced = size_of(fd);
}

static void cut_file(struct file *file) {
    REAL(ftruncate);
    off_t size = size_of(file->fd), lost = size - file->synced;
    if (lost <= 0) return;
    off_t kept = file->synced + (draw(2) ? (off_t)draw(lost + 1) : 0);
    real(file->fd, kept);
    /* The length was written, the bytes were not. RocksDB stops at a MANIFEST with such
     * a tail; ext4 (ordered) and XFS write lengths after bytes, so it is left out. */
    char path[PATH_MAX];
    if (draw(3) == 0 && path_of(file->fd, path) && !strstr(path, "/MANIFEST-")) real(file->fd, size);
}

/* Takes back the newest changes of names, as many as the seed says. */
static void cut_names(void) {
    int (*move)(const char *, const char *) = (__typeof__(&rename))dlsym(RTLD_NEXT, "rename");
    int (*take)(const char *) = (__typeof__(&unlink))dlsym(RTLD_NEXT, "unlink");
    int keep = draw(2) ? 0 : (int)draw(changes_len + 1);
    while (changes_len > keep) {
        struct change *last = &changes[--changes_len];
        if (last->from[0]) move(last->path, last->from);
        else if (last->made_dir) move(last->path, last->backup);
        else if (!last->backup[0]) take(last->path);
        if (last->backup[0] && !last->made_dir) move(last->backup, last->path);
    }
}

__attribute__((noreturn)) static void power_cut(void) {
    for (int i = 0; i < files_len; i++) cut_file(&files[i]);
    cut_names();
    die();
}

static void directory(const char *path, char *out) {
    snprintf(out, PATH_MAX, "%s", path);
    *strrchr(out, '/') = 0;
}

/* Notes that `path` was made, removed, or (with `from`) renamed to, before that is done. */
static void note(const char *path, const char *from, int made_dir) {
    if (mode != CUT) return;
    if (changes_len == FILES_MAX) abort();
    struct change *change = &changes[changes_len++];
    memset(change, 0, sizeof *change);
    snprintf(change->path, PATH_MAX, "%s", path);
    directory(path, change->dir);
    if (from) snprintf(change->from, PATH_MAX, "%s", from);
    char backup[PATH_MAX];
    change->made_dir = made_dir;
    if (snprintf(backup, PATH_MAX, "%s.undo/%d.%ld", root, getpid(), undo_names++) < PATH_MAX
        && (made_dir || !link(path, backup))) snprintf(change->backup, PATH_MAX, "%s", backup);
}

static void forget_changes_in(const char *dir) {
    int kept = 0;
    for (int i = 0; i < changes_len; i++)
        if (strcmp(changes[i].dir, dir)) changes[kept++] = changes[i];
    changes_len = kept;
}

static void synced(int fd) {
    char path[PATH_MAX];
    struct stat st;
    if (fstat(fd, &st)) return;
    if (S_ISDIR(st.st_mode) && path_of(fd, path)) forget_changes_in(path);
    struct file *file = file_of(fd);
    if (file) file->synced = st.st_size;
}

static void drop_unsynced(int fd) {
    REAL(ftruncate);
    struct file *file = file_of(fd);
    if (file && size_of(fd) > file->synced) real(fd, file->synced);
}

/* Counts a call and says what becomes of it. The lock is held. */
static enum what arrive(enum kind kind) {
    boundaries++;
    syncs += kind == SYNCS;
    long n = mode == SYNC_EIO_ONCE ? (kind == SYNCS ? syncs : -1) : boundaries;
    if (mode == NO_SPACE && n >= at && kind == GROWS) return n == at ? SHORT : FAIL;
    if (mode == EIO_ON && n >= at) return FAIL;
    if (n != at) return PASS;
    switch (mode) {
    case KILL: die();
    case CUT: power_cut();
    case TORN: return HALF_AND_DIE;
    case AFTER: return DIE_AFTER;
    case EIO_ONCE: return FAIL;
    case SYNC_EIO_ONCE: return DROP;
    default: return PASS;
    }
}

static void leave(enum what what) {
    int error = errno;
    if (what == DIE_AFTER || what == HALF_AND_DIE) die();
    pthread_mutex_unlock(&lock);
    errno = error;
}

static long failed(void) {
    errno = mode == NO_SPACE ? ENOSPC : EIO;
    return -1;
}

/* `call` uses `n`, the bytes to write. */
#define WRITES(type, fd, size, call)                                   \
    if (!ours_fd(fd)) { size_t n = size; (void)n; return call; }       \
    pthread_mutex_lock(&lock);                                         \
    enum what what = arrive(GROWS);                                    \
    size_t n = what == HALF_AND_DIE || what == SHORT ? (size) / 2 : (size); \
    type result = what == FAIL || (what == SHORT && !n) ? failed() : (file_of(fd), call); \
    leave(what);                                                       \
    return result;

/* A call without bytes; `before` is done when it is not to fail. */
#define CALLS(kind, before, call)                                      \
    pthread_mutex_lock(&lock);                                         \
    enum what what = arrive(kind);                                     \
    if (what == HALF_AND_DIE) die();                                   \
    int result = what == FAIL || what == SHORT ? (int)failed() : (before, call); \
    leave(what);                                                       \
    return result;

ssize_t write(int fd, const void *bytes, size_t size) {
    REAL(write);
    WRITES(ssize_t, fd, size, real(fd, bytes, n))
}

ssize_t pwrite(int fd, const void *bytes, size_t size, off_t offset) {
    REAL(pwrite);
    WRITES(ssize_t, fd, size, real(fd, bytes, n, offset))
}

ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t offset) {
    REAL(pwrite64);
    WRITES(ssize_t, fd, size, real(fd, bytes, n, offset))
}

/* Vectors are cut by whole buffers: half of them, never a part of one. */
ssize_t writev(int fd, const struct iovec *vector, int count) {
    REAL(writev);
    WRITES(ssize_t, fd, (size_t)count, real(fd, vector, (int)n))
}

ssize_t pwritev(int fd, const struct iovec *vector, int count, off_t offset) {
    REAL(pwritev);
    WRITES(ssize_t, fd, (size_t)count, real(fd, vector, (int)n, offset))
}

ssize_t pwritev64(int fd, const struct iovec *vector, int count, off64_t offset) {
    REAL(pwritev64);
    WRITES(ssize_t, fd, (size_t)count, real(fd, vector, (int)n, offset))
}

static int sync_fd(int fd, int (*real)(int)) {
    if (!ours_fd(fd)) return real(fd);
    if (mode == SLOW) usleep(20000);
    pthread_mutex_lock(&lock);
    enum what what = arrive(SYNCS);
    if (what == HALF_AND_DIE) die();
    int result = -1;
    if (what == FAIL) failed();
    else if (what == DROP) drop_unsynced(fd), failed();
    else if (!(result = real(fd))) synced(fd);
    leave(what);
    return result;
}

int fsync(int fd) {
    REAL(fsync);
    return sync_fd(fd, real);
}

int fdatasync(int fd) {
    REAL(fdatasync);
    return sync_fd(fd, real);
}

int sync_file_range(int fd, off64_t offset, off64_t size, unsigned flags) {
    REAL(sync_file_range);
    if (!ours_fd(fd)) return real(fd, offset, size, flags);
    CALLS(NAMES, (void)0, real(fd, offset, size, flags))
}

static int ftruncate_fd(int fd, off64_t size, int (*real)(int, off64_t)) {
    if (!ours_fd(fd)) return real(fd, size);
    pthread_mutex_lock(&lock);
    enum what what = arrive(NAMES);
    if (what == HALF_AND_DIE) die();
    int result = what == FAIL ? (int)failed() : (file_of(fd), real(fd, size));
    shrunk(fd);
    leave(what);
    return result;
}

int ftruncate(int fd, off_t size) {
    REAL(ftruncate);
    return ftruncate_fd(fd, size, real);
}

int ftruncate64(int fd, off64_t size) {
    REAL(ftruncate64);
    return ftruncate_fd(fd, size, real);
}

int fallocate(int fd, int how, off_t offset, off_t size) {
    REAL(fallocate);
    if (!ours_fd(fd)) return real(fd, how, offset, size);
    CALLS(GROWS, file_of(fd), real(fd, how, offset, size))
}

int fallocate64(int fd, int how, off64_t offset, off64_t size) {
    REAL(fallocate64);
    if (!ours_fd(fd)) return real(fd, how, offset, size);
    CALLS(GROWS, file_of(fd), real(fd, how, offset, size))
}

static int renamed(const char *to, int result) {
    if (!strcmp(strrchr(to, '/'), "/checkpoint") && signings_len < FILES_MAX) signings[signings_len++] = boundaries;
    return result;
}

int rename(const char *from, const char *to) {
    REAL(rename);
    char a[PATH_MAX], b[PATH_MAX];
    if (!resolve(AT_FDCWD, from, a) || !resolve(AT_FDCWD, to, b)) return real(from, to);
    CALLS(NAMES, note(b, a, 0), renamed(b, real(from, to)))
}

int unlink(const char *path) {
    REAL(unlink);
    char resolved[PATH_MAX];
    if (!resolve(AT_FDCWD, path, resolved)) return real(path);
    CALLS(NAMES, note(resolved, 0, 0), real(path))
}

int mkdir(const char *path, mode_t bits) {
    REAL(mkdir);
    char resolved[PATH_MAX];
    struct stat st;
    if (!resolve(AT_FDCWD, path, resolved) || !stat(resolved, &st)) return real(path, bits);
    CALLS(GROWS, note(resolved, 0, 1), real(path, bits))
}

/* A file that is opened for writing is known from then on; making one is a boundary. */
static int open_at(int dirfd, const char *path, int flags, mode_t bits, int (*real)(int, const char *, int, ...)) {
    char resolved[PATH_MAX];
    if ((flags & O_ACCMODE) == O_RDONLY || !resolve(dirfd, path, resolved)) return real(dirfd, path, flags, bits);
    struct stat st;
    int makes = (flags & O_CREAT) && stat(resolved, &st);
    pthread_mutex_lock(&lock);
    enum what what = makes ? arrive(GROWS) : PASS;
    if (what == HALF_AND_DIE) die();
    int fd;
    if (what == FAIL || what == SHORT) fd = (int)failed();
    else {
        if (makes) note(resolved, 0, 0);
        fd = real(dirfd, path, flags, bits);
    }
    if (fd >= 0) file_of(fd), shrunk(fd);
    leave(what);
    return fd;
}

#define BITS(flags, last)                                              \
    mode_t bits = 0;                                                   \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                             \
        va_list list;                                                  \
        va_start(list, last);                                          \
        bits = va_arg(list, mode_t);                                   \
        va_end(list);                                                  \
    }

int openat(int dirfd, const char *path, int flags, ...) {
    REAL(openat);
    BITS(flags, flags)
    return open_at(dirfd, path, flags, bits, real);
}

int openat64(int dirfd, const char *path, int flags, ...) {
    REAL(openat64);
    BITS(flags, flags)
    return open_at(dirfd, path, flags, bits, real);
}

int open(const char *path, int flags, ...) {
    int (*real)(int, const char *, int, ...) = (__typeof__(&openat))dlsym(RTLD_NEXT, "openat");
    BITS(flags, flags)
    return open_at(AT_FDCWD, path, flags, bits, real);
}

int open64(const char *path, int flags, ...) {
    int (*real)(int, const char *, int, ...) = (__typeof__(&openat64))dlsym(RTLD_NEXT, "openat64");
    BITS(flags, flags)
    return open_at(AT_FDCWD, path, flags, bits, real);
}
