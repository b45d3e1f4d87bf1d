/* System calls that fail on demand, preloaded into a process: LD_PRELOAD=failing_calls.so.
 *
 * Calls of the C library on paths below one folder are counted; call number `at` gets `error`. The process says which
 * through arm() and disarm() (ctypes), or FAILING_CALLS="at:error:mode:kinds:folder" in its environment, at any time.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { ONCE, FROM_THEN_ON, DONE_ALL_THE_SAME, SHORT };     /* mode: only call `at`; it and all later ones; it is carried
                                                            out and fails (a server's lost answer); half is moved */
enum { CHANGES = 1, READS = 2, CLOSES = 4, MOVES = 8 };    /* kinds; MOVES: bytes, so that there can be half of them */
enum { GO, FAIL, FAIL_AFTER, HALF };

static char folder[4096], last[4200];
static int failing_at, error_number, how, disarmed;
static unsigned wanted;
static atomic_int seen, failed;

void arm(const char *under, int at, int error, int mode, unsigned kinds)
{
    failing_at = at, error_number = error, how = mode, wanted = kinds;
    seen = failed = 0;
    last[0] = 0;
    snprintf(folder, sizeof folder, "%s", under);
}

/* How many calls were counted since arm(). */
int disarm(void)
{
    folder[0] = 0;
    disarmed = 1;
    return seen;
}

/* The last call that failed, and on what. */
const char *what_failed(void)
{
    return last;
}

/* Whether any call is to fail: a process that forks others says so in the environment of one. */
static int armed(void)
{
    const char *text = folder[0] || disarmed ? NULL : getenv("FAILING_CALLS");
    int at, error, mode, start = 0;
    unsigned kinds;
    if (text && sscanf(text, "%d:%d:%d:%u:%n", &at, &error, &mode, &kinds, &start) == 4 && start)
        arm(text + start, at, error, mode, kinds);
    return folder[0] != 0;
}

static int is_below(const char *path)
{
    size_t length = strlen(folder);
    return length && !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

static int path_of(int fd, char *path, size_t size)
{
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t count = readlink(name, path, size - 1);
    path[count < 0 ? 0 : count] = 0;
    return count >= 0;
}

static int decide(const char *call, const char *path, unsigned kinds)
{
    if (!(kinds & wanted) || !is_below(path))
        return GO;
    int number = ++seen;
    if (number != failing_at && !(how == FROM_THEN_ON && number > failing_at))
        return GO;
    if (!failed++)
        snprintf(last, sizeof last, "%s(%s)", call, path);
    errno = error_number;
    if (how == SHORT)
        return HALF;
    return how == DONE_ALL_THE_SAME || (kinds & CLOSES) ? FAIL_AFTER : FAIL; /* what is closed is closed, whatever is said */
}

static int on_fd(const char *call, int fd, unsigned kinds)
{
    char path[4096];
    int before = errno;
    if (!armed() || !path_of(fd, path, sizeof path)) {
        errno = before;
        return GO;
    }
    errno = before;
    return decide(call, path, kinds);
}

static int on_path(const char *call, int base, const char *name, unsigned kinds)
{
    char path[8400];
    int before = errno;
    if (!armed() || !name)
        return GO;
    if (name[0] == '/') {
        snprintf(path, sizeof path, "%s", name);
    } else {
        if (base == AT_FDCWD ? !getcwd(path, 4096) : !path_of(base, path, 4096))
            path[0] = 0;
        if (name[0])
            snprintf(path + strlen(path), 4096, "/%s", name);
    }
    errno = before;
    return decide(call, path, kinds);
}

#define REAL(name) ((__typeof__(&name))next(#name))

static void *next(const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);
    for (const char **version = (const char *[]){"GLIBC_2.2.5", "GLIBC_2.17", NULL}; !found && *version; version++)
        found = dlvsym(RTLD_NEXT, name, *version); /* functions that only old binaries call have no other */
    if (!found)
        abort();
    return found;
}

/* what the answer becomes: `failure` is what this call says when it fails */
#define ANSWER(type, verdict, call, failure)                                                                           \
    do {                                                                                                               \
        int verdict_ = (verdict), error_ = errno;                                                                      \
        if (verdict_ == FAIL)                                                                                          \
            return (failure);                                                                                          \
        type answer_ = (call);                                                                                         \
        if (verdict_ != FAIL_AFTER)                                                                                    \
            return answer_;                                                                                            \
        (void)answer_;                                                                                                 \
        errno = error_;                                                                                                \
        return (failure);                                                                                              \
    } while (0)

static size_t half(int verdict, size_t size)
{
    return verdict == HALF && size > 1 ? size / 2 : size;
}

/* -- opening and closing ------------------------------------------------------------------------------------------ */

static unsigned kind_of(int flags)
{
    return flags & (O_CREAT | O_TRUNC) || (flags & O_ACCMODE) != O_RDONLY ? CHANGES : READS;
}

#define MODE_OF(flags)                                                                                                 \
    mode_t mode = 0;                                                                                                   \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                                                                             \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode = va_arg(rest, mode_t);                                                                                   \
        va_end(rest);                                                                                                  \
    }

static int opened(int verdict, int fd)  /* one that was opened and said not to be must not stay open here */
{
    int error = errno;
    if (verdict != FAIL_AFTER)
        return fd;
    if (fd >= 0)
        REAL(close)(fd);
    errno = fd >= 0 ? error_number : error;
    return -1;
}

#define OPENER(name)                                                                                                   \
    int name(const char *path, int flags, ...)                                                                         \
    {                                                                                                                  \
        MODE_OF(flags)                                                                                                 \
        int verdict = on_path(#name, AT_FDCWD, path, kind_of(flags));                                                  \
        return verdict == FAIL ? -1 : opened(verdict, REAL(name)(path, flags, mode));                                  \
    }
OPENER(open)
OPENER(open64)

#define OPENER_AT(name)                                                                                                \
    int name(int base, const char *path, int flags, ...)                                                               \
    {                                                                                                                  \
        MODE_OF(flags)                                                                                                 \
        int verdict = on_path(#name, base, path, kind_of(flags));                                                      \
        return verdict == FAIL ? -1 : opened(verdict, REAL(name)(base, path, flags, mode));                            \
    }
OPENER_AT(openat)
OPENER_AT(openat64)

int close(int fd)
{
    int flags = armed() ? fcntl(fd, F_GETFL) : -1;
    int writes = flags >= 0 && (flags & O_ACCMODE) != O_RDONLY;
    ANSWER(int, writes ? on_fd("close", fd, CLOSES) : GO, REAL(close)(fd), -1);
}

DIR *opendir(const char *path)
{
    return on_path("opendir", AT_FDCWD, path, READS) == FAIL ? NULL : REAL(opendir)(path);
}

/* -- moving bytes ------------------------------------------------------------------------------------------------- */

#define PLAIN(name, kind, type)                                                                                        \
    ssize_t name(int fd, type data, size_t size)                                                                       \
    {                                                                                                                  \
        int verdict = on_fd(#name, fd, (kind) | MOVES);                                                                \
        ANSWER(ssize_t, verdict, REAL(name)(fd, data, half(verdict, size)), -1);                                       \
    }
PLAIN(read, READS, void *)
PLAIN(write, CHANGES, const void *)

#define PLACED(name, kind, type, offset_type)                                                                          \
    ssize_t name(int fd, type data, size_t size, offset_type offset)                                                   \
    {                                                                                                                  \
        int verdict = on_fd(#name, fd, (kind) | MOVES);                                                                \
        ANSWER(ssize_t, verdict, REAL(name)(fd, data, half(verdict, size), offset), -1);                               \
    }
PLACED(pread, READS, void *, off_t)
PLACED(pread64, READS, void *, off64_t)
PLACED(pwrite, CHANGES, const void *, off_t)
PLACED(pwrite64, CHANGES, const void *, off64_t)

#define VECTOR2(name, kind)                                                                                            \
    ssize_t name(int fd, const struct iovec *parts, int count, off64_t offset, int flags)                              \
    {                                                                                                                  \
        int verdict = on_fd(#name, fd, (kind) | MOVES);                                                                \
        struct iovec first = parts[0];                                                                                 \
        first.iov_len = half(verdict, first.iov_len);                                                                  \
        if (verdict == HALF)                                                                                           \
            parts = &first, count = 1;                                                                                 \
        ANSWER(ssize_t, verdict, REAL(name)(fd, parts, count, offset, flags), -1);                                     \
    }
VECTOR2(preadv64v2, READS)
VECTOR2(pwritev64v2, CHANGES)

ssize_t copy_file_range(int from, off64_t *at, int to, off64_t *target, size_t size, unsigned flags)
{
    int verdict = on_fd("copy_file_range", to, CHANGES | MOVES);
    ANSWER(ssize_t, verdict, REAL(copy_file_range)(from, at, to, target, half(verdict, size), flags), -1);
}

#define SENDER(name, offset_type)                                                                                      \
    ssize_t name(int to, int from, offset_type *at, size_t size)                                                       \
    {                                                                                                                  \
        int verdict = on_fd(#name, to, CHANGES | MOVES);                                                               \
        ANSWER(ssize_t, verdict, REAL(name)(to, from, at, half(verdict, size)), -1);                                   \
    }
SENDER(sendfile, off_t)
SENDER(sendfile64, off64_t)

/* -- what a file has, and bringing it to the disk ----------------------------------------------------------------- */

#define SIZED(name, offset_type)                                                                                       \
    int name(int fd, offset_type size)                                                                                 \
    {                                                                                                                  \
        ANSWER(int, on_fd(#name, fd, CHANGES), REAL(name)(fd, size), -1);                                              \
    }
SIZED(ftruncate, off_t)
SIZED(ftruncate64, off64_t)

#define RESERVER(name, offset_type)                                                                                    \
    int name(int fd, int mode, offset_type start, offset_type size)                                                    \
    {                                                                                                                  \
        ANSWER(int, on_fd(#name, fd, CHANGES), REAL(name)(fd, mode, start, size), -1);                                 \
    }
RESERVER(fallocate, off_t)
RESERVER(fallocate64, off64_t)

#define POSIX_RESERVER(name, offset_type)                                                                              \
    int name(int fd, offset_type start, offset_type size)                                                              \
    {                                                                                                                  \
        ANSWER(int, on_fd(#name, fd, CHANGES), REAL(name)(fd, start, size), error_number);                             \
    }
POSIX_RESERVER(posix_fallocate, off_t)
POSIX_RESERVER(posix_fallocate64, off64_t)

#define OF_FD(name, kind) int name(int fd) { ANSWER(int, on_fd(#name, fd, kind), REAL(name)(fd), -1); }
OF_FD(fsync, CHANGES)
OF_FD(fdatasync, CHANGES)

int fchmod(int fd, mode_t mode)
{
    ANSWER(int, on_fd("fchmod", fd, CHANGES), REAL(fchmod)(fd, mode), -1);
}

int flock(int fd, int operation)
{
    ANSWER(int, on_fd("flock", fd, CHANGES), REAL(flock)(fd, operation), -1);
}

#define STATER(name, type)                                                                                             \
    int name(const char *path, type *facts)                                                                            \
    {                                                                                                                  \
        ANSWER(int, on_path(#name, AT_FDCWD, path, READS), REAL(name)(path, facts), -1);                               \
    }                                                                                                                  \
    int f##name(int fd, type *facts) { ANSWER(int, on_fd("f" #name, fd, READS), REAL(f##name)(fd, facts), -1); }       \
    int l##name(const char *path, type *facts)                                                                         \
    {                                                                                                                  \
        ANSWER(int, on_path("l" #name, AT_FDCWD, path, READS), REAL(l##name)(path, facts), -1);                        \
    }
STATER(stat, struct stat)
STATER(stat64, struct stat64)

/* the same, for what was built before glibc 2.33 */
#define OLD_STATER(name)                                                                                               \
    int __x##name(int version, const char *path, struct stat64 *facts)                                                 \
    {                                                                                                                  \
        ANSWER(int, on_path(#name, AT_FDCWD, path, READS), REAL(__x##name)(version, path, facts), -1);                 \
    }                                                                                                                  \
    int __fx##name(int version, int fd, struct stat64 *facts)                                                          \
    {                                                                                                                  \
        ANSWER(int, on_fd("f" #name, fd, READS), REAL(__fx##name)(version, fd, facts), -1);                            \
    }                                                                                                                  \
    int __lx##name(int version, const char *path, struct stat64 *facts)                                                \
    {                                                                                                                  \
        ANSWER(int, on_path("l" #name, AT_FDCWD, path, READS), REAL(__lx##name)(version, path, facts), -1);            \
    }
OLD_STATER(stat64)

#define STATER_AT(name, type)                                                                                          \
    int name(int base, const char *path, type *facts, int flags)                                                       \
    {                                                                                                                  \
        ANSWER(int, on_path(#name, base, path, READS), REAL(name)(base, path, facts, flags), -1);                      \
    }
STATER_AT(fstatat, struct stat)
STATER_AT(fstatat64, struct stat64)

/* -- names -------------------------------------------------------------------------------------------------------- */

#define OF_PATH(name) int name(const char *path) { ANSWER(int, on_path(#name, AT_FDCWD, path, CHANGES), REAL(name)(path), -1); }
OF_PATH(unlink)
OF_PATH(rmdir)
OF_PATH(remove)

int unlinkat(int base, const char *path, int flags)
{
    ANSWER(int, on_path("unlinkat", base, path, CHANGES), REAL(unlinkat)(base, path, flags), -1);
}

#define MODE_OF_PATH(name)                                                                                             \
    int name(const char *path, mode_t mode)                                                                            \
    {                                                                                                                  \
        ANSWER(int, on_path(#name, AT_FDCWD, path, CHANGES), REAL(name)(path, mode), -1);                              \
    }
MODE_OF_PATH(mkdir)
MODE_OF_PATH(chmod)

int mkdirat(int base, const char *path, mode_t mode)
{
    ANSWER(int, on_path("mkdirat", base, path, CHANGES), REAL(mkdirat)(base, path, mode), -1);
}

int fchmodat(int base, const char *path, mode_t mode, int flags)
{
    ANSWER(int, on_path("fchmodat", base, path, CHANGES), REAL(fchmodat)(base, path, mode, flags), -1);
}

#define TWO_PATHS(name)                                                                                                \
    int name(const char *from, const char *to)                                                                         \
    {                                                                                                                  \
        ANSWER(int, on_path(#name, AT_FDCWD, to, CHANGES), REAL(name)(from, to), -1);                                  \
    }
TWO_PATHS(rename)
TWO_PATHS(link)

int renameat(int base, const char *from, int to_base, const char *to)
{
    ANSWER(int, on_path("renameat", to_base, to, CHANGES), REAL(renameat)(base, from, to_base, to), -1);
}

int renameat2(int base, const char *from, int to_base, const char *to, unsigned flags)
{
    ANSWER(int, on_path("renameat2", to_base, to, CHANGES), REAL(renameat2)(base, from, to_base, to, flags), -1);
}
