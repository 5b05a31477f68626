/*
 * Records onto one page: decode, rename what they refer to, hide all but the target, call the resource manager.
 *
 * Only what changes relation pages is let through, and only onto a page that the record really touches. What a record
 * says of other blocks is made harmless in one of two ways:
 * - a block that redo would read is poisoned (pages.c), so redo leaves it alone;
 * - a block that the record initialises is built by redo in a scratch page and dropped. For that the record must still
 *   have its data; where an empty stand-in does as well it may have been cut off.
 */
#include "redo.h"

#include "access/generic_xlog.h"
#include "access/gin_private.h"
#include "access/ginxlog.h"
#include "access/gistxlog.h"
#include "access/rmgr.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "access/xlogrecord.h"
#include "access/xlogutils.h"
#include "catalog/pg_control.h"
#include "storage/bufmgr.h"
#include "utils/memutils.h"

#include "compat.h"

/* A relation as the record names it. Its init fork counts as another relation, because it is renamed to a main fork. */
typedef struct SeenRel
{
    RelAddress rel;
    bool init;
} SeenRel;

typedef struct Target
{
    RelAddress rel;
    ForkNumber fork; /* as in the record */
    ForkNumber pool_fork; /* INIT renamed to MAIN */
    BlockNumber block_no;
} Target;

static XLogReaderState *reader;
static MemoryContext record_context;
#if PG_VERSION_NUM >= 150000
static DecodedXLogRecord *decoded;
static size_t decoded_size;
#endif

/* What is being applied, for the text of an error. */
static uint32 current_no, current_count;
static XLogRecPtr current_lsn;
static uint8 current_rmid, current_info;

#define DECODED_BYTES_KEPT (1024 * 1024)

void
apply_init(void)
{
    record_context = AllocSetContextCreate(TopMemoryContext, "redo of one record", ALLOCSET_DEFAULT_SIZES);
    reader = XLogReaderAllocate(wal_segment_size, NULL, XL_ROUTINE(), NULL);
    if (reader == NULL)
        elog(FATAL, "no memory for a WAL reader");
}

void
apply_describe_current(char *text, size_t size)
{
    if (current_no == 0)
        snprintf(text, size, "request: ");
    else
        snprintf(text, size, "record %u of %u (rmgr %u, info 0x%02X, end LSN %X/%X): ", current_no, current_count,
                 current_rmid, current_info, LSN_FORMAT_ARGS(current_lsn));
}

void
apply_reset(void)
{
    pages_disown();
    pages_drop_all();
    pages_forget_invalid();
    MemoryContextReset(record_context);
}

/* Resource managers whose redo changes relation pages, and does so page by page. */
static bool
changes_pages(uint8 rmid, uint8 info)
{
    switch (rmid)
    {
        case RM_HEAP_ID:
        case RM_HEAP2_ID:
        case RM_BTREE_ID:
        case RM_HASH_ID:
        case RM_GIN_ID:
        case RM_GIST_ID:
        case RM_SEQ_ID:
        case RM_SPGIST_ID:
        case RM_BRIN_ID:
        case RM_GENERIC_ID:
            return true;
        case RM_XLOG_ID:
            return (info & ~XLR_INFO_MASK) == XLOG_FPI || (info & ~XLR_INFO_MASK) == XLOG_FPI_FOR_HINT;
        default:
            return RMGR_IS_CUSTOM(rmid);
    }
}

static void
decode(XLogRecPtr end_lsn, XLogRecord *record, uint32 len)
{
    char *error = NULL;
    bool ok;

    reader->ReadRecPtr = end_lsn - len; /* only for messages */
    reader->EndRecPtr = end_lsn;        /* what redo stamps on pages */
#if PG_VERSION_NUM >= 150000
    {
        size_t size = DecodeXLogRecordRequiredSpace(len);

        if (decoded_size < size || decoded_size > DECODED_BYTES_KEPT)
        {
            free(decoded);
            decoded_size = Max(size, (size_t) BLCKSZ * 4);
            decoded = malloc(decoded_size);
            if (decoded == NULL)
            {
                decoded_size = 0;
                elog(ERROR, "no memory to decode a record of %u bytes", len);
            }
        }
        ok = DecodeXLogRecord(reader, decoded, record, reader->ReadRecPtr, &error);
        reader->record = ok ? decoded : NULL;
    }
#else
    ok = DecodeXLogRecord(reader, record, &error);
#endif
    if (!ok)
        elog(ERROR, "cannot decode the record: %s", error != NULL ? error : "no reason given");
}

static void
check_block(int id, const DecodedBkpBlock *block)
{
    if (block->forknum < MAIN_FORKNUM || block->forknum > INIT_FORKNUM)
        elog(ERROR, "block reference %d has fork %d", id, (int) block->forknum);
    for (int other = 0; other < id; other++)
    {
        DecodedBkpBlock *earlier = BLOCK(reader, other);

        /* Redo would wait for ever for the lock that it holds itself. */
        if (earlier->in_use && earlier->blkno == block->blkno && earlier->forknum == block->forknum &&
            memcmp(&BLOCK_REL(earlier), &BLOCK_REL(block), sizeof(RelAddress)) == 0)
            elog(ERROR, "block references %d and %d are of the same block", other, id);
    }
}

/* Which fake relation stands for the block's. */
static int
fake_of(SeenRel *seen, int *seen_count, const DecodedBkpBlock *block)
{
    bool init = block->forknum == INIT_FORKNUM;
    int i;

    for (i = 0; i < *seen_count; i++)
        if (seen[i].init == init && memcmp(&seen[i].rel, &BLOCK_REL(block), sizeof(RelAddress)) == 0)
            return i;
    if (i == FAKE_RELS)
        elog(ERROR, "record touches more than %d relations", FAKE_RELS);
    seen[i].rel = BLOCK_REL(block);
    seen[i].init = init;
    *seen_count = i + 1;
    return i;
}

/*
 * Stand-ins for what was cut off a block that is not the target, where redo insists on finding something.
 */
static void
stand_in(DecodedBkpBlock *block)
{
    static int32 no_tuples = 0;
    static char no_image[SizeOfPageHeaderData];
    uint8 rmid = XLogRecGetRmid(reader);
    uint8 opcode = XLogRecGetInfo(reader) & ~XLR_INFO_MASK;

    if (rmid == RM_GIST_ID && opcode == XLOG_GIST_PAGE_SPLIT && !block->has_data)
    {
        /* gistxlog.c, decodePageSplitRecord: begins with the number of tuples */
        block->has_data = true;
        block->data = (char *) &no_tuples;
        block->data_len = sizeof(no_tuples);
    }
    else if (((rmid == RM_GIN_ID && opcode == XLOG_GIN_SPLIT) || (rmid == RM_XLOG_ID && opcode == XLOG_FPI)) &&
             !block->has_image)
    {
        /* ginxlog.c, ginRedoSplit, and xlog.c, xlog_redo: want to see the other pages restored from images */
        block->has_image = true;
        block->apply_image = true;
        block->bkp_image = no_image;
        block->bimg_len = sizeof(no_image);
        block->hole_offset = sizeof(no_image);
        block->hole_length = BLCKSZ - sizeof(no_image);
        block->bimg_info = 0;
    }
}

static bool
is_heap(uint8 rmid)
{
    return rmid == RM_HEAP_ID || rmid == RM_HEAP2_ID;
}

/*
 * Heap redo changes the block's page in both maps although the record does not name them. They must be in the pool,
 * or redo would read them from disk. True if one of them is the target.
 */
static bool
hide_maps(const Target *target, int rel, BlockNumber heap_block_no)
{
    BlockNumber vm_page = vm_page_of_heap_block(heap_block_no);
    BlockNumber fsm_page = fsm_leaf_of_heap_block(heap_block_no);
    bool vm_is_target = rel == 0 && target->pool_fork == VISIBILITYMAP_FORKNUM && target->block_no == vm_page;
    bool fsm_is_target = rel == 0 && target->pool_fork == FSM_FORKNUM && target->block_no == fsm_page;

    if (!vm_is_target)
        page_poison_map(rel, VISIBILITYMAP_FORKNUM, vm_page);
    if (!fsm_is_target)
        page_poison_map(rel, FSM_FORKNUM, fsm_page);
    return vm_is_target;
}

/* Renames the record's blocks and hides all that are not the target. */
static void
isolate(const Target *target)
{
    SeenRel seen[FAKE_RELS];
    int seen_count = 1;
    int max_id = MAX_BLOCK_ID(reader);
    int rel_of[XLR_MAX_BLOCK_ID + 1];
    bool touches_target = false;

    seen[0].rel = target->rel;
    seen[0].init = target->fork == INIT_FORKNUM;
    for (int id = 0; id <= max_id; id++)
    {
        DecodedBkpBlock *block = BLOCK(reader, id);

        if (!block->in_use)
            continue;
        check_block(id, block);
        rel_of[id] = fake_of(seen, &seen_count, block);
    }
    for (int id = 0; id <= max_id; id++)
    {
        DecodedBkpBlock *block = BLOCK(reader, id);
        int rel;

        if (!block->in_use)
            continue;
        rel = rel_of[id];
        page_rename(block, rel);
        /* Redo writes a page of an init fork to disk at once; as a main fork it is a page like any other. */
        if (block->forknum == INIT_FORKNUM)
            block->forknum = MAIN_FORKNUM;
        if (block->forknum == MAIN_FORKNUM && is_heap(XLogRecGetRmid(reader)))
            touches_target |= hide_maps(target, rel, block->blkno);
        if (rel == 0 && block->forknum == target->pool_fork && block->blkno == target->block_no)
        {
            touches_target = true;
            continue;
        }
        stand_in(block);
        page_poison(rel, block->forknum, block->blkno);
    }
    if (!touches_target)
        elog(ERROR, "record does not touch the block that is asked for");
}

static void
apply_record(const Target *target, XLogRecPtr end_lsn, const char *bytes, uint32 len)
{
    XLogRecord *record = (XLogRecord *) bytes; /* aligned: every frame is a multiple of 8 bytes */
    MemoryContext outer;

    current_lsn = end_lsn;
    if (len < SizeOfXLogRecord || record->xl_tot_len != len)
        elog(ERROR, "record of %u bytes says it has %u", len, len < SizeOfXLogRecord ? 0 : record->xl_tot_len);
    current_rmid = record->xl_rmid;
    current_info = record->xl_info;
    if (!changes_pages(record->xl_rmid, record->xl_info))
        elog(ERROR, "not a record that changes relation pages");
    if (!RMGR_IS_LOADED(record->xl_rmid))
        elog(ERROR, "no library with this resource manager is loaded (redo.preload_libraries in pageserver.toml names them)");
    decode(end_lsn, record, len);
    if (MAX_BLOCK_ID(reader) < 0)
        elog(ERROR, "record has no block references");

    /* each block and its pages in both maps */
    if (!pages_have_room((MAX_BLOCK_ID(reader) + 1) * 3))
    {
        static PGAlignedBlock saved;

        page_get(0, target->pool_fork, target->block_no, saved.data);
        pages_drop_all();
        page_put(0, target->pool_fork, target->block_no, saved.data);
    }
    outer = MemoryContextSwitchTo(record_context);
    isolate(target);
    RMGR(record->xl_rmid).rm_redo(reader);
    MemoryContextSwitchTo(outer);
    MemoryContextReset(record_context);
}

static Target
parse_target(const RequestHead *head)
{
    Target target;

    if (head->fork > INIT_FORKNUM)
        elog(ERROR, "unknown fork %u", head->fork);
    memset(&target, 0, sizeof(target));
    REL_SPC(target.rel) = head->spc_oid;
    REL_DB(target.rel) = head->db_oid;
    REL_NUMBER(target.rel) = head->rel_number;
    target.fork = head->fork;
    target.pool_fork = head->fork == INIT_FORKNUM ? MAIN_FORKNUM : head->fork;
    target.block_no = head->block_no;
    return target;
}

void
apply_request(const char *body, uint32 body_len, char *image)
{
    const char *at = body;
    const char *end = body + body_len;
    RequestHead head;
    Target target;

    current_no = 0;
    if (body_len < sizeof(head))
        elog(ERROR, "request too short");
    memcpy(&head, at, sizeof(head));
    at += sizeof(head);
    target = parse_target(&head);
    if (head.flags & REQUEST_HAS_BASE)
    {
        if (end - at < BLCKSZ)
            elog(ERROR, "request too short for its base");
        page_put(0, target.pool_fork, target.block_no, at);
        at += BLCKSZ;
    }
    else
        page_put(0, target.pool_fork, target.block_no, NULL);

    current_count = head.record_count;
    for (uint32 i = 0; i < head.record_count; i++)
    {
        RecordHead record;

        if (end - at < (ptrdiff_t) sizeof(record))
            elog(ERROR, "request too short for its records");
        memcpy(&record, at, sizeof(record));
        at += sizeof(record);
        if ((uint64) (end - at) < TYPEALIGN(8, (uint64) record.len))
            elog(ERROR, "request too short for a record");
        current_no = i + 1;
        apply_record(&target, record.end_lsn, at, record.len);
        at += TYPEALIGN(8, (uint64) record.len);
        /* Checked for each record: a later one could initialise the page and hide what went wrong. */
        if (XLogHaveInvalidPages())
            elog(ERROR, "record needs the page's contents, but the page is all zeroes");
    }
    if (at != end)
        elog(ERROR, "request is longer than its records");
    page_get(0, target.pool_fork, target.block_no, image);
    pages_drop_all();
}
