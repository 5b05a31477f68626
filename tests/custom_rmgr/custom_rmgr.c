/*
 * An extension with a resource manager of its own, for tests: custom_rmgr_write(rel, block, offset, bytes) writes bytes over those of a page and
 * logs that in a record that nobody but this library can apply. From PostgreSQL 15 on (access/xlog_internal.h, RegisterCustomRmgr).
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "access/xloginsert.h"
#include "access/xlogutils.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/rel.h"

#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

PG_MODULE_MAGIC;
PG_FUNCTION_INFO_V1(custom_rmgr_write);
void _PG_init(void);

#define CUSTOM_WRITE 0x10

/* Set when recovery begins, as some resource managers make what they need then. */
static bool is_started;

static void
check_place(int32 offset, Size len)
{
    if (offset < (int32) SizeOfPageHeaderData || offset > BLCKSZ || len > (Size) (BLCKSZ - offset))
        elog(ERROR, "%zu bytes at %d are not on the page", len, offset);
}

static void
custom_redo(XLogReaderState *record)
{
    XLogRecPtr end_lsn = record->EndRecPtr;
    Buffer buffer;

    if (!is_started)
        elog(PANIC, "redo before startup");
    if ((XLogRecGetInfo(record) & ~XLR_INFO_MASK) != CUSTOM_WRITE)
        elog(PANIC, "unknown operation");
    if (XLogReadBufferForRedo(record, 0, &buffer) == BLK_NEEDS_REDO)
    {
        Size len;
        char *bytes = XLogRecGetBlockData(record, 0, &len);
        Page page = BufferGetPage(buffer);
        int32 offset;

        memcpy(&offset, XLogRecGetData(record), sizeof(offset));
        check_place(offset, len);
        memcpy((char *) page + offset, bytes, len);
        PageSetLSN(page, end_lsn);
        MarkBufferDirty(buffer);
    }
    if (BufferIsValid(buffer))
        UnlockReleaseBuffer(buffer);
}

static void
custom_desc(StringInfo text, XLogReaderState *record)
{
}

static const char *
custom_identify(uint8 info)
{
    return (info & ~XLR_INFO_MASK) == CUSTOM_WRITE ? "WRITE" : NULL;
}

static void
custom_startup(void)
{
    is_started = true;
}

static const RmgrData custom_rmgr = {
    .rm_name = "custom_rmgr",
    .rm_redo = custom_redo,
    .rm_desc = custom_desc,
    .rm_identify = custom_identify,
    .rm_startup = custom_startup,
};

void
_PG_init(void)
{
    if (process_shared_preload_libraries_in_progress)
        RegisterCustomRmgr(RM_EXPERIMENTAL_ID, (RmgrData *) &custom_rmgr);
}

Datum
custom_rmgr_write(PG_FUNCTION_ARGS)
{
    int32 offset = PG_GETARG_INT32(2);
    bytea *bytes = PG_GETARG_BYTEA_PP(3);
    Size len = VARSIZE_ANY_EXHDR(bytes);
    Relation rel;
    Buffer buffer;
    Page page;
    XLogRecPtr end_lsn;

    check_place(offset, len);
    rel = relation_open(PG_GETARG_OID(0), RowExclusiveLock);
    buffer = ReadBuffer(rel, PG_GETARG_INT32(1));
    LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
    page = BufferGetPage(buffer);
    START_CRIT_SECTION();
    memcpy((char *) page + offset, VARDATA_ANY(bytes), len);
    MarkBufferDirty(buffer);
    XLogBeginInsert();
    XLogRegisterBuffer(0, buffer, REGBUF_STANDARD);
    XLogRegisterData((char *) &offset, sizeof(offset));
    XLogRegisterBufData(0, VARDATA_ANY(bytes), len);
    end_lsn = XLogInsert(RM_EXPERIMENTAL_ID, CUSTOM_WRITE);
    PageSetLSN(page, end_lsn);
    END_CRIT_SECTION();
    UnlockReleaseBuffer(buffer);
    relation_close(rel, RowExclusiveLock);
    PG_RETURN_VOID();
}
