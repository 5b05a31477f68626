/*
 * Turns an unmodified `postgres --single` into a server of WAL redo.
 *
 * Loaded with shared_preload_libraries, it takes over in shmem_startup_hook and never returns: by then shared memory
 * and the buffer pool exist, and nothing has been read but the control file: no recovery, no catalogs, no transaction,
 * and the prompt that would own standard input and output is never reached. PostgreSQL 14 loads no libraries in
 * single-user mode: there it is loaded with LD_PRELOAD, and PAGESERVER_REDO_PRELOAD in the environment says so.
 *
 * Requests follow each other: nothing of one is left when the next begins. An error is an answer. So is a PANIC, which
 * we leave with a jump where PostgreSQL would abort; a bounded number of times, then the process ends itself.
 */
#include "redo.h"

#include <locale.h>
#include <signal.h>
#include <sys/ipc.h>
#include <sys/shm.h>
#include <time.h>
#include <unistd.h>

#include "access/rmgr.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "access/xlogutils.h"
#if PG_VERSION_NUM >= 150000
#include "access/xlogrecovery.h"
#endif
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/pg_shmem.h"
#include "storage/proc.h"
#include "storage/smgr.h"
#include "storage/sync.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "compat.h"

/* Everything else is hidden, so that no name of ours can meet one of the server's. Up to 15 PGDLLEXPORT says nothing. */
#pragma GCC visibility push(default)
#ifdef PG_MODULE_MAGIC_EXT
PG_MODULE_MAGIC_EXT(.name = "pageserver_redo");
#else
PG_MODULE_MAGIC;
#endif
extern PGDLLEXPORT void _PG_init(void);
#pragma GCC visibility pop

/* After so many survived PANICs the process ends; its successor is ready in a hundredth of a second. */
#define PANICS_MAX 1000
#define ERROR_TEXT_BYTES 512

volatile uint64 request_sequence;
volatile bool request_running;

static shmem_startup_hook_type next_hook;
static bool panicked;
static char panic_text[ERROR_TEXT_BYTES];
static uint32 panic_count;

/* Runs before PostgreSQL would abort() or exit: jumps to the PG_CATCH of the request instead. */
static void
on_log(ErrorData *error)
{
    if (error->elevel < FATAL || PG_exception_stack == NULL)
        return;
    snprintf(panic_text, sizeof(panic_text), "%s", error->message != NULL ? error->message : "no message");
    panicked = true;
    siglongjmp(*PG_exception_stack, 1);
}

/* Leaves no lock, pin, page or error behind. The text of the error goes to `text`. */
static ReplyStatus
recover(char *text, size_t size)
{
    ReplyStatus status = REPLY_REFUSED;
    size_t used;

    MemoryContextSwitchTo(TopMemoryContext);
    apply_describe_current(text, size);
    used = strlen(text);
    if (panicked)
    {
        panicked = false;
        panic_count++;
        status = REPLY_PANICKED;
        snprintf(text + used, size - used, "%s", panic_text);
    }
    else
    {
        ErrorData *error = CopyErrorData();

        snprintf(text + used, size - used, "%s", error->message != NULL ? error->message : "no message");
        FreeErrorData(error);
    }
    FlushErrorState();
    InterruptHoldoffCount = 0;
    QueryCancelHoldoffCount = 0;
    CritSectionCount = 0;
    error_context_stack = NULL;
    LWLockReleaseAll();
    UnlockBuffers();
    /* From 17 a plain ResourceOwnerRelease() leaves the owner unusable; this one ends in a usable state everywhere. */
    CurrentResourceOwner = AuxProcessResourceOwner;
    ReleaseAuxProcessResources(false);
    apply_reset();
    return status;
}

static void
serve_one(void)
{
    FrameHeader header;
    const char *body = wire_next_request(&header);
    char *image = wire_page_room();
    volatile ReplyStatus status = REPLY_PAGE;
    char text[ERROR_TEXT_BYTES + 128];

    request_sequence++;
    request_running = true;
    PG_TRY();
    {
        if (header.type_or_status != REQUEST_TYPE_REDO)
            elog(ERROR, "unknown type of request %u", header.type_or_status);
        apply_request(body, header.body_len, image);
    }
    PG_CATCH();
    {
        status = recover(text, sizeof(text));
    }
    PG_END_TRY();
    request_running = false;

    if (status == REPLY_PAGE)
        wire_reply_page(header.id);
    else
        wire_reply_text(header.id, status, text);
    if (panic_count >= PANICS_MAX)
    {
        wire_flush();
        _exit(EXIT_WORN);
    }
    wire_flush_if_idle();
}

/* PostgreSQL blocks signals and handles some; nothing is left here for which that would make sense. */
static void
default_signals(void)
{
    sigset_t none;

    signal(SIGTERM, SIG_DFL);
    signal(SIGINT, SIG_DFL);
    signal(SIGHUP, SIG_DFL);
    signal(SIGQUIT, SIG_DFL);
    signal(SIGFPE, SIG_DFL);
    signal(SIGPIPE, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/*
 * The interlock segment is the one thing that would outlive a kill. Marked for removal it goes with the process.
 * UsedShmemSegID holds the key, not the id.
 */
static void
remove_interlock_segment(void)
{
    int id = shmget((key_t) UsedShmemSegID, 0, 0);

    if (id >= 0)
        shmctl(id, IPC_RMID, NULL);
}

static void
start_backend(void)
{
    InitProcess();
#if PG_VERSION_NUM >= 150000
    BaseInit();
#else
    /* BaseInit() of 14 creates shared memory, which is what called us: only its other parts. */
    InitFileAccess();
    InitSync();
    smgrinit();
    InitBufferPoolAccess();
#endif
    CreateAuxProcessResourceOwner();
    SetProcessingMode(NormalProcessing);

    InRecovery = true;
    standbyState = STANDBY_DISABLED;
    reachedConsistency = false; /* else the first page of zeroes would be a PANIC */
    MemoryContextSwitchTo(TopMemoryContext);
#if PG_VERSION_NUM >= 150000
    RmgrStartup();
#else
    for (int rmid = 0; rmid <= RM_MAX_ID; rmid++)
        if (RmgrTable[rmid].rm_startup != NULL)
            RmgrTable[rmid].rm_startup();
#endif
}

/* Errors must not look for message catalogues later on, when there is no way to open one. */
static void
warm_up(void)
{
    setlocale(LC_ALL, "C");
    tzset();
    PG_TRY();
    {
        elog(ERROR, "warm-up");
    }
    PG_CATCH();
    {
        FlushErrorState();
    }
    PG_END_TRY();
    page_put(0, MAIN_FORKNUM, 0, NULL);
    pages_drop_all();
}

static void
say_hello(void)
{
    Hello hello = {
        .magic = HELLO_MAGIC,
        .protocol = PROTOCOL_VERSION,
        .pg_major = PG_VERSION_NUM / 10000,
        .pg_version_num = PG_VERSION_NUM,
        .page_size = BLCKSZ,
        .body_bytes_max = BODY_BYTES_MAX,
        .flags = (DataChecksumsEnabled() ? 1 : 0) | (wal_log_hints ? 2 : 0),
        .pid = getpid(),
    };

    wire_send_hello(&hello);
}

static void
take_over(void)
{
    if (next_hook != NULL)
        next_hook();
    default_signals();
    remove_interlock_segment();
    start_backend();
    pages_init();
    apply_init();
    wire_init();
    warm_up();
    sandbox_close_descriptors();
    sandbox_limits();
    sandbox_enter();
    emit_log_hook = on_log;
    say_hello();
    for (;;)
        serve_one();
}

void
_PG_init(void)
{
    if (shmem_startup_hook == take_over)
        return;
    next_hook = shmem_startup_hook;
    shmem_startup_hook = take_over;
}

__attribute__((constructor)) static void
preloaded(void)
{
    if (getenv("PAGESERVER_REDO_PRELOAD") != NULL)
        _PG_init();
}
