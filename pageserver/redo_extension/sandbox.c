/*
 * What this process may still do once it takes requests: read, write, have memory, end.
 *
 * WAL may come from a hostile primary, and redo trusts WAL: whoever writes records can take over this process. So it
 * holds nothing worth having: no descriptor but its pipes, no system call beyond the few below, no new privileges.
 * A call outside the list kills it, which is loud and harmless: the page server starts another.
 */
#include "redo.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#if defined(__x86_64__)
#define OUR_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define OUR_ARCH AUDIT_ARCH_AARCH64
#else
#error "the seccomp filter knows x86-64 and aarch64"
#endif

/* A request of the longest body, its decoded copy and PostgreSQL itself fit several times. */
#define ADDRESS_SPACE_BYTES (1024UL * 1024 * 1024)
/* Processor time that one request may use before the process ends itself; the page server has given up long before. */
#define STUCK_TICK_SECONDS 10
#define STUCK_TICKS 12

static volatile int stuck_ticks;
static volatile uint64 stuck_sequence;

/* Ticks in processor time of this process: an idle one never wakes up for it. */
static void
stuck_tick(int signo)
{
    if (!request_running || request_sequence != stuck_sequence)
    {
        stuck_sequence = request_sequence;
        stuck_ticks = 0;
    }
    else if (++stuck_ticks >= STUCK_TICKS)
        _exit(EXIT_STUCK);
}

static void
limit(int resource, rlim_t value)
{
    struct rlimit both = {.rlim_cur = value, .rlim_max = value};

    if (setrlimit(resource, &both) != 0)
        elog(FATAL, "cannot set resource limit %d: %m", resource);
}

void
sandbox_limits(void)
{
    struct itimerval tick = {.it_interval = {.tv_sec = STUCK_TICK_SECONDS}, .it_value = {.tv_sec = STUCK_TICK_SECONDS}};
    struct sigaction action;

    limit(RLIMIT_CORE, 0);
    limit(RLIMIT_AS, ADDRESS_SPACE_BYTES);
    limit(RLIMIT_FSIZE, 0);
    limit(RLIMIT_NOFILE, 3);
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0)
        elog(FATAL, "cannot forbid core dumps: %m");

    memset(&action, 0, sizeof(action));
    action.sa_handler = stuck_tick;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGPROF, &action, NULL) != 0 || setitimer(ITIMER_PROF, &tick, NULL) != 0)
        elog(FATAL, "cannot set the watchdog's timer: %m");
}

/*
 * Everything but the three pipes, the files of the fake relations included: a read that should not be fails then, it
 * does not give a page of zeroes.
 */
void
sandbox_close_descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    long limit_no = sysconf(_SC_OPEN_MAX);
    long highest = limit_no > 0 && limit_no < 65536 ? limit_no : 65536;

    if (dir != NULL)
    {
        struct dirent *entry;

        highest = 2;
        while ((entry = readdir(dir)) != NULL)
            highest = Max(highest, atol(entry->d_name));
        closedir(dir);
    }
    for (long fd = 3; fd <= highest; fd++)
        close((int) fd);
}

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define RETURN(what) BPF_STMT(BPF_RET | BPF_K, (what))
#define ON(nr, what) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (nr), 0, 1), RETURN(what)
#define ALLOW(nr) ON(nr, SECCOMP_RET_ALLOW)
#define DENY(nr) ON(nr, SECCOMP_RET_ERRNO | EPERM)
#define ABSENT(nr) ON(nr, SECCOMP_RET_ERRNO | ENOENT)

void
sandbox_enter(void)
{
    struct sock_filter filter[] = {
        LOAD(arch),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, OUR_ARCH, 1, 0),
        RETURN(SECCOMP_RET_KILL_PROCESS),
        LOAD(nr),
        ALLOW(SYS_read),
        ALLOW(SYS_write),
        ALLOW(SYS_brk),
        ALLOW(SYS_munmap),
        ALLOW(SYS_mremap),
        ALLOW(SYS_madvise),
        ALLOW(SYS_exit_group),
        ALLOW(SYS_exit),
        ALLOW(SYS_rt_sigreturn),
        ALLOW(SYS_rt_sigprocmask),
        ALLOW(SYS_restart_syscall),
        ALLOW(SYS_clock_gettime),
        ALLOW(SYS_gettimeofday),
        /* abort() */
        ALLOW(SYS_getpid),
        ALLOW(SYS_gettid),
        ALLOW(SYS_tgkill),
        /* heap_xlog_inplace() of 18 removes pg_internal.init; anything but "no such file" is an error there */
#ifdef SYS_unlink
        ABSENT(SYS_unlink),
#endif
        ABSENT(SYS_unlinkat),
        /* lazy look-ups of the C library (message catalogues, time zones): refused, not fatal */
#ifdef SYS_open
        DENY(SYS_open),
        DENY(SYS_stat),
        DENY(SYS_access),
        DENY(SYS_readlink),
#endif
        DENY(SYS_openat),
        DENY(SYS_newfstatat),
        DENY(SYS_fstat),
        DENY(SYS_faccessat),
        DENY(SYS_readlinkat),
        DENY(SYS_lseek),
        DENY(SYS_close),
        DENY(SYS_prctl),
        /* reads of relation files, which there are none of */
        DENY(SYS_pread64),
        DENY(SYS_preadv),
        /* memory, but none to run code from */
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 1, 0),
        RETURN(SECCOMP_RET_KILL_PROCESS),
        LOAD(args[2]), /* the low half: both architectures are little-endian */
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, PROT_EXEC, 0, 1),
        RETURN(SECCOMP_RET_KILL_PROCESS),
        RETURN(SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = lengthof(filter), .filter = filter};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        elog(FATAL, "cannot give up privileges: %m");
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
        elog(FATAL, "cannot enter the sandbox: %m");
}
